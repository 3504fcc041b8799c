"""Detect a copy of a state folder, which must not act on the original's services.

A copy has the state id of the original, so it would take the original's links, processes and rules
for its own. The store has the device, inode and path of its folder. A folder that was moved has the
same ones, or there is no such store at the old path any longer.
"""

from __future__ import annotations

import os
import sqlite3

from niso.base import paths
from niso.base.errors import Error
from niso.store import reboot


def changed(db: sqlite3.Connection) -> str | None:
    """Return the state folder's place to `record`; None if the one on record leads to it too.

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
        # the same folder by another path, or after a reboot that has renumbered the devices
        return None if here == was else now
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()
    if here != was and _state_id(before) == state_id:
        raise Error(
            f"{folder} is a copy of the state folder {before}, which has the same services",
            f"use NISO_STATE_DIR={before}; to go on with the copy, first move that one away",
        )
    return now


def record(db: sqlite3.Connection, place: str) -> None:
    """Record the place of the state folder. The caller holds a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('folder', ?)", (place,))


def _parts(place: str) -> tuple[str, str]:
    """Return (device and inode, path) of a place on record."""
    device, inode, path = place.split(" ", 2)
    return f"{device} {inode}", path.encode().decode("unicode_escape")


def _identity(folder: str) -> str:
    status = os.stat(folder)
    return f"{status.st_dev} {status.st_ino}"


def _state_id(folder: str) -> tuple[str] | None:
    """Return the row with the state id of a store in this folder; None if there is none."""
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
