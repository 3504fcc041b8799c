"""Assemble the root file system of a service from overlays, with parts that services share.

niso's layer is a small folder with mount points, /etc/passwd, /etc/hosts and the like. It is the
upper of the two lower layers of an overlay, above the service's rootfs, which is never written to.
`write_layer` writes the folder. `assemble` mounts, and must run in a private mount namespace: the
host's namespace never has a mount of niso's.

Without a rootfs, niso's layer is above a skeleton, and the root shows the host's /usr read-only. A
skeleton has the mount points, links like /bin, and copies of the files in the host's /etc that
programs need; no service can write to it. ``<run>/skeletons`` has one for each state of the host
with which a service has started: a changed file of the host's /etc leads to a new one.

All folders of the host that a service sees are overlays too. A service with access to the host's
inodes could watch them (inotify(7)), lock them (flock(2)) or take leases on them (fcntl(2)), and so
observe or delay every program of the host and of other services that opens them.

Concurrent starts of one process share what they read from the host, while any start is in progress:
they follow each other within milliseconds, so the results stay valid. All system calls for mounts
that Python lacks raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from hashlib import sha256

from niso.base import files, paths
from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.plan.specs import ProcessSpec
from niso.runtime import entrypoint, status
from niso.runtime.crun import APP
from niso.runtime.entrypoint import TOP_LINKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ctypes import CDLL
    from typing import Any


# --- the root of a service ------------------------------------------------------------------------


# mount(2), linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV = 0x1, 0x2, 0x4

HOST, INIT, SECRETS = "host", "init", "secrets"
"""Folders of the bundle: they show the host's folders, that of catatonit, and the secrets."""


def write_layer(spec: ProcessSpec, layer: str, below: str) -> str:
    """Fill the empty folder ``layer`` with the files that only this service's root has.

    ``below`` is the rootfs or, without one, the skeleton, which has the mount points. Returns the
    mount point of the hosts folder inside the service. Raises OSError.
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
    """Mount the root at ``bundle``/root, in a mount namespace of `mount_base.enter`.

    ``init`` is the path of catatonit; its folder is shown at ``bundle``/init. ``folders`` are the
    folders of the host that the root shows. ``sources`` are detached mounts, by their mount point
    in ``bundle``; ``secrets`` is the content of each secret by name.

    Makes ``bundle`` the working directory: relative names of the layers keep ``:`` and ``,`` out of
    overlay's options. Raises OSError.
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
    if not spec.read_only:
        mount("none", "scratch", "tmpfs", flags, "mode=0755")
        os.mkdir("scratch/upper", 0o755)
        os.mkdir("scratch/work", 0o700)
        _copy_owner("layer", "scratch/upper")
        mount(
            "niso",
            "root",
            "overlay",
            flags,
            f"lowerdir=layer:{LOWER},upperdir=scratch/upper,workdir=scratch/work",
        )
    else:
        mount("niso", "root", "overlay", flags | MS_RDONLY, f"lowerdir=layer:{LOWER}")


def _write_secrets(spec: ProcessSpec, secrets: Mapping[str, bytes]) -> None:
    """Write the secrets to a tmpfs of this mount namespace, readable by the service's user only.

    On the host, the folder stays empty.
    """
    mount("none", SECRETS, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    for name, content in secrets.items():
        path = f"{SECRETS}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            files.write(fd, content)
            os.fchown(fd, spec.uid, spec.gid)
        finally:
            os.close(fd)


def _show_host(folders: Sequence[str]) -> None:
    """Mount an overlay of each top-level folder of the host that is part of an assembled root.

    An overlay does not include mounts below its folder. A folder on a file system of its own
    therefore gets a separate overlay, also if it is directly below /usr.
    """
    devices = {}
    for top in dict.fromkeys(folder.split("/")[1] for folder in folders):
        os.mkdir(f"{HOST}/{top}")
        _show(f"/{top}", f"{HOST}/{top}")
        devices[top] = os.stat(f"/{top}").st_dev
    for folder in (*folders, *(f"/usr/{name}" for name in os.listdir("/usr"))):
        info = os.lstat(folder)
        if stat.S_ISDIR(info.st_mode) and info.st_dev != devices[folder.split("/")[1]]:
            _show(folder, HOST + folder)


def _show(folder: str, at: str) -> None:
    """Mount a read-only overlay of ``folder``; overlay needs two layers, so one is empty."""
    lower = "".join(f"\\{char}" if char in "\\:," else char for char in folder)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    mount("niso", at, "overlay", flags, f"lowerdir={lower}:empty")


def _write_etc(spec: ProcessSpec, etc: str) -> None:
    """Write the files of /etc that depend on the service: users, name resolution, hostname."""
    read = (
        entrypoint.read_database
        if spec.rootfs is not None
        else partial(once, entrypoint.read_database)
    )
    passwd, group = [*read(spec.rootfs, "passwd")], [*read(spec.rootfs, "group")]
    if spec.rootfs is None:
        # Hide the host's users except root, nobody and the service's own.
        passwd = [
            line for line in passwd if line[0] in ("root", "nobody") or line[2] == str(spec.uid)
        ]
        shown = {0, spec.gid, *spec.groups, *(int(line[3]) for line in passwd)}
        group = [[*line[:3], ""] for line in group if int(line[2]) in shown]
    if all(line[2] != str(spec.uid) for line in passwd):
        passwd.append(
            [_free_name(spec, passwd), "x", str(spec.uid), str(spec.gid), "", spec.home, "/bin/sh"]
        )
    if all(line[2] != str(spec.gid) for line in group):
        group.append([_free_name(spec, group), "x", str(spec.gid), ""])
    _write(f"{etc}/passwd", _lines(passwd))
    _write(f"{etc}/group", _lines(group))
    _write(f"{etc}/hostname", f"{spec.hostname}\n".encode())
    _write(f"{etc}/resolv.conf", spec.resolv_conf.encode(errors="surrogateescape"))
    if spec.hosts_folder:
        os.symlink(f"{HOSTS}/hosts", f"{etc}/hosts")
    else:
        # its network is the host's, so the host's address is loopback
        text = f"{of_host('hosts').rstrip()}\n127.0.0.1  host.niso.local\n"
        _write(f"{etc}/hosts", text.encode(errors="surrogateescape"))
    if spec.rootfs is not None and not _exists(spec.rootfs, "/etc/nsswitch.conf"):
        _write(f"{etc}/nsswitch.conf", NSSWITCH.encode())


def of_host(name: str) -> str:
    """Read a file of the host's /etc; empty if it cannot be read."""
    try:
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(entrypoint.MAX_FILE_BYTES)
    except OSError:
        return ""


def _free_name(spec: ProcessSpec, lines: list[list[str]]) -> str:
    """Return the service's user name, with its uid appended if another entry has that name."""
    taken = {line[0] for line in lines}
    return spec.user_name if spec.user_name not in taken else f"{spec.user_name}-{spec.uid}"


def _lines(database: list[list[str]]) -> bytes:
    return "".join(":".join(line) + "\n" for line in database).encode()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o644)


def check_points(rootfs: str) -> None:
    """Raise InvalidInput (key package.rootfs) if a link would make niso's mounts hide each other.

    The target of such a link is /, or is inside another mount point.
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
            raise InvalidInput(
                f"{what}, which niso's mount at {at[point]} would hide",
                "replace the link by a folder in the rootfs",
                "package.rootfs",
            )


def place(rootfs: str, path: str) -> str:
    """Resolve the links of ``path`` in the rootfs, as far as the path exists."""
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


def _exists(rootfs: str, path: str) -> bool:
    try:
        fd, _ = entrypoint.open_inside({"": rootfs}, path)
    except OSError:
        return False
    os.close(fd)
    return True


def mount_point(below: str, layer: str, path: str) -> None:
    """Make the folder ``path`` in the layer above the rootfs or skeleton ``below``. Raises OSError.

    Folders that exist there get the same owner and mode.
    """
    path = place(below, path)
    built = ""
    for part in path.split("/")[1:]:
        built += f"/{part}"
        try:
            os.mkdir(layer + built, 0o755)
        except FileExistsError:
            # a link of niso's own, which leads to a path on the host
            if os.path.islink(layer + built):
                raise OSError(errno.ELOOP, "it is below a symlink", built) from None
            continue
        os.chmod(layer + built, 0o755)
        if os.path.isdir(below + built):
            _copy_owner(below + built, layer + built)


def mount_file(below: str, layer: str, path: str) -> None:
    """Make the empty file ``path`` in the layer as a mount point; no-op if it exists.

    ``below`` is as in `mount_point`. Raises OSError.
    """
    path = place(below, path)
    mount_point(below, layer, os.path.dirname(path))
    try:
        os.close(os.open(layer + path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        return


def _copy_owner(source: str, target: str) -> None:
    """Copy the owner and mode of a folder; no-op if ``source`` is not a folder."""
    info = os.lstat(source)
    if not stat.S_ISDIR(info.st_mode):
        return
    os.chown(target, info.st_uid, info.st_gid)
    os.chmod(target, stat.S_IMODE(info.st_mode))


# --- the skeleton below roots without a rootfs ----------------------------------------------------


HOSTS = "niso-hosts"
"""The name, below the service's /etc, of the folder that contains the file hosts.

A folder is mounted, because a mounted file does not follow a rename over it.
"""

LOWER = "lower"
"""The path in the bundle of the rootfs mount, or of a link to the skeleton."""
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
"""Without /etc/nsswitch.conf, glibc queries DNS before /etc/hosts (nss/nss_database.c)."""

# The files of the host's /etc that an assembled root has: no key, password or machine id.
ETC_FILES = (
    "bindresvport.blacklist",
    "debian_version",
    "ethertypes",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "locale.alias",
    "locale.conf",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "netconfig",
    "networks",
    "os-release",
    "protocols",
    "rpc",
    "services",
    "shells",
    "ssl/openssl.cnf",
    "timezone",
    "xattr.conf",
)
ETC_FOLDERS = ("alternatives", "ca-certificates", "fonts", "ld.so.conf.d", "ssl/certs", "terminfo")
_FOLDERS = ("/home", "/mnt", "/opt", "/srv", "/var/cache", "/var/lib", "/var/log")
_LINKS = (("/etc/mtab", "/proc/self/mounts"), ("/var/lock", "/run/lock"), ("/var/run", "/run"))
_ROOT_HOME = "/root"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class Skeleton(NamedTuple):
    path: str
    folders: list[str]
    """The folders of the host that the root shows read-only at the same path."""


class _Entry(NamedTuple):
    """A link or a copied file in a skeleton."""

    path: str
    link: str
    """The target of a link; "" for a copy of the host's file."""
    state: tuple[int, int, int]
    """State of the host's file: mtime in ns, size, inode."""


def etc_folders() -> list[str]:
    """List the folders of the host's /etc that an assembled root shows read-only."""
    java = [name for name in os.listdir("/etc") if name.startswith("java-")]
    return [f"/etc/{name}" for name in (*ETC_FOLDERS, *java) if os.path.isdir(f"/etc/{name}")]


def current() -> Skeleton:
    """Return the skeleton for the present state of the host; create it if missing. Raises OSError.

    The caller holds the lock ``.cgroup`` shared until its bundle links to the skeleton, so that
    `remove_unused` waits.
    """
    known = once(_current)
    return known if os.path.isdir(known.path) else _current()


def _current() -> Skeleton:
    entries, folders = list(_links()), ["/usr"]
    linked = {entry.path for entry in entries}
    tops = (f"/{name}" for name in TOP_LINKS)
    folders += [top for top in tops if top not in linked and os.path.isdir(top)]
    folders += etc_folders()
    entries += _files()
    path = f"{_top()}/{_key(tuple(entries), tuple(folders))}"
    if not os.path.isdir(path):
        _make(path, entries, folders)
    return Skeleton(path, folders)


@cache
def _key(*content: object) -> str:
    """Return the name of a skeleton with this content."""
    whole = (*content, MOUNT_POINTS, _FOLDERS, _LINKS, NSSWITCH)
    return sha256(repr(whole).encode(errors="surrogateescape")).hexdigest()[:16]


def _top() -> str:
    return os.path.join(paths.run_dir(), "skeletons")


def _links() -> Iterator[_Entry]:
    for name in TOP_LINKS:
        try:
            yield _Entry(f"/{name}", os.readlink(f"/{name}"), (0, 0, 0))
        except OSError:  # a folder, or missing
            continue


def _files() -> Iterator[_Entry]:
    for name in ETC_FILES:
        source = f"/etc/{name}"
        try:
            if os.path.islink(source) and os.path.realpath(source).startswith("/usr/"):
                yield _Entry(source, os.readlink(source), (0, 0, 0))
                continue
            info = os.stat(source)
        except OSError:  # missing
            continue
        if stat.S_ISREG(info.st_mode):
            yield _Entry(source, "", (info.st_mtime_ns, info.st_size, info.st_ino))


def _make(path: str, entries: list[_Entry], folders: list[str]) -> None:
    """Create the skeleton ``path`` completely or not at all. Raises OSError."""
    draft = f"{path}.{os.getpid()}.new"
    files.remove_tree(draft)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    _folder(draft)
    for folder in (*MOUNT_POINTS, f"/etc/{HOSTS}", *folders, *_FOLDERS, "/etc/ssl"):
        _folders(draft, folder)
    os.mkdir(draft + _ROOT_HOME, 0o700)
    for at, target in _LINKS:
        os.symlink(target, draft + at)
    for entry in entries:
        if entry.link:
            os.symlink(entry.link, draft + entry.path)
        else:
            with open(entry.path, "rb") as file:
                _write_skeleton_file(draft + entry.path, file.read(entrypoint.MAX_FILE_BYTES))
    _write_skeleton_file(f"{draft}/etc/nsswitch.conf", NSSWITCH.encode())
    try:
        os.rename(draft, path)
    except OSError as error:
        files.remove_tree(draft)
        if error.errno not in _TAKEN:  # otherwise another start has created it
            raise


def _folders(top: str, path: str) -> None:
    """Create a folder below ``top`` with its parents."""
    for part in path.split("/")[1:]:
        top += f"/{part}"
        if not os.path.isdir(top):
            _folder(top)


def _folder(path: str) -> None:
    """Create a folder that all users can read, whatever the umask."""
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)


def _write_skeleton_file(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o644)


def remove_unused() -> None:
    """Remove the skeletons that no service uses, except the latest. Raises OSError.

    The caller holds the lock ``.cgroup`` exclusively: no service is starting.
    """
    try:
        names = os.listdir(_top())
    except FileNotFoundError:
        return
    if len(names) > 1:
        *others, _ = sorted((f"{_top()}/{name}" for name in names), key=_age)
        for path in others:
            if not any(path == _link_of(bundle) for bundle in _bundles()):
                files.remove_tree(path)


def _age(path: str) -> tuple[bool, int]:
    """Return a key that sorts skeletons by age; incomplete ones come first."""
    return not path.endswith(".new"), os.stat(path).st_mtime_ns


def _bundles() -> Iterator[str]:
    for service in status.services():
        yield from status.bundles(paths.service_dir(service))


def _link_of(bundle: str) -> str:
    """Return the skeleton of a bundle; "" if it has a rootfs instead."""
    try:
        return os.readlink(f"{bundle}/{LOWER}")
    except OSError:
        return ""


# --- results that concurrent starts share ---------------------------------------------------------


_lock = threading.Lock()
_starts = 0
_read: dict[object, Any] = {}
"""The results of `once`, by the function and its arguments."""
_at_end: list[Callable[[], object]] = []
"""Functions to call when no start is in progress any more."""


def begin() -> None:
    """Count a start that begins; the caller must call `end`."""
    global _starts
    with _lock:
        _starts += 1


def end() -> None:
    """Count a start that ends; after the last one in progress, drop the shared results."""
    global _starts
    with _lock:
        _starts -= 1
        if _starts:
            return
        _read.clear()
        while _at_end:
            _at_end.pop()()


def at_end(drop: Callable[[], object]) -> None:
    """Call ``drop`` after the last start in progress; use this inside a start."""
    with _lock:
        _at_end.append(drop)


def once[T](read: Callable[..., T], *args: object) -> T:
    """Return ``read(*args)``, cached while a start is in progress; the caller must not modify it.

    If no start is in progress, ``read`` is called each time. Raises what ``read`` raises, and then
    caches nothing.
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
NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 0x2, 0x4, 0x8
"""RESOLVE_* of openat2(2)."""

_open_how = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve
_mount_attr = struct.Struct("=QQQQ")  # struct mount_attr: set, clear, propagation, userns


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """Call mount(2). The error has ``target`` as its file name."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _call("mount", *texts[:3], flags, texts[3], name=target)


def unmount(target: bytes, flags: int) -> None:
    """Call umount2(2)."""
    _call("umount2", target, flags)


def syncfs(fd: int) -> None:
    """Flush the file system of ``fd`` to its disk (syncfs(2))."""
    _call("syncfs", fd)


def open_place(path: str, resolve: int, folder: int = AT_FDCWD, flags: int = 0) -> int:
    """Open ``path`` below ``folder`` with O_PATH (openat2(2)); ``resolve`` has RESOLVE_* flags."""
    how = _open_how.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, resolve)
    return _call("syscall", _OPENAT2, folder, os.fsencode(path), how, len(how), name=path)


def clone_mount(fd: int, path: str = "", recursive: bool = False) -> int:
    """Create a detached bind mount of ``path`` below ``fd``, or of ``fd`` (open_tree(2))."""
    flags = _CLONE | _CLOEXEC | (_RECURSIVE if recursive else 0)
    flags |= 0 if path else _AT_EMPTY_PATH
    return _call("syscall", _OPEN_TREE, fd, os.fsencode(path), flags, name=path)


def set_attributes(tree: int, attributes: int, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* of a detached mount, or of all mounts in it (mount_setattr(2))."""
    attr = _mount_attr.pack(attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_RECURSIVE if recursive else 0)
    _call("syscall", _MOUNT_SETATTR, tree, b"", flags, attr, len(attr))


def attach(tree: int, target: str, folder: int = AT_FDCWD) -> None:
    """Mount a detached mount at ``target`` below ``folder`` (move_mount(2))."""
    where = (folder, os.fsencode(target))
    _call("syscall", _MOVE_MOUNT, tree, b"", *where, _FROM_EMPTY_PATH, name=target)


def attach_beneath(tree: int, target: int) -> None:
    """Mount a detached mount beneath the mount whose root is ``target`` (Linux 6.5)."""
    flags = _FROM_EMPTY_PATH | _TO_EMPTY_PATH | _BENEATH
    _call("syscall", _MOVE_MOUNT, tree, b"", target, b"", flags)


@cache
def _libc() -> CDLL:
    """Load the C library on first use, since most commands that load this module make no call."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes | None, name: str = "") -> int:
    """Call a function of the C library; return its result.

    Raises OSError with ``name`` as its file name if the result is negative.
    """
    import ctypes

    words = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = int(getattr(_libc(), function)(*words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name or None)
    return result
