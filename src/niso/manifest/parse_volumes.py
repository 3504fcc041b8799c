"""Parse [volumes]: what a service can access in addition to its root file system.

`niso.runtime.volumes` resolves a mount point through the symlinks of the rootfs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import values
from niso.plan.mount_points import taken

if TYPE_CHECKING:
    from typing import Any

NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
MAX_SIZE = 1 << 60


def name(text: str, key: str) -> str:
    """Return ``text`` if it is a valid name of a volume and its folder. Raises InvalidInput."""
    if not (
        0 < len(text) <= values.MAX_NAME and NAME_CHARACTERS.issuperset(text) and text[0].isalpha()
    ):
        right = "letters, digits, - and _, first a letter, at most 63 characters"
        raise values.wrong(key, text, "is not a valid volume name", right, "data")
    return text


def mount(text: str, key: str) -> str:
    """Return ``text`` if it can be a mount point inside the service. Raises InvalidInput.

    It must be an absolute path without ``.``, ``..`` and ``//``.
    """
    reason = values.path_reason(text)
    parts = text.split("/")[1:]
    if reason is None and not text.startswith("/"):
        reason = "is not absolute"
    if reason is None and text != "/" and any(part in ("", ".", "..") for part in parts):
        reason = "contains an empty part, . or .."
    if reason is None and (why := taken(text)):
        reason = f"cannot be a mount point: {why}"
    if reason:
        right = "an absolute path in the service, such as /data"
        raise values.wrong(key, text, reason, right, '"/data"')
    return text


def host(text: str, key: str) -> str:
    """Return ``text`` if it is an absolute path of the host. Raises InvalidInput.

    Relative paths have been made absolute before. Activation checks that the path exists.
    """
    reason = values.path_reason(text) or (None if text.startswith("/") else "is not absolute")
    if reason:
        right = "an absolute path on the host, or one beside this file that starts with ./"
        raise values.wrong(key, text, reason, right, '"/srv/data"')
    return text


def size(text: str, key: str) -> int:
    """Parse the size of a tmpfs to bytes. Raises InvalidInput."""
    number = values.size(text, key)
    if number > MAX_SIZE:
        raise values.wrong(key, text, "is out of range", "at most 1000000000G", '"64M"')
    return number


def problems(section: Mapping[str, Any], parsed: dict[str, Any]) -> list[InvalidInput]:
    """Return an error for each invalid value of the section, given as tomllib returned it.

    Values of a wrong type are skipped: `niso.manifest.validate.walk` reports them.
    Valid values are added to ``parsed`` under their keys.
    """
    from niso.manifest.validate import join

    errors: list[InvalidInput] = []

    def check(rule: Any, text: object, key: str) -> bool:
        if not isinstance(text, str):
            return False
        try:
            parsed[key] = rule(text, key)
        except InvalidInput as error:
            errors.append(error)
            return False
        return True

    points: dict[str, str] = {}  # mount point -> its key
    above: dict[str, str] = {}  # parent folder of a mount point -> that mount point
    for volume, keys in section.items():
        base = join("volumes", volume)
        check(name, volume, base)
        if not isinstance(keys, dict):
            continue
        if check(mount, point := keys.get("mount"), f"{base}.mount"):
            errors += _overlapping(str(point), f"{base}.mount", points, above)
        check(host, keys.get("host"), f"{base}.host")
        check(size, keys.get("size"), f"{base}.size")
        errors += _combined(keys, base)
    return errors


def _overlapping(
    point: str, key: str, points: dict[str, str], above: dict[str, str]
) -> Iterator[InvalidInput]:
    """Yield an error if ``point`` overlaps an earlier mount point, and record it in both dicts."""
    parts = point.split("/")
    folders = ["/".join(parts[:end]) for end in range(2, len(parts))]
    other = next((folder for folder in folders if folder in points), None)
    reason = "lies below"
    if point in points:
        other, reason = point, "is the same as"
    elif point in above:
        other, reason = above[point], "lies above"
    if other is not None:
        right = "a mount point that does not overlap another"
        yield values.wrong(key, point, f"{reason} {points[other]} ({values.shown(other)})", right)
    points.setdefault(point, key)
    for folder in folders:
        above.setdefault(folder, point)


def _combined(keys: Mapping[str, Any], base: str) -> list[InvalidInput]:
    """Return an error for each key of a volume that conflicts with its other keys."""
    tmpfs, bound = keys.get("tmpfs") is True, "host" in keys
    errors = []
    if tmpfs and bound:
        reason = f"conflicts with {base}.tmpfs"
        errors.append(values.wrong(f"{base}.host", keys["host"], reason, "set only one of the two"))
    if "size" in keys and not tmpfs:
        reason = "is not allowed: only a tmpfs has a size"
        right = "remove it, or set tmpfs = true"
        errors.append(values.wrong(f"{base}.size", keys["size"], reason, right))
    if "mode" in keys and not bound:
        reason = "is not allowed: only a path of the host has a mode, other volumes are writable"
        right = "remove it, or set host"
        errors.append(values.wrong(f"{base}.mode", keys["mode"], reason, right))
    return errors
