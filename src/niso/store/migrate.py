"""Migrate a store from an earlier version, and keep a copy of it."""

from __future__ import annotations

import os
import sqlite3

from niso.base import files, paths
from niso.store import specs, tables, written_rows
from niso.store.sqlite import VERSION


def migrate(db: sqlite3.Connection) -> int:
    """Bring a store to this version, and return its previous version.

    No-op if another process has done so. The caller holds a transaction. Raises sqlite3.Error.
    """
    before = version = int(db.execute("PRAGMA user_version").fetchone()[0])
    while version < VERSION:
        version += 1
        if version == 4:
            written_rows.add_functions(db)
        if version == 11:
            db.create_function("mark", 5, specs.mark, deterministic=True)
        for statement in tables.MIGRATIONS[version].split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={VERSION}")
    return before


def copy_path(version: int) -> str:
    """Return the path for the copy of a store of an earlier version."""
    return f"{paths.database()}.v{version}"


def keep(version: int) -> None:
    """Copy the store of an earlier version to `copy_path`; no-op for the present version.

    The caller has changed the store in a transaction that is not committed yet. Raises
    sqlite3.Error, OSError.
    """
    if version == VERSION:
        return
    path = copy_path(version)
    draft = f"{path}.new"
    if os.path.lexists(draft):
        files.remove(draft)
    # another connection than the caller's: it reads the store before the change
    source, target = sqlite3.connect(paths.database()), sqlite3.connect(draft)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    os.chmod(draft, 0o600)
    files.sync(draft)
    os.rename(draft, path)
    files.sync(paths.state_dir())
