"""Kill niso, or fail a step, at any step of a policy change while denied packets are sent.

Not a packet of it may ever come in at the service, whose namespace counts them from its first moment on; the next command
brings all to what should be. ``NISO_TEST_LONG=1`` takes every step, else each command dies once and fails once.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from conftest import Lab, Process
from fault_cases import ERRNOS, LATER, numbers
from fault_world import LONG, World, sample

PROBER = pathlib.Path(__file__).parent / "policy_prober.py"
DB, DB6, MOVED = "10.99.1.50", "fd00:99:1::3", "10.99.1.60"
HOST, HOST6 = "192.0.2.1", "2001:db8::1"
SENDER = """\
import socket, time
sockets = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
while True:
    for one, address in zip(sockets, ("10.99.1.50", "fd00:99:1::3")):
        try:
            one.sendto(b"x", (address, 80))
        except OSError:
            pass
    time.sleep(0.002)
"""


class Case(NamedTuple):
    """``prepare`` is done first, then ``command`` is disturbed and done again; ``reset`` makes it possible once more."""

    prepare: tuple[str, ...]
    command: str
    reset: str
    probes: bool = True  # somebody else sends; else the service that is activated does so itself


DENIED, OTHERWISE, ELSEWHERE = (
    "activate --take-over /tmp/db",
    "activate --take-over /tmp/db-otherwise",
    "activate --take-over /tmp/db-elsewhere",
)
CASES = {
    "activate": Case((), DENIED, "remove db"),
    "activate-again": Case((DENIED, "deactivate db"), "activate db", "remove db"),
    "change": Case((DENIED,), OTHERWISE, "remove db"),
    "address": Case((DENIED,), ELSEWHERE, "remove db"),
    "peer-comes": Case((OTHERWISE,), "activate --take-over /tmp/later", "remove later db"),
    "deactivate": Case((DENIED,), "deactivate db", "remove db"),
    "remove": Case((DENIED,), "remove db", "net list"),
    "egress": Case(
        ("activate --take-over /tmp/db-open",),
        "activate --take-over /tmp/sender",
        "remove sender db",
        False,
    ),
}


def write(
    lab: Lab, folder: str, name: str, network: str, rules: str = "", command: str = "sleep 1000"
) -> None:
    argv = command.split()
    lines = [
        "[package]",
        f'name = "{name}"',
        'version = "1.0.0"',
        "[binary]",
        f'entrypoint = "{argv[0]}"',
    ]
    lines += [
        f"args = {json.dumps(argv[1:])}",
        "[service]",
        'stop_timeout = "1s"',
        "[network]",
        network,
        rules,
    ]
    lab.write(f"/tmp/{folder}/manifest.toml", "\n".join(lines) + "\n")


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(1800 if LONG else 120) as lab:
        world = World(lab)
        for name, number in (("backend", 1), ("frontend", 2)):
            subnets = ("--subnet", f"10.99.{number}.0/24", "--subnet", f"fd00:99:{number}::/64")
            world.niso("net", "create", name, *subnets)
        for folder, rules in (
            ("db", '[network.policy]\nallow_from = ["api", "network:nowhere", "10.9.9.9:80"]'),
            (
                "db-otherwise",
                '[network.policy]\nallow_from = ["later:80/tcp"]\ndeny_from = ["web"]',
            ),
            ("db-elsewhere", '[network.policy]\nallow_from = ["api"]'),
            ("db-open", ""),
        ):
            ip = MOVED if folder == "db-elsewhere" else DB
            network = f'network = "backend"\nip = "{ip}"\nports = ["8080:80", "8080:80/udp"]'
            write(lab, folder, "db", network, rules)
        write(lab, "web", "web", 'network = "backend"')
        write(lab, "far", "far", 'network = "frontend"')
        write(lab, "later", "later", 'network = "backend"')
        write(
            *(
                lab,
                "sender",
                "sender",
                'network = "backend"',
                "[network.policy.egress]\nallow = []",
            ),
            command="/usr/bin/python3 -IS /app/send.py",
        )
        lab.write("/tmp/sender/send.py", SENDER)
        world.niso("activate", "/tmp/web", "/tmp/far")
        yield world


class Prober:
    def __init__(self, lab: Lab, sends: bool) -> None:
        self._sends = sends
        straight = [f"niso-web,{address},80" for address in (DB, DB6, MOVED)]
        published = [
            f"{who},{to},8080" for who in ("niso-web", "niso-far", "client") for to in (HOST, HOST6)
        ]
        ways = [*straight, *published] if sends else []
        script = lab.write("/tmp/prober.py", PROBER.read_text())
        self._process: Process = lab.popen("python3", "-ISu", script, "niso-db", *ways, stdin=-1)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()

    def counted(self) -> dict[str, int]:
        """What has been sent, and what has come in, since it was asked last."""
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        found: dict[str, int] = json.loads(self._line())
        return found

    def assert_nothing_came_in(self, what: str) -> None:
        found = self.counted()
        assert bool(found.pop("sent")) is self._sends
        assert not any(found.values()), (what, found)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@contextlib.contextmanager
def probing(lab: Lab, sends: bool = True) -> Iterator[Prober]:
    prober = Prober(lab, sends)
    try:
        yield prober
    finally:
        prober.end()


def prepare(world: World, case: Case) -> None:
    for command in case.prepare:
        world.niso(*command.split())


@pytest.mark.parametrize("action", ("kill", *ERRNOS, *LATER) if LONG else ("some",))
@pytest.mark.parametrize("name", CASES)
def test_nothing_that_is_denied_comes_in_whatever_dies_or_fails(
    world: World, name: str, action: str
) -> None:
    case = CASES[name]
    command, reset = case.command.split(), case.reset.split()
    with probing(world.lab, case.probes) as prober:
        prepare(world, case)
        points = world.points(*command)
        assert len(points) >= 4, points
        world.assert_whole()
        prober.assert_nothing_came_in("undisturbed")
        world.niso(*reset)
        place, uses = list(CASES).index(name), world.uses()
        failures = [each for each in (*ERRNOS, *LATER) if numbers(each, points, uses)]
        mixed = ("kill", failures[place % len(failures)])
        # else a step in the first half and one in the second
        chosen = numbers(action, points, uses) if LONG else sample(len(points), 5)[1::2]
        for i, number in enumerate(chosen):
            how = action if LONG else mixed[(i + place) % 2]
            what = f"{how} at {number}, {points[number - 1]!r}"
            prepare(world, case)
            prober.assert_nothing_came_in(f"prepared for {what}")
            done, reached = world.disturbed(number, how, *command)
            # how many steps there are hangs on what is open just then: not each time is there anything to end
            assert how != "kill" or done.returncode == -9 or len(reached) < number, what
            prober.assert_nothing_came_in(what)
            world.niso("net", "repair")
            world.assert_whole()
            prober.assert_nothing_came_in(f"{what}: repaired")
            again = world.niso(*command, check=False)
            assert again.returncode == 0 or "no service" in again.stderr, again.stderr
            world.assert_whole()
            prober.assert_nothing_came_in(f"{what}: done again")
            world.niso(*reset, check=name != "remove")
        prober.assert_nothing_came_in("at the end")


@pytest.mark.parametrize("family", ["4", "6"])
def test_prober_counts_what_comes_in(world: World, family: str) -> None:
    """Else the test above could not fail: without a policy every way counts."""
    with probing(world.lab) as prober:
        world.niso("activate", "/tmp/db-open")
        found = world.lab.wait_for(
            lambda: (
                (seen := prober.counted()).get(f"Udp{'6' if family == '6' else ':'}NoPorts")
                and seen
            )
        )
        assert found["Tcp:InSegs"] and found["sent"], found
        own = json.loads(world.niso("inspect", "db").stdout)["endpoints"]
        assert own[0]["address"] == [DB, DB6]
