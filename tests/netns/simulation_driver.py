"""Simulate many hosts of a cluster on a real etcd, and print how they converge: ``simulation_driver.py FOLDER HOSTS CHANGES``.

Each host has a store, a kernel in memory and an agent without a process: its two watches are sockets that a few processes
select, and a look begins when one has an event. `NETWORK_HOSTS` hosts share a network. All run on this machine, so times in
which every host looks are those of its processors; the processor time of one look is beside them. It needs a network and a mount
namespace of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from etcd_world import Members, etcd, spent_s
from simulated_host import KEYS, NETWORK_HOSTS, Simulated, Watch

from niso.change import deactivate
from niso.cluster.engine import Put, Txn, encode
from niso.cluster.etcd import Etcd, Reach
from niso.cluster.key_values import host_value
from niso.cluster.membership import ClusterKeys

SERVICES = 2
PROCESSES = 2
TTL_S = 3600
A_TXN = 120
QUIET_S = 1.0
WAIT_S = 1_800.0
MOST = "12g"
"""Bytes of all stores: 2 to 6 MB each, most of it reserved or log of SQLite."""
PROGRESS = ("--experimental-watch-progress-notify-interval=5s",)
"""As niso's own unit of etcd."""
LATER = 10
"""Hosts that join when all others are there."""


class Worker:
    """The hosts of one process. Requests come by a pipe: (method, arguments)."""

    def __init__(self, numbers: range, access: Reach, folder: Path, pipe: Connection) -> None:
        folder.mkdir()
        os.environ["NISO_RUN_DIR"] = f"/dev/shm/{folder.name}"  # in memory, as /run
        self.pipe, self.folder, self.numbers = pipe, folder, numbers
        self.access = access
        self.engine = Etcd(access, 20.0)
        self.hosts: dict[str, Simulated] = {}
        self.joined: list[Simulated] = []
        self.watches: dict[int, tuple[Simulated, Watch]] = {}
        self.poll = select.poll()
        self.known: dict[str, list[float]] = {}  # service -> when hosts had it, or had lost it
        # host -> whether it is to live, and when others knew that it does or does not
        self.awaited: dict[str, tuple[bool, dict[str, float]]] = {}
        self.looks: list[float] = []  # processor time, in ms
        self.last_s = 0.0

    def run(self) -> None:
        self.poll.register(self.pipe, select.POLLIN)
        while True:
            woken: dict[str, Simulated] = {}
            asked = False
            for fd, _ in self.poll.poll():
                if fd == self.pipe.fileno():
                    asked = True
                elif self._has_event(fd):
                    host = self.watches[fd][0]
                    woken[host.name] = host
            for host in woken.values():
                self._look(host, whole=False)
            if asked:
                method, *words = self.pipe.recv()
                if method == "end":
                    break
                self.pipe.send(getattr(self, method)(*words))
        for host in self.hosts.values():
            host.here()
            host.world.__exit__(None, None, None)

    def _has_event(self, fd: int) -> bool:
        host, watch = self.watches[fd]
        batches = watch.read()
        for batch in batches:
            if not watch.kept.hear(batch, time.monotonic()):
                raise SystemExit(f"a watch of {host.name} has to begin again")
        return any(events for _, events in batches)

    def _look(self, host: Simulated, whole: bool = True) -> None:
        for watch in host.watches:  # an agent's threads read while it waits for its turn
            self._has_event(watch.socket.fileno())
        spent = time.process_time()
        changed = host.look(whole)
        self.looks.append((time.process_time() - spent) * 1000)
        self.last_s = time.monotonic()
        for name in changed:
            self.known.setdefault(name, []).append(self.last_s)
        if self.awaited:
            peers = host.world.store.across.peers()
            for name, (lives, times) in self.awaited.items():
                if name != host.name and name in peers and peers[name][2] == lives:
                    times.setdefault(host.name, self.last_s)

    # --- what is asked ---

    def make(self) -> None:
        for number in self.numbers:
            host = Simulated(number, self.folder, self.engine)
            self.hosts[host.name] = host

    def start(self) -> None:
        for host in self.hosts.values():
            host.start(*(f"s{host.name}-{number}" for number in range(SERVICES)))

    def join(self, before: int) -> None:
        """Have the hosts with lower numbers join."""
        puts = []
        for host in self.hosts.values():
            if host.number < before:
                lease = self.engine.grant(TTL_S)
                host.agent._lives = lease
                puts.append(Put(KEYS.host(host.name), encode(host_value(host.host()))))
                puts.append(Put(KEYS.live(host.name), encode({"boot": "boot"}), lease))
                self.joined.append(host)
        for at in range(0, len(puts), A_TXN):
            self.engine.commit(Txn((), tuple(puts[at : at + A_TXN])))

    def join_more(self) -> float:
        """Have all other hosts join, by the command's own code, and be followed by their agents."""
        for host in self.hosts.values():
            if host not in self.joined:
                ClusterKeys(self.engine).join(host.host())
                assert host.agent.renew_lease(self.engine, self.engine.grant(TTL_S))
                self.joined.append(host)
                self._watch(host)
                self._look(host)
        return time.monotonic()

    def watch(self) -> int:
        """Open the watches of all hosts that have joined, each with a connection of its own; how many."""
        for host in self.joined:
            self._watch(host)
        return len(self.watches)

    def _watch(self, host: Simulated) -> None:
        agent = host.agent
        follow = (
            (KEYS.hosts, agent.host_keys),
            (KEYS.network(host.network), agent.kept(host.network)),
        )
        for prefix, kept in follow:
            watch = Watch(self.access, prefix, kept, kept.begin(self.engine, time.monotonic()))
            self.watches[watch.socket.fileno()] = (host, watch)
            host.watches.append(watch)
            self.poll.register(watch.socket, select.POLLIN)

    def look(self) -> float:
        """Have all hosts look; the processor time, in s."""
        spent = time.process_time()
        for host in self.joined:
            self._look(host)
        return time.process_time() - spent

    def activate(self, name: str, service: str) -> float:
        self.hosts[name].start(service)
        return time.monotonic()

    def remove(self, name: str, service: str) -> float:
        self.hosts[name].here()
        deactivate.remove(self.hosts[name].world.machine, [service])
        return time.monotonic()

    def times(self, service: str) -> list[float]:
        return self.known.get(service, [])

    def forget(self) -> None:
        self.known.clear()
        self.looks.clear()

    def expect(self, name: str, lives: bool) -> None:
        self.awaited = {name: (lives, {})}

    def lose(self, name: str) -> float:
        self.engine.revoke(self.hosts[name].agent._lives)
        return time.monotonic()

    def expected(self, name: str) -> list[float]:
        return [*self.awaited[name][1].values()]

    def quiet_s(self) -> float:
        return time.monotonic() - self.last_s

    def spent(self) -> list[float]:
        return self.looks

    def differing(self) -> list[str]:
        hosts = ClusterKeys(self.engine).hosts()
        return [host.name for host in self.joined if host.differs(hosts)]


class Far:
    """The other end of a worker's pipe."""

    def __init__(self, numbers: range, access: Reach, folder: Path) -> None:
        self.numbers = numbers
        self._pipe, far = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=_work, args=(numbers, access, folder, far), daemon=True
        )
        self._process.start()
        far.close()

    def ask(self, method: str, *words: Any) -> None:
        self._pipe.send((method, *words))

    def answer(self) -> Any:
        if not self._pipe.poll(WAIT_S):
            raise SystemExit("a process of the simulation does not answer")
        return self._pipe.recv()

    def call(self, method: str, *words: Any) -> Any:
        self.ask(method, *words)
        return self.answer()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(("end",))
        self._process.join(60)


def _work(numbers: range, access: Reach, folder: Path, pipe: Connection) -> None:
    Worker(numbers, access, folder, pipe).run()


class Simulation:
    def __init__(self, members: Members, folder: Path, count: int) -> None:
        self.members, self.count = members, count
        each = -(-count // PROCESSES)
        self.far = [
            Far(range(at, min(at + each, count)), members.access(), folder / f"worker{at}")
            for at in range(0, count, each)
        ]

    def all(self, method: str, *words: Any) -> list[Any]:
        """Ask all processes at once."""
        for far in self.far:
            far.ask(method, *words)
        return [far.answer() for far in self.far]

    def of(self, number: int) -> Far:
        return next(far for far in self.far if number in far.numbers)

    def resident(self) -> float:
        """What etcd holds, in KiB."""
        process = self.members[0].process
        assert process
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            return next(float(line.split()[1]) for line in file if line.startswith("VmRSS:"))

    def etcd_s(self) -> float:
        """The processor time of etcd so far, in s."""
        process = self.members[0].process
        assert process
        return spent_s(process)

    def known(self, method: str, name: str, wanted: int) -> list[float]:
        """Wait until so many hosts know; when each did."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            times = sorted(each for some in self.all(method, name) for each in some)
            if len(times) >= wanted:
                return times
            time.sleep(0.02)
        raise SystemExit(f"{name}: not known to all hosts after {WAIT_S:.0f} s")

    def settle(self) -> None:
        end = time.monotonic() + WAIT_S
        while min(self.all("quiet_s")) < QUIET_S:
            if time.monotonic() > end:
                raise SystemExit("the hosts do not come to rest")
            time.sleep(0.2)


def simulate(members: Members, folder: Path, count: int, changes: int) -> Iterator[str]:
    """Yield the lines of the report."""
    with Etcd(members.access()) as engine:
        ClusterKeys(engine).make()
    it = Simulation(members, folder, count)
    networks = -(-count // NETWORK_HOSTS)
    try:
        it.far[0].call("make")  # the processes would make networks between two at once else
        for far in it.far[1:]:
            far.call("make")
        it.all("start")
        it.all("join", count - LATER)
        yield (
            f"{count:,} hosts, {networks:,} networks of {NETWORK_HOSTS} hosts,"
            f" {count * SERVICES:,} services; load {os.getloadavg()[0]:.1f}"
        )
        before, began, spent = it.resident(), time.monotonic(), it.etcd_s()
        watches = sum(it.all("watch"))
        took = time.monotonic() - began
        time.sleep(1)
        grown = it.resident() - before
        yield (
            f"all read the hosts and open their watches: {took:.1f} s, etcd {it.etcd_s() - spent:.1f} s of a"
            f" processor; it has {before / 1024:.0f} MiB, and {grown / 1024:.0f} MiB more with {watches:,} watches"
        )
        began, spent = time.monotonic(), it.etcd_s()
        looks = sum(it.all("look"))
        it.settle()
        yield (
            f"first look of all: {time.monotonic() - began - QUIET_S:.1f} s, {looks * 1000 / count:.0f} ms of a"
            f" processor each, etcd {it.etcd_s() - spent:.1f} s"
        )
        yield from _changes(it, changes)
        yield from _joins(it)
        yield from _loss(it)
        differing = [name for some in it.all("differing") for name in some]
        yield f"mirrors and kernels that differ from the cluster: {len(differing)} of {count:,}"
    finally:
        for far in it.far:
            far.end()


def _changes(it: Simulation, changes: int) -> Iterator[str]:
    it.all("forget")
    spent_s = it.etcd_s()
    took, numbers = [], [number * 7919 % (it.count - LATER) for number in range(changes)]
    for at, number in enumerate(numbers):
        name, first = f"one{at}", number // NETWORK_HOSTS * NETWORK_HOSTS
        published = it.of(number).call("activate", f"h{number}", name)
        others = min(NETWORK_HOSTS, it.count - LATER - first) - 1
        took.append((it.known("times", name, others)[-1] - published) * 1000)
    took.sort()
    spent = [each for some in it.all("spent") for each in some]
    yield (
        f"one service comes, until all hosts of its network know it: median"
        f" {statistics.median(took):.0f} ms, 99 % {took[max(0, len(took) * 99 // 100 - 1)]:.0f} ms, of {len(took)};"
        f" a look takes {statistics.median(spent):.0f} ms of a processor, and each such change"
        f" {(it.etcd_s() - spent_s) * 1000 / changes:.0f} ms of etcd's"
    )
    began = time.monotonic()
    for at in range(2 * changes):
        number = at * 104729 % (it.count - LATER)
        far = it.of(number)
        if at < len(numbers):
            number = numbers[at]
            it.of(number).call("remove", f"h{number}", f"one{at}")
        else:
            far.call("activate", f"h{number}", f"burst{at}")
    made = time.monotonic() - began
    it.settle()
    yield (
        f"{2 * changes} changes in {made:.1f} s: all hosts rest {time.monotonic() - began - made - QUIET_S:.1f} s"
        " after the last"
    )


def _joins(it: Simulation) -> Iterator[str]:
    it.all("forget")
    spent, last = it.etcd_s(), it.count - 1
    it.all("expect", f"h{last}", True)
    began = time.monotonic()
    joined = max(it.all("join_more"))
    times = it.known("expected", f"h{last}", last)
    it.settle()
    looks = sum(len(some) for some in it.all("spent"))
    yield (
        f"{LATER} hosts join in {joined - began:.1f} s: all know all {times[-1] - joined:.1f} s after the last, with"
        f" {looks / it.count:.1f} looks of each; etcd {(it.etcd_s() - spent) / LATER:.2f} s of a processor for each host"
    )


def _loss(it: Simulation) -> Iterator[str]:
    name, spent = f"h{it.count // 2}", it.etcd_s()
    it.all("expect", name, False)
    lost = it.of(it.count // 2).call("lose", name)
    times = it.known("expected", name, it.count - 1)
    yield (
        f"one host is lost, until half of all hosts know it: {times[len(times) // 2] - lost:.1f} s,"
        f" all: {times[-1] - lost:.1f} s ({PROCESSES} processes look for all); etcd {it.etcd_s() - spent:.1f} s"
    )


def main(folder: str, count: str, changes: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # the stores' own, which goes with this process however it ends
    words = ("mount", "-t", "tmpfs", "-o", f"size={MOST}", "none", "/dev/shm")
    subprocess.run(words, check=True)
    os.environ.setdefault("NISO_STATE_DIR", folder)
    started = time.monotonic()
    with etcd(Path(folder), more=PROGRESS) as members:
        for line in simulate(members, Path(folder), int(count), int(changes)):
            print(line, flush=True)
    print(f"took {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
