"""The system calls for mounts and file systems that Python lacks. All raise OSError."""

from __future__ import annotations

import ctypes
import os

# asm/unistd.h (the same number on every architecture), linux/mount.h, fcntl.h
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE, _CLOEXEC, _RECURSIVE = 1, 0o2000000, 0x8000
_FROM_EMPTY_PATH, _TO_EMPTY_PATH, _BENEATH = 0x4, 0x40, 0x200
AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 0x2, 0x4, 0x8
"""RESOLVE_* of openat2(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2). The error has ``target`` as its file name."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    if _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def unmount(target: bytes, flags: int) -> None:
    """Call umount2(2)."""
    if _libc.umount2(target, flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def syncfs(fd: int) -> None:
    """Write everything of the file system of ``fd`` to its disk (syncfs(2))."""
    if _libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_place(path: str, resolve: int, folder: int = AT_FDCWD, flags: int = 0) -> int:
    """Open ``path`` below ``folder`` with O_PATH (openat2(2)); ``resolve`` has RESOLVE_* flags."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    return _syscall(
        _OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), name=path
    )


def clone_mount(fd: int, path: str = "", recursive: bool = False) -> int:
    """Open a detached bind mount of ``path`` below ``fd``, or of ``fd`` (open_tree(2))."""
    flags = _CLONE | _CLOEXEC | (_RECURSIVE if recursive else 0)
    return _syscall(
        _OPEN_TREE, fd, os.fsencode(path), flags | (0 if path else _AT_EMPTY_PATH), name=path
    )


def set_attributes(tree: int, attributes: int, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* of a detached mount, or of all mounts in it (mount_setattr(2))."""
    attr = _MountAttr(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_RECURSIVE if recursive else 0)
    _syscall(_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr), name="")


def attach(tree: int, target: str, folder: int = AT_FDCWD) -> None:
    """Mount a detached mount at ``target`` below ``folder`` (move_mount(2))."""
    _syscall(_MOVE_MOUNT, tree, b"", folder, os.fsencode(target), _FROM_EMPTY_PATH, name=target)


def attach_beneath(tree: int, target: int) -> None:
    """Mount a detached mount beneath the mount that ``target`` is the root of (Linux 6.5)."""
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH
    _syscall(_MOVE_MOUNT, tree, b"", target, b"", flags, name="")


def _syscall(number: int, *arguments: object, name: str) -> int:
    """Call syscall(2); return its result. Raises OSError with ``name`` as its file name."""
    result = int(
        _libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments),
        )
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name or None)
    return result
