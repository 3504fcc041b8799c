"""Generate the pages of manifest.toml and stack.toml.

Keys come from the JSON Schema and the tables of the stack file; forms of ports and peers are
described here, since a schema cannot explain them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from niso.manifest import json_schema, stack
from reference.document import Block, Code, Heading, Page, Terms, Text

MANIFEST = """\
[package]
name = "api"                  # also its hostname, unless set in [network]
version = "1.0.0"

[binary]
entrypoint = "bin/api"        # a file in the folder, an absolute path or a name on PATH
args = ["--port", "8080"]

[environment]
LOG_LEVEL = "info"

[healthcheck]
http = "http://127.0.0.1:8080/health"

[isolation.resources]
memory_max = "512M"

[volumes]
data = { mount = "/data" }                                     # named: kept by niso
conf = { mount = "/etc/api", host = "/etc/api", mode = "ro" }  # bind mount of the host
tmp = { mount = "/scratch", tmpfs = true, size = "64M" }

[network]
network = "backend"
ports = ["8080:8080"]

[network.policy]
allow_from = ["frontend"]
[network.policy.egress]
allow = ["postgres:5432", "0.0.0.0/0:443"]"""

STACK = """\
[stack]
name = "shop"

[networks]
backend = { subnet = "10.99.1.0/24" }

[[service]]
name = "db"
package = "./postgres"
networks = ["backend"]

[[service]]
name = "api"
package = "./api"
networks = ["backend"]
ports = ["8080:8080"]
depends_on = { db = "healthy" }
[service.environment]
DATABASE_URL = "postgres://app@db.niso.local:5432/shop\""""

PORTS = (
    (
        "8080:80",
        "TCP port 8080 on all host addresses, forwarded to port 80 of the service",
    ),
    ("53:53/udp", "UDP; /tcp and /sctp work the same way"),
    ("8080", "the same port on both sides"),
    (":8080", "a free host port from 20000 to 29999, which the service keeps"),
    (
        "8000-8010:8000-8010",
        "a range; if both sides are equal it costs no more than one port",
    ),
    ("127.0.0.1:5432:5432", "reachable from this host only"),
    ("192.0.2.1:443:443", "on one host address, which need not exist yet"),
    ("[2001:db8::1]:443:443", "on one IPv6 address"),
    ("0.0.0.0:80:80", "on all IPv4 addresses; [::]:80:80 on all IPv6 addresses"),
)
PEERS = (
    (
        "frontend",
        "a service by name or hostname, with or without .niso.local; it need not be known yet",
    ),
    ("network:guests", "a network: the addresses of its services, not those of the host"),
    ("10.1.2.3", "an IPv4 or IPv6 address"),
    ("10.1.0.0/16", "a prefix"),
    ("frontend:8080", "only that port, over TCP, UDP and SCTP"),
    ("10.0.0.0/8:8000-8010/tcp", "a range of ports of one protocol"),
    ("[fd00::/8]:80", "an IPv6 peer with a port, in brackets"),
    ("db/icmp", "one protocol: tcp, udp, sctp or icmp"),
)
_TABLES = (
    "package",
    "binary",
    "environment",
    "service",
    "isolation",
    "limits",
    "sysctls",
    "deploy",
    "healthcheck",
    "volumes",
    "secrets",
    "network",
)


def manifest_blocks() -> Iterator[Block]:
    """Return the contents of the page of manifest.toml."""
    yield Text(
        "A service is a folder with a manifest.toml. Unknown keys and invalid values are errors "
        "that name file, key and value. All errors are reported at once, before anything changes. "
        "`niso schema` prints the JSON Schema."
    )
    yield Heading("Example")
    yield Code(MANIFEST, "toml")
    definitions = json_schema.manifest_schema()["$defs"]
    root = definitions["Manifest"]
    for table in _TABLES:
        yield from _table(definitions, table, root["properties"][table], table in root["required"])
    yield Heading("Ports")
    yield Text(
        "Each entry of network.ports has one of these forms. A port without a host address is "
        "published on each family of its network."
    )
    yield Terms(PORTS)
    yield Heading("Peers")
    yield Text(
        "Each entry of allow_from, deny_from, egress.allow and egress.deny has one of these forms. "
        "Without a protocol it matches all, or with ports TCP, UDP and SCTP; without a port it "
        "matches all ports and ICMP. An empty "
        "allow list lets nothing in or out. Policies only restrict; they never open a path. The "
        "host can always connect to a service, and a service to itself."
    )
    yield Terms(PEERS)


def stack_blocks() -> Iterator[Block]:
    """Return the contents of the page of stack.toml."""
    yield Text(
        "A stack.toml lists services, their networks and their dependencies. `niso stack up` "
        "applies it, all or nothing."
    )
    yield Heading("Example")
    yield Code(STACK, "toml")
    yield Heading("[stack]")
    schema = json_schema.stack_schema()
    service = schema["$defs"]["StackService"]
    own = {name: service["properties"][name] for name in stack.StackServiceKeys._fields}
    yield _keys(schema["properties"]["stack"])
    yield Heading("[networks]")
    yield Text(
        "Each is `NAME = { ... }`, with the settings of niso net create. A network that no service "
        "of the file uses is not created."
    )
    yield _keys(schema["$defs"]["StackNetwork"])
    yield Heading("[[service]]")
    yield _keys(service | {"properties": own})
    yield Text(
        "The keys of a manifest's [network] are given here directly: "
        f"{', '.join(stack.NETWORK_KEYS)}. The other tables of a manifest are "
        f"{', '.join(f'[service.{table}]' for table in stack.OVERRIDES)}. Each key overrides the "
        "key of the package's manifest. Arrays and volumes are replaced as a whole. network and "
        "networks replace each other, and so do tcp, http and command of a healthcheck. "
        "A key cannot be removed."
    )
    yield Heading("[services.NAME]")
    yield Text(
        "A service without a manifest.toml: its tables are here, as in a manifest, network "
        "included ([services.api.network]). Its name is NAME. Paths are relative to the "
        "stack.toml. A stack can have services of both kinds, and needs at least one."
    )
    yield Terms(
        (
            ("depends_on", "as for a [[service]]"),
            (
                "package: table",
                "rootfs: the root file system. oci: its image. folder: what the service sees at "
                "/app; if unset, /app is empty. version: 0 if unset. The table can be left out.",
            ),
            (f"{', '.join(stack.OVERRIDES)}, network", "the tables of a manifest"),
        )
    )


def manuals() -> Iterator[Page]:
    """Return niso-manifest(5) and niso-stack(5)."""
    yield Page(
        "niso-manifest",
        5,
        "manifest of a niso service",
        (Heading("Description"), *manifest_blocks()),
        ("niso(1)", "niso-stack(5)"),
    )
    yield Page(
        "niso-stack",
        5,
        "stack of niso services",
        (Heading("Description"), *stack_blocks()),
        ("niso(1)", "niso-stack(1)", "niso-manifest(5)"),
    )


def _table(
    definitions: dict[str, Any], path: str, field: dict[str, Any], required: bool
) -> Iterator[Block]:
    """Return a table with its keys, then its subtables."""
    yield Heading(f"[{path}]")
    yield Text(f"{field['description']}{' Required.' if required else ''}")
    if "$ref" not in field:
        value = field["additionalProperties"]
        if "$ref" not in value:
            values = "a string or an integer" if "anyOf" in value else "a string"
            yield Text(f"Each key is a name, each value {values}.")
            return
        yield Text("Each is `NAME = { ... }`:")
        field = value
    definition = definitions[field["$ref"].rpartition("/")[2]]
    keys = definition["properties"]
    yield _keys(definition)
    for name, key in keys.items():
        if "$ref" in key:
            yield from _table(definitions, f"{path}.{name}", key, name in definition["required"])


def _keys(table: dict[str, Any]) -> Terms:
    """Return the keys of a table, without its subtables, each with its type and description."""
    return Terms(
        tuple(
            (
                f"{name}: {kind(key)}{', required' if name in table['required'] else ''}",
                _description(key),
            )
            for name, key in table["properties"].items()
            if "$ref" not in key
        )
    )


def _description(key: dict[str, Any]) -> str:
    if "default" not in key:
        return str(key["description"])
    default = key["default"]
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"{key['description']} Default: {shown}."


def kind(key: dict[str, Any]) -> str:
    """Return the type of a value: ``string``, ``array of strings``, ``ro or rw``, ``integer``.

    Bounded integers are ``integer from 1 to 65535``.
    """
    if "anyOf" in key:
        return " or ".join(kind(option) for option in key["anyOf"])
    if "enum" in key:
        values = [str(value) for value in key["enum"]]
        return " or ".join([", ".join(values[:-1]), values[-1]] if values[1:] else values)
    if key["type"] == "array":
        items = key.get("items", {})
        return f"array of {items['type']}s" if "type" in items else "array of names"
    if key["type"] == "object":
        return f"table of {key['additionalProperties'].get('type', 'string')}s"
    if "maximum" in key:
        return f"integer from {key['minimum']} to {key['maximum']}"
    return str(key["type"])
