"""Observe thousands of real packets between all places of a lab at once, through the test's sockets.

A place is a network namespace: a service's, the host's (None), ``client``'s, ``neighbour``'s. On every address of each there
are listeners of TCP and UDP, and raw ones of SCTP, ICMP and a protocol without ports; they note who came, and answer. TCP is
also seen as the wire has it, so that a first packet that arrives is noticed where its answer is lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from wire import ETH_P_ALL, FAMILY, Wire, raw_payload, sctp_chunk, sctp_init, sctp_init_ack

INIT, INIT_ACK = 1, 2
ECHO = {4: (8, 0), 6: (128, 129)}  # request, reply
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
OTHER = 253
"""Protocols without ports: the host's own. Each place sends another, so that no packet is taken for the answer to one before."""
LOW_FDS = 1100  # select(2), which others here use, takes none above 1023
SYN, ACK = 0x02, 0x10
PACKET_HOST = 0  # linux/if_packet.h
PATIENCE_SECONDS = 4
ANSWER_SECONDS = 30
"""How long what should pass may take on a busy machine."""
QUIET_SECONDS = 0.15

Place = str | None


class Cell(NamedTuple):
    """One packet to be sent: from an address of a place to an address and port; ``proto`` as the engine says it."""

    place: Place
    source: str
    to: str
    port: int | None
    proto: str
    link: str = ""  # by which a link-local address is meant

    def __str__(self) -> str:
        to = f"[{self.to}]" if ":" in self.to else self.to
        where = f"{to}{f'%{self.link}' if self.link else ''}{f':{self.port}' if self.port is not None else ''}"
        return f"{self.place or 'host'} {self.source} -> {where}/{self.proto}"


class Seen(NamedTuple):
    place: Place
    address: str
    port: int | None


class Fate:
    """What came of a cell: who saw it, and whether the place that was asked answered."""

    def __init__(self) -> None:
        self.seen: set[Seen] = set()
        self.answered = False
        self.started_at: set[Place] = set()  # where the start of a TCP connection came in by a wire

    def __str__(self) -> str:
        who = ", ".join(
            f"{s.place or 'host'} at {s.address} {s.port or ''}".strip()
            for s in sorted(self.seen, key=str)
        )
        wire = ", ".join(str(place) for place in self.started_at)
        return f"seen by {who or 'nobody'}{f' (SYN at {wire})' if wire else ''}, {'' if self.answered else 'not '}answered"


def family(address: str) -> int:
    return 6 if ":" in address else 4


class Fates:
    """``with Fates(wire, places, ports) as fates``: ``places`` are the addresses of each place with the link they are on.

    All listen on ``ports``, the host on the first of them alone: others are free to be published.
    Sockets of UDP stay from one call of `of` to the next, so an open flow meets each change.
    """

    numbers = itertools.count(1)

    def __init__(
        self, wire: Wire, places: dict[Place, list[tuple[str, str, int]]], ports: Sequence[int]
    ) -> None:
        self._wire = wire
        self._selector = selectors.EpollSelector()
        self._others = [OTHER - number_of(place) for place in places]
        self._index = {
            (place, link): index for place, found in places.items() for _, link, index in found
        }
        self._raw: dict[tuple[Place, str, int], socket.socket] = {}
        self._udp: dict[Cell, socket.socket] = {}
        self._sources: dict[tuple[Place, str, str], str | None] = {}
        self._all: list[socket.socket] = []
        self._of: dict[int, Fate] = {}
        self._asked: dict[int, Cell] = {}
        self._by_port: dict[int, int] = {}
        for place, found in places.items():
            for address, _, index in found:
                self._listen(
                    place,
                    address,
                    index if address.startswith("fe80:") else 0,
                    ports[:1] if place is None else ports,
                )
            if place is not None:
                for link in {link for _, link, _ in found if link != "lo"}:
                    self._watch(place, link)

    def __enter__(self) -> Fates:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._all, *self._udp.values()):
            each.close()
        self._selector.close()

    # --- who listens --------------------------------------------------------------------------------------------------

    def _listen(self, place: Place, address: str, scope: int, ports: Sequence[int]) -> None:
        def at(port: int) -> tuple[object, ...]:
            return (address, port, 0, scope) if ":" in address else (address, port)

        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                made = self._make(place, family(address), kind)
                made.bind(at(port))
                if kind == socket.SOCK_STREAM:
                    made.listen(4096)
                here = Seen(place, address, port)
                self._on(made, self._accept if kind == socket.SOCK_STREAM else self._datagram, here)
        if place is None and address.startswith("127."):
            return
        protocols = [socket.IPPROTO_SCTP, ICMP[family(address)], *self._others]
        for proto in protocols:
            made = self._make(place, family(address), socket.SOCK_RAW, proto)
            made.bind(at(0))
            call = {socket.IPPROTO_SCTP: self._sctp, ICMP[family(address)]: self._icmp}.get(
                proto, self._other
            )
            self._on(made, call, Seen(place, address, None))
            self._raw[place, address, proto] = made

    def _watch(self, place: Place, link: str) -> None:
        made = self._make(place, socket.AF_PACKET, socket.SOCK_RAW)
        made.bind((link, ETH_P_ALL))
        self._on(made, self._frame, Seen(place, link, None))

    def _make(self, place: Place, family_: int, kind: int, proto: int = 0) -> socket.socket:
        made = self._high(
            self._wire.socket(place, FAMILY.get(family_, family_), kind, proto, keep=False)
        )
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        self._all.append(made)
        return made

    def _high(self, made: socket.socket) -> socket.socket:
        with made:
            high = socket.socket(fileno=fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, LOW_FDS))
        high.setblocking(False)
        return high

    def _on(
        self, made: socket.socket, call: Callable[[socket.socket, Seen], None], here: Seen
    ) -> None:
        self._selector.register(made, selectors.EVENT_READ, (call, here))

    def _saw(self, number: int, here: Seen) -> None:
        if number in self._of:
            self._of[number].seen.add(here)

    def _heard(self, number: int) -> None:
        if number in self._of:
            self._of[number].answered = True

    def _accept(self, server: socket.socket, here: Seen) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = server.accept()
                connection = self._high(connection)
                self._selector.register(connection, selectors.EVENT_READ, (self._stream, here))
                self._all.append(connection)

    def _stream(self, connection: socket.socket, here: Seen) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(100)
            if data:
                self._saw(int(data), here)
                connection.send(data)
        if not data:
            self._drop(connection)

    def _datagram(self, server: socket.socket, here: Seen) -> None:
        for data, peer in _received(server):
            self._saw(int(data), here)
            with contextlib.suppress(OSError):
                server.sendto(data, peer)

    def _sctp(self, raw: socket.socket, here: Seen) -> None:
        for data, peer in _received(raw):
            packet = raw_payload(family(here.address), data)
            if sctp_chunk(packet) == INIT:
                tag = int.from_bytes(packet[16:20], "big")
                self._saw(tag, here._replace(port=int.from_bytes(packet[2:4], "big")))
                with contextlib.suppress(OSError):
                    raw.sendto(sctp_init_ack(packet), _portless(peer))
            elif sctp_chunk(packet) == INIT_ACK:
                number = int.from_bytes(packet[4:8], "big")
                cell = self._asked.get(number)
                if cell and (peer[0].partition("%")[0], int.from_bytes(packet[:2], "big")) == (
                    cell.to,
                    cell.port,
                ):
                    self._heard(number)

    def _icmp(self, raw: socket.socket, here: Seen) -> None:
        request, reply = ECHO[family(here.address)]
        for data, _ in _received(raw):
            packet = raw_payload(family(here.address), data)
            if len(packet) >= 12 and packet[0] in (request, reply):
                number = int.from_bytes(packet[8:12], "big")
                self._saw(number, here) if packet[0] == request else self._heard(number)

    def _other(self, raw: socket.socket, here: Seen) -> None:
        for data, peer in _received(raw):
            word, number = struct.unpack("!2sI", raw_payload(family(here.address), data))
            if word == b"ok":
                self._heard(number)
                continue
            self._saw(number, here)
            with contextlib.suppress(OSError):
                raw.sendto(struct.pack("!2sI", b"ok", number), _portless(peer))

    def _frame(self, link: socket.socket, here: Seen) -> None:
        for frame, address in _received(link):
            if (
                address[2] != PACKET_HOST
            ):  # a bridge floods what it knows no port for, which only the addressed takes
                continue
            kind = frame[12:14]
            if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
                tcp = 14 + (frame[14] & 15) * 4
            elif kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
                tcp = 54
            else:
                continue
            if frame[tcp + 13] & (SYN | ACK) == SYN:
                number = self._by_port.get(int.from_bytes(frame[tcp : tcp + 2], "big"))
                if number is not None:
                    self._of[number].started_at.add(here.place)

    # --- who sends ----------------------------------------------------------------------------------------------------

    def source(self, place: Place, to: str, link: str = "") -> str | None:
        """The source address that the kernel takes for a destination; None where it has no route."""
        with self._wire.socket(place, FAMILY[family(to)], socket.SOCK_DGRAM, keep=False) as probe:
            try:
                probe.connect(self._sockaddr(Cell(place, "", to, 9, "udp", link)))
            except OSError:
                return None
            return str(probe.getsockname()[0]).partition("%")[0]

    def _strays(self, cell: Cell) -> bool:
        """Whether the source is not an address of the link that the packet leaves by."""
        way = cell.place, cell.to, cell.link
        if way not in self._sources:
            self._sources[way] = self.source(*way)
        return cell.source != self._sources[way]

    def _sockaddr(self, cell: Cell) -> tuple[object, ...]:
        if ":" not in cell.to:
            return (cell.to, cell.port or 0)
        return (cell.to, cell.port or 0, 0, self._index[cell.place, cell.link] if cell.link else 0)

    def _send(self, cell: Cell, number: int) -> None:
        """Send it, or the same once more. What the sender's own kernel refuses is not sent."""
        try:
            self._send_one(cell, number)
        except OSError as error:
            if error.errno not in (
                *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EINPROGRESS),
                *(errno.ECONNREFUSED, errno.EINVAL, errno.EACCES, errno.EDESTADDRREQ),
            ):
                raise

    def _send_one(self, cell: Cell, number: int) -> None:
        if cell.proto == "tcp":
            made = self._make(cell.place, family(cell.to), socket.SOCK_STREAM)
            port = self._free_port(number)
            made.bind((cell.source, port))
            self._selector.register(
                made, selectors.EVENT_WRITE, (self._connected, Seen(None, str(number), None))
            )
            made.connect(self._sockaddr(cell))
        elif cell.proto == "udp":
            if cell not in self._udp:
                made = self._high(
                    self._wire.socket(
                        cell.place, FAMILY[family(cell.to)], socket.SOCK_DGRAM, keep=False
                    )
                )
                made.bind((cell.source, 0))
                self._udp[cell] = made
                self._on(made, self._echoed, Seen(None, "", None))
                made.connect(self._sockaddr(cell))
            with contextlib.suppress(ConnectionRefusedError):
                self._udp[cell].send(b"%d" % number)
        else:
            raw = self._raw[cell.place, cell.source, _protocol(cell)]
            raw.sendto(self._packet(cell, number), _portless(self._sockaddr(cell)))

    def _packet(self, cell: Cell, number: int) -> bytes:
        if cell.proto == "sctp":
            assert cell.port
            return sctp_init(10_000 + number % 50_000, cell.port, number)
        if cell.proto == "icmp":
            body = struct.pack(
                "!BBHHHI", ECHO[family(cell.to)][0], 0, 0, number & 0xFFFF, 1, number
            )
            return body if family(cell.to) == 6 else body[:2] + _checksum(body) + body[4:]
        return struct.pack("!2sI", b"go", number)

    def _free_port(self, number: int) -> int:
        port = 10_000 + number % 50_000
        assert port not in self._by_port, "more connections at once than ports"
        self._by_port[port] = number
        return port

    def _connected(self, client: socket.socket, about: Seen) -> None:
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._selector.unregister(client)
            return
        with contextlib.suppress(OSError):
            client.send(about.address.encode())
        self._selector.modify(client, selectors.EVENT_READ, (self._echoed, about))

    def _echoed(self, client: socket.socket, _: Seen) -> None:
        try:
            data = client.recv(100)
        except ConnectionRefusedError:
            return
        except OSError:
            data = b""
        if data:
            self._heard(int(data))
        elif client.type == socket.SOCK_STREAM:
            self._selector.unregister(client)

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def of(self, cells: list[Cell], passing: set[Cell]) -> dict[Cell, Fate]:
        """Send all at once; what should pass gets several tries in `ANSWER_SECONDS`, and all else two.

        ``passing`` only says for what to wait: a packet that arrives is seen, whatever was thought of it.

        What a service sends from the address of another link comes after everything else has found its neighbour. No service has
        a link-local address, so its kernel solicits an IPv6 neighbour only for packets with an address of the link. While one
        from another is the last that waits for a neighbour, and its SYN is sent again each second, nothing is solicited.
        """
        self._of, self._asked, self._by_port = {}, {}, {}
        kept = len(self._all)
        order = sorted(
            cells, key=lambda cell: cell.proto == "tcp"
        )  # neighbours are known when the first SYN goes
        late = {cell for cell in order if cell not in passing and self._strays(cell)}
        tries: dict[Cell, int] = {}
        for at, cell in enumerate(order):
            number = next(self.numbers)
            tries[cell], self._asked[number], self._of[number] = number, cell, Fate()
            if cell not in late:
                self._send(cell, number)
            if at % 64 == 63:
                self._turn(0)
        self._until_answered([(cell, tries[cell]) for cell in order if cell in passing])
        for cell in order:
            if cell in late or (cell.proto != "tcp" and cell not in passing):
                self._send(cell, tries[cell])
        quiet_since = time.monotonic()
        end = quiet_since + PATIENCE_SECONDS
        while time.monotonic() < min(end, quiet_since + QUIET_SECONDS):
            if self._turn(0.02):
                quiet_since = time.monotonic()
        for each in self._all[kept:]:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(each)
        del self._all[kept:]
        return {cell: self._of[number] for cell, number in tries.items()}

    def _until_answered(self, wanted: list[tuple[Cell, int]]) -> None:
        end = time.monotonic() + ANSWER_SECONDS
        again = time.monotonic() + 0.3
        while time.monotonic() < end:
            self._turn(0.02)
            wanted = [(cell, number) for cell, number in wanted if not self._of[number].answered]
            if not wanted:
                return
            if time.monotonic() > again:
                again = time.monotonic() + 0.5
                for cell, number in wanted:
                    if cell.proto != "tcp":
                        self._send(cell, number)

    def _turn(self, timeout: float) -> int:
        events = self._selector.select(timeout)
        for key, _ in events:
            call, here = key.data
            call(key.fileobj, here)
        return len(events)

    def _drop(self, made: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(made)
        made.close()


def number_of(place: Place) -> int:
    """0 for the host; ``niso-sN`` is N."""
    if place is None:
        return 0
    return {"client": 101, "neighbour": 102}.get(place) or int(place.removeprefix("niso-s"))


def other(place: Place) -> str:
    """The protocol without ports that only this place sends."""
    return str(OTHER - number_of(place))


def _protocol(cell: Cell) -> int:
    by_name = {"sctp": socket.IPPROTO_SCTP, "icmp": ICMP[family(cell.to)]}
    return by_name[cell.proto] if cell.proto in by_name else int(cell.proto)


def _received(made: socket.socket) -> Iterator[tuple[bytes, tuple]]:  # type: ignore[type-arg]
    for _ in range(1000):
        try:
            yield made.recvfrom(65536)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            continue


def _portless(address: tuple) -> tuple:  # type: ignore[type-arg]
    return (address[0], 0, *address[2:])


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
