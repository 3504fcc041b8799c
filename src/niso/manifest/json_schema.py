"""The JSON Schema (draft 2020-12) of manifest.toml, for editors and for `niso schema`.

Keys, types and defaults come from the tables of the manifest; patterns and descriptions are here. What a schema cannot say (folders
that must exist, names that clash, host ports taken twice) is left to `niso.manifest.validate`, which is never less strict.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType

from niso.base import convert
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import parse_health, parse_resources, validate, values
from niso.manifest.manifest_tables import Manifest
from niso.plan import mount_points

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind

_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PORTS = rf"{_PORT}(?:-{_PORT})?"
_OCTET = r"(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_LABEL = r"^(?!(?:host|localhost)$|ip6-)[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_DURATION = r"^(?:0|[1-9][0-9]{0,8})(?:ms|s|m|h)$"
_SIZE = r"^[1-9][0-9]{0,8}[KMG]$"
_PATH = r"^[^\u0000-\u001f\u007f]+$"
_NO_CLIMB = r"(?!(?:.*/)?\.\.(?:/|$))"
_ARGUMENT = r"^[^\u0000]*$"
_MOUNT = (
    rf"^(?!(?:{'|'.join(mount_points.TAKEN + mount_points.TAKEN_FILES)})(?:/|$))(?!(?:{'|'.join(mount_points.HIDING[1:])})$)"
    r"(?:/(?!\.{1,2}(?:/|$))[^/\u0000-\u001f\u007f]+)+$"
)
# Unicast only: not 0/8, 127/8, 169.254/16, nor 224/4 and above.
_IPV4 = rf"^(?!0\.|127\.|169\.254\.|22[4-9]\.|2[3-5][0-9]\.){_OCTET}(?:\.{_OCTET}){{3}}$"

_PEERS = (
    # a service or network, an IPv4 address or prefix, an IPv6 one without and with brackets: each with what may follow
    rf"(?:(?!(?:host|localhost)(?:[.:/]|$)|ip6-)[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?(?:\.niso\.local)?"
    rf"|network:(?!default(?:[:/]|$))[a-z][a-z0-9-]{{0,62}}|{_OCTET}(?:\.{_OCTET}){{3}}(?:/[0-9]{{1,2}})?"
    rf"|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{{1,3}})?\])(?::{_PORT}(?:-{_PORT})?(?:/(?:tcp|udp|sctp))?|/(?:tcp|udp|sctp|icmp))?"
    r"|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{1,3})?(?:/(?:tcp|udp|sctp|icmp))?"
)
_PEER = f"^(?:{_PEERS})$"
_PEER_FORMS = "a service, network:NAME, an address or a prefix, with :PORT or :PORT-PORT and /tcp, /udp, /sctp or /icmp."

_TEXTS: dict[str, tuple[str, str]] = {
    "Package.name": (
        _LABEL,
        f"The service's name: {values.NAME_RIGHT}; not host, localhost or ip6-*.",
    ),
    "Package.version": (r"^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,63}$", "The package's version."),
    "Package.rootfs": (
        rf"^(?!/){_NO_CLIMB}{_PATH[1:]}",
        "A folder beside the manifest: the service's own root file system, never written to.",
    ),
    "Binary.entrypoint": (
        rf"^{_NO_CLIMB}(?!.*/$){_PATH[1:]}",
        "A file of the package, else an absolute path of the rootfs, else a command on the service's PATH.",
    ),
    "Binary.args": (_ARGUMENT, "The entrypoint's arguments."),
    "Binary.working_dir": (
        rf"^/{_PATH[1:-2]}*$",
        "The folder that the service starts in; /app is the package.",
    ),
    "Service.user": (
        r"^(?:(?:0|[1-9][0-9]{0,9})(?::(?:0|[1-9][0-9]{0,9}))?|[A-Za-z_][A-Za-z0-9_.-]{0,31})$",
        "A name of the rootfs, or uid[:gid]. Without it the service has a uid of its own.",
    ),
    "Service.restart_delay": (
        _DURATION,
        "The delay before the first restart, 10ms to 1m. It doubles with each failure up to 1m.",
    ),
    "Service.stop_timeout": (_DURATION, "How long the service has from TERM to KILL, up to 1h."),
    "Network.share": (
        _LABEL,
        'With mode = "share": the service, of mode bridge or none, whose network namespace it joins.',
    ),
    "Resources.memory_max": (
        _SIZE,
        "The most memory, swap included: 64K, 512M, 2G (1024). At least 1M.",
    ),
    "Resources.cpu_max": (r"^[1-9][0-9]{0,6}%$", "The most CPU time: 100% is one CPU, 200% two."),
    "Healthcheck.http": (
        r"^http://(?:localhost|127\.[0-9.]+|\[[0-9a-fA-F:.]+\]|[a-z][a-z0-9.-]*)(?::[0-9]{1,5})?(?:[/?#].*)?$",
        "A URL of the service itself, whose answer must have a status of 200 to 399.",
    ),
    "Healthcheck.interval": (_DURATION, "From one probe to the next, 100ms to 24h."),
    "Healthcheck.timeout": (_DURATION, "What a probe may take, 10ms to 1m."),
    "Healthcheck.start_period": (
        _DURATION,
        "From the start: failures in it do not count. Up to 1h.",
    ),
    "Volume.mount": (
        _MOUNT,
        "Where it is inside the service: an absolute path, apart from all other volumes.",
    ),
    "Volume.host": (
        rf"^/{_PATH[1:-2]}*$",
        "A path of the host, a folder or a file, which must be there.",
    ),
    "Volume.size": (_SIZE, "The most that a tmpfs holds: 64K, 512M, 2G (1024)."),
    "Network.network": (
        r"^(?!default$)[a-z][a-z0-9-]{0,62}$",
        f"The network: {values.NETWORK_RIGHT}; not default.",
    ),
    "Network.networks": (
        r"^(?!default$)[a-z][a-z0-9-]{0,62}$",
        "Several networks instead of one: eth0, eth1 and so on. The first gives the default route.",
    ),
    "Network.ports": (
        rf"^(?:{_OCTET}(?:\.{_OCTET}){{3}}:(?:{_PORTS})?:|(?:\[[0-9A-Fa-f:.]{{2,45}}\]:)?(?:(?:{_PORTS})?:)?){_PORTS}(?:/(?:tcp|udp|sctp))?$",
        "Published ports: [ADDRESS:]HOST:CONTAINER[/PROTOCOL], ranges too.",
    ),
    "Network.hostname": (
        _LABEL,
        "The name in every peer's /etc/hosts; by default the package's name.",
    ),
    "Network.aliases": (_LABEL, "More names of the service."),
    "Policy.allow_from": (
        _PEER,
        f"Who alone may connect; without it all may. Each is {_PEER_FORMS}",
    ),
    "Policy.deny_from": (
        _PEER,
        f"Who may not connect, whatever allow_from says. Each is {_PEER_FORMS}",
    ),
    "Egress.allow": (
        _PEER,
        f"Where alone it may connect; without it everywhere. Each is {_PEER_FORMS}",
    ),
    "Egress.deny": (_PEER, f"Where it may not connect, whatever allow says. Each is {_PEER_FORMS}"),
    "Network.ip": (
        _IPV4,
        "A static IPv4 address; with several networks a table of network and address. An IPv6 address cannot be chosen: it is leased, and kept.",
    ),
}
_DESCRIPTIONS = {
    "Manifest.package": "What the service is called.",
    "Manifest.binary": "What it runs.",
    "Manifest.healthcheck": "How niso sees that it is well, from inside its network namespace: tcp or http.",
    "Manifest.volumes": "What it sees beside its root: folders that niso keeps, paths of the host, tmpfs.",
    "Isolation.resources": "How much of the machine it may have, where the machine's cgroups can hold it to that.",
    "Resources.pids_limit": "The most processes and threads at once, its PID 1 among them.",
    "Healthcheck.tcp": "A port that must accept a connection, on loopback or an address of the service.",
    "Healthcheck.retries": "So many failures in a row, after start_period, are unhealthy.",
    "Volume.mode": "Whether the path of the host can be written to.",
    "Volume.tmpfs": "Memory, empty at each start.",
    "Manifest.environment": "Environment variables of the service.",
    "Manifest.service": "How its process lives.",
    "Manifest.isolation": "What it may do.",
    "Manifest.network": "How it is reached and what it is called there.",
    "Service.restart": "When the process is started again after its end.",
    "Isolation.capabilities": "Capabilities that the service keeps, as in capabilities(7) without CAP_.",
    "Isolation.read_only": "Whether / is read-only; /tmp, /run and /var/tmp are always tmpfs.",
    "Network.policy": "Who may connect to the service, and where it may connect. It narrows what the networks let through.",
    "Policy.egress": "Where it may connect.",
    "Policy.log": "Whether `niso net log` shows what the policy drops.",
    "Network.mode": "bridge: a network namespace of its own on bridges. host: the host's network. none: a network namespace"
    " with lo alone. share: the network namespace of another service.",
}


def schema() -> dict[str, Any]:
    """The schema as plain data, for `json.dumps`."""
    found = definitions(Manifest)
    for table, definition in found.items():
        for name, field in definition["properties"].items():
            _describe(f"{table}.{name}", field)
    environment = found["Manifest"]["properties"]["environment"]
    environment["propertyNames"] = {"pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"}
    environment["additionalProperties"]["pattern"] = _ARGUMENT
    network = found["Network"]
    network["not"] = {"required": ["network", "networks"]}
    network["allOf"] = [_mode(mode, without) for mode, without in validate.WITHOUT.items()]
    network["properties"]["networks"] |= {"minItems": 1, "uniqueItems": True}
    network["properties"]["aliases"]["uniqueItems"] = True
    found["Isolation"]["properties"]["capabilities"]["items"] = {"enum": list(values.CAPABILITIES)}
    limits = found["Resources"]["properties"]["pids_limit"]
    limits |= {"minimum": parse_resources.MIN_PIDS, "maximum": parse_resources.MAX_PIDS}
    check_of = found["Healthcheck"]
    check_of["properties"]["tcp"] |= {"minimum": 1, "maximum": 65535}
    check_of["properties"]["retries"] |= {"minimum": 1, "maximum": parse_health.MAX_RETRIES}
    check_of["oneOf"] = [{"required": ["tcp"]}, {"required": ["http"]}]
    found["Manifest"]["properties"]["volumes"]["propertyNames"] = {
        "pattern": "^[A-Za-z][A-Za-z0-9_-]{0,62}$"
    }
    is_tmpfs = {"properties": {"tmpfs": {"const": True}}, "required": ["tmpfs"]}
    found["Volume"] |= {
        "if": is_tmpfs,
        "then": {"properties": {"host": False}},
        "else": {"properties": {"size": False}},
        "dependentRequired": {"mode": ["host"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso manifest.toml",
        "$ref": "#/$defs/Manifest",
        "$defs": found,
    }


def _mode(mode: str, without: tuple[str, ...]) -> dict[str, Any]:
    """What [network] may not have, and must have, in a mode; without the key it is bridge."""
    needs: dict[str, Any] = {"properties": {"mode": {"const": mode}}}
    if mode != "bridge":
        needs["required"] = ["mode"]
    then: dict[str, Any] = {"properties": dict.fromkeys(without, False)}
    if mode == "share":
        then["required"] = ["share"]
    return {"if": needs, "then": then}


def definitions(table: Any) -> dict[str, Any]:
    """What a table may hold, and each table that is in it, by their names: keys, types, and defaults that are not empty."""
    known = convert.fields(table)
    properties = {name: _kind(may_be) for name, may_be in known.items()}
    for name, default in table._field_defaults.items():
        if default not in (None, (), {}) and not convert.is_table(default):
            properties[name]["default"] = default
    found = {
        table.__name__: {
            "title": table.__name__,
            "type": "object",
            "properties": properties,
            "required": convert.required(table),
            "additionalProperties": False,
        }
    }
    for may_be in known.values():
        for each in _tables(may_be):
            found |= definitions(each)
    return found


def _tables(may_be: Kind) -> Iterator[Any]:
    """The tables that may be in a value."""
    for inside in may_be.values():
        if convert.is_table(inside):
            yield inside
        elif isinstance(inside, dict):
            yield from _tables(inside)


def _kind(may_be: Kind) -> dict[str, Any]:
    """What a value may be. None is left out, which TOML does not have."""
    choices = [_choice(form, inside) for form, inside in may_be.items() if form is not NoneType]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _choice(form: type, inside: Any) -> dict[str, Any]:
    if convert.is_table(inside):
        return {"$ref": f"#/$defs/{inside.__name__}"}
    if form is list:
        return {"type": "array", "items": _kind(inside)}
    if form is dict:
        return {"type": "object", "additionalProperties": _kind(inside)}
    return (
        {"enum": sorted(inside)}
        if inside
        else {"type": {str: "string", bool: "boolean", int: "integer"}[form]}
    )


def _describe(key: str, field: dict[str, Any]) -> None:
    """Put pattern and description on one field."""
    if key in _TEXTS:
        pattern, field["description"] = _TEXTS[key]
        for choice in field.get("anyOf", [field]):
            texts = {"array": "items", "object": "additionalProperties"}.get(choice["type"])
            (choice[texts] if texts else choice)["pattern"] = pattern
    else:
        field["description"] = _DESCRIPTIONS[key]
