"""Send real packets between two services, for `niso net ping` and to confirm a verdict.

`niso.kernel.probe` sends the packets.
"""

from __future__ import annotations

import ipaddress
import time

from niso.base import names
from niso.base.errors import Error, KernelError, UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import WaitingForPacket
from niso.kernel import probe
from niso.kernel.libnftables import Nft
from niso.kernel.nft_elements import Nfnetlink
from niso.look.packet_path import ExplainedPacket, Object, Packet, ends, resolve_both
from niso.plan.records import Entry
from niso.plan.verdict import PolicyContext, Reason, Verdict, decide, is_broadcast, is_host, matches
from niso.reconcile.live_world import read_world

if TYPE_CHECKING:
    from niso.look.session import Session


PATIENCE_S = 1.0
_POLL_S = 0.02


class Counter(NamedTuple):
    """A rule that should count the test packet, with its counts before and after."""

    rule: str  # the rule in nft syntax
    before: int | None  # packets before the test
    after: int | None  # packets after the test
    label: str  # the rule's table, its chain or set, and its text

    @property
    def rose(self) -> bool:
        """True if the rule has counted a packet."""
        return self.before is not None and self.after is not None and self.after > self.before


class Proof(NamedTuple):
    """The result of a test packet.

    ``agrees`` is None if nothing could be observed: no rule counts the packet, the destination is
    not a service, and no reply arrived.
    """

    agrees: bool | None  # whether the observations confirm the verdict; null if inconclusive
    arrived: bool | None  # whether the packet arrived; null if unknown
    answered: bool  # whether there was a reply
    unsent: str | None  # why the sender's kernel refused to send the packet; null if it was sent
    counters: tuple[Counter, ...]  # rules that count the packet


def sender_namespace(context: PolicyContext, packet: Packet, verdict: Verdict) -> str:
    """Return the network namespace that sends the test packet, or "" for the host's.

    Raises Error if the sending service is not active. Raises UsageError if the sender is neither a
    service nor the host.
    """
    known = context.services.get(verdict.source.service)
    if known is not None:
        if not known.active:
            raise Error(
                f"{known.name} is not active, so it cannot send",
                f"niso activate {known.name}",
            )
        return names.netns(known.name)
    if not is_host(context, packet.source):
        raise UsageError(
            f"--prove sends from services and from the host, and {packet.source} is neither",
            "omit --prove, or send a packet from there yourself",
        )
    return ""


def prove(context: PolicyContext, explained: ExplainedPacket) -> Proof:
    """Send a test packet. Observe whether it arrives, and whether the expected rules count it."""
    packet, verdict = explained.packet, explained.verdict
    namespace = sender_namespace(context, packet, verdict)
    receiver = context.services.get(verdict.receiver.service)
    watched = None
    if receiver and receiver.active and receiver.serving is None:
        watched = (names.netns(receiver.name), verdict.port)
    with (
        Nft() as kernel,
        probe.ProbePacket(namespace, *packet[:4], watched, own_port=packet.own_port or 0) as sent,
    ):
        before = [_packets(kernel, rule) for rule in explained.counted]
        unsent = sent.send()
        if unsent:
            return Proof(not verdict.passes and not explained.counted, None, False, unsent, ())
        arrived, answered = None, False
        if verdict.passes:
            arrived, answered = sent.wait(PATIENCE_S, for_answer=watched is None)
        end = time.monotonic() + PATIENCE_S
        while True:
            after = [_packets(kernel, rule) for rule in explained.counted]
            counts = tuple(
                Counter(rule.nft, was, now, f"{rule.table} {rule.container}: {rule.text}")
                for rule, was, now in zip(explained.counted, before, after, strict=True)
            )
            if all(count.rose for count in counts) or time.monotonic() > end:
                break
            time.sleep(_POLL_S)
        if not verdict.passes:
            # a counted drop has already happened; without a counter, wait for an arrival
            arrived, answered = sent.wait(0 if counts else PATIENCE_S / 4)
            if is_broadcast(context, ipaddress.ip_address(packet.destination)):
                # the host or the sender's own kernel may have replied, not a service
                answered = False
    agrees: bool | None
    if not all(count.rose for count in counts):
        agrees = False
    elif arrived is not None or answered:
        agrees = verdict.passes == (arrived or answered)
    else:
        agrees = True if counts else None
    return Proof(agrees, arrived, answered, None, counts)


def _packets(kernel: Nft, rule: Object) -> int | None:
    """Return how many packets a rule or set element has counted, or None if it does not exist."""
    if rule.element is not None:
        with Nfnetlink() as netlink:
            return netlink.count(rule.element)
    try:
        listed = [
            item["rule"]
            for item in kernel.query(f"list chain {rule.table} {rule.container}")
            if "rule" in item
        ]
    except KernelError:
        return None
    if rule.place is None or rule.place >= len(listed):
        return None
    actual = listed[rule.place]
    comment = rule.text.rpartition('comment "')[2].rstrip('"') if "comment" in rule.text else None
    if actual.get("comment") != comment:
        return None
    return next((int(e["counter"]["packets"]) for e in actual["expr"] if "counter" in e), None)


class Sender(NamedTuple):
    """The sender of the packet whose verdict `Host.explain` returns."""

    service: str | None  # name of the service; null if the address is not a service's
    address: str  # an IPv4 or IPv6 address
    host: str | None  # the other host that the service is on; null for this host
    port: int | None = None  # the source port; only if it is known

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        return ("port",) if self.port is None else ()


class Participant(NamedTuple):
    """The sender or receiver of a ping."""

    service: str  # the service's name
    address: str  # an IPv4 or IPv6 address
    host: str | None  # the other host that the service is on; null for this host


class Pong(NamedTuple):
    """The result of `Host.ping`."""

    from_: Participant  # the sender
    to: Participant  # the receiver
    ok: bool  # always true; a missing reply is an error
    seconds: float  # seconds from the request to the reply


class Source(NamedTuple):
    """The sender of a dropped packet."""

    service: str | None  # name of the service; null if the address is not a service's
    address: str  # an IPv4 or IPv6 address


def ping(session: Session, source: str, destination: str) -> Pong:
    """Send an echo request and wait for the reply, as described in `Host.ping`."""
    session.report(WaitingForPacket(destination, "reply"))
    # after the event, so that the user sees it before this slow import
    from niso.look import other_hosts

    kernel, store = session.kernel(), session.store()
    sender, receiver = resolve_both(store, source, destination)
    for end, name in ((sender, source), (receiver, destination)):
        if not end.service:
            hint = "niso net explain accepts host and addresses"
            raise UsageError(f"{name!r} is not a service", hint)
        row = store.service(end.service)
        if row is None and end is receiver:
            continue  # it is on another host
        if row is None:
            raise Error(f"{end.name} is on another host", "niso net ping there")
        if not row.active:
            raise Error(f"{end.name} is not active", f"niso activate {end.name}")
    from_, to = sender.service, receiver.service
    context = read_world(kernel, store)
    for name in (from_, to):
        if not context.services[name].active:
            raise Error(
                f"{name} is not attached any longer: its network namespace has ended",
                "niso net repair forgets it",
            )
    on = {name: [e.network for e in context.services[name].endpoints] for name in (from_, to)}
    if not {*on[from_]} & {*on[to]}:
        lists = " and ".join(
            f"{name} is on {', '.join(on[name]) or 'none'}" for name in (from_, to)
        )
        raise Error(
            f"{from_} and {to} have no common network: {lists}",
            "add one to network.networks of a manifest, or publish a port",
        )
    packet = Packet(*ends(context, sender, receiver), None, "icmp")
    took = probe.echo(names.netns(from_), packet.source, packet.destination, PATIENCE_S)
    if took is not None:
        elsewhere = next(iter(store.hosts_of(to)), None) if store.service(to) is None else None
        return Pong(
            Participant(sender.name, packet.source, None),
            Participant(receiver.name, packet.destination, elsewhere),
            True,
            round(took, 6),
        )
    where = f"{sender.name} ({packet.source}) to {receiver.name} ({packet.destination})"
    # only now: a reply proves the path, whatever the recorded policies say
    if store.cluster_id():
        try:
            context = other_hosts.with_remote(session, context, packet.source, packet.destination)
        except Error as error:  # the reason may be a policy on the other host
            session.caution(error.message)
    verdict = decide(context, *packet)
    reason = verdict.dropped_by
    if reason is None:
        host = context.services[to].host
        raise Error(
            f"{where}: no reply within {PATIENCE_S:g}s, although no rule of niso forbids it",
            f"niso net check {to}{f' on {host}' if host else ''}",
        )
    without = _without_icmp(context, verdict, reason)
    message = (
        f"{without.key} of {reason.service}, {without.text!r}, allows ports but no ICMP"
        if without
        else reason.message
    )
    raise Error(
        f"{where}: {message}",
        f"niso net explain {from_} {to}",
        (without.key if without else reason.key) or None,
        names_key=False,
    )


def _without_icmp(context: PolicyContext, verdict: Verdict, reason: Reason) -> Entry | None:
    """Return the entry that allows only some ports of a peer, so that ICMP is denied, or None."""
    if not reason.service or reason.text:  # a deny entry explains enough
        return None
    policy = context.services[reason.service].policy
    egress = reason is verdict.egress
    peer = verdict.destination.address if egress else verdict.source.address
    for entry in (policy.egress_allow if egress else policy.allow_from) or ():
        if matches(entry._replace(first=0, last=65535, proto=""), context, peer, None, "icmp"):
            return entry
    return None
