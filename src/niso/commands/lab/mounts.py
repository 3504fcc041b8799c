"""Mount the lab's file system: the machine's, with its own /proc, /sys, /run, /tmp and state."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from niso.base import paths
from niso.commands.lab.cgroups import Folder, Mount
from niso.kernel.netlink import refused

# mount(2), umount2(2), linux/mount.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _MOVE, _REC, _PRIVATE = 0x1000, 0x2000, 0x4000, 1 << 18
_DETACH = 2
_PLAIN = _NOSUID | _NODEV | _NOEXEC
_CGROUP = "/sys/fs/cgroup"
_STATE = "/var/lib/niso"

_libc = ctypes.CDLL(None, use_errno=True)


def build(name: str, cgroup_mounts: list[Mount], folders: list[Folder]) -> dict[str, str]:
    """Mount the file system of the lab ``name``; return environment variables that the lab needs.

    The caller is the lab's PID 1, in new mount, pid, net and cgroup namespaces.
    ``folders`` are the lab's cgroups; hierarchies of ``cgroup_mounts`` without one are read-only.
    Raises KernelError.
    """
    current = os.getcwd()
    _leave_chroot()
    os.chdir(current)
    covered = ["/tmp", "/run"]  # noqa: S108
    overlay = not os.path.isdir(_STATE)
    if overlay:
        covered.append("/var/lib")
    kept = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in _reachable(current, covered)}
    resolver = _resolver()
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=1777")  # noqa: S108
    _build_sys(cgroup_mounts, {folder.mount.point: folder.path for folder in folders})
    _build_proc()
    if os.path.isdir("/dev/shm"):  # noqa: S108
        _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")  # noqa: S108
    if os.path.isdir("/dev/mqueue"):
        _mount("mqueue", "/dev/mqueue", "mqueue", _PLAIN)
    _mount("tmpfs", "/run", "tmpfs", _NOSUID | _NODEV, "mode=755")
    environment = _build_state(overlay)
    for path, source in kept.items():
        os.makedirs(path, exist_ok=True)
        _mount(f"/proc/self/fd/{source}", path, "", _BIND | _REC)
        os.close(source)
    if resolver:
        path, content = resolver
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    with open(paths.LAB_MARK, "w", encoding="utf-8") as file:
        file.write(f"{name}\n")
    os.chdir(current if os.path.isdir(current) else "/")
    return environment


def _leave_chroot() -> None:
    """Make the mounts private, and the root of a chroot the root of the mount namespace.

    A process that joins a mount namespace starts at its root (setns(2)), so crun exec would leave
    the chroot.
    """
    own = os.open("/", os.O_PATH | os.O_CLOEXEC)
    here = os.fstat(own)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.setns(namespace, os.CLONE_NEWNS)  # moves this process to its root
        _mount("none", "/", "", _REC | _PRIVATE)
        if os.path.samestat(os.stat("/"), here):
            return
        os.fchdir(own)
        _mount(".", "run", "", _BIND | _REC)
        os.chdir("run")
        if _libc.pivot_root(b".", b"."):
            raise refused("pivot_root", ctypes.get_errno())
        _libc.umount2(b".", _DETACH)
        os.chdir("/")
    finally:
        os.close(namespace)
        os.close(own)


def _build_state(overlay: bool) -> dict[str, str]:
    """Mount an empty state folder at its usual place; return the variables that it needs.

    ``overlay``: the machine has none, so it is made in an overlay, not on the machine's disk.
    """
    if overlay:
        # The overlay keeps the tmpfs alive after its own mount is gone.
        layer = "/run/niso-lab-layer"
        os.mkdir(layer)
        _mount("tmpfs", layer, "tmpfs", _NOSUID | _NODEV, "mode=755")
        try:
            os.mkdir(f"{layer}/upper", 0o755)
            os.mkdir(f"{layer}/work")
            options = f"lowerdir=/var/lib,upperdir={layer}/upper,workdir={layer}/work"
            _mount("overlay", "/var/lib", "overlay", _NOSUID | _NODEV, options)
            os.mkdir(_STATE, 0o700)
        except OSError:
            return {"NISO_STATE_DIR": "/run/niso-state"}
        finally:
            _libc.umount2(layer.encode(), _DETACH)
            os.rmdir(layer)
    _mount("tmpfs", _STATE, "tmpfs", _NODEV, "mode=700")
    return {}


def _build_sys(cgroup_mounts: list[Mount], folders: dict[str, str]) -> None:
    """Mount a sysfs of the lab's network namespace, and the lab's part of each cgroup hierarchy.

    ``folders`` maps mount points of hierarchies to the lab's folders.
    """
    new = "/tmp/sys"  # noqa: S108
    os.mkdir(new)
    _mount("sysfs", new, "sysfs", _PLAIN)
    if cgroup_mounts and all(mount.point != _CGROUP for mount in cgroup_mounts):
        _build_cgroup_tmpfs(f"{new}/fs/cgroup")
    for mount in cgroup_mounts:
        target = f"{new}{mount.point.removeprefix('/sys')}"
        os.makedirs(target, exist_ok=True)
        _mount(folders.get(mount.point, mount.point), target, "", _BIND)
        if mount.point not in folders:
            _mount("none", target, "", _REMOUNT | _BIND | _RDONLY | _PLAIN)
    _replace("/sys", new)


def _build_cgroup_tmpfs(new: str) -> None:
    """Mount the folder that holds the hierarchies of v1, with its links (cpu -> cpu,cpuacct)."""
    _mount("tmpfs", new, "tmpfs", _PLAIN, "mode=755")
    with os.scandir(_CGROUP) as entries:
        for entry in entries:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), f"{new}/{entry.name}")


def _build_proc() -> None:
    """Mount a procfs of the lab's pid namespace."""
    new = "/tmp/proc"  # noqa: S108
    os.mkdir(new)
    _mount("proc", new, "proc", _PLAIN)
    _replace("/proc", new)


def _replace(target: str, new: str) -> None:
    """Move the mount ``new`` to ``target``, replacing or covering an existing mount."""
    _libc.umount2(target.encode(), _DETACH)
    _mount(new, target, "", _MOVE)
    os.rmdir(new)


def _reachable(current: str, covered: list[str]) -> list[str]:
    """List the folders below ``covered`` that must stay visible in the lab, without nested ones.

    They are the current folder, Python's, and niso's checkout or the folder it is installed in.
    """
    source = str(Path(__file__).resolve().parents[3])
    checkout = os.path.dirname(source)
    if os.path.exists(f"{checkout}/pyproject.toml"):
        source = checkout
    wanted = {os.path.realpath(path) for path in (current, source, sys.prefix, sys.base_prefix)}
    reachable: list[str] = []
    for path in sorted(wanted):
        is_covered = any(path.startswith(f"{folder}/") for folder in covered)
        if is_covered and not any(path.startswith(f"{folder}/") for folder in reachable):
            reachable.append(path)
    return reachable


def _resolver() -> tuple[str, bytes] | None:
    """Return path and content of the machine's resolv.conf if it is a link into /run, else None."""
    path = os.path.realpath("/etc/resolv.conf")
    if not path.startswith("/run/"):
        return None
    try:
        with open(path, "rb") as file:
            return path, file.read()
    except OSError:
        return None


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Call mount(2). Raises KernelError."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()):
        raise refused(f"mount {kind or source} on {target}", ctypes.get_errno())
