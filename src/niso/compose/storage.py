"""Convert the volumes of a compose file, and parse its variables, durations, sizes and ports.

The forms of these values are those of the Compose Specification
(https://github.com/compose-spec/compose-spec).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.manifest import process_keys
from niso.manifest.values import path_reason

_ALWAYS_TMPFS = ("/tmp", "/run", "/var/tmp")  # noqa: S108 - paths inside a service
_OF_MOUNT = ("type", "source", "target", "read_only", "tmpfs", "consistency")
_MODES = ("", "ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy", "private")


class VolumeMount(NamedTuple):
    """A mount of a service. ``source`` is a volume's name, a host path, or "" if anonymous."""

    kind: str  # volume, bind or tmpfs
    source: str
    target: str
    read_only: bool = False
    size: str | None = None


class Storage:
    """A converter of the paths and volumes of all services in a compose file.

    ``folder`` is the absolute path of the folder with the compose file. ``target`` is the absolute
    path of the folder for the stack.toml, or None if it is unknown.
    """

    def __init__(
        self,
        stack: str,
        folder: str,
        target: str | None,
        services: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._stack, self._folder, self._target = stack, folder, target
        self.base = target or folder
        """The folder in which images and root file systems may be."""
        users: dict[str, list[str]] = {}
        for name, keys in services.items():
            for mount in _mounts(keys, []):
                if mount.kind == "volume" and mount.source:
                    users.setdefault(mount.source, []).append(name)
        self._users = {source: names for source, names in users.items() if len(names) > 1}

    def path(self, text: str) -> str:
        """Convert a path of the compose file to a path for the stack.toml.

        A path below the folder of the stack.toml becomes relative, so that a copy of the folder
        uses its own files. A path that leaves this folder by a symbolic link stays absolute,
        because niso would refuse it otherwise.
        """
        whole = os.path.normpath(os.path.join(self._folder, text))
        if self._target is None:
            return whole
        real, target = os.path.realpath(whole), os.path.realpath(self._target)
        if _below(f"{whole}/", self._target) and _below(f"{real}/", target):
            return f"./{os.path.relpath(whole, self._target)}".removesuffix(".")
        return whole

    def volumes(self, keys: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return a service's [volumes] table, and (key, explanation) for unsupported keys."""
        gaps: list[tuple[str, str]] = []
        made: dict[str, Any] = {}
        points: dict[str, str] = {}
        for mount in _mounts(keys, gaps):
            if mount.kind == "tmpfs" and mount.target in _ALWAYS_TMPFS:
                continue
            try:
                process_keys.mount(mount.target, "volumes")
            except InvalidInput as error:
                gaps.append(("volumes", f"{mount.target!r} {error.reason or error.message}"))
                continue
            inner = mount.target
            overlapping = (
                at for at in points if _below(f"{at}/", inner) or _below(f"{inner}/", at)
            )
            outer = next(overlapping, None)
            if outer is not None:
                what = f"{mount.target} overlaps {outer}: none can be in another"
                gaps.append(("volumes", what))
                continue
            name = _name(mount, made)
            points[mount.target] = name
            if (table := self._table(mount, gaps)) is not None:
                made[name] = table
        return made, gaps

    def _table(self, mount: VolumeMount, gaps: list[tuple[str, str]]) -> dict[str, Any] | None:
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
                host = self.path(host)
                if reason := path_reason(host):
                    gaps.append(("volumes", f"{host!r} {reason}"))
                    return None
            if os.path.basename(host) in ("docker.sock", "podman.sock"):
                gaps.append(("volumes", f"{host}: there is no Docker that the service could ask"))
                return None
        mode = {"mode": "ro"} if mount.read_only else {}
        return {"mount": mount.target, "host": host, **mode}


def anonymous(keys: Mapping[str, Any]) -> set[str]:
    """Return the mount points of a service's volumes that have neither a name nor a host path."""
    mounts = _mounts(keys, [])
    return {mount.target for mount in mounts if mount.kind == "volume" and not mount.source}


def _below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _name(mount: VolumeMount, taken: Mapping[str, Any]) -> str:
    given = mount.source if mount.kind == "volume" and mount.source else mount.target
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", given).strip("-_")
    plain = (plain if plain[:1].isalpha() else f"v-{plain}")[:55].rstrip("-")
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def _mounts(keys: Mapping[str, Any], gaps: list[tuple[str, str]]) -> Iterator[VolumeMount]:
    """Yield the mounts of a service. Add (key, explanation) to ``gaps`` for each invalid entry."""
    given = keys.get("volumes")
    for item in given if isinstance(given, list) else ():
        mount = _long(item, gaps) if isinstance(item, dict) else _short(scalar(item), gaps)
        if mount is None:
            gaps.append(("volumes", f"{item!r} cannot be taken over"))
        else:
            yield mount._replace(target=re.sub("/+", "/", mount.target).rstrip("/") or "/")
    tmpfs = keys.get("tmpfs")
    for item in items(tmpfs):
        target, _, options = scalar(item).partition(":")
        for option in filter(None, options.split(",")):
            if not (option.startswith("size=") and parse_size(option[5:])):
                gaps.append(("tmpfs", f"{target}: {option} is not taken over"))
        size = pairs(options.split(",")).get("size")
        yield VolumeMount("tmpfs", "", target, size=parse_size(size) if size else None)


def _long(item: Mapping[str, Any], gaps: list[tuple[str, str]]) -> VolumeMount | None:
    kind, target = scalar(item.get("type")) or "volume", scalar(item.get("target"))
    if kind not in ("volume", "bind", "tmpfs") or not target:
        return None
    options = item.get("tmpfs")
    size = parse_size(options["size"]) if isinstance(options, dict) and "size" in options else None
    if size is None and isinstance(options, dict) and "size" in options:
        gaps.append(("volumes", f"{target}: {options['size']!r} is not a size"))
    for key in beyond(item, _OF_MOUNT):
        gaps.append(("volumes", f"{target}: {key} is not taken over"))
    return VolumeMount(
        kind, scalar(item.get("source")), target, item.get("read_only") is True, size
    )


def _short(text: str, gaps: list[tuple[str, str]]) -> VolumeMount | None:
    """Parse a mount in the short form ``[SOURCE:]TARGET[:MODE]``. Returns None if it is invalid."""
    parts = fields(text)
    if len(parts) == 1:
        return VolumeMount("volume", "", text)
    if len(parts) > 3:
        return None
    source, target, *more = parts
    modes = more[0].split(",") if more else []
    for mode in modes:
        if mode not in _MODES:
            gaps.append(("volumes", f"{text}: the mode {mode!r} is not known"))
    kind = "bind" if source.startswith((".", "/", "~", "$")) else "volume"
    return VolumeMount(kind, source, target, "ro" in modes)


_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)"
    r"(?:(?P<how>:?[-+?])(?P<text>(?:[^{}]|\{[^{}]*\})*))?\})"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_SECONDS = {"us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_BYTES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def words(value: object) -> list[str] | None:
    """Return a command's words: a list, or a string split as in a shell. None if invalid."""
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError:
            return None
    if isinstance(value, list):
        return [scalar(item) for item in value]
    return None


def scalar(value: object) -> str:
    """Convert a YAML scalar to a string, such as ``true`` or ``1``. null becomes ""."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def items(value: object) -> list[Any]:
    """Return a list unchanged, and a string or number as a list. Other types become []."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return [value]
    return value if isinstance(value, list) else []


def beyond(given: Iterable[str], known: Container[str]) -> list[str]:
    """Return the keys of a mapping that are not in ``known``, in the order of the mapping."""
    return [key for key in given if key not in known]


def pairs(value: object) -> dict[str, str | None]:
    """Convert a mapping, or a list of ``NAME=value``, to a dict. A name alone maps to None."""
    if isinstance(value, dict):
        return {name: None if item is None else scalar(item) for name, item in value.items()}
    values: dict[str, str | None] = {}
    for item in value if isinstance(value, list) else ():
        name, equals, after = scalar(item).partition("=")
        values[name] = after if equals else None
    return values


def seconds(value: object) -> float | None:
    """Parse a duration such as ``1m30s``, or a number, to seconds. Returns None if invalid."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def duration(value_s: float) -> str:
    """Format a duration for a manifest: ``90s`` or ``500ms``."""
    return f"{value_s:.0f}s" if value_s == int(value_s) else f"{max(1, round(value_s * 1000))}ms"


def parse_size(value: object) -> str | None:
    """Convert a size such as ``512m`` to a size of a manifest: ``512M``. Rounds up to 1024 bytes.
    Returns None if the size is invalid or 0.
    """
    parsed = _SIZE.fullmatch(scalar(value).strip())
    if parsed is None:
        return None
    kilobytes = -(-int(float(parsed[1]) * (1 << _BYTES[parsed[2].lower()])) // 1024)
    for unit, factor in (("G", 1 << 20), ("M", 1 << 10)):
        if kilobytes and kilobytes % factor == 0:
            return f"{kilobytes // factor}{unit}"
    return f"{kilobytes}K" if kilobytes else None


def port(value: object) -> str | None:
    """Convert a published port to the form of a manifest, or return None if it is invalid. A port
    without a host port becomes ``:80``, for which niso chooses a host port, as Compose does.
    """
    if isinstance(value, dict):
        target, published = scalar(value.get("target")), scalar(value.get("published"))
        address = scalar(value.get("host_ip"))
        address = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
        protocol = scalar(value.get("protocol"))
        suffix = "" if protocol in ("", "tcp") else f"/{protocol}"
        return f"{address}{published}:{target}{suffix}" if target else None
    entry = scalar(value)
    mapping, _, protocol = entry.partition("/")
    if not mapping:
        return None
    suffix = "" if protocol in ("", "tcp") else f"/{protocol}"
    return f"{'' if len(fields(mapping)) > 1 else ':'}{mapping}{suffix}"


def first_of_range(entry: str) -> str:
    """Reduce a range of host ports to its first port: ``8080-8082:80`` becomes ``8080:80``.

    In Compose, each container of the service gets a port of the range. Other entries do not change.
    """
    match = re.fullmatch(r"((?:.*:)?)(\d+)-\d+(:\d+(?:/\w+)?)", entry)
    return f"{match[1]}{match[2]}{match[3]}" if match else entry


def fields(entry: str) -> list[str]:
    """Split an entry of ``ports`` or ``volumes`` at colons outside of ``${NAME:-default}``."""
    return re.split(r":(?![^{}]*\})", entry)


def with_variables(data: Any) -> tuple[Any, set[str], set[str]]:
    """Convert the variables in all strings to the syntax of stack.toml. Keys are not converted.

    ``${NAME}`` and other forms with braces are unchanged. ``$NAME`` becomes ``${NAME}``, and ``$$``
    becomes ``$``. Returns (data, variables with a default, variables without a default).
    """
    used: set[str] = set()
    needed: set[str] = set()

    def converted(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: converted(item) for name, item in data.items()}
        if isinstance(data, list):
            return [converted(item) for item in data]
        return _VARIABLE.sub(one, data) if isinstance(data, str) and "$" in data else data

    def one(match: re.Match[str]) -> str:
        if match["dollar"]:
            return match[0] if match.string[match.end() :].startswith("{") else "$"
        name, how = match["bare"] or match["name"], match["how"] or ""
        (used if how[-1:] in ("-", "+") else needed).add(name)
        return f"${{{name}{how}{match['text'] or ''}}}"

    return converted(data), used - needed, needed
