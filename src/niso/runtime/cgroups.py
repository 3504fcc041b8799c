"""Set the limits of services (memory, CPU, number of processes), and manage their cgroups.

The cgroups of a service are in all mounted hierarchies: v1, v2 or both (cgroups(7)).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

from niso.base import files
from niso.base.locks import open_lock
from niso.base.named_tuples import NamedTuple
from niso.plan.specs import ProcessSpec

CONTROLLERS = {
    "memory": "isolation.resources.memory_max",
    "cpu": "isolation.resources.cpu_max",
    "pids": "isolation.resources.pids_limit",
}
"""Maps each cgroup controller to the manifest key that needs it."""
_CPU_PERIOD_US = 100_000

_TOP = "/sys/fs/cgroup"
_MOUNTS, _OWN = "/proc/self/mountinfo", "/proc/self/cgroup"
_V1, _V2 = "cgroup", "cgroup2"


KEEPERS = ".keepers"
"""Name of the cgroup for the conmon processes, next to the cgroups of the services.

No service has a dot in its name.
"""


def roots() -> list[str]:
    """Return the mount point of each cgroup hierarchy that this process sees."""
    return list(_own_cgroups())


def _own_cgroups() -> dict[str, str]:
    """Return {mount point: this process's cgroup} for all hierarchies (proc_pid_cgroup(5)).

    If all hierarchies are at their usual mount points, the list of mounts is not read, which would
    take 2 ms with 1,000 services. Otherwise the mount points are read from the list, and the values
    are "", because the cgroups are then unknown.
    """
    lines = own_lines()
    try:
        device = os.stat(_TOP).st_dev
    except OSError:
        device = 0
    own = dict(_usual(tuple(lines), _TOP, device))
    return own or {unescaped(point): "" for _, point, *_ in mounts()}


@lru_cache(maxsize=1)
def _usual(
    lines: tuple[tuple[str, str], ...], top: str, device: int
) -> tuple[tuple[str, str], ...]:
    """Return (mount point, path) for each item of `own_lines`, or () if a hierarchy is not at its
    usual mount point. ``device`` is the file system at ``top``, which differs in a lab.
    """
    own = {}
    for controllers, path in lines:
        v1 = f"{top}/{controllers.removeprefix('name=')}"
        mixed = f"{top}/unified"
        v2 = mixed if os.path.exists(f"{mixed}/cgroup.procs") else top
        own[v1 if controllers else v2] = path
    return tuple(own.items()) if all(os.path.exists(f"{at}/cgroup.procs") for at in own) else ()


class Usage(NamedTuple):
    """The resource usage of a cgroup. A field is None if the kernel does not count it here."""

    cpu_s: float | None  # seconds of processor time
    throttled_s: float | None  # seconds in which the limit of processor time stopped processes
    memory: int | None  # bytes, without the file cache that the kernel can free at once
    memory_limit: int | None  # bytes; None without a limit
    oom_kills: int | None  # processes that the memory limit has killed

    def plus(self, other: Usage) -> Usage:
        """Return the sum of two usages. A value that is None in one of them counts as 0."""
        return Usage(
            _sum(self.cpu_s, other.cpu_s),
            _sum(self.throttled_s, other.throttled_s),
            _sum(self.memory, other.memory),
            _sum(self.memory_limit, other.memory_limit),
            _sum(self.oom_kills, other.oom_kills),
        )


def _sum[N: (int, float)](one: N | None, other: N | None) -> N | None:
    return other if one is None else one if other is None else one + other


def counting_roots() -> list[str]:
    """Return the mount points of the hierarchies from which a field of `Usage` can be read."""
    return [
        root for root in roots() if not _UNCOUNTED.issuperset(os.path.basename(root).split(","))
    ]


def usage(path: str, counting: Iterable[str] | None = None) -> Usage:
    """Return the usage of a cgroup, whose path is relative to the mount points.

    ``counting`` is the result of `counting_roots`, for callers that read many cgroups.

    Sources: Documentation/admin-guide/cgroup-v2.rst; cgroup-v1/memory.rst and cpuacct.rst.
    """
    cpu_s = throttled_s = memory = limit = kills = None
    for root in counting_roots() if counting is None else counting:
        folder = f"{root}{path}"
        # each hierarchy of v1 is read for its own controllers only
        name = os.path.basename(root)
        cpu = {} if name == "memory" else _table(f"{folder}/cpu.stat")
        if "usage_usec" in cpu:
            cpu_s = cpu["usage_usec"] / 1e6
        if name != "memory" and (total_ns := _number(f"{folder}/cpuacct.usage")) is not None:
            cpu_s = total_ns / 1e9
        if "throttled_usec" in cpu or "throttled_time" in cpu:
            throttled_s = cpu.get("throttled_usec", 0) / 1e6 + cpu.get("throttled_time", 0) / 1e9
        for size, most, events, cache in (
            ("memory.current", "memory.max", "memory.events", "inactive_file"),
            (
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
                "memory.oom_control",
                "total_inactive_file",
            ),
        ):
            if "cpu" not in name and (used := _number(f"{folder}/{size}")) is not None:
                memory = max(0, used - _table(f"{folder}/memory.stat").get(cache, 0))
                limit = _number(f"{folder}/{most}")  # None for "max"
                kills = _table(f"{folder}/{events}").get("oom_kill")
    unlimited = limit is not None and limit > _UNLIMITED
    return Usage(cpu_s, throttled_s, memory, None if unlimited else limit, kills)


_UNCOUNTED = frozenset(
    ("blkio", "cpuset", "devices", "freezer", "hugetlb", "misc", "net_cls", "net_prio")
) | {"perf_event", "pids", "rdma", "systemd"}
"""Controllers of v1 that count nothing of a `Usage`."""
_UNLIMITED = 1 << 60
"""v1 shows no limit of memory as the largest number of pages."""


def _number(path: str) -> int | None:
    try:
        return int(files.read(path) or b"")
    except (OSError, ValueError):
        return None


def _table(path: str) -> dict[str, int]:
    try:
        lines = (files.read(path) or b"").decode().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def limits(spec: ProcessSpec) -> dict[str, dict[str, int]]:
    """Return the limits of a service as the object ``resources`` of its OCI configuration:
    {controller: {setting: value}} (config-linux.md, Control groups).
    """
    resources: dict[str, dict[str, int]] = {}
    if spec.memory_max is not None:
        # "swap" limits memory plus swap: no swap is allowed, which would only delay the OOM kill.
        resources["memory"] = {"limit": spec.memory_max, "swap": spec.memory_max}
    if spec.cpu_max is not None:
        resources["cpu"] = {"quota": spec.cpu_max * _CPU_PERIOD_US // 100, "period": _CPU_PERIOD_US}
    if spec.pids_limit is not None:
        resources["pids"] = {"limit": spec.pids_limit}
    return resources


def usable(wanted: Iterable[str]) -> list[str]:
    """Return which of the given controllers (memory, cpu, pids) can limit services here.

    With v1, a hierarchy with the controller must be mounted where crun expects it. With v2 alone,
    the controller must be enabled for the children of the root cgroup. This function enables it if
    possible. The list of mounts is not read, because that takes 2 ms with 1,000 services.
    """
    wanted = list(wanted)
    available = _words(f"{_TOP}/cgroup.controllers")  # only v2 has this file
    if available:
        return [name for name in wanted if name in available and _enable(name)]
    # only v1 has this file
    return [name for name in wanted if os.path.exists(f"{_TOP}/{name}/cgroup.clone_children")]


def mounts() -> Iterator[tuple[str, str, str, str, set[str]]]:
    """Yield (device, mount point, root, type, options) for each mount of a cgroup hierarchy.

    The root is the cgroup that is visible at the mount point. In v1, the options contain the names
    of the controllers (proc_pid_mountinfo(5)). Only lines of cgroups are parsed, because the list
    of mounts has a line for each service's namespace.
    """
    with open(_MOUNTS, "rb") as file:
        text = file.read()
    at = text.find(b" - cgroup")
    while at >= 0:
        start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        line = text[start : end if end >= 0 else len(text)].decode("utf-8", "surrogateescape")
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        _, _, device, root, point = left.split(" ")[:5]
        if kind in (_V1, _V2):
            yield device, point, root, kind, set(options.split(","))
        at = text.find(b" - cgroup", at + 1)


def unescaped(path: str) -> str:
    r"""Decode the octal escapes in a path of mountinfo (``\040`` is a space)."""
    first, *others = path.split("\\")
    return first + "".join(chr(int(other[:3], 8)) + other[3:] for other in others)


def move_nowhere() -> None:
    """Move this process into its present cgroup, which makes a later move fast.

    The kernel moves processes under a lock that is cheap for readers. The first writer waits for an
    RCU grace period, about 19 ms. Writers soon after the first one do not wait
    (cgroup_threadgroup_rwsem, kernel/cgroup/cgroup.c;
    Documentation/locking/percpu-rw-semaphore.rst). Does nothing without a writable cgroup. Raises
    OSError or ValueError.
    """
    paths = dict(own_lines())
    # The usual mount points; with 1,000 services, reading mountinfo costs 2 ms.
    usual = [f"{_TOP}/{names}{path}" for names, path in paths.items() if names[:5] != "name="]
    if any(move(0, folder) for folder in usual):
        return
    for _, point, root, kind, options in mounts():
        names = "" if kind == _V2 else controllers_in(options, paths)
        if names is None or names not in paths:
            continue
        own = f"{paths[names]}/"
        is_visible = own.startswith(f"{root.rstrip('/')}/")
        if is_visible and move(0, f"{point}/{own.removeprefix(root)}"):
            return


def own_lines() -> list[tuple[str, str]]:
    """Return (controllers, path) for each cgroup of this process (proc_pid_cgroup(5)). Controllers
    are separated by commas; for v2 they are "".
    """
    with open(_OWN, encoding="utf-8", errors="surrogateescape") as lines:
        parts = [line.rstrip("\n").split(":", 2) for line in lines]
    return [(controllers, path) for _, controllers, path in parts]


def controllers_in(options: set[str], known: Iterable[str]) -> str | None:
    """Return the item of ``known``, such as "cpu,cpuacct", whose controllers a v1 hierarchy has.
    Returns None if there is no such item. ``options`` are the hierarchy's mount options.
    """
    return next((names for names in known if names and set(names.split(",")) <= options), None)


def _enable(controller: str) -> bool:
    path = f"{_TOP}/cgroup.subtree_control"
    if controller in _words(path):
        return True
    return _write(path, f"+{controller}")


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def holds(path: str, pid: int) -> bool:
    """Return whether a running process is in a cgroup or in a descendant of the cgroup. ``path`` is
    the cgroup's path as this process sees it. The full path may be longer.
    """
    lines = os.fsdecode(files.of_process(pid, "cgroup")).split("\n")
    if any(f"{path}/" in f"{line}/" for line in lines):
        return True
    return not roots() and pid in _without_cgroups(path)


def holds_wholly(path: str, pid: int) -> bool:
    """Return whether a process is in or below a cgroup in all hierarchies that crun uses. crun uses
    all v1 hierarchies, or v2 if there is no v1. Returns True if the process has exited.
    """
    content = os.fsdecode(files.of_process(pid, "cgroup"))
    if not content:
        return True
    entries = [line.split(":", 2) for line in content.rstrip("\n").split("\n")]
    inside = {number: f"{path}/" in f"{cgroup}/" for number, _, cgroup in entries}
    v1 = [is_inside for number, is_inside in inside.items() if number != "0"]
    whole = all(v1) if v1 else inside.get("0", False)
    return whole or not roots()


def pids(path: str) -> list[int]:
    """Return the pids of the processes in a cgroup, in any hierarchy."""
    mounted = roots()
    if not mounted:
        return _without_cgroups(path)
    return sorted({pid for root in mounted for pid in pids_in(f"{root}{path}")})


def _without_cgroups(path: str) -> list[int]:
    """Return the pids of the service whose cgroup would be ``path``, in a lab without root.

    No hierarchy is mounted there. The processes are those in the pid namespaces of the children of
    the service's conmon.
    """
    container = f"niso-service-{os.path.basename(path)}".encode()
    own, space_of, conmons, children = _pid_namespace("self"), {}, set(), []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        space_of[pid] = _pid_namespace(pid)
        words = files.of_process(pid, "cmdline").split(b"\0")
        if container in words and b"--exit-command" in words:
            conmons.add(pid)
        _, _, rest = files.of_process(pid, "stat").rpartition(b") ")
        children += [(int(rest.split()[1]), pid)] if rest else []
    spaces = {space_of[child] for parent, child in children if parent in conmons} - {own, 0}
    return sorted(pid for pid, space in space_of.items() if space in spaces)


def _pid_namespace(pid: int | str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


def pids_in(folder: str) -> list[int]:
    try:
        with open(f"{folder}/cgroup.procs", encoding="ascii") as procs:
            return [int(line) for line in procs]
    except OSError:
        return []


def remove(path: str) -> bool:
    """Remove a cgroup and its descendants. Cgroups that have processes stay.

    Returns whether all of them have been removed, or False if there are no hierarchies.
    """
    removed = [_remove_below(f"{root}{path}") for root in roots()]
    return bool(removed) and all(removed)


def _remove_below(top: str) -> bool:
    try:
        os.rmdir(top)
    except FileNotFoundError:
        return True
    except OSError:
        for folder, _, _ in os.walk(top, topdown=False):
            remove_empty(folder)
        return not os.path.exists(top)
    return True


def remove_with_parent(path: str) -> None:
    """Remove a service's cgroup. Also remove the parent if it is empty and no service starts."""
    remove(path)
    remove_parent(os.path.dirname(path))


def remove_parent(path: str) -> None:
    """Remove the parent of the services' cgroups, if it is empty and no service is starting."""
    guard = open_lock(".cgroup")
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for root in roots():
            remove_empty(f"{root}{path}/{KEEPERS}")
            remove_empty(f"{root}{path}")
    except BlockingIOError:
        return
    finally:
        os.close(guard)


def remove_empty(folder: str) -> None:
    """Remove a cgroup. If it is in use or does not exist, do nothing (rmdir(2))."""
    try:
        os.rmdir(folder)
    except OSError:
        return


def keep(pid: int, path: str) -> None:
    """Move a conmon process and its future children from the caller's cgroup to niso's cgroup for
    conmons (`KEEPERS`), next to ``path``, the cgroup of conmon's service.

    The limits of the caller's cgroup would apply to conmon. When a systemd unit, a session or a CI
    job ends, all processes in its cgroup are killed. In a hierarchy where the caller is in the root
    cgroup, which has no limits, conmon stays there.
    """
    for root, own in _own_cgroups().items():
        if own != "/":
            keep_in(root, pid, path)


def keep_in(root: str, pid: int, path: str) -> None:
    """Move conmon as `keep` does, but only in the hierarchy that is mounted at ``root``.

    The cgroup for conmons may not accept the process: a new cgroup of v1's cpuset has no CPUs. In
    this case the process is moved to the root cgroup. If this fails too, it is not moved.
    """
    folder = f"{root}{os.path.dirname(path)}/{KEEPERS}"
    if move(pid, folder):
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        pass
    if not move(pid, folder):
        remove_empty(folder)
        move(pid, root)


def release(pids: Iterable[int], path: str) -> None:
    """Move conmons from niso's cgroup for conmons (`KEEPERS`) to the root cgroup, so that niso's
    cgroups can be removed. ``path`` is the cgroup of a service, next to `KEEPERS`. Other processes
    are not moved.
    """
    for root in roots():
        kept = pids_in(f"{root}{os.path.dirname(path)}/{KEEPERS}")
        for pid in set(pids) & set(kept):
            move(pid, root)


def move(pid: int, folder: str) -> bool:
    """Move a process (0: this process) into a cgroup, and return whether the move succeeded."""
    return _write(f"{folder}/cgroup.procs", str(pid))


def _write(path: str, value: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError:
        return False
    return True
