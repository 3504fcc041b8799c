"""Read nftables chains of other programs through netlink (linux/netfilter/nf_tables.h).

To show one chain, libnftables would read a whole table with its sets. libnftables also does not say
what an iptables match (``-m conntrack --ctstate ...``) tests. This module reads a chain or an
element only when a packet reaches it. Any privileged program may have written the rules, so lengths
and numbers are not trusted.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterator

from niso.base.errors import KernelError
from niso.base.named_tuples import NamedTuple
from niso.kernel import netlink, nft_elements
from niso.kernel.netlink import attribute, attributes, nested, parse_reply, string, text
from niso.kernel.nft_elements import Nfnetlink, about, nfgenmsg

# number to name
FAMILIES = {number: name for name, number in nft_elements.FAMILIES.items()}

_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM = 0x0A01, 0x0A04, 0x0A07, 0x0A0A, 0x0A0D
# NF_INET_*, NF_BR_*; the hook ingress of netdev has another number there
HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_FORWARD, _POSTROUTING = HOOKS.index("forward"), HOOKS.index("postrouting")
_INGRESS = HOOKS.index("ingress")
_DORMANT = 1  # NFT_TABLE_F_DORMANT
_CATCHALL = 2  # NFT_SET_ELEM_CATCHALL
_REGISTERS = 96  # bytes: a verdict and 16 words, and `_OWN`
_OWN = 80  # a register that no rule uses, for what a match of iptables compares

_VERDICTS = {-1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_MISSING = (errno.ENOENT,)


class Chain(NamedTuple):
    """A base chain of another program that filters packets."""

    family: int  # one of `FAMILIES`
    table: str
    name: str
    accepts: bool  # the chain's policy is accept
    hook: int = _FORWARD  # index in `HOOKS`
    priority: int = 0
    links: tuple[str, ...] = ()  # the network interfaces of a chain at the hook ingress


class RegisterLoad(NamedTuple):
    """A rule's expression that loads a value into a register. Here and in the classes below, a
    register is identified by its byte offset. If ``source`` is "meta", "ct" or `ORIGINAL`, the
    value is the field with the number ``key``. If ``source`` is "payload", the value is ``length``
    bytes from ``offset`` of the header ``key`` (NFT_PAYLOAD_*_HEADER).
    """

    register: int
    source: str
    key: int
    offset: int = 0
    length: int = 0


class Mask(NamedTuple):
    """A rule's expression that sets register ``target`` to (``source`` & ``mask``) ^ ``xor``."""

    source: int
    target: int
    mask: bytes
    xor: bytes


class Between(NamedTuple):
    """A rule's expression that matches if ``register`` is in a range. b"" means no bound."""

    register: int
    first: bytes
    last: bytes
    inverted: bool = False


class Lookup(NamedTuple):
    """A rule's expression that matches if the value in ``register`` is in the set ``name``."""

    name: str
    register: int
    verdict: bool = False  # the set is a map, and the verdict that it returns is applied
    inverted: bool = False


class IptablesMatch(NamedTuple):
    """An iptables match in a rule: "conntrack", "state", "physdev", "tcp", "udp" or "multiport". A
    field that is None is not tested.
    """

    states: int | None = None  # the states that match, as bits XT_CONNTRACK_STATE_BIT
    inverted: bool = False  # whether all other states, or all other ports, match instead
    reply: bool | None = None  # whether only replies match, or only other packets
    bridged: bool | None = None
    sources: tuple[tuple[int, int], ...] | None = None  # ranges of source ports
    targets: tuple[tuple[int, int], ...] | None = None  # ranges of destination ports


# expressions of a rule that this module cannot evaluate: CLOBBERS writes an unknown value, and
# MAY_MATCH may match or not
CLOBBERS, MAY_MATCH = "clobbers", "may match"
MAY_MATCH_END = "may match an address or port"
ORIGINAL = "ct original"  # source of a `RegisterLoad`: of the packet before any NAT


class ChainVerdict(NamedTuple):
    """The verdict (accept, drop, jump ...) of a rule, a chain's policy or an element of a map."""

    kind: str  # accept, drop, jump, goto, return, continue or break
    chain: str = ""  # the chain to which a jump or goto leads


# a string is CLOBBERS, MAY_MATCH or MAY_MATCH_END
Expression = RegisterLoad | Mask | Between | Lookup | IptablesMatch | ChainVerdict | str
Rule = tuple[Expression, ...]

# Statements that always continue. A limit, a quota or an unknown expression may end the rule
# instead.
_PASSES = {"counter", "log", "last", "notrack", "dup"}
_LOADS = {"exthdr", "fib", "rt", "socket", "osf", "hash", "numgen", "tunnel", "xfrm"}
_LOADS |= {"byteorder", "inner"}
_TARGETS_PASS = {"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CONNSECMARK", "SECMARK", "CLASSIFY"}
_TARGETS_PASS |= {"TCPMSS", "TRACE", "DSCP", "TOS", "TTL", "HL", "CHECKSUM", "AUDIT", "TEE", "SET"}
_TARGETS_PASS |= {"IDLETIMER", "LED", "RATEEST", "mark"}
_TARGETS_DROP = {"REJECT", "DROP", "TARPIT", "DELUDE", "CHAOS"}


class ForeignChains(Nfnetlink):
    """A reader of other programs' nftables chains and sets in the caller's network namespace.
    Answers of the kernel are cached. Methods raise KernelError.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rules: dict[tuple[int, str, str], list[Rule]] = {}
        self._key_lengths: dict[tuple[int, str, str], int] = {}
        self._elements: dict[tuple[int, str, str, bytes], tuple[bool, ChainVerdict | None]] = {}

    def _list_chains[T](self, parse: Callable[[bytes], T | None]) -> list[T]:
        """Return all chains. Raises KernelError, with a hint if the kernel has no nf_tables."""
        try:
            return self.dump("list chains", _GETCHAIN, nfgenmsg(0), parse)
        except KernelError as error:
            if error.errno == errno.EINVAL:  # from nfnetlink_rcv_msg, net/netfilter/nfnetlink.c
                error.hint = "load the kernel module nf_tables: modprobe nf_tables"
            raise

    def base_chains(self, everywhere: bool = False) -> list[Chain]:
        """Return the base chains of other programs at the hook ``forward``. With ``everywhere``,
        return the chains at all hooks, except chains that only translate addresses. Chains of
        dormant tables are left out.
        """
        found = self._list_chains(_base_chain)
        chains = [chain for chain in found if everywhere or chain.hook == _FORWARD]
        asleep = {table for table in {chain[:2] for chain in chains} if self._dormant(*table)}
        return [chain for chain in chains if chain[:2] not in asleep]

    def nat4(self) -> dict[str, int]:
        """Return the IPv4 SNAT chains of other programs: {"FAMILY TABLE CHAIN": number of rules}.
        These are NAT chains at the hook postrouting. A chain is left out if neither its rules nor
        the chains to which they jump can translate an address.
        """
        found = self._list_chains(_nat_chain)
        return {
            f"{FAMILIES[family]} {table} {name}": uses
            for hook, family, table, name, uses in found
            if hook == _POSTROUTING and uses and self._translates(family, table, name, set())
        }

    def _translates(self, family: int, table: str, name: str, visited: set[str]) -> bool:
        """Return whether rules of a chain, or of chains to which it jumps, may do NAT."""
        visited.add(name)
        inner = []
        for expressions in self.rules(family, table, name):
            for one in expressions:
                if one == MAY_MATCH or (isinstance(one, Lookup) and one.verdict):
                    return True  # such as masquerade, snat, and targets of iptables
                if isinstance(one, ChainVerdict) and one.chain:
                    inner.append(one.chain)
        return any(
            one not in visited and self._translates(family, table, one, visited) for one in inner
        )

    def redirects(self) -> bool:
        """Return whether rules of other programs may translate destinations of IPv4 packets."""
        found = self._list_chains(_nat_chain)
        return any(uses for hook, *_, uses in found if hook != _POSTROUTING)

    def rules(self, family: int, table: str, chain: str) -> list[Rule]:
        key = (family, table, chain)
        if key not in self._rules:
            body = _named(*key)
            self._rules[key] = self.dump(f"list chain {chain}", _GETRULE, body, rule, _MISSING)
        return self._rules[key]

    def key_length(self, family: int, table: str, name: str) -> int:
        def parse(answer: bytes) -> int:
            return _number(attributes(answer, 4), 5)  # NFTA_SET_KEY_LEN

        key = (family, table, name)
        if key not in self._key_lengths:
            what = f"read set {name}"
            answer = self.get_one(what, _GETSET, _named(*key), _MISSING) or b""
            self._key_lengths[key] = parse_reply(what, parse, answer)
        return self._key_lengths[key]

    def element(
        self, family: int, table: str, name: str, key: bytes
    ) -> tuple[bool, ChainVerdict | None]:
        """Look up a key in a set or verdict map. Returns (whether an element matches, its verdict).
        A catch-all element matches all keys. In a set, the verdict is None.
        """
        cached = self._elements.get((family, table, name, key))
        if cached is None:
            cached = self._element(_named(family, table, name), f"read set {name}", key)
            self._elements[family, table, name, key] = cached
        return cached

    def _element(self, prefix: bytes, what: str, key: bytes) -> tuple[bool, ChainVerdict | None]:
        def parse(answer: bytes) -> ChainVerdict | None:
            element = attributes(attributes(attributes(answer, 4).get(3, b"")).get(1, b""))
            # NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT
            return _verdict(attributes(element.get(2, b"")).get(2))

        # EINVAL, EOPNOTSUPP: the element does not exist, or the kernel cannot look it up in this
        # set
        absent = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)
        # NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_FLAGS
        for which in (nested(1, attribute(1, key)), attribute(3, struct.pack(">I", _CATCHALL))):
            body = prefix + nested(3, nested(1, which))
            answer = self.get_one(what, _GETSETELEM, body, absent)
            if answer is not None:
                return True, parse_reply(what, parse, answer)
        return False, None

    def _dormant(self, family: int, table: str) -> bool:
        def parse(answer: bytes) -> bool:
            return bool(_number(attributes(answer, 4), 2) & _DORMANT)  # NFTA_TABLE_FLAGS

        what = f"read table {table}"
        answer = self.get_one(what, _GETTABLE, nfgenmsg(family) + text(1, table), _MISSING)
        return answer is None or parse_reply(what, parse, answer)


def _named(family: int, table: str, name: str) -> bytes:
    return about(f"{FAMILIES[family]} {table}", name)


def _base_chain(body: bytes) -> Chain | None:
    fields = attributes(body, 4)
    if 4 not in fields or not body or body[0] not in FAMILIES:  # NFTA_CHAIN_HOOK
        return None
    table = string(fields.get(1, b""))
    place = attributes(fields[4])  # NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    hook, priority = _number(place, 1), int.from_bytes(place.get(2, b""), "big", signed=True)
    if FAMILIES[body[0]] == "netdev":
        hook = len(HOOKS) if hook else _INGRESS  # NF_NETDEV_INGRESS, NF_NETDEV_EGRESS
    # NFTA_HOOK_DEV, NFTA_HOOK_DEVS
    links = [place[3]] if 3 in place else netlink.several(place.get(4, b""))
    if (
        hook >= len(HOOKS)
        or string(fields.get(7, b"")) == "nat"  # NFTA_CHAIN_TYPE
        or (table == "niso" and FAMILIES[body[0]] in ("inet", "bridge"))
    ):
        return None
    # NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY
    name, accepts = string(fields.get(3, b"")), _number(fields, 5, 1) == 1
    return Chain(body[0], table, name, accepts, hook, priority, tuple(map(string, links)))


def _nat_chain(body: bytes) -> tuple[int, int, str, str, int] | None:
    """Parse an IPv4 NAT chain of another program. Returns None for any other chain."""
    fields = attributes(body, 4)
    if 4 not in fields or not body or FAMILIES.get(body[0]) not in ("inet", "ip"):
        return None
    table = string(fields.get(1, b""))
    hook = _number(attributes(fields[4]), 1)
    if string(fields.get(7, b"")) != "nat" or (  # NFTA_CHAIN_TYPE
        table == "niso" and FAMILIES[body[0]] == "inet"
    ):
        return None
    # NFTA_CHAIN_USE counts rules and jumps, and no rule jumps to a base chain
    return hook, body[0], table, string(fields.get(3, b"")), _number(fields, 6)


def rule(body: bytes) -> Rule:
    """Parse a rule (NFT_MSG_NEWRULE) into the expressions that affect its verdict."""
    expressions: list[Expression] = []
    try:
        for entry in netlink.several(attributes(body, 4).get(4, b"")):  # NFTA_RULE_EXPRESSIONS
            outer = attributes(entry)
            name, fields = string(outer.get(1, b"")), attributes(outer.get(2, b""))
            if name == "match":
                expressions += _match(fields, FAMILIES.get(body[0], ""))
                continue
            expression = _expression(name, fields)
            if expression is not None:
                expressions.append(expression)
    except netlink.MALFORMED:
        expressions.append(MAY_MATCH)
    return tuple(expressions)


def _expression(name: str, fields: dict[int, bytes]) -> Expression | None:
    """Parse an expression of a rule. Returns None if it has no effect on which packets match."""
    parse = _PARSERS.get(name)
    if parse is not None:
        return parse(fields)
    if name in _PASSES:
        return None
    return CLOBBERS if name in _LOADS else MAY_MATCH


def _load(source: str, fields: dict[int, bytes]) -> Expression | None:
    """Parse a meta, ct or payload expression. Returns None if it changes the packet instead."""
    if 1 not in fields:
        return None
    if source == "payload":
        numbers = (_number(fields, kind) for kind in (2, 3, 4))
        return RegisterLoad(_register(fields, 1), source, *numbers)
    # NFTA_CT_DIRECTION: an address, port or counter of one direction, 0 for the original one
    if source == "ct" and 3 in fields and _number(fields, 2) != 1:
        original = not _number(fields, 3)
        return (
            RegisterLoad(_register(fields, 1), ORIGINAL, _number(fields, 2))
            if original
            else (CLOBBERS)
        )
    return RegisterLoad(_register(fields, 1), source, _number(fields, 2))


def _bitwise(fields: dict[int, bytes]) -> Expression:
    mask, xor = _value(fields.get(4)), _value(fields.get(5))
    if _number(fields, 6) or not mask or len(mask) != len(xor):
        return CLOBBERS
    return Mask(_register(fields, 1), _register(fields, 2), mask, xor)


def _compare(fields: dict[int, bytes]) -> Expression:
    register, operator, data = _register(fields, 1), _number(fields, 2), _value(fields.get(3))
    if not data or operator > 5:
        return MAY_MATCH
    if operator < 2:
        return Between(register, data, data, operator == 1)
    if operator in (2, 5):  # "less" is "not at least"
        return Between(register, data, b"", operator == 2)
    return Between(register, b"", data, operator == 4)


def _range(fields: dict[int, bytes]) -> Expression:
    first, last = _value(fields.get(3)), _value(fields.get(4))
    if not first or len(first) != len(last):
        return MAY_MATCH
    return Between(_register(fields, 1), first, last, _number(fields, 2) == 1)


def _lookup(fields: dict[int, bytes]) -> Expression:
    if _number(fields, 3):  # a map value that is not a verdict
        return CLOBBERS
    return Lookup(
        string(fields.get(1, b"")), _register(fields, 2), 3 in fields, bool(_number(fields, 5) & 1)
    )


def _immediate(fields: dict[int, bytes]) -> Expression:
    verdict = _verdict(attributes(fields.get(2, b"")).get(2))
    return CLOBBERS if _number(fields, 1) or verdict is None else verdict


def _object(fields: dict[int, bytes]) -> Expression | None:
    return None if _number(fields, 1, 2) not in (2, 4, 5) else MAY_MATCH


def _match(fields: dict[int, bytes], family: str) -> tuple[Expression, ...]:
    """Parse an iptables match: its name, its revision and its struct (linux/netfilter/xt_*.h)."""
    name, revision, info = string(fields.get(1, b"")), _number(fields, 2), fields.get(3, b"")
    one: Expression | None = MAY_MATCH
    if name == "comment":
        one = None
    elif name == "set":
        one = MAY_MATCH_END
    elif name == "state" and len(info) >= 4:
        one = IptablesMatch(*struct.unpack_from("=I", info))
    elif name == "physdev" and len(info) >= 66 and info[65] == 4:  # XT_PHYSDEV_OP_BRIDGED alone
        one = IptablesMatch(bridged=not info[64] & 4)
    elif name in ("tcp", "udp") and len(info) >= 9:
        one = _ports_match(name, info)
    elif name == "multiport" and revision == 1 and len(info) >= 48:
        one = _multiport(info)
    elif name == "iprange" and revision == 1 and len(info) >= 65 and family in ("ip", "ip6"):
        return tuple(_iprange(info, family == "ip"))
    elif name == "conntrack" and revision in (2, 3) and len(info) >= 154:
        flags = int.from_bytes(info[146:148], sys.byteorder)
        # replies, times and the port ranges of revision 2 are not parsed
        known = 0x304F | (0x300 if revision == 3 else 0)
        if not flags & ~known and (family in ("ip", "ip6") or not flags & 0xC):
            return tuple(_conntrack(info, flags, family == "ip"))
    return () if one is None else (one,)


def _iprange(info: bytes, is_ipv4: bool) -> Iterator[Expression]:
    """Parse struct xt_iprange_mtinfo: source (first, last), destination (first, last), flags."""
    start, width = (12, 4) if is_ipv4 else (8, 16)  # the addresses of an IP header
    for number in (0, 1):
        if info[64] & 1 << number:
            first, last = (info[at : at + width] for at in (number * 32, number * 32 + 16))
            yield RegisterLoad(_OWN, "payload", 1, start + number * width, width)
            yield Between(_OWN, first, last, bool(info[64] & 0x10 << number))


def _conntrack(info: bytes, flags: int, is_ipv4: bool) -> Iterator[Expression]:
    """Parse struct xt_conntrack_mtinfo3: 128 bytes of addresses, 8 bytes of times, then numbers.
    ``flags`` are the struct's match_flags (XT_CONNTRACK_*).
    """
    numbers = struct.unpack_from("=12H", info.ljust(160, b"\0"), 136)
    proto, inverted, states, status = numbers[0], *numbers[6:9]
    width = 4 if is_ipv4 else 16
    if flags & 0x1001:  # STATE, DIRECTION; the bit selects the original direction
        reply = bool(inverted & 0x1000) if flags & 0x1000 else None
        yield IptablesMatch(states if flags & 1 else None, bool(inverted & 1), reply)
    if flags & 2:  # PROTO
        yield RegisterLoad(_OWN, "meta", 16)  # NFT_META_L4PROTO
        yield Between(_OWN, bytes([proto & 0xFF]), bytes([proto & 0xFF]), bool(inverted & 2))
    for bit, start, key in ((4, 0, 19), (8, 32, 20)):  # ORIGSRC, ORIGDST; NFT_CT_SRC_IP, _DST_IP
        if flags & bit:
            address, mask = info[start : start + width], info[start + 16 : start + 16 + width]
            yield RegisterLoad(_OWN, ORIGINAL, key if is_ipv4 else key + 2)
            yield Mask(_OWN, _OWN, mask, bytes(width))
            yield Between(_OWN, address, address, bool(inverted & bit))
    if flags & 0x40:  # STATUS: one of the bits is set
        yield RegisterLoad(_OWN, "ct", 2)
        yield Mask(_OWN, _OWN, struct.pack("=I", status), bytes(4))
        yield Between(_OWN, bytes(4), bytes(4), not inverted & 0x40)
    for bit, number, key in ((0x100, 1, 11), (0x200, 2, 12)):  # ORIGSRC_PORT, ORIGDST_PORT
        if flags & bit:
            first, last = (struct.pack(">H", numbers[at]) for at in (number, number + 8))
            yield RegisterLoad(_OWN, ORIGINAL, key)
            yield Between(_OWN, first, last, bool(inverted & bit))


def _ports_match(name: str, info: bytes) -> Expression | None:
    """Parse struct xt_tcp or xt_udp: ranges of source and destination ports, then flags. Returns
    None if the match has no condition.
    """
    first, last, low, high = struct.unpack_from("=4H", info)
    # struct xt_tcp: an option and TCP flags before the flags that invert
    more, inverted = (info[8] or info[9], info[11]) if name == "tcp" else (0, info[8])
    by_source, by_target = (first, last) != (0, 0xFFFF), (low, high) != (0, 0xFFFF)
    if more or inverted & ~3 or (by_source and by_target and inverted):
        return MAY_MATCH
    if not (by_source or by_target):
        return MAY_MATCH if inverted else None
    return IptablesMatch(
        inverted=bool(inverted),
        sources=((first, last),) if by_source else None,
        targets=((low, high),) if by_target else None,
    )


def _multiport(info: bytes) -> Expression:
    """Parse struct xt_multiport_v1: flags, count, 15 ports, 15 flags (start of a range), invert."""
    which, count, *rest = struct.unpack_from("=BB15H15BB", info)
    ports, starts, inverted = rest[:count], rest[15:30], bool(rest[30])
    ranges, index = [], 0
    while index < len(ports):
        last = index + 1 if starts[index] and index + 1 < len(ports) else index
        ranges.append((ports[index], ports[last]))
        index = last + 1
    if which > 1 or count > 15:  # XT_MULTIPORT_EITHER
        return MAY_MATCH
    found = tuple(ranges)
    if which:
        return IptablesMatch(inverted=inverted, targets=found)
    return IptablesMatch(inverted=inverted, sources=found)


def _target(fields: dict[int, bytes]) -> Expression | None:
    name = string(fields.get(1, b""))
    if name in _TARGETS_DROP:
        return ChainVerdict("drop")
    return None if name in _TARGETS_PASS else MAY_MATCH


def _number(fields: dict[int, bytes], kind: int, default: int = 0) -> int:
    return int.from_bytes(fields[kind], "big") if kind in fields else default


def _register(fields: dict[int, bytes], kind: int) -> int:
    """Return the byte offset of a register. NFT_REG_1 has 16 bytes, NFT_REG32_00 has 4 bytes."""
    number = _number(fields, kind)
    return min(number * 16 if number < 8 else (number - 4) * 4, _REGISTERS)


def _value(nest: bytes | None) -> bytes:
    return attributes(nest or b"").get(1, b"")  # NFTA_DATA_VALUE


def _verdict(nest: bytes | None) -> ChainVerdict | None:
    if nest is None:
        return None
    fields = attributes(nest)  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    code = struct.unpack_from(">i", fields.get(1, b"").rjust(4, b"\0"))[0]
    if code in _VERDICTS:
        return ChainVerdict(_VERDICTS[code], string(fields.get(2, b"")))
    # NF_DROP; NF_ACCEPT, and NF_QUEUE as above
    return ChainVerdict("drop" if code & 0xFF == 0 else "accept")


_PARSERS: dict[str, Callable[[dict[int, bytes]], Expression | None]] = {
    "meta": lambda fields: _load("meta", fields),
    "ct": lambda fields: _load("ct", fields),
    "payload": lambda fields: _load("payload", fields),
    "bitwise": _bitwise,
    "cmp": _compare,
    "range": _range,
    "lookup": _lookup,
    "immediate": _immediate,
    "objref": _object,
    # NFTA_DYNSET_EXPR, NFTA_DYNSET_EXPRESSIONS: for example a limit
    "dynset": lambda fields: MAY_MATCH if 7 in fields or 10 in fields else None,
    "target": _target,
    "reject": lambda _: ChainVerdict("drop"),
    # NF_QUEUE: the program that reads the queue decides, so there is nothing to warn about
    "queue": lambda _: ChainVerdict("accept"),
}


def unseen(family: int) -> bool:
    """Return whether iptables-legacy has filter rules for an IP version, invisible to nf_tables."""
    path = f"/proc/thread-self/net/ip{'6' if family == 6 else ''}_tables_names"
    try:
        with open(path, encoding="ascii") as file:
            return "filter" in file.read(4096).split()
    except (OSError, UnicodeDecodeError):
        return False
