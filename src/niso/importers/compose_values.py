"""Parse single values of a compose file: variables, durations, sizes, words, ports.

The forms are those of the Compose Specification (https://github.com/compose-spec/compose-spec).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)"
    r"(?:(?P<how>:?[-+?])(?P<text>(?:[^{}]|\{[^{}]*\})*))?\})"
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_SECONDS = {"us": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_BYTES = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def words(value: object) -> list[str] | None:
    """Split a command: a list, or a text that a shell would split; None if invalid."""
    if isinstance(value, str):
        import shlex

        try:
            return shlex.split(value)
        except ValueError:
            return None
    if isinstance(value, list):
        return [text(item) for item in value]
    return None


def text(value: object) -> str:
    """Return a scalar approximately as written in YAML: ``true``, ``1``, ``""`` for null."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def items(value: object) -> list[Any]:
    """Return a list; a single text or number becomes a list, anything else an empty one."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return [value]
    return value if isinstance(value, list) else []


def beyond(given: Iterable[str], known: Container[str]) -> list[str]:
    """Return the keys that are not in ``known``, in the order of the file."""
    return [key for key in given if key not in known]


def pairs(value: object) -> dict[str, str | None]:
    """Return a mapping, or a list of ``NAME=value``, as a dict; None where there is no value."""
    if isinstance(value, dict):
        return {name: None if item is None else text(item) for name, item in value.items()}
    values: dict[str, str | None] = {}
    for item in value if isinstance(value, list) else ():
        name, equals, after = text(item).partition("=")
        values[name] = after if equals else None
    return values


def seconds(value: object) -> float | None:
    """Parse ``1m30s`` to seconds; None if it is not a duration."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return None
    return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def duration(value_s: float) -> str:
    """Format seconds in niso's syntax: ``90s``, ``500ms``."""
    return f"{value_s:.0f}s" if value_s == int(value_s) else f"{max(1, round(value_s * 1000))}ms"


def size(value: object) -> str | None:
    """Convert ``512m``, ``1gb`` or bytes to niso's syntax, rounded up to 1K; None if invalid."""
    parsed = _SIZE.fullmatch(text(value).strip())
    if parsed is None:
        return None
    kilobytes = -(-int(float(parsed[1]) * (1 << _BYTES[parsed[2].lower()])) // 1024)
    for unit, factor in (("G", 1 << 20), ("M", 1 << 10)):
        if kilobytes and kilobytes % factor == 0:
            return f"{kilobytes // factor}{unit}"
    return f"{kilobytes}K" if kilobytes else None


def port(value: object) -> str | None:
    """Convert an entry of ``ports``, short or long, to niso's syntax; None if invalid.

    For an entry without a host port, compose chooses one, and niso does so for ``:80``.
    """
    if isinstance(value, dict):
        target, published = text(value.get("target")), text(value.get("published"))
        address = text(value.get("host_ip"))
        address = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
        protocol = text(value.get("protocol"))
        suffix = "" if protocol in ("", "tcp") else f"/{protocol}"
        return f"{address}{published}:{target}{suffix}" if target else None
    entry = text(value)
    mapping, _, protocol = entry.partition("/")
    if not mapping:
        return None
    suffix = "" if protocol in ("", "tcp") else f"/{protocol}"
    return f"{'' if len(fields(mapping)) > 1 else ':'}{mapping}{suffix}"


def fields(entry: str) -> list[str]:
    """Split an entry at its colons, except those inside ``${NAME:-default}``."""
    return re.split(r":(?![^{}]*\})", entry)


class Variables:
    """Convert variables to the syntax of a stack.toml, and collect their names.

    Forms with braces are the same there. ``$NAME`` becomes ``${NAME}``, and ``$$`` becomes ``$``.
    """

    def __init__(self) -> None:
        """Start with no names."""
        self.used: set[str] = set()
        self.without_default: set[str] = set()

    def kept(self, data: Any) -> Any:
        """Convert the variables in all texts of plain data, but not in keys."""
        if isinstance(data, dict):
            return {name: self.kept(item) for name, item in data.items()}
        if isinstance(data, list):
            return [self.kept(item) for item in data]
        return _VARIABLE.sub(self._one, data) if isinstance(data, str) and "$" in data else data

    def _one(self, match: re.Match[str]) -> str:
        if match["dollar"]:
            return match[0] if match.string[match.end() :].startswith("{") else "$"
        name, how = match["bare"] or match["name"], match["how"] or ""
        self.used.add(name)
        if how[-1:] not in ("-", "+"):
            self.without_default.add(name)
        return f"${{{name}{how}{match['text'] or ''}}}"
