"""Open SQLite databases, run transactions, and convert SQLite's errors to errors with a hint."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from functools import lru_cache

from niso.base import paths, signals
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import from_json, ref, to_json

if TYPE_CHECKING:
    import sqlite3 as _sqlite3
    from typing import Any
else:
    try:
        import _sqlite3  # the Python layer loads datetime
    except ImportError:
        import sqlite3 as _sqlite3

sqlite3 = _sqlite3


VERSION = 6
"""Version of the tables in `niso.store.tables`."""
COLUMNS = 136
"""The number of columns of all tables together. A database with another number is not a store."""


def encoded(value: object) -> str:
    """Encode a value as JSON."""
    return to_json(value)


def decoded(text: str) -> Any:
    """Decode a JSON text. Raises ValueError."""
    return from_json(text)


class Rows:
    """A base class for groups of database queries, with methods for frequent kinds of query."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def _run(self, query: str, *values: object) -> sqlite3.Cursor:
        return self._db.execute(query, values)

    def _column(self, query: str, *values: object) -> list[Any]:
        return [row[0] for row in self._db.execute(query, values)]

    def _text(self, query: str, *values: object) -> str | None:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else str(row[0])

    def _has(self, query: str, *values: object) -> bool:
        return self._db.execute(query, values).fetchone() is not None

    def _put(self, table: str, *values: object) -> None:
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks(values)})", values)

    def _set_rows(self, table: str, service: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._db.execute(f"DELETE FROM {table} WHERE service=?", (service,))
        for row in rows:
            self._db.execute(f"INSERT INTO {table} VALUES ({marks(row)})", row)

    def _meta(self, key: str) -> str | None:
        return self._text("SELECT value FROM meta WHERE key=?", key)

    def _set_meta(self, key: str, value: str | None) -> None:
        self._db.execute("DELETE FROM meta WHERE key=?", (key,))
        if value is not None:
            self._put("meta", key, value)


def marks(values: Iterable[object]) -> str:
    """Return the SQL placeholders for a list of values, such as ``?, ?`` for two."""
    return ", ".join("?" for _ in values)


class Transaction:
    """A context manager that runs a ``with`` block as a transaction.

    After an error in the block, or after `cancel`, a write transaction (``BEGIN IMMEDIATE``) is
    rolled back. In a read transaction, all queries see the same state of the store. They are also
    faster, because a query outside a transaction needs five system calls for locks. Inside another
    transaction, a read transaction has no effect.
    """

    def __init__(self, connection: sqlite3.Connection, writes: bool = True) -> None:
        self._db = connection
        self._writes = writes
        self._cancelled = False
        self._begins = writes or not connection.in_transaction

    def __enter__(self) -> Transaction:
        if self._writes and signals.broken(signals.BUSY):
            raise sqlite3.OperationalError("database is locked")
        try:
            if self._begins:
                self._db.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        except KeyboardInterrupt:
            # before or after BEGIN: an undo needs a transaction of its own
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return self

    def cancel(self) -> None:
        """Request that the end of the block rolls back the transaction (``--dry-run``)."""
        self._cancelled = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if self._writes and kind is None and not self._cancelled:
                signals.hit("commit to the store")
                if signals.broken(signals.FULL):
                    full = sqlite3.OperationalError("database or disk is full")
                    full.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise full
                _empty_reserve()
                try:
                    self._db.execute("COMMIT")
                finally:
                    _fill_reserve(make=True)
        finally:
            if self._begins and self._db.in_transaction:  # some errors have rolled back already
                self._db.execute("ROLLBACK" if self._writes else "COMMIT")


def other_intents(connection: sqlite3.Connection, but: AbstractSet[str]) -> bool:
    """Return whether a service outside ``but`` has a change in progress. Reads only the services'
    names, because the recorded data of a change are slow to read.
    """
    names = connection.execute("SELECT group_concat(service, ' ') FROM intent").fetchone()[0]
    return names is not None and not _split(names) <= but


@lru_cache(maxsize=1)
def _split(names: str) -> frozenset[str]:
    return frozenset(names.split(" "))


def restore_hint() -> str:
    """Return a hint: how to activate the services again if the store no longer exists."""
    copies = os.path.join(paths.state_dir(), "packages/NAME/*/manifest.toml")
    return f"activate services again from their folders, or from the copies in {copies}"


def damaged(reason: str) -> Error:
    """Return the error for an unusable state.db. Line breaks in ``reason`` become spaces."""
    return Error(
        f"{paths.database()}: {' '.join(reason.split())}",
        f"move it away; see niso reset --help; then {restore_hint()}",
    )


def require_store() -> None:
    """Raise Error if state.db exists but is not a regular file, or is empty."""
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
    """Convert an exception of SQLite to an Error, with a hint for the cause."""
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


# --- a reserve of disk space ----------------------------------------------------------------------


# A file next to the store is emptied during a write, so that services can be stopped and removed on
# a full disk. Other processes can take the space only during the milliseconds in between.
ROOM = 1 << 20
"""The size of the reserved disk space in bytes. For one command, SQLite's log and index need a
tenth of it."""


def _empty_reserve() -> None:
    try:
        if _free() < ROOM and os.path.getsize(_reserve()):
            os.truncate(_reserve(), 0)
    except OSError:
        pass  # the reserve is missing; the write itself reports any problem


def _fill_reserve(make: bool = False) -> None:
    """Extend the file that reserves disk space to its full size, or as far as the disk allows. A
    missing file is created only with ``make``, and only if twice the full size is free.
    """
    try:
        try:
            have = os.path.getsize(_reserve())
        except FileNotFoundError:
            if not make or _free() < 2 * ROOM:
                return
            have = 0
        size = min(ROOM, have + _free())
        if size > have:
            fd = os.open(_reserve(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
    except OSError:
        pass  # the disk is full or not writable: the next change tries again


def _reserve() -> str:
    return f"{paths.database()}-reserve"


def _free() -> int:
    status = os.statvfs(paths.state_dir())
    return status.f_bavail * status.f_frsize


# --- connections ----------------------------------------------------------------------------------


_Connection = type("_Connection", (sqlite3.Connection,), {})  # it supports weak references
_open: list[ref[sqlite3.Connection]] = []
"""All open connections. They are listed because a connection can outlive its Store: sqlite3 has
reference cycles."""


def close_all() -> None:
    """Close all connections. Call it before the process exits without Python's shutdown."""
    for reference in _open:
        if (connection := reference()) is not None:
            connection.close()
    _open.clear()


def connected(path: str) -> sqlite3.Connection:
    """Return a connection to a database, in WAL mode. A query waits at most 10 s for a lock."""
    connection: sqlite3.Connection = sqlite3.connect(
        path, timeout=10, isolation_level=None, factory=_Connection
    )
    _open[:] = [*(reference for reference in _open if reference() is not None), ref(connection)]
    if path != ":memory:":
        _empty_reserve()  # SQLite creates its log and the log's index
        try:
            # SQLite does not wait for the lock of this change, which a second process may hold on a
            # new database: it is retried for at most 10 s
            for attempt in range(1000):
                try:
                    connection.execute("PRAGMA journal_mode=WAL")
                    break
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == 999:
                        raise
                time.sleep(0.01)
            connection.execute("PRAGMA user_version").fetchone()
        finally:
            _fill_reserve()
        connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection
