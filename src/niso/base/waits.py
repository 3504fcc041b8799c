"""Locks that others may hold: who waits for one can say so."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from contextlib import suppress

told: Callable[[str], None] | None = None
"""Takes what is waited for, where somebody wants to know: a command that shows its progress."""


_PAUSE_S = 0.005


def lock(fd: int, whose: str, at_most_s: float | None = None) -> None:
    """Lock ``fd`` for this process alone (flock(2)), as soon as nobody else has it; or not at all, after ``at_most_s`` seconds.

    Raises OSError.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        if told is not None:
            told(f"wait for another niso command, which {whose}")
    if at_most_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    until = time.monotonic() + at_most_s
    while time.monotonic() < until:
        time.sleep(_PAUSE_S)
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
