"""ps, inspect, logs: what is there. They take no lock and change nothing but a log file that has grown too large."""

from __future__ import annotations

import argparse
import sys
import time

from niso.cli import output
from niso.errors import UsageError
from niso.store.store import ServiceRow, Store

COLUMNS = ("SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME")


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    if name == "ps":
        parser.add_argument("--json", action="store_true", help="an array of objects")
        return
    parser.add_argument("name", metavar="NAME", help="a service")
    if name == "inspect":
        parser.add_argument("--json", action="store_true", help="one object (the default form)")
        return
    parser.epilog = "examples:\n  niso logs api -n 20\n  niso logs api -f -t\n"
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it writes, until the service is removed")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="the last N lines only")
    parser.add_argument("-t", "--timestamps", action="store_true", help="an RFC 3339 time before each line")


def run(name: str, args: argparse.Namespace) -> int:
    store = Store.open(create=False)
    if name == "ps":
        return _ps(store, args.json)
    service = store.resolve(args.name)
    if name == "inspect":
        row = store.service(service)
        assert row is not None
        output.as_json(_everything(store, row))
        return 0
    return _logs(service, args)


def _status(row: ServiceRow) -> tuple[str, float | None, dict[str, object]]:
    """(words of STATUS, seconds of uptime, details) of a service."""
    if not row.active:
        return "inactive", None, {}
    from niso.runtime import logs, process

    logs.rotate_if_large(row.name)
    found = process.status(row.name)
    running = found.state == "running"
    uptime = max(0.0, time.time() - found.started_at) if running and found.started_at else None
    words = {"exited": f"exited ({found.exit_code})", "none": "failed"}.get(found.state, found.state)
    details: dict[str, object] = {
        "pid": found.pid,
        "exit_code": found.exit_code,
        "restarts": found.restarts,
        "started_at": output.time_text(found.started_at),
    }
    return words, uptime, details


def _ps(store: Store, as_json: bool, only: list[str] | None = None) -> int:
    rows = []
    for row in store.services():
        if only is not None and row.name not in only:
            continue
        words, uptime, _ = _status(row)
        address = ", ".join(address for _, address in store.addresses(row.name)) if row.active else ""
        ports = [port for _, port in store.ports(row.name)] if row.active else []
        rows.append((row.name, words, address, ports, uptime))
    if as_json:
        output.as_json(
            [
                {
                    "service": name,
                    "status": words,
                    "health": None,
                    "mode": "bridge",
                    "address": address,
                    "ports": output.ports_json(ports, store.port_families(name)),
                    "uptime": None if uptime is None else round(uptime, 3),
                }
                for name, words, address, ports, uptime in rows
            ]
        )
        return 0
    output.table(
        COLUMNS,
        [
            (
                name,
                words,
                "-",
                "bridge",
                address or "-",
                ", ".join(output.port_text(port) for port in ports) or "-",
                "-" if uptime is None else output.duration(uptime),
            )
            for name, words, address, ports, uptime in rows
        ],
    )
    return 0


def _everything(store: Store, row: ServiceRow) -> dict[str, object]:
    import json

    from niso import names, paths

    words, uptime, details = _status(row)
    spec = json.loads(row.spec)
    networks = {network.name: network for network in store.networks()}
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
                "mac": names.mac(row.name, name, store.state_id()),
                "interface": f"eth{position}",
                "host_interface": names.veth(row.name, name, row.generation) if row.active else None,
                "mtu": network.mtu,
            }
        )
    return {
        "service": row.name,
        "status": words,
        "health": None,
        "mode": "bridge",
        "uptime": uptime,
        **details,
        "hostname": spec["hostname"],
        "names": list(store.names(row.name)),
        "networks": list(row.networks),
        "endpoints": endpoints,
        "ports": output.ports_json((port for _, port in store.ports(row.name)), store.port_families(row.name)),
        "forwards": output.ports_json(store.forwards(row.name), store.port_families(row.name)),
        "netns": paths.netns_path(row.name) if row.active else None,
        "user": {"uid": spec["uid"], "gid": spec["gid"], "name": spec["user_name"]},
        "manifest_path": row.manifest_path,
        "manifest": json.loads(row.manifest),
        "package": row.package,
        "rootfs": row.rootfs,
        "logs": paths.log_dir(row.name),
        "created_at": output.time_text(row.created_at),
        "activated_at": output.time_text(row.activated_at),
    }


def _logs(service: str, args: argparse.Namespace) -> int:
    from niso.runtime import logs

    if args.lines is not None and args.lines < 0:
        raise UsageError(f"-n {args.lines}: must be 0 or more", "niso logs NAME -n 20")
    logs.rotate_if_large(service)
    raw = sys.stdout.buffer
    terminal = output.is_terminal()
    try:
        for chunk in logs.read(service, args.lines, args.follow, args.timestamps):
            raw.write(_on_terminal(chunk) if terminal else chunk)
            if args.follow:
                raw.flush()
        raw.flush()
    except KeyboardInterrupt:
        return 130
    return 0


def _on_terminal(chunk: bytes) -> bytes:
    lines = chunk.decode("utf-8", "replace").split("\n")
    return "\n".join("\t".join(output.escaped(part) for part in line.split("\t")) for line in lines).encode()
