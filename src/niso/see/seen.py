"""Join what the rules remember of flows with services, policies and open connections."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from niso.base import names
from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_sensor
from niso.plan import known_world, verdict
from niso.plan.known_world import World
from niso.plan.records import Port
from niso.plan.verdict import Reason

if TYPE_CHECKING:
    from niso.kernel.flows import Open
    from niso.kernel.interface import Kernel
    from niso.kernel.sensor import Recorded
    from niso.store.store import Store

HOST = "host"
PASS, AUDIT, DROP = "pass", "audit", "drop"
"""What happened to flows. An audit passes what the policy would deny."""
Key = tuple[str, str, str, int]
"""(source, destination, protocol, port) of a flow, after DNAT."""


class End(NamedTuple):
    """One end of flows. ``service`` is "" if the address is not one of a service.

    ``gone``: it was one of a service that does not exist any more. ``outside``: the name by which
    policies know it.
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
    """All flows from one address to one port of another that passed, or that were dropped.

    ``reason`` is what decides at present, also of the path. It is None if the service of an end
    does not exist any more (``gone``): its policy is not known. ``published`` is the published port
    that clients from elsewhere used. ``agrees``: the present rules would decide the same. ``new``
    are new flows within a week, or attempts; ``ago`` is the age of the last one in seconds, None
    without any. ``open`` are the ones that are open now. ``audited``: they pass only because a
    policy is in audit, or did, and would be denied now.
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
        """Return what happened to them: pass, audit or drop."""
        return AUDIT if self.audited else PASS if self.passes else DROP

    @property
    def key(self) -> Key:
        return self.source.address, self.destination.address, self.proto, self.port


class Memory(NamedTuple):
    """What the kernel remembers, and the connections that are open."""

    passed: tuple[Recorded, ...]
    refused: tuple[Recorded, ...]
    opened: tuple[Open, ...]
    missed: int = 0  # new flows that full sets have not recorded
    audited: tuple[Recorded, ...] = ()  # of those that passed, or that others dropped then

    def by_verdict(self) -> Iterator[tuple[str, Recorded]]:
        """Yield each key with what happened to its flows. Audited ones have not only passed."""
        passed = {row[:4]: row for row in self.passed}
        for row in self.audited:
            if (whole := passed.get(row[:4])) is not None:
                passed[row[:4]] = whole._replace(packets=whole.packets - row.packets)
                yield AUDIT, row
        yield from ((PASS, row) for row in passed.values() if row.packets > 0)
        yield from ((DROP, row) for row in self.refused)


def remembered(kernel: Kernel, world: World, with_open: bool = True) -> Memory:
    """Read the sets and, with ``with_open``, open connections. Raises KernelError."""
    from niso.kernel import flows, sensor

    opened: set[Open] = set()
    if with_open:
        opened.update(flows.opened())
        # of networks that nobody tracks, the services' sockets know
        plain = {n.name for n in world.networks.values() if not (n.publishes or n.policed)}
        for known in world.services.values():
            if known.active and plain & {endpoint.network for endpoint in known.endpoints}:
                opened.update(
                    flows.Open("tcp", c.client, c.client_port, c.server, c.server_port)
                    for c in kernel.connections_in(names.netns(known.name))
                )
    refused = sensor.recorded(nft_sensor.REFUSED)
    audited = sensor.recorded(nft_sensor.AUDITED)
    passed = sensor.recorded(nft_sensor.SEEN) + sensor.recorded(nft_sensor.ENTERED)
    # what another program's rule made the bridge table record too is in the other sets
    elsewhere = {row[:4] for row in (*passed, *refused, *audited)}
    switched = sensor.recorded(nft_sensor.SWITCHED)
    passed += [row for row in switched if row[:4] not in elsewhere]
    missed = sum(sensor.missed().values())
    return Memory(tuple(passed), tuple(refused), tuple(opened), missed, tuple(audited))


class Judge:
    """Knows the names of flows in a world, and what decides on them; judges each once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends = Ends(world)
        self._judged: dict[tuple[Key, bool], Seen] = {}

    def of(self, key: Key, passes: bool) -> Seen:
        """Return a flow without its figures."""
        if (key, passes) not in self._judged:
            self._judged[key, passes] = _seen(self.ends, key, passes)
        return self._judged[key, passes]

    def in_world(self, world: World) -> Judge:
        """Return this one if the world is equal; else, or if it has judged very many, a new one."""
        is_same = world == self.world and len(self._judged) <= _MOST_JUDGED
        return self if is_same else Judge(world)


_MOST_JUDGED = 50_000


def joined(world: World, memory: Memory, judge: Judge | None = None) -> list[Seen]:
    """Return all flows with names and what decides on them, sorted by names and port. Pure.

    ``judge`` is one of an equal world, from earlier calls.
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
    """Return what was recorded between two looks, the oldest first. ``new`` counts that only."""
    counted = {(seen.key, seen.verdict): seen.new for seen in before}
    fresh = []
    for seen in after:
        was = counted.get((seen.key, seen.verdict), 0)
        # a count that fell was deleted and began again
        more = seen.new - was if seen.new >= was else seen.new
        if more:
            fresh.append(seen._replace(new=more))
    return sorted(fresh, key=lambda seen: -(seen.ago or 0.0))


def moment(ago: float) -> float:
    """Return the time (seconds since 1970) of something so many seconds ago."""
    return time.time() - ago


class Ends:
    """The ends that addresses of a world stand for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, End] = {}
        self._worlds: dict[tuple[frozenset[str], bool], World] = {}
        for known in world.services.values():
            for address in known_world.addresses_of(known):
                self._known[address] = End(known.name, address)
        for name, addresses in reversed(sorted(world.outside_ever.items())):
            for address in addresses:
                self._known[address] = End("", address, outside=name)

    def judging(self, services: frozenset[str], passes: bool) -> World:
        """Return what a verdict on flows between these depends on.

        It depends on no other services, and looks through those that there are. For flows that
        passed, an outside name has the addresses that it had at that time.
        """
        if (services, passes) not in self._worlds:
            world = self._world
            world = world._replace(services={name: world.services[name] for name in services})
            if passes:
                world = world._replace(outside=world.outside_ever)
            self._worlds[services, passes] = world
        return self._worlds[services, passes]

    def of(self, address: str) -> End:
        """Return the end with an address."""
        if address not in self._known:
            is_host = known_world.is_host(self._world, address)
            gone = not is_host and known_world.is_for_services(self._world, address)
            self._known[address] = End("", address, is_host, gone)
        return self._known[address]


def _key(row: Recorded) -> Key:
    return row.source, row.destination, row.proto, row.port


def _seen(ends: Ends, key: Key, passes: bool) -> Seen:
    """Return a flow without its figures."""
    source, destination, proto, port = key
    both = ends.of(source), ends.of(destination)
    # only flows of services are recorded: one of two strangers was of one
    if any(end.gone for end in both) or not any(end.service or end.is_host for end in both):
        return Seen(*both, proto, port, passes, None, None, True, 0, None, 0, gone=True)
    world = ends.judging(frozenset(end.service for end in both if end.service), passes)
    egress, ingress = verdict.judge(world, source, destination, port, proto)
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
    """Return the published port of a family that leads to a port of a service, or None.

    It is one that other machines can use: none on a loopback address.
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
    """Return why nothing gets from an address to the port of another; None if a path is open.

    Policies are not evaluated. Flows are recorded after DNAT: those that came by a published port
    look like flows to the service's own address. What came from elsewhere did come by one. What a
    policy refused between services of two networks may have: with ``across`` it did.
    """
    path = verdict.decide(world, source, destination, port, proto).path
    sender, receiver = (known_world.holder_of(world, end) for end in (source, destination))
    if path.passes or receiver is None or not receiver[0].active:
        return None if path.passes else path
    if sender is not None:
        inside = world.networks[sender[1]].internal or not sender[0].active
        if inside or not across:
            return path
    led = published(world, receiver[0].name, proto, port, family_of(destination))
    return None if led else path


def read(kernel: Kernel, store: Store, with_open: bool = True) -> tuple[list[Seen], int]:
    """Return all flows, and how many new ones full sets have not recorded. Raises KernelError."""
    from niso.reconcile.world import read_world

    world = read_world(kernel, store)
    memory = remembered(kernel, world, with_open)
    return joined(world, memory), memory.missed
