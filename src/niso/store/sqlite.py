"""Open SQLite databases, run transactions, and convert SQLite's errors to errors with a hint."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from functools import lru_cache
from weakref import ref

from niso.base import paths, signals
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


VERSION = 1
"""Version of the tables of `niso.store.tables`."""
COLUMNS = 115
"""The number of columns of all tables together. A database with another number is not a store."""


def encoded(value: object) -> str:
    """Encode a value as JSON."""
    return json.dumps(value)


def decoded(text: str) -> Any:
    """Decode a JSON text. Raises ValueError."""
    return json.loads(text)


class Transaction:
    """Run a ``with`` block as a write transaction: ``BEGIN IMMEDIATE``, then ``COMMIT``.

    After an error in the block, or after `cancel`, the transaction is rolled back.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._cancelled = False

    def __enter__(self) -> Transaction:
        if signals.broken(signals.BUSY):
            raise sqlite3.OperationalError("database is locked")
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except KeyboardInterrupt:
            # before or after BEGIN: an undo needs a transaction of its own
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return self

    def cancel(self) -> None:
        """Roll back at the end of the block (``--dry-run``)."""
        self._cancelled = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None and not self._cancelled:
                signals.hit("commit to the store")
                if signals.broken(signals.FULL):
                    full = sqlite3.OperationalError("database or disk is full")
                    full.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise full
                with room(make=True):
                    self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite itself rolls back after some errors
                self._db.execute("ROLLBACK")


class Reading:
    """Run a ``with`` block as a read transaction: ``BEGIN``, then ``COMMIT``.

    Inside another transaction it has no effect of its own. All queries in the block read the same
    state of the store. A query outside a transaction needs five system calls for locks, which take
    as long as most queries themselves.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._begins = not connection.in_transaction

    def __enter__(self) -> None:
        if self._begins:
            self._db.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        if self._begins and self._db.in_transaction:
            self._db.execute("COMMIT")


def use_wal(connection: sqlite3.Connection) -> None:
    """Switch the database to WAL mode. The mode is stored in the database.

    SQLite does not wait for the lock of this change, which a second process may hold on a new
    database. The change is therefore retried for at most 10 s.
    """
    for attempt in range(1000):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == 999:
                raise
        time.sleep(0.01)


def others_intend(connection: sqlite3.Connection, but: frozenset[str]) -> bool:
    """Return whether a change of any service that is not in ``but`` is in progress.

    The recorded data of a change is slow to read, and mostly not needed. A command for many
    services calls this function several times for each of them. Therefore a single row gives the
    names of all services with a change in progress.
    """
    names = connection.execute("SELECT group_concat(service, ' ') FROM intent").fetchone()[0]
    return names is not None and not _split(names) <= but


@lru_cache(maxsize=1)
def _split(names: str) -> frozenset[str]:
    return frozenset(names.split(" "))


def way_back() -> str:
    """Return the hint for a lost store: how to activate the services again."""
    copies = os.path.join(paths.state_dir(), "packages")
    return f"activate services again from their folders, or from the copies in {copies}/NAME/*"


def damaged(reason: str) -> Error:
    """Return the error for an unusable state.db.

    ``reason`` may be a text of several lines from SQLite.
    """
    return Error(
        f"{paths.database()}: {' '.join(reason.split())}",
        f"move it away; net repair has --sweep, which removes what is left; then {way_back()}",
    )


def require_store() -> None:
    """Raise Error if the existing state.db is not a regular file or is empty."""
    try:
        status = os.stat(paths.database())
    except FileNotFoundError:
        raise damaged("dangling symlink") from None
    if stat.S_ISDIR(status.st_mode):
        raise damaged("is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise damaged("not a regular file")
    if status.st_size == 0:
        raise damaged("is empty")


def unusable(error: Exception) -> Error:
    """Convert an error of SQLite to an Error.

    The hint depends on whether the file is damaged, locked, or not writable.
    """
    message = f"{paths.database()}: {error}"
    # the low byte is the primary code (sqlite.org/rescode.html)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # niso's statements are correct, so SQLITE_ERROR means unknown tables or columns; a ValueError
    # means text that is not UTF-8 (also in SQLite's message), or not JSON
    is_text = isinstance(error, ValueError)
    if is_text or type(error) is sqlite3.DatabaseError or code == sqlite3.SQLITE_ERROR:
        return damaged(str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = "another niso command has held the lock for 10 s: try again when it has finished"
        return Error(message, hint)
    try:
        disk = os.statvfs(paths.state_dir())
        if disk.f_bavail * disk.f_frsize < 1 << 16 and code != sqlite3.SQLITE_FULL:
            message += " (no space left on its disk)"
        if disk.f_files and not disk.f_favail:
            message += " (no inode left on its disk)"
            return Error(message, "delete files there that are not needed; df -i shows the inodes")
        if disk.f_flag & os.ST_RDONLY and code != sqlite3.SQLITE_READONLY:
            message += " (its file system is read-only)"
    except OSError:
        pass
    return Error(message, "check the disk's free space, and that NISO_STATE_DIR is writable")


ROOM = 1 << 20
"""The size of the reserve in bytes. SQLite's log and its index need a tenth of it for one command.
"""


class room:
    """Make up to ``ROOM`` bytes available on the store's disk during a ``with`` block.

    They come from a reserve: a file next to the store that is emptied during a write, so that
    services can be stopped and removed on a full disk. After the block the file is filled again as
    far as there is space. Other processes can take the space only during the milliseconds in
    between.

    With ``make``, a missing reserve is created if twice its size is free on the disk.
    """

    def __init__(self, make: bool = False) -> None:
        self._make = make

    def __enter__(self) -> None:
        try:
            if _free() < ROOM and os.path.getsize(_reserve()):
                os.truncate(_reserve(), 0)
        except OSError:
            pass  # the reserve is missing; the write itself reports any problem

    def __exit__(self, *_: object) -> None:
        try:
            self._fill()
        except OSError:
            pass  # the disk is full or not writable: the next change tries again

    def _fill(self) -> None:
        try:
            have = os.path.getsize(_reserve())
        except FileNotFoundError:
            if not self._make or _free() < 2 * ROOM:
                return
            have = 0
        size = min(ROOM, have + _free())
        if size > have:
            fd = os.open(_reserve(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)


def _reserve() -> str:
    return f"{paths.database()}-reserve"


def _free() -> int:
    """Return the free space of the store's disk in bytes."""
    status = os.statvfs(paths.state_dir())
    return status.f_bavail * status.f_frsize


class _Connection(sqlite3.Connection):
    """A connection that supports weak references."""


_open: list[ref[_Connection]] = []
"""Weak references to all open connections.

sqlite3 has reference cycles, so a connection can outlive the Store that used it.
"""


def close_all() -> None:
    """Close all connections. A process calls it that exits without Python's shutdown."""
    for reference in _open:
        if (connection := reference()) is not None:
            connection.close()
    _open.clear()


def connected(path: str) -> sqlite3.Connection:
    """Open a database in WAL mode and return the connection.

    A query waits at most 10 s for a lock.
    """
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, factory=_Connection)
    _open[:] = [*(reference for reference in _open if reference() is not None), ref(connection)]
    if path != ":memory:":
        with room():  # SQLite creates its log and the index of it
            use_wal(connection)
            connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection
