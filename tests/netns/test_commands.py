"""Test output and exit status of exec, logs, ps, inspect, schema, help and invalid usage."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from typing import Any

from conftest import Lab
from services import echo, idle, inspect, on, package, pid_of, process_below, refused

# --- ps and inspect ---------------------------------------------------------------------------------------------------


def test_ps_and_inspect_show_what_the_kernel_has(lab: Lab) -> None:
    columns = lab.niso("ps").stdout
    assert columns.split() == ["SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME"]
    assert lab.niso("ps", "--json").stdout == "[]\n"
    network = on("backend", ports=["8080:80", "443:443"], hostname="front", aliases=["web"])

    def ends(name: str, status: int, **service: str) -> str:
        return package(lab, name, "sh", "-c", f"sleep 0.3; exit {status}", service=service)

    lab.niso("activate", echo(lab, "api", network=network), idle(lab, "off"))
    lab.niso("activate", ends("job", 3, restart="no"), ends("crash", 5, restart_delay="10ms"))
    lab.niso("activate", ends("loop", 1, restart="always", restart_delay="1m"))
    lab.niso("deactivate", "off")
    wanted = {"api": "running", "job": "exited (3)", "loop": "restarting", "off": "inactive"}

    def shown() -> dict[str, Any]:
        return {row["service"]: row for row in json.loads(lab.niso("ps", "--json").stdout)}

    lab.wait_for(lambda: wanted.items() <= {n: row["status"] for n, row in shown().items()}.items())
    lab.wait_for(lambda: inspect(lab, "crash")["restarts"] >= 2, 20)
    lab.niso("deactivate", "crash")
    rows = shown()
    assert rows["crash"]["status"] == "inactive"
    port = {"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "proto": "tcp"}
    assert rows["api"]["ports"] == [port, port | {"host_port": 443, "container_port": 443}]
    assert rows["api"]["uptime"] > 0 and rows["off"]["uptime"] is None
    api = lab.niso("ps").stdout.splitlines()[1]
    assert re.fullmatch(r"api +running +- +bridge +10\.99\.1\.2 +8080→80, 443→443 +\d+s", api)
    found = inspect(lab, "front")
    end = found["endpoints"][0]
    inner = lab.ip_json("address", "show", "eth0", netns="niso-api")[0]
    assert end["mac"] == inner["address"] and end["mtu"] == inner["mtu"]
    assert end["address"] == [inner["addr_info"][0]["local"]]
    link = next(link for link in lab.ip_json("link") if link["ifname"] == end["host_interface"])
    assert link["master"] == end["bridge"] == "niso-backend"
    assert link["ifindex"] == inner["link_index"]
    assert found["names"] == ["front", "api", "web"]
    spaces = (found["netns"], f"/proc/{found['pid']}/ns/net")
    assert len({os.stat(lab.path(path)).st_ino for path in spaces}) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["activated_at"])
    assert found["manifest"]["network"]["ports"] == ["8080:80", "443:443"]
    assert lab.path(found["package"]).is_dir()


# --- logs -------------------------------------------------------------------------------------------------------------


def test_logs_give_what_it_wrote_to_both_outputs_line_by_line(lab: Lab) -> None:
    script = "echo one; echo two >&2; printf 'no newline'; sleep 1000"
    lab.niso("activate", package(lab, "api", "sh", "-c", script))
    lab.wait_for(lambda: "no newline" in lab.niso("logs", "api").stdout)
    assert lab.niso("logs", "api").stdout.splitlines() == ["one", "two", "no newline"]
    assert lab.niso("logs", "api.niso.local", "-n", "2").stdout.splitlines() == [
        "two",
        "no newline",
    ]
    assert lab.niso("logs", "api", "-n", "0").stdout == ""
    assert re.match(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* one\n", lab.niso("logs", "-t", "api").stdout
    )
    lab.niso("deactivate", "api")
    assert lab.niso("logs", "api").stdout.startswith("one\n")
    refused(lab, "logs", "api", "-n", "-1", status=2)
    lab.niso("remove", "api")
    assert "'api'" in refused(lab, "logs", "api")
    assert not lab.path("/var/lib/niso/logs/api").exists()


def test_logs_follow_a_restart_and_escape_control_bytes_on_a_terminal(lab: Lab) -> None:
    lab.niso("activate", package(lab, "api", "sh", "-c", r"printf 'a\033[2Jb\tc\n'; sleep 1000"))
    follow = lab.popen("niso", "logs", "-f", "api")
    assert follow.stdout and follow.stdout.readline() == b"a\x1b[2Jb\tc\n"
    near, far = pty.openpty()
    try:
        process = lab.popen("niso", "logs", "api", stdin=far, stdout=far, stderr=far, tty=True)
        os.close(far)
        assert process.wait(10) == 0
        assert os.read(near, 1000) == b"a\\x1b[2Jb\tc\r\n"
    finally:
        os.close(near)
    lab.niso("restart", "api")
    assert follow.stdout.readline() == b"a\x1b[2Jb\tc\n"
    follow.send_signal(2)
    assert follow.wait(10) == 130


# --- exec -------------------------------------------------------------------------------------------------------------


STATUSES = (
    (["sh", "-c", "exit 42"], 42),
    (["true"], 0),
    (["no-such-command"], 127),
    (["/etc/hosts"], 126),
    (["sh", "-c", "kill -9 $$"], 137),
    (["sh", "-c", "kill -15 $$"], 143),
)


def test_exec_runs_a_command_as_the_service(lab: Lab) -> None:
    """It has namespaces, root, user and environment of the service, and stdin and outputs of niso."""
    names = {"hostname": "front", "aliases": ["web"]}
    lab.niso("activate", idle(lab, "api", network=names, environment={"LEVEL": "info"}))
    assert lab.niso("exec", "web.niso.local", "--", "hostname").stdout == "front\n"
    script = "id -u; hostname; pwd; echo $LEVEL; readlink /proc/self/ns/net; grep -h -e CapEff -e NoNewPrivs /proc/self/status"
    found = lab.niso("exec", "api", "--", "sh", "-c", script).stdout.splitlines()
    inode = os.stat(lab.path("/run/netns/niso-api")).st_ino
    assert found[1:5] == ["front", "/app", "info", f"net:[{inode}]"]
    own = process_below(lab, pid_of(lab, "api"))
    assert found[0] == lab.run("stat", "-c", "%u", f"/proc/{own}").stdout.strip()
    assert found[5].split()[1] == "0" * 16 and found[6].split()[1] == "1"
    assert lab.niso("exec", "api", "echo", "without dashes").stdout == "without dashes\n"
    for command, status in STATUSES:
        assert lab.niso("exec", "api", "--", *command, check=False).returncode == status, command
    data = bytes(range(256)) * 4096
    assert lab.niso("exec", "api", "--", "cat", input=data, text=False).stdout == data
    done = lab.niso("exec", "api", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    # files of the caller keep their owner
    lab.run("sh", "-c", "umask 077; niso exec api -- echo hello > /tmp/out < /dev/null 2> /tmp/err")
    for path in ("/tmp/out", "/tmp/err", "/dev/null"):
        assert lab.run("stat", "-c", "%u:%g", path).stdout == "0:0\n"
    assert lab.path("/tmp/out").read_text() == "hello\n"
    # failures of niso itself
    lab.niso("deactivate", "api")
    assert "'api' is not active" in refused(lab, "exec", "api", "--", "true", status=125)
    assert "nothing" in refused(lab, "exec", "nothing", "--", "true", status=125)
    refused(lab, "exec", "api", status=125)


# --- progress ---------------------------------------------------------------------------------------------------------


def test_what_takes_over_a_second_is_told(lab: Lab) -> None:
    """A service that does not end by itself, and a lock that somebody else has."""
    script = "trap '' TERM; while :; do sleep 0.1; done"
    stubborn = package(lab, "slow", "sh", "-c", script, service={"stop_timeout": "2s"})
    lab.niso("activate", stubborn, idle(lab, "api"))
    assert re.fullmatch(r"niso: stop slow \(\ds\)\n", lab.niso("restart", "slow").stderr)
    assert lab.niso("restart", "slow", "--json").stderr == ""
    assert lab.niso("deactivate", "slow", "-v").stderr.splitlines()[0] == "stop slow"
    for command in (["restart", "api"], ["port-forward", "api", "9090:90"], ["remove", "api"]):
        lock = ("flock", "/run/niso/locks/api.lock", "sh", "-c", "echo locked; read line")
        holder = lab.popen(*lock, stdin=subprocess.PIPE)
        assert holder.stdout and holder.stdout.readline() == b"locked\n"
        waiting = lab.popen("niso", *command)
        assert waiting.stderr
        said = waiting.stderr.readline().decode()
        assert re.fullmatch(
            r"niso: waiting for another niso command that is changing api \(\ds\)\n", said
        )
        holder.communicate(b"")
        assert waiting.wait(60) == 0


def test_names_that_niso_uses_itself_are_free_for_services(lab: Lab) -> None:
    """Locks, folders, bridges and tables of niso have other names than those of any service."""
    names = (
        "cgroup",
        "lock",
        "log",
        "services",
        "hosts",
        "default",
        "niso-default",
        "bridge",
        "lo",
    )
    health = echo(lab, "health", 8080, healthcheck={"tcp": 8080})
    lab.niso("activate", health, *(idle(lab, name) for name in names))
    rows = json.loads(lab.niso("ps", "--json").stdout)
    states = {row["service"]: row["status"] for row in rows}
    assert states == dict.fromkeys((*names, "health"), "running")
    lab.niso("net", "check")
    lab.niso("remove", *names, "health")
    assert json.loads(lab.niso("ps", "--json").stdout) == []
