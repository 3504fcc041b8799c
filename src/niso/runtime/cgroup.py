"""The cgroups of services, wherever the hierarchies are mounted (cgroups(7)): v1, v2 or both beside each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from niso.base.lite_typing import NamedTuple

_TOP = "/sys/fs/cgroup"
_MOUNTS, _OWN = "/proc/self/mountinfo", "/proc/self/cgroup"
_V1, _V2 = "cgroup", "cgroup2"


def roots() -> list[str]:
    """The mount point of each hierarchy that this process sees (proc_pid_mountinfo(5))."""
    return list(_mounted())


def usable(wanted: Iterable[str]) -> list[str]:
    """Those of the controllers ``wanted`` (memory, cpu, pids) that can limit a service on this machine.

    v1: a hierarchy of the controller is mounted where crun looks for it; beside such ones, v2 has no limits for us, because
    crun does not use it there. v2 alone: the controller is enabled for the children of the root, or can be; only those wanted are.
    """
    wanted = list(wanted)
    if not wanted:
        return []
    kinds = _mounted()
    if kinds.get(_TOP) == _V2:
        there = _words(f"{_TOP}/cgroup.controllers")
        return [name for name in wanted if name in there and _enabled(name)]
    return [name for name in wanted if kinds.get(os.path.realpath(f"{_TOP}/{name}")) == _V1]


class _Mount(NamedTuple):
    point: str
    root: str
    """What of the hierarchy is at its root."""
    kind: str
    """``cgroup`` or ``cgroup2``."""
    options: str
    """Of the super block: for v1 they name the hierarchy."""


def _mounts() -> Iterator[_Mount]:
    """The mounts of hierarchies. No other line is taken apart: each service's namespace has one."""
    with open(_MOUNTS, "rb") as file:
        text = file.read()
    at = text.find(b" - cgroup")
    while at >= 0:
        start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        line = text[start : end if end >= 0 else len(text)].decode("utf-8", "surrogateescape")
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        _, _, _, root, point = left.split(" ")[:5]
        if kind in (_V1, _V2):
            yield _Mount(point, root, kind, options)
        at = text.find(b" - cgroup", at + 1)


def _mounted() -> dict[str, str]:
    """Mount point: ``cgroup`` or ``cgroup2``."""
    return {
        each.point.encode().decode("unicode_escape")
        if "\\" in each.point
        else each.point: each.kind
        for each in _mounts()
    }


def move_nowhere() -> None:
    """Move this process to the cgroup that it is in, so that the next one that is moved need not wait.

    The kernel moves processes behind a lock that is free for all others: the first move waits until every processor has
    passed a quiet point, some 19 ms, those soon after it do not (cgroup_threadgroup_rwsem, kernel/cgroup/cgroup.c; percpu-rwsem.rst).
    Where no cgroup is found, or it cannot be written to, nothing happens.
    """
    with open(_OWN, encoding="utf-8", errors="surrogateescape") as lines:
        paths = {
            names: path for _, names, path in (line.rstrip("\n").split(":", 2) for line in lines)
        }
    # where they are mounted nearly always; to look that up costs 2 ms where 1,000 services are
    if any(
        _moved(f"{_TOP}/{names}{path}")
        for names, path in paths.items()
        if not names.startswith("name=")
    ):
        return
    for mount in _mounts():
        has = set(mount.options.split(","))
        v2 = mount.kind == _V2
        names = (
            ""
            if v2
            else next((each for each in paths if each and set(each.split(",")) <= has), None)
        )
        if names not in paths:
            continue
        own = f"{paths[names]}/"
        if own.startswith(f"{mount.root.rstrip('/')}/") and _moved(
            f"{mount.point}/{own.removeprefix(mount.root)}"
        ):
            return


def _moved(cgroup: str) -> bool:
    """Whether this process could be moved to the cgroup of this folder."""
    try:
        fd = os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _enabled(controller: str) -> bool:
    """Whether the children of v2's root have the controller; it is enabled for them where it can be (cgroups(7))."""
    path = f"{_TOP}/cgroup.subtree_control"
    if controller in _words(path):
        return True
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"+{controller}")
    except OSError:
        return False
    return True


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def holds(path: str, pid: int) -> bool:
    """Whether process ``pid`` is in the cgroup ``path`` (``/niso-<id>/<service>``) or below it; False where it is gone."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            return any(f"{line.rstrip()}/".find(f"{path}/") >= 0 for line in lines)
    except (FileNotFoundError, ProcessLookupError):
        return False


def holds_wholly(path: str, pid: int) -> bool:
    """Whether process ``pid`` is in the cgroup ``path`` or below it in all hierarchies of v1 and, where that has it, in v2.

    crun uses all of v1 or v2 alone. True where the process is gone.
    """
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            found = [line.rstrip("\n").split(":", 2) for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        return True
    inside = {number: f"{there}/".find(f"{path}/") >= 0 for number, _, there in found}
    v1 = [ours for number, ours in inside.items() if number != "0"]
    return all(v1) if v1 else inside.get("0", False)


def pids(path: str) -> list[int]:
    """The processes in the cgroup ``path``, in any hierarchy."""
    found: set[int] = set()
    for root in roots():
        found.update(pids_in(f"{root}{path}"))
    return sorted(found)


def pids_in(folder: str) -> list[int]:
    """The processes in one folder of one hierarchy; none where it is not there."""
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


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
