"""Create, name and enter network namespaces, and move network interfaces between them.

A name is a file in /run/netns, as for ``ip netns`` (ip-netns(8), network_namespaces(7)). /run/netns
is mounted in the same way as by iproute2 (ipnetns.c).

`create` and `inside` move the calling thread to another namespace and back. Both are for
single-threaded programs: other threads stay in the first namespace, and a callback or finaliser
that runs before the return uses the wrong namespace. If the return fails, the process exits at
once, since all of its later changes would be made in the wrong namespace.

`hand_over` and `find` are for Docker, which itself moves the inner end of a veth pair into its
container. Docker requests this end on the host before the container has a namespace.

Functions raise KernelError. Functions that mount raise OSError with the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from _thread import LockType, allocate_lock, start_new_thread
from fcntl import ioctl

from niso.base import paths, signals
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import is_marked
from niso.base.native import call_libc, socket
from niso.base.signals import signals_blocked
from niso.kernel.link_records import IFF_UP, IFLA_IFNAME
from niso.kernel.netlink import Message, refused, refusing, text, u32
from niso.kernel.rtnetlink import IFLA_NET_NS_FD, NEWLINK, Rtnl, ifinfo

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Self


# --- niso's namespaces ----------------------------------------------------------------------------

_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_OWN = "/proc/thread-self/ns/net"
_PREFIX = "niso-"  # of the names of niso's namespaces (`niso.base.names.netns`)


def create(name: str, *, alias: str = "") -> None:
    make(name, alias=alias).close()


def make(name: str, *, alias: str) -> Rtnl:
    """Create the namespace ``name`` with ``lo`` up, and return an rtnetlink socket in it.

    The caller closes the socket. ``lo`` gets the ``alias``, which contains the id of the state
    folder. The name is added last, so that a namespace with this name always has the alias. If niso
    is killed, at most an empty file remains in /run/netns. `exists` ignores the file, and the next
    call uses it. Raises KernelError with EEXIST if the name is taken.
    """
    path = _path(name)
    what = f"create network namespace '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    with refusing(what):
        share()
        signals.hit(what)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
        rtnl = None
        try:
            rtnl = _take_ahead()
            with unnamed() if rtnl is None else contextlib.nullcontext():
                rtnl = rtnl or Rtnl()
                rtnl.set_link("lo", up=True, alias=alias)
                signals.hit(f"name network namespace '{name}'")
                own = rtnl.open_netns()
                try:
                    bind(f"/proc/self/fd/{own}", path)
                finally:
                    os.close(own)
        except BaseException:
            if rtnl is not None:
                rtnl.close()
            # an interrupt may have come after the mount
            with contextlib.suppress(OSError):
                unmount(path)
            os.unlink(path)
            raise
        return rtnl


_FEW, _MOST_AHEAD = 4, 256
_ahead: list[Rtnl] = []
"""Sockets in unnamed namespaces, each for a later call of `make`."""
_missing = 0
"""How many namespaces are still to be created, by the thread of `ahead` or by `make`."""


@contextlib.contextmanager
def ahead(count: int) -> Iterator[None]:
    """Run a ``with`` block that calls `make` about ``count`` times. A thread creates the namespaces
    in advance, on another processor. They have no names and end with their sockets, so a killed
    command leaves none of them.
    """
    global _missing
    if count < _FEW:
        yield
        return
    _missing = count
    ended, stop = allocate_lock(), allocate_lock()
    ended.acquire()
    with signals_blocked():  # the main thread handles signals
        try:
            start_new_thread(_create_ahead, (ended, stop))
        except RuntimeError:  # no thread is available: `make` creates all of them
            ended.release()
    try:
        yield
    finally:
        with signals_blocked():
            stop.acquire()
            ended.acquire()
            while _ahead:
                _ahead.pop().close()


def _create_ahead(ended: LockType, stop: LockType) -> None:
    try:
        while _missing > len(_ahead) and not stop.locked():
            if len(_ahead) < _MOST_AHEAD:
                os.unshare(os.CLONE_NEWNET)
                _ahead.append(Rtnl())
            else:
                time.sleep(0.001)
    except (OSError, KernelError):
        return  # `make` creates the rest
    finally:
        ended.release()


def _take_ahead() -> Rtnl | None:
    global _missing
    _missing -= 1
    return _ahead.pop() if _ahead else None


def marked(pid: int) -> str:
    """Return the alias of ``lo`` in a process's network namespace, or "" on an error."""
    path = f"/proc/{pid}/ns/net"
    with contextlib.suppress(KernelError), OtherNetns(None, path), Rtnl() as rtnl:
        lo = rtnl.link("lo")
        return lo.alias if lo else ""
    return ""


def attach(name: str, pid: int, alias: str) -> None:
    """Name the network namespace of a process again, after the name was removed. Raises KernelError
    if the name exists, or if ``lo`` in the namespace does not have ``alias``, which shows that niso
    created the namespace.
    """
    path = _path(name)
    what = f"name the network namespace of process {pid} '{name}'"
    if exists(name):
        raise refused(what, errno.EEXIST)
    with refusing(what):
        # the descriptor refers to one namespace, even if the process ends
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            source = f"/proc/self/fd/{fd}"
            with OtherNetns(None, source), Rtnl() as rtnl:
                lo = rtnl.link("lo")
            if lo is None or lo.alias != alias:
                raise refused(what, errno.EPERM)
            share()
            signals.hit(what)
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
            bind(source, path)
        finally:
            os.close(fd)


def delete(name: str) -> None:
    """Remove the name of a namespace. The namespace itself exists until no process uses it."""
    path = _path(name)
    what = f"delete network namespace '{name}'"
    with refusing(what):
        signals.hit(what)
        try:
            unmount(path)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def clear_unfinished(name: str) -> None:
    """Remove the empty file that an interrupted `make` has left in /run/netns."""
    if not exists(name):
        with (
            refusing(f"clear the leftovers of network namespace '{name}'"),
            contextlib.suppress(FileNotFoundError),
        ):
            os.unlink(_path(name))


def exists(name: str) -> bool:
    """Return whether a network namespace, not the empty file of an interrupted `make`, exists."""
    with _opened(_path(name), name) as fd:
        return fd is not None


@contextlib.contextmanager
def _opened(path: str, name: str) -> Iterator[int | None]:
    fd = _open(path, name)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _open(path: str, name: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESRCH:  # /proc/PID/ns/net of a process that has ended
            return None
        raise refused(f"open network namespace '{name}'", error.errno or 0) from error
    with contextlib.suppress(OSError):  # not a file of nsfs
        if ioctl(fd, _NS_GET_NSTYPE) == os.CLONE_NEWNET:
            return fd
    os.close(fd)
    return None


def identity(name: str) -> tuple[int, int]:
    """Return (device, inode) of a namespace's file, which identify the namespace (ioctl_ns(2))."""
    path, pin = _path(name), _pins.get(name)
    with refusing(f"open network namespace '{name}'"):
        status = os.stat(path) if pin is None else os.fstat(pin)
    return status.st_dev, status.st_ino


def names() -> list[str]:
    return sorted(name for name in _listed() if exists(name))


def own_names() -> list[str]:
    """Return the names of namespaces in /run/netns that niso may have created, sorted. The alias of
    ``lo`` is not enough to recognise such a namespace: a program with NET_ADMIN can give the ``lo``
    of its container any alias. Therefore only names with niso's prefix are returned. A namespace to
    which one of niso's symbolic links leads is an attachment, and is left out.
    """
    attached = {_inode(name) for name in symlinks()}
    return [
        name
        for name in names()
        if name.startswith(_PREFIX) and not target(name) and _inode(name) not in attached
    ]


def _inode(name: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):  # it has ended
        status = os.stat(_path(name))
        return status.st_dev, status.st_ino
    return None


def _listed() -> list[str]:
    with refusing(f"list {paths.NETNS_DIR}"), contextlib.suppress(FileNotFoundError):
        return os.listdir(paths.NETNS_DIR)
    return []


def open_fd(name: str) -> int:
    """Open the network namespace ``name``, and return a descriptor, which the caller closes."""
    path = _path(name)
    fd = os.dup(_pins[name]) if name in _pins else _open(path, name)
    if fd is None:
        raise refused(f"open network namespace '{name}'", errno.ENOENT)
    return fd


# --- names for foreign namespaces -----------------------------------------------------------------

# Maps a name to a descriptor of the namespace that it stands for during an operation. A path such
# as /proc/PID/ns/net may lead to another namespace a moment later, when the pid is reused.
_pins: dict[str, int] = {}


def cookie_at(path: str) -> int | None:
    """Return the cookie (SO_NETNS_COOKIE) of the namespace at a path. Returns None if there is no
    namespace. A cookie is unique until the next boot.
    """
    with _opened(path, path) as fd:
        return None if fd is None else _cookie(fd, path)


def cookie_of(name: str) -> int | None:
    return cookie_at(_path(name))


def _cookie(fd: int, name: str) -> int:
    with OtherNetns(name, f"/proc/self/fd/{fd}"):
        return own_cookie()


def emptied(paths: Collection[str]) -> set[str]:
    """Return the paths among ``paths`` that lead to a network namespace without a process."""
    empty: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            continue
        empty[path] = (info.st_dev, info.st_ino)
    for pid in filter(str.isdigit, os.listdir("/proc") if empty else ()):
        try:
            info = os.stat(f"/proc/{pid}/ns/net")
        except OSError:
            continue  # the process has ended
        if (info.st_dev, info.st_ino) in empty.values():
            empty = {path: key for path, key in empty.items() if key != (info.st_dev, info.st_ino)}
    return set(empty)


def own_cookie() -> int:
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with (
        refusing("read the cookie of a network namespace"),
        contextlib.closing(socket.socket(socket.AF_UNIX, kind)) as any_socket,
    ):
        value = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int.from_bytes(value, sys.byteorder)


def target(name: str) -> str | None:
    """Return the target of the symbolic link ``name`` in /run/netns. Returns "" if the file is not
    a symbolic link, and None if it does not exist.
    """
    try:
        return os.readlink(_path(name))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return ""
        raise refused(f"read the name '{name}'", error.errno or 0) from error


def symlinks() -> list[str]:
    """Return niso's symbolic links in /run/netns ("niso-..."), sorted, including broken links."""
    return sorted(name for name in _listed() if name.startswith(_PREFIX) and target(name))


def pin(name: str, path: str, cookies: Collection[int]) -> int:
    """Make all functions of this module use the namespace that is now at ``path`` for the name
    ``name``, until `unpin` is called. If the namespace's cookie is not in ``cookies``, the name is
    not pinned. Returns the cookie of the namespace at ``path``, or 0 if there is none.
    """
    with _opened(path, path) as fd:
        cookie = 0 if fd is None else _cookie(fd, path)
        _release(name)
        if fd is not None and cookie in cookies:
            _pins[name] = os.dup(fd)
        return cookie


def unpin() -> None:
    """Undo all `pin` calls. Otherwise the open descriptors would keep the namespaces alive."""
    for name in list(_pins):
        _release(name)


def _release(name: str) -> None:
    if name in _pins:
        os.close(_pins.pop(name))


def link(name: str, path: str) -> None:
    """Create or atomically replace the symbolic link ``name`` in /run/netns to the namespace at
    ``path``. The link does not keep the namespace alive. Raises KernelError with EEXIST if ``name``
    exists and is not a symbolic link.
    """
    there = _path(name)
    what = f"name the network namespace {path} '{name}'"
    if target(name) == "":
        raise refused(what, errno.EEXIST)
    draft = os.path.join(paths.NETNS_DIR, f".{name}")
    with refusing(what):
        # a symlink needs no shared mount
        os.makedirs(paths.NETNS_DIR, 0o755, exist_ok=True)
        signals.hit(what)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # left by a command that was killed
        os.symlink(path, draft)
        os.rename(draft, there)


def unlink(name: str) -> None:
    """Remove the symbolic link ``name`` from /run/netns, but not the file to which it leads."""
    what = f"remove the name '{name}'"
    with refusing(what), contextlib.suppress(FileNotFoundError):
        signals.hit(what)
        if target(name):
            os.unlink(_path(name))
    _release(name)


def inside(name: str) -> OtherNetns:
    return OtherNetns(name)


def at(name: str) -> contextlib.AbstractContextManager[None]:
    """Run a ``with`` block in the namespace ``name``, or in the present namespace if it is ""."""
    return OtherNetns(name) if name else contextlib.nullcontext()


def unnamed() -> OtherNetns:
    """Run a ``with`` block in a new unnamed namespace, which exists as long as it is in use."""
    return OtherNetns(None)


class OtherNetns:
    """A context manager that enters a namespace by its name or path, or a new namespace."""

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
            with refusing(f"enter network namespace '{self._name or '(new)'}'"):
                self._home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
                if target >= 0:
                    os.setns(target, os.CLONE_NEWNET)
                else:
                    os.unshare(os.CLONE_NEWNET)
        finally:
            if target >= 0:
                os.close(target)

    def _open(self) -> int:
        if self._path is None:
            return open_fd(self._name) if self._name is not None else -1
        with refusing(f"open network namespace '{self._path}'"):
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

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


# --- mounts of /run/netns -------------------------------------------------------------------------

_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2


def bind(source: str, path: str) -> None:
    _mount(source, path, _MS_BIND)


def unmount(path: str) -> None:
    call_libc("umount2", path, _MNT_DETACH, path=path)


def share() -> None:
    """Make /run/netns a shared mount, so that a deletion of a name takes effect in all mount
    namespaces. The mounts below /run/netns are not changed, because this would take 0.3 ms for
    1,000 namespaces.
    """
    try:
        _mount("", paths.NETNS_DIR, _MS_SHARED)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        os.makedirs(paths.NETNS_DIR, 0o755, exist_ok=True)
        # not a mount yet
        signals.hit(f"make {paths.NETNS_DIR} a mount")
        _mount(paths.NETNS_DIR, paths.NETNS_DIR, _MS_BIND | _MS_REC)
        _mount("", paths.NETNS_DIR, _MS_SHARED | _MS_REC)


def is_hidden() -> bool:
    """Return whether the host cannot see the network namespaces that this process names in
    /run/netns. In a private mount namespace, /run/netns may not share its mounts with the
    /run/netns of PID 1 (mount_namespaces(7)). An example is a systemd unit with PrivateTmp=.
    """
    with contextlib.suppress(OSError):  # no PID 1 that this process may inspect
        if os.readlink("/proc/self/ns/mnt") != os.readlink("/proc/1/ns/mnt"):
            own = _peer_group("self")
            return own is None or own != _peer_group("1")
    return False


def _peer_group(process: str) -> str | None:
    """Return the peer group, such as "shared:7", of the mount /run/netns in a process's mount
    namespace. Returns None if it is not a mount point or not shared (proc_pid_mountinfo(5)).
    """
    group = None
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split()
            if fields[4] == paths.NETNS_DIR:  # the last mount is the visible one
                optional = fields[6 : fields.index("-", 6)]
                group = next((tag for tag in optional if tag.startswith("shared:")), None)
    return group


def _mount(source: str, target: str, flags: int) -> None:
    call_libc("mount", source, target, "none", flags, None, path=target)


# --- inspect foreign namespaces -------------------------------------------------------------------


class ForeignNetns(NamedTuple):
    """The properties of a network namespace that any program may have created."""

    cookie: int
    mark: str  # niso's mark on the namespace's lo, "" if niso did not create the namespace
    links: frozenset[str]
    routed: frozenset[int]  # the families with a default route
    is_host: bool = False  # the namespace is the caller's own


def look(path: str) -> ForeignNetns | None:
    cookie = cookie_at(path)
    if cookie is None:
        return None
    with OtherNetns(path, path), Rtnl() as rtnl:
        links = rtnl.links()
        routes = rtnl.routes()
    lo = next((link.alias for link in links if link.name == "lo"), "")
    everywhere = {"0.0.0.0/0": 4, "::/0": 6}
    return ForeignNetns(
        cookie,
        lo if is_marked(lo) else "",
        frozenset(link.name for link in links),
        frozenset(everywhere[r.destination] for r in routes if r.destination in everywhere),
        cookie == own_cookie(),
    )


def dead_names(marked: set[tuple[int, int]]) -> list[str]:
    """Return niso's symbolic links in /run/netns that can be deleted. These are links to namespaces
    that no longer exist, and links to namespaces that contain the inner end of one of niso's veth
    pairs. ``marked`` are niso's veth pairs, each as (index of the inner end, index of the host's
    end). Both indexes are compared, because an index is unique only within a namespace.
    """

    def is_dead(name: str) -> bool:
        if not exists(name):
            return True
        with inside(name), Rtnl() as rtnl:
            ends = {(x.index, x.peer_index) for x in rtnl.links() if x.kind == "veth"}
        return not marked.isdisjoint(ends)

    return [name for name in symlinks() if is_dead(name)]


# --- links that an engine moves -------------------------------------------------------------------


def new_namespace() -> int:
    """Create a namespace that exists until the returned descriptor is closed."""
    with unnamed():
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def hand_over(space: int, interface: str, name: str) -> None:
    """Move a network interface from another namespace into the caller's, and rename it to ``name``.
    ``space`` is a descriptor of the other namespace. After the move the interface is down.
    """
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with OtherNetns("(new)", f"/proc/self/fd/{space}"), Rtnl() as rtnl:
            index = rtnl.index(interface)
            what = f"hand '{interface}' over as '{name}'"
            moved = ifinfo(index) + text(IFLA_IFNAME, name) + u32(IFLA_NET_NS_FD, home)
            rtnl.transact(
                Message(what, NEWLINK, 0, ifinfo(index, 0, IFF_UP)),
                Message(what, NEWLINK, 0, moved),
            )
    finally:
        os.close(home)


def find(path: str, host_end: str, address: str) -> tuple[int, str] | None:
    """Find the inner end of a veth pair in the namespace at ``path``. Returns (cookie of the
    namespace, name of the inner end). ``host_end`` is the name of the pair's end on the host.
    Returns None if the inner end is not in the namespace, or if the container engine has not yet
    given it ``address``.
    """
    cookie = cookie_at(path)
    if cookie is None:
        return None
    with Rtnl() as rtnl:
        outer = rtnl.link(host_end)
    if outer is None:
        return None
    with OtherNetns(path, path), Rtnl() as rtnl:
        ends = ((x.index, x.peer_index, x) for x in rtnl.links() if x.kind == "veth" and x.up)
        link = next((x for *pair, x in ends if pair == [outer.peer_index, outer.index]), None)
        if link is None:
            return None
        if address not in {x.address.partition("/")[0] for x in rtnl.addresses(link.index)}:
            return None
    return cookie, link.name


# --- rtnetlink sockets of namespaces --------------------------------------------------------------

_MOST = 64  # open sockets: a command may touch more services than a process may have files


class Sockets:
    """A context manager with a cache of rtnetlink sockets, one for each namespace."""

    def __init__(self) -> None:
        self._here: Rtnl | None = None
        self._inside: dict[str, tuple[Rtnl, tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rtnl in (self._here, *(rtnl for rtnl, _ in self._inside.values())):
            if rtnl is not None:
                rtnl.close()
        unpin()

    def here(self) -> Rtnl:
        """Return an rtnetlink socket in the caller's namespace, always the same."""
        if self._here is None:
            self._here = Rtnl()
        return self._here

    def at(self, name: str) -> Rtnl:
        """Return an rtnetlink socket in the namespace of this name; for "", in the present one."""
        if not name:
            return self.here()
        known = self._inside.get(name)
        if known is not None and known[1] == identity(name):
            return known[0]
        with inside(name):
            return self.keep(name, Rtnl())

    def keep(self, name: str, rtnl: Rtnl) -> Rtnl:
        replaced = self._inside.pop(name, None)
        if replaced is None and len(self._inside) >= _MOST:
            replaced = self._inside.pop(next(iter(self._inside)))
        if replaced is not None:
            replaced[0].close()
        self._inside[name] = (rtnl, identity(name))
        return rtnl
