"""Room for niso's records on a full disk: a file beside them that is emptied while they are written.

So that a service can be stopped and removed when nothing else can be written there any more. It is filled again with what is left
of its room afterwards; whoever else fills the disk gets none of it but within those milliseconds.
"""

from __future__ import annotations

import os

from niso.base import paths

ROOM = 1 << 20
"""Bytes: SQLite's log and its index of one command take a tenth of it."""


class room:
    """Within the block there is ``ROOM`` on the disk of the records, or what there is with the reserve.

    With ``make`` the reserve is made where there is none yet and the disk has twice its size.
    """

    def __init__(self, make: bool = False) -> None:
        self._make = make

    def __enter__(self) -> None:
        try:
            if _free() < ROOM and os.path.getsize(_path()):
                os.truncate(_path(), 0)
        except OSError:
            pass  # there is none; what is written next says what is wrong

    def __exit__(self, *_: object) -> None:
        try:
            self._fill()
        except OSError:
            pass  # the disk is full, or cannot be written: the next change tries again

    def _fill(self) -> None:
        try:
            have = os.path.getsize(_path())
        except FileNotFoundError:
            if not self._make or _free() < 2 * ROOM:
                return
            have = 0
        size = min(ROOM, have + _free())
        if size > have:
            fd = os.open(_path(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)


def _path() -> str:
    return f"{paths.database()}-reserve"


def _free() -> int:
    """Bytes that are free on the disk of the records."""
    found = os.statvfs(paths.state_dir())
    return found.f_bavail * found.f_frsize
