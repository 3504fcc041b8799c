"""Read and change single elements of nftables sets and maps (linux/netfilter/nf_tables.h).

Values are converted to bytes as the kernel stores them, and back. The cost is 10 µs per element,
independent of the size of the set.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import netlink, policy_rules, ruleset
from niso.kernel.netlink import attribute, attributes, nested, several, string, text, understood

if TYPE_CHECKING:
    from typing import Any

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
# ports and addresses of intervals that are always ranges
_PORTS, _SPAN4, _SPAN6 = -6, -7, -8
_RANGES = (_PORTS, _SPAN4, _SPAN6)
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
    _PORTS: 2,
    _SPAN4: 4,
    _SPAN6: 16,
}
_NFPROTOS = {"ipv4": 2, "ipv6": 10}  # NFPROTO_*
_NFPROTO_NAMES = {number: name for name, number in _NFPROTOS.items()}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
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


_IN_INTERVALS = {_CLASS: _SORTED_CLASS, _SERVICE: _PORTS}
_SPANS = {_IPV4: _SPAN4, _IPV6: _SPAN6}
_BARE = {_SPAN4: _IPV4, _SPAN6: _IPV6}

type Atoms = tuple[Any, ...]
"""The fields of a key or value of an nftables element. `Element` lists their types."""


def in_intervals(kinds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the types of a key's fields for a set with intervals, where all are in network byte
    order.
    """
    return tuple(_IN_INTERVALS.get(kind, kind) for kind in kinds)


def pack_limit(value: Atoms) -> bytes:
    """Encode a rate limit, a tuple as `ruleset.limit` returns it, as a netlink attribute."""
    rate, _, burst, _ = value
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


def limit(expression: dict[int, bytes]) -> Atoms:
    """Return the rate limit of an element as `ruleset.limit` does; () if it has none."""
    if string(expression[_EXPR_NAME]) != "limit":
        return ()
    data = attributes(expression[_EXPR_DATA])
    rate, unit, burst, _, flags = (int.from_bytes(data[n], "big") for n in range(1, 6))
    per = {1: "second", 60: "minute", 3600: "hour"}.get(unit, f"{unit} s")
    return (rate, per, burst, bool(flags & _LIMIT_INV))


def pack_range(kind: int, atom: Any) -> tuple[bytes, bytes]:
    """Encode a field of a key as (first value, last value); they are equal if it is no range."""
    if kind in _RANGES:
        width = WIDTHS[kind]
        return atom[0].to_bytes(width, "big"), atom[1].to_bytes(width, "big")
    if kind in (_IPV4, _IPV6):
        address, slash, length = atom.partition("/")
        if slash:
            first = pack(kind, address)
            host = (1 << len(first) * 8 - int(length)) - 1
            return first, (int.from_bytes(first, "big") | host).to_bytes(len(first), "big")
        low, dash, high = atom.partition("-")  # made by another program
        if dash:
            return pack(kind, low), pack(kind, high)
    packed = pack(kind, atom)
    return packed, packed


def pack(kind: int, atom: Any) -> bytes:
    if kind in (_IPV4, _QUOTED4):
        return socket.inet_pton(socket.AF_INET, atom)
    if kind in (_IPV6, _QUOTED6):
        return socket.inet_pton(socket.AF_INET6, atom)
    if kind in (_ETHER, _MAC_NUMBER):
        return bytes.fromhex(atom.replace(":", ""))
    if kind in (_SERVICE, _VNI, _SORTED_CLASS):
        number: int = atom
        return number.to_bytes(WIDTHS[kind], "big")
    if kind == _CLASS:
        number = atom
        return number.to_bytes(4, sys.byteorder)
    if kind == _NFPROTO:
        return bytes([_NFPROTOS[atom]])
    if kind == _PROTO:
        return bytes([PROTOCOLS[atom] if atom in PROTOCOLS else int(atom)])
    name: str = atom
    return name.encode().ljust(16, b"\0")


def unpack_range(kind: int, first: bytes, last: bytes) -> Any:
    """Decode a field of an interval from its first and its last value, as `pack_range` returns
    them.
    """
    if kind in _RANGES:
        return int.from_bytes(first, "big"), int.from_bytes(last, "big")
    if first == last:
        return unpack(kind, first)
    if kind in (_IPV4, _IPV6):
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        length = (low ^ high).bit_length()
        if low ^ high == (1 << length) - 1 and high & low == low:
            return f"{unpack(kind, first)}/{8 * len(first) - length}"
    return f"{unpack(kind, first)}-{unpack(kind, last)}"


def unpack(kind: int, packed: bytes) -> Any:
    if kind in (_IPV4, _QUOTED4):
        return socket.inet_ntop(socket.AF_INET, packed)
    if kind in (_IPV6, _QUOTED6):
        return socket.inet_ntop(socket.AF_INET6, packed)
    if kind in (_ETHER, _MAC_NUMBER):
        return packed.hex(":")
    if kind in (_SERVICE, _VNI, _SORTED_CLASS):
        return int.from_bytes(packed, "big")
    if kind == _CLASS:
        return int.from_bytes(packed, sys.byteorder)
    if kind in _RANGES:
        return (number := int.from_bytes(packed, "big")), number
    if kind == _NFPROTO:
        return _NFPROTO_NAMES.get(packed[0]) or str(packed[0])
    if kind == _PROTO:
        return _PROTOCOL_NAMES.get(packed[0]) or str(packed[0])
    return string(packed)


def _written(kind: int, atom: Any) -> str:
    """Format a field of a key or value in nft's syntax."""
    if kind == _IFNAME:
        return f'"{atom}"'
    if kind == _PORTS:
        return str(atom[0]) if atom[0] == atom[1] else f"{atom[0]}-{atom[1]}"
    if kind in _BARE:
        return str(unpack_range(_BARE[kind], *pack_range(kind, atom)))
    if kind in (_CLASS, _SORTED_CLASS):
        return f"{atom >> 16:x}:{atom & 0xFFFF:x}"
    if kind in (_MAC_NUMBER, _QUOTED4):
        return str(int.from_bytes(pack(kind, atom), "big"))
    if kind == _QUOTED6:  # nft has no longer integer type
        return hex(int.from_bytes(pack(kind, atom), "big"))
    return str(atom)


# --- read and change elements ---------------------------------------------------------------------


_FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
_GETSET, _GETSETELEM = 0x0A0A, 0x0A0D  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_*
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN = 1, 2, 3, 4, 5
_SET_DATA_TYPE, _SET_DATA_LEN = 6, 7
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
_VERDICT_CODES = {word: number for number, word in _VERDICTS.items()}

_TYPE_BITS = 6
_PROBED = " . inet_proto . inet_service"

_NEWSETELEM, _DELSETELEM = 0x0A0C, 0x0A0E
_DESTROYSETELEM = 0x0A1E  # no error without the element
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# the key exists with another value; an interval overlaps
_CLASHES = (errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY)
_MOST_BYTES = 32 << 10  # bytes of elements in one message: an attribute can have 64 KiB

_ABSENT = (errno.ENOENT, errno.EINVAL)  # no such table, set or element; or the set has other types
_CHUNK = 64  # requests in one sendmsg; their answers must fit the socket's buffer


class Header(NamedTuple):
    """A set or map, with the types of its keys and values.

    ``value`` is () for a set, and None for a map to verdicts.
    """

    family: int
    table: str  # "inet niso" or "bridge niso"
    name: str
    interval: bool
    key: tuple[int, ...]
    value: tuple[int, ...] | None

    @property
    def readable(self) -> bool:
        """Return whether this module knows all types of the set's keys and values."""
        return all(kind in WIDTHS for kind in (*self.key, *(self.value or ())))


class Nfnetlink(netlink.Netfilter):
    """A socket for nf_tables in the network namespace that opened it."""

    def change(self, what: str, edits: Iterable[Edit]) -> None:
        """Apply all edits in one transaction; if one fails, none is applied.

        The cost does not depend on the existing elements: libnftables would first list all sets,
        and for intervals their elements. ``what`` describes the step in errors. Raises KernelError,
        with EEXIST if an element already exists.
        """
        messages = []
        for adds, header, chunk in _chunks(edits):
            body = _container(header) + nested(_LIST_ELEMENTS, *chunk)
            kind, flags = (_NEWSETELEM, netlink.CREATE) if adds else (_deletion(header), 0)
            messages.append(netlink.Message(what, kind, flags, body))
        self.transact_batch(what, _SUBSYSTEM, messages, _CLASHES)

    def counts(self, header: Header) -> list[tuple[Element, int, float | None]]:
        """Return (element, packets, age) for the elements of a set or map with a counter.

        The age is the time in seconds since the last packet. It is None if no packet came, or if
        the element does not record the time. For an interval of one field, the element has only the
        interval's start. Raises KernelError.
        """
        return self._listed(header, partial(_counted, header))

    def every(self, header: Header) -> list[Element]:
        """Return all elements of an nftables set or map. Raises KernelError."""
        if _is_lone(header):
            bounds = self._listed(header, partial(_bounds, header))
            return understood(f"read {header.name}", lambda _: _intervals(header, bounds), b"")
        return self._listed(header, partial(_parse_elements, header))

    def all_of(self, table: str, container: str) -> list[Element] | None:
        """Return all elements of one of niso's sets and maps; None if it does not exist.

        If another version of niso created the set with other types, the list is empty, because niso
        will recreate its table. Raises KernelError.
        """
        packed = self._set(table, container)
        if packed is None:
            return None
        header = HEADERS[table, container]
        return self.every(header) if _has_types(header, packed) else []

    def _listed[T](self, header: Header, parse: Callable[[bytes], list[T]]) -> list[T]:
        """Return what ``parse`` returns for each message with elements of a set or map, as one
        list.
        """
        body = _container(header)
        dumped = self.dump(f"read {header.name}", _GETSETELEM, body, parse, _ABSENT)
        return [element for part in dumped for element in part]

    def count(self, element: Element) -> int | None:
        """Return the packets that an element has counted; None if the kernel has no equal element.

        Raises KernelError.
        """
        header = HEADERS[element[:2]]
        first, last = _pack_key(header, element.fields)
        what = "read nftables elements"
        answer = self.get_one(what, _GETSETELEM, _request(header, first, last), _ABSENT)
        if answer is None:
            return None
        for found, packets, _ in understood(what, partial(_counted, header), answer):
            return packets if found._replace(fields=element.fields) == element else None
        return None

    def _set(self, table: str, container: str) -> bytes | None:
        """Return the kernel's description of a set or map, as bytes; None if it does not exist."""
        family, _, name = table.partition(" ")
        body = nfgenmsg(_FAMILIES[family]) + text(_SET_TABLE, name) + text(_SET_NAME, container)
        return self.get_one(f"read {table} {container}", _GETSET, body, (errno.ENOENT,))

    def header(self, table: str, container: str) -> Header | None:
        """Return the types of a set or map in a table ("inet niso"); None if it does not exist.

        Raises KernelError.
        """
        answer = self._set(table, container)
        if answer is None:
            return None
        what = f"read {table} {container}"
        return understood(what, lambda body: _header(table, container, body), answer)

    def get(self, header: Header, keys: Iterable[Atoms]) -> dict[Atoms, Element]:
        """Return those elements of a set or map that have one of these keys, as a dict by key.

        Raises KernelError.
        """
        elements = self._get((header, key) for key in keys)
        return {element.fields: element for element in elements}

    def get_many(self, keys: Iterable[tuple[str, str, Atoms]]) -> dict[Atoms, Element]:
        """Return those elements of niso's sets and maps that have one of these keys, as a dict by
        key.

        A key is (table, set or map, fields), as `Element.key` returns it. Raises KernelError.
        """
        elements = self._get((HEADERS[key[:2]], key[2]) for key in keys)
        return {element[:3]: element for element in elements}

    def _get(self, wanted: Iterable[tuple[Header, Atoms]]) -> list[Element]:
        pairs = list(wanted)
        result = []
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            asked: list[tuple[Header, Atoms, bytes, bytes]] = []
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
                parse = partial(_parse_element, header, key, first, last, ends)
                if (element := understood(what, parse, answer)) is not None:
                    result.append(element)
        return result


class Edit(NamedTuple):
    """The addition or deletion of one element in an nftables transaction."""

    verb: str  # "add" or "delete"
    element: Element

    def text(self) -> str:
        """Return the command for the edit in nft's syntax (nft(8))."""
        element = self.element
        table, container = element[:2]
        what = element.text
        if element.ends and self.verb == "delete":
            return f"destroy element {table} {container} {{ {what} }}"
        if self.verb == "add":
            value, comment = element.value_text, element.comment
            if element.ends:
                left_s = policy_rules.timeout_s(element.value, time.time())
                what += f" timeout {int(left_s)}s" if left_s != policy_rules.ENDLESS else ""
            mapped = element.is_mapped
            what += f" {value}" if value and not mapped else ""
            what += f' comment "{comment}"' if comment else ""
            what += f" : {value}" if mapped else ""
        return f"{self.verb} element {table} {container} {{ {what} }}"


def _parse_element(
    header: Header,
    key: Atoms,
    first: bytes,
    last: bytes,
    ends: list[bytes | None],
    answer: bytes,
) -> Element | None:
    """Return the requested element; None if the kernel's answer has another one.

    The request was for ``key``, whose bytes are ``first`` to ``last``. For an interval with one
    field, ``ends`` are the answers for its last value and for the value after it.
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
    return _made(header, key, element)


def _parse_elements(header: Header, answer: bytes) -> list[Element]:
    """Return the elements in a message of the kernel."""
    result = []
    for packed in several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM):
        element = attributes(packed)
        first, last = _data(element[_ELEM_KEY]), _data(element.get(_ELEM_KEY_END, b""))
        made = _made(header, _atoms(header.key, first, last), element)
        if made is not None:
            result.append(made)
    return result


_Bound = tuple[bytes, bool, dict[int, bytes]]
"""(value, whether an interval starts there, netlink attributes): a bound of intervals."""


def _bounds(header: Header, answer: bytes) -> list[_Bound]:
    """Return the bounds of intervals in a message of the kernel.

    A bound that starts no interval ends one: it is the number after the interval's last value.
    """
    result = []
    for packed in several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM):
        element = attributes(packed)
        starts = not int.from_bytes(element.get(_ELEM_FLAGS, b""), "big") & _INTERVAL_END
        result.append((_data(element[_ELEM_KEY]), starts, element))
    return result


def _intervals(header: Header, bounds: Iterable[_Bound]) -> list[Element]:
    """Convert bounds to elements with intervals of one field.

    The kernel omits the end of an interval where the next one starts, and after the highest number.
    """
    result = []
    ordered = sorted(bounds, key=lambda bound: bound[:2])
    ends = [int.from_bytes(first, "big") for first, _, _ in ordered[1:]]
    for (first, starts, element), end in itertools.zip_longest(ordered, ends):
        if starts:
            highest = (1 << 8 * len(first)) - 1
            last = max(highest if end is None else end - 1, int.from_bytes(first, "big"))
            key = (unpack_range(header.key[0], first, last.to_bytes(len(first), "big")),)
            if (made := _made(header, key, element)) is not None:
                result.append(made)
    return result


def _made(header: Header, key: Atoms, element: dict[int, bytes]) -> Element | None:
    """Build an element from its key and its netlink attributes.

    Returns None for an element of an audit period that is about to expire.
    """
    owner, _, entry = _comment(element).partition(" ")
    value: Atoms
    if header.value != ():
        value = _value(header, element.get(_ELEM_DATA, b""))
    elif header.name in policy_rules.PLACES:
        term = policy_rules.term(entry)
        left_s = None
        if _ELEM_EXPIRATION in element:
            left_s = int.from_bytes(element[_ELEM_EXPIRATION], "big") / 1000
        wrong = policy_rules.seen(left_s, term, time.time())
        if wrong is None:
            return None
        value, entry = (*term, *([wrong] if wrong else [])), "" if term else entry
    elif _ELEM_EXPR in element:
        value = limit(attributes(element[_ELEM_EXPR]))
    else:
        value = ()
    return Element(header.table, header.name, key, value, owner, entry)


def _deletion(header: Header) -> int:
    """Return the type of the message that deletes elements of a set.

    An element with a timeout may have expired, so its deletion must not fail if it is missing.
    """
    return _DESTROYSETELEM if header.name in policy_rules.PLACES else _DELSETELEM


def _header(table: str, name: str, answer: bytes) -> Header:
    fields = attributes(answer, 4)
    flags = int.from_bytes(fields.get(_SET_FLAGS, b""), "big")
    data = int.from_bytes(fields.get(_SET_DATA_TYPE, b""), "big")
    value = None if data == _VERDICT_TYPE else _unpack_type(data)
    key = _unpack_type(int.from_bytes(fields[_SET_KEY_TYPE], "big"))
    interval = bool(flags & _FLAG_INTERVAL)
    key = in_intervals(key) if interval else key
    family = _FAMILIES[table.partition(" ")[0]]
    return Header(family, table, name, interval, key, value if flags & _FLAG_MAP else ())


def _has_types(header: Header, answer: bytes) -> bool:
    """Return whether a set or map in the kernel has the same types as niso's (``header``).

    ``answer`` is the kernel's description. Only the sizes of keys and values are compared.
    """
    fields = attributes(answer, 4)
    flags = int.from_bytes(fields.get(_SET_FLAGS, b""), "big")
    interval, mapped = bool(flags & _FLAG_INTERVAL), bool(flags & _FLAG_MAP)
    verdict = int.from_bytes(fields.get(_SET_DATA_TYPE, b""), "big") == _VERDICT_TYPE
    key, data = (
        int.from_bytes(fields.get(number, b""), "big") for number in (_SET_KEY_LEN, _SET_DATA_LEN)
    )
    return (
        (interval, mapped, mapped and verdict)
        == (header.interval, header.value != (), header.value is None)
        and key == _size(header.key)
        and (not header.value or data == _size(header.value))
    )


def _size(kinds: tuple[int, ...]) -> int:
    """Return the length of a key or value in bytes.

    If there are several fields, each is padded to a multiple of 32 bits.
    """
    if len(kinds) == 1:
        return WIDTHS[kinds[0]]
    return sum(WIDTHS[kind] + 3 & ~3 for kind in kinds)


def _counted(header: Header, answer: bytes) -> list[tuple[Element, int, float | None]]:
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
        made = _made(header, _atoms(header.key, _data(element[_ELEM_KEY])), element)
        if made is not None:
            result.append((made, number, ago))
    return result


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """Return the bytes of a struct nfgenmsg: family, version, resource."""
    return struct.pack("!BBH", family, 0, resource)


def _unpack_type(packed: int) -> tuple[int, ...]:
    kinds: tuple[int, ...] = ()
    while packed:
        kinds = (packed & (1 << _TYPE_BITS) - 1, *kinds)
        packed >>= _TYPE_BITS
    return kinds


def _answered(answer: bytes | None) -> bytes:
    """Return the key of the element in an answer of the kernel; b"" if there is no answer."""
    if answer is None:
        return b""
    return _data(
        attributes(attributes(attributes(answer, 4)[_LIST_ELEMENTS])[_LIST_ELEM])[_ELEM_KEY]
    )


def can_change(header: Header) -> bool:
    """Return whether `Nfnetlink.change` can write elements of this set.

    It cannot write intervals of a single field, since their end may be missing if the next interval
    follows at once.
    """
    return header.readable and not _is_lone(header)


def _is_lone(header: Header) -> bool:
    return header.interval and len(header.key) == 1


def _next(last: bytes) -> bytes:
    """Return the number after ``last``; zero after the highest one. Both are bytes."""
    return ((int.from_bytes(last, "big") + 1) % (1 << 8 * len(last))).to_bytes(len(last), "big")


def _request(header: Header, first: bytes, last: bytes) -> bytes:
    parts = [nested(_ELEM_KEY, attribute(_DATA_VALUE, first))]
    if last and not _is_lone(header):
        parts.append(nested(_ELEM_KEY_END, attribute(_DATA_VALUE, last)))
    return _container(header) + nested(_LIST_ELEMENTS, nested(_LIST_ELEM, *parts))


def _container(header: Header) -> bytes:
    """Return the first bytes of a netlink message about elements of this set or map."""
    table = header.table.partition(" ")[2]
    return nfgenmsg(header.family) + text(_LIST_TABLE, table) + text(_LIST_SET, header.name)


def _chunks(edits: Iterable[Edit]) -> Iterator[tuple[bool, Header, list[bytes]]]:
    """Group consecutive edits of one set; yield (whether they add, the set, encoded elements).

    The elements of a group are limited in size.
    """
    verb, header = "", None
    chunk: list[bytes] = []
    size = 0
    for edit in edits:
        its = HEADERS[edit.element[:2]]
        packed = _element(its, edit)
        if header is not None and (
            its is not header or edit.verb != verb or size + len(packed) > _MOST_BYTES
        ):
            yield verb == "add", header, chunk
            chunk, size = [], 0
        verb, header = edit.verb, its
        chunk.append(packed)
        size += len(packed)
    if header is not None:
        yield verb == "add", header, chunk


def _element(header: Header, edit: Edit) -> bytes:
    _, _, key, value, _, _ = element = edit.element
    first, last = _pack_key(header, key)
    parts = [nested(_ELEM_KEY, attribute(_DATA_VALUE, first))]
    if last:
        parts.append(nested(_ELEM_KEY_END, attribute(_DATA_VALUE, last)))
    if edit.verb == "add":
        if header.value != ():
            parts.append(nested(_ELEM_DATA, _pack_value(header, value)))
        elif header.name in policy_rules.PLACES:
            left_s = policy_rules.timeout_s(value, time.time())
            if left_s != policy_rules.ENDLESS:
                left_ms = max(1, int(left_s * 1000))
                parts.append(attribute(_ELEM_TIMEOUT, left_ms.to_bytes(8, "big")))
        elif value:
            parts.append(pack_limit(value))
        if comment := element.comment:
            packed = comment.encode() + b"\0"
            parts.append(attribute(_ELEM_USERDATA, bytes([_UDATA_COMMENT, len(packed)]) + packed))
    return nested(_LIST_ELEM, *parts)


def _pack_value(header: Header, value: Atoms) -> bytes:
    if header.value is None:
        verdict, *chain = value
        parts = [attribute(_VERDICT_CODE, struct.pack(">i", _VERDICT_CODES[verdict]))]
        if chain:
            parts.append(text(_VERDICT_CHAIN, chain[0]))
        return nested(_DATA_VERDICT, *parts)
    packed = b"".join(
        pack(kind, field) + (b"\0" * (-WIDTHS[kind] % 4) if len(value) > 1 else b"")
        for kind, field in zip(header.value, value, strict=True)
    )
    return attribute(_DATA_VALUE, packed)


def declared(table: str, container: str, key: str, value: str | None, interval: bool) -> Header:
    """Return the types of a set or map that is declared in nft's syntax.

    ``key`` and ``value`` are type names, such as "inet_proto . inet_service".
    """
    types = [
        tuple(NAMES[name] for name in names.split(" . "))
        for names in (key, value)
        if names and names not in ("verdict", "limit")
    ]
    values = None if value == "verdict" else types[1] if types[1:] else ()
    keys = in_intervals(types[0]) if interval else types[0]
    if policy_rules.POLICY_MAPS.get(container, ("", ""))[1] == policy_rules.CLASS:
        # peers there are ranges of addresses
        keys = (keys[0], _SPANS[keys[1]])
    return Header(_FAMILIES[table.partition(" ")[0]], table, container, interval, keys, values)


HEADERS = {
    (table, name): declared(table, name, *types)
    for (table, name), types in ruleset.DECLARED.items()
} | {
    (table, name): declared(table, name, f"ipv{name[-1]}_addr{_PROBED}", None, False)
    for table in ruleset.CONTAINERS
    for name in (f"{policy_rules.PROBES}{family}" for family in (4, 6))
}
"""The types of each set and map in niso's tables whose elements niso writes.

The keys are (table, set or map).
"""


def _data(nest: bytes) -> bytes:
    return attributes(nest).get(_DATA_VALUE, b"")


def _pack_key(header: Header, key: Atoms) -> tuple[bytes, bytes]:
    """Encode a key as (first value, last value); the latter is b"" unless the set has intervals.

    If there are several fields, each is padded to a multiple of 32 bits.
    """
    if len(key) == 1:
        first, last = pack_range(header.key[0], key[0])
        return first, last if header.interval else b""
    start = end = b""
    for kind, field in zip(header.key, key, strict=True):
        first, last = pack_range(kind, field)
        pad = b"\0" * (-len(first) % 4)
        start += first + pad
        end += last + pad
    return start, end if header.interval else b""


def _value(header: Header, data: bytes) -> Atoms:
    if header.value is None:
        verdict = attributes(attributes(data)[_DATA_VERDICT])
        code = struct.unpack(">i", verdict[_VERDICT_CODE])[0]
        chain = string(verdict.get(_VERDICT_CHAIN, b""))
        return (_VERDICTS[code], chain) if chain else (_VERDICTS[code],)
    return _atoms(header.value, _data(data))


def _atoms(kinds: tuple[int, ...], packed: bytes, last: bytes = b"") -> Atoms:
    """Decode the fields of a key or value, or of the range from ``packed`` to ``last``."""
    fields = []
    offset = 0
    for kind in kinds:
        part = slice(offset, offset + WIDTHS[kind])
        first = packed[part]
        fields.append(unpack_range(kind, first, last[part]) if last else unpack(kind, first))
        offset += WIDTHS[kind] + 3 & ~3
    return tuple(fields)


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
    """One element of an nftables set or map.

    ``fields`` is its key, and ``value`` the value that a map has for it. Addresses, prefixes, MACs,
    protocols and names of interfaces are strings; ports, VNIs and classes are numbers. In sets with
    intervals, ports are always (first, last), and so are the addresses of a class, as numbers. A
    verdict is (word, chain) or (word,).

    In a set, ``value`` is (), the tuple of `ruleset.limit`, or an audit period: (since, until) in
    seconds since 1970. Only this file converts elements to bytes and to nft's syntax.
    """

    table: str  # "inet niso" or "bridge niso"
    container: str
    fields: Atoms
    value: Atoms = ()
    owner: str = ""  # the service or network
    entry: str = ""  # in a policy: the manifest line

    def key(self) -> Atoms:
        return self[:3]

    @property
    def is_mapped(self) -> bool:
        """Return whether the element is in a map and not in a set."""
        return HEADERS[self[:2]].value != ()

    @property
    def ends(self) -> bool:
        """Return whether the element is of an audit period, and so deleted after a timeout."""
        return self.container in policy_rules.PLACES

    @property
    def text(self) -> str:
        """Return the key in nft's syntax, such as "tcp . 8080"."""
        return written(HEADERS[self[:2]].key, self.fields)

    @property
    def value_text(self) -> str:
        """Return the value or limit in nft's syntax; for an audit period, what is wrong with its
        end.
        """
        if self.ends:
            return " ".join(self.value[2:])
        if not self.value:
            return ""
        kinds = HEADERS[self[:2]].value
        if kinds is None:
            return " ".join(self.value)
        return written(kinds, self.value) if kinds else ruleset.limit_text(self.value)

    @property
    def comment(self) -> str:
        """Return the comment that the element has in the kernel."""
        more = map(str, self.value[:2]) if self.ends else ()
        return " ".join(part for part in (self.owner, self.entry, *more) if part)


def ports_of(field: int | tuple[int, int]) -> tuple[int, int]:
    """Return (first, last) for the ports in a key, which is one port in sets without intervals."""
    return field if isinstance(field, tuple) else (field, field)


def written(kinds: tuple[int, ...], atoms: Atoms) -> str:
    """Format the fields of a key or value in nft's syntax."""
    return " . ".join(map(_written, kinds, atoms))
