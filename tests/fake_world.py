"""Model a host in memory for tests of commands: packages on disk, a store, fake kernel and processes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sqlite3
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from fakes.kernel import Fake
from fakes.processes import FakeProcesses
from stored import TemporaryStore, dump

from niso.base import paths, signals
from niso.base.errors import Error
from niso.base.names import owner
from niso.base.report import Report, silent
from niso.change import activate as change_activate
from niso.change import networks as change_networks
from niso.change import stacks, targets
from niso.change.activate import Outcome
from niso.cli import main
from niso.cluster import config
from niso.kernel.kinds.kind import State, diff, kind_of
from niso.look import check, flows, services, session, stack_members
from niso.manifest import load
from niso.plan.records import Entry, Policy
from niso.plan.subnets import NetworkRequest
from niso.reconcile import change
from niso.runtime.machine import Machine
from niso.store.store import Store

AS_ROOT = types.SimpleNamespace(**{**vars(os), "geteuid": lambda: 0})
"""The module os, for a caller whose commands niso takes for those of root."""


class Killed(BaseException):
    """The end of the process that runs a command."""


def unguarded(kernel: Fake) -> list[str]:
    """Return links that could carry a packet past the rules; none while both tables are missing."""
    if kernel.ruleset is None:
        return []
    objects: tuple[Any, ...] = (*kernel.bridges.values(), *kernel.veths.values())
    return [
        obj.name
        for obj in objects
        if any(guard.key() not in kernel.elements for guard in kind_of(obj).guards(obj))
    ]


def fake_machine(store: Store) -> Machine:
    """Return a machine in memory with this store; it refuses what the real one refuses."""
    kernel = Fake()
    return Machine(store, kernel, FakeProcesses(kernel), config.load)


def unused(store: Store) -> list[str]:
    """Return the networks that should have gone with their last service."""
    with sqlite3.connect(paths.database()) as db:
        rows = db.execute("SELECT name FROM network WHERE implicit=1").fetchall()
    return [name for (name,) in rows if not store.members(name)]


class World:
    """A context manager: a host with packages below ``folder``. Nothing runs their executables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored = TemporaryStore()

    def __enter__(self) -> World:
        self._use(self._stored.__enter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.store.close()
        self._stored.__exit__(kind, error, at)
        shutil.rmtree(paths.run_dir(), ignore_errors=True)

    def _use(self, store: Store) -> None:
        self.store = store
        self.machine = fake_machine(store)
        assert isinstance(self.machine.kernel, Fake)
        assert isinstance(self.machine.processes, FakeProcesses)
        self.kernel, self.processes = self.machine.kernel, self.machine.processes
        self.kernel.strict = True

    def reopen(self) -> None:
        """Let the next command be another process: it opens the store again."""
        self.store = Store.open()
        self.machine = self.machine._replace(store=self.store)

    def reboot(self) -> None:
        """Start the host again: only its disk is left."""
        self.store.close()
        with sqlite3.connect(paths.database()) as db:
            db.execute("UPDATE meta SET value='another boot' WHERE key='world'")
        shutil.rmtree(paths.run_dir(), ignore_errors=True)
        self._use(Store.open())

    # --- what commands are given ---

    def package(self, name: str, below: str = "", **tables: dict[str, Any]) -> str:
        """Write a package with an executable, in a folder below; return its manifest's path."""
        folder = self.folder / below / name
        folder.mkdir(exist_ok=True, parents=True)
        run = folder / "run"
        if not run.exists():
            run.write_text("#!/bin/sh\nexec sleep 60\n")
            run.chmod(0o755)
        every = {
            "package": {"name": name, "version": "1"},
            "binary": {"entrypoint": "run"},
            **tables,
        }
        path = folder / "manifest.toml"
        path.write_text("".join(map(_table, every.items())))
        return str(path)

    def stack(self, *services: str, name: str = "shop", below: str = "", **networks: str) -> str:
        """Write a stack.toml of services, each after the one before, and networks with their subnets."""
        text = _table(("stack", {"name": name}))
        text += "".join(_table((f"networks.{n}", {"subnet": cidr})) for n, cidr in networks.items())
        for before, service in zip((None, *services), services, strict=False):
            text += f'[[service]]\nname = "{service}"\npackage = "./{service}"\n'
            text += f'depends_on = {{ {before} = "started" }}\n' if before else ""
        path = self.folder / below / "stack.toml"
        path.write_text(text)
        return str(path)

    def activate(
        self, *arguments: str, replace: bool = False, report: Report = silent, **more: Any
    ) -> list[Outcome]:
        found = targets.find_targets(self.store, arguments, replace)
        machine = self.machine._replace(report=report)
        return change_activate.activate(machine, found, 5.0, **more)

    def make(self, network: str, *subnets: str) -> None:
        """Create a network with these subnets."""
        change_networks.create(self.machine, NetworkRequest(network, subnets))

    def up(self, path: str, replace: bool = False) -> stacks.Up:
        return stacks.up(self.machine, stack_members.load(path), 5.0, False, replace)

    def niso(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of niso on this host, and return its status and outputs, as `Lab.niso` does."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        ours = {
            "kernel": lambda _: self.kernel,
            "processes": lambda _: self.processes,
            "store": lambda _, create=False: self.store,
            "close": lambda _: None,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, method in ours.items():
                patch.setattr(session.Session, name, method)
            patch.setattr(services, "read", lambda name, **_: self.processes.status(name))
            for name in ("is_command", "command_line"):
                patch.setattr(paths, name, getattr(paths, name))
            for module in (main, session):  # what was written belongs to the user of the tests
                patch.setattr(module, "os", AS_ROOT)
            # flows of the machine, which another change may affect
            patch.setattr(flows, "remembered", lambda *_, **__: flows.Memory((), (), {}))
            patch.setenv("SUDO_UID", str(os.getuid()))
            patch.setenv("NISO_TRACEBACK", "1")  # an exception that is no Error fails the test
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main.run([*words])
        said, errors = (file.buffer.getvalue().decode() for file in (out, err))  # type: ignore[attr-defined]
        if check and status:
            pytest.fail(f"{words}: exit status {status}\n{said}{errors}")
        return subprocess.CompletedProcess(words, status, said, errors)

    def refused(self, *words: str, status: int = 1) -> str:
        """Return the errors of a command of niso, which must fail with ``status``."""
        done = self.niso(*words, check=False)
        assert done.returncode == status, (words, done)
        assert done.stderr.startswith("niso: ") and "bug in niso" not in done.stderr, done.stderr
        return done.stderr

    def ports(self, service: str) -> list[str]:
        return [port.text for _, port in self.store.ports(service)]

    # --- what there is ---

    def picture(self) -> tuple[object, ...]:
        """Return all that a command that fails must leave as it was."""
        sysctls = {key: value for key, value in self.kernel.sysctls.items() if value != "0"}
        processes = {
            name: (run.spec, run.state, run.stopping, self.processes.defect(name))
            for name, run in self.processes.current.items()
        }
        kept = Path(paths.state_dir()) / "packages"
        copies = sorted(str(path) for path in kept.glob("*/*"))
        state = self.kernel.everything(State())
        return dump(self.store), self.store.intents(), state, sysctls, processes, copies

    def pid(self, service: str) -> int | None:
        return self.processes.status(service).pid

    def assert_whole(self) -> None:
        """The kernel has what the store says and nothing else, each process is as it should be, and nothing is half done."""
        assert self.store.intents() == []
        want, have, foreign = change.compare(self.kernel, self.store)
        steps = diff(want, have)
        assert steps == [], [step.describe() for step in steps]
        assert foreign == {}
        assert State.of_kinds(lambda kind: want[kind.type]) == have
        assert unguarded(self.kernel) == []
        assert [finding.text for finding in check.check(self.machine)] == []
        own = [row.name for row in self.store.services() if row.active and row.has_process]
        assert own == self.processes.services()
        assert (left := unused(self.store)) == [], left
        for row in self.store.services():
            if row.has_process and row.name == owner(row.name):
                copy = load.load(f"{row.package}/manifest.toml").spec
                assert without_texts(copy.network.policy) == without_texts(
                    row.require_service().network.policy
                )
                assert (copy.name, copy.network.networks, copy.network.share) == (
                    row.name,
                    row.networks,
                    row.require_service().network.share,
                )
                assert {*copy.names} >= {*row.require_service().names} or copy.network.mode in (
                    "host",
                    "share",
                )
                assert copy.network.ports == row.require_service().network.ports


def without_texts(policy: Policy) -> Policy:
    """A policy without the words of its entries: a stack with a prefix writes ``api``, the copy ``shop-api``."""

    def meanings(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(entry._replace(text="", key="") for entry in entries)

    return policy._replace(
        allow_from=None if policy.allow_from is None else meanings(policy.allow_from),
        deny_from=meanings(policy.deny_from),
        egress_allow=None if policy.egress_allow is None else meanings(policy.egress_allow),
        egress_deny=meanings(policy.egress_deny),
    )


def _table(named: tuple[str, dict[str, Any]]) -> str:
    name, values = named
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join((f"[{name}]", *lines, ""))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(key)} = {_toml(item)}' for key, item in value.items())} }}"
    return json.dumps(value)


class Steps:
    """Numbers the steps of a command: those of the kernel, of processes, of files, and the store's commits. One can break.

    ``kills``: at that step the command's process ends, and nothing that it does afterwards has an effect.
    ``store`` is its connection.
    """

    def __init__(
        self, world: World, number: int, kills: bool = False, store: Store | None = None
    ) -> None:
        self.world, self.number, self.kills = world, number, kills
        self.store = store or world.store
        self.passed: list[str] = []
        self.is_dead = False
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Steps:
        self.world.kernel.fail = lambda step: errno.ENOMEM * self._breaks(step.describe())
        self.world.processes.fail = self._breaks
        self._patch.setattr(signals, "hit", self._point)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self.world.kernel.fail = lambda step: 0
        self.world.processes.fail = lambda what: False

    @property
    def has_broken(self) -> bool:
        return len(self.passed) >= self.number

    def request(self, point: str) -> None:
        """Pass a point before or after a request to another host, which only a kill breaks."""
        if self.kills or self.is_dead:
            self._breaks(point)

    def _point(self, name: str) -> None:
        if self._breaks(name):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name)

    def _breaks(self, words: str) -> bool:
        if self.is_dead:
            raise Killed
        self.passed.append(words.splitlines()[0])
        if len(self.passed) != self.number:
            return False
        if self.kills:
            self.is_dead = True
            self.store.close()  # an open transaction ends with its process
            raise Killed
        return True

    def run(self, command: Callable[[], object]) -> bool:
        """Run a command; return whether it came to its end without an error."""
        try:
            with self:
                command()
        except (Killed, sqlite3.Error):
            if not self.is_dead:
                raise
        except (Error, OSError):
            if self.is_dead or not self.has_broken:
                raise
        else:
            return True
        finally:
            if self.is_dead and self.store is self.world.store:
                self.world.reopen()
        return False
