"""Reserve disk space for the store: a file beside it that is emptied during a write.

Services can then be stopped and removed on a full disk. Afterwards, the file is filled again as
far as there is space. Other processes can take the space only in the milliseconds between.
"""

from __future__ import annotations

import os

from niso.base import paths

ROOM = 1 << 20
"""Size in bytes. SQLite's log and its index of one command take a tenth of it."""


class room:
    """Make ``ROOM`` bytes available on the store's disk, as far as the reserve can.

    With ``make``, create the reserve if there is none and the disk has twice its size free.
    """

    def __init__(self, make: bool = False) -> None:
        self._make = make

    def __enter__(self) -> None:
        try:
            if _free() < ROOM and os.path.getsize(_path()):
                os.truncate(_path(), 0)
        except OSError:
            pass  # there is no reserve; the write itself reports what is wrong

    def __exit__(self, *_: object) -> None:
        try:
            self._fill()
        except OSError:
            pass  # the disk is full or not writable: the next change tries again

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
    """Return the free bytes of the store's disk."""
    status = os.statvfs(paths.state_dir())
    return status.f_bavail * status.f_frsize
