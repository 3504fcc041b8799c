"""niso's own files as somebody may have left them: only a regular file counts as there, and nothing odd is waited for."""

from __future__ import annotations

import errno
import os
import stat

_NONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)  # ELOOP: it is a link; ENXIO: a socket


def read(path: str, mode: int = 0) -> bytes | None:
    """What is in the regular file ``path``; None where there is none, or one whose permissions lack some of ``mode``.

    A link is not followed, a FIFO not waited for. Raises OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & mode != mode:
            return None
        parts, size = [], found.st_size + 1
        while part := os.read(fd, size):
            parts.append(part)
            if len(part) < size:  # the end, without asking once more
                break
        return b"".join(parts)
    finally:
        os.close(fd)


def make(path: str, mode: int) -> int:
    """A descriptor to write to the new file ``path``; what was there, a draft or something odd, goes. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        remove(path)
        return os.open(path, flags, mode)


def write(fd: int, content: bytes) -> None:
    """Write all of it. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def rename(draft: str, path: str) -> None:
    """Have ``draft`` take the place of ``path``, also of an empty folder there. Raises OSError."""
    try:
        os.rename(draft, path)
    except IsADirectoryError:
        os.rmdir(path)
        os.rename(draft, path)


def remove(path: str) -> None:
    """Remove what is no folder, or an empty one. Raises OSError."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        os.rmdir(path)
