"""Test the restart policy: conmon's exit command, and that a stop always wins."""

from __future__ import annotations

import pytest
from conftest import Lab
from runtime_world import CGROUP, FOLDER, NOTHING, PACKAGE, SERVICE, Runtime


@pytest.fixture
def runtime(lab: Lab) -> Runtime:
    return Runtime(lab)


def test_end_that_the_policy_accepts_is_final(runtime: Runtime, lab: Lab) -> None:
    for policy, code in (("no", 0), ("no", 3), ("on-failure", 0)):
        runtime.start(["/bin/sh", "-c", f"exit {code}"], restart=policy)
        lab.wait_for(lambda: not runtime.status()["conmon"], what="conmon ends")
        found = runtime.status()
        assert (found["state"], found["exit_code"], found["restarts"]) == ("exited", code, 0)
        # with cgroup v2, conmon runs its exit command from a cgroup of niso's, which stays until the stop
        left = runtime.leftovers()
        assert all(each.endswith(f"/{CGROUP}") for each in left["cgroups"])
        assert left | {"files": [], "cgroups": []} == NOTHING
        runtime.stop()
        assert runtime.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("policy", "code"), [("on-failure", 3), ("on-failure", 137), ("always", 0)]
)
def test_end_that_the_policy_does_not_accept_starts_it_again(
    runtime: Runtime, lab: Lab, policy: str, code: int
) -> None:
    end = "kill -KILL $$" if code == 137 else f"exit {code}"
    lab.write(f"{PACKAGE}/again", f"#!/bin/sh\necho began\nsleep 0.1\n{end}\n", 0o755)
    first = runtime.start(["/app/again"], restart=policy)
    found = lab.wait_for(lambda: (now := runtime.status())["restarts"] >= 2 and now)
    assert (found["pid"] != first, found["exit_code"]) == (True, code)
    lab.wait_for(lambda: runtime.log().count("began") >= 3)
    # One conmon however often it has been started: no chain of those before.
    lab.wait_for(
        lambda: sum("/usr/bin/conmon" in line for line in runtime.leftovers()["processes"]) == 1
    )
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_stop_during_the_delay_cancels_it(runtime: Runtime) -> None:
    runtime.start(["/bin/false"], restart="on-failure", restart_delay_s=60.0)
    runtime.wait_for_state("restarting")
    runtime.stop()
    assert runtime.leftovers() == NOTHING
    assert runtime.status()["state"] == "none"


def test_stop_in_the_middle_of_restarts_is_the_end(runtime: Runtime, lab: Lab) -> None:
    for _ in range(10):
        runtime.start(["/bin/false"], restart="always", restart_delay_s=0.001)
        lab.wait_for(lambda: runtime.status()["restarts"] >= 1)
        runtime.stop()
        assert runtime.leftovers() == NOTHING


def test_start_that_fails_is_tried_again_until_it_works(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/sh", "-c", "sleep 0.2; exit 1"], restart="on-failure")
    lab.run("mv", PACKAGE, f"{PACKAGE}-away")
    found = lab.wait_for(lambda: (now := runtime.status())["error"] and now)
    assert (found["state"], PACKAGE in found["error"]) == ("restarting", True)
    lab.run("mv", f"{PACKAGE}-away", PACKAGE)
    assert runtime.wait_for_state("running")["error"] is None
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_restarter_that_was_killed_shows_as_failed(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/false"], restart="on-failure", restart_delay_s=60.0)
    runtime.wait_for_state("restarting")
    lab.wait_for(lambda: '"restarting"' in lab.path(f"{FOLDER}/state.json").read_text())
    lab.run("kill", "-KILL", lab.path(f"{FOLDER}/run-0/exited.pid").read_text())
    runtime.wait_for_state("failed")
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_exit_command_that_dies_as_it_begins_shows_as_failed(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/sleep", "1000"], restart="always")
    lab.write("/run/niso/on-exit", "kill -KILL $$\n")
    lab.run("kill", "-KILL", str(runtime.status()["pid"]))
    assert runtime.wait_for_state("failed", exit_code=137, conmon=False)["restarts"] == 0
    runtime.start(["/bin/sh", "-c", "sleep 0.2; exit 1"], restart="always")  # with its own again
    lab.wait_for(lambda: runtime.status()["restarts"] >= 1)
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_exit_while_a_command_holds_the_lock_waits_for_it(runtime: Runtime, lab: Lab) -> None:
    hold = "import sys\nfrom niso.base.locks import service_lock\nwith service_lock('demo'): print('held', flush=True); sys.stdin.read()"
    runtime.start(["/bin/sh", "-c", "sleep 0.2; exit 1"], restart="on-failure")
    holder = lab.popen("python", "-c", hold, stdin=-1)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    assert runtime.wait_for_state("restarting")["restarts"] == 0
    lab.wait_for(lambda: lab.path(f"{FOLDER}/run-0/exited.pid").exists())
    assert runtime.status()["restarts"] == 0
    holder.communicate("")
    lab.wait_for(lambda: runtime.status()["restarts"] >= 1)
    runtime.stop()


def test_exit_command_of_an_older_run_changes_nothing(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/sleep", "1000"], restart="always")
    runtime.stop()
    pid = runtime.start(["/bin/sleep", "1000"], restart="always")
    lab.run("python", "-I", "-m", "niso.runtime.on_exit", SERVICE, f"{FOLDER}/run-9")
    assert runtime.status()["pid"] == pid
    runtime.stop()
