"""Wake an agent of this host from a command, through a named pipe in the run folder."""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

AGENT = "agent"
KUBERNETES = "kubernetes"
_LOOKS_S = 1.0


def _path(name: str) -> str:
    return os.path.join(paths.run_dir(), f"{name}.wake")


def agent(name: str = AGENT) -> bool:
    """Wake the agent ``name``; return whether it is running."""
    try:
        fd = os.open(_path(name), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # no pipe, or no process reads it
        return False
    try:
        os.write(fd, b"\n")
    except OSError:
        pass  # the pipe is full: the agent already has something to read
    finally:
        os.close(fd)
    return True


def listen(name: str, woken: Callable[[], object], over: threading.Event) -> None:
    """Call ``woken`` whenever a command wakes the agent, until ``over`` is set. Raises OSError."""
    import select

    os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
    try:
        os.mkfifo(_path(name), 0o600)
    except FileExistsError:
        pass
    # with a writer of its own, the agent's pipe never reports end of file
    fd = os.open(_path(name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while not over.is_set():
            if select.select([fd], [], [], _LOOKS_S)[0]:
                os.read(fd, 4096)
                woken()
    finally:
        os.close(fd)
