"""Wait for changes of niso's nftables tables, network interfaces and files, without polling.

Events do not say what has changed, except for the tables, where the kernel also reports which
thread committed a transaction. A reader must read again everything that it needs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable

from niso.base import paths
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import OWN_THREAD, attributes, refused, string, understood

if TYPE_CHECKING:
    from typing import Self


_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES, _RTNLGRP_LINK = 7, 1
_SO_RCVBUFFORCE = 33
_RECEIVE_BYTES = 4 << 20
_SUBSYSTEM, _NEWGEN = 10, 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_TABLE_NAME = 1  # NFTA_TABLE_NAME, and the NFTA_*_TABLE of objects in a table
_GEN_PID, _GEN_NAME = 2, 3  # NFTA_GEN_PROC_*
_FAMILIES = {1: "inet", 7: "bridge"}
_TABLE = "niso"
_IFNAME = 3  # IFLA_IFNAME
_LINKS = ("niso-", "ni", "nx-")
_IFINFO = 16  # sizeof(struct ifinfomsg)

# linux/inotify.h: modified, written, moved, created, deleted, deleted itself
_MASK = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400
_ONLYDIR = 0x01000000
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK, IN_CLOEXEC


class TableChange(NamedTuple):
    """One transaction that changed niso's tables: "inet niso", "bridge niso" or both.

    ``process`` is the name of the thread that committed it, and ``pid`` its process id in the
    initial PID namespace.
    """

    tables: tuple[str, ...]
    process: str
    pid: int

    @property
    def is_own(self) -> bool:
        """Return whether a program of niso committed the transaction."""
        return self.process.startswith(OWN_THREAD)


class _MulticastGroup(netlink.Netlink):
    """A netlink socket that listens to one multicast group. Raises KernelError."""

    def __init__(self, protocol: int, group: int) -> None:
        super().__init__(protocol)
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            except PermissionError:  # in a user namespace: the buffer is smaller
                pass
            self._socket.setblocking(False)
            self._socket.bind((0, 0))  # the kernel sends nothing to port 0, its own
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self.close()
            raise refused("listen to changes", error.errno or 0) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def received(self) -> list[tuple[int, bytes]] | None:
        """Return (type, body) of all messages that have arrived; None if some were lost."""
        messages, lost = [], False
        while True:
            try:
                messages += [(reply.kind, reply.body) for reply in self._receive()]
            except BlockingIOError:
                return None if lost else messages
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise refused("listen to changes", error.errno or 0) from error
                lost = True


class Tables(_MulticastGroup):
    """Watches nftables transactions while the object exists. Raises KernelError."""

    def __init__(self) -> None:
        super().__init__(netlink.NETFILTER, _NFNLGRP_NFTABLES)
        self._touched: list[str] = []

    def read(self) -> list[TableChange] | None:
        """Return the transactions that changed niso's tables since the last call.

        Returns None if the kernel had to skip some.
        """
        messages = self.received()
        if messages is None:
            self._touched = []
            return None
        changes = []
        for kind, body in messages:
            if kind >> 8 != _SUBSYSTEM:
                continue
            fields = understood("listen to changes", lambda body: attributes(body, 4), body)
            if kind & 0xFF != _NEWGEN:
                if string(fields.get(_TABLE_NAME, b"")) == _TABLE and body[0] in _FAMILIES:
                    self._touched.append(f"{_FAMILIES[body[0]]} {_TABLE}")
                continue
            # the kernel sends this message last
            if self._touched:
                pid = int.from_bytes(fields.get(_GEN_PID, b""), "big")
                tables = tuple(dict.fromkeys(self._touched))
                changes.append(TableChange(tables, string(fields.get(_GEN_NAME, b"")), pid))
            self._touched = []
        return changes


class Links(_MulticastGroup):
    """Watches the network interfaces of this namespace. Raises KernelError."""

    def __init__(self) -> None:
        super().__init__(netlink.ROUTE, _RTNLGRP_LINK)

    def read(self) -> bool:
        """Return whether a network interface that may be niso's has changed since the last call."""
        messages = self.received()
        if messages is None:
            return True
        return any(
            string(
                understood("listen to changes", lambda body: attributes(body, _IFINFO), body).get(
                    _IFNAME, b""
                )
            ).startswith(_LINKS)
            for _, body in messages
        )


class Folders:
    """Watches files in folders by inotify(7). Raises KernelError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            error = refused("watch files", number)
            if number == errno.EMFILE:
                error.hint = "raise it: sysctl fs.inotify.max_user_instances"
            raise error

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def watch(self, folders: Iterable[str]) -> None:
        """Watch more folders. If a folder is missing, its nearest existing parent is watched."""
        for folder in folders:
            place = folder
            while self._add(place) in (errno.ENOENT, errno.ENOTDIR) and place != "/":
                place = os.path.dirname(place)

    def _add(self, folder: str) -> int:
        """Watch a folder; return 0 or an errno. No-op if the folder is already watched."""
        place = os.fsencode(folder)
        if self._libc.inotify_add_watch(self._fd, place, _MASK | _ONLYDIR) >= 0:
            return 0
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return number
        error = refused(f"watch {folder}", number)
        if number == errno.ENOSPC:
            error = KernelError(
                f"cannot watch {folder}: root watches too many files",
                "raise it: sysctl fs.inotify.max_user_watches",
                number,
            )
        raise error

    def read(self) -> bool:
        """Return whether a file in a watched folder has changed since the last call of `read`."""
        changed = False
        while True:
            try:
                events = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return changed
            changed = changed or not _is_noise(events)


def _is_noise(events: bytes) -> bool:
    """Return whether these events (struct inotify_event) only concern SQLite's shared memory."""
    offset = 0
    while offset + 16 <= len(events):
        mask, _, length = struct.unpack_from("=III", events, offset + 4)
        name = events[offset + 16 : offset + 16 + length].rstrip(b"\0")
        if name != b"state.db-shm" and not mask & 0x8000:  # IN_IGNORED
            return False
        offset += 16 + length
    return True


class Watches:
    """Watches everything on this host that shows a change of niso's state. A context manager.

    Raises KernelError.
    """

    def __init__(self) -> None:
        self._open: list[_MulticastGroup | Folders] = []
        self._poll = select.epoll()
        try:
            self._tables, self._links = self._add(Tables()), self._add(Links())
            self._folders = self._add(Folders())
            self._watch()
        except BaseException:
            self.close()
            raise

    def _add[T: (Tables, Links, Folders)](self, source: T) -> T:
        self._open.append(source)
        self._poll.register(source, select.EPOLLIN)
        return source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._poll.close()
        for source in self._open:
            source.close()
        self._open = []

    def fileno(self) -> int:
        return self._poll.fileno()

    def wait(self, seconds: float | None) -> bool:
        """Wait for a change, at most ``seconds`` unless None. Return whether there is one."""
        return bool(self._poll.poll(seconds))

    def read(self) -> tuple[bool, list[TableChange] | None]:
        """Return (whether anything changed, transactions of niso's tables) since the last call.

        The transactions are None if the kernel had to skip some.
        """
        tables = self._tables.read()
        links, files = self._links.read(), self._folders.read()
        if files:
            self._watch()
        return links or files or tables is None or bool(tables), tables

    def _watch(self) -> None:
        services = os.path.join(paths.run_dir(), "services")
        health = os.path.dirname(paths.health_file(""))
        folders = [paths.state_dir(), paths.run_dir(), services, health]
        # a folder created later causes an event in its parent, and is watched then
        for service in _listed(services):
            folders.append(service)
            for run in _listed(service):
                if os.path.basename(run).startswith("run-"):
                    folders += [run, os.path.join(run, "exits")]
        self._folders.watch(folders)


def _listed(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # the folder was removed, or does not exist yet
        return []
