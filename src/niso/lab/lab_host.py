"""Build the host of a lab: its file system, its cgroups, and a network with two more machines.

File system: writes go to overlays, which are discarded at the end of the lab. The lab's root is an
overlay over the machine's root, and each file system mounted below it, such as /usr, gets an
overlay too. If the machine's root or /usr is itself an overlay, the lab shows the machine's own
/usr read-only: services see /usr through one more overlay, and the kernel allows only two overlays
on top of each other (FILESYSTEM_MAX_STACK_DEPTH, linux/fs.h). /proc, /sys, /run, /tmp and the state
folder are the lab's own. Only net in /proc/sys and the lab's cgroups are writable.

In a user namespace (`niso.lab.user_namespace`), an overlay allows no changes of files that root
owns, and its lower folder must not contain mount points of the machine. The lab's root is then a
tmpfs, with an overlay for each folder of the machine, a copy of /etc, and /usr read-only.

Cgroups (cgroup_namespaces(7)): in each hierarchy, all cgroups of the lab are below one cgroup, the
root of its cgroup namespace. In v1, this cgroup is below the caller's cgroup, whose limits still
apply. In v2, it is below the root, because a cgroup with processes cannot enable controllers for
its children. A hierarchy that is read-only or not mounted is left unchanged. In a user namespace, a
lab has no cgroups.

Network: the lab's host and two simulated machines share an Ethernet segment, which has no
connection to the outside.
"""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from niso.base import paths
from niso.base.errors import KernelError
from niso.base.named_tuples import NamedTuple
from niso.base.native import call_libc
from niso.kernel import link_records, netns
from niso.kernel.netlink import refused, refusing
from niso.kernel.rtnetlink import Rtnl
from niso.lab import user_namespace
from niso.runtime import cgroups
from niso.runtime.root import MOUNT_ATTR_RDONLY, attach, clone_mount, set_attributes

# --- file system ----------------------------------------------------------------------------------


# mount(2), umount2(2), linux/mount.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 1 << 18
_DETACH = 2
_PLAIN = _NOSUID | _NODEV | _NOEXEC
_CGROUP = "/sys/fs/cgroup"
_STATE = "/var/lib/niso"
_LAYER = "/tmp"  # noqa: S108 - where the overlays' layers are mounted until the root is changed
_ROOT = f"{_LAYER}/root"
_VOLATILE = ("/tmp", "/run")  # noqa: S108
_SHM, _QUEUES = "/dev/shm", "/dev/mqueue"  # noqa: S108
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_OWN = ("/proc", "/sys", "/dev", _STATE, *_VOLATILE)
"""Paths of the root that the lab's overlay leaves out."""


def build_mounts(
    name: str,
    hostname: str,
    cgroup_mounts: list[LabCgroup],
    folders: list[LabCgroup],
    writable: list[str],
) -> None:
    """Mount the file system of a lab, and make it the root.

    The caller is the lab's PID 1, in new mount, pid, net and cgroup namespaces. ``folders`` are the
    lab's cgroups. A hierarchy in ``cgroup_mounts`` in which the lab has no cgroup is mounted
    read-only. Writes in the folders ``writable`` go to the machine itself and persist. Raises
    KernelError, OSError.
    """
    current = os.getcwd()
    _leave_chroot()
    os.chdir(current)
    unprivileged = paths.in_user_namespace()
    reachable = _reachable(current, (*_VOLATILE, _SHM), unprivileged)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        parts = [line.split(" - ") for line in lines]
    # the file system type of each mount point, in the order of mounting
    mounted = {cgroups.unescaped(left.split(" ")[4]): right.split(" ")[0] for left, right in parts}
    is_overlay = "overlay" in map(mounted.get, ("/", *_PROGRAMS))
    programs = _PROGRAMS if unprivileged or is_overlay else ()
    own = (*_OWN, *programs)
    shown = {
        path: source
        for path in (reachable if unprivileged else (*reachable, *mounted))
        if path != "/" and (not _below(path, own) or _below(path, reachable))
        if not (unprivileged and _has_parts(path, mounted) and not _below(path, own))
        if (source := _open(path)) >= 0
    }
    outside = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in writable}
    resolver = os.path.realpath("/etc/resolv.conf")  # below /run with systemd-resolved
    # The layers of the lab's overlays, in a tmpfs that exists as long as the overlays.
    _mount("tmpfs", _LAYER, "tmpfs", _NOSUID | _NODEV, "mode=755")
    os.mkdir(_ROOT)
    if unprivileged:
        _mount("tmpfs", _ROOT, "tmpfs", _NODEV, "mode=755")
        _cover_parts("/", mounted)
    else:
        _cover(os.open("/", os.O_PATH | os.O_CLOEXEC), "/")
    if unprivileged or mounted.get("/") == "overlay":
        # Services see /etc through one more overlay. It would be the third: copy /etc instead.
        # In a user namespace, nothing can change files that root owns.
        copy = f"{_LAYER}/etc"
        os.mkdir(copy)
        _copy_owner("/etc", copy)
        owner = ["--no-preserve=ownership"] if unprivileged else []
        command = ["cp", "-a", *owner, "/etc/.", copy]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        _mount(copy, f"{_ROOT}/etc", "", _BIND)
    _show_programs(programs)
    _build_dev([path for path in mounted if _below(path, ["/dev"])], unprivileged)
    _mount("proc", f"{_ROOT}/proc", "proc", _PLAIN)
    sysctls = f"{_ROOT}/proc/sys"  # read-only, except net, which is of the network namespace
    _mount(sysctls, sysctls, "", _BIND)
    _mount(f"{sysctls}/net", f"{sysctls}/net", "", _BIND)
    _mount("none", sysctls, "", _REMOUNT | _BIND | _RDONLY | _PLAIN)
    _build_sys(cgroup_mounts, {folder.point: folder.path for folder in folders})
    for path, mode in (("/tmp", "1777"), ("/run", "755")):  # noqa: S108
        _mount("tmpfs", _ROOT + path, "tmpfs", _NOSUID | _NODEV, f"mode={mode}")
    for path, source in shown.items():
        _cover(source, path)
    os.makedirs(_ROOT + _STATE, exist_ok=True)
    _mount("tmpfs", _ROOT + _STATE, "tmpfs", _NODEV, "mode=700")
    for path, source in outside.items():
        os.makedirs(_ROOT + path, exist_ok=True)
        _mount(f"/proc/self/fd/{source}", _ROOT + path, "", _BIND | _REC)
        os.close(source)
    _enter(_ROOT)
    with suppress(OSError):  # a machine without the file, or with a read-only /etc
        os.makedirs(os.path.dirname(resolver), exist_ok=True)
        with open(resolver, "w", encoding="utf-8") as file:
            file.write("# a lab reaches no name server of the machine\n")
    with open(paths.LAB_MARK, "w", encoding="utf-8") as file:
        file.write(f"{name}\n")
    with open("/etc/hosts", "a+b") as file:
        file.seek(0)
        # it is there already in a lab inside a lab
        if hostname.encode() not in file.read().split():
            file.write(f"\n127.0.1.1 {hostname}\n".encode())
    os.chdir(current if os.path.isdir(current) else "/")


def _cover(source: int, path: str) -> None:
    """Mount a folder or file at a path of the lab, so that writes to it stay in the lab. A folder
    gets an overlay. A single file is copied. If the kernel refuses the overlay, for example over
    two other overlays, the folder is mounted read-only. ``source`` is a descriptor of the folder or
    file. This function closes it.
    """
    lower, target = f"/proc/self/fd/{source}", _ROOT + path
    try:
        if stat.S_ISREG(os.fstat(source).st_mode):
            with open(lower, "rb") as original, open(target, "wb") as copy:
                copy.write(original.read())
            return
        if not stat.S_ISDIR(os.fstat(source).st_mode):
            return
        os.makedirs(target, exist_ok=True)
        number = len(os.listdir(_LAYER))
        upper, work = (f"{_LAYER}/{kind}{number}" for kind in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        _copy_owner(lower, upper)
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        if paths.in_user_namespace():
            layers += ",userxattr"
            if _below(_STATE, [path]):  # nothing can be created in the machine's own folders
                os.makedirs(upper + _STATE.removeprefix(path), exist_ok=True)
        try:
            # with xino=on only, folders keep their inode numbers
            _mount("overlay", target, "overlay", 0, f"{layers},xino=on")
        except KernelError:
            _show_read_only(source, target)
    finally:
        os.close(source)


def _cover_parts(path: str, mounted: Collection[str]) -> None:
    """Mount an overlay or a copy over each entry of a folder (`_cover`), in a user namespace.

    There, the lower folder of an overlay cannot contain mount points of the machine, because the
    overlay would reveal the files below them (clone_private_mount, fs/namespace.c). A folder with
    mount points is therefore built from its entries.
    """
    try:
        entries = list(os.scandir(path))
    except OSError:  # not readable for the user
        return
    for entry in entries:
        target = _ROOT + entry.path
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
            continue
        if not entry.is_dir():
            if entry.is_file() and (source := _open(entry.path)) >= 0:
                os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))
                _show_read_only(source, target)
                os.close(source)
            continue
        os.mkdir(target, 0o755)
        if entry.path in (*_OWN, *_PROGRAMS, "/etc") or not os.access(
            entry.path, os.R_OK | os.X_OK
        ):
            continue
        if _has_parts(entry.path, mounted):
            _cover_parts(entry.path, mounted)
        elif (source := _open(entry.path)) >= 0:
            _cover(source, entry.path)


def _has_parts(path: str, mounted: Iterable[str]) -> bool:
    return any(_below(point, [path]) for point in mounted if point != path)


def _show_read_only(source: int, target: str) -> None:
    tree = clone_mount(source, recursive=True)
    set_attributes(tree, MOUNT_ATTR_RDONLY, recursive=True)
    attach(tree, target)
    os.close(tree)


def _leave_chroot() -> None:
    """Make all mounts private. In a chroot, also make its folder the root of the mount namespace.

    A process that joins a mount namespace starts at the namespace's root (setns(2)). ``crun exec``
    would therefore leave the chroot.
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
        _enter("run")
    finally:
        os.close(namespace)
        os.close(own)


def _enter(root: str) -> None:
    """Make a mount point the root of this mount namespace, and unmount the old root."""
    os.chdir(root)
    with refusing("pivot_root"):
        call_libc("pivot_root", ".", ".")
    with suppress(OSError):
        call_libc("umount2", ".", _DETACH)
    os.chdir("/")


def _build_dev(mounted: Iterable[str], unprivileged: bool) -> None:
    """Show the machine's devices in /dev. New files and sockets next to them stay in the lab.

    ``mounted`` are the mount points in /dev. Shared memory and message queues are the lab's own.
    In a user namespace, devices in an overlay cannot be opened. Devices that the user may open are
    therefore mounted one by one.
    """
    if unprivileged:
        _show_devices()
    else:
        _cover(os.open("/dev", os.O_PATH | os.O_CLOEXEC), "/dev")
    for path in () if unprivileged else mounted:
        if path not in ("/dev", _SHM, _QUEUES):
            _mount(path, _ROOT + path, "", _BIND)
    for path in (_SHM, _QUEUES):
        if unprivileged and os.path.isdir(path):
            os.mkdir(_ROOT + path)
    if os.path.isdir(_SHM):
        _mount("tmpfs", _ROOT + _SHM, "tmpfs", _NOSUID | _NODEV, "mode=1777")
    if os.path.isdir(_QUEUES):
        _mount("mqueue", _ROOT + _QUEUES, "mqueue", _PLAIN)


def _show_devices() -> None:
    _mount("tmpfs", f"{_ROOT}/dev", "tmpfs", _NOSUID | _NOEXEC, "mode=755")
    os.mkdir(f"{_ROOT}/dev/net")
    for folder in ("/dev", "/dev/net"):
        for entry in os.scandir(folder) if os.path.isdir(folder) else ():
            target = _ROOT + entry.path
            if entry.name in ("ptmx", "console"):
                continue
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), target)
            elif stat.S_ISCHR(entry.stat().st_mode) and os.access(entry.path, os.R_OK | os.W_OK):
                os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))
                _mount(entry.path, target, "", _BIND)
    with suppress(OSError):
        # the terminal of the lab's command, for programs that need its name (ttyname(3))
        terminal = os.ttyname(0)
        os.close(os.open(f"{_ROOT}/dev/console", os.O_CREAT | os.O_CLOEXEC, 0o600))
        _mount(terminal, f"{_ROOT}/dev/console", "", _BIND)
    # the machine's ptmx cannot be mounted by itself (path_pts, fs/namei.c)
    os.mkdir(f"{_ROOT}/dev/pts")
    options = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    _mount("devpts", f"{_ROOT}/dev/pts", "devpts", _NOSUID | _NOEXEC, options)
    os.symlink("pts/ptmx", f"{_ROOT}/dev/ptmx")


def _show_programs(folders: Iterable[str]) -> None:
    """Show the machine's programs (/usr) read-only, with everything mounted below it."""
    for folder in folders:
        if os.path.isdir(folder) and not os.path.islink(folder):
            source = _open(folder)
            _show_read_only(source, _ROOT + folder)
            os.close(source)


def _build_sys(cgroup_mounts: list[LabCgroup], folders: dict[str, str]) -> None:
    """Mount the lab's sysfs, and the cgroup hierarchies inside it.

    ``folders`` maps the mount point of a hierarchy to the folder of the lab's cgroup. A hierarchy
    without such a folder is mounted read-only.
    """
    new = f"{_ROOT}/sys"
    _mount("sysfs", new, "sysfs", _PLAIN)
    if paths.in_user_namespace():
        # `ip netns exec` unmounts one and mounts its own, which needs another that is visible
        # (mount_too_revealing, fs/namespace.c)
        _mount(new, new, "", _BIND)
        # crun refuses a sysfs there
        _mount("tmpfs", f"{new}/fs/cgroup", "tmpfs", _PLAIN | _RDONLY, "mode=755")
    _mount("none", new, "", _REMOUNT | _BIND | _RDONLY | _PLAIN)
    if cgroup_mounts and all(mount.point != _CGROUP for mount in cgroup_mounts):
        # the parent folder of the v1 hierarchies, with its symbolic links (cpu -> cpu,cpuacct)
        _mount("tmpfs", f"{new}/fs/cgroup", "tmpfs", _PLAIN, "mode=755")
        for entry in os.scandir(_CGROUP):
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), f"{new}/fs/cgroup/{entry.name}")
    for mount in cgroup_mounts:
        target = _ROOT + mount.point
        os.makedirs(target, exist_ok=True)
        _mount(folders.get(mount.point, mount.point), target, "", _BIND)
        if mount.point not in folders:
            _mount("none", target, "", _REMOUNT | _BIND | _RDONLY | _PLAIN)


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return -1


def _copy_owner(source: str, target: str) -> None:
    info = os.stat(source)
    if not paths.in_user_namespace():  # there, most owners have no id
        os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))


def _reachable(current: str, covered: Iterable[str], unprivileged: bool) -> list[str]:
    """Return the folders that must stay visible although they are below a folder in ``covered``.

    These are the current folder, Python's folders, niso's checkout or installation, and in a user
    namespace $HOME. In a user namespace, those of these folders that belong to the user are
    returned even if they are not covered: an overlay over a folder of root does not allow writes to
    the user's folders in it.
    """
    source = str(Path(__file__).resolve().parents[3])
    checkout = os.path.dirname(source)
    if os.path.exists(f"{checkout}/pyproject.toml"):
        source = checkout
    folders = [current, source, paths.python_prefix(), sys.base_prefix]
    folders += [os.environ["HOME"]] if unprivileged and os.environ.get("HOME") else []
    wanted = {os.path.realpath(path) for path in folders}
    reachable: list[str] = []
    for path in sorted(wanted):
        is_covered = any(path.startswith(f"{folder}/") for folder in covered)
        is_covered |= unprivileged and _is_own(path)
        if is_covered and not any(path.startswith(f"{folder}/") for folder in reachable):
            reachable.append(path)
    return reachable


def _is_own(path: str) -> bool:
    with suppress(OSError):
        return os.stat(path).st_uid == 0 and not _below(path, (*_OWN, *_PROGRAMS)) and path != "/"
    return False


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    try:
        call_libc("mount", source, target, kind, flags, options)
    except OSError as caught:
        error = refused(f"mount {kind or source} on {target}", caught.errno or 0)
        if paths.in_user_namespace():
            error.hint = user_namespace.why_no_mount(kind, error.errno)
        raise error from None


# --- cgroups --------------------------------------------------------------------------------------


PREFIX = "niso-lab-"
_LEAF = "init"
"""The child cgroup for the lab's processes in v2, so that the lab's root can enable controllers."""
_MAKE_TRIES = 100
_REMOVE_S = 5.0


class LabCgroup(NamedTuple):
    """A mounted cgroup hierarchy, and the folder of a lab in it. ``lock`` is a locked descriptor of
    this folder while the lab runs.
    """

    point: str
    unified: bool
    """Whether this is the v2 hierarchy."""
    base: str
    """The folder in which labs create their folders."""
    path: str = ""
    """The lab's folder, or "" if the lab has none in this hierarchy."""
    lock: int = -1
    """A descriptor of the folder. It has a shared flock as long as the lab is alive."""


def mounts() -> list[LabCgroup]:
    """Return each mounted cgroup hierarchy, with the folder in which a lab creates its cgroup.

    In v1, this is the cgroup of this process, if it is visible below the mount point. Otherwise it
    is the mount point.
    """
    own = dict(cgroups.own_lines())
    by_device: dict[str, LabCgroup] = {}
    for device, point, root, kind, options in cgroups.mounts():
        if device in by_device or not point.startswith(_CGROUP):
            continue
        base = point
        if kind == "cgroup":
            names = cgroups.controllers_in(options, own)
            path = root if names is None else own[names]
            if path.startswith(root):
                base = os.path.normpath(f"{point}/{path.removeprefix(root)}")
        by_device[device] = LabCgroup(point, kind == "cgroup2", base)
    return list(by_device.values())


def make(name: str) -> list[LabCgroup]:
    """Create a lab's cgroup in each writable hierarchy, and return the created cgroups."""
    folders = []
    for mount in mounts():
        with suppress(OSError):
            folders.append(_make(mount, f"{mount.base}/{name}"))
    return folders


def _make(mount: LabCgroup, path: str) -> LabCgroup:
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
        return mount._replace(path=path, lock=lock)
    raise FileNotFoundError(path)


def enter(folders: list[LabCgroup]) -> list[LabCgroup]:
    """Move this process into the lab's cgroups. Return the cgroups that it could enter."""
    entered = []
    for folder in folders:
        with suppress(OSError):
            _write(f"{folder.path}/cgroup.procs", "0")
            entered.append(folder)
    return entered


def enable_controllers(folders: list[LabCgroup]) -> None:
    """Enable the v2 controllers for the children of the lab's cgroups."""
    for folder in folders:
        if not folder.unified:
            continue
        with suppress(OSError):
            os.mkdir(f"{folder.path}/{_LEAF}")
            _write(f"{folder.path}/{_LEAF}/cgroup.procs", "0")
            for controller in _read(f"{folder.path}/cgroup.controllers").split():
                with suppress(OSError):
                    _write(f"{folder.path}/cgroup.subtree_control", f"+{controller}")


def remove(folders: list[LabCgroup]) -> None:
    """Wait up to 5 s until the lab's cgroups are empty, remove them, and close their locks."""
    deadline = time.monotonic() + _REMOVE_S
    for folder in folders:
        # A process leaves its cgroup shortly after its parent has received SIGCHLD.
        while not _remove_tree(folder.path) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.close(folder.lock)


def sweep() -> None:
    """Remove the cgroups of labs that were killed, but not those of running labs."""
    for mount in mounts():
        parent = os.path.dirname(mount.base)
        # The caller can get a new v1 cgroup each time, as a sibling of the last one.
        folders = [mount.base] if mount.base == mount.point else [mount.base, *_children(parent)]
        for path in (path for folder in folders for path in _children(folder)):
            if os.path.basename(path).startswith(PREFIX):
                with suppress(OSError):  # BlockingIOError: the lab is alive
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


# --- network --------------------------------------------------------------------------------------


_MTU = 1500
_V4, _V6 = 24, 64  # prefix lengths
_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_GATEWAY = ("192.0.2.2", "2001:db8::2")


_MACHINES = {
    "host": ("uplink0", "02:00:c0:00:02:01", ("192.0.2.1", "2001:db8::1")),
    "client": ("eth0", "02:00:c0:00:02:02", ("192.0.2.2", "2001:db8::2")),
    "neighbour": ("eth0", "02:00:c0:00:02:03", ("192.0.2.3", "2001:db8::3")),
}
"""Maps a machine on the segment to (name of its veth end, MAC address, addresses).

The other veth end, on the segment's bridge, has the name of the machine.
"""
_OTHERS = ("client", "neighbour")


def build_machines() -> int:
    """Build the simulated network in the lab's new, empty network namespace.

    Returns a descriptor of an unnamed network namespace, which contains the bridge of the segment.
    The kernel deletes this namespace when the descriptor is closed. Raises KernelError.
    """
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for name in _OTHERS:
        netns.create(name)
    os.unshare(os.CLONE_NEWNET)
    segment = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with Rtnl() as rtnl:
        rtnl.add_bridge("segment", mtu=_MTU, alias="")
        _plug(rtnl, "host", home)
        for name in _OTHERS:
            far = netns.open_fd(name)
            _plug(rtnl, name, far)
            os.close(far)
    os.setns(home, os.CLONE_NEWNET)
    os.close(home)
    _configure("host", _GATEWAY)
    for name in _OTHERS:
        with netns.inside(name):
            _configure(name, ())
            if name == "client":
                # The host's gateway has no route onward. With forwarding on, it answers
                # "unreachable", so that name look-ups need not wait for a timeout.
                _write(_FORWARD, "1")
                if os.path.exists("/proc/sys/net/ipv6"):
                    _write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    return segment


def _plug(rtnl: Rtnl, machine: str, far: int) -> None:
    link, mac, _ = _MACHINES[machine]
    rtnl.add_veth(
        machine,
        peer=link,
        peer_netns_fd=far,
        peer_mac=mac,
        mtu=_MTU,
        bridge="segment",
        port=link_records.new_port(hairpin=False, learns=True),
        alias="",
    )


def _configure(machine: str, gateways: tuple[str, ...]) -> None:
    own, _, addresses = _MACHINES[machine]
    families = 2 if os.path.exists("/proc/sys/net/ipv6") else 1
    # A new network namespace can inherit IPv4 forwarding: net.core.devconf_inherit_init_net
    # (Documentation/admin-guide/sysctl/net.rst).
    if _read(_FORWARD).strip() != "0":
        _write(_FORWARD, "0")
    if families == 2:
        # The addresses are unique; duplicate address detection would delay them by 2 s.
        _write(f"/proc/sys/net/ipv6/conf/{own}/accept_dad", "0")
    with Rtnl() as rtnl:
        rtnl.set_link("lo", up=True)
        rtnl.set_link(own, up=True)
        link = rtnl.link(own)
        index = link.index if link else 0
        for address, length in list(zip(addresses, (_V4, _V6), strict=True))[:families]:
            rtnl.add_address(index, f"{address}/{length}")
        for gateway in gateways[:families]:
            everywhere = "::/0" if ":" in gateway else "0.0.0.0/0"
            rtnl.add_route(everywhere, gateway, index)
