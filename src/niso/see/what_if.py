"""Judge the flows that exist by policies that are not active yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import NamedTuple
from niso.plan import verdict
from niso.plan.records import Port
from niso.plan.verdict import Reason, World
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
    for each in seen:
        is_own = not services.isdisjoint({each.source.service, each.destination.service})
        reason = _reason(before, after, each)
        denied = reason is not None and not reason.passes
        audited = reason is not None and reason.audits
        if each.passes and each.agrees:
            if denied or is_own:
                kind = CUT if denied else AUDIT if audited else PASS
                result.append(Effect(kind, each, reason))
        elif not each.passes and each.agrees and not denied and _was_denied(each):
            result.append(Effect(NEW, each, reason))
    order = (CUT, AUDIT, NEW, PASS)
    return sorted(result, key=lambda effect: order.index(effect.kind))


def _was_denied(seen: Seen) -> bool:
    """Return whether a policy denied it; the change of one opens no path."""
    return seen.reason is not None and bool(seen.reason.key)


def _reason(before: World, after: World, seen: Seen) -> Reason | None:
    """Return what decides on a flow after the change, or None if no policy is about it."""
    ends = [_address(before, after, end) for end in (seen.source, seen.destination)]
    for end, address in zip((seen.source, seen.destination), ends, strict=True):
        if address is None:
            return Reason(False, f"{end.service} has no address on this network any more")
    source, destination = (address or "" for address in ends)
    if _publishes(before, seen, seen.published) and not _publishes(after, seen, seen.published):
        port = seen.published.host_port if seen.published else 0
        return Reason(False, f"port {port} is no longer published", seen.destination.service)
    judged = verdict.judge(after, source, destination, seen.port, seen.proto)
    refusing = next((reason for reason in judged if not reason.passes), None)
    refusing = refusing or next((reason for reason in judged if reason.audits), None)
    return refusing or next((reason for reason in reversed(judged) if reason.key), None)


def _address(before: World, after: World, end: End) -> str | None:
    """Return the address that an end has after the change, on the same network; None without."""
    if not end.service:
        return end.address
    network = next(
        (e.network for e in before.services[end.service].endpoints if end.address in e.addresses),
        "",
    )
    known = after.services.get(end.service)
    for endpoint in known.endpoints if known and known.active else ():
        if endpoint.network == network:
            for address in endpoint.addresses:
                if family_of(address) == family_of(end.address):
                    return address
    return None


def _publishes(world: World, seen: Seen, port: Port | None) -> bool:
    """Return whether another machine can come by the port that it used."""
    if port is None:
        return False
    family = family_of(seen.source.address)
    return any(
        each.proto == port.proto
        and each.host_port <= port.host_port <= each.last
        and each.container_port + port.host_port - each.host_port == seen.port
        and family in each.families
        for each in world.services[seen.destination.service].ports
    )
