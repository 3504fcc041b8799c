"""What SQLite needs from us: transactions, WAL, and its errors in words."""

from __future__ import annotations

import os
import sqlite3
import stat
import time

from niso.base import failpoint, paths
from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING
from niso.store.disk_reserve import room

if TYPE_CHECKING:
    from typing import Any


def encoded(value: object) -> str:
    """JSON of a value. What loads it is imported when it is needed, here and in `decoded`: `net list` does not (1 ms of 30)."""
    import json

    return json.dumps(value)


def decoded(text: str) -> Any:
    """The value of JSON. Raises ValueError."""
    import json

    return json.loads(text)


class Transaction:
    """``BEGIN IMMEDIATE`` … ``COMMIT``, or ``ROLLBACK`` after an error or `cancel`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._cancelled = False

    def __enter__(self) -> Transaction:
        if failpoint.broken(failpoint.BUSY):
            raise sqlite3.OperationalError("database is locked")
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except KeyboardInterrupt:  # before it, or after: whoever undoes begins another one
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return self

    def cancel(self) -> None:
        """Change nothing after all (``--dry-run``)."""
        self._cancelled = True

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None and not self._cancelled:
                failpoint.hit("commit to the store")
                if failpoint.broken(failpoint.FULL):
                    full = sqlite3.OperationalError("database or disk is full")
                    full.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise full
                with room(make=True):
                    self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # which SQLite itself ends after some errors
                self._db.execute("ROLLBACK")


def use_wal(connection: sqlite3.Connection) -> None:
    """Have the database in WAL mode, which its file remembers.

    SQLite does not wait for the lock of the change that makes it so: with two processes at a new database it is asked again,
    for at most 10 s.
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
    """Whether a change of any service but these is under way: what intents hold is slow to read, and mostly not needed."""
    return any(row[0] not in but for row in connection.execute("SELECT service FROM intent"))


def way_back() -> str:
    """How services come back when the store is lost: a copy of each package, with its manifest, is kept."""
    copies = os.path.join(paths.state_dir(), "packages")
    return (
        f"services can be activated again from their folders, or from the copies in {copies}/NAME/*"
    )


def damaged(words: str) -> NisoError:
    """state.db is of no use, for the reason that ``words`` give: SQLite's may be several lines."""
    return NisoError(
        f"{paths.database()}: {' '.join(words.split())}",
        f"move it away and run niso net repair --sweep; then {way_back()}",
    )


def require_store() -> None:
    """Raise NisoError where what has the store's name is nothing that can be one. It exists."""
    try:
        found = os.stat(paths.database())
    except FileNotFoundError:
        raise damaged("it is a symlink that leads nowhere") from None
    if not stat.S_ISREG(found.st_mode):
        raise damaged("it is no file" if not stat.S_ISDIR(found.st_mode) else "it is a folder")
    if found.st_size == 0:
        raise damaged("it is empty")


def unusable(error: Exception) -> NisoError:
    """What SQLite says of the store, and the next step: for a damaged file, else for a place that cannot be written."""
    words = f"{paths.database()}: {error}"
    # the low byte is the primary code (sqlite.org/rescode.html)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # what niso asks is right, so SQLITE_ERROR means that tables or columns are not those that it knows
    if type(error) is sqlite3.DatabaseError or code == sqlite3.SQLITE_ERROR:
        return damaged(str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return NisoError(
            words, "another niso command has been changing it for 10 s: try again when it has ended"
        )
    try:
        found = os.statvfs(paths.state_dir())
        if found.f_bavail * found.f_frsize < 1 << 16 and code != sqlite3.SQLITE_FULL:
            words += " (no space left on its disk)"
        if found.f_flag & os.ST_RDONLY and code != sqlite3.SQLITE_READONLY:
            words += " (its file system is read-only)"
    except OSError:
        pass
    return NisoError(words, "check the disk's free space, and that NISO_STATE_DIR can be written")
