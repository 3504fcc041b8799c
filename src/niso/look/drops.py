"""Explain why packets were dropped, stream dropped packets, and read counters of traffic and drops.

The stream contains packets dropped by policies with ``log = true``. For each active service, the
kernel counts the traffic, the packets that the service's policy dropped, and the service's frames
that were dropped for a forged source address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from niso.base import names
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.text import exact_time_text
from niso.kernel import link_records, policy_rules, ruleset
from niso.kernel.nft_elements import HEADERS, Nfnetlink
from niso.kernel.packet_events import Dropped, Logged, Nflog
from niso.kernel.policy_rules import DIRECT, PASSES, REFUSE, REFUSED, REFUSED_OUTSIDE
from niso.kernel.ruleset import BRIDGE, INET
from niso.look.flows import refusal
from niso.look.prove import Source
from niso.look.session import ResultStream, Session
from niso.plan import verdict
from niso.plan.records import PORTED
from niso.plan.verdict import PolicyContext
from niso.reconcile.live_world import read_world
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel


class DropTarget(NamedTuple):
    """The destination of a dropped packet."""

    service: str | None  # name of the service; null if the address is not a service's
    address: str  # an IPv4 or IPv6 address
    port: int | None  # the port of the receiver; null for icmp


class Drop(NamedTuple):
    """A packet dropped by a policy with ``log = true``."""

    time: str  # when the packet was dropped, to the millisecond
    service: str  # the service whose policy dropped the packet
    direction: str  # in: dropped by the service's ingress policy; out: dropped by its egress policy
    key: str  # the key of the policy entry in the manifest
    source: Source  # the sender
    destination: DropTarget  # the receiver
    proto: str  # tcp, udp, sctp or icmp
    interface: str  # the network interface on which the packet arrived


class Drops(ResultStream):
    """An endless iterator of dropped packets (`Drop`) for a ``with`` block, usable with poll(2)."""

    def __init__(self, session: Session, name: str | None) -> None:
        store = session.store()
        self.session = session
        self._store = store
        self._service = None if name is None else names.owner(store.home(store.resolve(name)))
        self._context = fresh_context(session.kernel(), store)
        # the log has only packets dropped from now on; Conflict if another process reads the log
        self._source = Nflog(policy_rules.LOG_GROUP)
        services = [self._service] if self._service else store.active_services()
        if not any(policy.log for name in services if (policy := store.policy(name))):
            whose = self._service or "any active service"
            text = f"log = true is not set in the policy of {whose}"
            try:
                session.caution(
                    f"{text}: no drops are shown until it is", ["[network.policy] log = true"]
                )
            except BaseException:
                self.close()
                raise

    def __iter__(self) -> Iterator[Drop]:
        while True:
            yield from self.read()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` returns without waiting."""
        return self._source.fileno()

    def read(self) -> tuple[Drop, ...]:
        """Wait for packets, and return the packets dropped by policies of the selected services.

        Sends the event `niso.WarningEvent` if the kernel could not report all packets.
        """
        packets = self._source.read()
        if packets is None:
            text = "packets arrive faster than they are read: some drops are not shown"
            self.session.caution(text)
        return tuple(self._drops(packets or ()))

    def close(self) -> None:
        self._source.close()

    def _drops(self, packets: Iterable[Logged]) -> Iterator[Drop]:
        for packet in packets:
            direction = packet.prefix.removeprefix("niso ")
            if direction not in ("in", "out"):
                continue  # a rule of another program
            source, destination = (
                names.owner(self._store.lease_holder(end) or "")
                for end in (packet.source, packet.destination)
            )
            service = source if direction == "out" else destination
            if self._service in (None, service):
                egress, ingress = verdict.evaluate(
                    self._context(), packet.source, packet.destination, packet.port, packet.proto
                )
                yield Drop(
                    exact_time_text(packet.time),
                    service,
                    direction,
                    (egress if direction == "out" else ingress).key,
                    Source(source or None, packet.source),
                    DropTarget(destination or None, packet.destination, packet.port),
                    packet.proto,
                    packet.link,
                )


def fresh_context(kernel: Kernel, store: Store) -> Callable[[], PolicyContext]:
    """Return a function that reads services and policies from the database.

    The function reads the database again only if it has changed since the last call.
    """
    known: tuple[int, PolicyContext] | None = None

    def context() -> PolicyContext:
        nonlocal known
        version = store.changes()
        if known is None or known[0] != version:
            known = (version, read_world(kernel, store))
        return known[1]

    return context


# --- which rule dropped a packet ------------------------------------------------------------------

_COMMENT = re.compile(r'comment "([^"]*)"')
_OF_POLICIES = (REFUSE, *(f"see_{name}" for name in (REFUSED, REFUSED_OUTSIDE)))
"""The nftables chains that drop packets which a policy denies, or for which there is no path.

The rules of these chains do not say which entry of the policy decided.
"""
_COUNTER = re.compile(r"counter(?: packets \d+ bytes \d+)? ?")
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmp"}


def words(context: PolicyContext, dropped: Dropped) -> str:
    """Return why a packet was dropped: a phrase about a policy or network, or the nftables rule."""
    place = f"{dropped.table} {dropped.chain}"
    if dropped.table not in (INET, BRIDGE):
        return f"{place}: {dropped.rule or 'policy drop'}"
    comment = _COMMENT.search(dropped.rule)
    if dropped.chain in (*_OF_POLICIES, DIRECT):
        comment = None  # about the set of recorded flows
    if comment:
        return comment[1]
    # a rule with a condition, not of a policy; the rule is "" if the chain's policy dropped
    condition = _COUNTER.sub("", dropped.rule).removesuffix("drop").strip()
    is_own = condition and not condition.startswith("log ") and "vmap" not in condition
    if is_own and dropped.chain not in (*_OF_POLICIES, DIRECT):
        return f"{place}: {dropped.rule}"
    packet = _packet(dropped.headers)
    source, destination, port, proto = packet
    is_direct = dropped.chain == DIRECT
    reason = refusal(context, source, destination, proto, port, is_direct)
    return place if reason is None else reason.message


def _packet(headers: bytes) -> tuple[str, str, int | None, str]:
    if headers[0] >> 4 == 4:
        size, number, ends = (headers[0] & 15) * 4, headers[9], (headers[12:16], headers[16:20])
    else:
        size, number, ends = 40, headers[6], (headers[8:24], headers[24:40])
    source, destination = (str(ipaddress.ip_address(end)) for end in ends)
    proto = _PROTOCOLS.get(number, str(number))
    port = headers[size + 2 : size + 4]
    if proto not in PORTED or len(port) < 2:
        return source, destination, None, proto if proto not in PORTED else "icmp"
    return source, destination, int.from_bytes(port, "big"), proto


# --- counters -------------------------------------------------------------------------------------

_Counts = dict[tuple[str, str], int]


def count(rows: Sequence[ServiceRow]) -> list[Stats]:
    """Return one `Stats` for each row of an active service or instance. Raises KernelError."""
    if not rows:
        return []
    ends = {
        row.name: [names.veth(row.name, network, row.generation) for network in row.networks]
        for row in rows
    }
    links = link_records.of_links(end for service in ends.values() for end in service)
    drops, audits = _policy_drops()
    foreign = _foreign()
    result = []
    for row in rows:
        counters = [links[end] for end in ends[row.name] if end in links]
        complete = ends[row.name] and len(counters) == len(ends[row.name])
        out_packets, in_packets, out_bytes, in_bytes = (
            sum(counter[field] for counter in counters) if complete else None
            for field in link_records.TRAFFIC
        )
        # what the service sends is received by the host's end of its veth pair
        in_drops, out_drops = (
            None if drops is None else drops.get((direction, row.name), 0)
            for direction in ("in", "out")
        )
        result.append(
            Stats(
                row.name,
                in_packets,
                in_bytes,
                in_drops,
                out_packets,
                out_bytes,
                out_drops,
                None if foreign is None else sum(foreign.get(end, 0) for end in ends[row.name]),
                audits.get(("in", row.name)),
                audits.get(("out", row.name)),
            )
        )
    return result


def by_service(counters: Iterable[Stats]) -> list[Stats]:
    """Add up the counters of instances: return one `Stats` for each service, sorted by name."""
    sums: dict[str, Stats] = {}
    for one in counters:
        service = names.owner(one.service)
        if (before := sums.get(service)) is None:
            sums[service] = one._replace(service=service)
            continue
        pairs = zip(before[1:], one[1:], strict=True)
        sums[service] = Stats(service, *(b if a is None else a + (b or 0) for a, b in pairs))
    return [sums[service] for service in sorted(sums)]


def _policy_drops() -> tuple[_Counts | None, _Counts]:
    """Count the packets that policies dropped, and the packets that passed only because of an
    audit.

    Both results map (direction, service) to a number of packets. The first result is None if niso's
    nftables table is missing.
    """
    drops: _Counts = {}
    audits: _Counts = {}
    with Nfnetlink() as kernel:
        if kernel.all_of(ruleset.INET, "owner") is None:
            return None, audits
        for name, direction in sorted((ruleset.COUNTED | policy_rules.PLACES).items()):
            for element, packets, _ in kernel.counts(HEADERS[ruleset.INET, name]):
                # the audit sets count denials of a policy in audit mode, even after its audit
                if element.value == PASSES or element.value in policy_rules.VERDICTS:
                    continue
                key = (direction, element.owner)
                sums = audits if name in policy_rules.PLACES else drops
                sums[key] = sums.get(key, 0) + packets
    return drops, audits


def _foreign() -> dict[str, int] | None:
    """Return {bridge port: frames dropped for a forged source}, or None without niso's table."""
    with Nfnetlink() as kernel:
        if kernel.all_of(ruleset.BRIDGE, "owner") is None:
            return None
        header = HEADERS[ruleset.BRIDGE, ruleset.DROPPED_FROM]
        return {port.fields[0]: packets for port, packets, _ in kernel.counts(header)}


class Stats(NamedTuple):
    """The counters of an active service. A counter is None if its rule or interface is missing."""

    service: str  # the service's name
    in_packets: int | None  # packets received
    in_bytes: int | None  # bytes received
    in_drops: int | None  # packets dropped by the service's ingress policy
    out_packets: int | None  # packets sent
    out_bytes: int | None  # bytes sent
    out_drops: int | None  # packets dropped by the service's egress policy
    foreign: int | None  # frames dropped for a forged source address or a forbidden type
    in_audits: int | None
    """packets that the ingress policy would have dropped; null if the policy is not in audit"""
    out_audits: int | None
    """packets that the egress policy would have dropped; null if the policy is not in audit"""
