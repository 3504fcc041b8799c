"""Find forward chains of other firewalls that drop what niso's rules accept, and name the remedy.

A packet is forwarded only if the forward chains of all tables accept it. niso's rules therefore
cannot override a foreign drop policy, and niso never edits a foreign table. It evaluates the
foreign chains for a few hypothetical packets and names the missing rule. Unknown properties of such
a packet (its port, the remote address, the uplink's name) match no rule, so a chain that accepts
the packet only by one of them counts as dropping it.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.explain.foreign_walk import OUTWARD, PUBLISHED, WITHIN, Place, Source, follow, packets
from niso.kernel import foreign_chains
from niso.kernel.foreign_chains import (
    FAMILIES,
    Chain,
)
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class Drop(NamedTuple):
    """A foreign base chain that drops what niso accepts. All text is printable."""

    chain: str  # "FAMILY TABLE CHAIN"
    what: tuple[str, ...]  # one or more of PUBLISHED, OUTWARD and WITHIN
    remedy: tuple[str, ...]  # command lines; prose if there is no command
    bridges: tuple[str, ...]  # the affected bridges

    def describe(self) -> str:
        """Return the finding in one line, without the remedy."""
        bridges, what = ", ".join(self.bridges), ", ".join(self.what)
        return f"nftables chain {self.chain} drops connections of {bridges} ({what})"


def foreign_drops(
    kernel: Kernel, bridges: Iterable[str], bridged: bool, families: Iterable[int] = (4,)
) -> list[Drop]:
    """Return the foreign chains of this network namespace that drop what niso accepts.

    Only packets of these bridges count. ``bridged`` says that frames between two services of a
    bridge also traverse the forward chains of ip, ip6 and inet: the bridge's nf_call_iptables, or
    net.bridge.bridge-nf-call-iptables, is 1. ``families`` (4, 6) are those of the bridges. Without
    foreign chains at hook forward, this costs one dump of chains. Rules of iptables-legacy are not
    visible: see `unseen`. Raises KernelError.
    """
    names = sorted(set(bridges))
    with kernel.foreign_chains() as source:
        chains = source.base_chains() if names else []
        if not chains:
            return []
        places = _places(names)
        return drops(source, chains, places, bridged, tuple(families))


def unseen(families: Iterable[int] = (4,)) -> list[str]:
    """Return a warning for each family (4, 6) with a filter table of iptables-legacy.

    nf_tables does not show that table's rules.
    """
    return [
        f"rules of {tool} are not visible; check with {tool} -S FORWARD"
        for family, tool in ((4, "iptables-legacy"), (6, "ip6tables-legacy"))
        if family in families and foreign_chains.unseen(family)
    ]


def drops(
    source: Source,
    chains: Iterable[Chain],
    places: Iterable[Place],
    bridged: bool,
    families: tuple[int, ...],
) -> list[Drop]:
    """Do the work of `foreign_drops` on the chains of ``source``."""
    traced = [(place, list(packets(place, bridged, families))) for place in places]
    dropping = []
    for chain in sorted(chains):
        what: dict[str, None] = {}
        concerned: dict[str, None] = {}
        ways: set[bool] = set()
        tools: set[str] | None = None
        for place, candidates in traced:
            for families_seen, packet in candidates:
                if chain.family not in families_seen:
                    continue
                accepted, visited = follow(source, chain, packet)
                if not accepted:
                    what[packet.what] = None
                    concerned[place.bridge] = None
                    ways.add(packet.enters)
                    tools = visited if tools is None else tools & visited
        if what:
            remedy = _remedy(chain, tuple(concerned), ways, tools or set())
            shown = " ".join(
                _shown(part) for part in (FAMILIES[chain.family], chain.table, chain.name)
            )
            order = tuple(word for word in (PUBLISHED, OUTWARD, WITHIN) if word in what)
            dropping.append(Drop(shown, order, remedy, tuple(concerned)))
    return dropping


def _places(bridges: list[str]) -> list[Place]:
    """Look up the indexes and prefixes of these bridges in the kernel."""
    places = []
    with Rtnl() as rtnl:
        for bridge in bridges:
            link = rtnl.link(bridge)
            prefixes: dict[int, set[str]] = {}
            for assigned in rtnl.addresses(link.index) if link else ():
                prefixes.setdefault(family_of(assigned.address), set()).add(assigned.address)
            single = {family: known.pop() for family, known in prefixes.items() if len(known) == 1}
            places.append(Place(bridge, link.index if link else 0, single))
    return places


def _remedy(
    chain: Chain, bridges: tuple[str, ...], ways: set[bool], visited: set[str]
) -> tuple[str, ...]:
    """Return command lines that fix the drop, for the tool that created the chain.

    ``ways`` contains True to accept what enters by a bridge, False for what leaves by it.
    ``visited`` are the chains that every dropped packet traversed, so that a rule there takes
    effect.
    """
    family, table, name = FAMILIES[chain.family], chain.table, chain.name
    ordered = sorted(ways, reverse=True)
    wild = len(bridges) > 1 and all(bridge.startswith("niso-") for bridge in bridges)
    plus = ("niso-+",) if wild else bridges
    if (family, table) == ("inet", "firewalld"):
        adds = tuple(
            f"firewall-cmd --permanent --zone=trusted --add-interface={bridge}" for bridge in plus
        )
        return (*adds, "firewall-cmd --reload")
    iptables = {"ip": "iptables", "ip6": "ip6tables"}.get(family, "")
    if iptables and table == "filter" and "DOCKER-USER" in visited:
        return tuple(
            f"{iptables} -I DOCKER-USER {'-i' if i else '-o'} {bridge} -j ACCEPT"
            for bridge in plus
            for i in ordered
        )
    if iptables and table == "filter" and visited & {"ufw-user-forward", "ufw6-user-forward"}:
        return tuple(
            f"ufw route allow {'in' if i else 'out'} on {bridge}"
            for bridge in plus
            for i in ordered
        )
    if iptables and table in ("filter", "mangle", "security") and name == "FORWARD":
        tool = iptables if table == "filter" else f"{iptables} -t {table}"
        return tuple(
            f"{tool} -I FORWARD {'-i' if i else '-o'} {bridge} -j ACCEPT"
            for bridge in plus
            for i in ordered
        )
    if (family, table, name) == ("bridge", "filter", "FORWARD"):
        return tuple(f"ebtables -I FORWARD --logical-in {bridge} -j ACCEPT" for bridge in plus)
    keys = (
        {True: "meta ibrname", False: "meta obrname"}
        if family == "bridge"
        else {True: "iifname", False: "oifname"}
    )
    star = ("niso-*",) if wild else bridges
    rules = [f'{keys[i]} "{bridge}" accept' for bridge in star for i in ordered]
    if not all(
        part and not part[0].isdigit() and part[0] not in "-." and set(part) <= _PLAIN
        for part in (table, name)
    ):
        # nft's syntax cannot express such a name
        return tuple(f"have this chain begin with: {rule}" for rule in rules)
    import shlex  # imported late: it compiles a regular expression

    return tuple(
        f"nft {shlex.quote(f'insert rule {family} {table} {name} {rule}')}" for rule in rules
    )


def _shown(text: str) -> str:
    """Escape text like `niso.cli.output.escaped`, and spaces too, so that a name stays one word."""
    return "".join(
        c
        if c.isprintable() and c != " "
        else f"\\x{ord(c):02x}"
        if ord(c) < 256
        else f"\\u{ord(c):04x}"
        for c in text
    )
