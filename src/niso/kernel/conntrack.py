"""Connection tracking by ctnetlink (linux/netfilter/nfnetlink_conntrack.h): which flows a change must end."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterable

from niso.base.family import family_of
from niso.kernel import netlink
from niso.kernel.netlink import Message, attribute, attributes, nested, u32
from niso.kernel.nft_elements import nfgenmsg

_CT_GET, _CT_DELETE, _CT_GET_STATS = (
    0x0101,
    0x0102,
    0x0105,
)  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_STATS_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
_FILTER_SOURCE, _FILTER_DESTINATION = (
    0x01,
    0x02,
)  # CTA_FILTER_FLAG(...), net/netfilter/nf_internals.h
_FILTER_PROTO, _FILTER_DST_PORT = 0x08, 0x20
_SEEN_REPLY = 0x2  # IPS_SEEN_REPLY

_SOURCE: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_DESTINATION: dict[int, int] = {socket.AF_INET: 2, socket.AF_INET6: 4}
_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_PROTOCOLS = {"tcp": _TCP, "udp": _UDP, "sctp": socket.IPPROTO_SCTP}
# So many dumps of one port each cost less than one of all ports. The kernel looks at no port of SCTP.
_FEW_PORTS: dict[int, int] = {_TCP: 1, _UDP: 4}

# What a dump costs in microseconds, measured with 262,144 buckets: the walk, an entry that the kernel skips, one that it gives.
_WALK, _SKIPPED, _GIVEN = 11_000, 0.2, 7
_OWN_WALK, _OWN_SKIPPED = 250, 0.05  # where the kernel deletes by itself: it need not tell of any
_PASSES = 16
_SETTLED = (
    0.1  # seconds; what was under way when the caller changed the rules has its entry by then
)
_CHUNK = 64  # deletions in one sendmsg
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP)  # a kernel without ctnetlink

_Entry = dict[int, bytes]


def flush_addresses(addresses: Iterable[str]) -> int:
    """End every flow that has one of these addresses at either end, before or after NAT; gives how many entries went.

    Flows of all protocols, ICMP too. It looks until it finds none, since packets under way make new ones. Raises
    KernelError. No conntrack, no flows: 0.
    """
    packed = dict(map(_pack, addresses))

    def matches(_: int, entry: _Entry) -> bool:
        return any(
            end in packed
            for kind in (_TUPLE_ORIG, _TUPLE_REPLY)
            for end in attributes(attributes(entry[kind])[_TUPLE_IP]).values()
        )

    # Of IPv6 the kernel's filter gives those that do not match (ctnetlink_filter_match_tuple, Linux 5.8 to 6.18 at least).
    filters = [nfgenmsg(socket.AF_INET6)] if socket.AF_INET6 in packed.values() else []
    filters += [
        _filter(
            socket.AF_INET, kind, flag, nested(_TUPLE_IP, attribute(end[socket.AF_INET], address))
        )
        for address, family in packed.items()
        if family == socket.AF_INET
        for kind in (_TUPLE_ORIG, _TUPLE_REPLY)
        for flag, end in ((_FILTER_SOURCE, _SOURCE), (_FILTER_DESTINATION, _DESTINATION))
    ]
    return _flush(filters, matches, exact=True)


def flush_ports(
    ports: Iterable[tuple[str, int, int]],
    addresses: Callable[[], Iterable[str]] | None = None,
    answered: bool = False,
) -> int:
    """End the flows that were sent to these ports but TCP that has seen a reply; gives how many entries went.

    With ``answered`` that too: nobody is left to whom they could lead.

    A port is (``proto`` "tcp", "udp" or "sctp", first, last), before NAT. With ``addresses``, which gives some (also prefixes:
    "127.0.0.0/8") and is asked once where there is such a flow, only flows sent to one of them: other machines' flows to the same
    port, which this host forwards, are not the caller's business. For when published ports come, go or move. TCP whose handshake is
    under way stays with the established: its next packet would be taken for a new flow, sent to the new service, and reset. Raises
    KernelError.
    """
    wanted: dict[int, set[int]] = {}
    for proto, first, last in ports:
        wanted.setdefault(_PROTOCOLS[proto], set()).update(range(first, last + 1))
    is_ours: Callable[[bytes], bool] | None = None

    def matches(family: int, entry: _Entry) -> bool:
        nonlocal is_ours
        sent = attributes(entry[_TUPLE_ORIG])
        ends = attributes(sent[_TUPLE_PROTO])
        if int.from_bytes(ends.get(_PROTO_DST_PORT, b""), "big") not in wanted.get(
            ends[_PROTO_NUM][0], ()
        ):
            return False
        if addresses is not None:
            is_ours = is_ours or _within(addresses())
            if not is_ours(attributes(sent[_TUPLE_IP])[_DESTINATION[family]]):
                return False
        if answered:
            return True
        return not (
            ends[_PROTO_NUM][0] == _TCP and int.from_bytes(entry[_STATUS], "big") & _SEEN_REPLY
        )

    filters = []
    for number, of_proto in wanted.items():
        its = attribute(_PROTO_NUM, bytes([number]))
        flags, tuples, rest = _FILTER_PROTO, [its], b""
        if (
            number == _TCP and not answered
        ):  # a kernel that knows this filter leaves out those that have seen a reply: mostly all
            rest = attribute(_STATUS, bytes(4)) + attribute(
                _STATUS_MASK, _SEEN_REPLY.to_bytes(4, "big")
            )
        if len(of_proto) <= _FEW_PORTS.get(number, 0):
            flags |= _FILTER_DST_PORT
            tuples = [
                its + attribute(_PROTO_DST_PORT, port.to_bytes(2, "big"))
                for port in sorted(of_proto)
            ]
        filters += [
            _filter(family, _TUPLE_ORIG, flags, nested(_TUPLE_PROTO, one)) + rest
            for one in tuples
            for family in _SOURCE
        ]
    return _flush(filters, matches)


def _filter(family: int, kind: int, flags: int, wanted: bytes) -> bytes:
    """A dump request of the entries whose tuple ``kind`` has what ``wanted`` says.

    Before Linux 5.8 the kernel gives all.
    """
    return nfgenmsg(family) + nested(kind, wanted) + nested(_FILTER, u32(kind, flags))


def _flush(
    filters: list[bytes], matches: Callable[[int, _Entry], bool], exact: bool = False
) -> int:
    """Delete the entries that the filters give and that match, in passes until one finds none.

    With ``exact`` those of IPv4 give nothing but what matches, and where there are many entries the kernel is asked to delete
    them by itself (seen with Linux 6.18; one that knows no such thing should refuse).
    Or until one began so late that all it finds is made by the new rules: a busy service's clients send all the time.
    """

    def parse(body: bytes) -> bytes | None:
        entry = attributes(body, 4)
        if not matches(body[0], entry):
            return None
        # The tuple alone could by now be another entry's: the id must fit too.
        rest = b"".join(attribute(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)
        return nfgenmsg(body[0]) + nested(_TUPLE_ORIG, entry[_TUPLE_ORIG]) + rest

    deleted = 0
    if not filters:
        return 0
    with netlink.Netfilter() as kernel:
        what = "count connections"
        answer = kernel.get_one(what, _CT_GET_STATS, nfgenmsg(socket.AF_UNSPEC), _ABSENT)
        count = netlink.understood(what, _entries, answer or b"")
        if not count:
            return 0
        ours = [body for body in filters if body[0] == socket.AF_INET]
        # one for each address and end: not where a dump, which comes anyway, has told of all entries by then
        if exact and ours and len(ours) * (_OWN_WALK + _OWN_SKIPPED * count) < _GIVEN * count:
            refusals = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT)
            for start in range(0, len(ours), _CHUNK):
                chunk = ours[start : start + _CHUNK]
                kernel.transact(
                    *(
                        Message("end many connections", _CT_DELETE, 0, body, refusals)
                        for body in chunk
                    )
                )
            answer = kernel.get_one(what, _CT_GET_STATS, nfgenmsg(socket.AF_UNSPEC), _ABSENT)
            left = netlink.understood(what, _entries, answer or b"")
            deleted, count = max(0, count - left), left
        # Each dump walks the whole table. With few entries one walk that gives them all is the cheapest.
        if _GIVEN * count < (len(filters) - 1) * (_WALK + _SKIPPED * count):
            filters = [nfgenmsg(socket.AF_UNSPEC)]
        began = time.monotonic()
        for _ in range(_PASSES):
            late = time.monotonic() - began > _SETTLED
            dumps = (kernel.dump("list connections", _CT_GET, body, parse) for body in filters)
            found = list({entry for dump in dumps for entry in dump})
            for start in range(0, len(found), _CHUNK):
                chunk = found[start : start + _CHUNK]
                what = f"end {len(chunk)} connections"
                kernel.transact(
                    *(Message(what, _CT_DELETE, 0, body, (errno.ENOENT,)) for body in chunk)
                )
            deleted += len(found)
            if late or not found:
                break
    return deleted


def _entries(answer: bytes) -> int:
    return int.from_bytes(attributes(answer, 4).get(_STATS_ENTRIES, b""), "big")


def _pack(address: str) -> tuple[bytes, int]:
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return socket.inet_pton(family, address), family


def _within(addresses: Iterable[str]) -> Callable[[bytes], bool]:
    """Whether a packed address is one of these, or in one of these prefixes."""
    exact = set()
    prefixes = []
    for each in addresses:
        address, slash, length = each.partition("/")
        packed, _ = _pack(address)
        shift = len(packed) * 8 - int(length) if slash else 0
        if shift:
            prefixes.append((len(packed), shift, int.from_bytes(packed, "big") >> shift))
        else:
            exact.add(packed)

    def holds(packed: bytes) -> bool:
        return packed in exact or any(
            len(packed) == size and int.from_bytes(packed, "big") >> shift == prefix
            for size, shift, prefix in prefixes
        )

    return holds
