"""Test packets that niso builds and parses: checksums, logged packets."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.sctp import SCTP, crc32c

from niso.base.errors import Conflict, KernelError
from niso.kernel import packet_events, probe

FOUR = {"src": "10.99.1.2", "dst": "10.99.1.3"}
SIX = {"src": "fd00::2", "dst": "fd00::3"}


@given(st.binary(max_size=64))
def test_checksum_of_sctp(data: bytes) -> None:
    assert struct.pack("<I", probe._crc32c(data)) == struct.pack(
        ">I", crc32c(data)
    )  # as on the wire


def test_checksum_of_sctp_is_that_of_the_standard() -> None:
    assert probe._crc32c(b"123456789") == 0xE3069283


@given(st.binary(min_size=4, max_size=64).filter(lambda data: len(data) % 2 == 0))
def test_checksum_of_the_internet(data: bytes) -> None:
    data = data[:2] + b"\0\0" + data[4:]
    total = sum(struct.unpack(f"!{len(data) // 2}H", probe._with_sum(data, 2, data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (IP(**FOUR) / TCP(dport=80), (80, "tcp")),
        (IP(**FOUR, options=[b"\x94\x04\0\0"]) / UDP(dport=53), (53, "udp")),
        (IP(**FOUR, proto=132) / SCTP(dport=9), (9, "sctp")),
        (IP(**FOUR) / ICMP(), (None, "icmp")),
        (IP(**FOUR, proto=47) / (b"x" * 20), (None, "47")),
        (IP(**FOUR, frag=10, proto=17) / (b"x" * 20), (None, "udp")),
        (IP(**FOUR, proto=6) / b"\1", (None, "tcp")),
        (IPv6(**SIX) / TCP(dport=80), (80, "tcp")),
        (IPv6(**SIX) / ICMPv6EchoRequest(), (None, "icmp")),
        (IPv6(**SIX) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(dport=53), (53, "udp")),
        (IPv6(**SIX) / IPv6ExtHdrRouting(addresses=["fd00::3"]) / TCP(dport=80), (80, "tcp")),
        (IPv6(**SIX) / IPv6ExtHdrFragment(m=1) / UDP(dport=53), (53, "udp")),
        (IPv6(**SIX) / IPv6ExtHdrFragment(offset=8, nh=17) / (b"x" * 20), (None, "udp")),
    ],
)
def test_what_a_packet_says(packet: IP | IPv6, said: tuple[int | None, str]) -> None:
    ends = (FOUR if packet.version == 4 else SIX).values()
    assert packet_events._ends(bytes(packet)) == (*ends, *said)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_none(data: bytes) -> None:
    for start in (b"", b"\x45", b"\x60"):
        found = packet_events._ends(start + data)
        if found is not None:
            for address in found[:2]:
                socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@pytest.mark.parametrize(
    ("number", "held", "kind", "words"),
    [
        (
            errno.EINVAL,
            "",
            KernelError,
            "this kernel lacks nfnetlink_log",
        ),  # as nfnetlink says of a subsystem it lacks
        (errno.EOPNOTSUPP, "", KernelError, "this kernel lacks nfnetlink_log"),
        (
            errno.EPERM,
            "another process (pid 7)",
            Conflict,
            r"another process \(pid 7\) already reads the dropped packets",
        ),
        (errno.EPERM, "", KernelError, "not permitted"),
        (errno.ENOMEM, "", KernelError, "no memory"),
    ],
)
def test_group_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, number: int, held: str, kind: type[Exception], words: str
) -> None:
    def fail(*_: object) -> None:
        raise KernelError(
            {errno.EPERM: "not permitted", errno.ENOMEM: "no memory"}.get(number, "?"), None, number
        )

    monkeypatch.setattr(packet_events.Nflog, "transact", fail)
    monkeypatch.setattr(packet_events, "_holder", lambda _: held)
    with pytest.raises(kind, match=words):
        packet_events.Nflog(1)
