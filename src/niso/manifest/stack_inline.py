"""Check a service that is written in a stack.toml: ``[services.api]`` with a manifest's tables.

The service has the name of its table. Its paths are relative to the stack's folder. It has no
package, so that /app is empty, unless ``package.folder`` names one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from niso.base import files
from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import load as manifest
from niso.manifest import toml, validate, values
from niso.manifest.interpolate import Resolved
from niso.manifest.load import Loaded
from niso.manifest.manifest_tables import Manifest
from niso.manifest.stack_order import Condition

if TYPE_CHECKING:
    from typing import Any

VERSION = "0"
"""The version of a service in a stack that specifies none."""
_TABLES = "|".join(Manifest._fields)


class Package(NamedTuple):
    """The keys of a [services.NAME.package]."""

    name: str | None = None
    version: str = VERSION
    rootfs: str | None = None
    folder: str | None = None


class Needs(NamedTuple):
    """The key of a [services.NAME] that a manifest does not have."""

    depends_on: dict[str, Condition] | tuple[str, ...] = ()


def tables(services: object) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (key, name, content) of each [services.NAME] that is a table."""
    for name, table in services.items() if isinstance(services, dict) else ():
        if isinstance(table, dict):
            yield validate.join("services", name), name, table


def checked(
    path: str, key: str, name: str, table: Mapping[str, Any], owners: Collection[int] | None
) -> tuple[Loaded | None, list[InvalidInput], list[Error]]:
    """Check a service in the stack.toml at ``path``.

    Returns (its manifest, errors of the stack.toml, errors of its files of variables). The manifest
    is None if there is an error. ``key`` is that of the service; ``owners`` as for
    `stack_file.load`.
    """
    errors: list[InvalidInput] = []
    others: list[Error] = []
    if "depends_on" in table:
        errors += validate.walk({"depends_on": table["depends_on"]}, Needs, key)
    package = table.get("package", {})
    folder: str | None = None
    data = {part: value for part, value in table.items() if part != "depends_on"}
    if isinstance(package, dict):
        data["package"] = {"version": VERSION, **package, "name": name}
        data["package"].pop("folder", None)
        errors += _own_name(package, name, key)
        folder, wrong = _folder(path, f"{key}.package.folder", package.get("folder"), owners)
        errors += wrong
    try:
        spec = manifest.checked(Resolved(data, []), path, owners)
    except ErrorGroup as group:
        here = values.escaped(path)
        errors += [moved(error, key) for error in group.errors if error.file == here]
        others += [error for error in group.errors if error.file != here]
    if errors or others:
        return None, errors, others
    return Loaded(spec._replace(folder=folder), path, folder or ""), [], []


def _own_name(package: Mapping[str, Any], name: str, key: str) -> Iterable[InvalidInput]:
    if package.get("name", name) != name:
        reason = "is not the name of its table"
        yield values.wrong(f"{key}.package.name", package["name"], reason, "leave it out")


def _folder(
    path: str, key: str, folder: object, owners: Collection[int] | None
) -> tuple[str | None, list[InvalidInput]]:
    """Return the absolute path of a package's folder ("" for none), and its errors."""
    right, example = "a folder beside the stack.toml", '"./api"'
    if folder is None:
        return "", []
    if not isinstance(folder, str):
        return None, list(validate.walk({"folder": folder}, Package, key.rpartition(".")[0]))
    if not folder or not folder.isprintable():
        return None, [values.wrong(key, folder, "is not a valid path", right, example)]
    at = os.path.normpath(os.path.join(os.path.dirname(path), folder))
    if not os.path.isdir(at):
        reason = "is not a folder" if os.path.lexists(at) else "does not exist"
        return None, [values.wrong(key, folder, reason, right, example)]
    try:
        if owners is not None:
            how = files.changed_by_others(at, owners)
            toml.require_owner(how and f"the folder {how}", owners)
    except InvalidInput as error:
        return None, [InvalidInput(f"{folder}: {error.reason or error.message}", error.hint, key)]
    return at, []


def moved(error: Error, key: str, file: str = "") -> InvalidInput:
    """Convert a manifest's error to the key that it has in the stack, and to ``file``."""
    new = InvalidInput.of(error)
    new.file = file
    # it has no package.name, since its name is that of its table
    new.key = f"{key}.{error.key}" if error.key not in (None, "", "package.name") else key
    new.reason, new.right, hint = (
        re.sub(rf"(?<![\w.])(?=(?:{_TABLES})(?:\.[a-z_]|\]))", f"{key}.", text)
        for text in (error.reason, error.right, error.hint or "")
    )
    new.hint = f"remove {new.key}" if hint == f"remove {error.key}" else hint or None
    return new
