"""Read, delete and add single conntrack entries, for policies.

It uses ctnetlink (linux/netfilter/nfnetlink_conntrack.h). `niso.kernel.conntrack` ends all flows of
changed ports or addresses.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.conntrack import (
    _ABSENT,
    _CHUNK,
    _CT_DELETE,
    _CT_GET,
    _DESTINATION,
    _ID,
    _PROTO_NUM,
    _SEEN_REPLY,
    _SOURCE,
    _STATUS,
    _TUPLE_IP,
    _TUPLE_ORIG,
    _TUPLE_PROTO,
    _TUPLE_REPLY,
    _ZONE,
)
from niso.kernel.netlink import Message, attribute, attributes, nested
from niso.kernel.nft_elements import nfgenmsg
from niso.kernel.sockdiag import Connection

_CT_NEW = 0x0100
_PROTOINFO, _TIMEOUT = 4, 7
_SRC_PORT, _DST_PORT = 2, 3
_PROTOINFO_TCP, _TCP_STATE, _TCP_FLAGS_ORIG, _TCP_FLAGS_REPLY = 1, 1, 4, 5
_ASSURED, _CONFIRMED = 0x4, 0x8  # IPS_*; niso confirms its entries at once
_ESTABLISHED = 3  # TCP_CONNTRACK_ESTABLISHED
_BE_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL: niso does not know the TCP windows
_IDLE_S = 432_000  # the default of nf_conntrack_tcp_timeout_established
_NAMES = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}


class Flow(NamedTuple):
    """A flow from ``source`` to ``destination`` and ``port``, after NAT.

    ``proto`` is the protocol's name in policies. ``port`` is None if the protocol has none.
    ``handle`` is for `end`.
    """

    source: str
    destination: str
    port: int | None
    proto: str
    handle: bytes


def of(addresses: Iterable[str]) -> list[Flow]:
    """Return the flows with one of these addresses at either end, before or after NAT.

    Raises KernelError.
    """
    wanted = set(addresses)
    flows = []
    with netlink.Netfilter() as kernel:
        for flow, ends in kernel.dump(
            "list conntrack entries", _CT_GET, nfgenmsg(socket.AF_UNSPEC), _parse, _ABSENT
        ):
            if not wanted.isdisjoint(ends):
                flows.append(flow)
    return flows


class Tracked(NamedTuple):
    """A flow as sent and as answered; without NAT, the answer is the reverse.

    ``port`` is the destination port as sent, ``answers_port`` the destination port of the reply.
    ``answered``: a reply has been seen. ``handle`` is for `end`.
    """

    proto: str
    source: str
    destination: str
    port: int | None
    answers_from: str
    answers_to: str
    answers_port: int | None
    answered: bool
    handle: bytes


class Open(NamedTuple):
    """An open flow from ``source``, to ``destination`` and ``port`` after DNAT.

    TCP connections are established; flows of other protocols have had a reply.
    """

    proto: str
    source: str
    source_port: int
    destination: str
    port: int


def opened() -> list[Open]:
    """Return the tracked open flows of TCP, UDP and SCTP. Raises KernelError."""
    with netlink.Netfilter() as kernel:
        return kernel.dump(
            "list conntrack entries", _CT_GET, nfgenmsg(socket.AF_UNSPEC), _open, _ABSENT
        )


def tracked() -> list[Tracked]:
    """Return all tracked flows. Raises KernelError."""
    with netlink.Netfilter() as kernel:
        return kernel.dump(
            "list conntrack entries", _CT_GET, nfgenmsg(socket.AF_UNSPEC), _whole, _ABSENT
        )


def end(flows: Iterable[Flow | Tracked]) -> int:
    """Delete these flows, so that their next packet counts as the first of a new flow.

    Returns the number of deleted flows. Raises KernelError.
    """
    handles = [flow.handle for flow in flows]
    with netlink.Netfilter() as kernel:
        for start in range(0, len(handles), _CHUNK):
            chunk = handles[start : start + _CHUNK]
            what = f"delete {len(chunk)} conntrack entries"
            kernel.transact(
                *(Message(what, _CT_DELETE, 0, body, (errno.ENOENT,)) for body in chunk)
            )
    return len(handles)


def introduce(connections: Iterable[Connection]) -> None:
    """Add open connections to connection tracking as established; no-op for tracked ones.

    Use it for a bridge that is about to track its frames: otherwise a packet from the middle of a
    connection would count as its start. Raises KernelError.
    """
    bodies = [_new(connection) for connection in connections]
    with netlink.Netfilter() as kernel:
        for start in range(0, len(bodies), _CHUNK):
            chunk = bodies[start : start + _CHUNK]
            flags = netlink.CREATE | netlink.EXCL
            kernel.transact(
                *(
                    Message("track a connection", _CT_NEW, flags, body, (errno.EEXIST,))
                    for body in chunk
                )
            )


def _parse(body: bytes) -> tuple[Flow, set[str]]:
    family = body[0]
    entry = attributes(body, 4)
    sent, answered = attributes(entry[_TUPLE_ORIG]), attributes(entry[_TUPLE_REPLY])
    from_, to = _addresses(family, sent)
    back_from, back_to = _addresses(family, answered)
    ports = attributes(answered[_TUPLE_PROTO])
    number = ports[_PROTO_NUM][0]
    proto = _NAMES.get(number, str(number))
    port = (
        int.from_bytes(ports[_SRC_PORT], "big") if _SRC_PORT in ports and proto != "icmp" else None
    )
    tail = b"".join(attribute(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)
    handle = nfgenmsg(family) + nested(_TUPLE_ORIG, entry[_TUPLE_ORIG]) + tail
    return Flow(from_, back_from, port, proto, handle), {from_, to, back_from, back_to}


def _open(body: bytes) -> Open | None:
    entry = attributes(body, 4)
    flow, _ = _parse(body)
    if flow.port is None:
        return None
    if flow.proto == "tcp":
        tcp = attributes(attributes(entry.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b""))
        if tcp.get(_TCP_STATE) != bytes([_ESTABLISHED]):
            return None
    elif not int.from_bytes(entry.get(_STATUS, b""), "big") & _SEEN_REPLY:
        return None
    ports = attributes(attributes(entry[_TUPLE_ORIG])[_TUPLE_PROTO])
    own = int.from_bytes(ports[_SRC_PORT], "big")
    return Open(flow.proto, flow.source, own, flow.destination, flow.port)


def _whole(body: bytes) -> Tracked:
    entry = attributes(body, 4)
    sent, answer = attributes(entry[_TUPLE_ORIG]), attributes(entry[_TUPLE_REPLY])
    flow, _ = _parse(body)
    return Tracked(
        flow.proto,
        *_addresses(body[0], sent),
        _sent_to(sent, flow),
        *_addresses(body[0], answer),
        _sent_to(answer, flow),
        bool(int.from_bytes(entry.get(_STATUS, b""), "big") & _SEEN_REPLY),
        flow.handle,
    )


def _sent_to(tuple_: dict[int, bytes], flow: Flow) -> int | None:
    port = attributes(tuple_[_TUPLE_PROTO]).get(_DST_PORT)
    return int.from_bytes(port, "big") if port is not None and flow.port is not None else None


def _addresses(family: int, tuple_: dict[int, bytes]) -> tuple[str, str]:
    ends = attributes(tuple_[_TUPLE_IP])
    source, destination = ends[_SOURCE[family]], ends[_DESTINATION[family]]
    return socket.inet_ntop(family, source), socket.inet_ntop(family, destination)


def _new(connection: Connection) -> bytes:
    family = socket.AF_INET6 if family_of(connection.client) == 6 else socket.AF_INET
    client = (connection.client, connection.client_port)
    server = (connection.server, connection.server_port)
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
            attribute(_SOURCE[family], socket.inet_pton(family, source[0])),
            attribute(_DESTINATION[family], socket.inet_pton(family, destination[0])),
        ),
        nested(
            _TUPLE_PROTO,
            attribute(_PROTO_NUM, bytes([socket.IPPROTO_TCP])),
            attribute(_SRC_PORT, source[1].to_bytes(2, "big")),
            attribute(_DST_PORT, destination[1].to_bytes(2, "big")),
        ),
    )
