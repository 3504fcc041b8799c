"""Read and change single elements of nftables sets and maps (linux/netfilter/nf_tables.h).

Values are converted to the bytes that the kernel stores, and back. Reading or changing an element
takes 10 µs, independent of the size of the set.
"""

from __future__ import annotations

import errno
import itertools
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import socket
from niso.kernel import netlink, policy_rules, ruleset
from niso.kernel.netlink import attribute, attributes, nested, parse_reply, several, string, text

if TYPE_CHECKING:
    from typing import Any, Literal

    Codec = tuple[int, Callable[[Any], bytes], Callable[[bytes], Any]]
    """(width in bytes, encode, decode) of a type."""

# --- values as bytes of registers -----------------------------------------------------------------

PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "ipv6-icmp": 58}
PROTOCOLS |= {"sctp": 132, "udplite": 136}
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_LIMIT_INV = 1  # NFT_LIMIT_F_INV: matches what is over the rate

# nftables, include/datatype.h: number of each type that niso uses
_NFPROTO, _IPV4, _IPV6, _ETHER, _PROTO, _SERVICE, _CLASS, _IFNAME = 2, 7, 8, 9, 12, 13, 23, 41
_IFINDEX = 20
# bytes of a packet without an nft type: a MAC, addresses of a quoted or wrapped packet, a VNI
_MAC_NUMBER, _QUOTED4, _QUOTED6, _VNI = -1, -2, -3, -4
_SORTED_CLASS = -5  # a class in a key with intervals
# ports and addresses of intervals that are always ranges
_PORTS, _SPAN4, _SPAN6 = -6, -7, -8
_SLOT = -9  # a number in the host's byte order (ruleset.SLOTS)
_RANGES = (_PORTS, _SPAN4, _SPAN6)


def _number(width: int, is_native: bool = False) -> Codec:
    order: Literal["little", "big"] = sys.byteorder if is_native else "big"
    return (
        width,
        lambda atom: atom.to_bytes(width, order),
        lambda packed: int.from_bytes(packed, order),
    )


def _byte(numbers: dict[str, int]) -> Codec:
    words = {number: word for word, number in numbers.items()}
    return (
        1,
        lambda atom: bytes([numbers[atom] if atom in numbers else int(atom)]),
        lambda packed: words.get(packed[0]) or str(packed[0]),
    )


def _address(width: int, family: int) -> Codec:
    return width, partial(socket.inet_pton, family), partial(socket.inet_ntop, family)


_ADDRESS4, _ADDRESS6 = _address(4, socket.AF_INET), _address(16, socket.AF_INET6)
_MAC: Codec = 6, lambda atom: bytes.fromhex(atom.replace(":", "")), lambda packed: packed.hex(":")
_CODECS: dict[int, Codec] = {
    _VNI: _number(3),
    _MAC_NUMBER: _MAC,
    _QUOTED4: _ADDRESS4,
    _QUOTED6: _ADDRESS6,
    _NFPROTO: _byte({"ipv4": 2, "ipv6": 10}),  # NFPROTO_*
    _IPV4: _ADDRESS4,
    _IPV6: _ADDRESS6,
    _ETHER: _MAC,
    _PROTO: _byte(PROTOCOLS),
    _SERVICE: _number(2),
    _CLASS: _number(4, is_native=True),
    _SORTED_CLASS: _number(4),
    _IFINDEX: _number(4, is_native=True),
    _SLOT: _number(4, is_native=True),
    _IFNAME: (16, lambda atom: atom.encode().ljust(16, b"\0"), string),
    _PORTS: _number(2),
    _SPAN4: _number(4),
    _SPAN6: _number(16),
}
_NAMES = {
    "nf_proto": _NFPROTO,
    "ipv4_addr": _IPV4,
    "ipv6_addr": _IPV6,
    "ether_addr": _ETHER,
    "inet_proto": _PROTO,
    "inet_service": _SERVICE,
    "classid": _CLASS,
    "iface_index": _IFINDEX,
    "ifname": _IFNAME,
    "iifname": _IFNAME,
    "meta priority": _CLASS,
    "@th,208,48": _MAC_NUMBER,
    "@th,192,32": _QUOTED4,
    "@th,256,128": _QUOTED6,
    "ip saddr": _IPV4,
    "ip6 saddr": _IPV6,
    "ip daddr": _IPV4,
    "ip6 daddr": _IPV6,
    f"numgen random mod {ruleset.SLOTS}": _SLOT,
    ruleset.VNI: _VNI,
    ruleset.TO: _MAC_NUMBER,
    ruleset.FROM: _MAC_NUMBER,
    "@th,336,32": _QUOTED4,
    "@th,304,128": _QUOTED6,
}
# in sets with intervals, all fields are in network byte order
_IN_INTERVALS = {_CLASS: _SORTED_CLASS, _SERVICE: _PORTS}
_SPANS = {_IPV4: _SPAN4, _IPV6: _SPAN6}
_BARE = {_SPAN4: _IPV4, _SPAN6: _IPV6}

type Atoms = tuple[Any, ...]  # the fields of a key or value; `Element` lists their types


def _pack_limit(value: Atoms) -> bytes:
    rate, _, burst, _ = value
    return nested(
        _ELEM_EXPR,
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


def _limit(expression: dict[int, bytes]) -> Atoms:
    if string(expression[_EXPR_NAME]) != "limit":
        return ()
    data = attributes(expression[_EXPR_DATA])
    rate, unit, burst, _, flags = (int.from_bytes(data[n], "big") for n in range(1, 6))
    per = {1: "second", 60: "minute", 3600: "hour"}.get(unit, f"{unit} s")
    return (rate, per, burst, bool(flags & _LIMIT_INV))


def pack_range(kind: int, atom: Any) -> tuple[bytes, bytes]:
    """Encode one field of a set's key, which has the type ``kind``, as the bytes (first value, last
    value). Both values are equal unless the field is a range or a prefix.
    """
    width, pack, _ = _CODECS[kind]
    if kind in _RANGES:
        return pack(atom[0]), pack(atom[1])
    if kind in (_IPV4, _IPV6):
        address, slash, length = atom.partition("/")
        if slash:
            first = pack(address)
            host = (1 << width * 8 - int(length)) - 1
            return first, (int.from_bytes(first, "big") | host).to_bytes(width, "big")
        low, dash, high = atom.partition("-")  # made by another program
        if dash:
            return pack(low), pack(high)
    packed = pack(atom)
    return packed, packed


def unpack_range(kind: int, first: bytes, last: bytes) -> Any:
    """Decode the bytes of a field's first and last value: the inverse of `pack_range`."""
    width, _, unpack = _CODECS[kind]
    if kind in _RANGES:
        return unpack(first), unpack(last)
    if first == last:
        return unpack(first)
    if kind in (_IPV4, _IPV6):
        low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
        length = (low ^ high).bit_length()
        if low ^ high == (1 << length) - 1 and high & low == low:
            return f"{unpack(first)}/{8 * width - length}"
    return f"{unpack(first)}-{unpack(last)}"


def written(kinds: tuple[int, ...], atoms: Atoms) -> str:
    """Format the fields of an element's key or value in nft's syntax."""
    return " . ".join(map(_written, kinds, atoms))


def _written(kind: int, atom: Any) -> str:
    if kind == _IFNAME:
        return f'"{atom}"'
    if kind == _PORTS:
        return str(atom[0]) if atom[0] == atom[1] else f"{atom[0]}-{atom[1]}"
    if kind in _BARE:
        return str(unpack_range(_BARE[kind], *pack_range(kind, atom)))
    if kind in (_CLASS, _SORTED_CLASS):
        return f"{atom >> 16:x}:{atom & 0xFFFF:x}"
    if kind in (_MAC_NUMBER, _QUOTED4, _QUOTED6):
        number = int.from_bytes(pack_range(kind, atom)[0], "big")
        return hex(number) if kind == _QUOTED6 else str(number)  # nft has no longer integer type
    return str(atom)


# --- read and change elements ---------------------------------------------------------------------

FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*
# NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_*
_NEWTABLE, _GETTABLE, _GETSET, _GETSETELEM = 0x0A00, 0x0A01, 0x0A0A, 0x0A0D
_TABLE_FLAGS = 2  # NFTA_TABLE_FLAGS
_SET_FLAGS, _SET_KEY_LEN, _SET_DATA_TYPE, _SET_DATA_LEN = 3, 5, 6, 7
_LIST_ELEMENTS, _LIST_ELEM = 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_USERDATA, _ELEM_EXPR, _ELEM_KEY_END = 1, 2, 6, 7, 10
_ELEM_FLAGS, _INTERVAL_END = 3, 1  # NFT_SET_ELEM_INTERVAL_END
_ELEM_TIMEOUT, _ELEM_EXPIRATION = 4, 5  # in ms
_ELEM_EXPRESSIONS = 11  # instead of _ELEM_EXPR if the set declares several
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_LAST_SET, _LAST_MSECS = 1, 2  # enum nft_last_attributes
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_UDATA_COMMENT = 0  # NFTNL_UDATA_SET_ELEM_COMMENT, libnftnl/udata.h

_FLAG_INTERVAL, _FLAG_MAP = 0x4, 0x8
_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_VERDICT_CODES = {word: number for number, word in _VERDICTS.items()}

_NEWSETELEM, _DELSETELEM = 0x0A0C, 0x0A0E
_DESTROYSETELEM = 0x0A1E  # no error without the element
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
# the key exists with another value; an interval overlaps
_CLASHES = (errno.EEXIST, errno.EBUSY, errno.ENOTEMPTY)
_MOST_BYTES = 32 << 10  # bytes of elements in one message: an attribute can have 64 KiB

_ABSENT = (errno.ENOENT, errno.EINVAL)  # no such table, set or element; or the set has other types
_CHUNK = 64  # requests in one sendmsg; their answers must fit the socket's buffer
_AT_ONCE = 256  # deleted elements in one transaction


class Header(NamedTuple):
    """The name of a set or map, and the types of its keys and values."""

    table: str  # "inet niso" or "bridge niso"
    name: str
    interval: bool
    key: tuple[int, ...]
    value: tuple[int, ...] | None  # () for a set, and None for a map to verdicts

    @property
    def is_plain_interval(self) -> bool:
        """Return whether the set's keys are intervals of a single field. The kernel stores start
        and end as two elements, and omits the end if the next interval follows immediately.
        `Nfnetlink.change` cannot write such keys, because it does not know adjacent intervals.
        """
        return self.interval and len(self.key) == 1


class Nfnetlink(netlink.Netfilter):
    """A socket for nf_tables in the network namespace that opened it. Methods raise KernelError."""

    def change(self, what: str, edits: Iterable[Edit], dormant: Iterable[str] = ()) -> None:
        """Add and delete elements in one transaction. If one edit fails, none is applied. The
        transaction also removes the flag ``dormant`` from the tables ``dormant``.

        The cost does not depend on the number of existing elements. libnftables would first list
        all sets, and all elements of sets with intervals. ``what`` describes the transaction in
        error messages. Raises KernelError. Its errno is EEXIST if an element already exists.
        """
        messages = []
        for adds, header, chunk in _chunks(edits):
            body = about(*header[:2]) + nested(_LIST_ELEMENTS, *chunk)
            # an element with a timeout may have expired before it is deleted
            deletion = _DESTROYSETELEM if header.name in policy_rules.PLACES else _DELSETELEM
            kind, flags = (_NEWSETELEM, netlink.CREATE) if adds else (deletion, 0)
            messages.append(netlink.Message(what, kind, flags, body))
        # last, because the kernel calls the chains of a table from its message on, not from the
        # end of the transaction on
        none = attribute(_TABLE_FLAGS, bytes(4))
        messages += [netlink.Message(what, _NEWTABLE, 0, _table(one) + none) for one in dormant]
        self.transact_batch(what, _SUBSYSTEM, messages, _CLASHES)

    def counts(self, header: Header) -> list[tuple[Element, int, float | None]]:
        """Return (element, packets, age) for each element of a set or map that has a counter.

        ``packets`` is the value of the counter. ``age`` is the time in seconds since the last
        packet that matched. ``age`` is None if no packet has matched, or if the element does not
        record the time. If the key of the set is an interval of one field, elements have only the
        start of the interval.
        """
        return self.each(header.table, header.name, partial(_counted, header))

    def all_elements(self, header: Header) -> list[Element]:
        if header.is_plain_interval:
            bounds = self.each(header.table, header.name, _bounds)
            return parse_reply(f"read {header.name}", lambda _: _intervals(header, bounds), b"")
        return self.each(header.table, header.name, partial(_parse_elements, header))

    def all_of(self, table: str, container: str) -> list[Element] | None:
        """Return all elements of one of niso's sets or maps, or None if the kernel does not have
        it. If another version of niso created the set with other types, the list is empty, because
        niso will recreate the table.
        """
        header = HEADERS[table, container]
        what = f"read {table} {container}"
        answer = self.get_one(what, _GETSET, about(table, container), (errno.ENOENT,))
        if answer is None:
            return None
        return (
            self.all_elements(header)
            if parse_reply(what, partial(_has_types, header), answer)
            else []
        )

    def has_table(self, table: str) -> bool:
        """Return whether the kernel has a table, which another program may have created."""
        answer = self.get_one(f"read table {table}", _GETTABLE, _table(table), (errno.ENOENT,))
        return answer is not None

    def each[T](self, table: str, name: str, parse: Callable[[bytes], list[T]]) -> list[T]:
        """Read all elements of a set or map. ``parse`` is called with each message of the kernel,
        which has several elements. Returns the results of these calls in one list.
        """
        dumped = self.dump(f"read {table} {name}", _GETSETELEM, about(table, name), parse, _ABSENT)
        return [element for part in dumped for element in part]

    def clear(self, what: str, table: str, name: str, keys: list[bytes] | None = None) -> None:
        """Delete the elements of a set that have these keys and still exist, or all elements.
        Unlike in `change`, keys are the kernel's bytes. ``what`` is as in `change`.
        """
        body, kind = about(table, name), _DELSETELEM if keys is None else _DESTROYSETELEM
        for chunk in itertools.batched(keys, _AT_ONCE) if keys is not None else ((),):
            elements = [nested(_LIST_ELEM, _packed_key(key, b"")) for key in chunk]
            more = nested(_LIST_ELEMENTS, *elements) if elements else b""
            self.transact_batch(what, _SUBSYSTEM, [netlink.Message(what, kind, 0, body + more)])

    def count(self, element: Element) -> int | None:
        """Return how many packets an element has counted, or None if it does not exist."""
        header = HEADERS[element[:2]]
        first, last = _pack_key(header, element.fields)
        what = "read nftables elements"
        answer = self.get_one(what, _GETSETELEM, _request(header, first, last), _ABSENT)
        if answer is None:
            return None
        for found, packets, _ in parse_reply(what, partial(_counted, header), answer):
            return packets if found._replace(fields=element.fields) == element else None
        return None

    def get(self, wanted: Iterable[tuple[Header, Atoms]]) -> dict[Atoms, Element]:
        """Look up elements, and return {`Element.key`: element} for those that exist. ``wanted``
        are pairs (set or map, fields of the key).
        """
        result: dict[Atoms, Element] = {}
        for chunk in itertools.batched(wanted, _CHUNK):
            asked = [(header, key, *_pack_key(header, key)) for header, key in chunk]
            bodies = [_request(header, first, last) for header, _, first, last in asked]
            # For intervals of one field, the kernel answers with the start of an interval. This is
            # the wanted one if its last value belongs to the same start, and the value after it
            # does not.
            more: dict[int, int] = {}
            for i, (header, _, _, last) in enumerate(asked):
                if header.is_plain_interval:
                    more[i] = len(bodies)
                    bodies += [_request(header, last, b""), _request(header, _next(last), b"")]
            what = "read nftables elements"
            answers = self.get_all(what, _GETSETELEM, bodies, _ABSENT)
            for i, (header, key, first, last) in enumerate(asked):
                answer = answers[i]
                if answer is None:
                    continue
                ends = answers[more[i] : more[i] + 2] if i in more else []
                parse = partial(_parse_element, header, key, first, last, ends)
                if (element := parse_reply(what, parse, answer)) is not None:
                    result[element[:3]] = element
        return result


type Edit = tuple[str, Element]
"""One change in an nftables transaction: ("add" or "delete", element)."""


def elements(answer: bytes) -> Iterator[dict[int, bytes]]:
    """Yield the netlink attributes of each element in a message of the kernel, ``answer``."""
    return map(attributes, several(attributes(answer, 4).get(_LIST_ELEMENTS, b""), _LIST_ELEM))


def expressions(element: dict[int, bytes]) -> dict[str, dict[int, bytes]]:
    """Return {name: netlink attributes} of an element's expressions, such as "counter"."""
    if _ELEM_EXPR in element:
        return named_expressions([element[_ELEM_EXPR]])
    return named_expressions(several(element.get(_ELEM_EXPRESSIONS, b""), _LIST_ELEM))


def named_expressions(parts: Iterable[bytes]) -> dict[str, dict[int, bytes]]:
    """Return {name: netlink attributes} of packed expressions."""
    return {
        string(part.get(_EXPR_NAME, b"")): attributes(part.get(_EXPR_DATA, b""))
        for part in map(attributes, parts)
    }


def counter(fields: dict[str, dict[int, bytes]]) -> tuple[int, int]:
    """Return (packets, bytes) of the counter among the expressions of an element or a rule."""
    own = fields["counter"]
    packets, octets = own[_COUNTER_PACKETS], own[_COUNTER_BYTES]
    return int.from_bytes(packets, "big"), int.from_bytes(octets, "big")


def _only(answer: bytes) -> dict[int, bytes]:
    return attributes(attributes(attributes(answer, 4)[_LIST_ELEMENTS])[_LIST_ELEM])


def _parse_element(
    header: Header, key: Atoms, first: bytes, last: bytes, ends: list[bytes | None], answer: bytes
) -> Element | None:
    # If the key is an interval of one field, ``ends`` are the answers to requests for its last
    # value and for the value after it. The answer may be about another element, such as an interval
    # that contains the requested one.
    element = _only(answer)
    # an interval set answers with the element that contains the key, possibly a wider one
    if data_value(element[_ELEM_KEY]) != first:
        return None
    if ends:
        at_end, after = (
            data_value(_only(end)[_ELEM_KEY]) if end is not None else b"" for end in ends
        )
        if at_end != first or after == first:
            return None
    elif data_value(element.get(_ELEM_KEY_END, b"")) != last:
        return None
    return _build(header, key, element)


def _parse_elements(header: Header, answer: bytes) -> list[Element]:
    result = []
    for element in elements(answer):
        first, last = data_value(element[_ELEM_KEY]), data_value(element.get(_ELEM_KEY_END, b""))
        made = _build(header, _atoms(header.key, first, last), element)
        if made is not None:
            result.append(made)
    return result


# (value, whether an interval starts there, netlink attributes); a bound that starts no interval is
# the number after the last value of one
_Bound = tuple[bytes, bool, dict[int, bytes]]


def _bounds(answer: bytes) -> list[_Bound]:
    return [
        (
            data_value(element[_ELEM_KEY]),
            not int.from_bytes(element.get(_ELEM_FLAGS, b""), "big") & _INTERVAL_END,
            element,
        )
        for element in elements(answer)
    ]


def _intervals(header: Header, bounds: Iterable[_Bound]) -> list[Element]:
    # the kernel lists intervals of one field as starts and ends; it omits an end if the next
    # interval starts at the same number, and the end after the highest number
    result = []
    ordered = sorted(bounds, key=lambda bound: bound[:2])
    ends = [int.from_bytes(first, "big") for first, _, _ in ordered[1:]]
    for (first, starts, element), end in itertools.zip_longest(ordered, ends):
        if starts:
            highest = (1 << 8 * len(first)) - 1
            last = max(highest if end is None else end - 1, int.from_bytes(first, "big"))
            key = (unpack_range(header.key[0], first, last.to_bytes(len(first), "big")),)
            if (made := _build(header, key, element)) is not None:
                result.append(made)
    return result


def _build(header: Header, key: Atoms, element: dict[int, bytes]) -> Element | None:
    """Build an element from its key and its netlink attributes. Returns None if the element is of
    an audit period that is about to expire.
    """
    owner, _, entry = _comment(element).partition(" ")
    value: Atoms = ()
    if header.value != ():
        value = _value(header, element.get(_ELEM_DATA, b""))
    elif header.name in policy_rules.PLACES:
        term = policy_rules.parse_period(entry)
        left_s = None
        if _ELEM_EXPIRATION in element:
            left_s = int.from_bytes(element[_ELEM_EXPIRATION], "big") / 1000
        problem = policy_rules.timeout_difference(left_s, term, time.time())
        if problem is None:
            return None
        value, entry = (*term, *([problem] if problem else [])), "" if term else entry
    elif _ELEM_EXPR in element:
        value = _limit(attributes(element[_ELEM_EXPR]))
    return Element(header.table, header.name, key, value, owner, entry)


def _has_types(header: Header, answer: bytes) -> bool:
    """Return whether a set in the kernel has keys and values of the sizes that niso uses."""

    def number(kind: int) -> int:
        return int.from_bytes(fields.get(kind, b""), "big")

    def size(kinds: tuple[int, ...]) -> int:
        widths = [_CODECS[kind][0] for kind in kinds]
        return widths[0] if len(widths) == 1 else sum(width + 3 & ~3 for width in widths)

    fields = attributes(answer, 4)
    flags = number(_SET_FLAGS)
    is_map = bool(flags & _FLAG_MAP)
    is_verdict = is_map and number(_SET_DATA_TYPE) == _VERDICT_TYPE
    return (
        (bool(flags & _FLAG_INTERVAL), is_map, is_verdict)
        == (header.interval, header.value != (), header.value is None)
        and number(_SET_KEY_LEN) == size(header.key)
        and (not header.value or number(_SET_DATA_LEN) == size(header.value))
    )


def _counted(header: Header, answer: bytes) -> list[tuple[Element, int, float | None]]:
    result = []
    for element in elements(answer):
        fields = expressions(element)
        if "counter" not in fields:
            continue
        number, last, ago = counter(fields)[0], fields.get("last", {}), None
        if any(last.get(_LAST_SET, b"")):
            ago = int.from_bytes(last[_LAST_MSECS], "big") / 1000
        made = _build(header, _atoms(header.key, data_value(element[_ELEM_KEY])), element)
        if made is not None:
            result.append((made, number, ago))
    return result


def nfgenmsg(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)


def _next(last: bytes) -> bytes:
    return ((int.from_bytes(last, "big") + 1) % (1 << 8 * len(last))).to_bytes(len(last), "big")


def _request(header: Header, first: bytes, last: bytes) -> bytes:
    element = _packed_key(first, b"" if header.is_plain_interval else last)
    return about(*header[:2]) + nested(_LIST_ELEMENTS, nested(_LIST_ELEM, element))


def _packed_key(first: bytes, last: bytes) -> bytes:
    key = nested(_ELEM_KEY, attribute(_DATA_VALUE, first))
    return key + nested(_ELEM_KEY_END, attribute(_DATA_VALUE, last)) if last else key


def about(table: str, name: str) -> bytes:
    """Return the beginning of a netlink message about a set, a set's elements, or a chain's rules.
    ``name`` is the set or chain: its attribute has the same number in these three types of
    messages.
    """
    return _table(table) + text(2, name)


def _table(table: str) -> bytes:
    family, _, own = table.partition(" ")
    return nfgenmsg(FAMILIES[family]) + text(1, own)


def _chunks(edits: Iterable[Edit]) -> Iterator[tuple[bool, Header, list[bytes]]]:
    # yields (whether elements are added, the set, packed elements), in messages of limited size
    for (verb, place), group in itertools.groupby(edits, lambda edit: (edit[0], edit[1][:2])):
        header = HEADERS[place]
        chunk: list[bytes] = []
        size = 0
        for _, element in group:
            packed = _element(header, verb, element)
            if chunk and size + len(packed) > _MOST_BYTES:
                yield verb == "add", header, chunk
                chunk, size = [], 0
            chunk.append(packed)
            size += len(packed)
        yield verb == "add", header, chunk


def _element(header: Header, verb: str, element: Element) -> bytes:
    parts = [_packed_key(*_pack_key(header, element.fields))]
    if verb == "add":
        value = element.value
        if header.value != ():
            parts.append(nested(_ELEM_DATA, _pack_value(header, value)))
        elif element.ends:
            left_s = policy_rules.timeout_s(value, time.time())
            if left_s != policy_rules.ENDLESS:
                left_ms = max(1, int(left_s * 1000))
                parts.append(attribute(_ELEM_TIMEOUT, left_ms.to_bytes(8, "big")))
        elif value:
            parts.append(_pack_limit(value))
        if comment := element.comment:
            packed = comment.encode() + b"\0"
            parts.append(attribute(_ELEM_USERDATA, bytes([_UDATA_COMMENT, len(packed)]) + packed))
    return nested(_LIST_ELEM, *parts)


def _pack_value(header: Header, value: Atoms) -> bytes:
    if header.value is not None:
        return attribute(_DATA_VALUE, _pack_fields(header.value, value)[0])
    verdict, *chain = value
    parts = [attribute(_VERDICT_CODE, struct.pack(">i", _VERDICT_CODES[verdict]))]
    if chain:
        parts.append(text(_VERDICT_CHAIN, chain[0]))
    return nested(_DATA_VERDICT, *parts)


def declared(table: str, container: str, key: str, value: str | None, interval: bool) -> Header:
    """Convert the declaration of a set or map to a `Header`. ``key`` and ``value`` are names of
    types in nft's syntax, such as "inet_proto . inet_service".
    """
    types = [
        tuple(_NAMES[name] for name in names.split(" . "))
        for names in (key, value)
        if names and names not in ("verdict", "limit")
    ]
    values = None if value == "verdict" else types[1] if types[1:] else ()
    keys = tuple(_IN_INTERVALS.get(kind, kind) for kind in types[0]) if interval else types[0]
    if container.rpartition("_")[2] in policy_rules.CLASSES:
        # peers there are ranges of addresses
        keys = (keys[0], _SPANS[keys[1]])
    return Header(table, container, interval, keys, values)


class _Headers(dict[tuple[str, str], Header]):
    def __missing__(self, at: tuple[str, str]) -> Header:
        key, value, interval = ruleset.DECLARED[at]
        header = self[at] = declared(*at, key, value, interval)  # a command uses few of 165
        return header


HEADERS = _Headers(
    ((table, name), declared(table, name, key, None, False))
    for table, name, key in (
        *(
            (table, f"{policy_rules.PROBES}{n}", f"ipv{n}_addr . inet_proto . inet_service")
            for table in ruleset.CONTAINERS
            for n in (4, 6)
        ),
        (ruleset.BRIDGE, ruleset.DROPPED_FROM, "ifname"),
    )
)
"""The types of each (table, set or map) of niso whose elements niso reads or writes."""


def data_value(nest: bytes) -> bytes:
    return attributes(nest).get(_DATA_VALUE, b"")


def _pack_key(header: Header, key: Atoms) -> tuple[bytes, bytes]:
    """Encode an element's key as bytes: the first and the last value of its interval.

    The last value is b"" if the keys of the set or map are not intervals.
    """
    first, last = _pack_fields(header.key, key)
    return first, last if header.interval else b""


def _pack_fields(kinds: tuple[int, ...], atoms: Atoms) -> tuple[bytes, bytes]:
    """Encode the fields of a key, which may be ranges, as bytes (first values, last values).

    The two results differ only in fields that are ranges. If there are several fields, each is
    padded to a multiple of 32 bits.
    """
    ranges = [pack_range(kind, atom) for kind, atom in zip(kinds, atoms, strict=True)]
    if len(ranges) == 1:
        return ranges[0]
    start, end = (
        b"".join(field + b"\0" * (-len(field) % 4) for field in side)
        for side in zip(*ranges, strict=True)
    )
    return start, end


def _value(header: Header, data: bytes) -> Atoms:
    if header.value is None:
        verdict = attributes(attributes(data)[_DATA_VERDICT])
        code = struct.unpack(">i", verdict[_VERDICT_CODE])[0]
        chain = string(verdict.get(_VERDICT_CHAIN, b""))
        return (_VERDICTS[code], chain) if chain else (_VERDICTS[code],)
    return _atoms(header.value, data_value(data))


def _atoms(kinds: tuple[int, ...], packed: bytes, last: bytes = b"") -> Atoms:
    fields = []
    offset = 0
    for kind in kinds:
        width = _CODECS[kind][0]
        first, end = (side[offset : offset + width] for side in (packed, last or packed))
        fields.append(unpack_range(kind, first, end))
        offset += width + 3 & ~3
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

    ``fields`` are the fields of the key. In a map, ``value`` is the value for this key. Addresses,
    prefixes, MACs, protocols and names of interfaces are strings; ports, VNIs and classes of
    prefixes (`niso.plan.policy_elements`) are numbers. If the key has intervals, ports are always
    (first, last). In maps from peers to classes, the peer's addresses are (first, last) too, as
    numbers. A verdict is (word, chain), such as ("goto", "in4"), or (word,).

    In a set, ``value`` is one of: (); a rate limit as returned by `ruleset.limit`; the audit period
    of a policy as (since, until) in seconds since 1970. Only this file converts elements to bytes
    and to nft's syntax.
    """

    table: str  # "inet niso" or "bridge niso"
    container: str
    fields: Atoms
    value: Atoms = ()
    owner: str = ""  # the service or network that the element is for
    entry: str = ""  # in a policy: the key of the manifest entry

    def key(self) -> Atoms:
        return self[:3]

    @property
    def is_mapped(self) -> bool:
        return HEADERS[self[:2]].value != ()

    @property
    def ends(self) -> bool:
        """Return whether the kernel deletes this element at the end of an audit period."""
        return self.container in policy_rules.PLACES

    @property
    def text(self) -> str:
        """Return the element's key in nft's syntax, such as "tcp . 8080"."""
        return written(HEADERS[self[:2]].key, self.fields)

    @property
    def value_text(self) -> str:
        """Return the element's value or rate limit in nft's syntax, or "" without a value. For an
        element of an audit period, return how its timeout in the kernel differs from the desired
        one.
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
        """Return the element's comment: the service, and the manifest entry or the audit period."""
        more = map(str, self.value[:2]) if self.ends else ()
        return " ".join(part for part in (self.owner, self.entry, *more) if part)

    def statement(self, verb: str) -> str:
        """Return the nft(8) command that adds or deletes the element (``verb``)."""
        what = self.text
        if self.ends and verb == "delete":
            return f"destroy element {self.table} {self.container} {{ {what} }}"
        if verb == "add":
            value, comment = self.value_text, self.comment
            if self.ends:
                left_s = policy_rules.timeout_s(self.value, time.time())
                what += f" timeout {int(left_s)}s" if left_s != policy_rules.ENDLESS else ""
            mapped = self.is_mapped
            what += f" {value}" if value and not mapped else ""
            what += f' comment "{comment}"' if comment else ""
            what += f" : {value}" if mapped else ""
        return f"{verb} element {self.table} {self.container} {{ {what} }}"


def ports_of(field: int | tuple[int, int]) -> tuple[int, int]:
    """Return the ports in a field of an element, a single port or a range, as (first, last)."""
    return field if isinstance(field, tuple) else (field, field)
