"""Test jobs: services whose process runs to its end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_world import Steps, World
from refusals import refuses

from niso.base.errors import Conflict, Error, ErrorGroup, ProcessError
from niso.base.report import Completed, Event
from niso.change import activate, boot, journal, repair, start
from niso.change.deactivate import deactivate
from niso.look import services
from niso.look.check import check
from niso.manifest.load import load

JOB: dict[str, Any] = {"service": {"kind": "job"}}
LIMITED: dict[str, Any] = {"service": {"kind": "job", "timeout": "100ms"}}


def runs_of(world: World, service: str) -> int:
    return world.processes.done.count(f"create {service}")


def ended(world: World, name: str, /, code: int = 0, **tables: Any) -> str:
    """Return the manifest of a job whose process ends at once."""
    world.processes.dies[name] = code
    return world.package(name, **(tables or JOB))


# --- the manifest ------------------------------


def refusals(world: World, **tables: dict[str, Any]) -> list[str]:
    with pytest.raises(ErrorGroup) as caught:
        load(world.package("job", **tables))
    return [f"{error.key}: {error.reason}" for error in caught.value.errors]


def test_a_job_has_no_restarts_and_no_health(world: World) -> None:
    spec = load(world.package("job", service={"kind": "job", "timeout": "10m"})).spec
    assert (spec.program.kind, spec.program.restart, spec.program.timeout_s) == ("job", "no", 600.0)
    assert load(world.package("job", service={"kind": "job"})).spec.program.timeout_s is None
    assert (
        load(world.package("job", service={"kind": "service"})).spec.program.restart == "on-failure"
    )
    assert refusals(
        world, service={"kind": "job", "restart": "always"}, healthcheck={"tcp": 80}
    ) == [
        "service.restart: is not allowed: a job runs once for each activation",
        "healthcheck: is not allowed: a job is done when its process exits with status 0",
    ]
    assert refusals(world, service={"timeout": "1m"}) == [
        "service.timeout: is not allowed: only a job has a time limit"
    ]
    assert refusals(world, service={"kind": "task"}) == [
        'service.kind: must be one of "service" or "job"'
    ]


@pytest.mark.parametrize(
    ("check", "errors"),
    [
        ({"command": ["pg_isready", "-q"]}, []),
        ({"command": ["a"], "tcp": 80}, ["healthcheck.command: conflicts with healthcheck.tcp"]),
        ({"command": []}, ["healthcheck.command: names no program"]),
        ({"command": ["", "a"]}, ["healthcheck.command: names no program"]),
        ({"command": ["a", "b\0"]}, ["healthcheck.command[1]: contains a NUL character"]),
        ({"command": "pg_isready"}, ["healthcheck.command: is a string"]),
        ({"interval": "1s"}, ["healthcheck: has no tcp, http or command"]),
    ],
)
def test_a_health_check_is_one_of_three(
    world: World, check: dict[str, Any], errors: list[str]
) -> None:
    if errors:
        assert refusals(world, healthcheck=check) == errors
    else:
        found = load(world.package("job", healthcheck=check)).spec.program.healthcheck
        assert found is not None
        assert (found.command, found.target) == (("pg_isready", "-q"), "command pg_isready")


# --- its runs ------------------------------


def test_activate_waits_for_the_end_of_a_job_and_keeps_its_network(world: World) -> None:
    events: list[Event] = []
    manifest = ended(world, "job", network={"ports": ["8080:80"]}, **JOB)
    (outcome,) = world.activate(manifest, report=events.append)
    assert outcome.completed
    assert Completed("job") in events
    assert world.processes.status("job").state == "exited"
    assert (world.ports("job"), len(outcome.address)) == (["8080:80"], 1)
    world.assert_whole()
    assert repair.repair_all(world.machine) == 0
    assert runs_of(world, "job") == 1
    (again,) = world.activate(manifest)
    assert (again.address, runs_of(world, "job")) == (outcome.address, 2)
    activate.restart(world.machine, ["job"])
    assert runs_of(world, "job") == 3
    deactivate(world.machine, ["job"])
    world.assert_whole()


def test_other_exit_status_of_a_job_is_an_error_and_leaves_nothing(world: World) -> None:
    before = world.picture()
    with refuses(
        ProcessError, "exit status 3", hint="see binary.entrypoint and binary.args in its manifest"
    ):
        world.activate(ended(world, "job", 3))
    assert world.picture() == before
    world.assert_whole()


@pytest.mark.parametrize("changes", [False, True])
def test_a_failed_second_run_is_not_repeated_by_undo_and_repair(
    world: World, changes: bool
) -> None:
    world.activate(ended(world, "job"))
    world.processes.dies["job"] = 4
    more = {"environment": {"A": "1"}} if changes else {}
    with refuses(
        ProcessError, "exit status 4", hint="see binary.entrypoint and binary.args in its manifest"
    ):
        world.activate(world.package("job", **JOB, **more))
    ran = runs_of(world, "job")
    row = world.store.service("job")
    assert row is not None and row.active
    assert repair.repair_all(world.machine) == 0
    assert check(world.machine) == []
    assert runs_of(world, "job") == ran == 2
    with refuses(
        ProcessError, "exit status 4", hint="see binary.entrypoint and binary.args in its manifest"
    ):
        activate.restart(world.machine, ["job"])
    assert runs_of(world, "job") == 3


def test_job_is_completed_again_after_the_rollback_of_its_next_version(world: World) -> None:
    """The failed run has left no record of the run before; an unfinished change is not completed."""
    world.activate(ended(world, "job"))
    world.processes.dies["job"] = 4
    with refuses(
        ProcessError, "exit status 4", hint="see binary.entrypoint and binary.args in its manifest"
    ):
        world.activate(world.package("job", **JOB, environment={"A": "1"}))
    row = world.store.service("job")
    assert row is not None

    def shown() -> str:
        session: Any = None  # for attachments alone
        return services._status(session, world.store, row)[0]

    assert shown() == "completed"
    journal.begin(world.store, ["job"], "activate")
    assert shown() == "failed"


def test_job_that_takes_too_long_is_stopped(world: World) -> None:
    with refuses(
        ProcessError, "0.1s", hint="raise service.timeout in its manifest, or leave it out"
    ):
        world.activate(world.package("job", **LIMITED))
    world.assert_whole()
    assert world.processes.services() == []


def test_job_of_an_earlier_activation_that_takes_too_long_is_stopped_too(world: World) -> None:
    world.activate(ended(world, "job", **LIMITED))
    del world.processes.dies["job"]
    with refuses(ProcessError, hint="raise service.timeout in its manifest, or leave it out"):
        world.activate(world.package("job", **LIMITED))
    assert not world.processes.runs("job")


def test_service_becomes_a_job_and_its_failure_brings_the_service_back(world: World) -> None:
    world.activate(world.package("api"))
    with pytest.raises(ErrorGroup, match="the job failed"):  # and so did the service
        world.activate(ended(world, "api", 1))
    del world.processes.dies["api"]
    journal.recover(world.machine)
    assert world.processes.runs("api") or world.processes.status("api").state == "exited"
    row = world.store.service("api")
    assert row is not None and not row.is_job


def test_never_restarted_process_may_end_at_once_with_status_0(world: World) -> None:
    (outcome,) = world.activate(ended(world, "once", service={"restart": "no"}))
    assert not outcome.completed
    world.assert_whole()
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.activate(ended(world, "bad", 1, service={"restart": "no"}))
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.activate(ended(world, "always", service={"restart": "always"}))


def test_restore_runs_enabled_jobs_again(world: World) -> None:
    world.activate(ended(world, "job"), ended(world, "other"))
    boot.enable(world.machine, ["job"])
    world.processes.stop("job")
    world.processes.stop("other")
    restored = boot.restore(world.machine, 5.0)
    assert restored.errors == ()
    assert (runs_of(world, "job"), runs_of(world, "other")) == (2, 1)


def test_unit_of_a_job_is_oneshot_without_a_limit() -> None:
    text = boot.unit_text("job", "id", None, 10.0, True, False)
    assert "Type=oneshot\nRemainAfterExit=yes\n" in text
    assert "TimeoutStartSec=infinity\n" in text
    assert "Type=notify\n" in boot.unit_text("api", "id", None, 10.0, False, False)


# --- what waits for it ------------------------------


def stack(world: World, condition: str) -> str:
    path = world.folder / "stack.toml"
    path.write_text(
        '[stack]\nname = "shop"\n'
        '[[service]]\nname = "api"\npackage = "./api"\n'
        f'depends_on = {{ migrate = "{condition}" }}\n'
        '[[service]]\nname = "migrate"\npackage = "./migrate"\n'
    )
    return str(path)


def test_services_of_a_stack_wait_for_the_completion_of_a_job(world: World) -> None:
    world.package("api")
    ended(world, "migrate")
    up = world.up(stack(world, "completed"))
    created = [what for what in world.processes.done if what.startswith("create")]
    assert created == ["create migrate", "create api"]
    assert [outcome.completed for outcome in up.services] == [True, False]
    pid = world.pid("api")
    world.up(stack(world, "completed"))
    assert runs_of(world, "migrate") == 2  # as compose does
    assert world.pid("api") == pid
    world.assert_whole()
    world.processes.dies["migrate"] = 9
    with refuses(
        ProcessError, "exit status 9", hint="see binary.entrypoint and binary.args in its manifest"
    ):
        world.up(stack(world, "completed"))
    assert world.pid("api") == pid


def test_failed_job_keeps_what_waits_for_it_from_starting(world: World) -> None:
    world.package("api")
    ended(world, "migrate", 1)
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.up(stack(world, "completed"))
    assert runs_of(world, "api") == 0
    world.assert_whole()


def test_completion_of_what_is_no_job_is_refused(world: World) -> None:
    world.package("api")
    world.package("migrate")
    with pytest.raises(Error, match=r"service\[0\]\.depends_on\.migrate: \"completed\" is not"):
        world.up(stack(world, "completed"))
    ended(world, "migrate")
    world.up(stack(world, "started"))
    world.activate(ended(world, "job"))
    after = {"api": {"job": start.COMPLETED}}
    world.activate(world.package("api", environment={"A": "1"}), after=after)
    world.processes.current["job"].exit_code = 1
    with refuses(Conflict, hint="niso ps, for job"):
        world.activate(world.package("api", environment={"A": "2"}), after=after)


# --- ends in the middle ------------------------------


def test_killed_activation_of_a_job_is_undone_and_leaves_no_process(tmp_path: Path) -> None:
    steps = 1
    while True:
        with World(tmp_path / str(steps)) as world:
            world.folder.mkdir(exist_ok=True)
            manifest = ended(world, "job")
            broken = Steps(world, steps, kills=True)
            over = broken.run(partial(world.activate, manifest))
            if over:
                break
            ran = runs_of(world, "job")
            journal.recover(world.machine)
            world.assert_whole()
            assert runs_of(world, "job") == ran
            assert world.store.service("job") is None or world.processes.services() == ["job"]
        steps += 1
        assert steps < 200
    assert steps > 10
