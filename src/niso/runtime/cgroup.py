"""The cgroups of services, wherever the hierarchies are mounted (cgroups(7)): v1, v2 or both beside each other."""

from __future__ import annotations

import os

_V1, _V2 = "cgroup", "cgroup2"


def roots() -> list[str]:
    """The mount point of each hierarchy that this process sees (proc_pid_mountinfo(5))."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if right.split(" ", 1)[0] in (_V1, _V2):
                found.append(left.split(" ")[4].encode().decode("unicode_escape"))
    return found


def holds(path: str, pid: int) -> bool:
    """Whether process ``pid`` is in the cgroup ``path`` (``/niso-<id>/<service>``) or below it; False where it is gone."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            return any(f"{line.rstrip()}/".find(f"{path}/") >= 0 for line in lines)
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(path: str) -> list[int]:
    """The processes in the cgroup ``path``, in any hierarchy."""
    found: set[int] = set()
    for root in roots():
        try:
            with open(f"{root}{path}/cgroup.procs", encoding="ascii") as procs:
                found.update(int(line) for line in procs)
        except OSError:
            continue
    return sorted(found)


def remove(path: str) -> None:
    """Remove the cgroup ``path`` and all below it in each hierarchy; what is busy or not there stays as it is."""
    for root in roots():
        for folder, _, _ in os.walk(f"{root}{path}", topdown=False):
            remove_empty(folder)


def remove_parent(path: str) -> None:
    """Remove the folder above the cgroup ``path`` where it is empty."""
    for root in roots():
        remove_empty(os.path.dirname(f"{root}{path}"))


def remove_empty(folder: str) -> None:
    """rmdir(2), quietly where it is busy or gone."""
    try:
        os.rmdir(folder)
    except OSError:
        return
