"""Measure rates of services and flows from look to look: `Host.top`."""

from __future__ import annotations

import time

from niso.api.flow_views import FlowEnd, end_of
from niso.api.guard import guarded
from niso.api.service_states import States
from niso.base.errors import KernelError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from niso.api.service_views import ServiceLine
    from niso.api.session import Session
    from niso.explain.drops import Stats
    from niso.kernel.nft_meter import Meter
    from niso.plan.known_world import World
    from niso.see.seen import Key, Memory


class ServiceLoad(NamedTuple):
    """What a service does at present."""

    service: str
    """the service's name"""
    status: str
    """as for niso ps"""
    health: str | None
    """starting, healthy or unhealthy; null without a healthcheck"""
    networks: tuple[str, ...]
    """strings: names of its networks"""
    received: float | None
    """bits per second; null if it has no interface of its own"""
    sent: float | None
    """the same"""
    new: float | None
    """new flows from and to it, and refused attempts, per second; null as above"""
    denied_in: int | None
    """packets that its ingress policy has dropped, in all; null if unknown"""
    denied_out: int | None
    """packets that its egress policy has dropped, in all; null if unknown"""


class FlowLoad(NamedTuple):
    """New flows from one address to one port of another, and those with traffic."""

    from_: FlowEnd
    """the end that begins them"""
    to: FlowEnd
    """the other end"""
    port: int
    """port of the destination"""
    proto: str
    """tcp, udp or sctp"""
    verdict: str
    """pass, audit or drop"""
    new: float
    """new flows, or refused attempts, per second"""
    bits: float | None = None
    """bits per second both ways; null if the kernel cannot count them"""


class Load(NamedTuple):
    """What happened between two looks."""

    seconds: float
    """time between them"""
    services: tuple[ServiceLoad, ...]
    """all known services, by name"""
    flows: tuple[FlowLoad, ...]
    """those with new flows or traffic, the most frequent first"""


class Look(NamedTuple):
    """What `between` compares. ``at`` is in seconds of a monotonic clock."""

    at: float
    lines: tuple[ServiceLine, ...]
    networks: dict[str, tuple[str, ...]]
    stats: dict[str, Stats]
    flows: dict[tuple[Key, str], int]


class Top:
    """Measures from call to call of `read`, for one service or all. Use it in a ``with`` block.

    Until it is closed the kernel counts the bytes of flows for it (`niso.kernel.nft_meter`).
    """

    def __init__(self, session: Session, name: str | None) -> None:
        self.session = session
        self._name = name
        self._states = States(session)
        self._before, _ = look(session, self._states)
        self._meter = meter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Have the kernel count no more. Without it, it does until the program ends."""
        own, self._meter = self._meter, None
        if own is not None:
            own.close()

    @guarded
    def read(self) -> Load:
        """Return what happened since the last call, or since the beginning."""
        now, _ = look(self.session, self._states)
        before, self._before = self._before, now
        moved = None if self._meter is None else self._meter.read()
        load = between(self._states.world, before, now, moved)
        if self._name is None:
            return load
        store = self.session.store()
        # a service that shares another's network has the flows of its provider
        home = store.home(self._name)
        return Load(
            load.seconds,
            tuple(each for each in load.services if each.service == self._name),
            tuple(f for f in load.flows if home in (f.from_.service, f.to.service)),
        )


def look(session: Session, states: States, with_open: bool = False) -> tuple[Look, Memory]:
    """Read what `between` compares; with ``with_open`` open connections too."""
    from niso.explain import drops
    from niso.see import seen

    states.read()
    networks = {row.name: row.networks for row in states.rows}
    memory = seen.remembered(session.kernel(), states.world, with_open)
    stats = {each.service: each for each in drops.stats([row for row in states.rows if row.active])}
    return Look(time.monotonic(), states.lines, networks, stats, counts(memory)), memory


def meter() -> Meter | None:
    """Begin to count bytes; None on a kernel that cannot."""
    from niso.kernel.nft_meter import Meter

    try:
        return Meter()
    except KernelError:
        return None


def top(session: Session, name: str | None) -> Top:
    """Take the first look: `Host.top`."""
    return Top(session, None if name is None else session.store().resolve(name))


def counts(memory: Memory) -> dict[tuple[Key, str], int]:
    """Return the count of each key and verdict."""
    return {
        ((row.source, row.destination, row.proto, row.port), verdict): row.packets
        for verdict, row in memory.by_verdict()
    }


def between(world: World, before: Look, now: Look, moved: Mapping[Key, int] | None = None) -> Load:
    """Return what happened between two looks. ``moved`` has the bytes of flows. Pure."""
    from niso.see.seen import DROP, Ends

    seconds = max(now.at - before.at, 1e-6)
    ends = Ends(world)
    flows = []
    new: dict[str, int] = {}
    left = dict(moved or {})
    for (key, verdict), count in now.flows.items():
        grown = more(before.flows.get((key, verdict), 0), count)
        octets = 0 if verdict == DROP else left.pop(key, 0)
        if not grown and not octets:
            continue
        source, destination, proto, port = key
        from_, to = ends.of(source), ends.of(destination)
        for service in {from_.service, to.service} - {""}:
            new[service] = new.get(service, 0) + grown
        rate = round(grown / seconds, 3)
        bits = None if moved is None else round(8 * octets / seconds, 1)
        flows.append(FlowLoad(end_of(from_), end_of(to), port, proto, verdict, rate, bits))
    flows.sort(
        key=lambda f: (-f.new, -(f.bits or 0), f.from_.name, f.to.name, f.port, f.proto, f.verdict)
    )
    services = []
    for line in now.lines:
        networks = now.networks.get(line.service, ())
        was, stats = before.stats.get(line.service), now.stats.get(line.service)
        services.append(
            ServiceLoad(
                line.service,
                line.status,
                line.health,
                networks,
                _bits(was and was.in_bytes, stats and stats.in_bytes, seconds),
                _bits(was and was.out_bytes, stats and stats.out_bytes, seconds),
                round(new.get(line.service, 0) / seconds, 3) if networks else None,
                stats.in_drops if stats else None,
                stats.out_drops if stats else None,
            )
        )
    return Load(round(seconds, 3), tuple(services), tuple(flows))


def more(before: int, now: int) -> int:
    """Return by how much a counter grew; one that fell began again."""
    return now - before if now >= before else now


def _bits(before: int | None, now: int | None, seconds: float) -> float | None:
    """Return bits per second; None without a counter, 0 of one that is new."""
    if now is None:
        return None
    return 0.0 if before is None else round(8 * more(before, now) / seconds, 1)
