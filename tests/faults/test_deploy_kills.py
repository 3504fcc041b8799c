"""Kill niso at each step of commands on a service with a service address.

While niso is dead, the service answers by its port and its address, and nothing is wider than
declared. The next command rolls back before the swap and forward after it; nothing is left over.
``NISO_TEST_LONG=1`` takes every step, else one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Lab
from fault_world import LONG, World
from kernel_snapshot import differences

SERVER = r"""
import sys
from _socket import AF_INET, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
server = socket(AF_INET, SOCK_STREAM)
server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
server.bind(("", 80))
server.listen(128)
while True:
    connection = socket(fileno=server._accept()[0])
    try:
        connection.sendall(sys.argv[1].encode())
    except OSError:
        pass
    connection.close()
"""
"""Tells each client its version. Modules in C load in a fraction of the time of others."""
ASK = r"""
import socket, sys
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    for _ in range(6):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            answer = b""
            while more := connection.recv(100):
                answer += more
        assert answer, "closed without an answer"
        print(answer.decode())
"""

ROWS = r"""
import json, sqlite3, sys
database = sqlite3.connect("/var/lib/niso/state.db")
print(json.dumps(database.execute(sys.argv[1]).fetchall()))
"""


class Case(NamedTuple):
    prepare: tuple[str, ...]
    command: str
    before: tuple[str, int]  # the version that serves before, and its instances; "" for none
    after: tuple[str, int]
    update: str = "start-first"
    answers: bool = True  # at any moment
    mixes: bool = False  # instances of both versions may remain until the same command again


V1, V2 = "activate --take-over /tmp/web-v1", "activate --take-over /tmp/web-v2"
CASES = {
    "first": Case((), V1, ("", 0), ("v1", 2), answers=False),
    "start-first": Case((V1,), V2, ("v1", 2), ("v2", 2)),
    "stop-first": Case((V1,), V2, ("v1", 2), ("v2", 2), "stop-first", mixes=True),
    "scale-up": Case((V1,), "scale web=4", ("v1", 2), ("v1", 4)),
    "scale-down": Case((V1, "scale web=4"), "scale web=2", ("v1", 4), ("v1", 2)),
    "rollback": Case((V1, V2), "rollback web", ("v2", 2), ("v1", 2)),
    "restart": Case((V1,), "restart web", ("v1", 2), ("v1", 2)),
    "to-plain": Case((V1,), "activate --take-over /tmp/plain", ("v1", 2), ("v1", 1), answers=False),
    "from-plain": Case(("activate /tmp/plain",), V2, ("v1", 1), ("v2", 2), answers=False),
    "deactivate": Case((V1,), "deactivate web", ("v1", 2), ("", 0), answers=False),
    "remove": Case((V1, V2), "remove web", ("v2", 2), ("", 0), answers=False),
}


def write(lab: Lab, folder: str, word: str, *more: str) -> None:
    lines = [
        "[package]",
        'name = "web"',
        f'version = "{word}"',
        "[binary]",
        'entrypoint = "/usr/bin/python3"',
        f'args = ["-ISu", "/app/server.py", "{word}"]',
        "[network]",
        'network = "apps"',
        'ports = ["8080:80"]',
        *more,
    ]
    lab.write(f"/tmp/{folder}/manifest.toml", "\n".join(lines) + "\n")
    lab.write(f"/tmp/{folder}/server.py", SERVER)
    lab.write(f"/tmp/{folder}/version", word)


def ready(lab: Lab, update: str) -> World:
    world = World(lab)
    front = (
        "[service]",
        "replicas = 2",
        f'update = "{update}"',
        "[deploy]",
        'monitor = "0s"',
        'drain = "2s"',
        "[healthcheck]",
        "tcp = 80",
        'interval = "200ms"',
    )
    for version in ("v1", "v2"):
        write(lab, f"web-{version}", version, *front)
    write(lab, "plain", "v1")
    world.niso("activate", "/tmp/c")
    world.niso("net", "create", "apps")
    return world


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(3000 if LONG else 240) as lab:
        yield lab


def rows(world: World, query: str) -> list[tuple[Any, ...]]:
    done = world.lab.run("/usr/bin/python3", "-ISc", ROWS, query)
    return [tuple(row) for row in json.loads(done.stdout)]


def address(world: World) -> str:
    query = "SELECT address FROM lease WHERE service='web' AND family=4"
    return str(rows(world, query)[0][0])


def versions(world: World) -> set[str]:
    """Return the answers to requests by the port from outside, and by the service address."""
    seen = set()
    for netns, host in (("client", "192.0.2.1:8080"), (None, f"{address(world)}:80")):
        done = world.lab.run("/usr/bin/python3", "-ISc", ASK, host, netns=netns)
        seen |= set(done.stdout.split())
    return seen


def running(world: World) -> list[str]:
    query = "SELECT name FROM service WHERE name LIKE 'web%' AND active AND mode != 'front'"
    return sorted(name for (name,) in rows(world, query))


def assert_nothing_is_left(world: World, what: str) -> None:
    """Nothing exists but what active instances need; no change is recorded as in progress."""
    assert rows(world, "SELECT service, action FROM intent") == [], what
    world.assert_whole()
    active = running(world)
    found = world.snapshot()
    homes = {name: home for name, home in found["homes"].items() if name.startswith("web")}
    assert homes == {name: [f"niso-{name}"] for name in active}, what
    spaces = sorted(name for name in found["namespaces"] if name.startswith("niso-web"))
    assert spaces == [f"niso-{name}" for name in active], what
    states = (
        "SELECT service, state FROM instance JOIN service ON name=service"
        " WHERE active AND state != 'serving'"
    )
    # a process that was started again serves after it is found healthy
    world.lab.wait_for(lambda: rows(world, states) == [], 20)
    copies = {path for (path,) in rows(world, "SELECT package FROM service WHERE name LIKE 'web%'")}
    copies |= {path for (path,) in rows(world, "SELECT package FROM deploy WHERE outcome='done'")}
    folder = "/var/lib/niso/packages/web"
    kept = set(world.lab.run("sh", "-c", f"ls -d {folder}/* 2>/dev/null || true").stdout.split())
    assert kept <= copies, what
    known = len(rows(world, "SELECT service FROM instance"))
    replicas = max(2, len([name for name in active if "." in name]))
    assert known <= 2 * replicas, (what, known)


def without_flows(found: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot without what the requests of this test leave: recorded flows."""
    for name in ("entered4", "seen4", "switched4", "refused4"):
        for table in found["rules"].values():
            table["sets"].pop(name, None)
            table["sets"].pop(f"share_{name}", None)
    return found


def guarded(found: dict[str, Any]) -> list[str]:
    """Return what is wider than declared: no port or address leads to another service."""
    wrong = []
    bridge = found["rules"].get("bridge niso", {}).get("sets", {})
    inet = found["rules"].get("inet niso", {}).get("sets", {})
    owners = {}
    for each in bridge.get("sources4", ()):
        owners[each.split(" . ")[0]] = each.rpartition(" of ")[2]
    for name, link in found["namespaces"][""]["links"].items():
        ours = (link["ifalias"] or "").startswith("niso:") and link["kind"] == "veth"
        if ours and not any(each.startswith(f"{name} of ") for each in bridge.get("ports", ())):
            wrong.append(f"{name} is there and not guarded")
    for each in inet.get("slots4", ()):
        target = each.partition(" : ")[2].split()[0]
        if not owners.get(f"veth({target})", "").startswith("web."):
            wrong.append(f"{each} leads to another service: {owners}")
    for service, homes in found["homes"].items():
        if homes != [f"niso-{service}"]:
            wrong.append(f"a process of {service} is in {homes}")
    return wrong


def between(points: list[str]) -> list[int]:
    """Return the steps at which the kernel has new slots, and the rows are the old ones."""
    return [
        number
        for number, point in enumerate(points, 1)
        if point == "commit to the store"
        and any("slots4" in before for before in points[max(0, number - 4) : number])
    ]


@pytest.mark.first
@pytest.mark.parametrize("name", CASES)
def test_service_answers_after_a_kill_and_the_next_command_finishes_or_undoes(
    lab: Lab, name: str
) -> None:
    case = CASES[name]
    world = ready(lab, case.update)
    baseline = without_flows(world.snapshot())

    def prepare() -> None:
        for command in case.prepare:
            world.niso(*command.split())

    def clear(what: str) -> None:
        world.niso("remove", "web", check=False)
        assert rows(world, "SELECT name FROM service WHERE name LIKE 'web%'") == [], what

        def left(found: dict[str, Any]) -> list[str]:
            return differences(baseline, without_flows(found))

        world.wait_until_right(left, f"{what}: after everything is removed")

    prepare()
    points = world.points(*case.command.split())
    assert_nothing_is_left(world, "undisturbed")
    if case.after[1]:
        assert versions(world) == {case.after[0]}
    clear("undisturbed")
    numbers = range(1, len(points) + 1)
    some = between(points)[-1:] or [random.Random(name).choice(numbers)]
    for number in numbers if LONG else some:
        what = f"{name} killed at {number} of {len(points)}, before {points[number - 1]!r}"
        prepare()
        done, reached = world.disturbed(number, "kill", *case.command.split())
        if done.returncode == 0:
            # of processes that start at the same time, more or fewer steps are needed
            assert len(reached) < number, what
        if case.answers:
            assert versions(world) <= {case.before[0], case.after[0]}, what
        world.wait_until_right(guarded, what)
        world.niso(*(("net", "repair"), ("activate", "/tmp/c"))[number % 2])
        now = len(running(world))
        assert now in {case.before[1], case.after[1]}, what
        assert_nothing_is_left(world, what)
        if now:
            seen = versions(world)
            assert seen <= {case.before[0], case.after[0]} and (case.mixes or len(seen) == 1), what
        again = world.niso(*case.command.split(), check=False)
        assert again.returncode == 0 or ("web" in again.stderr and case.after[1] == 0), (
            what,
            again,
        )
        if name != "rollback":  # a second rollback leads back
            assert len(running(world)) == case.after[1], what
            if case.after[1]:
                assert versions(world) == {case.after[0]}, what
        assert_nothing_is_left(world, what)
        clear(what)
