"""Read and change single elements of nftables sets and maps (linux/netfilter/nf_tables.h).

Values are converted to the bytes of the kernel's registers, and back. The cost is 10 µs per
element, independent of the size of the set.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from niso.base.named_tuples import NamedTuple
from niso.kernel import netlink, policy_rules, ruleset
from niso.kernel.netlink import attribute, attributes, nested, several, string, text, understood

# --- values as bytes of registers -----------------------------------------------------------------


PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "tcp": 6,
    "udp": 17,
    "gre": 47,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}

ELEM_EXPR = 7  # NFTA_SET_ELEM_EXPR
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_LIMIT_INV = 1  # NFT_LIMIT_F_INV: matches what is over the rate

# nftables, include/datatype.h: number and width in bytes of each type that niso uses
_NFPROTO, _IPV4, _IPV6, _ETHER, _PROTO, _SERVICE, _CLASS, _IFNAME = 2, 7, 8, 9, 12, 13, 23, 41
# bytes of a packet without an nft type: a MAC, addresses of a quoted or wrapped packet, a VNI
_MAC_NUMBER, _QUOTED4, _QUOTED6, _VNI = -1, -2, -3, -4
_SORTED_CLASS = -5  # a class as intervals have it
_NUMBERS = (_MAC_NUMBER, _QUOTED4, _QUOTED6, _VNI)
WIDTHS = {
    _VNI: 3,
    _MAC_NUMBER: 6,
    _QUOTED4: 4,
    _QUOTED6: 16,
    _NFPROTO: 1,
    _IPV4: 4,
    _IPV6: 16,
    _ETHER: 6,
    _PROTO: 1,
    _SERVICE: 2,
    _CLASS: 4,
    _SORTED_CLASS: 4,
    _IFNAME: 16,
}
_NFPROTOS = {"ipv4": 2, "ipv6": 10}  # NFPROTO_*
NAMES = {
    "nf_proto": _NFPROTO,
    "ipv4_addr": _IPV4,
    "ipv6_addr": _IPV6,
    "ether_addr": _ETHER,
    "inet_proto": _PROTO,
    "inet_service": _SERVICE,
    "classid": _CLASS,
    "ifname": _IFNAME,
    "iifname": _IFNAME,
    "@th,208,48": _MAC_NUMBER,
    "@th,192,32": _QUOTED4,
    "@th,256,128": _QUOTED6,
    "ip saddr": _IPV4,
    "ip6 saddr": _IPV6,
    ruleset.VNI: _VNI,
    ruleset.TO: _MAC_NUMBER,
    ruleset.FROM: _MAC_NUMBER,
    "@th,336,32": _QUOTED4,
    "@th,304,128": _QUOTED6,
}


def in_intervals(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the types of a key as a set with intervals has them: all in network byte order."""
    return tuple(_SORTED_CLASS if kind == _CLASS else kind for kind in kinds)


def pack_limit(value: str) -> bytes:
    """Return the expression of a limit written as by `nft_limits.limit`, with the unit second."""
    rate, burst = (int(word.partition("/")[0]) for word in value.split()[3:6:2])
    return nested(
        ELEM_EXPR,
        text(_EXPR_NAME, "limit"),
        nested(
            _EXPR_DATA,
            attribute(_LIMIT_RATE, rate.to_bytes(8, "big")),
            attribute(_LIMIT_UNIT, (1).to_bytes(8, "big")),
            attribute(_LIMIT_BURST, burst.to_bytes(4, "big")),
            attribute(_LIMIT_TYPE, bytes(4)),  # NFT_LIMIT_PKTS
            attribute(_LIMIT_FLAGS, _LIMIT_INV.to_bytes(4, "big")),
        ),
    )


def limit(expression: dict[int, bytes]) -> str:
    """Return the limit of an element as nft writes it, "" if the element has another expression."""
    if string(expression[_EXPR_NAME]) != "limit":
        return ""
    data = attributes(expression[_EXPR_DATA])
    rate, unit, burst, _, flags = (int.from_bytes(data[n], "big") for n in range(1, 6))
    over = " over" if flags & _LIMIT_INV else ""
    per = {1: "second", 60: "minute", 3600: "hour"}.get(unit, f"{unit} s")
    return f"limit rate{over} {rate}/{per} burst {burst} packets"


def pack_range(kind: int, field: str) -> tuple[bytes, bytes]:
    address, slash, length = field.partition("/")
    if slash and kind in (_IPV4, _IPV6):
        first = pack(kind, address)
        host = (1 << len(first) * 8 - int(length)) - 1
        return first, (int.from_bytes(first, "big") | host).to_bytes(len(first), "big")
    low, dash, high = field.partition("-")
    if dash and kind in (_IPV4, _IPV6, _SERVICE):
        return pack(kind, low), pack(kind, high)
    return pack(kind, field), pack(kind, field)


def pack(kind: int, field: str) -> bytes:
    if kind == _IPV4:
        return socket.inet_pton(socket.AF_INET, field)
    if kind == _IPV6:
        return socket.inet_pton(socket.AF_INET6, field)
    if kind == _ETHER:
        return bytes.fromhex(field.replace(":", ""))
    if kind in _NUMBERS:
        return int(field, 0).to_bytes(WIDTHS[kind], "big")
    if kind == _SERVICE:
        return int(field).to_bytes(2, "big")
    if kind in (_CLASS, _SORTED_CLASS):
        major, _, minor = field.partition(":")
        number = int(major, 16) << 16 | int(minor, 16)
        return number.to_bytes(4, sys.byteorder if kind == _CLASS else "big")
    if kind == _NFPROTO:
        return bytes([_NFPROTOS[field]])
    if kind == _PROTO:
        return bytes([PROTOCOLS[field] if field in PROTOCOLS else int(field)])
    return field.strip('"').encode().ljust(16, b"\0")


def unpack_range(kind: int, first: bytes, last: bytes) -> str:
    """Return a range packed by `pack_range` as nft lists it: as a prefix if possible."""
    if first == last:
        return unpack(kind, first)
    if kind in (_IPV4, _IPV6):
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        length = (low ^ high).bit_length()
        if low ^ high == (1 << length) - 1 and high & low == low:
            return f"{unpack(kind, first)}/{8 * len(first) - length}"
    return f"{unpack(kind, first)}-{unpack(kind, last)}"


def unpack(kind: int, packed: bytes) -> str:
    if kind == _IPV4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if kind == _IPV6:
        return socket.inet_ntop(socket.AF_INET6, packed)
    if kind == _ETHER:
        return packed.hex(":")
    if kind in _NUMBERS:
        number = int.from_bytes(packed, "big")
        return hex(number) if kind == _QUOTED6 else str(number)  # nft has no longer integer type
    if kind == _SERVICE:
        return str(int.from_bytes(packed, "big"))
    if kind in (_CLASS, _SORTED_CLASS):
        number = int.from_bytes(packed, sys.byteorder if kind == _CLASS else "big")
        return f"{number >> 16:x}:{number & 0xFFFF:x}"
    if kind == _NFPROTO:
        return next(
            (name for name, number in _NFPROTOS.items() if number == packed[0]), str(packed[0])
        )
    if kind == _PROTO:
        return next(
            (name for name, number in PROTOCOLS.items() if number == packed[0]), str(packed[0])
        )
    return f'"{string(packed)}"'


# --- read and change elements ---------------------------------------------------------------------


_FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_GETSET, _GETSETELEM = 0x0A0A, 0x0A0D  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_*
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_DATA_TYPE = 1, 2, 3, 4, 6
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_LIST_ELEM = 1
_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA, _ELEM_EXPR, _ELEM_KEY_END = 1, 2, 6, 7, 10
_ELEM_FLAGS, _INTERVAL_END = 3, 1  # NFT_SET_ELEM_INTERVAL_END
_ELEM_TIMEOUT, _ELEM_EXPIRATION = 4, 5  # in ms
_ELEM_EXPRESSIONS = 11  # instead of _ELEM_EXPR if the set declares several
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_PACKETS = 2
_LAST_SET, _LAST_MSECS = 1, 2  # enum nft_last_attributes
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_UDATA_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, libnftnl/udata.h

_FLAG_INTERVAL, _FLAG_MAP = 0x4, 0x8
_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}

_TYPE_BITS = 6

_NEWSETELEM, _DELSETELEM = 0x0A0C, 0x0A0E
_DESTROYSETELEM = 0x0A1E  # no error without the element
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# the key exists with another value; an interval overlaps
_CLASHES = (errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY)
_MOST_BYTES = 32 << 10  # bytes of elements in one message: an attribute can have 64 KiB

_ABSENT = (errno.ENOENT, errno.EINVAL)  # no such table, set or element; or the set has other types
_CHUNK = 64  # requests in one sendmsg; their answers must fit the socket's buffer


class Header(NamedTuple):
    """A set or map with the types of its key and its value.

    ``value`` is empty for a set and None for verdicts.
    """

    family: int
    table: str
    name: str
    interval: bool
    key: tuple[int, ...]
    value: tuple[int, ...] | None

    @property
    def readable(self) -> bool:
        """Return whether `Nfnetlink.get` supports the set's types."""
        return all(kind in WIDTHS for kind in (*self.key, *(self.value or ())))


class Nfnetlink(netlink.Netfilter):
    """A socket to nf_tables in the network namespace that opened it."""

    def change(self, what: str, changes: Iterable[Change]) -> None:
        """Apply all changes in one transaction, or none.

        The cost does not depend on existing elements: libnftables would first list all sets, and
        for intervals their elements. Raises KernelError, with EEXIST if an element already exists.
        """
        messages = []
        for (adds, header), chunk in _chunks(changes):
            body = _container(header) + nested(_LIST_ELEMENTS, *chunk)
            kind, flags = (_NEWSETELEM, netlink.CREATE) if adds else (_deletion(header), 0)
            messages.append(netlink.Message(what, kind, flags, body))
        self.transact_batch(
            what,
            netlink.Message(what, _BATCH_BEGIN, 0, nfgenmsg(0, _SUBSYSTEM)),
            messages,
            netlink.Message(what, _BATCH_END, 0, nfgenmsg(0, _SUBSYSTEM)),
            _CLASHES,
        )

    def counts(self, header: Header) -> list[Counted]:
        """Return all elements with a counter in a set or map. Raises KernelError."""
        return self._listed(header, partial(_counted, header))

    def every(self, header: Header) -> dict[str, tuple[str, str]]:
        """Return all elements of a set or map, in the form of `get`. Raises KernelError."""
        if _is_lone(header):
            bounds = self._listed(header, partial(_bounds, header))
            return dict(_intervals(header.key[0], bounds))
        return dict(self._listed(header, partial(_parse_elements, header)))

    def _listed[T](self, header: Header, parse: Callable[[bytes], list[T]]) -> list[T]:
        """Dump a set or map; return the results of ``parse`` for each message of elements."""
        body = _container(header)
        dumped = self.dump(f"read {header.name}", _GETSETELEM, body, parse, _ABSENT)
        return [element for part in dumped for element in part]

    def count(self, header: Header, key: str) -> Counted | None:
        """Return one element with its counter; None if it does not exist. Raises KernelError."""
        first, last = _pack_key(header, key)
        what = "read nftables elements"
        answer = self.get_one(what, _GETSETELEM, _request(header, first, last), _ABSENT)
        counted = (
            understood(what, lambda body: _counted(header, body), answer)
            if answer is not None
            else []
        )
        return counted[0]._replace(key=key) if counted else None

    def header(self, family_table: str, container: str) -> Header | None:
        """Return the header of a set or map of a table ("inet niso"); None if it does not exist.

        Raises KernelError.
        """
        family, _, table = family_table.partition(" ")
        number = _FAMILIES[family]
        body = nfgenmsg(number) + text(_SET_TABLE, table) + text(_SET_NAME, container)
        what = f"read {family_table} {container}"
        answer = self.get_one(what, _GETSET, body, (errno.ENOENT,))
        if answer is None:
            return None
        return understood(what, lambda body: _header(number, table, container, body), answer)

    def get(self, header: Header, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return those of ``keys`` that exist, mapped to (value, comment) as nft writes them.

        Raises KernelError.
        """
        elements = self.get_many((header, key) for key in keys)
        return {key: element for (_, key), element in elements.items()}

    def get_many(
        self, wanted: Iterable[tuple[Header, str]]
    ) -> dict[tuple[Header, str], tuple[str, str]]:
        """Like `get`, for several sets and maps. Raises KernelError."""
        pairs = list(wanted)
        result = {}
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            asked: list[tuple[Header, str, bytes, bytes]] = []
            for header, key in chunk:
                first, last = _pack_key(header, key)
                asked.append((header, key, first, last))
            bodies = [_request(header, first, last) for header, _, first, last in asked]
            # Intervals of one field are stored as starts and ends, and the end is left out if the
            # next interval follows at once. So the interval is this one if its last value belongs
            # to the same start, and the value after it does not.
            lone = {
                i: len(bodies) + 2 * n
                for n, i in enumerate(i for i, a in enumerate(asked) if _is_lone(a[0]))
            }
            for i in lone:
                header, _, _, last = asked[i]
                bodies += [_request(header, last, b""), _request(header, _next(last), b"")]
            what = "read nftables elements"
            answers = self.get_all(what, _GETSETELEM, bodies, _ABSENT)
            for i, (header, key, first, last) in enumerate(asked):
                answer = answers[i]
                if answer is None:
                    continue
                ends = answers[lone[i] : lone[i] + 2] if i in lone else []
                parse = partial(_parse_element, header, first, last, ends)
                if (element := understood(what, parse, answer)) is not None:
                    result[header, key] = element
        return result


class Counted(NamedTuple):
    """An element with a counter. ``key``, ``value`` and ``comment`` are as nft writes them.

    ``ago`` is the time since the last packet in seconds; None if there was none, or if the element
    does not record it.
    """

    key: str  # for an interval: its start
    value: str
    comment: str
    packets: int
    ago: float | None = None


class Change(NamedTuple):
    """An element to add to a set or map, or to delete from it."""

    adds: bool
    header: Header
    key: str  # as nft writes it, like the next two
    value: str
    comment: str


def _parse_element(
    header: Header, first: bytes, last: bytes, ends: list[bytes | None], answer: bytes
) -> tuple[str, str] | None:
    """Return (value, comment) of the requested element; None if the answer has another one.

    The request was for the key ``first`` to ``last``. For an interval with one field, ``ends`` are
    the answers for its last value and for the value after it.
    """
    element = attributes(attributes(attributes(answer, 4)[_LIST_ELEMENTS])[_LIST_ELEM])
    # an interval set answers with the element that contains the key, possibly a wider one
    if _data(element[_ELEM_KEY]) != first:
        return None
    if ends:
        at_end, after = map(_answered, ends)
        if at_end != first or after == first:
            return None
    elif _data(element.get(_ELEM_KEY_END, b"")) != last:
        return None
    return _content(header, element)


def _parse_elements(header: Header, answer: bytes) -> list[tuple[str, tuple[str, str]]]:
    """Return (key, (value, comment)) of the elements in a message."""
    result = []
    for packed in several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM):
        element = attributes(packed)
        first, last = _data(element[_ELEM_KEY]), _data(element.get(_ELEM_KEY_END, b""))
        result.append((_fields(header.key, first, last), _content(header, element)))
    return result


def _bounds(header: Header, answer: bytes) -> list[tuple[bytes, bool, tuple[str, str]]]:
    """Return (key, whether an interval starts there, (value, comment)) of the bounds in a message.

    A bound that starts no interval ends one: it is the number after the last value.
    """
    result = []
    for packed in several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM):
        element = attributes(packed)
        starts = not int.from_bytes(element.get(_ELEM_FLAGS, b""), "big") & _INTERVAL_END
        result.append((_data(element[_ELEM_KEY]), starts, _content(header, element)))
    return result


def _intervals(
    kind: int, bounds: Iterable[tuple[bytes, bool, tuple[str, str]]]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Join bounds to intervals of one field: yield (key, (value, comment)).

    The kernel omits an end where the next interval starts, and after the highest number.
    """
    opened: tuple[bytes, tuple[str, str]] | None = None
    for key, starts, content in sorted(bounds):
        if opened is not None:
            before = (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")
            yield unpack_range(kind, opened[0], before), opened[1]
        opened = (key, content) if starts else None
    if opened is not None:
        yield unpack_range(kind, opened[0], b"\xff" * len(opened[0])), opened[1]


def _content(header: Header, element: dict[int, bytes]) -> tuple[str, str]:
    """Return (value, comment) of an element."""
    if _ELEM_EXPIRATION in element and header.value == ():
        left_ms = int.from_bytes(element[_ELEM_EXPIRATION], "big")
        return policy_rules.expires(left_ms), _comment(element)
    if _ELEM_EXPR in element and header.value == ():
        return limit(attributes(element[_ELEM_EXPR])), _comment(element)
    return _value(header, element.get(_ELEM_DATA, b"")), _comment(element)


def _deletion(header: Header) -> int:
    """Return the message type that deletes elements of a set.

    An element with a timeout may have expired, so its deletion must not fail if it is missing.
    """
    return _DESTROYSETELEM if header.name in policy_rules.PLACES else _DELSETELEM


def _header(family: int, table: str, name: str, answer: bytes) -> Header:
    fields = attributes(answer, 4)
    flags = int.from_bytes(fields.get(_SET_FLAGS, b""), "big")
    data = int.from_bytes(fields.get(_SET_DATA_TYPE, b""), "big")
    value = None if data == _VERDICT_TYPE else _unpack_type(data)
    key = _unpack_type(int.from_bytes(fields[_SET_KEY_TYPE], "big"))
    interval = bool(flags & _FLAG_INTERVAL)
    key = in_intervals(key) if interval else key
    return Header(family, table, name, interval, key, value if flags & _FLAG_MAP else ())


def _counted(header: Header, answer: bytes) -> list[Counted]:
    result = []
    for packed in several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM):
        element = attributes(packed)
        expressions = several(element.get(_ELEM_EXPRESSIONS, b""), _LIST_ELEM)
        fields = {
            string(expression.get(_EXPR_NAME, b"")): attributes(expression.get(_EXPR_DATA, b""))
            for expression in map(attributes, (element.get(_ELEM_EXPR, b""), *expressions))
        }
        if "counter" not in fields:
            continue
        number = int.from_bytes(fields["counter"][_COUNTER_PACKETS], "big")
        last, ago = fields.get("last", {}), None
        if any(last.get(_LAST_SET, b"")):
            ago = int.from_bytes(last[_LAST_MSECS], "big") / 1000
        key = _fields(header.key, _data(element[_ELEM_KEY]))
        value = _value(header, element.get(_ELEM_DATA, b""))
        result.append(Counted(key, value, _comment(element), number, ago))
    return result


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """Return a struct nfgenmsg: family, version, resource."""
    return struct.pack("!BBH", family, 0, resource)


def _unpack_type(packed: int) -> tuple[int, ...]:
    kinds: tuple[int, ...] = ()
    while packed:
        kinds = (packed & (1 << _TYPE_BITS) - 1, *kinds)
        packed >>= _TYPE_BITS
    return kinds


def _answered(answer: bytes | None) -> bytes:
    """Return the key of the element in an answer."""
    if answer is None:
        return b""
    return _data(
        attributes(attributes(attributes(answer, 4)[_LIST_ELEMENTS])[_LIST_ELEM])[_ELEM_KEY]
    )


def can_change(header: Header) -> bool:
    """Return whether `Nfnetlink.change` can write to the set.

    It cannot write to interval sets of one field, where the end of an interval may be missing
    because the next one is adjacent.
    """
    return header.readable and not _is_lone(header)


def _is_lone(header: Header) -> bool:
    return header.interval and len(header.key) == 1


def _next(last: bytes) -> bytes:
    """Return the number after ``last``, as bytes; zero after the highest one."""
    return ((int.from_bytes(last, "big") + 1) % (1 << 8 * len(last))).to_bytes(len(last), "big")


def _request(header: Header, first: bytes, last: bytes) -> bytes:
    parts = [nested(_ELEM_KEY, attribute(_DATA_VALUE, first))]
    if last and not _is_lone(header):
        parts.append(nested(_ELEM_KEY_END, attribute(_DATA_VALUE, last)))
    return _container(header) + nested(_LIST_ELEMENTS, nested(_LIST_ELEM, *parts))


def _container(header: Header) -> bytes:
    """Return the beginning of a message about elements of a set or map."""
    names = text(_LIST_TABLE, header.table) + text(_LIST_SET, header.name)
    return nfgenmsg(header.family) + names


def _chunks(changes: Iterable[Change]) -> Iterator[tuple[tuple[bool, Header], list[bytes]]]:
    """Group consecutive changes of one set; yield their elements as attributes of limited size."""
    place: tuple[bool, Header] | None = None
    chunk: list[bytes] = []
    size = 0
    for change in changes:
        element = _element(change)
        if place is not None and (
            place != (change.adds, change.header) or size + len(element) > _MOST_BYTES
        ):
            yield place, chunk
            chunk, size = [], 0
        place = (change.adds, change.header)
        chunk.append(element)
        size += len(element)
    if place is not None:
        yield place, chunk


def _element(change: Change) -> bytes:
    first, last = _pack_key(change.header, change.key)
    parts = [nested(_ELEM_KEY, attribute(_DATA_VALUE, first))]
    if last:
        parts.append(nested(_ELEM_KEY_END, attribute(_DATA_VALUE, last)))
    if change.adds and change.value.startswith("limit "):
        parts.append(pack_limit(change.value))
    elif change.adds and change.value:
        parts.append(nested(_ELEM_DATA, _pack_value(change.header, change.value)))
    if change.adds and change.header.name in policy_rules.PLACES:
        left_s = policy_rules.timeout_s(change.comment, time.time())
        if left_s != policy_rules.ENDLESS:
            left_ms = max(1, int(left_s * 1000))
            parts.append(attribute(_ELEM_TIMEOUT, left_ms.to_bytes(8, "big")))
    if change.adds and change.comment:
        comment = change.comment.encode() + b"\0"
        parts.append(attribute(_ELEM_USERDATA, bytes([_UDATA_COMMENT, len(comment)]) + comment))
    return nested(_LIST_ELEM, *parts)


def _pack_value(header: Header, value: str) -> bytes:
    if header.value is None:
        verdict, _, chain = value.partition(" ")
        code = next(number for number, word in _VERDICTS.items() if word == verdict)
        parts = [attribute(_VERDICT_CODE, struct.pack(">i", code))]
        if chain:
            parts.append(text(_VERDICT_CHAIN, chain))
        return nested(_DATA_VERDICT, *parts)
    fields = value.split(" . ")
    packed = b"".join(
        pack(kind, field) + (b"\0" * (-WIDTHS[kind] % 4) if len(fields) > 1 else b"")
        for kind, field in zip(header.value, fields, strict=True)
    )
    return attribute(_DATA_VALUE, packed)


def declared(
    family_table: str, container: str, key: str, value: str | None, interval: bool
) -> Header:
    """Return the header of a set or map with these types, as written in nft.

    For example ``key`` is "inet_proto . inet_service".
    """
    family, _, table = family_table.partition(" ")
    types = [
        tuple(NAMES[name] for name in names.split(" . "))
        for names in (key, value)
        if names and names not in ("verdict", "limit")
    ]
    values = None if value == "verdict" else types[1] if types[1:] else ()
    keys = in_intervals(types[0]) if interval else types[0]
    return Header(_FAMILIES[family], table, container, interval, keys, values)


HEADERS = {place: declared(place[0], place[1], *types) for place, types in ruleset.DECLARED.items()}
"""The header of each set and map in niso's tables."""


def _data(nest: bytes) -> bytes:
    return attributes(nest).get(_DATA_VALUE, b"")


def _pack_key(header: Header, key: str) -> tuple[bytes, bytes]:
    """Return a key's bytes as in a register, and for an interval also those of its end.

    Each field is padded to 32-bit words.
    """
    fields = key.split(" . ")
    pad = len(header.key) > 1
    ends: list[bytes] = [b"", b""]
    for kind, field in zip(header.key, fields, strict=True):
        for i, packed in enumerate(pack_range(kind, field)):
            ends[i] += packed + (b"\0" * (-len(packed) % 4) if pad else b"")
    return ends[0], ends[1] if header.interval else b""


def _value(header: Header, data: bytes) -> str:
    if header.value is None:
        verdict = attributes(attributes(data)[_DATA_VERDICT])
        code = struct.unpack(">i", verdict[_VERDICT_CODE])[0]
        return f"{_VERDICTS[code]} {string(verdict.get(_VERDICT_CHAIN, b''))}".rstrip()
    return _fields(header.value, _data(data))


def _fields(kinds: tuple[int, ...], packed: bytes, last: bytes = b"") -> str:
    """Return fields as nft writes them; with ``last``, the range from ``packed`` to ``last``."""
    fields = []
    offset = 0
    for kind in kinds:
        part = slice(offset, offset + WIDTHS[kind])
        first = packed[part]
        fields.append(unpack_range(kind, first, last[part]) if last else unpack(kind, first))
        offset += WIDTHS[kind] + 3 & ~3
    return " . ".join(fields)


def _comment(element: dict[int, bytes]) -> str:
    userdata = element.get(_ELEM_USERDATA, b"")
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == _UDATA_COMMENT:
            return string(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


# --- the record of an element ---------------------------------------------------------------------


class Element(NamedTuple):
    """One element of an nftables set or map. In a set, ``value`` is "", or the element's limit.

    ``comment`` names the service or network that owns the element, and for a policy the manifest
    line.
    """

    table: str  # "inet niso" or "bridge niso"
    container: str
    element: str  # as nft writes it: "tcp . 8080"
    value: str
    comment: str

    def key(self) -> tuple[str, ...]:
        return (self.table, self.container, self.element)

    @property
    def is_mapped(self) -> bool:
        """Return whether the element is in a map."""
        return bool(self.value) and not (self.value.startswith("limit ") or self.ends)

    @property
    def ends(self) -> bool:
        """Return whether it belongs to an audit: the kernel may delete it after its timeout."""
        return self.container in policy_rules.PLACES
