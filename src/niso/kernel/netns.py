"""Named network namespaces below /run/netns, as iproute2's ``ip netns`` makes them (ip-netns(8), network_namespaces(7)).

`create` and `inside` change the network namespace of the calling thread and come back. They are for programs of one
thread: another thread would stay where it is, and code that runs between (a callback, a finaliser) sees the wrong
namespace. If the way back fails the process ends at once, since all it did from there on would hit the wrong host.
"""

from __future__ import annotations

import ctypes
import errno
import os
from fcntl import ioctl

from niso.base import failpoint, paths
from niso.base.errors import KernelError
from niso.kernel.netlink import refused
from niso.kernel.rtnetlink import Rtnl

_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str, *, alias: str = "") -> None:
    """Make the namespace ``name``, as `make` does."""
    make(name, alias=alias).close()


def make(name: str, *, alias: str = "") -> Rtnl:
    """Make the namespace ``name`` with ``lo`` up and, if given, marked with ``alias``; gives a socket in it, which the caller closes.

    It gets its name last, so that a namespace of this name always carries its mark. What a kill leaves is an empty file,
    which counts as absent and is used again. Raises KernelError (EEXIST where there is one of that name).
    """
    path = _path(name)
    what = f"create network namespace '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    try:
        _make_directory()
        failpoint.hit(what)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
        rtnl = None
        try:
            with unnamed():
                rtnl = Rtnl()
                rtnl.set_link("lo", up=True, alias=alias)
                failpoint.hit(f"name network namespace '{name}'")
                _mount(_OWN, path, _MS_BIND)
        except BaseException:
            if rtnl is not None:
                rtnl.close()
            _libc.umount2(
                path.encode(), _MNT_DETACH
            )  # an interrupt may have come when it had its name
            os.unlink(path)
            raise
        return rtnl
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def marked(pid: int) -> str:
    """The mark of the network namespace that process ``pid`` is in; empty where that cannot be seen."""
    try:
        with Elsewhere(None, f"/proc/{pid}/ns/net"), Rtnl() as rtnl:
            lo = rtnl.link("lo")
            return lo.alias if lo else ""
    except KernelError:
        return ""


def attach(name: str, pid: int, alias: str) -> None:
    """Give the network namespace of process ``pid``, which carries ``alias``, the name that it has lost. Raises KernelError."""
    path = _path(name)
    what = f"name the network namespace of process {pid} '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    try:
        # this descriptor is of one namespace, whatever becomes of the process
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            source = f"/proc/self/fd/{fd}"
            with Elsewhere(None, source), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is None or lo.alias != alias:
                raise refused(what, errno.EPERM)
            _make_directory()
            failpoint.hit(what)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
            _mount(source, path, _MS_BIND)
        finally:
            os.close(fd)
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def delete(name: str) -> None:
    """Take the name away; the namespace itself goes with its last process. A missing one is fine."""
    path = _path(name)
    what = f"delete network namespace '{name}'"
    try:
        failpoint.hit(what)
        if _libc.umount2(path.encode(), _MNT_DETACH) and ctypes.get_errno() not in (
            errno.EINVAL,
            errno.ENOENT,
        ):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def clear_unfinished(name: str) -> None:
    """Remove the empty file that a `create` which was killed has left of this name; anything else stays."""
    if exists(name):
        return
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(
            f"clear what is left of network namespace '{name}'", error.errno or 0
        ) from error


def exists(name: str) -> bool:
    """Whether a network namespace has this name. A plain file, as a killed `create` leaves, is none."""
    try:
        fd = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    try:
        return _is_namespace(fd)
    finally:
        os.close(fd)


def _is_namespace(fd: int) -> bool:
    """Whether an open file is a network namespace (ioctl_nsfs(2))."""
    try:
        return ioctl(fd, _NS_GET_NSTYPE) == os.CLONE_NEWNET
    except OSError:  # not a file of nsfs
        return False


def identity(name: str) -> tuple[int, int]:
    """What the namespace of this name can be told from another by that had the name before (ioctl_ns(2)). Raises KernelError."""
    try:
        found = os.stat(_path(name))
    except OSError as error:
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    return found.st_dev, found.st_ino


def names() -> list[str]:
    """All that have a name, sorted, whoever made them."""
    try:
        found = os.listdir(paths.NETNS_DIR)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refused(f"list {paths.NETNS_DIR}", error.errno or 0) from error
    return sorted(name for name in found if exists(name))


def open_fd(name: str) -> int:
    """A descriptor (close-on-exec) that keeps and names the namespace; the caller closes it. Raises KernelError."""
    try:
        fd = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    if not _is_namespace(fd):
        os.close(fd)
        raise refused(f"open network namespace '{name}'", errno.ENOENT)
    return fd


def inside(name: str) -> Elsewhere:
    """``with inside(name):`` runs the block in the namespace ``name``. Raises KernelError where it cannot enter."""
    return Elsewhere(name)


def unnamed() -> Elsewhere:
    """``with unnamed():`` runs the block in a new namespace, which goes with it (and with what the block left open)."""
    return Elsewhere(None)


class Elsewhere:
    """A context in another network namespace: the one named, that of the file ``path``, or a new one."""

    def __init__(self, name: str | None, path: str | None = None) -> None:
        self._name = name
        self._path = path
        self._home = -1

    def __enter__(self) -> None:
        try:
            self._enter()
        except BaseException:
            # an interrupt comes between two steps: what is undone then must not be looked for in the other namespace
            if self._home >= 0:
                os.setns(self._home, os.CLONE_NEWNET)
                os.close(self._home)
            raise

    def _enter(self) -> None:
        target = self._open()
        try:
            self._home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
            if target >= 0:
                os.setns(target, os.CLONE_NEWNET)
            else:
                os.unshare(os.CLONE_NEWNET)
        except OSError as error:
            raise refused(
                f"enter network namespace '{self._name or '(new)'}'", error.errno or 0
            ) from error
        finally:
            if target >= 0:
                os.close(target)

    def _open(self) -> int:
        if self._path is None:
            return open_fd(self._name) if self._name is not None else -1
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise refused(f"open network namespace '{self._path}'", error.errno or 0) from error

    def __exit__(self, *_: object) -> None:
        try:
            try:
                os.setns(self._home, os.CLONE_NEWNET)
            except KeyboardInterrupt:  # before it, or after
                os.setns(self._home, os.CLONE_NEWNET)
                raise
        except OSError:
            os.write(2, b"niso: cannot return from a network namespace\n")
            os._exit(1)
        finally:
            os.close(self._home)


def _path(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise KernelError(f"'{name}' cannot be the name of a network namespace")
    return os.path.join(paths.NETNS_DIR, name)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), b"none", flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def _make_directory() -> None:
    """/run/netns as a shared mount, so that namespaces that go here go in all mount namespaces (iproute2, ipnetns.c).

    Itself alone: to say it of the namespaces mounted in it as well takes 0.3 ms where there are 1,000 of them.
    """
    try:
        _mount("", paths.NETNS_DIR, _MS_SHARED)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        os.makedirs(paths.NETNS_DIR, 0o755, exist_ok=True)
        # Not a mount yet.
        failpoint.hit(f"make {paths.NETNS_DIR} a mount")
        _mount(paths.NETNS_DIR, paths.NETNS_DIR, _MS_BIND | _MS_REC)
        _mount("", paths.NETNS_DIR, _MS_SHARED | _MS_REC)
