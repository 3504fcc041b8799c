"""Bring the cluster what this host's store says of a service: held, up, down, or given up.

It works by level, from the rows of the service. So it does not matter what the last command could
not say: whoever comes next, a command or the agent, says it.
"""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.claims import About, Wanted
from niso.store.span_rows import Claim
from niso.store.sqlite import encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from niso.cluster.claims import Claim as Held
    from niso.cluster.claims import Claims
    from niso.store.store import ServiceRow, Store


def settle(store: Store, claims: Claims, service: str, final: bool = True) -> bool:
    """Make the cluster's claim of a service as its rows are; return False if another host has it.

    The caller holds the service's lock, and no change of it is in progress. Without ``final``, the
    record of a claim for nothing stays: a request for it may still be on its way.
    Raises NoAnswer, Refused, Error, and Conflict if others have what the service has here.
    """
    row, record, have = store.service(service), store.across.claim(service), claims.held(service)
    on = store.across.spanning(row.networks) if row is not None else []
    mine = have is not None and have.host == claims.host
    if row is None or not on or not _is_wanted(row, record, have, mine):
        if have is not None and mine:
            claims.release(service, have.mark)
        with store.transaction():
            if final:
                store.across.drop_claim(service)
            elif record is not None:  # its addresses may be somebody else's from now on
                store.across.set_claim(Claim(service, "", 0, {}))
        return True
    if have is not None and not mine:  # an older one is from a backup of the cluster's data
        return record is not None and record.gen >= have.gen
    wanted = wanted_by_rows(store, row, on)
    if have is None or (have.networks, have.names) != (wanted.requested, wanted.names):
        have = claims.claim(wanted)
    if record != recorded(have):
        with store.transaction():
            store.across.set_claim(recorded(have))
    claims.publish(service, have.mark, row.active, about(store, service))
    return True


def recorded(claim: Held) -> Claim:
    """Return a claim as the store has it."""
    return Claim(claim.service, claim.mark, claim.gen, claim.networks)


def about(store: Store, service: str) -> About:
    """Return what people on other hosts see of a service."""
    policy = store.policy(service)
    return About(
        tuple(port.text for _, port in store.ports(service)),
        "" if policy is None else encoded(policy),
    )


def wanted_by_rows(store: Store, row: ServiceRow, on: Sequence[str]) -> Wanted:
    """Return what a service needs, by its rows: the addresses that it has."""
    leased: dict[str, tuple[str, ...]] = {}
    for network, address in store.addresses(row.name):
        if network in on:
            leased[network] = (*leased.get(network, ()), address)
    return Wanted(row.name, tuple(on), tuple(store.names(row.name)), leased, {})


def _is_wanted(row: ServiceRow, record: Claim | None, have: Held | None, mine: bool) -> bool:
    """Return whether a service of this host shall have a claim.

    An inactive one shall not if a command took the claim from another host, or asked for one, and
    failed.
    """
    return row.active or (
        record is not None and bool(record.addresses) and not (have and mine and have.former)
    )
