"""Test the order of starts, and when a started service is examined again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fake_world import World
from fakes.kernel import Fake
from fakes.processes import FakeProcesses
from refusals import refuses

from niso.base import paths
from niso.base.errors import Conflict, Error, ErrorGroup, ProcessError
from niso.change import activate, admit, start, stop, targets
from niso.runtime import health
from niso.store.service_rows import ServiceRow

BUSY = ServiceRow("busy", "", "{}", None, "", "", 0, True, 1, (), "{}", 1.0, 1.0)

CHECK: dict[str, Any] = {"tcp": 80, "retries": 1, "start_period": "0s"}


@pytest.mark.parametrize("passes", [0.1, 0.0002, 0.0])
def test_the_moment_of_being_started_is_waited_for_also_where_it_has_just_passed(
    monkeypatch: pytest.MonkeyPatch, passes: float
) -> None:
    """It passes between the look at the service and the question until when to wait: the next look must not be at the deadline."""
    now = [1000.0]
    monkeypatch.setattr(start.time, "monotonic", lambda: now[0])
    wait = start.Wait(FakeProcesses(Fake()), start.Start(BUSY, None, True, None, 60.0))
    ripe_at = now[0] + start.STARTED_WITHIN_S
    now[0] = ripe_at - 0.0001
    assert not wait.is_started
    now[0] += passes
    assert wait.next_at <= ripe_at
    now[0] = ripe_at
    assert wait.is_started
    assert wait.next_at == 1060.0  # nothing more to be done before


# --- what is active but does not run ------------------------------


def test_activation_of_a_crashed_service_starts_it_or_fails(world: World) -> None:
    manifest = world.package("api", healthcheck=CHECK)
    world.activate(manifest)
    world.processes.end("api", 1)
    assert world.processes.status("api").state == "restarting"
    world.processes.dies["api"] = 1
    for argument in (manifest, "api"):
        with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
            world.activate(argument)
    del world.processes.dies["api"]
    world.processes.ill["api"] = "tcp 80: connection refused"
    with refuses(ProcessError, hint="see [healthcheck] in its manifest"):
        world.activate(manifest)
    world.processes.end("api", 1)
    world.processes.ill.clear()
    (outcome,) = world.activate(manifest)
    assert outcome.changed
    assert world.processes.status("api").state == "running"
    (outcome,) = world.activate(manifest)
    assert not outcome.changed


def test_restarted_service_is_waited_for_until_it_has_been_healthy(world: World) -> None:
    manifest = world.package("api", healthcheck=CHECK)
    world.activate(manifest)
    world.processes.end("api", 1)
    world.processes.restart("api")
    Path(paths.service_dir("api")).mkdir(parents=True)  # without it, no health is recorded
    world.processes.ill["api"] = "tcp 80: connection refused"
    with refuses(ProcessError, hint="see [healthcheck] in its manifest"):
        world.activate(manifest)
    world.processes.ill.clear()
    (outcome,) = world.activate(manifest)
    assert not outcome.changed
    world.processes.ill["api"] = "tcp 80: connection refused"
    record = health.read_record("api")
    assert record is not None and record.well_at
    world.activate(manifest)  # it has been healthy, and is left alone


def test_new_health_check_restarts_nothing_and_is_waited_for(world: World) -> None:
    world.activate(world.package("api", healthcheck=CHECK))
    first = world.pid("api")
    (outcome,) = world.activate(world.package("api", healthcheck=CHECK | {"tcp": 81}))
    assert outcome.changed and world.pid("api") == first
    before = world.picture()
    world.processes.ill["api"] = "tcp 82: connection refused"
    with refuses(ProcessError, hint="see [healthcheck] in its manifest"):
        world.activate(world.package("api", healthcheck=CHECK | {"tcp": 82}))
    assert world.picture() == before and world.pid("api") == first
    with refuses(ProcessError, hint="see [healthcheck] in its manifest"):
        activate.restart(world.machine, ["api"])


def test_failures_in_the_start_period_do_not_count_until_the_timeout(world: World) -> None:
    world.processes.ill["api"] = "tcp 80: connection refused"
    manifest = world.package("api", healthcheck=CHECK | {"start_period": "1h"})
    with pytest.raises(ProcessError, match=r"is not healthy after 0\.05s: tcp 80: connection"):
        activate.activate(world.machine, targets.find_targets(world.store, [manifest]), 0.05)
    assert world.store.services() == []
    world.assert_whole()


def test_failed_rollback_says_what_it_could_not_start(world: World) -> None:
    """What the old version needs has changed too, as a file that it reads."""
    world.activate(world.package("api"), world.package("db"))
    world.processes.dies["api"] = 7
    with pytest.raises(ErrorGroup) as caught:
        world.activate(world.package("api", environment={"A": "1"}))
    new, old = caught.value.errors
    assert new.message == "api: its process ended at once (exit status 7)"
    assert old.message == (
        "api: the rollback could not start it: its process ended at once (exit status 7)"
    )
    assert world.store.intents() == []


def test_stack_that_lost_a_race_for_a_name_is_told_to_run_again(world: World) -> None:
    """When its command began, no other stack had the name, so that its services have no prefix."""
    world.package("db")
    world.up(world.stack("db", name="first"))
    second = admit.StackMembership("second", "/other/stack.toml", "/other/stack.toml", (), ())
    with refuses(
        Conflict, "first", hint="another command has just made that stack: run this one again"
    ) as caught:
        admit.prepare(world.machine, second, ["db"])
    assert (caught.value.hint or "").endswith("run this one again")


# --- the order of starts --------------------------------------------------------------------------


def told(world: World, *names: str, **more: Any) -> list[str]:
    """Activate packages; return what was reported of starts and ends, in order."""
    lines: list[str] = []
    paths = [str(world.folder / name / "manifest.toml") for name in names]
    try:
        world.activate(*paths, report=lambda event: lines.append(event.describe()), **more)
    except Error as error:
        lines.append(f"ERROR {error.message}")
    wanted = ("start ", "stop ", "ERROR ")
    return [
        line.partition(":")[0] if line.startswith("start ") else line
        for line in lines
        if line.startswith(wanted) or line.endswith(" is healthy")
    ]


@pytest.mark.parametrize(
    ("after", "order"),
    [
        ({"api": {"db": "healthy"}}, ["db", "other", "db is healthy", "api"]),
        ({"other": {"api": "started"}, "api": {"db": "started"}}, ["db", "api", "other"]),
        ({"api": {"old": "started"}}, ["api", "db", "other"]),
    ],
)
def test_service_starts_after_those_that_it_needs_and_others_do_not_wait(
    world: World, after: dict[str, dict[str, str]], order: list[str]
) -> None:
    world.activate(world.package("old"))
    world.package("db", healthcheck=CHECK)
    for name in ("api", "other"):
        world.package(name)
    found = told(world, "api", "db", "other", after=after)
    starts = [line.removeprefix("start ") for line in found]
    assert [line for line in starts if line in order] == order
    world.assert_whole()


def test_what_fails_keeps_those_that_need_it_from_starting(world: World) -> None:
    after = {"api": {"db": "healthy"}}
    world.package("db", healthcheck=CHECK)
    world.package("api")
    world.processes.dies["db"] = 7
    found = told(world, "api", "db", after=after)
    assert found[0] == "start db" and "start api" not in found
    assert found[-1].startswith("ERROR db: its process ended") and world.store.services() == []
    # one that runs is asked, and stays as it is
    world.processes.dies.clear()
    told(world, "db")
    pid = world.pid("db")
    world.processes.ill["db"] = "tcp 80: connection refused"
    found = told(world, "api", "db", after=after)
    assert found[-1].startswith("ERROR db: is unhealthy") and "start api" not in found
    world.processes.ill.clear()
    assert told(world, "api", "db", after=after) == ["db is healthy", "start api"]
    assert world.pid("db") == pid


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"a": {"b": "started"}, "b": {"a": "started"}}, "dependency cycle among a, b"),
        ({"a": {"b": "healthy"}}, "a waits until b is healthy, but b has no healthcheck"),
        ({"a": {"c": "started"}}, "a waits until c is started, but it is not"),
    ],
)
def test_order_that_cannot_be_is_refused(
    world: World, after: dict[str, dict[str, str]], words: str
) -> None:
    for name in ("a", "b"):
        world.package(name)
    assert told(world, "a", "b", after=after) == [f"ERROR {words}"]
    assert world.store.services() == []


def test_files_of_an_exited_service_are_removed_while_others_exit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are removed in the order in which the processes were asked to exit."""
    processes = world.machine.processes
    ends = {name: os.pipe() for name in ("a", "b", "c")}
    done: list[str] = []

    def ask(name: str) -> int:
        done.append(f"ask {name}")
        return os.dup(ends[name][0])

    def remove(names: Iterable[str]) -> dict[str, Error]:
        for name in names:
            done.append(f"remove {name}")
            if name == "a":
                os.write(ends["b"][1], b"x")
        return {}

    monkeypatch.setattr(processes, "terminate", ask)
    monkeypatch.setattr(processes, "stop_all", remove)
    for name in ("a", "c"):  # b exits once the files of a are removed
        os.write(ends[name][1], b"x")
    rows = [BUSY._replace(name=name) for name in ends]
    assert stop.stop(world.machine, rows, {}) == {}
    assert done == [f"{what} {name}" for what in ("ask", "remove") for name in ends]
    for fds in ends.values():
        for fd in fds:
            os.close(fd)
