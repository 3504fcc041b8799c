"""Which kernel the record is of. After a reboot all that was set up is gone, and the record must not say otherwise.

What a host is, as long as it runs: its boot, the network namespace that services hang on, and its PID 1 (a container that
is started again keeps the first of these). The record carries it. Where it is another now, nothing of what was active can
be left, and whoever opens the store first says so in it: no service is active, and what was found before of sysctls and
moved ports was of the other kernel. Leases, networks, forwards and what is enabled stay.
"""

from __future__ import annotations

import os
import sqlite3

from niso.base import paths
from niso.store.sqlite import decoded

_FORGET = (
    "UPDATE service SET active=0 WHERE active=1",
    # what an activation was at goes back to an inactive service
    "UPDATE intent SET undo=json_set(undo, '$.service[0].active', 0) WHERE json_extract(undo, '$.service[0].active')=1",
    "UPDATE intent SET undo=json_set(undo, '$.published', json('[]')) WHERE json_type(undo, '$.published')='array'",
    "DELETE FROM intent WHERE action='ports'",
    "DELETE FROM sysctl",
    "DELETE FROM published",
)


def here() -> str:
    """This host's boot, network namespace and PID 1 (random(4), namespaces(7), proc_pid_stat(5)). Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino} {started}"


def recorded(db: sqlite3.Connection) -> str | None:
    """What `here` was when something was recorded last; None in a store of an older niso."""
    row = db.execute("SELECT value FROM meta WHERE key='world'").fetchone()
    return str(row[0]) if row else None


def record(db: sqlite3.Connection, world: str) -> None:
    """Note that what is active is so in ``world``; inside a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('world', ?)", (world,))


def forget_if_gone(db: sqlite3.Connection, world: str) -> None:
    """Record that nothing is active any more, unless it still is; inside a transaction."""
    before = recorded(db)
    if before == world:
        return
    same_boot = before is None or before.split()[0] == world.split(maxsplit=1)[0]
    if same_boot and _lives(db):
        if before is None:
            record(db, world)
        # else we are in another namespace than they
        return
    for statement in _FORGET:
        db.execute(statement)
    record(db, world)


def _lives(db: sqlite3.Connection) -> bool:
    """Whether anything of an active service is to be seen: its named namespace or its process."""
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
