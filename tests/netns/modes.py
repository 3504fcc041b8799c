"""Provide services of the modes host, none and share, and checks of them."""

from __future__ import annotations

import os
import re
from typing import Any

import snapshots
from conftest import Lab
from services import echo, inspect, on, pid_of, process_below

PORT, SHARED = 8080, 9090
"""Host ports of ``api`` (80 inside) and of ``side``, which shares its network (90 inside)."""
KERNEL = ("namespaces", "in the host", "mounts", "cgroups")
"""What of a snapshot is the kernel's."""


def api(lab: Lab, **sections: Any) -> str:
    """Write the provider: on backend, with a port of its own."""
    network = on("backend", ports=[f"{PORT}:80"]) | sections.pop("network", {})
    return echo(lab, "api", 80, network=network, **sections)


def side(lab: Lab, name: str = "side", port: int = 90, **sections: Any) -> str:
    """Write a service that shares api's network, and publishes a port of its own."""
    network = {"mode": "share", "share": "api", "ports": [f"{SHARED}:{port}"]} | sections.pop(
        "network", {}
    )
    return echo(lab, name, port, network=network, **sections)


def alone(lab: Lab, **sections: Any) -> str:
    """Write a service of mode none, with a hostname of its own, which listens on 80."""
    return echo(
        lab,
        "alone",
        80,
        network={"mode": "none", "hostname": "hermit"} | sections.pop("network", {}),
        **sections,
    )


def open_(lab: Lab, port: int = 7000, **sections: Any) -> str:
    """Write a service of mode host, which listens on ``port`` of the host."""
    return echo(
        lab, "open", port, network={"mode": "host"} | sections.pop("network", {}), **sections
    )


def home_of(lab: Lab, pid: int | str) -> int:
    """Return the inode of the network namespace of a process of the lab."""
    return int(lab.run("stat", "-Lc", "%i", f"/proc/{pid}/ns/net").stdout)


def lives_in(lab: Lab, service: str) -> int:
    """Return the network namespace that all of a service's processes are in."""
    first = pid_of(lab, service)
    [home] = {home_of(lab, pid) for pid in (first, process_below(lab, first))}
    return home


def seen_in(lab: Lab, service: str, *command: str) -> str:
    """Return what a command of busybox prints inside a service."""
    out: str = lab.niso("exec", service, "--", "/usr/bin/busybox", *command).stdout
    return out


def names_in(lab: Lab, service: str) -> dict[str, list[str]]:
    """Return names by address in a service's hosts file, without itself and the host."""
    lines = [line.split() for line in seen_in(lab, service, "cat", "/etc/hosts").splitlines()]
    return {
        line[0]: line[1:]
        for line in lines
        if line and line[0] != "#" and not {"localhost", "host.niso.local"} & set(line)
    }


def running(lab: Lab, *services: str) -> dict[str, tuple[int, int]]:
    """Return (pid, restarts) by service; all of them must be running."""
    shown = {name: inspect(lab, name) for name in services}
    assert {name: row["status"] for name, row in shown.items()} == dict.fromkeys(
        services, "running"
    )
    return {name: (row["pid"], row["restarts"]) for name, row in shown.items()}


def no_folders_but(lab: Lab, *kept: str) -> None:
    """Assert that there are hosts folders of just these."""
    assert sorted(os.listdir(lab.path("/run/niso/hosts"))) == sorted(kept)


def changed(before: dict[str, Any], after: dict[str, Any], *keys: str) -> list[str]:
    """Return where the kernel differs in two snapshots, but for the MACs of the host's ends of new links."""
    kept = keys or KERNEL
    return [
        line
        for key in kept
        for line in snapshots.differences(before.get(key), after.get(key), key)
        if not re.match(r"in the host/(link|address)/ni[^/]+-[0-9a-f]{7}/address: ", line)
    ]


def started_again(lab: Lab, service: str, before: int) -> None:
    lab.wait_for(
        lambda: inspect(lab, service)["pid"] not in (None, before), 10, f"{service} started again"
    )
