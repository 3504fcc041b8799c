"""Convert the volumes of the services of a compose file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.importers import compose_values as parse
from niso.manifest import parse_volumes, values

if TYPE_CHECKING:
    from typing import Any

_ALWAYS_TMPFS = ("/tmp", "/run", "/var/tmp")  # noqa: S108 - paths inside a service
_OF_MOUNT = ("type", "source", "target", "read_only", "tmpfs", "consistency")
_MODES = ("", "ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", "private")


class Mount(NamedTuple):
    """One mount of a service. ``source`` is a volume's name, a path of the host, or empty."""

    kind: str  # volume, bind or tmpfs
    source: str
    target: str
    read_only: bool = False
    size: str | None = None


class Place(NamedTuple):
    """The folders of the compose file and of the future stack.toml."""

    folder: str  # absolute folder of the compose file
    target: str | None  # absolute folder of the stack.toml; None if unknown

    def path(self, text: str) -> str:
        """Convert a path of the compose file to one for the stack.toml.

        A path below the folder of the stack.toml becomes relative, so that a copy of the folder
        uses its own files; but not if a link leads out of the folder, which niso refuses.
        """
        whole = os.path.normpath(os.path.join(self.folder, text))
        if self.target is None:
            return whole
        real, target = os.path.realpath(whole), os.path.realpath(self.target)
        if _below(f"{whole}/", self.target) and _below(f"{real}/", target):
            return f"./{os.path.relpath(whole, self.target)}".removesuffix(".")
        return whole


class Storage:
    """The volumes of all services of a file."""

    def __init__(self, stack: str, place: Place, services: Mapping[str, Mapping[str, Any]]) -> None:
        """Count the mounts of each named volume."""
        self._stack, self._place = stack, place
        users: dict[str, list[str]] = {}
        for name, keys in services.items():
            for mount in _mounts(keys, []):
                if mount.kind == "volume" and mount.source:
                    users.setdefault(mount.source, []).append(name)
        self._users = {source: names for source, names in users.items() if len(names) > 1}

    def volumes(self, keys: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return ([volumes] of a service, gaps as pairs of key and text)."""
        gaps: list[tuple[str, str]] = []
        made: dict[str, Any] = {}
        points: dict[str, str] = {}
        for mount in _mounts(keys, gaps):
            if mount.kind == "tmpfs" and mount.target in _ALWAYS_TMPFS:
                continue
            try:
                parse_volumes.mount(mount.target, "volumes")
            except InvalidInput as error:
                gaps.append(("volumes", f"{mount.target!r} {error.reason or error.message}"))
                continue
            outer = next((at for at in points if _overlap(at, mount.target)), None)
            if outer is not None:
                what = f"{mount.target} overlaps {outer}: none can be in another"
                gaps.append(("volumes", what))
                continue
            name = _name(mount, made)
            points[mount.target] = name
            if (table := self._table(mount, gaps)) is not None:
                made[name] = table
        return made, gaps

    def _table(self, mount: Mount, gaps: list[tuple[str, str]]) -> dict[str, Any] | None:
        if mount.kind == "tmpfs":
            size = {"size": mount.size} if mount.size else {}
            return {"mount": mount.target, "tmpfs": True, **size}
        if mount.kind == "volume" and mount.source in self._users:
            host = f"/srv/{self._stack}/{mount.source}"
            several = len(set(self._users[mount.source])) > 1
            use = "used by several services" if several else "mounted several times"
            what = f"{mount.source} is {use}, here as the folder {host}: make it"
            gaps.append(("volumes", what))
        elif mount.kind == "volume":
            if mount.read_only:
                gaps.append(("volumes", f"{mount.source} is writable: it is the service's own"))
            return {"mount": mount.target}
        else:
            host = mount.source
            if host.startswith("~"):
                gaps.append(("volumes", f"{host}: write the absolute path"))
                return None
            if not host.startswith("$"):
                host = self._place.path(host)
                if reason := values.path_reason(host):
                    gaps.append(("volumes", f"{host!r} {reason}"))
                    return None
            if os.path.basename(host) in ("docker.sock", "podman.sock"):
                gaps.append(("volumes", f"{host}: there is no Docker that the service could ask"))
                return None
        mode = {"mode": "ro"} if mount.read_only else {}
        return {"mount": mount.target, "host": host, **mode}


def _below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _overlap(one: str, other: str) -> bool:
    return _below(f"{one}/", other) or _below(f"{other}/", one)


def _name(mount: Mount, taken: Mapping[str, Any]) -> str:
    """Return a name for a volume: its own, or one derived from the mount point."""
    given = mount.source if mount.kind == "volume" and mount.source else mount.target
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", given).strip("-_")
    plain = (plain if plain[:1].isalpha() else f"v-{plain}")[:55].rstrip("-")
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def _mounts(keys: Mapping[str, Any], gaps: list[tuple[str, str]]) -> Iterator[Mount]:
    """Yield the mounts of a service; entries that cannot be parsed are added to ``gaps``."""
    given = keys.get("volumes")
    for item in given if isinstance(given, list) else ():
        mount = _long(item, gaps) if isinstance(item, dict) else _short(parse.text(item), gaps)
        if mount is None:
            gaps.append(("volumes", f"{item!r} cannot be taken over"))
        else:
            yield mount
    tmpfs = keys.get("tmpfs")
    for item in parse.items(tmpfs):
        target, _, options = parse.text(item).partition(":")
        for option in filter(None, options.split(",")):
            if not (option.startswith("size=") and parse.size(option[5:])):
                gaps.append(("tmpfs", f"{target}: {option} is not taken over"))
        size = parse.pairs(options.split(",")).get("size")
        yield Mount("tmpfs", "", target, size=parse.size(size) if size else None)


def _long(item: Mapping[str, Any], gaps: list[tuple[str, str]]) -> Mount | None:
    kind, target = parse.text(item.get("type")) or "volume", parse.text(item.get("target"))
    if kind not in ("volume", "bind", "tmpfs") or not target:
        return None
    options = item.get("tmpfs")
    size = parse.size(options["size"]) if isinstance(options, dict) and "size" in options else None
    if size is None and isinstance(options, dict) and "size" in options:
        gaps.append(("volumes", f"{target}: {options['size']!r} is not a size"))
    for key in parse.beyond(item, _OF_MOUNT):
        gaps.append(("volumes", f"{target}: {key} is not taken over"))
    return Mount(kind, parse.text(item.get("source")), target, item.get("read_only") is True, size)


def _short(text: str, gaps: list[tuple[str, str]]) -> Mount | None:
    """Parse the short form ``[SOURCE:]TARGET[:MODE]``."""
    parts = parse.fields(text)
    if len(parts) == 1:
        return Mount("volume", "", text)
    if len(parts) > 3:
        return None
    source, target, *more = parts
    modes = more[0].split(",") if more else []
    for mode in modes:
        if mode not in _MODES:
            gaps.append(("volumes", f"{text}: the mode {mode!r} is not known"))
    kind = "bind" if source.startswith((".", "/", "~", "$")) else "volume"
    return Mount(kind, source, target, "ro" in modes)
