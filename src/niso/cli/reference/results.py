"""Generate the reference of --json from the result types of the API and their docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import niso
from niso.api.as_json import JOINED, KEYS, PYTHON_ONLY
from niso.base.lite_typing import NamedTuple
from niso.cli.reference.document import Block, Heading, Terms, Text

ONLY = "; only "
"""Separates the description of a field from the condition for its presence."""

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


def fields(module: str, name: str) -> tuple[Field, ...]:
    """Return the JSON fields of a result, a class of ``module`` (in full, or below `niso.api`).

    They come from its annotations and the docstrings below them.
    """
    source = importlib.import_module(module if module.startswith("niso.") else f"niso.api.{module}")
    tree = ast.parse(inspect.getsource(source))
    defined = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None
    )
    if defined is None:  # of another module
        return fields(getattr(niso, name).__module__, name)
    result: list[Field] = []
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
            result += of
            continue
        after = defined.body[place + 1] if place + 1 < len(defined.body) else None
        description, _, when = _text(after).partition(ONLY)
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
    return text if text.isidentifier() and text[0].isupper() and text != "Any" else ""


def _text(line: ast.stmt | None) -> str:
    if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
        return " ".join(str(line.value.value).split())
    return ""


def _array(module: str, name: str) -> Result:
    return Result("array", fields(module, name))


def _object(module: str, name: str) -> Result:
    return Result("object", fields(module, name))


RESULTS: dict[str, Result] = {
    "activate": _array("outcomes", "Outcome"),
    "deactivate": _array("outcomes", "Done"),
    "restart": _array("outcomes", "Done"),
    "remove": _array("outcomes", "Done"),
    "ps": Result(
        "array",
        fields("service_views", "ServiceLine"),
        "With --all-hosts the keys are service, host, status, address, and ports (strings).",
    ),
    "check": _array("validation", "Valid"),
    "import": _object("compose_files", "ImportedStack"),
    "ps --all-hosts": _array("cluster_views", "ClusterLine"),
    "inspect": _object("service_views", "Service"),
    "kill": _array("service_results", "Signalled"),
    "port-forward": _object("service_results", "Forwarded"),
    "net attach": _object("host_attachments", "Attachment"),
    "net detach": _array("host_attachments", "Changed"),
    "net gc": _array("host_attachments", "Changed"),
    "net apply": _array("host_attachments", "Changed"),
    "net create": _object("host_networks", "Network"),
    "net list": _array("host_networks", "NetworkLine"),
    "net inspect": _object("host_networks", "Network"),
    "net remove": _array("host_networks", "RemovedNetwork"),
    "net ports": _array("host_networks", "PublishedPort"),
    "net ports --all-hosts": _array("cluster_views", "ClusterPort"),
    "net rules": _object("host_networks", "Rules"),
    "net ping": _object("packets", "Pong"),
    "net explain": _object("packets", "Explanation"),
    "net stats": Result(
        "array",
        fields("packets", "Stats"),
        "A counter is null if the kernel lacks the object that counts.",
    ),
    "net flows": Result(
        "array", fields("flow_views", "Flow"), "With -f, one object per line as it happens."
    ),
    "net trace": _object("captures", "Traced"),
    "net learn": _array("learning", "LearnedPolicy"),
    "net names": _object("host_networks", "HostNames"),
    "net refresh": _array("outside_views", "OutsideName"),
    "net policy show": _array("policy_views", "PolicyEntry"),
    "net policy test": _array("policy_views", "PolicyEffect"),
    "net log": Result("lines", fields("packets", "Drop")),
    "net check": _array("upkeep", "Finding"),
    "net repair": Result("object", (*fields("upkeep", "Repaired"), *fields("upkeep", "Swept"))),
    "stack up": _object("host_stacks", "StackUp"),
    "stack down": _array("outcomes", "Done"),
    "stack status": _array("service_views", "ServiceLine"),
    "stack ps": _array("service_views", "ServiceLine"),
    "stack restart": _array("outcomes", "Done"),
    "cluster init": _object("host_cluster", "Membership"),
    "cluster join": _object("host_cluster", "Membership"),
    "cluster status": _object("host_cluster", "ClusterStatus"),
    "events": Result("lines", fields("event_views", "Happened")),
    "top": Result("lines", fields("top_views", "Load")),
    "enable": _array("host_services", "Marked"),
    "disable": _array("host_services", "Marked"),
    "kubernetes": _object("host_kubernetes", "Marked"),
    "restore": _array("outcomes", "Outcome"),
}

MAP = Result(
    "object",
    fields("map_views", "MapState"),
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
