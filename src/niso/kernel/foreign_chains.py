"""Other people's forward chains by netlink (linux/netfilter/nf_tables.h), as expressions that can be followed.

By netlink and not by libnftables: that reads a whole table with its sets to show one chain, and does not tell what an
iptables match (``-m conntrack --ctstate ...``) asks for. Here a chain or an element is read when a packet gets there.
Rules come from whoever may write rules: lengths and numbers are not trusted.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

from niso.base.lite_typing import NamedTuple
from niso.kernel.netlink import MALFORMED, attribute, attributes, nested, string, text, understood
from niso.kernel.nft_elements import Nfnetlink, nfgenmsg

FAMILIES = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}
"""Those that have a hook ``forward``; NFPROTO_* to nft's word."""

_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM = 0x0A01, 0x0A04, 0x0A07, 0x0A0A, 0x0A0D
_FORWARD = 2  # NF_INET_FORWARD, NF_BR_FORWARD
_DORMANT = 1  # NFT_TABLE_F_DORMANT
_CATCHALL = 2  # NFT_SET_ELEM_CATCHALL
_REGISTERS = 80  # bytes: a verdict and 16 words

_VERDICTS = {-1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_MISSING = (errno.ENOENT,)


class Chain(NamedTuple):
    """A base chain at hook forward. ``family`` as in `FAMILIES`, ``accepts`` is its policy."""

    family: int
    table: str
    name: str
    accepts: bool


class Load(NamedTuple):
    """``register`` (here and below a byte's offset) gets "meta" or "ct" number ``key``, or ``length`` bytes of a "payload"
    header ``key`` (NFT_PAYLOAD_*_HEADER) from ``offset``."""

    register: int
    source: str
    key: int
    offset: int = 0
    length: int = 0


class Mask(NamedTuple):
    """``target`` gets ``source`` & ``mask`` ^ ``xor``."""

    source: int
    target: int
    mask: bytes
    xor: bytes


class Between(NamedTuple):
    """Whether ``register`` is, or where ``inverted`` is not, from ``first`` to ``last``; open where empty."""

    register: int
    first: bytes
    last: bytes
    inverted: bool = False


class Lookup(NamedTuple):
    """Whether the set has ``register``; in a map with ``verdict`` its verdict counts."""

    name: str
    register: int
    verdict: bool = False
    inverted: bool = False


class Tracked(NamedTuple):
    """The match "conntrack" of iptables: any of ``states`` (XT_CONNTRACK_STATE_BIT), and ``reply`` the direction."""

    states: int | None
    inverted: bool = False
    reply: bool | None = None


class Bridged(NamedTuple):
    """The match "physdev" of iptables: the packet is switched (or where ``inverted`` is not)."""

    inverted: bool


class Forget(NamedTuple):
    """Registers get what cannot be known."""


class Perhaps(NamedTuple):
    """It matches or not: that cannot be known."""


class Verdict(NamedTuple):
    """``kind`` is accept, drop, jump, goto, return, continue or break."""

    kind: str
    chain: str = ""


Expression = Load | Mask | Between | Lookup | Tracked | Bridged | Forget | Perhaps | Verdict
Rule = tuple[Expression, ...]

# What only does something, and goes on. A limit, a quota or an unknown expression may also end the rule.
_PASSES = {"counter", "log", "last", "notrack", "dup"}
_LOADS = {
    "exthdr",
    "fib",
    "rt",
    "socket",
    "osf",
    "hash",
    "numgen",
    "tunnel",
    "xfrm",
    "byteorder",
    "inner",
}
_TARGETS_PASS = {
    "LOG",
    "NFLOG",
    "ULOG",
    "MARK",
    "CONNMARK",
    "CONNSECMARK",
    "SECMARK",
    "CLASSIFY",
    "TCPMSS",
    "TRACE",
}
_TARGETS_PASS |= {
    "DSCP",
    "TOS",
    "TTL",
    "HL",
    "CHECKSUM",
    "AUDIT",
    "TEE",
    "SET",
    "IDLETIMER",
    "LED",
    "RATEEST",
    "mark",
}
_TARGETS_DROP = {"REJECT", "DROP", "TARPIT", "DELUDE", "CHAOS"}


class Foreign(Nfnetlink):
    """A socket to nf_tables that remembers what it has read. It belongs to the caller's network namespace."""

    def __init__(self) -> None:
        super().__init__()
        self._rules: dict[tuple[int, str, str], list[Rule]] = {}
        self._key_lengths: dict[tuple[int, str, str], int] = {}
        self._elements: dict[tuple[int, str, str, bytes], tuple[bool, Verdict | None]] = {}

    def base_chains(self) -> list[Chain]:
        """All base chains at hook forward whose table is not dormant, niso's own left out. Raises KernelError."""
        chains = self.dump("list chains", _GETCHAIN, nfgenmsg(0), _base_chain)
        asleep = {table for table in {chain[:2] for chain in chains} if self._dormant(*table)}
        return [chain for chain in chains if chain[:2] not in asleep]

    def rules(self, family: int, table: str, chain: str) -> list[Rule]:
        """The rules of one chain in their order; none where there is no such chain. Raises KernelError."""
        key = (family, table, chain)
        if key not in self._rules:
            body = (
                nfgenmsg(family) + text(1, table) + text(2, chain)
            )  # NFTA_RULE_TABLE, NFTA_RULE_CHAIN
            self._rules[key] = self.dump(f"list chain {chain}", _GETRULE, body, rule, _MISSING)
        return self._rules[key]

    def key_length(self, family: int, table: str, name: str) -> int:
        """How many bytes a key of the set has; 0 where there is no such set. Raises KernelError."""
        key = (family, table, name)
        if key not in self._key_lengths:
            body = (
                nfgenmsg(family) + text(1, table) + text(2, name)
            )  # NFTA_SET_TABLE, NFTA_SET_NAME
            what = f"read set {name}"
            answer = self.get_one(what, _GETSET, body, _MISSING) or b""
            self._key_lengths[key] = understood(
                what, lambda body: _number(attributes(body, 4), 5), answer
            )  # NFTA_SET_KEY_LEN
        return self._key_lengths[key]

    def element(
        self, family: int, table: str, name: str, key: bytes
    ) -> tuple[bool, Verdict | None]:
        """Whether the set has ``key`` or something for all keys, and its verdict. Raises KernelError."""
        place = (family, table, name, key)
        if place not in self._elements:
            self._elements[place] = self._element(*place)
        return self._elements[place]

    def _element(
        self, family: int, table: str, name: str, key: bytes
    ) -> tuple[bool, Verdict | None]:
        prefix = nfgenmsg(family) + text(1, table) + text(2, name)  # NFTA_SET_ELEM_LIST_TABLE, _SET
        for which in (
            nested(1, attribute(1, key)),
            attribute(3, struct.pack(">I", _CATCHALL)),
        ):  # _KEY, _FLAGS
            body = prefix + nested(3, nested(1, which))
            # EINVAL, EOPNOTSUPP: a kernel that knows no such element, or cannot be asked for one of this set
            what = f"read set {name}"
            answer = self.get_one(
                what, _GETSETELEM, body, (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)
            )
            if answer is not None:
                return True, understood(what, _verdict_of_element, answer)
        return False, None

    def _dormant(self, family: int, table: str) -> bool:
        what = f"read table {table}"
        answer = self.get_one(what, _GETTABLE, nfgenmsg(family) + text(1, table), _MISSING)
        return answer is None or understood(what, _sleeps, answer)


def _sleeps(answer: bytes) -> bool:
    return bool(_number(attributes(answer, 4), 2) & _DORMANT)  # NFTA_TABLE_FLAGS


def _verdict_of_element(answer: bytes) -> Verdict | None:
    element = attributes(attributes(attributes(answer, 4).get(3, b"")).get(1, b""))
    return _verdict(attributes(element.get(2, b"")).get(2))  # NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT


def _base_chain(body: bytes) -> Chain | None:
    found = attributes(body, 4)
    if 4 not in found or not body or body[0] not in FAMILIES:  # NFTA_CHAIN_HOOK
        return None
    table = string(found.get(1, b""))
    if _number(attributes(found[4]), 1) != _FORWARD or (
        table == "niso" and FAMILIES[body[0]] in ("inet", "bridge")
    ):
        return None
    return Chain(
        body[0], table, string(found.get(3, b"")), _number(found, 5, 1) == 1
    )  # NFTA_CHAIN_NAME, _POLICY


def rule(body: bytes) -> Rule:
    """The expressions of a rule (the body of NFT_MSG_NEWRULE) without those that do not matter.

    Of one that cannot be read nothing is known but that it may match.
    """
    found: list[Expression] = []
    try:
        for entry in _list(attributes(body, 4).get(4, b"")):  # NFTA_RULE_EXPRESSIONS
            outer = attributes(entry)
            expression = _expression(string(outer.get(1, b"")), attributes(outer.get(2, b"")))
            if expression is not None:
                found.append(expression)
    except MALFORMED:
        found.append(Perhaps())
    return tuple(found)


def _expression(name: str, found: dict[int, bytes]) -> Expression | None:
    """One expression by its name and attributes; None where it only passes."""
    parse = _PARSERS.get(name)
    if parse is not None:
        return parse(found)
    if name in _PASSES:
        return None
    return Forget() if name in _LOADS else Perhaps()


def _load(source: str, found: dict[int, bytes]) -> Expression | None:
    """NFTA_META_* and NFTA_CT_* (1 register, 2 key); one without a register sets something."""
    if 1 not in found:
        return None
    if (
        source == "ct" and 3 in found and _number(found, 2) != 1
    ):  # one direction's address or counter
        return Forget()
    return Load(_register(found, 1), source, _number(found, 2))


def _payload(found: dict[int, bytes]) -> Expression | None:
    if 1 not in found:
        return None
    return Load(
        _register(found, 1), "payload", _number(found, 2), _number(found, 3), _number(found, 4)
    )


def _bitwise(found: dict[int, bytes]) -> Expression:
    mask, xor = _value(found.get(4)), _value(found.get(5))
    if _number(found, 6) or not mask or len(mask) != len(xor):
        return Forget()
    return Mask(_register(found, 1), _register(found, 2), mask, xor)


def _compare(found: dict[int, bytes]) -> Expression:
    """NFT_CMP_EQ, NEQ, LT, LTE, GT, GTE."""
    register, operator, data = _register(found, 1), _number(found, 2), _value(found.get(3))
    if not data or operator > 5:
        return Perhaps()
    if operator < 2:
        return Between(register, data, data, operator == 1)
    if operator in (2, 5):  # less is not "at least"
        return Between(register, data, b"", operator == 2)
    return Between(register, b"", data, operator == 4)


def _range(found: dict[int, bytes]) -> Expression:
    first, last = _value(found.get(3)), _value(found.get(4))
    if not first or len(first) != len(last):
        return Perhaps()
    return Between(_register(found, 1), first, last, _number(found, 2) == 1)


def _lookup(found: dict[int, bytes]) -> Expression:
    if _number(found, 3):  # a map's value that is no verdict
        return Forget()
    return Lookup(
        string(found.get(1, b"")), _register(found, 2), 3 in found, bool(_number(found, 5) & 1)
    )


def _immediate(found: dict[int, bytes]) -> Expression:
    verdict = _verdict(attributes(found.get(2, b"")).get(2))
    return Forget() if _number(found, 1) or verdict is None else verdict


def _object(found: dict[int, bytes]) -> Expression | None:
    """A quota, limit or connlimit may end the rule (NFT_OBJECT_*); one out of a map is not looked at."""
    return None if _number(found, 1, 2) not in (2, 4, 5) else Perhaps()


def _dynset(found: dict[int, bytes]) -> Expression | None:
    return (
        Perhaps() if 7 in found or 10 in found else None
    )  # NFTA_DYNSET_EXPR, _EXPRESSIONS: a limit, say


def _match(found: dict[int, bytes]) -> Expression | None:
    """An iptables match: name, revision, and a struct of linux/netfilter/xt_*.h."""
    name, revision, info = string(found.get(1, b"")), _number(found, 2), found.get(3, b"")
    if name == "comment":
        return None
    if name == "state" and len(info) >= 4:
        return Tracked(*struct.unpack_from("=I", info))
    if name == "physdev" and len(info) >= 66 and info[65] == 4:  # XT_PHYSDEV_OP_BRIDGED alone
        return Bridged(bool(info[64] & 4))
    if name == "conntrack" and revision in (2, 3) and len(info) >= 152:
        # struct xt_conntrack_mtinfo3: 128 bytes of addresses, 8 of times, 10 of ports, then
        flags, inverted, states = struct.unpack_from("=3H", info, 146)
        if not flags & ~0x3001:  # XT_CONNTRACK_STATE, _DIRECTION, _STATE_ALIAS
            # the direction's bit asks for the original one, inverted for replies
            reply = bool(inverted & 0x1000) if flags & 0x1000 else None
            return Tracked(states if flags & 1 else None, bool(inverted & 1), reply)
    return Perhaps()


def _target(found: dict[int, bytes]) -> Expression | None:
    name = string(found.get(1, b""))
    if name in _TARGETS_DROP:
        return Verdict("drop")
    return None if name in _TARGETS_PASS else Perhaps()


_PARSERS: dict[str, Callable[[dict[int, bytes]], Expression | None]] = {
    "meta": lambda found: _load("meta", found),
    "ct": lambda found: _load("ct", found),
    "payload": _payload,
    "bitwise": _bitwise,
    "cmp": _compare,
    "range": _range,
    "lookup": _lookup,
    "immediate": _immediate,
    "objref": _object,
    "dynset": _dynset,
    "match": _match,
    "target": _target,
    "reject": lambda _: Verdict("drop"),
    "queue": lambda _: Verdict("accept"),  # whoever reads the queue decides: nothing to warn of
}


def _verdict(nest: bytes | None) -> Verdict | None:
    if nest is None:
        return None
    found = attributes(nest)  # NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
    code = struct.unpack_from(">i", found.get(1, b"").rjust(4, b"\0"))[0]
    if code in _VERDICTS:
        return Verdict(_VERDICTS[code], string(found.get(2, b"")))
    return Verdict(
        "drop" if code & 0xFF == 0 else "accept"
    )  # NF_DROP; NF_ACCEPT, and NF_QUEUE as above


def _value(nest: bytes | None) -> bytes:
    return attributes(nest or b"").get(1, b"")  # NFTA_DATA_VALUE


def _number(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    return int.from_bytes(found[kind], "big") if kind in found else default


def _register(found: dict[int, bytes], kind: int) -> int:
    """A register's offset in bytes: NFT_REG_1.. are of 16 bytes, NFT_REG32_00.. the same ones by words."""
    number = _number(found, kind)
    return min(number * 16 if number < 8 else (number - 4) * 4, _REGISTERS)


def _list(data: bytes) -> Iterator[bytes]:
    """The payloads of a nest whose attributes are all of one kind. Raises ValueError where a length cannot be."""
    offset = 0
    while offset + 4 <= len(data):
        length = int(struct.unpack_from("=H", data, offset)[0])
        if length < 4 or offset + length > len(data):
            raise ValueError("an attribute's length")
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def unseen(family: int) -> bool:
    """Whether iptables-legacy (ip6tables-legacy for 6) has a filter table here, whose rules nf_tables does not show."""
    try:
        with open(
            f"/proc/thread-self/net/ip{'6' if family == 6 else ''}_tables_names", encoding="ascii"
        ) as file:
            return "filter" in file.read(4096).split()
    except (OSError, UnicodeDecodeError):
        return False
