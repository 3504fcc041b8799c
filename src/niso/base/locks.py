"""The locks of niso: its own, one for each service, and telling whom a command waits for."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from io import FileIO

from niso.base import paths
from niso.base.errors import Conflict, NisoError

told: Callable[[str], None] | None = None
"""Takes what is waited for, where somebody wants to know: a command that shows its progress."""


_PAUSE_S = 0.005


def take(fd: int, whose: str, at_most_s: float | None = None) -> None:
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


_RETRY_S = 0.02


class service_lock:
    """Hold ``<run>/locks/<service>.lock`` (flock(2)); it goes with the process, so no crash leaves it behind.

    ``timeout_s``: seconds to wait, None for as long as it takes. Raises `Conflict` when time is up.
    The descriptor is close-on-exec: no service or conmon ever inherits it.
    """

    def __init__(self, service: str, timeout_s: float | None = None) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._fd = -1

    def __enter__(self) -> service_lock:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            self._fd = open_lock(self._service)
            try:
                if deadline is None:
                    take(self._fd, f"is at work on {self._service}")
                else:
                    self._wait(deadline)
                if _is_current(self._fd, self._service):
                    return self
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)  # whoever had it removed the file: others hold the new one

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _wait(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
            if time.monotonic() >= deadline:
                raise Conflict(
                    f"{self._service}: another niso command is starting or stopping it",
                    "wait for it to end and try again",
                )
            time.sleep(_RETRY_S)


def locked_services() -> set[str]:
    """The services that have a lock file: those that are known, and those that somebody is making known."""
    try:
        found = os.listdir(paths.lock_dir())
    except FileNotFoundError:
        return set()
    return {
        name.removesuffix(".lock")
        for name in found
        if name.count(".") == 1 and name.endswith(".lock")
    }


def remove_locks(service: str) -> None:
    """Remove the lock files of a service that is no longer known; the caller holds its lock."""
    for name in (f"{service}.log", service):
        try:
            os.unlink(_path(name))
        except FileNotFoundError:
            pass


def _is_current(fd: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(_path(name)))
    except FileNotFoundError:
        return False


def _path(name: str) -> str:
    return os.path.join(paths.lock_dir(), f"{name}.lock")


def open_lock(name: str) -> int:
    """Open (and create, 0600) the lock file ``name``.lock; the descriptor of it. Raises OSError.

    ``name``: a service's, or with a dot in it, which no service's has, one of niso's own.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(_path(name), flags, 0o600)
    except FileNotFoundError:
        os.makedirs(paths.lock_dir(), 0o700, exist_ok=True)
        return os.open(_path(name), flags, 0o600)


class Lock:
    """niso's lock: one writer at a time. Held over plan and write, never while a process is waited for.

    With ``at_most_s`` the block runs without it where it cannot be had within so many seconds.
    """

    _last: dict[int, FileIO] = {}  # noqa: RUF012
    """The file of the last one of each thread. An interrupt may have come before it was closed, and whoever undoes would wait
    for it for ever."""

    def __init__(self, at_most_s: float | None = None) -> None:
        self._at_most_s = at_most_s
        self._file: FileIO | None = None

    def __enter__(self) -> Lock:
        thread = get_ident()
        if thread in Lock._last:
            Lock._last[thread].close()
        path = os.path.join(paths.run_dir(), "lock")
        try:
            os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
            self._file = Lock._last[thread] = FileIO(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+"
            )
            take(self._file.fileno(), "changes the network", self._at_most_s)
        except KeyboardInterrupt:
            self.__exit__()
            raise
        except OSError as error:
            raise NisoError(
                f"{error.filename or paths.run_dir()}: {error.strerror}", "check NISO_RUN_DIR"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
