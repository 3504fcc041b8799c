"""Read the recorded flows for `niso net flows`, with the names of services and their policies.

Each flow is listed with the policy entry that applies to the flow now, and with the number of
connections that are open. For metrics, flows are added up by the names of the services at both
ends. Otherwise each client address would be a separate time series.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from niso.base import names
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of
from niso.base.text import exact_time_text
from niso.kernel import conntrack, flow_memory, policy_rules
from niso.kernel.flow_memory import Recorded
from niso.look.session import ResultStream, Session
from niso.plan import verdict as plan_verdict
from niso.plan.records import PortMapping
from niso.plan.verdict import (
    KnownService,
    PolicyContext,
    Reason,
    addresses_of,
    decide,
    evaluate,
    gateways,
    holder_of,
    is_for_services,
    matches,
    network_of,
)
from niso.reconcile.live_world import read_world
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel
    from niso.kernel.sockets import Connection


HOST = "host"
EVERYBODY = {4: "0.0.0.0/0", 6: "::/0"}
PASS, AUDIT, DROP = "pass", "audit", "drop"
"""Verdicts on flows. ``audit``: the flow passed although a policy in audit mode denies it."""
DIRECT = policy_rules.DIRECT  # dropped: sent by another machine to the address of a service
Key = tuple[str, str, str, int]  # the source, destination, protocol and port of a flow, after DNAT


class FlowEnd(NamedTuple):
    """The source or destination of flows."""

    name: str  # name of a service, host, a DNS name that a policy uses, or the address
    service: str | None  # name of the service; null if the address is not a service's
    address: str  # an IPv4 or IPv6 address
    is_host: bool = False
    gone: bool = False  # whether the service that had the address no longer exists

    @property
    def is_known(self) -> bool:
        """True if the address belongs to a service or to the host."""
        return self.service is not None or self.is_host


class Flow(NamedTuple):
    """All flows from one address to one port of another address, after DNAT.

    Either all of these flows passed, or all were dropped (``was_dropped``). If the service of the
    source or destination no longer exists (``gone``), its policy is unknown. The fields of the
    policy entry are then None, unless the kernel dropped the flow before it evaluated the
    receiver's policy.
    """

    from_: FlowEnd  # source of the flows
    to: FlowEnd  # destination of the flows
    port: int  # port of the destination
    proto: str  # tcp, udp or sctp
    verdict: str  # pass, drop, or audit: passed only because a policy was in audit mode
    service: str | None  # the service whose policy decides
    key: str | None  # the key of the policy entry in the manifest
    text: str | None  # the policy entry that decides
    words: str | None  # the reason for the verdict
    published: int | None
    """the host port through which another machine or the host connected; null without"""
    agrees: bool  # whether the present configuration gives the same verdict
    new: int  # new flows, or dropped attempts, of the last week; with -f since the previous update
    last: str | None  # when the last new flow began, to the millisecond
    ago: float | None  # seconds since the last new flow began
    open: int  # flows that are open now
    was_dropped: bool = False

    @property
    def passes(self) -> bool:
        """True if the flows passed, even if only because a policy was in audit mode."""
        return not self.was_dropped

    @property
    def audited(self) -> bool:
        """True if the flows pass, or passed, only because a policy is in audit mode."""
        return self.verdict == AUDIT

    @property
    def gone(self) -> bool:
        """True if the service of the source or destination no longer exists."""
        # only flows of services are recorded, so one of two unknown addresses was a service's
        ends = (self.from_, self.to)
        return any(end.gone for end in ends) or not any(end.is_known for end in ends)

    @property
    def id(self) -> Key:
        return self.from_.address, self.to.address, self.proto, self.port

    @property
    def services(self) -> frozenset[str]:
        """The names of the services of source and destination: none, one or two."""
        return frozenset(end.service for end in (self.from_, self.to) if end.service)


class Memory(NamedTuple):
    """The flows that nftables recorded, and the connections that are open now."""

    passed: tuple[Recorded, ...]
    refused: tuple[Recorded, ...]
    opened: Mapping[Key, int]  # the number of open connections
    missed: int = 0  # new flows that were not recorded because a set was full
    # flows that an audit let pass; they are in ``passed`` too, unless another rule dropped them
    audited: tuple[Recorded, ...] = ()
    direct: tuple[Recorded, ...] = ()  # refused flows of other machines to a service's address
    # flows that were not recorded because their source's share was used up, by (set, source)
    beyond: Mapping[tuple[str, str], int] = MappingProxyType({})
    full: tuple[str, ...] = ()  # the sets that are full now

    def by_verdict(self) -> Iterator[tuple[str, Recorded]]:
        """Yield (verdict, flow) for each recorded flow.

        The verdict AUDIT means that packets passed only because a policy was in audit mode. DIRECT
        means that another machine sent packets to the address of a service, and niso dropped them.
        """
        passed = {row[:4]: row for row in self.passed}
        for row in self.audited:
            if (whole := passed.get(row[:4])) is not None:
                passed[row[:4]] = whole._replace(packets=whole.packets - row.packets)
                yield AUDIT, row
        yield from ((PASS, row) for row in passed.values() if row.packets > 0)
        yield from ((DROP, row) for row in self.refused)
        yield from ((DIRECT, row) for row in self.direct)


def remembered(kernel: Kernel, context: PolicyContext, with_open: bool = True) -> Memory:
    """Read the recorded flows, and with ``with_open`` the open connections. Raises KernelError."""
    ends: set[tuple[str, Connection]] = set()
    if with_open:
        ends.update(conntrack.opened())
        # conntrack has no connections of untracked networks, so read the services' sockets
        plain = {n.name for n in context.networks.values() if not (n.publishes or n.policed)}
        for known in context.services.values():
            if known.active and plain & {endpoint.network for endpoint in known.endpoints}:
                there = kernel.connections_in(names.netns(known.name))
                ends.update(("tcp", connection) for connection in there)
    opened: dict[Key, int] = {}
    for proto, (client, _, server, port) in ends:
        key = (client, server, proto, port)
        opened[key] = opened.get(key, 0) + 1
    sets = {name: flow_memory.recorded(name) for name in policy_rules.SIZES}
    full = tuple(name for name, rows in sets.items() if _is_full(name, rows))
    switched = sets.pop(policy_rules.SWITCHED)
    # flows that another program's rule had recorded by the bridge table too are in the inet sets
    elsewhere = {row[:4] for rows in sets.values() for row in rows}
    passed = (
        *sets[policy_rules.SEEN],
        *sets[policy_rules.ENTERED],
        *(row for row in switched if row[:4] not in elsewhere),
    )
    refused = (*sets[policy_rules.REFUSED], *sets[policy_rules.REFUSED_OUTSIDE])
    audited = (*sets[policy_rules.AUDITED], *sets[policy_rules.AUDITED_OUTSIDE])
    counts = flow_memory.missed().values()
    lost = sum(full for full, _ in counts)
    beyond = flow_memory.beyond() if any(over for _, over in counts) else {}
    return Memory(passed, refused, opened, lost, audited, tuple(sets[DIRECT]), beyond, full)


def _is_before_receiver(
    context: PolicyContext, source: str, destination: str, reason: Reason | None
) -> bool:
    """Return whether the sender's side drops a packet for ``reason``, by the sender's policy or
    because its network is internal. The policy of the receiver, which no longer exists, then does
    not matter.
    """
    sender, entered = holder_of(context, source) or (None, "")
    if sender is None or reason is None:
        return False
    if reason.service == sender.owner:
        # an entry that names a service may have named the former receiver
        return all(entry.peer.kind != "service" for entry in sender.policy.egress_allow or ())
    network = network_of(context, destination)
    leaves = network is None or network.name != entered
    return context.networks[entered].internal and leaves


def _is_full(name: str, rows: list[Recorded]) -> bool:
    size = policy_rules.SIZES[name]  # of the IPv4 set, and of the IPv6 set
    if len(rows) < size:
        return False
    fours = sum(":" not in row.source for row in rows)
    return max(fours, len(rows) - fours) >= size


def left_out(memory: Memory, reader: FlowReader) -> list[tuple[str, list[str]]]:
    """Return (warning, next steps) for each reason why flows were not recorded."""
    result = []
    if memory.full:
        sets = ", ".join(memory.full)
        text = f"new flows are not recorded: the kernel's sets have no room (full: {sets})"
        hint = "niso net flows --forget empties them; docs/design/seeing.md has the limits"
        result.append((text, [hint]))
    elif memory.missed:
        text = f"{memory.missed} flows were not recorded, because a set of the kernel was full"
        hint = "niso net flows --forget empties the sets, and resets this count"
        result.append((text, [hint]))
    for denied, what in ((False, "new flows"), (True, "refused attempts")):
        names = sources_beyond(memory, reader, denied)
        if names:
            lost = f"{sum(names.values())} {what} of {few(names)}"
            text = f"{lost} are not recorded: each source has a share of the kernel's sets"
            hint = "niso net flows --forget SERVICE empties the share of a service"
            result.append((text, [hint]))
    return result


_MOST_NAMED = 4


def few(names: Mapping[str, int]) -> str:
    """Return the first names as a string such as ``a, b and 3 others``."""
    others = len(names) - _MOST_NAMED
    shown = ", ".join(itertools.islice(names, _MOST_NAMED))
    return f"{shown} and {others} others" if others > 0 else shown


def sources_beyond(
    memory: Memory, reader: FlowReader, denied: bool | None = None
) -> dict[str, int]:
    """Return {source: number of flows that were not recorded after the source's share was used up},
    highest first.

    ``denied`` selects refused flows (True), allowed flows (False) or all flows (None).
    """
    counts: dict[str, int] = {}
    for (set_, source), lost in memory.beyond.items():
        if denied in (None, set_ in policy_rules.DENIED):
            name = source if "/" in source else reader.end(source).name
            counts[name] = counts.get(name, 0) + lost
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class FlowReader:
    """Adds names, verdict and the deciding policy entry to recorded flows. Caches its results."""

    def __init__(self, context: PolicyContext, instances: bool = False) -> None:
        self.context = context
        self._split = instances
        self._flows: dict[tuple[Key, bool, bool], Flow] = {}
        self._ends: dict[str, FlowEnd] = {}
        self._parts: dict[tuple[frozenset[str], bool], PolicyContext] = {}
        self._owners: dict[str, str] = {}
        """Maps each address to the service or instance that has this address."""
        for known in context.services.values():
            for address in addresses_of(known):
                self._owners[address] = known.name
                self._ends[address] = self._service_end(known, address)

    def _service_end(self, known: KnownService, address: str) -> FlowEnd:
        """Return the `FlowEnd` for an address of a service or of an instance. The address of an
        instance is replaced by its service's address on the same network, unless this reader lists
        instances separately.
        """
        front = self.context.services.get(known.front)
        if front is None or self._split:
            return FlowEnd(known.name, known.name, address)
        on = next(end.network for end in known.endpoints if address in end.addresses)
        shared = (a for end in front.endpoints if end.network == on for a in end.addresses)
        family = family_of(address)
        return FlowEnd(front.name, front.name, next(a for a in shared if family_of(a) == family))

    def for_context(self, context: PolicyContext) -> FlowReader:
        """Return this reader, or a new one if ``context`` has other policies or the cache is full.

        A new reader has an empty cache.
        """
        is_same = context == self.context and len(self._flows) <= _MOST_CACHED
        return self if is_same else FlowReader(context, self._split)

    def end(self, address: str) -> FlowEnd:
        """Return an address as a `FlowEnd`: with name, service, and whether it is the host's."""
        if address not in self._ends:
            is_host = plan_verdict.is_host(self.context, address)
            gone = not is_host and is_for_services(self.context, address)
            name = HOST if is_host else address
            self._ends[address] = FlowEnd(name, None, address, is_host, gone)
        return self._ends[address]

    def shown(self, key: Key) -> Key:
        """Return a flow's key with the service's address in place of an instance's address."""
        return self.end(key[0]).address, self.end(key[1]).address, *key[2:]

    def flow(self, key: Key, passes: bool, direct: bool = False) -> Flow:
        """Return a flow with its names and verdict, but without counts and times. With ``direct``,
        another machine sent the flow to the address of a service.
        """
        if (key, passes, direct) not in self._flows:
            self._flows[key, passes, direct] = self._evaluated(key, passes, direct)
        return self._flows[key, passes, direct]

    def _evaluated(self, key: Key, passes: bool, direct: bool) -> Flow:
        source, destination, proto, port = key
        from_, to = self.end(source), self.end(destination)
        word = PASS if passes else DROP
        undecided = (None, None, None, None, None, True)
        flow = Flow(from_, to, port, proto, word, *undecided, 0, None, None, 0, not passes)
        if flow.gone and (passes or from_.service is None):
            return flow
        owners = [self._owners.get(end, "") for end in (source, destination)]
        if not to.is_known:
            flow = flow._replace(to=self._named(owners[0], to, port, proto))
        context = self._part(frozenset({*owners, *map(names.owner, owners)} - {""}), passes)
        egress, ingress = evaluate(context, source, destination, port, proto)
        refusing = next((reason for reason in (egress, ingress) if not reason.passes), None)
        reason: Reason | None
        host_port = None
        if passes:
            deciding = [reason for reason in (egress, ingress) if reason.key]
            audit = next((reason for reason in deciding if reason.audits), None)
            reason = refusing or audit or (deciding[-1] if deciding else None)
            host_port = self._host_port(from_, to, proto, port, destination)
        else:
            reason = refusal(context, source, destination, proto, port, direct)
            if flow.gone and not _is_before_receiver(context, source, destination, reason):
                return flow
        agrees = refusing is None if passes else reason is not None
        flow = flow._replace(published=host_port, agrees=agrees)
        if reason is None:
            return flow
        return flow._replace(
            verdict=AUDIT if reason.audits else word,
            service=reason.service or None,
            key=reason.key or None,
            text=reason.text or None,
            words=reason.message,
        )

    def _named(self, sender: str, to: FlowEnd, port: int, proto: str) -> FlowEnd:
        """Return ``to`` with the DNS name that the sender's policy has for its address, if any."""
        known = self.context.services.get(sender)
        if known is None:
            return to
        ever = self.context._replace(outside=self.context.outside_ever)
        entries = [
            entry
            for entry in known.policy.entries()
            if entry.peer.kind == "outside" and to.address in ever.outside.get(entry.peer.name, ())
        ]
        # an address can have several names: that of an entry for the port is the better one
        entries.sort(key=lambda e: (not matches(e, ever, to.address, port, proto), e.peer.name))
        return to._replace(name=entries[0].peer.name) if entries else to

    def _host_port(
        self, from_: FlowEnd, to: FlowEnd, proto: str, port: int, destination: str
    ) -> int | None:
        """Return the host port through which ``from_``, another machine or the host, connected."""
        if from_.service or not to.service:
            return None
        network = network_of(self.context, destination)
        # a program of the host that connects to a service's own address uses this gateway
        if from_.is_host and network is not None and from_.address in gateways(network):
            return None
        its = mappings(self.context.services.get(names.owner(to.service)), proto, port)
        return published_at(its, port, family_of(destination), from_.address)

    def _part(self, services: frozenset[str], passes: bool) -> PolicyContext:
        """Return `context` with only the policies of ``services``, which takes less time to
        evaluate. If ``passes``, a DNS name in a policy also matches its former addresses.
        """
        if (services, passes) not in self._parts:
            context = self.context
            known = {name: context.services[name] for name in services if name in context.services}
            context = context._replace(services=known)
            if passes:
                context = context._replace(outside=context.outside_ever)
            self._parts[services, passes] = context
        return self._parts[services, passes]


_MOST_CACHED = 50_000


def joined(context: PolicyContext, memory: Memory, reader: FlowReader | None = None) -> list[Flow]:
    """Return all recorded flows with names and verdicts, sorted by names and port."""
    counts = dict(memory.opened)
    reader = reader or FlowReader(context)
    result: list[Flow] = []
    audits = {row[:4] for row in memory.audited}
    sources = ((True, memory.passed), (False, memory.refused), (False, memory.direct))
    for passes, rows in sources:
        for row in rows:
            open_ = counts.pop(row[:4], 0) if passes else 0
            flow = reader.flow(row[:4], passes, rows is memory.direct)
            was_audited = passes and row[:4] in audits and not flow.agrees
            verdict = AUDIT if was_audited else flow.verdict
            result.append(flow._replace(verdict=verdict, new=row.packets, ago=row.ago, open=open_))
    for key, count in counts.items():
        if reader.end(key[0]).service or reader.end(key[1]).service:
            result.append(reader.flow(key, True)._replace(open=count))
    result = _merged(result)
    return sorted(result, key=lambda f: (f.from_.name, f.to.name, f.port, f.proto, f.passes, f.id))


def _added(flow: Flow, other: Flow) -> Flow:
    ages = [ago for ago in (flow.ago, other.ago) if ago is not None]
    return flow._replace(
        new=flow.new + other.new,
        open=flow.open + other.open,
        ago=min(ages, default=None),
        agrees=flow.agrees and other.agrees,
    )


def _merged(flows: Iterable[Flow]) -> list[Flow]:
    merged: dict[tuple[Key, str, bool, str | None], Flow] = {}
    for flow in flows:
        # a flow that was dropped both directly and by a policy is listed twice
        key = flow.id, flow.verdict, flow.was_dropped, flow.words if flow.was_dropped else None
        other = merged.get(key)
        merged[key] = flow if other is None else _added(flow, other)
    return list(merged.values())


def lately(flows: Iterable[Flow], since: float | None) -> list[Flow]:
    """Return the flows that are open or began after the Unix time ``since`` (None: all flows)."""
    if since is None:
        return list(flows)
    oldest = time.time() - since
    return [f for f in flows if f.open or (f.ago is not None and f.ago <= oldest)]


def changes(before: Iterable[Flow], after: Iterable[Flow]) -> list[Flow]:
    """Return the flows that began between two readings, oldest first.

    In the result, the field ``new`` counts only flows that began between the readings.
    """
    counted = {(flow.id, flow.verdict): flow.new for flow in before}
    fresh = (
        flow._replace(new=grown)
        for flow in after
        if (grown := more(counted.get((flow.id, flow.verdict), 0), flow.new))
    )
    return sorted(fresh, key=lambda flow: -(flow.ago or 0.0))


def more(before: int, now: int) -> int:
    """Return a counter's growth. A counter that is lower than before has restarted at 0."""
    return now - before if now >= before else now


def times(ago: float | None) -> tuple[str | None, float | None]:
    """Convert an event's age in seconds to (time in RFC 3339, rounded age), or (None, None)."""
    return (None, None) if ago is None else (exact_time_text(time.time() - ago), round(ago, 3))


def published(
    context: PolicyContext, service: str, proto: str, port: int, family: int
) -> int | None:
    """Return the host port by which other machines reach a port of a service, or None."""
    return published_at(
        mappings(context.services.get(names.owner(service)), proto, port), port, family
    )


def published_at(
    ports: Iterable[PortMapping], port: int, family: int, host: str = ""
) -> int | None:
    """Return the host port that leads to a port of a service, or None. ``ports`` are the ports that
    publish the service's port. ``host`` is the source address if a program of the host connected.
    """
    found = [
        (mapping.is_wide, mapping.host_port + port - mapping.container_port)
        for mapping in ports
        if family in mapping.families
        and (mapping.is_wide or mapping.host_ip.startswith("127.") == host.startswith("127."))
    ]
    return min(found, default=(True, None))[1]


def mappings(known: KnownService | None, proto: str, port: int) -> list[PortMapping]:
    """Return the published ports or ranges of ports that lead to a given port of a service."""
    return [
        mapping
        for mapping in (known.ports if known else ())
        if mapping.proto == proto and 0 <= port - mapping.container_port < mapping.count
    ]


def closed(
    context: PolicyContext,
    source: str,
    destination: str,
    proto: str,
    port: int | None,
    across: bool = False,
) -> Reason | None:
    """Return why no packet can get from an address to a port of another address, or None if packets
    can.

    Considers networks and published ports, but not policies. Recorded flows have the addresses
    after DNAT, so a flow from another machine is assumed to use a published port. With ``across``,
    a flow between services on different networks is assumed to use a published port too.
    """
    path = decide(context, source, destination, port, proto).path
    sender, receiver = (holder_of(context, end) for end in (source, destination))
    if path.passes or receiver is None or not receiver[0].active or port is None:
        return None if path.passes else path
    if sender is not None:
        inside = context.networks[sender[1]].internal or not sender[0].active
        if inside or not across:
            return path
    host_port = published(context, receiver[0].name, proto, port, family_of(destination))
    return path if host_port is None else None


def refusal(
    context: PolicyContext,
    source: str,
    destination: str,
    proto: str,
    port: int | None,
    direct: bool,
) -> Reason | None:
    """Return the first check, in the kernel's order, that drops a packet, or None.

    The addresses are those after DNAT. With ``direct``, another machine sent the packet to the
    address of a service, which is refused even if the service publishes the port.
    """
    if direct:
        path = decide(context, source, destination, port, proto).path
        return None if path.passes else path
    by_path = closed(context, source, destination, proto, port)
    sender = holder_of(context, source)
    if sender and not sender[0].active:  # but it was active when its packet was dropped
        then = {**context.services, sender[0].name: sender[0]._replace(active=True)}
        context = context._replace(services=then)
        by_path = closed(context, source, destination, proto, port) or by_path
    policies = evaluate(context, source, destination, port, proto)
    denied = next((reason for reason in policies if not reason.passes), None)
    # of the rules before the policies, only those in these chains record what they drop
    rule = by_path and not by_path.is_late and by_path.rule
    is_first = rule and rule[1] in ("forward", "input")
    return by_path if is_first else denied or by_path


def read(
    kernel: Kernel,
    store: Store,
    since: float | None = None,
    with_open: bool = True,
    instances: bool = False,
) -> tuple[PolicyContext, list[Flow], Memory]:
    """Return the policies, the recorded flows with names, and the `Memory` of the flows.

    If ``since`` (Unix time) is given, only flows that are open or began later are returned. With
    ``instances``, flows of instances (replicas) are listed separately.
    """
    context = read_world(kernel, store)
    memory = remembered(kernel, context, with_open)
    reader = FlowReader(context, instances)
    return context, lately(joined(context, memory, reader), since), memory


# --- niso net flows -------------------------------------------------------------------------------


class Flows(ResultStream):
    """An endless iterator of new flows (`Flow`). Use it in a ``with`` block."""

    def __init__(self, session: Session, name: str | None, denied: bool, instances: bool) -> None:
        self.session = session
        self._service = None if name is None else _home(session.store(), name)
        self._denied, self._instances = denied, instances or _is_instance(self._service)
        self._before = self._read()

    def __iter__(self) -> Iterator[Flow]:
        while True:
            time.sleep(1)
            yield from self.read()

    def read(self) -> tuple[Flow, ...]:
        """Return the flows recorded after the last call, oldest first, without waiting."""
        before, self._before = self._before, self._read()
        return _chosen(changes(before, self._before), self._service, self._denied)

    def _read(self) -> list[Flow]:
        kernel, store = self.session.kernel(), self.session.store()
        return read(kernel, store, with_open=False, instances=self._instances)[1]


def flows(
    session: Session, name: str | None, denied: bool, since: float | None, instances: bool
) -> tuple[Flow, ...]:
    """List the recorded flows, as described in `Host.flows`. ``since`` is a Unix time."""
    store = session.store()
    service = None if name is None else _home(store, name)
    instances = instances or _is_instance(service)
    context, found, memory = read(session.kernel(), store, since, instances=instances)
    for text, hints in left_out(memory, FlowReader(context, instances)):
        session.caution(text, hints)
    return _chosen(found, service, denied)


def forget(session: Session, name: str | None, denied: bool) -> None:
    """Delete recorded flows, as described in `Host.forget_flows`."""
    store = session.store()
    sets = policy_rules.DENIED if denied else tuple(policy_rules.SIZES)
    if name is None:
        flow_memory.forget_all(sets)
    else:
        homes = (_home(store, name), *store.instances.running(_home(store, name)))
        addresses = {address for home in homes for _, address in store.addresses(home)}
        session.kernel().forget_flows(addresses, sets)


def _home(store: Store, name: str) -> str:
    """Return the service that owns the network namespace and addresses of a given service. Raises
    Error if this namespace has no addresses.
    """
    home = store.home(store.resolve(name))
    row = store.service(home)
    whose = name if home == name else f"{name} shares the network of {home}, which"
    if row is not None and row.mode == "host":
        raise Error(f"{whose} has mode host: its flows are those of host", "niso net flows")
    if row is not None and row.mode == "none":
        raise Error(f"{whose} has mode none: it has only a loopback interface", "niso net flows")
    return home


def _is_instance(service: str | None) -> bool:
    return service is not None and names.owner(service) != service


def _chosen(flows: Iterable[Flow], service: str | None, denied: bool) -> tuple[Flow, ...]:
    chosen = []
    for flow in flows:
        # if instances are listed separately, a service has the flows of its instances
        is_own = service is None or service in {*flow.services, *map(names.owner, flow.services)}
        if is_own and not (denied and flow.passes and not flow.audited):
            last, ago = times(flow.ago)
            chosen.append(flow._replace(last=last, ago=ago))
    return tuple(chosen)


# --- flows for metrics ----------------------------------------------------------------------------

OUTSIDE = "outside"  # the name for all addresses that belong neither to a service nor to the host


Total = tuple[str, str, int, str, str]  # source, destination, port, protocol and verdict of flows


def totals(
    context: PolicyContext, memory: Memory, limit: int
) -> tuple[list[tuple[Total, int]], int]:
    """Count flows by the names of source and destination, port, protocol and verdict.

    Returns the ``limit`` highest counts, and the number of counts that were left out.
    """
    reader = FlowReader(context)

    def name(address: str) -> str:
        end = reader.end(address)
        return end.name if end.is_known else OUTSIDE

    counts: dict[Total, int] = {}
    for verdict, row in memory.by_verdict():
        word = DROP if verdict == DIRECT else verdict
        key = (name(row.source), name(row.destination), row.port, row.proto, word)
        counts[key] = counts.get(key, 0) + row.packets
    # break ties by name, so that two queries of the same flows choose the same totals
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return sorted((key, counts[key]) for key in ranked[:limit]), len(ranked[limit:])
