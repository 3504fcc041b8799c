"""Capture packets and follow their way: `Host.capture`."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.see.capture import Capture, expression

__all__ = ["Capture", "capture"]

if TYPE_CHECKING:
    from niso.api.session import Session


def capture(
    session: Session,
    service: str,
    peer: str | None,
    more: str,
    count: int | None,
    text: bool,
) -> Capture:
    """Start a capture: `Host.capture`."""
    from niso.base import names
    from niso.base.errors import Conflict, UsageError
    from niso.explain import question
    from niso.plan import verdict
    from niso.reconcile.world import read_world

    store = session.store()
    end = question.resolve(store, service)
    world = read_world(session.kernel(), store)
    known = world.services.get(end.service)
    if known is None:
        raise UsageError(f"{service!r} is not a service", "niso ps lists the services", "NAME")
    if not known.active:
        raise Conflict(f"{known.name} is not active", f"niso activate {known.name}")
    if count is not None and count < 1:
        raise UsageError(f"{count}: must be 1 or more", None, "-c")
    addresses: tuple[str, ...] = ()
    port = None
    if peer is not None:
        who, port, _ = question.parse_target(peer)
        other = question.resolve(store, who)
        if other.service:
            addresses = verdict.addresses_of(world.services[other.service])
        elif other.address:
            addresses = (other.address,)
        else:  # the host, as services see it
            gateways = (s.gateway for n in world.networks.values() for s in n.subnets)
            addresses = (*sorted(gateways), *sorted(world.host))
    named = {
        address: each.name
        for each in world.services.values()
        for address in verdict.addresses_of(each)
    }
    named |= {s.gateway: "host" for n in world.networks.values() for s in n.subnets}
    filter_ = expression(dict.fromkeys(addresses), port, more)
    return Capture(names.netns(known.name), named, filter_, count, text)
