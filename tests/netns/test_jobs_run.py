"""Test jobs in a lab: their order in a stack, their end, and kills in the middle."""

from __future__ import annotations

import json
import signal

from conftest import Lab
from services import BUSYBOX, address, echo, idle, inspect, package, pid_of, ps, refused
from stack_world import service, write

JOB = {"service": {"kind": "job"}}
ASK = 'nc -w 2 "$1" 80 </dev/null && echo migrated && sleep 0.5 && touch /data/done'


def test_a_job_runs_to_its_end_before_what_waits_for_it(lab: Lab) -> None:
    """The job asks another service over the network and leaves a file; the next service needs that."""
    lab.run("install", "-d", "-m", "777", "/srv/data")
    data = {"volumes": {"data": {"mount": "/data", "host": "/srv/data"}}}
    migrate = package(lab, "migrate", BUSYBOX, "sh", "-c", ASK, "sh", "db", **JOB, **data)
    script = "test -e /data/done || exit 9; exec sleep 1000"
    api = package(lab, "api", BUSYBOX, "sh", "-c", script, **data)
    folder = write(
        lab,
        service("api", api, depends_on={"migrate": "completed"}),
        service("migrate", migrate, depends_on={"db": "healthy"}),
        service("db", echo(lab, "db", healthcheck={"tcp": 80, "interval": "200ms"})),
    )
    said = lab.niso("stack", "up", folder).stdout.splitlines()
    assert [line for line in said if not line.startswith("network")] == [
        f"db: active  {address(lab, 'db')}",
        f"migrate: completed  {address(lab, 'migrate')}",
        f"api: active  {address(lab, 'api')}",
    ]
    assert lab.niso("logs", "migrate").stdout.splitlines() == [
        f"db {address(lab, 'migrate')}",
        "migrated",
    ]
    row = ps(lab, "migrate")
    assert (row["status"], row["uptime"]) == ("completed", None)
    lab.wait_for(lambda: not lab.run("pgrep", "-f", "niso-service-migrate", check=False).stdout)
    process = inspect(lab, "migrate")
    assert (process["exit_code"], process["pid"]) == (0, None)
    assert process["started_at"] <= process["ended_at"] == row["ended_at"]
    assert lab.niso("net", "check").returncode == 0
    assert "nothing" in lab.niso("net", "repair").stdout
    # it runs again, and its failure changes nothing
    pids = [pid_of(lab, name) for name in ("api", "db")]
    lab.niso("stack", "up", folder)
    assert [pid_of(lab, name) for name in ("api", "db")] == pids
    assert lab.niso("logs", "migrate").stdout.count("migrated") == 2
    lab.niso("deactivate", "--all")
    lab.run("rm", "/srv/data/done")
    package(lab, "migrate", BUSYBOX, "sh", "-c", "echo no such table; exit 3", **JOB, **data)
    error = refused(lab, "stack", "up", folder)
    assert "migrate: the job failed (exit status 3); last output:\n    no such table" in error
    assert [ps(lab, name)["status"] for name in ("api", "db", "migrate")] == ["inactive"] * 3
    assert "netns niso-migrate" not in lab.run("ip", "netns").stdout


def test_limits_and_kills_in_the_middle_of_a_job(lab: Lab) -> None:
    slow = "trap 'echo told; exit 0' TERM; echo begun; while :; do sleep 0.05; done"
    limited = {"service": {"kind": "job", "timeout": "500ms"}}
    error = refused(lab, "activate", package(lab, "late", BUSYBOX, "sh", "-c", slow, **limited))
    assert "late: has not ended after 0.5s; last output:\n    begun" in error
    assert json.loads(lab.niso("ps", "--json").stdout) == []

    folder = package(lab, "slow", BUSYBOX, "sh", "-c", slow, **JOB)
    command = lab.popen("niso", "activate", folder)
    lab.wait_for(lambda: "begun" in lab.niso("logs", "slow", check=False).stdout)
    assert ps(lab, "slow")["status"] == "running"
    command.send_signal(signal.SIGKILL)
    command.wait(10)
    lab.niso("activate", idle(lab, "other"))  # recovers
    assert [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)] == ["other"]
    assert lab.run("pgrep", "-f", "while :; do sleep", check=False).stdout == ""
    assert lab.niso("net", "check").returncode == 0

    command = lab.popen("niso", "activate", folder)
    lab.wait_for(lambda: "begun" in lab.niso("logs", "slow", check=False).stdout)
    command.send_signal(signal.SIGINT)
    assert command.wait(10) == 130
    assert lab.run("pgrep", "-f", "while :; do sleep", check=False).stdout == ""
    assert [row["service"] for row in json.loads(lab.niso("ps", "--json").stdout)] == ["other"]

    # a process that is never restarted may end at once
    once = package(lab, "once", BUSYBOX, "true", service={"restart": "no"})
    assert lab.niso("activate", once).stdout.startswith("once: active")
    assert ps(lab, "once")["status"] == "exited (0)"
