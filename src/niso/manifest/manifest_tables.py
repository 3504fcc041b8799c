"""Declare the tables of manifest.toml: its keys, types and defaults.

`niso.manifest.values` and the modules parse_* define what the text of a key means.
"""

from __future__ import annotations

from niso.base.lite_typing import Literal, NamedTuple
from niso.base.names import DEFAULT_NETWORK
from niso.manifest import parse_health, parse_resources


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
    kind: Literal["service", "job"] = "service"
    timeout: str | None = None
    env_file: str | tuple[str, ...] = ()


class Resources(NamedTuple):
    memory_max: str | None = None
    cpu_max: str | None = None
    pids_limit: int | None = parse_resources.PIDS  # None: no limit, in the store of an older niso
    shm_size: str = parse_resources.SHM
    tmp_size: str | None = None
    new_flows_limit: int = parse_resources.NEW_FLOWS
    arp_limit: int = parse_resources.ARP
    fragments_limit: int | None = None
    new_neighbours_limit: int = parse_resources.NEW_NEIGHBOURS


class Isolation(NamedTuple):
    capabilities: tuple[str, ...] = ()
    read_only: bool = True
    restrict_suid_sgid: bool = True
    resources: Resources = Resources()


class Healthcheck(NamedTuple):
    tcp: int | None = None
    http: str | None = None
    command: tuple[str, ...] | None = None
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


class Secret(NamedTuple):
    file: str


class Egress(NamedTuple):
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


class Policy(NamedTuple):
    allow_from: tuple[str, ...] | None = None
    deny_from: tuple[str, ...] = ()
    log: bool = False
    egress: Egress = Egress()
    mode: Literal["enforce", "audit"] = "enforce"
    audit_until: str | None = None


class Network(NamedTuple):
    mode: Literal["bridge", "host", "none", "share"] = "bridge"
    share: str | None = None
    network: str = DEFAULT_NETWORK
    networks: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    hostname: str | None = None
    aliases: tuple[str, ...] = ()
    ip: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    extra_hosts: dict[str, str] = {}  # noqa: RUF012
    dns: tuple[str, ...] | None = None
    dns_search: tuple[str, ...] | None = None
    bandwidth: dict[str, str] = {}  # noqa: RUF012
    policy: Policy = Policy()


class Manifest(NamedTuple):
    package: Package
    binary: Binary
    environment: dict[str, str] = {}  # noqa: RUF012 (convert copies it)
    service: Service = Service()
    isolation: Isolation = Isolation()
    healthcheck: Healthcheck | None = None
    volumes: dict[str, Volume] = {}  # noqa: RUF012
    secrets: dict[str, Secret] = {}  # noqa: RUF012
    network: Network = Network()
