"""Read, edit and write TOML files; find the line of a key for error messages.

Errors name the file, and syntax errors also the line and column. tomllib does not report the line
of a key. Therefore `locate` scans the text for the key, but only if the file is valid TOML and one
of its values is wrong. `with_list` changes one list of a file, and leaves comments and order
unchanged. `with_list` needs tomlkit, which only `niso net learn --write` loads. Values are written
as in https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

from niso.base import files
from niso.base.errors import Error, InvalidInput, NotFound, missing_library
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import from_json, to_json
from niso.base.text import escaped

if TYPE_CHECKING:
    from typing import Any


# --- read -----------------------------------------------------------------------------------------


MAX_BYTES = 1024 * 1024
_MAX_PARTS = 16
"""The maximum number of parts in a dotted key."""
_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_COMMANDS = {
    "stack.toml": "niso stack up {folder}",
    "manifest.toml": "niso activate {folder}",
    **{name: f"niso import {{folder}}/{name} --output {{folder}}" for name in _COMPOSE},
}
"""Maps a file name to the command for such a file, for the hint if a folder has only this file."""


def load(
    path: str, name: str, owners: Collection[int] | None = None, untrusted: str | None = None
) -> dict[str, object]:
    """Return the data of the TOML file at ``path``. ``name`` is the usual name of such a file.

    ``owners`` and ``untrusted`` are as for `content`. Raises NotFound if the file does not exist,
    Error if it cannot be read, InvalidInput if it is invalid TOML or other users can change it.
    """
    try:
        return parse(content(path, name, owners, untrusted=untrusted))
    except Error as error:
        error.file = escaped(path)
        error.hint = _meant(path, isinstance(error, NotFound)) or error.hint
        raise


def _meant(path: str, is_missing: bool) -> str | None:
    """Return a hint if a path is a YAML file, or is missing and a similar file exists, or None."""
    folder, name = os.path.split(path)
    # the command line may have taken the argument for a folder
    file = folder if is_missing else path
    if file.endswith((".yaml", ".yml")) and os.path.isfile(file):
        return f"niso import {escaped(file)} converts a compose file"
    if name not in _COMMANDS or not is_missing:
        return None
    others = (other for other in _COMMANDS if os.path.isfile(os.path.join(folder, other)))
    other = next(others, None)
    command = _COMMANDS[other].format(folder=escaped(folder)) if other else ""
    return f"there is a {other}: {command}" if other else None


def content(
    path: str,
    name: str,
    owners: Collection[int] | None,
    hint: str | None = None,
    links: bool = True,
    untrusted: str | None = None,
) -> bytes:
    """Return the content of a file that a user wrote. Messages call the file ``name``.

    ``hint`` is the next step if the file is missing; by default it is to pass the path. Without
    ``links``, an absolute path with a symbolic link is refused. If ``owners`` (uids) are given, no
    other user may be able to change the file or its folder; ``untrusted`` is the hint for this
    error. Raises NotFound, Error and InvalidInput.
    """
    hint = hint or f"pass the path of a {name} or of its folder"
    try:
        with open(path, "rb", opener=_open if links else _open_plain) as stream:
            info = os.fstat(stream.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InvalidInput("not a regular file", hint)
            if owners is not None:
                how = files.file_changed_by_others(path, owners, stream.fileno())
                require_owner(how, owners, untrusted)
            read = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such file", hint) from None
    except OSError as error:
        raise Error(f"cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    except ValueError:  # a NUL, or a character outside the file system's encoding
        raise InvalidInput("not a valid path: a character is not allowed") from None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidInput("the path is not UTF-8", "rename the file or its folder") from None
    if len(read) > MAX_BYTES:
        raise InvalidInput(f"larger than {MAX_BYTES} bytes", hint)
    return read


def require_owner(how: str | None, owners: Container[int], hint: str | None = None) -> None:
    """Raise InvalidInput unless ``how`` is None.

    ``how`` is the result of `files.changed_by_others`: how users other than ``owners`` (uids) can
    change a file. ``hint`` is the next step, by default to pass --trust-owner.
    """
    if how is None:
        return
    of_other = "belongs to " in how
    if hint is None:
        hint = "read it and its folder; then pass --trust-owner"
        if of_other and 0 in owners and "SUDO_UID" not in os.environ:
            hint += ". As sudo niso, it obeys the files of the user who calls sudo"
    raise InvalidInput(f"{how}, not to you or root" if of_other else how, hint)


def _open(path: str, flags: int) -> int:
    """Open a file without blocking: opening a FIFO would otherwise wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_plain(path: str, flags: int) -> int:
    """Open an absolute path. A symbolic link in the path causes an OSError: ELOOP or ENOTDIR."""
    *above, name = path.split("/")[1:]
    folder = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        for part in above:
            inner = os.open(
                part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            os.close(folder)
            folder = inner
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def parse(content: bytes) -> dict[str, object]:
    """Parse a TOML text. Raises InvalidInput with the position of the error."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        reason = f"line {line}, column {column}: not UTF-8"
        raise InvalidInput(reason, "save the file as UTF-8") from None
    import tomllib

    _refuse_long_keys(text)
    try:
        data = tomllib.loads(text)
        if "audit_until" in text:
            write_dates(data)
        return data
    except tomllib.TOMLDecodeError as error:
        reason, hint = _syntax(str(error), text)
        raise InvalidInput(reason, hint) from None
    except RecursionError:
        raise InvalidInput("nested too deeply") from None
    except ValueError:  # int() has a limit of digits; all other ValueErrors are TOMLDecodeErrors
        raise InvalidInput("a number has too many digits") from None


def _refuse_long_keys(text: str) -> None:
    """Raise InvalidInput if a key has too many parts, such as ``a.a.a``. tomllib needs memory that
    grows with the square of the number of parts.
    """
    if all(line.count(".") < _MAX_PARTS for line in text.split("\n")):
        return
    line, dots = 1, 0
    for piece in re.findall(_PIECE, text):
        if piece[0] not in "\"'#":
            for position, part in enumerate(re.split(r"[=,\[\]{}\n]", piece)):
                dots = part.count(".") + (0 if position else dots)
                if dots >= _MAX_PARTS:
                    reason = f"line {line}: a key has more than {_MAX_PARTS} parts"
                    raise InvalidInput(reason, "docs/reference/manifest.md has the keys")
        line += piece.count("\n")


def write_dates(table: dict[str, object]) -> None:
    """Convert dates to strings at all depths. Only keys named audit_until have dates."""
    for key, value in table.items():
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, dict):
                write_dates(item)
        if key == "audit_until" and hasattr(value, "year"):  # not a time without a date
            table[key] = value.isoformat()  # type: ignore[attr-defined]


def _syntax(message: str, text: str) -> tuple[str, str]:
    """Return tomllib's error message with the position at the beginning, and a hint. ``Invalid
    value (at line 3, column 5)`` becomes ``line 3, column 5: invalid value``.
    """
    reason, _, place = message.removesuffix(")").rpartition(" (at ")
    if place == "end of document":
        place = f"line {text.count(chr(10)) + 1}, column {len(text) - text.rfind(chr(10))}"
    named, hint = _named(reason, place, text)
    reason = _duplicate(reason, place, text) or named or f"{reason[:1].lower()}{reason[1:]}"
    return escaped(f"{place}: {reason}"), hint


_QUOTES = "\u2018\u2019\u201c\u201d\u00ab\u00bb`"
"""Quotation marks of word processors, which TOML does not know."""


_INVISIBLE = {
    "\u00a0": "no-break space",
    "\u200b": "zero width space",
    "\u202f": "narrow no-break space",
    "\ufeff": "byte order mark",
}
"""Characters that come with text from web pages and word processors, and look like a space."""


def _named(reason: str, place: str, text: str) -> tuple[str, str]:
    """Return (reason, hint) for the character at ``place``, such as ``line 3, column 5``. The
    reason is "" if ``reason``, which tomllib reported, is clear enough.
    """
    hint = "see https://toml.io for the syntax"
    match = re.match(r"line ([0-9]+), column ([0-9]+)", place)
    if match is None:
        return "", hint
    line = f"{text.split(chr(10))[int(match[1]) - 1]}\n"
    wrong = line[int(match[2]) - 1 : int(match[2])] or "\n"
    if not (wrong.isprintable() or wrong.isascii()):
        called = f" ({_INVISIBLE[wrong]})" if wrong in _INVISIBLE else ""
        return f"U+{ord(wrong):04X}{called} is not a space of TOML", "replace it with a space"
    if not reason.startswith(("Illegal character", "Invalid value")):
        return "", hint
    if reason.startswith("Illegal") and wrong == "\n":
        return "the string does not end in this line", 'end it with "'
    if wrong in _QUOTES:
        return f"{wrong} is not a quotation mark of TOML", 'use " around strings'
    if reason.startswith("Illegal"):
        return f"U+{ord(wrong):04X} is not allowed", "remove the character, or write it as \\uXXXX"
    if wrong == "\n":
        return "the value is missing", hint
    if wrong.isalpha():
        return "the value is neither a number, true, false nor in quotes", 'write "..." around it'
    return "", hint


def _duplicate(reason: str, place: str, text: str) -> str:
    """Return a clear reason if tomllib refused a table or key that occurs twice, otherwise ""."""
    match = re.match(r"line ([0-9]+),", place)
    lines = text.split("\n")
    line = lines[int(match[1]) - 1].strip() if match else ""
    header = line.partition("#")[0].strip()
    if reason.startswith("Cannot declare"):
        heads = [other.partition("#")[0].strip() for other in lines]
        before = [number for number, head in enumerate(heads, 1) if head == header]
        first = f"; the first is in line {before[0]}" if len(before) > 1 else ""
        return f"the table {header} is there twice{first}"
    if reason == "Cannot overwrite a value":
        key = line.partition("=")[0].strip()
        return f"{key} has a value already"
    return ""


# --- find the line of a key -----------------------------------------------------------------------


if TYPE_CHECKING:
    type Path = tuple[str | int, ...]

# compiled on use, which is rare: re.compile caches them
_PART = r'"(?P<basic>(?:[^"\\]|\\.)*)"|\'(?P<literal>[^\']*)\'|(?P<bare>[^\s."\'\[\]=]+)'
_INDEX = r"\[(\d+)\]"
_PIECE = (
    r'(?s)"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)|\'\'\'.*?(?:\'{3,5}|\Z)'
    r'|"(?:[^"\\\n]|\\.)*"?|\'[^\'\n]*\'?|#[^\n]*|[\[{]|[\]}]|\n|[^\[\]{}"\'#\n]+'
)
"""Matches one token of a TOML text. The time is linear in the text's length, even if a string has
no end."""


def locate(text: str, errors: list[Error]) -> None:
    """Set the line number of each error to the line of its key. If the text lacks the key, the line
    is that of the innermost table that would contain the key.
    """
    lines = dict(_lines(text))
    for error in errors:
        path = _path(error.key or "")
        while path and path not in lines:
            path = path[:-1]
        error.line = lines.get(path, 0)


def _path(key: str) -> Path:
    """Split a key path such as ``service[1]."A B"`` into ("service", 1, "A B")."""
    parts: list[str | int] = []
    at = 0
    while at < len(key):
        if index := re.compile(_INDEX).match(key, at):
            parts.append(int(index[1]))
            at = index.end()
        elif part := re.compile(_PART).match(key, at):
            parts.append(_name(part))
            at = part.end()
        else:
            at += 1
    return tuple(parts)


def _name(part: re.Match[str]) -> str:
    if part["basic"] is None:
        return str(part["literal"] if part["literal"] is not None else part["bare"])
    try:
        return str(from_json(f'"{part["basic"]}"'))
    except ValueError:  # an escape that only TOML has
        return str(part["basic"])


def _lines(text: str) -> Iterator[tuple[Path, int]]:
    """Yield (path, line number) for each key and table, from the last line to the first."""
    lines: list[tuple[Path, int]] = []
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, statement in _statements(text):
        if statement.startswith("["):
            header = tuple(_name(part) for part in re.finditer(_PART, statement.strip("[]")))
            names = _resolved(header, counts)
            if statement.startswith("[["):
                counts[names] = counts.get(names, -1) + 1
                names = (*names, counts[names])
            table = names
        else:
            names = (*table, *(_name(part) for part in re.finditer(_PART, statement)))
        lines += [(names[:length], number) for length in range(1, len(names) + 1)]
    yield from reversed(lines)


def _resolved(names: Path, counts: dict[Path, int]) -> Path:
    """Return a table header's path with an index after each array of tables: ("service", 1, "x").
    ``counts`` maps the path of each array of tables to the index of its last item so far.
    """
    path: Path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if path in counts and position < len(names) - 1:
            path = (*path, counts[path])
    return path


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) for each table header, and for each key without its value."""
    number, depth, start, head, is_value = 1, 0, 1, "", False
    for piece in re.findall(_PIECE, text + "\n"):
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


# --- change a list in a text ----------------------------------------------------------------------


KeyPath = Sequence[str | int]
"""The path to a table in a file: names of tables, and indexes in arrays of tables."""

_LIST_PART = r"""("(?:\\.|[^"\\\n])*"|'[^'\n]*')|\#([^\n]*)|(\n)"""
"""Matches the tokens in an array of strings: a string, a comment, or the end of a line."""


ListLine = tuple[str, bool, str]
"""A line of a list: (string, whether it is used or commented out, comment or "")."""


def _loads(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def with_list(text: str, path: KeyPath, key: str, items: Iterable[ListLine]) -> str:
    """Return a TOML text in which ``key`` of the table at ``path`` is the list ``items``.

    Missing tables are added. Comments of the old list stay if they are on separate lines, or next
    to a string that stays. Raises Error if tomlkit is missing, and InvalidInput if the edit would
    change anything else.
    """
    wanted = list(items)
    expected = _loads(text)
    try:
        at: Any = expected
        for name in path:
            at = at[name] if isinstance(name, int) else at.setdefault(name, {})
        at[key] = [text for text, used, _ in wanted if used]
        result = _edited(_library(), text, path, key, wanted)
        same = _loads(result) == expected
    except (TypeError, ValueError, AttributeError, LookupError):  # includes tomlkit's
        same, result = False, ""
    if not same:
        reason = (
            f"{'.'.join(map(str, (*path, key)))} cannot be changed in the form that it has here"
        )
        raise InvalidInput(reason, "write what niso net learn prints into the file")
    return result


def list_at(text: str, path: KeyPath, key: str) -> object:
    """Return the value of ``key`` in the table at ``path`` of a TOML text, or None if missing."""
    value: Any = _loads(text)
    try:
        for name in (*path, key):
            value = value[name]
    except (LookupError, TypeError):
        return None
    return value


def _edited(tomlkit: Any, text: str, path: KeyPath, key: str, items: Sequence[ListLine]) -> str:
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
    lines = "".join(f"  {line}\n" for line in _item_lines(items, old))
    table[key] = tomlkit.parse(f"{key} = [\n{lines}]\n")[key] if lines else tomlkit.array()
    if added:
        table.add(tomlkit.nl())
    result = str(tomlkit.dumps(document))
    if added:
        result = result.rstrip("\n") + "\n"
    if "\r\n" in text and not re.search(r"(?<!\r)\n", text):
        result = re.sub(r"(?<!\r)\n", "\r\n", result)
    return result


def listed(items: Iterable[ListLine]) -> Iterator[str]:
    """Yield the lines of a list of strings in TOML, without the brackets around it."""
    for text, used, note in items:
        quoted = to_json(text)
        comment = f"  # {note}" if note else ""
        yield f"{quoted},{comment}" if used else f"# {quoted},{comment}"


def _item_lines(items: Sequence[ListLine], old: str) -> Iterator[str]:
    beside, alone = _comments(old)
    for comment in alone:
        if not any(comment.startswith(to_json(text)) for text, _, _ in items):
            yield f"# {comment}"
    for text, used, note in items:
        comment = beside.get(text, "")
        both = comment if note in comment else f"{note}; {comment}".removesuffix("; ")
        yield from listed([(text, used, both)])


def _comments(array: str) -> tuple[dict[str, str], list[str]]:
    beside: dict[str, str] = {}
    alone: list[str] = []
    last = ""
    for match in re.finditer(_LIST_PART, array):
        text, comment, end = match.groups()
        if end is not None:
            last = ""
        elif text is not None:
            last = _loads(f"x = {text}")["x"]
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
        raise missing_library("tomlkit", "changes manifests", "tomlkit") from None
    return tomlkit


# --- write ----------------------------------------------------------------------------------------


_ESCAPES: dict[int, str] = {
    **{number: f"\\u{number:04x}" for number in (*range(0x20), 0x7F)},
    **{ord(char): f"\\{short}" for char, short in zip('"\\\n\r\t\b\f', '"\\nrtbf', strict=True)},
}
"""Maps the characters that a basic string of TOML cannot contain to their escapes."""


def value(data: object) -> str:
    """Format a value as TOML on one line. A mapping becomes an inline table."""
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
    """Format a key as TOML, with quotes only if necessary."""
    bare = name and name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else value(name)


def table(header: str, data: Mapping[str, Any], inline: int) -> Iterator[str]:
    """Yield the lines of the TOML table ``[header]`` with its subtables. Tables nested ``inline``
    or more levels deep become inline tables.
    """
    below = {name: one for name, one in data.items() if isinstance(one, Mapping) and inline}
    if len(below) < len(data) or not below:
        yield f"[{header}]"
        yield from (
            f"{key(name)} = {value(one)}" for name, one in data.items() if name not in below
        )
        yield ""
    for name, item in below.items():
        yield from table(f"{header}.{key(name)}", item, inline - 1)
