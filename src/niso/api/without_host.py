"""Validate manifests and stacks, return schemas and convert compose files, without a host.

CI jobs and editors can use these functions on machines where niso does not run services.
"""

from __future__ import annotations

import os

from niso.base.errors import Conflict, Error, ErrorGroup, flatten
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.change import stacks, static_check
from niso.look import stack_members
from niso.look.session import path
from niso.manifest import image, json_schema, load, toml
from niso.manifest import stack as manifest_stack
from niso.manifest.stack import stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import niso


# --- manifests, stacks and schemas ----------------------------------------------------------------


class Valid(NamedTuple):
    """A file that passed validation."""

    path: str  # absolute path of the file
    kind: str  # manifest or stack
    name: str  # name of the service or stack
    services: tuple[str, ...]  # strings: the service, or the services of the stack
    hints: tuple[str, ...] = ()  # strings: what is valid, but probably not meant


def validate(*files: str | os.PathLike[str]) -> tuple[Valid, ...]:
    """Validate manifest.toml and stack.toml files, or the files in folders.

    This function does not need root, and ignores the state of this machine, such as its networks
    and programs. For each file, only the first TOML syntax error is reported. Raises Error, or
    ErrorGroup with the errors of all files.
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
    by_file: dict[str, list[Error]] = {}
    for error in errors:
        if error.file and error.key:
            by_file.setdefault(error.file, []).append(error)
    for file, in_file in by_file.items():
        try:
            with open(file, encoding="utf-8", errors="replace") as text:
                toml.locate(text.read(toml.MAX_BYTES), in_file)
        except (OSError, ValueError):  # a path that the error shows escaped cannot be opened
            continue


def _places(given: str) -> Iterator[str]:
    """Yield the manifest and stack files at a path. If there are none, yield PATH/manifest.toml."""
    if not os.path.isdir(given):
        yield os.path.abspath(given)
        return
    names = (load.FILE_NAME, manifest_stack.FILE_NAME)
    present = [name for name in names if os.path.exists(os.path.join(given, name))]
    for name in present or names[:1]:
        yield os.path.join(os.path.abspath(given), name)


def _valid(file: str) -> Valid:
    name = os.path.basename(file)
    if name != load.FILE_NAME and (
        name == manifest_stack.FILE_NAME
        or "stack" in toml.load(file, "manifest.toml or stack.toml")
    ):
        loaded = stack_members.load(file, together=stacks.refuse)
        if loaded.asks:
            loaded = stack(loaded)
        names = tuple(one.name for one in loaded.members)
        hints = tuple(_hints(one.loaded for one in loaded.members))
        return Valid(file, "stack", loaded.name, names, hints)

    manifest = load.load(file)
    static_check.refuse([manifest])
    spec = manifest.spec
    return Valid(file, "manifest", spec.name, (spec.name,), tuple(_hints([manifest])))


_STOP_SIGNALS = {"postgres": "INT", "nginx": "QUIT", "php-fpm": "QUIT", "httpd": "WINCH"}


def _hints(manifests: Iterable[load.Loaded]) -> Iterator[str]:
    """Yield hints about valid settings that are probably mistakes, such as a missing rootfs."""
    for loaded in manifests:
        spec = loaded.spec
        if (rootfs := static_check.missing_rootfs(loaded)) is not None:
            yield f"{spec.name}: the rootfs {rootfs} does not exist yet"
        program = os.path.basename(spec.program.entrypoint).rstrip("0123456789.")
        word = _STOP_SIGNALS.get(program)
        if word is not None and spec.program.stop_signal == "TERM":
            yield f'{spec.name}: {program} stops properly after {word}: stop_signal = "{word}"'
        network = spec.network
        if network.mode == "bridge" and not network.ports and (exposed := _exposed(loaded)):
            text = "network.ports would publish them"
            yield f"{spec.name}: its image exposes {exposed}; {text}"


def _exposed(loaded: load.Loaded) -> str:
    package = loaded.spec.manifest.get("package")
    text = package.get("oci") if isinstance(package, dict) else None
    if not isinstance(text, str):
        return ""
    return ", ".join(image.read(text, os.path.dirname(loaded.path)).ports)


def manifest_schema() -> dict[str, object]:
    """Return the JSON Schema of manifest.toml."""
    return json_schema.manifest_schema()


def stack_schema() -> dict[str, object]:
    """Return the JSON Schema of stack.toml."""
    return json_schema.stack_schema()


# --- compose files --------------------------------------------------------------------------------


FILE_NAME = "stack.toml"


def import_compose(
    file: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> niso.ImportedStack:
    """Convert a compose file to a stack.toml, and write the stack.toml into the folder ``output``.

    If ``output`` is None, no file is written. This function does not need root. Raises Conflict if
    the folder already has a stack.toml, NotFound, InvalidInput, and Error without PyYAML.
    """
    from niso.compose import compose_file

    target = None if output is None else path(output, "--output")
    made = compose_file.convert(path(file, "FILE"), target)
    return made if target is None else made._replace(file=_write(target, made.text))


def _write(folder: str, text: str) -> str:
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
