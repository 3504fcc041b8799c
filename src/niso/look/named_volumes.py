"""List the named volumes of this host, with the services that they belong to and their sizes."""

from __future__ import annotations

import os
from contextlib import suppress

from niso.base import paths
from niso.base.errors import InvalidInput, NotFound
from niso.base.named_tuples import NamedTuple
from niso.runtime import volumes
from niso.store.store import Store


class VolumeLine(NamedTuple):
    """One named volume in the result of `Volumes.list`."""

    volume: str  # SERVICE/NAME, such as db/data
    service: str  # the service that the volume belongs to
    status: str  # active or inactive, of the service; removed, if there is no such service
    mount: str | None  # path inside the service; null if its manifest does not name the volume
    owner: int  # uid that owns the volume's folder
    size: int  # bytes on the disk
    files: int  # number of files and folders
    path: str  # the volume's folder on the host


def lines(store: Store, wanted: list[str]) -> list[VolumeLine]:
    """Return the volumes of all services, or only some of them.

    ``wanted`` has volumes (``db/data``) and services (``db``). Raises NotFound.
    """
    names = [
        (service, name) for service in volumes.owners() for name in volumes.existing_names(service)
    ]
    for one in wanted:
        if not any(_is_meant(one, *volume) for volume in names):
            hint = "niso volume list lists the volumes"
            raise NotFound(f"no volume {one!r}" if "/" in one else f"{one!r} has no volume", hint)
    found = []
    for service, name in sorted(names):
        if not wanted or any(_is_meant(one, service, name) for one in wanted):
            with suppress(FileNotFoundError):  # the volume was removed in the meantime
                found.append(_line(store, service, name))
    return found


def split(volume: str) -> tuple[str, str]:
    """Return service and name of a volume. Raises InvalidInput if it is not SERVICE/NAME."""
    service, _, name = volume.partition("/")
    if not service or not name or "/" in name or name.startswith(".") or service.startswith("."):
        raise InvalidInput(f"{volume!r} is not SERVICE/NAME", "niso volume list lists the volumes")
    return service, name


def _is_meant(given: str, service: str, name: str) -> bool:
    return given in (service, f"{service}/{name}")


def _line(store: Store, service: str, name: str) -> VolumeLine:
    row = store.service(service)
    spec = row.service if row is not None else None
    declared = spec.process.volumes if spec is not None and spec.process is not None else ()
    mount = next((one.mount for one in declared if one.name == name and not one.host), None)
    path = os.path.join(paths.volume_dir(service), name)
    status = "removed" if row is None else "active" if row.active else "inactive"
    size, files = volumes.size(os.path.realpath(path))  # root may have moved it to another disk
    return VolumeLine(
        f"{service}/{name}", service, status, mount, os.lstat(path).st_uid, size, files, path
    )
