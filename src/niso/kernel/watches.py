"""Wait for changes of niso's nftables tables, network interfaces and files, without polling.

An event about nftables names the changed tables, and the thread that committed the transaction.
Other events do not show what has changed. After an event, a reader must read again all data that it
needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
from collections.abc import Iterable

from niso.base import paths
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import call_libc
from niso.kernel import netlink
from niso.kernel.netlink import attributes, parse_reply, refused, refusing, string

if TYPE_CHECKING:
    from typing import Self

_NFNLGRP_NFTABLES, _RTNLGRP_LINK = 7, 1
_RECEIVE_BYTES = 4 << 20
_SUBSYSTEM, _NEWGEN = 10, 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_TABLE_NAME = 1  # NFTA_TABLE_NAME, and the NFTA_*_TABLE of objects in a table
_GEN_PID, _GEN_NAME = 2, 3  # NFTA_GEN_PROC_*
_FAMILIES = {1: "inet", 7: "bridge"}
_TABLE = "niso"
_IFNAME = 3  # IFLA_IFNAME
_LINKS = ("niso-", "ni", "nx-")
_IFINFO = 16  # sizeof(struct ifinfomsg)
_LISTEN = "listen to changes"

# linux/inotify.h: modified, written, moved, created, deleted, deleted itself
_MASK = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400
_ONLYDIR = 0x01000000
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK, IN_CLOEXEC


type TableChange = tuple[tuple[str, ...], str, int]
"""An nftables transaction that changed niso's tables: ("inet niso", "bridge niso" or both), the
name of the thread that committed the transaction, and its process id in the initial PID namespace.
"""


def listener(protocol: int, group: int) -> netlink.Netlink:
    """Open a netlink socket that receives one multicast group's messages. Raises KernelError."""
    source = netlink.Netlink(protocol)
    try:
        with refusing(_LISTEN):
            source.enlarge_buffer(_RECEIVE_BYTES)
            source.set_blocking(False)
            source.listen(group)
    except KernelError:
        source.close()
        raise
    return source


def received(source: netlink.Netlink) -> list[tuple[int, bytes]] | None:
    """Return all messages that a socket has received as (type, body), or None if some were lost."""
    messages: list[tuple[int, bytes]] = []
    lost = False
    while True:
        try:
            replies = source.notices(_LISTEN)
        except BlockingIOError:
            return None if lost else messages
        lost = lost or replies is None
        messages += [(kind, body) for kind, _, _, body in replies or ()]


def table_changes(messages: Iterable[tuple[int, bytes]], touched: list[str]) -> list[TableChange]:
    """Return the transactions that changed niso's tables, from the kernel's messages about
    nftables.

    ``touched`` is a list that is empty at first, and that the caller passes to each call. It
    contains the tables of a transaction whose last message has not yet arrived. Raises KernelError.
    """
    changes = []
    for kind, body in messages:
        if kind >> 8 != _SUBSYSTEM:
            continue
        fields = parse_reply(_LISTEN, lambda body: attributes(body, 4), body)
        if kind & 0xFF != _NEWGEN:
            if string(fields.get(_TABLE_NAME, b"")) == _TABLE and body[0] in _FAMILIES:
                touched.append(f"{_FAMILIES[body[0]]} {_TABLE}")
            continue
        # the kernel sends this message last
        if touched:
            pid = int.from_bytes(fields.get(_GEN_PID, b""), "big")
            tables = tuple(dict.fromkeys(touched))
            changes.append((tables, string(fields.get(_GEN_NAME, b"")), pid))
        touched.clear()
    return changes


def _is_own_link(body: bytes) -> bool:
    fields = parse_reply(_LISTEN, lambda body: attributes(body, _IFINFO), body)
    return string(fields.get(_IFNAME, b"")).startswith(_LINKS)


class Folders:
    """A watcher of the files in some folders, through inotify(7). Methods raise KernelError."""

    def __init__(self) -> None:
        try:
            self._fd = call_libc("inotify_init1", _NONBLOCK_CLOEXEC)
        except OSError as caught:
            error = refused("watch files", caught.errno or 0)
            if caught.errno == errno.EMFILE:
                error.hint = "raise it: sysctl fs.inotify.max_user_instances"
            raise error from None

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def watch(self, folders: Iterable[str]) -> None:
        """Watch more folders. If a folder is missing, its nearest existing parent is watched."""
        for path in folders:
            folder = path
            while self._add(folder) in (errno.ENOENT, errno.ENOTDIR) and folder != "/":
                folder = os.path.dirname(folder)

    def _add(self, folder: str) -> int:
        try:
            call_libc("inotify_add_watch", self._fd, folder, _MASK | _ONLYDIR)
            return 0
        except OSError as caught:
            number = caught.errno or 0
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
        """Return whether a file in a watched folder has changed since the last call."""
        changed = False
        while True:
            try:
                events = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return changed
            changed = changed or not _is_noise(events)


def _is_noise(events: bytes) -> bool:
    """Return whether all events (struct inotify_event) are about SQLite's shared memory file."""
    offset = 0
    while offset + 16 <= len(events):
        mask, _, length = struct.unpack_from("=III", events, offset + 4)
        name = events[offset + 16 : offset + 16 + length].rstrip(b"\0")
        if name != b"state.db-shm" and not mask & 0x8000:  # IN_IGNORED
            return False
        offset += 16 + length
    return True


class Watches:
    """A context manager that watches everything on this host that changes with niso's state:
    nftables tables, network interfaces and files. Raises KernelError.
    """

    def __init__(self) -> None:
        self._touched: list[str] = []
        with contextlib.ExitStack() as stack:
            self._poll = stack.enter_context(select.epoll())
            self._tables = listener(netlink.NETFILTER, _NFNLGRP_NFTABLES)
            stack.callback(self._tables.close)
            self._links = listener(netlink.ROUTE, _RTNLGRP_LINK)
            stack.callback(self._links.close)
            self._folders = Folders()
            stack.callback(self._folders.close)
            for source in (self._tables, self._links, self._folders):
                self._poll.register(source, select.EPOLLIN)
            self._watch()
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def fileno(self) -> int:
        return self._poll.fileno()

    def wait(self, seconds: float | None) -> bool:
        """Wait at most ``seconds`` for a change. If ``seconds`` is None, there is no limit. Returns
        whether there was a change.
        """
        return bool(self._poll.poll(seconds))

    def read(self) -> tuple[bool, list[TableChange] | None]:
        """Return (whether anything has changed since the last call, the transactions that changed
        niso's tables). The transactions are None if messages of the kernel were lost.
        """
        messages = received(self._tables)
        tables = None if messages is None else table_changes(messages, self._touched)
        if messages is None:
            self._touched.clear()
        about_links = received(self._links)
        links = about_links is None or any(_is_own_link(body) for _, body in about_links)
        files = self._folders.read()
        if files:
            self._watch()
        return links or files or tables is None or bool(tables), tables

    def _watch(self) -> None:
        services = os.path.join(paths.run_dir(), "services")
        health = os.path.dirname(paths.health_file(""))
        events = os.path.join(paths.run_dir(), "events")
        folders = [paths.state_dir(), paths.run_dir(), services, health, events]
        # a folder created later causes an event in its parent, and is watched then
        for service in _listed(services):
            folders.append(service)
            for run in _listed(service):
                if os.path.basename(run).startswith("run-"):
                    folders += [run, os.path.join(run, "exits")]
        self._folders.watch(folders)


def _listed(folder: str) -> list[str]:
    # the folder may have been removed, or not exist yet
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []
