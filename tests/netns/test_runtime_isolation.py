"""Test what a process sees of its host, and what it may do there, on the real kernel."""

from __future__ import annotations

import json
import re

import pytest
from conftest import Lab
from runtime_world import FOLDER, HOSTS, SERVICE, UID, Runtime
from services import busybox_rootfs


@pytest.fixture
def runtime(lab: Lab) -> Runtime:
    return Runtime(lab)


def status_fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(.*)$", text, re.MULTILINE))


@pytest.mark.rootless
def test_process_has_no_privileges(runtime: Runtime) -> None:
    found = status_fields(runtime.output("cat /proc/self/status"))
    assert found["Uid"].split() == [str(UID)] * 4
    assert found["Gid"].split() == [str(UID)] * 4
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
        "0" * 16
    }
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


@pytest.mark.rootless
def test_granted_capability_is_had_by_the_unprivileged_user_and_no_other(runtime: Runtime) -> None:
    found = status_fields(runtime.output("cat /proc/self/status", capabilities=["NET_ADMIN"]))
    assert {
        int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    } == {1 << 12}


def test_service_is_at_rest_when_all_its_threads_sleep(runtime: Runtime) -> None:
    code = (
        "import sys; from niso.runtime import lifecycle as idle; print(idle.mark(int(sys.argv[1])))"
    )

    def mark() -> str:
        return runtime.lab.run(
            "python", "-c", code, str(runtime.call("status", SERVICE)["pid"])
        ).stdout.strip()

    runtime.start(["/bin/sh", "-c", "until [ -e /tmp/go ]; do :; done; exec sleep 1000"])
    assert [mark(), mark()] == ["None", "None"]
    runtime.lab.path(f"/proc/{runtime.call('status', SERVICE)['pid']}/root/tmp/go").touch()
    first = runtime.lab.wait_for(lambda: (found := mark()) != "None" and found)
    assert first.count("(") == 3 and mark() == first  # catatonit and sleep
    # a shell that waits for a program is not at rest, whatever that does
    runtime.call("stop", SERVICE, 0)
    runtime.start(["/bin/sh", "-c", "sleep 1000; exit 3"])
    assert mark() == "None"
    # a thread of a program that sleeps counts too
    runtime.call("stop", SERVICE, 0)
    busy = "import threading, time; threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start(); time.sleep(1000)"
    runtime.start(["/usr/bin/python3", "-c", busy])
    assert mark() == "None"


@pytest.mark.rootless
def test_process_sees_only_its_own_processes_below_catatonit(runtime: Runtime) -> None:
    lines = runtime.output("tr '\\0' ' ' </proc/1/cmdline; echo; ls -d /proc/[0-9]*").splitlines()
    assert lines[0].startswith("/dev/niso-init -- /bin/sh -c")
    assert {int(line.removeprefix("/proc/")) for line in lines[1:]} <= set(range(1, 6))


@pytest.mark.rootless
def test_system_is_read_only_and_temporary_folders_are_not(runtime: Runtime) -> None:
    script = "for d in / /usr /etc /app /var /etc/niso-hosts /sys /proc/sys/kernel /tmp /run /var/tmp /dev/shm; do touch $d/x 2>/dev/null && echo $d; done"
    assert runtime.output(script).split() == ["/tmp", "/run", "/var/tmp", "/dev/shm"]


def test_root_user_without_capabilities_cannot_write_either(runtime: Runtime) -> None:
    script = "for d in / /usr /etc /app /etc/niso-hosts /sys /proc/sys/kernel /proc/sys/net/ipv4; do touch $d/x 2>/dev/null && echo $d; done; echo 1 >/proc/sys/net/ipv4/ip_forward; mount -t tmpfs x /tmp && echo mounted; true"
    text = runtime.output(script, uid=0, gid=0, user_name="root")
    assert not {"/", "/usr", "/etc", "/app", "/etc/niso-hosts", "/sys", "mounted"} & set(
        text.split("\n")
    )


@pytest.mark.rootless
def test_process_cannot_make_a_namespace(runtime: Runtime) -> None:
    flags = ("-U", "-n", "-m", "-p", "-u", "-i", "-C", "-T")
    text = runtime.output(
        f"for flag in {' '.join(flags)}; do unshare $flag true 2>&1 && echo made; done",
        uid=0,
        gid=0,
        user_name="root",
        capabilities=["SYS_CHROOT"],
    )
    lines = text.splitlines()
    assert len(lines) == len(flags) and "made" not in lines
    assert all("not permitted" in line or "not implemented" in line for line in lines), lines


def test_threads_pipes_and_sockets_work_under_the_filter(runtime: Runtime) -> None:
    script = """python3 -c '
import threading, socket, subprocess, multiprocessing, asyncio, tempfile, sqlite3
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
print(subprocess.run(["echo", "child"], capture_output=True, text=True).stdout.strip())
socket.socket(socket.AF_INET6); socket.socket(socket.AF_UNIX); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
async def task(): await asyncio.sleep(0); print("loop")
asyncio.run(task())
print(multiprocessing.get_context("fork").Pool(1).map(abs, [-1]))
sqlite3.connect(tempfile.mktemp()).execute("create table t (x)")
'"""
    assert runtime.output(script).split() == ["thread", "child", "loop", "[1]"]


def test_sockets_of_the_machine_are_refused(runtime: Runtime) -> None:
    for family, kind, protocol in ((40, 1, 0), (38, 5, 0), (16, 3, 9)):
        text = runtime.output(
            f"python3 -c 'import socket; socket.socket({family}, {kind}, {protocol})'"
        )
        assert "Function not implemented" in text


def test_assembled_etc_is_its_own_and_has_no_secret_of_the_host(runtime: Runtime) -> None:
    text = runtime.output(
        "cat /etc/hostname; hostname; id -un; cat /etc/resolv.conf; ls /etc /etc/ssl; getent hosts localhost; command -v awk; awk 'BEGIN {print 6 * 7}'"
    )
    lines = text.splitlines()
    assert lines[:4] == ["shop", "shop", SERVICE, "nameserver 192.0.2.53"]
    assert {"passwd", "group", "nsswitch.conf", "ld.so.cache", "certs"} <= set(lines)
    assert not {"shadow", "gshadow", "machine-id", "private", "ssh", "sudoers"} & set(lines)
    assert "42" in lines


def test_hosts_file_renamed_over_is_seen_at_once_and_cannot_be_written(
    runtime: Runtime, lab: Lab
) -> None:
    runtime.start(["/bin/sleep", "1000"])
    lab.write(f"{HOSTS}/draft", "10.99.1.9 late\n")
    lab.run("mv", f"{HOSTS}/draft", f"{HOSTS}/hosts")
    assert runtime.exec("getent", "hosts", "late").stdout.split() == ["10.99.1.9", "late"]
    assert runtime.exec("sh", "-c", "echo x >>/etc/hosts", check=False).returncode != 0
    runtime.stop()


AWKWARD = ["/tmp/plain", "/tmp/a:b,c\\d e=f/root,fs:1"]


@pytest.mark.parametrize("rootfs", AWKWARD)
@pytest.mark.parametrize("read_only", [True, False])
def test_own_rootfs_is_used_and_never_written_to(
    runtime: Runtime, lab: Lab, rootfs: str, read_only: bool
) -> None:
    busybox_rootfs(lab, rootfs)
    tree = ("find", rootfs, "-printf", "%p %m %u %g %s %T@ %l\\n")
    before = lab.run(*tree).stdout
    script = "id -u; hostname; ls /app; cat /etc/passwd; touch /written && ls /written; touch /var/tmp/x /run/x && echo tmpfs; cat /etc/hosts"
    lines = runtime.output(script, rootfs=rootfs, read_only=read_only).splitlines()
    assert lines[:3] == [str(UID), "shop", "readme"]
    assert "web:x:33:44::/home/web:/bin/sh" in lines
    assert f"{SERVICE}:x:{UID}:{UID}::/tmp:/bin/sh" in lines
    assert "tmpfs" in lines
    assert "127.0.0.1 localhost" in lines
    assert lab.run(*tree).stdout == before


def test_writable_root_takes_writes_of_root_and_forgets_them(runtime: Runtime, lab: Lab) -> None:
    rootfs = busybox_rootfs(lab, "/tmp/writable")
    options = {"uid": 0, "gid": 0, "user_name": "root", "rootfs": rootfs, "read_only": False}
    assert runtime.output("touch /written && ls /written", **options).split() == ["/written"]
    assert "No such file" in runtime.output("ls /written", **options).splitlines()[-1]


def test_writable_assembled_root_takes_writes(runtime: Runtime) -> None:
    text = runtime.output(
        "touch /etc/x /opt/x && echo yes; touch /usr/x",
        uid=0,
        gid=0,
        user_name="root",
        read_only=False,
    )
    assert text.splitlines()[0] == "yes"
    assert "Read-only" in text


def test_rootfs_with_links_for_etc_var_and_run_keeps_them_inside(
    runtime: Runtime, lab: Lab
) -> None:
    rootfs = busybox_rootfs(lab, "/tmp/links")
    lab.run(
        "sh",
        "-c",
        f"cd {rootfs} && mkdir -p conf data && mv etc/* conf && rmdir etc var && ln -s /conf etc && ln -s ../../data var && ln -s /data/run run",
    )
    text = runtime.output(
        "cat /etc/hostname /etc/hosts; touch /run/x /var/tmp/x && echo ok", rootfs=rootfs
    )
    assert text.splitlines() == ["shop", "127.0.0.1 localhost", "ok"]


def test_overlay_and_bind_mounts_are_never_in_the_hosts_namespace(
    runtime: Runtime, lab: Lab
) -> None:
    rootfs = busybox_rootfs(lab, "/tmp/hidden")
    before = lab.run("cat", "/proc/mounts").stdout
    runtime.start(["/bin/sleep", "1000"], rootfs=rootfs)
    assert lab.run("cat", "/proc/mounts").stdout == before
    runtime.stop()
    assert lab.run("cat", "/proc/mounts").stdout == before


def test_nothing_of_the_caller_is_inherited(runtime: Runtime, lab: Lab) -> None:
    lab.write("/tmp/secret", "x")
    lab.run(
        "sh",
        "-c",
        'exec 7</tmp/secret 8>/tmp/out; exec "$@" >/tmp/out',
        "sh",
        "python",
        "-c",
        "import os, sys, json\nfor fd in (7, 8): os.set_inheritable(fd, True)\n"
        "from niso.base.convert import convert\nfrom niso.plan.specs import ProcessSpec\nfrom niso.runtime import lifecycle as process\nfrom niso.base.locks import service_lock\n"
        "with service_lock('demo'): process.start(convert(json.loads(sys.argv[1]), ProcessSpec))",
        json.dumps(runtime.spec(["/bin/sleep", "1000"])),
        env={"SECRET_OF_CALLER": "x"},
    )
    state = runtime.status()
    conmon = lab.path(f"{FOLDER}/run-0/conmon.pid").read_text()
    for pid in (str(state["pid"]), conmon):
        held = lab.run("ls", "-l", f"/proc/{pid}/fd").stdout
        assert "/tmp/secret" not in held
        assert "/tmp/out" not in held
        assert ".lock" not in held
        assert "SECRET_OF_CALLER" not in lab.run("cat", f"/proc/{pid}/environ").stdout
    runtime.stop()


def test_owner_of_dev_null_stays_root(runtime: Runtime, lab: Lab) -> None:
    runtime.start(["/bin/sleep", "1000"])
    assert lab.run("stat", "-c", "%u %a", "/dev/null").stdout.split() == ["0", "666"]
    runtime.stop()
    assert lab.run("stat", "-c", "%u %a", "/dev/null").stdout.split() == ["0", "666"]
