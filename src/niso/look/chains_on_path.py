"""Find nftables chains of other programs that a packet passes, and which of them drop the packet.

The chains are evaluated for one packet of `niso net explain`, or for a new connection to a
published port. The packet's addresses, ports, network interfaces and state of connection tracking
are known. Whether a rule matches is unknown if it tests something else, such as a mark or a rate.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import packed
from niso.base.native import lazy
from niso.kernel import foreign_chains
from niso.kernel.foreign_chains import FAMILIES, HOOKS, Chain, ForeignChains
from niso.kernel.rtnetlink import Rtnl
from niso.look import listening, other_firewalls
from niso.look.other_firewalls import (
    ACCEPTS,
    DROPS,
    DST_NAT,
    ESTABLISHED,
    ETHERTYPES,
    MAY_DROP,
    NEW,
    UNSURE,
    Bits,
    PacketBits,
    Place,
    whole,
)
from niso.plan.records import WIDE, NetworkRecord, PortMapping
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from niso.kernel import libnftables, probe
    from niso.kernel.real import Kernel
    from niso.look import packet_path
    from niso.look.packet_path import ExplainedPacket, Packet
    from niso.plan import verdict as plan_verdict
    from niso.plan.verdict import PolicyContext
else:  # a check asks only about published ports
    libnftables, probe = lazy("niso.kernel.libnftables"), lazy("niso.kernel.probe")
    packet_path, plan_verdict = lazy("niso.look.packet_path"), lazy("niso.plan.verdict")

_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_SYN, _SYN_ACK = 0x02, 0x12
_BRIDGE = next(number for number, name in FAMILIES.items() if name == "bridge")
_INET = {4: ("inet", "ip", "netdev"), 6: ("inet", "ip6", "netdev")}
# priorities (linux/netfilter_ipv4.h): connection tracking, DNAT in prerouting and output
_CONNTRACK, _DSTNAT = -200, -100
# enum nft_meta_keys; nft_ct_keys: ports, and addresses of IPv4 and IPv6
_L4PROTO = 16
_FROM_OUTSIDE = ("ingress", "prerouting", "forward", "postrouting")
_EARLY = ("ingress", "prerouting", "output")  # hooks at which DNAT may not have been done
_EPHEMERAL = 50_000  # used for an unknown source port; no service has this port
_NOWHERE = {4: "0.0.0.0", 6: "::"}  # the packet's family alone counts
_PROTO_SRC, _PROTO_DST, _SRC_IP, _DST_IP, _SRC_IP6, _DST_IP6 = 11, 12, 19, 20, 21, 22


class OtherChain(NamedTuple):
    """A base chain of another program that drops, or may drop, a packet or its replies."""

    chain: str  # family, table and name of the chain, as nft(8) writes them
    hook: str  # ingress, prerouting, input, forward, output or postrouting
    verdict: str  # drop, or may drop if the rule also tests a mark, a rate or the like
    replies: bool  # whether the replies are dropped, not the packet
    rule: str | None  # the rule that decides; null if it is the chain's policy

    @property
    def words(self) -> str:
        """A clause: the chain and hook, whether it drops the packet or replies, and the rule."""
        verb = "drops" if self.verdict == DROPS else "may drop"
        what = "replies to it" if self.replies else "it"
        why = f"by its rule: {self.rule}" if self.rule is not None else "by default"
        return f"nftables chain {self.chain} ({self.hook}) {verb} {what} {why}"


class OtherFirewalls(NamedTuple):
    """What nftables rules of other programs do to a packet that niso's rules let pass."""

    drops: tuple[OtherChain, ...]  # chains that drop the packet or its replies, or may drop them
    passes: tuple[str, ...]  # strings: the other chains on the packet's path, which let it pass
    unseen: tuple[str, ...]  # strings: rules that niso cannot read or cannot evaluate

    @property
    def is_dropped(self) -> bool:
        """True if a chain drops the packet for certain."""
        return any(one.verdict == DROPS and not one.replies for one in self.drops)


class _Way(NamedTuple):
    """A netfilter hook on a packet's path, with the packet's input and output interfaces at the
    hook.

    An interface is "" if there is none, and None if it is unknown.
    """

    hook: str
    enters: str | None
    leaves: str | None


class _Ends(NamedTuple):
    """The addresses and ports of a packet. None means an unknown address or port."""

    source: str | None
    own_port: int | None
    destination: str | None
    port: int | None


def of_packet(
    kernel: Kernel, context: PolicyContext, explained: ExplainedPacket
) -> OtherFirewalls | None:
    """Return the verdicts of other programs' chains about a packet and its replies.

    Returns None if niso drops the packet, or if it traverses no chain of this host.
    """
    packet, verdict = explained.packet, explained.verdict
    sender, receiver = (
        context.services.get(party.service) for party in (verdict.source, verdict.receiver)
    )
    to_itself = sender is not None and sender is receiver
    if not verdict.passes or to_itself or (sender is not None and sender.host):
        return None
    unseen = list(other_firewalls.unseen((packet.family,)))
    drops: dict[OtherChain, None] = {}
    passes: dict[str, None] = {}
    unsure: dict[str, None] = {}
    try:
        with kernel.foreign_chains() as source:
            chains = source.base_chains(everywhere=True)
            steps = list(_steps(kernel, context, explained)) if chains else ()
            for families, way, bits in steps:
                for chain in chains:
                    if HOOKS[chain.hook] != way.hook or chain.family not in families:
                        continue
                    if way.hook == "ingress" and way.enters not in chain.links:
                        continue
                    one = bits[_is_before(chain, _DSTNAT)]
                    if _is_before(chain, _CONNTRACK):
                        one = _untracked(one)
                    result, place, _ = other_firewalls.judge(source, chain, one)
                    name = other_firewalls.chain_name(chain)
                    if result == ACCEPTS:
                        passes[name] = None
                    elif result == UNSURE:
                        unsure[name] = None
                    else:
                        rule = rule_text(chain, place)
                        drops[OtherChain(name, way.hook, result, one.reply, rule)] = None
    except KernelError as error:
        unseen.append(f"chains of other programs cannot be read: {error.message}")
    found = dict.fromkeys(one.chain for one in drops)
    # a chain that drops the packet is not listed for its replies too
    lost = {one.chain for one in drops if not one.replies}
    shown = tuple(one for one in drops if not (one.replies and one.chain in lost))
    unsure = {name: None for name in unsure if name not in found}
    if unsure:
        unseen.append(
            f"nftables {', '.join(unsure)}: whether it drops depends on a mark, a rate or the like;"
            " niso net trace shows what happens to a packet"
        )
    certain = tuple(name for name in passes if name not in found and name not in unsure)
    return OtherFirewalls(shown, certain, (*unseen,))


def _is_before(chain: Chain, priority: int) -> bool:
    hook = HOOKS[chain.hook]
    return hook == "ingress" or (hook in _EARLY and chain.priority <= priority)


def of_ports(
    kernel: Kernel, store: Store, services: Iterable[str]
) -> Iterator[tuple[str, PortMapping, int, OtherChain]]:
    """Yield rules of other programs that drop, or may drop, new connections to a published port.

    Each result has the service, the published port, an IP version, and the chain with the rule. For
    a range of ports, the first and the last port are tested. Chains that drop packets to all ports
    are left out: `niso.look.other_firewalls.network_drops` finds them. Raises KernelError.
    """
    with kernel.foreign_chains() as source:
        chains = [
            chain
            for chain in source.base_chains(everywhere=True)
            if HOOKS[chain.hook] in _FROM_OUTSIDE and chain.family != _BRIDGE
        ]
        touched: dict[tuple[str, int, str], list[Chain]] = {}
        for service in services if chains else ():
            ports = [port for _, port in store.ports(service)]
            for network, family, address in listening.published_at(store, service) if ports else ():
                # of a service address, the chains see the address of an instance
                to = None if store.instances.of(service) else address
                for port in ports:
                    if port.host_ip.startswith("127."):
                        continue  # only the host reaches it, and its packets are not forwarded
                    key = network.bridge, family, port.proto
                    if key not in touched:
                        touched[key] = _touching(source, chains, network, family, port.proto)
                    if family in port.families and touched[key]:
                        for other in _of_port(source, touched[key], network, family, to, port):
                            yield service, port, family, other


def _touching(
    source: ForeignChains, chains: list[Chain], network: NetworkRecord, family: int, proto: str
) -> list[Chain]:
    """Return the chains with a rule that drops some packets to a network by address or port."""
    nothing = _Ends(None, None, None, None)
    touching = []
    for chain in chains:
        if FAMILIES[chain.family] in _INET[family]:
            found = _outside(source, chain, network, family, proto, nothing, nothing, True)
            # `network_drops` finds a forward chain that drops the packets to every port
            if found and not (found.verdict == DROPS and found.hook == "forward"):
                touching.append(chain)
    return touching


def _of_port(
    source: ForeignChains,
    chains: Iterable[Chain],
    network: NetworkRecord,
    family: int,
    address: str | None,
    port: PortMapping,
) -> Iterator[OtherChain]:
    for chain in chains:
        for offset in sorted({0, port.count - 1}):
            to = None if port.host_ip in WIDE else port.host_ip
            before = _Ends(None, _EPHEMERAL, to, port.host_port + offset)
            after = _Ends(None, _EPHEMERAL, address, port.container_port + offset)
            found = _outside(source, chain, network, family, port.proto, after, before, False)
            if found is not None:
                yield found
                break


def _outside(
    source: ForeignChains,
    chain: Chain,
    network: NetworkRecord,
    family: int,
    proto: str,
    after: _Ends,
    before: _Ends | None,
    any_end: bool,
) -> OtherChain | None:
    """Return the chain if it drops, or may drop, packets of other machines to a service, else None.

    ``after`` and ``before`` have the packet's addresses and ports after and before DNAT. With
    ``any_end``, a dropping rule that tests any address or port counts, otherwise only a rule that
    matches the packet.
    """
    hook = HOOKS[chain.hook]
    leaves = "" if hook in _EARLY else network.bridge
    way = _Way(hook, "" if hook == "postrouting" else None, leaves)
    packet = packet_path.Packet(_NOWHERE[family], _NOWHERE[family], after.port, proto)
    is_early = _is_before(chain, _DSTNAT)
    ends = before if is_early and before is not None else after
    bits = _routed(way, packet, ends, None if is_early else before)
    if _is_before(chain, _CONNTRACK):
        bits = _untracked(bits)
    result, place, _ = other_firewalls.judge(source, chain, bits, any_end)
    if result in (ACCEPTS, UNSURE) or place is None:
        return None
    rule = None if any_end else rule_text(chain, place)
    # a chain at the hook ingress is for some network interfaces
    word = DROPS if result == DROPS and hook != "ingress" else MAY_DROP
    return OtherChain(other_firewalls.chain_name(chain), hook, word, False, rule)


def _steps(
    kernel: Kernel, context: PolicyContext, explained: ExplainedPacket
) -> Iterator[tuple[set[int], _Way, dict[bool, PacketBits]]]:
    """Yield (families, hook, packet) for each hook that a packet and its reply traverse, in order.

    ``families`` are the nftables families whose chains the kernel evaluates at the hook. The packet
    is given as {False: after DNAT, True: before DNAT}.
    """
    packet, verdict = explained.packet, explained.verdict
    receiver = verdict.receiver.address
    own_port = packet.own_port or _EPHEMERAL
    before = _Ends(packet.source, own_port, packet.destination, packet.port)
    after = before._replace(destination=receiver, port=verdict.port)
    entered = plan_verdict.network_of(context, packet.source) if verdict.source.service else None
    reached = plan_verdict.network_of(context, receiver) if verdict.receiver.service else None
    from_host, to_host = (
        plan_verdict.is_host(context, packet.source),
        plan_verdict.is_host(context, receiver),
    )
    routed = {number for number, name in FAMILIES.items() if name in _INET[packet.family]}
    translated = (packet.destination, packet.port) != (receiver, verdict.port)
    original = before if translated and not verdict.instances else None
    is_switched = entered is not None and entered == reached and original is None
    if is_switched and entered is not None:
        ethertype, headers = ETHERTYPES[packet.family], _headers(packet, after, is_reply=False)
        frame = other_firewalls.switched(entered.bridge, ethertype, headers)
        facts = {**frame.facts, ("meta", _L4PROTO): whole(bytes([_number(packet)]))}
        yield {_BRIDGE}, _Way("forward", None, None), _both(frame._replace(facts=facts))
        bridged = other_firewalls.is_bridged(kernel, entered, packet.family)
        if not bridged:
            return
        bridge = entered.bridge
        ways = [
            _Way("prerouting", bridge, ""),
            _Way("forward", bridge, bridge),
            _Way("postrouting", "", bridge),
        ]
    else:
        first = entered.bridge if entered else "lo" if from_host else link_towards(packet.source)
        last = reached.bridge if reached else "lo" if to_host else link_towards(receiver)
        if from_host:
            ways = [_Way("output", "", last), _Way("postrouting", "", last)]
        elif to_host:
            ways = [
                _Way("ingress", first, ""),
                _Way("prerouting", first, ""),
                _Way("input", first, ""),
            ]
        else:
            ways = [
                _Way("ingress", first, ""),
                _Way("prerouting", first, ""),
                _Way("forward", first, last),
                _Way("postrouting", "", last),
            ]
        if from_host and to_host:
            ways += [_Way("prerouting", "lo", ""), _Way("input", "lo", "")]
    for way in ways:
        late = _routed(way, packet, after, original, bridged=is_switched)
        early = _routed(way, packet, before, None, bridged=is_switched)
        yield routed, way, {False: late, True: early}
    for way in _replies(ways):
        reply = _Ends(after.destination, after.port, after.source, after.own_port)
        one = _routed(way, packet, reply, original, reply=True, bridged=is_switched)
        yield routed, way, _both(one)


def _replies(ways: Iterable[_Way]) -> Iterator[_Way]:
    """Derive the hooks that a packet's replies pass from the hooks of the packet itself."""
    other = {"forward": "forward", "input": "output", "output": "input"}
    for way in ways:
        if way.hook in other:
            yield _Way(other[way.hook], way.leaves, way.enters)


def _both(bits: PacketBits) -> dict[bool, PacketBits]:
    return {False: bits, True: bits}


def _untracked(bits: PacketBits) -> PacketBits:
    facts = {key: value for key, value in bits.facts.items() if key[0] == "meta"}
    return bits._replace(facts=facts, tracked=None)


def _routed(
    way: _Way,
    packet: Packet,
    ends: _Ends,
    original: _Ends | None,
    reply: bool = False,
    bridged: bool = False,
) -> PacketBits:
    is_ipv4 = packet.family == 4
    bits = other_firewalls.routed(
        packet.family,
        [(link, _index(link)) for link in (way.enters, way.leaves)],
        _headers(packet, ends, reply),
        ESTABLISHED if reply else NEW,
        (DST_NAT if original else 0, DST_NAT),
        reply,
        bridged,
    )
    facts = {**bits.facts, ("meta", _L4PROTO): whole(bytes([_number(packet)]))}
    first = original or (ends if not reply else None)
    if first is not None:
        keys = (_SRC_IP, _DST_IP) if is_ipv4 else (_SRC_IP6, _DST_IP6)
        for key, address in zip(keys, (first.source, first.destination), strict=True):
            if address is not None:
                facts[foreign_chains.ORIGINAL, key] = whole(packed(address))
        for key, port in ((_PROTO_SRC, first.own_port), (_PROTO_DST, first.port)):
            if port is not None:
                facts[foreign_chains.ORIGINAL, key] = whole(struct.pack("!H", port))
    return bits._replace(facts=facts)


def _index(link: str | None) -> int | None:
    """Return the index of an interface: 0 for "", and None if the index is unknown."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(link) if link else 0 if link == "" else None
    return None


def _headers(packet: Packet, ends: _Ends, is_reply: bool) -> dict[int, Bits]:
    """Return {header: (bytes, mask of known bits)} of a packet. Keys are NFT_PAYLOAD_*_HEADER."""
    addresses = (ends.source, ends.destination)
    both = [whole(packed(address)) if address is not None else None for address in addresses]
    outer = other_firewalls.header_bits(packet.family, both, _number(packet))
    inner, sure = bytearray(20), bytearray(20)
    if packet.proto == "icmp":
        kinds = (8, 0) if packet.family == 4 else (128, 129)
        inner[0], sure[0], sure[1] = kinds[is_reply], 0xFF, 0xFF
    else:
        for offset, port in ((0, ends.own_port), (2, ends.port)):
            if port is not None:
                inner[offset : offset + 2] = struct.pack("!H", port)
                sure[offset : offset + 2] = b"\xff\xff"
        if packet.proto == "tcp":
            inner[13], sure[13] = (_SYN_ACK if is_reply else _SYN), 0xFF
    return {1: outer, 2: (bytes(inner), bytes(sure))}


def _number(packet: Packet) -> int:
    return _NUMBERS.get(packet.proto, 1 if packet.family == 4 else 58)


def link_towards(address: str) -> str | None:
    """Return the interface by which the host sends to an address, or None if it is unknown."""
    own = probe.own_address(address)
    if own is None:
        return None
    with Rtnl() as rtnl:
        found = {a.index for a in rtnl.addresses() if a.address.partition("/")[0] == own}
        return rtnl.name(found.pop()) if len(found) == 1 else None


def rule_text(chain: Chain, place: Place | None) -> str | None:
    """Return the text of a rule as nft(8) writes it, or None if ``place`` is None."""
    if place is None:
        return None
    family, (name, number) = FAMILIES[chain.family], place
    if not (other_firewalls.is_plain(chain.table) and other_firewalls.is_plain(name)):
        return f"number {number + 1}"  # such a name could end the command
    with contextlib.suppress(KernelError), libnftables.Nft() as nft:
        text = nft.chain(family, chain.table, name)
        inside = text.partition(f"chain {name} {{\n")[2].partition("\n\t}")[0]
        lines = [line.strip() for line in inside.splitlines()]
        rules = [one for one in lines if one and not one.startswith(("type ", "comment ", "#"))]
        if number < len(rules):
            return rules[number]
    return f"number {number + 1} of {name}"
