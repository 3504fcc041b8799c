"""Provide a lab with small services, in which every command can be killed or fail at each step."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from conftest import Lab, assert_whole
from kernel_snapshot import differences

SNAPSHOT = (pathlib.Path(__file__).parent / "kernel_snapshot.py").read_text()
LOG = "/tmp/failpoints"
KNOWN = """\
import json, sqlite3
database = sqlite3.connect("/var/lib/niso/state.db")
print(json.dumps([[name for name, in database.execute(f"SELECT name FROM {table} ORDER BY name")] for table in ("service", "network")]))
"""
LONG = os.environ.get("NISO_TEST_LONG") == "1"


def sample(count: int, most: int) -> list[int]:
    """Of the steps 1 to ``count`` at most ``most``, evenly, with the first and the last; all in a long run."""
    if LONG or count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})


class World:
    """``a`` publishes 8080, ``b`` 8081, ``c`` nothing; all run sleep and are on the network niso-default."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.service("a", ports=["8080:80"])
        self.service("b", ports=["8081:80"])
        self.service("c")

    def service(
        self,
        name: str,
        *,
        folder: str | None = None,
        ports: list[str] | None = None,
        environment: dict[str, str] | None = None,
        network: str | None = None,
        command: list[str] | None = None,
        stop_timeout: str = "10s",
        named: str = "",
    ) -> str:
        """Write a package; gives its folder. ``named``: more keys of [network], as text."""
        argv = command or ["sleep", "1000"]
        lines = [
            "[package]",
            f'name = "{name}"',
            'version = "1.0.0"',
            "[binary]",
            f'entrypoint = "{argv[0]}"',
        ]
        lines += [f"args = {json.dumps(argv[1:])}", "[environment]"]
        lines += [f'{key} = "{value}"' for key, value in (environment or {}).items()]
        lines += [
            "[service]",
            f'stop_timeout = "{stop_timeout}"',
            "[network]",
            f"ports = {json.dumps(ports or [])}",
        ]
        if network:
            lines.append(f'network = "{network}"')
        path = f"/tmp/{folder or name}"
        self.lab.write(f"{path}/manifest.toml", "\n".join((*lines, named)) + "\n")
        return path

    def niso(
        self, *argv: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        done = self.lab.niso(*argv, check=check, **options)
        assert "Traceback" not in done.stderr, done.stderr
        assert "bug in niso" not in done.stderr, done.stderr
        return done

    def points(self, *argv: str) -> list[str]:
        """Run a command undisturbed; the steps that it passes."""
        return self._logged("0", argv)[1]

    def disturbed(
        self, number: int, action: str, *argv: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run a command that dies or fails at its ``number``-th step; its result and the steps that it reached."""
        return self._logged(f"{number}:{action}", argv)

    def uses(self) -> dict[str, list[int]]:
        """Of the command that was logged last: what of niso.base.signals.LATER it needed, and after how many steps."""
        found: dict[str, list[int]] = {}
        steps = 0
        for line in self.lab.path(LOG).read_text().splitlines():
            word, _, rest = line.partition(" ")
            if word == "-":
                found.setdefault(rest, []).append(steps)
            elif word == str(steps + 1):
                steps += 1
        return found

    def _logged(
        self, failpoint: str, argv: tuple[str, ...]
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log = self.lab.path(LOG)
        log.unlink(missing_ok=True)
        environment = {"NISO_FAILPOINT": failpoint, "NISO_FAILPOINT_LOG": LOG}
        done = self.niso(*argv, check=failpoint == "0", env=environment)
        text = log.read_text() if log.exists() else ""
        # a step's words can have several lines: only the first begins with its number
        numbered = [
            line.split(" ", 1) for line in text.splitlines() if line.split(" ", 1)[0].isdigit()
        ]
        # one process, counting by one: neither conmon nor what it calls at an end takes part
        assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1)), text
        # interfaces' numbers, and their names, which have the activation's in them, differ from run to run
        return done, [
            re.sub(r"\bni[a-z]+-[0-9a-f]{7}\b|(?<=link )\d+|\d+$", "N", words)
            for _, words in numbered
        ]

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lab.run("python3", "-ISc", SNAPSHOT).stdout)
        return found

    def wait_for_snapshot(self, wanted: dict[str, Any], what: str) -> None:
        """Dying links and processes go in their own time; everything else must be equal at once, and these soon."""
        last: list[str] = []

        def same() -> bool:
            last[:] = differences(wanted, self.snapshot())
            return not last

        try:
            self.lab.wait_for(same, 5, what)
        except BaseException:
            raise AssertionError(f"{what}:\n" + "\n".join(last)) from None

    def wait_until_right(
        self, wrong: Callable[[dict[str, Any]], list[str]], what: str
    ) -> dict[str, Any]:
        """Take snapshots until ``wrong`` finds nothing in one; gives that."""
        found: dict[str, Any] = {}
        last: list[str] = []

        def right() -> bool:
            found.clear()
            found.update(self.snapshot())
            last[:] = wrong(found)
            return not last

        try:
            self.lab.wait_for(right, 5, what)
        except BaseException:
            raise AssertionError(f"{what}:\n" + "\n".join(last)) from None
        return found

    def known(self) -> tuple[list[str], list[str]]:
        """The names of all services, and of all networks, by the store's rows."""
        services, networks = json.loads(self.lab.run("python3", "-ISc", KNOWN).stdout)
        return services, networks

    def clear(self) -> None:
        """Remove every service and network by niso's commands."""
        names, networks = self.known()
        if names:
            # what a dead command began may end with the first of these: a name can go by itself
            done = self.niso("remove", *names, check=False)
            if done.returncode:
                for name in self.known()[0]:
                    self.niso("remove", name)
            networks = self.known()[1]  # those that an activation made have gone with it
        if networks:
            self.niso("net", "remove", *networks)

    def assert_whole(self) -> None:
        assert_whole(self)

    def assert_recovery_recovers(
        self,
        begin: Callable[[], object],
        wanted: dict[str, Any],
        clear: Callable[[str], object],
        most: int,
        first: int = 1,
        is_wide: Callable[[dict[str, Any]], list[str]] = lambda snapshot: [],
    ) -> None:
        """Kill the recovery of what ``begin`` leaves at some of its steps; the next one must reach ``wanted``.

        They are ``most`` steps of all (`sample`), without those before ``first``. ``clear`` removes
        everything, and takes a word for where it is called. ``is_wide`` returns what is wider than
        declared in a snapshot.
        """
        begin()
        points = self.points("net", "repair")
        assert len(points) >= 5, points
        self.wait_for_snapshot(wanted, "recovered")
        clear("recovered")
        for number in (step for step in sample(len(points), most) if step >= first):
            what = f"recovery killed at {number}, before {points[number - 1]!r}"
            begin()
            done, _ = self.disturbed(number, "kill", "net", "repair")
            assert done.returncode == -9, what
            self.wait_until_right(is_wide, what)
            self.niso("net", "repair")
            self.wait_for_snapshot(wanted, what)
            self.assert_whole()
            clear(what)


def borrowed(left: list[World], make: Callable[[], World]) -> Iterator[World]:
    """Give a test the world in ``left`` or a new one; end its lab, unless the test puts it back."""
    world = left.pop() if left else make()
    yield world
    if not left:
        world.lab.__exit__()
