"""Build the JSON Schema of stack.toml from the tables of stack and manifest."""

from __future__ import annotations

import json

from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import json_schema, stack_file, stack_inline

if TYPE_CHECKING:
    from typing import Any

_OWN = ("Manifest", "Package", "Binary", "Service", "Healthcheck", "Network")
_DESCRIPTIONS = {
    "name": "Name of the service; replaces the name in its manifest.",
    "prefix": "Whether services and networks are named after the stack: shop-db for db, whose "
    "hostname stays db. If unset, a new stack has the prefix if another stack has one of its "
    "services' names.",
    "package": "Folder with a manifest.toml, relative to this file.",
    "depends_on": "Services of the stack that must have started, be healthy or, of a job, be "
    "completed before this one starts.",
    "subnet": "Subnet; an array of one IPv4 and one IPv6 subnet. If unset, the next free /24.",
    "ipv6": "Whether the network also has a unique local IPv6 /64.",
    "internal": "Whether the network is isolated from everything but the host.",
    "gateway": "Address of the bridge; an array of one for each subnet. If unset, the first one.",
    "observe": "Whether the kernel remembers its flows.",
    "span": "Whether the network spans the hosts of the cluster that this host is in.",
    "allow_public": "Whether a subnet can be a prefix of the Internet.",
    "mtu": "Maximum packet size in bytes. If unset, that of the default route.",
}


def schema() -> dict[str, Any]:
    """Return the schema as plain data, for `json.dumps`.

    A [[service]] has the keys of a manifest's [network] directly. Its other tables override single
    keys of the manifest, so they require none.
    """
    tables: dict[str, Any] = json_schema.schema()["$defs"]
    whole = _inline(tables)
    for table in ("Binary", "Healthcheck"):
        for condition in ("required", "oneOf"):
            tables[table].pop(condition, None)
    for condition in ("if", "then", "else"):
        tables["Service"].pop(condition)
    manifest, network = tables.pop("Manifest"), tables.pop("Network")
    own = json_schema.definitions(stack_file.Own)["Own"]
    label = tables.pop("Package")["properties"]["name"]["pattern"]
    own["properties"]["name"]["pattern"] = label
    tables["StackService"] = {
        "title": "Service of a stack",
        "type": "object",
        "properties": _described(own["properties"])
        | network["properties"]
        | {name: manifest["properties"][name] for name in stack_file.TABLES},
        "required": own["required"],
        "additionalProperties": False,
        "not": network["not"],
    }
    made = json_schema.definitions(stack_file.Network)["Network"]
    tables["StackNetwork"] = made | {"properties": _described(made["properties"])}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso stack.toml",
        "type": "object",
        "properties": {
            "stack": {
                "type": "object",
                "description": "The stack.",
                "properties": {
                    "name": {
                        "type": "string",
                        "pattern": label,
                        "description": "Name of the stack, unique on the host.",
                    },
                    "prefix": {"type": "boolean", "description": _DESCRIPTIONS["prefix"]},
                },
                "required": ["name"],
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
    """Return the definitions of [services.NAME]: a complete manifest, named by its table.

    Definitions that a [[service]] relaxes are repeated.
    """
    text = json.dumps({f"Inline{name}": tables[name] for name in _OWN})
    for name in _OWN:
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/Inline{name}"')
    whole: dict[str, Any] = json.loads(text)
    needs = json_schema.definitions(stack_inline.Needs)["Needs"]["properties"]
    manifest, package = whole["InlineManifest"], whole["InlinePackage"]
    manifest["properties"] |= _described(needs)
    manifest["required"].remove("package")
    package["properties"]["folder"] = {
        "type": "string",
        "description": "Folder that the service sees at /app, relative to this file. If unset, "
        "/app is empty.",
    }
    package["required"] = []
    package["properties"]["rootfs"]["description"] = (
        "Folder beside this file: the service's root file system. niso never writes to it."
    )
    return whole


def _described(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        name: field | {"description": _DESCRIPTIONS[name]} for name, field in properties.items()
    }
