"""Find forward chains of other firewalls that drop packets which niso accepts, and propose commands
that prevent this.

A packet is forwarded only if the forward chains of all tables accept it. niso's rules therefore
cannot override another program's drop policy, and niso never edits another program's table. This
module evaluates the forward chains for some hypothetical packets, and names the missing rule.

Some properties of such a packet are unknown: its port, the remote address, and the name of the
outside interface. A condition on an unknown property counts as not met. Therefore a chain is
reported as dropping the packet if only a rule with such a condition accepts it.

The second part of the module reports which clients can reach services.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of, is_marked, packed
from niso.kernel import foreign_chains
from niso.kernel.foreign_chains import (
    FAMILIES,
    Between,
    Chain,
    ChainVerdict,
    Expression,
    ForeignChains,
    IptablesMatch,
    Lookup,
    Mask,
    RegisterLoad,
    Rule,
)
from niso.kernel.rtnetlink import Rtnl
from niso.look import host_ports
from niso.plan.records import ANY4, ANY6, NetworkRecord, Policy, PortMapping
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel
    from niso.plan.records import NetworkRecord


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


class ForeignDrop(NamedTuple):
    """A base chain of another program that drops packets which niso accepts."""

    chain: str  # "FAMILY TABLE CHAIN", printable
    what: tuple[str, ...]  # one or more of PUBLISHED, OUTWARD and WITHIN
    remedy: tuple[str, ...]  # command lines; prose if there is no command
    bridges: tuple[str, ...]  # the affected bridges

    def describe(self) -> str:
        """Describe in one line which packets the chain drops, without the remedy."""
        bridges, what = ", ".join(self.bridges), ", ".join(self.what)
        return f"nftables chain {self.chain} drops connections of {bridges} ({what})"


def foreign_drops(
    kernel: Kernel, bridges: Iterable[str], bridged: bool, families: Iterable[int]
) -> list[ForeignDrop]:
    """Return the chains of other programs in this network namespace that drop niso's packets.

    Only packets of ``bridges`` are tested. ``bridged`` is true if nf_call_iptables of a bridge or
    net.bridge.bridge-nf-call-iptables is 1: then frames between two services of a bridge also
    traverse the forward chains of the families ip, ip6 and inet. Rules of iptables-legacy are not
    visible (see `unseen`). Raises KernelError.
    """
    names = sorted(set(bridges))
    with kernel.foreign_chains() as source:
        chains = source.base_chains() if names else []
        if not chains:
            return []
        return drops(source, chains, _bridges(names), bridged, tuple(families))


def unseen(families: Iterable[int]) -> list[str]:
    """Return a warning for each IP version with iptables-legacy rules, which niso cannot read."""
    return [
        f"rules of {tool} are not visible; check with {tool} -S FORWARD"
        for family, tool in ((4, "iptables-legacy"), (6, "ip6tables-legacy"))
        if family in families and foreign_chains.unseen(family)
    ]


def drops(
    source: ForeignChains,
    chains: Iterable[Chain],
    bridges: Iterable[Bridge],
    bridged: bool,
    families: tuple[int, ...],
) -> list[ForeignDrop]:
    """Return which of the given chains drop packets of bridges. See `foreign_drops`."""
    traced = [(bridge[0], list(packets(bridge, bridged, families))) for bridge in bridges]
    dropping = []
    for chain in sorted(chains):
        what: set[str] = set()
        concerned: dict[str, None] = {}
        ways: set[bool] = set()
        tools: set[str] | None = None
        for bridge, candidates in traced:
            for traversed, kind, enters, packet in candidates:
                if chain.family not in traversed:
                    continue
                result, _, visited = judge(source, chain, packet, doubts=False)
                if result == DROPS:
                    what.add(kind)
                    concerned[bridge] = None
                    ways.add(enters)
                    tools = visited if tools is None else tools & visited
        if what:
            remedy = _remedy(chain, tuple(concerned), what, ways, tools or set())
            order = tuple(word for word in (PUBLISHED, OUTWARD, WITHIN) if word in what)
            dropping.append(ForeignDrop(chain_name(chain), order, remedy, (*concerned,)))
    return dropping


def _bridges(names: list[str]) -> Iterator[Bridge]:
    with Rtnl() as rtnl:
        for bridge in names:
            link = rtnl.link(bridge)
            prefixes: dict[int, set[str]] = {}
            for assigned in rtnl.addresses(link.index) if link else ():
                prefixes.setdefault(family_of(assigned.address), set()).add(assigned.address)
            single = {family: known.pop() for family, known in prefixes.items() if len(known) == 1}
            yield bridge, link.index if link else 0, single


def _remedy(
    chain: Chain, bridges: tuple[str, ...], what: set[str], ways: set[bool], visited: set[str]
) -> tuple[str, ...]:
    """Return shell commands that add a rule so that a chain no longer drops niso's packets.

    The commands are for the tool that created the chain. ``what`` has the kinds of dropped packets,
    as in `ForeignDrop`. ``ways`` contains True for packets that enter by a bridge, and False for
    packets that leave by a bridge. The rule can be added to any chain in ``visited``, because all
    dropped packets traverse these chains.
    """
    family, table, name = FAMILIES[chain.family], chain.table, chain.name
    ordered = sorted(ways, reverse=True)  # entering first
    wild = len(bridges) > 1 and all(bridge.startswith("niso-") for bridge in bridges)
    plus = ("niso-+",) if wild else bridges
    # the owner's tool comes first: it drops rules that other tools add when it reloads its own
    if (family, table) == ("inet", "firewalld"):
        # no reload: it deletes the rules that engines have added since firewalld started
        adds = [
            f"firewall-cmd {kept}--zone=trusted --add-interface={bridge}"
            for bridge in (plus if what != {PUBLISHED} else ())
            for kept in ("--permanent ", "")
        ]
        if PUBLISHED in what:  # firewalld accepts packets of published ports, unless told not to
            adds += ["StrictForwardPorts=no in /etc/firewalld/firewalld.conf"]
            adds += ["firewall-cmd --reload"]
        return tuple(adds)
    iptables = {"ip": "iptables", "ip6": "ip6tables"}.get(family, "")
    command, words = "", ("o", "i")
    if iptables and table == "filter" and "DOCKER-USER" in visited:
        command = f"{iptables} -I DOCKER-USER -{{}} {{}} -j ACCEPT"
    elif iptables and table == "filter" and visited & {"ufw-user-forward", "ufw6-user-forward"}:
        command, words = "ufw route allow {} on {}", ("out", "in")
    elif iptables and table in ("filter", "mangle", "security") and name == "FORWARD":
        tool = iptables if table == "filter" else f"{iptables} -t {table}"
        command = f"{tool} -I FORWARD -{{}} {{}} -j ACCEPT"
    if command:
        return tuple(command.format(words[i], bridge) for bridge in plus for i in ordered)
    if (family, table, name) == ("bridge", "filter", "FORWARD"):
        return tuple(f"ebtables -I FORWARD --logical-in {bridge} -j ACCEPT" for bridge in plus)
    keys = ("meta obrname", "meta ibrname") if family == "bridge" else ("oifname", "iifname")
    star = ("niso-*",) if wild else bridges
    rules = [f'{keys[i]} "{bridge}" accept' for bridge in star for i in ordered]
    if not (is_plain(table) and is_plain(name)):
        # nft's syntax cannot express such a name
        return tuple(f"have this chain begin with: {rule}" for rule in rules)
    import shlex  # imported late: it compiles a regular expression

    return tuple(
        f"nft {shlex.quote(f'insert rule {family} {table} {name} {rule}')}" for rule in rules
    )


def is_plain(name: str) -> bool:
    """Return whether the name of a table or chain can be written in nft(8)'s language."""
    return bool(name) and not name[0].isdigit() and name[0] not in "-." and set(name) <= _PLAIN


def chain_name(chain: Chain) -> str:
    """Return the family, table and name of a chain, with unprintable characters escaped."""
    return " ".join(map(_shown, (FAMILIES[chain.family], chain.table, chain.name)))


def _shown(text: str) -> str:
    def escape(c: str) -> str:
        if c.isprintable() and c != " ":
            return c
        return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"

    return "".join(map(escape, text))


# --- evaluating chains for hypothetical packets ---------------------------------------------------

ACCEPTS, DROPS, MAY_DROP, UNSURE = "accept", "drop", "may drop", "unsure"
PUBLISHED, OUTWARD, WITHIN = "published", "outward", "within the network"
_NUMBERS = {name: number for number, name in FAMILIES.items()}
_DEPTH = 16  # NFT_JUMP_STACK_SIZE
_STEPS = 50_000  # the most rules evaluated for a packet; after these it counts as accepted
_REGISTERS = 96  # bytes of all registers, and of the one that matches of iptables compare

# enum nft_meta_keys, nft_ct_keys; ct state and status (linux/netfilter/nf_conntrack_common.h)
_PROTOCOL, _IIF, _OIF, _IIFNAME, _OIFNAME, _NFPROTO = 1, 4, 5, 6, 7, 15
_BRI_IIFNAME, _BRI_OIFNAME = 17, 18
_STATE, _DIRECTION, _STATUS = 0, 1, 2
ESTABLISHED, NEW = 2, 8
_SEEN_REPLY, _CONFIRMED, _SRC_NAT, DST_NAT = 2, 8, 16, 32
_XT_SNAT, _XT_DNAT = 64, 128
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_BRIDGED = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
_ARP = b"\x08\x06"

Place = tuple[str, int]
"""A rule: the name of its chain, and its position in the chain, from 0."""
Bits = tuple[bytes, bytes]
"""A partly known value, and a mask in which each known bit of the value is 1."""
Bridge = tuple[str, int, Mapping[int, str]]
"""A bridge of niso: its name, interface index (0 if it does not exist) and prefix by IP version."""
UPLINK: Bits = (bytes(16), bytes(16))
"""The unknown name of a network interface that is not one of niso's bridges."""


class PacketBits(NamedTuple):
    """A hypothetical packet, of which only some properties are specified."""

    facts: Mapping[tuple[str, int], Bits]  # by ("meta" or "ct", key)
    headers: Mapping[int, Bits]  # by NFT_PAYLOAD_*_HEADER
    tracked: int | None  # connection states as iptables numbers them; None if unknown
    reply: bool  # whether the packet is a reply
    bridged: bool  # whether the packet is switched, not routed


def packets(
    bridge: Bridge, bridged: bool, families: Iterable[int]
) -> Iterator[tuple[set[int], str, bool, PacketBits]]:
    """Yield hypothetical packets of a bridge.

    Each packet comes with the families of tables on its path, with PUBLISHED, OUTWARD or WITHIN,
    and with whether it enters the host by the bridge.
    """
    own, other = (bridge[0], bridge[1] or None), (None, None)
    known_status = 1 | _SEEN_REPLY | _CONFIRMED | _SRC_NAT | DST_NAT
    in_bridge = {_NUMBERS["bridge"]}
    for family in families:
        prefix = _prefix(bridge, family)
        in_inet = {_NUMBERS["inet"], _NUMBERS["ip" if family == 4 else "ip6"]}
        for established, reply in ((False, False), (True, False), (True, True)):
            state = ESTABLISHED if established else NEW
            for what in (PUBLISHED, OUTWARD, *([WITHIN] if bridged else ())):
                enters = what == WITHIN or (what == OUTWARD) is not reply
                leaves = what == WITHIN or not enters
                status = DST_NAT if what == PUBLISHED else 0
                if established:
                    status |= _SEEN_REPLY | _CONFIRMED | (_SRC_NAT if what == OUTWARD else 0)
                bits = (status, known_status)
                links = [own if is_own else other for is_own in (enters, leaves)]
                ends = [prefix if is_own else None for is_own in (enters, leaves)]
                headers = {1: header_bits(family, ends)}
                packet = routed(family, links, headers, state, bits, reply, what == WITHIN)
                yield in_inet, what, enters, packet
            headers = {1: header_bits(family, [prefix, prefix])}
            frame = switched(bridge[0], ETHERTYPES[family], headers, reply)
            yield in_bridge, WITHIN, True, frame
        if family == 4:
            yield in_bridge, WITHIN, True, switched(bridge[0], _ARP, {})


def routed(
    family: int,
    links: Iterable[tuple[str | None, int | None]],
    headers: Mapping[int, Bits],
    state: int,
    status: tuple[int, int],
    reply: bool,
    bridged: bool,
) -> PacketBits:
    """Return a hypothetical packet in chains of the families inet, ip and ip6.

    ``links`` has the name and index of the input and the output interface. None stands for an
    unknown name or index, and "" and 0 for no interface. ``state`` and ``status`` are of connection
    tracking. The second item of ``status`` is a mask of known bits.
    """
    facts = {
        ("meta", _NFPROTO): whole(bytes([2 if family == 4 else 10])),
        ("meta", _PROTOCOL): whole(ETHERTYPES[family]),
        ("ct", _STATE): whole(struct.pack("=I", state)),
        ("ct", _DIRECTION): whole(bytes([reply])),
        ("ct", _STATUS): (struct.pack("=I", status[0]), struct.pack("=I", status[1])),
    }
    for (name, index), *keys in zip(links, (_IIFNAME, _OIFNAME), (_IIF, _OIF), strict=True):
        facts["meta", keys[0]] = UPLINK if name is None else whole(_name(name))
        if index is not None:
            facts["meta", keys[1]] = whole(struct.pack("=I", index))
    tracked = state | (_XT_DNAT if status[0] & DST_NAT else 0)
    tracked |= _XT_SNAT if status[0] & _SRC_NAT else 0
    return PacketBits(facts, headers, tracked, reply, bridged)


def switched(
    bridge: str, ethertype: bytes, headers: Mapping[int, Bits], reply: bool = False
) -> PacketBits:
    """Return a hypothetical frame within a bridge. Its connection tracking state is unknown."""
    port = b"ni" + bytes(14), b"\xff\xff" + bytes(14)  # names of bridge ports begin with ni
    own = whole(_name(bridge))
    facts = {
        ("meta", _PROTOCOL): whole(ethertype),
        ("meta", _IIFNAME): port,
        ("meta", _OIFNAME): port,
        ("meta", _BRI_IIFNAME): own,
        ("meta", _BRI_OIFNAME): own,
    }
    in_frame = {0: (bytes(12) + ethertype, bytes(12) + b"\xff\xff"), **headers}
    return PacketBits(facts, in_frame, None, reply, True)


def is_bridged(kernel: Kernel, network: NetworkRecord, family: int) -> bool:
    """Return whether frames within a bridge also traverse the chains of ip, ip6 and inet tables."""
    return network.publishes or kernel.sysctl(_BRIDGED[family]) == "1"


def header_bits(family: int, ends: Iterable[Bits | None], proto: int | None = None) -> Bits:
    """Return an IP header, of which only the protocol and the addresses of ``ends`` are known."""
    start, width, at = (12, 4, 9) if family == 4 else (8, 16, 6)
    data, known = bytearray(start), bytearray(start)
    if proto is not None:
        data[at], known[at] = proto, 0xFF
    for address, mask in (end or (bytes(width), bytes(width)) for end in ends):
        data += address
        known += mask
    return bytes(data), bytes(known)


def _prefix(bridge: Bridge, family: int) -> Bits | None:
    """Return an address in the bridge's prefix, of which only the bits of the prefix are known."""
    if family not in bridge[2]:
        return None
    text, _, length = bridge[2][family].partition("/")
    own, width = packed(text), 32 if family == 4 else 128
    mask = ((1 << width) - (1 << width - int(length))).to_bytes(width // 8, "big")
    return bytes(a & b for a, b in zip(own, mask, strict=True)), mask


def whole(data: bytes) -> Bits:
    """Return a value of which all bits are known."""
    return data, b"\xff" * len(data)


def _name(ifname: str) -> bytes:
    return ifname.encode()[:16].ljust(16, b"\0")


def judge(
    source: ForeignChains,
    chain: Chain,
    packet: PacketBits,
    any_end: bool = False,
    doubts: bool = True,
) -> tuple[str, Place | None, set[str]]:
    """Return (what a base chain does to a packet, the rule that decides, chains traversed).

    The first result is ACCEPTS, DROPS, MAY_DROP or UNSURE. With MAY_DROP and UNSURE, a dropping
    rule tests an unknown property and may therefore match. The result is MAY_DROP if the rule also
    matches the packet's address or port, or if ``any_end`` is true and the rule tests one.
    Otherwise, as for a rule that tests only a mark, the result is UNSURE. The second result is None
    if the chain's policy decides. Without ``doubts``, a rule that tests an unknown property does
    not match, so the first result is ACCEPTS or DROPS.
    """
    visited: set[str] = set()
    may_accept = unsure = False
    may_drop: Place | None = None
    steps = 0

    def walk(name: str, depth: int, certain: bool, named: bool) -> tuple[bool, Place] | None:
        """Return whether a chain accepts the packet, and by which rule, or None if no rule decides.

        ``certain`` is true if the packet surely reaches the chain. ``named`` is true if a rule that
        jumps to the chain matches an address or port.
        """
        nonlocal may_accept, may_drop, unsure, steps
        visited.add(name)
        for number, rule in enumerate(source.rules(chain.family, chain.table, name)):
            steps += 1
            if steps > _STEPS:
                return True, (name, number)
            matches, verdict, names = _evaluate(source, chain, packet, rule, doubts, any_end)
            if matches is False or verdict is None or verdict.kind in ("continue", "break"):
                continue
            known = certain and matches is True
            if verdict.kind in ("accept", "drop"):
                if known:
                    return verdict.kind == "accept", (name, number)
                may_accept |= verdict.kind == "accept"
                unsure |= verdict.kind == "drop"
                if verdict.kind == "drop" and (names or named) and may_drop is None:
                    may_drop = name, number
            elif verdict.kind == "return" or depth >= _DEPTH:
                if matches is True:
                    return None
                may_accept = True  # a later rule of the chain may not be reached
            else:
                decided = walk(verdict.chain, depth + 1, known, named or names)
                if decided is not None or (verdict.kind == "goto" and known):
                    return decided
        return None

    decided = walk(chain.name, 0, True, False)
    accepts, place = decided or (chain.accepts, None)
    if not accepts:
        return (MAY_DROP if may_accept else DROPS), place, visited
    if may_drop is not None:
        return MAY_DROP, may_drop, visited
    return (UNSURE if unsure else ACCEPTS), place, visited


def _evaluate(
    source: ForeignChains,
    chain: Chain,
    packet: PacketBits,
    rule: Rule,
    doubts: bool,
    any_end: bool,
) -> tuple[bool | None, ChainVerdict | None, bool]:
    """Return whether a rule matches a packet (None if unknown), and the rule's verdict.

    The third result is true if the rule matches an address or port of the packet, or with
    ``any_end`` if the rule tests one. Without ``doubts``, the evaluation ends without a verdict at
    the first expression whose value is unknown.
    """
    registers = _Registers()
    matches: bool | None = True
    names = False
    of_packet: dict[int, bool] = {}  # by register, whether it has an address or port
    for expression in rule:
        if isinstance(expression, ChainVerdict):
            return matches, expression, names
        one: bool | None
        if isinstance(expression, Lookup):
            where = chain.family, chain.table, expression.name
            key = registers.read(expression.register, source.key_length(*where))
            if key is None:
                one = None
            else:
                has, verdict = source.element(*where, key)
                names |= of_packet.get(expression.register, False)
                if expression.verdict and verdict is not None:
                    return matches, verdict, names
                one = has if expression.verdict else has is not expression.inverted
        else:
            one = _matches(expression, packet, registers)
            if isinstance(expression, RegisterLoad):
                of_packet[expression.register] = is_end = _is_end(expression)
                names |= any_end and is_end
            elif isinstance(expression, Mask):
                of_packet[expression.target] = of_packet.get(expression.source, False)
            elif isinstance(expression, Between):
                names |= one is True and of_packet.get(expression.register, False)
            elif expression == foreign_chains.MAY_MATCH_END:
                names |= any_end or _has_ends(packet)
            elif isinstance(expression, IptablesMatch):
                ports = expression.sources or expression.targets
                names |= ports is not None and (one is True or any_end)
        if one is False:
            return False, None, False
        if one is None:
            matches = None
            if not doubts:
                break
    return matches, None, names


def _has_ends(packet: PacketBits) -> bool:
    return all(bits == 0xFF for bits in packet.headers.get(1, (b"", bytes(20)))[1][12:])


def _is_end(load: RegisterLoad) -> bool:
    if load.source == "payload":
        # an IPv4 header has TTL and protocol where an IPv6 header has its source address
        in_header = load.offset >= 12 or (load.offset == 8 and load.length > 1)
        return load.offset < 4 if load.key == 2 else load.key == 1 and in_header
    # NFT_CT_SRC, NFT_CT_DST, NFT_CT_PROTO_SRC, NFT_CT_PROTO_DST and NFT_CT_SRC_IP to DST_IP6
    return load.source == foreign_chains.ORIGINAL and load.key in (8, 9, 11, 12, *range(19, 23))


def _matches(expression: Expression, packet: PacketBits, registers: _Registers) -> bool | None:
    """Return whether an expression of a rule matches a packet, or None if that is unknown."""
    match expression:
        case RegisterLoad():
            registers.write(expression.register, _loaded(expression, packet))
        case Mask():
            registers.mask(expression)
        case Between():
            matches = registers.between(expression)
            return matches if matches is None else matches is not expression.inverted
        case IptablesMatch():
            if expression.sources is not None or expression.targets is not None:
                return _has_ports(expression, packet)
            if expression.bridged is not None:
                return packet.bridged is expression.bridged
            if packet.tracked is None:
                return None
            states = expression.states
            fits = states is None or bool(states & packet.tracked) is not expression.inverted
            return fits and expression.reply in (None, packet.reply)
        case foreign_chains.CLOBBERS:
            registers.forget()
        case _:
            return None
    return True


def _has_ports(match: IptablesMatch, packet: PacketBits) -> bool | None:
    """Return whether a packet has the ports that an iptables match tests (None if unknown)."""
    data, known = packet.headers.get(2, (bytes(4), bytes(4)))
    fits: list[bool | None] = []
    for offset, ranges in ((0, match.sources), (2, match.targets)):
        if ranges is not None and known[offset : offset + 2] == b"\xff\xff":
            port = int.from_bytes(data[offset : offset + 2], "big")
            fits.append(any(low <= port <= high for low, high in ranges))
        elif ranges is not None:
            fits.append(None)
    if False in fits:
        return match.inverted
    return None if None in fits else not match.inverted


def _loaded(load: RegisterLoad, packet: PacketBits) -> Bits | None:
    if load.source != "payload":
        return packet.facts.get((load.source, load.key))
    data, mask = packet.headers.get(load.key, (b"", b""))
    end = load.offset + load.length
    if load.key not in packet.headers or end > len(data):
        return None
    return data[load.offset : end], mask[load.offset : end]


class _Registers:
    """The registers of nftables during the evaluation of a rule. A mask marks the known bits."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._data, self._known = bytearray(_REGISTERS), bytearray(_REGISTERS)
        self._uplinks: set[int] = set()

    def write(self, register: int, value: Bits | None) -> None:
        """Set a register. None stands for an unknown value of at most 16 bytes."""
        data, mask = value or (bytes(16), bytes(16))
        size = min(-(-len(data) // 4) * 4, _REGISTERS - register)
        # a value shorter than a word is padded with zeros (nft_reg_store8)
        self._data[register : register + size] = data.ljust(size, b"\0")[:size]
        self._known[register : register + size] = mask.ljust(size, b"\xff")[:size]
        self._uplinks.discard(register)
        if value is UPLINK:
            self._uplinks.add(register)

    def mask(self, expression: Mask) -> None:
        size = len(expression.mask)
        data = self._data[expression.source : expression.source + size]
        known = self._known[expression.source : expression.source + size]
        if len(data) < size:
            self.write(expression.target, None)
            return
        bits = zip(data, expression.mask, expression.xor, strict=True)
        # a masked-out bit is known: it is the bit of xor
        now = bytes(k | ~b & 0xFF for k, b in zip(known, expression.mask, strict=True))
        self.write(expression.target, (bytes(a & b ^ x for a, b, x in bits), now))

    def read(self, register: int, length: int) -> bytes | None:
        """Return the bytes in a register, or None if any of their bits is unknown."""
        end = register + length
        if not length or end > _REGISTERS or any(x != 0xFF for x in self._known[register:end]):
            return None
        return bytes(self._data[register:end])

    def between(self, expression: Between) -> bool | None:
        first, last = expression.first, expression.last
        size = len(first or last)
        start = expression.register
        if start + size > _REGISTERS:
            return None
        if start in self._uplinks and first == last and first.startswith(b"niso-"):
            return False
        known = int.from_bytes(self._known[start : start + size], "big")
        data = int.from_bytes(self._data[start : start + size], "big") & known
        top = (1 << size * 8) - 1
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big") if last else top
        if low == high:
            if (data ^ low) & known:
                return False
            return True if known == top else None
        lowest, highest = data, data | top & ~known
        if low <= lowest and highest <= high:
            return True
        return False if highest < low or lowest > high else None


# --- from where services can be reached -----------------------------------------------------------


def network_drops(kernel: Kernel, networks: Iterable[NetworkRecord]) -> list[ForeignDrop]:
    """Return other programs' chains that drop packets of these networks. Raises KernelError."""
    groups: dict[tuple[int, bool], list[str]] = {}
    for network in networks:
        for family in (subnet.family for subnet in network.subnets):
            bridged = is_bridged(kernel, network, family)
            groups.setdefault((family, bridged), []).append(network.bridge)
    if not groups:
        return []
    with kernel.foreign_chains() as source:
        if not source.base_chains():
            return []

    found = (
        drop
        for (family, bridged), bridges in sorted(groups.items())
        for drop in foreign_drops(kernel, bridges, bridged, (family,))
    )
    return list(dict.fromkeys(found))


def others_dropped(chains: Iterable[str]) -> list[tuple[str, str]]:
    """Return (problem, remedy) for each NAT chain in ``chains``. Other programs created these
    chains, which translate packets that niso drops.
    """
    return [
        (
            f"nftables chain {chain} translates addresses of packets that niso drops: the host"
            " did not forward IPv4 before niso's first service",
            "set net.ipv4.ip_forward = 1 in /etc/sysctl.d; it counts when no service is active,"
            " or from the next boot",
        )
        for chain in chains
    ]


def closed_links(kernel: Kernel) -> list[tuple[str, str]]:
    """Return (problem, remedy) for each network interface that does not forward IPv4."""
    return [
        (
            f"link {name} does not forward IPv4 ({_forwarding(name)} is 0)",
            f"sysctl -w {_forwarding(name)}=1",
        )
        for name in sorted(kernel.not_forwarding())
    ]


def _forwarding(link: str) -> str:
    return f"net/ipv4/conf/{link}/forwarding"


def narrowed(ways: list[str], policy: Policy | None) -> list[str]:
    """Return the lines ``ways`` about the clients that can reach a published port, with a policy's
    restrictions added.

    The first line of ``ways`` is about this host, which no policy restricts.
    """
    if policy is None or len(ways) < 2:
        return ways
    if policy.allow_from == ():
        return [ways[0], "nobody else: allow_from is empty"]
    limits = []
    if policy.allow_from is not None:
        peers = ", ".join(entry.text for entry in policy.allow_from)
        limits.append(f"of these only allow_from: {peers}")
    if policy.deny_from:
        limits.append(f"but not deny_from: {', '.join(entry.text for entry in policy.deny_from)}")
    return [*ways, *limits]


def _addresses() -> list[tuple[str, str, bool]]:
    """Return (address, interface, whether other machines can use the address) of this host."""
    addresses = []
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        for assigned in rtnl.addresses():
            address = ipaddress.ip_interface(assigned.address).ip
            link = links.get(assigned.index)
            if link is not None and not address.is_link_local:
                is_own = address.is_loopback or is_marked(link.alias) or link.name == "lo"
                addresses.append((str(address), link.name, not is_own))
    return addresses


def _ways(
    port: PortMapping,
    addresses: list[tuple[str, str, bool]],
    closed: set[str],
    internal: Sequence[str],
    but: str,
) -> list[str]:
    """Return one line for each type of client that can reach a published port. ``addresses`` is a
    result of `_addresses`. ``closed`` are interfaces that do not forward IPv4. ``internal`` are
    networks without access to the port. ``but`` is a note about other firewalls.
    """
    if port.host_ip in (ANY4, ANY6):
        published = [item for item in addresses if family_of(item[0]) in port.families]
    elif port.host_ip.startswith("127."):
        return ["this host"]
    else:
        published = [item for item in addresses if item[0] == port.host_ip]
        if not published:
            return [f"nobody: this host has no address {port.host_ip} now"]
    shut = {link for address, link, _ in published if family_of(address) == 4 and link in closed}
    outside = [
        f"{address} on {link}"
        for address, link, is_outside in published
        if is_outside and link not in shut
    ]
    others = [f"other machines via {', '.join(outside)}{but}"] if outside else []
    nobody = [f"nobody via {link}: {_forwarding(link)} is 0" for link in sorted(shut)]
    inner = f" except from internal network {' or '.join(internal)}" if internal else ""
    return ["this host", f"services{inner}{but}", *others, *nobody]


def exposed_ports(kernel: Kernel, store: Store) -> tuple[host_ports.PublishedPort, ...]:
    """Return the published ports and who can reach each port, for `Networks.exposure`."""
    # imported late: activations need the rest of this module
    from niso.look import chains_on_path, listening

    lines = host_ports.port_rows(store)
    services = {service for service, _, _ in lines}
    internal = [network.name for network in store.networks() if network.internal]
    on = {service: [network for network, _ in store.addresses(service)] for service in services}
    first = {service: store.require_network(on[service][0]) for service in services}
    policies = {service: store.policy(store.home(service)) for service in services}
    addresses, not_forwarding = _addresses(), set(kernel.not_forwarding())
    blocked: dict[tuple[NetworkRecord, int], str] = {}
    for network in set(first.values()):
        for family in (4, 6):
            only = network._replace(subnets=tuple(s for s in network.subnets if s.family == family))
            chains = [d.chain for d in network_drops(kernel, [only]) if "published" in d.what]
            blocked[network, family] = f" (but {', '.join(chains)} drops it)" if chains else ""
    notes: dict[tuple[str, PortMapping, int], list[str]] = {}
    for service, port, family, text in host_ports.shadows(kernel, store, services):
        notes.setdefault((service, port, family), []).append(text)
    for service, port, family, found in listening.unheard(
        listening.ServiceSockets(kernel), store, services
    ):
        notes.setdefault((service, port, family), []).append(found.words)
    for service, port, family, other in chains_on_path.of_ports(kernel, store, services):
        notes.setdefault((service, port, family), []).append(f"but {other.words}")
    result = []
    for service, port, row in lines:
        family = family_of(row.host_ip)
        # traffic of an internal network stays on it, so only its own services are reachable
        closed = [name for name in internal if name not in on[service]]
        but = blocked[first[service], family]
        at = port._replace(host_ip=row.host_ip)
        ways = narrowed(_ways(at, addresses, not_forwarding, closed, but), policies[service])
        ways = [*ways, *notes.get((service, port, family), ())]
        result.append(host_ports.published_port(service, row, tuple(ways)))
    return tuple(result)
