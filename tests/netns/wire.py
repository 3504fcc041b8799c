"""Hold sockets in any namespace of a lab, to send and receive from the test.

A socket belongs to the network namespace in which it was made, whoever holds it. One process in the lab makes them there and
passes them out, so a test can be client, server, attacker and watcher of all namespaces at once without a process for each.
Frames are built by scapy in the test; SCTP, for which the kernel may have no sockets, is spoken over raw ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket
import struct
import time
from typing import Any

from conftest import Lab

logging.getLogger("scapy").setLevel(
    logging.CRITICAL
)  # it warns of the machine's own routes, which are not its business
from scapy.layers.sctp import (  # noqa: E402
    SCTP,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkParamHeartbeatInfo,
    crc32c,
)

ETH_P_ALL = 3
PACKET_OUTGOING = 4  # linux/if_packet.h
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOLS = ("tcp", "udp", "sctp")

FACTORY = """\
import json, os, socket
control = socket.socket(fileno=0)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
while message := control.recv(4096):
    netns, *what = json.loads(message)
    try:
        there = os.open(f"/run/netns/{netns}", os.O_RDONLY) if netns else os.dup(home)
        os.setns(there, os.CLONE_NEWNET)
        os.close(there)
        with socket.socket(*what) as made:
            socket.send_fds(control, [b"ok"], [made.fileno()])
    except OSError as error:
        control.send(f"{netns or 'the host'}: {error}".encode())
"""


class Wire:
    """``with Wire(lab) as wire``: gives sockets of the lab's namespaces, and closes all of them at its end."""

    def __init__(self, lab: Lab) -> None:
        # a shell's own limit, often 1,024, is too low for some tests
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
        self.lab = lab
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Wire:
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(60)
        with far:
            self._factory = self.lab.popen("python3", "-ISc", FACTORY, stdin=far.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()
        self._control.close()
        self._factory.wait(20)

    def socket(
        self, netns: str | None, family: int, kind: int, proto: int = 0, keep: bool = True
    ) -> socket.socket:
        """A socket of ``netns`` (None: the lab's host) that does not block. Without ``keep`` the caller closes it."""
        self._control.send(json.dumps([netns, family, kind, proto]).encode())
        message, fds, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not fds:
            raise OSError(message.decode())
        made = socket.socket(fileno=fds[0])
        made.setblocking(False)
        if keep:
            self._sockets.append(made)
        return made

    def link(self, netns: str | None, link: str) -> Link:
        return Link(self, netns, link)


class Link:
    """A link as the wire has it: sends whole frames and sees those that come in (and, on request, go out)."""

    def __init__(self, wire: Wire, netns: str | None, link: str) -> None:
        self.name = f"{netns or 'host'}:{link}"
        self._socket = wire.socket(netns, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((link, ETH_P_ALL))
        self.seen: list[bytes] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: Any) -> None:
        self._socket.send(bytes(frame))

    def look(self) -> list[bytes]:
        """All frames that came in until now; kept in ``seen``."""
        while True:
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return self.seen
            if kind != PACKET_OUTGOING:
                self.seen.append(frame)

    def saw(self, marker: bytes) -> bool:
        """Whether a frame with these bytes has come in."""
        return any(marker in frame for frame in self.look())


class Ear:
    """A UDP socket on an address of the host, to see what its own programs would get; looks like a `Link`."""

    def __init__(self, wire: Wire, address: str, port: int) -> None:
        self.name = f"host:{address} {port}/udp"
        family = 6 if ":" in address else 4
        self._socket = wire.socket(None, FAMILY[family], socket.SOCK_DGRAM)
        if family == 6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.bind((address, port))
        self.seen: list[bytes] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def look(self) -> list[bytes]:
        while True:
            try:
                self.seen.append(self._socket.recv(65536))
            except BlockingIOError:
                return self.seen

    def saw(self, marker: bytes) -> bool:
        return any(marker in data for data in self.look())


MDNS, HAZELCAST, ALL, MDNS6 = "224.0.0.251", "224.2.2.3", "255.255.255.255", "ff02::fb"


class Ears:
    """UDP sockets on port 5353 of services and of the host, in the groups of mDNS and Hazelcast."""

    def __init__(self, lab: Lab, wire: Wire, links: dict[str, tuple[str | None, str]]) -> None:
        self.lab, self.wire = lab, wire
        self.of: dict[str, dict[int, socket.socket]] = {}
        self.index: dict[str, int] = {}
        for name, (netns, link) in links.items():
            shown = lab.ip_json("address", "show", "dev", link, netns=netns)[0]
            self.index[name] = index = shown["ifindex"]
            own = self.of[name] = {
                n: wire.socket(netns, FAMILY[n], socket.SOCK_DGRAM) for n in (4, 6)
            }
            own[4].setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            own[6].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for ear in own.values():
                ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                ear.bind(("", 5353))
            for group in (MDNS, HAZELCAST):
                mreqn = struct.pack("4s4si", socket.inet_aton(group), bytes(4), index)
                own[4].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, mreqn)
                if netns is None:  # a service has a route for them
                    own[4].setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, mreqn)
            mreq6 = struct.pack("16si", socket.inet_pton(socket.AF_INET6, MDNS6), index)
            own[6].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, mreq6)
            # so that a sender hears itself only if the bridge sends its frame back
            own[4].setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            own[6].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)

    def say(self, name: str, to: str, port: int = 5353, text: str = "") -> None:
        six = ":" in to
        where = (to, port, 0, self.index[name]) if six else (to, port)
        self.of[name][6 if six else 4].sendto((text or to).encode(), where)

    def heard(self, name: str) -> list[str]:
        found = []
        for ear in self.of[name].values():
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(ear.recv(2000).decode())
        return found

    def hearers(self, sender: str, to: str) -> set[str]:
        """Return who hears a packet of ``sender``. Of its own broadcasts, it always hears a copy."""
        self.say(sender, to)
        time.sleep(0.2)
        found = {name for name in self.of if to in self.heard(name)}
        return found - {sender} if to.endswith("255") else found


class Addresses:
    """What the kernel has given to a link of a namespace, read by ``ip -j``."""

    def __init__(self, lab: Lab, netns: str | None, link: str = "eth0") -> None:
        def settled() -> dict[str, Any] | None:
            found = lab.ip_json("address", "show", "dev", link, netns=netns)[0]
            return None if any(entry.get("tentative") for entry in found["addr_info"]) else found

        found = lab.wait_for(
            settled, what=f"no tentative address on {link} of {netns or 'the host'}"
        )
        self.mac: str = found["address"]
        self.index: int = found["ifindex"]
        for family, name in ((4, "inet"), (6, "inet6")):
            here = [
                e["local"]
                for e in found["addr_info"]
                if e["family"] == name and e["scope"] == "global"
            ]
            setattr(self, f"ip{family}", here[0] if here else "")

    ip4: str
    ip6: str

    def ip(self, family: int) -> str:
        """Its first address of a family, "" where it has none."""
        return self.ip4 if family == 4 else self.ip6


def sctp_init(source: int, target: int, tag: int, data: bytes = b"") -> bytes:
    """An SCTP packet that asks for an association (RFC 9260, 3.3.2), with its CRC32c; ``data`` rides on a parameter."""
    params = [SCTPChunkParamHeartbeatInfo(data=data)] if data else []
    chunk = SCTPChunkInit(init_tag=tag, a_rwnd=65536, init_tsn=1, params=params)
    return bytes(SCTP(sport=source, dport=target, tag=0) / chunk)


def sctp_init_ack(asked: bytes) -> bytes:
    """The answer to `sctp_init`: its tag comes back, so that the one who asked knows it for the answer."""
    source, target = struct.unpack_from("!HH", asked)
    tag = struct.unpack_from("!I", asked, 16)[0]
    return bytes(
        SCTP(sport=target, dport=source, tag=tag)
        / SCTPChunkInitAck(init_tag=tag ^ 0xFFFFFFFF, a_rwnd=65536, init_tsn=1)
    )


def sctp_sound(packet: bytes) -> bool:
    """Whether its CRC32c is right, which a change of ports on the way must not spoil."""
    return crc32c(packet[:8] + bytes(4) + packet[12:]) == struct.unpack_from("!I", packet, 8)[0]


def sctp_chunk(packet: bytes) -> int:
    """The type of the first chunk: 1 INIT, 2 INIT ACK, 6 ABORT."""
    return packet[12]


def raw_payload(family: int, packet: bytes) -> bytes:
    """What a raw socket received, without the IPv4 header that it gets in that family alone (raw(7), ipv6(7))."""
    return packet[(packet[0] & 15) * 4 :] if family == 4 else packet


class Deadline:
    """Ends a loop: ``while not deadline.over()``."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() > self._end
