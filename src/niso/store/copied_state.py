"""Detect a copy of a state folder, which must not act on the original's services.

A copy has the state id of the original, so it would treat the original's links, processes and rules
as its own. The store records device, inode and path of its folder. A moved folder keeps device and
inode, or there no longer is a store with this id at the recorded path.
"""

from __future__ import annotations

import os
import sqlite3

from niso.base import paths
from niso.base.errors import Error
from niso.store import reboot


def changed(db: sqlite3.Connection) -> str | None:
    """Return the location of the state folder to `record`; None if the recorded one is still right.

    Raises Error if the folder is a copy of one that still exists, and OSError.
    """
    now = reboot.folder()
    here, folder = _parts(now)
    row = db.execute("SELECT value FROM meta WHERE key='folder'").fetchone()
    if row is None:
        return now
    try:
        was, before = _parts(str(row[0]))
        there = _identity(before)
    except (OSError, ValueError):
        return now
    if there == here:
        # the same folder under another path, or after a reboot that has renumbered the devices
        return None if here == was else now
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()
    if here != was and _state_id(before) == state_id:
        raise Error(
            f"{folder} is a copy of the state folder {before}, which has the same services",
            f"use NISO_STATE_DIR={before}; to go on with the copy, first move that one away",
        )
    return now


def record(db: sqlite3.Connection, place: str) -> None:
    """Record the location of the state folder. The caller holds a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('folder', ?)", (place,))


def _parts(place: str) -> tuple[str, str]:
    """Split a recorded location into (device and inode, path)."""
    device, inode, path = place.split(" ", 2)
    return f"{device} {inode}", path.encode().decode("unicode_escape")


def _identity(folder: str) -> str:
    status = os.stat(folder)
    return f"{status.st_dev} {status.st_ino}"


def _state_id(folder: str) -> tuple[str] | None:
    """Return the row with the state id of the store in this folder; None if there is none."""
    path = os.path.join(folder, os.path.basename(paths.database()))
    if not os.path.isfile(path):
        return None
    try:
        other = sqlite3.connect(path)
        try:
            row: tuple[str] | None = other.execute(
                "SELECT value FROM meta WHERE key='state_id'"
            ).fetchone()
        finally:
            other.close()
    except sqlite3.Error:
        return None
    return row
