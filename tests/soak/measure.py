"""Count the resources of a lab by means other than niso's."""

from __future__ import annotations

import json
import os
import subprocess
from typing import NamedTuple

from churn import SERVER, STEADY

MACHINE = ("SUnreclaim", "Percpu")
"""What the kernel has for itself and cannot give back: of the whole machine, as /proc/meminfo tells."""
LAB = "lab's own"
"""What the kernel has for what the processes of this lab did, as their cgroup tells; where there is none with memory: 0."""
MEMORY = (*MACHINE, LAB)
FOLDERS = ("/run/niso", "/var/lib/niso")
OF_CACHES = ("/run/niso/skeletons/", "/var/lib/niso/contents/", "/run/niso/events/log.")
"""Copies of files of the machine's /etc: a new one whenever somebody changes one of those. The digests of packages: one file for each
service, from the second activation on. And the older part of the event log, which exists once the log was full."""


class Sample(NamedTuple):
    exact: dict[str, int]
    """What must be the same whenever the same services are active."""
    flows: int
    memory: dict[str, int]
    """KiB."""
    conmons: dict[int, int]
    """pid -> resident KiB."""
    files: frozenset[str]
    others: int
    """Network namespaces of the machine that are none of this lab's: others' doings show in `MACHINE` too."""


def sample() -> Sample:
    exact: dict[str, int] = {}
    for item in json.loads(output("nft", "-j", "list", "ruleset"))["nftables"]:
        for kind, body in item.items():
            if kind in ("set", "map") and "dynamic" not in body.get("flags", ()):
                exact[f"elements of {body['family']} {body['name']}"] = len(body.get("elem", ()))
            elif kind in ("chain", "rule"):
                exact[f"nft {kind}s"] = exact.get(f"nft {kind}s", 0) + 1
    exact["links"] = len(json.loads(output("ip", "-j", "link")))
    exact["named netns"] = len(os.listdir("/run/netns"))
    exact["cgroups"] = sum(1 for _ in os.walk("/sys/fs/cgroup"))
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        exact["mounts"] = sum(1 for _ in lines)
    found = (
        os.path.join(folder, name)
        for root in FOLDERS
        for folder, _, names in os.walk(root)
        for name in names
    )
    files = frozenset(path for path in found if not path.startswith(OF_CACHES))
    exact["files"] = len(files)
    conmons = {}
    steady = set(steady_processes())
    exact["processes"] = exact["fds of conmons"] = exact["fds of steady services"] = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name = _read(f"/proc/{pid}/comm").strip()
            fds = len(os.listdir(f"/proc/{pid}/fd"))
            resident = next(
                (
                    line
                    for line in _read(f"/proc/{pid}/status").splitlines()
                    if line.startswith("VmRSS:")
                ),
                "",
            )
        except OSError:
            continue
        exact["processes"] += 1
        if name == "conmon":
            conmons[int(pid)] = int(resident.split()[1])
            exact["fds of conmons"] += fds
        elif int(pid) in steady:
            # one that is churned can be left with a connection whose end a policy kept from it: that is TCP
            exact["fds of steady services"] += fds
    return Sample(exact, flows(), memory(), conmons, files, _namespaces() - exact["named netns"])


def steady_processes() -> list[int]:
    """The processes of services that are never touched."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = _read(f"/proc/{pid}/cmdline").split("\0")
        except OSError:
            continue
        if SERVER in words and words[words.index(SERVER) + 1] in STEADY:
            found.append(int(pid))
    return found


def flows() -> int:
    """Entries of connection tracking."""
    return int(output("conntrack", "-C"))


def memory() -> dict[str, int]:
    lines = _read("/proc/meminfo").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {**{name: found[name] for name in MACHINE}, LAB: _lab_memory()}


def _lab_memory() -> int:
    try:
        return int(_read("/sys/fs/cgroup/memory/memory.kmem.usage_in_bytes")) >> 10
    except OSError:
        pass
    try:
        words = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        return int(words.get("slab_unreclaimable", 0)) + int(words.get("percpu", 0)) >> 10
    except OSError:
        return 0


def _namespaces() -> int:
    return next(
        int(line.split()[1])
        for line in _read("/proc/slabinfo").splitlines()
        if line.startswith("net_namespace ")
    )


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
