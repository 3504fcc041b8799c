"""Convert a compose file to a stack.toml, and list what cannot be converted.

In Compose, several services may have the same alias. Two services may even declare the same host
port: Compose then fails to start the second service. niso refuses a stack.toml with such an alias
or port. The conversion therefore leaves the alias or port out of the later service, and lists it.
"""

from __future__ import annotations

import graphlib
import ipaddress
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from niso.base.errors import Error, InvalidInput
from niso.base.named_tuples import Any, NamedTuple
from niso.base.names import DEFAULT_NETWORK
from niso.base.text import escaped
from niso.compose.service_tables import (
    DEFAULT,
    ComposeFile,
    ComposeService,
    Missing,
    cron_times,
    has_check,
    label,
    no_instances,
)
from niso.compose.storage import Storage, beyond, items, scalar, with_variables
from niso.manifest import toml, variables, yaml_file
from niso.manifest.addresses_and_ports import parse_port
from niso.manifest.stack import long_name
from niso.plan.records import PortMapping

_IN_FILE = frozenset(("services", "networks", "volumes", "secrets", "name", "version"))
_OF_NETWORK = frozenset(
    ("internal", "ipam", "enable_ipv6", "driver", "driver_opts", "labels", "attachable", "name")
)
_OF_POOLS: dict[str, Callable[[str], object]] = {
    "subnet": ipaddress.ip_network,
    "gateway": ipaddress.ip_address,
}
_MTU = "com.docker.network.driver.mtu"
_NOT_HERE = {
    "configs": "mount the file as a volume, read-only",
    "include": "import the other file too",
}


class ImportedStack(NamedTuple):
    """The result of converting a compose file to a stack.toml."""

    stack: str  # name of the stack
    services: tuple[str, ...]  # strings: names of the services
    file: str | None  # path of the written stack.toml; null if none was written
    text: str  # content of the stack.toml
    missing: tuple[Missing, ...]  # what was not converted
    commands: tuple[str, ...]
    """strings: commands that fetch the root file systems; run them in the folder of the
    stack.toml
    """


def _in_env_file(folder: str) -> frozenset[str]:
    try:
        return frozenset(variables.read(os.path.realpath(os.path.join(folder, ".env")), {}))
    except Error:
        return frozenset()


def _linked(services: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return {service: aliases}: the aliases that ``links`` of other services give to a service. In
    Compose, only the service with the key ``links`` can resolve such an alias. In a stack, all
    services of a network can resolve it.
    """
    linked: dict[str, list[str]] = {}
    for keys in services.values():
        for link in items(keys.get("links")):
            service, _, alias = scalar(link).partition(":")
            if alias and service in services:
                linked.setdefault(service, []).append(alias)
    return linked


def convert(path: str, target: str | None) -> ImportedStack:
    """Convert the compose file at ``path`` to the text of a stack.toml, without writing a file.

    ``target`` is the folder in which the stack.toml will be. If it is None, all host paths are
    absolute. Raises the errors of `yaml_file.load`, and InvalidInput if the file has no services.
    """
    folder = os.path.dirname(os.path.abspath(path))
    target = None if target is None else os.path.abspath(target)
    gaps: list[Missing] = []
    data, used, needed = with_variables(yaml_file.load(path))
    given_ones = _in_env_file(folder)
    for name in sorted(needed - given_ones):
        gaps.append(Missing("", f"${{{name}}}", "it must be set, in .env next to the stack.toml"))
    if target != folder and (listed := ", ".join(sorted((needed | used) & given_ones))):
        gaps.append(Missing("", ".env", f"copy it next to the stack.toml: it sets {listed}"))
    given = data.get("services")
    if not isinstance(given, dict) or not given:
        raise InvalidInput("has no services", "pass a compose.yaml", "services", file=path)
    services = dict(_started(given, gaps))
    if not services:
        raise InvalidInput("has no service without a profile", None, "services", file=path)
    stack = label(scalar(data.get("name")) or os.path.basename(folder) or "stack")
    networks, tables = _networks(data.get("networks"), stack, gaps)
    world = ComposeFile(
        stack,
        _names(services),
        networks,
        frozenset(name for name, keys in _items(data.get("networks")) if keys.get("internal")),
        frozenset(name for name, keys in services.items() if has_check(keys)),
        frozenset(_jobs(services)),
        frozenset(scalar(keys.get("network_mode"))[8:] for keys in services.values()),
        Storage(stack, folder, target, services),
        {
            name: text
            for name, keys in _items(data.get("secrets"))
            if (text := scalar(keys.get("file")))
        },
        _linked(services),
    )
    made = [ComposeService(name, keys, world) for name, keys in services.items()]
    _refuse_cycles(made, path)
    remove_clashes(made)
    gaps += [gap for service in made for gap in service.gaps]
    for name, keys in _items(data.get("volumes")):
        if beyond(keys, ("labels", "driver")) or keys.get("driver", "local") != "local":
            gaps.append(Missing("", f"volumes.{name}", "its settings are not taken over"))
    for key in beyond(data, _IN_FILE):
        if not key.startswith("x-") and data[key]:
            gaps.append(Missing("", key, _NOT_HERE.get(key, "niso has no such key")))
    # a network that no service uses would only occupy a subnet
    used = {name for one in made for name in one.tables.get("network", {}).get("networks", ())}
    own = {name: keys for name, keys in tables.items() if name in used}
    text = "\n".join(
        (
            *toml.table("stack", {"name": stack, "prefix": True}, 0),
            *(toml.table("networks", own, 0) if own else ()),
            *(line for one in made for line in _lines(one)),
        )
    )
    names, commands = (
        tuple(one.name for one in made),
        tuple(line for one in made for line in _fetch(one.name, one.image)),
    )
    return ImportedStack(stack, names, None, text.rstrip() + "\n", tuple(gaps), commands)


def _fetch(service: str, image: str) -> list[str]:
    if not image:
        return []
    word, folder = shlex.quote(image), f"rootfs/{service}"
    return [
        f"skopeo copy docker://{word} oci:images/{service}:latest"
        f" && umoci raw unpack --image images/{service}:latest {folder}",
        f"mkdir -p {folder} && podman export $(podman create {word}) | tar -x -C {folder}",
    ]


def _refuse_cycles(services: list[ComposeService], path: str) -> None:
    needs = {one.name: one.tables.get("depends_on", {}) for one in services}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise InvalidInput(
            f"is a dependency cycle: {cycle}", "remove one of these", "depends_on", file=path
        ) from None


def _started(given: Mapping[str, Any], gaps: list[Missing]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, keys) of the services ``given`` that `docker compose up` starts. Services with a
    profile or without instances are left out, and added to ``gaps``.
    """
    for name, keys in given.items():
        if isinstance(keys, dict) and keys.get("profiles"):
            profiles = ", ".join(map(scalar, items(keys["profiles"])))
            gaps.append(Missing(name, "profiles", f"left out: it belongs to {profiles}"))
        elif isinstance(keys, dict) and (key := no_instances(keys)):
            gaps.append(Missing(name, key, "left out: it has no instances"))
        elif isinstance(keys, dict):
            yield name, keys
        else:
            gaps.append(Missing(name, "", "is not a mapping: left out"))


def _names(services: Mapping[str, Any]) -> dict[str, str]:
    """Return {name in the compose file: valid, unique name in the stack} for these services."""
    names: dict[str, str] = {}
    for name in services:
        plain = label(name)
        if plain in ("host", "localhost") or plain.startswith("ip6-"):
            plain = f"{plain}-1"
        names[name] = _free(plain, names.values())
    return names


def _free(wanted: str, taken: Collection[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}-{number}", number + 1
    return name


def _jobs(services: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for own, keys in services.items():
        if cron_times(keys):
            yield own
        needs = keys.get("depends_on")
        for name, item in needs.items() if isinstance(needs, dict) else ():
            if isinstance(item, dict) and item.get("condition") == "service_completed_successfully":
                yield name


def _items(given: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, item in given.items() if isinstance(given, dict) else ():
        yield name, item if isinstance(item, dict) else {}


def _networks(
    given: object, stack: str, gaps: list[Missing]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Convert the networks of the compose file. Returns (names, settings).

    ``names`` maps a network's name in the compose file to its name in the stack. ``settings`` maps
    the name in the stack to the network's table in the stack.toml. Compose's network ``default``
    becomes niso-default, or ``main`` if the compose file configures it. Services that share no
    network in the compose file share none in the stack either.
    """
    names: dict[str, str] = {DEFAULT: DEFAULT_NETWORK}
    external: dict[str, str] = {}
    tables: dict[str, dict[str, Any]] = {}
    # external ones first, since their names are fixed
    for name, keys in sorted(_items(given), key=lambda item: not item[1].get("external")):
        outside = keys.get("external")
        # external: {name: ...} is the form of version 2 and 3 of the file
        called = scalar((outside if isinstance(outside, dict) else keys).get("name"))
        if outside:
            external.setdefault(called or name, _free(label(called or name), external.values()))
            names[name] = external[called or name]
            make = f"niso net create {names[name]}"
            gaps.append(
                Missing("", f"networks.{name}", f"it is external: {make}, unless it exists")
            )
        elif name != DEFAULT or keys:
            own = _free("main" if name == DEFAULT else label(name), names.values())
            names[name] = own
            tables[own] = _network(name, keys, gaps)
            if called:
                what = f"it is {long_name(stack, own)}, for other stacks too"
                gaps.append(Missing("", f"networks.{name}.name", what))
    return names, tables


def _network(name: str, keys: Mapping[str, Any], gaps: list[Missing]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if keys.get("internal"):
        table["internal"] = True
    ipam = keys.get("ipam")
    entries = ipam.get("config") if isinstance(ipam, dict) else None
    pools = [entry for entry in items(entries) if isinstance(entry, dict)]
    place = f"networks.{name}"
    if ipam and len(pools) != len(items(entries) or [ipam]):
        gaps.append(Missing("", f"{place}.ipam", "is not a list of mappings: not taken over"))
    for key, rule in _OF_POOLS.items():
        texts = []
        for text in (scalar(pool[key]) for pool in pools if pool.get(key)):
            if "${" in text or _is_valid(text, rule):
                texts.append(text)
            else:
                gaps.append(Missing("", f"{place}.{key}", f"{text!r} is not one: not taken over"))
        if texts:
            table[key] = texts[0] if len(texts) == 1 else texts
    for key in sorted({key for pool in pools for key in pool} - _OF_POOLS.keys()):
        gaps.append(Missing("", f"{place}.{key}", "niso has no such key"))
    if keys.get("enable_ipv6") and not any(":" in scalar(pool.get("subnet")) for pool in pools):
        table["ipv6"] = True
    options = keys.get("driver_opts")
    options = options if isinstance(options, dict) else {}
    mtu = scalar(options.get(_MTU))
    if mtu.isdigit():
        table["mtu"] = int(mtu)
    for key in options:
        if key != _MTU or not mtu.isdigit():
            gaps.append(Missing("", f"{place}.driver_opts", f"{key} is not taken over"))
    for key in beyond(keys, _OF_NETWORK):
        if not key.startswith("x-") and keys[key]:
            gaps.append(Missing("", f"{place}.{key}", "niso has no such key"))
    if scalar(keys.get("driver")) not in ("", "bridge"):
        gaps.append(Missing("", f"{place}.driver", "niso's networks are bridges"))
    return table


def _is_valid(text: str, rule: Callable[[str], object]) -> bool:
    try:
        rule(text)
    except ValueError:
        return False
    return True


def _lines(service: ComposeService) -> Iterator[str]:
    for gap in service.gaps:
        place = f"{gap.key}: " if gap.key else ""
        yield escaped(f"# {place}{gap.text}")
    header = f"services.{service.name}"
    if "depends_on" in service.tables:
        yield from toml.table(header, {"depends_on": service.tables["depends_on"]}, 0)
    for name, data in service.tables.items():
        if name != "depends_on":
            yield from toml.table(f"{header}.{name}", data, 1 if name == "isolation" else 0)


def _networks_of(name: str, services: Mapping[str, ComposeService]) -> tuple[str, ...]:
    """Return the networks on which a service has names. For a service that shares a network
    namespace, these are the networks of its provider.
    """
    table = services[name].tables.get("network", {})
    if table.get("mode") == "share":
        table = services[table["share"]].tables.get("network", {})
    if table.get("mode", "bridge") != "bridge":
        return ()
    return tuple(table.get("networks", (DEFAULT_NETWORK,)))


def remove_clashes(services: Iterable[ComposeService]) -> None:
    """Remove names and host ports from services if an earlier service already has them. The names
    are hostnames and aliases. Each removal is recorded in the service's ``gaps``.
    """
    by_name = {service.name: service for service in services}
    # a service keeps its own name, whatever aliases earlier services have
    names = {(on, name): name for name in by_name for on in _networks_of(name, by_name)}
    ports: list[tuple[PortMapping, str]] = []

    def may_have(service: ComposeService, key: str, name: str) -> bool:
        """Reserve a name on a service's networks. If an earlier service has it on one of them, add
        the key ``key`` to the service's gaps and return False.
        """
        on = _networks_of(service.name, by_name)
        for network in on:
            holder = names.get((network, name), service.name)
            if holder != service.name:
                what = f"{name!r} is a name of {holder} on the same network: left out"
                service.gaps.append(Missing(service.given, key, what))
                return False
        names.update(dict.fromkeys(((network, name) for network in on), service.name))
        return True

    def may_publish(service: ComposeService, key: str, text: str) -> bool:
        """Reserve the host ports of a published port. If an earlier service has one of them, add
        the key ``key`` to the service's gaps and return False.
        """
        try:
            port = parse_port(text, key)
        except InvalidInput:  # the entry has a variable
            return True
        for other, holder in ports:
            if port.host_port and port.clashes(other):
                what = f"{text!r} has a host port of {holder}: left out"
                service.gaps.append(Missing(service.given, key, what))
                return False
        if port.host_port:
            ports.append((port, service.name))
        return True

    for service in by_name.values():
        table = service.tables.get("network", {})
        if "hostname" in table and not may_have(service, "hostname", table["hostname"]):
            del table["hostname"]
        for key, may in (("aliases", may_have), ("ports", may_publish)):
            if kept := [text for text in table.get(key, ()) if may(service, key, text)]:
                table[key] = kept
            else:
                table.pop(key, None)
        if not table:
            service.tables.pop("network", None)
