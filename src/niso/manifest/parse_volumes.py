"""The section [volumes]: what a service sees beside its root, and may write to.

Where a mount point really is (links of the rootfs followed) is looked at by `niso.runtime.volumes`.
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
    """The name of a volume, which is a folder's name too."""
    if not (
        0 < len(text) <= values.MAX_NAME and NAME_CHARACTERS.issuperset(text) and text[0].isalpha()
    ):
        right = "a name of letters, digits, - and _ that starts with a letter and has at most 63 characters"
        raise values.wrong(key, text, "it is no name of a volume", right, "data")
    return text


def mount(text: str, key: str) -> str:
    """A mount point inside the service: an absolute path without ``.``, ``..`` and ``//``."""
    reason = values.path_reason(text)
    parts = text.split("/")[1:]
    if reason is None and not text.startswith("/"):
        reason = "it is not absolute"
    if reason is None and text != "/" and any(part in ("", ".", "..") for part in parts):
        reason = "it is not written plainly: it has an empty part, . or .."
    if reason is None:
        reason = taken(text)
    if reason:
        raise values.wrong(
            key, text, reason, "an absolute path of the service, such as /data", '"/data"'
        )
    return text


def host(text: str, key: str) -> str:
    """An absolute path of the host; whether it is there is looked at when the service is activated."""
    reason = values.path_reason(text) or (None if text.startswith("/") else "it is not absolute")
    if reason:
        raise values.wrong(key, text, reason, "an absolute path of the host", '"/srv/data"')
    return text


def size(text: str, key: str) -> int:
    """Bytes of a tmpfs."""
    found = values.size(text, key)
    if found > MAX_SIZE:
        raise values.wrong(key, text, "it is out of range", "a size up to 1000000000G", '"64M"')
    return found


def problems(section: Mapping[str, Any], parsed: dict[str, Any]) -> list[InvalidInput]:
    """Every wrong value of the section as tomllib returned it; what has the wrong type is left to `niso.manifest.validate.walk`.

    What right texts mean is added to ``parsed``, by their keys.
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

    points: dict[str, str] = {}  # mount point: its key
    above: dict[str, str] = {}  # a folder above one: that one
    for volume, keys in section.items():
        base = join("volumes", volume)
        check(name, volume, base)
        if not isinstance(keys, dict):
            continue
        if check(mount, point := keys.get("mount"), f"{base}.mount"):
            errors += _near(str(point), f"{base}.mount", points, above)
        check(host, keys.get("host"), f"{base}.host")
        check(size, keys.get("size"), f"{base}.size")
        errors += _combined(keys, base)
    return errors


def _near(
    point: str, key: str, points: dict[str, str], above: dict[str, str]
) -> Iterator[InvalidInput]:
    """What is wrong with ``point`` because of those before it, to which it is added."""
    parts = point.split("/")
    folders = ["/".join(parts[:end]) for end in range(2, len(parts))]
    other = next((folder for folder in folders if folder in points), None)
    reason = "it lies below"
    if point in points:
        other, reason = point, "it is the same as"
    elif point in above:
        other, reason = above[point], "it lies above"
    if other is not None:
        right = "a mount point that is apart from all others"
        yield values.wrong(key, point, f"{reason} {points[other]} ({values.shown(other)})", right)
    points.setdefault(point, key)
    for folder in folders:
        above.setdefault(folder, point)


def _combined(keys: Mapping[str, Any], base: str) -> list[InvalidInput]:
    tmpfs, bound = keys.get("tmpfs") is True, "host" in keys
    errors = []
    if tmpfs and bound:
        reason = f"{base}.tmpfs is there too"
        errors.append(values.wrong(f"{base}.host", keys["host"], reason, "one of the two keys"))
    if "size" in keys and not tmpfs:
        reason = "only a tmpfs has a size"
        errors.append(
            values.wrong(
                f"{base}.size", keys["size"], reason, "to leave it out, or tmpfs = true beside it"
            )
        )
    if "mode" in keys and not bound:
        reason = "only a path of the host has a mode: the others can be written to"
        errors.append(
            values.wrong(f"{base}.mode", keys["mode"], reason, "to leave it out, or host beside it")
        )
    return errors
