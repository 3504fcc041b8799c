"""Define what benchmarks measure inside a lab: services, their port layout, servers and clients.

A world is one way to run services or to publish ports, in one lab of its own. All are IPv4 only: so are the peers' default networks.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

HOST = "192.0.2.1"
LOWEST = 9_000
"""The first published port; its service also has it by UDP. Both lead to `SERVED`, and so does the highest."""
SERVED = 80
SPARE, SPARE_TO = 30_000, 40_000
"""From here on up nothing is published but what is measured, which leads to the same numbers or to those from there on up."""
_SOURCES = 16  # flows.c


class Mapping(NamedTuple):
    host: int
    container: int
    proto: str = "tcp"
    length: int = 1


def layout(ports: int) -> dict[str, list[Mapping]]:
    """Service -> its ports: one service with ``ports`` TCP ports in a row, no two to the same number of it.

    The services "first" and "last" have the lowest and the highest one of all, and these by UDP too. Of one port it is "first" alone.
    """
    found = {"first": [Mapping(LOWEST, SERVED), Mapping(LOWEST, SERVED, "udp")]}
    if ports > 1:
        last = LOWEST + ports + 1
        found["many"] = [Mapping(host, host + 20_000) for host in range(LOWEST + 1, last)]
        found["last"] = [Mapping(last, SERVED), Mapping(last, SERVED, "udp")]
    return found


def ports_of(count: int, each: bool) -> list[Mapping]:
    """The ports of a service that publishes ``count`` in a row: as they are, or each to another number."""
    if not each:
        return [Mapping(SPARE, SPARE, "tcp", count)]
    return [Mapping(SPARE + i, SPARE_TO + i) for i in range(count)]


def run(*argv: str, input: str | None = None) -> str:
    """A command's output. Raises RuntimeError with what it said last where it fails."""
    done = subprocess.run(
        argv, input=input, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(
            f"{' '.join(argv)[:80]}: {said[-1][:300] if said else f'ends with {done.returncode}'}"
        )
    return done.stdout


def timed(what: Callable[[], Any]) -> float:
    """How long it takes, in ms."""
    start = time.perf_counter()
    what()
    return (time.perf_counter() - start) * 1000


def write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)


class World:
    """Methods that the driver calls by name; they take and give what JSON can say."""

    AT_ONCE = 1
    """So many services are started by one command."""

    def __init__(self, flows: str) -> None:
        self.flows = flows
        cpus = sorted(os.sched_getaffinity(0))
        self.client_cpu, self.server_cpu = str(cpus[0]), str(cpus[-1])
        self.highest = LOWEST
        self.services = 0
        self._number = 0
        self._servers: list[subprocess.Popen[str]] = []

    def ready(self) -> bool:
        return True

    def grow(self, count: int, seconds: float) -> dict[str, Any]:
        """Have ``count`` services, each with a published port, or as many as can be had in that time.

        Gives how many there are (``count``) and, where it could not have one more, ``why``.
        """
        end = time.monotonic() + seconds
        while self.services < count and time.monotonic() < end:
            many = min(count - self.services, self.AT_ONCE)
            try:
                self.grow_by(list(range(self.services, self.services + many)))
            except RuntimeError as error:
                return {"count": self.services, "why": str(error)}
            self.services += many
        return {"count": self.services, "why": ""}

    def grow_by(self, numbers: list[int]) -> None:
        raise NotImplementedError

    def fill(self, ports: int) -> float:
        """Publish the ports of `layout`; how long the service with most of them took, in ms."""
        self.highest = LOWEST + (ports + 1 if ports > 1 else 0)
        took = {
            name: timed(partial(self.publish_all, {name: of_it}))
            for name, of_it in layout(ports).items()
        }
        return took.get("many", 0.0)

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
            write(f"/proc/sys/net/netfilter/nf_conntrack_{name}", "1")

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
        """What passes from the client to "first" or "last" (``to``), by `load`."""
        return self.load(proto, HOST, LOWEST if to == "first" else self.highest, ms)

    def load(
        self, proto: str, address: str, port: int, ms: int, enter: str = "client", source: str = ""
    ) -> float:
        """New flows per second by "tcp" or "udp"; Gbit/s by "bulk"."""
        argv = [
            "ip",
            "netns",
            "exec",
            enter,
            self.flows,
            "load",
            proto,
            self.client_cpu,
            address,
            str(port),
            str(ms),
        ]
        done, failed, took_us = map(
            int, run(*argv, str(self._number), *([source] if source else [])).split()
        )
        if proto == "bulk":
            self._number += 1
            return done * 8 / took_us / 1000
        self._number += done + failed + 64
        if failed or not done:
            raise RuntimeError(f"{proto} to {address}:{port}: {done} flows, {failed} failed")
        return done / took_us * 1e6

    def memory(self) -> dict[str, float]:
        """The lab's processes, but for its own and those that measure: how many, and what they hold resident, in KiB (PSS)."""
        count, kib = 0, 0.0
        ours = {1, os.getpid(), *(server.pid for server in self._servers)}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) in ours:
                continue
            try:
                with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                    kib += next(
                        (float(line.split()[1]) for line in file if line.startswith("Pss:")), 0
                    )
                    count += 1
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
        return {"processes": count, "kib": kib}
