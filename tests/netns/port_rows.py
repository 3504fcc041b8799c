"""Read the ports of services, and end what took one."""

from __future__ import annotations

import json
from typing import Any

import snapshots
from conftest import Lab, Process


def rows(lab: Lab, service: str) -> list[tuple[str, int, int, str]]:
    """(host address, host port, container port, protocol) of a service as ``net ports`` has it."""
    found = json.loads(lab.niso("net", "ports", "--json").stdout)
    keys = ("host_ip", "host_port", "container_port", "proto")
    return [tuple(each[key] for key in keys) for each in found if each["service"] == service]  # type: ignore[misc]


def everything(lab: Lab) -> dict[str, Any]:
    """Kernel, processes, files, store and ``niso ps`` without its uptimes."""
    listed = json.loads(lab.niso("ps", "--json").stdout)
    return snapshots.take(lab) | {"ps": [{**row, "uptime": None} for row in listed]}


def unchanged(lab: Lab, before: dict[str, Any]) -> None:
    assert snapshots.differences(before, everything(lab)) == []


def end(process: Process) -> None:
    process.kill()
    process.wait(10)
