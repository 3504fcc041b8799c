"""Record changes as intents and lock their services; find the changes of killed commands.

Every change is recorded in the store as an intent before it reaches the kernel. If a later command
finds an intent whose process has died, it finishes the change (deactivate, remove) or undoes it
(activate, restart, by `niso.change.undo`). niso's lock is held over plan and write. A service's own
lock is held from its first change to its last, including the wait for its process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby

from niso.base.errors import Conflict, Error, ErrorGroup
from niso.base.locks import Lock, remove_locks, service_lock
from niso.base.named_tuples import NamedTuple
from niso.base.report import NotStarted, Recovered, Report, Unfinished, silent
from niso.change import ports, stop
from niso.runtime.machine import Machine
from niso.store.service_rows import Intent
from niso.store.store import Store


class EndingRestart(NamedTuple):
    """Report that niso completes an interrupted restart."""

    service: str

    def describe(self) -> str:
        return f"complete the restart of {self.service}"


def end_restart(machine: Machine, services: list[str], report: Report) -> None:
    """Start the processes that an interrupted restart stopped, and end its intents.

    If a process cannot start, this is reported, and `niso ps` shows its service as failed.
    """
    from niso.change.undo import start_again

    for name in services:
        try:
            start_again(machine, name)
        except Error as error:
            report(NotStarted(name, error))
    end_intents(machine.store, services)


def recover(
    machine: Machine,
    report: Report = silent,
    names: Iterable[str] = (),
    every: bool = False,
) -> int:
    """Finish or undo interrupted changes; return the number of services concerned.

    An interrupted change of the cluster mirror is undone first, and not counted. Changes of
    commands that are still running are left alone. ``names`` are the services of the command that
    follows; results for other services are reported (`Recovered`, `Unfinished`). Failures for
    services in ``names``, or with ``every`` for any service, are raised as an ErrorGroup at the
    end.
    """
    store = machine.store
    machine.processes.renew()
    if store.is_broken_off():
        from niso.cluster import mirror

        mirror.go_back(store, machine.kernel, report)
    intents = store.intents()
    if not intents:
        return 0

    from niso.change.undo import in_order, undo
    from niso.look.services import command_of

    concerned = set(names)
    recovered: list[Recovered] = []
    errors: dict[str, Error] = {}
    done = 0
    # activations are undone together: one may have taken what another released
    for activations, group in groupby(
        in_order(store, intents), lambda intent: intent.action == "activate"
    ):
        with ExitStack() as locks:
            begun = []
            for seen in group:
                try:
                    locks.enter_context(service_lock(seen.service, 0))
                except Conflict:
                    continue
                locks.callback(_remove_lock, store, seen.service)
                intent = store.intent(seen.service)
                # another command has recovered it
                if intent is None or intent.action != seen.action:
                    continue
                done += 1
                recovered += [
                    Recovered(name, command_of(intent), activations)
                    for name in _together(store, intent)
                ]
                if activations:
                    begun.append(intent)
                else:
                    errors |= _finish(machine, intent, report)
                    locks.close()  # no other change depends on this one
            if begun:
                machine.processes.end_unrecorded({intent.service for intent in begun})
                errors |= undo(machine, begun, report)
    for event in recovered:
        if event.service not in concerned and event.service not in errors:
            report(event)
    for name, error in errors.items():
        report(Unfinished(name, error))
    raised = [error for name, error in errors.items() if every or name in concerned]
    if raised:
        raise ErrorGroup(raised)
    return done


def _together(store: Store, intent: Intent) -> list[str]:
    """Return the services whose intents must end with this intent: port changes end together."""
    if intent.action != "ports":
        return [intent.service]
    return sorted({service for service, _ in store.moved_ports()})


def _finish(machine: Machine, intent: Intent, report: Report) -> dict[str, Error]:
    """Finish an intent of a command other than activate; return {service: error}."""

    from niso.change import cluster_claims

    name, removes = intent.service, intent.action in ("remove", "remove volumes")
    try:
        if intent.action == "ports":
            ports.finish(machine, report)
        elif intent.action == "restart":
            report(EndingRestart(name))
            machine.processes.end_unrecorded({name})
            end_restart(machine, [name], report)
        else:
            stop.raise_all(
                stop.finish(machine, [name], report, not removes, intent.action == "stop")
            )
            if removes:
                stop.forget(machine, [name], report, intent.action == "remove volumes")
            if machine.store.cluster_id():
                cluster_claims.tell(machine, [name], report)
    except Error as error:
        return {name: error}
    return {}


def locked(store: Store, services: list[str]) -> ExitStack:
    """Hold the locks of several services, taken in sorted order to avoid deadlocks.

    On exit, the lock files of services that do not exist are removed.
    """
    with ExitStack() as locks:
        for name in sorted(set(services)):
            locks.enter_context(locked_one(store, name))
        return locks.pop_all()


class locked_one:
    """Hold the lock of one service; on exit, remove its lock file if the service does not exist."""

    def __init__(self, store: Store, service: str) -> None:
        self._store, self._service, self._lock = store, service, service_lock(service)

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        try:
            _remove_lock(self._store, self._service)
        finally:
            self._lock.__exit__()


def _remove_lock(store: Store, name: str) -> None:
    try:
        known = store.service(name) is not None
    except sqlite3.Error:
        return
    if not known:
        remove_locks(name)


def begin(store: Store, services: list[str], action: str) -> None:
    """Record the intents of all services in one transaction, so that recovery treats them as one.

    Raises Conflict if another active service needs the namespace of one of the services.
    """
    if services:
        with Lock(), store.transaction():
            if action not in ("activate", "restart"):
                stop.refuse(store, services)
            for name in services:
                store.begin_intent(name, action, time.time())


def end_intents(store: Store, services: list[str]) -> None:
    with store.transaction():  # niso's lock is not needed: only the intents change
        for name in services:
            store.end_intent(name)
