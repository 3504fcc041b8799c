"""Fork safely while signals may arrive at any moment.

Ctrl-C signals the whole process group. CPython drops in a forked child what arrived during the
fork (PyOS_AfterFork_Child), and a signal just after it would unwind the caller's frames a second
time, in the child. So code that forks blocks the signals until it has recorded the child, and a
child exits when its parent closes a descriptor or by itself, never by one of these signals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from itertools import pairwise

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class signals_held:
    """Block INT, TERM and HUP; one that arrives is delivered at the end (KeyboardInterrupt).

    A forked child inherits the blocked mask.
    """

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        except BaseException:  # a signal just before the mask was set
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
            raise

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class signals_delivered:
    """Deliver signals within the block, which is inside one of `signals_held`.

    Use it for long work, once everything that must be undone is recorded.
    """

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def keep_only(fds: Iterable[int]) -> None:
    """Close all descriptors but these, in a child: niso's locks and its output must not leak."""
    for low, high in pairwise([-1, *sorted(fds), 1 << 20]):
        if (
            low + 1 < high
        ):  # closerange(0, 0) would close all: CPython calls close_range(2) with 0 and -1
            os.closerange(low + 1, high)


def heed_signals() -> None:
    """Let INT, TERM and HUP end a child that stays, or that runs another program."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
