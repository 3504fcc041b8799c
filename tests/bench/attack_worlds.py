"""Attack one service from another, on a bridge of niso and of its peers, in a lab.

Three services are on one network: "victim" publishes a port, "peer" is a neighbour, and "attacker" may send raw frames (NET_RAW;
Docker's default). Each attack is bounded. ``attack`` returns what of it succeeds, in percent, and what the victim still gets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from engine_worlds import Docker, Podman
from niso_world import NisoWorld, package
from peer_worlds import Netavark
from worlds import HOST, Mapping, World, run

CLIENT = "192.0.2.2"
PORT = 20_000
SHOTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shots.py")
COUNT = 20


class Attacked(World):
    def set_up(self) -> None:
        mappings = [Mapping(PORT, 80), Mapping(PORT, 80, "udp")]
        self.publish_all({"victim": mappings, "peer": [], "attacker": []})
        self.ip: dict[str, str] = {}
        self.mac: dict[str, str] = {}
        for name in ("victim", "peer", "attacker"):
            link = json.loads(run(*self.in_service(name), "ip", "-j", "address", "show", "eth0"))[0]
            self.mac[name] = link["address"]
            self.ip[name] = next(a["local"] for a in link["addr_info"] if a["family"] == "inet")
        self.bridge = json.loads(run("ip", "-j", "route", "get", self.ip["victim"]))[0]["dev"]
        self.router = json.loads(run("ip", "-j", "link", "show", self.bridge))[0]["address"]
        self.prefix = self.ip["victim"].rpartition(".")[0]

    def attack(self, what: str) -> dict[str, float]:
        self._forget()
        found: dict[str, float] = getattr(self, f"_{what}")()
        return found

    def _forget(self) -> None:
        run("ip", "neigh", "flush", "all")
        run("bridge", "fdb", "flush", "dev", self.bridge, "nopermanent", "nostatic")
        for name in self.ip:
            run(*self.in_service(name), "ip", "neigh", "flush", "all")

    # --- attacks ---

    def _shadow(self) -> dict[str, float]:
        server = self._start("victim", "serve", port=80, seconds=12)
        thief = self._start(
            "attacker", "shadow", port=PORT, target=CLIENT, first=40_000, count=COUNT
        )
        right = self._shot("client", "ask", target=HOST, port=PORT, first=40_000, count=COUNT)
        taken = _number(thief)
        server.terminate()
        server.wait()
        return _of("shadow", taken, right)

    def _address(self) -> dict[str, float]:
        eye = self._start("victim", "watch", seconds=1.5)
        self._shot("attacker", "shoot", **self._frame("victim", "attacker", "peer"))
        return _of("address", _number(eye))

    def _mac(self) -> dict[str, float]:
        self._shot("peer", "say", target=self.ip["victim"], count=2)
        frame = self._frame("victim", "peer", "attacker")
        self._shot("attacker", "shoot", **{**frame, "to": self.router})
        return self._intercepted("mac")

    def _arp(self) -> dict[str, float]:
        self._shot("victim", "say", target=self.ip["peer"], count=2)
        time.sleep(1.2)  # for a second the kernel keeps what it has just learned (locktime, arp(7))
        words = {"own": self.mac["attacker"], "address": self.ip["peer"], "count": COUNT}
        self._shot("attacker", "claim", target=self.ip["victim"], to=self.mac["victim"], **words)
        return self._intercepted("arp")

    def _intercepted(self, what: str) -> dict[str, float]:
        """What of the victim's datagrams to its peer comes to the attacker, and to the peer."""
        thief = self._start("attacker", "watch", seconds=2)
        right = self._start("peer", "watch", seconds=2)
        self._shot("victim", "say", target=self.ip["peer"], count=COUNT)
        return _of(what, _number(thief), _number(right))

    def _neighbours(self) -> dict[str, float]:
        """How many addresses that nobody has the host asks for in the attacker's stead."""
        frame = self._frame("victim", "attacker", "attacker")
        words = {"to": self.router, "own": frame["own"], "source": frame["source"]}
        self._shot("attacker", "beside", prefix=self.prefix, count=200, **words)
        entries = json.loads(run("ip", "-j", "neigh", "show", "dev", self.bridge, "nud", "all"))
        asked = {e["dst"] for e in entries} & {f"{self.prefix}.{n + 20}" for n in range(200)}
        return {"neighbours: attack": len(asked) / 2}

    def _broadcasts(self) -> dict[str, float]:
        """What of the questions comes to the victim, and what of its own pings are answered meanwhile."""
        eye = self._start("victim", "watch", seconds=3, arp=True)
        words = {"own": self.mac["attacker"], "address": self.ip["attacker"], "seconds": 2}
        flood = self._start("attacker", "ask_all", wait=False, prefix=self.prefix, **words)
        answered = self._ping(56, 20)
        sent = _number(flood)
        return {"broadcasts: attack": 100 * _number(eye) / sent, "broadcasts: victim": answered}

    def _fragments(self) -> dict[str, float]:
        frame = self._frame("victim", "attacker", "attacker")
        frame |= {"to": self.router, "target": CLIENT, "count": 4000}
        self._shot("attacker", "parts", **frame)
        return {"fragments: victim": self._ping(3000, 10)}

    def _flows(self) -> dict[str, float]:
        """New flows a second of a service that opens as many as it can, and the victim's own meanwhile."""
        server = self._start("victim", "serve", port=80, seconds=8)
        before = _tracked()
        flood = self._start("attacker", "flows", wait=False, target=CLIENT, seconds=2)
        words = {"target": HOST, "port": PORT, "first": 41_000, "pause": 0.02}
        right = self._shot("client", "ask", count=COUNT, **words)
        sent = _number(flood)
        made = _tracked() - before
        server.terminate()
        server.wait()
        return {"flows: attack": 100 * made / sent, "flows: victim": 100 * right / COUNT}

    # --- means ---

    def _frame(self, to: str, own: str, source: str) -> dict[str, Any]:
        place = {"to": self.mac[to], "own": self.mac[own], "source": self.ip[source]}
        return {**place, "target": self.ip[to], "count": COUNT}

    def _ping(self, size: int, count: int) -> float:
        words = ("-q", "-c", str(count), "-i", "0.05", "-W", "1", "-s", str(size), CLIENT)
        done = subprocess.run(
            [*self.in_service("victim"), "ping", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        return 100 * int(done.stdout.split(" received")[0].rpartition(" ")[2]) / count

    def _start(self, name: str, what: str, wait: bool = True, **args: Any) -> subprocess.Popen[str]:
        enter = ["ip", "netns", "exec", name] if name == "client" else self.in_service(name)
        argv = [*enter, sys.executable, "-B", SHOTS, what, json.dumps(args)]
        started = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        if wait and what in ("watch", "serve", "shadow"):
            assert started.stdout
            if started.stdout.readline() != "ready\n":
                raise RuntimeError(f"{what} in {name} does not start")
        return started

    def _shot(self, name: str, what: str, **args: Any) -> int:
        return _number(self._start(name, what, wait=False, **args))


def _number(started: subprocess.Popen[str]) -> int:
    said = started.communicate(timeout=40)[0]
    if started.returncode:
        raise RuntimeError(f"{started.args!r} fails")
    return int(said.split()[-1])


def _of(what: str, taken: int, right: int | None = None) -> dict[str, float]:
    found = {f"{what}: attack": 100 * taken / COUNT}
    if right is not None:
        found[f"{what}: victim"] = 100 * right / COUNT
    return found


def _tracked() -> int:
    with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
        return int(file.read())


class NisoAttacked(Attacked, NisoWorld):
    def publish_all(self, plan: dict[str, list[Mapping]]) -> None:
        more = '[isolation]\ncapabilities = ["NET_RAW"]\n'
        self.activate(
            [
                package(name, mappings, more=more if name == "attacker" else "")
                for name, mappings in plan.items()
            ]
        )


class NisoUnlimited(NisoAttacked):
    """niso without the rules of limits."""

    def set_up(self) -> None:
        super().set_up()
        without_limits()


class NetavarkAttacked(Attacked, Netavark):
    """Podman's bridge."""


class PodmanAttacked(Attacked, Podman):
    pass


class DockerAttacked(Attacked, Docker):
    pass


def without_limits() -> None:
    """Take niso's rules of limits out."""
    for table in (["inet", "niso"], ["bridge", "niso"]):
        chain = ""
        for line in run("nft", "-a", "list", "table", *table).splitlines():
            words = line.split()
            if words[:1] == ["chain"]:
                chain = words[1]
            elif any(
                f"@{name}" in line for name in ("flows4", "flows6", "fragments", "arp_nd", "own4")
            ):
                run("nft", "delete", "rule", *table, chain, "handle", words[-1])
