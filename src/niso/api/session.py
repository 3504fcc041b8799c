"""The state behind one `niso.connect`: store, folders, progress callback.

Only this module opens the store for a command.
"""

from __future__ import annotations

import _thread
import os

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.store import sqlite
from niso.store import store as stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from niso.base.report import Event, Report
    from niso.cluster.engine import Joined
    from niso.kernel.interface import Kernel
    from niso.runtime.processes import Processes
    from niso.services.machine import Machine

    Progress = Callable[[Event], object]


def joined() -> Joined | None:
    """Return this host's access to its cluster; None if it is in none. Raises Error."""
    from niso.cluster import config  # only hosts of a cluster need it

    return config.load()


class Session:
    """One connection to niso. It belongs to its thread and process, like its SQLite connection."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.state_dir, self.run_dir = paths.state_dir(), paths.run_dir()
        self.callback_error: BaseException | None = None
        self._store: stores.Store | None = None
        self._listeners: list[Report | None] = []
        """Lock listeners replaced by calls of this session, outermost first."""
        self._owner = _here()

    def require(self) -> None:
        """Raise Conflict in another thread or process, in other folders, or for a lost store."""
        if self._owner != _here():
            raise Conflict(
                "this niso.Host belongs to another thread or process",
                "call niso.connect() in each thread and after each fork",
            )
        folders = f"{paths.state_dir()} and {paths.run_dir()}"
        if f"{self.state_dir} and {self.run_dir}" != folders:
            raise Conflict(
                f"the folders of this process changed from {self.state_dir} and {self.run_dir}"
                f" to {folders}",
                "use one state folder and one run folder per process",
            )
        if not os.path.lexists(paths.database()):
            from niso.commands import lost_store

            lost_store.refuse(self.kernel(), self.processes())

    def store(self, create: bool = False) -> stores.Store:
        """Return the store.

        If there is none and ``create`` is false, it is an empty one in memory. Raises Error,
        Conflict.
        """
        self.require()
        if self._store is not None and os.path.lexists(paths.database()):
            return self._store
        self.close()
        opened = stores.Store.open(create=create)
        # a store in memory is not kept, because the file can appear later
        if os.path.lexists(paths.database()):
            self._store = opened
        return opened

    def machine(self, create: bool = False) -> Machine:
        """Return the machine that commands act on, with the store as returned by `store`."""
        from niso.services.machine import Machine

        return Machine(self.store(create), self.kernel(), self.processes(), joined)

    def machine_for_change(self, create: bool = False) -> Machine:
        """Return the machine for a call that takes locks; waiting for a lock is reported."""
        self.report_waits()
        return self.machine(create)

    def kernel(self) -> Kernel:
        """Return the kernel, for calls that need no store."""
        from niso.kernel.real import Real

        return Real()

    def processes(self) -> Processes:
        """Return the processes of services, for calls that need no store."""
        from niso.runtime.real_processes import RealProcesses

        return RealProcesses()

    def report_waits(self) -> None:
        """Report waits for locks until the present call of the API ends."""
        from niso.base import locks

        self._listeners.append(locks.listener)
        locks.listener = self.report

    @property
    def listening(self) -> int:
        """Return how many calls of this session report waits for locks."""
        return len(self._listeners)

    def listen_no_more(self, before: int) -> None:
        """Restore the lock listener that was active when `listening` was ``before``."""
        if self.listening > before:
            from niso.base import locks

            locks.listener = self._listeners[before]
            del self._listeners[before:]

    def close(self) -> None:
        """Close the store; the next call opens it again."""
        opened, self._store = self._store, None
        if opened is not None:
            opened.close()

    # --- progress --------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Pass an event to the callback. Its exceptions end the call."""
        if self.progress is None or self._owner != _here():
            return  # another thread is waiting for a lock
        try:
            self.progress(event)
        except BaseException as error:
            self.callback_error = error
            raise

    def caution(self, text: str, hints: Iterable[str] = ()) -> None:
        """Send a warning."""
        from niso.base.report import Caution

        self.report(Caution(text, tuple(hints)))

    def expect(self, services: Iterable[str]) -> None:
        """Announce the services that must become healthy."""
        names = tuple(services)
        if names:
            from niso.base.report import Expects

            self.report(Expects(names))


def _here() -> tuple[int, int]:
    """Return (process id, thread id) of the caller."""
    return os.getpid(), _thread.get_ident()


def open_session(
    state_dir: str | os.PathLike[str] | None,
    run_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Session:
    """Open a session; None means the folder of the environment, or the default.

    Raises Error without root.
    """
    for variable, folder in (("NISO_STATE_DIR", state_dir), ("NISO_RUN_DIR", run_dir)):
        given = _path(variable, folder) if folder is not None else os.environ.get(variable)
        if given:
            # absolute, for child processes, which read it too, and threads with another working
            # folder
            os.environ[variable] = os.path.abspath(given)
    if os.geteuid() != 0:
        raise Error("needs root", "run it with sudo")
    return Session(progress)


def close_all() -> None:
    """Close every store, for a process that skips the interpreter's shutdown."""
    sqlite.close_all()


def _path(variable: str, folder: object) -> str:
    from niso.api.guard import path

    return path(folder, variable.removeprefix("NISO_").lower())
