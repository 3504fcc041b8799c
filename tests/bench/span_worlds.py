"""Worlds of the chapter about several hosts: labs that are hosts of one cluster, with etcd and agents of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from bridge_worlds import FAST
from niso_world import WITHOUT_PROCESS, NisoWorld, package
from worlds import HOST, SERVED, World, run, timed, write

from niso.base import paths
from niso.base.errors import Error
from niso.change import cluster_claims, deactivate
from niso.cluster import config, mirror
from niso.cluster.agent import Agent
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Delete, Put, Txn, encode
from niso.cluster.key_values import HostEntry
from niso.cluster.membership import ClusterKeys

SPAN, SUBNET, WIDE = "span", "10.99.0.0/22", "10.96.0.0/17"
GUARDED, GUARDED_SUBNET = "guarded", "10.99.8.0/22"
LINK = "under0"
HOSTS_FILE = "/run/niso/hosts/{}/hosts"
INSIDE = "10.99.16"
TRACK = "ct state established accept"
LOOK_AGAIN_S = 0.001
A_TXN = 120
"""Keys in a transaction: etcd takes 128 operations."""
CROWD_HOSTS = 50
LEASE_S = 3600
KNOWN_S = 20.0
BEFORE_KILL_S = 0.7


class Bare(World):
    """An end of the wire without niso."""

    def connect(self, address: str) -> None:
        run("ip", "netns", "add", "bare")
        run("ip", "link", "set", LINK, "netns", "bare")
        run("ip", "-n", "bare", "link", "set", LINK, "up")
        run("ip", "-n", "bare", "address", "add", f"{address}/24", "dev", LINK)

    def in_service(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", "bare"]

    def serve(self, names: Iterable[str] = ()) -> None:
        self.start_servers(["server"])

    def track(self) -> None:
        """Have what comes and goes tracked, with one rule for each."""
        chains = [
            f"chain {hook} {{ type filter hook {hook} priority 0; {TRACK}; }};"
            for hook in ("input", "output")
        ]
        enter = ("ip", "netns", "exec", "bare")
        run(*enter, "nft", f"table inet track {{ {' '.join(chains)} }}")
        forget_soon(*enter)


class Tunnelled(Bare):
    """A service behind a bridge and a VXLAN device, without niso."""

    def connect(self, address: str) -> None:
        run("ip", "link", "set", LINK, "up")
        run("ip", "address", "add", f"{address}/24", "dev", LINK)
        write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
        self._local = address

    def tunnel(self, number: int, other: int, remote: str) -> str:
        """Make the devices; return the address of this end, ``number``, that reaches the other one."""
        mtu, mac = "1450", "0a:00:00:00:00:{:02x}"
        run("ip", "link", "add", "br0", "mtu", mtu, "type", "bridge")
        run("ip", "link", "set", "br0", "up")
        run("ip", "netns", "add", "bare")
        veth = ["ip", "link", "add", "v0", "mtu", mtu, "master", "br0", "type", "veth", "peer"]
        end = ["name", "eth0", "mtu", mtu, "address", mac.format(number), "netns", "bare"]
        run(*veth, *end)
        run("ip", "link", "set", "v0", "up")
        run("ip", "-n", "bare", "link", "set", "eth0", "up")
        run("ip", "-n", "bare", "address", "add", f"{INSIDE}.{number}/24", "dev", "eth0")
        settings = f"type vxlan id 9 local {self._local} dstport 4789 nolearning ttl 64"
        run("ip", "link", "add", "vx0", "mtu", mtu, *settings.split())
        run("ip", "link", "set", "vx0", "master", "br0", "up")
        far = mac.format(other)
        run("bridge", "fdb", "replace", far, "dev", "vx0", "master", "static")
        run("bridge", "fdb", "replace", far, "dev", "vx0", "self", "dst", remote, "permanent")
        neighbour = (f"{INSIDE}.{other}", "lladdr", far, "dev", "eth0", "nud", "permanent")
        run("ip", "-n", "bare", "neigh", "replace", *neighbour)
        return f"{INSIDE}.{number}"

    def track(self) -> None:
        """Have what the bridge switches tracked, and the tunnel's packets left out."""
        run("ip", "link", "set", "br0", "type", "bridge", "nf_call_iptables", "1")
        chains = f"chain f {{ type filter hook forward priority 0; {TRACK}; }};"
        for hook in ("prerouting", "output"):
            words = f"type filter hook {hook} priority raw; udp dport 4789 notrack;"
            chains += f" chain {hook} {{ {words} }};"
        run("nft", f"table inet track {{ {chains} }}")
        forget_soon()


def forget_soon(*enter: str) -> None:
    """Shorten the timeouts of closed flows, in s: the table must not fill up."""
    for name in ("tcp_timeout_close", "udp_timeout"):
        run(*enter, "sysctl", "-qw", f"net.netfilter.nf_conntrack_{name}=1")


class SpanHost(NisoWorld):
    """A host of a cluster. Services have no process."""

    def serve(self, names: Iterable[str] = ()) -> None:
        forget_soon()
        self.start_servers(names)

    def connect(self, address: str) -> None:
        # as niso leaves it where it loads the module: only bridges that need it are tracked
        write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
        run("ip", "link", "set", LINK, "up")
        run("ip", "address", "add", f"{address}/24", "dev", LINK)

    # --- the cluster ---

    def init(self, name: str, address: str) -> None:
        run("niso", "cluster", "init", "--name", name, "--address", address)

    def invite(self, name: str, address: str) -> str:
        return run("niso", "cluster", "invite", name, "--address", address)

    def join(self, invitation: str) -> None:
        run("niso", "cluster", "join", "-", "--member", input=invitation)

    def span(self, service: str) -> str:
        """Have the network, and a service on it that clients may ask; return its address."""
        run("niso", "net", "create", SPAN, "--subnet", SUBNET, "--span")
        self.activate([package(service, [], SPAN, FAST)])
        return self.address(service)

    def guarded(self, service: str, client: str) -> str:
        """Have a service with a policy on another network, or without ``client`` its client."""
        run("niso", "net", "create", GUARDED, "--subnet", GUARDED_SUBNET, "--span")
        rules = f'[network.policy]\nallow_from = ["{client}:{SERVED}"]\n' if client else ""
        self.activate([package(service, [], GUARDED, FAST + rules)])
        return self.address(service)

    def more(self, service: str) -> str:
        """Have one more service there; return its address."""
        self.activate([package(service, [], SPAN, FAST)])
        return self.address(service)

    def address(self, service: str) -> str:
        return next(a for _, a in self.store.addresses(service) if ":" not in a)

    def start_agent(self) -> None:
        self._agent = subprocess.Popen(["niso", "agent"], stdout=subprocess.PIPE, text=True)
        assert self._agent.stdout
        if "following cluster" not in self._agent.stdout.readline():
            raise RuntimeError("the agent does not start")
        threading.Thread(target=self._agent.stdout.read, daemon=True).start()

    def signal_agent(self, name: str) -> None:
        self._agent.send_signal(getattr(signal, name))
        if name == "SIGKILL":
            self._agent.wait(10)

    def start_etcd(self) -> None:
        quiet = subprocess.DEVNULL
        subprocess.Popen(["niso", "cluster", "etcd"], stdout=quiet, stderr=quiet)

    # --- what is measured ---

    def attach(self, network: str, command: bool) -> dict[str, float]:
        """One service on a network: the command, or in process with what the cluster's part of it is."""
        folder = package("extra", [], network)
        if command:
            found = {"command": timed(lambda: run(*WITHOUT_PROCESS, "activate", folder))}
        else:
            with _asking() as asked:
                found = {"activate": timed(lambda: self.activate([folder]))}
            found |= {what: ms for what, (ms, _) in asked.items()}
        deactivate.remove(self.machine, ["extra"])
        return found

    def appear(self, name: str) -> float:
        """Activate a service there; return when the cluster had it (of the monotonic clock, in s)."""
        with _asking() as asked:
            self.activate([package(name, [], SPAN)])
        return asked["publish"][1]

    def command(self, name: str) -> float:
        """Activate a service there by the command; return when that began."""
        folder = package(name, [], SPAN)
        began = time.monotonic()
        run(*WITHOUT_PROCESS, "activate", folder)
        return began

    def vanish(self, name: str) -> None:
        deactivate.remove(self.machine, [name])

    def until_named(self, name: str, there: bool, seconds: float, network: str = SPAN) -> float:
        """Return when a name came into the hosts file, or went."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with open(HOSTS_FILE.format(network), encoding="ascii") as file:
                if (name in file.read().split()) == there:
                    return time.monotonic()
            time.sleep(LOOK_AGAIN_S)
        raise RuntimeError(f"{name} is {'not ' * there}in the hosts file after {seconds:.0f} s")

    def usage(self, seconds: float) -> dict[str, float]:
        """What the agent holds, in KiB, and uses of a processor, in per cent."""
        pid = self._agent.pid
        before, began = _spent_ns(pid), time.monotonic_ns()
        time.sleep(seconds)
        used = (_spent_ns(pid) - before) / (time.monotonic_ns() - began) * 100
        return {
            "agent, PSS": _field(f"/proc/{pid}/smaps_rollup", "Pss:"),
            "agent, RSS": _field(f"/proc/{pid}/status", "VmRSS:"),
            "agent, processor": used,
        }

    def requests(self, to: str, enter: str, source: str, ms: int) -> dict[str, float]:
        """Connections to a service for a while: those that were answered, and those that failed."""
        words = ("load", "tcp", self.client_cpu, to, str(SERVED), str(ms), "0", source)
        done, failed, _ = map(int, run("ip", "netns", "exec", enter, self.flows, *words).split())
        return {"requests": done, "requests failed": failed}

    def claims_without_member(self, seconds: float) -> dict[str, float]:
        """Claim and give up again for a while, in which this host's member of etcd is killed."""
        own = config.require()
        with open("/run/niso/etcd.pid", encoding="ascii") as file:
            kill = threading.Timer(BEFORE_KILL_S, os.kill, (int(file.read()), signal.SIGKILL))
        kill.start()
        end, times, failed = time.monotonic() + seconds, [0.0], 0
        with own.engine() as engine:
            claims = Claims(engine, own.host, own.keys)
            while time.monotonic() < end:
                name = f"k{len(times)}-{own.host}"
                try:
                    times.append(timed(partial(_claim_once, claims, name)))
                except Error:
                    failed += 1
        kill.join()
        return {
            "claims": len(times) - 1,
            "claims failed": failed,
            "slowest claim": max(times),
        }

    def claims_at_once(self, count: int, at: float) -> list[str]:
        """Claim with as many connections at one time (monotonic clock, in s); return the addresses.

        A claim that fails has none. The agent must be stopped, or it gives them up.
        """
        own = config.require()
        found: list[str] = []

        def claim(number: int) -> None:
            name = f"at-once{number}-{own.host}"
            with own.engine() as engine:
                engine.get("ready", one=True)
                time.sleep(max(0.0, at - time.monotonic()))
                made = Claims(engine, own.host, own.keys).claim(_wanted(name))
                found.extend(made.networks[SPAN])

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Crowd(NisoWorld):
    """A host beside services that many others seem to have, in its own etcd."""

    def fill(self, count: int) -> float:
        run("niso", "cluster", "init", "--name", "a", "--address", HOST)
        run("niso", "net", "create", SPAN, "--subnet", WIDE, "--span")
        self.activate([package("here", [], SPAN)])
        own = config.require()
        self.engine, self.keys = own.engine(), own.keys
        membership = ClusterKeys(self.engine, self.keys)
        lease = self.engine.grant(LEASE_S)
        for number in range(1, CROWD_HOSTS + 1):
            name = f"h{number}"
            membership.join(HostEntry(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
            membership.live(name, f"id-{name}", lease, "boot")
        puts = [self._put(number) for number in range(count)]
        for at in range(0, count, A_TXN):
            self.engine.commit(Txn((), tuple(puts[at : at + A_TXN])))
        me = (own.host, self.store.state_id(), self.store.cluster_id(), paths.boot_id())
        self.agent = Agent(me, own.engine, lambda lost: None, lambda line: None, self.keys)
        self._next = count
        took = timed(self._look)
        if len(self.store.across.addresses()) != count:
            raise RuntimeError(f"the mirror has not all {count:,} services")
        self.agent.watch([SPAN])
        self._until_known(puts[-1].key, True)
        self._look()
        return took

    def change(self) -> dict[str, float]:
        """One more service of another host comes, and goes: a look of the agent, and the part after reading; and a whole look."""
        found = {}
        put = self._put(self._next)
        for words, change in (("comes", put), ("goes", Delete(put.key))):
            self.engine.commit(Txn((), (change,)))
            self._until_known(put.key, change is put)
            with _following() as applied:
                look = timed(partial(self._look, False))
            found |= {
                f"look: one {words}": look,
                f"apply: one {words}": applied[0][0],
                f"apply, processor time: one {words}": applied[0][1],
            }
        before = time.process_time()
        self._look()
        return found | {"whole look, processor time": (time.process_time() - before) * 1000}

    def _look(self, whole: bool = True) -> None:
        now_s = time.monotonic()
        self.agent.poll(self.store, self.machine.kernel, self.engine, now_s, whole)

    def _until_known(self, key: str, there: bool) -> None:
        """Wait until the agent's watch has brought a key, or its end."""
        end = time.monotonic() + KNOWN_S
        while (key in self.agent.kept(SPAN)._items) != there:
            if time.monotonic() > end:
                raise RuntimeError(f"the agent's watch has not brought {key}")
            time.sleep(LOOK_AGAIN_S)

    def _put(self, number: int) -> Put:
        name, at = f"r{number}", number + 1_000
        address = f"10.96.{at // 256}.{at % 256}"
        value = {"service": name, "host": f"h{number % CROWD_HOSTS + 1}", "gen": 1}
        return Put(self.keys.address(SPAN, address), encode(value | {"names": [name], "up": True}))


def _wanted(name: str) -> Wanted:
    return Wanted(name, (SPAN,), (name,), {}, {})


def _claim_once(claims: Claims, name: str) -> None:
    claims.release(name, claims.claim(_wanted(name)).mark)


def _spent_ns(pid: int) -> int:
    """Processor time of all threads of a process (Documentation/scheduler/sched-stats.rst)."""
    spent = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            spent += int(file.read().split()[0])
    return spent


def _field(path: str, name: str) -> float:
    with open(path, encoding="ascii") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(name))


@contextlib.contextmanager
def _asking() -> Iterator[dict[str, tuple[float, float]]]:
    """Within the block, what an activation asks of the cluster -> (ms, when it ended in s)."""
    found: dict[str, tuple[float, float]] = {}

    def noted(what: str, real: Any) -> Any:
        def asks(*args: Any, **options: Any) -> Any:
            before = time.monotonic()
            try:
                return real(*args, **options)
            finally:
                now = time.monotonic()
                found[what] = ((now - before) * 1000, now)

        return asks

    with (
        mock.patch.object(cluster_claims, "prepare", noted("claim", cluster_claims.prepare)),
        mock.patch.object(Claims, "publish", noted("publish", Claims.publish)),
    ):
        yield found
    if "publish" not in found:  # a local network
        found.clear()


@contextlib.contextmanager
def _following() -> Iterator[list[tuple[float, float]]]:
    """Within the block the times and processor times, in ms, of bringing what was read to this host."""
    found: list[tuple[float, float]] = []
    real = mirror.apply_claims

    def follow(*args: Any, **options: Any) -> Any:
        before, processor = time.perf_counter(), time.process_time()
        try:
            return real(*args, **options)
        finally:
            wall, spent = time.perf_counter() - before, time.process_time() - processor
            found.append((wall * 1000, spent * 1000))

    with mock.patch.object(mirror, "apply_claims", follow):
        yield found
