"""Show what each policy entry has allowed, find likely mistakes, and evaluate proposed policies.

Likely mistakes are names that no service has, name servers that a policy denies, and audits that
end soon. Despite a mistake, the kernel's state is as the manifests declare, so `niso net check`
only warns.

The functions at the end evaluate flows under policies that are not active, and find manifest lines
that allow a flow. These functions read and change nothing on the host.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, family_of, owner
from niso.base.text import exact_time_text, local_time_text, period_text
from niso.kernel import policy_rules, ruleset
from niso.kernel.nft_elements import HEADERS, Atoms, Nfnetlink
from niso.kernel.policy_rules import PASSES
from niso.kernel.ruleset import INET
from niso.look import flows
from niso.look.flows import Flow, FlowEnd
from niso.look.learn import watched_s
from niso.look.session import Session
from niso.plan import verdict
from niso.plan.records import METADATA_WORD, OUTSIDE, Entry, Peer, Policy
from niso.plan.verdict import PolicyContext, Reason
from niso.reconcile import live_world
from niso.reconcile.live_world import read_world
from niso.store.policy_rows import suggest
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel

    _Count = tuple[int, float | None, Atoms]  # packets, seconds since the last, the element's key


class PolicyEntry(NamedTuple):
    """One entry of a service's policy, or the default for packets that match no entry of a list."""

    service: str  # name of the service
    key: str  # key of the manifest; without an index for the list's default
    text: str | None  # the entry; null for the list's default
    passes: bool  # whether the entry allows packets
    packets: int  # flows that the entry decided on since the policy's last change
    open: int  # flows that the entry allows and that are open now
    last: str | None  # when the last new flow began; null if over a week ago
    ago: float | None  # seconds since the last new flow began
    note: str  # addresses of a DNS name, a narrower form of the entry, or the audit; can be empty
    audited: bool  # whether the entry denies, but packets pass because the policy is in audit mode


def show(session: Session, name: str, unused_s: float | None) -> tuple[PolicyEntry, ...]:
    """Return the entries of a service's policy, with the number and time of their uses.

    If ``unused_s`` is given, only entries that were unused for this many seconds are returned.
    """
    store = session.store()
    service = owner(store.home(store.resolve(name)))
    policy = store.policy(service)
    if policy is None:
        return ()
    until, in_audit = live_world.terms(store).get(service, (0, False))
    listed = {entry.key: entry.text for entry in policy.entries()}
    outside = {e.key: e.peer.name for e in policy.entries() if e.peer.kind == "outside"}
    counts, passing = _counted(service, policy)
    used = _used(session, service)
    row = store.service(service)
    watched = None if row is None else watched_s(row)
    if unused_s is not None and watched is not None and watched < unused_s:
        text = f"{service} has been watched for {period_text(watched)}: what is rarer was not seen"
        session.caution(text, [])
    result = []
    for key, its in counts.items():
        ages = [seconds for _, seconds, _ in its if seconds is not None]
        open_, remembered = used.get(key, (0, None))
        ago = min([*ages, *([] if remembered is None else [remembered])], default=None)
        needed = open_ or (unused_s is not None and ago is not None and ago < unused_s)
        if unused_s is not None and (key not in listed or needed):
            continue
        last = None if ago is None else exact_time_text(time.time() - ago)
        note = ", ".join(store.outside.resolved(outside[key])) if key in outside else ""
        note = note or _narrower(listed.get(key), its)
        audited = in_audit and key not in passing
        note = note or (f"audit until {_end_text(until)}" if audited else "")
        decided = (key in passing, sum(packets for packets, _, _ in its), open_)
        result.append(
            PolicyEntry(service, key, listed.get(key), *decided, last, ago, note, audited)
        )
    return tuple(result)


def _counted(service: str, policy: Policy) -> tuple[dict[str, list[_Count]], set[str]]:
    """Return {manifest key: counters} of a policy's entries, and the keys that allow packets."""
    listed = {entry.key for entry in policy.entries()}
    passing = {e.key for e in (*(policy.allow_from or ()), *(policy.egress_allow or ()))}
    counts: dict[str, list[_Count]] = {entry.key: [] for entry in policy.entries()}
    if policy.allow_from is not None:
        counts["network.policy.allow_from"] = []
    if policy.egress_allow is not None:
        counts["network.policy.egress.allow"] = []
    with Nfnetlink() as kernel:
        for container in sorted(ruleset.COUNTED):
            for element, packets, ago in kernel.counts(HEADERS[INET, container]):
                key = element.entry
                if owner(element.owner) != service or key not in counts:
                    continue
                counts[key].append((packets, ago, element.fields))
                if key not in listed and element.value == PASSES:
                    passing.add(key)
    return counts, passing


def _used(session: Session, service: str) -> dict[str, tuple[int, float | None]]:
    """Return {manifest key of a policy entry: (open flows, seconds since the last flow or None)}.
    Both numbers come from the recorded flows, not from the counters of policy elements, which
    restart at 0 when the policy or an address changes.
    """
    context = read_world(session.kernel(), session.store())
    memory = flows.remembered(session.kernel(), context)
    own = {
        address
        for known in context.services.values()
        if known.owner == service
        for address in verdict.addresses_of(known)
    }

    passed, refused = (
        tuple(row for row in rows if not own.isdisjoint(row[:2]))
        for rows in (memory.passed, memory.refused)
    )
    opened = {key: count for key, count in memory.opened.items() if not own.isdisjoint(key[:2])}
    memory = memory._replace(passed=passed, refused=refused, opened=opened)
    ever = context._replace(outside=context.outside_ever)
    used: dict[str, tuple[int, float | None]] = {}
    for flow in flows.joined(context, memory):
        if flow.gone or not flow.agrees:
            continue
        # for a flow that passed, the policies of both ends have decided
        both = verdict.evaluate(ever, *flow.id[:2], flow.port, flow.proto)
        for own_key in [r.key for r in (both if flow.passes else (flow,)) if r.service == service]:
            if own_key:
                count, ago = used.get(own_key, (0, None))
                ages = [age for age in (ago, flow.ago) if age is not None]
                used[own_key] = count + flow.open, min(ages, default=None)
    return used


def _narrower(text: str | None, counts: Iterable[_Count]) -> str:
    """Return a suggestion to limit an entry to the only protocol that was used, or ""."""
    if text is None or "/" in text.rpartition(":")[2] or ":" not in text:
        return ""
    used = set()
    for packets, _, fields in counts:
        if packets:
            used |= {field for field in fields if field in ("tcp", "udp", "sctp")} or {""}
    return f'"{text}/{used.pop()}" would do' if len(used) == 1 and "" not in used else ""


# --- likely mistakes ------------------------------------------------------------------------------

_DNS = 53

Warning_ = tuple[str, str]  # the text of a warning, and the next step


def warnings(kernel: Kernel, store: Store, services: Iterable[str]) -> Iterator[Warning_]:
    """Yield a warning for each likely mistake in policies of these services. Raises KernelError."""
    terms = live_world.terms(store)
    context: PolicyContext | None = None  # read once, and only if a policy needs it
    for name in services:
        policy = store.policy(name)
        if policy is None or owner(name) != name:  # instances have the policy of their service
            continue
        if name in terms:
            yield _audit(name, *terms[name])
        yield from _unknown(store, name, policy)
        yield from _wider_than_outside(store, name, policy)
        if policy.egress_allow is not None or policy.egress_deny:
            servers = _servers(store.service(name))
            if servers and context is None:
                context = read_world(kernel, store)
            if servers and context is not None:
                yield from _without_dns(store, context, name, policy, servers)


def _audit(name: str, until: int, lasts: bool) -> Warning_:
    if lasts:
        return (
            f"audit: the policy of {name} denies nothing until {_end_text(until)}",
            f'niso net flows {name} --denied shows what it would deny; mode = "enforce" ends it',
        )
    return (
        f"the audit of the policy of {name} has ended",
        "niso net repair enforces it if the clock was set;"
        ' mode = "enforce" or a later audit_until ends this warning',
    )


def _end_text(until: int) -> str:
    """Return the end of an audit as words that can follow "until" in a message."""
    return "the manifest ends it" if until == policy_rules.NEVER else local_time_text(until)


def _wider_than_outside(store: Store, name: str, policy: Policy) -> Iterator[Warning_]:
    """Yield a warning for each entry that allows every address to use a published port."""
    for entry in policy.allow_from or ():
        prefix = entry.peer.name if entry.peer.kind == "prefix" else ""
        is_published = any(
            entry.first <= port.container_port + port.count - 1
            and port.container_port <= entry.last
            for _, port in store.ports(name)
        )
        if prefix.endswith("/0") and is_published:
            head = bracketed(prefix) if ":" in prefix else prefix
            text = entry.text.replace(head, OUTSIDE.name, 1).replace(prefix, OUTSIDE.name, 1)
            yield (
                f"{name}: {entry.key} ({entry.text!r}) allows every service too",
                f'"{text}" allows only other machines',
            )


def _unknown(store: Store, name: str, policy: Policy) -> Iterator[Warning_]:
    for entry in policy.entries():
        peer = entry.peer
        if peer == Peer("service", METADATA_WORD) and entry in policy.egress_deny:
            continue  # this word means addresses, not a service
        if peer.kind == "service" and not store.resolved(name, peer.name)[1]:
            known = sorted({service for service, _, _ in store.service_names()} - {name})
            what = f"no service is called {peer.name!r}"
        elif peer.kind == "network" and store.network(peer.name) is None:
            known = store.network_names()
            what = f"there is no network {peer.name!r}"
        else:
            continue
        hint = suggest(peer.name, known, "it matches as soon as there is one")
        yield f"{name}: {entry.key} ({entry.text!r}) matches nobody: {what}", hint


def _without_dns(
    store: Store, context: PolicyContext, name: str, policy: Policy, servers: Iterable[str]
) -> Iterator[Warning_]:
    """Yield a warning for each of a service's name servers that its egress policy denies.

    No warning is needed if the policy allows only services, niso's networks and DNS names. The
    service's hosts file contains all these names, so the service needs no name server.
    """
    own = {family_of(address): address for _, address in reversed(store.addresses(name))}
    allowed = policy.egress_allow
    if allowed is not None and all(_is_listed(context, entry) for entry in allowed):
        return
    for server in (address for address in servers if family_of(address) in own):
        reason, _ = verdict.evaluate(context, own[family_of(server)], server, _DNS, "udp")
        if reason.key and (reason.audits or not reason.passes):
            line = f'"{bracketed(server)}:{_DNS}"'
            denying = next((e for e in policy.egress_deny if e.key == reason.key), None)
            yield (
                f"{name}: network.policy.egress denies its name server {server}: names outside"
                " niso will not resolve",
                f"change {denying.key} ({denying.text!r})"
                if denying
                else f"add {line} to network.policy.egress.allow",
            )


def _is_listed(context: PolicyContext, entry: Entry) -> bool:
    """Return whether an entry consists of names in the hosts file or of niso's own prefixes."""
    if entry.peer.kind != "prefix":
        if entry.peer == OUTSIDE:
            return False
        return entry.peer.kind != "prefixes"  # a manifest cannot contain this kind
    prefix = ipaddress.ip_network(entry.peer.name)
    network = verdict.network_of(context, str(prefix.network_address))
    return network is not None and verdict.contains(network, str(prefix.broadcast_address))


def _servers(row: ServiceRow | None) -> list[str]:
    spec = row.process if row is not None and row.has_process else None
    servers = []
    for line in (spec.resolv_conf if spec is not None else "").splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                servers.append(str(ipaddress.ip_address(words[1])))
            except ValueError:  # an address with a zone
                continue
    return servers


# --- what another policy would allow or deny ------------------------------------------------------


CUT, AUDIT, NEW, PASS = "cut", "audit", "new", "pass"
"""The effects of a change of policies on a flow.

``cut``: the flow passes now and would be denied. ``audit``: the new policy denies the flow, but is
in audit mode, so the flow passes. ``new``: the flow was denied and would pass. ``pass``: the flow
passes now and would still pass.
"""


class PolicyEffect(NamedTuple):
    """The effect of a policy change on flows from one address to a port of another."""

    effect: str  # cut, pass, new (was denied, would pass) or audit (passes only due to the audit)
    from_: FlowEnd  # source of the flows
    to: FlowEnd  # destination of the flows
    port: int  # port of the destination
    proto: str  # tcp, udp or sctp
    service: str | None  # the service whose policy would decide
    key: str | None  # the key of the policy entry in the manifest
    text: str | None  # the policy entry that would decide
    words: str | None  # the reason for the verdict
    new: int  # number of new flows in the last week
    ago: float | None  # seconds since the last new flow began
    open: int  # number of flows that are open now


def effects(
    before: PolicyContext, after: PolicyContext, seen: Iterable[Flow], services: frozenset[str]
) -> list[PolicyEffect]:
    """Return the effect of new services and policies on recorded flows. Cut flows come first.

    The verdicts in ``seen`` are those under ``before``. Flows of ``services`` are always listed,
    and other flows only if the change affects them. Flows that remain denied are left out.
    """
    result = []
    for flow in seen:
        reason = _reason(before, after, flow)
        denied = reason is not None and not reason.passes
        if flow.passes and flow.agrees:
            if not (denied or services & flow.services):
                continue
            kind = CUT if denied else AUDIT if reason is not None and reason.audits else PASS
        # only a flow that a policy denied: a changed policy cannot open a closed path
        elif not flow.passes and flow.agrees and not denied and flow.key:
            kind = NEW
        else:
            continue
        own = reason or Reason(True, "")
        result.append(
            PolicyEffect(
                kind,
                *flow[:4],  # both ends, port and protocol
                own.service or None,
                own.key or None,
                own.text or None,
                own.message or None,
                flow.new,
                flows.times(flow.ago)[1],
                flow.open,
            )
        )
    order = (CUT, AUDIT, NEW, PASS)
    return sorted(result, key=lambda effect: order.index(effect.effect))


def _reason(before: PolicyContext, after: PolicyContext, seen: Flow) -> Reason | None:
    """Return the reason for a flow's verdict after a policy change, or None without a policy."""
    if seen.passes:
        after = after._replace(outside=after.outside_ever)
    port = seen.published
    by_port = port is not None or _by_port(before, seen)
    if by_port and _publishes(before, seen) and not _publishes(after, seen):
        text = f"port {port or seen.port} is no longer published"
        return Reason(False, text, seen.to.service or "")
    source, destination = (
        _address(after, end, _network(before, end)) for end in (seen.from_, seen.to)
    )
    if source is None or destination is None:
        moved = _moved(after, seen, by_port)
        if moved is None:
            end = seen.from_ if source is None else seen.to
            return Reason(False, f"{end.service} has no address for it any more")
        source, destination = moved
        if not by_port:
            path = verdict.decide(after, source, destination, seen.port, seen.proto).path
            if not path.passes:
                return path
    judged = verdict.evaluate(after, source, destination, seen.port, seen.proto)
    refusing = next((reason for reason in judged if not reason.passes), None)
    if refusing is None and not seen.passes:  # a change of policies opens no path
        refusing = flows.closed(after, source, destination, seen.proto, seen.port, across=True)
    refusing = refusing or next((reason for reason in judged if reason.audits), None)
    return refusing or next((reason for reason in reversed(judged) if reason.key), None)


def _network(context: PolicyContext, end: FlowEnd) -> str:
    if not end.service:
        return ""
    endpoints = context.services[end.service].endpoints
    return next((e.network for e in endpoints if end.address in e.addresses), "")


def _by_port(before: PolicyContext, seen: Flow) -> bool:
    """Return whether a flow must have come through a published port.

    This is true for flows from another network, and for flows from an address of the host that is
    not the gateway's. Programs of the host connect to a service from the gateway's address by
    default.
    """
    network = _network(before, seen.to)
    if not network:
        return False
    if seen.from_.is_host:
        return seen.from_.address not in verdict.gateways(before.networks[network])
    return _network(before, seen.from_) not in ("", network)


def _address(after: PolicyContext, end: FlowEnd, network: str) -> str | None:
    if not end.service:
        return end.address
    return next((address for on, address in _addresses(after, end) if on == network), None)


def _addresses(after: PolicyContext, end: FlowEnd) -> list[tuple[str, str]]:
    """Return (network, address) pairs of an active service, in the IP version of ``end``."""
    known = after.services.get(end.service or "")
    return [
        (endpoint.network, address)
        for endpoint in (known.endpoints if known and known.active else ())
        for address in endpoint.addresses
        if family_of(address) == family_of(end.address)
    ]


def _moved(after: PolicyContext, seen: Flow, by_port: bool) -> tuple[str, str] | None:
    """Return (source, destination), the addresses that a recorded flow would have in the context
    ``after``, for example after a service has left a network. Returns None if a service has no
    address. Without ``by_port``, both addresses must be on one network. With it, the first network
    of each service is used.
    """
    if seen.from_.service and seen.to.service and not by_port:
        for network, address in _addresses(after, seen.to):
            if (from_ := _address(after, seen.from_, network)) is not None:
                return from_, address
        return None
    ends = [
        next((address for _, address in _addresses(after, end)), None)
        if end.service
        else end.address
        for end in (seen.from_, seen.to)
    ]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _publishes(context: PolicyContext, seen: Flow) -> bool:
    """Return whether a flow's destination still publishes the port that the flow used."""
    used, family = seen.published, family_of(seen.from_.address)
    return any(
        family in port.families and used in (None, port.host_port + seen.port - port.container_port)
        for port in flows.mappings(
            context.services.get(seen.to.service or ""), seen.proto, seen.port
        )
    )


# --- manifest changes that let a denied flow pass -------------------------------------------------

_MOST = 8  # The maximum number of changes to suggest. A flow that needs more is denied on purpose.
Name = Callable[[str, str], str | None]
"""Returns the name by which a service's policy (first argument) refers to another service."""


class MapChange(NamedTuple):
    """A change of one policy entry. Several changes together can be needed to allow a flow."""

    service: str  # the service whose manifest changes
    key: str  # key of the manifest
    text: str  # the entry
    adds: bool  # true to add the entry, false to remove it


def changes(context: PolicyContext, seen: Flow, name: Name) -> tuple[MapChange, ...]:
    """Return the manifest changes that allow a denied flow, but no other port or protocol.

    A flow that passes only because of an audit counts as denied. The result is empty if no network
    or published port connects source and destination, or if the service of one of them no longer
    exists.
    """
    if (seen.passes and not seen.audited) or seen.gone:
        return ()
    needed: list[MapChange] = []
    ends = (seen.from_.address, seen.to.address)
    while True:
        reasons = verdict.evaluate(context, *ends, seen.port, seen.proto)
        refusing = next((reason for reason in reasons if not reason.passes or reason.audits), None)
        if refusing is None:
            break
        change, entry = _change(refusing, seen, name)
        policy = _changed(context.services[change.service].policy, change, entry)
        if policy is None or len(needed) == _MOST:
            return ()
        needed.append(change)
        known = context.services[change.service]._replace(policy=policy)
        context = context._replace(services={**context.services, change.service: known})
    is_closed = flows.closed(context, *ends, seen.proto, seen.port) is not None
    return () if is_closed else tuple(needed)


def _change(refusing: Reason, seen: Flow, name: Name) -> tuple[MapChange, Entry | None]:
    """Return the change that removes one reason for a denial, and its new entry or None."""
    key = refusing.key
    if key.endswith("]"):
        return MapChange(refusing.service, key, refusing.text, False), None
    end = seen.to if key == "network.policy.egress.allow" else seen.from_
    called = name(refusing.service, end.service) if end.service else None
    if end.service and called is not None:
        peer = Peer("service", end.service)
    else:
        length = 32 if family_of(end.address) == 4 else 128
        peer, called = Peer("prefix", f"{end.address}/{length}"), bracketed(end.address)
    text = f"{called}:{seen.port}/{seen.proto}"
    entry = Entry(key, text, peer, seen.port, seen.port, seen.proto)
    return MapChange(refusing.service, key, text, True), entry


def _changed(policy: Policy, change: MapChange, entry: Entry | None) -> Policy | None:
    key = change.key.partition("[")[0]

    def after(own: str, entries: tuple[Entry, ...] | None) -> tuple[Entry, ...] | None:
        if own != key:
            return entries
        kept = tuple(one for one in entries or () if one.key != change.key)
        return kept if entry is None else (*(entries or ()), entry)

    changed = policy._replace(
        allow_from=after("network.policy.allow_from", policy.allow_from),
        deny_from=after("network.policy.deny_from", policy.deny_from) or (),
        egress_allow=after("network.policy.egress.allow", policy.egress_allow),
        egress_deny=after("network.policy.egress.deny", policy.egress_deny) or (),
    )
    return None if changed == policy else changed
