"""List the commands that are killed or made to fail at each step, and the invariants afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from conftest import Lab
from fault_world import World

ERRNOS = {"EBUSY": "busy", "ENOSPC": "No space left", "ENOMEM": "Cannot allocate memory"}
LATER = ("overrun", "sqlite-busy", "sqlite-full", "crun", "conmon")
"""What does not fail at the step itself but where it is needed next (niso.base.signals.LATER)."""
BEFORE = """\
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.7.0/24" }
[[service]]
name = "db"
package = "/tmp/c"
networks = ["backend"]
[[service]]
name = "old"
package = "/tmp/c"
ports = ["8090:80"]
"""
SHOP = """\
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.7.0/24" }
frontend = { subnet = "10.99.8.0/24" }
[[service]]
name = "db"
package = "/tmp/c"
networks = ["backend", "frontend"]
environment = { LEVEL = "debug" }
[[service]]
name = "new"
package = "/tmp/c"
networks = ["frontend"]
ports = ["8090:80"]
depends_on = { db = "started" }
"""


class Case(NamedTuple):
    """``prepare`` are commands that succeed, or one of `DAMAGES`; ``command`` is disturbed; both in words."""

    prepare: tuple[str, ...]
    command: str
    least: int  # steps that the command has at least, and at most three times as many
    undoes: bool = False  # what it began is undone when a step is refused, up to its last commit
    recovers: bool = (
        True  # the next command of any kind finishes or undoes it; else the same one again does
    )

    @property
    def damaged(self) -> bool:
        return bool(DAMAGES.keys() & set(self.prepare))


UP_BEFORE, UP, DOWN = (
    "stack up /tmp/before",
    "stack up --take-over /tmp/shop",
    "stack down /tmp/shop",
)
CASES = {
    "first-activate": Case((), "activate /tmp/a", 30, True),
    "second-activate": Case(("activate /tmp/a",), "activate /tmp/b", 25, True),
    "two-at-once": Case((), "activate /tmp/a /tmp/b", 50, True),
    "changed-port": Case(("activate /tmp/a",), "activate --take-over /tmp/a-port", 5, True),
    "changed-environment": Case(
        ("activate /tmp/a",), "activate --take-over /tmp/a-environment", 10, True
    ),
    "changed-network": Case(("activate /tmp/a",), "activate --take-over /tmp/a-network", 25, True),
    "name-moves": Case(
        ("activate /tmp/a-named /tmp/b",), "activate --take-over /tmp/b-named /tmp/a", 5, True
    ),
    "again": Case(("activate /tmp/a", "deactivate a"), "activate a", 20, True),
    "deactivate": Case(("activate /tmp/a /tmp/b",), "deactivate b", 8),
    "deactivate-last": Case(("activate /tmp/a /tmp/b",), "deactivate a b", 12),
    "remove": Case(("activate /tmp/a",), "remove a", 12),
    "restart": Case(("activate /tmp/a",), "restart a", 8),
    "save": Case(("activate /tmp/a",), "save --stop -o /tmp/saved a", 8),
    "load": Case(
        ("activate /tmp/a", "save -o /tmp/saved a", "remove a"), "load /tmp/saved", 30, True
    ),
    "port-forward": Case(("activate /tmp/a",), "port-forward a 9000:90", 4, True),
    "port-replace": Case(
        ("activate /tmp/a /tmp/b",), "port-forward a 8081:81 --take-over", 4, True
    ),
    "port-remove": Case(
        ("activate /tmp/a", "port-forward a 9000:90"), "port-forward a 9000:90 --remove", 4, True
    ),
    "net-create": Case((), "net create backend", 8, True, recovers=False),
    "net-remove": Case(("net create backend",), "net remove backend", 4, recovers=False),
    "repair-flushed": Case(("activate /tmp/a", "FLUSH"), "net repair", 2, recovers=False),
    "repair-deleted": Case(("activate /tmp/a", "DELETE"), "net repair", 9, recovers=False),
    "stack-up": Case((), UP, 50, True),
    "stack-change": Case((UP_BEFORE,), UP, 50, True),
    "stack-down": Case((UP,), DOWN, 13),
}

DAMAGES = {
    "FLUSH": "nft flush ruleset",
    "DELETE": """\
nft flush map inet niso publish_any4
rm /run/niso/hosts/*/hosts
link=$(ip -j link | grep -o '"ifname":"ni[a-z]*-[0-9a-f]\\{7\\}"' | cut -d '"' -f 4)
ip link delete "$link"
ip netns exec niso-a ip link set lo down
""",
}
"""What somebody else does to niso's objects."""

OTHERS: list[Callable[[World], None]] = []
"""Commands of other kinds, which must work whatever was left half-way, and leave things as they were."""


def ready(lab: Lab) -> World:
    """A world with the packages and stacks of the cases, and what is made once for all services (the store, crun's cache)."""
    world = World(lab)
    world.service("a", folder="a-port", ports=["8090:80"])
    world.service("a", folder="a-environment", ports=["8080:80"], environment={"LEVEL": "debug"})
    lab.write("/tmp/a-environment/data", "other files too\n")
    world.service("a", folder="a-network", ports=["8080:80"], network="elsewhere")
    for name, port in (("a", 8080), ("b", 8081)):
        world.service(name, folder=f"{name}-named", ports=[f"{port}:80"], named='aliases = ["db"]')
    lab.write("/tmp/before/stack.toml", BEFORE)
    lab.write("/tmp/shop/stack.toml", SHOP)
    world.niso("activate", "/tmp/c")
    world.niso("remove", "c")
    return world


def prepare(world: World, case: Case) -> None:
    for command in case.prepare:
        if command in DAMAGES:
            world.lab.run("sh", "-euc", DAMAGES[command])
        else:
            world.niso(*command.split())


def again(world: World, case: Case) -> None:
    """The command once more: done, or it says that there is nothing left to do."""
    done = world.niso(*case.command.split(), check=False)
    if done.returncode:
        words = {
            "remove": "no service 'a'",
            "load": "a: a service of this name exists",
            "net": "no network 'backend'",
            "port-forward": "is not forwarded to 'a'",
        }
        assert done.returncode == 1
        assert words.get(case.command.split()[0], "no excuse") in done.stderr, done.stderr


def as_before(world: World, baseline: dict[str, Any], what: str) -> None:
    world.clear()
    world.wait_for_snapshot(baseline, f"{what}: after everything is removed")


def numbers(action: str, points: list[str], uses: dict[str, list[int]]) -> list[int]:
    """The steps at which an action makes a difference: all, or of `LATER` the last ones before what it lets fail."""
    return (
        sorted({*uses.get(action, ())} - {0})
        if action in LATER
        else list(range(1, len(points) + 1))
    )


def some(name: str, action: str, among: list[int], most: int) -> list[int]:
    """At most ``most`` of the steps, always the same ones of a case and an action."""
    return sorted(random.Random(f"{name} {action}").sample(among, min(most, len(among))))


def other(function: Callable[[World], None]) -> Callable[[World], None]:
    OTHERS.append(function)
    return function


@other
def look(world: World) -> None:
    world.niso("ps")
    world.niso("net", "list")
    world.niso("net", "ports")


@other
def _activate_another(world: World) -> None:
    world.niso("activate", "/tmp/c")
    assert world.niso("ps", "--json").stdout.count('"status": "running"') >= 1
    world.niso("remove", "c")


@other
def _create_a_network(world: World) -> None:
    world.niso("net", "create", "other")
    world.niso("net", "remove", "other")


def guarded(found: dict[str, Any]) -> list[str]:
    """What is wider than declared in a snapshot: none of it may ever be, whatever has died."""
    wrong = []
    bridge = found["rules"].get("bridge niso", {}).get("sets", {})
    inet = found["rules"].get("inet niso", {}).get("sets", {})
    host = found["namespaces"][""]
    if host["sysctls"]["net/ipv4/ip_forward"] == "1" and not (inet and bridge and inet["closed"]):
        wrong.append(f"forwarding is on without rules: {inet.get('closed')}")
    for name, value in host["sysctls"].items():
        if name.endswith("/route_localnet") and value == "1" and not inet:
            wrong.append(f"{name} is 1 without rules")
    sources: dict[str, set[str]] = {}
    for each in bridge.get("sources4", ()):
        sources.setdefault(each.rpartition(" of ")[2], set()).add(each.split(" . ")[0])
    for service, homes in found["homes"].items():
        if homes != [f"niso-{service}"]:
            wrong.append(f"a process of {service} is in {homes}")
        if not any(f"{port} of {service}" in bridge["ports"] for port in sources.get(service, ())):
            wrong.append(f"{service} runs and its port is not guarded: {bridge}")
    for name, link in host["links"].items():
        ours = (link["ifalias"] or "").startswith("niso:") and link["kind"] == "veth"
        if ours and not any(each.startswith(f"{name} of ") for each in bridge.get("ports", ())):
            wrong.append(f"{name} is there and not guarded")
    for published in inet.get("publish_any4", ()):
        key, _, target = published.partition(" : ")
        address = target.split(" . ")[0]
        owner = key.rpartition(" of ")[2]
        if f"veth({address})" not in sources.get(owner, ()):
            wrong.append(f"{published} leads to somebody else: {bridge.get('sources4')}")
    return wrong


class Undisturbed:
    """What a case is before it is disturbed, and what it comes to; afterwards nothing of it is left."""

    def __init__(self, world: World, name: str) -> None:
        self.case = CASES[name]
        self.baseline = world.snapshot()
        prepare(world, self.case)
        self.before = world.snapshot()
        self.points = world.points(*self.case.command.split())
        self.uses = world.uses()
        assert self.case.least <= len(self.points) <= 3 * self.case.least, self.points
        world.assert_whole()
        self.wanted = world.snapshot()
        assert guarded(self.wanted) == []
        as_before(world, self.baseline, "undisturbed")
