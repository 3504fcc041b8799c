"""Detect a reboot, after which the store must no longer record kernel state that was lost.

A running host is identified by its boot id, its network namespace and its PID 1. A restarted
container keeps only the boot id. The store records this identity. If the present one differs, none
of the recorded active services can still exist. The first process to open the store then records
that no service is active, and deletes records of sysctls and of changes of ports, which concern the
old kernel. Leases, networks, forwards and the enabled services are kept.
"""

from __future__ import annotations

import os

from niso.base import paths
from niso.base.errors import Conflict
from niso.store.sqlite import decoded, sqlite3

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
    """Return the identity of this host: boot id, network namespace and start time of PID 1.

    See random(4), namespaces(7) and proc_pid_stat(5). Raises OSError.
    """
    with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    return f"{paths.boot_id()} {os.stat('/proc/self/ns/net').st_ino} {started}"


def folder() -> str:
    """Return the location of the state folder: device, inode and path. Raises OSError."""
    path = os.path.abspath(paths.state_dir())
    status = os.stat(path)
    # escaped, because a path need not be UTF-8
    return f"{status.st_dev} {status.st_ino} {ascii(path)[1:-1]}"


def recorded(db: sqlite3.Connection) -> str | None:
    """Return the host identity recorded in the store; None in the store of an older niso."""
    row = db.execute("SELECT value FROM meta WHERE key='world'").fetchone()
    return str(row[0]) if row else None


def record(db: sqlite3.Connection, world: str) -> None:
    """Record ``world`` as the identity of the store's host. The caller holds a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('world', ?)", (world,))


def go_home(db: sqlite3.Connection, world: str) -> bool:
    """Enter the store's network namespace, if PID 1 is in it and this process is not.

    Returns whether it did. ``world`` is the identity that this process sees. A command can be
    started in another namespace, such as by a unit with PrivateNetwork=. Raises Conflict if the
    process may not move, OSError.
    """
    before = recorded(db)
    was, now = (before or "").split(), world.split()
    if was == now or len(was) != len(now) or (was[0], was[2]) != (now[0], now[2]):
        return False  # the store of an older niso, or of another boot
    fd = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if str(os.fstat(fd).st_ino) != was[1]:
            return False
        if not paths.is_command:
            raise Conflict(
                "this process is in another network namespace than its state folder is of",
                "start it in that of PID 1: nsenter -t 1 -n",
            )
        os.setns(fd, os.CLONE_NEWNET)
    finally:
        os.close(fd)
    return True


def forget_if_gone(db: sqlite3.Connection, world: str) -> None:
    """Record that nothing is active if ``world`` differs from the recorded host identity.

    Raises Conflict if services still run in another namespace of the same boot, because anything
    that niso set up here would not be for them. The caller holds a transaction.
    """
    before = recorded(db)
    if before == world:
        return
    boot, network = (before or world).split()[:2]
    if boot == world.split(maxsplit=1)[0] and _lives(db):
        if network == world.split()[1]:  # a store of an older niso, or another PID namespace
            record(db, world)
            return
        raise Conflict(
            "the services of this state folder are in another network namespace",
            "run niso in the one that it was started in before",
        )
    for statement in _FORGET:
        db.execute(statement)
    record(db, world)


def _lives(db: sqlite3.Connection) -> bool:
    """Return whether a named namespace or a process of an active service exists."""
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
