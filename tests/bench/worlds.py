"""What the benchmark of published ports measures, seen from inside a lab: the layout of ports, servers and clients.

A world is one way to publish ports, in one lab of its own. All are IPv4 only: so are the peers' default networks.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

HOST = "192.0.2.1"
LOWEST = 10_000
"""The first published port; its service also has it by UDP. Both lead to `SERVED`, and so does the highest."""
SERVED = 80
_SOURCES = 16  # flows.c


class Mapping(NamedTuple):
    host: int
    container: int
    proto: str = "tcp"
    length: int = 1


def layout(ports: int, services: int) -> dict[str, list[Mapping]]:
    """Service -> its ports: ``ports`` TCP ports in a row, no two to the same number of a service.

    The services "first" and "last" have the lowest and the highest one, and these by UDP too; those between have the rest.
    """
    highest = LOWEST + ports - 1
    names = [f"fill{i:04}" for i in range(services - 2)]
    each, rest = divmod(ports - 2, len(names))
    found = {"first": [Mapping(LOWEST, SERVED), Mapping(LOWEST, SERVED, "udp")]}
    at = LOWEST + 1
    for i, name in enumerate(names):
        many = each + (i < rest)
        found[name] = [Mapping(host, host + 20_000) for host in range(at, at + many)]
        at += many
    return found | {"last": [Mapping(highest, SERVED), Mapping(highest, SERVED, "udp")]}


def run(*argv: str, input: str | None = None) -> str:
    """A command's output. Raises RuntimeError with what it said where it fails."""
    done = subprocess.run(argv, input=input, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def timed(what: Callable[[], Any]) -> float:
    """How long it takes, in ms."""
    start = time.perf_counter()
    what()
    return (time.perf_counter() - start) * 1000


def kernel_objects() -> int:
    """How many rules and elements of sets and maps nf_tables has: iptables-nft's rules are there too."""
    things = json.loads(run("nft", "-j", "list", "ruleset"))["nftables"]
    rules = sum("rule" in thing for thing in things)
    named = [thing[kind] for thing in things for kind in ("set", "map") if kind in thing]
    return rules + sum(len(each.get("elem", ())) for each in named)


class World:
    """Methods that the driver calls by name; they take and give what JSON can say."""

    def __init__(self, flows: str) -> None:
        self.flows = flows
        cpus = sorted(os.sched_getaffinity(0))
        self.client_cpu, self.server_cpu = str(cpus[0]), str(cpus[-1])
        self.highest = LOWEST
        self._number = 0
        self._servers: list[subprocess.Popen[str]] = []

    def fill(self, ports: int, services: int) -> dict[str, float]:
        """Publish ``ports`` ports of ``services`` services; how long it took, in s."""
        plan = layout(ports, services)
        self.highest = LOWEST + ports - 1
        took = timed(lambda: self.publish_all(plan))
        return {"ports": ports, "services": services, "seconds": took / 1000}

    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        raise NotImplementedError

    def in_service(self, name: str) -> list[str]:
        """The words that run a command in the network namespace of a service."""
        raise NotImplementedError

    def serve(self, names: Iterable[str] = ("first", "last")) -> None:
        """Start the servers, and get the client's addresses and the timeouts of connection tracking ready."""
        self.start_servers(names)
        for i in range(_SOURCES):
            run("ip", "-n", "client", "address", "add", f"192.0.2.{16 + i}/24", "dev", "eth0")
        for name in ("tcp_timeout_close", "udp_timeout"):  # in s: the table must not fill up
            with open(f"/proc/sys/net/netfilter/nf_conntrack_{name}", "w", encoding="ascii") as file:
                file.write("1")

    def start_servers(self, names: Iterable[str]) -> None:
        """Start a server in each of these services."""
        for name in names:
            argv = [*self.in_service(name), self.flows, "serve", self.server_cpu, str(SERVED)]
            server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
            self._servers.append(server)
            assert server.stdout
            if server.stdout.readline() != "ready\n":
                raise RuntimeError(f"{argv} does not serve")

    def rate(self, proto: str, to: str, ms: int) -> float:
        """New flows per second from the client; ``to`` is "first" or "last"."""
        return self.load(proto, HOST, LOWEST if to == "first" else self.highest, ms)

    def load(self, proto: str, address: str, port: int, ms: int) -> float:
        argv = ["ip", "netns", "exec", "client", self.flows, "load", proto, self.client_cpu, address, str(port)]
        done, failed, took_us = map(int, run(*argv, str(ms), str(self._number)).split())
        self._number += done + failed + 64
        if failed or not done:
            raise RuntimeError(f"{proto} to {address}:{port}: {done} flows, {failed} failed")
        return done / took_us * 1e6


class Plain(World):
    """No published ports and no NAT: the client is routed to the service. As fast as this machine can."""

    ADDRESS = "10.99.0.2"

    def fill(self, ports: int, services: int) -> dict[str, float]:
        run("ip", "netns", "add", "service")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "link", "add", "v0", "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", "service")
        run("ip", "address", "add", "10.99.0.1/24", "dev", "br0")
        run("ip", "-n", "service", "address", "add", f"{self.ADDRESS}/24", "dev", "eth0")
        for words in (["link", "set", "br0", "up"], ["link", "set", "v0", "up"]):
            run("ip", *words)
        run("ip", "-n", "service", "link", "set", "eth0", "up")
        run("ip", "-n", "service", "route", "add", "default", "via", "10.99.0.1")
        run("ip", "-n", "client", "route", "add", "10.99.0.0/24", "via", HOST)
        with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as file:
            file.write("1")
        self._tracked = False
        return {}

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", "service"]

    def rate(self, proto: str, to: str, ms: int) -> float:
        """``to`` is "routed" (no netfilter at all) or "tracked" (one rule, that looks at connection tracking)."""
        if self._tracked != (to == "tracked"):
            self._tracked = not self._tracked
            if self._tracked:
                chain = "chain c { type filter hook forward priority 0; ct state invalid drop; };"
                run("nft", f"table inet track {{ {chain} }}")
            else:
                run("nft", "delete", "table", "inet", "track")
        return self.load(proto, self.ADDRESS, SERVED, ms)
