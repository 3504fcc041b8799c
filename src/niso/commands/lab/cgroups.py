"""The lab's own folder in each cgroup hierarchy, which is the root of what the lab sees of it (cgroup_namespaces(7)).

So whatever the lab makes lies below one folder, which goes with the lab. In a v1 hierarchy the folder lies below the
cgroup of whoever starts the lab, whose limits go on counting; in v2 it lies at the root, because below a cgroup with
processes no controller can be had. A hierarchy that is read-only or absent is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from niso.base.lite_typing import NamedTuple

PREFIX = "niso-lab-"
_LEAF = "init"  # where the lab's processes are in v2: a cgroup with processes cannot give controllers to others
_MAKE_TRIES = 100
_REMOVE_SECONDS = 5.0


class Mount(NamedTuple):
    """A mount of a cgroup hierarchy: ``point`` is where, ``base`` the folder in it that a lab's folder lies in."""

    point: str
    unified: bool
    base: str


class Folder(NamedTuple):
    """A lab's folder in a hierarchy. ``lock`` is an open descriptor of it that carries a shared flock: the lab lives."""

    mount: Mount
    path: str
    lock: int


def mounts() -> list[Mount]:
    """The cgroup hierarchies that are mounted here, each once (proc_pid_mountinfo(5), cgroups(7))."""
    own: dict[frozenset[str], str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            own[frozenset(controllers.split(",")) - {""}] = path
    found: dict[str, Mount] = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            _, _, device, root, point = fields.split(" ")[:5]
            kind, _, options = rest.rstrip("\n").split(" ")[:3]
            if (
                kind not in ("cgroup", "cgroup2")
                or device in found
                or not point.startswith("/sys/fs/cgroup")
            ):
                continue
            base = point
            if kind == "cgroup":
                words = set(options.split(","))
                path = next((path for names, path in own.items() if names and names <= words), root)
                if path.startswith(root):
                    base = os.path.normpath(f"{point}/{path.removeprefix(root)}")
            found[device] = Mount(point, kind == "cgroup2", base)
    return list(found.values())


def make(name: str) -> list[Folder]:
    """Make the folder ``name`` in each hierarchy that can be written to."""
    found = []
    for mount in mounts():
        with contextlib.suppress(OSError):
            found.append(_make(mount, f"{mount.base}/{name}"))
    return found


def _make(mount: Mount, path: str) -> Folder:
    for _ in range(_MAKE_TRIES):
        lock = -1
        try:
            os.mkdir(path)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.exists(path):
                raise FileNotFoundError
        except (FileExistsError, FileNotFoundError, BlockingIOError):
            # the sweep of another lab came between, and may not have removed it yet
            if lock >= 0:
                os.close(lock)
            elif not os.path.isdir(mount.base):
                raise
            time.sleep(0.001)
            continue
        for name in (
            "cpuset.cpus",
            "cpuset.mems",
        ):  # empty at first in v1, and then no process can enter
            if not mount.unified and os.path.exists(f"{path}/{name}"):
                _write(f"{path}/{name}", _read(f"{mount.base}/{name}"))
        return Folder(mount, path, lock)
    raise FileNotFoundError(path)


def enter(folders: list[Folder]) -> list[Folder]:
    """Move this process into the folders; returns those that let it in."""
    entered = []
    for folder in folders:
        with contextlib.suppress(OSError):
            _write(f"{folder.path}/cgroup.procs", "0")
            entered.append(folder)
    return entered


def settle(folders: list[Folder]) -> None:
    """Make the controllers of v2 available to the lab's cgroups. To be called once the folders are the lab's roots."""
    for folder in folders:
        if not folder.mount.unified:
            continue
        with contextlib.suppress(OSError):
            os.mkdir(f"{folder.path}/{_LEAF}")
            _write(f"{folder.path}/{_LEAF}/cgroup.procs", "0")
            for controller in _read(f"{folder.path}/cgroup.controllers").split():
                with contextlib.suppress(OSError):
                    _write(f"{folder.path}/cgroup.subtree_control", f"+{controller}")


def remove(folders: list[Folder]) -> None:
    """Remove the folders and all below them, once the last process is gone; closes their locks."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    for folder in folders:
        # The kernel takes a dead process off its cgroup a little after its parent has been told.
        while not _remove_tree(folder.path) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.close(folder.lock)


def sweep() -> None:
    """Remove folders of labs that were killed with all their keepers. What still has processes stays."""
    for mount in mounts():
        above = os.path.dirname(mount.base)
        # The one who starts labs may get a new v1 cgroup each time, beside the last one.
        folders = [mount.base] if mount.base == mount.point else [mount.base, *_children(above)]
        for path in (path for folder in folders for path in _children(folder)):
            if os.path.basename(path).startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _sweep_one(path)


def _sweep_one(path: str) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_tree(path)
    finally:
        os.close(lock)


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _remove_tree(path: str) -> bool:
    for child in _children(path):
        _remove_tree(child)
    try:
        os.rmdir(path)
    except OSError:
        return not os.path.exists(path)
    return True


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(value)
