"""What a command is at, told on stderr when it takes more than a second: by a process of its own, so that nothing else must wake up for it."""

from __future__ import annotations

import os
import select
import sys
import time

from niso.child import keep_only, signals_held
from niso.cli.output import escaped

AT_ONCE_S = 1.0
AGAIN_S = 10.0


class Progress:
    """``with Progress(waits) as progress:`` pass `report` on; ``waits`` are the services that a start of takes until they are healthy."""

    def __init__(self, waits: frozenset[str] = frozenset()) -> None:
        self._waits = waits
        self._pipe = -1
        self._pid = 0

    def __enter__(self) -> Progress:
        return self

    def report(self, line: str) -> None:
        """What is being done from now on."""
        if sys.stderr is None:
            return
        if self._pipe < 0:
            self._begin()
        text = line.split("\n", 1)[0]
        try:
            os.write(self._pipe, text.encode("utf-8", "replace")[: select.PIPE_BUF - 1] + b"\n")
        except BrokenPipeError:
            return

    def _begin(self) -> None:
        with signals_held():
            read, self._pipe = os.pipe()
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    keep_only((2, read))
                    _tell(read, self._waits)
                finally:
                    os._exit(0)
            os.close(read)

    def __exit__(self, *_: object) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            os.waitpid(self._pid, 0)


def _tell(read: int, waits: frozenset[str]) -> None:
    """Print the line that is the last one for a second, and again every ten, until the other end is closed."""
    doing, since, told = "", time.monotonic(), 0.0
    unhealthy: dict[str, None] = {}
    rest = b""
    while True:
        now = time.monotonic()
        due = since + (told + AGAIN_S if told else AT_ONCE_S)
        wait_s = max(0.0, due - now) if doing else None
        if select.select([read], [], [], wait_s)[0]:
            chunk = os.read(read, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                doing, since, told = line.decode("utf-8", "replace"), time.monotonic(), 0.0
                _note(doing, waits, unhealthy)
            continue
        if not doing:
            continue
        told = round(time.monotonic() - since)
        words = f"wait until healthy: {', '.join(unhealthy)}" if unhealthy else doing
        try:
            os.write(2, f"niso: {escaped(words)} ({told:.0f}s)\n".encode())
        except OSError:
            return


def _note(line: str, waits: frozenset[str], unhealthy: dict[str, None]) -> None:
    word, _, rest = line.partition(" ")
    name = rest.partition(":")[0]
    if word == "start" and name in waits:
        unhealthy[name] = None
    elif rest == "is healthy":
        unhealthy.pop(word, None)
    elif word in ("undo", "stop"):
        unhealthy.clear()
