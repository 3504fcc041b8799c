"""Test start and stop of a process on the real kernel, and what they leave after a failure."""

from __future__ import annotations

import json
import re
import signal

import pytest
from conftest import Lab
from runtime_world import CGROUP, FOLDER, NOTHING, SERVICE, Refused, Runtime


@pytest.fixture
def runtime(lab: Lab) -> Runtime:
    return Runtime(lab)


def test_stop_leaves_nothing_and_is_fine_twice(runtime: Runtime) -> None:
    pid = runtime.start(["/bin/sleep", "1000"])
    found = runtime.status()
    assert (found["state"], found["pid"], found["conmon"]) == ("running", pid, True)
    runtime.stop()
    assert runtime.leftovers() == NOTHING
    assert runtime.status()["state"] == "none"
    runtime.stop()


def test_stop_of_one_service_keeps_the_cgroup_of_another(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/sleep", "1000"])
    runtime.start(["/bin/sleep", "1000"], service="other")
    # another program of the host moves a process into the cgroup, and makes a cgroup below it
    lab.run(
        *("sh", "-c"),
        "sleep 1001 >/dev/null 2>&1 & at=$(find /sys/fs/cgroup -name $0 -print -quit)\n"
        'mkdir "$at/inner" && echo $! > "$at/inner/cgroup.procs"',
        SERVICE,
    )
    assert "sleep 1001" in lab.run("ps", "-eo", "args=").stdout
    runtime.stop()
    programs = lab.run("ps", "-eo", "args=").stdout
    assert "sleep 1000" in programs and "sleep 1001" not in programs
    assert lab.run("find", "/sys/fs/cgroup", "-name", "other").stdout
    assert lab.run("find", "/sys/fs/cgroup", "-name", SERVICE).stdout == ""
    runtime.call("stop", "other")
    assert lab.run("find", "/sys/fs/cgroup", "-name", f"{CGROUP}*").stdout == ""


def test_program_that_ignores_term_is_killed_after_its_timeout(runtime: Runtime, lab: Lab) -> None:
    runtime.start(
        ["/bin/sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.05; done"],
        stop_timeout_s=0.3,
    )
    lab.wait_for(lambda: "ready" in runtime.log())
    runtime.stop()
    assert runtime.leftovers() == NOTHING
    assert "asked" in runtime.log()


def test_program_is_given_the_time_to_end_by_itself(runtime: Runtime, lab: Lab) -> None:
    runtime.start(
        [
            "/bin/sh",
            "-c",
            "trap 'sleep 0.3; echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
        ]
    )
    lab.wait_for(lambda: "ready" in runtime.log())
    runtime.stop()
    assert runtime.log().splitlines() == ["ready", "bye"]


IMPOSSIBLE = (
    ({"netns": "/run/netns/absent"}, "/run/netns/absent"),
    ({"package": "/tmp/absent"}, "/tmp/absent"),
    ({"rootfs": "/tmp/absent"}, "/tmp/absent"),
    ({"hostname": "x" * 80}, "hostname"),
)


def test_failed_create_says_why_and_leaves_nothing(runtime: Runtime) -> None:
    for changes, words in IMPOSSIBLE:
        with pytest.raises(Refused, match=re.escape(words)):
            runtime.start(["/bin/sleep", "1000"], **changes)
        assert runtime.leftovers() == NOTHING
        assert runtime.status()["state"] == "none"


@pytest.mark.parametrize(
    ("meanwhile", "ends"),
    [
        ("os.kill(pid, 9); wait_readable(init, 9)", "is not running"),
        ("os.rename(fifo, fifo + '.new')", "exec.fifo"),
    ],
    ids=["ended", "no FIFO"],
)
def test_created_container_that_cannot_be_started_is_removed(
    runtime: Runtime, lab: Lab, meanwhile: str, ends: str
) -> None:
    code = f"""
import json, os, sys
from niso.base.convert import convert
from niso.base.errors import Error
from niso.base.locks import service_lock
from niso.plan.specs import ProcessSpec
from niso.runtime import lifecycle as process
from niso.runtime.crun import wait_readable
with service_lock("{SERVICE}"):
    start = process.begin(convert(json.loads(sys.argv[1]), ProcessSpec))
    assert wait_readable(start.fd, 20)
    pid = int(open("{FOLDER}/run-0/pid").read())
    init = os.pidfd_open(pid)
    fifo = "/run/niso/crun/niso-service-{SERVICE}/exec.fifo"
    {meanwhile}
    try:
        process.finish(start)
    except Error as error:
        print(error.message)
"""
    spec = json.dumps(runtime.spec(["/bin/sleep", "1000"]))
    assert ends in lab.run("python", "-c", code, spec).stdout
    assert runtime.leftovers() == NOTHING


def test_crun_starts_a_container_whose_fifo_niso_cannot_open(runtime: Runtime, lab: Lab) -> None:
    code = """
import json, os, sys
from niso.base.convert import convert
from niso.base.locks import service_lock
from niso.plan.specs import ProcessSpec
from niso.runtime import crun
from niso.runtime import lifecycle as process
opened, run, asked = os.open, crun.run, []
def missing(path, *rest, **names):
    if str(path).endswith("/exec.fifo"):
        raise FileNotFoundError
    return opened(path, *rest, **names)
os.open = missing
crun.run = lambda *words: (asked.append(words[0]), run(*words))[1]
spec = convert(json.loads(sys.argv[1]), ProcessSpec)
with service_lock(spec.service):
    process.start(spec)
print(asked)
"""
    spec = json.dumps(runtime.spec(["/bin/sh", "-c", "echo ready; exec sleep 1000"]))
    assert lab.run("python", "-c", code, spec).stdout == "['start']\n"
    lab.wait_for(lambda: "ready" in runtime.log())
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_second_start_is_refused_and_the_first_lives(runtime: Runtime) -> None:
    pid = runtime.start(["/bin/sleep", "1000"])
    with pytest.raises(Refused, match="is already running"):
        runtime.start(["/bin/sleep", "1000"])
    assert runtime.status()["pid"] == pid
    runtime.stop()


def test_pid_that_is_another_process_by_now_is_not_taken_for_the_service(
    runtime: Runtime, lab: Lab
) -> None:
    runtime.start(["/bin/sleep", "1000"])
    bystander = lab.popen("sleep", "1000")
    state = lab.path(f"{FOLDER}/state.json")
    record = json.loads(state.read_text())
    lab.run("kill", "-KILL", str(record["pid"]))
    runtime.wait_for_state("exited", exit_code=137)
    state.write_text(json.dumps(record | {"pid": bystander.pid, "phase": "running"}))
    lab.path(f"{FOLDER}/run-0/pid").write_text(str(bystander.pid))
    assert runtime.status()["pid"] is None
    runtime.stop(0)
    assert bystander.poll() is None
    bystander.send_signal(signal.SIGKILL)
    assert runtime.leftovers() == NOTHING


def test_killed_conmon_is_seen_and_the_service_can_still_be_stopped(
    runtime: Runtime, lab: Lab
) -> None:
    runtime.start(["/bin/sleep", "1000"])
    lab.run("kill", "-KILL", lab.path(f"{FOLDER}/run-0/conmon.pid").read_text())
    lab.wait_for(lambda: not runtime.status()["conmon"])
    assert runtime.status()["state"] == "running"
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_start_killed_at_any_step_can_be_cleared_and_repeated(runtime: Runtime, lab: Lab) -> None:
    for step in range(1, 50):
        try:
            done = lab.run(
                "python",
                "-c",
                "import sys, json\nfrom niso.base.convert import convert\nfrom niso.plan.specs import ProcessSpec\nfrom niso.runtime import lifecycle as process\n"
                "process.start(convert(json.loads(sys.argv[1]), ProcessSpec))",
                json.dumps(runtime.spec(["/bin/sleep", "1000"])),
                env={"NISO_FAILPOINT": f"{step}:kill"},
                check=False,
            )
            assert runtime.status()["state"] == (
                "running" if done.returncode == 0 else "failed" if step > 1 else "none"
            )
        finally:
            runtime.stop(0)
        assert runtime.leftovers() == NOTHING, step
        if done.returncode == 0:
            break
        assert done.returncode in (-9, 137), done.stderr
    assert 4 < step < 49


def test_stop_killed_at_any_step_can_be_repeated(runtime: Runtime, lab: Lab) -> None:
    for step in range(1, 50):
        runtime.start(["/bin/sleep", "1000"], restart="always")
        done = lab.run(
            "python",
            "-c",
            "from niso.runtime import lifecycle as process\nprocess.stop('demo')",
            env={"NISO_FAILPOINT": f"{step}:kill"},
            check=False,
        )
        runtime.stop(0)
        assert runtime.leftovers() == NOTHING, step
        if done.returncode == 0:
            break
    assert 2 < step < 49


def test_start_that_fails_at_any_step_leaves_nothing(runtime: Runtime) -> None:
    for step in range(1, 50):
        try:
            runtime.call(
                "start",
                runtime.spec(["/bin/sleep", "1000"]),
                env={"NISO_FAILPOINT": f"{step}:ENOSPC"},
            )
        except Refused as error:
            assert "No space left" in str(error)
            assert runtime.leftovers() == NOTHING, step
            continue
        break
    runtime.stop()
    assert 4 < step < 49


def test_service_whose_files_were_removed_can_be_started_again_and_stopped(
    runtime: Runtime, lab: Lab
) -> None:
    for removed in (
        ("services/demo",),
        ("services/demo/run-0",),
        ("services/demo/spec.json",),
        ("services/demo", "crun"),
        ("crun",),
    ):
        runtime.start(["/bin/sleep", "1000"], restart="always")
        lab.run("rm", "-rf", *(f"/run/niso/{name}" for name in removed))
        if removed[0].startswith("services/demo/") or removed == ("crun",):
            runtime.stop(0)
        pid = runtime.start(["/bin/sleep", "2000"], restart="always")
        listing = lab.run("ps", "-eo", "args=").stdout
        assert "/bin/sleep 1000" not in listing
        assert len([line for line in listing.splitlines() if "/conmon " in line]) == 1
        assert runtime.status()["pid"] == pid
        runtime.stop(0)
        assert runtime.leftovers() == NOTHING
    runtime.start(["/bin/sleep", "1000"], restart="always")
    lab.run("rm", "-rf", FOLDER)
    runtime.stop()
    assert runtime.leftovers() == NOTHING


def test_error_without_a_file_does_not_name_one(runtime: Runtime) -> None:
    code = (
        "import errno, os, sys, json\nfrom niso.base.errors import Error\nfrom niso.base.convert import convert\nfrom niso.plan.specs import ProcessSpec\nfrom niso.runtime import lifecycle as process\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "process.crun.save = full\n"
        "try: process.start(convert(json.loads(sys.argv[1]), ProcessSpec))\n"
        "except Error as error: print(error.message)"
    )
    said = runtime.lab.run(
        "python", "-c", code, json.dumps(runtime.spec(["/bin/sleep", "1000"]))
    ).stdout
    assert said == "demo: cannot start its process: No space left on device\n"
