"""What --json prints, by command: the types of the API are its schema, their docstrings its words.

Times are RFC 3339 in UTC, sizes bytes, durations seconds.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

from niso.api.as_json import JOINED, KEYS, PYTHON_ONLY
from niso.base.lite_typing import NamedTuple
from niso.cli.reference.document import Block, Heading, Terms, Text

ONLY = "; only where "
"""Begins, in the words of a field, what must be so for the field to be there."""

_KINDS = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "tuple": "array",
    "list": "array",
}


class Field(NamedTuple):
    """``type`` is string, integer, number, boolean, object or array; ``of`` what an object, or an array's objects, have.

    ``null`` says that it can be null, ``when`` that it is there only then.
    """

    name: str
    type: str
    words: str
    of: tuple[Field, ...] = ()
    null: bool = False
    when: str = ""


class Result(NamedTuple):
    """``shape`` is object, array (of objects), or lines (an object each)."""

    shape: str
    fields: tuple[Field, ...]
    note: str = ""


def fields(module: str, name: str) -> tuple[Field, ...]:
    """The JSON fields of a result, ``name`` of niso.api's ``module``: of its annotations and their docstrings."""
    source = importlib.import_module(f"niso.api.{module}")
    tree = ast.parse(inspect.getsource(source))
    defined = next(
        (each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == name), None
    )
    if defined is None:  # imported there from another module
        origin = getattr(source, name).__module__
        return fields(origin.removeprefix("niso.api."), name)
    found: list[Field] = []
    for place, line in enumerate(defined.body):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        field, annotation = line.target.id, line.annotation
        base, null = _without_none(annotation)
        kind = ast.unparse(base).partition("[")[0]
        inner = _class_of(base)
        of = fields(module, inner) if inner else ()
        if field in PYTHON_ONLY:
            continue
        if field in JOINED and inner:
            found += of
            continue
        after = defined.body[place + 1] if place + 1 < len(defined.body) else None
        words, _, when = _text(after).partition(ONLY)
        type_ = _KINDS.get(kind, "object")
        found.append(
            Field(KEYS.get(field, field), type_, words, of, null and not _is_optional(line), when)
        )
    return tuple(found)


def _without_none(annotation: ast.expr) -> tuple[ast.expr, bool]:
    """``str | None`` as ``str`` and True."""
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "None":
        return annotation.left, True
    return annotation, False


def _is_optional(line: ast.AnnAssign) -> bool:
    """Whether None is the default: such a field is left out in place of null."""
    return line.value is not None and ast.unparse(line.value) == "None"


def _class_of(base: ast.expr) -> str:
    """The result that a field is, or a tuple's items are; '' where it is none."""
    text = ast.unparse(base).removeprefix("tuple[").removesuffix(", ...]")
    return text if text.isidentifier() and text[0].isupper() and text != "Any" else ""


def _text(line: ast.stmt | None) -> str:
    is_text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    return str(line.value.value) if is_text else ""  # type: ignore[union-attr]


def _array(module: str, name: str) -> Result:
    return Result("array", fields(module, name))


def _object(module: str, name: str) -> Result:
    return Result("object", fields(module, name))


RESULTS: dict[str, Result] = {
    "activate": _array("host_services", "Outcome"),
    "deactivate": _array("host_services", "Done"),
    "restart": _array("host_services", "Done"),
    "remove": _array("host_services", "Done"),
    "ps": _array("service_views", "ServiceLine"),
    "inspect": _object("service_views", "Service"),
    "port-forward": _object("host_services", "Forwarded"),
    "net create": _object("host_networks", "Network"),
    "net list": _array("host_networks", "NetworkLine"),
    "net inspect": _object("host_networks", "Network"),
    "net remove": _array("host_networks", "RemovedNetwork"),
    "net ports": _array("host_networks", "PublishedPort"),
    "net rules": _object("host_networks", "Rules"),
    "net ping": _object("packets", "Pong"),
    "net explain": _object("packets", "Explanation"),
    "net stats": Result(
        "array",
        fields("packets", "Stats"),
        "A number is null where the kernel does not have what counts it.",
    ),
    "net log": Result("lines", fields("packets", "Drop")),
    "net check": _array("upkeep", "Finding"),
    "net repair": Result("object", (*fields("upkeep", "Repaired"), *fields("upkeep", "Swept"))),
    "stack up": _object("host_stacks", "StackUp"),
    "stack down": _array("host_services", "Done"),
    "stack status": _array("service_views", "ServiceLine"),
    "enable": _array("host_services", "Marked"),
    "disable": _array("host_services", "Marked"),
    "restore": _array("host_services", "Outcome"),
}


def page_blocks() -> Iterator[Block]:
    """docs/reference/json.md."""
    yield Text(
        "With `--json` a command prints one JSON value: an array of objects (`[]` where there is nothing), an object, or an object a "
        "line. Times are RFC 3339 in UTC, sizes bytes, durations seconds. Keys stay: new ones may come, none goes or changes its type "
        "within a major version. `--dry-run` prints its steps as text."
    )
    yield Heading("Errors")
    yield Text("On stderr, one object a line; the exit status is the same as without `--json`.")
    yield Terms(
        (
            ("error: object", "the whole of it"),
            ("error.message: string", "what is wrong"),
            ("error.hint: string or null", "the next step"),
            ("error.key: string or null", "the key of a manifest, as network.ports[1]"),
        )
    )
    for name, result in RESULTS.items():
        yield Heading(f"niso {name}")
        yield Text(
            {"array": "An array of objects.", "object": "An object.", "lines": "An object a line."}[
                result.shape
            ]
        )
        if result.note:
            yield Text(result.note)
        yield Terms(tuple(_rows(result.fields, "")))


def _rows(fields: tuple[Field, ...], above: str) -> Iterator[tuple[str, str]]:
    for field in fields:
        kind = {"array": "array of objects" if field.of else "array"}.get(field.type, field.type)
        words = "; ".join(
            each for each in (field.words, f"only where {field.when}" if field.when else "") if each
        )
        yield f"{above}{field.name}: {kind}{' or null' if field.null else ''}", words
        if field.of and field.name != "other_family":  # it has what its object has
            yield from _rows(
                field.of, f"{above}{field.name}{'[]' if field.type == 'array' else ''}."
            )
