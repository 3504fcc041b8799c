"""What the kernel should have, or has, as plain data: one frozenset for each kind of thing.

A kind is a NamedTuple; the fields that `key` returns say which thing it is, the others how it should be. Addresses are
text in their canonical form (``10.99.1.2``, ``fd00::2``) and prefixes as ``10.99.1.1/24``; both families use the same kinds.
``netns`` is the name below /run/netns, and ``""`` is the host.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.plan.findings import Problem


class Element(NamedTuple):
    """One element of an nftables set (``value`` empty) or map; ``comment`` names the service or network that owns
    it, and in a policy the line of the manifest that says so."""

    table: str  # "inet niso" or "bridge niso"
    container: str
    element: str  # as nft writes it: "tcp . 8080"
    value: str
    comment: str

    def key(self) -> tuple[str, ...]:
        return (self.table, self.container, self.element)


class Ruleset(NamedTuple):
    """The two tables with their chains, sets and maps, without elements.

    ``digest`` names the text (plan/nft.py); ``wrong`` the chains and sets that are not as the text has them.
    """

    digest: str
    wrong: tuple[tuple[Problem, str], ...] = ()

    def key(self) -> tuple[str, ...]:
        return ()


class Bridge(NamedTuple):
    """``tracked4`` and ``tracked6``: frames that it switches go through the inet tables, whatever the global sysctls say.

    ``strange`` names its other settings that niso did not make so (kernel/bridge_flags.py).
    """

    name: str
    mtu: int  # bytes
    alias: str
    up: bool = True
    tracked4: bool = False
    tracked6: bool = False
    mac: str = ""
    strange: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class Netns(NamedTuple):
    """A named network namespace; its ``lo`` carries ``alias`` and is ``up``."""

    name: str
    alias: str
    up: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class Veth(NamedTuple):
    """A veth pair: ``name`` on the host, a port of ``bridge``; ``peer`` in ``netns``. ``up`` is both ends.

    ``strange`` names the port's other flags, and of the peer's ARP, that are not as on a new one (kernel/bridge_flags.py).
    """

    name: str
    netns: str
    peer: str
    mac: str  # of the peer
    mtu: int
    bridge: str
    hairpin: bool
    alias: str
    up: bool = True
    strange: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.name,)


class Address(NamedTuple):
    """An address with its prefix; ``routed``: the kernel's own route to that prefix by this link is there; ``lasting``: no
    lifetime of it ends."""

    netns: str
    link: str
    address: str
    routed: bool = True
    lasting: bool = True

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.link, self.address)


class Route(NamedTuple):
    """A route of the main table. ``destination`` is a prefix; ``default`` is written ``0.0.0.0/0`` or ``::/0``. ``type`` is
    blackhole, unreachable, prohibit or throw, and then there is no link; empty for a unicast route, as all of niso's are."""

    netns: str
    destination: str
    gateway: str
    link: str
    type: str = ""

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.destination, self.type)


class Sysctl(NamedTuple):
    netns: str
    name: str  # below /proc/sys: "net/ipv4/ip_forward"
    value: str

    def key(self) -> tuple[str, ...]:
        return (self.netns, self.name)


class Attached(NamedTuple):
    """A link of somebody else's that is a port of one of niso's bridges: none is to be, since no rule looks at what it sends."""

    bridge: str
    link: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class Neighbour(NamedTuple):
    """A neighbour entry that somebody has set by hand: none is to be. ``address`` is empty in a bridge's own table, where
    ``link`` is the port."""

    netns: str
    link: str
    address: str
    mac: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


class HostsFile(NamedTuple):
    """The file that all services with one ordered list of networks read; ``folder`` names the list (names.hosts_folder)."""

    folder: str

    def key(self) -> tuple[str, ...]:
        return (self.folder,)


class HostsLine(NamedTuple):
    """One service's line in one hosts file; ``names`` as they stand behind the address."""

    folder: str
    address: str
    names: str

    def key(self) -> tuple[str, ...]:
        return tuple(self)


Thing = (
    Element
    | Ruleset
    | Bridge
    | Netns
    | Veth
    | Address
    | Route
    | Sysctl
    | Attached
    | Neighbour
    | HostsFile
    | HostsLine
)


class State(NamedTuple):
    """All kinds, in the order in which they are made; they are taken away in reverse.

    Rules come before anything that could carry a packet and go after it, so that what exists half-way is never wider
    than what was declared.
    """

    rulesets: frozenset[Ruleset] = frozenset()
    elements: frozenset[Element] = frozenset()
    bridges: frozenset[Bridge] = frozenset()
    netns: frozenset[Netns] = frozenset()
    sysctls: frozenset[Sysctl] = frozenset()
    veths: frozenset[Veth] = frozenset()
    addresses: frozenset[Address] = frozenset()
    routes: frozenset[Route] = frozenset()
    attached: frozenset[Attached] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    hosts_files: frozenset[HostsFile] = frozenset()
    hosts_lines: frozenset[HostsLine] = frozenset()


def kinds(state: State) -> list[frozenset[Thing]]:
    """The sets of a state, in the order of its fields."""
    return list(state)


def union(one: State, other: State) -> State:
    """All things of both; a thing that both have with different fields is in it twice."""
    return State(*(a | b for a, b in zip(one, other, strict=True)))  # type: ignore[arg-type]
