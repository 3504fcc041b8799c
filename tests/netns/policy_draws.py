"""Draw random services, networks and policies as manifests; a seed determines the draw.

Network ``nI`` is 10.99.I.0/24 and, where it has both families, fd00:99:I::/64. Service ``sI`` publishes host ports from
8000 + 100 I on. All listen on `SERVED`.
"""

from __future__ import annotations

import random
from typing import Any

SERVED = (80, 81, 82, 9000)
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
OUTSIDE = {4: ("192.0.2.2", "192.0.2.3"), 6: ("2001:db8::2", "2001:db8::3")}
_NUMBERS = range(2, 8)  # of leases that a network of at most six services has


class Topology:
    """What stays over the rounds of a world: networks, and which services are on which."""

    def __init__(self, draw: random.Random) -> None:
        self.networks: dict[str, list[str]] = {}
        self.internal: set[str] = set()
        for number in range(1, draw.randint(1, 3) + 1):
            name = f"n{number}"
            self.networks[name] = [f"10.99.{number}.0/24"]
            if draw.random() < 0.6:
                self.networks[name].append(f"fd00:99:{number}::/64")
            if draw.random() < 0.25:
                self.internal.add(name)
        self.services: dict[str, list[str]] = {}
        self.hostnames: dict[str, str] = {}
        for number in range(1, draw.randint(3, 6) + 1):
            name = f"s{number}"
            many = min(len(self.networks), 2 if draw.random() < 0.35 else 1)
            self.services[name] = draw.sample(sorted(self.networks), many)
            if draw.random() < 0.3:
                self.hostnames[name] = f"other{number}"

    def families(self, service: str) -> set[int]:
        """Of the network of a service's default route, which its published ports lead to."""
        on = sorted(self.services[service], key=lambda name: name in self.internal)
        return {6 if ":" in cidr else 4 for cidr in self.networks[on[0]]}

    def network_table(self, draw: random.Random, service: str, quiet: bool) -> dict[str, Any]:
        """A service's ``[network]`` without policy; ``quiet`` publishes nothing."""
        table: dict[str, Any] = {"networks": self.services[service]}
        if service in self.hostnames:
            table["hostname"] = self.hostnames[service]
        if not quiet:
            table["ports"] = self._ports(draw, service)
        return table

    def _ports(self, draw: random.Random, service: str) -> list[str]:
        base = 8000 + 100 * int(service[1:])
        families = self.families(service)
        forms = [
            "{0}:80",
            "{0}:80/udp",
            "{0}:81/sctp",
            "0.0.0.0:{0}:81",
            f"{HOST[4]}:{{0}}:80",
            "127.0.0.1:{0}:80",
        ]
        forms += ["{0}-{1}:81-82", "{0}-{1}:81-82/udp"]
        if 6 in families:
            forms += ["[::]:{0}:80", f"[{HOST[6]}]:{{0}}:81/udp"]
        found = [
            form.format(base + 10 * place, base + 10 * place + 1)
            for place, form in enumerate(draw.sample(forms, draw.randint(0, 3)))
        ]
        if service == "s1" and draw.random() < 0.5:
            found.append(draw.choice(("9000-9001:9000-9001", "9000:9000/udp")))
        return found

    def policy(self, draw: random.Random) -> dict[str, Any]:
        """A ``[network.policy]`` table; often empty."""
        table: dict[str, Any] = {}
        if draw.random() < 0.5:
            table["allow_from"] = self._entries(draw, 0, 5)
        if draw.random() < 0.3:
            table["deny_from"] = self._entries(draw, 0, 2)
        egress: dict[str, Any] = {}
        if draw.random() < 0.35:
            egress["allow"] = self._entries(draw, 0, 6)
        if draw.random() < 0.25:
            egress["deny"] = self._entries(draw, 0, 2)
        if egress:
            table["egress"] = egress
        if table and draw.random() < 0.2:
            table["log"] = True
        if table and draw.random() < 0.25:
            table["mode"] = "audit"
        return table

    def _entries(self, draw: random.Random, least: int, most: int) -> list[str]:
        return [self._entry(draw) for _ in range(draw.randint(least, most))]

    def _entry(self, draw: random.Random) -> str:
        peer = draw.choice(
            (self._service, self._service, self._service, self._network, self._prefix, self._prefix)
        )(draw)
        form = draw.choice(("", "", "", "port", "port", "range", "proto", "both"))
        if form == "":
            return peer
        start = f"[{peer}]" if ":" in peer.removeprefix("network:") else peer
        protos = ("tcp", "udp", "sctp")
        if form == "proto":
            return f"{start}/{draw.choice((*protos, 'icmp'))}"
        if form == "range":
            return f"{start}:{draw.choice(('80-81', '81-82', '1-80', '82-65535'))}"
        port = f"{start}:{draw.choice((80, 80, 81, 82, 9000))}"
        return f"{port}/{draw.choice(protos)}" if form == "both" else port

    def _service(self, draw: random.Random) -> str:
        if draw.random() < 0.07:
            return "ghost"
        if draw.random() < 0.15:
            return "outside"
        name = draw.choice(sorted(self.services))
        if name in self.hostnames and draw.random() < 0.5:
            name = self.hostnames[name]
        return f"{name}.niso.local" if draw.random() < 0.2 else name

    def _network(self, draw: random.Random) -> str:
        return f"network:{draw.choice((*self.networks, *self.networks, 'ghost'))}"

    def _prefix(self, draw: random.Random) -> str:
        number = draw.choice([int(name[1:]) for name in self.networks])
        low = draw.choice(_NUMBERS)
        return draw.choice(
            (
                *(
                    f"10.99.{number}.{low}",
                    f"10.99.{number}.{low}/32",
                    f"10.99.{number}.{low & ~1}/31",
                ),
                *(
                    f"10.99.{number}.1",
                    f"10.99.{number}.0/24",
                    "10.99.0.0/16",
                    "0.0.0.0/0",
                    "0.0.0.0/1",
                ),
                *(
                    f"fd00:99:{number}::{low}",
                    f"fd00:99:{number}::{low & ~1}/127",
                    f"fd00:99:{number}::1",
                ),
                *(f"fd00:99:{number}::/64", "fd00:99::/32", "::/0", "fe80::/10"),
                *(HOST[4], HOST[6], "192.0.2.0/24", OUTSIDE[4][0], OUTSIDE[6][0], "2001:db8::/32"),
            )
        )
