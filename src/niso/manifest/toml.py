"""Read a user's TOML file; errors name the file, and for syntax errors line and column."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Container

from niso.base import files
from niso.base.errors import Error, InvalidInput, NotFound
from niso.manifest import values

MAX_BYTES = 1024 * 1024
_COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_COMMANDS = {
    "stack.toml": "niso stack up {folder}",
    "manifest.toml": "niso activate {folder}",
    **{name: f"niso import {{folder}}/{name} --output {{folder}}" for name in _COMPOSE},
}
"""The command for each kind of file, for the hint when the other kind exists."""


def load(
    path: str, name: str, owners: Collection[int] | None = None, untrusted: str | None = None
) -> dict[str, object]:
    """Return the data of the TOML file at ``path``; ``name`` is the usual name of such a file.

    ``owners`` and ``untrusted`` are as for `content`. Raises NotFound if it does not exist, Error
    if it cannot be read, InvalidInput if it is not valid TOML or others can change it.
    """
    try:
        return parse(content(path, name, owners, untrusted=untrusted))
    except Error as error:
        error.file = values.escaped(path)
        error.hint = _meant(path, isinstance(error, NotFound)) or error.hint
        raise


def _meant(path: str, is_missing: bool) -> str | None:
    """Return a hint for a file that is not TOML, or that is missing next to one of another kind."""
    folder, name = os.path.split(path)
    # the command line may have taken the argument for a folder
    file = folder if is_missing else path
    if file.endswith((".yaml", ".yml")) and os.path.isfile(file):
        return f"niso import {values.escaped(file)} converts a compose file"
    if name not in _COMMANDS or not is_missing:
        return None
    others = (other for other in _COMMANDS if os.path.isfile(os.path.join(folder, other)))
    other = next(others, None)
    command = _COMMANDS[other].format(folder=values.escaped(folder)) if other else ""
    return f"there is a {other}: {command}" if other else None


def content(
    path: str,
    name: str,
    owners: Collection[int] | None = None,
    hint: str | None = None,
    links: bool = True,
    untrusted: str | None = None,
) -> bytes:
    """Return the content of a user's file; ``name`` is its name in messages.

    ``hint`` is that of a file which is missing or none; by default, to pass its path. Without
    ``links``, an absolute path with one is refused.
    With ``owners``, no other users than these may be able to change the file or its folder;
    ``untrusted`` is the hint if they are. Raises NotFound, Error and InvalidInput.
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
    """Raise InvalidInput if others than ``owners`` (uids) can change a file or folder.

    ``how`` is the answer of `files.changed_by_others`. ``hint`` is the next step, by default
    --trust-owner.
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
    """Open without blocking: opening a FIFO would wait for a writer without O_NONBLOCK."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_plain(path: str, flags: int) -> int:
    """Open an absolute path component by component, without links.

    Raises OSError; ELOOP or ENOTDIR for a link.
    """
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
    import tomllib

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise InvalidInput(
            f"line {line}, column {column}: not UTF-8", "save the file as UTF-8"
        ) from None
    try:
        data = tomllib.loads(text)
        if "audit_until" in text:
            write_dates(data)
        return data
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            _syntax(str(error), text), "see https://toml.io for the syntax"
        ) from None
    except RecursionError:
        raise InvalidInput("nested too deeply") from None
    except ValueError:  # int() has a limit of digits; all other ValueErrors are TOMLDecodeErrors
        raise InvalidInput("a number has too many digits") from None


def write_dates(table: dict[str, object]) -> None:
    """Convert the dates of keys named audit_until to text, the form of all other values."""
    for key, value in table.items():
        if isinstance(value, dict):
            write_dates(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    write_dates(item)
        elif key == "audit_until" and hasattr(value, "year"):  # not a time without a date
            table[key] = value.isoformat()  # type: ignore[attr-defined]


def _syntax(message: str, text: str) -> str:
    """Move the position in a tomllib error, ``Invalid value (at line 3, column 5)``, to the front.

    The result is ``line 3, column 5: invalid value``.
    """
    reason, _, place = message.removesuffix(")").rpartition(" (at ")
    if place == "end of document":
        place = f"line {text.count(chr(10)) + 1}, column {len(text) - text.rfind(chr(10))}"
    reason = _duplicate(reason, place, text) or f"{reason[:1].lower()}{reason[1:]}"
    return values.escaped(f"{place}: {reason}")


def _duplicate(reason: str, place: str, text: str) -> str:
    """Return a plain reason if tomllib reports a duplicate table or key, else ""."""
    import re

    match = re.match(r"line ([0-9]+),", place)
    lines = text.split("\n")
    line = lines[int(match[1]) - 1].strip() if match else ""
    header = line.partition("#")[0].strip()
    if reason.startswith("Cannot declare"):
        before = [
            n for n, other in enumerate(lines, 1) if other.partition("#")[0].strip() == header
        ]
        first = f"; the first is in line {before[0]}" if len(before) > 1 else ""
        return f"the table {header} is there twice{first}"
    if reason == "Cannot overwrite a value":
        key = line.partition("=")[0].strip()
        return f"{key} has a value already"
    return ""
