"""Build the JSON Schemas (draft 2020-12) of manifest.toml and stack.toml, for editors.

`niso schema` prints the schemas. The schema of manifest.toml is derived from `niso.manifest.keys`;
conditions between several keys are in this module. `niso.manifest.validate` rejects every file that
a schema rejects. It also checks conditions that a schema cannot express: that folders exist, that
names differ, and that no host port is used twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import NoneType

from niso.base import convert
from niso.base.named_tuples import TYPE_CHECKING
from niso.manifest import keys, process_keys, stack, validate

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of manifest.toml, as dicts and lists for `json.dumps`."""
    tables = definitions(keys.Manifest)
    for section, known in keys.SECTIONS.items():
        properties = tables[keys.TABLES[section].__name__]["properties"]
        for name, key in known.items():
            properties[name] |= {"description": key.about, **key.schema}
            if key.names is not keys.ANY:
                properties[name]["propertyNames"] = key.names.schema
            _set_rule(properties[name], key.rule.schema)
    tables["Service"] |= {
        "if": {"properties": {"kind": {"const": "job"}}, "required": ["kind"]},
        "then": {"properties": {"restart": {"const": "no"}}},
        "else": {"properties": {"timeout": False, "schedule": False}},
    }
    tables["Manifest"]["not"] = {
        "properties": {
            "service": {"properties": {"kind": {"const": "job"}}, "required": ["kind"]},
        },
        "required": ["service", "healthcheck"],
    }
    # an image has an entrypoint
    tables["Manifest"]["required"].remove("binary")
    tables["Binary"]["required"] = []
    has_image = {"properties": {"package": {"required": ["oci"]}}, "required": ["package"]}
    needs_program = {"properties": {"binary": {"required": ["entrypoint"]}}, "required": ["binary"]}
    tables["Manifest"] |= {"if": has_image, "else": needs_program}
    network = tables["Network"]
    network["not"] = {"required": ["network", "networks"]}
    network["allOf"] = [_mode(mode, without) for mode, without in validate.WITHOUT.items()]
    tables["Healthcheck"]["oneOf"] = [{"required": [kind]} for kind in process_keys.KINDS]
    is_tmpfs = {"properties": {"tmpfs": {"const": True}}, "required": ["tmpfs"]}
    tables["Volume"] |= {
        "if": is_tmpfs,
        "then": {"properties": {"host": False}},
        "else": {"properties": {"size": False}},
        "dependentRequired": {"mode": ["host"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso manifest.toml",
        "$ref": "#/$defs/Manifest",
        "$defs": tables,
    }


def _mode(mode: str, without: list[str]) -> dict[str, Any]:
    needs: dict[str, Any] = {"properties": {"mode": {"const": mode}}}
    if mode != "bridge":
        needs["required"] = ["mode"]
    then: dict[str, Any] = {"properties": dict.fromkeys(without, False)}
    if mode == "share":
        then["required"] = ["share"]
    return {"if": needs, "then": then}


def definitions(table: Any) -> dict[str, Any]:
    """Return {class name: JSON Schema} for a table's class and for the tables nested in it."""
    known = convert.fields(table)
    properties = {name: _kind(expected) for name, expected in known.items()}
    for name, default in table._field_defaults.items():
        if default not in (None, (), {}) and not convert.is_table(default):
            properties[name]["default"] = default
    tables = {
        table.__name__: {
            "title": table.__name__,
            "type": "object",
            "properties": properties,
            "required": convert.required(table),
            "additionalProperties": False,
        }
    }
    for expected in known.values():
        for inner in _tables(expected):
            tables |= definitions(inner)
    return tables


def _tables(expected: Kind) -> Iterator[Any]:
    for inside in expected.values():
        if convert.is_table(inside):
            yield inside
        elif isinstance(inside, dict):
            yield from _tables(inside)


def _kind(expected: Kind) -> dict[str, Any]:
    """Return the JSON Schema of a value with one of the types in ``expected``, except NoneType."""
    choices = [_choice(form, inside) for form, inside in expected.items() if form is not NoneType]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _choice(form: type, inside: Any) -> dict[str, Any]:
    if convert.is_table(inside):
        return {"$ref": f"#/$defs/{inside.__name__}"}
    if form is list:
        return {"type": "array", "items": _kind(inside)}
    if form is dict:
        return {"type": "object", "additionalProperties": _kind(inside)}
    types = {str: "string", bool: "boolean", int: "integer"}
    return {"enum": sorted(inside)} if inside else {"type": types[form]}


def _set_rule(field: dict[str, Any], rule: Mapping[str, Any]) -> None:
    """Add the conditions ``rule`` to the JSON Schema ``field``, or to the schema of its items."""
    for choice in field.get("anyOf", [field]):
        items = {"array": "items", "object": "additionalProperties"}.get(choice.get("type"))
        if items:
            _set_rule(choice[items], rule)
        elif "enum" in rule:
            choice.pop("type")
            choice["enum"] = rule["enum"]
        elif "pattern" in rule:  # a text with a variable matches any pattern
            choice["pattern"] = rf"\$\{{|{rule['pattern']}"
        else:
            choice.update(rule)


_OWN = ("Manifest", "Package", "Binary", "Service", "Healthcheck", "Network")


def stack_schema() -> dict[str, Any]:
    """Return the JSON Schema of stack.toml, as dicts and lists for `json.dumps`.

    A [[service]] has the keys of a manifest's [network] directly. Its other tables override single
    keys of the package's manifest, so none of their keys is required.
    """
    tables: dict[str, Any] = manifest_schema()["$defs"]
    whole = _inline(tables)
    for table in ("Binary", "Healthcheck"):
        for condition in ("required", "oneOf"):
            tables[table].pop(condition, None)
    for condition in ("if", "then", "else"):
        tables["Service"].pop(condition)
    manifest, network = tables.pop("Manifest"), tables.pop("Network")
    own = definitions(stack.StackServiceKeys)["StackServiceKeys"]
    label = tables.pop("Package")["properties"]["name"]["pattern"]
    own["properties"]["name"]["pattern"] = label
    head = definitions(stack.Head)["Head"]
    head["properties"]["name"]["pattern"] = label
    tables["StackService"] = {
        "title": "Service of a stack",
        "type": "object",
        "properties": _described(stack.StackServiceKeys, own["properties"])
        | network["properties"]
        | {name: manifest["properties"][name] for name in stack.OVERRIDES},
        "required": own["required"],
        "additionalProperties": False,
        "not": network["not"],
    }
    made = definitions(stack.Network)["Network"]
    tables["StackNetwork"] = made | {"properties": _described(stack.Network, made["properties"])}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso stack.toml",
        "type": "object",
        "properties": {
            "stack": {
                "type": "object",
                "description": "The stack.",
                "properties": _described(stack.Head, head["properties"]),
                "required": head["required"],
                "additionalProperties": False,
            },
            "service": {
                "type": "array",
                "description": "Services of the stack.",
                "items": {"$ref": "#/$defs/StackService"},
                "minItems": 1,
            },
            "services": {
                "type": "object",
                "description": "Services by name, each with the content of a manifest.",
                "propertyNames": {"pattern": label},
                "additionalProperties": {"$ref": "#/$defs/InlineManifest"},
            },
            "networks": {
                "type": "object",
                "description": "Networks that the stack makes.",
                "additionalProperties": {"$ref": "#/$defs/StackNetwork"},
            },
        },
        "required": ["stack"],
        "anyOf": [
            {"required": ["service"]},
            {"required": ["services"], "properties": {"services": {"minProperties": 1}}},
        ],
        "additionalProperties": False,
        "$defs": tables | whole,
    }


def _inline(tables: dict[str, Any]) -> dict[str, Any]:
    """Return {class name: JSON Schema} for [services.NAME], which requires fewer keys. ``tables``
    are the JSON Schemas of a manifest's tables by class name.
    """
    text = json.dumps({f"Inline{name}": tables[name] for name in _OWN})
    for name in _OWN:
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/Inline{name}"')
    whole: dict[str, Any] = json.loads(text)
    needs = definitions(stack.Needs)["Needs"]["properties"]
    manifest, package = whole["InlineManifest"], whole["InlinePackage"]
    manifest["properties"] |= _described(stack.Needs, needs)
    manifest["required"].remove("package")
    folder = definitions(stack.Package)["Package"]["properties"]["folder"]
    package["properties"] |= _described(stack.Package, {"folder": folder})
    package["required"] = []
    package["properties"]["rootfs"]["description"] = (
        "Folder beside this file, or an absolute path, which several services can share: the root "
        "file system. niso never writes to it."
    )
    return whole


def _described(table: type, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        name: field | {"description": stack.ABOUT[f"{table.__name__}.{name}"]}
        for name, field in properties.items()
    }
