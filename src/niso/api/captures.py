"""Capture packets, and trace their path: `Host.capture`, `Host.trace`."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see.capture import Capture

__all__ = ["Capture", "Stage", "Traced", "Wanted", "capture", "trace"]


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
    """The path of one real packet."""

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
    """whether chains of other programs processed it"""
    stages: tuple[Stage, ...]
    """the chains that decided something, in order"""


if TYPE_CHECKING:
    from niso.api.session import Session
    from niso.plan.known_world import Known
    from niso.see.capture import Format


class Wanted(NamedTuple):
    """The arguments of `Host.capture`."""

    services: tuple[str, ...]
    peer: str | None
    filter: str
    most: int | None
    text: bool
    drops: bool


def capture(session: Session, wanted: Wanted) -> Capture:
    """Start a capture: `Host.capture`."""
    from niso.base import names
    from niso.base.errors import Conflict, UsageError
    from niso.explain import question
    from niso.plan import known_world
    from niso.reconcile.world import read_world
    from niso.see.capture import Format, expression

    if wanted.most is not None and wanted.most < 1:
        hint = "niso net capture db -c 10"
        raise UsageError("must be 1 or more", hint, "-c", value=str(wanted.most))
    store = session.store()
    world = read_world(session.kernel(), store)
    known: dict[str, Known] = {}
    for service in wanted.services:
        if question.parse_target(service)[1] is not None:
            hint = f"niso net capture SERVICE {service}"
            raise UsageError(f"{service!r} is not a service, but a port of one", hint, "NAME")
        row = store.service(service)
        if row is not None and row.mode == "host":
            words = f"{service} has mode host: its packets are among those of the host"
            raise Conflict(words, "tcpdump -i any")
        end = question.resolve(store, service)
        if end.service not in world.services:
            raise UsageError(f"{service!r} is not a service", "niso ps lists the services", "NAME")
        known[end.service] = world.services[end.service]
    for captured in known.values():
        if captured.host:
            raise Conflict(
                f"{captured.name} runs on host {captured.host}", "niso net capture there"
            )
        if not captured.active:
            raise Conflict(f"{captured.name} is not active", f"niso activate {captured.name}")
    addresses: tuple[str, ...] = ()
    port = None
    gateways = [s.gateway for n in world.networks.values() for s in n.subnets]
    if wanted.peer is not None:
        who, port, _ = question.parse_target(wanted.peer)
        other = question.resolve(store, who, next(iter(known)))
        if other.service:
            addresses = known_world.addresses_of(world.services[other.service])
        elif other.address:
            addresses = (other.address,)
        else:  # the host, with the address that services see
            addresses = (*sorted(gateways), *sorted(world.host))
    named = {
        address: holder.name
        for holder in world.services.values()
        for address in known_world.addresses_of(holder)
    }
    named |= dict.fromkeys(gateways, "host")
    filter_ = expression(dict.fromkeys(addresses), port, wanted.filter)
    form = Format(named, filter_, wanted.most, wanted.text)
    if wanted.drops:
        return _drops(session, known, form)
    return Capture({name: names.netns(name) for name in known}, form)


def _drops(session: Session, known: dict[str, Known], form: Format) -> Capture:
    from niso.base import names
    from niso.explain.dropping import Dropping
    from niso.kernel.nft_drops import Drops
    from niso.plan import known_world
    from niso.see.capture import DropCapture

    store = session.store()
    ends = [
        names.veth(row.name, network, row.generation)
        for row in store.services()
        if row.name in known
        for network in row.networks
    ]
    addresses = [a for service in known.values() for a in known_world.addresses_of(service)]
    bridges = [names.bridge(row.name) for row in store.networks()]
    drops = Drops(addresses, ends, bridges)
    return DropCapture(drops, Dropping(session.kernel(), store).words, form)


def trace(
    session: Session, source: str, destination: str, any_: bool, seconds: float
) -> Traced | None:
    """Wait for a packet and trace its path: `Host.trace`."""
    from niso.base.service_events import WaitingForPacket
    from niso.explain import question
    from niso.kernel.nft_trace import Packet, Trace, marking
    from niso.plan.verdict import decide
    from niso.reconcile.world import read_world
    from niso.see import packet_stages

    store = session.store()
    who, port, proto = question.parse_target(destination)
    from_ = question.resolve(store, source)
    to = question.resolve(store, who, from_.service or None)
    world = read_world(session.kernel(), store)
    # a program chooses if a name has addresses of both families
    pairs = question.ends_by_family(world, from_, to)
    packets = [Packet(*pair, port, proto, not any_) for pair in pairs.values()]
    with Trace(marking(packets)) as tracing:
        session.report(WaitingForPacket(destination, "real"))
        steps = tracing.first(seconds)
    if not steps:
        return None
    family = next((s.version for s in steps if s.version in pairs), next(iter(pairs)))
    ends = pairs[family]
    path = packet_stages.stages(steps, decide(world, *ends, port, proto))
    port_ = next((s.source_port for s in steps if s.source_port is not None), None)
    return Traced(
        ends[0],
        None if port is None else port_,
        ends[1],
        port,
        proto,
        packet_stages.passed(path),
        bool(packet_stages.others(path)),
        tuple(Stage(*stage) for stage in path),
    )
