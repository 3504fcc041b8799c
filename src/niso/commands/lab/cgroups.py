"""Manage the lab's cgroup in each hierarchy, the root of its cgroup namespace.

See cgroup_namespaces(7). All cgroups of the lab are below this one, which is removed with the lab.
In v1 it is below the caller's cgroup, whose limits still apply. In v2 it is below the root, because
a cgroup with processes cannot enable controllers for its children. A hierarchy that is read-only or
not mounted is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from niso.base.lite_typing import NamedTuple

PREFIX = "niso-lab-"
_LEAF = "init"
"""The child for the lab's processes in v2, so that the lab's root can enable controllers."""
_MAKE_TRIES = 100
_REMOVE_S = 5.0


class Mount(NamedTuple):
    """A mount of a cgroup hierarchy."""

    point: str
    unified: bool
    """Whether it is v2."""
    base: str
    """The folder in which labs create theirs."""


class Folder(NamedTuple):
    """A lab's folder in a hierarchy."""

    mount: Mount
    path: str
    lock: int
    """A descriptor of the folder with a shared flock, held while the lab is alive."""


def mounts() -> list[Mount]:
    """List the mounted cgroup hierarchies, each once (proc_pid_mountinfo(5), cgroups(7))."""
    own: dict[frozenset[str], str] = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            own[frozenset(controllers.split(",")) - {""}] = path
    by_device: dict[str, Mount] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            _, _, device, root, point = left.split(" ")[:5]
            kind, _, options = right.rstrip("\n").split(" ")[:3]
            is_cgroup = kind in ("cgroup", "cgroup2") and point.startswith("/sys/fs/cgroup")
            if is_cgroup and device not in by_device:
                base = point if kind == "cgroup2" else _v1_base(point, root, options, own)
                by_device[device] = Mount(point, kind == "cgroup2", base)
    return list(by_device.values())


def _v1_base(point: str, root: str, options: str, own: dict[frozenset[str], str]) -> str:
    """Return the folder of this process's cgroup in a v1 hierarchy, or its mount point.

    ``own`` maps the controllers of each hierarchy to this process's cgroup.
    """
    given = set(options.split(","))
    path = next((path for names, path in own.items() if names and names <= given), root)
    if not path.startswith(root):
        return point
    return os.path.normpath(f"{point}/{path.removeprefix(root)}")


def make(name: str) -> list[Folder]:
    """Create the folder ``name`` in each writable hierarchy."""
    folders = []
    for mount in mounts():
        with contextlib.suppress(OSError):
            folders.append(_make(mount, f"{mount.base}/{name}"))
    return folders


def _make(mount: Mount, path: str) -> Folder:
    """Create and lock a folder. Raises OSError."""
    for _ in range(_MAKE_TRIES):
        lock = -1
        try:
            os.mkdir(path)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.exists(path):
                raise FileNotFoundError
        except (FileExistsError, FileNotFoundError, BlockingIOError):
            # Another lab's sweep intervened, and may not have removed the folder yet.
            if lock >= 0:
                os.close(lock)
            elif not os.path.isdir(mount.base):
                raise
            time.sleep(0.001)
            continue
        # A new v1 cpuset is empty, and no process can enter it then (cpuset(7)).
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not mount.unified and os.path.exists(f"{path}/{name}"):
                _write(f"{path}/{name}", _read(f"{mount.base}/{name}"))
        return Folder(mount, path, lock)
    raise FileNotFoundError(path)


def enter(folders: list[Folder]) -> list[Folder]:
    """Move this process into the folders; return those where that succeeded."""
    entered = []
    for folder in folders:
        with contextlib.suppress(OSError):
            _write(f"{folder.path}/cgroup.procs", "0")
            entered.append(folder)
    return entered


def settle(folders: list[Folder]) -> None:
    """Enable the v2 controllers for the lab's cgroups, once the folders are the lab's roots."""
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
    """Remove the folders with all below, once no process is left; close their locks.

    Waits up to 5 s.
    """
    deadline = time.monotonic() + _REMOVE_S
    for folder in folders:
        # A process leaves its cgroup shortly after its parent has received SIGCHLD.
        while not _remove_tree(folder.path) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.close(folder.lock)


def sweep() -> None:
    """Remove folders of labs whose processes were all killed; those still in use stay."""
    for mount in mounts():
        parent = os.path.dirname(mount.base)
        # The caller can get a new v1 cgroup each time, as a sibling of the last one.
        folders = [mount.base] if mount.base == mount.point else [mount.base, *_children(parent)]
        for path in (path for folder in folders for path in _children(folder)):
            if os.path.basename(path).startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _sweep_one(path)


def _sweep_one(path: str) -> None:
    """Remove the folder of a dead lab. Raises OSError, BlockingIOError if the lab is alive."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_tree(path)
    finally:
        os.close(lock)


def _children(path: str) -> list[str]:
    """List the folders in ``path``; none if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _remove_tree(path: str) -> bool:
    """Remove a folder with all below; return whether it no longer exists."""
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
