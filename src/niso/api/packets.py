"""Explain and test paths of packets; read traffic and drop counters."""

from __future__ import annotations

from niso.api.time_texts import exact_time_text
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from niso.api.session import Session
    from niso.explain import drops as follower
    from niso.explain import explanation as engine
    from niso.explain import prove as prover
    from niso.explain.service_stats import Stats
    from niso.plan.known_world import World
    from niso.plan.verdict import Reason
    from niso.store.store import Store


class Participant(NamedTuple):
    """One service of a ping."""

    service: str
    """the service's name"""
    address: str
    """an IPv4 or IPv6 address"""
    host: str | None
    """name of the other host that has the service; null if this one has it"""


class Pong(NamedTuple):
    """Result of `Host.ping`."""

    from_: Participant
    """the sender"""
    to: Participant
    """the receiver"""
    ok: bool
    """always true; a missing reply is an error"""
    seconds: float
    """round-trip time"""


class Source(NamedTuple):
    """The source of a packet."""

    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""


class Sender(NamedTuple):
    """The source of an explained packet."""

    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""
    host: str | None
    """name of the other host that has the service; null if this one has it"""


class Asked(NamedTuple):
    """The destination of a packet as sent."""

    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""
    proto: str
    """tcp, udp, sctp or icmp"""


class Target(NamedTuple):
    """The destination of a packet after DNAT."""

    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""
    proto: str
    """tcp, udp, sctp or icmp"""
    host: str | None
    """name of the other host that has the service; null if this one has it"""


class OtherHostObject(NamedTuple):
    """An nftables object that another host should have."""

    host: str
    """the host's name"""
    nft: str
    """the object"""


class Judgement(NamedTuple):
    """The verdict of one part of the configuration on a packet."""

    verdict: str
    """pass, drop, or audit: it passes because the policy is in audit"""
    words: str
    """the reason"""
    service: str | None
    """service whose manifest decides"""
    key: str | None
    """key of the manifest"""
    text: str | None
    """entry under the key"""
    nft: tuple[str, ...]
    """strings: the nftables objects of this host that implement it"""
    elsewhere: tuple[OtherHostObject, ...]
    """nftables objects of other hosts, computed from what they have published in the cluster"""


class Judged(NamedTuple):
    """A packet and its verdict."""

    from_: Sender
    """the sender"""
    asked: Asked
    """the destination as sent"""
    to: Target
    """the destination after DNAT of published ports"""
    verdict: str
    """pass or drop"""
    path: Judgement
    """verdict of networks and published ports"""
    egress: Judgement
    """verdict of the sender's policy"""
    ingress: Judgement
    """verdict of the receiver's policy"""

    @property
    def passes(self) -> bool:
        """Return whether the packet passes."""
        return self.verdict == "pass"

    @property
    def dropped_by(self) -> Judgement | None:
        """The first part that drops the packet, in kernel order; None if it passes."""
        parts = (self.path, self.egress, self.ingress)
        return next((part for part in parts if part.verdict == "drop"), None)


class Counter(NamedTuple):
    """A rule that counts the test packet; ``label`` is its table, container and text."""

    rule: str
    """the rule in nft syntax"""
    before: int | None
    """packets before the test"""
    after: int | None
    """packets after the test"""
    label: str


class Proof(NamedTuple):
    """Result of a test packet."""

    agrees: bool | None
    """whether the packet confirms the verdict; null if inconclusive"""
    arrived: bool | None
    """whether the packet arrived; null if unknown"""
    answered: bool
    """whether there was a reply"""
    unsent: str | None
    """why the sender's kernel refused the packet"""
    counters: tuple[Counter, ...]
    """rules that count the packet"""


class Explanation(NamedTuple):
    """Result of `Host.explain`."""

    judged: Judged
    other_family: Judged | None
    """the same packet in the other address family, if both ends have it"""
    shares: dict[str, str]
    """ends that share a namespace, each with the provider"""
    proof: Proof | None = None
    """result of the test packet; only with --prove"""

    @property
    def passes(self) -> bool:
        """Return whether the packet passes."""
        return self.judged.passes

    def left_out(self) -> tuple[str, ...]:
        """Return the fields to leave out of JSON."""
        return ("proof",) if self.proof is None else ()


class DropTarget(NamedTuple):
    """The destination of a dropped packet."""

    service: str | None
    """name of the service; null if the address is not a service's"""
    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""


class Drop(NamedTuple):
    """A packet dropped by a policy with ``log = true``."""

    time: str
    """time, to the millisecond"""
    service: str
    """service whose policy dropped it"""
    direction: str
    """in or out: its ingress or its egress policy"""
    key: str
    """the key of the manifest"""
    source: Source
    """the sender"""
    destination: DropTarget
    """the receiver"""
    proto: str
    """tcp, udp, sctp or icmp"""
    interface: str
    """the link on which it arrived"""


class Drops:
    """Iterate over `Drop` without end; has a ``fileno`` for poll(2). Close it using ``with``."""

    def __init__(self, session: Session, log: follower.Log) -> None:
        self.session = session
        self._log = log

    def __enter__(self) -> Drops:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Drop]:
        while True:
            yield from self.read()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` returns without waiting."""
        return self._log.fileno()

    def read(self) -> tuple[Drop, ...]:
        """Wait for packets and return the drops of the followed services.

        Sends a `niso.Caution` if the kernel had to skip some.
        """
        drops = self._log.read()
        if drops is None:
            self.session.caution(
                "packets arrive faster than they are read: some drops are not shown"
            )
        return tuple(_drop(drop) for drop in drops or ())

    def close(self) -> None:
        """Stop following."""
        self._log.__exit__()


# --- calls -----------------------------------------------------------------------------------


def ping(session: Session, source: str, destination: str) -> Pong:
    """Send an echo request and wait for the reply: `Host.ping`."""
    from niso.base.service_events import WaitingForPacket

    session.report(WaitingForPacket(destination, "reply"))
    # after the event, so that the user sees it before this slow import
    from niso.explain import prove, question

    store = session.store()

    def wider(world: World, packet: question.Packet) -> World:
        from niso.api import cluster_views
        from niso.base.errors import Error

        try:
            return cluster_views.world(session, world, packet.source, packet.destination)
        except Error as error:  # the reason may be a policy on the other host
            session.caution(error.message)
            return world

    known = {"wider": wider} if store.cluster_id() else {}
    packet, took = prove.ping(session.kernel(), store, source, destination, **known)
    from_, to = question.resolve_both(store, source, destination)
    return Pong(
        Participant(from_.name, packet.source, None),
        Participant(to.name, packet.destination, _elsewhere(store, to.service)),
        True,
        round(took, 6),
    )


def _elsewhere(store: Store, service: str) -> str | None:
    """Return the other host that has a service; None if this one has it."""
    return next(iter(store.hosts_of(service)), None) if store.service(service) is None else None


def explain(
    session: Session, source: str, destination: str, family: int | None, proves: bool
) -> Explanation:
    """Explain a packet; with ``proves``, send one too: `Host.explain`."""
    from niso.base.errors import UsageError
    from niso.base.service_events import WaitingForPacket

    if family not in (None, 4, 6):
        raise UsageError(f"family {family!r}: must be 4 or 6", None, "family")
    if proves:
        session.report(WaitingForPacket(destination, "test"))
    from niso.explain import explanation, prove, question
    from niso.reconcile.world import read_world

    store, kernel = session.store(), session.kernel()
    who, port, proto = question.parse_target(destination)
    from_, to = question.resolve_both(store, source, who)
    world = read_world(kernel, store)
    packet = question.Packet(*question.ends(world, from_, to, family), port, proto)
    if store.cluster_id():
        from niso.api import cluster_views

        world = cluster_views.world(
            session, world, packet.source, packet.destination, proves=proves
        )
    closed = kernel.not_forwarding()
    explained = explanation.explain(store, world, packet, closed)
    if proves:
        prove.sender_namespace(world, packet, explained.verdict)
    other = None if family else explanation.other_family(store, world, from_, to, packet, closed)
    proof = prove.prove(world, explained) if proves else None
    return Explanation(
        _judged(world, explained),
        None if other is None else _judged(world, other),
        {end.sharer: end.service for end in (from_, to) if end.sharer},
        None if proof is None else _proof(proof),
    )


def stats(session: Session) -> tuple[Stats, ...]:
    """Read the counters of each active service: `Host.stats`."""
    from niso.explain import counters

    return tuple(counters.stats(session.store().active_rows()))


def drops(session: Session, name: str | None) -> Drops:
    """Start following drops: `Host.drops`."""
    from niso.explain import drops

    store = session.store()
    service = None if name is None else store.home(store.resolve(name))
    log = drops.Log(session.kernel(), store, service)
    try:
        _warn_of_silence(session, store, service)
    except BaseException:
        log.__exit__()
        raise
    return Drops(session, log)


def _warn_of_silence(session: Session, store: Store, service: str | None) -> None:
    from niso.explain import drops

    if not drops.logging(store, service):
        whose = f"the policy of {service}" if service else "the policy of any active service"
        session.caution(
            f"log = true is not set in {whose}: no drops are shown until it is",
            ["[network.policy] log = true"],
        )


def _judged(world: World, explained: engine.Explanation) -> Judged:
    packet, verdict = explained.packet, explained.verdict
    to = verdict.destination
    hosts = [
        world.services[party.service].host or None if party.service else None
        for party in (verdict.source, to)
    ]
    return Judged(
        Sender(verdict.source.service or None, packet.source, hosts[0]),
        Asked(packet.destination, packet.port, packet.proto),
        Target(to.service or None, to.address, verdict.port, packet.proto, hosts[1]),
        _word(verdict.passes),
        _judgement(verdict.path, explained.path),
        _judgement(verdict.egress, explained.egress),
        _judgement(verdict.ingress, explained.ingress),
    )


def _judgement(reason: Reason, objects: tuple[engine.Object, ...]) -> Judgement:
    return Judgement(
        "audit" if reason.audits else _word(reason.passes),
        reason.message,
        reason.service or None,
        reason.key or None,
        reason.text or None,
        tuple(_object(item) for item in objects if not item.host),
        tuple(OtherHostObject(item.host, _object(item)) for item in objects if item.host),
    )


def _word(passes: bool) -> str:
    return "pass" if passes else "drop"


def _object(item: engine.Object) -> str:
    if item.place is None:
        return f"element {item.table} {item.container} {{ {item.text} }}"
    return f"rule {item.table} {item.container}: {item.text}"


def _proof(proof: prover.Proof) -> Proof:
    return Proof(
        proof.agrees,
        proof.arrived,
        proof.answered,
        proof.unsent or None,
        tuple(
            Counter(
                _object(count.rule),
                count.before,
                count.after,
                f"{count.rule.table} {count.rule.container}: {count.rule.text}",
            )
            for count in proof.counts
        ),
    )


def _drop(drop: follower.Drop) -> Drop:
    return Drop(
        exact_time_text(drop.time),
        drop.service,
        drop.direction,
        drop.key,
        Source(drop.source_name or None, drop.source),
        DropTarget(drop.destination_name or None, drop.destination, drop.port),
        drop.proto,
        drop.link,
    )
