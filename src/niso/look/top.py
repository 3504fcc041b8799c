"""Measure rates of services and flows between two samples, for `Host.top`.

The kernel counts the bytes of flows only while a program reads them (`niso.kernel.flow_memory`).
"""

from __future__ import annotations

import contextlib
import os
import time

from niso.base import names
from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner
from niso.kernel.flow_memory import Meter
from niso.kernel.sockets import Measured
from niso.look import drops
from niso.look.drops import Stats
from niso.look.flows import DIRECT, DROP, FlowEnd, FlowReader, Key, Memory, more, remembered
from niso.look.services import (
    ServiceLine,
    front_health,
    health_targets,
    known_healths,
    service_lines,
    usages_of,
)
from niso.look.session import ResultStream, Session, guarded
from niso.plan.verdict import PolicyContext, parsed
from niso.reconcile.live_world import read_world
from niso.runtime import status
from niso.runtime.cgroups import Usage
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from niso.runtime.health import HealthTarget

_AT_MOST_S = 30.0  # all services are read again after this time, to notice unannounced changes


class ServiceLoad(NamedTuple):
    """The rates of a service between two samples."""

    service: str  # the service's name
    status: str  # the state of the service, as niso ps shows it
    health: str | None
    """starting, healthy or unhealthy at the last probe; null without a healthcheck"""
    networks: tuple[str, ...]  # strings: names of the service's networks
    received: float | None  # bits per second; null if the service has no interface of its own
    sent: float | None  # bits per second; null if the service has no interface of its own
    new: float | None  # new flows and refused attempts per second; null if ``received`` is null
    denied_in: int | None  # total packets dropped by the service's ingress policy; null if unknown
    denied_out: int | None  # total packets dropped by the service's egress policy; null if unknown
    shares: str | None  # the other service whose network namespace is used; null if none
    health_age: float | None  # seconds since the last probe; null if there was none
    cpu: float | None  # percent of one processor; null if unknown
    memory: int | None  # bytes of memory, without the file cache; null if unknown


class FlowLoad(NamedTuple):
    """The rates of all flows from one address to one port of another address."""

    from_: FlowEnd  # source of the flows
    to: FlowEnd  # destination of the flows
    port: int  # port of the destination
    proto: str  # tcp, udp or sctp
    verdict: str  # pass, audit or drop
    new: float  # new flows, or refused attempts, per second
    bits: float | None  # bits per second in both directions; null if the kernel cannot count them
    service: str | None  # the service whose policy decides
    key: str | None  # the key of the policy entry in the manifest
    text: str | None  # the policy entry that decides
    words: str | None  # the reason for the verdict
    published: int | None
    """the host port through which another machine or the host connected; null without"""
    agrees: bool  # whether the present configuration gives the same verdict


class ServiceSocket(NamedTuple):
    """A TCP connection of a service, with the values that the kernel reports for it (tcp(7))."""

    from_: FlowEnd  # the client
    from_port: int  # the client's port
    to: FlowEnd  # the server
    port: int  # the server's port
    published: int | None
    """the host port through which another machine or the host connected; null without"""
    state: str  # established, or a state named as in ss(8): syn-sent, fin-wait-1 ...
    rtt: float | None  # smoothed round-trip time in seconds; null if none was measured
    retransmitted: int | None  # segments that the service retransmitted; null if unknown
    received: int | None  # bytes that the service received; null if unknown
    sent: int | None  # bytes sent by the service and acknowledged by the peer; null if unknown


class Load(NamedTuple):
    """The rates of services and flows between two samples."""

    seconds: float  # seconds between the two samples
    services: tuple[ServiceLoad, ...]  # all services, the busiest first
    flows: tuple[FlowLoad, ...]  # flows with new flows or traffic, the most frequent first
    sockets: tuple[ServiceSocket, ...] = ()
    """TCP connections of the requested service, sorted by client and server"""


class TopSample(NamedTuple):
    """The state of services and flows at one time, to be compared by `between`."""

    at: float  # seconds of a monotonic clock
    lines: tuple[ServiceLine, ...]
    networks: dict[str, tuple[str, ...]]
    shares: dict[str, str]
    stats: dict[str, Stats]
    flows: dict[tuple[Key, str], int]
    usages: dict[str, Usage]


class Metered(ResultStream):
    """A sampler of services, policies and flows, for which the kernel counts bytes of flows.

    Reading a service takes 0.4 ms, so the sampler caches services. While the database is unchanged
    and the process of a service is running, only the health of the service is read again.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._context: PolicyContext
        self._reader: FlowReader
        self._before: TopSample | None = None
        self._meter: Meter | None = None
        self._version, self._until = -1, 0.0
        self._instances = False  # whether instances are shown separately
        self._rows: list[ServiceRow] = []
        self._lines: dict[str, tuple[ServiceLine, float]] = {}  # by name, with the time of reading
        self._pids: dict[str, int] = {}
        self._targets: list[HealthTarget] = []

    def close(self) -> None:
        """Stop counting bytes of flows. Otherwise the kernel counts until this process exits."""
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()

    def _sample(
        self, with_open: bool
    ) -> tuple[TopSample, TopSample, Memory, Mapping[Key, int] | None]:
        """Take a sample. Returns (previous sample, new sample, flows, {flow: bytes}). The mapping
        is None if this kernel does not count bytes of flows.
        """
        self._read_services()
        memory = remembered(self.session.kernel(), self._context, with_open)
        at, rows, store = time.monotonic(), self._rows, self.session.store()
        lines = (
            line if line.uptime is None else line._replace(uptime=round(line.uptime + at - read, 3))
            for _, (line, read) in sorted(self._lines.items())
        )
        now = TopSample(
            at,
            tuple(lines),
            {row.name: row.networks for row in rows},
            {row.name: row.provider for row in rows if row.provider},
            {counts.service: counts for counts in drops.count([r for r in rows if r.active])},
            counts(memory),
            usages_of(store, (line.service for line, _ in self._lines.values())),
        )
        before, self._before = self._before, now
        if before is None:
            self._reader = FlowReader(self._context, self._instances)
            with contextlib.suppress(KernelError):  # this kernel cannot count them
                self._meter = Meter()
        self._reader = self._reader.for_context(self._context)
        moved = None if self._meter is None else self._meter.read()
        return before or now, now, memory, moved

    def _read_services(self) -> None:
        """Read the services that may have changed since the last call. Raises Error."""
        store = self.session.store()
        version = store.changes()
        # the store does not change when a command is killed or an audit ends
        timed = store.intents() or store.audits()
        if version == self._version and time.monotonic() < self._until and not timed:
            self._read_changed(store)
            return
        self._rows = store.services()
        self._lines = {}
        lines = self._read_lines(store, self._rows)
        self._context = read_world(self.session.kernel(), store)
        running = (line.service for line in lines if line.status == "running")
        instances = (row.name for row in self._rows if row.active and owner(row.name) != row.name)
        pids = {name: status.read(name).pid for name in (*running, *instances)}
        self._pids = {name: pid for name, pid in pids.items() if pid is not None}
        self._targets = health_targets(store, self._rows)
        self._version, self._until = version, time.monotonic() + _AT_MOST_S

    def _read_changed(self, store: Store) -> None:
        stale = [
            row
            for row in self._rows
            if row.active and row.mode != "front" and not self._lives(row.name)
        ]
        # the line of a service with replicas depends on all of its instances
        owners = {owner(row.name) for row in stale}
        self._read_lines(store, [row for row in self._rows if owner(row.name) in owners])
        # a service that runs again has another process
        if any(row.has_process and status.read(row.name).state == "running" for row in stale):
            self._until = 0.0
        if targets := [t for t in self._targets if owner(t.service) not in owners]:
            healths = known_healths(self.session, store, targets)
            fronts = {owner(name) for name in healths if owner(name) != name}
            healths |= {name: front_health(store, name, healths) for name in fronts}
            for name in healths.keys() & self._lines.keys():
                line, at = self._lines[name]
                state, age_s = healths[name].state, healths[name].age_s
                self._lines[name] = line._replace(health=state, health_age=age_s), at

    def _read_lines(self, store: Store, rows: Sequence[ServiceRow]) -> tuple[ServiceLine, ...]:
        lines = service_lines(self.session, store, rows=rows, instances=self._instances)
        at = time.monotonic()
        self._lines |= {line.service: (line, at) for line in lines}
        return lines

    def _lives(self, name: str) -> bool:
        try:
            os.kill(self._pids[name], 0)
        except (KeyError, OSError):
            return False
        return True


class Top(Metered):
    """A stream of the rates of one service or of all services. Use it in a ``with`` block."""

    def __init__(self, session: Session, name: str | None) -> None:
        super().__init__(session)
        self.service = None if name is None else session.store().resolve(name)
        self._instances = self.service is not None and owner(self.service) != self.service
        self._sample(with_open=False)

    @guarded
    def read(self) -> Load:
        """Return the rates since the last call, or since the start if this is the first call."""
        before, now, _, moved = self._sample(with_open=False)
        load = between(self._reader, before, now, moved)
        if self.service is None:
            return load
        # a service that shares the namespace of another has the flows of that service
        home = now.shares.get(self.service, self.service)
        return Load(
            load.seconds,
            tuple(row for row in load.services if row.service == self.service),
            tuple(f for f in load.flows if home in (f.from_.service, f.to.service)),
            self._sockets(home),
        )

    @guarded
    def sockets(self, service: str) -> tuple[ServiceSocket, ...]:
        """Return the present TCP connections of an active service. Raises KernelError."""
        return self._sockets(self.session.store().home(service))

    def _sockets(self, home: str) -> tuple[ServiceSocket, ...]:
        kernel, instances = self.session.kernel(), self.session.store().instances.running(home)
        measured = [one for name in instances for one in kernel.measured_in(names.netns(name))]
        return sockets_of(self._reader, measured)


def counts(memory: Memory) -> dict[tuple[Key, str], int]:
    """Return {(key of a recorded flow, verdict): number of packets}."""
    return {(row[:4], verdict): row.packets for verdict, row in memory.by_verdict()}


def growth(before: TopSample, now: TopSample) -> dict[tuple[Key, str], int]:
    """Return {(key of a flow, verdict): number of flows that began between two samples}."""
    return {key: more(before.flows.get(key, 0), count) for key, count in now.flows.items()}


def between(
    reader: FlowReader, before: TopSample, now: TopSample, moved: Mapping[Key, int] | None
) -> Load:
    """Return the rates of services and flows between two samples.

    ``moved`` maps flows to their bytes between the samples, or is None if bytes are not counted.
    """
    seconds = elapsed(before, now)
    # flows of the instances of a service are added up
    sums: dict[FlowLoad, tuple[int, int]] = {}
    left = dict(moved or {})
    for (key, verdict), grown in growth(before, now).items():
        octets = 0 if verdict in (DROP, DIRECT) else left.pop(key, 0)
        if not grown and not octets:
            continue
        flow = reader.flow(key, verdict not in (DROP, DIRECT), verdict == DIRECT)
        word = DROP if verdict == DIRECT else verdict
        # both ends, port and protocol; then from the service whose policy decides to ``agrees``
        load = FlowLoad(*(*flow[:4], word, 0.0, None, *flow[5:11]))
        had = sums.get(load, (0, 0))
        sums[load] = had[0] + grown, had[1] + octets
    flows = [
        load._replace(
            new=round(grown / seconds, 3),
            bits=None if moved is None else round(8 * octets / seconds, 1),
        )
        for load, (grown, octets) in sums.items()
    ]
    flows.sort(
        key=lambda f: (-f.new, -(f.bits or 0), f.from_.name, f.to.name, f.port, f.proto, f.verdict)
    )
    services = sorted(services_between(reader, before, now), key=busy)
    return Load(round(seconds, 3), tuple(services), tuple(flows))


def elapsed(before: TopSample, now: TopSample) -> float:
    """Return the seconds between two samples, greater than 0."""
    return max(now.at - before.at, 1e-6)


def services_between(
    reader: FlowReader, before: TopSample, now: TopSample
) -> tuple[ServiceLoad, ...]:
    """Return the rates of services between two samples, in the order of the second sample."""
    seconds = elapsed(before, now)
    new: dict[str, int] = {}
    for (key, _), grown in growth(before, now).items():
        for service in {reader.end(address).service or "" for address in key[:2] if grown}:
            new[service] = new.get(service, 0) + grown
    joint: dict[str, list[str]] = {}
    for name in now.stats:
        for service in {name, owner(name)}:
            joint.setdefault(service, []).append(name)
    services = []
    for line in now.lines:
        networks = now.networks.get(line.service, ())
        its = [now.stats[name] for name in joint.get(line.service, ())]
        was = [before.stats.get(stats.service) for stats in its]
        services.append(
            ServiceLoad(
                line.service,
                line.status,
                line.health,
                networks,
                _sum(
                    _bits(old and old.in_bytes, one.in_bytes, seconds)
                    for old, one in zip(was, its, strict=True)
                ),
                _sum(
                    _bits(old and old.out_bytes, one.out_bytes, seconds)
                    for old, one in zip(was, its, strict=True)
                ),
                round(new.get(line.service, 0) / seconds, 3) if networks else None,
                _sum(stats.in_drops for stats in its),
                _sum(stats.out_drops for stats in its),
                now.shares.get(line.service),
                line.health_age,
                _cpu(before.usages.get(line.service), now.usages.get(line.service), seconds),
                usage.memory if (usage := now.usages.get(line.service)) else None,
            )
        )
    return tuple(services)


def runs(status: str) -> bool:
    """Return whether all instances run, by a service's status: ``running`` or ``2/2 running``."""
    number, _, word = status.partition(" ")
    running, slash, wanted = number.partition("/")
    return status == "running" or (word == "running" and slash == "/" and running == wanted != "0")


def busy(load: ServiceLoad) -> tuple[float, float, int, str]:
    """Return a sort key that puts services with most processor time, traffic and memory first."""
    traffic = (load.received or 0.0) + (load.sent or 0.0)
    return -round(load.cpu or 0.0), -traffic, -((load.memory or 0) >> 20), load.service


def _cpu(before: Usage | None, now: Usage | None, seconds: float) -> float | None:
    if before is None or now is None or before.cpu_s is None or now.cpu_s is None:
        return None
    return round(100 * max(0.0, now.cpu_s - before.cpu_s) / seconds, 1)


def sockets_of(reader: FlowReader, measured: Iterable[Measured]) -> tuple[ServiceSocket, ...]:
    """Return the given TCP connections of a service, with the names of client and server."""
    sockets = []
    for socket in measured:
        client, client_port, server, port = socket.connection
        published = None
        if parsed(client).is_loopback or parsed(server).is_loopback:
            # in that namespace, a loopback address is the service's, not the host's
            ends = [FlowEnd(address, None, address) for address in (client, server)]
        else:
            flow = reader.flow((client, server, "tcp", port), True)
            ends, published = [flow.from_, flow.to], flow.published
        figures = (socket.state, socket.rtt, socket.retransmitted, socket.received, socket.acked)
        sockets.append(ServiceSocket(ends[0], client_port, ends[1], port, published, *figures))
    sockets.sort(key=lambda s: (s.from_.name, s.to.name, s.port, s.from_port, s.from_))
    return tuple(sockets)


def _sum[T: (int, float)](values: Iterable[T | None]) -> T | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _bits(before: int | None, now: int | None, seconds: float) -> float | None:
    if now is None:
        return None
    return 0.0 if before is None else round(8 * more(before, now) / seconds, 1)
