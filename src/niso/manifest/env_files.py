"""Read files of environment variables: ``env_file`` of a service, and ``.env`` beside a manifest.

A line is ``NAME=value``; blank lines and those that start with ``#`` are skipped, and ``export``
may stand before the name. Blanks around name and value are removed, and a ``#`` after a blank
starts a comment. A value in single quotes is literal. In double quotes, a backslash escapes a
backslash, a quote and a dollar, and n, r and t after one are control characters. A name alone has
the value of the variable of this name, if it is set.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

from niso.base.errors import Error, InvalidInput
from niso.manifest import toml, values
from niso.manifest.interpolate import Variables

NAME = ".env"
_HINT = "service.env_file is the path of a file with a line NAME=value for each variable"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$"}


def variables(
    folder: str, owners: Container[int] | None = None, outer: Mapping[str, str] | None = None
) -> Variables:
    """Return the variables for a file in ``folder``: of the environment, else ``outer``, else .env.

    Raises Error and InvalidInput if there is an .env that cannot be used.
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
    """Return whether a variable is UTF-8; os.environ has other bytes as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read(
    path: str,
    environment: Mapping[str, str],
    owners: Container[int] | None = None,
    shown: str | None = None,
) -> dict[str, str]:
    """Return the variables of a file. ``environment`` has the values of names without one.

    ``path`` is absolute, with its links resolved: none is followed that came since. Errors name the
    file ``shown``, by default ``path``, and the line. Raises NotFound, Error and InvalidInput; with
    ``owners`` also if others can change it (`niso.manifest.toml.load`).
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
    """Return (name, value) of a line; no name for one without a variable. Raises InvalidInput."""
    line = line.strip()
    if not line or line.startswith("#"):
        return "", None
    name, equals, value = line.removeprefix("export ").partition("=")
    name = name.strip()
    if not _is_name(name):
        # nothing else of the line is in the message: it may be a password
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
    """Return the value of a text after the ``=``. Raises InvalidInput."""
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
