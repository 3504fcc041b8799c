"""Hold open flows between places of a lab, and observe which survive a change and which are cut."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple

from wire import FAMILY, Wire

CUT_SECONDS = 0.7
"""How long nothing may come of a flow that is cut: TCP has sent again by then, its first time after 0.2 s."""
ALIVE_SECONDS = 5
"""How long a flow may take to open; one that is denied takes as long to give up."""
HEARD_SECONDS = 30
"""How long a word of a flow that goes on may take on a busy machine."""


class Flow:
    """TCP that is connected, or one UDP socket at each end; ``name`` is for messages."""

    _numbers = itertools.count(1)

    def __init__(self, name: str, client: socket.socket, server: socket.socket) -> None:
        self.name, self.client, self.server = name, client, server
        self.is_udp = client.type == socket.SOCK_DGRAM
        self._heard = b""

    def say(self, speaker: str) -> bytes:
        word = b"<%d>" % next(self._numbers)
        with contextlib.suppress(OSError):
            (self.client if speaker == "client" else self.server).send(word)
        return word

    def hears(self, word: bytes) -> bool:
        """Whether a word has come to the other end until now; no two are alike."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                while data := end.recv(65536):
                    self._heard += data
        return word in self._heard


class Asked(NamedTuple):
    """A flow to be: from ``client`` to a server at an address and port, which are asked for as ``to``."""

    client: str | None
    server: str | None
    at: tuple[str, int]
    proto: str
    to: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.client or 'host'} -> {self.server or 'host'} {self.at[0]} {self.at[1]}/{self.proto}"


class Flows:
    """Opens flows with sockets of its own, and judges what has become of them."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._made: list[tuple[str | None, socket.socket]] = []

    def _make(self, place: str | None, asked: Asked) -> socket.socket:
        kind = socket.SOCK_STREAM if asked.proto == "tcp" else socket.SOCK_DGRAM
        made = self._wire.socket(place, FAMILY[6 if ":" in asked.at[0] else 4], kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._made.append((place, made))
        return made

    def leave(self, place: str | None) -> None:
        """Close what is held of a namespace, which could not go before."""
        self._wire.socket(
            None, socket.AF_INET, socket.SOCK_DGRAM, keep=False
        ).close()  # the factory leaves it too
        for where, made in self._made:
            if where == place and made.fileno() >= 0:
                if (
                    made.type == socket.SOCK_STREAM
                ):  # at once: what waits for an answer keeps a namespace too
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                made.close()

    def close_listeners(self) -> None:
        for _, made in self._made:
            if made.fileno() >= 0 and made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                made.close()

    def try_open(
        self, many: Iterable[Asked], seconds: float = ALIVE_SECONDS
    ) -> dict[Asked, Flow | None]:
        """All at once, each on a port of its own; None where a flow does not come about in this time."""
        found: dict[Asked, Flow | None] = {}
        waiting = {}
        for asked in many:
            listener, mine = self._make(asked.server, asked), self._make(asked.client, asked)
            listener.bind(asked.at)
            if asked.proto == "tcp":
                listener.listen(8)
            with contextlib.suppress(BlockingIOError):
                mine.connect(asked.to or asked.at)
            waiting[asked] = (listener, mine)
            found[asked] = None
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            for asked, (listener, mine) in list(waiting.items()):
                flow = self._opened(asked, listener, mine)
                if flow is not None:
                    found[asked] = flow
                    del waiting[asked]
            time.sleep(0.02)
        for listener, mine in waiting.values():
            listener.close()
            mine.close()
        return found

    def _opened(self, asked: Asked, listener: socket.socket, mine: socket.socket) -> Flow | None:
        if asked.proto == "udp":
            with contextlib.suppress(OSError):
                mine.send(b"hello")
        try:
            if asked.proto == "udp":
                _, peer = listener.recvfrom(100)
                listener.connect(peer)
                return Flow(str(asked), mine, listener)
            theirs, _ = listener.accept()
        except BlockingIOError:
            return None
        theirs.setblocking(False)
        self._made.append((asked.server, theirs))
        return Flow(str(asked), mine, theirs)

    def open(self, *many: Asked) -> list[Flow]:
        """As `try_open`, where all must come about."""
        found = self.try_open(many)
        assert all(found.values()), [str(asked) for asked, flow in found.items() if flow is None]
        return [flow for flow in found.values() if flow is not None]

    def judge(
        self, alive: Iterable[Flow], cut: Iterable[Flow], servers_first: bool = False
    ) -> list[str]:
        """A line for each that is not as it should be. Both ends of each speak, the one at first and then the other.

        In UDP the client is always the one at first, and of what is cut the server says nothing: its datagram would be the
        first of a flow the other way, which may be allowed.
        """
        alive, cut = list(alive), list(cut)
        wrong: list[str] = []
        for second in (False, True):
            asked = [
                flow for flow in (*alive, *cut) if flow in alive or not (second and flow.is_udp)
            ]
            speaker = {
                flow: ("client", "server")[second ^ (servers_first and not flow.is_udp)]
                for flow in asked
            }
            words = {flow: flow.say(speaker[flow]) for flow in asked}

            def unheard(words: dict[Flow, bytes] = words) -> list[Flow]:
                return [flow for flow in words if not flow.hears(words[flow])]

            end = time.monotonic() + HEARD_SECONDS
            while set(alive) & set(unheard()) and time.monotonic() < end:
                time.sleep(0.01)
            quiet = time.monotonic() + CUT_SECONDS
            while cut and time.monotonic() < quiet:
                unheard()
                time.sleep(0.02)
            missing = unheard()
            wrong += [
                f"{flow.name}: {speaker[flow]} is not heard" for flow in alive if flow in missing
            ]
            wrong += [
                f"{f.name}: {speaker[f]} is still heard"
                for f in cut
                if f in words and f not in missing
            ]
        return wrong
