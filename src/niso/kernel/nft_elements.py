"""Read and change single elements of nftables sets and maps (linux/netfilter/nf_tables.h).

The cost is 10 µs per element, independent of the size of the set.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink, nft_audit, nft_sets
from niso.kernel.netlink import attribute, attributes, nested, several, string, text, understood
from niso.kernel.nft_values import (
    NAMES,
    WIDTHS,
    in_intervals,
    limit,
    pack,
    pack_limit,
    pack_range,
    unpack,
    unpack_range,
)

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
        return nft_audit.expires(left_ms), _comment(element)
    if _ELEM_EXPR in element and header.value == ():
        return limit(attributes(element[_ELEM_EXPR])), _comment(element)
    return _value(header, element.get(_ELEM_DATA, b"")), _comment(element)


def _deletion(header: Header) -> int:
    """Return the message type that deletes elements of a set.

    An element with a timeout may have expired, so its deletion must not fail if it is missing.
    """
    return _DESTROYSETELEM if header.name in nft_audit.PLACES else _DELSETELEM


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
    if change.adds and change.header.name in nft_audit.PLACES:
        left_s = nft_audit.timeout_s(change.comment, time.time())
        if left_s != nft_audit.ENDLESS:
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


HEADERS = {
    place: declared(place[0], place[1], *types) for place, types in nft_sets.DECLARED.items()
}
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
