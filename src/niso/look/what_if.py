"""Evaluate flows under policies that are not active, and find manifest lines that allow a flow.

These functions read and change nothing on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from niso.base.named_tuples import NamedTuple
from niso.base.names import bracketed, family_of
from niso.look import flows
from niso.look.flows import Flow, FlowEnd
from niso.plan import verdict
from niso.plan.records import Entry, Peer, Policy
from niso.plan.verdict import PolicyContext, Reason

CUT, AUDIT, NEW, PASS = "cut", "audit", "new", "pass"
"""The effects of a change of policies on a flow.

``cut``: the flow passes now and would be denied. ``audit``: the new policy denies the flow, but the
policy is in audit, so the flow passes. ``new``: the flow was denied and would pass. ``pass``: the
flow passes now and would still pass.
"""


class PolicyEffect(NamedTuple):
    """The effect of a change of policies on flows from one address to a port of another."""

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
    """Return the effects on flows if services and policies change, cut flows first.

    ``seen`` are flows with their verdicts under ``before``. A flow between services that are not in
    ``services`` is listed only if the change affects it. Flows that are still denied are left out.
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
    """Return the reason for the verdict on a flow after a change, or None if no policy decides."""
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


def _network(world: PolicyContext, end: FlowEnd) -> str:
    """Return the network of a flow's end, or "" if the end is not a service."""
    if not end.service:
        return ""
    endpoints = world.services[end.service].endpoints
    return next((e.network for e in endpoints if end.address in e.addresses), "")


def _by_port(before: PolicyContext, seen: Flow) -> bool:
    """Return whether a flow must have come through a published port.

    This is so if the flow comes from another network, or from an address of the host that is not
    the gateway's. Programs of the host connect to a service from the gateway's address, unless they
    bind another address.
    """
    network = _network(before, seen.to)
    if not network:
        return False
    if seen.from_.is_host:
        return seen.from_.address not in verdict.gateways(before.networks[network])
    return _network(before, seen.from_) not in ("", network)


def _address(after: PolicyContext, end: FlowEnd, network: str) -> str | None:
    """Return the address of a flow's end after a change.

    For a service, this is its address on ``network``, or None if it has none there.
    """
    if not end.service:
        return end.address
    return next((address for on, address in _addresses(after, end) if on == network), None)


def _addresses(after: PolicyContext, end: FlowEnd) -> list[tuple[str, str]]:
    """Return the networks of an active service, each with its address of the same IP version."""
    known = after.services.get(end.service or "")
    return [
        (endpoint.network, address)
        for endpoint in (known.endpoints if known and known.active else ())
        for address in endpoint.addresses
        if family_of(address) == family_of(end.address)
    ]


def _moved(after: PolicyContext, seen: Flow, by_port: bool) -> tuple[str, str] | None:
    """Return the addresses that a flow can use if one end has left its network, or None.

    Two services use a network of both. Otherwise the first network of the service is used.
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


def _publishes(world: PolicyContext, seen: Flow) -> bool:
    """Return whether a flow's destination publishes the flow's port at the host port it used."""
    used, family = seen.published, family_of(seen.from_.address)
    return any(
        family in port.families and used in (None, port.host_port + seen.port - port.container_port)
        for port in flows.mappings(world.services.get(seen.to.service or ""), seen.proto, seen.port)
    )


# --- manifest changes that let a denied flow pass -------------------------------------------------

_MOST = 8  # The maximum number of changes to suggest. A flow that needs more is denied on purpose.
Name = Callable[[str, str], str | None]
"""Returns the name by which a service's policy (first argument) refers to another service."""


class MapChange(NamedTuple):
    """A change of one policy entry. All suggested changes together allow a denied flow."""

    service: str  # the service whose manifest changes
    key: str  # key of the manifest
    text: str  # the entry
    adds: bool  # true to add the entry, false to remove it


def changes(world: PolicyContext, seen: Flow, name: Name) -> tuple[MapChange, ...]:
    """Return the manifest changes that allow a denied flow, and only its port and protocol.

    A flow that passes only because of an audit counts as denied. The result is empty if no network
    or published port connects both ends, or if a service at one end no longer exists.
    """
    if (seen.passes and not seen.audited) or seen.gone:
        return ()
    needed: list[MapChange] = []
    ends = (seen.from_.address, seen.to.address)
    while True:
        reasons = verdict.evaluate(world, *ends, seen.port, seen.proto)
        refusing = next((reason for reason in reasons if not reason.passes or reason.audits), None)
        if refusing is None:
            break
        change, entry = _change(refusing, seen, name)
        policy = _changed(world.services[change.service].policy, change, entry)
        if policy is None or len(needed) == _MOST:
            return ()
        needed.append(change)
        known = world.services[change.service]._replace(policy=policy)
        world = world._replace(services={**world.services, change.service: known})
    is_closed = flows.closed(world, *ends, seen.proto, seen.port) is not None
    return () if is_closed else tuple(needed)


def _change(refusing: Reason, seen: Flow, name: Name) -> tuple[MapChange, Entry | None]:
    """Return the change that removes one reason for denial, and the entry to add, if any."""
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
