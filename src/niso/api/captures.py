"""Capture packets and follow their way: `Host.capture`."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see.capture import Capture, expression

__all__ = ["Capture", "Stage", "Traced", "capture", "trace"]


class Stage(NamedTuple):
    """What happened to a packet in one chain."""

    table: str
    """family and name of the table: inet niso"""
    chain: str
    """the chain"""
    verdict: str
    """pass, drop, or an arrow and the next chain"""
    words: str
    """the reason, or the rule of another program"""


class Traced(NamedTuple):
    """The way of one real packet."""

    source: str
    """the sender's address"""
    source_port: int | None
    """port of the sender; null for icmp"""
    destination: str
    """the address that it was sent to"""
    port: int | None
    """the port that it was sent to; null for icmp"""
    proto: str
    """tcp, udp, sctp or icmp"""
    passes: bool
    """whether no chain dropped it"""
    others: bool
    """whether chains of other programs saw it"""
    stages: tuple[Stage, ...]
    """the chains that decided something, in order"""


if TYPE_CHECKING:
    from niso.api.session import Session


def capture(
    session: Session,
    service: str,
    peer: str | None,
    more: str,
    count: int | None,
    text: bool,
) -> Capture:
    """Start a capture: `Host.capture`."""
    from niso.base import names
    from niso.base.errors import Conflict, UsageError
    from niso.explain import question
    from niso.plan import known_world
    from niso.reconcile.world import read_world

    store = session.store()
    end = question.resolve(store, service)
    world = read_world(session.kernel(), store)
    known = world.services.get(end.service)
    if known is None:
        raise UsageError(f"{service!r} is not a service", "niso ps lists the services", "NAME")
    if not known.active:
        raise Conflict(f"{known.name} is not active", f"niso activate {known.name}")
    if count is not None and count < 1:
        raise UsageError(f"{count}: must be 1 or more", None, "-c")
    addresses: tuple[str, ...] = ()
    port = None
    if peer is not None:
        who, port, _ = question.parse_target(peer)
        other = question.resolve(store, who, known.name)
        if other.service:
            addresses = known_world.addresses_of(world.services[other.service])
        elif other.address:
            addresses = (other.address,)
        else:  # the host, as services see it
            gateways = (s.gateway for n in world.networks.values() for s in n.subnets)
            addresses = (*sorted(gateways), *sorted(world.host))
    named = {
        address: each.name
        for each in world.services.values()
        for address in known_world.addresses_of(each)
    }
    named |= {s.gateway: "host" for n in world.networks.values() for s in n.subnets}
    filter_ = expression(dict.fromkeys(addresses), port, more)
    return Capture(names.netns(known.name), named, filter_, count, text)


def trace(
    session: Session, source: str, destination: str, any_: bool, seconds: float
) -> Traced | None:
    """Wait for a packet and follow it: `Host.trace`."""
    from niso.base.report import WaitingForPacket
    from niso.explain import question
    from niso.kernel.nft_trace import Packet, Trace
    from niso.plan.verdict import decide
    from niso.reconcile.world import read_world
    from niso.see import way

    store = session.store()
    who, port, proto = question.parse_target(destination)
    from_ = question.resolve(store, source)
    to = question.resolve(store, who, from_.service or None)
    world = read_world(session.kernel(), store)
    # a program that has both addresses of a name chooses
    pairs = question.ends_by_family(world, from_, to)
    packets = [Packet(*pair, port, proto, not any_) for pair in pairs.values()]
    with Trace(packets) as tracing:
        session.report(WaitingForPacket(destination, "real"))
        steps = tracing.first(seconds)
    if not steps:
        return None
    family = next((s.version for s in steps if s.version in pairs), next(iter(pairs)))
    ends = pairs[family]
    found = way.stages(steps, decide(world, *ends, port, proto))
    port_ = next((s.source_port for s in steps if s.source_port is not None), None)
    return Traced(
        ends[0],
        None if port is None else port_,
        ends[1],
        port,
        proto,
        way.passed(found),
        bool(way.others(found)),
        tuple(Stage(*stage) for stage in found),
    )
