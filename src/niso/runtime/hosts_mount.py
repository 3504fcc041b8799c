"""Showing a running service another hosts file: its networks have changed, and with them the folder that it should see.

The new folder is mounted below the old one, which then goes (move_mount(2), MOVE_MOUNT_BENEATH, Linux 6.5): at each moment the service
sees one of them. An older kernel has a moment without.

The service may have made of its /etc what it likes, and niso acts there with all rights. So no symlink is followed, and what is
found must be a mount from where niso has its hosts files; else nothing is touched, and the process must be started anew.
"""

from __future__ import annotations

import ctypes
import errno
import os

from niso.base import failpoint, paths
from niso.base.errors import ProcessError
from niso.base.report import Report, RestartingInstead
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


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Attributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns", ctypes.c_uint64),
    )


def can(old: ProcessSpec | None, new: ProcessSpec) -> bool:
    """Whether a service that runs as ``old`` says need only be shown another hosts file to be as ``new`` says."""
    if (
        old is None
        or not (old.hosts_folder and new.hosts_folder)
        or old.hosts_folder == new.hosts_folder
    ):
        return False
    return (
        old._replace(hosts_folder=new.hosts_folder) == new
        and process.status(old.service).state == "running"
    )


def show_or_start(spec: ProcessSpec, report: Report) -> None:
    """As `show`; where that cannot be, its process ends and starts anew. Raises ProcessError."""
    try:
        show(spec)
    except ProcessError as error:
        report(RestartingInstead(spec.service, error))
        process.stop(spec.service, spec.stop_timeout_s)
        process.start(spec)


def show(spec: ProcessSpec) -> None:
    """Have the running service see ``spec.hosts_folder``, and its next start too. Once more changes nothing. Raises ProcessError."""
    what = f"{spec.service}: cannot show it another hosts file"
    pidfd = process.hold(spec.service)
    try:
        failpoint.hit(f"show {spec.service} another hosts file")
        save(spec)
        if pidfd < 0:
            raise ProcessError(f"{what}: it has ended", f"niso logs {spec.service}")
        tree = _clone(spec.hosts_folder)
        try:
            words = _in_child(pidfd, tree, os.stat(paths.hosts_root()).st_dev)
        finally:
            os.close(tree)
        if words:
            raise ProcessError(f"{what}: {words}", f"niso restart {spec.service}")
    except OSError as error:
        raise ProcessError(f"{what}: {error.strerror}", f"niso restart {spec.service}") from error
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _clone(folder: str) -> int:
    tree = _call(_OPEN_TREE, _AT_FDCWD, folder.encode(), _CLONE | _CLOEXEC)
    attributes = _Attributes(_ATTRIBUTES, 0, 0, 0)
    _call(
        _MOUNT_SETATTR,
        tree,
        b"",
        _AT_EMPTY_PATH,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    return tree


def _in_child(pidfd: int, tree: int, device: int) -> str:
    """Swap the mounts in the service's mount namespace; empty, or what went wrong. ``device`` is that of niso's hosts files."""
    with signals_held():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setns(pidfd, os.CLONE_NEWNS)  # which makes the service's root this process's
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
    os.chdir("/")
    etc = _plain(_AT_FDCWD, b"etc")
    os.fchdir(etc)
    target = _plain(etc, HOSTS.encode())
    if os.fstat(target).st_dev != device:
        raise OSError(errno.ENOENT, "it is not where it was mounted")
    try:
        _call(_MOVE_MOUNT, tree, b"", target, b"", _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _unmount(HOSTS.encode())
        _call(_MOVE_MOUNT, tree, b"", etc, HOSTS.encode(), _FROM_EMPTY_PATH)
        return
    _unmount(HOSTS.encode())


def _plain(folder: int, name: bytes) -> int:
    """A descriptor of a folder in ``folder``, where no symlink leads to it. Raises OSError."""
    how = _How(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
    return _call(_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))


def _unmount(name: bytes) -> None:
    """What is mounted on ``name`` of the working folder: nobody without CAP_SYS_ADMIN can put another thing there meanwhile."""
    if _libc.umount2(name, _MNT_DETACH | _UMOUNT_NOFOLLOW):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _call(number: int, *arguments: object) -> int:
    result = int(
        _libc.syscall(
            ctypes.c_long(number),
            *(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments),
        )
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
