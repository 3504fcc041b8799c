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
            "past": [],
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
        "beyond_from": [],
        "full": [],
    }


KINDS = ("web", "api", "auth", "postgres", "redis", "worker", "mailer", "cron", "search", "metrics")
STACKS = ("shop", "blog", "wiki", "chat", "mail", "git", "ci", "files", "photos", "billing")


def world_of(count: int) -> dict[str, Any]:
    """Return a state such as a host with ``count`` services has: stacks, each on a network.

    The first service of each stack publishes a port and is on the network edge too. Each stack has
    a policy, a denied flow and a service that is not well.
    """
    names, networks = [], {}
    for i in range(count):
        stack = STACKS[i // 10 % 10] + (str(i // 100 + 1) if i >= 100 else "")
        kind = KINDS[i % 10]
        name = f"{stack}-{kind}" if count > 13 else f"{kind}{i // 10 or ''}"
        names.append(name if i != 7 else f"{name}-of-the-quarterly-statements")
        networks[names[-1]] = [stack if count > 13 else ("backend", "lab")[i // 10]]
        if i % 10 == 0:
            networks[names[-1]].insert(0, "edge")
    base = state_of(names, [""])
    by_kind = {}
    for i, (name, row) in enumerate(zip(names, base["services"], strict=True)):
        stack = networks[name][-1]
        by_kind[stack, KINDS[i % 10]] = name
        bad = i % 10 == 6
        row |= {
            "networks": networks[name],
            "stack": stack,
            "address": [f"10.99.{i // 10}.{i % 10 + 2}"],
        }
        row |= {
            "health": "unhealthy" if bad else ("healthy" if i % 3 else None),
            "cpu": i % 7 * 1.3,
        }
        row |= {
            "memory": (8 + i % 50) << 20,
            "received": 900.0 * (i % 11) ** 3,
            "sent": 400.0 * (i % 7) ** 3,
        }
        row |= {"file": f"/srv/{stack}/{KINDS[i % 10]}/manifest.toml", "uptime": 86400.0}
        row["ports"] = [
            {"host_ip": ip, "host_port": 8080 + i // 10, "container_port": 80, "proto": "tcp"}
            for ip in ("0.0.0.0", "::")
            if i % 10 == 0
        ]
        if i % 10 in (3, 4):
            row["policy"] = {"allow_from": ["api:5432/tcp", "worker:5432/tcp"], "deny_from": [],
                             "egress_allow": None, "egress_deny": []}  # fmt: skip
        else:
            row["policy"] = None
        row["past"] = [float((i * 7 + n * n) % 97) * 1000 for n in range(60)]
        if i % 10 == 1:
            row["status"] = "2/2 running"
        if i % 10 == 7:
            row |= {"status": "inactive", "health": None, "past": []}
    flows: list[dict[str, Any]] = []

    def add(
        from_: tuple[str, str], to: tuple[str, str], port: int, verdict: str = "pass", **more: Any
    ) -> None:
        number = len(flows)
        live = verdict == "pass" and number % 3 != 2
        ends = [{"name": name, "kind": kind} for name, kind in (from_, to)]
        flow = {"from": ends[0], "to": ends[1], "port": port, "proto": "tcp", "verdict": verdict}
        flow |= {"published": None, "agrees": True, "new": 3 + number, "rate": 0.7 if live else 0.0}
        flow |= {
            "words": f"{to[0]} network.policy.allow_from",
            "ago": 1.0 + number % 50,
            "open": number % 2,
        }
        flow |= {"bits": 1000.0 * (number % 9) ** 4 if live else 0.0, "changes": []}
        if verdict != "pass":
            flow["changes"] = [{"service": to[0], "key": "network.policy.allow_from",
                                "text": f"{from_[0]}:{port}/tcp", "adds": True}]  # fmt: skip
        flows.append(flow | more)

    for stack in dict.fromkeys(networks[name][-1] for name in names):
        own = {kind: (name, "service") for (where, kind), name in by_kind.items() if where == stack}
        web = own["web"]
        add(("192.0.2.7", "outside"), web, 80, published=8080 + names.index(web[0]) // 10)
        for from_, to, port in (
            ("web", "api", 9000), ("web", "auth", 7000), ("api", "postgres", 5432), ("api", "redis", 6379),
            ("auth", "postgres", 5432), ("worker", "postgres", 5432), ("worker", "redis", 6379),
            ("worker", "mailer", 25), ("api", "search", 9200), ("metrics", "api", 9000), ("metrics", "web", 80),
        ):  # fmt: skip
            if from_ in own and to in own:
                add(own[from_], own[to], port)
        if "search" in own:
            add(own["search"], own["postgres"], 5432, "drop")
            add(own["search"], own["redis"], 6379, "drop")
            add(own["metrics"], own["auth"], 9100, "audit")
            add(own["worker"], ("198.51.100.9", "outside"), 443)
        if web[0] != names[0]:
            add((names[0], "service"), web, 80)
    rows = [
        {
            "network": network,
            "subnets": [f"10.99.{i}.0/24"],
            "internal": network == "lab",
            "observed": True,
        }
        for i, network in enumerate(sorted({one for on in networks.values() for one in on}))
    ]
    return base | {"host": "host", "networks": rows, "flows": flows}
