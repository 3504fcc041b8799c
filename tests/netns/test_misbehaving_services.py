"""Test services that resist being stopped: niso stops each one and leaves nothing."""

from __future__ import annotations

import os
import time

import pytest
from conftest import Lab
from samples import SLOW
from services import idle, inspect, package, pid_of, ps, refused

PYTHON = "/usr/bin/python3"
QUICK = {"stop_timeout": "300ms", "restart": "no"}
BEHAVIOUR = {
    "ignores TERM, and is deaf to all else": "import signal\nfor n in set(signal.valid_signals()) - {9, 19}:\n    signal.signal(n, signal.SIG_IGN)",
    "closes its outputs": "os.close(1); os.close(2); os.close(0)",
    "writes escapes without a newline": "os.write(1, b'\\x1b]0;owned\\x07\\x1b[2J\\x1b[31m' * 100)",
    "leaves a child in another session": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import signal; signal.signal(15, signal.SIG_IGN); time.sleep(1000)\n    os._exit(0)",
    "keeps its namespaces open": "held = [os.open(f'/proc/self/ns/{n}', 0) for n in os.listdir('/proc/self/ns')]\nif os.fork() == 0:\n    os.setsid(); time.sleep(1000)",
    "calls itself conmon": "open('/proc/self/comm', 'w').write('conmon')",
    "stops itself": "if os.fork() == 0:\n    os.kill(os.getppid(), 19); time.sleep(1000)",
}
LEFT = "find /run /var/lib/niso /sys/fs/cgroup -name '*evil*' -not -path '*/packages/evil*/*' 2>/dev/null; ip -o link; ps -eo args= | grep -c '[n]iso-init'"


def evil(lab: Lab, name: str, script: str, **sections: dict[str, object]) -> str:
    script = f"import os, sys, time\n{script}\nwhile True: time.sleep(1000)"
    return package(lab, name, PYTHON, "-ISuc", script, **{"service": QUICK, **sections})


def left(lab: Lab) -> str:
    return lab.run("sh", "-c", LEFT, check=False).stdout


def test_whatever_a_service_does_it_ends_when_told_and_leaves_nothing(lab: Lab) -> None:
    lab.niso("net", "create", "wild")
    before = left(lab)
    names = [f"evil-{number}" for number in range(len(BEHAVIOUR))]
    folders = [
        evil(lab, name, script, network={"network": "wild"})
        for name, script in zip(names, BEHAVIOUR.values(), strict=True)
    ]
    lab.niso("activate", *folders)
    pids = [pid_of(lab, name) for name in names]
    lab.niso("ps")
    lab.niso("remove", *names)
    assert all(not os.path.exists(lab.path(f"/proc/{pid}")) for pid in pids)
    assert left(lab) == before


def test_namespace_that_another_process_holds_open_goes_without_its_addresses(lab: Lab) -> None:
    """A process of the host that holds it (a descriptor, a bind mount) keeps an empty namespace, no link and no address."""
    lab.niso("activate", evil(lab, "evil", "pass"))
    lab.run("sh", "-c", "touch /tmp/held && mount --bind /run/netns/niso-evil /tmp/held")
    holder = lab.popen("sh", "-c", "exec 9</tmp/held; echo ready; sleep 1000")
    assert holder.stdout and holder.stdout.readline() == b"ready\n"
    lab.niso("remove", "evil")
    seen = lab.run("nsenter", "--net=/tmp/held", "ip", "-o", "link").stdout
    assert seen.count("\n") == 1 and "lo" in seen
    lab.niso("activate", evil(lab, "evil", "pass"))  # the name and the address are free again
    assert ps(lab, "evil")["status"] == "running" and ps(lab, "evil")["address"] == ["10.99.0.2"]


def test_service_that_fills_its_log_at_full_speed_has_a_bounded_one(lab: Lab) -> None:
    """conmon starts the log anew at 64 MB; the flood fills no disk, and niso's commands go on."""
    lab.niso(
        "activate",
        evil(lab, "evil", "line = b'x' * 1000 + b'\\n'\nwhile True: os.write(1, line * 60)"),
    )
    size = "du -sm /var/lib/niso/logs/evil | cut -f1"
    lab.wait_for(lambda: int(lab.run("sh", "-c", size).stdout) > 20, 60, "a large log")
    for _ in range(4):
        assert ps(lab, "evil")["status"] == "running"
        assert int(lab.run("sh", "-c", size).stdout) <= 4 * 64 + 32
        time.sleep(0.2)
    assert len(lab.niso("logs", "evil", "-n", "3").stdout.splitlines()) == 3
    lab.niso("remove", "evil")


def test_fork_bomb_is_bounded_by_its_limit_and_ends_at_once(lab: Lab) -> None:
    if (
        not os.path.isdir("/sys/fs/cgroup/pids")
        and not lab.path("/sys/fs/cgroup/cgroup.controllers").exists()
    ):
        pytest.skip("this machine has no pids controller")
    wait = f"time.sleep({0.02 * SLOW})"  # a slow machine would do nothing else
    script = f"while True:\n    try:\n        os.fork()\n    except OSError:\n        {wait}"
    lab.niso(
        "activate",
        evil(lab, "evil", script, **{"isolation.resources": {"pids_limit": 100, "cpu_max": "50%"}}),
    )
    inside = "ls -d /proc/[0-9]* | wc -l"
    lab.wait_for(
        lambda: (
            int(
                lab.run(
                    "nsenter", "-t", str(pid_of(lab, "evil")), "-p", "-m", "sh", "-c", inside
                ).stdout
            )
            >= 95
        )
    )
    lab.niso("remove", "evil")
    assert "evil" not in lab.niso("ps").stdout and left(lab).splitlines()[-1] == "0"


def test_last_words_of_a_service_reach_the_terminal_escaped(lab: Lab) -> None:
    words = "\\x1b]0;owned\\x07 \\x1b[2J \\u202e red \\x9b31m"
    folder = evil(lab, "evil", f"print('{words}'); sys.exit(3)", healthcheck={"tcp": 81})
    said = refused(lab, "activate", folder)
    assert (
        "\\x1b]0;owned\\x07 \\x1b[2J \\u202e red" in said and said.replace("\n", "").isprintable()
    )


def test_conmon_of_another_is_not_ended_by_a_lie_on_a_command_line(lab: Lab) -> None:
    """A service may write on its command line what conmon has on its own; what is ended by that is itself alone."""
    lab.niso("activate", evil(lab, "victim", "pass"))
    bundle = "/run/niso/services/victim/run-0"
    script = f"os.execv('{PYTHON}', ['conmon', '-ISc', 'import time; time.sleep(1000)', '{bundle}', '{bundle}/pid'])"
    lab.niso("activate", evil(lab, "evil", script))
    pid = pid_of(lab, "victim")
    lab.niso("restart", "evil")
    lab.niso("remove", "evil")
    assert inspect(lab, "victim")["pid"] == pid and ps(lab, "victim")["status"] == "running"
    lab.niso("remove", "victim")


def test_a_service_that_was_asked_to_end_is_not_restarting(lab: Lab) -> None:
    if lab.path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("with cgroup v2, a process that conmon has not reaped is still in its cgroup")
    lab.niso("activate", idle(lab, "api"))
    bundle, pid = "/run/niso/services/api/run-0", str(pid_of(lab, "api"))
    conmon = lab.path(f"{bundle}/conmon.pid").read_text()
    lab.run("kill", "-STOP", conmon)  # it does not take in what comes now
    lab.wait_for(lambda: "(stopped)" in lab.run("cat", f"/proc/{conmon}/status").stdout)
    lab.run("kill", "-KILL", pid)
    lab.path(f"{bundle}/exits/niso-service-api").write_text("143")
    lab.wait_for(lambda: ps(lab, "api")["status"] == "restarting", what="its policy would act")
    lab.path(f"{bundle}/stopping").touch()
    assert ps(lab, "api")["status"] == "exited (143)"
    lab.run("kill", "-CONT", conmon)


def test_a_conmon_that_has_not_said_its_pid_ends_with_the_start_that_died(lab: Lab) -> None:
    log = "/tmp/points"
    lab.niso("activate", idle(lab, "api"))
    lab.niso("remove", "api")  # so the steps that are taken once are behind
    lab.niso(
        "activate", "/tmp/packages/api", env={"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": log}
    )
    points = lab.path(log).read_text().splitlines()
    number = next(line.split()[0] for line in points if line.endswith("mount the root of api"))
    lab.niso("remove", "api")
    died = lab.niso(
        "activate", "/tmp/packages/api", check=False, env={"NISO_FAILPOINT": f"{number}:kill"}
    )
    assert died.returncode == -9
    bundle = "/run/niso/services/api/run-0"
    # as one that is slow to begin: it has the command line of a conmon
    slow = lab.popen(
        "sh",
        "-c",
        "sleep 1000; true",
        "conmon",
        "-b",
        bundle,
        "-p",
        f"{bundle}/pid",
        "-P",
        f"{bundle}/conmon.pid",
    )
    lab.niso("net", "repair", check=False)
    assert slow.wait(10) == -9
