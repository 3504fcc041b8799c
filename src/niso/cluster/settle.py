"""Synchronise the cluster's claim of a service with this host's rows: held, up, down or released.

It is level-triggered: it starts from the rows of the service, so it does not matter what an
interrupted command could not report. The next caller, a command or the agent, reports it.
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
    """Update a service's claim in the cluster from its rows; return False if another host has it.

    The caller holds the service's lock, not niso's, and no change of the service is in progress.
    Without ``final``, an empty record of the claim stays: a request for it may still be on its way.
    A service without a claim has no addresses either, so no policy resolves to them. Raises
    NoAnswer, Refused, Error, and Conflict if others have addresses or names that the service has
    here.
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
            # a command released it and was undone, and another service has the address now
            return False
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
    """Return whether the cluster's keys of a service match this host's rows, as far as visible.

    The recorded claim alone does not tell, because an activation that was undone may have changed
    it. Ports and policies are not visible; `untold` records that they are not published yet.
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
    """Record that services with claims may not be fully published, so that the agent does it.

    The caller does not hold niso's lock.
    """
    with Lock(), store.transaction():
        for service in services:
            if (record := store.across.claim(service)) is not None:
                store.across.set_claim(record._replace(mark=""))


def _places(addresses: Mapping[str, Iterable[str]]) -> set[tuple[str, str]]:
    return {(network, address) for network, some in addresses.items() for address in some}


def recorded(claim: Held) -> Claim:
    """Convert a claim to its form in the store."""
    return Claim(claim.service, claim.mark, claim.gen, claim.networks)


def about(store: Store, service: str) -> About:
    """Return the data of a service for display on other hosts."""
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
    """Return the claim that a service needs by its rows: its addresses, and all its names."""
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
    """Return whether a service of this host should have a claim.

    An inactive one should not if a command took the claim from another host, or requested one, and
    failed. Nor if it has since lost an address to another service: the new claim would have an
    address that its rows do not have.
    """
    if row.active:
        return True
    if record is None or not record.addresses or (have and mine and have.former):
        return False
    on = store.across.spanning(row.networks)
    subnets = {network: len(store.require_network(network).subnets) for network in on}
    had = [network for network, _ in store.addresses(row.name) if network in subnets]
    return all(had.count(network) == count for network, count in subnets.items())
