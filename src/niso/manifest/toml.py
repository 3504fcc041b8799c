"""Reading a TOML file that a user wrote: what is wrong with it as a file or as TOML, in niso's words, with line and column."""

from __future__ import annotations

import os
import stat

from niso.base.errors import InvalidInput, NisoError, NotFound
from niso.manifest import values

MAX_BYTES = 1024 * 1024


def load(path: str, name: str) -> dict[str, object]:
    """What the file at ``path`` says; ``name`` is what such a file is called.

    Raises NotFound where there is none, NisoError where it cannot be read, InvalidInput where it is no TOML.
    """
    try:
        return _parse(_read(path, name))
    except NisoError as error:
        error.file = values.escaped(path)
        raise


def _read(path: str, name: str) -> bytes:
    advice = f"give the path of a {name} or of its folder"
    try:
        with open(path, "rb", opener=_open) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise InvalidInput("not a regular file", advice)
            content = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such file", advice) from None
    except OSError as error:
        raise NisoError(f"cannot be read: {os.strerror(error.errno or 0).lower()}") from error
    except ValueError:  # a NUL or a character that the file system's encoding does not have
        raise InvalidInput("no path can have these characters") from None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            "its path is not UTF-8", "rename the file, or the folder that it is in"
        ) from None
    if len(content) > MAX_BYTES:
        raise InvalidInput(f"larger than {MAX_BYTES} bytes", advice)
    return content


def _open(path: str, flags: int) -> int:
    """Open for reading at once: without O_NONBLOCK a FIFO would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(content: bytes) -> dict[str, object]:
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
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            _syntax(str(error), text), "see https://toml.io for the syntax"
        ) from None
    except RecursionError:
        raise InvalidInput("nested too deep") from None
    except (
        ValueError
    ):  # int() of more digits than it takes; every other ValueError is a TOMLDecodeError
        raise InvalidInput("a number has too many digits") from None


def _syntax(message: str, text: str) -> str:
    """tomllib's ``Invalid value (at line 3, column 5)`` as ``line 3, column 5: invalid value``."""
    reason, _, place = message.removesuffix(")").rpartition(" (at ")
    if place == "end of document":
        place = f"line {text.count(chr(10)) + 1}, column {len(text) - text.rfind(chr(10))}"
    return values.escaped(f"{place}: {reason[:1].lower()}{reason[1:]}")
