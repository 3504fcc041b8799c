"""Compute the scope of a change: which services, networks and names the change affects.

Before a change of rows, and again after it, a command computes the scope from the present rows. The
change reads and writes the kernel objects of both: its scope is their union (`Scope.joined`).
Without the scope before the change, objects that are no longer needed would stay.
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
    store: Store, services: Iterable[str], networks: Iterable[str] = (), names: Iterable[Name] = ()
) -> Scope:
    """Return the scope of a change of services, according to the present rows.

    The scope also contains the services that share a namespace with ``services``, the services that
    have one of the same names on another network (`NameRows.shadows`), and the networks of all
    these services. A network that a service has left is included if its bridge is still configured
    for the service's ports. For an instance, the service that it belongs to is included, because an
    earlier, killed command may have left slots of this service that differ from the rows.
    ``networks`` are those that the services will join. ``names`` are names in policies that will
    resolve differently; services of other hosts with such names are included.
    """
    names = list(names)
    everyone = store.with_companions(store.with_fronts(services))
    if others := store.shadows(everyone, networks):
        everyone = store.with_companions({*everyone, *others})
    on = {*networks, *store.published_on(everyone)}
    for name in everyone:
        if (row := store.service(name)) is not None:
            on.update(row.networks)
    remotes = _shadowed(store, everyone, names) if store.cluster_id() else ()
    return Scope(everyone, tuple(sorted(on)), names=tuple(sorted(set(names))), remotes=remotes)


def _shadowed(store: Store, services: Iterable[str], names: Iterable[Name]) -> tuple[str, ...]:
    called = {name for service in services for name in store.names(service)}
    called |= {name for kind, name in names if kind == "service"}
    return tuple(sorted({other for name in called for other in store.holders_elsewhere(name)}))


def with_remotes(store: Store, scope: Scope) -> Scope:
    """Add services of other hosts to the scope of a change that may remove implicit networks."""
    if not store.cluster_id():
        return scope
    from niso.change import span_networks

    return span_networks.going(store, scope)


def leaving(machine: Machine, networks: Collection[str], report: Report) -> change | Transaction:
    """Return the context manager of a change that deletes unused implicit networks.

    Implicit networks are those that niso created for a service. ``networks`` are networks that
    services have left. If there are none, the context manager is a plain transaction. The caller
    must have niso's lock, and must delete the rows of the networks in the ``with`` block.
    """
    store = machine.store
    if not networks:
        return store.transaction()
    return change(machine.kernel, store, scope_left(store, networks), report, teardown=True)


def scope_left(store: Store, networks: Collection[str]) -> Scope:
    """Return the scope of a change that may delete networks, with the remote services on them."""
    on = tuple(sorted(networks))
    return with_remotes(store, Scope((), on, names=tuple(("network", name) for name in on)))


def all_names(store: Store, scope: Scope) -> set[Name]:
    """Return all names of a scope's services and networks by which policies can refer to them."""
    return {
        *store.names_with(scope.services or ()),
        *(("network", network) for network in scope.networks or ()),
    }


def scope_of(store: Store, targets: list[Target]) -> Scope:
    """Return the scope of an activation, which covers the rows before it and after it."""
    touched: set[str] = set()
    for target in targets:
        provider = named_provider(store, target)
        touched.update((target.name, provider) if provider else (target.name,))
    on = {network for target in targets for network in target.spec.network.networks}
    fresh = {name for target in targets for name in target.spec.names}
    touched |= store.shadows(touched, on, fresh)
    names = {name for target in targets for name in _other_meanings(store, target)}
    return concerned(store, touched, on, names)


def _other_meanings(store: Store, target: Target) -> set[Name]:
    """Return the names that may resolve to other addresses after a service's activation.

    There are none if the service keeps its addresses, names and networks. A service that shares a
    namespace is an exception: its names resolve only while it is active, so an activation always
    changes them. Names that share an address with a changed name are included.
    """
    row, wanted = store.service(target.name), target.spec.network
    on = wanted.networks
    changed: set[Name] = {("network", network) for network in on if store.network(network) is None}
    statics = [(network, address) for network in on for address in wanted.statics(network)]
    leased, names_ = store.addresses(target.name), target.spec.names
    shared = named_provider(store, target)
    also = (shared, target.spec.front)  # the name of a service means all of its instances
    kept = row is not None and row.networks == on and set(store.names(target.name)) == set(names_)
    kept = kept and shared is None and row is not None and row.provider is None
    kept = kept and row is not None and (row.mode == "front") == target.spec.is_front
    if not kept or any(static not in leased for static in statics):
        changed |= {("service", name) for name in names_}
        changed |= set(store.names_with(store.with_companions([target.name, *filter(None, also)])))
    return changed


def named_provider(store: Store, target: Target) -> str | None:
    """Return the existing service whose namespace a manifest shares, or None.

    Returns None also if the name in the manifest is ambiguous.
    """
    try:
        return store.name_holder(target.spec.network.share) if target.spec.network.share else None
    except Conflict:
        return None
