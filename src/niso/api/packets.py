"""Whether and why packets pass, and what was dropped."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from niso.api.session import Session
    from niso.explain import drops as follower
    from niso.explain import explanation as engine
    from niso.explain import prove as prover
    from niso.plan.verdict import Reason
    from niso.store.store import Store


class Participant(NamedTuple):
    """One service of a ping."""

    service: str
    """the service's name"""
    address: str
    """an IPv4 or IPv6 address"""


class Pong(NamedTuple):
    """Result of `Host.ping`."""

    from_: Participant
    """the sender"""
    to: Participant
    """the receiver"""
    ok: bool
    """true; where nothing came back there is an error"""
    seconds: float
    """from the request to the reply"""


class Source(NamedTuple):
    """Where a packet comes from."""

    service: str | None
    """null where it is none"""
    address: str
    """an IPv4 or IPv6 address"""


class Asked(NamedTuple):
    """Where a packet is sent."""

    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""
    proto: str
    """tcp, udp, sctp or icmp"""


class Target(NamedTuple):
    """Where a packet comes to."""

    service: str | None
    """null where it is none"""
    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""
    proto: str
    """tcp, udp, sctp or icmp"""


class Judgement(NamedTuple):
    """What one part of the configuration says of a packet."""

    verdict: str
    """pass or drop"""
    words: str
    """what decides"""
    service: str | None
    """whose manifest decides"""
    key: str | None
    """the key there"""
    text: str | None
    """the entry there"""
    nft: tuple[str, ...]
    """strings: the objects of nftables that do it"""


class Judged(NamedTuple):
    """A packet and its verdict."""

    from_: Source
    """the sender"""
    asked: Asked
    """where it is sent"""
    to: Target
    """where it comes to, after a published port"""
    verdict: str
    """pass or drop"""
    path: Judgement
    """what networks and published ports say"""
    egress: Judgement
    """what the sender's policy says"""
    ingress: Judgement
    """what the receiver's policy says"""

    @property
    def passes(self) -> bool:
        """Whether the packet passes."""
        return self.verdict == "pass"

    @property
    def dropped_by(self) -> Judgement | None:
        """The first that drops it, in the order of the kernel; None where it passes."""
        parts = (self.path, self.egress, self.ingress)
        return next((part for part in parts if part.verdict == "drop"), None)


class Counter(NamedTuple):
    """A rule that counts the packet of a proof; ``label`` names it by table, container and text."""

    rule: str
    """as nft has it"""
    before: int | None
    """packets"""
    after: int | None
    """packets"""
    label: str


class Proof(NamedTuple):
    """What came of a real packet."""

    agrees: bool | None
    """null where nothing can be told"""
    arrived: bool | None
    """null where that cannot be seen"""
    answered: bool
    """whether anything came back"""
    unsent: str | None
    """why the sender's kernel did not take it"""
    counters: tuple[Counter, ...]
    """rules that count the packet"""


class Explanation(NamedTuple):
    """Result of `Host.explain`."""

    judged: Judged
    other_family: Judged | None
    """the same by the other family, where both ends have it"""
    shares: dict[str, str]
    """by the name of a service that was asked for and shares: whose network it has"""
    proof: Proof | None = None
    """what came of the real packet; only where --prove is given"""

    @property
    def passes(self) -> bool:
        """Whether the packet passes."""
        return self.judged.passes

    def left_out(self) -> tuple[str, ...]:
        """Return the fields that JSON does not have."""
        return ("proof",) if self.proof is None else ()


class Stats(NamedTuple):
    """Counters of one active service; None where the kernel does not have what counts."""

    service: str
    """the service's name"""
    in_packets: int | None
    """packets that came"""
    in_bytes: int | None
    """bytes"""
    in_drops: int | None
    """packets that its ingress policy dropped"""
    out_packets: int | None
    """packets that it sent"""
    out_bytes: int | None
    """bytes"""
    out_drops: int | None
    """packets that its egress policy dropped"""
    foreign: int | None
    """frames that were not its own"""


class DropTarget(NamedTuple):
    """Where a dropped packet was sent."""

    service: str | None
    """null where it is none"""
    address: str
    """an IPv4 or IPv6 address"""
    port: int | None
    """null for icmp"""


class Drop(NamedTuple):
    """One packet that a policy with ``log = true`` has dropped."""

    time: str
    """time, to the millisecond"""
    service: str
    """whose policy dropped it"""
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
    """the link by which it came"""


class Drops:
    """An endless iterator of `Drop`. It has a ``fileno`` for poll(2), and is closed by ``with``."""

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
        """Return the descriptor that is readable when there is something to read."""
        return self._log.fileno()

    def read(self) -> tuple[Drop, ...]:
        """Wait for packets and return those that are meant.

        Where the kernel had to leave some out, a `niso.Caution` is sent.
        """
        drops = self._log.read()
        if drops is None:
            self.session.caution("more was dropped than could be read: some is not shown")
        return tuple(_drop(each) for each in drops or ())

    def close(self) -> None:
        """Stop following."""
        self._log.__exit__()


# --- the calls ---------------------------------------------------------------------------------


def ping(session: Session, source: str, destination: str) -> Pong:
    """Send an echo request and wait for the reply: `Host.ping`."""
    from niso.base.report import WaitingForPacket

    session.report(WaitingForPacket(destination, answer=True))
    from niso.explain import prove, question  # a part of the time that is told

    store = session.store()
    packet, took = prove.ping(session.kernel(), store, source, destination)
    from_, to = (question.resolve(store, name).name for name in (source, destination))
    return Pong(
        Participant(from_, packet.source), Participant(to, packet.destination), True, round(took, 6)
    )


def explain(
    session: Session, source: str, destination: str, family: int | None, proves: bool
) -> Explanation:
    """Judge a packet, and with ``proves`` send one: `Host.explain`."""
    from niso.base.errors import UsageError
    from niso.base.report import WaitingForPacket

    if family not in (None, 4, 6):
        raise UsageError(f"family {family!r}: must be 4 or 6", None, "family")
    if proves:
        session.report(WaitingForPacket(destination, answer=False))
    from niso.explain import explanation, prove, question
    from niso.reconcile.world import read_world

    store, kernel = session.store(), session.kernel()
    who, port, proto = question.parse_target(destination)
    from_, to = question.resolve(store, source), question.resolve(store, who)
    world = read_world(kernel, store)
    packet = question.Packet(*question.ends(world, from_, to, family), port, proto)
    closed = kernel.not_forwarding()
    explained = explanation.explain(store, world, packet, closed)
    if proves:
        prove.sender_namespace(world, packet, explained.verdict)
    other = None if family else explanation.other_family(store, world, from_, to, packet, closed)
    proof = prove.prove(world, explained) if proves else None
    return Explanation(
        _judged(explained),
        None if other is None else _judged(other),
        {end.sharer: end.service for end in (from_, to) if end.sharer},
        None if proof is None else _proof(proof),
    )


def stats(session: Session) -> tuple[Stats, ...]:
    """Read the counters of each active service: `Host.stats`."""
    from niso.explain import drops

    return tuple(Stats(*each) for each in drops.stats(session.store()))


def drops(session: Session, name: str | None) -> Drops:
    """Start to follow drops: `Host.drops`."""
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
        whose = f"{service}'s policy does not have" if service else "no active service's policy has"
        session.caution(
            f"{whose} log = true: nothing will show until one has", ["[network.policy] log = true"]
        )


def _judged(explained: engine.Explanation) -> Judged:
    packet, verdict = explained.packet, explained.verdict
    to = verdict.destination
    return Judged(
        Source(verdict.source.service or None, packet.source),
        Asked(packet.destination, packet.port, packet.proto),
        Target(to.service or None, to.address, verdict.port, packet.proto),
        _word(verdict.passes),
        _judgement(verdict.path, explained.path),
        _judgement(verdict.egress, explained.egress),
        _judgement(verdict.ingress, explained.ingress),
    )


def _judgement(reason: Reason, objects: tuple[engine.Object, ...]) -> Judgement:
    return Judgement(
        _word(reason.passes),
        reason.words,
        reason.service or None,
        reason.key or None,
        reason.text or None,
        tuple(_object(each) for each in objects),
    )


def _word(passes: bool) -> str:
    return "pass" if passes else "drop"


def _object(each: engine.Object) -> str:
    if each.place is None:
        return f"element {each.table} {each.container} {{ {each.text} }}"
    return f"rule {each.table} {each.container}: {each.text}"


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
        _when(drop.time),
        drop.service,
        drop.direction,
        drop.key,
        Source(drop.source_name or None, drop.source),
        DropTarget(drop.destination_name or None, drop.destination, drop.port),
        drop.proto,
        drop.link,
    )


def _when(seconds: float) -> str:
    """Return a time as RFC 3339 in UTC, to the millisecond."""
    from niso.api.service_views import time_text

    whole = str(time_text(seconds))
    return f"{whole[:-1]}.{int(seconds % 1 * 1000):03d}Z"
