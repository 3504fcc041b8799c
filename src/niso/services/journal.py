"""The journal of intents: begin a change, lock its services, and recover what a dead process left half-way.

Every change is noted in the store (an intent) before the kernel sees it. Whoever finds an intent whose process is gone
finishes it (deactivate, remove) or undoes it (activate, restart). niso's lock is held over plan and write; a service's own lock is
held from its first change to its last, waiting for its process included.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby

from niso.base.errors import Conflict, ErrorGroup, NisoError
from niso.base.locks import Lock, remove_locks, service_lock
from niso.base.report import EndingRestart, NotStarted, Report, Unfinished, silent
from niso.services import forwards, stop
from niso.services.machine import Machine
from niso.services.undo import in_order, start_again, undo
from niso.store.store import Intent, Store


def end_restart(machine: Machine, services: list[str], report: Report) -> None:
    """Have the processes run that a restart which came to no end has stopped. One that cannot is failed, as `niso ps` says."""
    for name in services:
        try:
            start_again(machine, name)
        except NisoError as error:
            report(NotStarted(name, error))
    end_intents(machine.store, services)


def recover(machine: Machine, report: Report = silent, names: Iterable[str] = ()) -> int:
    """Finish or undo what a process that is gone left half-way; gives of how many services. What a living one is at is left to it.

    What cannot be done for one of ``names`` is raised as an ErrorGroup at the end; for others it is only reported, since
    it is no business of the command that comes next.
    """
    store = machine.store
    concerned = set(names)
    errors: dict[str, NisoError] = {}
    done = 0
    for activations, group in groupby(
        in_order(store, store.intents()), lambda intent: intent.action == "activate"
    ):
        with ExitStack() as locks:
            begun = []
            for found in group:
                try:
                    locks.enter_context(service_lock(found.service, 0))
                except Conflict:
                    continue
                locks.callback(_remove_lock, store, found.service)
                intent = store.intent(found.service)
                if intent is None or intent.action != found.action:  # somebody else was here
                    continue
                done += 1
                if activations:
                    begun.append(intent)
                else:
                    errors |= _finish(machine, intent, report)
                    locks.close()  # each is whole by itself
            if begun:
                machine.processes.end_unrecorded({intent.service for intent in begun})
                errors |= undo(machine, begun, report)
    for name, error in errors.items():
        report(Unfinished(name, error))
    told = [error for name, error in errors.items() if name in concerned]
    if told:
        raise ErrorGroup(told)
    return done


def _finish(machine: Machine, intent: Intent, report: Report) -> dict[str, NisoError]:
    """Finish what is no activation; what went wrong, by service."""
    name, removes = intent.service, intent.action in ("remove", "remove volumes")
    try:
        if intent.action == "ports":
            forwards.finish(machine, report)
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
    except NisoError as error:
        return {name: error}
    return {}


def locked(store: Store, services: list[str]) -> ExitStack:
    """The locks of several services, always taken in the same order; at the end those of unknown services are removed."""
    with ExitStack() as locks:
        for name in sorted(set(services)):
            locks.enter_context(service_lock(name))
            locks.callback(_remove_lock, store, name)
        return locks.pop_all()


def _remove_lock(store: Store, name: str) -> None:
    try:
        known = store.service(name) is not None
    except sqlite3.Error:
        return
    if not known:
        remove_locks(name)


def begin(store: Store, services: list[str], action: str) -> None:
    """Note the intent of all at once: if niso dies at the first, the others are finished too."""
    if services:
        with Lock(), store.transaction():
            if action not in ("activate", "restart"):
                stop.refuse(store, services)
            for name in services:
                store.begin_intent(name, action, time.time())


def end_intents(store: Store, services: list[str]) -> None:
    with Lock(), store.transaction():
        for name in services:
            store.end_intent(name)
