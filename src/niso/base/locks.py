"""The locks of niso: its own, one for each service, and telling whom a command waits for."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from _thread import get_ident
from contextlib import suppress
from io import FileIO

from niso.base import paths
from niso.base.errors import Conflict, NisoError
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.report import Report, WaitingForLock

if TYPE_CHECKING:
    from weakref import ref
else:
    from _weakref import ref  # the same, without what weakref imports besides

told: Report | None = None
"""Takes what is waited for, where somebody wants to know: a command that shows its progress."""


_PAUSE_S = 0.005


def take(fd: int, event: WaitingForLock, at_most_s: float | None = None) -> None:
    """Lock ``fd`` for this process alone (flock(2)), as soon as nobody else has it; or not at all, after ``at_most_s`` seconds.

    ``event`` is reported where somebody else has it.

    Raises OSError.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        if told is not None:
            told(event)
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
                    take(self._fd, WaitingForLock(self._service))
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
                    "another niso command is starting or stopping it",
                    "wait for it to end and try again",
                    service=self._service,
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
    """Hold niso's lock: one writer at a time, over plan and write, never while a process is waited for.

    With ``at_most_s`` the block runs without it where it cannot be had within so many seconds. A thread that has it
    cannot take it again (RuntimeError): the inner block would wait for the outer one for ever. Only what an interrupt
    may have kept from being released is taken over: whoever undoes needs it.
    """

    _last: dict[int, ref[Lock]] = {}  # noqa: RUF012
    """The last one of each thread, for as long as anything holds it: without that its file closes by itself."""

    def __init__(self, at_most_s: float | None = None) -> None:
        self._at_most_s = at_most_s
        self._file: FileIO | None = None

    def __enter__(self) -> Lock:
        self._require_alone()
        Lock._last[get_ident()] = ref(self)
        path = os.path.join(paths.run_dir(), "lock")
        try:
            os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
            self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
            take(self._file.fileno(), WaitingForLock(), self._at_most_s)
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

    def _require_alone(self) -> None:
        """Raise RuntimeError if this thread holds the lock, unless an interrupt ended the block that took it."""
        known = Lock._last.get(get_ident())
        last = known() if known is not None else None
        if last is None or last._file is None or last._file.closed:
            return
        if not _is_interrupted():
            raise RuntimeError("niso's lock is taken twice by one thread")
        last._file.close()


def _is_interrupted() -> bool:
    """Return whether the exception that is being handled is an interrupt, or came of one."""
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
