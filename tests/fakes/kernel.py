"""A kernel in memory.

Model the network namespaces of engines for an in-memory kernel; see `fakes.kernel`.

Model the host of an in-memory kernel, apart from niso's own objects; see `fakes.kernel`.

It has one link with one address. A test sets the fields for more: listeners, flows, connections.

Model niso's two nftables tables in memory; see `fakes.kernel`.

Model VXLAN devices and the entries of services of other hosts; see `fakes.kernel`.

Model a kernel in memory that refuses what the real one refuses, with the same errno.

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

import contextlib
import errno
import functools
import ipaddress
import os
import re
import time
from collections.abc import Callable, Collection, Iterable

import niso.kernel.real  # noqa: F401  # every kind is registered
from niso.base.errors import Conflict, Error, KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import is_marked
from niso.kernel import policy_rules, ruleset
from niso.kernel.conntrack import Tracked
from niso.kernel.foreign_chains import Chain, ForeignChains
from niso.kernel.kinds.addresses import Address, PermanentNeighbour, Route, RoutingRule
from niso.kernel.kinds.hosts_files import HostsEdit, HostsFile, HostsLine
from niso.kernel.kinds.kind import KINDS, AnyStep, State, Step, kind_of
from niso.kernel.kinds.kind import Foreign as Refused
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.nft import NftTransaction, Ruleset
from niso.kernel.kinds.sysctls import FORWARDING6, Sysctl
from niso.kernel.kinds.tunnels import Vxlan
from niso.kernel.link_records import Link
from niso.kernel.neighbour_tables import Table
from niso.kernel.netns import ForeignNetns
from niso.kernel.nft_elements import Atoms, Element, ports_of
from niso.kernel.sockets import Connection, Listener, Measured

if TYPE_CHECKING:
    from typing import Any, Self

    from niso.kernel.host_facts import Network


# --- fake engines --------------------------------------------------------------------------------


class FakeEngines:
    """Foreign namespaces by the path of their file, and the names that niso gives them."""

    netns: dict[str, Netns]
    veths: dict[str, Veth]

    def __init__(self) -> None:
        self.engines: dict[str, ForeignNetns] = {}
        self.named: dict[str, NetnsName] = {}
        self._cookies = 1000

    def lose_veth(self, name: str) -> None:
        """Delete a veth pair with everything on its other end."""
        raise NotImplementedError

    def begin_engine(self, path: str, *links: str, routed: tuple[int, ...] = ()) -> int:
        """Simulate another program that creates a namespace at ``path``. Return its cookie."""
        self._cookies += 1
        all_links = frozenset(("lo", *links))
        self.engines[path] = ForeignNetns(self._cookies, "", all_links, frozenset(routed))
        return self._cookies

    def end_engine(self, path: str) -> None:
        """Delete the namespace at ``path`` with the links in it."""
        gone = self.engines.pop(path)
        names = {name for name, named in self.named.items() if named.cookie == gone.cookie}
        for veth in [veth for veth in self.veths.values() if veth.netns in names]:
            self.lose_veth(veth.name)

    def cookie_at(self, path: str) -> int | None:
        foreign = self.engines.get(path)
        return foreign.cookie if foreign is not None else None

    def foreign_netns(self, path: str) -> ForeignNetns | None:
        return self.engines.get(path)

    def marked_names(self) -> list[str]:
        return sorted(self.named)

    def present_names(self) -> list[NetnsName]:
        """Return the existing names; the cookie is 0 where the namespace has ended."""
        return [
            named._replace(cookie=self.cookie_at(named.target) or 0)
            for named in self.named.values()
        ]

    def is_space(self, name: str) -> bool:
        """Return whether a namespace has this name, made by niso or by another program."""
        named = self.named.get(name)
        return name in self.netns or (
            named is not None and self.cookie_at(named.target) == named.cookie
        )

    def _name(self, step: Step[NetnsName], named: NetnsName) -> None:
        if step.action == "delete":
            self.named.pop(named.name, None)
            return
        refuse_unless(self.cookie_at(named.target) == named.cookie, errno.ESTALE, named)
        self.named[named.name] = named


# --- fake host -----------------------------------------------------------------------------------


UPLINK, UPLINK_ADDRESS = "uplink0", "192.0.2.1/24"
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


class NoForeignChains(ForeignChains):
    """A source of nftables chains that has no foreign chains."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def redirects(self) -> bool:
        return False

    def base_chains(self, everywhere: bool = False) -> list[Chain]:
        return []


def untranslated(source: str, destination: str, port: int, handle: bytes = b"") -> Tracked:
    """A TCP flow without NAT, with a reply."""
    back = (destination, source, None)
    return Tracked("tcp", source, destination, port, *back, port, True, handle)


class FakeHost:
    """Flows, sockets, links and addresses of the host."""

    def __init__(self) -> None:
        # foreign links of the host -> their alias
        self.foreign_links: dict[str, str] = {UPLINK: ""}
        self.engine_bridges: list[tuple[Network, str]] = []
        self.foreign_spaces: set[str] = set()
        self.made = 0  # number of namespaces and hosts folders created
        self.identities: dict[str, int] = {}  # by name; a recreated namespace gets another identity
        # pid -> its namespace, and the mark of that namespace
        self.inhabited: dict[int, tuple[int, str]] = {}
        self.own_hosts: dict[str, tuple[str, ...]] = {}  # mark -> lines of the block in /etc/hosts
        self.own_hosts_refuses = False
        self.own_addresses = {UPLINK_ADDRESS: UPLINK}  # address with its prefix length -> link
        self.tracked: list[Tracked] = []
        self.policed: list[Tracked] = []  # the same flows, as policies match them
        self.listening: dict[str, list[Listener]] = {}  # by protocol
        self.heard: dict[tuple[str, str], list[Listener]] = {}  # by namespace and protocol
        self.programs: dict[int, tuple[int, str]] = {}  # inode of a socket -> pid, name
        self.connected: dict[str, list[Connection]] = {}  # by namespace
        self.measured: dict[str, list[Measured]] = {}
        self.mtu = 1500
        self.without_ipv6: str | None = None
        self.without_wireguard: dict[str, str] = {}  # form -> reason
        self.wireguard_made: list[str] = []  # private keys
        self.closed: dict[str, set[str]] = {}  # non-exempt entries of the host, by family
        self.routed: list[Link] = []  # foreign links of kinds that need forwarding
        self.nat: dict[str, int] = {}  # foreign rules: chain -> number of rules
        self.neighbours = {4: 0, 6: 0}  # entries that are not niso's, by family
        self.forgotten: list[str] = []  # addresses whose recorded flows were deleted

    def refuse_foreign(self, links: set[str], spaces: set[str], foreign: Refused | None) -> None:
        """Raise Conflict if one of these names is foreign, or record the error in ``foreign``."""
        for name in sorted(links & self.foreign_links.keys() | spaces & self.foreign_spaces):
            error = Conflict(f"{name!r} exists and does not belong to this niso")
            if foreign is None:
                raise error
            foreign[name] = error

    # --- namespaces ---

    def clear_unfinished(self, name: str) -> None:
        pass  # a creation is not interrupted half-way

    def namespaces_ahead(self, count: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def alias_at(self, pid: int) -> str:
        return self.inhabited.get(pid, (0, ""))[1]

    # --- flows ---

    def flows(self) -> list[Tracked]:
        return list(self.tracked)

    def flows_of(self, addresses: Iterable[str]) -> list[Tracked]:
        wanted = set(addresses)
        return [flow for flow in self.policed if wanted & {flow.source, flow.destination}]

    def end_flows(self, flows: Iterable[Tracked]) -> int:
        ended = list(flows)
        before = len(self.tracked) + len(self.policed)
        self.tracked = [flow for flow in self.tracked if flow not in ended]
        self.policed = [flow for flow in self.policed if flow not in ended]
        return before - len(self.tracked) - len(self.policed)

    def add_flows(self, connections: Iterable[Connection]) -> None:
        known = {(flow.source, flow.destination, flow.port) for flow in self.policed}
        for connection in connections:
            key = (connection.client, connection.server, connection.server_port)
            if key not in known:
                self.policed.append(untranslated(*key, repr(connection).encode()))

    def flush_addresses(self, addresses: Iterable[str]) -> None:
        gone = set(addresses)
        self.tracked = [
            flow
            for flow in self.tracked
            if not gone & {flow.source, flow.destination, flow.answers_from, flow.answers_to}
        ]
        self.policed = [f for f in self.policed if not gone & {f.source, f.destination}]

    def forget_flows(self, addresses: Collection[str], _sets: Collection[str] = ()) -> None:
        self.forgotten += addresses

    def flush_ports(self, claims: Iterable[tuple[str, int, int]], answered: bool) -> None:
        claimed = list(claims)
        own = {address.partition("/")[0] for address in self.host_addresses()}

        def goes(flow: Tracked) -> bool:
            if flow.proto == "tcp" and flow.answered and not answered:
                return False
            to = ipaddress.ip_address(flow.destination)
            is_ours = flow.destination in own or (to.version == 4 and to in _LOOPBACK)
            return is_ours and any(
                flow.proto == proto and flow.port is not None and first <= flow.port <= last
                for proto, first, last in claimed
            )

        self.tracked = [flow for flow in self.tracked if not goes(flow)]

    def neighbour_tables(self) -> list[Table]:
        return [Table(family, entries, 1024) for family, entries in self.neighbours.items()]

    # --- sockets ---

    def listeners(self, proto: str) -> list[Listener]:
        return list(self.listening.get(proto, ()))

    def socket_holder(self, inode: int) -> tuple[int, str] | None:
        return self.programs.get(inode)

    def socket_holders(self, inodes: Iterable[int]) -> dict[int, tuple[int, str]]:
        return {one: self.programs[one] for one in inodes if one in self.programs}

    def listeners_in(self, name: str, proto: str) -> list[Listener] | None:
        return [*self.heard.get((name, proto), ())] if self.has_netns(name) else None

    def connections_in(self, name: str) -> list[Connection]:
        return list(self.connected.get(name, ()))

    def measured_in(self, name: str) -> list[Measured]:
        return list(self.measured.get(name, ()))

    def destroy_connections(self, name: str) -> int:
        return len(self.measured.pop(name, ()))

    # --- the host's own hosts file ---

    def host_names(self, mark: str) -> tuple[str, ...]:
        return self.own_hosts.get(mark, ())

    def write_host_names(self, mark: str, lines: Iterable[str], always: bool = False) -> bool:
        before, now = self.host_names(mark), tuple(lines)
        if self.own_hosts_refuses:
            raise KernelError("/etc/hosts is a mount point, as in a container", "change it outside")
        self.own_hosts[mark] = now
        return before != now

    # --- links ---

    def host_addresses(self) -> list[str]:
        return ["127.0.0.1/8", "::1/128", *self.own_addresses]

    def used_prefixes(self, except_alias: str) -> list[tuple[Network, str]]:
        return [
            (ipaddress.ip_interface(address).network, link)
            for address, link in self.own_addresses.items()
            if self.foreign_links.get(link) != except_alias
        ]

    def local_prefixes(self) -> list[Network]:
        return []

    def engine_prefixes(self) -> list[tuple[Network, str]]:
        return list(self.engine_bridges)

    def mtu_outwards(self, family: int) -> tuple[int, str] | None:
        return None

    def mute_name_servers(
        self, lists: Iterable[tuple[str, ...]], seconds: float
    ) -> list[tuple[str, ...]]:
        return []

    def default_mtu(self) -> int:
        return self.mtu

    def mtu_of(self, address: str) -> int | None:
        known = (own.partition("/")[0] for own in self.host_addresses())
        return self.mtu if address in known else None

    def why_no_ipv6(self) -> str | None:
        return self.without_ipv6

    def why_no_wireguard(self, form: str) -> str | None:
        return self.without_wireguard.get(form)

    def wireguard_keys(self, private: str) -> tuple[str, str]:
        if not private:
            private = f"{len(self.wireguard_made):042}w="
            self.wireguard_made.append(private)
        return private, f"1{private[1:]}"

    def wireguard_answers(self, name: str, form: str) -> bool:
        return True

    def receiving6(self) -> list[str]:
        return list(self.foreign_links)

    def not_forwarding(self) -> dict[str, set[str]]:
        return dict(self.closed)

    def routed_links(self) -> list[Link]:
        return list(self.routed)

    def foreign_nat(self) -> dict[str, int]:
        return dict(self.nat)

    def foreign_chains(self) -> NoForeignChains:
        return NoForeignChains()


# --- fake tables ---------------------------------------------------------------------------------


def refuse_unless(so: bool, number: int, what: object) -> None:
    """Raise KernelError with an errno unless a condition holds."""
    if not so:
        raise KernelError(f"{what}: {os.strerror(number)}", errno=number)


def overlap(one: Atoms, other: Atoms) -> bool:
    """Return whether two keys of an interval set overlap: whether all of their fields do."""
    pairs = zip(map(_ends, one), map(_ends, other), strict=True)
    return all(low <= high_ and low_ <= high for (low, high), (low_, high_) in pairs)


@functools.lru_cache(4096)
def _ends(field: str | int | tuple[int, int]) -> tuple[int, int]:
    """Return the first and last value of a prefix, a range, or a single value."""
    if not isinstance(field, str):
        return ports_of(field)
    try:
        network = ipaddress.ip_network(field)
        return int(network[0]), int(network[-1])
    except ValueError:  # a name, of a protocol or a link, or a MAC
        name = int.from_bytes(field.encode())
        return name, name


class FakeTables:
    """Both tables: the digest of their text, and their elements."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.ruleset: str | None = None
        self.elements: dict[Atoms, Element] = {}

    def transact(self, step: NftTransaction) -> None:
        """Apply all edits or none. Raises KernelError."""
        refuse_unless(bool(step.edits), errno.EINVAL, "an empty transaction")
        before = (self.ruleset, dict(self.elements))
        try:
            for edit in step.edits:
                if isinstance(edit, str):
                    self._text(edit)
                else:
                    self._edit(*edit)
        except KernelError:
            self.ruleset, self.elements = before
            raise

    def is_marked(self) -> bool:
        """Return whether the tables carry the mark of this version, or are another version's."""
        mark = (f"rules-{ruleset.DIGEST}",)
        marks = [(table, "owner", mark) in self.elements for table in ruleset.CONTAINERS]
        return self.ruleset != ruleset.DIGEST or all(marks)

    def list_elements(self, table: str, container: str) -> list[Element] | None:
        """Implement `Kernel.list_elements`."""
        if self.ruleset is None or container not in ruleset.CONTAINERS.get(table, ()):
            return None
        return [e for e in self.present_elements() if e[:2] == (table, container)]

    def present_elements(self) -> list[Element]:
        """Return the elements whose timeout has not passed."""
        now = time.time()
        return [
            e for e in self.elements.values() if not e.ends or policy_rules.is_wanted(e.value, now)
        ]

    def _text(self, statement: str) -> None:
        table = statement.removeprefix("destroy table ")
        if table in ruleset.CONTAINERS:
            self.ruleset = None
            self.elements = {key: e for key, e in self.elements.items() if key[0] != table}
            return
        refuse_unless(statement == ruleset.TABLES, errno.EINVAL, statement)
        refuse_unless(self.ruleset is None, errno.EINVAL, "the tables already exist")
        self.ruleset = ruleset.DIGEST

    def _edit(self, verb: str, element: Element) -> None:
        what = element.statement(verb)
        table, container = element[:2]
        refuse_unless(self.ruleset is not None, errno.ENOENT, what)
        present = self.elements.get(element.key())
        if verb == "delete":
            refuse_unless(present is not None or element.ends, errno.ENOENT, what)
            self.elements.pop(element.key(), None)
        elif present is not None:
            # the kernel accepts a second limit without effect
            same = present.value == element.value or not element.is_mapped
            refuse_unless(same, errno.EEXIST, what)
        else:
            if ruleset.DECLARED[table, container][2]:
                others = [
                    e.fields
                    for e in self.elements.values()
                    if (e.table, e.container) == (table, container)
                ]
                clash = any(overlap(element.fields, other) for other in others)
                if clash and "/" in element.text and not self.strict:
                    return  # nested prefixes: the kernel accepts this without effect
                refuse_unless(not clash, errno.EEXIST, what)
            self.elements[element.key()] = element


# --- fake wire -----------------------------------------------------------------------------------


class FakeWire:
    """The devices by name, and objects of kinds for which only the parents are checked."""

    def __init__(self) -> None:
        self.bridges: dict[str, Bridge] = {}
        self.vxlans: dict[str, Vxlan] = {}
        self.others: dict[type, dict[tuple[str, ...], Any]] = {}
        self.is_space: Callable[[str], bool]
        self._absent: Callable[[int, object], None]
        self._check_new: Callable[[str], None]
        self._places: Callable[[], set[str]]
        self._link_gone: Callable[[str, str], None]

    def _vxlan(self, step: Step[Vxlan], vxlan: Vxlan) -> None:
        if step.action == "delete":
            if self.vxlans.pop(vxlan.name, None) is None:
                self._absent(errno.ENODEV, vxlan)
            else:
                self._link_gone("", vxlan.name)
            return
        refuse_unless(vxlan.bridge in self.bridges, errno.ENODEV, vxlan)
        if step.action == "change":
            present = self.vxlans.get(vxlan.name)
            refuse_unless(present is not None, errno.ENODEV, vxlan)
            same = present is not None and present.fixed == vxlan.fixed
            refuse_unless(same, errno.EOPNOTSUPP, "it cannot be changed")
        else:
            self._check_new(vxlan.name)
            for other in self.vxlans.values():
                if (other.vni, other.port) == (vxlan.vni, vxlan.port):
                    raise Conflict(f"another VXLAN device has VNI {vxlan.vni}")
        self.vxlans[vxlan.name] = vxlan

    def lose_ports(self, bridge: str) -> None:
        """Detach the VXLAN devices of a bridge that is deleted, as the kernel does."""
        for vxlan in [vxlan for vxlan in self.vxlans.values() if vxlan.bridge == bridge]:
            self.vxlans[vxlan.name] = vxlan._replace(bridge="")

    def _other(self, step: Step[Any], obj: Any) -> None:
        """Execute a step of a kind for which only the parents are checked."""
        objects = self.others.setdefault(type(obj), {})
        if step.action == "delete":
            if objects.pop(obj.key(), None) is None:
                self._absent(errno.ENOENT, obj)
            return
        netns = kind_of(obj).space(obj)
        refuse_unless(not netns or self.is_space(netns), errno.ENOENT, obj)
        refuse_unless(
            all(place in self._places() for place in kind_of(obj).dependencies(obj)),
            errno.ENODEV,
            obj,
        )
        if step.action == "add" and not kind_of(obj).replaces:
            refuse_unless(obj.key() not in objects, errno.EEXIST, obj)
        objects[obj.key()] = obj

    def lose_neighbours(self, netns: str, link: str) -> None:
        """Delete the IPv4 neighbours of a link that has lost its last IPv4 address."""
        self.others[PermanentNeighbour] = {
            key: peer
            for key, peer in self.others.get(PermanentNeighbour, {}).items()
            if (peer.netns, peer.link) != (netns, link) or ":" in peer.address
        }

    def _others_gone(self, place: str) -> None:
        for kind, objects in self.others.items():
            self.others[kind] = {
                key: obj for key, obj in objects.items() if place not in kind_of(obj).parents(obj)
            }


# --- fake ----------------------------------------------------------------------------------------


PROMOTE = "net/ipv4/conf/all/promote_secondaries"
MOST_PORTS = 1023
"""The most ports of one bridge (BR_MAX_PORTS, net/bridge/br_private.h; port 0 is not used)."""
_LONGEST_NAME = 15  # IFNAMSIZ - 1
_FORWARDING6 = re.compile(r"net/ipv6/conf/[^/]+/forwarding")


class Fake(FakeTables, FakeHost, FakeEngines, FakeWire):
    """Implement `niso.kernel.real.Kernel` in memory.

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
                    obj._replace(value=self.sysctls.get((obj.netns, obj.name), "kernel's"))
                    for obj in want[Sysctl]
                    if self._has_sysctl(obj)
                ),
                *self.veths.values(),
                *self.addresses,
                *self.routes.values(),
                *map(HostsFile, self.hosts),
                *(line for lines in self.hosts.values() for line in lines),
                *(obj for objects in self.others.values() for obj in objects.values()),
            ]
        )

    def read(
        self,
        candidates: State,
        alias: str,
        foreign: Refused | None = None,
        with_strays: bool = False,
        skip_transactional: bool = False,
    ) -> State:
        """Implement `Kernel.read`; this kernel has no changes by other programs."""
        self._check_owner(candidates, foreign)
        present = self.everything(candidates)
        keys = {(type(obj), obj.key()) for obj in candidates}
        links = {
            (kind.space(obj), link)
            for kind in KINDS
            for obj in candidates[kind.type]
            for link in kind.links(obj)
        }
        names = {obj.name for obj in candidates[Netns]}
        names |= {obj.name for obj in candidates[NetnsName] if self.is_space(obj.name)}

        def is_asked(obj: Any) -> bool:
            kind = kind_of(obj)
            if kind.space(obj) and kind.space(obj) not in names and not kind.reads_closed_spaces:
                return False
            if kind.is_read_by_link:
                return any((kind.space(obj), link) in links for link in kind.links(obj))
            return isinstance(obj, Ruleset) or (type(obj), obj.key()) in keys

        return State.of_kinds(
            lambda kind: (
                candidates[kind.type]
                if skip_transactional and kind.is_transactional
                else filter(is_asked, present[kind.type])
            )
        )

    def read_all(self, want: State, alias: str, foreign: Refused) -> State:
        self._check_owner(want, foreign)
        return self.everything(want)

    def sysctl(self, name: str) -> str | None:
        obj = Sysctl("", name, "")
        return self.sysctls.get(("", name), "0") if self._has_sysctl(obj) else None

    def set_sysctl(self, name: str, value: str) -> None:
        self.do(Step("change", Sysctl("", name, value)))

    def has_netns(self, name: str) -> bool:
        return name in self.netns or name in self.foreign_spaces

    def name_netns(self, name: str, pid: int, alias: str) -> None:
        refuse_unless(not self.has_netns(name), errno.EEXIST, name)
        refuse_unless(self.alias_at(pid) == alias, errno.EPERM, name)
        self.netns[name] = Netns(name, alias)
        self.identities[name] = self.inhabited[pid][0]

    def addresses_in(self, name: str, link: str) -> list[str]:
        """Implement `Kernel.addresses_in`; without a link, return those of all links there."""
        return [a.address for a in self.addresses if a.netns == name and link in ("", a.link)]

    def _check_owner(self, candidates: State, foreign: Refused | None) -> None:
        links = {b.name for b in candidates[Bridge]} | {v.name for v in candidates[Veth]}
        links |= {vxlan.name for vxlan in candidates[Vxlan]}
        self.refuse_foreign(links, {obj.name for obj in candidates[Netns]}, foreign)

    # --- writing ---

    def write(self, steps: Iterable[AnyStep], detached: list[str] | None = None) -> None:
        steps = list(steps)
        for step in steps:
            self._do(step, steps, detached)

    def write_best_effort(
        self, steps: Iterable[AnyStep], detached: list[str] | None = None
    ) -> list[Error]:
        steps = list(steps)
        errors: list[Error] = []
        for step in steps:
            if errors and step.kind.is_transactional:
                continue
            try:
                self._do(step, steps, detached)
            except Error as error:
                errors.append(error)
        return errors

    def delete_detached(self, names: list[str]) -> None:
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

    def _do(self, step: AnyStep, steps: list[AnyStep], detached: list[str] | None) -> None:
        number = self.fail(step)
        refuse_unless(not number, number, step.describe().splitlines()[0])
        if isinstance(step, NftTransaction):
            self.transact(step)
        elif isinstance(step, HostsEdit):
            self._edit_hosts(step)
        elif isinstance(step, Step):
            if detached is not None and self._is_detached(step, steps):
                detached.append(step.obj.name)
                self.veths[step.obj.name] = step.obj._replace(bridge="", up=False)
            else:
                self._thing(step)
        self.done.append(step.describe())

    def _thing(self, step: Step[Any]) -> None:
        writers: dict[type, Callable[[Step[Any], Any], None]] = {
            Bridge: self._bridge,
            Vxlan: self._vxlan,
            Netns: self._netns,
            NetnsName: self._name,
            Veth: self._veth,
            Address: self._address,
            Route: self._route,
            Sysctl: self._sysctl,
            HostsFile: self._hosts_file,
        }
        writers.get(type(step.obj), self._other)(step, step.obj)

    @staticmethod
    def _is_detached(step: Step[Any], steps: list[AnyStep]) -> bool:
        """Return whether a step deletes a veth pair whose namespace is deleted too."""
        return (
            isinstance(step.obj, Veth)
            and step.action == "delete"
            and any(
                isinstance(other, Step)
                and other.action == "delete"
                and isinstance(other.obj, Netns | NetnsName)
                and other.obj.name == step.obj.netns
                for other in steps
            )
        )

    def _absent(self, number: int, obj: object) -> None:
        """Refuse the deletion of a missing object if ``strict``."""
        refuse_unless(not self.strict, number, obj)

    def _places(self) -> set[str]:
        objects: list[Any] = [*self.bridges.values(), *self.netns.values(), *self.veths.values()]
        objects += self.named.values()
        names = {f"link //{name}" for name in (*self.veths, *self.vxlans, *self.foreign_links)}
        return {kind_of(obj).parent_name(obj) for obj in objects} | names | {"netns "}

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
            taken = netns.name in self.netns or netns.name in self.foreign_spaces
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

        A detached pair is deleted later, by `delete_detached`.
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
            if step.actual is not None:
                self.addresses.pop(step.actual, None)
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
        return link in ("all", "default", "lo") or self._has_link(sysctl.netns, link)

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
