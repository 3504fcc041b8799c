"""Remove a folder with its content, however deep.

A service can nest folders deeper than the limit of open descriptors, with paths longer than
PATH_MAX. So each subfolder is first moved up, next to the folder that is being emptied: two
descriptors are enough.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import count

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# linux/fs.h
_IOC_GETFLAGS, _IOC_SETFLAGS = 0x8000_6601, 0x4000_6602  # plus the size of a long << 16
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""Errors of rename(2) if the content already has an entry of that name."""
_PROTECTED = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


def remove(path: str) -> None:
    """Remove a folder with its content, without following links; no-op if it does not exist.

    Also removes immutable and append-only files (ioctl_iflags(2)). Nothing may modify the folder
    concurrently. After a failure part of the content is removed; another call continues. Raises
    OSError.
    """
    try:
        top = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    try:
        numbers = count()
        while names := os.listdir(top):
            for name in names:
                if not _unlink(name, top):
                    _empty(name, top, numbers)
    finally:
        os.close(top)
    try:
        os.rmdir(path)
    except PermissionError:
        _unprotect(path, None)
        os.rmdir(path)


def _empty(name: str, top: int, numbers: count[int]) -> None:
    """Remove the folder ``name`` in ``top``; its subfolders move to ``top``. Raises OSError."""
    folder = os.open(name, _FOLDER, dir_fd=top)
    try:
        for inner in os.listdir(folder):
            if not _unlink(inner, folder):
                _move(inner, folder, top, numbers)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _unlink(name: str, folder: int) -> bool:
    """Remove a file or an empty folder. Raises OSError.

    Returns False for a folder with content; its attributes then no longer protect it.
    """
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return _rmdir(name, folder)
    except PermissionError:
        _unprotect(".", folder)
        _unprotect(name, folder)
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            return _rmdir(name, folder)
    return True


def _rmdir(name: str, folder: int) -> bool:
    """Remove a folder if it is empty, and return whether it was removed. Raises OSError."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _move(name: str, folder: int, top: int, numbers: count[int]) -> None:
    """Move a folder to ``top``, named by the next free number. Raises OSError."""
    for number in numbers:
        try:
            os.rename(name, f".{number}", src_dir_fd=folder, dst_dir_fd=top)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise


def _unprotect(name: str, folder: int | None) -> None:
    """Clear the immutable and append-only attributes of a file or folder; no-op for other types.

    Raises OSError.
    """
    if stat.S_IFMT(os.lstat(name, dir_fd=folder).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return
    import fcntl
    import struct

    size = struct.calcsize("l")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        flags = fcntl.ioctl(fd, _IOC_GETFLAGS | size << 16, bytes(size))
        (now,) = struct.unpack("l", flags)
        if now & _PROTECTED:
            wanted = struct.pack("l", now & ~_PROTECTED)
            fcntl.ioctl(fd, _IOC_SETFLAGS | size << 16, wanted)
    except OSError:
        # a file system without attributes (ENOTTY): the removal failed for another reason
        return
    finally:
        os.close(fd)
