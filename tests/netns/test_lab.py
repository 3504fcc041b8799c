"""Test the lab: its content, its isolation, and that it leaves the machine unchanged.

The machine of the comparing tests is a lab itself, so that other labs beside it do not show; one test compares the real one.
"""

from __future__ import annotations

import json
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import TESTS, UNPRIVILEGED, Lab
from lab_machine import LAB, NAMESPACES, sleepers, snapshot


@pytest.fixture
def machine(lab: Lab) -> Lab:
    """A lab that stands for the machine, compared once its link has settled."""
    lab.wait_for(lambda: lab.ip_json("link", "show", "uplink0")[0]["operstate"] == "UP")
    return lab


def kept_below(folder: str) -> list[str]:
    """What a lab keeps there because the tests and their Python are below it."""
    wanted = (TESTS, pathlib.Path(sys.prefix))
    return sorted(
        {path.relative_to(folder).parts[0] for path in wanted if path.is_relative_to(folder)}
    )


def test_lab_has_the_network_of_the_address_plan_and_no_other_link(lab: Lab) -> None:
    plan = {
        None: ("uplink0", "192.0.2.1", "2001:db8::1"),
        "client": ("eth0", "192.0.2.2", "2001:db8::2"),
        "neighbour": ("eth0", "192.0.2.3", "2001:db8::3"),
    }
    for netns, (name, *addresses) in plan.items():
        links = lab.ip_json("addr", netns=netns)
        assert [link["ifname"] for link in links] == ["lo", name]
        assert all("UP" in link["flags"] for link in links)
        found = {
            (item["local"], item["prefixlen"])
            for item in links[1]["addr_info"]
            if item["scope"] == "global"
        }
        assert found == {(addresses[0], 24), (addresses[1], 64)}
        forwards = lab.run("cat", "/proc/sys/net/ipv4/ip_forward", netns=netns).stdout
        assert forwards == ("1\n" if netns == "client" else "0\n")
    assert [route["gateway"] for route in lab.ip_json("route", "show", "default")] == ["192.0.2.2"]
    assert [route["gateway"] for route in lab.ip_json("-6", "route", "show", "default")] == [
        "2001:db8::2"
    ]
    assert lab.ip_json("route", "show", "default", netns="client") == []
    assert sorted(lab.run("ls", "/sys/class/net").stdout.split()) == ["lo", "uplink0"]
    for netns, address in (
        ("client", "192.0.2.1"),
        ("client", "2001:db8::3"),
        ("neighbour", "2001:db8::1"),
        (None, "192.0.2.3"),
    ):
        lab.run("ping", "-c1", "-W5", address, netns=netns)
    said = lab.run("ping", "-c", "1", "-W", "5", "198.51.100.1", check=False)
    assert said.returncode == 1 and "From 192.0.2.2" in said.stdout, (
        "the gateway refuses; silence would keep name look-ups waiting"
    )


def test_lab_has_its_own_namespaces_marks_and_folders(lab: Lab) -> None:
    for kind in NAMESPACES:
        assert lab.run("readlink", f"/proc/self/ns/{kind}").stdout.strip() != os.readlink(
            f"/proc/self/ns/{kind}"
        )
    assert lab.run("hostname").stdout == "niso-lab\n"
    assert lab.path("/run/niso-lab").exists()
    assert sorted(lab.run("ls", "/run").stdout.split()) == [
        "netns",
        "niso-lab",
        *kept_below("/run"),
    ]
    for folder in ("/tmp", "/var/lib/niso", "/dev/shm"):
        assert lab.run("ls", "-A", folder).stdout.split() == kept_below(folder)
    assert lab.run("stat", "-c", "%a", "/var/lib/niso").stdout == "700\n"
    assert lab.run("sh", "-c", "echo $NISO_LAB").stdout == "1\n"
    assert lab.run("cat", "/proc/1/comm").stdout.startswith("python")
    # variables that point out of it are dropped
    names = ("NISO_STATE_DIR", "NISO_RUN_DIR", "NISO_POOL", "TMPDIR")
    out = lab.run(*LAB, "env", env=dict.fromkeys(names, "/x")).stdout.splitlines()
    found = [line for line in out if line.startswith(("NISO_", "TMPDIR"))]
    assert [line for line in found if "NISO_SLOW" not in line] == ["NISO_LAB=1"]


FOLDERS = "/etc /root /opt /home /srv /mnt /var/log /var/lib /var/cache /mnt/disk"
WRITES = f"""
cd /
for folder in /tmp/a/b {FOLDERS}; do touch $folder/new; done
echo other > /etc/hostname
rm -r /etc/ssl /mnt/disk/full
touch /usr/new || echo read-only
cat /mnt/disk/file /tmp/a/b/file
ls /tmp
getent hosts $(hostname)
"""
LEFT = f"ls -A {FOLDERS}; find /mnt/disk; cat /etc/hostname; ls -d /etc/ssl"


@pytest.mark.first
def test_nothing_written_in_a_lab_stays_but_in_the_folder_that_it_may_write(lab: Lab) -> None:
    lab.write("/tmp/a/b/file", "text\n")
    lab.write("/tmp/other", "text")
    disk = "mkdir -p /mnt/disk && mount -t tmpfs none /mnt/disk && mkdir /mnt/disk/full"
    lab.run("sh", "-c", f"{disk} && echo disk > /mnt/disk/file; touch /mnt/disk/full/file")
    before = lab.run("sh", "-c", LEFT).stdout
    out = lab.run(*LAB, "sh", "-c", WRITES, cwd="/tmp/a/b").stdout.splitlines()
    seen = ["read-only", "disk", "text", *sorted(["a", *kept_below("/tmp")])]
    assert [*out[:-1], *out[-1].split()] == [*seen, "127.0.1.1", "niso-lab"]
    assert lab.run("sh", "-c", LEFT).stdout == before
    assert not lab.path("/tmp/a/b/new").exists()
    lab.niso(
        "lab", "--write", "b", "--write", "/opt", "--", "touch", "b/new", "/opt/new", cwd="/tmp/a"
    )
    assert lab.path("/tmp/a/b/new").exists() and lab.path("/opt/new").exists()
    for folder, why in (("none", "none is not a folder"), ("/", "the whole machine cannot be")):
        done = lab.niso("lab", "--write", folder, "--", "true", check=False)
        assert done.returncode in (2, 125) and f"niso: --write {why}" in done.stderr


def test_folder_in_memory_is_seen_and_devices_work_but_stay_as_they_are(lab: Lab) -> None:
    """The current folder below /dev/shm; a socket as /dev/log, and a device that is deleted."""
    lab.run("sh", "-c", "mkdir /dev/shm/a && echo text > /dev/shm/a/file")
    script = """
    cat file; rm /dev/null file; touch /dev/log && mv /dev/log /dev/null
    head -c 1 /dev/zero | wc -c; script -qc tty /dev/full
    """
    out = lab.run(*LAB, "sh", "-c", script, cwd="/dev/shm/a").stdout.split()
    assert out[:2] == ["text", "1"] and out[2].startswith("/dev/pts/")
    left = lab.run(
        "sh", "-c", "cat /dev/shm/a/file; stat -c %F /dev/null; ls /dev/log", check=False
    )
    assert left.stdout == "text\ncharacter special file\n"


ACCIDENTS = """
mount -o remount,rw /usr 2>/dev/null; touch /usr/niso-lab-test /dev/niso-lab-test
for name in kernel/hostname vm/swappiness fs/file-max; do
    (cat /proc/sys/$name > /tmp/now; cat /tmp/now > /proc/sys/$name) 2>/dev/null && echo $name
done
mount -o remount,rw /usr 2>/dev/null
for file in /sys/kernel/mm/transparent_hugepage/enabled /sys/module/printk/parameters/time; do
    [ -w $file ] && (: >> $file) 2>/dev/null && echo $file
done
cgroups=/sys/fs/cgroup; [ -d $cgroups/pids ] && cgroups=$cgroups/pids
sysctl -qw net.ipv4.ip_forward=1 && mkdir $cgroups/x && echo own
grep CapEff /proc/self/status
"""


def test_accidents_of_root_stay_in_a_lab() -> None:
    """In /usr, which services see through an overlay, in /dev, in sysctls and in /sys."""
    command = [sys.executable, "-m", "niso.lab", "--", "sh", "-c", ACCIDENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    files = ("/usr/niso-lab-test", "/dev/niso-lab-test")
    left = [path for path in files if os.path.exists(path)]
    for path in left:
        os.unlink(path)
    *said, capabilities = done.stdout.splitlines()
    assert (left, said) == ([], ["own"])
    held = int(capabilities.split()[1], 16)
    assert [number for number in (16, 17, 22, 25) if held >> number & 1] == []


def test_exit_status_is_the_commands_own_or_125_for_a_lab_that_cannot_be_made(lab: Lab) -> None:
    for command, status in (
        (("true",), 0),
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -9 $$"), 137),
        (("no-such-command",), 127),
        (("/etc/passwd",), 126),
    ):
        assert lab.run(*LAB, *command, check=False).returncode == status
    done = lab.run("setpriv", "--bounding-set", "-sys_admin", *LAB, "true", check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("niso: cannot ")
    assert "Traceback" not in done.stderr and "--privileged" in done.stderr
    done = lab.run("unshare", "--user", "--map-root-user", *LAB, "true", check=False)
    assert done.returncode == 125 and "needs 65,536 subordinate uids" in done.stderr


def test_lab_in_a_lab_works(lab: Lab) -> None:
    """The root of the outer one is an overlay, as a container's: the inner one runs services there too."""
    package = (
        '[package]\nname = "a"\nversion = "1"\n[binary]\nentrypoint = "sleep"\nargs = ["1000"]\n'
    )
    lab.write("/tmp/a/manifest.toml", package)
    inner = (*LAB, "sh", "-c", "niso activate /tmp/a && niso exec a -- cat /etc/hosts", "sh")
    assert (
        "a.niso.local"
        in lab.run(
            *LAB,
            "sh",
            "-c",
            'cp -r . /root/a; cd /root/a; exec "$@"',
            "sh",
            *(word.replace("/tmp/a", "./") for word in inner),
            cwd="/tmp/a",
        ).stdout
    )
    script = 'import json,subprocess; print(subprocess.run(["ip","-j","link"],capture_output=True,text=True).stdout)'
    out = lab.run(*LAB, *LAB, sys.executable, "-c", script).stdout
    assert [link["ifname"] for link in json.loads(out)] == ["lo", "uplink0"]
    # a mount whose name is not UTF-8 is no hindrance
    odd = "d=$(printf '/mnt/caf\\351') && mkdir -p $d && mount -t tmpfs none $d && exec \"$@\""
    lab.run(*LAB, "sh", "-c", odd, "sh", *LAB, "true")


def test_signal_to_the_caller_reaches_the_command(machine: Lab) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) == signal.SIG_IGN:
            continue  # the tests run under nohup(1): a shell cannot trap a signal that it ignores
        word = number.name.removeprefix("SIG")
        script = f"trap 'echo got; exit 5' {word}; echo up; while :; do read x < /tmp/fifo; done"
        process = machine.popen(*LAB, "sh", "-c", "mkfifo /tmp/fifo; " + script)
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        machine.run("kill", f"-{word}", str(process.pid))
        assert process.wait(10) == 5
        assert process.stdout.read() == b"got\n"


def test_pid_1_reaps_orphans_and_everything_dies_with_the_command(machine: Lab) -> None:
    script = """
    (setsid sh -c 'sleep 0.01 & exit' &)
    end=$(($(date +%s) + 10))
    left=1
    while [ $left = 1 ] && [ $(date +%s) -lt $end ]; do
        ps -eo stat,comm | grep -q -e sleep -e '^Z' || left=0
    done
    echo $left
    (setsid sleep 1000 &)
    """
    assert machine.run(*LAB, "sh", "-c", script).stdout == "0\n"
    assert sleepers(machine) == ""


def read_until(fd: int, word: bytes, seconds: float = 10) -> bytes:
    out = b""
    deadline = time.monotonic() + seconds
    while word not in out:
        if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
            pytest.fail(f"no {word!r} in {out!r}")
        out += os.read(fd, 4096)
    return out


def test_terminal_gives_job_control_ctrl_c_and_window_size(machine: Lab) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    prompt: dict[str, str | None] = {"PS1": "ready> ", "TERM": "dumb", "HISTFILE": None}
    command = (*LAB, "bash", "--norc", "--noprofile", "-i")
    process = machine.popen(
        *command, stdin=theirs, stdout=theirs, stderr=theirs, tty=True, env=prompt
    )
    os.close(theirs)
    read_until(ours, b"ready> ")
    os.write(ours, b"stty size; cat\n")
    read_until(ours, b"33 77")
    os.write(ours, b"typed\n")
    read_until(ours, b"typed\r\ntyped")  # the terminal's echo, then cat's
    os.write(ours, b"\x1a")
    assert b"Stopped" in read_until(ours, b"ready> ")
    os.write(ours, b"fg\n")
    read_until(ours, b"\ncat\r\n")
    os.write(ours, b"again\n")
    read_until(ours, b"again\r\nagain")
    os.write(ours, b"\x03")
    read_until(ours, b"ready> ")
    os.write(ours, b"echo status=$?\n")
    read_until(ours, b"status=130")
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
    os.write(ours, b"stty size; exit 7\n")
    read_until(ours, b"44 88")
    assert process.wait(10) == 7
    os.close(ours)


def test_lab_works_without_hybrid_cgroups(machine: Lab) -> None:
    for mount in ("mount -t cgroup2", "mount -t cgroup2 -o ro", ": without"):
        hierarchies = f"umount -l /sys/fs/cgroup && {mount} none /sys/fs/cgroup"
        shown = "cat /proc/self/cgroup; ls /sys/fs/cgroup"
        script = f"{hierarchies} && exec {' '.join(LAB)} sh -c '{shown}'"
        done = machine.run("unshare", "-m", "sh", "-c", script)
        assert done.stderr == ""
        if mount == "mount -t cgroup2":
            assert "0::/init\n" in done.stdout
            assert "\ncgroup.procs\n" in done.stdout
        assert "niso-lab-" not in json.dumps(snapshot(machine)["cgroups"])


def test_agent_passes_input_status_signals_and_environment(lab: Lab) -> None:
    assert lab.run("cat", input="text").stdout == "text"
    assert lab.run("sh", "-c", "echo out; echo err >&2; exit 3", check=False).returncode == 3
    assert lab.run("sh", "-c", "echo $A$HOME", env={"A": "a", "HOME": None}).stdout == "a\n"
    process = lab.popen("sleep", "1000")
    assert process.poll() is None
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        lab.run("sleep", "1000", timeout=0.1)
    assert lab.run("which", "niso").stdout == os.path.join(sys.prefix, "bin", "niso") + "\n"


def test_lab_of_a_test_ends_at_its_deadline() -> None:
    with Lab(deadline_seconds=1) as lab:
        lab.popen("sleep", "1000")
        assert lab.outer.wait(30) == 128 + signal.SIGALRM


def test_netns_test_without_root_fails_instead_of_passing(machine: Lab) -> None:
    command = (*UNPRIVILEGED, sys.executable, "-B", "-m", "pytest")
    test = f"{TESTS}/netns/test_lab.py::test_lab_in_a_lab_works"
    done = machine.run(*command, "-p", "no:cacheprovider", test, check=False)
    assert done.returncode == 1
    assert "need root" in done.stdout


# --- without root ---------------------------------------------------------------------------------

AS_USER = (str(TESTS / "as-user"),)
readable = pytest.mark.skipif(
    not all(folder.stat().st_mode & 1 for folder in TESTS.parents),
    reason="the clone is below a folder that only its owner can read, such as /root",
)
NISO = os.path.join(sys.prefix, "bin", "niso")
NO_CGROUPS = (
    "niso: a lab without root has no cgroups: nothing limits the memory and CPU of services"
)
SERVICE = """
[package]
name = "{name}"
version = "1"
[binary]
entrypoint = "python3"
args = ["-m", "http.server", "5432"]
[isolation.resources]
memory_max = "64M"
pids_limit = 20
[healthcheck]
tcp = 5432
[network]
ports = [{ports}]
{policy}
"""
POLICY = "[network.policy]\nallow_from = ['api:5432']"
MANIFESTS = "\n".join(
    f"mkdir /tmp/{name}; cat > /tmp/{name}/manifest.toml << 'END'"
    + SERVICE.format(name=name, ports=ports, policy=policy)
    + "END"
    for name, ports, policy in (("db", "", POLICY), ("api", '"8080:5432"', ""), ("job", "", ""))
)
WITHOUT_ROOT = f"""
ip -br link | wc -l
{MANIFESTS}
niso activate /tmp/db /tmp/api /tmp/job > /dev/null
for name in api job; do
    niso exec $name -- python3 -c 'import socket; socket.create_connection(("db", 5432), 1)' \\
        2> /dev/null && echo $name reaches db
done
niso exec job -- sh -c 'id -u; grep CapEff /proc/self/status; touch /usr/x 2> /dev/null || echo no'
niso exec job -- sh -c 'for n in $(seq 30); do sleep 2 & done' 2>&1 | grep -o "Cannot fork"
ip netns exec client python3 -c 'import socket; socket.create_connection(("192.0.2.1", 8080), 5)' && echo published
niso net check
niso deactivate db > /dev/null && niso ps -a | grep -c inactive
rm -r old && mkdir old && ls -A old && echo replaced
touch /etc/niso-lab-test /niso-lab-test here && ls /etc/niso-lab-test here
(touch /usr/niso-lab-test; echo x > /proc/sys/kernel/hostname) 2> /dev/null || echo kept
ls /sys/fs/cgroup; script -qc 'tty; niso lab -- tty 2> /dev/null' /dev/null
"""


@readable
def test_lab_without_root_runs_services_and_leaves_nothing() -> None:
    """Its services have uids of their own, networks, policies and ports, and find no cgroups."""
    command = (
        *AS_USER,
        "sh",
        "-c",
        'cd && mkdir old && touch old/file && exec "$@"',
        "sh",
        NISO,
        "lab",
        "--",
        "sh",
        "-c",
    )
    done = subprocess.run(
        (*command, WITHOUT_ROOT), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split("\n") == [
        *(
            "2",
            "api reaches db",
            "1900000002",
            "CapEff:\t0000000000000000",
            "no",
            "Cannot fork",
            "published",
        ),
        *(
            "OK: the kernel matches the configuration",
            "1",
            "replaced",
            "/etc/niso-lab-test",
            "here",
            "kept",
        ),
        *("/dev/pts/0", "/dev/console", ""),
    ], done.stderr
    assert done.stderr.count(NO_CGROUPS) == 1 and "memory_max" not in done.stderr
    left = ("/etc/niso-lab-test", "/niso-lab-test", "/usr/niso-lab-test")
    assert [path for path in left if os.path.exists(path)] == []
    users = subprocess.run(["ps", "-eo", "uid="], capture_output=True, text=True, check=True)
    assert {"60500", "1800060000"}.isdisjoint(users.stdout.split())


FORBID = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin"
UNSHARE = {"x86_64": 272, "aarch64": 97}.get(os.uname().machine, 272)
# a filter for which unshare(2) fails with EPERM, as in a container of Docker (seccomp(2))
WITHOUT_UNSHARE = f"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
code = [(0x20, 0, 0, 0), (0x15, 0, 1, {UNSHARE}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("=H6xQ", len(code), ctypes.addressof(text)))
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
ALL_IDS = ("--map-users=0:0:4294967294", "--map-groups=0:0:4294967294")


@readable
@pytest.mark.parametrize(
    ("how", "why", "hint"),
    [
        (("env", "AS_USER_IDS=100", *AS_USER), "and you have 100", "usermod --add-subuids"),
        ((*AS_USER, "env", "PATH=/"), "needs newuidmap", "apt install uidmap"),
        ((*AS_USER, "setpriv", "--no-new-privs"), "cannot map its ids", "no_new_privs"),
        (("setpriv", "--reuid=60999", "--clear-groups"), "uid 60999 has none", "/etc/passwd"),
        (
            ("setpriv", "--bounding-set=-net_admin", "python3", "-c", WITHOUT_UNSHARE),
            "the seccomp profile of this container forbids",
            "--privileged",
        ),
        (
            ("unshare", "--user", "--fork", "--pid", *ALL_IDS, "sh", "-c", f'{FORBID} "$@"', "sh"),
            "which user.max_user_namespaces = 0 forbids",
            "sysctl user.max_user_namespaces=10000",
        ),
        (
            (
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount -t tmpfs x /proc/irq; exec "$@"',
                "sh",
                *AS_USER,
            ),
            "cannot mount proc",
            "hides a part of /proc",
        ),
    ],
)
def test_lab_without_root_names_what_forbids_it(how: tuple[str, ...], why: str, hint: str) -> None:
    done = subprocess.run(
        (*how, NISO, "lab", "--", "true"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (1, 125)
    message, said = done.stderr.splitlines()
    assert message.startswith("niso: ") and why in message and hint in said


def test_root_without_capabilities_gets_a_lab_in_a_user_namespace() -> None:
    """So does root of a container that is not privileged."""
    without = ("setpriv", "--bounding-set=-sys_admin,-net_admin", NISO, "lab", "--", "sh", "-c")
    done = subprocess.run(
        (*without, "cat /proc/self/uid_map; ip -br link | wc -l"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["0", "0", "4294967294", "2"] and NO_CGROUPS in done.stderr
