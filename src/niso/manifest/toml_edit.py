"""Change a list in a TOML text, keeping everything else, with comments and order.

It needs tomlkit, which only `niso net learn --write` loads.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence

from niso.base.errors import Error, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

Path = Sequence[str | int]
"""The path to a value: names of tables, and positions in arrays of tables."""

_TOKEN = re.compile(r"""("(?:\\.|[^"\\\n])*"|'[^'\n]*')|\#([^\n]*)|(\n)""")
"""The tokens of an array of texts: a text, a comment, the end of a line."""


class Item(NamedTuple):
    """A line of a list: a text with its comment, or only a comment."""

    text: str
    used: bool
    note: str = ""


def with_list(text: str, path: Path, key: str, items: Iterable[Item]) -> str:
    """Return a TOML text in which ``key`` of the table at ``path`` is replaced by a list of texts.

    Missing tables are added. Comments of the old list stay, if they are on their own lines or next
    to a text that stays. Raises Error without tomlkit, InvalidInput if the result would differ in
    anything else.
    """
    wanted = list(items)
    expected = tomllib.loads(text)
    try:
        at: Any = expected
        for name in path:
            at = at[name] if isinstance(name, int) else at.setdefault(name, {})
        at[key] = [item.text for item in wanted if item.used]
        result = _edited(_library(), text, path, key, wanted)
        same = tomllib.loads(result) == expected
    except (TypeError, ValueError, AttributeError, LookupError):  # includes tomlkit's
        same, result = False, ""
    if not same:
        where = ".".join(map(str, (*path, key)))
        raise InvalidInput(
            f"{where} cannot be changed in the form that it has here",
            "write what niso net learn prints into the file",
        )
    return result


def list_at(text: str, path: Path, key: str) -> object:
    """Return the value of ``key`` in the table at ``path`` of a valid TOML text.

    None if missing.
    """
    value: Any = tomllib.loads(text)
    try:
        for name in (*path, key):
            value = value[name]
    except (LookupError, TypeError):
        return None
    return value


def _edited(tomlkit: Any, text: str, path: Path, key: str, items: Sequence[Item]) -> str:
    document = tomlkit.parse(text)
    table: Any = document
    added = False
    for name in path:
        if not isinstance(name, int) and name not in table:
            inline = isinstance(table, tomlkit.items.InlineTable)
            table[name] = tomlkit.inline_table() if inline else tomlkit.table(name != path[-1])
            added = not inline
        table = table[name]
    old = table[key].as_string() if key in table else ""
    lines = "".join(f"  {line}\n" for line in _lines(items, old))
    table[key] = tomlkit.parse(f"{key} = [\n{lines}]\n")[key] if lines else tomlkit.array()
    if added:
        table.add(tomlkit.nl())
    result = str(tomlkit.dumps(document))
    if added:
        result = result.rstrip("\n") + "\n"
    if "\r\n" in text and not re.search(r"(?<!\r)\n", text):
        result = re.sub(r"(?<!\r)\n", "\r\n", result)
    return result


def listed(items: Iterable[Item]) -> Iterator[str]:
    """Yield the lines of a list, without the brackets."""
    for item in items:
        quoted = json.dumps(item.text)
        note = f"  # {item.note}" if item.note else ""
        yield f"{quoted},{note}" if item.used else f"# {quoted},{note}"


def _lines(items: Sequence[Item], old: str) -> Iterator[str]:
    """Yield the lines of a new list, with the comments of the list that it replaces."""
    beside, alone = _comments(old)
    for comment in alone:
        if not any(comment.startswith(json.dumps(item.text)) for item in items):
            yield f"# {comment}"
    for item in items:
        comment = beside.get(item.text, "")
        note = comment if item.note in comment else f"{item.note}; {comment}".removesuffix("; ")
        yield from listed([item._replace(note=note)])


def _comments(array: str) -> tuple[dict[str, str], list[str]]:
    """Return the comments of an array of texts: (those next to a text, the others)."""
    beside: dict[str, str] = {}
    alone: list[str] = []
    last = ""
    for match in _TOKEN.finditer(array):
        text, comment, end = match.groups()
        if end is not None:
            last = ""
        elif text is not None:
            last = tomllib.loads(f"x = {text}")["x"]
        elif last:
            beside[last] = comment.strip()
        else:
            alone.append(comment.strip())
    return beside, alone


def _library() -> Any:
    try:
        import tomlkit
        import tomlkit.items
    except ImportError:
        hint = "apt install python3-tomlkit, or install niso[learn] with pip"
        raise Error("tomlkit, which changes manifests, is not installed", hint) from None
    return tomlkit
