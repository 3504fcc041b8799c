"""Take niso's global lock and the lock of a service, and report when a command waits for a lock."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from _thread import get_ident
from io import FileIO

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import ref
from niso.base.report import WaitingForLock

if TYPE_CHECKING:
    from niso.base.report import Report

listener: Report | None = None
"""The function that is called when a command waits for a lock, or None if no progress is shown."""


_PAUSE_S = 0.005


class Busy(Conflict):
    """Raised if another process still holds the lock when the time limit ends."""


def flock(fd: int, service: str, at_most_s: float | None = None, quiet: bool = False) -> bool:
    """Lock the file ``fd`` exclusively (flock(2)), waiting while another process holds the lock.

    Returns False if the lock is still not free after ``at_most_s`` seconds; 0 means not to wait.
    Before waiting, the event WaitingForLock is reported with ``service`` ("" for the global lock),
    unless ``quiet``. Raises OSError.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if listener is not None and not quiet and at_most_s != 0:
            listener(WaitingForLock(service))
    if at_most_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return True
    until = time.monotonic() + at_most_s
    while time.monotonic() < until:
        time.sleep(_PAUSE_S)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


_FEW, _SPARE = 100, 1024


def raise_file_limit(services: int) -> None:
    """Raise this process's limit of open files, so that it can lock so many services.

    A command needs up to two descriptors for each of its services: of the lock and of the process.
    The usual limit, 1024, is enough for 100 services. The limit is not raised above the hard limit
    (setrlimit(2)).
    """
    if services <= _FEW:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    wanted = min(2 * services + _SPARE, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class service_lock:
    """A context manager that locks a service by its file ``<run>/locks/<service>.lock`` (flock(2)).

    The kernel releases the lock when the process ends. ``timeout_s`` is the time to wait in
    seconds. None means no limit. Raises `Busy` on timeout. The descriptor is close-on-exec, so that
    no service or conmon inherits the lock.
    """

    def __init__(self, service: str, timeout_s: float | None = None) -> None:
        self._service = service
        self._timeout_s = timeout_s
        self._fd = -1

    def __enter__(self) -> service_lock:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            self._fd = open_lock(self._service)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if not flock(self._fd, self._service, left, quiet=left is not None):
                    hint = "wait for it to finish and try again"
                    reason = "another niso command is starting or stopping it"
                    raise Busy(reason, hint, service=self._service)
                if _is_current(self._fd, self._service):
                    return self
            except BaseException:
                os.close(self._fd)
                raise
            # the last holder has removed the file: other processes lock the new one
            os.close(self._fd)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def is_held(service: str) -> bool:
    """Return whether a process has locked a service, according to /proc/locks (proc_locks(5))."""
    try:
        info = os.stat(_path(service))
    except FileNotFoundError:
        return False
    with open("/proc/locks", encoding="utf-8") as lines:
        places = [line.split()[-3].rpartition(":") for line in lines]
    devices = {device for device, _, inode in places if inode == str(info.st_ino)}
    major, minor = os.major(info.st_dev), os.minor(info.st_dev)
    if not devices or f"{major:02x}:{minor:02x}" in devices:
        return bool(devices)
    # overlayfs and btrfs report device numbers that no mount has: then only the inode is compared
    with open("/proc/self/mountinfo", "rb") as mounts:
        return f" {major}:{minor} ".encode() not in mounts.read()


def locked_services() -> set[str]:
    """Return the services and instances with a lock file, including those that the store lacks."""
    try:
        names = os.listdir(paths.lock_dir())
    except FileNotFoundError:
        return set()
    stems = (name.removesuffix(".lock") for name in names if name.endswith(".lock"))
    return {
        stem
        for stem in stems
        if "." not in stem or (stem[0] != "." and stem.partition(".")[2].isdigit())
    }


def remove_locks(service: str) -> None:
    """Remove the lock files of a deleted service and of its log. The caller must have the lock."""
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
    """Open the lock file of ``name``, and create it with mode 0600 if it is missing.

    ``name`` is a service, an instance (NAME.NUMBER), or an internal lock. The name of an internal
    lock contains a dot, so no service can have the same name. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(_path(name), flags, 0o600)
    except FileNotFoundError:
        os.makedirs(paths.lock_dir(), 0o700, exist_ok=True)
        return os.open(_path(name), flags, 0o600)


class Lock:
    """A context manager that takes niso's global lock while a change is planned and written.

    Code in the block must never wait for another process. If another process still has the lock
    after ``at_most_s`` seconds, the block runs without the lock. With ``required``, Busy is raised
    instead.

    Raises RuntimeError if this thread already has the lock, because it would wait for itself. The
    exception: if an interrupt (KeyboardInterrupt) prevented the release of the lock, the next block
    of this thread releases the lock and takes it again. The code that undoes the change needs this.
    """

    _last: dict[int, ref[Lock]] = {}  # noqa: RUF012
    """The latest Lock of each thread, by thread id. The references are weak, so unused locks are
    closed."""

    def __init__(self, at_most_s: float | None = None, required: bool = False) -> None:
        self._at_most_s = at_most_s
        self._required = required
        self._file: FileIO | None = None

    def __enter__(self) -> Lock:
        self._require_alone()
        Lock._last[get_ident()] = ref(self)
        path = os.path.join(paths.run_dir(), "lock")
        try:
            os.makedirs(paths.run_dir(), mode=0o755, exist_ok=True)
            self._file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
            taken = flock(self._file.fileno(), "", self._at_most_s)
            if not taken and self._required:
                self.__exit__()
                words = f"another niso command has held {path} for {self._at_most_s:g}s"
                raise Busy(words, "wait for it to end, or end it")
        except KeyboardInterrupt:
            self.__exit__()
            raise
        except OSError as error:
            raise Error(
                f"{error.filename or paths.run_dir()}: {error.strerror}", "check NISO_RUN_DIR"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _require_alone(self) -> None:
        """Raise RuntimeError if this thread already holds the lock. If an interrupt
        (KeyboardInterrupt) prevented the lock's release, release the lock instead.
        """
        known = Lock._last.get(get_ident())
        last = known() if known is not None else None
        if last is None or last._file is None or last._file.closed:
            return
        if not _is_interrupted():
            raise RuntimeError("this thread already holds niso's lock")
        last._file.close()


def lock_after(error: BaseException | None) -> Lock:
    """Return niso's global lock, for the code that records how a command ended.

    ``error`` is the exception that ended the command, or None. If it is an interrupt
    (KeyboardInterrupt), entering the lock raises Busy at once instead of waiting.
    """
    is_interrupt = error is not None and not isinstance(error, Exception)
    return Lock(0.0 if is_interrupt else None, required=True)


def _is_interrupted() -> bool:
    error = sys.exception()
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
