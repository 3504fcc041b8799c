"""What a service does with files that others use too: each attack works without its defence, and not with it."""

from __future__ import annotations

import json
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import UNPRIVILEGED, Lab
from services import BUSYBOX, idle, package

TRIAL = pathlib.Path(__file__).with_name("seccomp_trial.py").read_text()
PYTHON = "/usr/bin/python3"
WATCH = """
import ctypes, fcntl, os, select, sys
lock = os.open("/usr/bin/ptx", os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX)
libc = ctypes.CDLL(None)
events = libc.inotify_init1(0)
assert libc.inotify_add_watch(events, b"/usr/bin", 0x20) >= 0  # IN_OPEN
print("ready", flush=True)
for line in sys.stdin:
    opened = b""
    while select.select([events], [], [], 0)[0]:
        opened += os.read(events, 4096)
    print(b"ptx\\0" in opened, flush=True)
"""
"""Holds a lock of a program that nobody uses, and tells after each line whether somebody has opened it."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(deadline_seconds=300) as made:
        made.run("mount", "-t", "tmpfs", "none", "/mnt")  # without nosuid
        yield made


def test_filter_denies_leases_and_setuid_modes_and_nothing_else(lab: Lab) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the trial knows the syscalls of x86-64")
    lab.write("/tmp/trial.py", TRIAL)
    lab.run("mkdir", "/tmp/trial")
    outside = json.loads(lab.run(PYTHON, "-IS", "/tmp/trial.py", "/tmp/trial").stdout)
    said: dict[str, dict[str, str]] = {}
    for name, isolation in (("free", {"restrict_suid_sgid": False}), ("usual", {})):
        folder = idle(lab, name, isolation=isolation)
        lab.write(f"{folder}/trial.py", TRIAL)
        lab.niso("activate", folder)
        words = lab.niso("exec", name, "--", PYTHON, "-IS", "/app/trial.py", "/tmp").stdout
        said[name] = json.loads(words)
    leases = {f"fcntl {high + command:#x}" for high in (0, 1 << 32) for command in (1024, 1026)}
    delegation = {"fcntl 0x410", "fcntl 0x100000410"}
    setuid = {
        name for name in outside if name.endswith(("4755", "2755", "6755")) and "exist" not in name
    }
    assert all(outside[name] == "" for name in leases | setuid)
    denied = {
        kind: {name for name in outside if words[name] != outside[name]}
        for kind, words in said.items()
    }
    assert denied == {
        "free": leases | delegation,
        "usual": leases | delegation | setuid | {"openat2"},
    }
    assert {said["usual"][name] for name in denied["usual"] - {"openat2"}} == {"EPERM"}
    assert said["usual"]["openat2"] == "ENOSYS"  # programs then use openat


@pytest.mark.parametrize("restricted", [False, True])
def test_root_in_a_service_leaves_no_setuid_program_in_a_volume(lab: Lab, restricted: bool) -> None:
    lab.run("rm", "-rf", "/mnt/data")
    lab.run("mkdir", "/mnt/data")
    shutil.copy("/usr/bin/id", lab.path("/mnt/data/id"))
    isolation: dict[str, Any] = {} if restricted else {"restrict_suid_sgid": False}
    volumes = {"data": {"mount": "/data", "host": "/mnt/data"}}
    folder = idle(lab, "root", service={"user": "0:0"}, volumes=volumes, isolation=isolation)
    warned = lab.niso("activate", folder).stderr
    assert "root: volumes.data.host: the service is root (uid 0), also in /mnt/data" in warned
    assert ("the service can leave setuid programs in /mnt/data" in warned) is not restricted, (
        warned
    )
    lab.niso("exec", "root", "--", BUSYBOX, "chmod", "4755", "/data/id", check=not restricted)
    became = lab.run(*UNPRIVILEGED, "/mnt/data/id").stdout
    assert ("euid=0" in became) is not restricted, became


def test_service_with_setfcap_is_warned_of(lab: Lab) -> None:
    """Capabilities of files (capabilities(7)) are as good as setuid bits, and no filter of system calls sees them."""
    lab.run("rm", "-rf", "/mnt/data")
    lab.run("mkdir", "/mnt/data")
    shutil.copy(BUSYBOX, lab.path("/mnt/data/busybox"))
    folder = idle(
        lab,
        "fcap",
        service={"user": "0:0"},
        volumes={"data": {"mount": "/data", "host": "/mnt/data"}},
        isolation={"capabilities": ["SETFCAP"]},
    )
    assert (
        "fcap: isolation.capabilities: with SETFCAP the service can leave programs in /mnt/data"
        in lab.niso("activate", folder).stderr
    )
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    read = (*nobody, "/mnt/data/busybox", "cat", "/etc/shadow")
    assert lab.run(*read, check=False).returncode
    # VFS_CAP_REVISION_2 with VFS_CAP_FLAGS_EFFECTIVE, CAP_DAC_READ_SEARCH permitted (linux/capability.h)
    set_it = (
        "import os, struct; os.setxattr('/data/busybox', 'security.capability',"
        " struct.pack('<5I', 0x02000001, 1 << 2, 0, 0, 0))"
    )
    lab.niso("exec", "fcap", "--", PYTHON, "-ISc", set_it)
    assert "root:" in lab.run(*read).stdout


def test_service_sees_and_locks_nothing_of_the_hosts_programs(lab: Lab) -> None:
    def seen_and_locked(watcher: Any) -> tuple[bool, bool]:
        lab.run("/usr/bin/ptx", "--version")
        locked = lab.run("flock", "-n", "/usr/bin/ptx", "true", check=False).returncode != 0
        watcher.stdin.write(b"\n")
        return watcher.stdout.readline() == b"True\n", locked

    outside = lab.popen(PYTHON, "-ISc", WATCH, stdin=subprocess.PIPE)
    assert outside.stdout and outside.stdout.readline() == b"ready\n"
    assert seen_and_locked(outside) == (True, True)
    outside.kill()
    outside.wait(10)
    folder = package(lab, "watcher", BUSYBOX, "sleep", "1000", network={"mode": "none"})
    lab.niso("activate", folder)
    command = ("niso", "exec", "watcher", "--", PYTHON, "-ISc", WATCH)
    inside = lab.popen(*command, stdin=subprocess.PIPE)
    assert inside.stdout and inside.stdout.readline() == b"ready\n", inside.stderr
    assert seen_and_locked(inside) == (False, False)
    inside.kill()


def test_two_services_share_no_inode_of_the_host(lab: Lab) -> None:
    """A lock on a shared inode is a message from one to the other, whatever the policy says."""
    script = "for f in /usr/bin/env /etc/ld.so.cache /etc/ssl/certs /dev/niso-init; do stat -Lc %d:%i $f; done"
    shown = []
    for name in ("one", "two"):
        lab.niso("activate", idle(lab, name, network={"mode": "none"}))
        shown.append(set(lab.niso("exec", name, "--", "/bin/sh", "-c", script).stdout.split()))
    assert len(shown[0]) == 4 and not shown[0] & shown[1]


def test_service_changes_nothing_of_what_all_assembled_roots_share(lab: Lab) -> None:
    attack = (
        "echo 'evil 1/tcp' >/etc/services && rm /etc/rpc && chmod 777 /etc && mkdir /opt/left"
        " && mv /etc/magic /etc/shells && grep -c evil /etc/services"
    )
    tree = ("sh", "-c", "cd /run/niso/skeletons && find . -ls && find . -type f | xargs sha256sum")
    free = {"read_only": False, "capabilities": ["DAC_OVERRIDE", "FOWNER", "CHOWN"]}
    options = {"service": {"user": "0:0"}, "isolation": free, "network": {"mode": "none"}}
    lab.niso("activate", idle(lab, "beside", **options))
    before = lab.run(*tree).stdout
    lab.niso("activate", idle(lab, "attacker", **options))
    done = lab.niso("exec", "attacker", "--", "/bin/sh", "-c", attack)
    assert done.stdout == "1\n", done.stderr
    assert lab.run(*tree).stdout == before
    lab.niso("restart", "attacker")
    script = "cat /etc/services /etc/rpc; ls /opt"
    host = lab.run("cat", "/etc/services", "/etc/rpc").stdout
    for name in ("beside", "attacker"):
        assert lab.niso("exec", name, "--", "/bin/sh", "-c", script).stdout == host, name


def test_root_follows_the_hosts_files_and_keeps_no_copy_too_many(lab: Lab) -> None:
    def seen() -> str:
        return lab.niso("exec", "reader", "--", BUSYBOX, "cat", "/etc/rpc").stdout

    def kept() -> int:
        return len(lab.run("ls", "/run/niso/skeletons").stdout.split())

    for name in ("reader", "older"):
        lab.niso("activate", idle(lab, name, network={"mode": "none"}))
    first, known = seen(), kept()
    lab.run("sh", "-c", "echo 'new 7' >>/etc/rpc; mkdir /run/niso/skeletons/left.1.new")
    lab.niso("restart", "reader")
    assert (seen(), kept()) == (
        f"{first}new 7\n",
        known + 1,
    )  # the older one still runs with its own
    lab.niso("deactivate", "--all")
    assert kept() == 1


def test_capabilities_over_the_machine_are_warned_of(lab: Lab) -> None:
    names = ["SYSLOG", "SYS_NICE", "MKNOD", "LINUX_IMMUTABLE", "SYS_PTRACE", "SETUID"]
    lab.run("mkdir", "-p", "/mnt/data")
    volumes = {"data": {"mount": "/data", "host": "/mnt/data"}}
    folder = idle(
        lab, "able", isolation={"capabilities": names}, network={"mode": "none"}, volumes=volumes
    )
    warned = lab.niso("activate", folder).stderr
    assert [
        name for name in names if f"{name} affects the whole machine: it can" in warned
    ] == names[:-1]
    assert "volumes.data.host: the service can become root (SETUID), also in /mnt/data" in warned


def test_file_system_below_usr_is_shown_too(lab: Lab) -> None:
    """An overlay of /usr does not contain it."""
    lab.run(
        "sh", "-ec", "mkdir /tmp/local; touch /tmp/local/file; mount --bind /tmp/local /usr/local"
    )
    lab.niso("activate", idle(lab, "local", network={"mode": "none"}))
    inside = lab.niso("exec", "local", "--", BUSYBOX, "touch", "/usr/local/file", check=False)
    lab.run("umount", "/usr/local")
    assert "Read-only file system" in inside.stderr
