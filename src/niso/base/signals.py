"""Forking while a signal may come at any moment.

Ctrl-C goes to the whole process group. CPython forgets in a forked child what came during the fork (PyOS_AfterFork_Child), and what
comes a moment later would unwind the caller's frames a second time, in the child. So whoever forks holds the signals back until it has
on record what it forked, and a child is never ended by them but by what its parent closes, or by its own end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from itertools import pairwise

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class signals_held:
    """Within the block INT, TERM and HUP wait; one that came is delivered at its end (KeyboardInterrupt). A forked child inherits this."""

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except BaseException:  # one that came just before
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class signals_delivered:
    """Within the block, itself in one of `signals_held`, they come at once: for what may take long, where all that must be undone is on record."""

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def keep_only(fds: Iterable[int]) -> None:
    """In a child: close all descriptors but these. niso's locks and the command's output are none of its business."""
    for low, high in pairwise([-1, *sorted(fds), 1 << 20]):
        if low + 1 < high:  # closerange(0, 0) closes all: CPython gives close_range(2) 0 and -1
            os.closerange(low + 1, high)


def heed_signals() -> None:
    """In a child that stays, or becomes another program: INT, TERM and HUP end it again."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
