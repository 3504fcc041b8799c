"""Manage named volumes (``host.volumes``), save services to an archive, and load an archive."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from niso.base import paths
from niso.base.errors import InvalidInput, NotFound, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import Finished
from niso.change import save_load
from niso.look.session import (
    LEAST_TIMEOUT_S,
    ApiPart,
    as_usage,
    callers,
    path,
    seconds,
    text,
    texts,
)
from niso.manifest import values
from niso.runtime import volumes
from niso.store.store import Store

if TYPE_CHECKING:
    import niso


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


class Volumes(ApiPart):
    """The API of named volumes: ``host.volumes``. A volume is given as ``SERVICE/NAME``."""

    def list(self, *names: str) -> tuple[niso.VolumeLine, ...]:
        """Return the named volumes of this host, or only those in ``names``.

        A name is a service or ``SERVICE/NAME``. The call reads all files of the volumes to find
        their sizes. Raises NotFound.
        """
        wanted = texts(names, "names")
        return tuple(_lines(self.session.store(), wanted))

    def remove(self, *names: str) -> tuple[niso.VolumeLine, ...]:
        """Delete volumes with their content, and return a description of each.

        Raises NotFound, UsageError, and Conflict if the service of a volume is active.
        """
        from niso.change import deactivate

        wanted = texts(names, "names")
        pairs = as_usage(lambda: [_split(name) for name in wanted])
        machine = self.session.machine_for_change()
        found = _lines(machine.store, wanted) if wanted else []
        deactivate.remove_volumes(machine, pairs)
        return tuple(found)

    # --- archives of services ---------------------------------------------------------------------

    def save(
        self,
        *services: str,
        stack: str | None = None,
        all: bool = False,
        output: str | os.PathLike[str] | None = None,
        secrets: bool = False,
        stop: bool = False,
    ) -> niso.Saved:
        """Save services to an archive: packages, active manifests, volumes, addresses, networks.

        ``stack`` is the name of a stack to save with all of its services. ``all`` saves all
        services except attachments. ``output`` is the archive's path, ``-`` for standard output, or
        None for a file in the working directory. ``secrets`` includes the content of secrets. With
        ``stop``, active services are stopped during the save. Raises Conflict, NotFound, Error.
        """
        named = texts(services, "services")
        if (bool(named) + (stack is not None) + all) != 1:
            raise UsageError("needs services, a stack, or all", "niso help save")
        if output == "-" and os.isatty(1):
            hint = "niso save NAME -o FILE"
            raise UsageError("an archive cannot be printed on a terminal", hint)
        machine = self.session.machine_for_change()
        store = machine.store
        if stack is not None:
            names = store.stack_members(text(stack, "stack"))
            if not names:
                raise UsageError(f"no stack {stack!r}", "niso save takes the name of a stack")
        elif all:
            rows = store.services()
            names = [
                r.name for r in rows if not r.is_attachment and not store.instances.get(r.name)
            ]
            if not names:
                raise UsageError("no service to save", "niso ps lists the services")
        else:
            names = list(dict.fromkeys(store.resolve(name) for name in named))
        file = None if output == "-" else path(output, "output") if output is not None else ""
        if file == "":
            day = time.strftime("%Y-%m-%d")
            file = f"{stack or ('all' if all else names[0])}-{day}.niso"
        return save_load.save(machine, names, file, secrets, stop)

    def load(
        self,
        file: str | os.PathLike[str],
        *,
        prefix: str | None = None,
        timeout: float = 60.0,
        trust_owner: bool = True,
    ) -> tuple[niso.LoadedService, ...]:
        """Load the services of an archive, and start those that ran when it was saved.

        With ``prefix``, the services form a new stack of this name, and their names begin with it.
        If anything fails, everything that was loaded is removed. ``timeout`` is the number of
        seconds for each service to start or become healthy. Without ``trust_owner``, an archive
        that users other than root and the caller can change is refused. Raises Error, Conflict,
        InvalidInput.
        """
        self.session.require()
        timeout_s = seconds(timeout, "timeout", LEAST_TIMEOUT_S)
        if prefix is not None:
            as_usage(lambda: values.service_name(text(prefix, "prefix"), "--as"))
        machine = self.session.machine_for_change(create=True)
        trusted = None if trust_owner else callers()
        loaded = save_load.load(machine, path(file, "file"), prefix, trusted, timeout_s)
        self.session.report(Finished())
        return tuple(loaded)


# --- the list of volumes --------------------------------------------------------------------------


def _lines(store: Store, wanted: list[str]) -> list[VolumeLine]:
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


def _split(volume: str) -> tuple[str, str]:
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
