"""Test the order in which processes of one command start, and that nothing else waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import Lab
from services import BUSYBOX, idle, package, pid_of

ACTIVATE = """
import json, sys
from niso.change import activate as activation
from niso.base.errors import Error
from niso.store.store import Store
from niso.change.targets import find_targets
from niso.kernel.real import Kernel
from niso.runtime.machine import Machine
from niso.runtime.processes import Processes
folders, after, timeout_s = json.loads(sys.argv[1])
store = Store.open()
def shown(event):
    print(event.describe())
try:
    activation.activate(Machine(store, Kernel(), Processes()), find_targets(store, folders), timeout_s, shown, after=after)
except Error as error:
    print("ERROR " + error.message)
"""

SOON = {"interval": "100ms", "timeout": "1s", "retries": 2, "start_period": "30s"}


def activate(
    lab: Lab, folders: list[str], after: dict[str, dict[str, str]], timeout_s: float = 30
) -> list[str]:
    """The lines that are about starting, in their order."""
    done = lab.run("python", "-c", ACTIVATE, json.dumps([folders, after, timeout_s]))
    words = ("start ", "stop ", "ERROR ")
    return [
        line.partition(":")[0] if line.startswith("start ") else line
        for line in done.stdout.splitlines()
        if line.startswith(words) or line.endswith(" is healthy")
    ]


def listening(lab: Lab, name: str, after_s: str, **sections: dict[str, Any]) -> str:
    """A service that listens on port 80 some time after its start."""
    script = f"sleep {after_s}; while :; do nc -l -p 80 >/dev/null </dev/null; done"
    return package(
        lab, name, BUSYBOX, "sh", "-c", script, healthcheck={"tcp": 80, **SOON}, **sections
    )


def test_service_starts_when_those_it_needs_are_healthy_and_others_do_not_wait(lab: Lab) -> None:
    folders = [idle(lab, "api"), listening(lab, "db", "1"), idle(lab, "other")]
    lines = activate(lab, folders, {"api": {"db": "healthy"}})
    assert lines == ["start db", "start other", "db is healthy", "start api"]


def test_started_is_enough_where_that_is_asked_for(lab: Lab) -> None:
    folders = [idle(lab, "api"), listening(lab, "db", "1.5")]
    assert activate(lab, folders, {"api": {"db": "started"}}) == [
        "start db",
        "start api",
        "db is healthy",
    ]


def test_chain_starts_one_after_the_other(lab: Lab) -> None:
    folders = [idle(lab, "c"), idle(lab, "b"), idle(lab, "a")]
    assert activate(lab, folders, {"c": {"b": "started"}, "b": {"a": "started"}}) == [
        "start a",
        "start b",
        "start c",
    ]


def test_what_fails_keeps_those_that_need_it_from_starting_and_undoes_all(lab: Lab) -> None:
    db = package(lab, "db", "/bin/sh", "-c", "sleep 0.5; exit 7", healthcheck={"tcp": 80, **SOON})
    lines = activate(lab, [idle(lab, "api"), db], {"api": {"db": "healthy"}})
    assert lines[0] == "start db"
    assert "start api" not in lines
    assert lines[-1].startswith("ERROR db: its process ended before it was healthy (exit status 7)")
    assert json.loads(lab.niso("ps", "--json").stdout) == []


def test_healthy_service_that_stays_as_it_is_holds_nobody_up(lab: Lab) -> None:
    db = listening(lab, "db", "0")
    activate(lab, [db], {})
    pid = pid_of(lab, "db")
    assert activate(lab, [idle(lab, "api"), db], {"api": {"db": "healthy"}}) == [
        "db is healthy",
        "start api",
    ]
    assert pid_of(lab, "db") == pid


def test_sick_service_that_stays_as_it_is_fails_those_that_need_it(lab: Lab) -> None:
    check = {"tcp": 80, "interval": "100ms", "retries": 2, "start_period": "3s"}
    db = package(lab, "db", BUSYBOX, "sh", "-c", "nc -l -p 80; sleep 1000", healthcheck=check)
    activate(lab, [db], {})
    pid = pid_of(lab, "db")
    lines = activate(lab, [idle(lab, "api"), db], {"api": {"db": "healthy"}})
    assert lines[-1].startswith(
        "ERROR db: is unhealthy, the probe failed 2 times: tcp 80: connection refused"
    )
    assert pid_of(lab, "db") == pid


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            {"a": {"b": "started"}, "b": {"a": "started"}},
            "dependency cycle among a, b",
        ),
        ({"a": {"b": "healthy"}}, "a waits until b is healthy, but b has no healthcheck"),
        ({"a": {"c": "started"}}, "a waits until c is started, but it is not"),
    ],
)
def test_order_that_cannot_be_is_refused(
    lab: Lab, after: dict[str, dict[str, str]], words: str
) -> None:
    lines = activate(lab, [idle(lab, "a"), idle(lab, "b")], after)
    assert lines == [f"ERROR {words}"]
    assert json.loads(lab.niso("ps", "--json").stdout) == []


def test_processes_that_restart_end_at_once(lab: Lab) -> None:
    """All have been asked before the first one has ended."""
    script = "trap 'sleep 1; exit' TERM; while :; do sleep 0.1; done"
    names = [f"api{number}" for number in range(6)]
    folders = [package(lab, name, BUSYBOX, "sh", "-c", script) for name in names]
    activate(lab, folders, {})
    folders = [
        package(lab, name, BUSYBOX, "sh", "-c", script, environment={"A": "b"}) for name in names
    ]
    lines = activate(lab, folders, {})
    assert lines[:6] == [f"stop {name}" for name in names]
    assert sorted(lines[6:]) == [f"start {name}" for name in names]
    lines = [line.split(":")[0] for line in lab.niso("restart", "-v", *names).stderr.splitlines()]
    assert lines[:6] == [f"stop {name}" for name in names]


def test_dependency_of_another_command_must_run(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "db"))
    assert activate(lab, [idle(lab, "api")], {"api": {"db": "started"}}) == ["start api"]
