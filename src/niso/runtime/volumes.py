"""Resolve the mount points of volumes; create and remove named volumes.

The symbolic links of a mount point are resolved inside the rootfs (`niso.runtime.entrypoint`). If a
mount point is missing in the rootfs, niso creates it in its own layer of the root. Nothing is
written to the rootfs or to a path of the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from niso.base import files, paths, signals
from niso.base.errors import Conflict, Error, InvalidInput
from niso.base.files import FOLDER
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.report import GivingVolume, RemovingVolumes, Report, silent
from niso.plan.specs import SERVICE_UIDS, MountedVolume, ProcessSpec, taken
from niso.runtime import cgroups, crun
from niso.runtime.entrypoint import TOP_LINKS
from niso.runtime.root import TMPFS, etc_folders, place

if TYPE_CHECKING:
    from typing import Any


_BIND = ("rbind", "rprivate", "rnosuid", "rnodev")


Placed = tuple[MountedVolume, str, bool]
"""A volume, its mount point in the service with links resolved, and whether it is a folder."""


def resolve_mount_points(rootfs: str | None, volumes: Iterable[MountedVolume]) -> list[Placed]:
    """Return (volume, mount point in the service, is a folder) for each volume, with the symbolic
    links of mount points resolved.

    ``rootfs`` is the service's root file system, or None. Raises InvalidInput with the key of the
    manifest if a mount point cannot be used, or if two overlap.
    """
    placed, errors = _placed(rootfs, volumes)
    if errors:
        raise errors[0]
    return placed


def check(rootfs: str | None, volumes: Iterable[MountedVolume]) -> list[InvalidInput]:
    """Return all errors in the volumes of a service, without changing anything."""
    return _placed(rootfs, volumes)[1]


def _placed(
    rootfs: str | None, volumes: Iterable[MountedVolume]
) -> tuple[list[Placed], list[InvalidInput]]:
    result: list[Placed] = []
    errors: list[InvalidInput] = []
    points: dict[str, tuple[str, str]] = {}  # mount point -> as in the manifest, and itself
    above: dict[str, tuple[str, str]] = {}  # folder above a mount point -> the same
    for volume in volumes:
        try:
            at = _place(rootfs, volume)
            folders = [at[:end] for end, letter in enumerate(at) if letter == "/" and end]
            taken_by = [points[place] for place in (at, *folders) if place in points]
            if taken_by := [*taken_by, *([above[at]] if at in above else ())]:
                other, taken_at = taken_by[0]
                reason = f"it is {at}, which overlaps with {other} ({taken_at})"
                raise _bad_mount(volume, reason)
            result.append((volume, at, _is_folder(volume)))
            points[at] = volume.mount, at
            above |= dict.fromkeys(folders, points[at])
        except InvalidInput as error:
            errors.append(error)
    return result, errors


def _place(rootfs: str | None, volume: MountedVolume) -> str:
    path = volume.mount
    if any(_is_within(path, point) for point in TMPFS):
        return path  # a tmpfs of niso's own is mounted there, whatever the rootfs has
    at = _place_assembled(volume) if rootfs is None else place(rootfs, path)
    if reason := taken(at):
        raise _bad_mount(volume, reason if at == path else f"it is {at} in the rootfs; {reason}")
    return at


def _place_assembled(volume: MountedVolume) -> str:
    path = volume.mount
    read_only = ["/usr", *(f"/{name}" for name in TOP_LINKS)]
    read_only = [folder for folder in read_only if _is_within(path, folder)]
    if path.startswith("/etc/"):
        read_only += [folder for folder in etc_folders() if path.startswith(f"{folder}/")]
    if read_only:
        raise _bad_mount(volume, f"without a rootfs, {read_only[0]} is the host's, read-only")
    links = [(link, target) for link, target in _LINKS if _is_within(path, link)]
    return path.replace(*links[0], 1) if links else path


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


_LINKS = (("/var/run", "/run"), ("/var/lock", "/run/lock"))
"""Symbolic links in the root of a service without a rootfs, below which a mount point can be."""


def _is_folder(volume: MountedVolume) -> bool:
    if volume.source is None or volume.named:
        return True
    try:
        return stat.S_ISDIR(os.stat(volume.source).st_mode)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = f"{volume.source!r} {'does not exist on the host' if missing else error.strerror}"
        key = f"volumes.{volume.name}.host"
        raise InvalidInput(reason, f"mkdir -p {volume.source}", key) from None


def _bad_mount(volume: MountedVolume, reason: str) -> InvalidInput:
    key = f"volumes.{volume.name}.mount"
    reason = f"{volume.mount!r} cannot be a mount point: {reason}"
    return InvalidInput(reason, "for example /data", key)


def is_writable(volume: MountedVolume, spec: ProcessSpec) -> bool:
    """Return whether the service's user may write to a host volume. Returns True if this is
    unknown, because the volume does not exist or has an access control list (acl(5)).
    """
    path = str(volume.source)
    try:
        info = os.stat(path)
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return False
        if "system.posix_acl_access" in os.listxattr(path):
            return True
    except OSError:
        return True
    if "DAC_OVERRIDE" in spec.capabilities:  # root has it only if the manifest says so
        return True
    if info.st_uid == spec.uid:
        bit = stat.S_IWUSR
    else:
        bit = stat.S_IWGRP if info.st_gid in (spec.gid, *spec.groups) else stat.S_IWOTH
    return bool(info.st_mode & bit)


def unwritable(spec: ProcessSpec) -> list[MountedVolume]:
    """Return the host volumes with mode "rw" to which the service's user cannot write."""
    return [
        volume
        for volume in spec.volumes
        if volume.source is not None
        and not (volume.named or volume.read_only or is_writable(volume, spec))
    ]


_REPORT_EVERY = 10_000
_MOST_ENTRIES = 1000
"""How many files and folders directly in a volume are compared at each start."""


def give_to_service(spec: ProcessSpec, report: Report = silent) -> None:
    """Change the owner of named volumes to the service's user if another service owns them.

    The uid can differ after volumes were moved from another host, or after the store was lost. A
    volume's name shows to which service it belongs. Only files that belong to a uid or gid of
    services (`SERVICE_UIDS`) get another owner. Volumes that are paths of the host stay unchanged.
    If the manifest names a user, no file is changed, because a rollback could not restore the
    owner. The service must not run. Raises Error.
    """
    for volume in spec.volumes if spec.uid in SERVICE_UIDS else ():
        if not volume.named or volume.source is None or not os.path.isdir(volume.source):
            continue
        info = os.lstat(volume.source)
        if stat.S_ISLNK(info.st_mode):
            continue  # root has moved the volume: the files are at a path of the host
        if not _has_other_owner(volume.source, info, spec):
            continue
        if point := mounted_in(volume.source):
            reason = f"volume {volume.name!r} has the uid of another service: it cannot be given to"
            reason += f" uid {spec.uid} while something is mounted at {point}"
            raise Conflict(reason, f"umount {point}", service=spec.service)
        signals.hit(f"give volume {volume.source} to {spec.uid}")
        report(GivingVolume(spec.service, volume.name, spec.uid))
        given = 0
        try:
            if info.st_uid == spec.uid:  # if this is interrupted, the next start continues
                os.chown(volume.source, next(uid for uid in SERVICE_UIDS if uid != spec.uid), -1)
            for path, folder, found in walk(volume.source):
                owner = _owner(found, spec)
                if owner != (found.st_uid, found.st_gid):
                    name = os.path.basename(path)
                    os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
                    given += 1
                    if given % _REPORT_EVERY == 0:
                        report(GivingVolume(spec.service, volume.name, spec.uid, given))
            os.chown(volume.source, *_owner(info, spec))  # last, so that an interrupt is noticed
        except OSError as error:
            reason = f"cannot give volume {volume.name!r} to uid {spec.uid}: {error.strerror}"
            raise Error(reason, service=spec.service) from error


def _has_other_owner(top: str, info: os.stat_result, spec: ProcessSpec) -> bool:
    if _owner(info, spec) != (info.st_uid, info.st_gid):
        return True
    with os.scandir(top) as entries:
        found = [entry.stat(follow_symlinks=False) for entry in islice(entries, _MOST_ENTRIES)]
    return any(_owner(one, spec) != (one.st_uid, one.st_gid) for one in found)


def _owner(info: os.stat_result, spec: ProcessSpec) -> tuple[int, int]:
    return (
        spec.uid if info.st_uid in SERVICE_UIDS else info.st_uid,
        spec.gid if info.st_gid in SERVICE_UIDS else info.st_gid,
    )


def walk(top: str) -> Iterator[tuple[str, int, os.stat_result]]:
    """Yield (path below ``top``, descriptor of the containing folder, status) for everything in a
    folder, each folder before its content. The descriptor is valid only until the next result.

    A service can nest folders deeper than there are descriptors, with paths longer than PATH_MAX.
    Therefore only one folder is open at a time, and no symbolic link is followed. Raises OSError,
    with ESTALE if a folder was moved during the walk.
    """
    fd = os.open(top, FOLDER)
    try:
        levels = [(os.fstat(fd), "", iter(sorted(os.listdir(fd))))]
        while levels:
            _, path, names = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
                if levels:
                    fd = _opened("..", fd)
                    if not os.path.samestat(os.fstat(fd), levels[-1][0]):
                        raise OSError(errno.ESTALE, "a folder was moved", path)
                continue
            try:
                info = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue  # it was deleted since the folder was read
            below = f"{path}/{name}" if path else name
            yield below, fd, info
            if stat.S_ISDIR(info.st_mode):
                try:
                    fd = _opened(name, fd)
                except FileNotFoundError:
                    continue
                levels.append((os.fstat(fd), below, iter(sorted(os.listdir(fd)))))
    finally:
        os.close(fd)


def size(top: str) -> tuple[int, int]:
    """Return how many bytes a folder takes on the disk, and the number of its files and folders. A
    file with several links is counted once. Raises OSError.
    """
    seen: set[tuple[int, int]] = set()
    total = os.lstat(top).st_blocks * 512
    count = 0
    for _, _, info in walk(top):
        count += 1
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        total += info.st_blocks * 512
    return total, count


def _opened(name: str, folder: int) -> int:
    fd = os.open(name, FOLDER, dir_fd=folder)
    os.close(folder)
    return fd


def make_named(spec: ProcessSpec) -> None:
    """Create the missing named volumes atomically, owned by the service's user, mode 0700. An
    existing volume with the uid of another service is given to the service's user.
    """
    give_to_service(spec)
    for volume in spec.volumes:
        if not volume.named or volume.source is None or os.path.isdir(volume.source):
            continue
        signals.hit(f"make volume {volume.source}")
        folder, name = os.path.split(volume.source)
        os.makedirs(folder, 0o700, exist_ok=True)
        draft = os.path.join(folder, f".{name}.new")  # names of volumes do not start with a dot
        os.makedirs(draft, 0o700, exist_ok=True)
        os.chmod(draft, 0o700)
        os.chown(draft, spec.uid, spec.gid)
        os.rename(draft, volume.source)


def mounts(spec: ProcessSpec, where: list[Placed], shared: str) -> list[dict[str, Any]]:
    """Return the OCI mount objects of volumes. ``where`` has each volume with its mount point.
    ``shared`` is the folder that contains the host volumes by name.
    """
    result = []
    for volume, at, _ in where:
        if volume.source is not None:
            source = volume.source if volume.named else os.path.join(shared, volume.name)
            options = [*_BIND, "rro" if volume.read_only else "rw"]
            result.append({"source": source, "destination": at, "type": "bind", "options": options})
            continue
        options = ["nosuid", "nodev", "mode=0700", f"uid={spec.uid}", f"gid={spec.gid}"]
        options += [f"size={volume.size}"] if volume.size is not None else []
        result.append({"source": "tmpfs", "destination": at, "type": "tmpfs", "options": options})
    return result


# --- named volumes, which outlive an activation ---------------------------------------------------


def existing_names(service: str) -> list[str]:
    """Return the names of a service's named volumes on disk, even if the service was removed."""
    top = paths.volume_dir(service)
    names = [name for name in crun.names_in(top) if not name.startswith(".")]
    return [name for name in names if os.path.isdir(os.path.join(top, name))]


def owners() -> dict[str, set[int]]:
    """Return {service: uids that own its named volumes}."""
    top = os.path.dirname(paths.volume_dir("-"))
    owners: dict[str, set[int]] = {service: set() for service in crun.names_in(top)}
    for service, uids in owners.items():
        for name in existing_names(service):
            with suppress(FileNotFoundError):  # the volume was removed in the meantime
                uids.add(os.lstat(os.path.join(paths.volume_dir(service), name)).st_uid)
    return owners


def remove_empty_folder(service: str) -> None:
    """Delete the folder of a service's named volumes if it is empty."""
    with suppress(OSError):
        os.rmdir(paths.volume_dir(service))


def check_removable(service: str, volume: str = "") -> None:
    """Raise Conflict if a file system is mounted in a volume: the files of this file system would
    be deleted with the volume. If ``volume`` is empty, all volumes of the service are checked.
    """
    if point := mounted_in(os.path.join(paths.volume_dir(service), volume)):
        reason = f"cannot remove its volumes: something is mounted at {point}"
        raise Conflict(reason, f"umount {point}", service=service)


def mounted_in(folder: str) -> str | None:
    """Return a mount point at or below a folder, or None."""
    folder = os.path.realpath(folder)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        points = (cgroups.unescaped(line.split(" ")[4]) for line in lines)
        return next((point for point in points if _is_within(point, folder)), None)


def remove_all(service: str, report: Report, volume: str = "") -> None:
    """Delete the named volumes of a service with their content, or only ``volume`` if given. The
    service must have no process. Symbolic links are not followed. Raises Error.
    """
    folder = os.path.join(paths.volume_dir(service), volume)
    if not os.path.lexists(folder):
        return
    check_removable(service, volume)

    report(RemovingVolumes(service, (volume,) if volume else tuple(existing_names(service))))
    try:
        signals.hit(f"remove the volumes of {service}")
        files.remove_tree(folder)
        if volume:
            remove_empty_folder(service)
    except OSError as error:
        inside = f" (in it: {error.filename})" if error.filename not in (None, folder) else ""
        reason = f"cannot remove its volumes: {folder}{inside}: {error.strerror}"
        hint = "once that is corrected, remove them again"
        raise Error(reason, hint, service=service) from error
