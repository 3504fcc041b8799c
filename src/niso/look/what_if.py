"""Evaluate flows under policies that are not active; find manifest lines that allow a flow. Pure.

Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from niso.base.named_tuples import NamedTuple
from niso.base.names import bracketed, family_of
from niso.look import flows
from niso.look.flows import End, Seen
from niso.plan import verdict
from niso.plan.records import Entry, Peer, Policy
from niso.plan.verdict import Reason, World

# --- flows under another policy -------------------------------------------------------------------


CUT, AUDIT, NEW, PASS = "cut", "audit", "new", "pass"
"""Effects of a change on a flow. ``cut``: it passes now and would not.

``audit``: it would be denied, but the policy is in audit. ``new``: it was denied and would pass.
``pass``: it passes as before.
"""


class Effect(NamedTuple):
    """The effect of a change on flows. ``reason`` is what decides after the change."""

    kind: str
    seen: Seen
    reason: Reason | None


def effects(
    before: World, after: World, seen: Iterable[Seen], services: frozenset[str]
) -> list[Effect]:
    """Return the effects of a change between two worlds on flows; cut flows first.

    ``seen`` are the flows joined with the world before. Flows without one of ``services`` as an end
    are listed only if the change affects them. A flow that once passed and is denied already is
    left out.
    """
    result = []
    for flow in seen:
        is_own = not services.isdisjoint({flow.source.service, flow.destination.service})
        reason = _reason(before, after, flow)
        denied = reason is not None and not reason.passes
        audited = reason is not None and reason.audits
        if flow.passes and flow.agrees:
            if denied or is_own:
                kind = CUT if denied else AUDIT if audited else PASS
                result.append(Effect(kind, flow, reason))
        elif not flow.passes and flow.agrees and not denied and _was_denied(flow):
            result.append(Effect(NEW, flow, reason))
    order = (CUT, AUDIT, NEW, PASS)
    return sorted(result, key=lambda effect: order.index(effect.kind))


def _was_denied(seen: Seen) -> bool:
    """Return whether a policy denied the flow; a changed policy cannot open a closed path."""
    return seen.reason is not None and bool(seen.reason.key)


def _reason(before: World, after: World, seen: Seen) -> Reason | None:
    """Return what decides about a flow after the change; None if no policy concerns it.

    For a flow that passed, an outside name has all the addresses that it had at the time.
    """
    if seen.passes:
        after = after._replace(outside=after.outside_ever)
    port = seen.published
    by_port = port is not None or _by_port(before, seen)
    if by_port and _publishes(before, seen) and not _publishes(after, seen):
        number = port.host_port if port else seen.port
        return Reason(False, f"port {number} is no longer published", seen.destination.service)
    source, destination = (_address(before, after, e) for e in (seen.source, seen.destination))
    if source is None or destination is None:
        moved = _moved(after, seen, by_port)
        if moved is None:
            end = seen.source if source is None else seen.destination
            return Reason(False, f"{end.service} has no address for it any more")
        source, destination = moved
        if not by_port:
            path = verdict.decide(after, source, destination, seen.port, seen.proto).path
            if not path.passes:
                return path
    judged = verdict.judge(after, source, destination, seen.port, seen.proto)
    refusing = next((reason for reason in judged if not reason.passes), None)
    if refusing is None and not seen.passes:  # a change of policies opens no path
        refusing = flows.closed(after, source, destination, seen.proto, seen.port, across=True)
    refusing = refusing or next((reason for reason in judged if reason.audits), None)
    return refusing or next((reason for reason in reversed(judged) if reason.key), None)


def _network(world: World, end: End) -> str:
    """Return the network on which a service has the end's address; "" for other ends."""
    if not end.service:
        return ""
    endpoints = world.services[end.service].endpoints
    return next((e.network for e in endpoints if end.address in e.addresses), "")


def _by_port(before: World, seen: Seen) -> bool:
    """Return whether a flow must have come through a published port.

    So it did if it is from a service of another network, or from the host with an address other
    than the gateway's: a program of the host that connects to a service directly has the gateway's
    address, unless it chooses another.
    """
    network = _network(before, seen.destination)
    if not network:
        return False
    if seen.source.is_host:
        return seen.source.address not in verdict.gateways(before.networks[network])
    return _network(before, seen.source) not in ("", network)


def _address(before: World, after: World, end: End) -> str | None:
    """Return the end's address on the same network after the change; None if it has none there."""
    if not end.service:
        return end.address
    return _on(after, end, _network(before, end))


def _on(after: World, end: End, network: str) -> str | None:
    """Return a service's address on a network, in the family of the end; None if it has none."""
    for on, address in _addresses(after, end):
        if on == network:
            return address
    return None


def _addresses(after: World, end: End) -> list[tuple[str, str]]:
    """Return (network, address) pairs of an active service, in its order, in the end's family."""
    known = after.services.get(end.service)
    family = family_of(end.address)
    return [
        (endpoint.network, address)
        for endpoint in (known.endpoints if known and known.active else ())
        for address in endpoint.addresses
        if family_of(address) == family
    ]


def _moved(after: World, seen: Seen, by_port: bool) -> tuple[str, str] | None:
    """Return the addresses that a flow can use after an end has left its network; None if none.

    Services use a network that they share; all others, and flows through published ports, use the
    first network of the service.
    """
    source, destination = seen.source, seen.destination
    if source.service and destination.service and not by_port:
        for network, address in _addresses(after, destination):
            from_ = _on(after, source, network)
            if from_ is not None:
                return from_, address
        return None
    ends = []
    for end in (source, destination):
        its = [address for _, address in _addresses(after, end)] if end.service else [end.address]
        ends.append(next(iter(its), None))
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _publishes(world: World, seen: Seen) -> bool:
    """Return whether the service publishes the flow's port.

    If the host port that the flow used is known, it must be the same one.
    """
    used, family = seen.published, family_of(seen.source.address)
    known = world.services.get(seen.destination.service)
    return any(
        port.proto == seen.proto
        and port.container_port <= seen.port < port.container_port + port.count
        and family in port.families
        and (used is None or used.host_port == port.host_port + seen.port - port.container_port)
        for port in (known.ports if known else ())
    )


# --- manifest changes that let a denied flow pass -------------------------------------------------


_MOST = 8
"""The most changes to suggest: a flow that needs more is forbidden on purpose."""
Name = Callable[[str, str], str | None]
"""Function (service, peer) -> the name by which the service's policy can mean the peer, or None."""


class Change(NamedTuple):
    """A policy entry to add to a service's manifest, or one to remove."""

    service: str
    key: str
    text: str
    adds: bool


def changes(world: World, seen: Seen, name: Name) -> tuple[Change, ...]:
    """Return the changes that let a denied flow pass, limited to its own port and protocol.

    A flow that only passes because a policy is in audit counts as denied. The result is empty if no
    manifest line helps: the path is closed, or an end no longer exists.
    """
    if (seen.passes and not seen.audited) or seen.gone:
        return ()
    needed: list[Change] = []
    ends = (seen.source.address, seen.destination.address)
    while (refusing := _refusing(world, seen)) is not None:
        change, entry = _change(refusing, seen, name)
        policy = _changed(world.services[change.service].policy, change, entry)
        if policy is None or len(needed) == _MOST:
            return ()
        needed.append(change)
        known = world.services[change.service]._replace(policy=policy)
        world = world._replace(services={**world.services, change.service: known})
    if flows.closed(world, *ends, seen.proto, seen.port) is not None:
        return ()
    return tuple(needed)


def _refusing(world: World, seen: Seen) -> Reason | None:
    ends = (seen.source.address, seen.destination.address)
    reasons = verdict.judge(world, *ends, seen.port, seen.proto)
    return next((reason for reason in reasons if not reason.passes or reason.audits), None)


def _change(refusing: Reason, seen: Seen, name: Name) -> tuple[Change, Entry | None]:
    """Return the change that removes one refusal, and the parsed entry if the change adds one."""
    key = refusing.key
    if key.endswith("]"):
        return Change(refusing.service, key, refusing.text, False), None
    peer = seen.destination if key == "network.policy.egress.allow" else seen.source
    who, called = _peer(peer, refusing.service, name)
    text = f"{called}:{seen.port}/{seen.proto}"
    entry = Entry(key, text, who, seen.port, seen.port, seen.proto)
    return Change(refusing.service, key, text, True), entry


def _peer(end: End, service: str, name: Name) -> tuple[Peer, str]:
    called = name(service, end.service) if end.service else None
    if called is not None:
        return Peer("service", end.service), called
    length = 32 if family_of(end.address) == 4 else 128
    return Peer("prefix", f"{end.address}/{length}"), bracketed(end.address)


def _changed(policy: Policy, change: Change, entry: Entry | None) -> Policy | None:
    """Return the policy after a change; None if the change has no effect on it."""
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
