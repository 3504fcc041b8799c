"""Load and check a manifest, and return its `niso.plan.service_spec.ServiceSpec`."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

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
    """A manifest with the file that it came from."""

    spec: ServiceSpec
    path: str  # of the file, absolute
    folder: str  # of the package; "" for an empty one


def load(path: str, owners: Container[int] | None = None) -> Loaded:
    """Read and check the manifest at ``path``: a file, or the folder of a manifest.toml.

    With ``owners``, it must belong to one of these uids (`niso.manifest.toml.load`).

    Raises NotFound if there is none, Error if it cannot be read, InvalidInput if it is not
    valid TOML, and an ErrorGroup with one InvalidInput for each invalid value.
    Every message starts with the file's path.
    """
    path = place(path)
    return Loaded(checked(toml.load(path, FILE_NAME, owners), path), path, os.path.dirname(path))


def of_data(data: object, folder: str) -> Loaded:
    """Check a manifest given as data, as tomllib returns it; ``folder`` has its files.

    Messages refer to it as the manifest.toml of that folder.
    Raises NotFound if the folder does not exist, and ErrorGroup as `load` does.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.isdir(folder):
        raise NotFound("no such folder", "pass the package's folder", file=values.escaped(folder))
    tables = _tables(data)
    if not isinstance(tables, dict):
        reason = f"must be a table, not {type(data).__name__}"
        raise InvalidInput(reason, file=values.escaped(path))
    return Loaded(checked(tables, path), path, folder)


def _tables(value: object) -> object:
    """Return ``value`` with plain dicts and lists, as tomllib returns them."""
    if isinstance(value, Mapping):
        return {str(key): _tables(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tables(item) for item in value]
    return value


def place(path: str) -> str:
    """Return the absolute path of the manifest for ``path``, a file or a folder."""
    path = os.path.abspath(path)
    return os.path.join(path, FILE_NAME) if os.path.isdir(path) else path


def checked(data: dict[str, object], path: str) -> ServiceSpec:
    """Check the data that tomllib returned for the manifest at ``path``.

    Raises ErrorGroup as `load` does.
    """
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
