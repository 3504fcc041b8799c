"""stack.toml: several services and their networks as one thing. What the file says, checked with the manifests that it names.

A service's keys lie over those of its package's manifest.toml: the keys of [network] flat, the other tables by their names.
"""

from __future__ import annotations

import graphlib
import os
import re
from collections.abc import Callable, Iterable, Mapping

from niso.base import convert
from niso.base.errors import ErrorGroup, InvalidInput, NisoError
from niso.base.lite_typing import TYPE_CHECKING, Literal, NamedTuple
from niso.manifest import load as manifest
from niso.manifest import manifest_tables, toml, validate, values
from niso.manifest.load import Loaded
from niso.manifest.manifest_tables import Manifest
from niso.plan.service_spec import ServiceSpec

if TYPE_CHECKING:
    from typing import Any

FILE_NAME = "stack.toml"
Condition = Literal["started", "healthy"]

NETWORK_KEYS = manifest_tables.Network._fields
"""The keys of a manifest's [network], which stand flat in a [[service]]."""
TABLES = tuple(name for name in Manifest._fields if name not in ("package", "network"))
"""The tables of a manifest that a [[service]] may have: [service.environment] and so on."""
_INSTEAD = {"network": "networks", "networks": "network", "tcp": "http", "http": "tcp"}
"""Keys that say the same in another way: the stack's takes the place of the manifest's."""


class Head(NamedTuple):
    name: str


class Network(NamedTuple):
    """A network as `niso net create` knows it."""

    subnet: str | tuple[str, ...] = ()
    ipv6: bool = False
    internal: bool = False
    gateway: str | tuple[str, ...] = ()
    mtu: int | None = None

    @property
    def subnets(self) -> tuple[str, ...]:
        return (self.subnet,) if isinstance(self.subnet, str) else self.subnet

    @property
    def gateways(self) -> tuple[str, ...]:
        return (self.gateway,) if isinstance(self.gateway, str) else self.gateway


class Own(NamedTuple):
    """What a [[service]] has beside the manifest's keys."""

    name: str
    package: str
    depends_on: dict[str, Condition] | tuple[str, ...] = ()


class Member(NamedTuple):
    """A service of a stack."""

    key: str  # service[1]
    loaded: Loaded  # its package's manifest with the stack's keys over it
    overrides: Mapping[str, Any]
    after: Mapping[str, Condition]  # service -> what it must be before this one starts

    @property
    def name(self) -> str:
        return self.loaded.spec.name

    @property
    def has_healthcheck(self) -> bool:
        return self.loaded.spec.healthcheck is not None


class Stack(NamedTuple):
    name: str
    path: str  # of the file, absolute
    networks: Mapping[str, Network]
    members: tuple[Member, ...]  # each after those that it depends on

    @property
    def file(self) -> str:
        """The path, for messages."""
        return values.escaped(self.path)


class Outline(NamedTuple):
    """What can be told of a stack without its packages, however wrong the rest of the file is."""

    name: str
    path: str
    after: Mapping[str, tuple[str, ...]]  # each service, with those that it depends on


Also = Callable[[str, Network], Iterable[InvalidInput]]
"""Further errors of a network of that name, which has no wrong type; their keys are whole (``networks.backend.subnet``)."""


def place(path: str) -> str:
    """The absolute path of the stack.toml that ``path``, a file or a folder, means."""
    path = os.path.abspath(path)
    return (
        path
        if path.endswith(".toml") and not os.path.isdir(path)
        else os.path.join(path, FILE_NAME)
    )


def outline(path: str) -> Outline:
    """The name, services and dependencies of a stack.toml. Raises NotFound, NisoError, InvalidInput (no TOML, no name)."""
    path = place(path)
    data = toml.load(path, FILE_NAME)
    try:
        name = convert.convert(data.get("stack"), Head).name
        values.service_name(name, "stack.name")
    except convert.Mismatch:
        errors = validate.walk({"stack": data.get("stack", {})}, _Whole)
        raise ErrorGroup(
            [_in_file(path, error) for error in errors if (error.key or "").startswith("stack")]
        ) from None
    except InvalidInput as error:
        raise _in_file(path, error) from None
    after: dict[str, tuple[str, ...]] = {}
    for _, item in _tables(data.get("service")):
        needs = item.get("depends_on")
        if isinstance(own := item.get("name"), str):
            after[own] = (
                tuple(each for each in needs if isinstance(each, str))
                if isinstance(needs, dict | list)
                else ()
            )
    return Outline(name, path, after)


def load(path: str, also: Also = lambda _name, _network: ()) -> Stack:
    """Read and check the stack.toml at ``path``, a file or its folder, and the manifests of its packages.

    Raises NotFound, NisoError, InvalidInput (no TOML), and else an ErrorGroup of all that is wrong in the file and in the
    manifests: each names its file, key and value.
    """
    path = place(path)
    data = toml.load(path, FILE_NAME)
    name, networks, errors = _top(data, also)
    told: list[NisoError] = []  # of other files
    items: dict[str, _Item] = {}
    members: list[Member] = []
    for key, keys in _tables(data.get("service")):
        own = {name: value for name, value in keys.items() if name in Own._fields}
        overrides = {
            name: value for name, value in keys.items() if name in (*NETWORK_KEYS, *TABLES)
        }
        errors += [*validate.walk(own, Own, key), *_unknown(keys, key)]
        item = _item(own, key)
        if wrong := _name_error(item, own.get("name"), items):
            errors.append(wrong)
        elif isinstance(package := own.get("package"), str):
            items[item.name] = item
            loaded, wrongs, elsewhere = _package(path, item, package, overrides)
            errors, told = errors + wrongs, told + elsewhere
            if loaded is not None:
                members.append(Member(key, loaded, overrides, item.after))
    errors += _dependencies(items, {member.name: member.loaded.spec for member in members})
    if errors or told:
        raise ErrorGroup([*(_in_file(path, error) for error in errors), *told])
    order = ordered({item.name: item.after for item in items.values()})
    return Stack(
        name, path, networks, tuple(sorted(members, key=lambda member: order.index(member.name)))
    )


def ordered(after: Mapping[str, Iterable[str]]) -> list[str]:
    """The names, each after those that it needs; as they are where they need each other."""
    try:
        return [name for name in graphlib.TopologicalSorter(after).static_order() if name in after]
    except graphlib.CycleError:
        return list(after)


def in_words_of(stack: Stack, error: NisoError) -> NisoError:
    """The error of a service's manifest as one of the stack's file, where that file has the key."""
    for member in stack.members:
        path = member.loaded.path
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


# --- the parts of the file -------------------------------------------------------------------------------------------


class _Blank(NamedTuple):
    """A [[service]] without its keys, which are looked at by themselves."""


class _Whole(NamedTuple):
    stack: Head
    service: tuple[_Blank, ...]
    networks: dict[str, Network] = {}  # noqa: RUF012 (convert copies it)


def _in_file(path: str, error: NisoError) -> NisoError:
    new = InvalidInput.of(error)
    new.file = values.escaped(path)
    return new


def _tables(items: object) -> list[tuple[str, dict[str, Any]]]:
    """Key and content of each [[service]] that is a table."""
    found = enumerate(items if isinstance(items, list) else [])
    return [(f"service[{index}]", item) for index, item in found if isinstance(item, dict)]


def _refused(rule: Callable[[str, str], object], value: str, key: str) -> InvalidInput | None:
    try:
        rule(value, key)
    except InvalidInput as error:
        return error
    return None


def _top(data: dict[str, object], also: Also) -> tuple[str, dict[str, Network], list[InvalidInput]]:
    """The stack's name, its networks, and what is wrong with all but the services."""
    shape = {
        **data,
        "service": [{} for _ in items] if isinstance(items := data.get("service"), list) else items,
    }
    if "service" not in data:
        del shape["service"]
    for index, item in enumerate(items if isinstance(items, list) else []):
        if not isinstance(item, dict):
            shape["service"][index] = item  # type: ignore[index]
    errors = validate.walk(shape, _Whole)
    if items == []:
        errors.append(values.wrong("service", [], "it is empty", "one [[service]] or more"))
    head = data.get("stack")
    name = head.get("name") if isinstance(head, dict) else None
    if isinstance(name, str) and (error := _refused(values.service_name, name, "stack.name")):
        errors.append(error)
    networks: dict[str, Network] = {}
    said = data.get("networks")
    for own, keys in said.items() if isinstance(said, dict) else ():
        key = validate.join("networks", own)
        wrong = _refused(values.network_name, own, key)
        if wrong:
            errors.append(wrong)
        elif isinstance(keys, dict) and not validate.walk(keys, Network, key):
            networks[own] = convert.convert(keys, Network)
            errors += also(own, networks[own])
    return str(name), networks, errors


def _unknown(keys: Mapping[str, object], key: str) -> Iterable[InvalidInput]:
    """The keys of a [[service]] that neither it nor a manifest has."""
    known = (*Own._fields, *NETWORK_KEYS, *TABLES)
    for name, value in keys.items():
        path = validate.join(key, name)
        if name in known:
            continue
        near = validate.nearest(name, list(known))
        right = validate.join(key, near) if near else f"one of {', '.join(known)}"
        hint = f"did you mean {validate.join(key, near)}?" if near else f"leave {path} out"
        yield InvalidInput(
            "the key is unknown",
            hint,
            path,
            value=values.shown(value),
            right=right,
        )


# --- a service and its package ---------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """What others need to know of a [[service]]."""

    key: str
    name: str
    after: dict[str, Condition]
    listed: bool  # it has its dependencies as an array

    def path(self, dependency: str) -> str:
        """The key of a dependency."""
        base = f"{self.key}.depends_on"
        return (
            f"{base}[{list(self.after).index(dependency)}]"
            if self.listed
            else validate.join(base, dependency)
        )


def _item(own: Mapping[str, Any], key: str) -> _Item:
    """As much as is of the right type."""
    needs = own.get("depends_on")
    after: dict[str, Condition] = {}
    if isinstance(needs, list):
        after = {name: "started" for name in needs if isinstance(name, str)}
    for name, state in needs.items() if isinstance(needs, dict) else ():
        if state in convert.kind(Condition)[str]:
            after[name] = state
    return _Item(key, str(own.get("name", "")), after, isinstance(needs, list))


def _name_error(item: _Item, name: object, items: Mapping[str, _Item]) -> InvalidInput | None:
    if not isinstance(name, str):
        return None
    key = f"{item.key}.name"
    if item.name in items:
        return values.wrong(
            key, name, f"{items[item.name].key} has it", "a name of its own for each service"
        )
    return _refused(values.service_name, name, key)


def _package(
    path: str, item: _Item, package: str, overrides: Mapping[str, Any]
) -> tuple[Loaded | None, list[InvalidInput], list[NisoError]]:
    """A service's manifest with the stack's keys over it; what is wrong in the stack's file, and in the manifest by itself."""
    key, right = f"{item.key}.package", "a folder with a manifest.toml"
    if not package or not package.isprintable():
        return None, [values.wrong(key, package, "it is no path", right, '"./api"')], []
    at = manifest.place(os.path.join(os.path.dirname(path), package))
    try:
        data = toml.load(at, manifest.FILE_NAME)
        manifest.checked(data, at)
    except ErrorGroup as group:
        return None, [], group.errors
    except NisoError as error:
        if isinstance(error, InvalidInput):
            return None, [], [error]
        return None, [values.wrong(key, package, error.message, right)], []
    try:
        together = manifest.checked(_laid_over(data, item.name, overrides), at)
    except ErrorGroup as group:
        return None, [_here(at, item.key, overrides, error) for error in group.errors], []
    return Loaded(together, at, os.path.dirname(at)), [], []


def _laid_over(data: dict[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's data with the stack's over it, key by key; an array, and a volume, is replaced as a whole."""
    network = {key: value for key, value in overrides.items() if key in NETWORK_KEYS}
    more = {key: value for key, value in overrides.items() if key in TABLES}
    laid = _over(data, {**more, "network": network, "package": {"name": name}})
    if network.get("mode", "share") != "share" and "share" not in network:
        laid["network"].pop("share", None)
    if isinstance(volumes := more.get("volumes"), dict):
        laid["volumes"].update(volumes)
    return laid


def _over(base: dict[str, Any], laid: Mapping[str, Any]) -> dict[str, Any]:
    gone = {_INSTEAD[key] for key in laid if key in _INSTEAD} - laid.keys()
    found = {
        key: value for key, value in base.items() if key not in gone or isinstance(value, dict)
    }
    for key, value in laid.items():
        under = found.get(key, {})
        found[key] = (
            _over(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
        )
    return found


def _here(at: str, key: str, overrides: Mapping[str, Any], error: NisoError) -> InvalidInput:
    """An error of a manifest that comes of the stack's keys, in the stack's words."""
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
    """A manifest's key as the stack's file has it; None where it does not."""
    if manifest_key == "package.name":
        return f"{key}.name"
    table, _, rest = manifest_key.partition(".")
    first = re.split(r"[.\[]", rest)[0]
    if table == "network":
        return f"{key}.{rest}" if first in overrides else None
    found = overrides.get(table)
    # a name in quotes is a wrong one, and the manifest by itself has none
    here = not isinstance(found, dict) or first in found or not rest or rest.startswith('"')
    return f"{key}.{manifest_key}" if table in overrides and here else None


# --- dependencies ----------------------------------------------------------------------------------------------------


def _dependencies(
    items: Mapping[str, _Item], known: Mapping[str, ServiceSpec]
) -> Iterable[InvalidInput]:
    """Dependencies on nobody, on the health of a service without a healthcheck, and in a circle."""
    for item in items.values():
        for name, condition in item.after.items():
            path = item.path(name)
            if name not in items:
                near = validate.nearest(name, list(items))
                right = f"one of {', '.join(sorted(items))}"
                yield values.wrong(
                    path,
                    name,
                    "the stack has no such service",
                    right,
                    values.shown(near) if near else "",
                )
            elif condition == "healthy" and name in known and known[name].healthcheck is None:
                reason = f"{name!r} has no healthcheck"
                yield values.wrong(
                    path,
                    condition,
                    reason,
                    f'"started", or a [healthcheck] in the manifest of {name!r}',
                )
    circle = _circle(
        {item.name: [each for each in item.after if each in items] for item in items.values()}
    )
    if circle:
        first = items[min(circle, key=list(items).index)]
        reason = f"the services wait for each other: {' -> '.join(circle)}"
        yield values.wrong(
            f"{first.key}.depends_on", list(first.after), reason, "an order without a circle"
        )


def _circle(after: Mapping[str, Iterable[str]]) -> list[str]:
    """The services of one circle, each before the one that it waits for, the first again at the end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []
