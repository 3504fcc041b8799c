"""Make the part of an assembled root that all services without a rootfs share: the skeleton.

It has the mount points, links like /bin, and copies of the files in the host's /etc that programs
need. It is the lowest layer of each such root, below the service's own (`niso.runtime.root`), and
no service can write to it. ``<run>/skeletons`` has one for each state of the host with which a
service has started; a changed file of the host's /etc leads to a new one.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import cache
from hashlib import sha256

from niso.base import paths, trees
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.runtime import service_paths, status, under_way
from niso.runtime.service_paths import TOP_LINKS
from niso.runtime.spec import APP

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    known = under_way.once(_current)
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
    trees.remove(draft)
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
                _write(draft + entry.path, file.read(service_paths.MAX_FILE_BYTES))
    _write(f"{draft}/etc/nsswitch.conf", NSSWITCH.encode())
    try:
        os.rename(draft, path)
    except OSError as error:
        trees.remove(draft)
        if error.errno not in _TAKEN:  # otherwise another start has created it
            raise


def _folders(top: str, path: str) -> None:
    """Create a folder below ``top`` with its parents."""
    for part in path.split("/")[1:]:
        top += f"/{part}"
        if not os.path.isdir(top):
            _folder(top)


def _folder(path: str) -> None:
    """Create a folder that all users can read, whatever the umask is."""
    os.mkdir(path, 0o755)
    os.chmod(path, 0o755)


def _write(path: str, content: bytes) -> None:
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
                trees.remove(path)


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
