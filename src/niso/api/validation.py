"""Validate manifests and stacks without a host: for CI jobs and editors."""

from __future__ import annotations

import os

from niso.api.guard import path
from niso.base.errors import Error, ErrorGroup, flatten
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import load, stack_file, stack_prefix, toml

if TYPE_CHECKING:
    from collections.abc import Iterator


class Valid(NamedTuple):
    """A valid file."""

    path: str
    """absolute path of the file"""
    kind: str
    """manifest or stack"""
    name: str
    """name of the service or stack"""
    services: tuple[str, ...]
    """strings: the service, or the services of the stack"""


def validate(*files: str | os.PathLike[str]) -> tuple[Valid, ...]:
    """Validate manifest.toml and stack.toml files, or those in a folder.

    Does not need root, and ignores the state of this machine, such as its networks and programs.
    What an activation refuses on any machine is refused here too. Raises ErrorGroup or Error with
    all errors of all files.
    """
    valid: list[Valid] = []
    errors: list[Error] = []
    for file in files:
        for place in _places(path(file, "PATH")):
            try:
                valid.append(_valid(place))
            except Error as error:
                errors += flatten(error)
    _locate(errors)
    # a manifest has the same errors alone and in its stack
    distinct = list({error.message: error for error in errors}.values())
    if distinct:
        raise distinct[0] if len(distinct) == 1 else ErrorGroup(distinct)
    return tuple(valid)


def _locate(errors: list[Error]) -> None:
    """Set the line of each error of a file, where the file is readable."""
    from niso.manifest import toml_lines

    by_file: dict[str, list[Error]] = {}
    for error in errors:
        if error.file and error.key:
            by_file.setdefault(error.file, []).append(error)
    for file, in_file in by_file.items():
        try:
            with open(file, encoding="utf-8", errors="replace") as text:
                toml_lines.locate(text.read(toml.MAX_BYTES), in_file)
        except (OSError, ValueError):  # a path shown escaped cannot be opened
            continue


def _places(given: str) -> Iterator[str]:
    """Yield the files at a path.

    For a folder without any, that is its missing manifest.
    """
    if not os.path.isdir(given):
        yield os.path.abspath(given)
        return
    names = (load.FILE_NAME, stack_file.FILE_NAME)
    present = [name for name in names if os.path.exists(os.path.join(given, name))]
    for name in present or names[:1]:
        yield os.path.join(os.path.abspath(given), name)


def _valid(file: str) -> Valid:
    name = os.path.basename(file)
    if name != load.FILE_NAME and (
        name == stack_file.FILE_NAME or "stack" in toml.load(file, "manifest.toml or stack.toml")
    ):
        from niso.commands import stack

        loaded = stack.load(file)
        stack.refuse(loaded)
        if loaded.asks:
            loaded = stack_prefix.stack(loaded)
        return Valid(file, "stack", loaded.name, tuple(one.name for one in loaded.members))
    from niso.commands import static_check

    manifest = load.load(file)
    static_check.refuse([manifest])
    spec = manifest.spec
    return Valid(file, "manifest", spec.name, (spec.name,))


def manifest_schema() -> dict[str, object]:
    """Return the JSON Schema of manifest.toml."""
    from niso.manifest.json_schema import schema

    return schema()


def stack_schema() -> dict[str, object]:
    """Return the JSON Schema of stack.toml."""
    from niso.manifest.stack_schema import schema

    return schema()
