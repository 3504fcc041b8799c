"""Tabulate all paths to a service, and send traffic over all of them at once: see test_ways_in.py."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wire import (
    FAMILY,
    Addresses,
    Deadline,
    Wire,
    raw_payload,
    sctp_chunk,
    sctp_init,
    sctp_init_ack,
    sctp_sound,
)

INIT, INIT_ACK = 1, 2
PATIENCE_SECONDS = 30


class Port(NamedTuple):
    """What a service publishes: a host port and where it leads. ``at`` says by which addresses of the host."""

    service: str
    entry: str  # of the manifest, without protocol; "" for what is not published
    host: int
    container: int
    at: str  # "any", "any4", "any6", one address, or "nowhere"
    bound: bool = True  # its server listens on the service's addresses, not on the wildcard

    def is_at(self, address: str) -> bool:
        family = 6 if ":" in address else 4
        return address != "::1" and (self.at in ("any", f"any{family}") or self.at == address)


class Path(NamedTuple):
    """From somebody in ``netns`` to an address of the host; ``source`` is what that somebody's address is."""

    name: str
    netns: str | None
    to: str
    source: str
    by: str = ""  # the network by which it sends, where it is a service


class Cell(NamedTuple):
    path: Path
    port: Port
    server: str  # the address at which the service must see it
    sees: str  # the source address that it must see, "" where it must see nothing

    def __str__(self) -> str:
        where = f"[{self.path.to}]" if ":" in self.path.to else self.path.to
        return f"{self.path.name} -> {where}:{self.port.host} ({self.port.entry or 'not published'} of {self.port.service})"


class Outcome:
    """What was seen of one cell at both ends."""

    def __init__(self) -> None:
        self.server = ""  # "address port, source" as a service saw it
        self.answered = False  # by the very address and port that were asked

    def __str__(self) -> str:
        return f"{self.server or 'nobody'} saw it, {'' if self.answered else 'not '}answered"


class Servers:
    """Listeners of one protocol and family on the container ports of every service; they note who came, and answer."""

    def __init__(
        self,
        wire: Wire,
        ports: Iterable[Port],
        addresses: dict[str, list[Addresses]],
        proto: str,
        family: int,
    ) -> None:
        self.wire, self.proto, self.family = wire, proto, family
        self.selector = selectors.DefaultSelector()
        self.seen: dict[int, str] = {}
        self.unsound: list[str] = []
        wanted = {
            (p.service, p.container if proto != "sctp" else 0, p.bound or proto == "sctp")
            for p in ports
        }
        for service, port, bound in sorted(wanted):
            own = [each.ip(family) for each in addresses[service] if each.ip(family)]
            for address in own if bound else own[:1]:
                listener = self._open(service)
                listener.bind((address if bound else "", port))
                if proto == "tcp":
                    listener.listen(256)
                self.selector.register(
                    listener,
                    selectors.EVENT_READ,
                    (self._take, listener, f"{address if bound else '*'} {port}"),
                )

    def _open(self, service: str) -> socket.socket:
        kind, proto = kind_of(self.proto)
        made = self.wire.socket(f"niso-{service}", FAMILY[self.family], kind, proto)
        if self.family == 6 and self.proto != "sctp":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        return made

    def _take(self, listener: socket.socket, where: str) -> None:
        if self.proto == "tcp":
            connection, peer = listener.accept()
            connection.setblocking(False)
            self.selector.register(
                connection, selectors.EVENT_READ, (self._hear, connection, f"{where}, {peer[0]}")
            )
        elif self.proto == "udp":
            data, peer = listener.recvfrom(4096)
            self.seen[int(data)] = f"{where}, {peer[0]}"
            listener.sendto(data, peer)
        else:
            data, peer = listener.recvfrom(4096)
            packet = raw_payload(self.family, data)
            if sctp_chunk(packet) == INIT:
                tag = int.from_bytes(packet[16:20], "big")
                self.seen[tag] = f"{where[:-1]}{int.from_bytes(packet[2:4], 'big')}, {peer[0]}"
                if not sctp_sound(packet):
                    self.unsound.append(f"{where}: INIT of cell {tag} with a wrong checksum")
                listener.sendto(sctp_init_ack(packet), (peer[0], 0))

    def _hear(self, connection: socket.socket, who: str) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(100)
            if data:
                self.seen[int(data)] = who
                connection.send(data)
        if not data:
            self.selector.unregister(connection)
            connection.close()

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()


def kind_of(proto: str) -> tuple[int, int]:
    return {
        "tcp": (socket.SOCK_STREAM, 0),
        "udp": (socket.SOCK_DGRAM, 0),
        "sctp": (socket.SOCK_RAW, socket.IPPROTO_SCTP),
    }[proto]


class Clients:
    """Send the packets of cells and record the replies; serve ``servers`` in the same loop."""

    numbers = itertools.count(1000)  # the name of each try; for SCTP its source port too

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.proto, self.family = servers.proto, servers.family
        self.answered: set[int] = set()
        self._asked: dict[int, tuple[str, int]] = {}
        self._raw: dict[str | None, socket.socket] = {}
        self._open: list[socket.socket] = []

    def send(self, cell: Cell) -> int:
        """Try a cell; gives the number of the try."""
        number = next(self.numbers)
        self._asked[number] = (cell.path.to, cell.port.host)
        if self.proto == "sctp":
            if cell.path.netns not in self._raw:
                self._raw[cell.path.netns] = self._register(cell.path.netns, self._sctp)
            # what the host itself refuses at once is no way in either
            with contextlib.suppress(OSError):
                self._raw[cell.path.netns].sendto(
                    sctp_init(number, cell.port.host, number), (cell.path.to, 0)
                )
            return number
        client = self._register(cell.path.netns, self._echo)
        with contextlib.suppress(BlockingIOError, OSError):
            client.connect((cell.path.to, cell.port.host))
        if self.proto == "udp":
            with contextlib.suppress(OSError):
                client.send(str(number).encode())
        else:
            self.servers.selector.modify(
                client, selectors.EVENT_WRITE, (self._connected, client, str(number))
            )
        return number

    def _register(
        self, netns: str | None, call: Callable[[socket.socket, str], None]
    ) -> socket.socket:
        client = self.servers.wire.socket(
            netns, FAMILY[self.family], *kind_of(self.proto), keep=False
        )
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.servers.selector.register(client, selectors.EVENT_READ, (call, client, ""))
        self._open.append(client)
        return client

    def _connected(self, client: socket.socket, number: str) -> None:
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.servers.selector.unregister(client)
            return
        client.send(number.encode())
        self.servers.selector.modify(client, selectors.EVENT_READ, (self._echo, client, ""))

    def _echo(self, client: socket.socket, _: str) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = client.recv(100)
        if data:
            self.answered.add(int(data))
        else:
            self.servers.selector.unregister(client)

    def _sctp(self, client: socket.socket, _: str) -> None:
        data, peer = client.recvfrom(4096)
        packet = raw_payload(self.family, data)
        number, tag = int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[4:8], "big")
        if sctp_chunk(packet) != INIT_ACK or number not in self._asked:
            return
        if not sctp_sound(packet):
            self.servers.unsound.append(f"INIT ACK of cell {number} with a wrong checksum")
        if self._asked[number] == (peer[0], int.from_bytes(packet[:2], "big")) and tag == number:
            self.answered.add(number)

    def turn(self, until: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Serve all sockets until that is so, at most these seconds, and then until none has anything to say."""
        deadline = Deadline(seconds)
        while not (until() or deadline.over()):
            self._once(0.05)
        for _ in range(10_000):
            if not self._once(0):
                return

    def _once(self, timeout: float) -> int:
        events = self.servers.selector.select(timeout)
        for key, _ in events:
            call, found, word = key.data
            call(found, word)
        return len(events)

    def close(self) -> None:
        for client in self._open:
            with contextlib.suppress(KeyError, ValueError):
                self.servers.selector.unregister(client)
            client.close()


def travel(servers: Servers, cells: list[Cell]) -> dict[Cell, Outcome]:
    """Send for all cells at once and see what comes of each.

    What must not come is sent twice, the second time between packets that do come, so that it is not missed for being late.
    """
    clients = Clients(servers)
    good = [cell for cell in cells if cell.sees]
    tries = {cell: [clients.send(cell)] for cell in cells}
    wanted = {tries[cell][0] for cell in good}
    clients.turn(lambda: wanted <= clients.answered)
    for cell in cells:
        if not cell.sees:
            tries[cell].append(clients.send(cell))
    last = {clients.send(cell) for cell in good[-1:]}
    clients.turn(lambda: last <= clients.answered)
    outcomes = {cell: Outcome() for cell in cells}
    for cell, numbers in tries.items():
        outcomes[cell].server = next((servers.seen[n] for n in numbers if n in servers.seen), "")
        outcomes[cell].answered = any(n in clients.answered for n in numbers)
    clients.close()
    return outcomes


def wrong(outcomes: dict[Cell, Outcome]) -> list[str]:
    """A line for each cell that is not as it must be."""
    lines = []
    for cell, found in outcomes.items():
        should = f"{cell.server} {cell.port.container}, {cell.sees}" if cell.sees else ""
        # a server on the wildcard cannot tell; a raw socket, which SCTP is spoken over, is always on an address
        seen = found.server if cell.port.bound else found.server.replace("*", cell.server)
        if seen != should or found.answered != bool(should):
            lines.append(
                f"{cell}: should be {f'seen as {should!r}, answered' if should else 'unreachable'}; {found}"
            )
    return lines
