"""Test enabled services under a real systemd, booted in a lab.

Whatever starts, ends or restarts a service, systemd sees one running unit for one running service, and niso alone starts it again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab, assert_whole
from machine import DEAD, FAILED, RUNNING, Machine, enabled, is_followed, needs_systemd, pids, row
from services import answer, ask, echo, on, package

pytestmark = needs_systemd


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """Boot a machine, on which each test leaves nothing of niso."""
    with Lab() as lab:
        yield Machine(lab)


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    yield booted
    known = [each["service"] for each in json.loads(booted.niso("ps", "--json").stdout)]
    if known:
        booted.niso("remove", "--volumes", *known)
    found = booted.run("find", "/etc/systemd/system", "-name", "niso-*.service").stdout
    assert found == ""


@pytest.fixture
def lab(booted: Machine) -> Lab:
    return booted.lab


def namespace(machine: Machine, name: str = "api") -> str:
    """Which one the service's name stands for, and that its process is in it."""
    found = machine.run("stat", "--format=%i", f"/run/netns/niso-{name}").stdout.strip()
    pid = json.loads(machine.niso("inspect", name).stdout)["pid"]
    assert (
        pid is None
        or machine.run("readlink", f"/proc/{pid}/ns/net").stdout.strip() == f"net:[{found}]"
    )
    return str(found)


def test_enable_gives_a_unit_that_follows_the_service(lab, machine) -> None:
    machine.niso("activate", echo(lab, "api", network=on("niso-default", ports=["8080:80"])))
    before = json.loads(machine.niso("inspect", "api").stdout)["pid"]
    machine.niso("firewall", "disable")
    done = machine.niso("enable", "api")
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.stdout.startswith("api: enabled  /etc/systemd/system/niso-api.service\n")
    assert lines == ["api:", "nftables.service:", "firewalld.service:"]
    assert machine.state("api") == RUNNING and is_followed(machine)
    assert pids(machine)[1] == before, "the service was restarted"
    assert machine.systemctl("is-enabled", "niso-api").stdout == "enabled\n"
    found = machine.run("systemd-analyze", "verify", "/etc/systemd/system/niso-api.service")
    assert found.stderr == "", "systemd-analyze only warns"
    assert "api already enabled" in machine.niso("enable", "api").stdout.replace(":", "")
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"


def test_restarts_of_any_kind_are_one_running_unit(lab, machine) -> None:
    """By hand, by a crash, by an activation of a changed manifest, by a repair."""
    manifest = {
        "service": {"restart_delay": "100ms"},
        "network": on("niso-default", ports=["8080:80"]),
    }
    enabled(machine, echo(lab, "api", **manifest))
    invocation = machine.show("api", "InvocationID", "ActiveEnterTimestampMonotonic")
    home = namespace(machine)

    def is_another(before: int) -> bool:
        now = json.loads(machine.niso("inspect", "api").stdout)["pid"]
        return (
            now not in (None, before)
            and row(machine)["status"] == "running"
            and is_followed(machine)
        )

    for what in ("restart", "crash", "crash", "restart", "activate", "crash", "repair"):
        before = pids(machine)[1]
        if what == "restart":
            machine.niso("restart", "api")
        elif what == "crash":
            machine.run("kill", "-KILL", str(before))
        elif what == "activate":
            echo(lab, "api", environment={"NEW": "1"}, **manifest)
            machine.niso("activate", "/tmp/packages/api")
        else:
            machine.run(
                "rm", "-r", "/run/niso/crun/niso-service-api"
            )  # which cannot be given back to a process that lives
            machine.niso("net", "repair")
        lab.wait_for(
            lambda b=before: is_another(b), 10, f"{what}: another process, which the unit follows"
        )
        assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
        assert namespace(machine) == home
        assert machine.state("api") == RUNNING
    assert machine.show("api", "InvocationID", "ActiveEnterTimestampMonotonic") == invocation, (
        "systemd started it again"
    )
    assert machine.show("api", "NRestarts") == {"NRestarts": "0"}


def test_stop_leaves_nothing_and_start_brings_all_back(lab, machine) -> None:
    enabled(machine, echo(lab, "api", network=on("niso-default", ports=["8080:80"])))
    machine.niso("port-forward", "api", "9000:80")
    (address,) = row(machine)["address"]
    machine.systemctl("stop", "niso-api")
    assert machine.state("api") == DEAD and machine.show("api", "Result") == {"Result": "success"}
    assert row(machine)["status"] == "inactive"
    assert machine.run("ls", "/run/netns").stdout == ""
    assert not [
        link
        for link in lab.ip_json("link")
        if link["ifname"].startswith("niso") and "master" in link
    ]
    assert machine.run("pgrep", "--full", "conmon", check=False).stdout == ""
    assert ask(lab, "192.0.2.1", 8080, "client") == ""
    machine.systemctl("start", "niso-api")
    assert machine.state("api") == RUNNING and is_followed(machine)
    assert row(machine)["address"] == [address]
    for port in (8080, 9000):
        assert answer(lab, "192.0.2.1", port, "client") == "api 192.0.2.2"
    machine.systemctl("restart", "niso-api")
    assert is_followed(machine)
    assert answer(lab, "192.0.2.1", 9000, "client") == "api 192.0.2.2"
    # a start that fails is undone
    machine.systemctl("stop", "niso-api")
    listener = lab.popen("/usr/bin/busybox", "nc", "-l", "-p", "8080")
    lab.wait_for(lambda: "8080" in lab.run("ss", "-ltn").stdout, 10)
    assert machine.systemctl("start", "niso-api", check=False).returncode != 0
    assert machine.state("api") == FAILED
    assert "8080/tcp is used by" in machine.journal("api")
    assert row(machine)["status"] == "inactive"
    listener.kill()
    listener.wait(10)
    machine.systemctl("start", "niso-api")
    assert machine.state("api") == RUNNING
    # by hand
    machine.niso("deactivate", "api")
    lab.wait_for(lambda: machine.state("api") == DEAD, 10, "the unit ends with the service")
    assert machine.show("api", "Result") == {"Result": "success"}
    machine.niso("activate", "api")
    assert machine.state("api") == RUNNING and is_followed(machine)
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    assert ask(lab, "192.0.2.1", 9000, "client") == "", "a forward ends with niso deactivate"


def test_an_end_for_good_is_the_units(lab, machine) -> None:
    """With its exit status; the service stays active, its address and ports too, and starts in the same namespace."""
    script = 'while test ! -e /tmp/end; do sleep 0.05; done; exit "$(cat /tmp/end)"'
    enabled(machine, package(lab, "api", "sh", "-c", script, service={"restart": "no"}))
    home = namespace(machine)
    for code, state in ((0, DEAD), (3, FAILED)):
        machine.niso(
            "exec",
            "api",
            "--",
            "sh",
            "-c",
            f"echo {code} > /tmp/new; mv /tmp/new /tmp/end",
            check=False,
        )
        lab.wait_for(lambda s=state: machine.state("api") == s, 10, state)
        assert machine.show("api", "ExecMainStatus") == {"ExecMainStatus": str(code)}
        assert row(machine)["status"] == f"exited ({code})"
        assert namespace(machine) == home
        if code == 0:
            machine.systemctl("start", "niso-api")
        else:
            machine.niso("restart", "api")
        assert machine.state("api") == RUNNING and is_followed(machine)
        assert namespace(machine) == home


def test_a_crash_loop_obeys_niso_alone(lab, machine) -> None:
    """The delay doubles; systemd sees one running unit the whole time."""
    enabled(
        machine,
        package(
            lab,
            "api",
            "sh",
            "-c",
            "echo began; sleep 0.3; exit 1",
            service={"restart_delay": "400ms"},
        ),
    )
    lab.wait_for(
        lambda: json.loads(machine.niso("inspect", "api").stdout)["restarts"] >= 2,
        20,
        "two restarts",
    )
    assert machine.state("api") == RUNNING
    assert machine.show("api", "NRestarts") == {"NRestarts": "0"}
    lab.wait_for(lambda: len(_stamps(machine)) >= 3, what="the second restart has said it")
    # on a busy machine it fails before it is enabled, too
    stamps = [float(line.split()[0]) for line in _stamps(machine)][-3:]
    gaps = [later - sooner for sooner, later in itertools.pairwise(stamps)]
    assert gaps[0] >= 0.7 and gaps[1] >= 1.1, gaps
    machine.systemctl("stop", "niso-api")
    assert row(machine)["status"] == "inactive"
    assert machine.run("pgrep", "--full", "niso.runtime.on_exit", check=False).stdout == ""
    # the journal has what the service says, and what niso says
    machine.systemctl("start", "niso-api")
    lab.wait_for(lambda: "began" in machine.journal("api").splitlines(), 10, "its line")
    assert "api: active" in machine.journal("api")


def _stamps(machine: Machine) -> list[str]:
    """Seconds of each ``began`` line."""
    code = (
        "import datetime, subprocess\n"
        "for line in subprocess.check_output(['niso', 'logs', '-t', 'api'], text=True).splitlines():\n"
        "    print(datetime.datetime.fromisoformat(line.split()[0]).timestamp())\n"
    )
    return str(machine.run("python", "-c", code).stdout).splitlines()


ONESHOT = """\
[Service]
Type=oneshot
TimeoutStopSec=20
ExecStart=/usr/bin/env PATH={path} niso activate {folder}
"""


def test_service_outlives_the_unit_or_session_that_activated_it(lab, machine) -> None:
    folder = echo(lab, "api", network=on("niso-default", ports=["8080:80"]))
    text = ONESHOT.format(path=lab.environment["PATH"], folder=folder)
    for stays in ("no", "yes"):
        unit = machine.path("/etc/systemd/system/deploy.service")
        unit.write_text(f"{text}RemainAfterExit={stays}\n")
        machine.systemctl("daemon-reload")
        machine.systemctl("start", "deploy", timeout=15)
        before = row(machine)
        machine.systemctl("stop", "deploy", timeout=15)
        shown = machine.systemctl("show", "--property=Result", "--value", "deploy").stdout
        assert shown == "success\n"
        is_the_service(lab, machine, before)
    scope = ("systemd-run", "--scope", "--quiet", "--unit=session")
    kill = f"niso activate {folder}; systemctl kill -s KILL session.scope"
    machine.run(*scope, "sh", "-c", kill, check=False)
    is_the_service(lab, machine, row(machine))


def is_the_service(lab: Lab, machine: Machine, before: dict[str, Any]) -> None:
    """The service runs on as ``before``, with its conmon in niso's cgroup, and is started again."""
    now = row(machine)
    assert (now["status"], now["uptime"] >= before["uptime"]) == ("running", True)
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    (conmon,) = machine.run("pgrep", "-x", "conmon").stdout.split()
    places = machine.path(f"/proc/{conmon}/cgroup").read_text().splitlines()
    own = [line for line in places if line.endswith("/.keepers")]
    assert any(":name=systemd:" in line or line.startswith("0::") for line in own)
    # v1's cpuset takes none, and what was in the root of a hierarchy stays there
    assert not any(line.endswith((".service", ".scope", ".slice")) for line in places), places
    pid = json.loads(machine.niso("inspect", "api").stdout)["pid"]
    machine.run("kill", "-KILL", str(pid))
    lab.wait_for(
        lambda: (
            row(machine)["status"] == "running"
            and pid != json.loads(machine.niso("inspect", "api").stdout)["pid"]
        ),
        10,
    )
    assert_whole(machine)
    machine.niso("remove", "api")
    assert machine.run("find", "/sys/fs/cgroup", "-name", "niso-*", check=False).stdout == ""


def test_disable_takes_the_unit_away_and_leaves_the_service(lab, machine) -> None:
    enabled(
        machine,
        echo(
            lab,
            "api",
            service={"restart_delay": "100ms"},
            network=on("niso-default", ports=["8080:80"]),
        ),
    )
    machine.niso("restart", "api")
    machine.run(
        "kill", "-KILL", str(pids(machine)[1])
    )  # what the exit command starts is wholly in the unit's cgroup
    lab.wait_for(
        lambda: row(machine)["status"] == "running" and is_followed(machine), 10, "running again"
    )
    before = pids(machine)[1]
    machine.niso("disable", "api")
    lab.wait_for(
        lambda: (
            machine.show("api", "LoadState", "ActiveState")
            == {"LoadState": "not-found", "ActiveState": "inactive"}
        ),
        10,
    )
    assert json.loads(machine.niso("inspect", "api").stdout)["pid"] == before
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    assert machine.run("find", "/etc/systemd/system", "-name", "niso-api*").stdout == ""
    assert_whole(machine)
    machine.run("kill", "-KILL", str(before))
    lab.wait_for(lambda: row(machine)["status"] == "running", 10, "niso still starts it again")
    assert "api not enabled" in machine.niso("disable", "api").stdout.replace(":", "")
    machine.niso("restart", "api")
    assert machine.show("api", "ActiveState") == {"ActiveState": "inactive"}
    machine.niso("enable", "api")
    machine.niso("remove", "api")
    assert machine.run("find", "/etc/systemd/system", "-name", "niso-api*").stdout == ""
    lab.wait_for(lambda: machine.show("api", "ActiveState") == {"ActiveState": "inactive"}, 10)


def test_a_unit_whose_conmon_was_killed_can_be_started_again(lab, machine) -> None:
    enabled(machine, echo(lab, "api", network=on("niso-default", ports=["8080:80"])))
    for first in ("by hand", "by systemd"):
        if first == "by systemd":
            machine.systemctl("restart", "niso-api")
        home = namespace(machine)
        machine.run("kill", "-KILL", str(pids(machine)[0]))
        lab.wait_for(lambda: machine.state("api") == FAILED, 10, "systemd sees that it has ended")
        machine.systemctl("start", "niso-api")
        assert machine.state("api") == RUNNING and is_followed(machine), first
        assert namespace(machine) == home
        assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
        assert_whole(machine)


def test_folders_with_odd_names(lab, machine) -> None:
    """systemd reads back what enable wrote."""
    odd = """/var/lib/o d%h'"$HOME" ü\\"""
    env = {"NISO_STATE_DIR": odd, "NISO_RUN_DIR": "/run/niso %i", "NISO_POOL": "10.77.0.0/16"}
    machine.niso(
        "activate", echo(lab, "api", network=on("niso-default", ports=["8080:80"])), env=env
    )
    machine.niso("enable", "api", env=env)
    machine.systemctl("restart", "niso-api")
    assert machine.state("api") == RUNNING
    rows = json.loads(machine.niso("ps", "--json", env=env).stdout)
    assert [(each["status"], each["address"]) for each in rows] == [("running", ["10.77.0.2"])]
    assert (
        machine.run("systemd-analyze", "verify", "/etc/systemd/system/niso-api.service").stderr
        == ""
    )
    machine.systemctl("stop", "niso-api")
    assert json.loads(machine.niso("ps", "--json", env=env).stdout)[0]["status"] == "inactive"
    machine.niso("remove", "api", env=env)
    machine.niso("firewall", "disable", env=env)
    machine.niso("reset", "--yes", env=env)


def test_sharer_starts_after_and_stops_with_its_provider(lab, machine) -> None:
    machine.niso("activate", echo(lab, "api", network=on("niso-default", ports=["8080:80"])))
    machine.niso("activate", echo(lab, "side", 81, network={"mode": "share", "share": "api"}))
    done = machine.niso("enable", "side", check=False)
    assert done.returncode == 1 and "hint: niso enable api side" in done.stderr
    machine.niso("enable", "api", "side")
    done = machine.niso("disable", "api", check=False)
    assert done.returncode == 1 and "hint: niso disable side api" in done.stderr
    assert is_followed(machine, "api") and is_followed(machine, "side")
    machine.systemctl("stop", "niso-api")
    assert [row(machine, name)["status"] for name in ("api", "side")] == ["inactive", "inactive"]
    machine.systemctl("start", "niso-side")
    assert [machine.state(name) for name in ("api", "side")] == [RUNNING, RUNNING]
    machine.systemctl("restart", "niso-api")
    lab.wait_for(lambda: machine.state("side") == RUNNING and is_followed(machine, "side"), 10)
    machine.niso("restart", "api")
    assert is_followed(machine, "api") and is_followed(machine, "side")
    assert machine.show("side", "Result") == {"Result": "success"}
    # those that are not enabled stop with it too
    machine.niso("disable", "side")
    machine.systemctl("stop", "niso-api")
    assert machine.state("api") == DEAD
    assert [row(machine, name)["status"] for name in ("api", "side")] == ["inactive", "inactive"]
    assert machine.run("ls", "/run/netns").stdout == ""
