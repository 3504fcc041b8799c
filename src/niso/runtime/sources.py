"""Identify the host's files that a service sees: rootfs, volumes, secrets, package copy.

A path can be replaced after it was checked. For example, a user who can write to one of its folders
could replace the rootfs with a symbolic link to /. Therefore an activation records which file each
path referred to. Each start opens the paths without following symbolic links, compares the files,
and mounts exactly the opened files.

A rootfs must stay the same folder. A host volume may be another file than at the activation, for
example after an edit, if only root can replace it. A secret may be replaced by another file, but
not by a symbolic link. A package copy must be a folder that only root can change.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from niso.base import files, paths
from niso.base.errors import Error, ProcessError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import sha256
from niso.plan.specs import NOT_DEVICES, Device, Identity, MountedVolume, ProcessSpec, Secret
from niso.runtime import root, status
from niso.runtime.crun import APP, load
from niso.runtime.root import HOSTS, LOWER

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.kinds.kind import Finding

# --- recorded and opened files --------------------------------------------------------------------


VOLUMES, PACKAGE, NETNS = "volumes", "package", "netns"
"""Names in the bundle of the mount points for these sources while the container is created.

The last one is a file, the others are folders.
"""
_NO_LINKS = root.NO_SYMLINKS | root.NO_MAGICLINKS
MAX_SECRET_BYTES = 512 << 10
_REPLACED = (errno.ELOOP, errno.ENOENT, errno.ENOTDIR)


def _sources(spec: ProcessSpec) -> Iterator[MountedVolume]:
    """Yield the rootfs, as a volume whose name is "", and the host volumes."""
    if spec.rootfs is not None:
        yield MountedVolume("", "/", spec.rootfs, False, True, None, spec.rootfs_identity)
    yield from filter(is_shared, spec.volumes)


def is_shared(volume: MountedVolume) -> bool:
    return volume.source is not None and not volume.named


def recorded(spec: ProcessSpec) -> ProcessSpec:
    """Return ``spec`` with the identities (device, inode, digest) of the files that it names.
    Symbolic links in the path of a host volume are resolved now: starts do not follow links.
    """
    boot = paths.boot_id()
    if spec.rootfs is not None and spec.rootfs_identity is None:
        fd = root.open_place(spec.rootfs, _NO_LINKS)
        spec = spec._replace(rootfs_identity=_identity(fd, boot))
        os.close(fd)
    volumes = tuple(
        _recorded(volume, boot) if is_shared(volume) and volume.identity is None else volume
        for volume in spec.volumes
    )
    secrets = tuple(one if one.digest else _recorded_secret(one) for one in spec.secrets)
    return spec._replace(volumes=volumes, secrets=secrets)


def _recorded_secret(secret: Secret) -> Secret:
    fd = root.open_place(os.path.realpath(secret.source), _NO_LINKS)
    try:
        source = os.readlink(f"/proc/self/fd/{fd}")
        salt = secret.salt or os.urandom(16).hex()
        digest = sha256(bytes.fromhex(salt) + _content(fd, source)).hexdigest()
        return secret._replace(source=source, salt=salt, digest=digest)
    finally:
        os.close(fd)


def devices(spec: ProcessSpec) -> list[dict[str, Any]]:
    """Return the devices of a service (OCI runtime-spec, config-linux.md) with access rights. The
    service's user will own them. Raises ProcessError if the host lacks a device.
    """
    found = {}
    for index, device in enumerate(spec.devices):
        mode = 0o400 * ("r" in device.access) + 0o200 * ("w" in device.access)
        own = {"fileMode": mode, "uid": spec.uid, "gid": spec.gid, "access": device.access}
        try:
            found.update({inside: {**one, **own} for inside, one in find_device(device).items()})
        except OSError as error:
            reason = f"isolation.devices[{index}]: {device.host}: {error.strerror}"
            raise ProcessError(reason, "ls -l /dev", service=spec.service) from error
    return list(found.values())


def find_device(device: Device) -> dict[str, dict[str, Any]]:
    """Return the OCI devices for a device of a manifest, as {path in the service: {path, type,
    major, minor}}. For a folder, these are all devices in or below the folder.

    Raises OSError if the host has no such device, or if it is not below /dev, where only root can
    create files.
    """
    top = os.path.realpath(device.host)
    found: dict[str, dict[str, Any]] = {}
    paths = [top]
    if os.path.isdir(top):
        walk = os.walk(top)
        paths = sorted(os.path.join(where, name) for where, _, names in walk for name in names)
    for path in paths:
        now = os.stat(path, follow_symlinks=False)
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(now.st_mode))
        if kind is not None and path.startswith("/dev/") and not path.startswith(NOT_DEVICES):
            inside = device.inside + path.removeprefix(top)
            numbers = {"major": os.major(now.st_rdev), "minor": os.minor(now.st_rdev)}
            found[inside] = {"path": inside, "type": kind, **numbers}
    if not found:
        raise OSError(errno.ENODEV, "is no device", top)
    return found


def read_secret(secret: Secret) -> bytes:
    fd = root.open_place(secret.source, _NO_LINKS)
    try:
        return _content(fd, secret.source)
    finally:
        os.close(fd)


def _content(fd: int, path: str) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "is not a file", path)
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        content = file.read(MAX_SECRET_BYTES + 1)
    if len(content) > MAX_SECRET_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {MAX_SECRET_BYTES >> 10} KB", path)
    return content


def _recorded(volume: MountedVolume, boot: str) -> MountedVolume:
    fd = root.open_place(os.path.realpath(str(volume.source)), _NO_LINKS)
    try:
        source = os.readlink(f"/proc/self/fd/{fd}")
        return volume._replace(source=source, identity=_identity(fd, boot))
    finally:
        os.close(fd)


def problems(spec: ProcessSpec) -> Iterator[Error]:
    """Yield an error for each secret that cannot be read, and for each replaced rootfs or volume.

    A rootfs or host volume is replaced if its path no longer refers to the file that was recorded
    when the service was activated.
    """
    for secret in spec.secrets:
        try:
            read_secret(secret)
        except OSError as error:
            yield _no_secret(secret, error, spec.service)
    for source in _sources(spec):
        try:
            os.close(_open(source))
        except Error as error:
            yield error


def replaced_files(spec: ProcessSpec) -> Iterator[MountedVolume]:
    """Yield each volume that is a single file and was replaced since the service started.

    The running service still sees the former file, because a bind mount shows an inode: many
    editors write a new file and rename it to the old name.
    """
    single = [v for v in spec.volumes if is_shared(v) and v.identity and not v.identity.inode]
    pid = status.read(spec.service).pid if single else None
    if pid is None:
        return
    with suppress(OSError):  # the process has just ended
        top = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
        try:
            for volume in single:
                with suppress(OSError):  # one of the two files does not exist
                    fd = root.open_place(volume.mount, root.IN_ROOT, top)
                    try:
                        if not os.path.samestat(os.fstat(fd), os.stat(str(volume.source))):
                            yield volume
                    finally:
                        os.close(fd)
        finally:
            os.close(top)


def _no_secret(secret: Secret, error: OSError, service: str) -> ProcessError:
    what = {errno.ELOOP: "leads through a symlink", errno.ENOENT: "is gone"}
    reason = what.get(error.errno or 0) or f"cannot be read: {error.strerror}"
    hint, key = "put it back; or activate the manifest again", f"secrets.{secret.name}.file"
    return ProcessError(f"{secret.source} {reason}", hint, key, service=service)


def open_all(
    spec: ProcessSpec, held: ExitStack
) -> tuple[ProcessSpec, dict[str, int], dict[str, bytes]]:
    """Open the verified files of a service as detached mounts: the package copy, the rootfs, host
    volumes and the network namespace. Read its secrets.

    Returns (spec, {mount point in the bundle: descriptor}, {secret: content}). The spec has paths
    through the descriptors, which are valid only in this process. ``held`` closes the descriptors;
    mounts that were created from them continue to exist. Raises ProcessError if a path refers to
    another file than at the activation, and OSError if the network namespace does not exist.
    """
    trees: dict[str, int] = {}
    secrets: dict[str, bytes] = {}
    for secret in spec.secrets:
        try:
            secrets[secret.name] = read_secret(secret)
        except OSError as error:
            raise _no_secret(secret, error, spec.service) from error

    def add(point: str, tree: int) -> str:
        trees[point] = tree
        held.callback(os.close, tree)
        return f"/proc/self/fd/{tree}"

    volumes = {volume.name: volume for volume in spec.volumes}
    rootfs = spec.rootfs
    add(PACKAGE, _clone(open_copy(spec.package, spec.service), True))
    if spec.netns:
        add(NETNS, root.clone_mount(root.AT_FDCWD, spec.netns))
    for source in _sources(spec):
        point = f"{VOLUMES}/{source.name}" if source.name else LOWER
        seen = add(point, _clone(_open(source, spec.service), bool(source.name)))
        if not source.name:
            rootfs = f"{seen}/."  # lstat(2) of the path alone would return a symbolic link of /proc
        else:
            volumes[source.name] = source._replace(source=seen)
    opened = spec._replace(rootfs=rootfs, volumes=tuple(volumes.values()))
    return opened, trees, secrets


def _clone(fd: int, recursive: bool) -> int:
    try:
        return root.clone_mount(fd, recursive=recursive)
    finally:
        os.close(fd)


def open_copy(path: str, service: str = "", manifest: str = "FOLDER") -> int:
    """Open a package copy (O_PATH). Raises ProcessError if another user can change it. ``service``
    and ``manifest`` are for error messages.
    """
    above, name = os.path.split(path)
    folder = copy = -1
    try:
        folder = root.open_place(above, 0)
        copy = root.open_place(name, _NO_LINKS | root.BENEATH, folder)
        # allowed by the modes of the folders above, but not by that of the state folder
        owned = os.fstat(folder).st_uid in (0, os.geteuid())
        if not owned or not files.is_own_folder(os.fstat(copy)):
            raise _not_copy(path, "is not niso's: other users can change it", service, manifest)
        opened, copy = copy, -1
        return opened
    except OSError as error:
        what = "is a link" if error.errno == errno.ELOOP else f"cannot be opened: {error.strerror}"
        raise _not_copy(path, what, service, manifest) from error
    finally:
        for fd in (folder, copy):
            if fd >= 0:
                os.close(fd)


def _not_copy(path: str, what: str, service: str, manifest: str) -> ProcessError:
    hint = f"niso activate {manifest}, which copies it again"
    return ProcessError(f"package copy {path} {what}", hint, service=service)


def _open(source: MountedVolume, service: str = "") -> int:
    """Open a rootfs or host volume (O_PATH), and return the descriptor. Raises ProcessError if it
    is not the file that was recorded at the service's activation.
    """
    was, path = source.identity, str(source.source)
    try:
        fd = root.open_place(path, 0 if was is None else _NO_LINKS)
    except OSError as error:
        if error.errno not in _REPLACED:
            raise _not_it(source, f"cannot be opened: {error.strerror}", service) from error
        what = "leads through a symlink" if error.errno == errno.ELOOP else "is gone"
        raise _not_it(source, f"{what}{_was(was)}", service) from error
    if was is None:
        return fd
    now = _identity(fd, was.boot)
    if was.boot != paths.boot_id():  # devices may have other numbers since
        now = now._replace(device=was.device)
    if now == was or (
        source.name
        and bool(now.inode) == bool(was.inode)
        and changeable(path, {0}, by_new_names=True) is None
    ):
        return fd
    os.close(fd)
    what = "is another folder" if now.inode else "is not a folder"
    raise _not_it(source, f"{what}{_was(was)}", service)


def _was(was: Identity | None) -> str:
    if was is None:
        return ""
    if not was.inode:
        return ", it was a file when it was activated"
    device = f"{os.major(was.device)}:{os.minor(was.device)}"
    return f", it was the folder with inode {was.inode} of device {device} when it was activated"


def _not_it(source: MountedVolume, what: str, service: str) -> ProcessError:
    hint = "put it back; or activate the manifest again if the service may use what is there now"
    key = f"volumes.{source.name}.host" if source.name else "package.rootfs"
    return ProcessError(f"{source.source} {what}", hint, key, service=service)


def changeable(path: str, trusted: set[int], by_new_names: bool = False) -> str | None:
    """Return a folder above ``path`` in which other users can replace entries, or None.

    ``trusted`` are the uids that do not count as other users. ``path`` must have no symbolic links.
    In a folder with the sticky bit, only the owner of an entry can replace it (inode(7)). Set
    ``by_new_names`` if the entry may be removed: any user can then create an entry with this name,
    even in a folder with the sticky bit.
    """
    folder = path
    while folder != "/":
        folder = os.path.dirname(folder)
        if files.changed_by_others(folder, trusted, sticky=not by_new_names) is not None:
            return folder
    return None


def _identity(fd: int, boot: str) -> Identity:
    """Return the identity of an open file: device and inode number, and the id of the boot. For
    anything but a folder, both numbers are 0, because an edit may replace a file.
    """
    info = os.fstat(fd)
    if not stat.S_ISDIR(info.st_mode):
        return Identity(0, 0, boot)
    return Identity(info.st_dev, info.st_ino, boot)


# --- defects of an active service's process and package copy --------------------------------------


def of_process(name: str) -> Finding | None:
    """Return the first problem of an active service's process for `niso net check`, or None.
    Examples: the process is missing, is outside its cgroup or namespace, or does not see its files.
    """
    from niso.kernel.kinds.kind import Finding

    what = f"process of service {name!r}"
    keeper = status.conmon(name)
    if status.outside_cgroup(name, keeper):
        reason = "its process was moved out of it"
        return Finding("different", f"cgroup of service {name!r}", reason)
    now = status.read(name, closely=True)
    if now.state in ("none", "failed"):
        return Finding("missing", what, now.error or "")
    if now.state == "exited" and status.is_stopping(name):
        return Finding("missing", what, INTERRUPTED)
    if now.state != "running":
        return None
    spec = load(name)
    if spec is None:
        lacks = "the spec that identifies its process"
        return Finding("missing", f"spec.json of service {name!r}", lacks, UNKNOWN)
    if _lost_sight(spec.package, now.pid):
        return Finding("different", what, "its package copy was deleted while running")
    if not status.is_in_own_netns(spec, now.pid):
        return Finding("different", what, "it runs in another network namespace")
    if not _sees_hosts(spec, now.pid):
        reason = "it does not see its hosts file: the folder was removed"
        return Finding("different", what, reason, BLIND)
    if keeper is None:
        reason = "no process collects its log or restarts it"
        return Finding("missing", f"conmon of service {name!r}", reason)
    if now.pid is not None and not status.known_to_crun(name, now.pid):
        return Finding("missing", f"crun's state of service {name!r}", "niso exec cannot find it")
    return None


INTERRUPTED = "a stop of it was interrupted"
UNKNOWN, BLIND = "spec gone", "hosts file unseen"
"""Problems that can be repaired while the process keeps running."""


def _lost_sight(copy: str, pid: int | None) -> bool:
    try:
        return os.stat(f"/proc/{pid}/root{APP}").st_nlink == 0 and os.path.isdir(copy)
    except OSError:
        return False


def _sees_hosts(spec: ProcessSpec, pid: int | None) -> bool:
    try:
        seen = os.stat(f"/proc/{pid}/root/etc/{HOSTS}")
        return os.path.samestat(seen, os.stat(spec.hosts_folder))
    except OSError:
        return True
