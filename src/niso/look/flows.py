"""Read recorded flows, join them with services and policies, and list them for `niso net flows`.

For each flow the policy entry that decides about it now is added, and whether its connection is
open. For metrics, flows are counted by names: a bounded number of series for any number of
addresses.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from niso.base import names
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of
from niso.base.text import exact_time_text
from niso.kernel import conntrack, flow_memory, policy_rules
from niso.kernel.conntrack import Open
from niso.kernel.flow_memory import Recorded
from niso.plan import verdict as plan_verdict
from niso.plan.records import Port
from niso.plan.verdict import Reason, World, addresses_of, decide, holder_of, is_for_services, judge
from niso.reconcile.live_world import read_world
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.look.session import Session


# --- recorded flows, joined with services and policies --------------------------------------------


HOST = "host"
PASS, AUDIT, DROP = "pass", "audit", "drop"
"""What happened to flows. ``audit``: the policy would deny the flow, but is in audit."""
Key = tuple[str, str, str, int]
"""(source, destination, protocol, port) of a flow, after DNAT."""


class End(NamedTuple):
    """One end of flows. ``service`` is "" if the address belongs to no service.

    ``gone``: it belonged to a service that no longer exists. ``outside``: the name by which
    policies mean the address.
    """

    service: str
    address: str
    is_host: bool = False
    gone: bool = False
    outside: str = ""

    @property
    def name(self) -> str:
        """Return the service, "host", the outside name or the address."""
        return self.service or (HOST if self.is_host else self.outside or self.address)


class Seen(NamedTuple):
    """All flows from one address to one port of another, either those that passed or those dropped.

    ``reason`` is what decides about such flows now, including the path. It is None if the service
    of an end no longer exists (``gone``), because its policy is not known. ``published`` is the
    published port that clients from elsewhere used. ``agrees``: the present rules would decide the
    same. ``new`` is the number of new flows, or attempts, within a week; ``ago`` is the age of the
    last one in seconds, None if there is none. ``open`` is the number of flows that are open now.
    ``audited``: they pass, or passed, only because a policy is in audit, and would be denied
    otherwise.
    """

    source: End
    destination: End
    proto: str
    port: int
    passes: bool
    reason: Reason | None
    published: Port | None
    agrees: bool
    new: int
    ago: float | None
    open: int
    gone: bool = False
    audited: bool = False

    @property
    def verdict(self) -> str:
        """Return what happened to the flows: pass, audit or drop."""
        return AUDIT if self.audited else PASS if self.passes else DROP

    @property
    def key(self) -> Key:
        return self.source.address, self.destination.address, self.proto, self.port


class Memory(NamedTuple):
    """The flows that nftables recorded, and the open connections."""

    passed: tuple[Recorded, ...]
    refused: tuple[Recorded, ...]
    opened: tuple[Open, ...]
    missed: int = 0  # new flows that were not recorded because a set was full
    # flows that an audit let pass; they are in ``passed`` too, unless another rule dropped them
    audited: tuple[Recorded, ...] = ()

    def by_verdict(self) -> Iterator[tuple[str, Recorded]]:
        """Yield each recorded flow with its verdict.

        Audited flows are subtracted from those that passed.
        """
        passed = {row[:4]: row for row in self.passed}
        for row in self.audited:
            if (whole := passed.get(row[:4])) is not None:
                passed[row[:4]] = whole._replace(packets=whole.packets - row.packets)
                yield AUDIT, row
        yield from ((PASS, row) for row in passed.values() if row.packets > 0)
        yield from ((DROP, row) for row in self.refused)


def remembered(kernel: Kernel, world: World, with_open: bool = True) -> Memory:
    """Read the recorded flows and, with ``with_open``, open connections. Raises KernelError."""

    opened: set[Open] = set()
    if with_open:
        opened.update(conntrack.opened())
        # conntrack has no connections of untracked networks, so ask the services' sockets
        plain = {n.name for n in world.networks.values() if not (n.publishes or n.policed)}
        for known in world.services.values():
            if known.active and plain & {endpoint.network for endpoint in known.endpoints}:
                opened.update(
                    conntrack.Open("tcp", c.client, c.client_port, c.server, c.server_port)
                    for c in kernel.connections_in(names.netns(known.name))
                )
    refused = flow_memory.recorded(policy_rules.REFUSED)
    audited = flow_memory.recorded(policy_rules.AUDITED)
    passed = flow_memory.recorded(policy_rules.SEEN) + flow_memory.recorded(policy_rules.ENTERED)
    # flows that another program's rule had recorded by the bridge table too are in the inet sets
    elsewhere = {row[:4] for row in (*passed, *refused, *audited)}
    switched = flow_memory.recorded(policy_rules.SWITCHED)
    passed += [row for row in switched if row[:4] not in elsewhere]
    missed = sum(flow_memory.missed().values())
    return Memory(tuple(passed), tuple(refused), tuple(opened), missed, tuple(audited))


class Judge:
    """Names the flows of a world and evaluates its policies on them; caches each result."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends = Ends(world)
        self._judged: dict[tuple[Key, bool], Seen] = {}

    def of(self, key: Key, passes: bool) -> Seen:
        """Return a flow with its names and verdict, without figures."""
        if (key, passes) not in self._judged:
            self._judged[key, passes] = _seen(self.ends, key, passes)
        return self._judged[key, passes]

    def in_world(self, world: World) -> Judge:
        """Return this classifier, or a new one if the world differs or the cache is full."""
        is_same = world == self.world and len(self._judged) <= _MOST_JUDGED
        return self if is_same else Judge(world)


_MOST_JUDGED = 50_000


def joined(world: World, memory: Memory, judge: Judge | None = None) -> list[Seen]:
    """Return all flows with names and deciding policies, sorted by names and port. Pure.

    ``judge`` is that of an equal world, from an earlier call, to reuse its cache.
    """
    counts: dict[Key, int] = {}
    for flow in memory.opened:
        key = (flow.source, flow.destination, flow.proto, flow.port)
        counts[key] = counts.get(key, 0) + 1
    judge = judge or Judge(world)
    ends = judge.ends

    def one(key: Key, passes: bool, new: int, ago: float | None, open_: int) -> Seen:
        return judge.of(key, passes)._replace(new=new, ago=ago, open=open_)

    result = []
    audits = {_key(row) for row in memory.audited}
    for passes, rows in ((True, memory.passed), (False, memory.refused)):
        for row in rows:
            open_ = counts.pop(_key(row), 0) if passes else 0
            seen = one(_key(row), passes, row.packets, row.ago, open_)
            was_audited = passes and seen.key in audits and not seen.agrees
            result.append(seen._replace(audited=True) if was_audited else seen)
    for key, count in counts.items():
        if ends.of(key[0]).service or ends.of(key[1]).service:
            result.append(one(key, True, 0, None, count))
    return sorted(
        result, key=lambda s: (s.source.name, s.destination.name, s.port, s.proto, s.passes, s.key)
    )


def changes(before: Iterable[Seen], after: Iterable[Seen]) -> list[Seen]:
    """Return the flows recorded between two queries, oldest first. ``new`` counts only those."""
    counted = {(seen.key, seen.verdict): seen.new for seen in before}
    fresh = []
    for seen in after:
        was = counted.get((seen.key, seen.verdict), 0)
        # a count that fell was deleted and began again at 0
        more = seen.new - was if seen.new >= was else seen.new
        if more:
            fresh.append(seen._replace(new=more))
    return sorted(fresh, key=lambda seen: -(seen.ago or 0.0))


def moment(ago: float) -> float:
    """Convert an age in seconds to a time (seconds since 1970)."""
    return time.time() - ago


class Ends:
    """Maps addresses to the services, host or outside names of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, End] = {}
        self._worlds: dict[tuple[frozenset[str], bool], World] = {}
        for known in world.services.values():
            for address in addresses_of(known):
                self._known[address] = End(known.name, address)
        for name, addresses in reversed(sorted(world.outside_ever.items())):
            for address in addresses:
                self._known[address] = End("", address, outside=name)

    def judging(self, services: frozenset[str], passes: bool) -> World:
        """Return the part of the world that verdicts on flows between these services depend on.

        Other services do not matter, and verdicts search all services of a world, so fewer are
        faster. For flows that passed, an outside name has all the addresses that it had at the
        time.
        """
        if (services, passes) not in self._worlds:
            world = self._world
            world = world._replace(services={name: world.services[name] for name in services})
            if passes:
                world = world._replace(outside=world.outside_ever)
            self._worlds[services, passes] = world
        return self._worlds[services, passes]

    def of(self, address: str) -> End:
        """Return the end for an address."""
        if address not in self._known:
            is_host = plan_verdict.is_host(self._world, address)
            gone = not is_host and is_for_services(self._world, address)
            self._known[address] = End("", address, is_host, gone)
        return self._known[address]


def _key(row: Recorded) -> Key:
    return row.source, row.destination, row.proto, row.port


def _seen(ends: Ends, key: Key, passes: bool) -> Seen:
    """Return a flow with its names and verdict, without figures."""
    source, destination, proto, port = key
    both = ends.of(source), ends.of(destination)
    # only flows of services are recorded: if neither end is known, one was a service at the time
    if any(end.gone for end in both) or not any(end.service or end.is_host for end in both):
        return Seen(*both, proto, port, passes, None, None, True, 0, None, 0, gone=True)
    world = ends.judging(frozenset(end.service for end in both if end.service), passes)
    egress, ingress = judge(world, source, destination, port, proto)
    refusing = next((reason for reason in (egress, ingress) if not reason.passes), None)
    reason: Reason | None
    by_port = None
    if passes:
        deciding = [reason for reason in (egress, ingress) if reason.key]
        audit = next((reason for reason in deciding if reason.audits), None)
        reason = refusing or audit or (deciding[-1] if deciding else None)
        agrees = refusing is None
        if not (both[0].service or both[0].is_host):
            by_port = published(world, both[1].service, proto, port, family_of(destination))
    else:
        reason = refusing or closed(world, source, destination, proto, port)
        agrees = reason is not None
    audits = reason is not None and reason.audits
    return Seen(*both, proto, port, passes, reason, by_port, agrees, 0, None, 0, audited=audits)


def published(world: World, service: str, proto: str, port: int, family: int) -> Port | None:
    """Return the published port of a family that leads to a service's port, or None.

    Only ports that other machines can use count: none on a loopback address.
    """
    known = world.services.get(service)
    for mapping in known.ports if known else ():
        last = mapping.container_port + mapping.count - 1
        remote = not mapping.host_ip.startswith("127.")
        of_it = remote and mapping.proto == proto and family in mapping.families
        if of_it and mapping.container_port <= port <= last:
            first = mapping.host_port + port - mapping.container_port
            return mapping._replace(host_port=first, container_port=port, count=1)
    return None


def closed(
    world: World, source: str, destination: str, proto: str, port: int, across: bool = False
) -> Reason | None:
    """Return why no packet gets from an address to another's port; None if a path is open.

    Policies are not evaluated. Flows are recorded after DNAT, so one through a published port looks
    like a flow to the service's own address. A flow from elsewhere always came through a published
    port. A flow between services of two networks that a policy refused may have: with ``across`` it
    counts as if it did.
    """
    path = decide(world, source, destination, port, proto).path
    sender, receiver = (holder_of(world, end) for end in (source, destination))
    if path.passes or receiver is None or not receiver[0].active:
        return None if path.passes else path
    if sender is not None:
        inside = world.networks[sender[1]].internal or not sender[0].active
        if inside or not across:
            return path
    led = published(world, receiver[0].name, proto, port, family_of(destination))
    return None if led else path


def read(kernel: Kernel, store: Store, with_open: bool = True) -> tuple[list[Seen], int]:
    """Return all flows, and the number not recorded because sets were full. Raises KernelError."""

    world = read_world(kernel, store)
    memory = remembered(kernel, world, with_open)
    return joined(world, memory), memory.missed


# --- niso net flows -------------------------------------------------------------------------------


class FlowEnd(NamedTuple):
    """One end of flows."""

    name: str
    """the service, host, the outside name of a policy, or the address"""
    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""


class Flow(NamedTuple):
    """The flows from one address to one port of another, after DNAT."""

    from_: FlowEnd
    """the end that opened them"""
    to: FlowEnd
    """the other end"""
    port: int
    """port of the destination"""
    proto: str
    """tcp, udp or sctp"""
    verdict: str
    """pass, drop, or audit: it passed because a policy that denies it was in audit"""
    service: str | None
    """service whose manifest decides"""
    key: str | None
    """key of the manifest"""
    text: str | None
    """entry under the key"""
    words: str | None
    """the reason"""
    published: int | None
    """host port through which another machine connected"""
    agrees: bool
    """whether the present configuration decides the same"""
    new: int
    """new flows within a week, or attempts that were dropped; with -f since the last update"""
    last: str | None
    """time of the last new one, to the millisecond"""
    ago: float | None
    """seconds since then"""
    open: int
    """flows that are open now"""


class Flows:
    """Iterate over new `Flow` without end. Use it in a ``with`` block."""

    def __init__(self, session: Session, service: str | None, denied: bool) -> None:

        self.session = session
        self._service, self._denied = service, denied
        self._before, _ = read(session.kernel(), session.store(), with_open=False)

    def __enter__(self) -> Flows:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Flow]:
        import time

        while True:
            time.sleep(1)
            yield from self.read()

    def read(self) -> tuple[Flow, ...]:
        """Return the flows recorded since the last call, oldest first, without waiting."""

        now, _ = read(self.session.kernel(), self.session.store(), with_open=False)
        fresh = changes(self._before, now)
        self._before = now
        return tuple(_flow(seen) for seen in _chosen(fresh, self._service, self._denied))


def flows(
    session: Session, name: str | None, denied: bool, since: float | None
) -> tuple[Flow, ...]:
    """List the flows: `Host.flows`. ``since`` is in seconds since 1970."""
    import time

    store = session.store()
    service = None if name is None else _home(store, name)
    seen, missed = read(session.kernel(), store)
    if missed:
        session.caution(
            f"{missed} new flows are not shown: there are more than the kernel remembers",
            ["docs/design/seeing.md has the limits"],
        )
    oldest = None if since is None else time.time() - since
    chosen = _chosen(seen, service, denied)
    return tuple(
        _flow(flow)
        for flow in chosen
        if oldest is None or flow.open or (flow.ago is not None and flow.ago <= oldest)
    )


def follow(session: Session, name: str | None, denied: bool) -> Flows:
    """Start following new flows: `Host.follow_flows`."""
    store = session.store()
    return Flows(session, None if name is None else _home(store, name), denied)


def _home(store: Store, name: str) -> str:
    """Return the service that owns a service's addresses. Raises Error if there are none."""
    home = store.home(store.resolve(name))
    row = store.service(home)
    whose = name if home == name else f"{name} shares the network of {home}, which"
    if row is not None and row.mode == "host":
        raise Error(f"{whose} has mode host: its flows are those of host", "niso net flows")
    if row is not None and row.mode == "none":
        raise Error(f"{whose} has mode none: it has only a loopback interface", "niso net flows")
    return home


def _chosen(seen: list[Seen], service: str | None, denied: bool) -> list[Seen]:
    return [
        flow
        for flow in seen
        if (service is None or service in (flow.source.service, flow.destination.service))
        and not (denied and flow.passes and not flow.audited)
    ]


def _flow(seen: Seen) -> Flow:

    return Flow(
        end_of(seen.source),
        end_of(seen.destination),
        seen.port,
        seen.proto,
        seen.verdict,
        *decided(seen),
        seen.new,
        None if seen.ago is None else exact_time_text(moment(seen.ago)),
        None if seen.ago is None else round(seen.ago, 3),
        seen.open,
    )


def decided(
    seen: Seen,
) -> tuple[str | None, str | None, str | None, str | None, int | None, bool]:
    """Return the fields of a `Flow` from ``service`` to ``agrees``."""
    reason = seen.reason
    return (
        reason.service or None if reason else None,
        reason.key or None if reason else None,
        reason.text or None if reason else None,
        reason.message if reason else None,
        seen.published.host_port if seen.published else None,
        seen.agrees,
    )


def end_of(end: End) -> FlowEnd:
    """Convert an end of a flow to a result."""
    return FlowEnd(end.name, end.service or None, end.address)


# --- flows for metrics ----------------------------------------------------------------------------


OUTSIDE = "outside"
"""The name for every address that belongs neither to a service nor to the host."""


class Total(NamedTuple):
    """The flows between two names on one port; ``flows`` is the number that the kernel recorded."""

    source: str
    destination: str
    port: int
    proto: str
    verdict: str  # pass, audit or drop
    flows: int


def totals(world: World, memory: Memory, limit: int) -> tuple[list[Total], int]:
    """Return the ``limit`` most frequent totals, sorted, and how many more there are. Pure."""
    ends = Ends(world)

    def name(address: str) -> str:
        end = ends.of(address)
        return end.name if end.service or end.is_host else OUTSIDE

    counts: dict[tuple[str, str, int, str, str], int] = {}
    for verdict, row in memory.by_verdict():
        key = (name(row.source), name(row.destination), row.port, row.proto, verdict)
        counts[key] = counts.get(key, 0) + row.packets
    # break ties by name, so that two queries of the same flows choose the same totals
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return sorted(Total(*key, counts[key]) for key in ranked[:limit]), len(ranked[limit:])
