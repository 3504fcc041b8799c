"""Worlds of the policy benchmark, as seen from inside a lab."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from attack_worlds import without_limits
from niso_world import NisoWorld, package
from worlds import SERVED, World, run, timed, write

from niso.change import activate, deactivate
from niso.change.targets import find_targets

A_NETWORK = 200  # services on each
PEERS = 10
FAST = "[isolation.resources]\nnew_flows_limit = 1000000\n"
OTHERS = (*(f"other{i}" for i in range(PEERS - 1)), "client0")


class Policies(NisoWorld):
    """Services of which each has a policy that names 10 others of its network."""

    def fill(self, count: int) -> float:
        """Have ``count`` services; how long it took, in ms."""
        self._count = count
        return timed(
            lambda: [self._activate(range(at, min(at + 50, count))) for at in range(0, count, 50)]
        )

    def change(self) -> dict[str, float]:
        """Take one peer out of a policy and put it in again; activate one more service with such a policy and take it away."""
        less = timed(lambda: self._activate([3], PEERS - 1))
        more = timed(lambda: self._activate([3]))
        folder = self._package(3, "extra")
        attach = timed(lambda: self.activate([folder]))
        detach = timed(lambda: deactivate.deactivate(self.machine, ["extra"]))
        return {
            "peer taken out": less,
            "peer put in": more,
            "service added": attach,
            "service taken away": detach,
        }

    def _activate(self, numbers: list[int] | range, peers: int = PEERS) -> None:
        self.activate([self._package(number, f"s{number}", peers) for number in numbers])

    def _package(self, number: int, name: str, peers: int = PEERS) -> str:
        first = number // A_NETWORK * A_NETWORK
        here = min(A_NETWORK, self._count - first)
        named = [f"s{first + (number - first + 1 + i) % here}:{SERVED}" for i in range(peers)]
        return package(name, [], f"net{first}", f"[network.policy]\nallow_from = {named}\n")


class Bridged(World):
    """A client and a server on one bridge; ``rate`` is that of new flows between them."""

    client, server, source, target = "client0", "server0", "10.99.0.3", "10.99.0.2"

    def rate(self, proto: str, to: str, ms: int) -> float:
        return self.load(proto, self.target, SERVED, ms, self.client, self.source)

    def path(self, proto: str) -> float:
        """Microseconds of one processor for a flow, or for 256 KiB of a connection, by one thread.

        No other server may be there yet.
        """
        where = (f"/run/netns/{self.client}", f"/run/netns/{self.server}")
        words = ("path", proto, self.client_cpu, self.target, str(SERVED), self.source, *where)
        return int(run(self.flows, *words)) / 1000

    def paid(self, proto: str, to: str, ms: int) -> float:
        """As `rate`, by second of processor time of client and server: for a busy machine."""
        before = self._spent()
        wall = time.monotonic()
        rate = self.rate(proto, to, ms)
        spent = self._spent() - before
        return rate * (time.monotonic() - wall) / max(spent, 0.01)

    def _spent(self) -> float:
        """Processor seconds of the server and of clients that have ended (proc_pid_stat(5))."""
        own = os.times()
        fields = [
            Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
            for server in self._servers
        ]
        ticks = sum(int(field[11]) + int(field[12]) for field in fields)
        return own.children_user + own.children_system + ticks / os.sysconf("SC_CLK_TCK")

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.server]

    def forget_soon(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in ("tcp_timeout_close", "udp_timeout"):  # in s: the table must not fill up
                write(f"/proc/sys/net/netfilter/nf_conntrack_{name}", "1")

    def serve(self, names: object = ()) -> None:
        self.start_servers(["server"])


class Switched(Bridged):
    """Plain switching: no table, no connection tracking."""

    def fill(self, ports: int) -> float:
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "link", "set", "br0", "up")
        for name, address in ((self.server, self.target), (self.client, self.source)):
            run("ip", "netns", "add", name)
            run(
                "ip",
                "link",
                "add",
                f"v-{name}",
                "master",
                "br0",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            )
            run("ip", "link", "set", f"v-{name}", "up")
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
        write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
        return 0.0


class Tracked(Switched):
    """The same with connection tracking of what the bridge switches, and no rule but one that looks at it."""

    def fill(self, ports: int) -> float:
        super().fill(ports)
        run("ip", "link", "set", "br0", "type", "bridge", "nf_call_iptables", "1")
        chain = "chain c { type filter hook forward priority 0; ct state established accept; };"
        run("nft", f"table inet track {{ {chain} }}")
        return 0.0


class NoPolicy(Bridged, NisoWorld):
    """Two services of niso without a policy."""

    client, server, rules = "niso-client0", "niso-server0", ""

    def fill(self, ports: int) -> float:
        write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
        folders = [
            package("server0", [], "inside", self.rules),
            package("client0", [], "inside", FAST),
        ]
        done = activate.activate(self.machine, find_targets(self.store, folders), 60)
        self.target, self.source = (each.address[0] for each in done)
        return 0.0


class Policed(NoPolicy):
    """The same where the server's policy allows the client, among others."""

    rules = f"[network.policy]\nallow_from = {[f'{name}:{SERVED}' for name in OTHERS]}\n"


class Unlimited(Policed):
    """The same without the rules that limit what a service sends."""

    def fill(self, ports: int) -> float:
        super().fill(ports)
        without_limits()
        return 0.0


class PortUnlimited(NisoWorld):
    """Published ports without these rules."""

    def fill(self, ports: int) -> float:
        took = super().fill(ports)
        without_limits()
        return took


class Forgets(NoPolicy):
    """Two services of niso where no rule remembers a flow."""

    def fill(self, ports: int) -> float:
        super().fill(ports)
        for chain in ("inet niso see_away", "inet niso see_host", "bridge niso see"):
            run("nft", "flush", "chain", *chain.split())
        run("nft", "add", "rule", "bridge", "niso", "see", "accept")
        return 0.0


class PolicedForgets(Forgets):
    """The same with a policy."""

    rules = Policed.rules
