"""Declare the keys of manifest.toml with types and defaults; build a `ServiceSpec` from them.

`niso.manifest.values` and the modules that parse a table define what the text of a key means.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

from niso.base import convert
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import DEFAULT_NETWORK, family_of
from niso.manifest import process_keys, values
from niso.manifest.addresses_and_ports import distinct, parse_port
from niso.manifest.policy import audit_end, parse
from niso.plan import records, specs
from niso.plan.records import HOST_GATEWAY, Audit, Limits, Port
from niso.plan.specs import Published, ServiceSpec

if TYPE_CHECKING:
    from typing import Any, Literal


# --- the tables of manifest.toml ------------------------------------------------------------------


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
    pids_limit: int = process_keys.PIDS
    shm_size: str = process_keys.SHM
    tmp_size: str | None = None
    new_flows_limit: int = process_keys.NEW_FLOWS
    arp_limit: int = process_keys.ARP
    fragments_limit: int | None = None
    new_neighbours_limit: int = process_keys.NEW_NEIGHBOURS


class Isolation(NamedTuple):
    capabilities: tuple[str, ...] = ()
    read_only: bool = True
    restrict_suid_sgid: bool = True
    resources: Resources = Resources()


class Healthcheck(NamedTuple):
    tcp: int | None = None
    http: str | None = None
    command: tuple[str, ...] | None = None
    interval: str = process_keys.INTERVAL
    timeout: str = process_keys.TIMEOUT
    retries: int = process_keys.RETRIES
    start_period: str = process_keys.START_PERIOD


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


# --- from tables to a ServiceSpec -----------------------------------------------------------------


def spec(manifest: Manifest, parsed: Mapping[str, Any]) -> ServiceSpec:
    """Build the ServiceSpec of a manifest.

    ``parsed`` has the values that `niso.manifest.validate.rules` has parsed, by key
    (``network.ports[0]``). Values that are missing there are parsed here. Raises InvalidInput.
    """

    def read[T](rule: Callable[[str, str], T], text: str, key: str) -> T:
        return parsed[key] if key in parsed else rule(text, key)

    def maybe[T](rule: Callable[[str, str], T], text: str | None, key: str) -> T | None:
        return None if text is None else read(rule, text, key)

    # a job runs once: its exit status is its result, whatever service.restart says
    if manifest.service.kind == "job":
        manifest = manifest._replace(service=manifest.service._replace(restart="no"))
    own, limits, network = manifest.service, manifest.isolation.resources, manifest.network
    networks: tuple[str, ...] = ()
    if network.mode == "bridge":
        networks = network.networks or (network.network,)
    addresses: dict[int, dict[str, str]] = {4: {}, 6: {}}
    ip = network.ip or {}
    for on, texts in (ip if isinstance(ip, dict) else {networks[0]: ip}).items():
        for text in (texts,) if isinstance(texts, str) else texts:
            addresses[family_of(text)][on] = str(ipaddress.ip_address(text))
    ports: dict[Port, str] = {}  # each port once, under its first key
    for index, text in enumerate(network.ports):
        key = f"network.ports[{index}]"
        ports.setdefault(read(parse_port, text, key), key)
    policy = network.policy
    memory_max = maybe(process_keys.memory_max, limits.memory_max, "isolation.resources.memory_max")
    fragments = limits.fragments_limit
    if fragments is None:
        fragments = process_keys.fragments_default(manifest.isolation.capabilities)
    # these defaults depend on other keys; the stored manifest has the values that apply
    limits = limits._replace(
        tmp_size=limits.tmp_size or process_keys.tmp_default(memory_max),
        fragments_limit=fragments,
    )
    manifest = manifest._replace(isolation=manifest.isolation._replace(resources=limits))
    return ServiceSpec(
        name=manifest.package.name,
        rootfs=manifest.package.rootfs,
        entrypoint=manifest.binary.entrypoint,
        args=manifest.binary.args,
        working_dir=manifest.binary.working_dir,
        environment=manifest.environment,
        user=maybe(values.user, own.user, "service.user"),
        restart=own.restart,
        restart_delay_s=read(values.restart_delay, own.restart_delay, "service.restart_delay"),
        stop_timeout_s=read(values.stop_timeout, own.stop_timeout, "service.stop_timeout"),
        capabilities=manifest.isolation.capabilities,
        read_only=manifest.isolation.read_only,
        memory_max=memory_max,
        cpu_max=maybe(process_keys.cpu_max, limits.cpu_max, "isolation.resources.cpu_max"),
        pids_limit=limits.pids_limit,
        healthcheck=_healthcheck(manifest, parsed),
        volumes=tuple(
            specs.Volume(
                name,
                volume.mount,
                volume.host,
                volume.tmpfs,
                volume.mode == "ro",
                maybe(process_keys.size, volume.size, f"volumes.{name}.size"),
            )
            for name, volume in manifest.volumes.items()
        ),
        mode=network.mode,
        share=network.share,
        networks=networks,
        addresses=addresses[4],
        hostname=network.hostname or manifest.package.name,
        aliases=network.aliases,
        ports=tuple(Published(port, ports[port]) for port in distinct(tuple(ports))),
        policy=parse(
            policy.allow_from,
            policy.deny_from,
            policy.egress.allow,
            policy.egress.deny,
            policy.log,
            parsed,
        )._replace(
            audit=_audit(policy, parsed) if policy.mode == "audit" else None,
        ),
        manifest=convert.plain(manifest),
        restrict_suid_sgid=manifest.isolation.restrict_suid_sgid,
        shm_size=read(process_keys.tmpfs, limits.shm_size, "isolation.resources.shm_size"),
        tmp_size=maybe(process_keys.tmpfs, limits.tmp_size, "isolation.resources.tmp_size"),
        kind=own.kind,
        timeout_s=maybe(values.job_timeout, own.timeout, "service.timeout"),
        limits=Limits(
            limits.new_flows_limit, fragments, limits.arp_limit, limits.new_neighbours_limit
        ),
        addresses6=addresses[6],
        extra_hosts=_extra_hosts(network.extra_hosts),
        bandwidth={
            way: read(process_keys.rate, text, f"network.bandwidth.{way}")
            for way, text in network.bandwidth.items()
        },
        dns=network.dns,
        dns_search=network.dns_search,
        secrets={name: secret.file for name, secret in manifest.secrets.items()},
    )


def _audit(policy: Policy, parsed: Mapping[str, Any]) -> Audit:
    text, key = policy.audit_until, "network.policy.audit_until"
    if text is None:
        return Audit("")
    until = parsed[key] if key in parsed else audit_end(text, key)
    return Audit(text, 0, until)


def _extra_hosts(written: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text if text == HOST_GATEWAY else str(ipaddress.ip_address(text))
        for name, text in written.items()
    }


def _healthcheck(manifest: Manifest, parsed: Mapping[str, Any]) -> records.Healthcheck | None:
    section = manifest.healthcheck
    if section is None:
        return None
    names = process_keys.own_names(
        manifest.package.name, manifest.network.hostname, manifest.network.aliases
    )
    return process_keys.parse(section._asdict(), names, parsed)
