"""A service's manifest as data, and what follows from it: its networks, names, ports and addresses.

The tables have exactly the keys of manifest.toml with their defaults. `load` reads and checks a file; `encode` and
`decode` are the form in which the store keeps it. What the text of a key means is said in `niso.manifest.values`.
"""

from __future__ import annotations

import json
import os

from niso.base.errors import ErrorGroup, InvalidInput, NisoError
from niso.base.lite_typing import Literal, NamedTuple
from niso.base.names import DEFAULT_NETWORK
from niso.manifest import convert, parse_health, parse_resources, toml, values
from niso.manifest import parse_policy as policies
from niso.manifest.parse_ports import distinct, parse_port
from niso.plan.records import Policy as Rules
from niso.plan.records import Port

FILE_NAME = "manifest.toml"


class Package(NamedTuple):
    name: str
    version: str
    rootfs: str | None = None


class Binary(NamedTuple):
    entrypoint: str
    args: tuple[str, ...] = ()
    working_dir: str = "/app"


class Service(NamedTuple):
    user: str | None = None
    restart: Literal["on-failure", "no", "always"] = "on-failure"
    restart_delay: str = "1s"
    stop_timeout: str = "10s"


class Resources(NamedTuple):
    memory_max: str | None = None
    cpu_max: str | None = None
    pids_limit: int | None = None


class Isolation(NamedTuple):
    capabilities: tuple[str, ...] = ()
    read_only: bool = True
    resources: Resources = Resources()


class Healthcheck(NamedTuple):
    tcp: int | None = None
    http: str | None = None
    interval: str = parse_health.INTERVAL
    timeout: str = parse_health.TIMEOUT
    retries: int = parse_health.RETRIES
    start_period: str = parse_health.START_PERIOD


class Volume(NamedTuple):
    mount: str
    host: str | None = None
    mode: Literal["rw", "ro"] = "rw"
    tmpfs: bool = False
    size: str | None = None


class Egress(NamedTuple):
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


class Policy(NamedTuple):
    allow_from: tuple[str, ...] | None = None
    deny_from: tuple[str, ...] = ()
    log: bool = False
    egress: Egress = Egress()


class Network(NamedTuple):
    mode: Literal["bridge", "host", "none", "share"] = "bridge"
    share: str | None = None
    network: str = DEFAULT_NETWORK
    networks: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    hostname: str | None = None
    aliases: tuple[str, ...] = ()
    ip: str | dict[str, str] | None = None
    policy: Policy = Policy()


class Manifest(NamedTuple):
    package: Package
    binary: Binary
    environment: dict[str, str] = {}  # noqa: RUF012 (convert copies it)
    service: Service = Service()
    isolation: Isolation = Isolation()
    healthcheck: Healthcheck | None = None
    volumes: dict[str, Volume] = {}  # noqa: RUF012
    network: Network = Network()


class Loaded(NamedTuple):
    """A manifest and where it came from: the absolute path of its file, and the folder, which is the package."""

    manifest: Manifest
    path: str
    folder: str


def load(path: str) -> Loaded:
    """Read and check the manifest at ``path``, a manifest's file or the folder that has a manifest.toml.

    Raises `NotFound` where there is none, `NisoError` where it cannot be read, `InvalidInput` where it is no TOML, and an
    `ErrorGroup` with one `InvalidInput` for each value that is wrong. Every message starts with the file's path.
    """
    path = place(path)
    return Loaded(checked(toml.load(path, FILE_NAME), path), path, os.path.dirname(path))


def place(path: str) -> str:
    """The absolute path of the manifest that ``path``, a file or a folder, means."""
    path = os.path.abspath(path)
    return os.path.join(path, FILE_NAME) if os.path.isdir(path) else path


def checked(data: dict[str, object], path: str) -> Manifest:
    """What tomllib made of the manifest at ``path``, checked. Raises ErrorGroup as `load` does."""
    from niso.manifest import validate

    manifest: Manifest | None = None
    errors: list[InvalidInput] = []
    try:
        manifest = convert.convert(data, Manifest)
    except convert.Mismatch:
        errors += validate.walk(data, Manifest)
    errors += validate.rules(data, os.path.dirname(path))
    if manifest is None or errors:
        for error in errors:
            error.file = values.escaped(path)
        raise ErrorGroup([*errors])
    return manifest


def encode(manifest: Manifest) -> str:
    """The manifest as JSON, with every key, so that a change of a default does not change a known service."""
    return json.dumps(convert.plain(manifest), ensure_ascii=False, separators=(",", ":"))


def decode(text: str) -> Manifest:
    """The manifest that `encode` wrote. Raises `NisoError` for what this version of niso cannot understand."""
    data: object = None
    try:
        data = json.loads(text)
        json.dumps(
            data, ensure_ascii=False
        ).encode()  # json also reads halves of surrogate pairs, which are no text
        return convert.convert(data, Manifest)
    except convert.Mismatch:
        from niso.manifest import validate

        reason = validate.walk(data, Manifest)[0].detail
    except (ValueError, RecursionError) as error:
        reason = str(error)
    message = f"the stored manifest cannot be understood: {values.escaped(reason)}"
    raise NisoError(message, "activate the service again from its manifest.toml")


def networks(manifest: Manifest) -> tuple[str, ...]:
    """The networks in order: the n-th is eth<n>, the first gives the default route. Only in bridge mode there are any."""
    if manifest.network.mode != "bridge":
        return ()
    return manifest.network.networks or (manifest.network.network,)


def hostname(manifest: Manifest) -> str:
    return manifest.network.hostname or manifest.package.name


def names(manifest: Manifest) -> tuple[str, ...]:
    """Every name that the service holds in the space all services share: hostname, package's name, aliases."""
    return tuple(
        dict.fromkeys((hostname(manifest), manifest.package.name, *manifest.network.aliases))
    )


def ports(manifest: Manifest) -> dict[Port, str]:
    """The published ports, each once, in order, with the key that has them first: ``network.ports[1]``."""
    keys: dict[Port, str] = {}
    for index, text in enumerate(manifest.network.ports):
        key = f"network.ports[{index}]"
        keys.setdefault(parse_port(text, key), key)
    return {port: keys[port] for port in distinct(tuple(keys))}


def static_ips(manifest: Manifest) -> dict[str, str]:
    """Network to the address that the manifest asks for there; networks without one are left out."""
    ip = manifest.network.ip
    if isinstance(ip, str):
        return {networks(manifest)[0]: ip}
    return dict(ip or {})


def policy(manifest: Manifest) -> Rules:
    """Who may connect to the service, and where it may connect."""
    said = manifest.network.policy
    return policies.parse(
        said.allow_from, said.deny_from, said.egress.allow, said.egress.deny, said.log
    )


def user(manifest: Manifest) -> values.User | None:
    """Whom the service runs as; None for a uid of its own from niso's range."""
    return (
        values.user(manifest.service.user, "service.user")
        if manifest.service.user is not None
        else None
    )


def restart_delay(manifest: Manifest) -> float:
    """Seconds to the first restart."""
    return values.restart_delay(manifest.service.restart_delay, "service.restart_delay")


def memory_max(manifest: Manifest) -> int | None:
    """Bytes that the service may have; None for no limit."""
    text = manifest.isolation.resources.memory_max
    return (
        None if text is None else parse_resources.memory_max(text, "isolation.resources.memory_max")
    )


def cpu_max(manifest: Manifest) -> int | None:
    """Per cent of one CPU that the service may have; None for no limit."""
    text = manifest.isolation.resources.cpu_max
    return None if text is None else parse_resources.cpu_max(text, "isolation.resources.cpu_max")


def stop_timeout(manifest: Manifest) -> float:
    """Seconds from TERM to KILL."""
    return values.stop_timeout(manifest.service.stop_timeout, "service.stop_timeout")
