"""Read files of environment variables: ``env_file`` of a service, and ``.env`` next to a manifest.

A line is ``NAME=value``, optionally after ``export``. Blank lines and lines that start with ``#``
are skipped. Blanks around name and value are removed, and a ``#`` after a blank starts a comment. A
value in single quotes is literal. In double quotes, a backslash escapes a backslash, a quote and a
dollar, and before n, r and t it stands for a control character. A line with only a name takes the
value from the environment, if the variable is set there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from niso.base.errors import Error, InvalidInput
from niso.manifest import toml, values
from niso.manifest.interpolate import Variables

NAME = ".env"
_HINT = "service.env_file is the path of a file with a line NAME=value for each variable"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$"}


def variables(
    folder: str, owners: Collection[int] | None = None, outer: Mapping[str, str] | None = None
) -> Variables:
    """Return the variables for a file in ``folder``.

    The environment has precedence over ``outer``, and that over .env in ``folder``. Raises Error
    and InvalidInput if a .env exists that cannot be used.
    """
    path = os.path.join(folder, NAME)
    own: dict[str, str] = {}
    if os.path.lexists(path):
        home, real = os.path.realpath(folder), os.path.realpath(path)
        if not real.startswith(f"{home.rstrip('/')}/"):
            hint = "put the file there; a link may lead to a file below its folder"
            raise InvalidInput("is a link out of its folder", hint, file=values.escaped(path))
        own = read(real, os.environ, owners, path)
    environment = {name: value for name, value in os.environ.items() if _is_text(value)}
    return Variables({**own, **(outer or {}), **environment}, values.escaped(path))


def _is_text(value: str) -> bool:
    """Return whether a variable's value is UTF-8; in os.environ, other bytes are surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(
    path: str,
    environment: Mapping[str, str],
    owners: Collection[int] | None = None,
    shown: str | None = None,
) -> dict[str, str]:
    """Read a file of variables. ``environment`` has the values of names without one.

    ``path`` must be absolute, with its links resolved: a link that was added since is not followed.
    Errors name the line and the file ``shown``, by default ``path``. Raises NotFound, Error and
    InvalidInput; with ``owners`` also if other users can modify the file
    (`niso.manifest.toml.load`).
    """
    variables: dict[str, str] = {}
    try:
        content = toml.content(path, "file of variables", owners, _HINT, links=False)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InvalidInput("not UTF-8", "save the file as UTF-8") from None
        for number, line in enumerate(text.splitlines(), 1):
            name, value = _line(line, f"line {number}")
            if name and value is None:
                value = environment.get(name)
            if name and value is not None and _is_text(value):
                variables[name] = value
    except Error as error:
        error.file = values.escaped(shown or path)
        raise
    return variables


def _line(line: str, where: str) -> tuple[str, str | None]:
    """Parse a line: return (name, value); the name is "" without a variable.

    Raises InvalidInput.
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return "", None
    name, equals, value = line.removeprefix("export ").partition("=")
    name = name.strip()
    if not _is_name(name):
        # the message quotes nothing else of the line, which may contain a password
        before = name.partition(":")[0].strip()
        what = f"no = follows {before}" if _is_name(before) else "the name is not valid"
        raise InvalidInput(f"{where}: {what}", "NAME=value")
    try:
        result = _value(value.strip()) if equals else None
        values.argument(result or "", "")
    except InvalidInput as error:
        reason = error.reason if error.value else error.message
        raise InvalidInput(f"{where}: {reason}", f"{name}=value") from None
    return name, result


def _is_name(text: str) -> bool:
    try:
        return bool(values.environment_name(text, ""))
    except InvalidInput:
        return False


def _value(text: str) -> str:
    """Parse the text after the ``=``. Raises InvalidInput."""
    quote = text[:1]
    if quote not in ("'", '"'):
        for index, character in enumerate(text):
            if character == "#" and (not index or text[index - 1].isspace()):
                return text[:index].rstrip()
        return text
    result, at = [], 1
    while at < len(text) and text[at] != quote:
        if quote == '"' and text[at] == "\\" and at + 1 < len(text):
            result.append(_ESCAPES.get(text[at + 1], text[at : at + 2]))
            at += 1
        else:
            result.append(text[at])
        at += 1
    after = text[at + 1 :].strip()
    if at >= len(text):
        raise InvalidInput("a quote is not closed")
    if after and not after.startswith("#"):
        raise InvalidInput("text follows the closing quote")
    return "".join(result)
