"""Give units of systemd networks of niso: by ``--unit``, and by the file that docs/guide/systemd.md has."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from typing import Any

import pytest
from conftest import Lab
from machine import UNITS, Machine, needs_systemd, row
from pages import ROOT
from services import BUSYBOX, CLIENT, HOST, echo, on, package
from test_deploy import web

GUIDE = ROOT / "docs/guide/systemd.md"
FILE = re.compile(r"```ini\n# (/etc/\S+)\n(.*?)```", re.DOTALL)
SERVE = """\
import socket
server = socket.create_server(("", 80), backlog=64)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
UNIT = """\
[Service]
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
Restart=on-failure
RestartSec=0
ExecStart=/usr/bin/python3 -ISu /etc/serve.py
"""


def write(machine: Machine, path: str, text: str) -> None:
    file = pathlib.Path(f"{machine.disk}{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("/usr/local/bin/niso", f"{sys.prefix}/bin/niso"))


def rows(machine: Machine) -> dict[str, str]:
    """Service -> its address."""
    return {
        row["service"]: "".join(row["address"][:1])
        for row in json.loads(machine.niso("ps", "--json").stdout)
    }


@pytest.mark.first
@needs_systemd
def test_units_have_networks_of_niso(lab: Lab) -> None:
    machine = Machine(lab)
    ((path, text),) = FILE.findall(GUIDE.read_text())
    write(machine, path, text)
    write(machine, "/etc/serve.py", SERVE)
    for name in ("web", "private"):
        write(machine, f"/{UNITS}/{name}.service", UNIT)
    machine.systemctl("daemon-reload")
    machine.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    machine.niso("activate", *(echo(lab, name, network=on("backend")) for name in ("api", "bad")))
    machine.systemctl("start", "web", "private")

    def ask(source: str, address: str) -> str:
        words = (BUSYBOX, "nc", "-w1", address, "80")
        inside = ("nsenter", f"--net=/run/netns/niso-{source}")
        return str(machine.run(*inside, *words, input="", check=False).stdout)

    def from_client(port: str) -> str:
        words = (BUSYBOX, "nc", "-w1", HOST, port)
        return str(lab.client(*words, input="", check=False).stdout)

    def files() -> list[str]:
        inside = ("find", f"/{UNITS}", "-name", "niso-net@*", "-o", "-path", "*/web.service.d*")
        return sorted(machine.run(*inside).stdout.split())

    attach = ("net", "attach", "web", "--new", "--unit", "web", "--network", "backend")
    policy = ("--allow-from", "api 192.0.2.0/24")
    # what cannot be leaves nothing
    for words, reason in (
        ((*attach[:-3], "nowhere"), "has no unit 'nowhere.service'"),
        ((*attach[:-1], "backend,ip=10.98.0.9"), "10.98.0.9"),
        ((*attach, "--id", "x"), "--unit sets --owner and --id"),
        (("net", "attach", "web", "--pid", "1", "--unit", "web"), "--unit needs --new"),
    ):
        assert reason in machine.niso(*words, check=False).stderr
    assert files() == [] and "web" not in rows(machine)
    pid = machine.systemctl("show", "-P", "MainPID", "web").stdout
    made = machine.niso(*attach, *policy, "-p", "8080:80")
    assert made.stdout == "web: attached  10.99.1.5  8080→80\n"
    assert "web.service is in this network only from its next start on" in made.stderr
    assert machine.systemctl("show", "-P", "MainPID", "web").stdout == pid
    assert from_client("8080") == "", "the unit still runs in the host's network"
    machine.systemctl("restart", "web")
    addresses = rows(machine)
    web, api, private = (addresses[name] for name in ("web", "api", "private"))
    lab.wait_for(lambda: ask("api", web) == api, 5, "the unit's answer")
    assert ask("bad", web) == "" and from_client("8080") == CLIENT
    lab.wait_for(lambda: ask("api", private) == api, 5, "the other unit's answer")
    assert machine.niso("net", "check").stdout.startswith("OK")
    checked = machine.run(
        "systemd-analyze", "verify", *(f"/{UNITS}/{n}.service" for n in ("web", "niso-net@web"))
    )
    assert checked.stderr == ""
    # the same again, another port without a restart, and another unit
    assert machine.niso(*attach, *policy, "-p", "8080:80").stdout.startswith("web: unchanged")
    pid = machine.systemctl("show", "-P", "MainPID", "web").stdout
    machine.niso(*attach, *policy, "-p", "8081:80")
    assert (from_client("8080"), from_client("8081")) == ("", CLIENT)
    assert machine.systemctl("show", "-P", "MainPID", "web").stdout == pid
    other = ("net", "attach", "second", "--new", "--unit", "web")
    assert "web.service has a network already" in machine.niso(*other, check=False).stderr
    assert len(files()) == 3
    # the process ends, and comes back into the same namespace
    machine.systemctl("kill", "--signal=KILL", "web")
    lab.wait_for(lambda: ask("api", web) == api, 5, "its answer after the restart")
    assert rows(machine)["web"] == web and ask("bad", web) == ""
    # as after a reboot: the start of the unit brings its network
    machine.systemctl("stop", "niso-net@web")
    assert machine.systemctl("is-active", "web", check=False).stdout == "inactive\n"
    assert "web" not in rows(machine)
    machine.systemctl("start", "web")
    assert rows(machine)["web"] == web
    lab.wait_for(lambda: from_client("8081") == CLIENT, 5, "its answer")
    assert ask("bad", web) == ""
    # another namespace of the other unit has the same address
    machine.systemctl("restart", "private")
    assert rows(machine)["private"] == private
    lab.wait_for(lambda: ask("api", private) == api, 5, "its answer")
    machine.systemctl("stop", "private")
    # the unit runs on without a network, then in the host's
    pid = machine.systemctl("show", "-P", "MainPID", "web").stdout
    done = machine.niso("net", "detach", "web")
    assert done.stdout == "web: detached\n" and "has no network now" in done.stderr
    assert machine.systemctl("show", "-P", "MainPID", "web").stdout == pid
    inside = ("nsenter", "-t", pid.strip(), "--net", "ip", "-br", "link")
    assert machine.run(*inside).stdout.split()[0] == "lo"
    assert machine.run(*inside).stdout.count("\n") == 1
    assert files() == [] and sorted(rows(machine)) == ["api", "bad"]
    assert machine.niso("net", "detach", "web").stdout == "web: not attached\n"
    machine.systemctl("restart", "web")
    lab.wait_for(lambda: from_client("80") == CLIENT, 5, "its answer in the host's network")
    assert machine.niso("net", "check").stdout.startswith("OK")

    # the agent of Kubernetes' policies is one more unit
    enable = ("kubernetes", "enable", "--kubeconfig", "/etc/kubeconfig")
    assert "no such file" in machine.niso(*enable, check=False).stderr
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:7443"}}],
    }
    write(machine, "/etc/kubeconfig", json.dumps(config))
    agent = "niso_kubernetes.service"
    assert machine.niso(*enable).stdout == f"{agent}: enabled  /{UNITS}/{agent}\n"
    assert machine.niso(*enable).stdout.startswith(f"{agent}: unchanged")
    wants = machine.systemctl("show", "-P", "WantedBy", agent).stdout
    assert wants == "multi-user.target\n"
    machine.systemctl("kill", "--signal=KILL", agent)
    lab.wait_for(
        lambda: (
            machine.systemctl("show", "-P", "NRestarts", agent).stdout == "1\n"
            and machine.systemctl("is-active", agent, check=False).stdout == "active\n"
        ),
        15,
        "its restart",
    )
    assert "Connection refused" in machine.run("journalctl", "-u", agent).stdout
    assert "runs already" in machine.niso(*enable[:1], *enable[2:], check=False).stderr
    checked = machine.run("systemd-analyze", "verify", f"/{UNITS}/{agent}")
    assert checked.stderr == ""
    assert machine.niso("kubernetes", "disable").stdout.startswith(f"{agent}: disabled")
    assert machine.systemctl("is-active", agent, check=False).stdout == "inactive\n"
    assert machine.run("find", f"/{UNITS}", "-name", f"{agent}*").stdout == ""


@pytest.mark.first
@needs_systemd
def test_niso_health_has_a_unit_while_a_service_needs_it(lab: Lab) -> None:
    machine = Machine(lab)
    check = {"http": "http://127.0.0.1/0", "interval": "1s", "timeout": "1s", "retries": 2}
    httpd = (BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/app")
    machine.niso(
        "activate",
        web(lab, "v1"),
        package(
            lab,
            "plain",
            *httpd,
            files={"0": "well\n"},
            healthcheck=check | {"on_unhealthy": "restart"},
        ),
    )

    def unit(key: str) -> str:
        shown = machine.systemctl("show", "--value", f"--property={key}", "niso_health.service")
        return str(shown.stdout).strip()

    def pid(service: str) -> int:
        return int(json.loads(machine.niso("inspect", service, "--json").stdout)["pid"] or 0)

    lab.wait_for(lambda: unit("ActiveState") == "active", 30)
    first = unit("MainPID")
    machine.run("kill", "-KILL", first)
    lab.wait_for(lambda: unit("ActiveState") == "active" and unit("MainPID") != first, 60)
    before = pid("plain")
    server = machine.run("pgrep", "-P", str(before)).stdout.split()[0]
    machine.run("kill", "-STOP", server)
    lab.wait_for(lambda: pid("plain") not in (0, before), 60)
    machine.systemctl("stop", "niso_health.service")  # nothing of the services is in its cgroup
    assert pid("plain") not in (0, before)
    machine.niso("activate", package(lab, "other", BUSYBOX, "sleep", "1000"))
    lab.wait_for(lambda: unit("ActiveState") == "active", 60)
    machine.niso("remove", "web", "plain")
    lab.wait_for(lambda: unit("ActiveState") == "inactive", 60)
    assert unit("Result") == "success"


@pytest.mark.first
@needs_systemd
def test_job_with_a_schedule_runs_when_its_timer_elapses_and_not_before(lab: Lab) -> None:
    """The timer runs it with the service's network; its failure is the unit's, and the next time is tried again."""
    machine = Machine(lab)
    script = "date +%s; cat /sys/class/net/eth0/operstate; test ! -e /data/fail"
    machine.run("install", "-d", "-m", "777", "/srv/data")
    tables: dict[str, Any] = {"volumes": {"data": {"mount": "/data", "host": "/srv/data"}}}

    def job(schedule: str) -> str:
        service = {"kind": "job", "schedule": schedule}
        return package(lab, "backup", BUSYBOX, "sh", "-c", script, service=service, **tables)

    done = machine.niso("activate", job("*-*-* 03:00"))
    assert "backup: nothing runs it on its schedule" in done.stderr
    assert row(machine, "backup")["status"] == "scheduled"
    assert machine.niso("logs", "backup").stdout == "" and machine.niso("net", "check").stdout
    assert machine.niso("enable", "backup").stdout.startswith("backup: enabled")
    shown = row(machine, "backup")
    assert shown["next_run"].partition("T")[2].startswith("03:00:00") and not shown["last_run"]
    assert "NEXT RUN" in machine.niso("ps").stdout
    # by hand
    machine.niso("restart", "backup")
    shown = row(machine, "backup")
    assert shown["status"] == "completed" and shown["last_run"] <= shown["ended_at"]
    assert machine.niso("logs", "backup").stdout.count("up") == 1
    # the changed schedule applies at once: every two seconds
    machine.niso("activate", job("*:*:0/2"))
    lab.wait_for(lambda: machine.niso("logs", "backup").stdout.count("up") >= 3, 20, "two runs")
    # a run that fails
    machine.run("touch", "/srv/data/fail")
    lab.wait_for(lambda: machine.show("backup", "Result")["Result"] == "exit-code", 20)
    lab.wait_for(lambda: row(machine, "backup")["status"] == "exited (1)", 20)
    machine.run("rm", "/srv/data/fail")
    lab.wait_for(lambda: row(machine, "backup")["status"] == "completed", 20, "the next run")
    # deactivate stops the timer, and activate starts it again
    machine.niso("deactivate", "backup")
    count = machine.niso("logs", "backup").stdout.count("up")
    assert not lab.observed(lambda: machine.niso("logs", "backup").stdout.count("up") > count, 4)
    assert row(machine, "backup")["next_run"] is None
    # as after a reboot, when the time comes
    machine.systemctl("start", "niso-backup")
    assert row(machine, "backup")["status"] == "completed"
    count += 1
    assert machine.niso("logs", "backup").stdout.count("up") == count
    machine.niso("activate", "backup")
    lab.wait_for(lambda: machine.niso("logs", "backup").stdout.count("up") > count, 20)
    # without a schedule it is a job like any other
    machine.niso("activate", package(lab, "backup", BUSYBOX, "true", service={"kind": "job"}))
    units = machine.run("ls", f"/{UNITS}").stdout
    assert "niso-backup.timer" not in units and "niso-backup.service" in units
    machine.niso("activate", job("*:*:0/2"))
    machine.niso("disable", "backup")
    assert "niso-backup" not in machine.run("find", f"/{UNITS}").stdout
    assert "0 timers" in machine.systemctl("list-timers", "--all", "niso-*").stdout
    machine.niso("activate", job("03:00 Europe/Nowhere"))
    done = machine.niso("enable", "backup", check=False)
    assert done.returncode == 1 and "Europe/Nowhere" in done.stderr
    assert "niso-backup" not in machine.run("find", f"/{UNITS}").stdout
