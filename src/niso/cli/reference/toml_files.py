"""manifest.toml and stack.toml: their keys from the tables of the model and the JSON Schema, and the forms that a schema cannot explain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from niso.cli.reference.document import Block, Code, Heading, Page, Terms, Text
from niso.manifest import json_schema, stack_file

MANIFEST = """\
[package]
name = "api"                  # also its host name, unless [network] hostname says otherwise
version = "1.0.0"

[binary]
entrypoint = "bin/api"        # a file of the folder, an absolute path, or a name looked up on PATH
args = ["--port", "8080"]

[environment]
LOG_LEVEL = "info"

[healthcheck]
http = "http://127.0.0.1:8080/health"

[isolation.resources]
memory_max = "512M"

[volumes]
data = { mount = "/data" }                                     # kept by niso, owned by the service
conf = { mount = "/etc/api", host = "/etc/api", mode = "ro" }  # a folder or file of the machine
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
        "the host's port 8080, at all of its addresses, leads to port 80 of the service, by TCP",
    ),
    ("53:53/udp", "by UDP; /tcp and /sctp likewise"),
    ("8080", "the same port on both sides"),
    (":8080", "a free port of the host, of 20000 to 29999, which the service keeps"),
    (
        "8000-8010:8000-8010",
        "a range; one that is equal on both sides costs the kernel no more than one port",
    ),
    ("127.0.0.1:5432:5432", "from this host only"),
    ("192.0.2.1:443:443", "at one address of the host, which need not be there yet"),
    ("[2001:db8::1]:443:443", "at one IPv6 address"),
    ("0.0.0.0:80:80", "at all IPv4 addresses; [::]:80:80 at all of IPv6"),
)
PEERS = (
    (
        "frontend",
        "a service, by its name or hostname, with .niso.local or without; it need not be known yet",
    ),
    ("network:guests", "the addresses of a network but the host's: its services as they are on it"),
    ("10.1.2.3", "an address; of IPv6 too"),
    ("10.1.0.0/16", "a prefix"),
    ("frontend:8080", "that port alone, by TCP, UDP and SCTP"),
    ("10.0.0.0/8:8000-8010/tcp", "ports in a row of one protocol"),
    ("[fd00::/8]:80", "an IPv6 peer with a port stands in brackets"),
    ("db/icmp", "one protocol: tcp, udp, sctp or icmp"),
)
_TABLES = (
    "package",
    "binary",
    "environment",
    "service",
    "isolation",
    "healthcheck",
    "volumes",
    "network",
)
_NETWORK_KEYS = {
    "subnet": "Its addresses, or an array of one of each family. Without it: the next free /24 of the pool.",
    "ipv6": "Whether it has an IPv6 subnet too: a /64 of the host's own unique local prefix.",
    "internal": "Whether nothing is forwarded out; the host and published ports work.",
    "gateway": "The bridge's address, or an array of one of each family. Without it: the subnet's first.",
    "mtu": "Largest packet. Without it: that of the default route's link.",
}
_OWN_KEYS = {
    "name": "The service's name, in place of its package's: one package can be several services.",
    "package": "A folder with a manifest.toml, or that file; relative to the stack.toml.",
    "depends_on": 'What must be first: a table of service and "started" or "healthy", or an array, which means started.',
}


def manifest_blocks() -> Iterator[Block]:
    yield Text(
        "A service is a folder with a manifest.toml. A key that is not known, or a value that cannot be, is an error that names file, "
        "key and value; all errors come at once, and nothing has changed then. `niso schema` prints the JSON Schema."
    )
    yield Heading("Example")
    yield Code(MANIFEST, "toml")
    definitions = json_schema.schema()["$defs"]
    root = definitions["Manifest"]
    for table in _TABLES:
        yield from _table(definitions, table, root["properties"][table], table in root["required"])
    yield Heading("Ports")
    yield Text(
        "Each of network.ports is one of these. A port without a host address is published on each family of its network."
    )
    yield Terms(PORTS)
    yield Heading("Peers")
    yield Text(
        "Each of allow_from, deny_from, and of egress the allow and deny, is one of these. Without a protocol it means all, without a "
        "port all ports and ICMP. A list that is there and empty lets nobody in, or nothing out. A policy narrows, and never opens a "
        "way; the host may always connect in, and a service may always reach itself."
    )
    yield Terms(PEERS)


def stack_blocks() -> Iterator[Block]:
    yield Text(
        "A stack.toml names services, their networks, and what each needs before it starts. `niso stack up` makes everything be as it "
        "says, all or none."
    )
    yield Heading("Example")
    yield Code(STACK, "toml")
    yield Heading("[stack]")
    yield Terms((("name: string, required", "The stack's name; as a service's."),))
    yield Heading("[networks]")
    yield Text(
        "Each is `NAME = { ... }`, as niso net create knows it. A network that no service of the file is on is not made."
    )
    yield Terms(tuple(_rows(stack_file.Network, _NETWORK_KEYS)))
    yield Heading("[[service]]")
    yield Terms(tuple(_rows(stack_file.Own, _OWN_KEYS)))
    yield Text(
        f"Beside these stand the keys of a manifest's [network], flat: {', '.join(stack_file.NETWORK_KEYS)}; and the other tables of a "
        f"manifest as {', '.join(f'[service.{table}]' for table in stack_file.TABLES)}. They lie over the package's manifest key by key. "
        "Arrays are replaced as a whole, and so is a volume; network and networks, and tcp and http of a healthcheck, take the place "
        "of each other. A key cannot be taken away."
    )


def manuals() -> Iterator[Page]:
    """niso-manifest(5), niso-stack(5)."""
    yield Page(
        "niso-manifest",
        5,
        "what a service of niso is",
        (Heading("Description"), *manifest_blocks()),
        ("niso(1)", "niso-stack(5)"),
    )
    yield Page(
        "niso-stack",
        5,
        "several services of niso as one thing",
        (Heading("Description"), *stack_blocks()),
        ("niso(1)", "niso-stack(1)", "niso-manifest(5)"),
    )


def _table(
    definitions: dict[str, Any], path: str, field: dict[str, Any], required: bool
) -> Iterator[Block]:
    """A table with its keys, and then the tables in it."""
    yield Heading(f"[{path}]")
    yield Text(f"{field['description']}{' It must be there.' if required else ''}")
    if "$ref" not in field:
        each = field["additionalProperties"]
        if "$ref" not in each:
            yield Text("Each key is a name, its value a text.")
            return
        yield Text("Each is `NAME = { ... }`:")
        field = each
    definition = definitions[field["$ref"].rpartition("/")[2]]
    keys = definition["properties"]
    yield Terms(
        tuple(
            (
                f"{name}: {kind(key)}{', required' if name in definition['required'] else ''}",
                _said(key),
            )
            for name, key in keys.items()
            if "$ref" not in key
        )
    )
    for name, key in keys.items():
        if "$ref" in key:
            yield from _table(definitions, f"{path}.{name}", key, name in definition["required"])


def _said(key: dict[str, Any]) -> str:
    if "default" not in key:
        return str(key["description"])
    default = key["default"]
    return f"{key['description']} Default: {str(default).lower() if isinstance(default, bool) else default}."


def kind(key: dict[str, Any]) -> str:
    """What a value may be, in words: ``string``, ``array of strings``, ``ro or rw``, ``integer of 1 to 65535``."""
    if "anyOf" in key:
        return " or ".join(kind(each) for each in key["anyOf"])
    if "enum" in key:
        values = [str(each) for each in key["enum"]]
        return f"{', '.join(values[:-1])} or {values[-1]}"
    if key["type"] == "array":
        items = key.get("items", {})
        return f"array of {items['type']}s" if "type" in items else "array of names"
    if key["type"] == "object":
        return f"table of {key['additionalProperties'].get('type', 'string')}s"
    if "maximum" in key:
        return f"integer of {key['minimum']} to {key['maximum']}"
    return str(key["type"])


def _rows(table: type, words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The keys of a table; the words of each must be there."""
    definition = json_schema.definitions(table)[table.__name__]
    for name, key in definition["properties"].items():
        default = key.get("default")
        said = f" Default: {str(default).lower()}." if isinstance(default, bool) else ""
        yield (
            f"{name}: {kind(key)}{', required' if name in definition['required'] else ''}",
            words[name] + said,
        )
