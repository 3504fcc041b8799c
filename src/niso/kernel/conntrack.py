"""Read, delete and add conntrack entries through ctnetlink (linux/netfilter/nfnetlink_conntrack.h).

`niso.reconcile.ended_flows` decides which flows a change deletes. All functions raise KernelError.
On a kernel without connection tracking, they find no flows.
"""

from __future__ import annotations

import errno
import itertools
import struct
import time
from collections.abc import Callable, Iterable

from niso.base.errors import KernelError
from niso.base.named_tuples import NamedTuple
from niso.base.names import packed, within
from niso.base.native import socket
from niso.kernel import netlink, proc_sys
from niso.kernel.netlink import Message, address_family, attribute, attributes, nested, u32
from niso.kernel.nft_elements import nfgenmsg
from niso.kernel.sockets import Connection

# --- delete all flows of addresses or ports -------------------------------------------------------

_CT_GET, _CT_DELETE, _CT_GET_STATS = 0x0101, 0x0102, 0x0105  # subsystem 1, IPCTNL_MSG_CT_*
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_STATS_ENTRIES = 1  # CTA_STATS_GLOBAL_ENTRIES
_FILTER_SOURCE, _FILTER_DESTINATION = 0x01, 0x02  # CTA_FILTER_FLAG, net/netfilter/nf_internals.h
_FILTER_PROTO, _FILTER_DST_PORT = 0x08, 0x20
_SEEN_REPLY = 0x2  # IPS_*

_SOURCE: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
_DESTINATION: dict[int, int] = {socket.AF_INET: 2, socket.AF_INET6: 4}
_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_PROTOCOLS = {"tcp": _TCP, "udp": _UDP, "sctp": socket.IPPROTO_SCTP}
# Up to this many ports, one dump for each costs less than a dump of all entries. SCTP ports cannot
# be filtered.
_FEW_PORTS: dict[int, int] = {_TCP: 1, _UDP: 4}

# Costs of a dump in µs, measured with 262,144 buckets: walking the table, an entry that the kernel
# filters out, an entry that it returns.
_WALK, _SKIPPED, _GIVEN = 11_000, 0.2, 7
_OWN_WALK, _OWN_SKIPPED = 250, 0.05  # cost where the kernel deletes by filter: no entry is returned
_PASSES = 16
# seconds; by then, packets that were under way when the rules changed have their entry
_SETTLED = 0.1
_CHUNK = 64  # deletions in one sendmsg
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP)  # a kernel without ctnetlink

_Entry = dict[int, bytes]


def flush_addresses(addresses: Iterable[str]) -> int:
    """Delete the conntrack entries that have one of these addresses as source or destination, and
    return their number. Addresses before and after NAT are compared. Entries of all protocols are
    deleted, including ICMP. The search is repeated until no entry is found, because packets in
    transit create new entries.
    """
    wanted = dict.fromkeys(map(packed, addresses))

    def matches(_: int, entry: _Entry) -> bool:
        return any(
            end in wanted
            for kind in (_TUPLE_ORIG, _TUPLE_REPLY)
            for end in attributes(attributes(entry[kind])[_TUPLE_IP]).values()
        )

    # For IPv6 the kernel's filter returns the entries that do not match
    # (ctnetlink_filter_match_tuple, Linux 5.8 to 6.18 at least).
    filters = [nfgenmsg(socket.AF_INET6)] if any(len(end) == 16 for end in wanted) else []
    filters += [
        _filter(
            socket.AF_INET, kind, flag, nested(_TUPLE_IP, attribute(end[socket.AF_INET], address))
        )
        for address in wanted
        if len(address) == 4
        for kind in (_TUPLE_ORIG, _TUPLE_REPLY)
        for flag, end in ((_FILTER_SOURCE, _SOURCE), (_FILTER_DESTINATION, _DESTINATION))
    ]
    return _flush(filters, matches, exact=True)


def flush_ports(
    ports: Iterable[tuple[str, int, int]],
    addresses: Callable[[], Iterable[str]] | None = None,
    answered: bool = False,
) -> int:
    """Delete the conntrack entries of flows to or from ports of the host, and return their number.

    Callers use this function when published ports are added, removed or moved. A port is (protocol,
    first, last), before NAT. ``addresses()`` returns addresses and prefixes: only flows to these
    destinations are deleted. The function is called at most once, and only if a flow uses one of
    the ports.

    TCP flows that have had a reply are not deleted, even during the handshake: their next packet
    would count as the first of a new flow, go to the new service, and be reset. If the server no
    longer exists, callers set ``answered``, which deletes these flows too.
    """
    wanted: dict[int, set[int]] = {}
    for proto, first, last in ports:
        wanted.setdefault(_PROTOCOLS[proto], set()).update(range(first, last + 1))
    is_own: Callable[[bytes], bool] | None = None
    kinds = (_TUPLE_ORIG, _TUPLE_REPLY)

    def matches(family: int, entry: _Entry) -> bool:
        nonlocal is_own
        status = int.from_bytes(entry[_STATUS], "big")
        for tuple_ in (attributes(entry[kind]) for kind in kinds):
            ends = attributes(tuple_[_TUPLE_PROTO])
            proto, port = ends[_PROTO_NUM][0], ends.get(_PROTO_DST_PORT, b"")
            if int.from_bytes(port, "big") not in wanted.get(proto, ()):
                continue
            if addresses is not None:
                is_own = is_own or within(addresses())
                if not is_own(attributes(tuple_[_TUPLE_IP])[_DESTINATION[family]]):
                    continue
            if answered or proto != _TCP or not status & _SEEN_REPLY:
                return True
        return False

    filters = []
    for number, of_proto in wanted.items():
        proto_only = attribute(_PROTO_NUM, bytes([number]))
        flags, tuples, status = _FILTER_PROTO, [proto_only], b""
        if number == _TCP and not answered:
            # the kernel leaves out flows that have seen a reply: nearly all
            mask = _SEEN_REPLY.to_bytes(4, "big")
            status = attribute(_STATUS, bytes(4)) + attribute(_STATUS_MASK, mask)
        if len(of_proto) <= _FEW_PORTS.get(number, 0):
            flags |= _FILTER_DST_PORT
            tuples = [
                proto_only + attribute(_PROTO_DST_PORT, port.to_bytes(2, "big"))
                for port in sorted(of_proto)
            ]
        filters += [
            _filter(family, kind, flags, nested(_TUPLE_PROTO, one)) + status
            for one in tuples
            for kind in kinds
            for family in _SOURCE
        ]
    return _flush(filters, matches)


def _filter(family: int, kind: int, flags: int, wanted: bytes) -> bytes:
    # Before Linux 5.8, the kernel ignores the filter and returns all entries.
    return nfgenmsg(family) + nested(kind, wanted) + nested(_FILTER, u32(kind, flags))


def _flush(
    filters: list[bytes], matches: Callable[[int, _Entry], bool], exact: bool = False
) -> int:
    """Delete the conntrack entries for which ``matches`` is true, and return their number.

    ``filters`` are bodies of requests that list entries. The search is repeated until it finds no
    entry, but only a few times, because clients of a busy service never stop sending.

    With ``exact``, all entries that an IPv4 filter selects are to be deleted. Since Linux 6.18 the
    kernel can do this with one request. An older kernel refuses a filter that does not describe a
    single flow; the entries are then listed and deleted one by one.
    """

    def parse(body: bytes) -> bytes | None:
        entry = attributes(body, 4)
        return _handle(body[0], entry) if matches(body[0], entry) else None

    deleted = 0
    if not filters:
        return 0
    with netlink.Netfilter() as kernel:
        count = _count(kernel)
        if not count:
            return 0
        ours = [body for body in filters if body[0] == socket.AF_INET]
        is_all = len(ours) == len(filters)
        dumped = _GIVEN * count + (_WALK if is_all else 0)
        # one request per address and end: only where that costs less than a dump of all entries
        if exact and ours and len(ours) * (_OWN_WALK + _OWN_SKIPPED * count) < dumped:
            can = _delete_by(kernel, ours)
            left = _count(kernel)
            deleted, count = max(0, count - left), left
            if can and is_all:
                _delete_by(kernel, ours)  # delete entries that packets in transit have created
                return deleted
        # Each dump reads the complete table. With few entries, one dump of all is the fastest.
        if _GIVEN * count < (len(filters) - 1) * (_WALK + _SKIPPED * count):
            filters = [nfgenmsg(socket.AF_UNSPEC)]
        began = time.monotonic()
        for _ in range(_PASSES):
            late = time.monotonic() - began > _SETTLED
            what = "list conntrack entries"
            dumps = (kernel.dump(what, _CT_GET, body, parse) for body in filters)
            matching = {entry for dump in dumps for entry in dump}
            _delete(kernel, matching)
            deleted += len(matching)
            if late or not matching:
                break
    return deleted


def _delete_by(kernel: netlink.Netfilter, filters: list[bytes]) -> bool:
    can = True
    what = "delete conntrack entries"
    for chunk in itertools.batched(filters, _CHUNK):
        try:
            kernel.transact(*(Message(what, _CT_DELETE, 0, body) for body in chunk))
        except KernelError as error:
            if error.errno not in (*_ABSENT, errno.ENOENT):
                raise
            can = False
    return can


def _count(kernel: netlink.Netfilter) -> int:
    def parse(answer: bytes) -> int:
        return int.from_bytes(attributes(answer, 4).get(_STATS_ENTRIES, b""), "big")

    what, body = "count conntrack entries", nfgenmsg(socket.AF_UNSPEC)
    answer = kernel.get_one(what, _CT_GET_STATS, body, _ABSENT) or b""
    return netlink.parse_reply(what, parse, answer)


# --- read, delete and add single flows ------------------------------------------------------------

_CT_NEW = 0x0100
_PROTOINFO, _TIMEOUT = 4, 7
_SRC_PORT = 2
_PROTOINFO_TCP, _TCP_STATE, _TCP_FLAGS_ORIG, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_ASSURED, _CONFIRMED = 0x4, 0x8  # IPS_*; niso confirms its entries at once
_ESTABLISHED = 3  # TCP_CONNTRACK_ESTABLISHED
_BE_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL: niso does not know the TCP windows
_IDLE_S = 432_000  # the default of nf_conntrack_tcp_timeout_established
_NAMES = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}


class Tracked(NamedTuple):
    """A flow in connection tracking, with the addresses of its packets and of the replies. Without
    NAT, the replies have the same addresses in reverse. Ports are None for protocols without ports.
    """

    proto: str  # the name of the protocol in policies
    source: str
    destination: str
    port: int | None  # the destination port as sent
    answers_from: str
    answers_to: str
    answers_port: int | None  # the destination port of replies
    served_port: int | None  # the destination port after DNAT
    answered: bool  # whether a reply has been seen
    handle: bytes  # identifies the entry for `end`


def of(addresses: Iterable[str]) -> list[Tracked]:
    """Return the tracked flows from or to one of these addresses, before or after NAT."""
    wanted = set(addresses)
    return [
        flow
        for flow in tracked()
        if wanted & {flow.source, flow.destination, flow.answers_from, flow.answers_to}
    ]


def tracked() -> list[Tracked]:
    return _all(_parse)


def opened() -> list[tuple[str, Connection]]:
    """Return (protocol, addresses and ports after DNAT) of the open TCP, UDP and SCTP flows in
    connection tracking.

    TCP flows are open while they are established, SCTP flows after a reply. A UDP flow is open if
    packets went both ways for more than two seconds, so that a request with its reply does not
    count. In addition, its last packet must have passed within half of the conntrack timeout.
    """
    kept_s = int(proc_sys.read("net/netfilter/nf_conntrack_udp_timeout_stream") or 120)
    return _all(lambda body: _parse_open(body, kept_s // 2))


def _all[T](parse: Callable[[bytes], T | None]) -> list[T]:
    with netlink.Netfilter() as kernel:
        if not _count(kernel):  # a dump walks the table of all namespaces
            return []
        every = nfgenmsg(socket.AF_UNSPEC)
        return kernel.dump("list conntrack entries", _CT_GET, every, parse, _ABSENT)


def end(flows: Iterable[Tracked]) -> int:
    """Delete flows from connection tracking, and return their number. The next packet of a deleted
    flow is evaluated as the first packet of a new flow.
    """
    handles = [flow.handle for flow in flows]
    with netlink.Netfilter() as kernel:
        _delete(kernel, handles)
    return len(handles)


def introduce(connections: Iterable[Connection]) -> None:
    """Add open TCP connections to connection tracking as established. Callers use this function for
    a bridge whose frames are about to be tracked: otherwise the next packet of such a connection
    would count as the first of a new one. Connections that are already tracked are not changed.
    """
    flags = netlink.CREATE | netlink.EXCL
    with netlink.Netfilter() as kernel:
        kernel.transact_each(
            Message("track a connection", _CT_NEW, flags, _new(connection), (errno.EEXIST,))
            for connection in connections
        )


def _parse(body: bytes) -> Tracked:
    entry = attributes(body, 4)
    sent, reply = (attributes(entry[kind]) for kind in (_TUPLE_ORIG, _TUPLE_REPLY))
    reply_ports = attributes(reply[_TUPLE_PROTO])
    number = reply_ports[_PROTO_NUM][0]
    proto = _NAMES.get(number, str(number))
    has_port = _SRC_PORT in reply_ports and proto != "icmp"
    port, answers_port, served_port = (
        int.from_bytes(ports[kind], "big") if has_port and kind in ports else None
        for ports, kind in (
            (attributes(sent[_TUPLE_PROTO]), _PROTO_DST_PORT),
            (reply_ports, _PROTO_DST_PORT),
            (reply_ports, _SRC_PORT),
        )
    )
    return Tracked(
        proto,
        *_addresses(body[0], sent),
        port,
        *_addresses(body[0], reply),
        answers_port,
        served_port,
        bool(int.from_bytes(entry.get(_STATUS, b""), "big") & _SEEN_REPLY),
        _handle(body[0], entry),
    )


def _parse_open(body: bytes, least_s: int) -> tuple[str, Connection] | None:
    flow, entry = _parse(body), attributes(body, 4)
    if flow.served_port is None:
        return None
    tcp = attributes(attributes(entry.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b""))
    is_established = tcp.get(_TCP_STATE) == bytes([_ESTABLISHED])
    if flow.proto == "udp":
        status, left_s = (int.from_bytes(entry.get(k, b""), "big") for k in (_STATUS, _TIMEOUT))
        is_open = bool(status & _ASSURED) and left_s >= least_s
    else:
        is_open = is_established if flow.proto == "tcp" else flow.answered
    if not is_open:
        return None
    ports = attributes(attributes(entry[_TUPLE_ORIG])[_TUPLE_PROTO])
    own = int.from_bytes(ports[_SRC_PORT], "big")
    return flow.proto, Connection(flow.source, own, flow.answers_from, flow.served_port)


def _handle(family: int, entry: _Entry) -> bytes:
    """Return the body of the request that deletes a conntrack entry. The body contains the entry's
    id, because a new entry could have the same addresses and ports when the kernel gets the
    request.
    """
    tail = b"".join(attribute(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)
    return nfgenmsg(family) + nested(_TUPLE_ORIG, entry[_TUPLE_ORIG]) + tail


def _delete(kernel: netlink.Netfilter, handles: Iterable[bytes]) -> None:
    for chunk in itertools.batched(handles, _CHUNK):
        what = f"delete {len(chunk)} conntrack entries"
        kernel.transact(*(Message(what, _CT_DELETE, 0, body, (errno.ENOENT,)) for body in chunk))


def _addresses(family: int, tuple_: _Entry) -> tuple[str, str]:
    ends = attributes(tuple_[_TUPLE_IP])
    source, destination = ends[_SOURCE[family]], ends[_DESTINATION[family]]
    return socket.inet_ntop(family, source), socket.inet_ntop(family, destination)


def _new(connection: Connection) -> bytes:
    client, server = connection[:2], connection[2:]
    family = address_family(connection.client)
    liberal = bytes([_BE_LIBERAL, _BE_LIBERAL])  # struct nf_ct_tcp_flags: flags, mask
    state = (
        attribute(_TCP_STATE, bytes([_ESTABLISHED])),
        attribute(_TCP_FLAGS_ORIG, liberal),
        attribute(_TCP_FLAGS_REPLY, liberal),
    )
    return (
        nfgenmsg(family)
        + _tuple(_TUPLE_ORIG, family, client, server)
        + _tuple(_TUPLE_REPLY, family, server, client)
        + attribute(_STATUS, struct.pack(">I", _SEEN_REPLY | _ASSURED | _CONFIRMED))
        + attribute(_TIMEOUT, struct.pack(">I", _IDLE_S))
        + nested(_PROTOINFO, nested(_PROTOINFO_TCP, *state))
    )


def _tuple(kind: int, family: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    return nested(
        kind,
        nested(
            _TUPLE_IP,
            attribute(_SOURCE[family], packed(source[0])),
            attribute(_DESTINATION[family], packed(destination[0])),
        ),
        nested(
            _TUPLE_PROTO,
            attribute(_PROTO_NUM, bytes([_TCP])),
            attribute(_SRC_PORT, source[1].to_bytes(2, "big")),
            attribute(_PROTO_DST_PORT, destination[1].to_bytes(2, "big")),
        ),
    )
