"""Write plain data as TOML (https://toml.io/en/v1.0.0)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


_ESCAPES: dict[int, str] = {
    **{number: f"\\u{number:04x}" for number in (*range(0x20), 0x7F)},
    **{ord(char): f"\\{short}" for char, short in zip('"\\\n\r\t\b\f', '"\\nrtbf', strict=True)},
}
"""What a basic string of TOML cannot have as it is. json is not loaded, for activations."""


def value(data: object) -> str:
    """Return a value on one line; a mapping becomes an inline table."""
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, int | float):
        return str(data)
    if isinstance(data, str):
        return f'"{data.translate(_ESCAPES)}"'
    if isinstance(data, Mapping):
        inside = ", ".join(f"{key(name)} = {value(item)}" for name, item in data.items())
        return f"{{ {inside} }}" if inside else "{}"
    assert isinstance(data, list | tuple)
    return f"[{', '.join(value(item) for item in data)}]"


def key(name: str) -> str:
    """Return a key, bare if possible, else quoted."""
    bare = name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else value(name)


def table(header: str, data: Mapping[str, Any], inline: int) -> Iterator[str]:
    """Yield the lines of a table: its values, then its tables, each under its own header.

    Tables ``inline`` levels deeper are written on one line.
    """
    below = {}
    lines = []
    for name, item in data.items():
        if isinstance(item, Mapping) and inline:
            below[name] = item
        else:
            lines.append(f"{key(name)} = {value(item)}")
    if lines or not below:
        yield f"[{header}]"
        yield from lines
        yield ""
    for name, item in below.items():
        yield from table(f"{header}.{key(name)}", item, inline - 1)
