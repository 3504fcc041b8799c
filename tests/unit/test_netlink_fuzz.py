"""Test that any netlink input yields values or a KernelError, quickly.

``netlink_answers.json`` has messages of a real kernel (Linux 6.18, one service with a policy and a published port); they are cut
off, altered, doubled, put out of order, and mixed with bytes.
"""

from __future__ import annotations

import errno
import json
import pathlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import samples

from niso.base.errors import KernelError
from niso.kernel import (
    conntrack,
    foreign_chains,
    link_records,
    netlink,
    nft_elements,
    packet_events,
    probe,
    rtnetlink,
    ruleset,
    sockets,
)

ANSWERS = {
    name: [bytes.fromhex(message) for message in messages]
    for name, messages in json.loads(
        pathlib.Path(__file__).with_name("netlink_answers.json").read_text()
    ).items()
}
BOUNDED = settings(max_examples=samples(50, 2000), deadline=None)

ERROR, DONE = 2, 3
MULTI, INTERRUPTED = 0x2, 0x10


class Kernel:
    """A fake socket that delivers ``datagrams``, each (bytes, sender's port), and then times out."""

    def __init__(self, datagrams: list[tuple[bytes, int]]) -> None:
        self.datagrams = datagrams
        self.asked = 0

    def sendto(self, packet: bytes, _: object) -> None:
        self.asked += 1

    def setsockopt(self, *_: object) -> None:
        pass

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        if not self.datagrams:
            raise OSError(errno.ETIMEDOUT, "no more datagrams")
        data, sender = self.datagrams.pop(0)
        return data[:size], [], socket.MSG_TRUNC if len(data) > size else 0, (sender, 0)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.recvmsg(size)[0]

    def close(self) -> None:
        pass


def message(kind: int, sequence: int, body: bytes, flags: int = MULTI) -> bytes:
    return (
        struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0)
        + body
        + bytes(-len(body) % 4)
    )


def done(sequence: int = 1, flags: int = MULTI) -> bytes:
    return message(DONE, sequence, bytes(4), flags)


def of(kind: type, said: list[bytes]) -> Any:
    """Return a reader of that kind whose kernel sends these datagrams."""
    reader = kind.__new__(kind)
    reader._socket = Kernel([(each, 0) for each in said])
    reader._sequence = 0
    return reader


def _foreign(said: list[bytes]) -> Any:
    reader = of(foreign_chains.ForeignChains, said)
    reader._rules, reader._key_lengths, reader._elements = {}, {}, {}
    return (
        reader.base_chains(),
        reader.rules(2, "t", "c"),
        reader.key_length(2, "t", "s"),
        reader.element(2, "t", "s", b"x"),
    )


def _log(said: list[bytes]) -> Any:
    return [each for _ in said for each in of(packet_events.Nflog, said).read() or ()]


ANSWERS["elements"] = [ANSWERS["element"][0], done()]
H4 = nft_elements.HEADERS["inet niso", "publish_any4"]
ELEMENT = nft_elements.Element("inet niso", "publish_any4", ("tcp", 1), ("10.0.0.1", 2))
COUNTED = [nft_elements.HEADERS["inet niso", name] for name in sorted(ruleset.COUNTED)]
READERS: dict[str, Callable[[list[bytes]], Any]] = {
    "links": lambda said: of(rtnetlink.Rtnl, said).links(),
    "link": lambda said: of(rtnetlink.Rtnl, said).link("lo"),
    "addresses": lambda said: of(rtnetlink.Rtnl, said).addresses(),
    "routes": lambda said: of(rtnetlink.Rtnl, said).routes(),
    "traffic": lambda said: of(netlink.Netlink, said).dump(
        "read counters", 94, b"", link_records._parse_counters
    ),
    "listeners": lambda said: of(netlink.Netlink, said).dump(
        "list sockets", 20, b"", sockets._parse
    ),
    "connections": lambda said: of(netlink.Netlink, said).dump(
        "list sockets", 20, b"", sockets._parse_ends
    ),
    "measured": lambda said: of(netlink.Netlink, said).dump(
        "list sockets", 20, b"", sockets._parse_measured
    ),
    "flows": lambda said: of(netlink.Netlink, said).dump(
        "list conntrack entries", 257, b"", conntrack._parse
    ),
    "header": lambda said: of(nft_elements.Nfnetlink, said).all_of("inet niso", "publish_any4"),
    "element": lambda said: of(nft_elements.Nfnetlink, said).get([(H4, ("tcp", 8080))]),
    "elements": lambda said: of(nft_elements.Nfnetlink, said).all_elements(H4),
    "counts": lambda said: [
        of(nft_elements.Nfnetlink, list(said)).counts(each) for each in COUNTED
    ],
    "foreign": _foreign,
    "log": _log,
    "change": lambda said: of(netlink.Netlink, said).transact(
        netlink.Message("change", 16, 0, b"")
    ),
    "batch": lambda said: of(nft_elements.Nfnetlink, said).change("change", [("add", ELEMENT)]),
}


def read(name: str, said: list[bytes]) -> Any:
    """What a reader makes of it; None for a KernelError, which must be one that can be shown."""
    try:
        return READERS[name](list(said))
    except KernelError as error:
        assert error.message.startswith("cannot "), error.message
        return None


def whole(name: str) -> list[bytes]:
    """The answers as the kernel gave them, to a first question."""
    said = []
    for each in ANSWERS.get(name, [done()]):
        length, kind, flags, _, port = struct.unpack_from("=IHHII", each)
        said.append(struct.pack("=IHHII", length, kind, flags, 1, port) + each[16:])
    return said


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "foreign"])
def test_answers_of_a_real_kernel_are_read(name: str) -> None:
    said = whole(name)
    if name in ("header", "element", "link"):
        said = said[:1]
    if name == "counts":
        of_name = {"in4_rest": b"in4_rest\0", "in4_prefix_ports": b"in4_prefix_ports\0"}
        headers = [(h, one) for h in COUNTED for one in said if of_name.get(h.name, b"-") in one]
        assert headers and all(
            of(nft_elements.Nfnetlink, [one, said[-1]]).counts(h) for h, one in headers
        )
        return
    if name in (
        "addresses",
        "routes",
    ):  # asked for each family: the second answer has the next sequence number
        said.append(message(DONE, 2, bytes(4)))
    if name == "header":  # and then for the elements, of which there is none
        said.append(message(DONE, 2, bytes(4)))
    found = read(name, said)
    assert found if name not in ("routes", "header") else found is not None


@st.composite
def altered(draw: st.DrawFn, name: str) -> list[bytes]:
    """What a kernel might say to ``name`` if it, or memory on the way, were not well."""
    said = draw(st.permutations(whole(name))) if draw(st.booleans()) else whole(name)
    said = list(said)
    for _ in range(draw(st.integers(1, 4))):
        which = draw(st.integers(0, len(said) - 1))
        data = bytearray(said[which])
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(
            st.sampled_from(
                [
                    "cut",
                    "flip",
                    "length",
                    "attribute",
                    "insert",
                    "double",
                    "drop",
                    "sequence",
                    "kind",
                    "bytes",
                    "tail",
                ]
            )
        ):
            case "cut":
                del data[at:]
            case "tail":  # the message says the truth, but lacks its end
                del data[at:]
                if len(data) >= 16:
                    data[:4] = struct.pack("=I", len(data))
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "length" if len(data) >= 4:
                data[:4] = struct.pack(
                    "=I",
                    draw(st.sampled_from([0, 1, 15, 16, 17, 20, len(data) + 4, 2**31, 2**32 - 1])),
                )
            case "attribute" if len(data) > 24:
                at = 16 + (at & ~3) % (len(data) - 20)
                data[at : at + 4] = struct.pack(
                    "=HH", draw(st.integers(0, 65535)), draw(st.integers(0, 65535))
                )
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "double":
                said.insert(which, bytes(data))
            case "drop":
                data.clear()
            case "sequence" if len(data) >= 12:
                data[8:12] = struct.pack("=I", draw(st.sampled_from([0, 1, 2, 3, 2**32 - 1])))
            case "kind" if len(data) >= 8:
                data[4:8] = struct.pack(
                    "=HH", draw(st.sampled_from([ERROR, DONE, 1, 4])), draw(st.integers(0, 0x3FF))
                )
            case "bytes":
                data = bytearray(draw(st.binary(max_size=64)))
        said[which] = bytes(data)
    return [b"".join(said)] if draw(st.booleans()) else said


@pytest.mark.parametrize("name", READERS)
def test_no_answer_makes_a_reader_fail_but_with_words(name: str) -> None:
    @settings(max_examples=samples(20, 2000), deadline=None)
    @given(altered(name))
    def go(said: list[bytes]) -> None:
        read(name, said)

    go()


@BOUNDED
@given(st.sampled_from(sorted(READERS)), st.lists(st.binary(max_size=200), max_size=4))
def test_no_bytes_make_a_reader_fail_but_with_words(name: str, said: list[bytes]) -> None:
    read(name, said)


@BOUNDED
@given(
    st.sampled_from(sorted(READERS)),
    st.integers(0, 70_000),
    st.binary(max_size=200),
    st.integers(0, 1024),
)
@example("flows", 1, b"", 0)
@example("listeners", 20, b"\x02", 0)
def test_no_body_makes_a_reader_fail_but_with_words(
    name: str, kind: int, body: bytes, flags: int
) -> None:
    read(name, [message(kind & 0xFFFF, 1, body, flags), done(), message(DONE, 2, b"")])


# --- one by one ------------------------------------------------------------------------------------------------------

LINK = whole("links")[0]
TRUNCATED = [
    LINK[:-4],  # the message is longer than what came
    struct.pack("=I", 0) + LINK[4:],
    struct.pack("=I", 15) + LINK[4:],
    message(
        16, 1, bytes(16) + struct.pack("=HH", 200, 3) + b"eth0"
    ),  # an attribute is longer than its message
    message(ERROR, 1, b""),
    message(ERROR, 1, b"\0\0"),
    message(ERROR, 1, struct.pack("=i", 5) + bytes(16)),  # success, and more
    message(ERROR, 1, struct.pack("=i", -(2**31)) + bytes(16)),
    message(ERROR, 1, struct.pack("=i", -5000) + bytes(16)),
]


@pytest.mark.parametrize("said", TRUNCATED)
def test_half_an_answer_is_an_error_and_no_answer(said: bytes) -> None:
    with pytest.raises(KernelError, match="cannot list links: ") as raised:
        READERS["links"]([said, done()])
    assert raised.value.errno == errno.EBADMSG


def test_error_message_is_told_with_the_kernels_words() -> None:
    words = netlink.text(1, "no \x1b such\n thing")
    body = struct.pack("=i", -errno.ENODEV) + struct.pack("=I", 16) + bytes(12) + words
    with pytest.raises(KernelError) as raised:
        READERS["change"]([message(ERROR, 1, body, 0x200 | 0x100)])
    assert (
        raised.value.errno == errno.ENODEV
        and "no such device (no \x1b such" in raised.value.message
    )


def test_acknowledgement_of_another_number_is_none() -> None:
    """Neither an older one nor one that was never asked for counts; without its own the step has failed."""
    ack = struct.pack("=i", 0) + bytes(16)
    said = [message(ERROR, 0, ack), message(ERROR, 2, ack), message(ERROR, 2**32 - 1, ack)]
    with pytest.raises(KernelError, match="timed out"):
        READERS["change"](said)
    READERS["change"]([*said, message(ERROR, 1, ack)])


def test_what_the_kernel_does_not_send_itself_does_not_count() -> None:
    """As a service with NET_ADMIN could send to a socket of niso's in its namespace: here a refusal as success."""
    reader = of(netlink.Netlink, [])
    forged = message(ERROR, 1, struct.pack("=i", 0) + bytes(16))
    true = message(ERROR, 1, struct.pack("=i", -errno.EEXIST) + bytes(16))
    reader._socket.datagrams = [(forged, 4711), (true, 0)]
    with pytest.raises(KernelError, match="file exists"):
        reader.transact(netlink.Message("change", 16, 0, b""))


def test_dump_that_is_interrupted_is_asked_for_again_and_not_without_end() -> None:
    once = of(rtnetlink.Rtnl, [LINK, done(1, MULTI | INTERRUPTED)])
    again = struct.pack("=I", len(LINK)) + LINK[4:8] + struct.pack("=I", 2) + LINK[12:]
    once._socket.datagrams += [(again, 0), (done(2), 0)]
    assert len(once.links()) == 1 and once._socket.asked == 2
    for_ever = of(rtnetlink.Rtnl, [done(number, MULTI | INTERRUPTED) for number in range(1, 100)])
    with pytest.raises(KernelError, match="changed during each of 10 dumps"):
        for_ever.links()


def test_answer_that_is_larger_than_the_buffer_is_an_error() -> None:
    with pytest.raises(KernelError) as raised:
        READERS["links"]([LINK + bytes(1 << 18), done()])
    assert raised.value.errno == errno.EBADMSG


@BOUNDED
@given(
    st.binary(max_size=80), st.sampled_from(["tcp", "udp", "sctp", "icmp"]), st.sampled_from([4, 6])
)
@example(b"", "tcp", 4)
@example(b"\x45", "icmp", 4)
def test_no_packet_of_a_service_makes_a_probe_fail(packet: bytes, proto: str, version: int) -> None:
    one = probe.ProbePacket.__new__(probe.ProbePacket)
    one._version, one._proto, one._token, one._port, one._own_port = version, proto, b"abcd", 80, 1
    one._is_own(packet, 80)
    if packet or proto == "udp":  # a raw socket gives a packet with its header
        one._is_answer(packet)


@BOUNDED
@given(st.binary(max_size=120))
def test_no_packet_makes_the_log_fail(packet: bytes) -> None:
    packet_events._ends(packet)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_time_of_a_logged_packet_can_always_be_shown(seconds: int, micros: int) -> None:
    from niso.base.text import time_text

    body = (
        bytes(4)
        + netlink.attribute(3, struct.pack("!QQ", seconds, micros))
        + netlink.attribute(9, b"\x45" + bytes(30))
    )
    found = packet_events._parse(body)
    assert found is not None and time_text(found.time)


def test_no_attribute_of_an_entry_makes_the_flush_of_flows_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = netlink.Netlink

    @settings(max_examples=samples(20, 600), deadline=None)
    @given(altered("flows"))
    def go(said: list[bytes]) -> None:
        stats = message(0x105, 1, bytes(4) + netlink.attribute(1, b"\0\0\0\1"))
        later = []
        for each in said:  # the dump is the second question
            is_whole = len(each) >= 16 and each[8:12] == b"\1\0\0\0"
            later.append(each[:8] + b"\2\0\0\0" + each[12:] if is_whole else each)
        reader = of(plain, [stats, *later])
        monkeypatch.setattr(netlink, "Netlink", lambda _: reader)
        try:
            conntrack.flush_ports([("tcp", 8080, 8080)], lambda: ["192.0.2.1"], True)
        except KernelError:
            pass

    go()
