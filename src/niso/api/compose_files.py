"""Import files of other tools, without a host."""

from __future__ import annotations

import os

from niso.api.guard import path
from niso.base.errors import Conflict, Error
from niso.base.lite_typing import NamedTuple
from niso.importers import compose

FILE_NAME = "stack.toml"


class Missing(NamedTuple):
    """Something that was not converted."""

    service: str
    """the service in the compose file; empty for the file itself"""
    key: str
    """the key in the compose file; can be empty"""
    text: str
    """what it means, and what to do instead"""


class ImportedStack(NamedTuple):
    """A compose file as a stack."""

    stack: str
    """name of the stack"""
    services: tuple[str, ...]
    """strings: names of the services"""
    file: str | None
    """path of the stack.toml; null if none was written"""
    text: str
    """content of the stack.toml"""
    missing: tuple[Missing, ...]
    """what was not converted"""
    commands: tuple[str, ...]
    """strings: commands that fetch the root file systems, in the folder of the stack.toml"""


def import_compose(
    file: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> ImportedStack:
    """Convert a compose file to a stack.toml, and write it into the folder ``output``.

    Does not need root. Raises Conflict if the folder has a stack.toml, NotFound, InvalidInput, and
    Error without PyYAML.
    """
    target = None if output is None else path(output, "--output")
    made = compose.convert(path(file, "FILE"), target)
    commands = tuple(command for name, image in made.images for command in _fetch(name, image))
    missing = tuple(Missing(*gap) for gap in made.gaps)
    written = None if target is None else _write(target, made.text)
    return ImportedStack(made.stack, made.services, written, made.text, missing, commands)


def _fetch(service: str, image: str) -> list[str]:
    """Return commands that unpack an image into a service's root file system."""
    if not image:
        return []
    import shlex

    word, folder = shlex.quote(image), f"rootfs/{service}"
    return [
        f"skopeo copy docker://{word} oci:images/{service}:latest"
        f" && umoci raw unpack --image images/{service}:latest {folder}",
        f"mkdir -p {folder} && podman export $(podman create {word}) | tar -x -C {folder}",
    ]


def _write(folder: str, text: str) -> str:
    """Write the file, readable by its owner only since it may have passwords; return its path."""
    target = os.path.join(os.path.abspath(folder), FILE_NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        hint = "choose another folder with --output, or move the file away"
        raise Conflict("already exists", hint, file=target) from None
    except OSError as error:
        raise Error(f"cannot be written: {os.strerror(error.errno or 0)}", file=target) from error
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        os.unlink(target)
        raise Error(f"cannot be written: {os.strerror(error.errno or 0)}", file=target) from error
    return target
