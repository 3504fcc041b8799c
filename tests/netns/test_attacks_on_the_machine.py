"""Test which defences stop an attacker's program inside a service (attacker.py), and that it works without."""

from __future__ import annotations

import json
import pathlib
import platform
import re
from typing import Any

import pytest
from conftest import Lab
from services import package

CLIENT = "192.0.2.2"
PYTHON = "/usr/bin/python3"
ATTACKER = pathlib.Path(__file__).with_name("attacker.py").read_text()
LAB_REFUSES = {
    "files_by_handle",
    "write /sys/class/net/lo/ifalias",
    "write /proc/sys/kernel/core_pattern",
}
"""What a lab refuses too, so that it works outside of one only."""
WORKS_OUTSIDE = {
    *(
        "unshare_mount",
        "unshare_net",
        "mount",
        "open_tree",
        "fsopen",
        "add_key",
        "keyctl",
        "syslog",
        "no_randomization",
    ),
    *(
        "ptrace",
        "process_vm_readv",
        "pidfd_getfd_of_pid_1",
        "setns_net_of_pid_1",
        "files_by_handle",
        "set_priority",
    ),
    *(
        "write /proc/sys/kernel/core_pattern",
        "write /proc/sys/net/ipv4/ip_forward",
        "write /sys/class/net/lo/ifalias",
    ),
    *(
        "read /etc/shadow",
        "leave the cgroup",
        "open a device of its own making",
        "packet socket",
        "raw socket",
        "option of a packet socket",
        "checksum at a chosen place",
        "checksum at a chosen place, by a longer header",
        "checksum at a chosen place, by a level with more bits",
        "checksum at a chosen place, by an option with more bits",
        "XDP socket",
    ),
    *(
        "read nftables",
        "make a link",
        "take another address",
        "abstract socket of the host",
        "shared memory of the host",
    ),
    *(
        "processes of the host",
        "look into /var/lib/niso",
        "look into /run/niso",
        "look into /run/netns",
    ),
}
"""What this program can do as root in the lab; other things depend on the kernel."""

VICTIM = """
import ctypes, socket, sys, time
ctypes.CDLL(None).shmget(0x4E49534F, 4096, 0o1666)
server = socket.socket(socket.AF_UNIX)
server.bind("\\0niso-attack-target")
server.listen(64)
print("ready", flush=True)
time.sleep(1000)
"""

SEIZE = """
import ctypes, os
libc = ctypes.CDLL(None)
print("ready", flush=True)
while os.fork():
    os.wait()
known = {"1", str(os.getpid())}
while True:
    for pid in set(os.listdir("/proc")) - known:
        if pid.isdigit() and libc.ptrace(0x4206, int(pid), None, None) == 0:  # PTRACE_SEIZE
            print(*[line for line in open(f"/proc/{pid}/status") if line.startswith(("Name", "CapEff"))])
            raise SystemExit  # which lets it go, and the next child takes hold again
"""
"""Trace each new process, and print its capabilities: a tracer can make it call anything."""

IDLE = "import time; time.sleep(1000)"
AT_ONCE = f"import runpy, sys; sys.argv.append('--all'); runpy.run_path('/app/attacker.py', run_name='__main__'); {IDLE}"


@pytest.fixture
def host(lab: Lab) -> Lab:
    """A host with something to find: a listener, shared memory, a process; its own / is read-only, to be safe."""
    if platform.machine() != "x86_64":
        pytest.skip("the attacker knows the syscalls of x86-64")
    lab.run("mount", "--bind", "/", "/")
    lab.run("mount", "-o", "remount,bind,ro", "/")
    victim = lab.popen(PYTHON, "-IS", "-c", VICTIM, "niso-attack-victim")
    assert victim.stdout and victim.stdout.readline() == b"ready\n"
    return lab


def attacked(
    lab: Lab, name: str, by_exec: bool = False, **sections: dict[str, Any]
) -> tuple[set[str], str]:
    """What works for the attacker in a service of its own, and what niso warned of."""
    argv = IDLE if by_exec else AT_ONCE
    folder = package(lab, name, PYTHON, "-ISc", argv, files={"attacker.py": ATTACKER}, **sections)
    warned = lab.niso("activate", folder).stderr
    if by_exec:
        said = lab.niso("exec", name, "--", PYTHON, "-IS", "/app/attacker.py", "--all").stdout
    else:
        said = lab.wait_for(lambda: lab.niso("logs", name).stdout)
    return {attack for attack, why in json.loads(said).items() if not why}, warned


def test_nothing_works_from_inside_and_all_of_it_does_outside(host: Lab) -> None:
    before = (host.ip_json("link"), host.run("nft", "list", "tables").stdout)
    inside = {
        "user": attacked(host, "user"),
        "root": attacked(host, "root", True, service={"user": "0:0"}),
        "written": attacked(
            host, "written", True, service={"user": "0:0"}, isolation={"read_only": False}
        ),
    }
    own_root = {
        "write /etc/passwd",
        "make a file in /etc",
        "make a file in /",
    }  # a layer of its own, forgotten at its end
    assert {
        name: works - (own_root if name == "written" else set())
        for name, (works, _) in inside.items()
    } == {name: set() for name in inside}
    assert all("a right on the machine" not in warned for _, warned in inside.values())
    host.niso("remove", "user", "root", "written")
    assert (host.ip_json("link"), host.run("nft", "list", "tables").stdout) == before
    host.niso("net", "create", "some")  # something to look into
    host.write("/tmp/attacker.py", ATTACKER)
    outside = json.loads(host.run(PYTHON, "-IS", "/tmp/attacker.py").stdout)
    works = {attack for attack, why in outside.items() if not why}
    assert WORKS_OUTSIDE - works <= LAB_REFUSES


def test_network_capabilities_are_of_its_own_namespace_but_for_links(host: Lab) -> None:
    """The threat model says it: with NET_ADMIN it leaves an internal network, past all rules."""
    host.niso("net", "create", "inner", "--internal")
    works, warned = attacked(
        host,
        "net",
        True,
        service={"user": "0:0"},
        network={"network": "inner"},
        isolation={"capabilities": ["NET_ADMIN", "NET_RAW"]},
    )
    assert works == {
        "packet socket",
        "option of a packet socket",
        "raw socket",
        "raw socket of IPv6",
        "read nftables",
        "make a link",
        "take another address",
        "take a link of another namespace",
    }
    assert "net: isolation.capabilities: NET_ADMIN affects the whole machine: it can" in warned
    assert "NET_RAW" not in warned
    assert (
        "attack" not in host.run("ip", "link").stdout
        and "10.99.0.77" not in host.run("ip", "address").stdout
    )
    lines = ("addr add 192.0.2.50/24 dev taken", "link set taken up")
    for line in lines:
        host.niso("exec", "net", "--", "/usr/sbin/ip", *line.split())
    ping = ("ping", "-c", "1", "-W", "2")
    assert host.niso("exec", "net", "--", *ping, "-I", "eth0", CLIENT, check=False).returncode
    host.niso("exec", "net", "--", *ping, CLIENT)
    # without a link whose other end is the host's there is no way
    works, warned = attacked(
        host, "alone", True, network={"mode": "none"}, isolation={"capabilities": ["NET_ADMIN"]}
    )
    assert "make a link" in works and "take a link of another namespace" not in works
    assert "NET_ADMIN" not in warned


def test_what_mode_host_and_some_capabilities_give_away_is_warned_of(host: Lab) -> None:
    """The threat model says it: these are not kept from the machine."""
    works, warned = attacked(
        host, "near", True, network={"mode": "host"}, isolation={"capabilities": ["NET_ADMIN"]}
    )
    assert {"abstract socket of the host", "read nftables"} <= works
    assert (
        "near: isolation.capabilities: NET_ADMIN affects the whole machine: it can change the machine's network"
        in warned
    )
    works, warned = attacked(host, "reader", True, isolation={"capabilities": ["DAC_READ_SEARCH"]})
    assert "files_by_handle" in works
    assert "reader: isolation.capabilities: DAC_READ_SEARCH affects the whole machine" in warned
    folder = package(
        host, "tracer", PYTHON, "-ISc", SEIZE, isolation={"capabilities": ["SYS_PTRACE"]}
    )
    warned = host.niso("activate", folder).stderr
    assert "tracer: isolation.capabilities: SYS_PTRACE affects the whole machine" in warned
    host.wait_for(lambda: "ready" in host.niso("logs", "tracer").stdout)

    def seized() -> bool:
        host.niso("exec", "tracer", "--", "/usr/bin/true", check=False)
        caps = re.findall(r"crun\n CapEff:\t(\w+)", host.niso("logs", "tracer").stdout)
        return any(int(cap, 16) >> 21 & 1 for cap in caps)  # CAP_SYS_ADMIN

    host.wait_for(seized, 90, "crun traced")
    works, warned = attacked(host, "admin", True, isolation={"capabilities": ["SYS_ADMIN"]})
    assert {"mount", "unshare_net"} <= works
    assert "admin: isolation.capabilities: SYS_ADMIN affects the whole machine" in warned
