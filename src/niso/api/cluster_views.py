"""Read the services of all hosts of the cluster, for ps --all-hosts."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.api.session import Session
    from niso.services.machine import Machine


class ClusterLine(NamedTuple):
    """A service in a list of all hosts."""

    service: str
    """the service's name"""
    host: str
    """the host that has it"""
    status: str
    """of a service of this host as in a list of services; else up, down or host gone"""
    address: tuple[str, ...]
    """addresses, one per network and family; of another host those on networks that span hosts"""
    ports: tuple[str, ...]
    """published ports: HOST_PORT:PORT"""


def lines(session: Session, machine: Machine) -> tuple[ClusterLine, ...]:
    """Return the services of all hosts by name. Raises Error."""
    from niso.api import service_views
    from niso.cluster.claims import claim_of
    from niso.cluster.membership import Membership
    from niso.services import span_networks

    store = machine.store
    joined = span_networks.require_joined(machine)
    engine = joined.engine()
    try:
        membership = Membership(engine, joined.keys)
        span_networks.require_own(store, membership)
        alive = {host.name for host in membership.hosts() if host.alive}
        items = engine.get(joined.keys.services, stale=True).items
        claims = [claim_of(item, joined.keys) for item in items]
    finally:
        engine.close()
    found = [
        ClusterLine(
            claim.service,
            claim.host,
            ("up" if claim.up else "down") if claim.host in alive else "host gone",
            tuple(address for some in claim.networks.values() for address in some),
            claim.ports,
        )
        for claim in claims
        if claim.host != joined.host
    ]
    found += [
        ClusterLine(
            line.service,
            joined.host,
            line.status,
            line.address,
            tuple(port.text for _, port in store.ports(line.service)) if line.address else (),
        )
        for line in service_views.lines(session, store)
    ]
    return tuple(sorted(found))
