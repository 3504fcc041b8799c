"""Test volumes of commands that were killed while they made or removed them."""

from __future__ import annotations

import pytest
from conftest import Lab
from services import idle, refused
from volume_services import KEPT, sh, with_volumes


def step_of(lab: Lab, words: str, *command: str) -> int:
    """Run a niso command to its end; the number of its step that ``words`` name."""
    log = lab.path("/tmp/steps")
    log.unlink(missing_ok=True)
    lab.niso(*command, env={"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": "/tmp/steps"})
    lines = log.read_text().splitlines()
    return int(next(line for line in lines if words in line).split()[0])


def die_before(lab: Lab, words: str, *command: str, first: int = 1) -> None:
    """Run a niso command that is killed just before the step that ``words`` name; what it did by then stays.

    It is killed at one step after another, from ``first`` on.
    """
    log = "/tmp/steps"
    for number in range(first, 100):
        lab.run("rm", "-f", log)
        died = lab.niso(
            *command,
            check=False,
            env={"NISO_FAILPOINT": f"{number}:kill", "NISO_FAILPOINT_LOG": log},
        )
        assert died.returncode == -9
        if words in lab.run("tail", "-n", "1", log).stdout:
            return
    pytest.fail(f"no step {words!r}")


def test_kill_while_a_volume_is_made_leaves_it_whole_or_not_at_all(lab: Lab) -> None:
    folder = with_volumes(lab, "api", data={"mount": "/data"})
    for _ in range(2):  # the first one makes what stays, the network too
        number = step_of(lab, "make volume", "activate", folder)
        lab.niso("remove", "--volumes", "api")
    die_before(lab, "make volume", "activate", folder, first=number)
    lab.run(
        "mkdir", "-p", f"{KEPT}/api/.data.new"
    )  # as a kill a little later leaves it, still root's
    lab.niso("activate", folder)
    assert sh(lab, "api", "stat -c '%a %u' /data; echo x >/data/file") == "700 1900000000\n"
    assert lab.run("ls", "-A", f"{KEPT}/api").stdout == "data\n"


def test_volume_of_an_activation_that_was_killed_is_deleted_by_the_next_command(lab: Lab) -> None:
    folder = with_volumes(lab, "api", data={"mount": "/data"})
    lab.niso("activate", idle(lab, "other"))
    die_before(lab, "start the process of api", "activate", folder, first=20)
    lab.run("touch", f"{KEPT}/api/data/half")
    lab.niso("restart", "other")
    assert not lab.path(f"{KEPT}/api").exists()
    lab.niso("activate", folder)
    sh(lab, "api", "echo x >/data/file")
    moved = with_volumes(lab, "api", data={"mount": "/d"})
    die_before(lab, "start the process of api", "activate", moved, first=10)
    lab.niso("restart", "other")
    assert sh(lab, "api", "cat /data/file") == "x\n"


def test_removal_that_was_killed_is_finished_by_the_next_command(lab: Lab) -> None:
    lab.niso("activate", with_volumes(lab, "api", data={"mount": "/data"}), idle(lab, "other"))
    sh(lab, "api", "echo x >/data/file")
    die_before(lab, "ask the process of api to end", "remove", "--volumes", "api")
    lab.niso("restart", "other")
    assert not lab.path(f"{KEPT}/api").exists()
    assert "'api'" in refused(lab, "inspect", "api")


def test_plain_removal_that_was_killed_keeps_the_volumes(lab: Lab) -> None:
    lab.niso("activate", with_volumes(lab, "api", data={"mount": "/data"}), idle(lab, "other"))
    sh(lab, "api", "echo x >/data/file")
    die_before(lab, "ask the process of api to end", "remove", "api")
    lab.niso("restart", "other")
    assert "'api'" in refused(lab, "inspect", "api")
    assert lab.path(f"{KEPT}/api/data/file").exists()
