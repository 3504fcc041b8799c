"""Assemble the root file system of a service from overlays, with parts that services share.

The root is an overlay with two lower layers. The upper one is niso's layer: a small folder with
mount points, /etc/passwd, /etc/hosts and similar files. The layer below is the service's rootfs,
which is never written to. `assemble` must run in a private mount namespace, so that the mounts are
not visible in the host's mount namespace.

A service without a rootfs sees the host's /usr, read-only. The layer below niso's is then a
skeleton: a folder with the mount points, symbolic links like /bin, and copies of those files in the
host's /etc that programs need. No service can write to a skeleton. When the host's files change,
the next start creates another skeleton in ``<run>/skeletons``.

All folders of the host that a service sees are overlays too. Without overlays, a service could
watch inodes of the host (inotify(7)), lock them (flock(2)) or take leases on them (fcntl(2)). The
service could thereby observe or delay every program of the host and of other services that opens
these files.

While any start is in progress, concurrent starts in one process share the data that they read from
the host. Functions for system calls that Python lacks raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from _thread import allocate_lock
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache

from niso.base import files, paths
from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import call_libc, sha256
from niso.plan.specs import ProcessSpec
from niso.runtime import entrypoint, status
from niso.runtime.crun import APP, names_in
from niso.runtime.entrypoint import TOP_LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


# --- the root of a service ------------------------------------------------------------------------


# mount(2), linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV = 0x1, 0x2, 0x4

_DATABASES = ("passwd", "group")
HOST, INIT, SECRETS = "host", "init", "secrets"
"""Names of folders in the bundle: for the host's folders, for catatonit's folder, for secrets."""


def write_layer(spec: ProcessSpec, layer: str, below: str) -> str:
    """Write the files that only this service's root has into the empty folder ``layer``.

    ``below`` is the service's rootfs, or else the skeleton, which already has the mount points.
    Returns the mount point, inside the service, of the folder with /etc/hosts. Raises OSError.
    """
    _copy_owner(below, layer)
    etc = place(below, "/etc")
    for point in (*MOUNT_POINTS, f"{etc}/{HOSTS}") if spec.rootfs is not None else ():
        mount_point(below, layer, point)
    mount_point(below, layer, etc)
    _write_etc(spec, layer + etc)
    return f"{etc}/{HOSTS}"


def assemble(
    spec: ProcessSpec,
    bundle: str,
    init: str,
    folders: Sequence[str],
    sources: Mapping[str, int],
    secrets: Mapping[str, bytes],
) -> None:
    """Mount the service's root in the folder ``root`` of its bundle. Raises OSError.

    The thread must be in a mount namespace of `launch.enter`. ``init`` is the path of catatonit;
    catatonit's folder is mounted in the bundle too. ``folders`` are the folders of the host that
    are visible in the root. ``sources`` maps a mount point in the bundle to a detached mount.
    ``secrets`` maps the name of each secret to its content.

    The bundle becomes the working directory, because the relative names of the layers keep ``:``
    and ``,`` out of overlay's options.
    """
    os.chdir(bundle)
    flags = MS_NOSUID | MS_NODEV
    _show(os.path.dirname(init), INIT)
    if spec.rootfs is None:
        _show_host(folders)
    for point, tree in sources.items():
        attach(tree, point)
    if secrets:
        _write_secrets(spec, secrets)
    layers = f"lowerdir=layer:{LOWER}"
    if spec.read_only:
        flags |= MS_RDONLY
    else:
        mount("none", "scratch", "tmpfs", flags, "mode=0755")
        os.mkdir("scratch/upper", 0o755)
        os.mkdir("scratch/work", 0o700)
        _copy_owner("layer", "scratch/upper")
        layers += ",upperdir=scratch/upper,workdir=scratch/work"
    mount("niso", "root", "overlay", flags, layers)


def _write_secrets(spec: ProcessSpec, secrets: Mapping[str, bytes]) -> None:
    mount("none", SECRETS, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    for name, content in secrets.items():
        with open(files.make(f"{SECRETS}/{name}", 0o400), "wb", buffering=0) as file:
            files.write(file.fileno(), content)
            os.fchown(file.fileno(), spec.uid, spec.gid)


def _show_host(folders: Sequence[str]) -> None:
    """Mount overlays of the host's top-level folders that are visible in the root.

    An overlay does not include mounts below its folder. A folder on another file system, such as
    one directly below /usr, therefore gets a separate overlay.
    """
    for top in _tops(folders):
        os.mkdir(f"{HOST}/{top}")
        _show(f"/{top}", f"{HOST}/{top}")
    for folder in once(_on_other_devices, tuple(folders)):
        _show(folder, HOST + folder)


def _tops(folders: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(folder.split("/")[1] for folder in folders))


def _on_other_devices(folders: Sequence[str]) -> list[str]:
    """Return the folders that are not on the file system of their top-level folder: of ``folders``
    and of the folders directly below /usr.
    """
    devices = {top: os.stat(f"/{top}").st_dev for top in _tops(folders)}
    found = []
    for folder in (*folders, *(f"/usr/{name}" for name in os.listdir("/usr"))):
        info = os.lstat(folder)
        if stat.S_ISDIR(info.st_mode) and info.st_dev != devices[folder.split("/")[1]]:
            found.append(folder)
    return found


def _show(folder: str, at: str) -> None:
    lower = "".join(f"\\{char}" if char in "\\:," else char for char in folder)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    mount("niso", at, "overlay", flags, f"lowerdir={lower}:empty")


def _write_etc(spec: ProcessSpec, etc: str) -> None:
    if spec.rootfs is not None:
        passwd, group = (entrypoint.read_database(spec.rootfs, name) for name in _DATABASES)
    else:
        passwd, group = (once(entrypoint.read_database, None, name) for name in _DATABASES)
        # Hide the host's users except root, nobody and the service's own.
        passwd = [
            line for line in passwd if line[0] in ("root", "nobody") or line[2] == str(spec.uid)
        ]
        shown = {0, spec.gid, *spec.groups, *(int(line[3]) for line in passwd)}
        group = [[*line[:3], ""] for line in group if int(line[2]) in shown]
    uid, gid = str(spec.uid), str(spec.gid)
    if all(line[2] != uid for line in passwd):
        name = _free_name(spec, passwd)
        passwd = [*passwd, [name, "x", uid, gid, "", spec.home, "/bin/sh"]]
    if all(line[2] != gid for line in group):
        group = [*group, [_free_name(spec, group), "x", gid, ""]]
    for name, database in zip(_DATABASES, (passwd, group), strict=True):
        _write(f"{etc}/{name}", "".join(":".join(line) + "\n" for line in database).encode())
    _write(f"{etc}/hostname", f"{spec.hostname}\n".encode())
    _write(f"{etc}/resolv.conf", spec.resolv_conf.encode(errors="surrogateescape"))
    if spec.hosts_folder:
        os.symlink(f"{HOSTS}/hosts", f"{etc}/hosts")
    else:
        # its network is the host's, so the host's address is loopback
        text = f"{of_host('hosts').rstrip()}\n127.0.0.1  host.niso.local\n"
        _write(f"{etc}/hosts", text.encode(errors="surrogateescape"))
    if spec.rootfs is not None and not entrypoint.exists({"": spec.rootfs}, "/etc/nsswitch.conf"):
        _write(f"{etc}/nsswitch.conf", NSSWITCH.encode())


def of_host(name: str) -> str:
    try:
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(entrypoint.MAX_FILE_BYTES)
    except OSError:
        return ""


def _free_name(spec: ProcessSpec, lines: list[list[str]]) -> str:
    taken = {line[0] for line in lines}
    return spec.user_name if spec.user_name not in taken else f"{spec.user_name}-{spec.uid}"


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        files.write(fd, content)
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)


def check_points(rootfs: str) -> None:
    """Raise InvalidInput (key package.rootfs) if one mount of niso would hide another.

    This happens if a symbolic link at one of niso's mount points in the rootfs leads to / or into
    another mount point.
    """
    at = {point: place(rootfs, point) or "/" for point in (*MOUNT_POINTS, "/etc")}
    for point in MOUNT_POINTS:
        for other, where in at.items():
            if other == point or (point in TMPFS and other in TMPFS):
                continue
            if at[point] == "/":
                what = f"its {point} leads to /"
            elif not f"{where}/".startswith(f"{at[point]}/"):
                continue
            elif at[point] == point:
                what = f"its {other} leads to {where}"
            else:
                what = f"its {point} leads to {at[point]}"
            reason = f"{what}, which niso's mount at {at[point]} would hide"
            hint = "replace the link by a folder in the rootfs"
            raise InvalidInput(reason, hint, "package.rootfs")


def place(rootfs: str, path: str) -> str:
    """Resolve symbolic links of a path inside the rootfs. A part that does not exist stays."""
    missing = ""
    while path:
        try:
            fd, real = entrypoint.open_inside({"": rootfs}, path)
        except OSError:
            path, _, name = path.rpartition("/")
            missing = f"/{name}{missing}"
            continue
        os.close(fd)
        return real.rstrip("/") + missing
    return missing


def mount_point(below: str, layer: str, path: str) -> None:
    """Create the folder ``path`` as a mount point in niso's layer of a root.

    ``below`` is the rootfs or skeleton under the layer. Parent folders that exist in ``below`` get
    the same owner and mode in the layer.
    """
    path = place(below, path)
    built = ""
    for part in path.split("/")[1:]:
        built += f"/{part}"
        try:
            os.mkdir(layer + built, 0o755)
        except FileExistsError:
            # a symbolic link of niso's own, which leads to a path on the host
            if os.path.islink(layer + built):
                raise OSError(errno.ELOOP, "it is below a symlink", built) from None
            continue
        os.chmod(layer + built, 0o755)
        if os.path.isdir(below + built):
            _copy_owner(below + built, layer + built)


def mount_file(below: str, layer: str, path: str) -> None:
    """Create an empty file in niso's layer as a mount point, unless the file exists."""
    path = place(below, path)
    mount_point(below, layer, os.path.dirname(path))
    with suppress(FileExistsError):
        os.close(os.open(layer + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _copy_owner(source: str, target: str) -> None:
    info = os.lstat(source)
    if stat.S_ISDIR(info.st_mode):
        os.chown(target, info.st_uid, info.st_gid)
        os.chmod(target, stat.S_IMODE(info.st_mode))


# --- the skeleton below roots without a rootfs ----------------------------------------------------


HOSTS = "niso-hosts"
"""Name of the folder in the service's /etc that contains the file hosts.

The folder is mounted and not the file: a mounted file would stay the same when niso replaces the
original by renaming a new file over it.
"""

LOWER = "lower"
"""Name in the bundle of the mount of the rootfs, or of a symbolic link to the skeleton."""
TMPFS = ("/tmp", "/run", "/var/tmp")  # noqa: S108 - inside the service
MOUNT_POINTS = ("/proc", "/sys", "/dev", APP, *TMPFS)
NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""
"""Content of /etc/nsswitch.conf. Without that file, glibc queries DNS before /etc/hosts
(nss/nss_database.c).
"""

# The files of the host's /etc that an assembled root has: no key, password or machine id.
ETC_FILES = """
bindresvport.blacklist debian_version ethertypes gai.conf host.conf inputrc ld.so.cache ld.so.conf
locale.alias locale.conf localtime magic magic.mime mime.types netconfig networks os-release
protocols rpc services shells ssl/openssl.cnf timezone xattr.conf
"""
ETC_FOLDERS = ("alternatives", "ca-certificates", "fonts", "ld.so.conf.d", "ssl/certs", "terminfo")
_FOLDERS = ("/home", "/mnt", "/opt", "/srv", "/var/cache", "/var/lib", "/var/log")
_LINKS = (("/etc/mtab", "/proc/self/mounts"), ("/var/lock", "/run/lock"), ("/var/run", "/run"))

Skeleton = tuple[str, list[str]]
"""(path, folders of the host that are visible in the root at the same path, read-only)."""
_Entry = tuple[str, str, tuple[int, ...]]
"""A file in a skeleton: path, target of a symbolic link, and mtime, size and inode of the original.

The target is "" for a copy of the host's file.
"""


def etc_folders() -> list[str]:
    java = [name for name in os.listdir("/etc") if name.startswith("java-")]
    return [f"/etc/{name}" for name in (*ETC_FOLDERS, *java) if os.path.isdir(f"/etc/{name}")]


def current() -> Skeleton:
    """Return the skeleton (lower layer of roots) for the host's present files. Create it if
    missing.

    The caller must have the lock ``.cgroup`` in shared mode until its bundle has a link to the
    skeleton, so that `remove_unused` does not delete the skeleton.
    """
    known = once(_current)
    return known if os.path.isdir(known[0]) else _current()


def _current() -> Skeleton:
    entries: list[_Entry] = []
    folders = ["/usr"]
    for top in (f"/{name}" for name in TOP_LINKS):
        try:
            entries.append((top, os.readlink(top), ()))
        except OSError:  # not a symbolic link
            folders += [top] if os.path.isdir(top) else []
    folders += etc_folders()
    entries += _files()
    path = f"{_top()}/{_key(tuple(entries), tuple(folders))}"
    if not os.path.isdir(path):
        _make(path, entries, folders)
    return path, folders


@cache
def _key(*content: object) -> str:
    whole = (*content, MOUNT_POINTS, _FOLDERS, _LINKS, NSSWITCH)
    return sha256(repr(whole).encode(errors="surrogateescape")).hexdigest()[:16]


def _top() -> str:
    return os.path.join(paths.run_dir(), "skeletons")


def _files() -> Iterator[_Entry]:
    for name in ETC_FILES.split():
        source = f"/etc/{name}"
        try:
            if os.path.islink(source) and os.path.realpath(source).startswith("/usr/"):
                yield source, os.readlink(source), ()
                continue
            info = os.stat(source)
        except OSError:  # missing
            continue
        if stat.S_ISREG(info.st_mode):
            yield source, "", (info.st_mtime_ns, info.st_size, info.st_ino)


def _make(path: str, entries: list[_Entry], folders: list[str]) -> None:
    """Create a skeleton of roots atomically, with mount points for ``folders`` of the host."""
    draft = f"{path}.{os.getpid()}.new"
    files.remove_tree(draft)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    _folder(draft)
    for folder in (*MOUNT_POINTS, f"/etc/{HOSTS}", *folders, *_FOLDERS, "/etc/ssl"):
        _folders(draft, folder)
    os.mkdir(f"{draft}/root", 0o700)
    for at, target in _LINKS:
        os.symlink(target, draft + at)
    for at, link, _ in entries:
        if link:
            os.symlink(link, draft + at)
        else:
            with open(at, "rb") as file:
                _write(draft + at, file.read(entrypoint.MAX_FILE_BYTES))
    _write(f"{draft}/etc/nsswitch.conf", NSSWITCH.encode())
    try:
        os.rename(draft, path)
    except OSError as error:
        files.remove_tree(draft)
        if error.errno not in (
            errno.EEXIST,
            errno.ENOTEMPTY,
        ):  # otherwise another start has created it
            raise


def _folders(top: str, path: str) -> None:
    for part in path.split("/")[1:]:
        top += f"/{part}"
        if not os.path.isdir(top):
            _folder(top)


def _folder(path: str) -> None:
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)


def remove_unused() -> None:
    """Delete the skeletons of roots that no service uses, except the newest one. The caller must
    have the lock ``.cgroup`` in exclusive mode, so that no service is starting.
    """
    names = names_in(_top())
    if len(names) < 2:
        return
    used = set()
    for service in status.services():
        for bundle in status.bundles(paths.service_dir(service)):
            with suppress(OSError):  # its service has a rootfs
                used.add(os.readlink(f"{bundle}/{LOWER}"))
    skeletons = [f"{_top()}/{name}" for name in names]
    # incomplete ones come first
    skeletons.sort(key=lambda path: (not path.endswith(".new"), os.stat(path).st_mtime_ns))
    for path in skeletons[:-1]:
        if path not in used:
            files.remove_tree(path)


# --- results that concurrent starts share ---------------------------------------------------------


_lock = allocate_lock()
_starts = 0
_read: dict[object, Any] = {}
"""The results of `once`. A key is the function with its arguments."""
_after_last_start: list[Callable[[], object]] = []
"""Functions to call when no start is in progress any more."""


def begin() -> None:
    """Count one start of a service as in progress, until the caller calls `end`."""
    global _starts
    with _lock:
        _starts += 1


def end() -> None:
    """End what `begin` began. After the last start, empty the cache of `once` and call the
    functions of `after_last_start`.
    """
    global _starts
    with _lock:
        _starts -= 1
        if _starts:
            return
        _read.clear()
        while _after_last_start:
            _after_last_start.pop()()


def after_last_start(drop: Callable[[], object]) -> None:
    """Call ``drop`` when no start is in progress. Must be called between `begin` and `end`."""
    with _lock:
        _after_last_start.append(drop)


def once[T](read: Callable[..., T], *args: object) -> T:
    """Return ``read(*args)``. While any start is in progress (`begin`), the result is cached. The
    caller must not modify the result.
    """
    key = (read, *args)
    with _lock:
        if key in _read:
            known: T = _read[key]
            return known
    value = read(*args)
    with _lock:
        if _starts:
            _read[key] = value
    return value


# --- system calls for mounts ----------------------------------------------------------------------


# asm/unistd.h (the same number on every architecture), linux/mount.h, fcntl.h
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE, _CLOEXEC, _RECURSIVE = 1, 0o2000000, 0x8000
_FROM_EMPTY_PATH, _TO_EMPTY_PATH, _BENEATH = 0x4, 0x40, 0x200
AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 0x2, 0x4, 0x8, 0x10
"""Flags RESOLVE_* of openat2(2)."""

_open_how = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_mount_attr = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, userns


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2). An OSError has the target as its file name."""
    call_libc("mount", source, target, kind, flags, data, path=target)


def unmount(target: bytes, flags: int) -> None:
    """Call umount2(2). Raises OSError."""
    call_libc("umount2", target, flags)


def syncfs(fd: int) -> None:
    """Flush the file system of an open file to its disk (syncfs(2)). Raises OSError."""
    call_libc("syncfs", fd)


def open_place(path: str, resolve: int, folder: int = AT_FDCWD, flags: int = 0) -> int:
    """Open a path below a folder with openat2(2), O_PATH and the RESOLVE_* flags ``resolve``, and
    return the descriptor.
    """
    how = _open_how.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    return call_libc("syscall", _OPENAT2, folder, path, how, len(how), path=path)


def clone_mount(fd: int, path: str = "", recursive: bool = False) -> int:
    """Return a new detached bind mount of ``path`` below ``fd``, by default of ``fd`` itself."""
    flags = _CLONE | _CLOEXEC | (_RECURSIVE if recursive else 0)
    flags |= 0 if path else _AT_EMPTY_PATH
    return call_libc("syscall", _OPEN_TREE, fd, path, flags, path=path)


def set_attributes(tree: int, attributes: int, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* flags of a detached mount (mount_setattr(2))."""
    attr = _mount_attr.pack(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_RECURSIVE if recursive else 0)
    call_libc("syscall", _MOUNT_SETATTR, tree, b"", flags, attr, len(attr))


def attach(tree: int, target: str, folder: int = AT_FDCWD) -> None:
    """Attach a detached mount at a path below the folder ``folder`` (move_mount(2))."""
    call_libc("syscall", _MOVE_MOUNT, tree, b"", folder, target, _FROM_EMPTY_PATH, path=target)


def attach_beneath(tree: int, target: int) -> None:
    """Attach a detached mount beneath an existing mount. Needs Linux 6.5."""
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH
    call_libc("syscall", _MOVE_MOUNT, tree, b"", target, b"", flags)
