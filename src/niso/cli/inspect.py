"""ps, inspect, logs: what is there. They take no lock and change nothing but a log file that has grown too large."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.plan.records import Port
from niso.store.store import ServiceRow, Store

if TYPE_CHECKING:
    from niso.runtime.health import Health

COLUMNS = ("SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME")


def run(name: str, args: Args) -> int:
    store = Store.open(create=False)
    if name == "ps":
        return ps(store, args)
    service = store.resolve(args.name)
    if name == "inspect":
        row = store.service(service)
        assert row is not None
        output.as_json(_everything(store, row, args))
        return 0
    return _logs(service, args)


def _status(row: ServiceRow) -> tuple[str, float | None, dict[str, object]]:
    """(words of STATUS, seconds of uptime, details) of a service."""
    if not row.active:
        return "inactive", None, {}
    from niso.runtime import logs, status

    logs.rotate_if_large(row.name)
    found = status.read(row.name, closely=True)
    running = found.state == "running"
    uptime = max(0.0, time.time() - found.started_at) if running and found.started_at else None
    words = {"exited": f"exited ({found.exit_code})", "none": "failed"}.get(
        found.state, found.state
    )
    details: dict[str, object] = {
        "pid": found.pid,
        "exit_code": found.exit_code,
        "out_of_memory": status.out_of_memory(row.name),
        "restarts": found.restarts,
        "started_at": output.time_text(found.started_at),
    }
    return words, uptime, details


def _healths(store: Store, rows: Iterable[ServiceRow], args: Args) -> dict[str, Health]:
    """How those are that run and have a healthcheck: all that are due are asked at once."""
    names = set(store.checked_services())
    checked = [row for row in rows if row.name in names]
    if not checked:
        return {}
    from niso.runtime import status

    running = [
        (row, found) for row in checked if (found := status.read(row.name)).state == "running"
    ]
    if not running:
        return {}
    from niso.runtime import health
    from niso.runtime.spec import namespace

    asked = []
    for row, found in running:
        wanted, said = row.service, row.process  # None if damaged, as `niso net check` says
        if wanted is not None and wanted.healthcheck is not None and said is not None:
            run = (found.pid or 0, found.started_at or 0.0)
            asked.append(health.Target(row.name, wanted.healthcheck, namespace(said), run))
    from niso.cli.progress import Progress

    with Progress(args) as report:
        return health.check_all(asked, report)


def ps(store: Store, args: Args, only: Iterable[str] | None = None) -> int:
    """Print the table of all known services, or of ``only`` these, whether they are known or not."""
    rows: list[tuple[str, str, str, str, list[Port], float | None]] = []
    wanted = None if only is None else set(only)
    known = [row for row in store.services() if wanted is None or row.name in wanted]
    healths = _healths(store, known, args)
    for row in known:
        words, uptime, _ = _status(row)
        address = (
            ", ".join(address for _, address in store.addresses(row.name)) if row.active else ""
        )
        ports = [port for _, port in store.ports(row.name)] if row.active else []
        rows.append((row.name, words, row.mode, address, ports, uptime))
    rows += [
        (name, "inactive", "-", "", [], None)
        for name in (wanted or set()) - {row.name for row in known}
    ]
    rows.sort()
    if args.json:
        output.as_json(
            [
                {
                    "service": name,
                    "status": words,
                    "health": healths[name].state if name in healths else None,
                    "mode": None if mode == "-" else mode,
                    "address": address,
                    "ports": output.ports_json(ports, store.port_families(name)),
                    "uptime": None if uptime is None else round(uptime, 3),
                }
                for name, words, mode, address, ports, uptime in rows
            ]
        )
        return 0
    output.table(
        COLUMNS,
        [
            (
                name,
                words,
                healths[name].state if name in healths else "-",
                mode,
                address or "-",
                ", ".join(output.port_text(port) for port in ports) or "-",
                "-" if uptime is None else output.duration(uptime),
            )
            for name, words, mode, address, ports, uptime in rows
        ],
    )
    return 0


def _everything(store: Store, row: ServiceRow, args: Args) -> dict[str, object]:
    from niso.base import names, paths

    spec, wanted = row.require_process(), row.require_service()
    words, uptime, details = _status(row)
    health = _healths(store, [row], args).get(row.name)
    networks = {network.name: network for network in store.networks()}
    whose = store.service(store.home(row.name)) or row  # what a sharer has is its provider's
    endpoints = []
    by_network: dict[str, list[str]] = {}
    for name, address in store.addresses(row.name):
        by_network.setdefault(name, []).append(address)
    for position, (name, addresses) in enumerate(by_network.items()):
        network = networks[name]
        endpoints.append(
            {
                "network": name,
                "bridge": network.bridge,
                "address": ", ".join(addresses),
                "gateway": ", ".join(subnet.gateway for subnet in network.subnets),
                "mac": names.mac(whose.name, name, store.state_id()),
                "interface": f"eth{position}",
                "host_interface": names.veth(whose.name, name, whose.generation)
                if row.active
                else None,
                "mtu": network.mtu,
            }
        )
    return {
        "service": row.name,
        "status": words,
        "health": health.state if health else None,
        "health_said": health.words or None if health else None,
        "mode": row.mode,
        "shares": row.provider,
        "shared_by": store.sharers(row.name),
        "uptime": uptime,
        **details,
        "hostname": spec.hostname or (os.uname().nodename if row.mode == "host" else ""),
        "names": list(store.names(row.name)),
        "networks": list(by_network),
        "endpoints": endpoints,
        "ports": output.ports_json(
            (port for _, port in store.ports(row.name)), store.port_families(row.name)
        ),
        "forwards": output.ports_json(store.forwards(row.name), store.port_families(row.name)),
        "netns": (spec.netns or None) if row.active else None,
        "user": {"uid": spec.uid, "gid": spec.gid, "name": spec.user_name},
        "enabled": row.enabled,
        "manifest_path": row.manifest_path,
        "manifest": wanted.manifest,
        "package": row.package,
        "rootfs": row.rootfs,
        "logs": paths.log_dir(row.name),
        "created_at": output.time_text(row.created_at),
        "activated_at": output.time_text(row.activated_at),
    }


def _logs(service: str, args: Args) -> int:
    from niso.runtime import logs

    if args.lines is not None and args.lines < 0:
        raise UsageError(f"-n {args.lines}: must be 0 or more", "niso logs NAME -n 20")
    lines = None if args.lines is None else min(args.lines, sys.maxsize)
    logs.rotate_if_large(service)
    raw = sys.stdout.buffer
    terminal = output.is_terminal()
    try:
        for chunk in logs.read(service, lines, args.follow, args.timestamps):
            raw.write(_on_terminal(chunk) if terminal else chunk)
            if args.follow:
                raw.flush()
        raw.flush()
    except KeyboardInterrupt:
        return 130
    return 0


def _on_terminal(chunk: bytes) -> bytes:
    return output.escaped_lines(chunk.decode("utf-8", "replace")).encode()
