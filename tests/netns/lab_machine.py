"""Run a lab that changes all it can, and compare the machine before and after."""

from __future__ import annotations

import json
import sys

from conftest import Lab, Process

LAB = (sys.executable, "-m", "niso.lab", "--")
NAMESPACES = ("net", "mnt", "pid", "uts", "ipc", "cgroup")
# Prints a JSON object of everything that a lab could have changed outside itself.
SNAPSHOT = r"""
import json, os, subprocess

def out(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"exit status {done.returncode}"

def sysctls(root):
    found = {}
    for folder, _, names in os.walk(root):
        if folder.endswith("/stat"):
            continue
        for name in names:
            path = f"{folder}/{name}"
            if name not in ("nf_conntrack_count", "flush"):
                try:
                    found[path] = open(path).read()
                except OSError:
                    pass
    return found

def tree(root):
    return sorted(f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names)

def folders(root):
    return sorted(folder for folder, _, _ in os.walk(root))

def routes(family):  # without what counts down
    return [{key: value for key, value in route.items() if key != "expires"}
            for route in json.loads(out("ip", "-j", family, "route", "show", "table", "all"))]

links = json.loads(out("ip", "-j", "addr"))
print(json.dumps({
    "links": [{key: value for key, value in link.items() if key != "addr_info"} for link in links],
    "addresses": [[link["ifname"], item["local"], item["prefixlen"]] for link in links for item in link["addr_info"]],
    "routes": routes("-4") + routes("-6"),
    "rules": out("nft", "-j", "--stateless", "list", "ruleset"),
    "sysctls": sysctls("/proc/sys/net"),
    "hostname": open("/proc/sys/kernel/hostname").read(),
    "run": tree("/run"),
    "run/netns": sorted(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else None,
    "tmp": sorted(os.listdir("/tmp")),
    "shm": sorted(os.listdir("/dev/shm")),
    "state": sorted(os.listdir("/var/lib/niso")) if os.path.isdir("/var/lib/niso") else None,
    "var/lib": sorted(os.listdir("/var/lib")),
    "cgroups": folders("/sys/fs/cgroup"),
    "mount_points": [line.split(" - ")[0].split(" ")[2:] for line in open("/proc/self/mountinfo")],
}))
"""
# Changes all of it, says so, and ends, or waits to be killed.
CHANGES = """
set -e
ip link add niso-x type bridge
ip link set niso-x up
ip addr add 10.99.1.1/24 dev niso-x
ip route add 203.0.113.0/24 via 192.0.2.3
ip netns add niso-x
nft add table inet niso
echo 1 > /proc/sys/net/ipv4/ip_forward
hostname changed
mkdir /run/niso /var/lib/niso/logs
touch /tmp/changed /dev/shm/changed
for folder in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if [ -w $folder/cgroup.procs ]; then mkdir -p $folder/niso-x/y; fi
done
mount -t tmpfs none /mnt
(setsid sleep 1000 &)
echo changed
"""


def snapshot(machine: Lab) -> dict[str, object]:
    found: dict[str, object] = json.loads(machine.run(sys.executable, "-c", SNAPSHOT).stdout)
    return found


def children(machine: Lab, pid: int) -> list[int]:
    return [
        int(word) for word in machine.path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def sleepers(machine: Lab) -> str:
    return str(machine.run("pgrep", "-x", "sleep", check=False).stdout)


def start_changed_lab(machine: Lab) -> tuple[Process, int]:
    """A lab in ``machine`` that has changed all it can; the process, and the number of its supervisor."""
    process = machine.popen(*LAB, "sh", "-c", CHANGES + "exec sleep 1000")
    assert process.stdout
    assert process.stdout.readline() == b"changed\n"
    supervisor = machine.wait_for(lambda: children(machine, process.pid))[0]
    return process, supervisor
