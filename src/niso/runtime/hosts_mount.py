"""Replace the hosts file of a running service when its networks, and so its hosts folder, change.

The new folder is mounted beneath the old one, which is then unmounted (move_mount(2),
MOVE_MOUNT_BENEATH, Linux 6.5): the service sees one of them at every moment.
On an older kernel it sees neither for a moment.

niso acts with full privileges in an /etc that the service may have changed. So it follows no
symlink, and replaces only a mount of the file system that holds niso's hosts files.
Otherwise it changes nothing, and the service must be restarted.
"""

from __future__ import annotations

import ctypes
import errno
import os

from niso.base import failpoint, paths
from niso.base.errors import ProcessError
from niso.base.signals import signals_held
from niso.plan.process_spec import ProcessSpec
from niso.runtime import process
from niso.runtime.root import HOSTS
from niso.runtime.spec import save

# asm/unistd.h (the same number on every architecture), linux/mount.h, fcntl.h
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE, _CLOEXEC = 1, 0o2000000
_FROM_EMPTY_PATH, _TO_EMPTY_PATH, _BENEATH = 0x4, 0x40, 0x200
_RESOLVE = 0x2 | 0x4 | 0x8  # RESOLVE_NO_MAGICLINKS, NO_SYMLINKS, BENEATH (openat2(2))
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_ATTRIBUTES = 0x1 | 0x2 | 0x4 | 0x8  # MOUNT_ATTR_RDONLY, NOSUID, NODEV, NOEXEC
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

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


def swap(spec: ProcessSpec) -> None:
    """Make a running service see ``spec.hosts_folder``, now and after a restart; idempotent.

    Raises ProcessError.
    """
    what = f"{spec.service}: cannot replace its hosts file"
    pidfd = process.open_init(spec.service)
    try:
        failpoint.hit(f"replace the hosts file of {spec.service}")
        save(spec)
        if pidfd < 0:
            raise ProcessError(f"{what}: it has ended", f"niso logs {spec.service}")
        tree = _clone(spec.hosts_folder)
        try:
            problem = _swap_in_child(pidfd, tree, os.stat(paths.hosts_root()).st_dev)
        finally:
            os.close(tree)
        if problem:
            raise ProcessError(f"{what}: {problem}", f"niso restart {spec.service}")
    except OSError as error:
        raise ProcessError(f"{what}: {error.strerror}", f"niso restart {spec.service}") from error
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _clone(folder: str) -> int:
    """Open a detached, read-only bind mount of ``folder`` (open_tree(2), mount_setattr(2))."""
    tree = _syscall(_OPEN_TREE, _AT_FDCWD, folder.encode(), _CLONE | _CLOEXEC)
    attributes = _MountAttr(_ATTRIBUTES, 0, 0, 0)
    _syscall(
        _MOUNT_SETATTR,
        tree,
        b"",
        _AT_EMPTY_PATH,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    return tree


def _swap_in_child(pidfd: int, tree: int, device: int) -> str:
    """Swap the mounts in the mount namespace of ``pidfd``; return the error, "" for none.

    ``device`` is the st_dev of niso's hosts files.
    """
    with signals_held():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setns(pidfd, os.CLONE_NEWNS)  # also sets this process's root to the service's
                _swap(tree, device)
            except OSError as error:
                os.write(write, (error.strerror or "refused").encode())
            finally:
                os._exit(0)
        os.close(write)
        try:
            return os.read(read, 1000).decode()
        finally:
            os.close(read)
            os.waitpid(pid, 0)


def _swap(tree: int, device: int) -> None:
    """Replace the mount on /etc/niso-hosts of this process's root by ``tree``. Raises OSError."""
    os.chdir("/")
    etc = _open_folder(_AT_FDCWD, b"etc")
    os.fchdir(etc)
    target = _open_folder(etc, HOSTS.encode())
    if os.fstat(target).st_dev != device:
        raise OSError(errno.ENOENT, "the service has moved or unmounted it")
    try:
        _syscall(_MOVE_MOUNT, tree, b"", target, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH)
    except OSError as error:
        if error.errno != errno.EINVAL:  # else a kernel without MOVE_MOUNT_BENEATH
            raise
        _unmount(HOSTS.encode())
        _syscall(_MOVE_MOUNT, tree, b"", etc, HOSTS.encode(), _FROM_EMPTY_PATH)
        return
    _unmount(HOSTS.encode())


def _open_folder(folder: int, name: bytes) -> int:
    """Open a folder below ``folder`` without following a symlink (openat2(2)). Raises OSError."""
    how = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
    return _syscall(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))


def _unmount(name: bytes) -> None:
    """Unmount ``name`` of the working folder. Raises OSError.

    Only CAP_SYS_ADMIN could have replaced what is mounted there since it was checked.
    """
    if _libc.umount2(name, _MNT_DETACH | _UMOUNT_NOFOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _syscall(number: int, *arguments: object) -> int:
    """Call syscall(2); return its result. Raises OSError."""
    result = int(
        _libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments),
        )
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
