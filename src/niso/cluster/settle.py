"""Bring the cluster what this host's store says of a service: held, up, down, or given up.

It works by level, from the rows of the service. So it does not matter what the last command could
not say: whoever comes next, a command or the agent, says it.
"""

from __future__ import annotations

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import Lock
from niso.cluster import mirror
from niso.cluster.claim_values import About
from niso.cluster.claims import Wanted
from niso.store.span_rows import Claim
from niso.store.sqlite import encoded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from niso.cluster.claim_values import Claim as Held
    from niso.cluster.claims import Claims
    from niso.cluster.view import Seen
    from niso.kernel.interface import Kernel
    from niso.store.store import ServiceRow, Store


def settle(store: Store, kernel: Kernel, claims: Claims, service: str, final: bool = True) -> bool:
    """Make the cluster's claim of a service as its rows are; return False if another host has it.

    The caller holds the service's lock, not niso's, and no change of it is in progress. Without
    ``final``, the record of a claim for nothing stays: a request for it may still be on its way.
    A service without a claim has no address either, and no policy takes one for its own.
    Raises NoAnswer, Refused, Error, and Conflict if others have what the service has here.
    """
    row, record, have = store.service(service), store.across.claim(service), claims.held(service)
    on = store.across.spanning(row.networks) if row is not None else []
    mine = have is not None and have.host == claims.host
    wanted = wanted_by_rows(store, row, on) if row is not None and on else None
    if row is None or wanted is None or not _is_wanted(store, row, record, have, mine):
        if have is not None and mine:
            claims.release(service, have.mark)
        if record is not None:
            mirror.drop_claims(store, kernel, [service])
        with store.transaction():
            store.across.drop_claim(service)
            if record is not None and not final:
                store.across.set_claim(Claim(service, "", 0, {}))
        return True
    since = record.gen if record is not None else 0
    if have is not None and not mine and have.gen >= since:
        return False
    if not mine or have is None or not _is_same(have, wanted):
        try:
            have = claims.claim(wanted, since=since)
        except Conflict:
            if record is None or _places(wanted.requested) <= _places(record.addresses):
                raise
            return False  # a command gave it up, was undone here, and another service has it now
    now = recorded(have)
    if record != now:
        with store.transaction():
            store.across.set_claim(now._replace(mark=""))
    claims.publish(service, have.mark, row.active, about(store, service))
    if record != now:
        with store.transaction():
            store.across.set_claim(now)
    return True


def is_so(store: Store, record: Claim, now: Seen) -> bool:
    """Return whether the cluster has of a service what this host's rows say, as far as seen.

    The record of a claim is not enough: an activation that was undone may have changed it. Ports
    and policies are not seen: `untold` records that they are not told yet.
    """
    row, known = store.service(record.service), now.services.get(record.service)
    if row is None or known is None or not record.addresses or not record.mark:
        return False
    on = store.across.spanning(row.networks)
    leased = {address for address in store.addresses(record.service) if address[0] in on}
    return (
        {(a.network, a.address) for a in known.addresses} == _places(record.addresses) == leased
        and {*record.addresses} == {*on}
        and {a.gen for a in known.addresses} == {record.gen}
        and {a.up for a in known.addresses} == {row.active}
        and {*known.names} == {*store.names_there(record.service)}
    )


def untold(store: Store, services: Iterable[str]) -> None:
    """Record that the cluster may not know all of services, which have claims: the agent tells it.

    The caller does not hold niso's lock.
    """
    with Lock(), store.transaction():
        for service in services:
            if (record := store.across.claim(service)) is not None:
                store.across.set_claim(record._replace(mark=""))


def _places(addresses: Mapping[str, Iterable[str]]) -> set[tuple[str, str]]:
    return {(network, address) for network, some in addresses.items() for address in some}


def recorded(claim: Held) -> Claim:
    """Return a claim as the store has it."""
    return Claim(claim.service, claim.mark, claim.gen, claim.networks)


def about(store: Store, service: str) -> About:
    """Return what people on other hosts see of a service."""
    policy = store.policy(service)
    return About(
        tuple(port.text for _, port in store.ports(service)),
        "" if policy is None else encoded(policy),
        tuple(
            (sharer, tuple(port.text for _, port in store.ports(sharer)))
            for sharer in store.sharers(service)
        ),
    )


def wanted_by_rows(store: Store, row: ServiceRow, on: Sequence[str]) -> Wanted:
    """Return what a service needs, by its rows: the addresses that it has, and all names there."""
    leased: dict[str, tuple[str, ...]] = {}
    for network, address in store.addresses(row.name):
        if network in on:
            leased[network] = (*leased.get(network, ()), address)
    return Wanted(row.name, tuple(on), store.names_there(row.name), leased, {})


def _is_same(have: Held, wanted: Wanted) -> bool:
    return (have.networks, have.names) == (wanted.requested, wanted.names)


def _is_wanted(
    store: Store, row: ServiceRow, record: Claim | None, have: Held | None, mine: bool
) -> bool:
    """Return whether a service of this host shall have a claim.

    An inactive one shall not if a command took the claim from another host, or asked for one, and
    failed. Nor if it has lost an address since, which another service has claimed: it would hold
    another one, of which its rows say nothing.
    """
    if row.active:
        return True
    if record is None or not record.addresses or (have and mine and have.former):
        return False
    on = store.across.spanning(row.networks)
    subnets = {network: len(store.require_network(network).subnets) for network in on}
    had = [network for network, _ in store.addresses(row.name) if network in subnets]
    return all(had.count(network) == count for network, count in subnets.items())
