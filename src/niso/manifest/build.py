"""Build a `niso.plan.service_spec.ServiceSpec` from the tables of a manifest.

Manifests in older stores, which are in the form in which they were written, are built here too.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping

from niso.base import convert
from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import (
    manifest_tables,
    parse_health,
    parse_policy,
    parse_resources,
    parse_volumes,
    values,
)
from niso.manifest.manifest_tables import Manifest
from niso.manifest.parse_ports import distinct, parse_port
from niso.plan import service_spec
from niso.plan.records import HOST_GATEWAY, Audit, Healthcheck, Limits, Port
from niso.plan.service_spec import Published, ServiceSpec

if TYPE_CHECKING:
    from typing import Any


def spec(manifest: Manifest, parsed: Mapping[str, Any]) -> ServiceSpec:
    """Build the ServiceSpec of a manifest.

    ``parsed`` has the values that `niso.manifest.validate.rules` has parsed, by key
    (``network.ports[0]``). Values that are missing there are parsed here. Raises InvalidInput.
    """

    def read[T](rule: Callable[[str, str], T], text: str, key: str) -> T:
        return parsed[key] if key in parsed else rule(text, key)

    def maybe[T](rule: Callable[[str, str], T], text: str | None, key: str) -> T | None:
        return None if text is None else read(rule, text, key)

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
    memory_max = maybe(
        parse_resources.memory_max, limits.memory_max, "isolation.resources.memory_max"
    )
    fragments = limits.fragments_limit
    if fragments is None:
        fragments = parse_resources.fragments_default(manifest.isolation.capabilities)
    limits = limits._replace(
        tmp_size=limits.tmp_size or parse_resources.tmp_default(memory_max),
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
        cpu_max=maybe(parse_resources.cpu_max, limits.cpu_max, "isolation.resources.cpu_max"),
        pids_limit=limits.pids_limit,
        healthcheck=_healthcheck(manifest, parsed),
        volumes=tuple(
            service_spec.Volume(
                name,
                volume.mount,
                volume.host,
                volume.tmpfs,
                volume.mode == "ro",
                maybe(parse_volumes.size, volume.size, f"volumes.{name}.size"),
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
        policy=parse_policy.parse(
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
        shm_size=read(parse_resources.tmpfs, limits.shm_size, "isolation.resources.shm_size"),
        tmp_size=maybe(parse_resources.tmpfs, limits.tmp_size, "isolation.resources.tmp_size"),
        kind=own.kind,
        timeout_s=maybe(values.job_timeout, own.timeout, "service.timeout"),
        limits=Limits(
            limits.new_flows_limit, fragments, limits.arp_limit, limits.new_neighbours_limit
        ),
        addresses6=addresses[6],
        extra_hosts=_extra_hosts(network.extra_hosts),
        bandwidth={
            way: read(parse_resources.rate, text, f"network.bandwidth.{way}")
            for way, text in network.bandwidth.items()
        },
        dns=network.dns,
        dns_search=network.dns_search,
        secrets={name: secret.file for name, secret in manifest.secrets.items()},
    )


def _audit(policy: manifest_tables.Policy, parsed: Mapping[str, Any]) -> Audit:
    text, key = policy.audit_until, "network.policy.audit_until"
    if text is None:
        return Audit("")
    until = parsed[key] if key in parsed else parse_policy.audit_end(text, key)
    return Audit(text, 0, until)


def _extra_hosts(written: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text if text == HOST_GATEWAY else str(ipaddress.ip_address(text))
        for name, text in written.items()
    }


def _healthcheck(manifest: Manifest, parsed: Mapping[str, Any]) -> Healthcheck | None:
    section = manifest.healthcheck
    if section is None:
        return None
    names = parse_health.own_names(
        manifest.package.name, manifest.network.hostname, manifest.network.aliases
    )
    return parse_health.parse(section._asdict(), names, parsed)


def of_written(text: str) -> ServiceSpec:
    """Build the ServiceSpec of a manifest from a store of version 3 or older.

    ``text`` is the JSON of its tables as they were written. Raises ValueError for malformed JSON,
    InvalidInput if this version of niso cannot parse one of its values.
    """
    return spec(convert.convert(json.loads(text), Manifest), {})
