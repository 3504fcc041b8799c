"""Resolve the variables and relative paths of a stack.toml, and merge its keys into a manifest."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import cache

from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import interpolate, parse_health
from niso.manifest import load as manifest
from niso.manifest.interpolate import Resolved, Variables
from niso.manifest.load import Outer
from niso.manifest.manifest_tables import Manifest

if TYPE_CHECKING:
    from typing import Any


def resolve(
    data: dict[str, Any],
    path: str,
    owners: Collection[int] | None,
    tables: Mapping[type, tuple[str, ...]],
    top: type,
) -> tuple[Resolved, Outer]:
    """Substitute the variables of the stack.toml at ``path``.

    Returns (data with absolute paths, function that returns the variables). ``tables`` maps the
    tables that define the keys of a [[service]] to those keys; ``top`` defines the other keys of
    the file. .env next to the file is read if a variable is used. Raises Error and InvalidInput if
    .env cannot be used.
    """
    from niso.manifest import env_files
    from niso.manifest.validate import join

    folder = os.path.dirname(path)
    outer = cache(lambda: env_files.variables(folder, owners).values)
    uses = interpolate.has_variables(data)
    own = env_files.variables(folder, owners) if uses else Variables({}, "")
    services, inline = data.get("service"), data.get("services")
    more = {name: value for name, value in data.items() if name not in ("service", "services")}
    whole = interpolate.resolve(more, own, {dict: top})
    errors = list(whole.errors)
    result = {**data, **whole.data}
    if isinstance(services, list):
        items = []
        for index, written in enumerate(services):
            key, item = f"service[{index}]", written
            if isinstance(written, dict):
                service = manifest.with_paths(_service(written, own, tables, key), folder, key)
                errors, item = errors + service.errors, service.data
            items.append(item)
        result["service"] = items
    if isinstance(inline, dict):
        whole_ones = {}
        for name, written in inline.items():
            key, whole_ones[name] = join("services", name), written
            if isinstance(written, dict):
                filled = interpolate.resolve(written, own, {dict: Manifest}, key)
                service = manifest.with_paths(filled, folder, key)
                errors, whole_ones[name] = errors + service.errors, service.data
        result["services"] = whole_ones
    return Resolved(result, errors), outer


def _service(
    item: dict[str, Any],
    variables: Variables,
    tables: Mapping[type, tuple[str, ...]],
    key: str,
) -> Resolved:
    """Substitute the variables of a [[service]]."""
    data, errors = dict(item), []
    for table, names in tables.items():
        part = {name: item[name] for name in names if name in item}
        resolved = interpolate.resolve(part, variables, {dict: table}, key)
        data |= resolved.data
        errors += resolved.errors
    return Resolved(data, errors)


_INSTEAD = {"network": ("network", "networks"), "healthcheck": parse_health.KINDS}
"""Alternative keys of tables: a key in the stack replaces the other keys of its group in the
manifest."""


def laid_over(base: dict[str, Any], laid: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """Merge the keys of ``laid`` into ``base``, which has the form of ``table``.

    Tables in it are merged key by key.
    """
    choice = set(_INSTEAD.get(table, ()))
    gone = choice - laid.keys() if choice & laid.keys() else set()
    merged = {key: value for key, value in base.items() if key not in gone}
    for key, value in laid.items():
        under = merged.get(key, {})
        merged[key] = (
            laid_over(under, value, key)
            if isinstance(value, dict) and isinstance(under, dict)
            else value
        )
    return merged
