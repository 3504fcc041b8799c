"""Lose, damage or fill the store: the error is clear, nothing is half done, and recovery works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from unittest.mock import ANY

import pytest
from conftest import Lab
from fault_world import LONG, World

from niso.cli import command as cli_command
from niso.cli.catalogue import net

STATE = "/var/lib/niso"
DATABASE = f"{STATE}/state.db"


@pytest.fixture
def world(lab: Lab) -> World:
    return World(lab)


def lose(world: World) -> None:
    world.lab.run("sh", "-c", f"rm -f {DATABASE} {DATABASE}-wal {DATABASE}-shm")


def kernel(found: dict[str, object]) -> dict[str, object]:
    """A snapshot without niso's files and records."""
    return {key: value for key, value in found.items() if key not in ("files", "store")}


def refused(world: World, *argv: str, **options: object) -> str:
    done = world.niso(*argv, check=False, **options)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("niso: ")
    return done.stderr


def assert_swept(world: World, baseline: dict[str, object]) -> None:
    done = world.niso("reset", "--yes")
    assert done.stdout.startswith("reset: ")
    assert_after_all(world, baseline)
    assert world.niso("reset", "--yes").stdout == "nothing of niso is in the kernel\n"


def test_store_lost_while_services_run_is_told_swept_and_begun_anew(world: World) -> None:
    baseline = world.snapshot()
    world.niso("activate", "/tmp/a", "/tmp/b")
    running = world.snapshot()
    lose(world)
    words = refused(world, "activate", "/tmp/c")
    assert (
        "is missing, but objects that niso created still exist: " in words
        and "niso reset --help" in words
    )
    assert kernel(world.snapshot()) == kernel(running)
    assert_swept(world, baseline)
    world.niso("activate", "/tmp/a", "/tmp/b")
    world.assert_whole()
    anew = world.snapshot()
    assert anew["homes"] == running["homes"]
    assert (
        anew["rules"]["inet niso"]["sets"]["publish_any4"]
        == running["rules"]["inet niso"]["sets"]["publish_any4"]
    )
    world.clear()
    assert_after_all(world, baseline)


def assert_after_all(world: World, baseline: dict[str, object]) -> None:
    world.wait_for_snapshot(kernel(baseline) | {"files": ANY, "store": ANY}, "all as before")


COMMANDS = {
    "activate": ("activate /tmp/a", "activate a"),
    "deactivate": ("deactivate a",),
    "remove": ("remove a", "remove --volumes a"),
    "restart": ("restart a",),
    "ps": ("ps", "ps --json"),
    "inspect": ("inspect a",),
    "logs": ("logs a",),
    "exec": ("exec a -- true",),
    "kill": ("kill a",),
    "port-forward": ("port-forward a 7000:80",),
    "scale": ("scale a=2",),
    "rollback": ("rollback a",),
    "history": ("history a",),
    "health": ("health",),
    "volume": ("volume list", "volume remove a/data"),
    "save": ("save a -o /tmp/other.tar",),
    "load": ("load /tmp/a.tar --as other",),
    "stack": ("stack up /tmp/stack", "stack down shop", "stack ps /tmp/stack"),
    "cluster": ("cluster init", "cluster status", "cluster leave"),
    "agent": ("agent",),
    "kubernetes": ("kubernetes run", "kubernetes disable"),
    "enable": ("enable a",),
    "disable": ("disable a",),
    "restore": ("restore",),
    "net create": ("net create other",),
    "net list": ("net list",),
    "net inspect": ("net inspect niso-default",),
    "net remove": ("net remove niso-default",),
    "net ports": ("net ports", "net ports --exposed"),
    "net ping": ("net ping a b",),
    "net explain": ("net explain a b:80",),
    "net stats": ("net stats",),
    "net drops": ("net drops",),
    "net attach": ("net attach box --new",),
    "net detach": ("net detach box",),
    "net gc": ("net gc",),
    "net flows": ("net flows",),
    "net graph": ("net graph",),
    "net capture": ("net capture a",),
    "net learn": ("net learn a",),
    "net policy show": ("net policy show a",),
    "net policy test": ("net policy test /tmp/a",),
    "net trace": ("net trace a b:80",),
    "top": ("top -n 1",),
    "events": ("events --since 1h --for 1s",),
    "metrics": ("metrics",),
    "web": ("web --port 0 --for 1s",),
    "net refresh": ("net refresh",),
    "net names": ("net names",),
    "firewall": ("firewall enable",),
    "net check": ("net check", "net check a"),
    "net repair": ("net repair", "net repair --dry-run"),
}
WITHOUT = {
    "schema",
    "lab",
    "net",
    "net rules",
    "help",
    "version",
    "completion",
    "complete",
    "import",
    "validate",
    "reset",
    "on-exit",
}
"""Those that need no store: `net rules` shows what the kernel has."""

SQL = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.executescript(sys.argv[2])"

DAMAGES = {
    "garbage": "head -c 20000 /dev/urandom > {}",
    "truncated": "truncate -s 5000 {}",
    "empty": ": > {}",
    # the first page, with the tables' names, is good
    "empty pages": "size=$(stat -c %s {}); truncate -s 4096 {}; truncate -s $size {}",
    "a folder": "rm {}; mkdir {}",
    "a fifo": "rm {}; mkfifo {}",
    "a device": "rm {}; mknod {} c 1 5",
    "a link to nowhere": "rm {}; ln -s /nowhere/state.db {}",
    "another's database": f"rm {{}}; python3 -ISc '{SQL}' {{}} 'CREATE TABLE other (x)'",
    "a table gone": f"python3 -ISc '{SQL}' {{}} 'DROP TABLE sysctl'",
    "a column gone": f"python3 -ISc '{SQL}' {{}} 'ALTER TABLE intent DROP COLUMN created_at'",
    "a column renamed": f"python3 -ISc '{SQL}' {{}} 'ALTER TABLE meta RENAME COLUMN value TO worth'",
    "no state id": f"python3 -ISc '{SQL}' {{}} 'DELETE FROM meta'",
    "lost": "rm {}",
    "newer": f"python3 -ISc '{SQL}' {{}} 'PRAGMA user_version=99'",
}


def test_every_command_is_tried() -> None:
    known = {*cli_command.COMMANDS, *(action.name for action in net.GROUPS[0].actions)}
    assert COMMANDS.keys() | WITHOUT == known


@pytest.fixture(scope="module")
def held() -> Iterator[World]:
    """a runs; what the store was is kept beside it."""
    with Lab(deadline_seconds=300) as lab:
        world = World(lab)
        lab.write(
            "/tmp/stack/stack.toml",
            '[stack]\nname = "shop"\n[[service]]\nname = "a"\npackage = "../a"\n',
        )
        world.niso("activate", "/tmp/a")
        world.niso("save", "a", "-o", "/tmp/a.tar")
        copy = f"import sqlite3; sqlite3.connect('{DATABASE}').execute('PRAGMA wal_checkpoint(TRUNCATE)')"
        lab.run("python3", "-ISc", copy)
        lab.run("cp", DATABASE, "/tmp/whole.db")
        yield world


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_says_what_is_wrong_with_the_store_and_changes_nothing(
    held: World, damage: str
) -> None:
    lab = held.lab
    running = held.snapshot()
    lab.run(
        "sh",
        "-c",
        f"rm -f {DATABASE}-wal {DATABASE}-shm; " + DAMAGES[damage].format(*[DATABASE] * 3),
    )
    # all commands open the store by the same code, so a part of them samples the rarer damages
    lines = [line for lines in COMMANDS.values() for line in lines]
    if not LONG and damage not in ("garbage", "lost", "newer"):
        lines = lines[sorted(DAMAGES).index(damage) % 4 :: 4]
    for line in lines:
        done = lab.niso(*line.split(), check=False)
        status, out, err = done.returncode, done.stdout, done.stderr
        # 1 of these is a packet that is dropped, and what is not as it should be
        wanted = (
            125
            if line.startswith("exec")
            else 2
            if line.startswith(("net explain", "net check"))
            else 1
        )
        assert (status, out) == (wanted, ""), (line, status, out, err)
        if "--json" in line:
            said = json.loads(err)["error"]
            err = f"niso: {said['message']}\n  hint: {said['hint']}\n"
        first, hint = err.splitlines()
        assert first.startswith(f"niso: {DATABASE}") and hint.startswith("  hint: "), (line, err)
        assert "Traceback" not in err and "bug in niso" not in err, (line, err)
        if damage == "newer":
            assert "has version 99" in err and "use the niso that made it" in err, (line, err)
        else:
            assert "niso reset --help" in err and f"{STATE}/packages/" in err, (line, err)
    lab.run(
        "sh", "-c", f"rm -rf {DATABASE} {DATABASE}-wal {DATABASE}-shm; cp /tmp/whole.db {DATABASE}"
    )
    assert held.snapshot() == running
    held.assert_whole()


@pytest.mark.parametrize("damage", ["garbage", "a folder", "newer"])
def test_damaged_store_is_swept_and_begun_anew(world: World, damage: str) -> None:
    baseline = world.snapshot()
    world.niso("activate", "/tmp/a")
    world.lab.run(
        "sh",
        "-c",
        f"rm -f {DATABASE}-wal {DATABASE}-shm; " + DAMAGES[damage].format(*[DATABASE] * 3),
    )
    assert_swept(world, baseline)
    world.lab.run("mv", DATABASE, f"{DATABASE}-damaged")
    # the package itself is gone: its copy, where the hint says that it is, does as well
    (copy,) = world.lab.run("sh", "-c", f"echo {STATE}/packages/a/*").stdout.split()
    world.lab.run("rm", "-r", "/tmp/a")
    world.niso("activate", copy)
    world.assert_whole()
    world.niso("deactivate", "a")
    world.niso("activate", "a")
    world.assert_whole()
    world.clear()
    assert_after_all(world, baseline)


def test_read_only_state_folder_is_told_and_nothing_changes(world: World) -> None:
    world.niso("activate", "/tmp/a")
    running = world.snapshot()
    # a mount over it, since the log that is open for writing keeps the folder's own one from becoming read-only
    world.lab.run("mount", "--bind", STATE, STATE)
    world.lab.run("mount", "-o", "remount,bind,ro", STATE)
    for command in (
        "activate /tmp/b",
        "deactivate a",
        "remove a",
        "net create other",
        "activate /tmp/a",
    ):
        words = refused(world, *command.split())
        assert STATE in words, (command, words)
        assert "read-only" in words.lower() or "readonly" in words.lower(), (command, words)
    done = world.niso("ps", "--json", check=False)
    if done.returncode == 0:
        assert [row["status"] for row in json.loads(done.stdout)] == ["running"]
    else:
        assert STATE in done.stderr
    world.lab.run("umount", STATE)
    assert world.snapshot() == running
    world.niso("activate", "/tmp/b")
    world.niso("deactivate", "a")
    world.assert_whole()


LOCKER = """\
import sqlite3, sys
store = sqlite3.connect("/var/lib/niso/state.db", isolation_level=None)
store.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not LONG, reason="SQLite waits 10 s for each")
@pytest.mark.parametrize(
    "command", ["activate /tmp/b", "deactivate a", "restart a", "net create other"]
)
def test_store_that_somebody_keeps_locked_is_told_and_nothing_changes(
    world: World, command: str
) -> None:
    world.niso("activate", "/tmp/a")
    running = world.snapshot()
    locker = world.lab.popen("python3", "-ISc", LOCKER, stdin=-1)
    assert locker.stdout and locker.stdout.readline() == b"locked\n"
    words = refused(world, *command.split())
    assert "database is locked" in words and "another niso command" in words
    locker.kill()
    locker.communicate()
    assert world.snapshot() == running
    world.niso(*command.split())
    world.assert_whole()


def fill(world: World, folder: str, leave: int) -> None:
    """Fill a small file system but for ``leave`` KiB."""
    world.lab.run(
        "sh", "-c", f"dd if=/dev/zero of={folder}/filler bs=1k 2>&1 | grep -q 'No space left'"
    )
    size = world.lab.path(f"{folder}/filler").stat().st_size
    world.lab.run("truncate", "-s", str(max(0, size - leave * 1024)), f"{folder}/filler")


@pytest.mark.parametrize(
    ("which", "leave"),
    [
        *(("NISO_STATE_DIR", leave) for leave in ((0, 16, 160) if LONG else (0, 160))),
        *(("NISO_RUN_DIR", leave) for leave in ((0, 16, 40) if LONG else (16,))),
    ],
)
def test_full_disk_is_told_and_leaves_nothing_half_done(
    world: World, which: str, leave: int
) -> None:
    lab = world.lab
    folder = "/tmp/small"
    lab.run("sh", "-c", f"mkdir {folder} && mount -t tmpfs -o size=4m,mode=755 none {folder}")
    environment = {which: folder}
    if which == "NISO_STATE_DIR":  # more than there is with the reserve
        lab.run("sh", "-c", "head -c 1500000 /dev/urandom > /tmp/b/data")
    baseline = world.snapshot()
    world.niso("activate", "/tmp/a", env=environment)
    running = world.snapshot()
    files = lab.run("find", folder, "-path", "*/b*").stdout
    fill(world, folder, leave)
    done = world.niso("activate", "/tmp/b", check=False, env=environment)
    assert done.returncode == 1, done
    assert done.stderr.startswith("niso: ")
    # a package is not copied where there is no room for it
    assert re.search("no space left|disk is full|has 0 MB free", done.stderr, re.I), done.stderr
    if (
        which == "NISO_STATE_DIR"
    ):  # the reserve is enough to undo it, and to stop and start what is there
        assert world.snapshot() == running
        for command in ("net check", "ps", "deactivate a", "activate a", "restart a", "remove a"):
            world.niso(*command.split(), env=environment)
        assert world.snapshot() == baseline
    lab.run("rm", f"{folder}/filler")
    if which == "NISO_STATE_DIR":
        world.niso("activate", "/tmp/a", env=environment)
    # with room again, whatever could not even be undone is
    world.niso("net", "repair", env=environment)
    assert world.niso("net", "check", env=environment).returncode == 0
    assert world.snapshot() == running
    assert lab.run("find", folder, "-path", "*/b*", "-not", "-path", "*/locks/*").stdout == files
    world.niso("activate", "/tmp/b", env=environment)
    fill(world, folder, leave)
    stopped = world.niso("deactivate", "b", check=False, env=environment)
    assert stopped.returncode in ((0,) if which == "NISO_STATE_DIR" else (0, 1)), stopped
    lab.run("rm", f"{folder}/filler")
    world.niso("deactivate", "b", env=environment)
    assert world.niso("net", "check", env=environment).returncode == 0
    world.niso("remove", "a", "b", env=environment)
    assert_after_all(world, baseline)
