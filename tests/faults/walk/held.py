"""TCP connections of a walk that stay open over steps which do not concern their ends."""

from __future__ import annotations

import socket
from typing import NamedTuple

from wire import Wire

from walk.model import World
from walk.reach import Flow

MOST = 6


class Ends(NamedTuple):
    """What a connection depends on: the processes in both namespaces, and their addresses."""

    pids: tuple[int, ...]
    leases: tuple[str, ...]


class Held:
    """Open connections; `judge` after a step, `close` when all may have ended."""

    def __init__(self) -> None:
        self._open: list[tuple[Flow, Ends, socket.socket]] = []

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        for _, _, made in self._open:
            made.close()
        self._open.clear()

    def judge(self, world: World, pids: dict[str, int], wanted: dict[Flow, str]) -> list[str]:
        """Return those that should live and do not, a line each; forget those that need not.

        ``wanted`` is who answers each connection (without its own answer) now.
        """
        wrong, kept = [], []
        for flow, ends, made in self._open:
            same = wanted.get(flow._replace(wanted="")) == flow.wanted
            if not same or _ends(world, pids, flow) != ends:
                made.close()
                continue
            if _answers(made):
                kept.append((flow, ends, made))
            else:
                made.close()
                wrong.append(f"{flow.text}: a connection that was open to {flow.wanted} has ended")
        self._open = kept
        return wrong

    def add(self, wire: Wire, world: World, pids: dict[str, int], flows: list[Flow]) -> None:
        """Open some connections that are answered."""
        for flow in flows[: max(0, MOST - len(self._open))]:
            netns = {"host": None, "client": "client"}.get(flow.source, f"niso-{flow.source}")
            family = socket.AF_INET6 if flow.six else socket.AF_INET
            made = wire.socket(netns, family, socket.SOCK_STREAM, keep=False)
            made.settimeout(2)
            try:
                made.connect((flow.address, flow.port))
                said = made.recv(2048).decode().split()
            except OSError:
                said = []
            if said[:1] == [flow.wanted] and _answers(made):
                self._open.append((flow, _ends(world, pids, flow), made))
            else:
                made.close()


def _answers(made: socket.socket) -> bool:
    """Whether the other end still answers a line with one."""
    try:
        made.send(b"still there?\n")
        data = b""
        while not data.endswith(b"\n"):
            if not (more := made.recv(65536)):
                return False
            data += more
        return True
    except OSError:
        return False


def _ends(world: World, pids: dict[str, int], flow: Flow) -> Ends:
    ends = [name for name in (flow.source, flow.wanted) if name in world.services]
    homes = [world.home(name) for name in ends]
    leases = [
        lease
        for home in homes
        for network, lease in (
            *world.services[home].leases.items(),
            *world.services[home].leases6.items(),
        )
    ]
    return Ends(tuple(pids.get(name, 0) for name in (*ends, *homes)), tuple(leases))
