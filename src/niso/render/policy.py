"""Policies as nftables chains: one for each direction of a service that has a policy, reached by a verdict map.

A chain names its peers by sets that hold their addresses, so a peer that comes, goes or moves changes one set, and no chain.
A packet goes through the chains of its own two services alone, and only the first packet of a flow does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from niso.records import Entry, Member, Peer, Policy
from niso.render.nft import INET
from niso.state import Chain, Element, PeerSet

LOG_GROUP = 28271
"""The nfnetlink_log group that policies with ``log = true`` send what they drop to."""
LOG_RATE = "limit rate 20/second burst 50 packets"
FAMILIES = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
ALL_PORTS = (0, 65535)

_NO_START = (
    "meta l4proto tcp ct state new tcp flags & (fin | syn | rst | ack) != syn counter drop"
    ' comment "no start of a connection"'
)


def set_name(kind: str, name: str, family: int) -> str:
    """``s4-db`` of a service's name, ``n6-backend`` of a network."""
    return f"{'n' if kind == 'network' else 's'}{family}-{name}"


def peer_sets(members: Iterable[Member]) -> list[PeerSet]:
    """The sets of these peers, of both families."""
    return [
        PeerSet(set_name(member.kind, member.name, family), family, member.kind == "network")
        for member in members
        for family in (4, 6)
    ]


def members(of: Iterable[Member]) -> list[Element]:
    """What is in the sets of these peers."""
    return [
        Element(INET, set_name(member.kind, member.name, 6 if ":" in value else 4), value, "", member.holder)
        for member in of
        for value in member.values
    ]


def verdicts(service: str, addresses: Iterable[str]) -> list[Element]:
    """What leads packets of a service with a policy to its chains."""
    own = list(addresses)
    return [
        *(Element(INET, f"policed{6 if ':' in address else 4}", address, "", service) for address in own),
        *(
            Element(INET, f"{direction}gress{6 if ':' in address else 4}", address, f"jump {chain}-{service}", service)
            for address in own
            for direction, chain in (("in", "in"), ("e", "out"))
        ),
    ]


def chains(service: str, policy: Policy, addresses: Iterable[str]) -> list[Chain]:
    """A service's two chains; they return what may pass."""
    own = list(addresses)
    return [
        Chain(f"in-{service}", _rules(service, policy, own, ingress=True)),
        Chain(f"out-{service}", _rules(service, policy, own, ingress=False)),
    ]


def _rules(service: str, policy: Policy, own: list[str], ingress: bool) -> tuple[str, ...]:
    side = "saddr" if ingress else "daddr"
    allow = policy.allow_from if ingress else policy.egress_allow
    deny = policy.deny_from if ingress else policy.egress_deny
    rules = []
    for _, family, mine in (
        (4, "ip", [a for a in own if ":" not in a]),
        (6, "ip6", [a for a in own if ":" in a]),
    ):
        if mine:
            rules.append(f'{family} {side} {{ {", ".join(mine)} }} return comment "itself"')
    rules.append(_NO_START)
    for entry in deny:
        for match in _matches(entry, side):
            rules += _drop(service, policy, ingress, entry.key, match)
    if allow is None:
        return tuple(rules)
    for entry in allow:
        rules += [f'{match} counter return comment "{entry.key}"' for match in _matches(entry, side)]
    key = "network.policy.allow_from" if ingress else "network.policy.egress.allow"
    return (*rules, *_drop(service, policy, ingress, key, ""))


def _drop(service: str, policy: Policy, ingress: bool, key: str, match: str) -> list[str]:
    start = f"{match} " if match else ""
    rules = [f'{start}counter drop comment "{key}"']
    if policy.log:
        prefix = f"niso {'in' if ingress else 'out'} {service} {key}"
        rules.insert(0, f'{start}{LOG_RATE} log prefix "{prefix}" group {LOG_GROUP}')
    return rules


def _matches(entry: Entry, side: str) -> list[str]:
    """The matches of an entry: one, or one of each family."""
    ports = _ports(entry)
    return [f"{peer}{ports}" for peer in _peers(entry.peer, side)]


def _peers(peer: Peer, side: str) -> list[str]:
    if peer.kind == "prefix":
        return [f"{'ip6' if ':' in peer.name else 'ip'} {side} {peer.name}"]
    # the host is no member of a network, though its bridges have addresses there
    but = " fib daddr type != local" if peer.kind == "network" and side == "daddr" else ""
    return [f"{word} {side} @{set_name(peer.kind, peer.name, family)}{but}" for family, word, _ in FAMILIES]


def _ports(entry: Entry) -> str:
    if entry.proto == "icmp":
        return " meta l4proto { icmp, ipv6-icmp }"
    everywhere = (entry.first, entry.last) == ALL_PORTS
    if everywhere:
        return f" meta l4proto {entry.proto}" if entry.proto else ""
    number = str(entry.first) if entry.first == entry.last else f"{entry.first}-{entry.last}"
    return f" meta l4proto {entry.proto or '{ tcp, udp, sctp }'} th dport {number}"


# --- as statements ---------------------------------------------------------------------------------------------------


def mark(chain: Chain) -> Element:
    """The element that says that a chain is there with exactly these rules."""
    digest = hashlib.sha256("\n".join((chain.name, *chain.rules)).encode()).hexdigest()[:15]
    return Element(INET, "policies", f'"{digest}"', "", chain.name)


def make_set(peer_set: PeerSet) -> str:
    kind = "ipv6_addr" if peer_set.family == 6 else "ipv4_addr"
    return f"add set {INET} {peer_set.name} {{ type {kind};{' flags interval;' if peer_set.interval else ''} }}"


def fill_chain(chain: Chain) -> list[str]:
    """Make a chain, or make it anew, with its rules."""
    rules = [f"add rule {INET} {chain.name} {rule}" for rule in chain.rules]
    return [f"add chain {INET} {chain.name}", f"flush chain {INET} {chain.name}", *rules]


def delete_chain(chain: Chain) -> list[str]:
    return [f"flush chain {INET} {chain.name}", f"delete chain {INET} {chain.name}"]
