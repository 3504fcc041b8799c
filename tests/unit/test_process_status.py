"""Test the status of an ended process from niso's files, and conmon's exit command."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oci_specs import SPEC
from refusals import refuses

from niso.base import paths
from niso.base.errors import Error
from niso.runtime import crun, lifecycle, status


def ended(policy: str, code: int, *, stopping: bool = False) -> Path:
    """Write the files of a service whose process ended and of which nobody has recorded the end."""
    folder = Path(paths.service_dir("api"))
    bundle = folder / "run-0"
    (bundle / "exits").mkdir(parents=True)
    crun.save(SPEC._replace(restart=policy))
    record = {"run": 0, "phase": "running", "restarts": 0, "failures": 0, "pid": 1 << 22}
    status.write_state("api", record)
    (bundle / "exits" / crun.container_id("api")).write_text(str(code))
    if stopping:
        (bundle / status.STOPPING).touch()
    return bundle


@pytest.mark.parametrize(
    ("policy", "code", "state"),
    [
        ("always", 137, "failed"),
        ("always", 0, "failed"),
        ("on-failure", 1, "failed"),
        ("on-failure", 0, "exited"),
        ("no", 137, "exited"),
    ],
)
def test_end_that_nobody_will_make_good_is_a_failure(policy: str, code: int, state: str) -> None:
    ended(policy, code)
    now = status.read("api")
    assert (now.state, now.exit_code) == (state, code)


def test_end_is_no_failure_while_its_exit_command_lives() -> None:
    bundle = ended("always", 137)
    waits = "import sys; print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", waits, "api", str(bundle)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        command.stdout.readline()
        (bundle / status.EXITED_PID).write_text(str(command.pid))
        assert status.read("api").state == "restarting"
        command.communicate(b"")
    assert status.read("api").state == "failed"


def test_end_of_unknown_policy_is_a_failure() -> None:
    ended("no", 0)
    os.unlink(os.path.join(paths.service_dir("api"), "spec.json"))
    assert status.read("api").state == "failed"


def test_uptime_does_not_follow_the_clock() -> None:
    ended("no", 0)
    now = {"started_at": 1.0, "started_monotonic": time.monotonic() - 5.0}
    status.write_state("api", {"run": 0, "phase": "running", "restarts": 0, "failures": 0, **now})
    lives_s = status.read("api").lives_s
    assert lives_s is not None
    assert 5.0 <= lives_s < 1000.0


def test_start_without_descriptors_or_space_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.makedirs(paths.run_dir())
    lifecycle.require_room()
    room = os.statvfs(paths.run_dir())
    fields = [*room[:4], 3, *room[5:]]
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result([*fields, 0]))
        with pytest.raises(Error, match="no space is left"):
            lifecycle.require_room()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard))
    try:
        with refuses(Error, hint="ulimit -n must be at least 128"):
            lifecycle.require_room()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert max(map(int, os.listdir("/proc/self/fd"))) <= used + 1


# --- the exit command -------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A niso elsewhere that prints its arguments, its Python, and the script that it has written."""
    python, module = tmp_path / "it's python", tmp_path / "on_exit.py"
    python.write_text('#!/bin/sh\necho this "$@"\n')
    python.chmod(0o755)
    module.touch()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(status, "__file__", str(tmp_path / "exit_command.py"))
    other = tmp_path / "bin"
    other.mkdir()
    (other / "niso").write_text('#!/bin/sh\necho other "$@"\n')
    (other / "niso").chmod(0o755)
    monkeypatch.setattr(status, "_PATH", f"{other}:/usr/bin:/bin")
    os.makedirs(paths.run_dir())
    status.write_exit_script()
    return python


def run() -> str:
    argv = [status.SHELL, status.exit_script(), "api", "/run/a b/run-0"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_exit_command_is_the_niso_that_wrote_it(script: Path) -> None:
    assert run() == "this -I -m niso.runtime.on_exit api /run/a b/run-0\n"


@pytest.mark.parametrize("gone", ["python", "module", "version"])
def test_exit_command_finds_niso_where_it_is_now(
    script: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gone == "version":  # the venv's Python leads to another version now
        shutil.move(script, script.with_name("python3.12"))
        script.symlink_to("python3.12")
        status.write_exit_script()
        shutil.move(script.with_name("python3.12"), script.with_name("python3.13"))
        script.unlink()
        script.symlink_to("python3.13")
    else:
        (script if gone == "python" else script.with_name("on_exit.py")).unlink()
    assert run() == "other on-exit api /run/a b/run-0\n"


def test_another_niso_takes_the_exit_command_over(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = script.with_name("python")
    script.rename(moved)
    monkeypatch.setattr(sys, "executable", str(moved))
    status.renew_exit_script()
    assert run().startswith("this ")
    assert os.listdir(paths.run_dir()) == ["on-exit"]


def test_exit_command_is_not_made_before_it_is_needed() -> None:
    status.renew_exit_script()
    assert not os.path.exists(status.exit_script())
    with pytest.raises((OSError, Error)):
        status.write_exit_script()
