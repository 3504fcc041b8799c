"""Derive the claims that services need, from their manifests and the rows of related services.

Only hosts of a cluster load this module.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.cluster.claims import Wanted
from niso.cluster.settle import wanted_by_rows
from niso.store.span_rows import Claim
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.services.admit import Target


def home(store: Store, target: Target, targets: Iterable[Target]) -> str:
    """Return the service whose namespace another will share; "" if none, or an unknown one."""
    share = target.spec.share if target.spec.mode == "share" else None
    if share is None:
        return ""
    for other in targets:
        if share == other.name or share in other.spec.names:
            return other.name
    try:
        return store.name_holder(share) or ""
    except Conflict:  # recording the service refuses the ambiguous name
        return ""


def _shares(store: Store, target: Target) -> bool:
    """Return whether an active service shares another's namespace now."""
    row = store.service(target.name)
    return row is not None and row.active and row.provider is not None


def names(
    store: Store, homes: dict[str, str], targets: Iterable[Target]
) -> dict[str, tuple[str, ...]]:
    """Return the names at each provider's addresses that belong to its sharers, by provider.

    A sharer has one name, its own. If a name moves between two services of this host, the new
    provider gets it at the end, when the old one has released it (`behind`). Names that a provider
    releases stay with it until then.
    """
    providers = {*homes.values(), *(target.name for target in targets)} - {""}
    fresh = [
        target.name
        for target in targets
        if store.across.claim(target.name) is None and not _shares(store, target)
    ]
    return {
        provider: tuple(
            sorted({*store.sharers(provider), *(s for s in fresh if homes[s] == provider)})
        )
        for provider in providers
    }


def around(
    store: Store, homes: dict[str, str], names: dict[str, tuple[str, ...]]
) -> dict[str, Wanted]:
    """Return the claims of providers that the command does not change, extended by new sharers.

    A provider that another command is changing is left out: with a different mark, that command
    would take its claim for lost.
    """
    wanted: dict[str, Wanted] = {}
    for home in {*homes.values()} - {*homes, ""}:
        row = store.service(home) if store.intent(home) is None else None
        on = store.across.spanning(row.networks) if row is not None else []
        if row is not None and on and store.across.claim(home) is not None:
            asked = wanted_by_rows(store, row, on)
            every = dict.fromkeys((*store.names(home), *names[home]))
            wanted[home] = asked._replace(names=tuple(every))
    return wanted


def behind(store: Store, services: Iterable[tuple[str, str | None]]) -> list[str]:
    """Return the services whose claims lack or still have names of sharers, losers first.

    ``services`` are the changed ones, each with its former provider.
    """
    concerned: dict[str, None] = {}
    for name, before in services:
        row = store.service(name)
        now = row.provider if row is not None else None
        if before or now:
            concerned |= dict.fromkeys(service for service in (before, name, now) if service)
    return list(concerned)


def wanted(
    store: Store, target: Target, spans: list[str], names: dict[str, tuple[str, ...]]
) -> Wanted:
    """Return the claim that a service needs: its manifest's addresses, else those it had.

    If it was a sharer, its names still belong to its former provider.
    """
    spec = target.spec
    on = tuple(network for network in spec.networks if network in spans)
    had: dict[str, tuple[str, ...]] = {}
    for network, address in store.addresses(target.name):
        had[network] = (*had.get(network, ()), address)
    former = store.names(target.name) if _shares(store, target) else ()
    every = dict.fromkeys((*spec.names, *names.get(target.name, ())))
    called = tuple(name for name in every if name not in former)
    statics = {net: tuple(spec.statics(net)) for net in on}
    return Wanted(target.name, on, called, statics, had)


def own_record(store: Store, target: Target, wanted: Wanted) -> Claim | None:
    """Return this host's recorded claim if it has all that is wanted, else None."""
    claim = store.across.claim(target.name)
    if claim is None or {*claim.addresses} != {*wanted.networks}:
        return None
    statics = {address for some in wanted.requested.values() for address in some}
    held = {address for some in claim.addresses.values() for address in some}
    same = statics <= held and {*store.names(target.name)} == {*target.spec.names}
    return claim if same else None
