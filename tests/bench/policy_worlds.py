"""What the benchmark of policies measures, seen from inside a lab."""

from __future__ import annotations

import contextlib
import os

from niso_world import NisoWorld
from worlds import SERVED, World, run, timed

from niso import services
from niso.targets import find_targets

A_NETWORK = 200  # services on each
PEERS = 10
OTHERS = (*(f"other{i}" for i in range(PEERS - 1)), "client0")


class Policies(NisoWorld):
    """Services of which each has a policy that names 10 others of its network."""

    def fill(self, ports: int, services_: int) -> dict[str, float]:
        self._count = services_
        took = timed(lambda: [self._activate(range(at, min(at + 50, services_))) for at in range(0, services_, 50)])
        return {"services": services_, "seconds": took / 1000}

    def update(self) -> list[float]:
        """Take one peer out of a policy and put it in again, in ms each."""
        less = timed(lambda: self._activate([3], PEERS - 1))
        return [less, timed(lambda: self._activate([3]))]

    def attach(self) -> list[float]:
        """Activate one more service with such a policy and take it away, in ms each."""
        more = timed(lambda: services.activate(self.store, find_targets(self.store, [self._package(3, "extra")]), 60))
        return [more, timed(lambda: services.deactivate(self.store, ["extra"]))]

    def _activate(self, numbers: list[int] | range, peers: int = PEERS) -> None:
        folders = [self._package(number, f"s{number}", peers) for number in numbers]
        services.activate(self.store, find_targets(self.store, folders), 60)

    def _package(self, number: int, name: str, peers: int = PEERS) -> str:
        first = number // A_NETWORK * A_NETWORK
        here = min(A_NETWORK, self._count - first)
        named = [f"s{first + (number - first + 1 + i) % here}:{SERVED}" for i in range(peers)]
        return package(name, f"net{first}", f"[network.policy]\nallow_from = {named}\n")


class Bridged(World):
    """A client and a server on one bridge; ``rate`` is that of new flows between them."""

    client, server, source, target = "client0", "server0", "10.99.0.3", "10.99.0.2"

    def rate(self, proto: str, to: str, ms: int) -> float:
        enter = ["ip", "netns", "exec", self.client]
        argv = [*enter, self.flows, "load", proto, self.client_cpu, self.target, str(SERVED)]
        done, failed, took_us = map(int, run(*argv, str(ms), str(self._number), self.source).split())
        self._number += done + failed + 64
        if failed or not done:
            raise RuntimeError(f"{proto} to {self.target}:{SERVED}: {done} flows, {failed} failed")
        return done / took_us * 1e6

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.server]

    def serve(self, names: object = ()) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in ("tcp_timeout_close", "udp_timeout"):  # in s: the table must not fill up
                with open(f"/proc/sys/net/netfilter/nf_conntrack_{name}", "w", encoding="ascii") as file:
                    file.write("1")
        self.start_servers(["server"])


class Switched(Bridged):
    """Plain switching: no table, no connection tracking."""

    def fill(self, ports: int, services_: int) -> dict[str, float]:
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "link", "set", "br0", "up")
        for name, address in ((self.server, self.target), (self.client, self.source)):
            run("ip", "netns", "add", name)
            run(
                "ip", "link", "add", f"v-{name}", "master", "br0", "type", "veth", "peer", "name", "eth0", "netns", name
            )
            run("ip", "link", "set", f"v-{name}", "up")
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables", "w", encoding="ascii") as file:
            file.write("0")
        return {}


class Tracked(Switched):
    """The same with connection tracking of what the bridge switches, and no rule but one that looks at it."""

    def fill(self, ports: int, services_: int) -> dict[str, float]:
        super().fill(ports, services_)
        with open("/sys/class/net/br0/bridge/nf_call_iptables", "w", encoding="ascii") as file:
            file.write("1")
        chain = "chain c { type filter hook forward priority 0; ct state established accept; };"
        run("nft", f"table inet track {{ {chain} }}")
        return {}


class NoPolicy(Bridged, NisoWorld):
    """Two services of niso without a policy."""

    client, server, rules = "niso-client0", "niso-server0", ""

    def fill(self, ports: int, services_: int) -> dict[str, float]:
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables", "w", encoding="ascii") as file:
            file.write("0")
        folders = [package("server0", "inside", self.rules), package("client0", "inside", "")]
        done = services.activate(self.store, find_targets(self.store, folders), 60)
        self.target, self.source = (each.addresses[0] for each in done)
        return {}


class Policed(NoPolicy):
    """The same where the server's policy allows the client, among others."""

    rules = f"[network.policy]\nallow_from = {[f'{name}:{SERVED}' for name in OTHERS]}\n"


def package(name: str, network: str, policy: str) -> str:
    folder = f"/tmp/packages/{name}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/manifest.toml", "w", encoding="utf-8") as file:
        file.write(
            f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "/usr/bin/sleep"\nargs = ["100"]\n'
            f'[network]\nnetwork = "{network}"\n{policy}'
        )
    return folder
