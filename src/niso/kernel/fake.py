"""Model a kernel in memory that refuses what the real one refuses, with the same errno.

Its behaviour was observed on the real one, and a contract test runs the same cases on both:

- A duplicate map element with another value, the deletion of a missing element and an overlapping
  interval are errors that undo their whole transaction.
- A link's name is taken until the link is deleted.
- Deleting a namespace or link deletes everything in or on it.
- Deleting the first address of a prefix deletes the later ones too, unless promote_secondaries is
  set.
- Setting IPv6 forwarding of all links sets that of each link.

Objects of other kinds can be added if the objects that they depend on exist, and deleted.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Iterable

import niso.kernel.real  # noqa: F401  # every kind is registered
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.names import is_marked
from niso.kernel.fake_engines import FakeEngines
from niso.kernel.fake_host import FakeHost
from niso.kernel.fake_tables import FakeTables, refuse_unless
from niso.kernel.fake_wire import FakeWire
from niso.kernel.kinds import order
from niso.kernel.kinds.address import Address
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.element import NftTransaction
from niso.kernel.kinds.hosts_file import HostsEdit, HostsFile
from niso.kernel.kinds.hosts_line import HostsLine
from niso.kernel.kinds.kind import Step, kind_of
from niso.kernel.kinds.named import Named
from niso.kernel.kinds.namespace import Netns
from niso.kernel.kinds.route import Route
from niso.kernel.kinds.routing_rule import RoutingRule
from niso.kernel.kinds.ruleset import Ruleset
from niso.kernel.kinds.setting import FORWARDING6, Sysctl
from niso.kernel.kinds.veth import Veth
from niso.kernel.kinds.vxlan import Vxlan
from niso.kernel.state import State

if TYPE_CHECKING:
    from typing import Any, Self

    from niso.kernel.interface import Foreign
    from niso.kernel.kinds.kind import AnyStep

PROMOTE = "net/ipv4/conf/all/promote_secondaries"
MOST_PORTS = 1023
"""The most ports of one bridge (BR_MAX_PORTS, net/bridge/br_private.h; port 0 is not used)."""
_LONGEST_NAME = 15  # IFNAMSIZ - 1
_FORWARDING6 = re.compile(r"net/ipv6/conf/[^/]+/forwarding")


class Fake(FakeTables, FakeHost, FakeEngines, FakeWire):
    """Implement `niso.kernel.interface.Kernel` in memory.

    ``strict`` also refuses what the real kernel accepts without effect, such as deleting a missing
    object: a plan never contains such a step. ``fail`` is called before each step; if it returns a
    non-zero errno, the step fails with that errno.
    """

    def __init__(self, strict: bool = False) -> None:
        FakeTables.__init__(self, strict)
        FakeHost.__init__(self)
        FakeEngines.__init__(self)
        FakeWire.__init__(self)
        self.fail: Callable[[AnyStep], int] = lambda step: 0
        self.done: list[str] = []  # descriptions of the executed steps
        self.netns: dict[str, Netns] = {}
        self.veths: dict[str, Veth] = {}
        self.addresses: dict[Address, None] = {}  # in the order of their creation
        self.routes: dict[tuple[str, str], Route] = {}
        self.sysctls: dict[tuple[str, str], str] = {}
        self.hosts: dict[str, set[HostsLine]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    # --- reading ---

    def everything(self, want: State) -> State:
        """Return all objects that exist; of sysctls, only those in ``want``."""
        return State(
            [
                *([Ruleset(self.ruleset)] if self.ruleset and self.is_marked() else ()),
                *self.present_elements(),
                *self.bridges.values(),
                *self.vxlans.values(),
                *self.netns.values(),
                *self.present_names(),
                *(
                    thing._replace(value=self.sysctls.get((thing.netns, thing.name), "kernel's"))
                    for thing in want[Sysctl]
                    if self._has_sysctl(thing)
                ),
                *self.veths.values(),
                *self.addresses,
                *self.routes.values(),
                *map(HostsFile, self.hosts),
                *(line for lines in self.hosts.values() for line in lines),
                *(thing for things in self.others.values() for thing in things.values()),
            ]
        )

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Foreign | None = None,
        strays: bool = False,
        taken: bool = False,
    ) -> State:
        """Implement `Kernel.read`; this kernel has no changes by other programs."""
        self._check_owner(candidates, foreign)
        present = self.everything(candidates)
        keys = {(type(thing), thing.key()) for thing in candidates}
        links = {
            (kind.space(thing), link)
            for kind in order.KINDS
            for thing in candidates[kind.thing]
            for link in kind.links(thing)
        }
        names = {thing.name for thing in candidates[Netns]}
        names |= {thing.name for thing in candidates[Named] if self.is_space(thing.name)}

        def is_asked(thing: Any) -> bool:
            kind = kind_of(thing)
            if (
                kind.space(thing)
                and kind.space(thing) not in names
                and not kind.reads_closed_spaces
            ):
                return False
            if kind.is_read_by_link:
                return any((kind.space(thing), link) in links for link in kind.links(thing))
            return isinstance(thing, Ruleset) or (type(thing), thing.key()) in keys

        return State.of_kinds(
            lambda kind: (
                candidates[kind.thing]
                if taken and kind.is_transactional
                else filter(is_asked, present[kind.thing])
            )
        )

    def read_all(self, want: State, alias: str, foreign: Foreign) -> State:
        self._check_owner(want, foreign)
        return self.everything(want)

    def sysctl(self, name: str) -> str | None:
        thing = Sysctl("", name, "")
        return self.sysctls.get(("", name), "0") if self._has_sysctl(thing) else None

    def set_sysctl(self, name: str, value: str) -> None:
        self.do(Step("change", Sysctl("", name, value)))

    def has_netns(self, name: str) -> bool:
        return name in self.netns or name in self.foreign_netns

    def name_netns(self, name: str, pid: int, alias: str) -> None:
        refuse_unless(not self.has_netns(name), errno.EEXIST, name)
        refuse_unless(self.alias_at(pid) == alias, errno.EPERM, name)
        self.netns[name] = Netns(name, alias)
        self.identities[name] = self.inhabited[pid][0]

    def addresses_in(self, name: str, link: str) -> list[str]:
        """Implement `Kernel.addresses_in`; without a link, return those of all links there."""
        return [a.address for a in self.addresses if a.netns == name and link in ("", a.link)]

    def _check_owner(self, candidates: State, foreign: Foreign | None) -> None:
        links = {b.name for b in candidates[Bridge]} | {v.name for v in candidates[Veth]}
        links |= {vxlan.name for vxlan in candidates[Vxlan]}
        self.refuse_foreign(links, {thing.name for thing in candidates[Netns]}, foreign)

    # --- writing ---

    def write(self, steps: Iterable[AnyStep], ending: list[str] | None = None) -> None:
        steps = list(steps)
        for step in steps:
            self._do(step, steps, ending)

    def write_what_can_be(
        self, steps: Iterable[AnyStep], ending: list[str] | None = None
    ) -> list[Error]:
        steps = list(steps)
        errors: list[Error] = []
        for step in steps:
            if errors and step.kind.is_transactional:
                continue
            try:
                self._do(step, steps, ending)
            except Error as error:
                errors.append(error)
        return errors

    def end_links(self, names: list[str]) -> None:
        for name in names:
            if name in self.veths:
                self.lose_veth(name)
            elif name in self.vxlans:
                self.do(Step("delete", self.vxlans[name]))
            elif name in self.bridges:
                self.do(Step("delete", self.bridges[name]))
            else:
                self.foreign_links.pop(name, None)

    def marked_links(self) -> dict[str, str]:
        marks = {**self.foreign_links, **{name: v.alias for name, v in self.veths.items()}}
        marks |= {name: vxlan.alias for name, vxlan in self.vxlans.items()}
        marks |= {name: bridge.alias for name, bridge in self.bridges.items()}
        return {name: mark for name, mark in marks.items() if is_marked(mark)}

    def marked_rules(self) -> list[RoutingRule]:
        return list(self.others.get(RoutingRule, {}).values())

    def marked_netns(self) -> dict[str, str]:
        return {name: netns.alias for name, netns in sorted(self.netns.items())}

    def clear_hosts(self) -> None:
        self.hosts.clear()
        self.own_hosts.clear()

    def host_addresses(self) -> list[str]:
        return [*FakeHost.host_addresses(self), *self.addresses_in("", "")]

    def do(self, step: AnyStep) -> None:
        """Execute one step. Raises KernelError."""
        self._do(step, [step], None)

    def _do(self, step: AnyStep, steps: list[AnyStep], ending: list[str] | None) -> None:
        number = self.fail(step)
        refuse_unless(not number, number, step.describe().splitlines()[0])
        if isinstance(step, NftTransaction):
            self.transact(step)
        elif isinstance(step, HostsEdit):
            self._edit_hosts(step)
        elif isinstance(step, Step):
            if ending is not None and self._is_detached(step, steps):
                ending.append(step.thing.name)
                self.veths[step.thing.name] = step.thing._replace(bridge="", up=False)
            else:
                self._thing(step)
        self.done.append(step.describe())

    def _thing(self, step: Step[Any]) -> None:
        writers: dict[type, Callable[[Step[Any], Any], None]] = {
            Bridge: self._bridge,
            Vxlan: self._vxlan,
            Netns: self._netns,
            Named: self._name,
            Veth: self._veth,
            Address: self._address,
            Route: self._route,
            Sysctl: self._sysctl,
            HostsFile: self._hosts_file,
        }
        writers.get(type(step.thing), self._other)(step, step.thing)

    @staticmethod
    def _is_detached(step: Step[Any], steps: list[AnyStep]) -> bool:
        """Return whether a step deletes a veth pair whose namespace is deleted too."""
        return (
            isinstance(step.thing, Veth)
            and step.action == "delete"
            and any(
                isinstance(other, Step)
                and other.action == "delete"
                and isinstance(other.thing, Netns | Named)
                and other.thing.name == step.thing.netns
                for other in steps
            )
        )

    def _absent(self, number: int, thing: object) -> None:
        """Refuse the deletion of a missing object if ``strict``."""
        refuse_unless(not self.strict, number, thing)

    def _places(self) -> set[str]:
        things: list[Any] = [*self.bridges.values(), *self.netns.values(), *self.veths.values()]
        things += self.named.values()
        names = {f"link //{name}" for name in (*self.veths, *self.vxlans, *self.foreign_links)}
        return {kind_of(thing).place(thing) for thing in things} | names | {"netns "}

    # --- links ---

    def _taken(self, name: str) -> bool:
        return any(name in links for links in (self.bridges, self.veths, self.vxlans)) or (
            name in self.foreign_links
        )

    def _check_new(self, name: str) -> None:
        refuse_unless(len(name) <= _LONGEST_NAME, errno.ERANGE, name)
        refuse_unless(not self._taken(name), errno.EEXIST, name)

    def _bridge(self, step: Step[Bridge], bridge: Bridge) -> None:
        if step.action == "add":
            self._check_new(bridge.name)
        elif bridge.name not in self.bridges:
            if step.action == "delete":
                self._absent(errno.ENODEV, bridge)
                return
            refuse_unless(False, errno.ENODEV, bridge)
        if step.action != "delete":
            self.bridges[bridge.name] = bridge
            return
        del self.bridges[bridge.name]
        self._link_gone("", bridge.name)
        self.lose_ports(bridge.name)
        for veth in [veth for veth in self.veths.values() if veth.bridge == bridge.name]:
            self.veths[veth.name] = veth._replace(bridge="")

    def _netns(self, step: Step[Netns], netns: Netns) -> None:
        if step.action == "add":
            taken = netns.name in self.netns or netns.name in self.foreign_netns
            refuse_unless(not taken, errno.EEXIST, netns)
            self.netns[netns.name] = netns
            self.made = self.identities[netns.name] = self.made + 1
        elif step.action == "change":
            refuse_unless(netns.name in self.netns, errno.ENOENT, netns)
            self.netns[netns.name] = netns
        elif netns.name in self.netns:
            self.lose_netns(netns.name)
        else:
            self._absent(errno.ENOENT, netns)

    def lose_netns(self, name: str) -> None:
        """Delete a namespace with everything in it.

        A detached pair is deleted later, by `end_links`.
        """
        del self.netns[name]
        for veth in [veth for veth in self.veths.values() if veth.netns == name]:
            self._link_gone(name, veth.peer)
            if veth.bridge:
                del self.veths[veth.name]
            else:
                self.veths[veth.name] = veth._replace(netns="", peer="", mac="")
        self.sysctls = {key: value for key, value in self.sysctls.items() if key[0] != name}
        self._others_gone(f"netns {name}")

    def _veth(self, step: Step[Veth], veth: Veth) -> None:
        present = self.veths.get(veth.name)
        if step.action == "delete":
            if present is None:
                self._absent(errno.ENODEV, veth)
            else:
                self.lose_veth(veth.name)
            return
        if step.action == "add":
            refuse_unless(self.is_space(veth.netns), errno.ENOENT, veth)
        refuse_unless(veth.bridge in self.bridges, errno.ENODEV, veth)
        if step.action == "add":
            self._check_new(veth.name)
            ends = {(other.netns, other.peer) for other in self.veths.values()}
            refuse_unless((veth.netns, veth.peer) not in ends, errno.EEXIST, veth)
        else:
            refuse_unless(present is not None, errno.ENODEV, veth)
            far = (veth.netns, veth.peer, veth.mac)
            same = present is not None and (present.netns, present.peer, present.mac) == far
            refuse_unless(same, errno.EINVAL, "the other end cannot be changed")
        ports = sum(
            other.bridge == veth.bridge and other.name != veth.name for other in self.veths.values()
        )
        refuse_unless(ports < MOST_PORTS, errno.EXFULL, veth)
        refuse_unless(veth.mac != self.bridges[veth.bridge].mac, errno.EADDRINUSE, veth)
        self.veths[veth.name] = veth

    def lose_veth(self, name: str) -> None:
        """Delete a veth pair with everything on its other end."""
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
        self._others_gone(f"link /{netns}/{link}")

    def _has_link(self, netns: str, link: str) -> bool:
        if not netns:
            return self._taken(link)
        return any((veth.netns, veth.peer) == (netns, link) for veth in self.veths.values())

    # --- addresses, routes, sysctls, files ---

    def _address(self, step: Step[Address], address: Address) -> None:
        refuse_unless(not address.netns or self.is_space(address.netns), errno.ENOENT, address)
        has_link = self._has_link(address.netns, address.link)
        if step.action != "delete":
            refuse_unless(has_link, errno.ENODEV, address)
            if step.action == "add" and self.strict:
                refuse_unless(address not in self.addresses, errno.EEXIST, address)
            if step.was is not None:
                self.addresses.pop(step.was, None)
            self.addresses[address] = None
            return
        if address not in self.addresses:
            self._absent(errno.EADDRNOTAVAIL, address)
            return
        prefix = ipaddress.ip_interface(address.address).network
        on_link = [
            other
            for other in self.addresses
            if (other.netns, other.link) == (address.netns, address.link)
        ]
        of_prefix = [a for a in on_link if ipaddress.ip_interface(a.address).network == prefix]
        promotes = prefix.version == 6 or self.sysctls.get((address.netns, PROMOTE)) == "1"
        for other in of_prefix if of_prefix[0] == address and not promotes else [address]:
            del self.addresses[other]
        left = (a for a in on_link if a in self.addresses)
        if prefix.version == 4 and all(":" in other.address for other in left):
            # the last IPv4 address is deleted (fib_disable_ip)
            self.routes = {
                key: route
                for key, route in self.routes.items()
                if (route.netns, route.link) != (address.netns, address.link)
                or ":" in route.destination
            }
            self.lose_neighbours(address.netns, address.link)

    def _route(self, step: Step[Route], route: Route) -> None:
        refuse_unless(not route.netns or self.is_space(route.netns), errno.ENOENT, route)
        key = (route.netns, route.destination)
        present = self.routes.get(key)
        if step.action == "delete":
            if self.routes.pop(key, None) is None:
                self._absent(errno.ESRCH, route)
            return
        refuse_unless(
            step.action == "add" or present is not None or not self.strict, errno.ESRCH, route
        )
        refuse_unless(self._has_link(route.netns, route.link), errno.ENODEV, route)
        if step.action == "add" and present is not None:
            refuse_unless(present == route and not self.strict, errno.EEXIST, route)
        self.routes[key] = route

    def _has_sysctl(self, sysctl: Sysctl) -> bool:
        if sysctl.netns and not self.is_space(sysctl.netns):
            return False
        name = sysctl.name
        link = name.split("/")[3] if "/conf/" in name or "/neigh/" in name else "all"
        return link in ("all", "default") or self._has_link(sysctl.netns, link)

    def _sysctl(self, step: Step[Sysctl], sysctl: Sysctl) -> None:
        refuse_unless(step.action != "delete", errno.EINVAL, "a sysctl cannot be deleted")
        refuse_unless(self._has_sysctl(sysctl), errno.ENOENT, sysctl)
        self.sysctls[sysctl.netns, sysctl.name] = sysctl.value
        if sysctl.name == FORWARDING6:
            of_each = [
                key
                for key in self.sysctls
                if key[0] == sysctl.netns and _FORWARDING6.fullmatch(key[1])
            ]
            self.sysctls.update(dict.fromkeys(of_each, sysctl.value))

    def _edit_hosts(self, step: HostsEdit) -> None:
        if step.create:
            if step.folder not in self.hosts:
                self.made = self.identities[f"hosts {step.folder}"] = self.made + 1
            self.hosts[step.folder] = set()
        refuse_unless(step.folder in self.hosts, errno.ENOENT, step)
        lines = self.hosts[step.folder]
        as_read = set(step.remove) <= lines and not lines & set(step.add)
        refuse_unless(as_read or not self.strict, errno.EINVAL, "not as it was read")
        self.hosts[step.folder] = (lines - set(step.remove)) | set(step.add)

    def _hosts_file(self, step: Step[HostsFile], file: HostsFile) -> None:
        if self.hosts.pop(file.folder, None) is None:
            self._absent(errno.ENOENT, file)
