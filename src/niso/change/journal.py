"""Record changes in progress (intents), lock services, and recover changes of killed commands.

The store records a change as an intent before the kernel is changed. If a later command finds an
intent whose command no longer runs, the change was interrupted. An interrupted deactivation or
removal is then completed. An interrupted activation is undone (`niso.change.undo`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby

from niso.base.errors import Conflict, Error, ErrorGroup, raise_all
from niso.base.locks import Lock, raise_file_limit, remove_locks, service_lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import lazy
from niso.base.report import NotStarted, Recovered, Unfinished, event_class
from niso.change.scope import report_to_cluster
from niso.runtime import event_log
from niso.runtime.machine import Machine
from niso.store.service_rows import (
    LEAVING,
    OUT,
    SERVING,
    Intent,
    front_of,
)
from niso.store.sqlite import sqlite3
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import ports, stop
else:  # only interrupted changes, and stops, need them
    ports, stop = lazy("niso.change.ports"), lazy("niso.change.stop")

EndingRestart = event_class("EndingRestart", lambda service: f"complete the restart of {service}")


def end_restart(machine: Machine, services: list[str]) -> None:
    """Complete an interrupted restart: start the processes, and report those that cannot start."""
    from niso.change.undo import start_again

    for name in services:
        try:
            start_again(machine, name)
        except Error as error:
            machine.report(NotStarted(name, error))
    with machine.store.transaction():
        # instances get no connections until niso health finds them healthy
        instances = machine.store.instances
        left = [one for name in services if (one := instances.get(name)) is not None]
        out = [one.service for one in left if one.state == LEAVING]
        instances.set_state(out, OUT)
        for name in services:
            machine.store.end_intent(name)


def recover(machine: Machine, names: Iterable[str] = (), every: bool = False) -> int:
    """Complete or undo interrupted changes, and return the number of these changes.

    ``names`` are the services that the next command will change. After all changes, raises the
    errors about these services and reports other errors as warnings. With ``every``, raises all
    errors. An interrupted update of this host's copy of the cluster's data is undone first, and is
    not counted.
    """
    store = machine.store
    machine.processes.renew()
    if store.is_broken_off():
        from niso.cluster import mirror

        mirror.revert_attempt(store, machine.kernel, machine.report)
    if store.instances.active(LEAVING):
        from niso.change import deploy

        deploy.finish_leaving(machine)
    if store.instances.active(SERVING, OUT) or store.acted_on_services():
        from niso.change import health_agent

        health_agent.ensure(machine)
    intents = store.intents()
    if not intents:
        return 0
    from niso.change.undo import in_order, undo
    from niso.look.services import command_of

    concerned = set(names)
    recovered: list[tuple[str, str, bool]] = []
    errors: dict[str, Error] = {}
    done = 0
    # activations are undone together: one may have taken what another released
    for activations, group in groupby(
        in_order(store, intents), lambda intent: intent.action == "activate"
    ):
        with ExitStack() as locks:
            begun: list[Intent] = []
            held: set[str] = set()
            for seen in group:
                if not _try_lock(store, locks, held, seen.service):
                    continue
                intent = store.intent(seen.service)
                # another command has recovered it
                if intent is None or intent.action != seen.action:
                    continue
                done += 1
                recovered += [
                    (name, command_of(intent), activations) for name in _services(store, intent)
                ]
                if activations:
                    begun.append(intent)
                else:
                    errors |= _finish(machine, intent)
                    locks.close()  # no other change depends on this one
                    held.clear()
            if begun:
                machine.processes.end_unrecorded({intent.service for intent in begun})
                errors |= undo(machine, begun)
    for service, command, rolled_back in recovered:
        if service not in concerned and service not in errors:
            machine.report(Recovered(service, command, rolled_back))
    for name, error in errors.items():
        machine.report(Unfinished(name, error))
    raised = [error for name, error in errors.items() if every or name in concerned]
    if raised:
        raise ErrorGroup(raised)
    return done


def _try_lock(store: Store, locks: ExitStack, held: set[str], service: str) -> bool:
    """Lock a service unless another command has locked it. Return whether this succeeded.

    For an instance, its service is locked too, because a command that has locked the service may
    change its instances. ``held`` are the services that are already locked.
    """
    for name in dict.fromkeys((front_of(service), service)):
        if name not in held:
            try:
                locks.enter_context(service_lock(name, 0))
            except Conflict:
                return False
            held.add(name)
            locks.callback(_record_and_clean, store, [name])
    return True


def _services(store: Store, intent: Intent) -> list[str]:
    """Return the services of an interrupted change. Only a change of ports concerns several."""
    if intent.action != "ports":
        return [intent.service]
    return sorted({service for service, _ in store.moved_ports()})


def _finish(machine: Machine, intent: Intent) -> dict[str, Error]:
    """Complete an interrupted change that is not an activation. Return {service: error}."""
    name, removes = intent.service, intent.action in ("remove", "remove volumes")
    try:
        if intent.action == "ports":
            ports.finish(machine)
        elif intent.action == "restart":
            machine.report(EndingRestart(name))
            machine.processes.end_unrecorded({name})
            end_restart(machine, [name])
        else:
            keep_forwards, now = intent.action == "stop", None if removes else time.time()
            raise_all(stop.finish(machine, [name], not removes, keep_forwards, began=now))
            if removes:
                stop.forget(machine, [name], intent.action == "remove volumes")
            report_to_cluster(machine, [name])
    except Error as error:
        return {name: error}
    return {}


def locked(store: Store, services: Iterable[str]) -> ExitStack:
    """Lock several services in sorted order, and their instances last.

    Returns a context manager. At its end, it records the services' events for `niso events`,
    deletes the lock files of removed services, and releases the locks.
    """
    fronts = {front_of(name) for name in services}
    return _locked(store, [*sorted(fronts), *sorted({*services} - fronts)])


def locked_instances(store: Store, names: Iterable[str]) -> ExitStack:
    """Lock instances. The caller must already have locked the services that they belong to.

    Returns a context manager, as `locked` does. At its end, it releases the locks.
    """
    return _locked(store, sorted(names))


def locked_one(store: Store, service: str) -> ExitStack:
    """Lock one service. Return a context manager that releases the lock, as `locked` does."""
    return _locked(store, [service])


def _locked(store: Store, names: list[str]) -> ExitStack:
    held: list[str] = []
    raise_file_limit(len(names))
    with ExitStack() as locks:
        try:
            for name in names:
                locks.enter_context(service_lock(name))
                held.append(name)
        finally:  # the end of the context calls this first, while all are locked
            locks.callback(_record_and_clean, store, held)
        return locks.pop_all()


def _record_and_clean(store: Store, names: list[str]) -> None:
    """Record the events of services for `niso events`. Delete lock files of removed services."""
    try:
        event_log.record(store, names)
        with store.reading():
            removed = [name for name in names if store.service(name) is None]
    except sqlite3.Error:
        return
    for name in removed:
        remove_locks(name)


def begin(store: Store, services: list[str], action: str) -> None:
    """Record for each service that the change ``action`` is in progress (an intent).

    Raises Conflict if the action would stop a service whose namespace an active service shares.
    """
    if services:
        with Lock(), store.transaction():
            if action not in ("activate", "restart"):
                stop.refuse(store, services)
            for name in services:
                store.begin_intent(name, action, time.time())
