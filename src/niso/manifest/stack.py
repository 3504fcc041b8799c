"""Load stack.toml, which declares services and networks, and check it with its manifests.

A [[service]] refers to a package, and overrides keys of the package's manifest.toml. Keys of the
manifest's [network] are written directly in [[service]]. Keys of its other tables are written in
subtables with the same names. A [services.NAME] is a complete manifest of the service NAME. Its
paths are relative to the stack's folder.

Services are ordered by their dependencies. With a prefix, the names of services and networks begin
with the stack's name: for example, ``db`` of the stack ``shop`` becomes the service ``shop-db``
with the hostname ``db``.
"""

from __future__ import annotations

import graphlib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import cache

from niso.base import convert
from niso.base.errors import Error, ErrorGroup, InvalidInput, flatten
from niso.base.files import changed_by_others
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple, named_tuple
from niso.base.names import DEFAULT_NETWORK
from niso.base.text import escaped, shown
from niso.manifest import load as manifest_load
from niso.manifest import process_keys, toml, validate, values
from niso.manifest import variables as manifest_variables
from niso.manifest.keys import TABLES, Key, Manifest
from niso.manifest.load import Loaded, Outer, prepared, with_paths
from niso.manifest.values import join
from niso.manifest.variables import Resolved, has_variables
from niso.plan.records import Peer, Policy
from niso.plan.specs import ServiceSpec
from niso.plan.subnets import NetworkRequest

if TYPE_CHECKING:
    from typing import Any, Literal

    Condition = Literal["started", "healthy", "completed"]


# --- the file -------------------------------------------------------------------------------------


FILE_NAME = "stack.toml"

NETWORK_KEYS = TABLES["network"]._fields
"""The keys of a manifest's [network]. A [[service]] has them directly."""
OVERRIDES = tuple(name for name in Manifest._fields if name not in ("package", "network"))
"""The tables of a manifest that a [[service]] can have, such as [service.environment]."""


CONDITIONS = ("started", "healthy", "completed")
_CHOICE = convert.choice(*CONDITIONS)
_NEEDS: Any = dict[str, _CHOICE] | tuple[str, ...]  # type: ignore[valid-type]
ABOUT: dict[str, str] = {}
"""The descriptions of the keys that only stack.toml has, for the JSON Schema and the reference."""


def _table(title: str, *keys: Key) -> Any:
    """Build the named tuple class of a table, and add the descriptions of its keys to `ABOUT`."""
    ABOUT.update({f"{title}.{key.name}": key.about for key in keys})
    types = {key.name: key.type for key in keys}
    return named_tuple(
        title, types, {key.name: key.default for key in keys if key.default is not ...}
    )


Head = _table(
    "Head",
    Key("name", str).described(
        "Name of the stack, unique on the host; same rules as for services."
    ),
    Key("prefix", bool | None, None).described(
        "Whether services and networks are named after the stack: shop-db for db, whose "
        "hostname stays db. Default: as the stack has them already; a new stack has the prefix if "
        "another stack has one of its services' names."
    ),
)
# the options of `niso net create`
Network = _table(
    "Network",
    Key("subnet", str | tuple[str, ...], ()).described(
        "A subnet, or an array of one per family. Default: the next free /24 of the pool."
    ),
    Key("ipv6", bool, False).described(
        "Whether to add an IPv6 subnet: a /64 of the host's unique local prefix."
    ),
    Key("internal", bool, False).described(
        "Whether to forward nothing out; the host and published ports are reachable."
    ),
    Key("gateway", str | tuple[str, ...], ()).described(
        "The bridge's address, or an array of one per family. Default: the first of the subnet."
    ),
    Key("mtu", int | None, None).described(
        "MTU in bytes. Default: that of the default route's link."
    ),
    Key("allow_public", bool, False).described(
        "Whether a subnet can be a public prefix, which the host can then no longer reach."
    ),
    Key("observe", bool, True).described("Whether the kernel remembers its flows."),
    Key("span", bool, False).described(
        "Whether it spans the hosts of the cluster that this host is in."
    ),
    Key("multicast", bool, False).described(
        "Whether UDP multicasts and broadcasts pass between its services, as their policies allow."
    ),
)
_DEPENDS_ON = Key("depends_on", _NEEDS, ()).described(
    'Services that come first: a table of service = "started", "healthy" or, of a job, '
    '"completed"; or an array, which means started.'
)
# the keys of a [[service]] that a manifest does not have
StackServiceKeys = _table(
    "StackServiceKeys",
    Key("name", str).described(
        "Name of the service, instead of the package's; a package can be used several times."
    ),
    Key("package", str).described("A manifest.toml or its folder, relative to the stack.toml."),
    _DEPENDS_ON,
)
# the key of a [services.NAME] that a manifest does not have, and its table package
Needs = _table("Needs", _DEPENDS_ON)
VERSION = "0"
"""The version of a [services.NAME] that does not set package.version."""
Package = _table(
    "Package",
    Key("name", str | None, None),
    Key("version", str, VERSION),
    Key("rootfs", str | None, None),
    Key("oci", str | None, None),
    Key("folder", str | None, None).described(
        "Folder that the service sees at /app, relative to this file. If unset, /app is empty."
    ),
)
# a check of the whole file accepts a [[service]] with any keys: they are checked separately
_Blank = _table("_Blank")
_Whole = _table(
    "_Whole",
    Key("stack", Head),
    Key("service", tuple[_Blank, ...], ()),  # type: ignore[valid-type]
    Key("services", dict[str, _Blank], {}),  # type: ignore[valid-type]
    Key("networks", dict[str, Network], {}),  # type: ignore[valid-type]
)


class StackMember(NamedTuple):
    """A service of a stack, with its manifest and its dependencies."""

    key: str  # key path: service[1], or services.api for a service written in the stack
    loaded: Loaded  # its package's manifest with the stack's overrides
    overrides: Mapping[str, Any] | None  # None: the complete manifest is in the stack
    after: Mapping[str, Condition]  # service -> its required state before this one starts

    @property
    def name(self) -> str:
        return self.loaded.spec.name

    @property
    def has_healthcheck(self) -> bool:
        return self.loaded.spec.program.healthcheck is not None


class Stack(NamedTuple):
    """A valid stack.toml, together with the manifests of its services."""

    name: str
    path: str  # absolute path of the file
    networks: Mapping[str, NetworkRequest]
    members: tuple[StackMember, ...]  # each after its dependencies
    asks: bool | None = None  # the setting of prefix in the file, which `applies` uses
    prefix: str = ""  # prefix of the names of services and networks: shop-

    @property
    def file(self) -> str:
        """Return the path of the stack.toml in a form that a terminal can print."""
        return escaped(self.path)


class StackOutline(NamedTuple):
    """The name, services and dependencies of a stack.toml. Its other parts may be invalid."""

    name: str
    path: str
    after: Mapping[str, tuple[str, ...]]  # each service -> the services that it depends on
    asks: bool | None  # the setting of prefix in the file


Also = Callable[[NetworkRequest], Iterable[InvalidInput]]
"""A function that returns further errors of a network, whose keys have the right types. The errors
have complete key paths (``networks.backend.subnet``)."""


def place(path: str) -> str:
    """Return the absolute path of a stack.toml. ``path`` is the file or its folder."""
    path = os.path.abspath(path)
    is_file = path.endswith(".toml") and not os.path.isdir(path)
    return path if is_file else os.path.join(path, FILE_NAME)


def outline(path: str) -> StackOutline:
    """Read only the name, the services and the dependencies of a stack.toml.

    Raises NotFound if the file does not exist, Error if it cannot be read, and InvalidInput or an
    ErrorGroup if these parts are invalid.
    """
    path = place(path)
    data = toml.load(path, FILE_NAME)
    if has_variables(head := data.get("stack")):
        variables = manifest_variables.variables(os.path.dirname(path))
        resolved = manifest_variables.resolve({"stack": head}, variables, {dict: _Whole})
        if resolved.errors:
            raise ErrorGroup([_in_file(path, error) for error in resolved.errors])
        data |= resolved.data
    try:
        name, asks = convert.convert(data.get("stack"), Head)
        values.service_name(name, "stack.name")
    except ValueError:
        errors = validate.walk({"stack": data.get("stack", {})}, _Whole)
        own_errors = [error for error in errors if (error.key or "").startswith("stack")]
        raise ErrorGroup([_in_file(path, error) for error in own_errors]) from None
    except InvalidInput as error:
        raise _in_file(path, error) from None
    after: dict[str, tuple[str, ...]] = {}
    for _, keys in _tables(data.get("service")):
        if isinstance(own := keys.get("name"), str):
            after[own] = _names(keys.get("depends_on"))
    for _, own, keys in inline_tables(data.get("services")):
        after[own] = _names(keys.get("depends_on"))
    return StackOutline(name, path, after, asks)


def _names(needs: object) -> tuple[str, ...]:
    names = needs if isinstance(needs, dict | list) else ()
    return tuple(name for name in names if isinstance(name, str))


def load(
    path: str,
    owners: Collection[int] | None,
    also: Also = lambda _: (),
    together: Callable[[Stack], None] = lambda _: None,
) -> Stack:
    """Read and check a stack.toml and its manifests. ``path`` is the file or its folder.

    If ``owners`` (uids) are given, only these users may be able to change the files. ``also``
    returns further errors about a network. If each service is valid by itself, ``together`` is
    called to check all services together. All errors in the file and in the manifests are raised as
    one ErrorGroup. Each error names its file, key and value. Raises NotFound if the file does not
    exist, Error if it cannot be read, and InvalidInput if it is not valid TOML.
    """
    path = place(path)
    resolved, variables = resolve(toml.load(path, FILE_NAME, owners), path, owners)
    data = resolved.data
    name, asks, networks, wrong = _top(data, also)
    errors: list[Error] = [*wrong]  # those about other files, such as manifests, have a file
    items: dict[str, _Item] = {}
    members: list[StackMember] = []
    for key, keys in _tables(data.get("service")):
        own = {name: value for name, value in keys.items() if name in StackServiceKeys._fields}
        known = (*NETWORK_KEYS, *OVERRIDES)
        overrides = {name: value for name, value in keys.items() if name in known}
        errors += [*validate.walk(own, StackServiceKeys, key), *_unknown(keys, key)]
        here = item(own, key)
        if wrong_name := _name_error(here, own.get("name"), items):
            errors.append(wrong_name)
        elif isinstance(package := own.get("package"), str):
            items[here.name] = here
            at = os.path.join(os.path.dirname(path), package)
            try:
                loaded = _package(at, here, package, overrides, (owners, variables))
                members.append(StackMember(key, loaded, overrides, here.after))
            except Error as error:
                errors += flatten(error)
    for key, service, keys in inline_tables(data.get("services")):
        here = item({"name": service, "depends_on": keys.get("depends_on")}, key)
        if wrong_name := _name_error(here, service, items):
            wrong_name.key = key
            errors.append(wrong_name)
            continue
        items[here.name] = here
        try:
            loaded = checked(path, key, service, keys, owners)
            members.append(StackMember(key, loaded, None, here.after))
        except ErrorGroup as group:
            errors += group.errors
    mine = [error for error in errors if not error.file]
    for one in mine:
        one.hint = one.hint or _form(one.key or "", data)
    are_valid = not errors and not resolved.errors
    mine += dependencies(items, {member.name: member.loaded.spec for member in members})
    mine = [_in_file(path, error) for error in resolved.fresh(mine)]
    errors = [*mine, *(error for error in errors if error.file)]
    order = ordered({item.name: item.after for item in items.values()})
    members.sort(key=lambda member: order.index(member.name))
    members = _with_apart(members, os.path.dirname(path))
    made = Stack(name, path, networks, tuple(members), asks)
    try:
        if are_valid:
            together(made)
    except Error as error:
        errors += flatten(error)
    if errors:
        raise ErrorGroup(errors)
    return made


def _with_apart(members: list[StackMember], folder: str) -> list[StackMember]:
    # no service's package copy contains the files with secrets or variables of the stack
    specs = [member.loaded.spec for member in members]
    programs = [spec.program for spec in specs]
    own = (path for program in programs for path in (*program.apart, *program.secrets.values()))
    files = {os.path.join(folder, ".env"), *own}
    apart = tuple(sorted(path for path in files if os.path.lexists(path)))
    return [
        member._replace(
            loaded=member.loaded._replace(spec=spec._replace(process=program._replace(apart=apart)))
        )
        for member, spec, program in zip(members, specs, programs, strict=True)
    ]


def as_stack_error(stack: Stack, error: Error, of: StackMember | None = None) -> Error:
    """Convert an error in a manifest to an error in the stack.toml, if the stack.toml sets the
    error's key. Otherwise return ``error``. ``of`` is the service with the error, or None if
    unknown.
    """
    for member in stack.members if of is None else (of,):
        path = member.loaded.path
        if member.overrides is None:
            if error.service == member.name or of is member:
                return moved_error(error, member.key, stack.file)
            continue
        if error.key and error.service in ("", member.name) and error.file in (path, escaped(path)):
            key = _key_here(member.key, member.overrides, error.key)
            if key is not None:
                moved = type(error).of(error)
                moved.file, moved.key = stack.file, key
                moved.reason = error.reason.replace(error.key, key)
                moved.right = error.right.replace(error.key, key)
                return moved
    return error


# --- the parts of the file ------------------------------------------------------------------------


def _in_file(path: str, error: Error) -> Error:
    new = InvalidInput.of(error)
    new.file = escaped(path)
    return new


def _tables(items: object) -> list[tuple[str, dict[str, Any]]]:
    tables = enumerate(items if isinstance(items, list) else [])
    return [(f"service[{index}]", item) for index, item in tables if isinstance(item, dict)]


def _refused(rule: Callable[[str, str], object], value: str, key: str) -> InvalidInput | None:
    try:
        rule(value, key)
    except InvalidInput as error:
        return error
    return None


def _top(
    data: dict[str, object], also: Also
) -> tuple[str, bool | None, dict[str, NetworkRequest], list[InvalidInput]]:
    """Check all parts of a stack.toml except its services.

    Returns (name of the stack, value of its key ``prefix`` or None, {name: network}, errors).
    ``also`` returns further errors about a network.
    """
    shape = dict(data)
    if isinstance(items := data.get("service"), list):
        shape["service"] = [{} if isinstance(one, dict) else one for one in items]
    if isinstance(tables := data.get("services"), dict):
        shape["services"] = {
            name: {} if isinstance(table, dict) else table for name, table in tables.items()
        }
    errors = validate.walk(shape, _Whole)
    if "service" not in data and data.get("services", {}) == {}:
        missing, hint = "missing table [[service]]", "add [[service]] or [services.NAME]"
        errors.append(InvalidInput(missing, hint, "service", names_key=False))
    if items == []:
        errors.append(values.wrong("service", [], "is empty", "one or more [[service]]"))
    head = data.get("stack")
    name, asks = (head.get("name"), head.get("prefix")) if isinstance(head, dict) else (None, None)
    if isinstance(name, str) and (error := _refused(values.service_name, name, "stack.name")):
        errors.append(error)
    networks: dict[str, NetworkRequest] = {}
    made = data.get("networks")
    for own, keys in made.items() if isinstance(made, dict) else ():
        key = values.join("networks", own)
        if wrong := _refused(values.network_name, own, key):
            errors.append(wrong)
        elif isinstance(keys, dict) and not validate.walk(keys, Network, key):
            subnet, ipv6, internal, gateway, *others = convert.convert(keys, Network)
            subnets, gateways = (
                (one,) if isinstance(one, str) else one for one in (subnet, gateway)
            )
            networks[own] = NetworkRequest(own, subnets, ipv6, gateways, internal, *others)
            errors += also(networks[own])
    return str(name), asks, networks, errors


def _form(key: str, data: Mapping[str, object]) -> str | None:
    """Return a hint if the table at ``key`` has the wrong form, such as [service.api], or None."""
    if key in ("service", "services") and isinstance(data.get(key), dict | list):
        return "[[service]] with name and package, or [services.NAME] with the tables of a manifest"
    if key.startswith("service[") and key.endswith("].network"):
        return "write the keys of [network] into [[service]] itself"
    return None


def _unknown(keys: Mapping[str, object], key: str) -> Iterable[InvalidInput]:
    known = (*StackServiceKeys._fields, *NETWORK_KEYS, *OVERRIDES)
    for name, value in keys.items():
        if name in known:
            continue
        near = validate.nearest(name, list(known))
        place = validate.elsewhere(name, value, Manifest).removeprefix("network.")
        yield validate.unknown_key(
            values.join(key, name),
            value,
            ", ".join(known),
            values.join(key, near) if near else None,
            f"{key}.{place}" if place else "",
        )


# --- a service and its package --------------------------------------------------------------------


def _name_error(item: _Item, name: object, items: Mapping[str, _Item]) -> InvalidInput | None:
    if not isinstance(name, str):
        return None
    key = f"{item.key}.name"
    if item.name in items:
        reason = f"is already the name of {items[item.name].key}"
        return values.wrong(key, name, reason, "a unique name for each service")
    return _refused(values.service_name, name, key)


def _package(
    path: str,
    item: _Item,
    package: str,
    overrides: Mapping[str, Any],
    of_stack: tuple[Collection[int] | None, Outer],
) -> Loaded:
    """Load the package of a [[service]], and apply the stack's overrides to its manifest. ``path``
    is the package's absolute path, and ``package`` its path as written in the stack.toml.
    ``of_stack`` is (owners, function that returns the variables of the stack). Raises InvalidInput
    or ErrorGroup. Only errors of the package's own manifest name a file.
    """
    key, right = f"{item.key}.package", "a folder with a manifest.toml"
    if not package or not package.isprintable():
        raise values.wrong(key, package, "is not a valid path", right, '"./api"')
    at, (owners, variables) = manifest_load.place(path), of_stack
    try:
        data = toml.load(at, manifest_load.FILE_NAME, owners)
        own = prepared(data, at, owners, variables)
        written = manifest_load.checked(own, at, owners)
    except (ErrorGroup, InvalidInput):
        raise
    except Error as error:
        raise values.wrong(key, package, f"cannot be used: {error.message}", right) from None
    try:
        laid = Resolved(_laid_over(own.data, item.name, overrides), [])
        together = manifest_load.checked(laid, at, owners)
    except ErrorGroup as group:
        errors: list[Error] = [_here(at, item.key, overrides, error) for error in group.errors]
        raise ErrorGroup(errors) from None
    program = together.program
    apart = (*written.program.apart, *program.apart)
    together = together._replace(process=program._replace(apart=apart))
    return Loaded(together, at, os.path.dirname(at))


def _laid_over(data: dict[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest ``data`` of a package with the keys of its [[service]], which have
    precedence. Arrays and volumes are not merged.
    """
    network = {key: value for key, value in overrides.items() if key in NETWORK_KEYS}
    more = {key: value for key, value in overrides.items() if key in OVERRIDES}
    laid = laid_over(data, {**more, "network": network, "package": {"name": name}})
    if network.get("mode", "share") != "share" and "share" not in network:
        laid["network"].pop("share", None)
    if isinstance(volumes := more.get("volumes"), dict):
        laid["volumes"].update(volumes)
    return laid


def _here(at: str, key: str, overrides: Mapping[str, Any], error: Error) -> InvalidInput:
    """Convert an error in the manifest of a package to an error in the stack.toml.

    ``at`` is the package's folder, and ``key`` the key path of its [[service]] in the stack.toml.
    If the [[service]] overrides the key with the error, the new error names this override,
    otherwise the whole [[service]].
    """
    mine = _key_here(key, overrides, error.key or "")
    if mine is None:
        return InvalidInput(f"with {escaped(at)}: {error.detail}", error.hint, key)
    new = InvalidInput.of(error)
    new.file, new.key = "", mine
    old = error.key or ""
    new.reason = error.reason.replace(old, mine)
    new.right, hint = (
        re.sub(r"\bnetwork\.(?=[a-z_])", f"{key}.", text)
        for text in (error.right.replace(old, mine), error.hint or "")
    )
    new.hint = hint or None
    return new


def _key_here(key: str, overrides: Mapping[str, Any], manifest_key: str) -> str | None:
    if manifest_key == "package.name":
        return f"{key}.name"
    table, _, path = manifest_key.partition(".")
    first = re.split(r"[.\[]", path)[0]
    if table == "network":
        return f"{key}.{path}" if first in overrides else None
    override = overrides.get(table)
    # a quoted name is an unknown key of the override: the package's own manifest is valid
    here = not isinstance(override, dict) or first in override or not path or path.startswith('"')
    return f"{key}.{manifest_key}" if table in overrides and here else None


# --- services written in the file: [services.NAME] ------------------------------------------------


_TABLES = "|".join(Manifest._fields)


def inline_tables(services: object) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (key path, name, content) for each [services.NAME] that is a table."""
    for name, table in services.items() if isinstance(services, dict) else ():
        if isinstance(table, dict):
            yield values.join("services", name), name, table


def checked(
    path: str, key: str, name: str, table: Mapping[str, Any], owners: Collection[int] | None
) -> Loaded:
    """Check a [services.NAME] table of a stack.toml, which is a complete manifest.

    ``path`` is the stack.toml, and ``key`` the table's key path in it. If ``owners``
    (uids) are given, only these users may be able to change the files. Raises ErrorGroup. Errors
    have no file, except errors in environment files.
    """
    errors: list[Error] = []
    if "depends_on" in table:
        errors += validate.walk({"depends_on": table["depends_on"]}, Needs, key)
    package = table.get("package", {})
    folder = ""
    data = {part: value for part, value in table.items() if part != "depends_on"}
    if isinstance(package, dict):
        data["package"] = {"version": VERSION, **package, "name": name}
        data["package"].pop("folder", None)
        if package.get("name", name) != name:
            own, reason = f"{key}.package.name", "is not the name of its table"
            errors.append(values.wrong(own, package["name"], reason, "leave it out"))
        try:
            folder = _folder(path, f"{key}.package.folder", package.get("folder"), owners)
        except Error as error:
            errors += flatten(error)
    try:
        spec = manifest_load.checked(Resolved(data, []), path, owners)
    except ErrorGroup as group:
        here = escaped(path)
        errors += [moved_error(one, key) if one.file == here else one for one in group.errors]
    if errors:
        raise ErrorGroup(errors)
    spec = spec._replace(process=spec.program._replace(folder=folder))
    return Loaded(spec, path, folder)


def _folder(path: str, key: str, folder: object, owners: Collection[int] | None) -> str:
    """Return the absolute path of the folder in package.folder, or "" if the key is not set."""
    right, example = "a folder beside the stack.toml", '"./api"'
    if folder is None:
        return ""
    if not isinstance(folder, str):
        raise ErrorGroup([*validate.walk({"folder": folder}, Package, key.rpartition(".")[0])])
    at = os.path.normpath(os.path.join(os.path.dirname(path), folder))
    reason = ""
    if not folder or not folder.isprintable():
        reason = "is not a valid path"
    elif not os.path.isdir(at):
        reason = "is not a folder" if os.path.lexists(at) else "does not exist"
    values.require(folder, key, reason, right, example)
    try:
        if owners is not None:
            how = changed_by_others(at, owners)
            toml.require_owner(how and f"the folder {how}", owners)
    except InvalidInput as error:
        raise InvalidInput(f"{folder}: {error.reason or error.message}", error.hint, key) from None
    return at


def moved_error(error: Error, key: str, file: str = "") -> InvalidInput:
    """Convert an error in a [services.NAME] table to an error in the stack.toml. ``key`` is the
    table's key path in the stack.toml, and ``file`` the stack.toml or "".
    """
    new = InvalidInput.of(error)
    new.file = file
    # [services.NAME] has no key package.name
    new.key = f"{key}.{error.key}" if error.key not in (None, "", "package.name") else key
    new.reason, new.right, hint = (
        re.sub(rf"(?<![\w.])(?=(?:{_TABLES})(?:\.[a-z_]|\]))", f"{key}.", text)
        for text in (error.reason, error.right, error.hint or "")
    )
    new.hint = f"remove {new.key}" if hint == f"remove {error.key}" else hint or None
    return new


# --- variables and relative paths; merging keys into a manifest -----------------------------------


def resolve(
    data: dict[str, Any], path: str, owners: Collection[int] | None
) -> tuple[Resolved, Outer]:
    """Substitute the variables in a stack.toml's data, and make its paths absolute.

    Returns (data and errors, function that returns the stack's variables). The file .env next to
    the stack.toml is read only if a variable is used. Raises Error or InvalidInput for an unusable
    .env.
    """
    folder = os.path.dirname(path)
    outer = cache(lambda: manifest_variables.variables(folder, owners)[0])
    uses = has_variables(data)
    own = manifest_variables.variables(folder, owners) if uses else ({}, "")
    services, inline = data.get("service"), data.get("services")
    more = {name: value for name, value in data.items() if name not in ("service", "services")}
    whole = manifest_variables.resolve(more, own, {dict: _Whole})
    errors = list(whole.errors)
    result = {**data, **whole.data}

    def resolved(written: Any, key: str, fill: Callable[[dict[str, Any], str], Resolved]) -> Any:
        if not isinstance(written, dict):
            return written
        service = with_paths(fill(written, key), folder, owners, key)
        errors.extend(service.errors)
        return service.data

    def of_package(item: dict[str, Any], key: str) -> Resolved:
        data, wrongs = dict(item), []
        tables = {
            StackServiceKeys: StackServiceKeys._fields,
            TABLES["network"]: NETWORK_KEYS,
            Manifest: OVERRIDES,
        }
        for table, names in tables.items():
            part = {name: item[name] for name in names if name in item}
            filled = manifest_variables.resolve(part, own, {dict: table}, key)
            data |= filled.data
            wrongs += filled.errors
        return Resolved(data, wrongs)

    def of_manifest(item: dict[str, Any], key: str) -> Resolved:
        return manifest_variables.resolve(item, own, {dict: Manifest}, key)

    if isinstance(services, list):
        result["service"] = [
            resolved(written, f"service[{index}]", of_package)
            for index, written in enumerate(services)
        ]
    if isinstance(inline, dict):
        result["services"] = {
            name: resolved(written, join("services", name), of_manifest)
            for name, written in inline.items()
        }
    return Resolved(result, errors), outer


_INSTEAD = {"network": ("network", "networks"), "healthcheck": process_keys.KINDS}
"""Keys of a table that exclude each other. If a stack sets one of them, it replaces the others in
the manifest."""


def laid_over(base: dict[str, Any], laid: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """Return ``base`` merged recursively with ``laid``, whose keys have precedence."""
    choice = set(_INSTEAD.get(table, ()))
    gone = choice - laid.keys() if choice & laid.keys() else set()
    merged = {key: value for key, value in base.items() if key not in gone}
    for key, value in laid.items():
        under = merged.get(key, {})
        both = isinstance(value, dict) and isinstance(under, dict)
        merged[key] = laid_over(under, value, key) if both else value
    return merged


# --- order by dependencies ------------------------------------------------------------------------


class _Item(NamedTuple):
    """The key path, name and dependencies of a service in a stack."""

    key: str
    name: str
    after: dict[str, Condition]
    listed: bool  # whether depends_on is an array

    def path(self, dependency: str) -> str:
        base = f"{self.key}.depends_on"
        index = list(self.after).index(dependency)
        return f"{base}[{index}]" if self.listed else values.join(base, dependency)


def item(own: Mapping[str, Any], key: str) -> _Item:
    """Build the `_Item` of a service from its table ``own``, without values of a wrong type."""
    needs = own.get("depends_on")
    after: dict[str, Condition] = {}
    if isinstance(needs, list):
        after = {name: "started" for name in needs if isinstance(name, str)}
    for name, state in needs.items() if isinstance(needs, dict) else ():
        if state in CONDITIONS:
            after[name] = state
    return _Item(key, str(own.get("name", "")), after, isinstance(needs, list))


def ordered(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Sort the keys of ``after``, which maps names to the names they depend on, so that
    dependencies come first. If there is a cycle, keep the order.
    """
    try:
        return [name for name in graphlib.TopologicalSorter(after).static_order() if name in after]
    except graphlib.CycleError:
        return list(after)


def dependencies(
    items: Mapping[str, _Item], known: Mapping[str, ServiceSpec]
) -> Iterable[InvalidInput]:
    """Yield an error for each cycle and each invalid dependency of a stack's services. ``known``
    has the specs of the services whose manifests are valid.
    """
    for item in items.values():
        for name, condition in item.after.items():
            path = item.path(name)
            if name not in items:
                near = validate.nearest(name, list(items))
                right = f"one of {', '.join(sorted(items))}"
                example = shown(near) if near else ""
                yield values.wrong(path, name, "is not a service of the stack", right, example)
            elif name not in known:
                continue
            elif condition == "healthy" and known[name].program.healthcheck is None:
                reason = f"is not possible: {name!r} has no healthcheck"
                right = f'"started", or add [healthcheck] to the manifest of {name!r}'
                yield values.wrong(path, condition, reason, right)
            elif condition == "completed" and known[name].program.kind != "job":
                reason = f"is not possible: {name!r} is not a job"
                right = f'"started", or service.kind = "job" for {name!r}'
                yield values.wrong(path, condition, reason, right)
    after = {item.name: [name for name in item.after if name in items] for item in items.values()}
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        cycle = list(reversed(error.args[1]))  # the first one is repeated at the end
        first = items[min(cycle, key=list(items).index)]
        reason = f"is a dependency cycle: {' -> '.join(cycle)}"
        key = f"{first.key}.depends_on"
        yield values.wrong(key, list(first.after), reason, "remove one of these dependencies")


# --- prefix of names ------------------------------------------------------------------------------


def long_name(stack: str, name: str) -> str:
    """Return the name of a service or network with the prefix of its stack: ``shop-db``."""
    short = name.removeprefix("niso-") if name == DEFAULT_NETWORK else name
    return f"{stack}-{short}"


def applies(
    prefix: bool | None, stack: str, names: Iterable[str], members: Collection[str], taken: bool
) -> bool:
    """Return whether the stack's name is prefixed to ``names``, the names of its services.

    ``prefix`` is the setting in the stack.toml. If it is None, the names of an existing stack do
    not change: ``members`` are its recorded services, including services that the file no longer
    has. A new stack uses the prefix if ``taken``: another stack's service has one of the names.
    """
    if prefix is not None:
        return prefix
    own = list(names)
    plain = sum(name in members for name in own)
    long = sum(long_name(stack, name) in members for name in own)
    if long or plain:
        return long > plain
    every_long = all(name.startswith(long_name(stack, "")) for name in members)
    return taken or (bool(members) and every_long)


def prefixed_outline(plain: StackOutline) -> StackOutline:
    """Return an outline in which the names of all services have the stack's prefix."""
    after = {
        long_name(plain.name, name): tuple(long_name(plain.name, other) for other in others)
        for name, others in plain.after.items()
    }
    return plain._replace(after=after)


def stack(plain: Stack) -> Stack:
    """Return a stack with its prefix in all names. Raises ErrorGroup if a name becomes too long."""
    names = {member.name: long_name(plain.name, member.name) for member in plain.members}
    called = _called(plain, names)
    declared = dict(plain.networks)
    specs = [member.loaded.spec for member in plain.members]
    if any(DEFAULT_NETWORK in spec.network.networks for spec in specs) and not any(
        spec.network.statics(DEFAULT_NETWORK)
        for spec in specs  # the network's subnet then contains these addresses
    ):
        declared.setdefault(DEFAULT_NETWORK, NetworkRequest(DEFAULT_NETWORK))
    networks = {name: long_name(plain.name, name) for name in (*declared, DEFAULT_NETWORK)}
    shorts = Counter(name for member in plain.members for name in member.loaded.spec.names)
    lone = {name for name, count in shorts.items() if count == 1}
    full = [
        (member.key if member.overrides is None else f"{member.key}.name", member.name)
        for member in plain.members
    ]
    full += [(f"networks.{name}", name) for name in declared]
    errors: list[Error] = []
    for key, name in full:
        if (length := len(long_name(plain.name, name))) > values.MAX_NAME:
            reason = f"has {length} characters with the prefix of the stack"
            right = f"at most {values.MAX_NAME}, or [stack] prefix = false"
            errors.append(values.wrong(key, name, reason, right))
            errors[-1].file = plain.file
    if errors:
        raise ErrorGroup(errors)
    return plain._replace(
        prefix=f"{plain.name}-",
        networks={
            networks[name]: network._replace(name=networks[name])
            for name, network in declared.items()
        },
        members=tuple(_member(member, names, called, networks, lone) for member in plain.members),
    )


def _called(plain: Stack, names: Mapping[str, str]) -> dict[str, str]:
    holders: dict[str, set[str]] = {}
    for member in plain.members:
        for name in member.loaded.spec.names:
            holders.setdefault(name, set()).add(names[member.name])
    return {name: full for name, (full, *more) in holders.items() if not more} | dict(names)


def _member(
    member: StackMember,
    names: Mapping[str, str],
    called: Mapping[str, str],
    networks: Mapping[str, str],
    lone: Container[str],
) -> StackMember:
    """Add the stack's prefix to a service, and to its networks, policy peers and dependencies.

    If the service's hostname differs from its name, the name without the prefix becomes an alias.
    This happens only if no other service of the stack has this name (``lone``), and all networks of
    the service belong to the stack. On other networks, the alias could clash with a second stack
    whose services have the same names. ``called`` and ``networks`` map names of services and
    networks to names with the prefix.
    """
    spec = member.loaded.spec
    network = spec.network
    own = bool(network.networks) and all(name in networks for name in network.networks)
    short = (spec.name,) if own and spec.name in lone and spec.name != network.hostname else ()
    meant = {"service": called, "network": networks}

    def renamed(peer: Peer, _: bool) -> list[Peer]:
        return [peer._replace(name=meant.get(peer.kind, {}).get(peer.name, peer.name))]

    network = network._replace(
        aliases=tuple(dict.fromkeys((*short, *network.aliases))),
        share=called.get(network.share, network.share) if network.share else None,
        networks=tuple(networks.get(name, name) for name in network.networks),
        addresses={networks.get(name, name): ip for name, ip in network.addresses.items()},
        addresses6={networks.get(name, name): ip for name, ip in network.addresses6.items()},
        policy=network.policy.with_peers(renamed),
    )
    spec = spec._replace(name=names[spec.name], network=network)
    spec = spec._replace(manifest=_written(spec, member.loaded.spec.network.policy))
    after = {names.get(name, name): state for name, state in member.after.items()}
    return member._replace(loaded=member.loaded._replace(spec=spec), after=after)


def _written(spec: ServiceSpec, policy: Policy) -> dict[str, object]:
    """Convert ``spec``, in which names have the stack's prefix, to the tables of a manifest.
    ``policy`` is the policy without the prefix.
    """
    network = spec.network
    data: dict[str, Any] = dict(spec.manifest)
    data["package"] = {**data["package"], "name": spec.name}
    own = {**data["network"], "aliases": network.aliases, "share": network.share}
    if network.mode in ("bridge", "none"):
        own["hostname"] = network.hostname
    if network.mode == "bridge":
        own |= {"network": DEFAULT_NETWORK, "networks": network.networks}
    if isinstance(own["ip"], Mapping):
        own["ip"] = {on: network.statics(on) for on in (*network.addresses, *network.addresses6)}
    texts: dict[str, dict[str, None]] = {}  # an entry of "metadata" has several peers
    for old, new in zip(policy.entries(), network.policy.entries(), strict=True):
        head = "network:" if old.peer.kind == "network" else ""
        ports = old.text.removeprefix(head + old.peer.name)
        text = old.text if old.peer == new.peer else f"{head}{new.peer.name}{ports}"
        texts.setdefault(old.text, {})[text] = None
    rules, egress = dict(own["policy"]), dict(own["policy"]["egress"])
    lists = (rules, "allow_from"), (rules, "deny_from"), (egress, "allow"), (egress, "deny")
    for table, key in lists:
        if table[key] is not None:
            table[key] = tuple(text for old in table[key] for text in texts.get(old, (old,)))
    data["network"] = {**own, "policy": {**rules, "egress": egress}}
    return data
