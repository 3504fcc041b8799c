"""Read services, networks and flows as a map for the page of `niso web`: `Host.map`.

Flows are grouped by name. The number of other machines that are shown is limited.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from niso.base import names
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.kernel import link_records
from niso.kernel.flow_memory import Recorded
from niso.look import policies, top
from niso.look.flows import (
    AUDIT,
    DIRECT,
    DROP,
    HOST,
    PASS,
    Flow,
    FlowEnd,
    FlowReader,
    Key,
    Memory,
    joined,
    more,
    sources_beyond,
)
from niso.look.host_ports import Port
from niso.look.learn import WrittenNames
from niso.look.policies import MapChange
from niso.look.session import Session, guarded
from niso.look.top import Metered, ServiceLoad
from niso.plan.verdict import KnownService, PolicyContext
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class MapPolicy(NamedTuple):
    """The policy of a service, as written in the manifest."""

    allow_from: tuple[str, ...] | None  # strings: who may connect; null: everyone
    deny_from: tuple[str, ...]  # strings: who may not connect
    egress_allow: tuple[str, ...] | None  # strings: where the service may connect; null: anywhere
    egress_deny: tuple[str, ...]  # strings: where the service may not connect


class MapService(NamedTuple):
    """A service on the map."""

    service: str  # the service's name
    status: str  # the state of the service, as niso ps shows it
    health: str | None
    """starting, healthy or unhealthy at the last probe; null without a healthcheck"""
    health_age: float | None  # seconds since the last probe; null if the process was not probed
    cpu: float | None  # percent of one processor; null if unknown
    memory: int | None  # bytes of memory, without the file cache; null if unknown
    mode: str | None  # bridge, host, none, share or attached
    stack: str | None  # the stack that the service belongs to; null without a stack
    shares: str | None  # in mode share, the service that owns the network namespace; otherwise null
    networks: tuple[str, ...]  # strings: names of the service's networks
    address: tuple[str, ...]  # addresses, one for each network and IP version
    ports: tuple[Port, ...]  # published ports, one for each IP version
    uptime: float | None  # seconds since the process started; null if no process is running
    received: float | None  # bits per second; null if the service has no interface of its own
    sent: float | None  # bits per second; null if the service has no interface of its own
    new: float | None  # new flows and refused attempts per second; null if ``received`` is null
    denied_in: int | None  # total packets dropped by the service's ingress policy; null if unknown
    denied_out: int | None  # total packets dropped by the service's egress policy; null if unknown
    policy: MapPolicy | None  # the service's policy; null without a policy
    audit_until: str | None
    """when the audit of the service's policy ends, or never; null if the policy is not in audit"""
    file: str | None  # the manifest of the last activation
    past: tuple[float, ...]
    """bits per second in both directions: averages of each minute of the last hour, oldest first"""


class MapNetwork(NamedTuple):
    """A network on the map."""

    network: str  # the network's name
    subnets: tuple[str, ...]  # strings: the network's subnets
    internal: bool  # whether packets are not forwarded out of the network
    observed: bool  # whether the network's flows are recorded


class MapEnd(NamedTuple):
    """The source or destination of flows on the map."""

    name: str  # a service, host, a DNS name in a policy, an address, or other machines
    kind: str  # service, host, outside, others or gone


class MapFlow(NamedTuple):
    """The flows between two names on one port, after DNAT."""

    from_: MapEnd  # source of the flows
    to: MapEnd  # destination of the flows
    port: int  # port of the destination
    proto: str  # tcp, udp or sctp
    verdict: str  # pass, drop, or audit: passed only because a policy was in audit mode
    published: (
        int | None
    )  # the host port through which another machine or the host connected; null without
    words: str | None  # the reason for the verdict on the latest of these flows
    agrees: bool  # whether the present configuration gives the same verdict
    new: int  # new flows, or dropped attempts, of the last week
    rate: float  # new flows per second since the previous update
    bits: float | None
    """bits per second in both directions since the previous update; null if not counted"""
    ago: float | None  # seconds since the last new flow
    open: int  # flows that are open now
    changes: tuple[MapChange, ...]
    """manifest changes that would allow a denied or audited flow; empty if no changes would"""
    not_shown: int = 0
    """flows between the same ends, passed or denied as this flow, that are left out"""


class MapState(NamedTuple):
    """All services, networks and flows at one point in time."""

    host: str  # the host's name
    at: str  # when the values were measured
    seconds: float  # seconds since the previous update
    services: tuple[MapService, ...]  # all services, by name
    networks: tuple[MapNetwork, ...]  # all networks, by name
    flows: tuple[MapFlow, ...]  # all flows, sorted by the names of source and destination
    not_shown: int  # flows that are left out because there are too many
    missed: int  # new flows that were not recorded because an nftables set was full
    beyond: int  # flows that were not recorded because their source has used up its share
    beyond_from: tuple[str, ...]  # strings: names of these sources
    full: tuple[str, ...]  # nftables sets that have no room for new flows


_MINUTE_S = 59.0
_MOST_PAST = 60


class Map(Metered):
    """A stream of the state of services, networks and flows. Use it in a ``with`` block."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._names: dict[tuple[str, str], str | None] = {}
        self._version = -1
        self._past: dict[str, deque[float]] = {}
        self._octets: dict[str, int] = {}
        self._glanced = 0.0

    def rest(self) -> None:
        """Stop counting bytes of flows until the next `read`. That `read` then returns no rates."""
        self.close()
        self._before = None

    @guarded
    def glance(self) -> None:
        """Measure the traffic of services at most once a minute, for the field ``past``.

        Reads only the counters of interfaces.
        """
        now = time.monotonic()
        seconds = now - self._glanced
        if seconds < _MINUTE_S:
            return
        ends = {
            names.veth(row.name, network, row.generation): names.owner(row.name)
            for row in self.session.store().active_rows()
            for network in row.networks
        }
        octets = dict.fromkeys(ends.values(), 0)
        for end, traffic in link_records.of_links(ends).items():
            octets[ends[end]] += traffic["rx_bytes"] + traffic["tx_bytes"]
        before, self._octets, self._glanced = self._octets, octets, now
        self._past = {name: self._past.get(name, deque(maxlen=_MOST_PAST)) for name in octets}
        for name in octets.keys() & before.keys():
            self._past[name].append(round(8 * more(before[name], octets[name]) / seconds))

    @guarded
    def read(self) -> MapState:
        """Return all services, networks and flows. Rates are averages since the last call."""
        self.glance()
        store = self.session.store()
        before, now, memory, moved = self._sample(with_open=True)
        context = self._context
        kept, left_out = bounded(memory, self._reader)
        not_shown = sum(left_out.values())
        seconds = round(top.elapsed(before, now), 3)
        new: dict[tuple[Key, str], int] = {}
        counted: dict[Key, int] = {}
        if before is not now:
            for (key, verdict), number in top.growth(before, now).items():
                shown = self._reader.shown(key), verdict
                new[shown] = new.get(shown, 0) + number
            for key, number in (moved or {}).items():
                counted[self._reader.shown(key)] = counted.get(self._reader.shown(key), 0) + number

        def grown(flow: Flow) -> int:
            verdicts = (PASS, AUDIT) if flow.passes else (DROP, DIRECT)
            return sum(new.get((flow.id, verdict), 0) for verdict in verdicts)

        def octets(flow: Flow) -> int:
            return counted.get(flow.id, 0) if flow.passes else 0

        known = {row.name: row for row in self._rows}
        loads = top.services_between(self._reader, before, now)
        name = self._name_in(store)
        return MapState(
            os.uname().nodename,
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            seconds,
            tuple(
                _service(
                    store,
                    context,
                    known.get(rates.service),
                    line,
                    rates,
                    self._past.get(rates.service, ()),
                )
                for line, rates in zip(now.lines, loads, strict=True)
            ),
            tuple(
                MapNetwork(n.name, tuple(s.cidr for s in n.subnets), n.internal, n.observe)
                for _, n in sorted(context.networks.items())
            ),
            tuple(
                _flow(
                    ends,
                    group,
                    sum(map(grown, group)) / (seconds or 1.0),
                    None if moved is None else sum(map(octets, group)) / (seconds or 1.0),
                    lambda flow: policies.changes(context, flow, name),
                    left_out.pop((ends[0].name, ends[1].name, group[0].passes), 0),
                )
                for ends, group in grouped(joined(context, kept, self._reader))
            ),
            not_shown,
            memory.missed,
            sum(memory.beyond.values()),
            tuple(sources_beyond(memory, self._reader)),
            memory.full,
        )

    def _name_in(self, store: Store) -> Callable[[str, str], str | None]:
        """Return a cached function (service, other service) -> name, by which the service's policy
        can name the other service. The function returns None if no such name exists.
        """
        version = store.changes()
        if version != self._version:
            self._version, self._names = version, {}

        def name(owner: str, other: str) -> str | None:
            if (owner, other) not in self._names:
                self._names[owner, other] = WrittenNames(store, owner).service(other)
            return self._names[owner, other]

        return name


def _service(
    store: Store,
    context: PolicyContext,
    row: ServiceRow | None,
    line: Any,
    load: ServiceLoad,
    past: Iterable[float],
) -> MapService:
    return MapService(
        load.service,
        load.status,
        load.health,
        load.health_age,
        load.cpu,
        load.memory,
        line.mode,
        store.stack_of(load.service),
        load.shares,
        load.networks,
        line.address,
        line.ports,
        line.uptime,
        load.received,
        load.sent,
        load.new,
        load.denied_in,
        load.denied_out,
        _policy(context.services.get(load.service)),
        line.audit_until,
        row.manifest_path or None if row else None,
        tuple(past),
    )


def _policy(known: KnownService | None) -> MapPolicy | None:
    if known is None:
        return None
    own = known.policy
    if own.is_empty:
        return None

    def texts(entries: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.text for entry in entries))

    return MapPolicy(
        None if own.allow_from is None else texts(own.allow_from),
        texts(own.deny_from),
        None if own.egress_allow is None else texts(own.egress_allow),
        texts(own.egress_deny),
    )


def _flow(
    ends: tuple[MapEnd, MapEnd],
    flows: Sequence[Flow],
    rate: float,
    moved: float | None,
    changes: Callable[[Flow], tuple[MapChange, ...]],
    not_shown: int,
) -> MapFlow:
    """Merge a group of flows. ``rate`` is new flows per second, ``moved`` bytes per second."""
    last = min(flows, key=lambda flow: math.inf if flow.ago is None else flow.ago)
    return MapFlow(
        *ends,
        last.port,
        last.proto,
        last.verdict,
        last.published,
        last.words,
        last.agrees,
        sum(flow.new for flow in flows),
        round(rate, 3),
        None if moved is None else round(8 * moved, 1),
        None if last.ago is None else round(last.ago, 1),
        sum(flow.open for flow in flows),
        changes(last),
        not_shown,
    )


# --- grouping of flows (pure) ---------------------------------------------------------------------

OTHERS = "other machines"
MOST_OUTSIDE = 8  # the maximum number of outside addresses shown by themselves, in each direction
MOST_PASSED, MOST_REFUSED, MOST_OPEN = 4000, 1000, 1000
"""The maximum number of passed, refused and open flows in one update of the map."""
MOST_OF_PAIR = 50  # the maximum number of refused flows from one service to another
Pair = tuple[str, str, bool]  # the names of source and destination, and whether the flows passed


def bounded(memory: Memory, reader: FlowReader) -> tuple[Memory, dict[Pair, int]]:
    """Limit the number of flows. Returns the remaining flows, and {pair: flows left out}.

    The latest flows of each pair of names remain. Of the open flows, those with most connections
    remain. All other machines count as one name.
    """
    left_out: dict[Pair, int] = {}

    def pair(key: Key, passes: bool) -> Pair:
        ends = (reader.end(address) for address in key[:2])
        from_, to = (end.name if end.is_known else OTHERS for end in ends)
        return from_, to, passes

    def bound(keys: Iterable[Key], most: int, passes: bool) -> set[Key]:
        """Choose at most ``most`` of ``keys``: the first of each pair, then the second, etc."""
        pairs: dict[Pair, list[Key]] = {}
        for key in keys:
            pairs.setdefault(pair(key, passes), []).append(key)
        ranked: list[tuple[int, int, Key]] = []
        order = itertools.count()
        for pair_, its in pairs.items():
            few = not passes and OTHERS not in pair_
            some = its[:MOST_OF_PAIR] if few else its
            ranked += ((rank, next(order), key) for rank, key in enumerate(some))
        kept = {key for _, _, key in sorted(ranked)[:most]}
        for pair_, its in pairs.items():
            if more := len(its) - len(kept.intersection(its)):
                left_out[pair_] = left_out.get(pair_, 0) + more
        return kept

    def latest(rows: tuple[Recorded, ...], most: int, passes: bool) -> tuple[Recorded, ...]:
        if len(rows) <= min(most, MOST_OF_PAIR):
            return rows
        rows = tuple(sorted(rows, key=lambda row: (row.ago, row[:4])))
        kept = bound((row[:4] for row in rows), most, passes)
        return tuple(row for row in rows if row[:4] in kept)

    opened = sorted(memory.opened, key=lambda key: (-memory.opened[key], key))
    few = bound(opened, MOST_OPEN, True) if len(opened) > MOST_OPEN else opened
    kept = memory._replace(
        passed=latest(memory.passed, MOST_PASSED, True),
        refused=latest(memory.refused, MOST_REFUSED, False),
        direct=latest(memory.direct, MOST_REFUSED, False),
        opened={key: memory.opened[key] for key in few},
    )
    return kept, left_out


def grouped(flows: Sequence[Flow]) -> list[tuple[tuple[MapEnd, MapEnd], list[Flow]]]:
    """Return pairs (ends, flows): flows grouped by port, protocol, verdict and names on the map."""
    sources = _shown(flow.from_ for flow in flows)
    targets = _shown(flow.to for flow in flows)
    groups: dict[tuple[MapEnd, MapEnd, int, str, str], list[Flow]] = {}
    for flow in flows:
        from_, to = _end(flow.from_, sources), _end(flow.to, targets)
        if from_ != to:
            groups.setdefault((from_, to, flow.port, flow.proto, flow.verdict), []).append(flow)
    return [(key[:2], groups[key]) for key in sorted(groups)]


def _shown(ends: Iterable[FlowEnd]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for end in ends:
        if not (end.is_known or end.gone):
            counts[end.name] = counts.get(end.name, 0) + 1
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: counts[name] for name in ranked[:MOST_OUTSIDE]}


def _end(end: FlowEnd, shown: Mapping[str, int]) -> MapEnd:
    if end.service:
        return MapEnd(end.service, "service")
    if end.is_host:
        return MapEnd(HOST, "host")
    if end.gone:
        return MapEnd(end.address, "gone")
    if end.name in shown:
        return MapEnd(end.name, "outside")
    return MapEnd(OTHERS, "others")
