"""Make the system calls for mounts and file systems that Python lacks. All raise OSError."""

from __future__ import annotations

import os
import struct
from functools import cache

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

# asm/unistd.h (the same number on every architecture), linux/mount.h, fcntl.h
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE, _CLOEXEC, _RECURSIVE = 1, 0o2000000, 0x8000
_FROM_EMPTY_PATH, _TO_EMPTY_PATH, _BENEATH = 0x4, 0x40, 0x200
AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 0x2, 0x4, 0x8
"""RESOLVE_* of openat2(2)."""

_open_how = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_mount_attr = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, userns


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2). The error has ``target`` as its file name."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _call("mount", *texts[:3], flags, texts[3], name=target)


def unmount(target: bytes, flags: int) -> None:
    """Call umount2(2)."""
    _call("umount2", target, flags)


def syncfs(fd: int) -> None:
    """Flush the file system of ``fd`` to its disk (syncfs(2))."""
    _call("syncfs", fd)


def open_place(path: str, resolve: int, folder: int = AT_FDCWD, flags: int = 0) -> int:
    """Open ``path`` below ``folder`` with O_PATH (openat2(2)); ``resolve`` has RESOLVE_* flags."""
    how = _open_how.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    return _call("syscall", _OPENAT2, folder, os.fsencode(path), how, len(how), name=path)


def clone_mount(fd: int, path: str = "", recursive: bool = False) -> int:
    """Create a detached bind mount of ``path`` below ``fd``, or of ``fd`` (open_tree(2))."""
    flags = _CLONE | _CLOEXEC | (_RECURSIVE if recursive else 0)
    flags |= 0 if path else _AT_EMPTY_PATH
    return _call("syscall", _OPEN_TREE, fd, os.fsencode(path), flags, name=path)


def set_attributes(tree: int, attributes: int, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* of a detached mount, or of all mounts in it (mount_setattr(2))."""
    attr = _mount_attr.pack(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_RECURSIVE if recursive else 0)
    _call("syscall", _MOUNT_SETATTR, tree, b"", flags, attr, len(attr))


def attach(tree: int, target: str, folder: int = AT_FDCWD) -> None:
    """Mount a detached mount at ``target`` below ``folder`` (move_mount(2))."""
    where = (folder, os.fsencode(target))
    _call("syscall", _MOVE_MOUNT, tree, b"", *where, _FROM_EMPTY_PATH, name=target)


def attach_beneath(tree: int, target: int) -> None:
    """Mount a detached mount beneath the mount whose root is ``target`` (Linux 6.5)."""
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH
    _call("syscall", _MOVE_MOUNT, tree, b"", target, b"", flags)


@cache
def _libc() -> CDLL:
    """Load the C library on first use, since most commands that load this module make no call."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes | None, name: str = "") -> int:
    """Call a function of the C library; return its result.

    Raises OSError with ``name`` as its file name if the result is negative.
    """
    import ctypes

    words = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = int(getattr(_libc(), function)(*words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name or None)
    return result
