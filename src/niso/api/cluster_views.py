"""Read what the cluster has of services of other hosts, for ps --all-hosts and explanations."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.api.session import Session
    from niso.plan.known_world import Known, World
    from niso.plan.records import Entry, Policy
    from niso.services.machine import Machine
    from niso.store.store import Store


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


def world(session: Session, here: World, *addresses: str, proves: bool = False) -> World:
    """Return the services and networks with the policies of those of other hosts at addresses.

    Raises Error without an answer of the cluster, or if a test packet is asked for.
    """
    found = [
        known
        for known in here.services.values()
        if known.host
        and any(a in endpoint.addresses for endpoint in known.endpoints for a in addresses)
    ]
    if not found:
        return here
    from niso.base.errors import Error
    from niso.cluster.claims import Claims
    from niso.services import span_networks

    if proves:
        raise Error(
            f"{found[0].name} is on {found[0].host}: a test packet is followed within one host",
            "niso net ping sends one there",
            "--prove",
            names_key=False,
        )
    store = session.store()
    joined = span_networks.require_joined(session.machine())
    engine = joined.engine()
    try:
        claims = Claims(engine, joined.host, joined.keys)
        held = {known.name: claims.held(known.name) for known in found}
    finally:
        engine.close()
    services = dict(here.services)
    for known in found:
        claim = held[known.name]
        if claim is not None and claim.policy:
            policy = _resolved(store, here, known, _policy(claim.policy, known))
            services[known.name] = known._replace(policy=policy)
    return here._replace(services=services)


def _policy(text: str, known: Known) -> Policy:
    """Return the policy of a service of another host. Raises Error if it cannot be read."""
    from niso.base.errors import Error
    from niso.store.policy_rows import policy_of
    from niso.store.sqlite import decoded

    try:
        return policy_of(decoded(text))
    except (ValueError, TypeError, LookupError):
        raise Error(
            f"the policy of {known.name} on {known.host} is not one that this niso knows",
            f"ask on {known.host}",
        ) from None


def _resolved(store: Store, here: World, known: Known, policy: Policy) -> Policy:
    """Return a policy of another host with services for its names, as they are on its networks."""
    on = {endpoint.network for endpoint in known.endpoints}

    def entries(some: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(
            entry._replace(peer=entry.peer._replace(name=meant(entry.peer.name)))
            if entry.peer.kind == "service"
            else entry
            for entry in some
        )

    def meant(name: str) -> str:
        called = {*store.holders(name), *store.holders_elsewhere(name)}
        beside = [
            each.name
            for each in here.services.values()
            if each.name in called and on & {endpoint.network for endpoint in each.endpoints}
        ]
        return beside[0] if len(beside) == 1 else name

    return policy._replace(
        allow_from=None if policy.allow_from is None else entries(policy.allow_from),
        deny_from=entries(policy.deny_from),
        egress_allow=None if policy.egress_allow is None else entries(policy.egress_allow),
        egress_deny=entries(policy.egress_deny),
    )
