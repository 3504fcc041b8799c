"""Other people's firewalls: which of their forward chains drop what niso's own rules let pass, and what to add there.

A packet is forwarded only if the forward chains of all tables accept it, so niso's rules cannot overrule a foreign policy
of drop. niso never edits a foreign table: it follows a few packets that have not been sent through the foreign chains and
names the rule that is missing. What cannot be known of such a packet (its port, the other side's address, the uplink's
name) matches nothing: a chain counts as dropping if it accepts such packets only by what they happen to carry.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from niso.base.family import family_of
from niso.base.lite_typing import NamedTuple
from niso.explain.foreign_walk import OUTWARD, PUBLISHED, WITHIN, Place, Source, follow, packets
from niso.kernel import foreign_chains
from niso.kernel.foreign_chains import (
    FAMILIES,
    Chain,
)
from niso.kernel.interface import Kernel
from niso.kernel.rtnetlink import Rtnl

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class Drop(NamedTuple):
    """A foreign base chain that drops what niso lets pass. All text is printable.

    ``chain`` is "FAMILY TABLE CHAIN"; ``what`` has one or more of "published", "outward" and "within the network"; ``remedy``
    are the command lines that let it pass, or words where no command can be told; ``bridges`` are those concerned.
    """

    chain: str
    what: tuple[str, ...]
    remedy: tuple[str, ...]
    bridges: tuple[str, ...]

    def words(self) -> str:
        """One line, without the remedy."""
        return f"nftables chain {self.chain} drops connections of {', '.join(self.bridges)} ({', '.join(self.what)})"


def foreign_drops(
    kernel: Kernel, bridges: Iterable[str], bridged: bool, families: Iterable[int] = (4,)
) -> list[Drop]:
    """The foreign chains of this network namespace that drop what niso lets pass by these bridges.

    ``bridged``: frames between two services of a bridge go through the forward chains of ip, ip6 and inet too (its
    nf_call_iptables, or net.bridge.bridge-nf-call-iptables, is 1). ``families`` are those (4, 6) that the bridges carry.
    Costs one dump of chains where nobody else hooks forward. Rules of iptables-legacy are not seen: see `unseen`. Raises
    KernelError.
    """
    names = sorted(set(bridges))
    with kernel.foreign_chains() as source:
        chains = source.base_chains() if names else []
        if not chains:
            return []
        places = _places(names)
        return drops(source, chains, places, bridged, tuple(families))


def unseen(families: Iterable[int] = (4,)) -> list[str]:
    """A line for each family (4, 6) in which iptables-legacy has a filter table, whose rules nf_tables does not show."""
    return [
        f"rules of {tool} cannot be seen; check with {tool} -S FORWARD"
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
    """As `foreign_drops`, of chains that ``source`` knows."""
    sent = [(place, list(packets(place, bridged, families))) for place in places]
    found = []
    for chain in sorted(chains):
        what: dict[str, None] = {}
        concerned: dict[str, None] = {}
        ways: set[bool] = set()
        tools: set[str] | None = None
        for place, candidates in sent:
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
            found.append(Drop(shown, order, remedy, tuple(concerned)))
    return found


# --- packets ----------------------------------------------------------------------------------------------------------


def _places(bridges: list[str]) -> list[Place]:
    places = []
    with Rtnl() as rtnl:
        for bridge in bridges:
            link = rtnl.link(bridge)
            prefixes: dict[int, set[str]] = {}
            for each in rtnl.addresses(link.index) if link else ():
                prefixes.setdefault(family_of(each.address), set()).add(each.address)
            one = {family: found.pop() for family, found in prefixes.items() if len(found) == 1}
            places.append(Place(bridge, link.index if link else 0, one))
    return places


# --- following --------------------------------------------------------------------------------------------------------


# --- what to add ------------------------------------------------------------------------------------------------------


def _remedy(
    chain: Chain, bridges: tuple[str, ...], ways: set[bool], visited: set[str]
) -> tuple[str, ...]:
    """Command lines, by the tool that made the chain. ``ways``: True to accept what enters by a bridge, False what leaves;
    ``visited``: the chains that every dropped packet came through, so that a rule in them has effect."""
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
            f"{iptables} -I DOCKER-USER {'-i' if i else '-o'} {each} -j ACCEPT"
            for each in plus
            for i in ordered
        )
    if iptables and table == "filter" and visited & {"ufw-user-forward", "ufw6-user-forward"}:
        return tuple(
            f"ufw route allow {'in' if i else 'out'} on {each}" for each in plus for i in ordered
        )
    if iptables and table in ("filter", "mangle", "security") and name == "FORWARD":
        tool = iptables if table == "filter" else f"{iptables} -t {table}"
        return tuple(
            f"{tool} -I FORWARD {'-i' if i else '-o'} {each} -j ACCEPT"
            for each in plus
            for i in ordered
        )
    if (family, table, name) == ("bridge", "filter", "FORWARD"):
        return tuple(f"ebtables -I FORWARD --logical-in {each} -j ACCEPT" for each in plus)
    keys = (
        {True: "meta ibrname", False: "meta obrname"}
        if family == "bridge"
        else {True: "iifname", False: "oifname"}
    )
    star = ("niso-*",) if wild else bridges
    rules = [f'{keys[i]} "{each}" accept' for each in star for i in ordered]
    if not all(
        part and not part[0].isdigit() and part[0] not in "-." and set(part) <= _PLAIN
        for part in (table, name)
    ):
        # nft has no way to write such a name
        return tuple(f"have this chain begin with: {rule}" for rule in rules)
    return tuple(
        f"nft {shlex.quote(f'insert rule {family} {table} {name} {rule}')}" for rule in rules
    )


def _shown(text: str) -> str:
    """As `niso.cli.output.escaped`; a name with a space is no two names."""
    return "".join(
        c
        if c.isprintable() and c != " "
        else f"\\x{ord(c):02x}"
        if ord(c) < 256
        else f"\\u{ord(c):04x}"
        for c in text
    )
