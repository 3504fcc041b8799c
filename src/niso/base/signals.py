"""Fork safely while signals may arrive; make a command fail at a chosen step, for tests.

Ctrl-C signals the whole process group. In a forked child, CPython drops signals that arrived during
the fork (PyOS_AfterFork_Child). A signal just after the fork would raise KeyboardInterrupt in the
child too, and the child would then run the cleanup code of its parent a second time. Therefore the
signals are blocked before a fork, and unblocked in the parent when it has recorded the child. They
stay blocked in the child, which exits when its work is done or its parent closes a descriptor.

Failpoints: ``NISO_FAILPOINT=N[:ACTION]`` makes step N of a command die or fail (as gofail does). A
step is a change of anything outside this process. Just before each step, the code calls `hit`.
ACTION is ``kill`` (the default), the name of an errno, or a key of `LATER`. With a key of `LATER`,
step N succeeds and a later operation fails. ``NISO_FAILPOINT=0`` makes no step fail. With
``NISO_FAILPOINT_LOG=FILE``, each step that is reached is appended to FILE. Each operation that a
key of `LATER` can make fail is appended as ``- KEY``. Failpoints work only in a disposable host
created by ``niso lab``.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from niso.base import paths
from niso.base.native import signal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class signals_blocked:
    """A context manager that blocks SIGINT, SIGTERM and SIGHUP.

    Signals that arrive in the block are delivered at its end; SIGINT then raises KeyboardInterrupt.
    In a child that is forked in the block, the signals stay blocked.
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


@cache
def numbers() -> dict[str, int]:
    """Return the numbers of all signals by name, such as ``SIGTERM``, sorted by name."""
    names = sorted(name for name in vars(signal) if name.startswith("SIG") and name[3] != "_")
    return {name: getattr(signal, name) for name in names}


def name_of(number: int) -> str:
    """Return the name of a signal, such as ``SIGTERM``, or "" if no signal has this number."""
    return next((name for name, value in numbers().items() if value == number), "")


def keep_only(fds: Iterable[int]) -> None:
    """Close all descriptors except ``fds``: a forked child would keep its parent's locks."""
    for low, high in pairwise([-1, *sorted(fds), 1 << 20]):
        if (
            low + 1 < high
        ):  # closerange(0, 0) would close all: CPython calls close_range(2) with 0 and -1
            os.closerange(low + 1, high)


def heed_signals() -> None:
    """Unblock SIGINT, SIGTERM and SIGHUP in a forked child, with their default actions."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


OVERRUN = "overrun"
BUSY = "sqlite-busy"
FULL = "sqlite-full"
LATER = {
    OVERRUN: "the next netlink answer is lost: the socket's buffer was full (netlink(7), ENOBUFS)",
    BUSY: "no store transaction can begin any more: another one is open",
    FULL: "no store transaction can be committed any more: the disk is full",
    "crun": "crun fails from then on, without a message",
    "conmon": "conmon exits at once from then on",
}

# `threading` is 0.8 ms of every command
_lock = allocate_lock()  # several processes are started at once, each by a thread
_count = 0
_spec: tuple[int, str] | None = None
_log: str | None = None
_broken = ""


def _load() -> tuple[int, str]:
    global _log
    if not paths.in_lab():
        return (-1, "")
    number, _, action = os.environ.get("NISO_FAILPOINT", "").partition(":")
    _log = os.environ.get("NISO_FAILPOINT_LOG")
    return (int(number) if number.isdigit() else -1, action or "kill")


def _note(line: str) -> None:
    if _log:
        with open(_log, "a", encoding="utf-8") as log:
            log.write(f"{line}\n")


def are_counted() -> bool:
    """Return whether a test counts the calls of `hit`. If not, `hit` ignores its argument."""
    global _spec
    if _spec is None:
        _spec = _load()
    return _spec[0] >= 0


def hit(name: str) -> None:
    """Make the next step fail if a test has chosen this step, otherwise do nothing. A step is a
    change of anything outside this process.

    The call kills the process with SIGKILL, raises OSError with the chosen errno, or makes a later
    operation fail (`broken`). ``name`` describes the step in the log of failpoints.
    """
    global _count, _broken
    if not are_counted() or _spec is None:
        return
    with _lock:
        _count += 1
        number = _count
        _note(f"{number} {name}")
    if number != _spec[0]:
        return
    if _spec[1] == "kill":
        os.kill(os.getpid(), 9)
    if _spec[1] in LATER:
        _broken = _spec[1]
        return

    code = getattr(errno, _spec[1], errno.EIO)
    raise OSError(code, f"{os.strerror(code)} (failpoint {number})", name)


def broken(what: str) -> bool:
    """Return whether a test wants the operation ``what`` to fail now. ``what`` is a key of `LATER`,
    such as "crun".

    Only the first netlink answer is lost (`OVERRUN`); the other operations fail each time.
    """
    global _broken
    if _spec is None or _spec[0] < 0:
        return False
    _note(f"- {what}")
    is_broken = _broken == what
    if is_broken and what == OVERRUN:
        _broken = ""
    return is_broken
