"""Detect a reboot, or a copied state folder: then the recorded kernel state is not this host's.

A running host is identified by its boot id, its network namespace and the start time of its PID 1.
All three are needed, because niso may run in a container: a restart of the container does not
change the boot id. If this identity differs from the recorded one, the first process to open the
store records that no service is active. It also deletes the records of sysctls and of interrupted
port-forward commands, because their kernel state no longer exists.

A copy of a state folder must not change the services of the original. The copy has the same state
id, so it would treat the network interfaces, processes and rules of the original as its own.
Therefore the store records the device, inode and path of its folder, and a folder that may be a
copy is refused. The folder counts as moved, not as a copy, if device and inode are the same, or if
there is no longer a store with this id at the recorded path.
"""

from __future__ import annotations

import os
import sqlite3

from niso.base import paths
from niso.base.errors import Conflict, Error
from niso.store.sqlite import decoded

_FORGET = (
    "UPDATE service SET active=0 WHERE active=1",
    # undoing a change must leave the service inactive
    "UPDATE intent SET undo=json_set(undo, '$.service[0].active', 0)"
    " WHERE json_extract(undo, '$.service[0].active')=1",
    "UPDATE intent SET undo=json_set(undo, '$.published', json('[]'))"
    " WHERE json_type(undo, '$.published')='array'",
    "DELETE FROM intent WHERE action='ports'",
    "DELETE FROM sysctl",
    "DELETE FROM meta WHERE key='nat_before'",
    "DELETE FROM published",
)


def here() -> str:
    """Return the host's identity: boot id, network namespace and start time of PID 1.

    See random(4), namespaces(7) and proc_pid_stat(5). Raises OSError.
    """
    with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    return f"{paths.boot_id()} {os.stat('/proc/self/ns/net').st_ino} {started}"


def recorded(db: sqlite3.Connection) -> str | None:
    """Return the host identity recorded in the store, or None in a new store."""
    row = db.execute("SELECT value FROM meta WHERE key='world'").fetchone()
    return str(row[0]) if row else None


def record_boot(db: sqlite3.Connection, world: str) -> None:
    """Record a host identity, the result of `here`, in the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('world', ?)", (world,))


def go_home(db: sqlite3.Connection, world: str) -> bool:
    """Enter the network namespace of the store's services if PID 1 is in that namespace.

    A command can be started in another network namespace, for instance by a unit with
    PrivateNetwork=. ``world`` is the identity that this process sees (`here`). Returns whether the
    process has moved. Raises OSError, and Conflict in a program that uses niso as a library, which
    niso must not move.
    """
    before = recorded(db)
    was, now = (before or "").split(), world.split()
    if was == now or len(was) != len(now) or (was[0], was[2]) != (now[0], now[2]):
        return False  # a new store, or one of another boot
    fd = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if str(os.fstat(fd).st_ino) != was[1]:
            return False
        if not paths.is_command:
            reason = "this process is in another network namespace than its state folder is of"
            raise Conflict(reason, "start it in that of PID 1: nsenter -t 1 -n")
        os.setns(fd, os.CLONE_NEWNET)
    finally:
        os.close(fd)
    return True


def forget_if_gone(db: sqlite3.Connection, world: str) -> None:
    """Record all services as inactive if the host is not the recorded one, or has rebooted.

    ``world`` is the host's present identity (`here`). Raises Conflict if services still run in
    another network namespace of the same boot, because changes made in this one would not reach
    them. The caller must be in a transaction.
    """
    before = recorded(db)
    if before == world:
        return
    boot, network = (before or world).split()[:2]
    if boot == world.split(maxsplit=1)[0] and _lives(db):
        if network == world.split()[1]:  # another PID namespace
            record_boot(db, world)
            return
        reason = "the services of this state folder are in another network namespace"
        raise Conflict(reason, "run niso in the one that it was started in before")
    for statement in _FORGET:
        db.execute(statement)
    record_boot(db, world)


def _lives(db: sqlite3.Connection) -> bool:
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()[0]
    active = [row[0] for row in db.execute("SELECT name FROM service WHERE active=1")]
    return any(_is_mount(paths.netns_path(name)) or _runs(name, state_id) for name in active)


def _is_mount(path: str) -> bool:
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False


def _runs(service: str, state_id: str) -> bool:
    try:
        with open(os.path.join(paths.service_dir(service), "state.json"), encoding="utf-8") as file:
            pid = int(decoded(file.read())["pid"])
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return f"/niso-{state_id}/{service}\n" in file.read()
    except (OSError, ValueError, KeyError):
        return False


def changed(db: sqlite3.Connection) -> str | None:
    """Return the location of the state folder if it has changed, otherwise None.

    The location is the device, inode and path. Raises Error if the folder is a copy of a folder
    that still exists. Raises OSError.
    """
    folder = os.path.abspath(paths.state_dir())
    here = _identity(folder)
    now = f"{here} {ascii(folder)[1:-1]}"  # escaped, because a path need not be UTF-8
    row = db.execute("SELECT value FROM meta WHERE key='folder'").fetchone()
    if row is None or row[0] == now:
        return None if row else now
    try:
        device, inode, path = str(row[0]).split(" ", 2)
        was, before = f"{device} {inode}", path.encode().decode("unicode_escape")
        there = _identity(before)
    except (OSError, ValueError):
        return now
    if there == here:
        # the same folder under another path, or after a reboot that has renumbered the devices
        return None if here == was else now
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()
    if here != was and _state_id(before) == state_id:
        raise Error(
            f"{folder} is a copy of the state folder {before}, which has the same services",
            f"use NISO_STATE_DIR={before}; to go on with the copy, first move that one away",
        )
    return now


def _identity(folder: str) -> str:
    status = os.stat(folder)
    return f"{status.st_dev} {status.st_ino}"


def _state_id(folder: str) -> tuple[str] | None:
    path = os.path.join(folder, os.path.basename(paths.database()))
    if not os.path.isfile(path):
        return None
    try:
        other = sqlite3.connect(path)
        try:
            query = "SELECT value FROM meta WHERE key='state_id'"
            row: tuple[str] | None = other.execute(query).fetchone()
        finally:
            other.close()
    except sqlite3.Error:
        return None
    return row
