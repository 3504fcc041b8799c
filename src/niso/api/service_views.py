"""How services are: what ps, inspect and stack status show.

Nothing is locked, and nothing changes but a log file that has grown too large.
"""

from __future__ import annotations

import os
import time

from niso.api.published import Port, rows
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from niso.api.session import Session
    from niso.runtime.health import Health
    from niso.store.store import ServiceRow, Store


class ServiceLine(NamedTuple):
    """A service in a list."""

    service: str
    """the service's name"""
    status: str
    """running, starting, restarting, exited (N), failed or inactive"""
    health: str | None
    """starting, healthy or unhealthy; null without a healthcheck"""
    mode: str | None
    """bridge, host, none or share; null where the service is not known yet (stack status)"""
    address: str
    """its addresses, with a comma and a space between several; empty where it has none"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""
    uptime: float | None
    """seconds since its process started, null where none runs"""


class Process(NamedTuple):
    """The process of an active service."""

    pid: int | None
    """of its PID 1, on the host; only where it is active"""
    exit_code: int | None
    """of its last process; only where it is active"""
    out_of_memory: bool
    """whether the kernel ended a process of it for memory_max; only where it is active"""
    restarts: int
    """since it was activated; only where it is active"""
    started_at: str | None
    """time; only where it is active"""


class Endpoint(NamedTuple):
    """A service on one network."""

    network: str
    """its name"""
    bridge: str
    """on the host"""
    address: str
    """its addresses, with a comma and a space between several; empty where it has none"""
    gateway: str
    """the bridge's addresses, as address"""
    mac: str
    """the address of the link inside"""
    interface: str
    """inside the service"""
    host_interface: str | None
    """the other end"""
    mtu: int
    """bytes"""


class User(NamedTuple):
    """Whom a service runs as."""

    uid: int
    """on the machine, too"""
    gid: int
    """likewise"""
    name: str
    """inside the service"""


class Service(NamedTuple):
    """All that is known of a service; ``process`` is None where it is not active."""

    service: str
    """the service's name"""
    status: str
    """running, starting, restarting, exited (N), failed or inactive"""
    health: str | None
    """starting, healthy or unhealthy; null without a healthcheck"""
    health_said: str | None
    """what the last probe said"""
    mode: str
    """bridge, host, none or share"""
    shares: str | None
    """whose network it has, of mode share"""
    shared_by: tuple[str, ...]
    """strings: active services that have its network"""
    uptime: float | None
    """seconds"""
    process: Process | None
    hostname: str
    """inside the service"""
    names: tuple[str, ...]
    """strings: what it answers to"""
    networks: tuple[str, ...]
    """strings, in the order of eth0, eth1 ..."""
    endpoints: tuple[Endpoint, ...]
    """one for each network"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""
    forwards: tuple[Port, ...]
    """what niso port-forward has published"""
    netns: str | None
    """the path of its network namespace"""
    user: User
    """whom it runs as"""
    enabled: bool
    """whether it comes back after a reboot"""
    manifest_path: str
    """the file of its last activation"""
    manifest: dict[str, Any]
    """all keys of the manifest, with their defaults"""
    package: str
    """the path of niso's copy"""
    rootfs: str | None
    """the path of its root file system"""
    logs: str
    """the path of the folder of its logs"""
    created_at: str
    """time of its first activation"""
    activated_at: str | None
    """time of its last activation"""


def lines(
    session: Session, store: Store, only: Iterable[str] | None = None
) -> tuple[ServiceLine, ...]:
    """Return all known services, or only these, whether they are known or not, by name."""
    wanted = None if only is None else set(only)
    known = [row for row in store.services() if wanted is None or row.name in wanted]
    healths = _healths(session, store, known)
    lines = [_line(store, row, healths.get(row.name)) for row in known]
    for name in (wanted or set()) - {row.name for row in known}:
        lines.append(ServiceLine(name, "inactive", None, None, "", (), None))
    return tuple(sorted(lines, key=lambda line: line.service))


def _line(store: Store, row: ServiceRow, health: Health | None) -> ServiceLine:
    status, uptime, _ = _status(row)
    address, ports = "", tuple[Port, ...]()
    if row.active:
        address = ", ".join(address for _, address in store.addresses(row.name))
        ports = rows((port for _, port in store.ports(row.name)), store.port_families(row.name))
    uptime = None if uptime is None else round(uptime, 3)
    return ServiceLine(
        row.name, status, health.state if health else None, row.mode, address, ports, uptime
    )


def _status(row: ServiceRow) -> tuple[str, float | None, Process | None]:
    """Return (status, uptime in seconds, process) of a service."""
    if not row.active:
        return "inactive", None, None
    from niso.runtime import logs
    from niso.runtime import status as process

    logs.rotate_if_large(row.name)
    now = process.read(row.name, closely=True)
    running = now.state == "running"
    uptime = max(0.0, time.time() - now.started_at) if running and now.started_at else None
    status = {"exited": f"exited ({now.exit_code})", "none": "failed"}.get(now.state, now.state)
    return (
        status,
        uptime,
        Process(
            now.pid,
            now.exit_code,
            process.out_of_memory(row.name),
            now.restarts,
            time_text(now.started_at),
        ),
    )


def _healths(session: Session, store: Store, services: Iterable[ServiceRow]) -> dict[str, Health]:
    """Return how those are that run and have a healthcheck: all that are due are asked at once."""
    checked_services = set(store.checked_services())
    checked = [row for row in services if row.name in checked_services]
    if not checked:
        return {}
    from niso.runtime import status

    running = [(row, now) for row in checked if (now := status.read(row.name)).state == "running"]
    if not running:
        return {}
    from niso.runtime import health
    from niso.runtime.spec import namespace

    asked = []
    for row, now in running:
        service, process = row.service, row.process  # None if damaged, as `niso net check` says
        if service is not None and service.healthcheck is not None and process is not None:
            run = (now.pid or 0, now.started_at or 0.0)
            asked.append(health.Target(row.name, service.healthcheck, namespace(process), run))
    return health.check_all(asked, session.report)


def everything(session: Session, store: Store, name: str) -> Service:
    """Return all that is known of a service. Raises Error where its row is damaged."""
    from niso.base import paths

    row = store.service(name)
    assert row is not None
    spec, manifest = row.require_process(), dict(row.require_service().manifest)
    status, uptime, process = _status(row)
    health = _healths(session, store, [row]).get(row.name)
    endpoints = _endpoints(store, row)
    families = store.port_families(row.name)
    return Service(
        service=row.name,
        status=status,
        health=health.state if health else None,
        health_said=health.words or None if health else None,
        mode=row.mode,
        shares=row.provider,
        shared_by=tuple(store.sharers(row.name)),
        uptime=uptime,
        process=process,
        hostname=spec.hostname or (os.uname().nodename if row.mode == "host" else ""),
        names=tuple(store.names(row.name)),
        networks=tuple(endpoint.network for endpoint in endpoints),
        endpoints=endpoints,
        ports=rows((port for _, port in store.ports(row.name)), families),
        forwards=rows(store.forwards(row.name), families),
        netns=(spec.netns or None) if row.active else None,
        user=User(spec.uid, spec.gid, spec.user_name),
        enabled=row.enabled,
        manifest_path=row.manifest_path,
        manifest=manifest,
        package=row.package,
        rootfs=row.rootfs,
        logs=paths.log_dir(row.name),
        created_at=time_text(row.created_at) or "",
        activated_at=time_text(row.activated_at),
    )


def _endpoints(store: Store, row: ServiceRow) -> tuple[Endpoint, ...]:
    from niso.base import names

    networks = {network.name: network for network in store.networks()}
    whose = store.service(store.home(row.name)) or row  # what a sharer has is its provider's
    by_network: dict[str, list[str]] = {}
    for name, address in store.addresses(row.name):
        by_network.setdefault(name, []).append(address)
    return tuple(
        Endpoint(
            name,
            networks[name].bridge,
            ", ".join(addresses),
            ", ".join(subnet.gateway for subnet in networks[name].subnets),
            names.mac(whose.name, name, store.state_id()),
            f"eth{position}",
            names.veth(whose.name, name, whose.generation) if row.active else None,
            networks[name].mtu,
        )
        for position, (name, addresses) in enumerate(by_network.items())
    )


def time_text(seconds: float | None) -> str | None:
    """Return a time (seconds since 1970) as RFC 3339 in UTC; None stays None."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
