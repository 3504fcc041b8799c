"""Test the mount namespaces of starts, by what the kernel says is mounted in them."""

from __future__ import annotations

import json

import pytest
from conftest import Lab

CODE = """\
import _thread, ctypes, json, os, sys
from niso.runtime import launch as mount_base
from niso.runtime import root as under_way
from niso.runtime.root import mount

if jail := "".join(sys.argv[1:]):
    os.chroot(jail)
    os.chdir("/")
before = os.listdir("/proc/self/fd")
found = []
points = lambda: [line.split()[4] for line in open("/proc/thread-self/mountinfo")]

def start(number, done):
    try:
        os.unshare(os.CLONE_FS)
        mount_base.enter()
        os.mkdir(f"/tmp/{number}")
        mount("none", f"/tmp/{number}", "tmpfs", 0)
        found.append([points(), os.readlink("/proc/thread-self/ns/mnt"), os.stat("/")[1:3]])
    finally:
        done.release()
    with leave:
        pass

leave = _thread.allocate_lock()
leave.acquire()
for _ in range(3):
    under_way.begin()
for number in range(3):
    done = _thread.allocate_lock()
    done.acquire()
    _thread.start_new_thread(start, (number, done))
    done.acquire()
for _ in range(3):
    under_way.end()
found.append([points(), os.readlink("/proc/self/ns/mnt"), os.stat("/")[1:3]])
print(json.dumps([found, before == os.listdir("/proc/self/fd")]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("jail", ["", "/tmp/jail"])
def test_starts_have_mounts_of_their_own_without_named_namespaces(lab: Lab, jail: str) -> None:
    lab.run("ip", "netns", "add", "one")
    if jail:
        script = (
            "mkdir /tmp/jail; mount -t tmpfs none /tmp/jail; mkdir -p /tmp/jail/proc /tmp/jail/tmp"
            " /tmp/jail/run/netns; mount -t proc proc /tmp/jail/proc;"
            " mount --rbind /run/netns /tmp/jail/run/netns"
        )
        lab.run("sh", "-ec", script)
    named = "/run/netns/one"
    found, closed = json.loads(lab.run("python", "-c", CODE, *[jail] * bool(jail)).stdout)
    *starts, (host, namespace, root) = found
    assert len(starts) == 3
    assert len({namespace, *(own for _, own, _ in starts)}) == 4
    for number, (points, _, seen) in enumerate(starts):
        assert seen == root
        assert f"/tmp/{number}" in points
        assert not [point for point in points if point.startswith("/run/netns")]
        others = {f"/tmp/{other}" for other in range(3) if other != number}
        assert not others & set(points)
    assert named in host
    assert not {f"/tmp/{number}" for number in range(3)} & set(host)
    assert closed
    assert named in lab.run("cat", "/proc/self/mountinfo").stdout
