"""Open the database and folders for one `niso.connect`, and guard all calls of the public API.

Only this module opens the database for a command. The guard checks arguments, and converts
exceptions of lower layers to `Error`. If the database is missing but kernel objects or processes
that niso created still exist, commands are refused. Otherwise a command would take the empty
database for the desired state.
"""

from __future__ import annotations

import os
import sys
import time
from _thread import get_ident

from niso.base import locks, paths
from niso.base.errors import Conflict, Error, InvalidInput, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import state_id_of
from niso.base.report import ExpectingHealth, WarningEvent
from niso.store import sqlite, store
from niso.store.sqlite import restore_hint, sqlite3, unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self

    from niso.base.report import Event, Report
    from niso.cluster.config import Config
    from niso.kernel.real import Kernel
    from niso.runtime.machine import Machine
    from niso.runtime.processes import Processes


if TYPE_CHECKING:
    Progress = Callable[[Event], object]


def joined() -> Config | None:
    """Return the cluster.toml of this host, or None outside a cluster. Raises Error."""
    from niso.cluster import config

    return config.load()


class Session:
    """The state of one `niso.connect`. It belongs to one thread and process, like its database."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self._folders = f"{paths.state_dir()} and {paths.run_dir()}"
        self.callback_error: BaseException | None = None
        self._store: store.Store | None = None
        self._listeners: list[Report | None] = []
        """The lock listeners that calls of this session have replaced, outermost call first."""
        self._owner = _here()

    def require(self) -> None:
        """Raise Conflict if this session cannot be used.

        Reasons are a call from another thread or process, changed folders of this process, and a
        missing database although kernel objects or processes of niso exist.
        """
        if self._owner != _here():
            raise Conflict(
                "this niso.Host belongs to another thread or process",
                "call niso.connect() in each thread and after each fork",
            )
        folders = f"{paths.state_dir()} and {paths.run_dir()}"
        if self._folders != folders:
            raise Conflict(
                f"the folders of this process changed from {self._folders} to {folders}",
                "use one state folder and one run folder per process",
            )
        if not os.path.lexists(paths.database()):
            refuse(self.kernel(), self.processes())

    def store(self, create: bool = False) -> store.Store:
        """Return the store, niso's database. Raises Error.

        If the database file does not exist and ``create`` is true, the file is created. If
        ``create`` is false, the store is an empty database in memory.
        """
        self.require()
        if self._store is not None and os.path.lexists(paths.database()):
            return self._store
        self.close()
        opened = store.Store.open(create=create)
        # a store in memory is not kept, because the file can appear later
        if os.path.lexists(paths.database()):
            self._store = opened
        return opened

    def machine(self, create: bool = False) -> Machine:
        """Return the `Machine` (store, kernel, processes and cluster) that commands act on."""
        from niso.runtime.machine import Machine

        return Machine(self.store(create), self.kernel(), self.processes(), joined, self.report)

    def machine_for_change(self, create: bool = False) -> Machine:
        """Return the `Machine` for a call that takes locks. Each wait for a lock is reported."""
        self.report_waits()
        return self.machine(create)

    def kernel(self) -> Kernel:
        """Return the `Kernel` of this host, for calls that need no store."""
        from niso.kernel.real import Kernel

        return Kernel()

    def processes(self) -> Processes:
        """Return the `Processes` of this host, for calls that need no store."""
        from niso.runtime.processes import Processes

        return Processes()

    def report_waits(self) -> None:
        """Report waits for locks to the progress callback until the current API call returns."""
        self._listeners.append(locks.listener)
        locks.listener = self.report

    @property
    def listening(self) -> int:
        """The number of nested API calls that report waits for locks."""
        return len(self._listeners)

    def listen_no_more(self, before: int) -> None:
        """Undo the calls of `report_waits` made since `listening` had the value ``before``."""
        if self.listening > before:
            locks.listener = self._listeners[before]
            del self._listeners[before:]

    def close(self) -> None:
        """Close the store. The next call opens it again."""
        opened, self._store = self._store, None
        if opened is not None:
            opened.close()

    # --- progress --------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Pass an event to the progress callback. An exception of the callback ends the call."""
        if self.progress is None or self._owner != _here():
            return  # another thread is waiting for a lock
        try:
            self.progress(event)
        except BaseException as error:
            self.callback_error = error
            raise

    def caution(self, text: str, hints: Iterable[str] = ()) -> None:
        """Send a warning with next steps to the progress callback."""
        self.report(WarningEvent(text, tuple(hints)))

    def expect(self, services: Iterable[str]) -> None:
        """Announce to the progress callback the services that must become healthy."""
        names = tuple(services)
        if names:
            self.report(ExpectingHealth(names))


def _here() -> tuple[int, int]:
    return os.getpid(), get_ident()


def open_session(
    state_dir: str | os.PathLike[str] | None,
    run_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Session:
    """Open a session. Raises Error if the caller is not root.

    If a folder is None, the environment variable for this folder or the default path is used.
    """
    for variable, folder in (("NISO_STATE_DIR", state_dir), ("NISO_RUN_DIR", run_dir)):
        name = variable.removeprefix("NISO_").lower()
        given = path(folder, name) if folder is not None else os.environ.get(variable)
        if given:
            # absolute, for child processes, which read it too, and threads with another working
            # folder
            os.environ[variable] = os.path.abspath(given)
    if os.geteuid() != 0:
        raise Error("needs root", "run it with sudo")
    return Session(progress)


def close_all() -> None:
    """Close all stores, for a process that exits without the interpreter's cleanup."""
    sqlite.close_all()


# --- checked arguments and errors of API calls ----------------------------------------------------

LEAST_TIMEOUT_S = 0.2


def guarded[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Wrap a method of the API so that it raises `Error` instead of sqlite3.Error and OSError.

    If the method starts to report waits for locks, the reports end when the method returns.
    """

    def call(*args: P.args, **named: P.kwargs) -> R:
        owner: Any = args[0]
        listening = owner.session.listening
        try:
            return method(*args, **named)
        except Error:
            raise
        except Exception as error:
            if error is owner.session.callback_error:
                raise  # raised by the caller's callback
            known = explained(error)
            if known is None:
                raise
            raise known from error
        finally:
            owner.session.listen_no_more(listening)

    call.__name__, call.__qualname__ = method.__name__, method.__qualname__
    call.__doc__, call.__module__ = method.__doc__, method.__module__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # as functools.wraps, for inspect
    return call


class ResultStream:
    """A source of results that is open until `close` or the end of a ``with`` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop streaming."""


class ApiPart:
    """The base of classes of the public API. All their public methods are `guarded`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __init_subclass__(cls) -> None:
        for name, member in [*vars(cls).items()]:
            if callable(member) and not name.startswith("_"):
                setattr(cls, name, guarded(member))


def explained(error: Exception) -> Error | None:
    """Convert an sqlite3.Error, an OSError, or the exception of a damaged row to an `Error`. Return
    None for other exceptions.
    """
    kind = type(error)
    if kind.__module__ == "sqlite3":
        if isinstance(error, sqlite3.OperationalError) or kind is sqlite3.DatabaseError:
            return unusable(error)
        return None
    # niso writes UTF-8 and JSON there; compared by name, because json is not always loaded
    if kind.__name__ in ("UnicodeDecodeError", "JSONDecodeError") and _is_of_store(error):
        return unusable(error)
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return Error(f"{error.filename}: {error.strerror}")
    try:
        os.getcwd()
    except OSError:
        return Error(
            "the current directory no longer exists", "cd to an existing one and try again"
        )
    return Error(f"system call: {error.strerror}")


def _is_of_store(error: Exception) -> bool:
    at = error.__traceback__
    names: list[str] = []
    while at is not None:
        names.append(str(at.tb_frame.f_globals["__name__"]))
        at = at.tb_next
    own = [name for name in names if name.startswith("niso.")]
    return bool(own) and own[-1].startswith("niso.store.")


def as_usage[T](call: Callable[[], T]) -> T:
    """Call a function, and raise UsageError instead of an InvalidInput that names no file."""
    try:
        return call()
    except InvalidInput as error:
        if error.file:
            raise
        raise UsageError.of(error) from None


def text(value: object, what: str) -> str:
    """Return an argument if it is a valid string. Raises a UsageError that names ``what``."""
    if not isinstance(value, str):
        raise UsageError(f"must be a string, not {type(value).__name__}", None, what)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{value!r} is not valid UTF-8", "names, paths and commands must be UTF-8", what
        ) from None
    return value


def texts(values: Iterable[object], what: str) -> list[str]:
    """Return arguments as a list if all are strings. Raises a UsageError that names ``what``."""
    if isinstance(values, str | bytes):
        raise UsageError("must be a list of strings, not one string", None, what)
    try:
        given = list(values)
    except TypeError:
        raise UsageError(
            f"must be a list of strings, not {type(values).__name__}", None, what
        ) from None
    return [text(value, what) for value in given]


_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # the seconds of each unit of a period


def path(value: object, what: str) -> str:
    """Convert a str or os.PathLike argument to a str. Raises a UsageError that names ``what``."""
    try:
        return text(os.fspath(value), what)  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(f"must be a path, not {type(value).__name__}", None, what) from None


def seconds(value: object, what: str, low: float) -> float:
    """Convert a number of seconds, which must be at least ``low``, to float. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"must be a number of seconds, not {type(value).__name__}", None, what)
    if not low <= value < float("inf"):
        raise UsageError(f"must be at least {low:g} seconds", None, what, value=f"{value:g}")
    return float(value)


def duration(value: str, what: str) -> float:
    """Convert a duration as in a manifest, such as ``60s``, to seconds. Raises UsageError."""
    from niso.manifest import values

    return as_usage(lambda: values.duration(value, what, low=LEAST_TIMEOUT_S))


def line_count(value: object) -> int | None:
    """Check a number of lines and return it. None means all lines. Raises UsageError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"lines: must be an integer, not {type(value).__name__}")
    if value < 0:
        raise UsageError(f"-n {value}: must be 0 or more", "niso logs NAME -n 20")
    return min(value, sys.maxsize)


def moment(value: object, what: str) -> float:
    """Convert a time (RFC 3339, by default local) or an age such as ``2h`` to Unix time."""
    given = text(value, what)
    digits, unit = given[:-1], _PERIODS.get(given[-1:])
    if unit and digits.isascii() and digits.isdigit() and len(digits) < 10:
        return time.time() - int(digits) * unit
    from datetime import datetime

    try:
        return datetime.fromisoformat(given).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            "must be a time or a period",
            "a time like 2026-03-01T12:00:00Z, or a period like 10m, 2h or 7d",
            what,
            value=repr(given),
        ) from None


def since_time(since: str | None) -> float | None:
    """Convert the argument ``since`` as `moment` does. None stays None. Raises UsageError."""
    return None if since is None else moment(since, "--since")


def callers() -> set[int]:
    """Return the uids whose files niso trusts: root, this process's user, and sudo's caller."""
    sudo = os.environ.get("SUDO_UID", "")
    return {0, os.geteuid(), *([int(sudo)] if sudo.isascii() and sudo.isdigit() else [])}


def user_of(user: str | None) -> Any:
    """Parse the value of ``exec --user``. Returns None for None. Raises UsageError."""
    from niso.manifest import values

    given = None if user is None else text(user, "user")
    return None if given is None else as_usage(lambda: values.user(given, "--user"))


# --- a lost store ---------------------------------------------------------------------------------


def refuse(kernel: Kernel, processes: Processes) -> None:
    """Raise Conflict if state.db is missing although objects that niso created exist.

    These objects are services in the run folder, and network interfaces of this namespace with
    niso's alias.
    """
    if os.path.lexists(paths.database()):
        return
    what = [
        f"link {name} of the niso state folder with id {state_id_of(mark)}"
        for name, mark in kernel.marked_links().items()
    ]
    folder = os.path.join(paths.run_dir(), "services")
    what += [f"service {name!r} in {folder}" for name in processes.services()]
    if what:
        more = f" and {len(what) - 1} more" if len(what) > 1 else ""
        raise Conflict(
            f"{paths.database()} is missing, but objects that niso created still exist: "
            f"{what[0]}{more}",
            "set NISO_STATE_DIR to the folder that has it; "
            f"if it is lost, see niso reset --help; then {restore_hint()}",
        )
