"""Make a state of the map of services, with any names."""

from __future__ import annotations

from typing import Any


def state_of(names: list[str], networks: list[str]) -> dict[str, Any]:
    """Return a state of services that talk to each other in a row, and are denied the other way."""
    services = [
        {
            "service": name,
            "status": "running",
            "health": ("healthy", "unhealthy", None)[i % 3],
            "health_age": 4.0 if i % 3 < 2 else None,
            "cpu": 1.5,
            "memory": 1048576,
            "mode": "bridge",
            "stack": names[i % 5] if i % 2 else None,
            "shares": None,
            "networks": [networks[i % len(networks)]],
            "address": [name],
            "ports": [{"host_ip": name, "host_port": i, "container_port": 1, "proto": name}],
            "uptime": 9.0,
            "received": 1000.0 * i,
            "sent": 10.0,
            "new": 0.0,
            "denied_in": 1,
            "denied_out": 0,
            "policy": {
                "allow_from": [name],
                "deny_from": [name],
                "egress_allow": None,
                "egress_deny": [],
            },
            "audit_until": None,
            "file": name,
        }
        for i, name in enumerate(names)
    ]
    flows = []
    for i, name in enumerate(names):
        other = names[(i + 1) % len(names)]
        for verdict in ("pass", "drop"):
            ends = [{"name": name, "kind": "service"}, {"name": other, "kind": "service"}]
            if i in (0, 3):
                ends[0] = {"name": name, "kind": "outside"}
            change = {
                "service": other,
                "key": "network.policy.allow_from",
                "text": name,
                "adds": True,
            }
            flows.append(
                {
                    "from": ends[0],
                    "to": ends[1],
                    "port": 80,
                    "proto": "tcp",
                    "verdict": verdict,
                    "published": None,
                    "words": name,
                    "agrees": True,
                    "new": 3,
                    "rate": 0.5,
                    "bits": None if i % 4 else 1e5 * i,
                    "ago": 1.0,
                    "open": 0,
                    "changes": [change] if verdict == "drop" else [],
                    "not_shown": 0,
                }
            )
    return {
        "host": names[0],
        "at": "2026-03-01T12:00:00Z",
        "seconds": 2.0,
        "services": services,
        "networks": [
            {"network": n, "subnets": [n], "internal": False, "observed": True} for n in networks
        ],
        "flows": flows,
        "not_shown": 0,
        "missed": 0,
        "beyond": 0,
        "full": [],
    }
