"""Find the line of a key in the text of a TOML file, because tomllib does not report it.

Only valid files are scanned, and only after an error was found in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    type Path = tuple[str | int, ...]

_PART = re.compile(
    r'"(?P<basic>(?:[^"\\]|\\.)*)"|\'(?P<literal>[^\']*)\'|(?P<bare>[^\s."\'\[\]=]+)'
)
_INDEX = re.compile(r"\[(\d+)\]")
_PIECE = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[{]|[\]}]|\n|[^\[\]{}"\'#\n]+',
    re.DOTALL,
)


def locate(text: str, errors: list[Error]) -> None:
    """Set the line of each error whose key, or a table that contains it, is in ``text``."""
    lines = dict(_lines(text))
    for error in errors:
        path = _path(error.key or "")
        while path and path not in lines:
            path = path[:-1]
        error.line = lines.get(path, 0)


def _path(key: str) -> Path:
    """Split a key such as ``service[1].environment."A B"`` into its parts."""
    parts: list[str | int] = []
    at = 0
    while at < len(key):
        if index := _INDEX.match(key, at):
            parts.append(int(index[1]))
            at = index.end()
        elif part := _PART.match(key, at):
            parts.append(_name(part))
            at = part.end()
        else:
            at += 1
    return tuple(parts)


def _name(part: re.Match[str]) -> str:
    if part["basic"] is None:
        return str(part["literal"] if part["literal"] is not None else part["bare"])
    import json

    try:
        return str(json.loads(f'"{part["basic"]}"'))
    except ValueError:  # an escape that only TOML has
        return str(part["basic"])


def _lines(text: str) -> Iterator[tuple[Path, int]]:
    """Yield the path and line of each key and table. The first mention of a path comes last."""
    lines: list[tuple[Path, int]] = []
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, statement in _statements(text):
        if statement.startswith("["):
            names = _resolved(_path_of_header(statement), counts)
            if statement.startswith("[["):
                counts[names] = counts.get(names, -1) + 1
                names = (*names, counts[names])
            table = names
        else:
            names = (*table, *(_name(part) for part in _PART.finditer(statement)))
        lines += [(names[:length], number) for length in range(1, len(names) + 1)]
    yield from reversed(lines)


def _path_of_header(statement: str) -> Path:
    return tuple(_name(part) for part in _PART.finditer(statement.strip("[]")))


def _resolved(names: Path, counts: dict[Path, int]) -> Path:
    """Return the path of a table, with the index of the latest item of each array in the path."""
    path: Path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if path in counts and position < len(names) - 1:
            path = (*path, counts[path])
    return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line number of each statement, and its header or the text before its ``=``."""
    number, depth, start, head, is_value = 1, 0, 1, "", False
    for piece in _PIECE.findall(text + "\n"):
        if piece == "\n" and not depth:
            if head.strip():
                yield start, head.strip()
            head, is_value = "", False
        elif is_value or piece.startswith("#"):
            depth += (piece in "[{") - (piece in "]}")
        else:
            before, equals, _ = piece.partition("=") if piece[0] not in "\"'" else (piece, "", "")
            if not head.strip():
                start = number
            head += before
            is_value = bool(equals)
        number += piece.count("\n")
