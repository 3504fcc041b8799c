"""A kernel in memory, for the tests of plan and diff: it takes steps and refuses what the real one refuses.

What it knows was looked up on the real one: a duplicate map element with another value and the deletion of a missing one
are errors, and undo their whole transaction, and so is an interval that overlaps another; a link's name is taken until it
is deleted; what lies in a namespace or on a link goes with it; the first address of a prefix takes the later ones with it
unless promote_secondaries is set; what sets the IPv6 forwarding of all links sets that of each.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from niso.plan import nft
from niso.plan.diff import AnyStep, HostsEdit, NftTransaction, Step
from niso.plan.state import (
    Address,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Veth,
)

PROMOTE = "net/ipv4/conf/all/promote_secondaries"
FORWARDING6 = re.compile(r"net/ipv6/conf/[^/]+/forwarding")
_ELEMENT = re.compile(
    r'(add|delete) element (inet niso|bridge niso) (\w+) \{ (.+?)(?: comment "([^"\\\n]*)")?(?: : (.+))? \}'
)


class Refused(Exception):
    """The kernel does not take this step."""


def _must(so: bool, words: str) -> None:
    if not so:
        raise Refused(words)


def overlap(one: str, other: str) -> bool:
    """Whether two keys of an interval set have a value in common: prefixes, or concatenations that end in ports."""
    *start, last = one.split(" . ")
    *start_, last_ = other.split(" . ")
    if "/" in last:
        return ipaddress.ip_network(last).overlaps(ipaddress.ip_network(last_))
    low, high, low_, high_ = (
        int(part) for text in (last, last_) for part in (text.split("-") * 2)[:2]
    )
    return start == start_ and low <= high_ and low_ <= high


class FakeKernel:
    def __init__(self) -> None:
        self.ruleset: str | None = None  # digest of the text of both tables
        self.elements: dict[tuple[str, ...], Element] = {}
        self.bridges: dict[str, Bridge] = {}
        self.netns: dict[str, Netns] = {}
        self.veths: dict[str, Veth] = {}
        self.addresses: dict[Address, None] = {}  # in the order in which they came
        self.routes: dict[tuple[str, str], Route] = {}
        self.sysctls: dict[tuple[str, str], str] = {}
        self.hosts: dict[str, set[HostsLine]] = {}
        self.foreign_links = {"uplink0"}  # the host's own, which have sysctls

    def write(self, steps: Iterable[AnyStep]) -> None:
        for step in steps:
            self.do(step)

    def do(self, step: AnyStep) -> None:
        if isinstance(step, NftTransaction):
            self._nft(step.statements)
        elif isinstance(step, HostsEdit):
            self._edit(step)
        else:
            getattr(self, f"_{type(step.thing).__name__.lower()}")(step, step.thing)

    def read(self, want: State) -> State:
        """All that is there; of sysctls those that ``want`` has."""
        return State(
            rulesets=frozenset({Ruleset(self.ruleset)} if self.ruleset else ()),
            elements=frozenset(self.elements.values()),
            bridges=frozenset(self.bridges.values()),
            netns=frozenset(self.netns.values()),
            sysctls=frozenset(
                Sysctl(s.netns, s.name, self.sysctls.get(s.key(), "kernel's own"))  # type: ignore[arg-type]
                for s in want.sysctls
                if self._has_sysctl(s)
            ),
            veths=frozenset(self.veths.values()),
            addresses=frozenset(self.addresses),
            routes=frozenset(self.routes.values()),
            hosts_files=frozenset(HostsFile(folder) for folder in self.hosts),
            hosts_lines=frozenset(line for lines in self.hosts.values() for line in lines),
        )

    def unguarded(self) -> list[str]:
        """Links that could carry a packet which no rule looks at; empty while both tables are missing."""
        if self.ruleset is None:
            return []
        found = [
            name for name in self.bridges if (nft.INET, "bridges", f'"{name}"') not in self.elements
        ]
        for table in nft.CONTAINERS:
            found += [
                name for name in self.veths if (table, "ports", f'"{name}"') not in self.elements
            ]
        return found

    # --- nftables ------------------------------------------------------------------------------------------------

    def _nft(self, statements: tuple[str, ...]) -> None:
        _must(bool(statements), "an empty transaction")
        before = (self.ruleset, dict(self.elements))
        try:
            for statement in statements:
                self._statement(statement)
        except Refused:
            self.ruleset, self.elements = before
            raise

    def _statement(self, statement: str) -> None:
        if statement.startswith("destroy table "):
            table = statement.removeprefix("destroy table ")
            _must(table in nft.CONTAINERS, statement)
            self.ruleset = None
            self.elements = {
                key: element for key, element in self.elements.items() if key[0] != table
            }
            return
        if statement == nft.TABLES:
            _must(self.ruleset is None, "rules would come twice")
            self.ruleset = nft.DIGEST
            return
        _must(self.ruleset is not None, f"no such table: {statement}")
        parts = _ELEMENT.fullmatch(statement)
        _must(parts is not None, f"no statement of ours: {statement}")
        assert parts
        verb, table, container, key, comment, value = parts.groups()
        _must(container in nft.CONTAINERS[table], f"no such set: {statement}")
        element = Element(table, container, key, value or "", comment or "")
        present = self.elements.get(element.key())
        if verb == "delete":
            _must(present is not None, f"ENOENT: {statement}")
            del self.elements[element.key()]
        elif present is None:
            if nft.DECLARED[table, container][2]:
                others = [
                    e.element
                    for e in self.elements.values()
                    if (e.table, e.container) == (table, container)
                ]
                _must(
                    not any(overlap(key, other) for other in others),
                    f"EEXIST, it overlaps another: {statement}",
                )
            self.elements[element.key()] = element
        else:
            _must(present.value == element.value, f"EEXIST: {statement}")

    # --- links ---------------------------------------------------------------------------------------------------

    def _taken(self, name: str) -> bool:
        return name in self.bridges or name in self.veths

    def _bridge(self, step: Step, bridge: Bridge) -> None:
        if step.action == "add":
            _must(not self._taken(bridge.name), f"EEXIST: {bridge}")
        else:
            _must(bridge.name in self.bridges, f"ENODEV: {bridge}")
        if step.action != "delete":
            self.bridges[bridge.name] = bridge
            return
        del self.bridges[bridge.name]
        self._link_gone("", bridge.name)
        for veth in [veth for veth in self.veths.values() if veth.bridge == bridge.name]:
            self.veths[veth.name] = veth._replace(bridge="")

    def _netns(self, step: Step, netns: Netns) -> None:
        if step.action == "add":
            _must(netns.name not in self.netns, f"EEXIST: {netns}")
            self.netns[netns.name] = netns
            return
        _must(step.action == "delete" and netns.name in self.netns, f"{step.action} {netns}")
        self.lose_netns(netns.name)

    def lose_netns(self, name: str) -> None:
        """A namespace goes, with all that lies in it."""
        del self.netns[name]
        for veth in [veth for veth in self.veths.values() if veth.netns == name]:
            del self.veths[veth.name]
            self._link_gone(name, veth.peer)
        self.sysctls = {key: value for key, value in self.sysctls.items() if key[0] != name}

    def _veth(self, step: Step, veth: Veth) -> None:
        present = self.veths.get(veth.name)
        if step.action == "delete":
            _must(present is not None, f"ENODEV: {veth}")
            self.lose_veth(veth.name)
            return
        _must(veth.bridge in self.bridges, f"no bridge for {veth}")
        if step.action == "add":
            _must(not self._taken(veth.name), f"EEXIST: {veth}")
            _must(veth.netns in self.netns, f"no namespace for {veth}")
            ends = {(other.netns, other.peer) for other in self.veths.values()}
            _must((veth.netns, veth.peer) not in ends, f"EEXIST for the other end: {veth}")
        else:
            _must(present is not None, f"ENODEV: {veth}")
            assert present
            same = (present.netns, present.peer, present.mac) == (veth.netns, veth.peer, veth.mac)
            _must(same, f"the other end cannot be changed: {present} to {veth}")
        self.veths[veth.name] = veth

    def lose_veth(self, name: str) -> None:
        """A veth pair goes, with what its other end has."""
        veth = self.veths.pop(name)
        self._link_gone(veth.netns, veth.peer)

    def _link_gone(self, netns: str, link: str) -> None:
        self.addresses = {a: None for a in self.addresses if (a.netns, a.link) != (netns, link)}
        self.routes = {
            key: route
            for key, route in self.routes.items()
            if (route.netns, route.link) != (netns, link)
        }
        self.sysctls = {
            key: value
            for key, value in self.sysctls.items()
            if key[0] != netns or f"/{link}/" not in key[1]
        }

    def _has_link(self, netns: str, link: str) -> bool:
        if not netns:
            return self._taken(link)
        return any((veth.netns, veth.peer) == (netns, link) for veth in self.veths.values())

    # --- addresses, routes, sysctls, files -----------------------------------------------------------------------

    def _address(self, step: Step, address: Address) -> None:
        if step.action == "add":
            _must(self._has_link(address.netns, address.link), f"ENODEV: {address}")
            _must(address not in self.addresses, f"EEXIST: {address}")
            self.addresses[address] = None
            return
        _must(step.action == "delete" and address in self.addresses, f"EADDRNOTAVAIL: {address}")
        prefix = ipaddress.ip_interface(address.address).network
        of_prefix = [
            other
            for other in self.addresses
            if (other.netns, other.link) == (address.netns, address.link)
            and ipaddress.ip_interface(other.address).network == prefix
        ]
        promotes = prefix.version == 6 or self.sysctls.get((address.netns, PROMOTE)) == "1"
        for other in of_prefix if of_prefix[0] == address and not promotes else [address]:
            del self.addresses[other]
        left = {
            other
            for other in self.addresses
            if (other.netns, other.link) == (address.netns, address.link)
        }
        if all((":" in other.address) != (prefix.version == 6) for other in left):  # fib_disable_ip
            family = {6: True, 4: False}[prefix.version]
            self.routes = {
                key: route
                for key, route in self.routes.items()
                if (route.netns, route.link) != (address.netns, address.link)
                or (":" in route.destination) != family
            }

    def _route(self, step: Step, route: Route) -> None:
        key = (route.netns, route.destination)
        if step.action != "add":
            _must(key in self.routes, f"ESRCH: {route}")
        if step.action == "delete":
            del self.routes[key]
            return
        _must(step.action == "change" or key not in self.routes, f"EEXIST: {route}")
        reachable = any(
            ipaddress.ip_address(route.gateway) in ipaddress.ip_interface(address.address).network
            for address in self.addresses
            if (address.netns, address.link) == (route.netns, route.link)
        )
        _must(reachable, f"ENETUNREACH: {route}")
        self.routes[key] = route

    def _has_sysctl(self, sysctl: Sysctl) -> bool:
        if sysctl.netns and sysctl.netns not in self.netns:
            return False
        link = sysctl.name.split("/")[3] if "/conf/" in sysctl.name else "all"
        return link in ("all", "default", *self.foreign_links) or self._has_link(sysctl.netns, link)

    def _sysctl(self, step: Step, sysctl: Sysctl) -> None:
        _must(step.action != "delete", f"a sysctl cannot be deleted: {sysctl}")
        _must(self._has_sysctl(sysctl), f"ENOENT: {sysctl}")
        self.sysctls[sysctl.netns, sysctl.name] = sysctl.value
        if sysctl.name == "net/ipv6/conf/all/forwarding":
            of_each = [
                key
                for key in self.sysctls
                if key[0] == sysctl.netns and FORWARDING6.fullmatch(key[1])
            ]
            self.sysctls.update(dict.fromkeys(of_each, sysctl.value))

    def _edit(self, step: HostsEdit) -> None:
        if step.create:
            self.hosts[step.folder] = set()
        _must(step.folder in self.hosts, f"ENOENT: {step}")
        lines = self.hosts[step.folder]
        _must(
            set(step.remove) <= lines and not lines & set(step.add), f"not as it was read: {step}"
        )
        self.hosts[step.folder] = (lines - set(step.remove)) | set(step.add)

    def _hostsfile(self, step: Step, file: HostsFile) -> None:
        _must(step.action == "delete" and file.folder in self.hosts, f"{step.action} {file}")
        del self.hosts[file.folder]
