"""What a command is at, told on stderr when it takes more than a second: by a process of its own, so that nothing else must wake up for it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from niso import waits as locks
from niso.child import keep_only, signals_held
from niso.cli.output import escaped, note, step
from niso.cli.parse import Args
from niso.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.apply import Report  # which is more than the commands need that only look

AT_ONCE_S = 1.0
AGAIN_S = 10.0
SOON_S = 0.5
SLOW = ("start ", "restart ", "stop ", "copy ", "wait ", "undo ", "remove the volumes ")
"""What a line begins with that may take long: the others are steps of the kernel, of which it takes many."""


class Progress:
    """``with Progress(args) as report:`` shows what is reported as the options -v and --dry-run say, else by its second second.

    ``waits`` are the services that a start of takes until they are healthy. The process that tells begins with the first line that may be slow: to begin and end it takes
    a millisecond.
    """

    def __init__(self, args: Args, waits: Iterable[str] = ()) -> None:
        self._verbose = bool(getattr(args, "verbose", False))
        self._quiet = bool(args.json)  # who reads JSON reads it on stderr too
        self._dry_run = bool(getattr(args, "dry_run", False))
        self._waits = frozenset(waits)
        self._since = time.monotonic()
        self._pipe = -1
        self._pid = 0

    def __enter__(self) -> Report:
        steps = note if self._verbose else _silent if self._quiet else self._report
        locks.told = steps
        return step if self._dry_run else steps

    def _report(self, line: str) -> None:
        """What is being done from now on."""
        if self._pipe < 0:
            if not line.startswith(SLOW) and time.monotonic() < self._since + SOON_S:
                return
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
        locks.told = None
        if self._pipe >= 0:
            os.close(self._pipe)
            os.kill(self._pid, signal.SIGKILL)  # it may not even have begun: do not wait for that
            _killed.append(self._pid)


def _silent(line: str) -> None:
    """Tell nobody."""


_killed: list[int] = []


def reap() -> None:
    """Take in the ends of the processes that told of progress, at the end of a command: at once they would be waited for, 2 ms."""
    while _killed:
        with suppress(ChildProcessError):
            os.waitpid(_killed.pop(), 0)


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
