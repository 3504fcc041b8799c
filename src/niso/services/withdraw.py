"""Remove services from the network with one plan, after their processes have ended.

This module imports nothing that only processes need, because it also serves attachments.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.locks import Lock
from niso.base.report import Report
from niso.reconcile import forwarding
from niso.reconcile.change import change
from niso.services.concern import all_names, concerned, with_remotes
from niso.services.machine import Machine
from niso.store.store import Scope, ServiceRow, Store


def withdraw(
    machine: Machine,
    rows: Iterable[ServiceRow],
    report: Report,
    ends: bool,
    keep_forwards: bool = False,
    forgets: bool = False,
) -> None:
    """Record services as inactive and remove their networks; with ``ends``, end their intents.

    With ``forgets``, their rows are deleted in the same transaction. Raises Error; then nothing is
    recorded, and the call can be repeated.
    """
    store, kernel = machine.store, machine.kernel
    rows = list(rows)
    links: list[str] = []
    with Lock():
        scope = scope_of(store, rows)
        if forgets:  # policies that name these services will match nothing
            scope = scope._replace(names=tuple(sorted({*scope.names, *all_names(store, scope)})))
            scope = with_remotes(store, scope)
        with change(kernel, store, scope, report, teardown=True, ending=links):
            go(machine, rows, keep_forwards)
            for row in rows:
                if forgets:
                    store.forget(row.name)
                if ends or forgets:
                    store.end_intent(row.name)
            if forgets:
                store.drop_implicit_networks(scope.networks or ())
    kernel.end_links(links)


def go(machine: Machine, rows: Iterable[ServiceRow], keep_forwards: bool = False) -> None:
    """Record services as inactive; the caller is in a transaction."""
    store = machine.store
    for row in rows:
        store.set_active(row.name, False)
    forwarding.note_late(machine.kernel, store)
    for row in rows:
        store.end_publishing(row.name, keep_forwards)


def scope_of(store: Store, rows: Iterable[ServiceRow]) -> Scope:
    """Return the scope of a withdrawal."""
    rows = list(rows)
    # the name of a service that shares a namespace resolves only while it is active
    shared = store.names_with(store.with_companions(row.name for row in rows if row.provider))
    return concerned(store, (row.name for row in rows), names=shared)
