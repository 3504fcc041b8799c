"""Say what a change of services concerns: the one place that every scoped plan starts from.

A change compares the kernel with the store's rows before it and after it. So its scope is what it
concerns by the rows before, joined (`Scope.joined`) with what it concerns by the rows after.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.store.policy_rows import Name
from niso.store.store import Scope, Store


def concerned(
    store: Store,
    services: Iterable[str],
    networks: Iterable[str] = (),
    names: Iterable[Name] = (),
) -> Scope:
    """Return what a change of ``services`` concerns by the present rows.

    These are the services that share a namespace with them, those that have one of their names on
    another network (`NameRows.shadows`), the networks of all of them, and those whose bridges are
    set up for their ports, even if they have left them. ``networks`` and ``names`` are added: where
    a service will be, and which names of policies change their meaning. Services of other hosts
    that have one of the names are in it too.
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
    """Return the services of other hosts with a name of these services, or one of ``names``.

    A hosts file has a name once, of its first network.
    """
    called = {name for service in services for name in store.names(service)}
    called |= {name for kind, name in names if kind == "service"}
    return tuple(sorted({other for name in called for other in store.holders_elsewhere(name)}))


def with_remotes(store: Store, scope: Scope) -> Scope:
    """Return the scope of a change that may end implicit networks, with what others have there."""
    if not store.cluster_id():
        return scope
    from niso.services import span_networks

    return span_networks.going(store, scope)


def all_names(store: Store, scope: Scope) -> set[Name]:
    """Return the names of all services and networks of a scope, as policies use them."""
    return {
        *store.names_with(scope.services or ()),
        *(("network", network) for network in scope.networks or ()),
    }
