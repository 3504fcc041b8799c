"""Build the JSON Schemas (draft 2020-12) of manifest.toml and stack.toml, for editors.

`niso schema` prints them. Keys, types and defaults come from `niso.manifest.keys`; patterns and
descriptions are here. `niso.manifest.validate` accepts nothing that the schema rejects. It also
checks what a schema cannot express: that folders exist, that names differ, that no host port is
used twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import NoneType

from niso.base import convert
from niso.base.named_tuples import TYPE_CHECKING
from niso.manifest import addresses_and_ports, policy, process_keys, stack, validate, values
from niso.manifest.keys import Manifest
from niso.plan import specs

if TYPE_CHECKING:
    from typing import Any

    from niso.base.convert import Kind


# --- manifest.toml --------------------------------------------------------------------------------


_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PORTS = rf"{_PORT}(?:-{_PORT})?"
_OCTET = r"(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_LABEL = r"^(?!(?:host|localhost)$|ip6-)[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"
_DURATION = r"^(?:0|[1-9][0-9]{0,8})(?:ms|s|m|h)$"
_SIZE = r"^[1-9][0-9]{0,8}[KMG]$"
_PATH = r"^[^\u0000-\u001f\u007f]+$"
_NO_CLIMB = r"(?!(?:.*/)?\.\.(?:/|$))"
_ARGUMENT = r"^[^\u0000]*$"
_WORD = r"^[^\u0000]+$"
_MOUNT = (
    rf"^(?!(?:{'|'.join(specs.TAKEN + specs.TAKEN_FILES)})(?:/|$))"
    rf"(?!(?:{'|'.join(specs.HIDING[1:])})$)"
    r"(?:/(?!\.{1,2}(?:/|$))[^/\u0000-\u001f\u007f]+)+$"
)
_NETWORK = r"^(?!(?:default|none|host)$)[a-z][a-z0-9-]{0,62}$"
# Unicast only: not 0/8, 127/8, 169.254/16, nor 224/4 and above; for IPv6 only the characters.
_IPV6 = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
_STATIC = (
    rf"^(?:(?!0\.|127\.|169\.254\.|22[4-9]\.|2[3-5][0-9]\.){_OCTET}(?:\.{_OCTET}){{3}}|{_IPV6})$"
)
_ADDRESS = rf"{_OCTET}(?:\.{_OCTET}){{3}}|{_IPV6}"
_DOMAIN = r"^[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*$"

_SUFFIX = rf"(?::{_PORT}(?:-{_PORT})?(?:/(?:tcp|udp|sctp))?|/(?:tcp|udp|sctp|icmp))?"
_PEERS = (
    # a service, a network, an IPv4 address or prefix, an IPv6 one in brackets
    r"(?:(?!(?:host|localhost)(?:[.:/]|$)|ip6-)[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.niso\.local)?"
    r"|network:(?!(?:default|none|host)(?:[:/]|$))[a-z][a-z0-9-]{0,62}"
    rf"|{_OCTET}(?:\.{_OCTET}){{3}}(?:/[0-9]{{1,2}})?"
    rf"|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{{1,3}})?\]){_SUFFIX}"
    # an IPv6 address or prefix without brackets, and its suffix
    r"|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:/[0-9]{1,3})?(?:/(?:tcp|udp|sctp|icmp))?"
)
_PEER = f"^(?:{_PEERS})$"
# a domain name of two labels or more, not below niso.local
_OUTSIDE = (
    r"(?!(?:[a-z0-9-]+\.)*(?:niso\.local|localhost)(?:[:/]|$))"
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_PEER_OR_OUTSIDE = f"^(?:{_PEERS}|{_OUTSIDE}{_SUFFIX})$"
_PEER_FORMS = (
    "Each is a service, network:NAME, an address or a prefix, optionally with :PORT or :PORT-PORT, "
    "and with /tcp, /udp, /sctp or /icmp."
)

_TEXTS: dict[str, tuple[str, str]] = {
    "Package.name": (
        _LABEL,
        f"Name of the service: {values.NAME_RIGHT}. host, localhost and ip6-* are reserved.",
    ),
    "Package.version": (r"^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,63}$", "Version of the package."),
    "Package.rootfs": (
        rf"^(?!/){_NO_CLIMB}{_PATH[1:]}",
        "Folder beside the manifest: the service's root file system. niso never writes to it.",
    ),
    "Binary.entrypoint": (
        rf"^{_NO_CLIMB}(?!.*/$){_PATH[1:]}",
        "File of the package, absolute path in the rootfs, or command on the service's PATH.",
    ),
    "Binary.args": (_ARGUMENT, "Arguments of the entrypoint."),
    "Binary.working_dir": (
        rf"^/{_PATH[1:-2]}*$",
        "Working directory. /app is the package.",
    ),
    "Service.user": (
        r"^(?:(?:0|[1-9][0-9]{0,9})(?::(?:0|[1-9][0-9]{0,9}))?|[A-Za-z_][A-Za-z0-9_.-]{0,31})$",
        "User name of the rootfs, or uid[:gid]. If unset, niso assigns a uid.",
    ),
    "Service.restart_delay": (
        _DURATION,
        "Delay before the first restart, 10ms to 1m. It doubles with each failure, up to 1m.",
    ),
    "Service.stop_timeout": (_DURATION, "Time from TERM to KILL, up to 1h."),
    "Service.timeout": (_DURATION, "Time limit of a job, 100ms to 24h. If unset, it has none."),
    "Network.share": (
        _LABEL,
        'With mode = "share": join the network namespace of this service, whose mode is bridge or '
        "none.",
    ),
    "Resources.memory_max": (
        _SIZE,
        "Memory limit, including swap: 64K, 512M, 2G (powers of 1024). At least 1M.",
    ),
    "Resources.shm_size": (_SIZE, "Size limit of /dev/shm: 64K, 512M, 2G. At least 64K."),
    "Resources.tmp_size": (
        _SIZE,
        "Size limit of each of /tmp, /run and /var/tmp, at least 64K. If unset, a quarter of "
        "memory_max, or 256M without it.",
    ),
    "Resources.cpu_max": (r"^[1-9][0-9]{0,6}%$", "CPU limit: 100% is one CPU, 200% two."),
    "Healthcheck.http": (
        r"^http://(?:localhost|127\.[0-9.]+|\[[0-9a-fA-F:.]+\]|[a-z][a-z0-9.-]*)"
        r"(?::[0-9]{1,5})?(?:[/?#].*)?$",
        "URL of the service itself that must respond with status 200 to 399.",
    ),
    "Healthcheck.command": (
        _ARGUMENT,
        "Command to run inside the service, as its user, without a shell. Exit status 0 is "
        "healthy.",
    ),
    "Healthcheck.interval": (_DURATION, "Time between probes, 100ms to 24h."),
    "Healthcheck.timeout": (_DURATION, "Time limit of a probe, 10ms to 1m."),
    "Healthcheck.start_period": (
        _DURATION,
        "Time after the start in which failures do not count, up to 1h.",
    ),
    "Volume.mount": (
        _MOUNT,
        "Mount point inside the service: an absolute path that overlaps no other volume.",
    ),
    "Volume.host": (
        rf"^(?:/|\.$|\./){_PATH[1:-2]}*$",
        "Path of an existing folder or file on the host: absolute, or ./ and a path below the "
        "manifest's folder.",
    ),
    "Service.env_file": (
        _PATH,
        "File of environment variables, or an array of them, relative to the manifest. "
        "[environment] comes before them.",
    ),
    "Secret.file": (
        _PATH,
        "File of the host with the secret: absolute, or below the manifest's folder. It is read at "
        "each start.",
    ),
    "Volume.size": (_SIZE, "Size limit of a tmpfs: 64K, 512M, 2G (powers of 1024)."),
    "Network.network": (
        _NETWORK,
        f"Name of the network: {values.NETWORK_RIGHT}. default, none and host are reserved.",
    ),
    "Network.networks": (
        _NETWORK,
        "Several networks instead of one: eth0, eth1 and so on. The first that is not internal has "
        "the default route.",
    ),
    "Network.ports": (
        rf"^(?:{_OCTET}(?:\.{_OCTET}){{3}}:(?:{_PORTS})?:"
        rf"|(?:\[[0-9A-Fa-f:.]{{2,45}}\]:)?(?:(?:{_PORTS})?:)?)"
        rf"{_PORTS}(?:/(?:tcp|udp|sctp))?$",
        "Published ports: [ADDRESS:]HOST:CONTAINER[/PROTOCOL]. Ports can be ranges.",
    ),
    "Network.hostname": (
        _LABEL,
        "Name in the /etc/hosts of all peers. If unset, the package's name.",
    ),
    "Network.aliases": (_LABEL, "Additional names of the service."),
    "Policy.allow_from": (
        _PEER,
        f"Only these peers may connect; if unset, anyone may. {_PEER_FORMS}",
    ),
    "Policy.deny_from": (
        _PEER,
        f"These peers may not connect, even if allow_from lists them. {_PEER_FORMS}",
    ),
    "Egress.allow": (
        _PEER_OR_OUTSIDE,
        f"The service may connect only to these peers; if unset, to anyone. {_PEER_FORMS} A name "
        "with a dot is an outside name: niso resolves it, and puts its addresses into the rules "
        "and the service's /etc/hosts.",
    ),
    "Egress.deny": (
        _PEER,
        f"The service may not connect to these peers, even if allow lists them. {_PEER_FORMS} "
        "metadata is the metadata service of a cloud: 169.254.169.254 and fd00:ec2::254.",
    ),
    "Policy.audit_until": (
        rf"^(?:{policy.DATE}|{policy.NO_END})$",
        "End of the audit: a date, or a date and time, at most 14 days ahead; never: it has no "
        "end. If unset, 14 days after it began.",
    ),
    "Network.ip": (
        _STATIC,
        "Static address, or an array of one IPv4 and one IPv6 address; on several networks, a "
        "table of these by network.",
    ),
    "Network.extra_hosts": (
        f"^(?:{_ADDRESS}|host-gateway)$",
        "Names that only this service's /etc/hosts has, each with an address. host-gateway is the "
        "host, as host.niso.local.",
    ),
    "Network.bandwidth": (
        r"^[1-9][0-9]{0,8}[KMG]$",
        "Limits of what the service receives (in) and sends (out) on each network, in bits per "
        "second: 64K to 100G, in powers of 1000.",
    ),
    "Network.dns": (
        f"^(?:{_ADDRESS})$",
        "Addresses of name servers, at most three. If unset, those of the host.",
    ),
    "Network.dns_search": (
        _DOMAIN,
        "Search domains of the service's resolv.conf; none if empty. If unset, those of the host.",
    ),
}
_DESCRIPTIONS = {
    "Manifest.package": "Name and version of the service.",
    "Manifest.binary": "Program to run.",
    "Manifest.healthcheck": "Health probe inside the service: tcp, http or command.",
    "Manifest.volumes": "Storage besides the root file system: folders that niso keeps, paths of "
    "the host, tmpfs.",
    "Manifest.secrets": "Files in /run/secrets that only the service's user can read.",
    "Isolation.resources": "Resource limits, enforced as far as the host's cgroups can.",
    "Resources.pids_limit": "Limit of processes and threads, including PID 1 of the service. "
    "4194304 is the kernel's own limit.",
    "Resources.new_flows_limit": "Connections and other flows a second that the service may open "
    "through the host's connection tracking, of each family; 5 s of them at once. 0: no limit.",
    "Resources.arp_limit": "ARP and neighbour discovery packets a second that the service may "
    "send; 10 s of them at once. 0: no limit.",
    "Resources.fragments_limit": "IP fragments a second that the service may send; 5 s of them at "
    "once. 0: no limit. If unset, 40 with the capability NET_RAW, NET_ADMIN or SYS_ADMIN, else "
    "no limit.",
    "Resources.new_neighbours_limit": "Addresses a second on the host's own links that the host "
    "asks for because of the service, of each family; 5 s of them at once. 0: no limit. Those "
    "asked for in the last 10 s do not count.",
    "Healthcheck.tcp": "Port that must accept connections, on loopback or the service's addresses.",
    "Healthcheck.retries": "Consecutive failures, after start_period, that count as unhealthy.",
    "Volume.mode": "Whether the path of the host is writable (rw) or read-only (ro).",
    "Volume.tmpfs": "Whether the volume is in memory and empty at each start.",
    "Manifest.environment": "Environment variables of the service.",
    "Manifest.service": "User, restarts and stopping.",
    "Manifest.isolation": "Capabilities, file system access and resource limits.",
    "Manifest.network": "Networks, names, published ports and policy.",
    "Service.restart": "When to restart the process after it exits. Always no for a job.",
    "Service.kind": "service: runs until it is stopped. job: activate waits until it has ended, "
    "and fails unless it exits with status 0.",
    "Isolation.capabilities": "Capabilities that the service keeps: names of capabilities(7) "
    "without CAP_.",
    "Isolation.read_only": "Whether / is read-only. /tmp, /run and /var/tmp are always tmpfs.",
    "Isolation.restrict_suid_sgid": "Whether the service cannot make setuid and setgid files, and "
    "cannot set these bits of folders (RestrictSUIDSGID of systemd).",
    "Network.policy": "Who may connect to the service and where it may connect. It only narrows "
    "what the networks allow.",
    "Policy.egress": "Where the service may connect.",
    "Policy.mode": "enforce: what the policy denies is dropped. audit: it is counted and "
    "remembered (`niso net flows --denied`), and dropped only from audit_until on.",
    "Policy.log": "Whether `niso net log` shows packets that the policy drops.",
    "Network.mode": "bridge: own network namespace, on bridges. host: the host's network. "
    "none: own network namespace with only lo. share: network namespace of another service.",
}


def manifest_schema() -> dict[str, Any]:
    """Return the schema as plain data, for `json.dumps`."""
    tables = definitions(Manifest)
    for table, definition in tables.items():
        for name, field in definition["properties"].items():
            _describe(f"{table}.{name}", field)
    environment = tables["Manifest"]["properties"]["environment"]
    environment["propertyNames"] = {"pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"}
    environment["additionalProperties"]["pattern"] = _ARGUMENT
    tables["Service"] |= {
        "if": {"properties": {"kind": {"const": "job"}}, "required": ["kind"]},
        "then": {"properties": {"restart": {"const": "no"}}},
        "else": {"properties": {"timeout": False}},
    }
    tables["Manifest"]["not"] = {
        "properties": {
            "service": {"properties": {"kind": {"const": "job"}}, "required": ["kind"]},
        },
        "required": ["service", "healthcheck"],
    }
    network = tables["Network"]
    network["not"] = {"required": ["network", "networks"]}
    network["allOf"] = [_mode(mode, without) for mode, without in validate.WITHOUT.items()]
    network["properties"]["networks"] |= {"minItems": 1, "uniqueItems": True}
    network["properties"]["aliases"]["uniqueItems"] = True
    network["properties"]["dns"] |= {"minItems": 1, "maxItems": addresses_and_ports.MAX_SERVERS}
    network["properties"]["extra_hosts"]["propertyNames"] = {
        "pattern": r"^(?!(?:localhost|host\.niso\.local)$|ip6-)[a-z0-9_-]{1,63}"
        r"(?:\.[a-z0-9_-]{1,63})*$"
    }
    network["properties"]["bandwidth"]["propertyNames"] = {"enum": list(process_keys.WAYS)}
    tables["Isolation"]["properties"]["capabilities"]["items"] = {"enum": list(values.CAPABILITIES)}
    limits = tables["Resources"]["properties"]["pids_limit"]
    limits |= {"minimum": process_keys.MIN_PIDS, "maximum": process_keys.MAX_PIDS}
    for name in process_keys.RATES:
        rate = tables["Resources"]["properties"][name]
        rate |= {"minimum": 0, "maximum": process_keys.MAX_RATE}
    healthcheck = tables["Healthcheck"]
    healthcheck["properties"]["tcp"] |= {"minimum": 1, "maximum": 65535}
    healthcheck["properties"]["retries"] |= {"minimum": 1, "maximum": process_keys.MAX_RETRIES}
    healthcheck["oneOf"] = [{"required": [kind]} for kind in process_keys.KINDS]
    healthcheck["properties"]["command"] |= {
        "minItems": 1,
        "prefixItems": [{"type": "string", "pattern": _WORD}],
    }
    tables["Manifest"]["properties"]["volumes"]["propertyNames"] = {
        "pattern": "^[A-Za-z][A-Za-z0-9_-]{0,62}$"
    }
    tables["Manifest"]["properties"]["secrets"]["propertyNames"] = {
        "pattern": "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}$"
    }
    is_tmpfs = {"properties": {"tmpfs": {"const": True}}, "required": ["tmpfs"]}
    tables["Volume"] |= {
        "if": is_tmpfs,
        "then": {"properties": {"host": False}},
        "else": {"properties": {"size": False}},
        "dependentRequired": {"mode": ["host"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso manifest.toml",
        "$ref": "#/$defs/Manifest",
        "$defs": tables,
    }


def _mode(mode: str, without: tuple[str, ...]) -> dict[str, Any]:
    """Return a condition with the keys that [network] must and must not have in a mode.

    Without the key ``mode``, the mode is bridge.
    """
    needs: dict[str, Any] = {"properties": {"mode": {"const": mode}}}
    if mode != "bridge":
        needs["required"] = ["mode"]
    then: dict[str, Any] = {"properties": dict.fromkeys(without, False)}
    if mode == "share":
        then["required"] = ["share"]
    return {"if": needs, "then": then}


def definitions(table: Any) -> dict[str, Any]:
    """Return the definitions of a table and of all tables in it, by name.

    A definition has keys, types, and non-empty defaults.
    """
    known = convert.fields(table)
    properties = {name: _kind(may_be) for name, may_be in known.items()}
    for name, default in table._field_defaults.items():
        if default not in (None, (), {}) and not convert.is_table(default):
            properties[name]["default"] = default
    tables = {
        table.__name__: {
            "title": table.__name__,
            "type": "object",
            "properties": properties,
            "required": convert.required(table),
            "additionalProperties": False,
        }
    }
    for may_be in known.values():
        for inner in _tables(may_be):
            tables |= definitions(inner)
    return tables


def _tables(may_be: Kind) -> Iterator[Any]:
    """Yield the tables that a value can contain."""
    for inside in may_be.values():
        if convert.is_table(inside):
            yield inside
        elif isinstance(inside, dict):
            yield from _tables(inside)


def _kind(may_be: Kind) -> dict[str, Any]:
    """Return the schema of a value. None is skipped, since TOML has no such value."""
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
    """Add the pattern and description of a field."""
    if key in _TEXTS:
        pattern, field["description"] = _TEXTS[key]
        _set_pattern(field, pattern)
    else:
        field["description"] = _DESCRIPTIONS[key]


def _set_pattern(field: dict[str, Any], pattern: str) -> None:
    """Add a pattern to all strings in a value."""
    for choice in field.get("anyOf", [field]):
        texts = {"array": "items", "object": "additionalProperties"}.get(choice["type"])
        if texts:
            _set_pattern(choice[texts], pattern)
        else:
            choice["pattern"] = rf"\$\{{|{pattern}"  # a text with a variable matches any pattern


# --- stack.toml -----------------------------------------------------------------------------------


_OWN = ("Manifest", "Package", "Binary", "Service", "Healthcheck", "Network")
_STACK_DESCRIPTIONS = {
    "name": "Name of the service; replaces the name in its manifest.",
    "prefix": "Whether services and networks are named after the stack: shop-db for db, whose "
    "hostname stays db. If unset, a new stack has the prefix if another stack has one of its "
    "services' names.",
    "package": "Folder with a manifest.toml, relative to this file.",
    "depends_on": "Services of the stack that must have started, be healthy or, of a job, be "
    "completed before this one starts.",
    "subnet": "Subnet; an array of one IPv4 and one IPv6 subnet. If unset, the next free /24.",
    "ipv6": "Whether the network also has a unique local IPv6 /64.",
    "internal": "Whether the network is isolated from everything but the host.",
    "gateway": "Address of the bridge; an array of one for each subnet. If unset, the first one.",
    "observe": "Whether the kernel remembers its flows.",
    "span": "Whether the network spans the hosts of the cluster that this host is in.",
    "allow_public": "Whether a subnet can be a prefix of the Internet.",
    "mtu": "Maximum packet size in bytes. If unset, that of the default route.",
}


def stack_schema() -> dict[str, Any]:
    """Return the schema as plain data, for `json.dumps`.

    A [[service]] has the keys of a manifest's [network] directly. Its other tables override single
    keys of the manifest, so they require none.
    """
    tables: dict[str, Any] = manifest_schema()["$defs"]
    whole = _inline(tables)
    for table in ("Binary", "Healthcheck"):
        for condition in ("required", "oneOf"):
            tables[table].pop(condition, None)
    for condition in ("if", "then", "else"):
        tables["Service"].pop(condition)
    manifest, network = tables.pop("Manifest"), tables.pop("Network")
    own = definitions(stack.Own)["Own"]
    label = tables.pop("Package")["properties"]["name"]["pattern"]
    own["properties"]["name"]["pattern"] = label
    tables["StackService"] = {
        "title": "Service of a stack",
        "type": "object",
        "properties": _described(own["properties"])
        | network["properties"]
        | {name: manifest["properties"][name] for name in stack.TABLES},
        "required": own["required"],
        "additionalProperties": False,
        "not": network["not"],
    }
    made = definitions(stack.Network)["Network"]
    tables["StackNetwork"] = made | {"properties": _described(made["properties"])}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "niso stack.toml",
        "type": "object",
        "properties": {
            "stack": {
                "type": "object",
                "description": "The stack.",
                "properties": {
                    "name": {
                        "type": "string",
                        "pattern": label,
                        "description": "Name of the stack, unique on the host.",
                    },
                    "prefix": {"type": "boolean", "description": _STACK_DESCRIPTIONS["prefix"]},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
            "service": {
                "type": "array",
                "description": "Services of the stack.",
                "items": {"$ref": "#/$defs/StackService"},
                "minItems": 1,
            },
            "services": {
                "type": "object",
                "description": "Services by name, each with the content of a manifest.",
                "propertyNames": {"pattern": label},
                "additionalProperties": {"$ref": "#/$defs/InlineManifest"},
            },
            "networks": {
                "type": "object",
                "description": "Networks that the stack makes.",
                "additionalProperties": {"$ref": "#/$defs/StackNetwork"},
            },
        },
        "required": ["stack"],
        "anyOf": [
            {"required": ["service"]},
            {"required": ["services"], "properties": {"services": {"minProperties": 1}}},
        ],
        "additionalProperties": False,
        "$defs": tables | whole,
    }


def _inline(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions of [services.NAME]: a complete manifest, named by its table.

    Definitions that a [[service]] relaxes are repeated.
    """
    text = json.dumps({f"Inline{name}": tables[name] for name in _OWN})
    for name in _OWN:
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/Inline{name}"')
    whole: dict[str, Any] = json.loads(text)
    needs = definitions(stack.Needs)["Needs"]["properties"]
    manifest, package = whole["InlineManifest"], whole["InlinePackage"]
    manifest["properties"] |= _described(needs)
    manifest["required"].remove("package")
    package["properties"]["folder"] = {
        "type": "string",
        "description": "Folder that the service sees at /app, relative to this file. If unset, "
        "/app is empty.",
    }
    package["required"] = []
    package["properties"]["rootfs"]["description"] = (
        "Folder beside this file: the service's root file system. niso never writes to it."
    )
    return whole


def _described(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        name: field | {"description": _STACK_DESCRIPTIONS[name]}
        for name, field in properties.items()
    }
