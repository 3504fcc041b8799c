"""Test health checks of real services: activate waits for them, ps shows the last result."""

from __future__ import annotations

import json
import time
from typing import Any

from conftest import Lab
from services import BUSYBOX, idle, inspect, package, pid_of, ps, refused

PYTHON = "/usr/bin/python3"

# A server whose answers depend on the path, or on the one in /tmp/path while that exists. It counts connections.
SERVER = r"""
import os, signal, socket, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)
host, _, port = sys.argv[1].rpartition(":")
family = socket.AF_INET6 if ":" in host else socket.AF_INET
server = socket.create_server((host, int(port)), family=family, backlog=64)
asked = 0
while True:
    connection, _ = server.accept()
    asked += 1
    open("/tmp/asked", "w").write(str(asked))
    if os.fork():
        connection.close()
        continue
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)  # what it says when the probe hangs up
    request = b""
    while b"\r\n\r\n" not in request:
        block = connection.recv(4096)
        if not block:
            os._exit(0)
        request += block
    path = request.split()[1].decode()
    if os.path.exists("/tmp/path"):
        path = open("/tmp/path").read()
    if path == "/slow":
        time.sleep(2)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    else:
        connection.sendall(f"HTTP/1.0 {path[1:]} X\r\n\r\n".encode())
    os._exit(0)
"""


def server(
    lab: Lab, name: str, *args: str, check: dict[str, Any], **sections: dict[str, Any]
) -> str:
    command = (PYTHON, "-ISu", "/app/server.py", *args)
    return package(lab, name, *command, files={"server.py": SERVER}, healthcheck=check, **sections)


def asked(lab: Lab, name: str) -> int:
    return int(lab.niso("exec", name, "--", BUSYBOX, "cat", "/tmp/asked").stdout)


def answer_as(lab: Lab, name: str, path: str) -> None:
    """Have the server answer as to a request of ``path``, whatever it is asked for."""
    script = f"printf %s {path} >/tmp/path.new && mv /tmp/path.new /tmp/path"
    lab.niso("exec", name, "--", BUSYBOX, "sh", "-c", script)


def http(path: str, **keys: Any) -> dict[str, Any]:
    return {"http": f"http://127.0.0.1:8080{path}", **keys}


SOON = {"interval": "100ms", "timeout": "300ms", "retries": 2, "start_period": "2s"}


# --- activate --------------------------------------------------------------------------------------------------------


def test_activate_waits_until_the_service_is_healthy(lab: Lab) -> None:
    """Not for a whole interval; also where it listens on ::1 or on its own address alone."""
    slow = {"tcp": 8080, "interval": "400s", "start_period": "500s"}
    addresses = {"six": "::1:8080", "own": "10.99.0.4:8080"}
    folders = [server(lab, "api", ":8080", "1", check=slow)] + [
        server(lab, name, at, check={"tcp": 8080, **SOON}) for name, at in addresses.items()
    ]
    words = "".join(str(lab.niso("activate", "-v", folder).stderr) for folder in folders)
    for name in ("api", *addresses):
        assert f"start {name}" in words and f"{name} is healthy" in words
        assert ps(lab, name)["health"] == "healthy"
    assert asked(lab, "api") >= 1


def test_failed_probe_undoes_the_activation_and_is_told(lab: Lab) -> None:
    said = refused(lab, "activate", server(lab, "api", ":8080", check=http("/404", **SOON)))
    why = "http://127.0.0.1:8080/404: status 404"
    assert f"api: is unhealthy, the probe failed 2 times: {why}" in said
    # another server of that port, on the host, is another one
    host = lab.popen(
        PYTHON, "-c", "import socket, time; s = socket.create_server(('', 81)); time.sleep(1000)"
    )
    lab.wait_for(lambda: ":81 " in lab.run("ss", "-ltn").stdout)
    shell = ("/bin/sh", "-c", "echo no such table; exec sleep 1000")
    said = refused(lab, "activate", package(lab, "api", *shell, healthcheck={"tcp": 81, **SOON}))
    assert "tcp 81: connection refused (127.0.0.1); last output:\n    no such table" in said
    host.kill()
    check = {"tcp": 81, "start_period": "400s"}
    dies = ("/bin/sh", "-c", "sleep 0.7; echo lost it; exit 3")
    said = refused(lab, "activate", package(lab, "api", *dies, healthcheck=check))
    why = "its process ended before it was healthy (exit status 3)"
    assert f"{why}; last output:\n    lost it" in said
    assert json.loads(lab.niso("ps", "--json").stdout) == []
    assert "niso-api" not in lab.run("ip", "netns").stdout
    assert lab.run("find", "/run/niso/health", "-type", "f", check=False).stdout == ""


# --- ps and inspect --------------------------------------------------------------------------------------------------


def test_service_that_falls_ill_is_unhealthy_and_is_left_alone(lab: Lab) -> None:
    lab.niso("activate", server(lab, "api", ":8080", check=http("/200", **SOON)))
    pid = pid_of(lab, "api")
    answer_as(lab, "api", "/500")
    lab.wait_for(lambda: ps(lab, "api")["health"] == "unhealthy", 10)
    found = inspect(lab, "api")
    assert (found["health"], found["pid"]) == ("unhealthy", pid)
    assert found["health_said"] == "http://127.0.0.1:8080/200: status 500"
    assert "unhealthy" in lab.niso("ps").stdout
    lab.niso("exec", "api", "--", BUSYBOX, "rm", "/tmp/path")
    lab.wait_for(lambda: ps(lab, "api")["health"] == "healthy", 10)
    assert inspect(lab, "api")["health_said"] is None


def test_health_of_what_has_none_does_not_run_or_was_started_again(lab: Lab) -> None:
    check = {"tcp": 8080, "interval": "100ms", "start_period": "60s"}
    lab.niso(
        "activate",
        idle(lab, "plain"),
        server(lab, "once", ":8080", check={"tcp": 8080}, service={"restart": "no"}),
        server(lab, "api", ":8080", "2", check=check, service={"restart_delay": "10ms"}),
    )
    assert ps(lab, "plain")["health"] is None
    for name in ("once", "api"):
        lab.run("kill", "-9", str(pid_of(lab, name)))
    lab.wait_for(lambda: ps(lab, "api")["health"] == "starting", 10)
    lab.wait_for(lambda: ps(lab, "api")["health"] == "healthy", 10)
    lab.wait_for(lambda: ps(lab, "once")["status"].startswith("exited"), 10)
    assert ps(lab, "once")["health"] is None and inspect(lab, "once")["health"] is None
    lab.niso("deactivate", "once", "api")
    assert ps(lab, "once")["health"] is None
    assert lab.run("find", "/run/niso/health", "-type", "f").stdout == ""


def test_no_list_waits_for_a_probe(lab: Lab) -> None:
    """Probes of six services hang for a minute. All lists answer with the last health."""
    keys = {"interval": "200ms", "timeout": "60s"}
    names = [f"api{number}" for number in range(6)]
    lab.niso("activate", *(server(lab, n, ":8080", check=http("/200", **keys)) for n in names))
    for name in names:
        lab.niso("exec", name, "--", BUSYBOX, "killall", "-STOP", "python3", check=False)
    lab.niso("ps")  # the probes begin
    states = ("ss", "-Htn", "state", "established", "dport = :8080")
    lab.wait_for(lambda: all(lab.run(*states, netns=f"niso-{name}").stdout for name in names), 30)
    began = time.monotonic()
    rows = json.loads(lab.niso("ps", "--json").stdout)
    assert {row["health"] for row in rows} == {"healthy"}
    assert all(row["health_age"] > 0 for row in rows)
    assert "healthy" in lab.niso("ps").stdout and " ago " in lab.niso("ps").stdout
    metrics = lab.run("niso", "metrics").stdout
    assert metrics.count("niso_service_healthy{") == 6
    assert metrics.count("niso_service_health_probe_time_seconds{") == 6
    top = json.loads(lab.run("niso", "top", "-n", "1", "--json").stdout)
    assert {row["health"] for row in top["services"]} == {"healthy"}
    assert time.monotonic() - began < 50  # a single probe takes 60 s
    for name in names:
        lab.niso("exec", name, "--", BUSYBOX, "killall", "-CONT", "python3")


def test_many_ps_at_once_ask_once(lab: Lab) -> None:
    lab.niso(
        "activate", server(lab, "api", ":8080", check=http("/slow", interval="20s", timeout="10s"))
    )
    lab.run("rm", "/run/niso/health/api.json")
    before = asked(lab, "api")
    looks = [lab.popen("niso", "ps", "--json") for _ in range(5)]
    for look in looks:
        assert json.loads(look.communicate()[0])[0]["health_age"] is None
    lab.wait_for(lambda: ps(lab, "api")["health"] == "healthy", 30)
    assert asked(lab, "api") == before + 1


def test_unhealthy_service_is_stopped_on_request(lab: Lab) -> None:
    check = http("/200", **SOON, on_unhealthy="stop")
    lab.niso("activate", server(lab, "api", ":8080", check=check, network={"ports": ["8080:8080"]}))
    assert ps(lab, "api")["status"] == "running"
    answer_as(lab, "api", "/500")
    lab.wait_for(lambda: ps(lab, "api")["status"] == "inactive", 30)
    assert ps(lab, "api")["health"] is None
    assert "niso-api" not in lab.run("ip", "netns").stdout
    agent = ("pgrep", "-f", "niso.change.health_agent")
    lab.wait_for(lambda: not lab.run(*agent, check=False).stdout, 30, "no service needs the agent")


# --- commands ------------------------------

SLOW = {"interval": "100ms", "timeout": "500ms", "retries": 2, "start_period": "0s"}


def test_command_runs_inside_as_the_service_and_its_output_stays_there(lab: Lab) -> None:
    """It sees the service's files, user and network; what it prints is nowhere in niso's output."""
    script = "sleep 0.4; touch /run/ready; while :; do nc -l -p 80 </dev/null >/dev/null; done"
    ask = "echo secret$SECRET; id -u >/run/uid; test -e /run/ready && nc -z 127.0.0.1 80"
    check = {"command": ["sh", "-c", ask], "interval": "100ms", "timeout": "5s"}
    web = package(
        lab,
        "web",
        BUSYBOX,
        "sh",
        "-c",
        script,
        healthcheck=check,
        environment={"SECRET": "sauce"},
        service={"user": "4321"},
    )
    said = lab.niso("activate", "-v", web)
    assert "web is healthy" in said.stderr
    assert lab.niso("exec", "web", "--", "cat", "/run/uid").stdout == "4321\n"
    row = ps(lab, "web")
    assert row["health"] == "healthy"
    lab.niso("exec", "web", "--", "rm", "/run/ready")
    lab.wait_for(lambda: ps(lab, "web")["health"] == "unhealthy", 20)
    inspected = lab.niso("inspect", "web").stdout
    assert json.loads(inspected)["health_said"] == "command sh: exit status 1"
    assert "secretsauce" not in inspected + said.stdout + said.stderr
    assert "secretsauce" not in lab.niso("logs", "web").stdout


def test_command_that_is_late_or_missing_is_a_failure_and_leaves_nothing(lab: Lab) -> None:
    """A late one is killed with what it has started, however much it writes and ignores."""
    late = "trap '' TERM; sleep 4711 & while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
    folder = package(
        lab, "web", BUSYBOX, "sleep", "1000", healthcheck={"command": ["sh", "-c", late], **SLOW}
    )
    error = refused(lab, "activate", folder)
    assert "is unhealthy, the probe failed 2 times: command sh: has not ended within 0.5s" in error
    folder = package(
        lab, "web", BUSYBOX, "sleep", "1000", healthcheck={"command": ["nope"], **SLOW}
    )
    error = refused(lab, "activate", folder)
    assert "command nope: web: 'nope' is not on its PATH" in error
    says = "echo earlier; printf '\\033no table\\n' >&2; exit 3"
    folder = package(
        lab, "web", BUSYBOX, "sleep", "1000", healthcheck={"command": ["sh", "-c", says], **SLOW}
    )
    error = refused(lab, "activate", folder)
    assert "2 times: command sh: exit status 3; it said: \\x1bno table\n" in error
    shell = {"command": ["sh", "-c", "(sleep 4712 &) ; " + late], **SLOW, "start_period": "1m"}
    folder = package(lab, "web", BUSYBOX, "sleep", "1000", healthcheck=shell)
    refused(lab, "activate", "--timeout", "1s", folder)
    shell["command"] = ["sh", "-c", f"sleep 4713 & test ! -e /run/bad || {{ {late}; }}"]
    lab.niso("activate", package(lab, "web", BUSYBOX, "sleep", "1000", healthcheck=shell))
    lab.niso("exec", "web", "--", "touch", "/run/bad")
    lab.wait_for(lambda: ps(lab, "web")["health"] == "unhealthy", 20)
    lab.run("rm", "/run/niso/health.asked")  # the agent probes no more
    lab.wait_for(
        lambda: len(lab.run("ip", "netns", "pids", "niso-web").stdout.split()) == 2,
        20,
        "PID 1 and sleep alone",
    )
    left = lab.run("find", "/run/niso/services/web", "-name", "exec-*").stdout
    assert left == ""
