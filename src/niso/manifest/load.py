"""A manifest's file, checked, as the `niso.plan.service_spec.ServiceSpec` that the rest of niso works with."""

from __future__ import annotations

import os
from collections.abc import Mapping

from niso.base import convert
from niso.base.errors import ErrorGroup, InvalidInput, NotFound
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import build, toml, values
from niso.manifest.manifest_tables import Manifest
from niso.plan.service_spec import ServiceSpec

if TYPE_CHECKING:
    from typing import Any

FILE_NAME = "manifest.toml"


class Loaded(NamedTuple):
    """A manifest and where it came from: the absolute path of its file, and the folder, which is the package."""

    spec: ServiceSpec
    path: str
    folder: str


def load(path: str) -> Loaded:
    """Read and check the manifest at ``path``, a manifest's file or the folder that has a manifest.toml.

    Raises `NotFound` where there is none, `NisoError` where it cannot be read, `InvalidInput` where it is no TOML, and an
    `ErrorGroup` with one `InvalidInput` for each value that is wrong. Every message starts with the file's path.
    """
    path = place(path)
    return Loaded(checked(toml.load(path, FILE_NAME), path), path, os.path.dirname(path))


def of_data(data: object, folder: str) -> Loaded:
    """Check a manifest that is given as data, as tomllib would read it; ``folder`` has its files.

    Messages name it as the manifest.toml of that folder. Raises ErrorGroup as `load` does.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.isdir(folder):
        raise NotFound(f"{values.escaped(folder)}: no such folder", "give the folder of its files")
    tables = _tables(data)
    if not isinstance(tables, dict):
        raise InvalidInput(f"{values.escaped(path)}: must be a table, not {type(data).__name__}")
    return Loaded(checked(tables, path), path, folder)


def _tables(value: object) -> object:
    """Return ``value`` with plain dicts and lists, as tomllib makes them."""
    if isinstance(value, Mapping):
        return {str(key): _tables(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tables(item) for item in value]
    return value


def place(path: str) -> str:
    """The absolute path of the manifest that ``path``, a file or a folder, means."""
    path = os.path.abspath(path)
    return os.path.join(path, FILE_NAME) if os.path.isdir(path) else path


def checked(data: dict[str, object], path: str) -> ServiceSpec:
    """What tomllib made of the manifest at ``path``, checked. Raises ErrorGroup as `load` does."""
    from niso.manifest import validate

    manifest: Manifest | None = None
    parsed: dict[str, Any] = {}
    errors: list[InvalidInput] = []
    try:
        manifest = convert.convert(data, Manifest)
    except convert.Mismatch:
        errors += validate.walk(data, Manifest)
    errors += validate.rules(data, os.path.dirname(path), parsed)
    if manifest is None or errors:
        for error in errors:
            error.file = values.escaped(path)
        raise ErrorGroup([*errors])
    return build.spec(manifest, parsed)
