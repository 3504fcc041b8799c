"""Locks that others may hold: who waits for one can say so."""

from __future__ import annotations

import fcntl
from collections.abc import Callable

told: Callable[[str], None] | None = None
"""Takes what is waited for, where somebody wants to know: a command that shows its progress."""


def lock(fd: int, whose: str) -> None:
    """Lock ``fd`` for this process alone (flock(2)), as soon as nobody else has it. Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        if told is not None:
            told(f"wait for another niso command, which {whose}")
    fcntl.flock(fd, fcntl.LOCK_EX)
