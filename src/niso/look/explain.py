"""Explain which path a packet takes and why it passes or is dropped, for `niso net explain`.

`niso.look.packet_path` computes the path. `niso.look.prove` sends packets to confirm the verdict.
"""

from __future__ import annotations

from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import WaitingForPacket
from niso.kernel import probe
from niso.look import chains_on_path, listening, packet_path, prove
from niso.look.chains_on_path import OtherFirewalls
from niso.look.listening import Listening
from niso.look.packet_path import ExplainedPacket, Object, Packet
from niso.look.prove import Proof, Sender
from niso.plan.verdict import PolicyContext, Reason
from niso.reconcile.live_world import read_world

if TYPE_CHECKING:
    from niso.look.session import Session


class AskedDestination(NamedTuple):
    """The destination to which a packet was sent, before DNAT."""

    address: str  # an IPv4 or IPv6 address
    port: int | None  # the port; null for icmp
    proto: str  # tcp, udp, sctp or icmp


class Destination(NamedTuple):
    """The destination of a packet after DNAT."""

    service: str | None  # name of the service; null if the address is not a service's
    address: str  # an IPv4 or IPv6 address
    port: int | None  # the port; null for icmp
    proto: str  # tcp, udp, sctp or icmp
    host: str | None  # the other host that the service is on; null for this host
    instances: tuple[str, ...] = ()
    """strings: the instances, one of which gets the packet; only for a service address"""

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        return () if self.instances else ("instances",)


class OtherHostObject(NamedTuple):
    """An nftables object that another host of the cluster should have."""

    host: str  # the host's name
    nft: str  # the nftables object, as nft(8) writes it


class Judgement(NamedTuple):
    """The verdict of one part of the configuration, such as the sender's policy, on a packet."""

    verdict: str  # pass, drop, or audit: passes only because the policy is in audit mode
    words: str  # the reason for the verdict
    service: str | None  # the service whose policy decides; null if no policy does
    key: str | None  # the key of the policy entry in the manifest
    text: str | None  # the policy entry that decides
    nft: tuple[str, ...]  # strings: the nftables objects of this host that implement the verdict
    elsewhere: tuple[OtherHostObject, ...]
    """nftables objects of other hosts, computed from what those hosts published in the cluster"""


class Judged(NamedTuple):
    """A packet and its verdict."""

    from_: Sender  # the sender
    asked: AskedDestination  # the destination to which the packet was sent
    to: Destination  # the destination after DNAT of published ports
    verdict: str  # pass or drop
    path: Judgement  # verdict of networks and published ports
    egress: Judgement  # verdict of the sender's policy
    ingress: Judgement  # verdict of the receiver's policy
    by: str | None  # the first part that drops the packet: path, egress or ingress; null if none

    @property
    def passes(self) -> bool:
        """True if the packet passes."""
        return self.verdict == "pass"

    @property
    def dropped_by(self) -> Judgement | None:
        """The first verdict, in the kernel's order, that drops the packet, or None."""
        parts = {"path": self.path, "egress": self.egress, "ingress": self.ingress}
        return None if self.by is None else parts[self.by]


class Explanation(NamedTuple):
    """The result of `Host.explain`."""

    judged: Judged
    other_family: Judged | None
    """the verdict for the other IP version, if both ends have an address of that version"""
    shares: dict[str, str]  # an end that runs in another service's namespace -> this service
    listening: Listening | None
    """whether a program listens where the packet arrives; null if the packet is dropped, has no
    port, or does not go to a service of this host"""
    others: OtherFirewalls | None
    """what rules of other programs do to the packet; null if niso drops the packet, or if it passes
    no rule of this host"""
    proof: Proof | None = None  # result of the test packet; only with --prove

    @property
    def passes(self) -> bool:
        """True if the packet passes niso's rules and those of other programs."""
        return self.judged.passes and not (self.others and self.others.is_dropped)

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        return ("proof",) if self.proof is None else ()


def explain(
    session: Session, source: str, destination: str, family: int | None, proves: bool
) -> Explanation:
    """Explain a packet's path (see `Host.explain`). With ``proves``, also send a test packet."""
    from niso.look import other_hosts

    if family not in (None, 4, 6):
        raise UsageError(f"family {family!r}: must be 4 or 6", None, "family")
    if proves:
        session.report(WaitingForPacket(destination, "test"))

    store, kernel = session.store(), session.kernel()
    source, own_port = packet_path.parse_source(source)
    who, port, proto = packet_path.parse_target(destination)
    if own_port is not None and proto == "icmp":
        reason = f"FROM has the source port {own_port}, but the packet is ICMP, which has no ports"
        raise UsageError(reason, packet_path.TARGET)
    from_, to = packet_path.resolve_both(store, source, who)
    context = read_world(kernel, store)
    packet = Packet(*packet_path.ends(context, from_, to, family), port, proto, own_port)
    if store.cluster_id():
        context = other_hosts.with_remote(
            session, context, packet.source, packet.destination, proves=proves
        )
    closed = kernel.not_forwarding()
    explained = packet_path.explain(store, context, packet, closed)
    if proves:
        namespace = prove.sender_namespace(context, packet, explained.verdict)
        if len(explained.verdict.instances) > 1:  # the source port decides which instance gets it
            free = probe.free_port(namespace, packet.source, proto)
            explained = packet_path.explain(store, context, packet._replace(own_port=free), closed)
    other = None
    if family is None:
        other = packet_path.other_family(store, context, from_, to, packet, closed)
    others = chains_on_path.of_packet(kernel, context, explained)
    expected = explained
    if others is not None and others.is_dropped:
        # whether niso's rules count the packet first depends on the other chain's place
        verdict = explained.verdict._replace(passes=False)
        expected = explained._replace(verdict=verdict, counted=())
    return Explanation(
        _judged(context, explained),
        None if other is None else _judged(context, other),
        {end.sharer: end.service for end in (from_, to) if end.sharer},
        listening.of_packet(kernel, context, explained.verdict, proto),
        others,
        prove.prove(context, expected) if proves else None,
    )


def _judged(context: PolicyContext, explained: ExplainedPacket) -> Judged:
    packet, verdict = explained.packet, explained.verdict
    dropped = verdict.dropped_by
    from_, to = verdict.source, verdict.destination
    known, reached = (context.services.get(party.service) for party in (from_, to))
    return Judged(
        Sender(
            from_.service or None, packet.source, (known and known.host) or None, packet.own_port
        ),
        AskedDestination(packet.destination, packet.port, packet.proto),
        Destination(
            to.service or None,
            to.address,
            verdict.port,
            packet.proto,
            (reached and reached.host) or None,
            tuple(sorted(one.service for one in verdict.instances)),
        ),
        _word(verdict.passes),
        _judgement(verdict.path, explained.path),
        _judgement(verdict.egress, explained.egress),
        _judgement(verdict.ingress, explained.ingress),
        next((n for n in ("path", "egress", "ingress") if getattr(verdict, n) is dropped), None),
    )


def _judgement(reason: Reason, objects: tuple[Object, ...]) -> Judgement:
    return Judgement(
        "audit" if reason.audits else _word(reason.passes),
        reason.message,
        reason.service or None,
        reason.key or None,
        reason.text or None,
        tuple(item.nft for item in objects if not item.host),
        tuple(OtherHostObject(item.host, item.nft) for item in objects if item.host),
    )


def _word(passes: bool) -> str:
    return "pass" if passes else "drop"
