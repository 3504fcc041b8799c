"""Test failing and killed commands at each step, on a kernel and processes in memory.

After a failure an activation, restart, port-forward or stack has changed nothing, and a teardown can
be tried again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from fake_world import Steps, World
from samples import samples

from niso.base import locks, paths
from niso.base.errors import NotFound
from niso.base.report import Event, Recovered
from niso.change import activate, journal, port_forward, stacks, undo
from niso.change.deactivate import deactivate, remove
from niso.look import services
from niso.plan.records import PortMapping

WEB = {"ports": ["8080:80"]}
SHARE = {"mode": "share", "share": "api"}
TAKEN = PortMapping("", 8080, 5432, "tcp")

Command = Callable[[], object]
Scene = Callable[[World], Command]
"""Prepares a host, and returns the command that is to break."""


def new(world: World) -> Command:
    world.activate(world.package("db"))
    manifest = world.package("api", network={**WEB, "network": "front"})
    return lambda: world.activate(manifest)


def changed(world: World) -> Command:
    world.activate(world.package("api", network=WEB))
    moved = {"ports": ["8081:80"]}
    manifest = world.package("api", network=moved, environment={"LEVEL": "debug"})
    return lambda: world.activate(manifest)


def rehosted(world: World) -> Command:
    world.activate(world.package("api", network=WEB))
    manifest = world.package("api", network={**WEB, "network": "front"})
    return lambda: world.activate(manifest)


def moved(world: World) -> Command:
    """Move an inactive service off the network of which it is the only one."""
    world.activate(world.package("api", network={"network": "front"}))
    deactivate(world.machine, ["api"])
    manifest = world.package("api", network={"network": "back"})
    return lambda: world.activate(manifest)


def several(world: World) -> Command:
    world.activate(world.package("api", network=WEB))
    api = world.package("api", network={"ports": ["8081:80"]})
    db, log = world.package("db", network=WEB), world.package("log", network=SHARE)
    return lambda: world.activate(db, api, log)


def stack_up(world: World) -> Command:
    backend = {"network": "backend"}
    for name in ("api", "db", "log"):
        world.package(name, network=backend)
    world.up(world.stack("db", "api", backend="10.99.7.0/24"))
    path = world.stack("api", "log", backend="10.99.7.0/24")
    return lambda: world.up(path)


def forwarded(world: World) -> Command:
    world.activate(world.package("api", network=WEB), world.package("db"))
    return lambda: port_forward.port_forward(world.machine, "db", TAKEN, replace=True)


def unforwarded(world: World) -> Command:
    world.activate(world.package("db"))
    port_forward.port_forward(world.machine, "db", TAKEN)
    return lambda: port_forward.port_unforward(world.machine, "db", TAKEN)


def returned(world: World) -> Command:
    ports = ["8080:80", "9090:80"]
    world.activate(world.package("api", network={"ports": ports}), world.package("db"))
    port_forward.port_forward(world.machine, "db", TAKEN, replace=True)
    return lambda: port_forward.port_unforward(world.machine, "db", TAKEN)


def replaced_within(world: World) -> Command:
    world.activate(world.package("db", network={"ports": ["8080:80", "9090:80"]}))
    port_forward.port_forward(world.machine, "db", TAKEN, replace=True)
    return lambda: port_forward.port_unforward(world.machine, "db", TAKEN)


def deactivated(world: World) -> Command:
    world.activate(world.package("api", network=WEB), world.package("log", network=SHARE))
    world.activate(world.package("db", network={"network": "front"}))
    return lambda: deactivate(world.machine, ["log", "api"])


def last(world: World) -> Command:
    world.activate(world.package("api", network=WEB))
    return lambda: deactivate(world.machine, ["api"])


def removed(world: World) -> Command:
    world.activate(world.package("api", network=WEB), world.package("db"))
    return lambda: remove(world.machine, ["api"])


def stack_down(world: World) -> Command:
    for name in ("api", "db"):
        world.package(name, network={"network": "backend"})
    path = world.stack("db", "api", backend="10.99.7.0/24")
    world.up(path)
    return lambda: stacks.down(world.machine, path, False, False)


def restarted(world: World) -> Command:
    world.activate(world.package("api", network=WEB), world.package("db"))
    return lambda: activate.restart(world.machine, ["api", "db"])


def replicated(world: World) -> Command:
    """Give a service a service address; its history has a version without one."""
    world.activate(world.package("api", network=WEB), world.package("db"))
    deactivate(world.machine, ["api"])
    tables = {"service": {"replicas": 2}, "healthcheck": {"command": ["true"]}}
    deploy = {"monitor": "0s", "drain": "0s"}
    manifest = world.package("api", network=WEB, deploy=deploy, **tables)
    return lambda: world.activate(manifest)


def front_forwarded(world: World) -> Command:
    replicated(world)()
    return lambda: port_forward.port_forward(world.machine, "api", TAKEN, replace=True)


def front_unforwarded(world: World) -> Command:
    front_forwarded(world)()
    return lambda: port_forward.port_unforward(world.machine, "api", TAKEN)


UNDONE: list[Scene] = [
    *(
        new,
        changed,
        rehosted,
        moved,
        several,
        stack_up,
        forwarded,
        unforwarded,
        returned,
        restarted,
    ),
    replaced_within,
]
FINISHED: list[Scene] = [deactivated, last, removed, stack_down]
FRONTS: list[Scene] = [replicated, front_forwarded, front_unforwarded]
SCENES = [*UNDONE, *FINISHED, *FRONTS]


Look = Callable[[World, Command, object], None]
STRIDE = samples(4, 1)


def broken(folder: Path, scene: Scene, kills: bool, look: Look) -> None:
    """Break a scene's command at each step, on a host of its own; by default at every fourth.

    Scenes begin at different steps: most have the same ones. ``look`` is given the hosts on which
    the command did not finish, with their picture before.
    """
    first = 1 + (SCENES.index(scene) + 2 * kills) % STRIDE
    for number in count(first, STRIDE):
        with World(folder) as world:
            command = scene(world)
            before = world.picture()
            steps = Steps(world, number, kills)
            if not steps.run(command):
                look(world, command, before)
            world.assert_whole()
            if not steps.has_broken:
                assert number > 4
                return


@pytest.mark.parametrize("scene", UNDONE)
def test_failure_at_any_step_leaves_all_as_it_was(tmp_path: Path, scene: Scene) -> None:
    def look(world: World, _: Command, before: object) -> None:
        assert world.picture() == before

    broken(tmp_path, scene, False, look)


@pytest.mark.parametrize("scene", FINISHED)
def test_failure_at_any_step_is_whole_after_another_try(tmp_path: Path, scene: Scene) -> None:
    def look(world: World, command: Command, _: object) -> None:
        command()

    broken(tmp_path, scene, False, look)


@pytest.mark.parametrize("scene", [*UNDONE, *FINISHED])
def test_death_at_any_step_is_recovered(tmp_path: Path, scene: Scene) -> None:
    """An activation is undone, everything else is finished; then the same command comes to its end."""

    def look(world: World, command: Command, before: object) -> None:
        begun = {intent.action for intent in world.store.intents()}
        left = {intent.service for intent in world.store.intents()}
        assert services.interrupted(world.store).keys() == left
        events: list[Event] = []
        journal.recover(world.machine._replace(report=events.append))
        assert {event.service for event in events if isinstance(event, Recovered)} == left
        if "activate" in begun:
            assert world.picture() == before
        else:
            world.assert_whole()
        with suppress(NotFound):  # a port that the recovery has taken away
            command()

    broken(tmp_path, scene, True, look)


@pytest.mark.parametrize("scene", FRONTS)
@pytest.mark.parametrize("kills", [False, True])
def test_service_address_that_breaks_at_any_step_leaves_no_slots(
    tmp_path: Path, scene: Scene, kills: bool
) -> None:
    """The command may have finished with its last steps, so the service is there or not."""

    def look(world: World, command: Command, _: object) -> None:
        journal.recover(world.machine)
        world.assert_whole()
        with suppress(NotFound):  # a port that the recovery has taken away
            command()

    broken(tmp_path, scene, kills, look)


# --- a signal while another command holds niso's lock ----------------------------------------------------------------


class Other:
    """Another command, which holds niso's lock; the one that waits for it gets a signal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits = 0
        monkeypatch.setattr(locks, "listener", self._waits)
        monkeypatch.setattr(undo, "WAIT_S", 0.05)
        os.makedirs(paths.run_dir(), exist_ok=True)
        self.file = open(os.path.join(paths.run_dir(), "lock"), "w")  # noqa: SIM115

    def begin(self, *_: object) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def end(self) -> None:
        self.file.close()

    def _waits(self, event: Event) -> None:
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("scene", [new, changed, stack_up])
@pytest.mark.parametrize("at", ["begin", "copied", "started"])
def test_signal_ends_a_command_that_waits_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene, at: str
) -> None:
    with World(tmp_path) as world:
        command = scene(world)
        before = world.picture()
        other = Other(monkeypatch)
        if at == "begin":
            other.begin()
        copy_packages = activate._Activation.copy_packages

        def copies(activation: activate._Activation) -> None:
            copy_packages(activation)
            if at == "copied":
                other.begin()

        def starts(what: str) -> bool:
            if at == "started" and what.startswith("start "):
                other.begin()
            return False

        monkeypatch.setattr(activate._Activation, "copy_packages", copies)
        world.processes.fail = starts
        with suppress(KeyboardInterrupt):
            command()
        assert other.waits == 1 + (at == "started")
        other.end()
        world.processes.fail = lambda what: False
        assert (world.store.intents() != []) == (at == "started")
        journal.recover(world.machine)
        assert world.picture() == before
        world.assert_whole()
