"""Substitute variables ``${NAME}`` in the values of a TOML file, as Compose does.

``${NAME:-text}`` has a default for a variable that is unset or empty, ``${NAME:?text}`` an error
message for that case. Without the colon, an empty variable counts as set. ``${NAME:+text}`` is the
text if the variable is set. ``$${`` is a literal ``${``. Any other ``$`` is literal, so that
``$NAME`` and ``$$`` remain for a shell.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base import convert
from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import values

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind

MAX_DEPTH = 16
"""The deepest nesting of defaults."""
_NAME = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
LITERAL = "write $${ for a literal ${"


class Variables(NamedTuple):
    """The variables that a file may use."""

    values: Mapping[str, str]
    file: str  # the path of the .env file in which users can set the variables


def has_variables(value: object) -> bool:
    """Return whether any string in TOML data contains ``${``."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str) and "${" in one:
            return True
        if isinstance(one, dict | list):
            todo += one.values() if isinstance(one, dict) else one
    return False


class _Wrong(Exception):
    """A value cannot be resolved: ``reason`` says why, ``right`` what would be valid."""

    def __init__(self, reason: str, right: str) -> None:
        self.reason, self.right = reason, right


class Resolved(NamedTuple):
    """The data of a file with its variables substituted, and an error for each failed substitution.

    A value with an error stays as written.
    """

    data: dict[str, Any]
    errors: list[InvalidInput]

    def fresh(self, others: list[InvalidInput]) -> list[InvalidInput]:
        """Return all errors, with those of ``others`` that are not about an unresolved value."""
        unresolved = {error.key for error in self.errors}
        return [*self.errors, *(error for error in others if error.key not in unresolved)]


def resolve(data: dict[str, Any], variables: Variables, kinds: Kind, key: str = "") -> Resolved:
    """Substitute the variables in all strings of ``data``, but not in keys.

    ``kinds`` has the types of the keys: where a number or boolean is expected, the text is
    converted.
    """
    errors: list[InvalidInput] = []

    def walk(value: Any, may_be: Kind, path: str) -> Any:
        from niso.manifest.validate import join

        inside: Any = may_be.get(type(value))
        if isinstance(value, str):
            if "${" not in value:
                return value
            try:
                return _typed(text(value, variables), may_be)
            except _Wrong as wrong:
                errors.append(values.wrong(path, value, wrong.reason, wrong.right))
                return value
        if isinstance(value, list):
            return [walk(item, inside or {}, f"{path}[{i}]") for i, item in enumerate(value)]
        # keys nested deeper than the known ones have no type
        if isinstance(value, dict) and may_be:
            known = convert.fields(inside) if convert.is_table(inside) else {}
            other = inside if isinstance(inside, dict) else {}
            return {
                name: walk(item, known.get(name, other), join(path, name))
                for name, item in value.items()
            }
        return value

    return Resolved(walk(data, kinds, key), errors)


def _typed(text: str, may_be: Kind) -> object:
    """Convert a text to the number or boolean that ``may_be`` allows; else return it unchanged."""
    if str not in may_be and bool in may_be and text in ("true", "false"):
        return text == "true"
    plain = text.removeprefix("-")
    if (
        str not in may_be
        and int in may_be
        and plain.isascii()
        and plain.isdigit()
        and len(plain) < 20
    ):
        return int(text)
    return text


def text(written: str, variables: Variables, depth: int = 0) -> str:
    """Substitute the variables of a text. Raises _Wrong."""
    if depth > MAX_DEPTH:
        raise _Wrong("is nested too deeply", f"at most {MAX_DEPTH} defaults in each other")
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
    """Split the text after a ``${`` at the matching closing brace. Raises _Wrong."""
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
    raise _Wrong("has a ${ that is not closed", LITERAL)


def _substituted(inside: str, variables: Variables, depth: int) -> str:
    """Return the value of ``${inside}``. Raises _Wrong."""
    end = next(
        (i for i, c in enumerate(inside) if not (c.isascii() and (c.isalnum() or c == "_"))),
        len(inside),
    )
    name, operation = inside[:end], inside[end:]
    colon = operation.startswith(":")
    sign, other = operation[colon : colon + 1], operation[colon + 1 :]
    if not name.isidentifier() or (operation and sign not in {"-", "?", "+"}):
        shown = values.shown(f"${{{inside}}}")
        raise _Wrong(f"has {shown}, which is not a variable", f"${{NAME}}; {LITERAL}")
    value = variables.values.get(name)
    is_set = bool(value) if colon else value is not None
    if sign == "+":
        return text(other, variables, depth + 1) if is_set else ""
    if is_set:
        return str(value)
    if sign == "-":
        return text(other, variables, depth + 1)
    if sign == "?":
        message = text(other, variables, depth + 1)
        shown = f": {values.escaped(message)}" if message else ""
        raise _Wrong(f"needs the variable {name}{shown}", f"set it in {variables.file}")
    if value == "":
        return ""
    raise _Wrong(
        f"needs the variable {name}, which is not set",
        f"set it in {variables.file} or in the environment, which sudo does not pass on; "
        f"or write ${{{name}:-default}}",
    )
