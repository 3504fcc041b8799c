"""Load stack.toml, which declares services and their networks, and check it with its manifests.

A [[service]] overrides keys of its package's manifest.toml. It has the keys of [network] directly,
and the other tables under their names. A [services.NAME] is a complete manifest (`stack_inline`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from niso.base import convert
from niso.base.errors import Error, ErrorGroup, InvalidInput
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.manifest import (
    interpolate,
    manifest_tables,
    stack_inline,
    stack_values,
    toml,
    validate,
    values,
)
from niso.manifest import load as manifest
from niso.manifest.interpolate import Resolved
from niso.manifest.load import Loaded
from niso.manifest.manifest_tables import Manifest
from niso.manifest.stack_order import Condition, Item, dependencies, item, ordered

if TYPE_CHECKING:
    from typing import Any

FILE_NAME = "stack.toml"

NETWORK_KEYS = manifest_tables.Network._fields
"""The keys of a manifest's [network], which a [[service]] has directly."""
TABLES = tuple(name for name in Manifest._fields if name not in ("package", "network"))
"""The tables of a manifest that a [[service]] can have: [service.environment] and so on."""


class Head(NamedTuple):
    name: str
    prefix: bool | None = None


class Network(NamedTuple):
    """A network with the options of `niso net create`."""

    subnet: str | tuple[str, ...] = ()
    ipv6: bool = False
    internal: bool = False
    gateway: str | tuple[str, ...] = ()
    mtu: int | None = None
    allow_public: bool = False
    observe: bool = True
    span: bool = False

    @property
    def subnets(self) -> tuple[str, ...]:
        return (self.subnet,) if isinstance(self.subnet, str) else self.subnet

    @property
    def gateways(self) -> tuple[str, ...]:
        return (self.gateway,) if isinstance(self.gateway, str) else self.gateway


class Own(NamedTuple):
    """The keys of a [[service]] that a manifest does not have."""

    name: str
    package: str
    depends_on: dict[str, Condition] | tuple[str, ...] = ()


class Member(NamedTuple):
    """A service of a stack."""

    key: str  # service[1], or services.api for a service written in the stack
    loaded: Loaded  # its package's manifest with the stack's overrides
    overrides: Mapping[str, Any] | None  # None: the complete manifest is in the stack
    after: Mapping[str, Condition]  # service -> its required state before this one starts

    @property
    def name(self) -> str:
        return self.loaded.spec.name

    @property
    def has_healthcheck(self) -> bool:
        return self.loaded.spec.healthcheck is not None


class Stack(NamedTuple):
    """A checked stack.toml."""

    name: str
    path: str  # absolute path of the file
    networks: Mapping[str, Network]
    members: tuple[Member, ...]  # each after its dependencies
    asks: bool | None = None  # whether the file requests the prefix (`niso.manifest.stack_prefix`)
    prefix: str = ""  # prefix of the names of services and networks: shop-

    @property
    def file(self) -> str:
        """Return the path of the stack.toml, printable."""
        return values.escaped(self.path)


class Outline(NamedTuple):
    """The part of a stack that needs no packages, readable despite errors elsewhere in the file."""

    name: str
    path: str
    after: Mapping[str, tuple[str, ...]]  # each service -> the services that it depends on
    asks: bool | None = None  # as in Stack


Also = Callable[[str, Network], Iterable[InvalidInput]]
"""A function that returns further errors of a network, given its name and its correctly typed keys.

The errors have complete keys (``networks.backend.subnet``).
"""


def place(path: str) -> str:
    """Return the absolute path of the stack.toml for ``path``, a file or a folder."""
    path = os.path.abspath(path)
    return (
        path
        if path.endswith(".toml") and not os.path.isdir(path)
        else os.path.join(path, FILE_NAME)
    )


def outline(path: str) -> Outline:
    """Read the name, services and dependencies of a stack.toml.

    Raises NotFound, Error if it cannot be read, InvalidInput if it is not valid TOML, and an
    ErrorGroup or InvalidInput if [stack] is invalid.
    """
    path = place(path)
    data = toml.load(path, FILE_NAME)
    if interpolate.has_variables(head := data.get("stack")):
        from niso.manifest import env_files

        variables = env_files.variables(os.path.dirname(path))
        resolved = interpolate.resolve({"stack": head}, variables, {dict: _Whole})
        if resolved.errors:
            raise ErrorGroup([_in_file(path, error) for error in resolved.errors])
        data |= resolved.data
    try:
        name, asks = convert.convert(data.get("stack"), Head)
        values.service_name(name, "stack.name")
    except convert.Mismatch:
        errors = validate.walk({"stack": data.get("stack", {})}, _Whole)
        raise ErrorGroup(
            [_in_file(path, error) for error in errors if (error.key or "").startswith("stack")]
        ) from None
    except InvalidInput as error:
        raise _in_file(path, error) from None
    after: dict[str, tuple[str, ...]] = {}
    for _, keys in _tables(data.get("service")):
        if isinstance(own := keys.get("name"), str):
            after[own] = _names(keys.get("depends_on"))
    for _, own, keys in stack_inline.tables(data.get("services")):
        after[own] = _names(keys.get("depends_on"))
    return Outline(name, path, after, asks)


def _names(needs: object) -> tuple[str, ...]:
    """Return the services named in a depends_on; values of a wrong type are skipped."""
    names = needs if isinstance(needs, dict | list) else ()
    return tuple(name for name in names if isinstance(name, str))


def load(
    path: str, also: Also = lambda _name, _network: (), owners: Collection[int] | None = None
) -> Stack:
    """Read and check the stack.toml at ``path``, a file or its folder, and its manifests.

    With ``owners``, all these files must belong to one of these uids (`niso.manifest.toml.load`).
    ``also`` returns further errors of a network.

    Raises NotFound, Error if it cannot be read, InvalidInput if it is not valid TOML, else an
    ErrorGroup of all errors in the file and in the manifests. Each names its file, key and value.
    """
    path = place(path)
    tables = {Own: Own._fields, manifest_tables.Network: NETWORK_KEYS, Manifest: TABLES}
    resolved, variables = stack_values.resolve(
        toml.load(path, FILE_NAME, owners), path, owners, tables, _Whole
    )
    data = resolved.data
    head, networks, errors = _top(data, also)
    others: list[Error] = []  # errors about other files, such as manifests
    items: dict[str, Item] = {}
    members: list[Member] = []
    for key, keys in _tables(data.get("service")):
        own = {name: value for name, value in keys.items() if name in Own._fields}
        overrides = {
            name: value for name, value in keys.items() if name in (*NETWORK_KEYS, *TABLES)
        }
        errors += [*validate.walk(own, Own, key), *_unknown(keys, key)]
        here = item(own, key)
        if wrong := _name_error(here, own.get("name"), items):
            errors.append(wrong)
        elif isinstance(package := own.get("package"), str):
            items[here.name] = here
            at = os.path.join(os.path.dirname(path), package)
            loaded, wrongs, elsewhere = _package(at, here, package, overrides, (owners, variables))
            errors, others = errors + wrongs, others + elsewhere
            if loaded is not None:
                members.append(Member(key, loaded, overrides, here.after))
    for key, name_, keys in stack_inline.tables(data.get("services")):
        here = item({"name": name_, "depends_on": keys.get("depends_on")}, key)
        if wrong := _name_error(here, name_, items):
            wrong.key = key
            errors.append(wrong)
            continue
        items[here.name] = here
        loaded, wrongs, elsewhere = stack_inline.checked(path, key, name_, keys, owners)
        errors, others = errors + wrongs, others + elsewhere
        if loaded is not None:
            members.append(Member(key, loaded, None, here.after))
    for error in errors:
        error.hint = error.hint or _form(error.key or "", data)
    errors += dependencies(items, {member.name: member.loaded.spec for member in members})
    errors = resolved.fresh(errors)
    if errors or others:
        raise ErrorGroup([*(_in_file(path, error) for error in errors), *others])
    order = ordered({item.name: item.after for item in items.values()})
    members.sort(key=lambda member: order.index(member.name))
    members = _with_apart(members, os.path.dirname(path))
    return Stack(head.name, path, networks, tuple(members), head.prefix)


def _with_apart(members: list[Member], folder: str) -> list[Member]:
    """Exclude the secrets and variables of each member from the packages of all members.

    ``folder`` is that of the stack.toml.
    """
    specs = [member.loaded.spec for member in members]
    own = (path for spec in specs for path in (*spec.apart, *spec.secrets.values()))
    files = {os.path.join(folder, ".env"), *own}
    apart = tuple(sorted(path for path in files if os.path.lexists(path)))
    return [
        member._replace(loaded=member.loaded._replace(spec=spec._replace(apart=apart)))
        for member, spec in zip(members, specs, strict=True)
    ]


def as_stack_error(stack: Stack, error: Error, of: Member | None = None) -> Error:
    """Convert an error of a manifest to an error of stack.toml, if the key is in that file.

    ``of`` is the service, for an error that does not name its service itself.
    """
    for member in stack.members if of is None else (of,):
        path = member.loaded.path
        if member.overrides is None:
            if error.service == member.name or of is member:
                return stack_inline.moved(error, member.key, stack.file)
            continue
        if (
            error.key
            and error.service in ("", member.name)
            and error.file in (path, values.escaped(path))
        ):
            key = _key_here(member.key, member.overrides, error.key)
            if key is not None:
                moved = type(error).of(error)
                moved.file, moved.key = stack.file, key
                moved.reason = error.reason.replace(error.key, key)
                moved.right = error.right.replace(error.key, key)
                return moved
    return error


# --- the parts of the file ------------------------------


class _Blank(NamedTuple):
    """A [[service]] whose keys are ignored here, since they are checked separately."""


class _Whole(NamedTuple):
    stack: Head
    service: tuple[_Blank, ...] = ()
    services: dict[str, _Blank] = {}  # noqa: RUF012 (convert copies it)
    networks: dict[str, Network] = {}  # noqa: RUF012 (convert copies it)


def _in_file(path: str, error: Error) -> Error:
    new = InvalidInput.of(error)
    new.file = values.escaped(path)
    return new


def _tables(items: object) -> list[tuple[str, dict[str, Any]]]:
    """Return the key and content of each [[service]] that is a table."""
    tables = enumerate(items if isinstance(items, list) else [])
    return [(f"service[{index}]", item) for index, item in tables if isinstance(item, dict)]


def _refused(rule: Callable[[str, str], object], value: str, key: str) -> InvalidInput | None:
    """Apply a rule to a value: return the error that it raises, or None."""
    try:
        rule(value, key)
    except InvalidInput as error:
        return error
    return None


def _top(
    data: dict[str, object], also: Also
) -> tuple[Head, dict[str, Network], list[InvalidInput]]:
    """Return the table [stack], the networks, and all errors outside the services."""
    shape = {
        **data,
        "service": [{} for _ in items] if isinstance(items := data.get("service"), list) else items,
    }
    if "service" not in data:
        del shape["service"]
    if isinstance(tables := data.get("services"), dict):
        shape["services"] = {
            name: {} if isinstance(table, dict) else table for name, table in tables.items()
        }
    for index, table in enumerate(items if isinstance(items, list) else []):
        if not isinstance(table, dict):
            shape["service"][index] = table  # type: ignore[index]
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
    networks: dict[str, Network] = {}
    made = data.get("networks")
    for own, keys in made.items() if isinstance(made, dict) else ():
        key = validate.join("networks", own)
        wrong = _refused(values.network_name, own, key)
        if wrong:
            errors.append(wrong)
        elif isinstance(keys, dict) and not validate.walk(keys, Network, key):
            networks[own] = convert.convert(keys, Network)
            errors += also(own, networks[own])
    return Head(str(name), asks), networks, errors


def _form(key: str, data: Mapping[str, object]) -> str | None:
    """Return a hint for a table written in the form of another one, such as [service.api]."""
    if key in ("service", "services") and isinstance(data.get(key), dict | list):
        return "[[service]] with name and package, or [services.NAME] with the tables of a manifest"
    if key.startswith("service[") and key.endswith("].network"):
        return "write the keys of [network] into [[service]] itself"
    return None


def _unknown(keys: Mapping[str, object], key: str) -> Iterable[InvalidInput]:
    """Yield an error for each key of a [[service]] that is neither its own nor a manifest's."""
    known = (*Own._fields, *NETWORK_KEYS, *TABLES)
    for name, value in keys.items():
        if name in known:
            continue
        near = validate.nearest(name, list(known))
        place = validate.elsewhere(name, value, Manifest).removeprefix("network.")
        yield validate.unknown_key(
            validate.join(key, name),
            value,
            ", ".join(known),
            validate.join(key, near) if near else None,
            f"{key}.{place}" if place else "",
        )


# --- a service and its package ------------------------------


def _name_error(item: Item, name: object, items: Mapping[str, Item]) -> InvalidInput | None:
    if not isinstance(name, str):
        return None
    key = f"{item.key}.name"
    if item.name in items:
        reason = f"is already the name of {items[item.name].key}"
        return values.wrong(key, name, reason, "a unique name for each service")
    return _refused(values.service_name, name, key)


def _package(
    path: str,
    item: Item,
    package: str,
    overrides: Mapping[str, Any],
    of_stack: tuple[Collection[int] | None, manifest.Outer],
) -> tuple[Loaded | None, list[InvalidInput], list[Error]]:
    """Return (manifest with the stack's overrides, errors of stack.toml, errors of the manifest).

    ``package`` is the text for ``path``; ``of_stack`` are the owners and variables of the stack.
    The manifest is None if there is an error.
    """
    key, right = f"{item.key}.package", "a folder with a manifest.toml"
    if not package or not package.isprintable():
        return None, [values.wrong(key, package, "is not a valid path", right, '"./api"')], []
    at, (owners, variables) = manifest.place(path), of_stack
    try:
        data = toml.load(at, manifest.FILE_NAME, owners)
        own = manifest.prepared(data, at, owners, variables)
        written = manifest.checked(own, at, owners)
    except ErrorGroup as group:
        return None, [], group.errors
    except Error as error:
        if isinstance(error, InvalidInput):
            return None, [], [error]
        reason = f"cannot be used: {error.message}"
        return None, [values.wrong(key, package, reason, right)], []
    try:
        laid = Resolved(_laid_over(own.data, item.name, overrides), [])
        together = manifest.checked(laid, at, owners)
    except ErrorGroup as group:
        return None, [_here(at, item.key, overrides, error) for error in group.errors], []
    together = together._replace(apart=(*written.apart, *together.apart))
    return Loaded(together, at, os.path.dirname(at)), [], []


def _laid_over(data: dict[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's data with the stack's overrides applied key by key.

    An array or a volume is replaced completely.
    """
    network = {key: value for key, value in overrides.items() if key in NETWORK_KEYS}
    more = {key: value for key, value in overrides.items() if key in TABLES}
    laid = stack_values.laid_over(data, {**more, "network": network, "package": {"name": name}})
    if network.get("mode", "share") != "share" and "share" not in network:
        laid["network"].pop("share", None)
    if isinstance(volumes := more.get("volumes"), dict):
        laid["volumes"].update(volumes)
    return laid


def _here(at: str, key: str, overrides: Mapping[str, Any], error: Error) -> InvalidInput:
    """Convert a manifest's error that the stack's overrides cause to the stack's keys."""
    mine = _key_here(key, overrides, error.key or "")
    if mine is None:
        return InvalidInput(f"with {values.escaped(at)}: {error.detail}", error.hint, key)
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
    """Return the path of a manifest's key in stack.toml; None if the key is not there."""
    if manifest_key == "package.name":
        return f"{key}.name"
    table, _, path = manifest_key.partition(".")
    first = re.split(r"[.\[]", path)[0]
    if table == "network":
        return f"{key}.{path}" if first in overrides else None
    override = overrides.get(table)
    # a quoted name is an unknown one, and the manifest alone has no such name
    here = not isinstance(override, dict) or first in override or not path or path.startswith('"')
    return f"{key}.{manifest_key}" if table in overrides and here else None
