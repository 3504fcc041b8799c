"""Load and check a manifest, and return its `niso.plan.specs.ServiceSpec`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping

from niso.base import convert
from niso.base.errors import Error, ErrorGroup, InvalidInput, NotFound
from niso.base.files import file_changed_by_others, link_of_others
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.text import escaped, shown
from niso.manifest import image, toml, validate, values
from niso.manifest import variables as manifest_variables
from niso.manifest.keys import TABLES, Manifest, spec
from niso.manifest.values import join
from niso.manifest.variables import Resolved, has_variables, read, resolve
from niso.plan.specs import ServiceSpec

if TYPE_CHECKING:
    from typing import Any


FILE_NAME = "manifest.toml"
Outer = Callable[[], Mapping[str, str]]
"""A function without arguments that returns the variables of a stack, by name."""


class Loaded(NamedTuple):
    """A valid manifest, and the file that it was read from."""

    spec: ServiceSpec
    path: str  # absolute path of the file
    folder: str  # folder of the package; "" for an empty package


def load(path: str, owners: Collection[int] | None = None) -> Loaded:
    """Read and check a manifest. ``path`` is the file, or a folder with a manifest.toml.

    If ``owners`` (uids) are given, only these users may be able to change the file. Raises NotFound
    if the file does not exist, Error if it cannot be read, InvalidInput if it is not valid TOML,
    and an ErrorGroup with one InvalidInput for each invalid value. Messages begin with the path.
    """
    path = place(path)
    data = prepared(toml.load(path, FILE_NAME, owners), path, owners)
    return Loaded(checked(data, path, owners), path, os.path.dirname(path))


def of_data(data: object, folder: str) -> Loaded:
    """Check a manifest that is given as dicts and lists, in the form that tomllib returns.

    ``folder`` is the package's folder. Error messages refer to the manifest.toml in this folder.
    Raises NotFound if the folder does not exist, and ErrorGroup as `load` does.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.isdir(folder):
        raise NotFound("no such folder", "pass the package's folder", file=escaped(folder))
    try:
        tables = _tables(data)
    except RecursionError:
        raise InvalidInput("nested too deeply", file=escaped(path)) from None
    except UnicodeEncodeError as error:
        reason = f"{shown(error.object)} is not valid UTF-8"
        raise InvalidInput(reason, file=escaped(path)) from None
    if not isinstance(tables, dict):
        reason = f"must be a table, not {type(data).__name__}"
        raise InvalidInput(reason, file=escaped(path))
    toml.write_dates(tables)
    return Loaded(checked(prepared(tables, path), path), path, folder)


def _tables(value: object) -> object:
    """Copy mappings and sequences to new dicts and lists at all depths. Raises RecursionError, and
    UnicodeEncodeError for a string with a lone surrogate.
    """
    if isinstance(value, Mapping):
        return {_tables(str(key)): _tables(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tables(item) for item in value]
    if isinstance(value, str):
        value.encode()
    return value


def place(path: str) -> str:
    """Return the absolute path of a manifest.toml. ``path`` is the file or its folder."""
    path = os.path.abspath(path)
    return os.path.join(path, FILE_NAME) if os.path.isdir(path) else path


def prepared(
    data: dict[str, Any],
    path: str,
    owners: Collection[int] | None = None,
    outer: Outer | None = None,
) -> Resolved:
    """Substitute the variables in a manifest's data, and make its relative paths absolute.

    ``path`` is the manifest's file. ``outer`` returns the variables of the stack that contains the
    service. The stack's variables have precedence over those in the file .env next to the manifest.
    Raises Error and InvalidInput if this .env cannot be used.
    """
    folder = os.path.dirname(path)
    resolved = Resolved(data, [])
    if has_variables(data):
        variables = manifest_variables.variables(folder, owners, outer() if outer else None)
        resolved = resolve(data, variables, {dict: Manifest})
    return with_paths(resolved, folder, owners)


def with_paths(
    resolved: Resolved, folder: str, owners: Collection[int] | None, base: str = ""
) -> Resolved:
    """Make the relative paths in env_file, volumes and secrets of a manifest's data absolute.

    Paths are relative to ``folder``, and must not lead out of it. The host path of a volume is
    relative only if it begins with ``./``. ``base`` is the data's key path in its file. If
    ``owners`` (uids) are given, symbolic links in the path of an env_file must belong to them.
    """
    data, errors = resolved.data, list(resolved.errors)
    service = data.get("service")
    if isinstance(service, dict) and "env_file" in service:
        key = f"{join(base, 'service')}.env_file"
        files, wrongs = _env_files(service["env_file"], key, folder, owners)
        errors += wrongs
        data = {**data, "service": {**service, "env_file": files}}
    for table, key in (("volumes", "host"), ("secrets", "file")):
        written = data.get(table)
        tables: dict[str, Any] = written if isinstance(written, dict) else {}
        placed = {}
        for name, keys in tables.items():
            text = keys.get(key) if isinstance(keys, dict) else None
            # a relative path of a volume begins with ./
            text = None if table == "volumes" and not f"{text}/".startswith("./") else text
            if isinstance(text, str) and not text.startswith("/"):
                path = f"{join(join(base, table), name)}.{key}"
                try:
                    placed[name] = {**keys, key: values.path_below(text, path, folder)}
                except InvalidInput as error:
                    errors.append(error)
        if placed:
            data = {**data, table: {**tables, **placed}}
    return Resolved(data, errors)


def _env_files(
    written: Any, key: str, folder: str, owners: Collection[int] | None
) -> tuple[Any, list[InvalidInput]]:
    """Resolve the paths in ``written``, the value of env_file. Return (new value, errors)."""
    errors: list[InvalidInput] = []

    def placed(file: Any, at: str) -> Any:
        if not isinstance(file, str):
            return file
        try:
            if not file.startswith("/"):
                return values.path_below(file, at, folder)
            if reason := values.path_reason(file):
                raise values.wrong(at, file, reason, "a path of the host")
            if owners is not None:
                try:
                    link = link_of_others(file, owners)
                except OSError:  # no such file
                    link = None
                toml.require_owner(link, owners)
            return os.path.realpath(file)
        except InvalidInput as error:
            error.key, error.value = error.key or at, error.value or shown(file)
            errors.append(error)
            return file

    if isinstance(written, list):
        return [placed(one, f"{key}[{number}]") for number, one in enumerate(written)], errors
    return placed(written, key), errors


def checked(resolved: Resolved, path: str, owners: Collection[int] | None = None) -> ServiceSpec:
    """Check a manifest, read its environment files, and return its spec. Raises ErrorGroup."""
    manifest: Any = None
    parsed: dict[str, Any] = {}
    errors: list[Error] = []
    others: list[Error] = []  # errors about other files, such as env_file
    data, from_image, images, refused = image.applied(resolved.data, os.path.dirname(path), owners)
    for one in refused:
        (others if one.file else errors).append(one)
    try:
        manifest = convert.convert(data, Manifest)
    except ValueError:
        errors += validate.walk(data, Manifest)
    errors += validate.rules(data, os.path.dirname(path), parsed)
    errors = resolved.fresh(errors)
    files = manifest.service.env_file if manifest is not None else ()
    environment = dict(from_image)
    files = (files,) if isinstance(files, str) else files
    for file in files:
        if values.absolute_reason(file):
            continue  # an error that `with_paths` has found
        try:
            environment |= read(file, os.environ, owners)
        except Error as error:
            others.append(error)
    errors += _secrets(manifest, owners) if manifest is not None and not errors else ()
    if manifest is None or errors or others:
        for one in errors:
            one.file = escaped(path)
        raise ErrorGroup([*errors, *others])
    if environment:
        manifest = manifest._replace(environment={**environment, **manifest.environment})
    beside = os.path.join(os.path.dirname(path), ".env")
    made = spec(manifest, parsed)
    apart = tuple(path for path in (beside, *files, *images) if os.path.lexists(path))
    return made._replace(process=made.program._replace(apart=apart))


def _secrets(manifest: Any, owners: Collection[int] | None) -> Iterator[InvalidInput]:
    """Yield an error for each secret that is no regular file, or that other users can change. No
    user but ``owners`` (uids) may be able to change a secret; None allows all users. A missing file
    is no error, because it may be created before the service is activated.
    """
    for name, secret in manifest.secrets.items():
        try:
            info = os.stat(secret.file)
            if not stat.S_ISREG(info.st_mode):
                raise InvalidInput("is not a regular file")
            if owners is not None:
                how = file_changed_by_others(secret.file, owners) or ""
                how = how.removeprefix("it ").replace("its folder", "is in a folder that", 1)
                toml.require_owner(how or None, owners)
        except InvalidInput as error:
            error.key = f"{join('secrets', name)}.file"
            error.value = shown(secret.file)
            yield error
        except (OSError, ValueError):
            continue


def written(spec: ServiceSpec) -> dict[str, Any]:
    """Convert a ServiceSpec back to the tables of a manifest. Default values are left out."""
    defaults = convert.plain(Manifest(TABLES["package"]("", ""), TABLES["binary"]("")))
    defaults["healthcheck"] = convert.plain(TABLES["healthcheck"]())
    volume = convert.plain(TABLES["volumes.*"](""))
    data: dict[str, Any] = {}
    for name, table in spec.manifest.items():
        if name == "volumes" and isinstance(table, Mapping):
            data[name] = {one: _changed(keys, volume) for one, keys in table.items()}
        elif isinstance(table, Mapping):
            data[name] = _changed(table, defaults[name])
    own = data.get("service", {})
    deploy = spec.program.deploy
    if deploy is not None and "replicas" in own:
        own["replicas"] = deploy.replicas  # niso scale changes only this number
    own.pop("env_file", None)  # its variables are in the environment
    data["package"].pop("oci", None)  # the values of its image are in the tables
    if spec.program.kind == "job":  # always "no", which a manifest leaves out
        own.pop("restart", None)
    return data


def _changed(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without the values that equal ``defaults``. Escapes ``${`` in strings."""
    result: dict[str, Any] = {}
    for name, value in table.items():
        default = defaults.get(name)
        if value is None or (name in defaults and value == default):
            continue
        inside = default if isinstance(default, Mapping) else {}
        result[name] = _changed(value, inside) if isinstance(value, Mapping) else _literal(value)
    return result


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return value
