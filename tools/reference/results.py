"""Generate the reference of --json from the result types of the API and their docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache

import niso
from niso.api.host import JOINED, KEYS, PYTHON_ONLY
from niso.base.named_tuples import NamedTuple
from reference.document import Block, Heading, Terms, Text

ONLY = "; only "
"""Separates the description of a field from the condition for its presence."""

_KINDS = {
    "str": "string",
    "Problem": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "tuple": "array",
    "list": "array",
}


class Field(NamedTuple):
    """A JSON field.

    ``type`` is string, integer, number, boolean, object or array. ``of`` are the fields of an
    object, or of the objects in an array. ``null`` says whether it can be null, ``when`` is the
    condition for its presence.
    """

    name: str
    type: str
    description: str
    of: tuple[Field, ...] = ()
    null: bool = False
    when: str = ""


class Result(NamedTuple):
    """The output of a command: ``shape`` is object, array (of objects) or lines (of objects)."""

    shape: str
    fields: tuple[Field, ...]
    note: str = ""


def fields(name: str, module: str = "") -> tuple[Field, ...]:
    """Return the JSON fields of a result: a class of ``module``, or one that `niso` exports.

    They come from its annotations, with the comments after them or the docstrings below them.
    """
    module = module or getattr(niso, name).__module__
    lines, tree = _parsed(module)
    defined = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None
    )
    if defined is None:  # of another module
        return fields(name, _home(tree, name))
    result: list[Field] = []
    for place, line in enumerate(defined.body):
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        field, annotation = line.target.id, line.annotation
        base, null = _without_none(annotation)
        kind = ast.unparse(base).partition("[")[0]
        inner = _class_of(base)
        of = fields(inner, module) if inner else ()
        if field in PYTHON_ONLY:
            continue
        if field in JOINED and inner:
            result += of
            continue
        after = defined.body[place + 1] if place + 1 < len(defined.body) else None
        comment = lines[(line.end_lineno or 0) - 1].partition("  # ")[2]
        description, _, when = (comment or _text(after)).partition(ONLY)
        type_ = _KINDS.get(kind, "object")
        result.append(
            Field(
                KEYS.get(field, field),
                type_,
                description,
                of,
                null and not _is_optional(line),
                when,
            )
        )
    return tuple(result)


@cache
def _parsed(module: str) -> tuple[list[str], ast.Module]:
    """Return the lines of a module's source, and the syntax tree."""
    source = inspect.getsource(importlib.import_module(module))
    return source.splitlines(), ast.parse(source)


def _home(tree: ast.Module, name: str) -> str:
    """Return the module from which a module imports a class; "" if it does not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return str(node.module)
    return ""


def _without_none(annotation: ast.expr) -> tuple[ast.expr, bool]:
    """Split ``str | None`` into ``str`` and True."""
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "None":
        return annotation.left, True
    return annotation, False


def _is_optional(line: ast.AnnAssign) -> bool:
    """Return whether None is the default: the field is then left out instead of null."""
    return line.value is not None and ast.unparse(line.value) == "None"


def _class_of(base: ast.expr) -> str:
    """Return the result class of a field or of a tuple's items; '' if there is none."""
    text = ast.unparse(base).removeprefix("tuple[").removesuffix(", ...]")
    is_class = text.isidentifier() and text[0].isupper() and text not in (*_KINDS, "Any")
    return text if is_class else ""


def _text(line: ast.stmt | None) -> str:
    if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
        return " ".join(str(line.value.value).split())
    return ""


def _array(name: str, module: str = "") -> Result:
    return Result("array", fields(name, module))


def _object(name: str, module: str = "") -> Result:
    return Result("object", fields(name, module))


RESULTS: dict[str, Result] = {
    "activate": _array("Outcome"),
    "scale": _array("Outcome"),
    "rollback": _array("Outcome"),
    "history": _array("Deploy"),
    "deactivate": _array("Done"),
    "restart": _array("Done"),
    "remove": _array("Done"),
    "ps": Result(
        "array",
        fields("ServiceLine"),
        "With --all-hosts the keys are service, host, status, address, and ports (strings).",
    ),
    "validate": _array("Valid"),
    "import": _object("ImportedStack"),
    "ps --all-hosts": _array("ClusterLine"),
    "inspect": _object("Service"),
    "kill": _array("Signalled"),
    "port-forward": _object("Forwarded"),
    "net attach": _object("Attachment"),
    "net detach": _array("Done"),
    "net gc": _array("Done"),
    "net create": _object("Network"),
    "net list": _array("NetworkLine"),
    "net inspect": _object("Network"),
    "net remove": _array("RemovedNetwork"),
    "net ports": _array("PublishedPort"),
    "net ports --all-hosts": _array("ClusterPort"),
    "net rules": _object("Rules"),
    "net ping": _object("Pong"),
    "net explain": _object("Explanation"),
    "net stats": Result(
        "array",
        fields("Stats"),
        "A counter is null if the kernel lacks the object that counts.",
    ),
    "net flows": Result("array", fields("Flow"), "With -f, one object per line as it happens."),
    "net trace": _object("Traced"),
    "net learn": _array("LearnedPolicy"),
    "net names": _object("HostNames"),
    "net refresh": _array("OutsideName"),
    "net policy show": _array("PolicyEntry"),
    "net policy test": _array("PolicyEffect"),
    "net drops": Result("lines", fields("Drop")),
    "reset": Result("object", fields("Swept")),
    "net check": _array("Finding"),
    "net repair": Result("object", fields("Repaired")),
    "stack up": _object("StackUp"),
    "stack down": _array("Done"),
    "stack ps": _array("ServiceLine"),
    "stack restart": _array("Done"),
    "save": _object("Saved"),
    "load": _array("LoadedService"),
    "volume list": _array("VolumeLine"),
    "volume inspect": _array("VolumeLine"),
    "volume remove": _array("VolumeLine"),
    "cluster init": _object("Membership"),
    "cluster join": _object("Membership"),
    "cluster recover": _object("Membership"),
    "cluster status": _object("ClusterStatus"),
    "events": Result("lines", fields("Happened")),
    "top": Result("lines", fields("Load")),
    "enable": _array("Marked"),
    "disable": _array("Marked"),
    "firewall enable": _array("Marked"),
    "firewall disable": _array("Marked"),
    "kubernetes enable": _object("Marked"),
    "kubernetes disable": _object("Marked"),
    "restore": _array("Outcome"),
}

MAP = Result(
    "object",
    fields("MapState"),
    "This is `state` of `/api/state.json` and of each line of `/api/states.jsonl`, which niso web "
    "serves. It has no `--json`.",
)


def page_blocks() -> Iterator[Block]:
    """Return the contents of docs/reference/json.md."""
    yield Text(
        "With `--json` a command prints an array of objects (can be `[]`), an object, or one "
        "object per line. Times are RFC 3339 in UTC, sizes are in bytes, durations in seconds. "
        "Within a major version keys can be added, but are not removed and do not change their "
        "type. `--dry-run` always prints text."
    )
    yield Heading("Errors")
    yield Text("On stderr, one object per line. The exit status is the same as without `--json`.")
    yield Terms(
        (
            ("error: object", "the error"),
            ("error.message: string", "the message"),
            ("error.hint: string or null", "the next step"),
            ("error.key: string or null", "path of a manifest key, such as network.ports[1]"),
        )
    )
    for name, result in {**RESULTS, "web": MAP}.items():
        yield Heading(f"niso {name}")
        yield Text(
            {
                "array": "An array of objects.",
                "object": "An object.",
                "lines": "One object per line.",
            }[result.shape]
        )
        if result.note:
            yield Text(result.note)
        yield Terms(tuple(_rows(result.fields, "")))


def _rows(fields: tuple[Field, ...], above: str) -> Iterator[tuple[str, str]]:
    for field in fields:
        kind = {"array": "array of objects" if field.of else "array"}.get(field.type, field.type)
        description = "; ".join(
            text for text in (field.description, f"only {field.when}" if field.when else "") if text
        )
        yield f"{above}{field.name}: {kind}{' or null' if field.null else ''}", description
        if field.of and field.name != "other_family":  # same fields as its parent
            yield from _rows(
                field.of, f"{above}{field.name}{'[]' if field.type == 'array' else ''}."
            )
