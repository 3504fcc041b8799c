"""Test niso kill, and exec as another user."""

from __future__ import annotations

import json

from conftest import Lab
from services import BUSYBOX, package, pid_of, process_below, ps, refused

LOOP = "trap 'echo reloaded' HUP; while :; do sleep 0.05; done"


def test_a_signal_reaches_the_process_and_restarts_stay_the_policy(lab: Lab) -> None:
    service = {"restart": "on-failure", "restart_delay": "10ms"}
    lab.niso("activate", package(lab, "api", BUSYBOX, "sh", "-c", LOOP, service=service))
    once = package(lab, "once", BUSYBOX, "sh", "-c", LOOP, service={"restart": "no"})
    lab.niso("activate", once)
    pid = pid_of(lab, "api")
    assert lab.niso("kill", "--signal", "HUP", "api").stdout == "api: SIGHUP sent\n"
    lab.wait_for(lambda: lab.niso("logs", "api").stdout == "reloaded\n")
    assert pid_of(lab, "api") == pid
    for number, state in (("STOP", "T"), ("18", "S")):
        lab.niso("kill", "-s", number, "api")
        process = process_below(lab, pid)
        lab.wait_for(
            lambda p=process, s=state: f"State:\t{s}" in lab.run("cat", f"/proc/{p}/status").stdout
        )
    sent = json.loads(lab.niso("kill", "--json", "api", "once").stdout)
    assert sent == [
        {"service": "api", "signal": "SIGKILL", "ended": True},
        {"service": "once", "signal": "SIGKILL", "ended": True},
    ]
    lab.wait_for(lambda: ps(lab, "api")["status"] == "running" and pid_of(lab, "api") != pid)
    lab.wait_for(lambda: ps(lab, "once")["status"] == "exited (137)")
    error = refused(lab, "kill", "once")
    assert error.startswith("niso: once: has no running process (exited)")
    error = refused(lab, "kill", "--signal", "NOPE", "api", status=2)
    assert error.startswith("niso: --signal 'NOPE' is not a signal")
    assert lab.niso("net", "check").returncode == 0


def test_exec_as_another_user_gets_no_capability(lab: Lab) -> None:
    """Root inside may not do what the service may not: give away a file, or read another's."""
    lab.niso("activate", package(lab, "api", BUSYBOX, "sleep", "1000"))
    shown = "id -u; id -g; echo $HOME; grep CapEff /proc/self/status"
    own = lab.niso("exec", "api", "--", "sh", "-c", shown).stdout.split()
    root = lab.niso("exec", "--user", "0", "api", "--", "sh", "-c", shown).stdout.split()
    assert own[0] != "0"
    assert (root[:2], root[-1]) == (["0", "0"], "0" * 16)
    assert root[2] == "/root"
    other = lab.niso("exec", "-u", "1234:5678", "api", "--", "sh", "-c", shown).stdout.split()
    assert (other[:2], other[-1]) == (["1234", "5678"], "0" * 16)
    named = lab.niso("exec", "-u", "nobody", "api", "--", "id", "-un").stdout
    assert named == "nobody\n"
    lab.niso("exec", "api", "--", "sh", "-c", "echo x >/tmp/f; chmod 600 /tmp/f")
    for command in (("cat", "/tmp/f"), ("chown", "0", "/tmp/f")):
        assert lab.niso("exec", "-u", "0", "api", "--", *command, check=False).returncode == 1
    error = refused(lab, "exec", "-u", "nope", "api", "--", "id", status=125)
    assert error.startswith("niso: api: user 'nope' is not in /etc/passwd of the host")
    assert refused(lab, "exec", "-u", "1:2:3", "api", "--", "id", status=125)
