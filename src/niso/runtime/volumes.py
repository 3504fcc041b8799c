"""The volumes of a service: where each is on the host, and where it really is inside the service.

A mount point is looked up in the rootfs with its links followed inside (`niso.runtime.resolve`), made in niso's own layer where it is missing, and
mounted by crun, which never leaves the root either. Nothing is written to the rootfs or to a path of the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from niso.base import failpoint, paths
from niso.base.errors import Conflict, InvalidInput, NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.report import RemovingVolumes, Report
from niso.plan.mount_points import taken
from niso.plan.process_spec import ProcessSpec, Volume
from niso.runtime.root import TMPFS, TOP_LINKS, etc_folders, mount_file, mount_point, place

if TYPE_CHECKING:
    from typing import Any

_BIND = ("rbind", "rprivate", "rnosuid", "rnodev")


class Placed(NamedTuple):
    volume: Volume
    at: str
    """The mount point inside the service, links followed."""
    folder: bool
    """Whether it is a folder, else a file."""


def placed(rootfs: str | None, volumes: Iterable[Volume]) -> list[Placed]:
    """Where the volumes are inside a service with this rootfs. Raises InvalidInput, whose key is that of the manifest."""
    found: list[Placed] = []
    for volume in volumes:
        at = _place(rootfs, volume)
        for other in found:
            if at == other.at or at.startswith(f"{other.at}/") or other.at.startswith(f"{at}/"):
                raise _wrong(
                    volume,
                    f"that is {at}, which is not apart from {other.volume.mount} ({other.at})",
                )
        found.append(Placed(volume, at, _is_folder(volume)))
    return found


def _place(rootfs: str | None, volume: Volume) -> str:
    path = volume.mount
    if any(path == each or path.startswith(f"{each}/") for each in TMPFS):
        return path  # a tmpfs of niso's own, whatever the rootfs has there
    if rootfs is not None:
        at = place(rootfs, path)
    else:
        # the links of an assembled root
        at = next(
            (
                path.replace(link, to, 1)
                for link, to in _LINKS
                if path == link or path.startswith(f"{link}/")
            ),
            path,
        )
        hosts = ("/usr", *(f"/{name}" for name in TOP_LINKS))
        read_only = next(
            (each for each in hosts if path == each or path.startswith(f"{each}/")), None
        )
        read_only = read_only or next(
            (each for each in etc_folders() if path.startswith(f"{each}/")), None
        )
        if read_only is not None:
            raise _wrong(volume, f"without a rootfs {read_only} is the host's, read-only")
    if reason := taken(at):
        raise _wrong(volume, reason if at == path else f"that is {at} in the rootfs, and {reason}")
    return at


_LINKS = (("/var/run", "/run"), ("/var/lock", "/run/lock"))


def _is_folder(volume: Volume) -> bool:
    if volume.source is None or volume.named:
        return True
    try:
        return stat.S_ISDIR(os.stat(volume.source).st_mode)
    except OSError as error:
        key = f"volumes.{volume.name}.host"
        reason = (
            "does not exist on the host"
            if isinstance(error, FileNotFoundError)
            else f"{error.strerror}"
        )
        raise InvalidInput(
            f"{volume.source!r} {reason}", f"mkdir -p {volume.source}", key
        ) from None


def _wrong(volume: Volume, reason: str) -> InvalidInput:
    key = f"volumes.{volume.name}.mount"
    return InvalidInput(
        f"{volume.mount!r} cannot be a mount point: {reason}", "for example /data", key
    )


def make_named(spec: ProcessSpec) -> None:
    """Make the named volumes that are not there yet, owned by the service's user (0700), each whole or not at all. Raises OSError."""
    for volume in spec.volumes:
        if not volume.named or volume.source is None or os.path.isdir(volume.source):
            continue
        failpoint.hit(f"make volume {volume.source}")
        folder, name = os.path.split(volume.source)
        os.makedirs(folder, 0o700, exist_ok=True)
        draft = os.path.join(folder, f".{name}.new")  # no volume's name starts with a dot
        os.makedirs(draft, 0o700, exist_ok=True)
        os.chmod(draft, 0o700)
        os.chown(draft, spec.uid, spec.gid)
        os.rename(draft, volume.source)


def mounts(spec: ProcessSpec, where: list[Placed]) -> list[dict[str, Any]]:
    """The mounts of config.json (OCI runtime-spec, config.md, Mounts)."""
    found = []
    for volume, at, _ in where:
        if volume.source is not None:
            options = [*_BIND, "rro" if volume.read_only else "rw"]
            found.append(
                {"source": volume.source, "destination": at, "type": "bind", "options": options}
            )
            continue
        options = ["nosuid", "nodev", "mode=0700", f"uid={spec.uid}", f"gid={spec.gid}"]
        options += [f"size={volume.size}"] if volume.size is not None else []
        found.append({"source": "tmpfs", "destination": at, "type": "tmpfs", "options": options})
    return found


def make_points(rootfs: str | None, layer: str, where: list[Placed]) -> None:
    """Make the mount points in niso's layer where the root has none. Raises OSError."""
    for _, at, folder in where:
        (mount_point if folder else mount_file)(rootfs, layer, at)


# --- named volumes over time -----------------------------------------------------------------------------------------


def kept(service: str) -> list[str]:
    """The names of the named volumes that are kept of a service, known or not."""
    try:
        return sorted(
            name for name in os.listdir(paths.volume_dir(service)) if not name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def owners() -> dict[str, set[int]]:
    """Service: the uids of the named volumes that are kept of it."""
    top = os.path.dirname(paths.volume_dir("-"))
    try:
        services = os.listdir(top)
    except FileNotFoundError:
        return {}
    found: dict[str, set[int]] = {service: set() for service in services}
    for service, uids in found.items():
        for name in kept(service):
            try:
                uids.add(os.lstat(os.path.join(paths.volume_dir(service), name)).st_uid)
            except FileNotFoundError:  # removed meanwhile
                continue
    return found


def remove_empty(service: str) -> None:
    """Remove the named volumes that hold nothing, as an activation that failed leaves them."""
    folder = paths.volume_dir(service)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for path in (*(os.path.join(folder, name) for name in names), folder):
        try:
            os.rmdir(path)
        except OSError:
            continue


def check_removable(service: str) -> None:
    """Raise Conflict where something of the host is mounted in a volume, which would be removed with it."""
    for point in _mounted_below(os.path.realpath(paths.volume_dir(service))):
        raise Conflict(
            f"its volumes are not removed: something is mounted at {point}",
            f"umount {point}",
            service=service,
        )


def remove_all(service: str, report: Report) -> None:
    """Remove all named volumes of a service that has no process, with what they hold; none is fine. Follows no link.

    Raises NisoError.
    """
    import shutil

    folder = paths.volume_dir(service)
    if not os.path.lexists(folder):
        return
    check_removable(service)
    report(RemovingVolumes(service, tuple(kept(service))))
    try:
        failpoint.hit(f"remove the volumes of {service}")
        shutil.rmtree(folder)
    except OSError as error:
        raise NisoError(
            f"its volumes cannot be removed: {error.filename or folder}: {error.strerror}",
            f"niso remove --volumes {service}",
            service=service,
        ) from error


def _mounted_below(folder: str) -> list[str]:
    """The mount points at or below a folder in the caller's mount namespace (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts_:
        words = [
            line.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            for line in mounts_
        ]
    points = [word.encode("latin-1").decode("utf-8", "surrogateescape") for word in words]
    return [point for point in points if point == folder or point.startswith(f"{folder}/")]


def check(rootfs: str | None, volumes: Iterable[Volume]) -> list[InvalidInput]:
    """All that is wrong with the volumes of a service, found before anything is started."""
    errors: list[InvalidInput] = []
    good: list[Volume] = []
    for volume in volumes:
        try:
            placed(rootfs, [*good, volume])
        except InvalidInput as error:
            errors.append(error)
        else:
            good.append(volume)
    return errors
