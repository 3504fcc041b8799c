"""Test resource limits on the real kernel: cgroup values, and services that exceed them.

These run with whatever hierarchy the machine has for each controller (v1 or v2); where there is none, only the warning is tested.
"""

from __future__ import annotations

import json
import pathlib
import re
import time

import pytest
from conftest import Lab
from services import BUSYBOX, idle, inspect, package, pid_of, ps, refused

PYTHON = "/usr/bin/python3"
FILES = {
    "memory": (
        ("memory/{}/memory.limit_in_bytes", "{}/memory.max"),
        "memory_max",
        "32M",
        str(32 << 20),
    ),
    "pids": (("pids/{}/pids.max", "{}/pids.max"), "pids_limit", 20, "20"),
}


def cgroup(lab: Lab, name: str) -> str:
    """The service's cgroup below a hierarchy's root, as the lab sees it."""
    lines = lab.run("cat", f"/proc/{pid_of(lab, name)}/cgroup").stdout.splitlines()
    found: str = next(line.split(":", 2)[2] for line in lines if line.endswith(f"/{name}"))
    return found.strip("/")


def machine_has(controller: str) -> bool:
    text = pathlib.Path("/proc/self/mountinfo").read_text()
    v1 = any(
        controller in line.rsplit(" ", 1)[1].split(",")
        for line in text.splitlines()
        if " - cgroup " in line
    )
    v2 = pathlib.Path("/sys/fs/cgroup/cgroup.controllers")
    return v1 or (v2.exists() and controller in v2.read_text().split())


def needs(controller: str) -> None:
    if not machine_has(controller):
        pytest.skip(f"this machine has no cgroup controller {controller}")


def read(lab: Lab, name: str, *paths: str) -> str:
    """The content of the first of the files, below the place of the hierarchies, that is there."""
    for path in paths:
        done = lab.run("cat", f"/sys/fs/cgroup/{path.format(cgroup(lab, name))}", check=False)
        if done.returncode == 0:
            return str(done.stdout).strip()
    raise FileNotFoundError(paths)


def test_limits_are_in_the_services_cgroup_and_come_and_go_with_the_manifest(lab: Lab) -> None:
    """And hold after a crash and a restart; the cgroups above the service stay as they were."""
    for controller in FILES:
        needs(controller)
    shown = "grep . /sys/fs/cgroup/*/*.limit_in_bytes /sys/fs/cgroup/*/cpu.cfs_* 2>&1 || :"

    def found() -> dict[str, str]:
        return {controller: read(lab, "api", *paths) for controller, (paths, *_) in FILES.items()}

    above = lab.run("sh", "-c", shown).stdout
    lab.niso("activate", idle(lab, "api"))
    before, pid = found(), pid_of(lab, "api")
    limits = {key: value for _, key, value, _ in FILES.values()}
    wanted = {controller: text for controller, (*_, text) in FILES.items()}
    keys = {"service": {"restart_delay": "10ms"}, "isolation.resources": limits}
    done = lab.niso("activate", idle(lab, "api", **keys))
    assert "warning" not in done.stderr
    assert found() == wanted and not before.items() & wanted.items()
    assert pid_of(lab, "api") != pid
    lab.run("kill", "-9", str(pid_of(lab, "api")))
    lab.wait_for(
        lambda: inspect(lab, "api")["restarts"] == 1 and ps(lab, "api")["status"] == "running"
    )
    assert found() == wanted
    lab.niso("restart", "api")
    assert found() == wanted
    # of commands of niso exec too
    forks = "for i in $(seq 30); do sleep 1 & done; wait"
    done = lab.niso("exec", "api", "--", BUSYBOX, "sh", "-c", forks, check=False)
    assert "fork" in done.stderr
    eats = ("exec", "api", "--", PYTHON, "-ISc", "b'x' * (200 << 20)")
    # refused with status 125 as long as the processes of the last command exist
    lab.wait_for(lambda: lab.niso(*eats, check=False).returncode == 137)
    assert ps(lab, "api")["status"] == "running"
    lab.niso("activate", idle(lab, "api"))
    assert found() == before
    assert lab.run("sh", "-c", shown).stdout == above
    lab.niso("remove", "api")
    assert lab.run("sh", "-c", shown).stdout == above
    assert lab.run("find", "/sys/fs/cgroup", "-name", "niso-*").stdout == ""


def test_share_of_cpus_is_in_the_services_cgroup(lab: Lab) -> None:
    needs("cpu")
    lab.niso("activate", idle(lab, "api", **{"isolation.resources": {"cpu_max": "150%"}}))
    try:
        assert read(lab, "api", "{}/cpu.max") == "150000 100000"
    except FileNotFoundError:
        assert (
            read(lab, "api", "cpu/{}/cpu.cfs_quota_us", "cpu,cpuacct/{}/cpu.cfs_quota_us")
            == "150000"
        )
    # who wants more than a quota is stopped for the rest of each 100 ms
    script = (
        "import time; begin = time.monotonic()\n"
        "while (passed := time.monotonic() - begin) < 2: pass\n"
        "print('used', time.process_time() / passed, flush=True); time.sleep(1000)"
    )
    busy = {"isolation.resources": {"cpu_max": "5%"}}
    lab.niso("activate", package(lab, "busy", PYTHON, "-ISc", script, **busy))
    lab.wait_for(lambda: "used" in lab.niso("logs", "busy").stdout)
    assert float(lab.niso("logs", "busy").stdout.split()[1]) < 0.5
    stat = read(lab, "busy", "{}/cpu.stat", "cpu/{}/cpu.stat", "cpu,cpuacct/{}/cpu.stat").split()
    assert int(stat[stat.index("nr_throttled") + 1]) > 5


def test_service_that_takes_more_memory_is_killed_and_that_is_told(lab: Lab) -> None:
    needs("memory")
    limits = {"isolation.resources": {"memory_max": "32M"}}
    script = "import time; time.sleep(1); b'x' * (200 << 20); time.sleep(1000)"
    folder = package(lab, "api", PYTHON, "-ISc", script, service={"restart": "no"}, **limits)
    lab.niso("activate", folder)
    lab.wait_for(lambda: ps(lab, "api")["status"] == "exited (137)", 20)
    assert inspect(lab, "api")["out_of_memory"] is True
    soon = package(
        lab, "soon", PYTHON, "-ISc", "b'x' * (200 << 20)", healthcheck={"tcp": 81}, **limits
    )
    words = "ended before it was healthy (killed by SIGKILL, out of memory: isolation.resources.memory_max)"
    assert words in refused(lab, "activate", soon)
    small = package(
        lab,
        "small",
        PYTHON,
        "-ISc",
        script.replace("200", "2"),
        service={"restart": "no"},
        **limits,
    )
    lab.niso("activate", small)
    lab.run("sleep", "1.5")
    assert ps(lab, "small")["status"] == "running"
    assert inspect(lab, "small")["out_of_memory"] is False


def test_more_processes_than_allowed_cannot_be_made(lab: Lab) -> None:
    needs("pids")
    script = """
import os, time
made = 0
try:
    while made < 100:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except BlockingIOError:
    print("made", made, flush=True)
time.sleep(1000)
"""
    lab.niso(
        "activate",
        package(lab, "api", PYTHON, "-ISc", script, **{"isolation.resources": {"pids_limit": 20}}),
    )
    lab.wait_for(lambda: "made" in lab.niso("logs", "api").stdout)
    assert lab.niso("logs", "api").stdout.split() == ["made", "18"]  # PID 1 and the first one count


def test_defaults_limit_what_fills_memory_and_pids_and_can_be_changed(lab: Lab) -> None:
    points = ("/dev/shm", "/tmp", "/run", "/var/tmp")
    script = (
        f"df -k {' '.join(points)} | tail -n 4; dd if=/dev/zero of=/tmp/x bs=1M count=3; ls -l /tmp"
    )

    def sizes(**limits: str | int) -> tuple[list[int], str]:
        folder = idle(lab, "api", **{"isolation.resources": limits})
        warned = lab.niso("activate", folder).stderr
        assert warned == "", "a default is never a warning"
        lines = lab.niso("exec", "api", "--", BUSYBOX, "sh", "-c", script).stdout.splitlines()
        return [int(line.split()[1]) >> 10 for line in lines[:4]], lines[-1].split()[4]

    assert sizes() == ([64, 256, 256, 256], str(3 << 20))
    if machine_has("pids"):
        assert read(lab, "api", *FILES["pids"][0]) == "2048"
    assert sizes(shm_size="1M", tmp_size="2M") == ([1, 2, 2, 2], str(2 << 20))
    shown = inspect(lab, "api")["manifest"]["isolation"]["resources"]
    assert (shown["pids_limit"], shown["shm_size"], shown["tmp_size"]) == (2048, "1M", "2M")
    if machine_has("memory"):
        assert sizes(memory_max="64M")[0] == [64, 16, 16, 16]
        assert inspect(lab, "api")["manifest"]["isolation"]["resources"]["tmp_size"] == "16M"


def test_limits_of_the_network_change_while_the_service_runs(lab: Lab) -> None:
    """Those of fragments are for a service only that can send parts of packets."""

    def limits(capabilities: tuple[str, ...] = (), **keys: int) -> tuple[dict[str, str], int]:
        sections = {"isolation": {"capabilities": list(capabilities)}, "isolation.resources": keys}
        lab.niso("activate", idle(lab, "api", **sections))
        listed = lab.run("nft", "-s", "list", "ruleset").stdout
        found = re.findall(
            r'set (\w+) \{[^}]*?elements = \{ \S+ limit rate over (.*?) comment "api"', listed
        )
        return dict(found), pid_of(lab, "api")

    usual = {
        "flows4": "1000/second burst 5000 packets",
        "arp_nd": "100/second burst 1000 packets",
        "askers4": "20/second burst 100 packets",
    }
    found, pid = limits()
    assert found == usual
    assert limits(new_flows_limit=7, arp_limit=0, fragments_limit=3, new_neighbours_limit=2) == (
        {
            "flows4": "7/second burst 35 packets",
            "fragments": "3/second burst 15 packets",
            "askers4": "2/second burst 10 packets",
        },
        pid,
    )
    lab.niso("net", "check")
    assert limits(new_flows_limit=0, arp_limit=0, new_neighbours_limit=0) == ({}, pid)
    found, _ = limits(("NET_RAW",))
    assert found == {**usual, "fragments": "40/second burst 200 packets"}
    lab.niso("deactivate", "api")
    assert "limit rate over 40" not in lab.run("nft", "-s", "list", "ruleset").stdout.replace(
        "\t\tlimit", ""
    )


def test_limit_that_the_machine_cannot_hold_is_a_warning(lab: Lab) -> None:
    """Without the hierarchies of memory and pids, as on a machine whose kernel has them not."""
    limits = {"isolation.resources": {"memory_max": "64M", "cpu_max": "50%", "pids_limit": 20}}
    for controller in ("memory", "pids"):
        if lab.run("mountpoint", "-q", f"/sys/fs/cgroup/{controller}", check=False).returncode:
            pytest.skip("the hierarchies of this machine cannot be taken away one by one")
        lab.run("umount", f"/sys/fs/cgroup/{controller}")
    done = lab.niso("activate", idle(lab, "api", **limits))
    for key, controller in (("memory_max", "memory"), ("pids_limit", "pids")):
        words = f"api: isolation.resources.{key} has no effect: this machine has no cgroup controller {controller}"
        assert f"niso: warning: {words}" in done.stderr
    assert "cpu_max" not in done.stderr
    assert lab.niso("activate", idle(lab, "usual")).stderr == "", "a default is never a warning"
    assert read(lab, "api", "cpu/{}/cpu.cfs_quota_us") == "50000"
    assert "memory_max" in lab.niso("restart", "api").stderr


def test_v2_alone_without_the_controllers_warns_and_runs(lab: Lab) -> None:
    """The unified hierarchy in the place of all others, as on most machines; here it has no controller of ours."""
    unified = "/sys/fs/cgroup/unified"
    if lab.run("mountpoint", "-q", unified, check=False).returncode:
        pytest.skip("this machine has no v2 hierarchy beside v1")
    lab.run("umount", "-Rl", "/sys/fs/cgroup")
    lab.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    if {"memory", "pids"} & set(lab.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()):
        pytest.skip("the v2 hierarchy of this machine has the controllers")
    before = lab.run("cat", "/sys/fs/cgroup/cgroup.subtree_control").stdout
    limits = {"memory_max": "64M", "pids_limit": 20}
    done = lab.niso("activate", idle(lab, "api", **{"isolation.resources": limits}))
    for key in limits:
        assert f"isolation.resources.{key} has no effect" in done.stderr
    assert ps(lab, "api")["status"] == "running"
    assert lab.run("cat", "/sys/fs/cgroup/cgroup.subtree_control").stdout == before
    lab.niso("remove", "api")


def limits(text: str) -> dict[str, tuple[int, int]]:
    """Parse lines of ``NAME SOFT HARD``, of which the first run's come before what fills the log."""
    text = text.partition("xxx")[0]
    return {name: (int(soft), int(hard)) for name, soft, hard in map(str.split, text.splitlines())}


SHOW = (
    "import os, resource as r\n"
    "for name in ('nofile', 'core', 'memlock', 'stack', 'fsize', 'cpu'):\n"
    "    print(name, *r.getrlimit(getattr(r, 'RLIMIT_' + name.upper())))\n"
    "print('umask', os.umask(0), os.getpriority(os.PRIO_PROCESS, 0))\n"
    "print('oom', open('/proc/self/oom_score_adj').read().strip(), 0, flush=True)\n"
)


def test_limits_umask_and_niceness_are_the_services_and_not_those_of_the_shell(lab: Lab) -> None:
    """Also after a restart, after a crash, and for commands of niso exec and of health checks."""
    most = int(lab.run("sh", "-c", "ulimit -Hn").stdout)
    defaults = {
        "nofile": (1024, min(1_048_576, most)),
        "core": (0, 0),
        "umask": (0o022, 0),
        "fsize": (-1, -1),
        "cpu": (-1, -1),
    }
    fill = "print('x' * 1_500_000, flush=True)"  # the caller's limit is not that of the log
    script = f"{fill}\n{SHOW}import time; time.sleep(1000)"
    shell = "umask 077; ulimit -Sf 1000; ulimit -St 900; ulimit -Sn 200; ulimit -Ss 400; ulimit -Sl 16; ulimit -Sc unlimited; exec nice -n 4 niso"
    keys = {"service": {"restart": "always", "restart_delay": "10ms"}}
    api = package(lab, "api", PYTHON, "-c", script, **keys)
    lab.run("bash", "-c", f"{shell} activate {api}")
    lab.run("bash", "-c", f"{shell} restart api")
    lab.niso("exec", "api", "--", "sh", "-c", "kill -9 -1", check=False)
    lab.wait_for(lambda: lab.niso("logs", "api").stdout.count("oom ") == 3)
    lab.run(
        "bash",
        "-c",
        f"{shell} exec api -- {PYTHON} -c '{SHOW.replace(chr(39), chr(34))}' > /tmp/exec",
    )
    texts = [*lab.niso("logs", "api").stdout.split("nofile ")[1:]]
    texts.append(lab.run("cat", "/tmp/exec").stdout.removeprefix("nofile "))
    assert len(texts) == 4
    for text in texts:
        found = limits(f"nofile {text}")
        assert found["stack"][0] == 8 << 20 and found["memlock"][0] > 16 << 10
        assert {name: found[name] for name in defaults} == defaults
    assert (
        "limits.nofile" in lab.niso("activate", idle(lab, "odd", limits={"nofile": 1 << 40})).stderr
    )
    text = lab.niso("activate", package(lab, "api", PYTHON, "-c", script, limits=NEW)).stderr
    assert "warning" not in text
    lab.wait_for(lambda: lab.niso("logs", "api").stdout.count("oom ") == 4)
    found = limits("nofile " + lab.niso("logs", "api").stdout.split("nofile ")[-1])
    assert found["nofile"] == (300, 4000) and found["core"] == (5 << 20, -1)


NEW = {"nofile": "300:4000", "core": "5M:unlimited"}


def test_sysctls_are_set_in_the_services_namespace_and_return_to_the_default(lab: Lab) -> None:
    def shown() -> str:
        names = ("core/somaxconn", "ipv4/tcp_rmem", "ipv4/conf/eth0/rp_filter")
        files = [f"/proc/sys/net/{name}" for name in names]
        text: str = lab.run("ip", "netns", "exec", "niso-api", "cat", *files).stdout
        return " ".join(text.split())

    on_host = lab.run("sysctl", "net.core.somaxconn").stdout
    lab.niso("activate", idle(lab, "api"))
    pid, before = pid_of(lab, "api"), shown()
    keys = {"net.core.somaxconn": 77, "net.ipv4.tcp_rmem": "4096 9999 99999"}
    own = {**keys, "net.ipv4.conf.eth0.rp_filter": 2}
    lab.niso("activate", idle(lab, "api", sysctls=own))
    assert shown() == "77 4096 9999 99999 2"
    lab.run("ip", "netns", "exec", "niso-api", "sysctl", "-w", "net.core.somaxconn=5")
    assert "somaxconn" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    assert shown() == "77 4096 9999 99999 2"
    # undone together with the failed activation
    bad = {"net.core.somaxconn": 8, "net.core.no_such": 1}
    assert "no_such" in refused(lab, "activate", idle(lab, "api", sysctls=bad))
    words = {"net.core.somaxconn": "many"}
    assert "value in [sysctls]" in refused(lab, "activate", idle(lab, "api", sysctls=words))
    assert shown() == "77 4096 9999 99999 2"
    lab.niso("activate", idle(lab, "api", sysctls=keys))
    assert shown() == f"77 4096 9999 99999 {before.split()[-1]}"
    lab.niso("activate", idle(lab, "api"))
    assert shown() == before and pid_of(lab, "api") == pid
    assert lab.run("sysctl", "net.core.somaxconn").stdout == on_host
    lab.niso("net", "check")


def test_service_may_use_exactly_the_devices_of_its_manifest(lab: Lab) -> None:
    """Its user owns them. The device cgroup refuses the access that the list does not name."""
    script = (
        "for f in /dev/full /dev/null2; do true < $f && echo read $f; true > $f && echo write $f; done;"
        "ls -ln /dev/null2 /dev/full; ls /dev; exec sleep 1000"
    )
    devices = ["/dev/zero:/dev/null2:r", "/dev/net"]
    keys = {"isolation": {"devices": devices, "capabilities": ["MKNOD", "DAC_OVERRIDE"]}}
    lab.niso("activate", package(lab, "api", "sh", "-c", script, **keys))
    lab.wait_for(lambda: "zero" in lab.niso("logs", "api").stdout)
    text = lab.niso("logs", "api").stdout
    uid = lab.niso("exec", "api", "--", "id", "-u").stdout.strip()
    assert "read /dev/null2" in text and re.search(rf"cr-------- +1 +{uid} .*/dev/null2", text)
    assert "net" in text.split()
    # uid 0 with all rights on files is stopped by the cgroup alone
    make = "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg"
    assert lab.niso("exec", "api", "--", "sh", "-c", make, check=False).returncode != 0
    api = idle(lab, "api", isolation={"devices": ["/dev/nope"]})
    assert "isolation.devices[0]: '/dev/nope' does not exist" in refused(lab, "activate", api)


def test_what_a_service_uses_is_shown_everywhere(lab: Lab) -> None:
    """One service is throttled at 5 % of a processor, and the limit of memory kills its child."""
    needs("memory")
    needs("cpu")
    limits = {"isolation.resources": {"memory_max": "64M", "cpu_max": "5%"}}
    script = (
        "import os\nheld = bytearray(os.urandom(1 << 20) * 20)\n"
        "if not os.fork():\n    b'x' * (200 << 20)\n"
        "os.wait()\nopen('/tmp/ready', 'w')\nwhile True: pass"
    )
    lab.niso("activate", idle(lab, "calm"), package(lab, "busy", PYTHON, "-ISc", script, **limits))
    lab.wait_for(lambda: lab.niso("exec", "busy", "--", "ls", "/tmp/ready", check=False).stdout, 30)
    time.sleep(2)
    lines = {x["service"]: x for x in json.loads(lab.niso("ps", "--stats", "--json").stdout)}
    busy, calm = lines["busy"]["load"], lines["calm"]["load"]
    assert 1 < busy["cpu"] < 15 and calm["cpu"] < 1, (busy, calm)
    assert busy["cpu_seconds"] > 10 * calm["cpu_seconds"] > 0
    assert busy["throttled_seconds"] > 0.3
    assert 20 << 20 < busy["memory"] < busy["memory_limit"] == 64 << 20
    assert busy["oom_kills"] == 1 and calm["oom_kills"] == 0 and calm["memory_limit"] is None
    assert lines["busy"]["restarts"] == 0 and "load" not in ps(lab, "busy")
    table = lab.niso("ps", "--stats").stdout
    assert "OOM KILLS" in table and "64.0M" in table and "RESTARTS" in table
    process = inspect(lab, "busy")
    assert process["oom_kills"] == 1 and process["memory_limit"] == 64 << 20
    metrics = lab.run("niso", "metrics").stdout
    for text in (
        'memory_limit_bytes{service="busy"} 6.7108864e+07',
        'oom_kills_total{service="busy"} 1.0',
        'cpu_limit{service="busy"} 0.05',
        'cpu_seconds_total{service="calm"}',
        'cpu_throttled_seconds_total{service="busy"}',
        'memory_bytes{service="calm"}',
    ):
        assert f"niso_service_{text}" in metrics, text
    assert 'memory_limit_bytes{service="calm"}' not in metrics
    first, second = json.loads(lab.niso("top", "-n", "1", "--json").stdout)["services"]
    assert (first["service"], second["service"]) == ("busy", "calm")
    assert first["cpu"] > 1 and first["memory"] > 20 << 20


def test_event_of_a_process_that_took_too_much_memory(lab: Lab) -> None:
    needs("memory")
    script = "import time; time.sleep(2); b'x' * (200 << 20)"
    keys = {"restart": "always", "restart_delay": "100ms"}
    limits = {"isolation.resources": {"memory_max": "32M"}}
    lab.niso("activate", package(lab, "api", PYTHON, "-ISc", script, service=keys, **limits))
    events = lab.popen("niso", "events", "api", "--for", "6s", "--json")
    lines = [json.loads(line) for line in events.communicate()[0].splitlines()]
    ended = next(line for line in lines if line["what"].startswith("exited"))
    assert ended["detail"] == "killed: out of memory; restart: always"
    assert ended["exit_code"] == 137
    # the cgroup of the run that was killed no longer exists
    line = json.loads(lab.niso("ps", "--stats", "--json").stdout)[0]
    assert line["load"]["oom_kills"] >= line["restarts"] >= 1
