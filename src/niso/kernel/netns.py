"""Manage named network namespaces in /run/netns, as ``ip netns`` does.

See ip-netns(8) and network_namespaces(7). `create` and `inside` move the calling thread to another
namespace and back. They are for single-threaded programs: other threads would stay behind, and code
that runs in between (a callback, a finaliser) would see the wrong namespace. If returning fails,
the process exits at once, since anything it does later would change the wrong host.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from fcntl import ioctl

from niso.base import failpoint, paths
from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.netlink import refused
from niso.kernel.rtnetlink import Rtnl

if TYPE_CHECKING:
    from collections.abc import Collection

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_OWN = "/proc/thread-self/ns/net"
_PREFIX = "niso-"
"""What the names of niso's namespaces begin with (`niso.base.names.netns`)."""


def create(name: str, *, alias: str = "") -> None:
    """Create the namespace ``name``; see `make`."""
    make(name, alias=alias).close()


def make(name: str, *, alias: str = "") -> Rtnl:
    """Create the namespace ``name`` with ``lo`` up and, if given, ``alias`` on it.

    Returns an rtnetlink socket in the namespace, which the caller closes. The name is added last,
    so that a namespace with this name always carries its mark. A kill leaves at most an empty file,
    which counts as absent and is reused. Raises KernelError (EEXIST if the name is taken).
    """
    from niso.kernel import netns_folder  # an attachment needs no mount of /run/netns

    path = _path(name)
    what = f"create network namespace '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    try:
        netns_folder.share()
        failpoint.hit(what)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
        rtnl = None
        try:
            with unnamed():
                rtnl = Rtnl()
                rtnl.set_link("lo", up=True, alias=alias)
                failpoint.hit(f"name network namespace '{name}'")
                netns_folder.bind(_OWN, path)
        except BaseException:
            if rtnl is not None:
                rtnl.close()
            # an interrupt may have come after the mount
            try:
                netns_folder.unmount(path)
            except OSError:
                pass
            os.unlink(path)
            raise
        return rtnl
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def marked(pid: int) -> str:
    """Return the mark of process ``pid``'s network namespace; "" if it cannot be read."""
    try:
        with Elsewhere(None, f"/proc/{pid}/ns/net"), Rtnl() as rtnl:
            lo = rtnl.link("lo")
            return lo.alias if lo else ""
    except KernelError:
        return ""


def attach(name: str, pid: int, alias: str) -> None:
    """Restore the name of the network namespace of process ``pid``, which must carry ``alias``.

    Raises KernelError.
    """
    from niso.kernel import netns_folder  # an attachment needs no mount of /run/netns

    path = _path(name)
    what = f"name the network namespace of process {pid} '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    try:
        # the descriptor refers to one namespace, even if the process ends
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            source = f"/proc/self/fd/{fd}"
            with Elsewhere(None, source), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is None or lo.alias != alias:
                raise refused(what, errno.EPERM)
            netns_folder.share()
            failpoint.hit(what)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
            netns_folder.bind(source, path)
        finally:
            os.close(fd)
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def delete(name: str) -> None:
    """Remove the name; the namespace itself ends with its last process.

    No-op if the name is missing.
    """
    from niso.kernel import netns_folder  # an attachment needs no mount of /run/netns

    path = _path(name)
    what = f"delete network namespace '{name}'"
    try:
        failpoint.hit(what)
        try:
            netns_folder.unmount(path)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def clear_unfinished(name: str) -> None:
    """Remove the empty file left by an interrupted `create`; any other file stays."""
    if exists(name):
        return
    try:
        os.unlink(_path(name))
    except FileNotFoundError:
        return
    except OSError as error:
        raise refused(
            f"clear the leftovers of network namespace '{name}'", error.errno or 0
        ) from error


def exists(name: str) -> bool:
    """Return whether a network namespace has this name.

    A plain file, the leftover of an interrupted `create`, does not count.
    """
    fd = _open(_path(name), name)
    if fd is not None:
        os.close(fd)
    return fd is not None


def _open(path: str, name: str) -> int | None:
    """Open the namespace at ``path`` and return a descriptor; None if there is none.

    Raises KernelError, which calls the namespace ``name``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESRCH:  # /proc/PID/ns/net of a process that has ended
            return None
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    if _is_namespace(fd):
        return fd
    os.close(fd)
    return None


def _is_namespace(fd: int) -> bool:
    """Return whether an open file is a network namespace (ioctl_nsfs(2))."""
    try:
        return ioctl(fd, _NS_GET_NSTYPE) == os.CLONE_NEWNET
    except OSError:  # not a file of nsfs
        return False


def identity(name: str) -> tuple[int, int]:
    """Return a value that differs from that of earlier namespaces of the same name (ioctl_ns(2)).

    Raises KernelError.
    """
    path, pin = _path(name), _pins.get(name)
    try:
        status = os.stat(path) if pin is None else os.fstat(pin)
    except OSError as error:
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    return status.st_dev, status.st_ino


def names() -> list[str]:
    """Return all named network namespaces, sorted, including foreign ones and symlinks."""
    return sorted(name for name in _listed() if exists(name))


def own_names() -> list[str]:
    """Return the names that can be of a namespace that niso made, sorted.

    Such a name begins as niso's do, and is no symlink. A mark inside is not enough: a program with
    NET_ADMIN can give the lo of its container any alias. A namespace that one of niso's symlinks
    leads to is an attachment, whatever its own name is.
    """
    attached = {_place(name) for name in symlinks()}
    return [
        name
        for name in names()
        if name.startswith(_PREFIX) and not target(name) and _place(name) not in attached
    ]


def _place(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(_path(name))
    except OSError:  # it has ended
        return None
    return status.st_dev, status.st_ino


def _listed() -> list[str]:
    try:
        return os.listdir(paths.NETNS_DIR)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refused(f"list {paths.NETNS_DIR}", error.errno or 0) from error


def open_fd(name: str) -> int:
    """Open the namespace and return a descriptor (close-on-exec).

    The caller closes it. Raises KernelError.
    """
    path = _path(name)
    if name in _pins:
        return os.dup(_pins[name])
    fd = _open(path, name)
    if fd is None:
        raise refused(f"open network namespace '{name}'", errno.ENOENT)
    return fd


# --- namespaces that other programs made -----------------------------------------------------

_pins: dict[str, int] = {}
"""Name -> a descriptor of the namespace that the name is bound to during an operation.

A path like /proc/PID/ns/net may lead to another namespace a moment later, when the pid is reused.
"""


def cookie_at(path: str) -> int | None:
    """Return the cookie of the namespace at ``path``; None if there is none.

    The cookie is unique within a boot (SO_NETNS_COOKIE, net/core/sock.c). Raises KernelError.
    """
    fd = _open(path, path)
    if fd is None:
        return None
    try:
        return _cookie(fd, path)
    finally:
        os.close(fd)


def cookie_of(name: str) -> int | None:
    """Return the cookie of the namespace ``name``; None if there is none. Raises KernelError."""
    return cookie_at(_path(name))


def _cookie(fd: int, name: str) -> int:
    with Elsewhere(name, f"/proc/self/fd/{fd}"):
        return own_cookie()


def own_cookie() -> int:
    """Return the cookie of the caller's namespace. Raises KernelError."""
    try:
        any_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            value = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        finally:
            any_socket.close()
    except OSError as error:
        raise refused("read the cookie of a network namespace", error.errno or 0) from error
    return int.from_bytes(value, sys.byteorder)


def target(name: str) -> str | None:
    """Return the target of the symlink ``name``; "" for another file, None if it does not exist."""
    try:
        return os.readlink(_path(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return ""
        raise refused(f"read the name '{name}'", error.errno or 0) from error


def symlinks() -> list[str]:
    """Return the symlinks whose names begin with niso's prefix, dangling ones included."""
    return sorted(name for name in _listed() if name.startswith(_PREFIX) and target(name))


def pin(name: str, path: str, cookies: Collection[int]) -> int:
    """Bind ``name`` to the namespace now at ``path``, if its cookie is in ``cookies``.

    The binding lasts until `unpin`. Returns the cookie of that namespace, 0 if there is none.
    Raises KernelError.
    """
    fd = _open(path, path)
    if fd is None:
        _let_go(name)
        return 0
    try:
        cookie = _cookie(fd, path)
        _let_go(name)
        if cookie in cookies:
            _pins[name] = os.dup(fd)
        return cookie
    finally:
        os.close(fd)


def unpin() -> None:
    """Release all bindings of `pin`, since a descriptor would keep a namespace alive."""
    for name in list(_pins):
        _let_go(name)


def _let_go(name: str) -> None:
    if name in _pins:
        os.close(_pins.pop(name))


def link(name: str, path: str) -> None:
    """Make ``name`` a symlink to ``path``; an existing symlink is replaced atomically.

    The symlink does not keep the namespace alive. Raises KernelError (EEXIST if ``name`` is not a
    symlink).
    """
    there = _path(name)
    what = f"name the network namespace {path} '{name}'"
    if target(name) == "":
        raise refused(what, errno.EEXIST)
    draft = os.path.join(paths.NETNS_DIR, f".{name}")
    try:
        # a symlink needs no shared mount
        os.makedirs(paths.NETNS_DIR, 0o755, exist_ok=True)
        failpoint.hit(what)
        try:
            os.unlink(draft)  # left by a command that was killed
        except FileNotFoundError:
            pass
        os.symlink(path, draft)
        os.rename(draft, there)
    except OSError as error:
        raise refused(what, error.errno or 0) from error


def unlink(name: str) -> None:
    """Remove the symlink ``name``, but not its target; no-op if it is missing.

    Raises KernelError.
    """
    what = f"remove the name '{name}'"
    try:
        failpoint.hit(what)
        if target(name):
            os.unlink(_path(name))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refused(what, error.errno or 0) from error
    _let_go(name)


def inside(name: str) -> Elsewhere:
    """Context manager: run the block in the namespace ``name``.

    Raises KernelError if entering fails.
    """
    return Elsewhere(name)


def at(name: str) -> Elsewhere | Here:
    """Context manager: like `inside`; for "" the block runs in the caller's own namespace."""
    return Elsewhere(name) if name else Here()


def unnamed() -> Elsewhere:
    """Context manager: run the block in a new namespace. It ends with the last reference to it."""
    return Elsewhere(None)


class Here:
    """Context manager for the caller's own network namespace: does nothing."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Elsewhere:
    """Context manager: enter another network namespace, by name or file ``path``, or a new one."""

    def __init__(self, name: str | None, path: str | None = None) -> None:
        self._name = name
        self._path = path
        self._home = -1

    def __enter__(self) -> None:
        try:
            self._enter()
        except BaseException:
            # after an interrupt, the undo code must not run in the other namespace
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
            except KeyboardInterrupt:  # an interrupt arrived before or after the call
                os.setns(self._home, os.CLONE_NEWNET)
                raise
        except OSError:
            os.write(2, b"niso: cannot return from a network namespace\n")
            os._exit(1)
        finally:
            os.close(self._home)


def _path(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise KernelError(f"'{name}' is not a valid name of a network namespace")
    return os.path.join(paths.NETNS_DIR, name)
