"""Wake this host's agent when a command has changed what it follows, by a named pipe."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from niso.base import paths

_LOOKS_S = 1.0


def _path() -> str:
    return os.path.join(paths.run_dir(), "agent.wake")


def agent() -> None:
    """Wake the agent; no-op if none runs."""
    with contextlib.suppress(OSError):  # no pipe, nobody who reads, or enough to read
        fd = os.open(_path(), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, b"\n")
        finally:
            os.close(fd)


def listen(woken: Callable[[], object], over: threading.Event) -> None:
    """Call ``woken`` whenever a command wakes the agent, until ``over``. Raises OSError."""
    os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(_path(), 0o600)
    # with a writer of its own, the pipe has no end
    fd = os.open(_path(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while not over.is_set():
            if select.select([fd], [], [], _LOOKS_S)[0]:
                os.read(fd, 4096)
                woken()
    finally:
        os.close(fd)
