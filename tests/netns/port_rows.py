"""Read the ports of services, and end what took one."""

from __future__ import annotations

import json
from typing import Any

import snapshots
from conftest import Lab, Process


def rows(lab: Lab, service: str) -> list[tuple[str, int, int, str]]:
    """Return (host address, host port, container port, protocol) of each port of a service."""
    listed = json.loads(lab.niso("net", "ports", "--json").stdout)
    keys = ("host_ip", "host_port", "container_port", "proto")
    return [tuple(row[key] for key in keys) for row in listed if row["service"] == service]  # type: ignore[misc]


def everything(lab: Lab) -> dict[str, Any]:
    """Return kernel, processes, files, store and ``niso ps`` without its uptimes."""
    listed = json.loads(lab.niso("ps", "--json").stdout)
    return snapshots.take(lab) | {"ps": [{**row, "uptime": None} for row in listed]}


def unchanged(lab: Lab, before: dict[str, Any]) -> None:
    """Assert that all is as it was."""
    assert snapshots.differences(before, everything(lab)) == []


def end(process: Process) -> None:
    """Kill a process and wait for its end."""
    process.kill()
    process.wait(10)
