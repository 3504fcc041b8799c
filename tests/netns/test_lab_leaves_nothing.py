"""Test that the machine is as before after a lab, whatever it did and however it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import Lab
from lab_machine import CHANGES, LAB, NAMESPACES, SNAPSHOT, sleepers, snapshot, start_changed_lab


@pytest.fixture
def machine(lab: Lab) -> Lab:
    """A lab that stands for the machine, compared once its link has settled."""
    lab.wait_for(lambda: lab.ip_json("link", "show", "uplink0")[0]["operstate"] == "UP")
    return lab


def test_machine_is_as_before_after_a_lab_that_changed_everything(machine: Lab) -> None:
    before = snapshot(machine)
    assert machine.run(*LAB, "sh", "-c", CHANGES).stdout == "changed\n"
    assert snapshot(machine) == before
    assert sleepers(machine) == ""


@pytest.mark.parametrize("victims", ["caller", "supervisor", "supervisor caller"])
def test_machine_is_as_before_after_a_lab_that_was_killed(machine: Lab, victims: str) -> None:
    before = snapshot(machine)
    process, supervisor = start_changed_lab(machine)
    changed = snapshot(machine)
    assert {key for key in before if changed[key] != before[key]} == {"cgroups"}, (
        "what a lab leaves behind when killed"
    )
    pids = [
        str({"caller": process.pid, "supervisor": supervisor}[victim]) for victim in victims.split()
    ]
    # Stopped first, so that neither can clean up after the other. The supervisor is killed first: the kernel continues
    # a stopped process whose group loses its last parent.
    machine.run("kill", "-STOP", *pids)
    machine.run("kill", "-KILL", *pids)
    machine.wait_for(lambda: sleepers(machine) == "", what="all of the lab's processes are gone")
    if len(pids) == 2:
        assert snapshot(machine)["cgroups"] != before["cgroups"], "somebody cleaned up"
        machine.run(*LAB, "true")
    machine.wait_for(lambda: snapshot(machine) == before, what="the machine is as before")


def test_real_machine_is_as_before_after_a_lab_that_changed_everything() -> None:
    def look() -> dict[str, object]:
        found = json.loads(
            subprocess.run([sys.executable, "-c", SNAPSHOT], capture_output=True, check=True).stdout
        )
        # Others work on this machine meanwhile.
        kept = {
            key: value
            for key, value in found.items()
            if key not in ("tmp", "cgroups", "shm", "run")
        }
        return kept | {"run": sorted(os.listdir("/run"))}

    before = look()
    # A lab that lacks a namespace must fail here, before it changes the machine.
    guards = [
        f'[ "$(readlink /proc/self/ns/{kind})" != "{os.readlink(f"/proc/self/ns/{kind}")}" ]'
        for kind in NAMESPACES
    ]
    script = "\n".join(["set -e", *guards, "cat /run/niso-lab", CHANGES])
    done = subprocess.run(
        [*LAB, "sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        start_new_session=True,
    )
    name, word = done.stdout.split()
    assert word == "changed"
    assert look() == before
    assert not [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if name in folder]
    leaked = [path for path in ("/dev/shm/changed", "/tmp/changed") if os.path.exists(path)]
    for path in leaked:
        os.unlink(path)
    assert not leaked


def test_sweep_leaves_a_living_lab_alone(machine: Lab) -> None:
    process, _ = start_changed_lab(machine)
    before = snapshot(machine)["cgroups"]
    machine.run(*LAB, "true")
    assert snapshot(machine)["cgroups"] == before
    process.kill()
