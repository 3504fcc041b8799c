"""The machine of a walk: a lab with what the walk reads and connects by; after a reboot, another."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from conftest import Lab
from wire import Wire

from walk.parts import CLIENT_PORT, FOLDER, HOST, Command

HERE = pathlib.Path(__file__).parent
STATE = "/var/lib/niso"
COMMAND_S = 90.0
SIGNALS = {"kill-after": ("KILL",), "TERM": ("TERM",), "INT": ("INT",), "INTS": ("INT", "INT")}
SNAPSHOT = (HERE.parent / "kernel_snapshot.py").read_text()


class Ended:
    """How a command ended: its status (-N of signal N) and what it said."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def text(self) -> str:
        return f"exit status {self.status}: {self.out}{self.err}".strip()


class Machine:
    """``with Machine(seconds) as machine``: labs live at most so long, each."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._parts = ExitStack()
        self.lab: Lab
        self.wire: Wire

    def __enter__(self) -> Machine:
        self._boot(None)
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def reboot(self) -> None:
        """Go on in a new lab that has this one's disk, and nothing else of it."""
        with self._parts.pop_all():
            self._boot(self.lab)

    def _boot(self, before: Lab | None) -> None:
        lab = self._parts.enter_context(Lab(self._seconds))
        self.lab = lab
        self.wire = self._parts.enter_context(Wire(lab))
        observer = str(HERE / "observer.py")
        self._observer = lab.popen(sys.executable, "-ISB", observer, stdin=subprocess.PIPE)
        agent = str(HERE / "agent.py")
        # another machine that knows the way to what is not published
        lab.client("ip", "route", "replace", "10.99.0.0/16", "via", HOST)
        lab.popen(
            *(sys.executable, "-ISB", agent, "client", str(CLIENT_PORT)),
            netns="client",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.baseline = self.snapshot()
        for folder in (STATE, FOLDER) if before is not None else ():
            if before is not None and before.path(folder).is_dir():
                there = lab.path(folder)
                shutil.copytree(before.path(folder), there, symlinks=True, dirs_exist_ok=True)

    def snapshot(self) -> dict[str, Any]:
        """All that niso could have changed."""
        done = self.lab.run("python3", "-ISc", SNAPSHOT)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def facts(self) -> dict[str, Any]:
        """What the kernel has, by `observer`."""
        assert self._observer.stdin and self._observer.stdout
        self._observer.stdin.write(b"\n")
        found: dict[str, Any] = json.loads(self._observer.stdout.readline())
        return found

    def pids(self) -> dict[str, int]:
        """Return the process of each service that runs."""
        return {service: pid for service, pid, _ in self.facts()["processes"]}

    def damage(self, script: str) -> None:
        """Run a shell script of `outside`."""
        self.lab.run("sh", "-c", script)

    def write(self, command: Command) -> None:
        """Write the manifests and the stack of a command."""
        agent = (HERE / "agent.py").read_text()
        for manifest in command.manifests:
            folder = f"{FOLDER}/{manifest.place}"
            self.lab.write(f"{folder}/manifest.toml", manifest.toml)
            if not self.lab.path(f"{folder}/agent.py").exists():
                self.lab.write(f"{folder}/agent.py", agent, 0o755)
        if command.stack:
            self.lab.write(f"{FOLDER}/{command.stack.name}/stack.toml", command.stack.toml)

    def quick(self, *words: str) -> Ended:
        """Run a command that only reads, or repairs."""
        done = self.lab.niso(*words, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    def run(self, *commands: Command, how: str = "") -> list[Ended]:
        """Run commands at the same time, the first disturbed as `Step.how` says."""
        kind, _, rest = how.partition(" ")
        env: dict[str, str | None] = {}
        if kind in ("kill", "fail"):
            number, _, errno = rest.partition(" ")
            env["NISO_FAILPOINT"] = f"{number}:{errno or 'kill'}"
        processes = []
        for command in commands:
            processes.append(self.lab.popen("niso", *command.words, env=env, inside=True))
            env = {}
        first = processes[0]
        for number in SIGNALS.get(kind, ()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                first.wait(float(rest))
            if first.returncode is None:
                # niso alone, not the group: what it has started must live on
                self.lab.run("kill", f"-{number}", str(first.pid), check=False)
            rest = "1.05"  # within a second, signals count as one
        ended = []
        for process in processes:
            out, err = process.communicate(timeout=COMMAND_S)
            ended.append(Ended(process.wait(COMMAND_S), out, err))
        return ended
