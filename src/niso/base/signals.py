"""Fork safely while signals may arrive at any moment.

Ctrl-C signals the whole process group. In a forked child, CPython drops signals that arrived during
the fork (PyOS_AfterFork_Child), and a signal just after the fork would unwind the caller's frames a
second time, in the child. So code that forks blocks the signals until it has recorded the child. A
child exits when its parent closes a descriptor or when its work is done, never by one of these
signals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from itertools import pairwise

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class signals_held:
    """Block INT, TERM and HUP in the block; deliver pending ones at its end (KeyboardInterrupt).

    A forked child inherits the blocked mask.
    """

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except BaseException:  # for a signal that arrived just before the mask was set
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class signals_delivered:
    """Unblock the signals for the inner block of a `signals_held`.

    Use it for long work, once everything that must be undone is recorded.
    """

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def keep_only(fds: Iterable[int]) -> None:
    """In a child, close all descriptors except ``fds``, so that locks and output do not leak."""
    for low, high in pairwise([-1, *sorted(fds), 1 << 20]):
        if (
            low + 1 < high
        ):  # closerange(0, 0) would close all: CPython calls close_range(2) with 0 and -1
            os.closerange(low + 1, high)


def heed_signals() -> None:
    """Unblock INT, TERM and HUP in a child that keeps running or executes another program."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
