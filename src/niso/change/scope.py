"""Compute the scope of a change: which services, networks and names it affects.

A change compares the kernel with the rows before it and after it. Its scope is therefore the scope
by the rows before, joined (`Scope.joined`) with the scope by the rows after. Every scoped plan
starts here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from niso.base.errors import Conflict
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.report import Report
from niso.reconcile.change import change
from niso.store.policy_rows import Name
from niso.store.snapshots import Scope
from niso.store.sqlite import Transaction
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change.targets import Target
    from niso.runtime.machine import Machine


def concerned(
    store: Store,
    services: Iterable[str],
    networks: Iterable[str] = (),
    names: Iterable[Name] = (),
) -> Scope:
    """Return the scope of a change of ``services``, according to the present rows.

    The scope has services that share a namespace with them, services that have one of their names
    on another network (`NameRows.shadows`), and the networks of all of these. It also has networks
    whose bridges are still set up for the services' ports, even if the services have left them.
    ``networks`` and ``names`` are added: networks that the services will join, and names of
    policies that will resolve differently. Remote services with one of the names are included.
    """
    names = list(names)
    everyone = store.with_companions(services)
    if others := store.shadows(everyone, networks):
        everyone = store.with_companions({*everyone, *others})
    on = {*networks, *store.published_on(everyone)}
    for name in everyone:
        if (row := store.service(name)) is not None:
            on.update(row.networks)
    remotes = _shadowed(store, everyone, names) if store.cluster_id() else ()
    return Scope(everyone, tuple(sorted(on)), names=tuple(sorted(set(names))), remotes=remotes)


def _shadowed(store: Store, services: Iterable[str], names: Iterable[Name]) -> tuple[str, ...]:
    """Return the remote services with a name of these services, or one of ``names``.

    A hosts file has each name once, from the first network that has it.
    """
    called = {name for service in services for name in store.names(service)}
    called |= {name for kind, name in names if kind == "service"}
    return tuple(sorted({other for name in called for other in store.holders_elsewhere(name)}))


def with_remotes(store: Store, scope: Scope) -> Scope:
    """Add remote services to the scope of a change that may remove implicit networks."""
    if not store.cluster_id():
        return scope

    from niso.change import span_networks

    return span_networks.going(store, scope)


def leaving(machine: Machine, networks: Collection[str], report: Report) -> change | Transaction:
    """Return the `change` context for dropping implicit networks that services have left.

    Only unused networks are dropped. Without networks, the context is a plain transaction. The
    caller holds niso's lock, and drops the networks in the block.
    """
    store = machine.store
    if not networks:
        return store.transaction()
    return change(machine.kernel, store, scope_left(store, networks), report, teardown=True)


def scope_left(store: Store, networks: Collection[str]) -> Scope:
    """Return the scope of a change that may drop networks."""
    on = tuple(sorted(networks))
    return with_remotes(store, Scope((), on, names=tuple(("network", name) for name in on)))


def all_names(store: Store, scope: Scope) -> set[Name]:
    """Return the names of all services and networks of a scope, as policies use them."""
    return {
        *store.names_with(scope.services or ()),
        *(("network", network) for network in scope.networks or ()),
    }


def scope_of(store: Store, targets: list[Target]) -> Scope:
    """Return the scope of an activation.

    The scope has the services, services that share a namespace with them, and their networks before
    and after the change.
    """
    touched: set[str] = set()
    for target in targets:
        provider = _provider(store, target)
        touched.update((target.name, provider) if provider else (target.name,))
    on = {network for target in targets for network in target.spec.network.networks}
    fresh = {name for target in targets for name in target.spec.names}
    touched |= store.shadows(touched, on, fresh)
    names = {name for target in targets for name in _other_meanings(store, target)}
    return concerned(store, touched, on, names)


def _other_meanings(store: Store, target: Target) -> set[Name]:
    """Return the names that may resolve to different addresses after an activation.

    A service that keeps its leases adds no name. A sharer's name resolves only while the sharer is
    active; several names may have one address.
    """
    row = store.service(target.name)
    wanted = target.spec.network
    on = wanted.networks
    changed: set[Name] = {("network", network) for network in on if store.network(network) is None}
    statics = [(network, address) for network in on for address in wanted.statics(network)]
    leased = store.addresses(target.name)
    names_ = target.spec.names
    shared = _provider(store, target)
    kept = row is not None and row.networks == on and set(store.names(target.name)) == set(names_)
    kept = kept and shared is None and row is not None and row.provider is None
    if not kept or any(static not in leased for static in statics):
        changed |= {("service", name) for name in names_}
        changed |= set(
            store.names_with(store.with_companions([target.name, *([shared] if shared else ())]))
        )
    return changed


def _provider(store: Store, target: Target) -> str | None:
    """Return the existing service whose namespace a manifest asks to share, or None.

    An ambiguous name is refused later, by `admit.record`.
    """
    try:
        return store.name_holder(target.spec.network.share) if target.spec.network.share else None
    except Conflict:
        return None
