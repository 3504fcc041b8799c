"""Judge the flows that exist by policies that are not active yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import NamedTuple
from niso.plan import known_world, verdict
from niso.plan.known_world import World
from niso.plan.verdict import Reason
from niso.see import seen as seer
from niso.see.seen import End, Seen

CUT, AUDIT, NEW, PASS = "cut", "audit", "new", "pass"
"""A flow that passes now and would not; that would be denied, but by a policy in audit; that was
denied and would pass; that passes as before."""


class Effect(NamedTuple):
    """What a change means for flows. ``reason`` decides after the change."""

    kind: str
    seen: Seen
    reason: Reason | None


def effects(
    before: World, after: World, seen: Iterable[Seen], services: frozenset[str]
) -> list[Effect]:
    """Return what a change from one world to the other means for flows, those that are cut first.

    ``seen`` is joined with the world before. Flows of other than ``services`` are left out if the
    change means nothing for them. A flow that passed once and is denied already is left out.
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
    """Return whether a policy denied it; the change of one opens no path."""
    return seen.reason is not None and bool(seen.reason.key)


def _reason(before: World, after: World, seen: Seen) -> Reason | None:
    """Return what decides on a flow after the change, or None if no policy is about it.

    For one that passed, an outside name has the addresses that it had at that time.
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
        refusing = seer.closed(after, source, destination, seen.proto, seen.port, across=True)
    refusing = refusing or next((reason for reason in judged if reason.audits), None)
    return refusing or next((reason for reason in reversed(judged) if reason.key), None)


def _network(world: World, end: End) -> str:
    """Return the network that a service has an address on; "" for other ends."""
    if not end.service:
        return ""
    endpoints = world.services[end.service].endpoints
    return next((e.network for e in endpoints if end.address in e.addresses), "")


def _by_port(before: World, seen: Seen) -> bool:
    """Return whether a service of another network connects, or the host by another address.

    Only published ports let the former do so. A program of the host that connects to a service
    itself has the address of the gateway, unless it chooses another.
    """
    network = _network(before, seen.destination)
    if not network:
        return False
    if seen.source.is_host:
        return seen.source.address not in known_world.gateways(before.networks[network])
    return _network(before, seen.source) not in ("", network)


def _address(before: World, after: World, end: End) -> str | None:
    """Return the address that an end has after the change, on the same network; None without."""
    if not end.service:
        return end.address
    return _on(after, end, _network(before, end))


def _on(after: World, end: End, network: str) -> str | None:
    """Return the address of a service on a network, of the family that an end has."""
    for on, address in _addresses(after, end):
        if on == network:
            return address
    return None


def _addresses(after: World, end: End) -> list[tuple[str, str]]:
    """Return (network, address) of an active service, in its order, of the family of an end."""
    known = after.services.get(end.service)
    family = family_of(end.address)
    return [
        (endpoint.network, address)
        for endpoint in (known.endpoints if known and known.active else ())
        for address in endpoint.addresses
        if family_of(address) == family
    ]


def _moved(after: World, seen: Seen, by_port: bool) -> tuple[str, str] | None:
    """Return the addresses by which a flow can go on where an end has left its network.

    Services go by a network that they share, all others and published ports by the first one of the
    service. None if there is none.
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
    """Return whether a port leads to this one of the service: the one that was used, if known."""
    used, family = seen.published, family_of(seen.source.address)
    known = world.services.get(seen.destination.service)
    return any(
        port.proto == seen.proto
        and port.container_port <= seen.port < port.container_port + port.count
        and family in port.families
        and (used is None or used.host_port == port.host_port + seen.port - port.container_port)
        for port in (known.ports if known else ())
    )
