r"""Substitute ``${NAME}`` in the values of a TOML file, and read environment files.

An environment file is the ``env_file`` of a service, or ``.env`` next to a manifest. A line is
``NAME=value``, optionally after ``export``. Blank lines and lines that start with ``#`` are
skipped. Blanks around name and value are removed, and a ``#`` after a blank starts a comment. A
value in single quotes is literal. In double quotes, a backslash escapes a backslash, a quote or a
dollar sign, and \n, \r and \t are control characters. A line with only a name takes the value from
the environment, if the variable is set there.

Substitution follows the rules of Compose. ``${NAME:-text}`` has a default for a variable that is
unset or empty, and ``${NAME:?text}`` an error message for such a variable. Without the colon, an
empty variable counts as set. ``${NAME:+text}`` is the text if the variable is set. ``$${`` is a
literal ``${``. Any other ``$`` is literal, so that ``$NAME`` and ``$$`` remain for a shell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from niso.base import convert
from niso.base import text as base_text
from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.text import escaped
from niso.manifest import toml
from niso.manifest import values as manifest_values
from niso.manifest.values import argument, environment_name, join

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind


# --- files of environment variables ---------------------------------------------------------------


NAME = ".env"
_HINT = "service.env_file is the path of a file with a line NAME=value for each variable"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "$": "$"}


def variables(
    folder: str, owners: Collection[int] | None = None, outer: Mapping[str, str] | None = None
) -> Variables:
    """Return ({variable: value} for a TOML file in ``folder``, path of the file .env in this
    folder).

    The environment has precedence, then ``outer``, then .env. Raises Error and InvalidInput if a
    .env exists but cannot be used.
    """
    path = os.path.join(folder, NAME)
    own: dict[str, str] = {}
    if os.path.lexists(path):
        home, real = os.path.realpath(folder), os.path.realpath(path)
        if not real.startswith(f"{home.rstrip('/')}/"):
            hint = "put the file there; a link may lead to a file below its folder"
            raise InvalidInput("is a link out of its folder", hint, file=escaped(path))
        own = read(real, os.environ, owners, path)
    environment = {name: value for name, value in os.environ.items() if _is_text(value)}
    return {**own, **(outer or {}), **environment}, escaped(path)


def _is_text(value: str) -> bool:
    """Return whether a variable's value is UTF-8. os.environ has surrogates for other bytes."""
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
    """Read an environment file, and return {variable: value}.

    ``path`` must be absolute, with its symbolic links resolved: no link is followed. A line with
    only a name takes its value from ``environment``. Errors name the line and the file, which is
    called ``shown`` if given. Raises NotFound if the file does not exist, Error if it cannot be
    read, and InvalidInput for an invalid line. If ``owners`` (uids) are given, InvalidInput is also
    raised if other users can change the file.
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
        error.file = escaped(shown or path)
        raise
    return variables


def _line(line: str, where: str) -> tuple[str, str | None]:
    """Parse a line of an environment file, and return (name, value). For a blank line or a comment,
    the name is "" and the value None. For a line with a name but no ``=``, the value is None.
    ``where`` is the file and line number for errors. Raises InvalidInput.
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
        argument(result or "", "")
    except InvalidInput as error:
        reason = error.reason if error.value else error.message
        raise InvalidInput(f"{where}: {reason}", f"{name}=value") from None
    return name, result


def _is_name(text: str) -> bool:
    try:
        return bool(environment_name(text, ""))
    except InvalidInput:
        return False


def _value(text: str) -> str:
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


# --- substitution of ${NAME} ----------------------------------------------------------------------


MAX_DEPTH = 16
"""The maximum number of defaults that are nested in each other."""
LITERAL = "write $${ for a literal ${"
Variables = tuple[Mapping[str, str], str]
"""The variables that a file may use, and the path of the .env file in which users can set them."""


def has_variables(value: object) -> bool:
    """Return whether any string in the data of a TOML file contains ``${``."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str) and "${" in one:
            return True
        if isinstance(one, dict | list):
            todo += one.values() if isinstance(one, dict) else one
    return False


class Resolved(NamedTuple):
    """The data of a file with variables substituted. A value with an error is left unchanged."""

    data: dict[str, Any]
    errors: list[InvalidInput]

    def fresh(self, others: Iterable[Error]) -> list[Error]:
        """Return this object's errors, and from ``others`` the errors about other keys."""
        unresolved = {error.key for error in self.errors}
        return [*self.errors, *(error for error in others if error.key not in unresolved)]


def resolve(data: dict[str, Any], variables: Variables, kinds: Kind, key: str = "") -> Resolved:
    """Substitute the variables in all strings of ``data``. Variables in keys are not substituted.

    ``kinds`` are the types of the keys: if a key needs a number or boolean, its string is
    converted. ``key`` is the key path of ``data``.
    """
    errors: list[InvalidInput] = []

    def walk(value: Any, expected: Kind, path: str) -> Any:
        inside: Any = expected.get(type(value))
        if isinstance(value, str):
            if "${" not in value:
                return value
            try:
                return _typed(text(value, variables), expected)
            except InvalidInput as wrong:
                errors.append(manifest_values.wrong(path, value, wrong.reason, wrong.right))
                return value
        if isinstance(value, list):
            return [walk(item, inside or {}, f"{path}[{i}]") for i, item in enumerate(value)]
        # keys nested deeper than the known ones have no type
        if isinstance(value, dict) and expected:
            known = convert.fields(inside) if convert.is_table(inside) else {}
            other = inside if isinstance(inside, dict) else {}
            return {
                name: walk(item, known.get(name, other), join(path, name))
                for name, item in value.items()
            }
        return value

    return Resolved(walk(data, kinds, key), errors)


def _typed(text: str, expected: Kind) -> object:
    """Convert a string to a number or boolean, if ``expected`` has this type but not str. Returns a
    string that cannot be converted unchanged.
    """
    if str not in expected and bool in expected and text in ("true", "false"):
        return text == "true"
    plain = text.removeprefix("-")
    is_number = plain.isascii() and plain.isdigit() and len(plain) < 20
    return int(text) if str not in expected and int in expected and is_number else text


def text(written: str, variables: Variables, depth: int = 0) -> str:
    """Substitute the variables in a string. ``depth`` is the number of defaults that contain the
    string: 1 for ``${B:-c}`` in ``${A:-${B:-c}}``.
    """
    if depth > MAX_DEPTH:
        right = f"at most {MAX_DEPTH} defaults in each other"
        raise InvalidInput("is nested too deeply", right=right)
    parts: list[str] = []
    while True:
        before, opens, after = written.partition("${")
        if not opens:
            return "".join((*parts, before))
        if before.endswith("$"):  # $${
            parts.append(f"{before}{{")
            written = after
            continue
        inside, written = _closed(after)
        parts += (before, _substituted(inside, variables, depth))


def _closed(after: str) -> tuple[str, str]:
    """Return (text in the braces, text after them) for the text after a ``${``. Raises InvalidInput
    if no matching ``}`` follows.
    """
    open_, at = 1, 0
    while at < len(after):
        if after.startswith("${", at):
            open_, at = open_ + 1, at + 2
            continue
        if after[at] == "}":
            open_ -= 1
            if not open_:
                return after[:at], after[at + 1 :]
        at += 1
    raise InvalidInput("has a ${ that is not closed", right=LITERAL)


def _substituted(inside: str, variables: Variables, depth: int) -> str:
    """Return the replacement for ``${...}``, given the text in the braces. Raises InvalidInput."""
    name = re.split(r"\W", inside, maxsplit=1, flags=re.ASCII)[0]
    operation = inside.removeprefix(name)
    colon = operation.startswith(":")
    sign, other = operation[colon : colon + 1], operation[colon + 1 :]
    if not name.isidentifier() or (operation and sign not in {"-", "?", "+"}):
        shown = base_text.shown(f"${{{inside}}}")
        raise InvalidInput(f"has {shown}, which is not a variable", right=f"${{NAME}}; {LITERAL}")
    values, file = variables
    value = values.get(name)
    is_set = bool(value) if colon else value is not None
    if sign == "+":
        return text(other, variables, depth + 1) if is_set else ""
    if is_set:
        return str(value)
    if sign == "-":
        return text(other, variables, depth + 1)
    if sign == "?":
        message = text(other, variables, depth + 1)
        shown = f": {escaped(message)}" if message else ""
        raise InvalidInput(f"needs the variable {name}{shown}", right=f"set it in {file}")
    if value == "":
        return ""
    raise InvalidInput(
        f"needs the variable {name}, which is not set",
        right=f"set it in {file} or in the environment, which sudo does not pass on; "
        f"or write ${{{name}:-default}}",
    )
