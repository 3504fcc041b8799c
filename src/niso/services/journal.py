"""What a service goes through once it has been activated: deactivate, remove, restart, ports; and the recovery of what a dead process left.

Every change is noted in the store (an intent) before the kernel sees it. Whoever finds an intent whose process is gone
finishes it (deactivate, remove) or undoes it (activate, restart). niso's lock is held over plan and write; a service's own lock is
held from its first change to its last, waiting for its process included.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby

from niso.base.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.plan.records import Port
from niso.reconcile.converge import Lock, Report, silent
from niso.runtime import process, spec, volumes
from niso.runtime.service_lock import remove_locks, service_lock
from niso.runtime.spec import ProcessSpec
from niso.services import ports, stop
from niso.services.undo import in_order, start_again, undo
from niso.store.store import Intent, ServiceRow, Store


def stored_spec(row: ServiceRow) -> ProcessSpec:
    """The process spec of a service's last activation."""
    return spec.parse(row.spec)


def deactivate(
    store: Store,
    services: list[str],
    report: Report = silent,
    dry_run: bool = False,
    keep_forwards: bool = False,
    needs: stop.Needs | None = None,
) -> list[tuple[str, bool]]:
    """Stop services and take down their networks; leases stay. Gives (service, whether it was active).

    With ``keep_forwards`` their forwards come back with them. Processes end at once, but those that others depend on after them.
    """
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            stop.refuse(store, services)
            stop.plan_only(store, services, report)
        return []
    recover(store, report, services)
    with locked(store, services):
        active = [
            name for name in services if (row := store.service(name)) is not None and row.active
        ]
        begin(store, active, "stop" if keep_forwards else "deactivate")
        errors = stop.finish(store, active, report, True, keep_forwards, needs)
        idle = [name for name in services if name not in active and store.forwards(name)]
        if idle and not keep_forwards:
            with Lock(), store.transaction():
                for name in idle:
                    store.end_publishing(name)
        stop.raise_all(errors)
    return [(name, name in active) for name in services]


def remove(
    store: Store, services: list[str], report: Report = silent, with_volumes: bool = False
) -> None:
    """Deactivate services and forget them, their leases, logs and copies, and ``with_volumes`` their named volumes.

    Volumes that are left of a service that is not known go too. Raises NisoError.
    """
    recover(store, report, services)
    with locked(store, services):
        known = [name for name in services if store.service(name) is not None]
        if with_volumes:
            for name in services:
                volumes.check_removable(name)  # before anything is stopped
        begin(store, known, "remove volumes" if with_volumes else "remove")
        errors = stop.finish(store, known, report, ends=False)
        ended = [name for name in known if (row := store.service(name)) and not row.active]
        stop.forget(store, ended, report, with_volumes)
        for name in services if with_volumes else ():
            if name not in known:
                volumes.remove_all(name, report)
        stop.raise_all(errors)


def remove_volumes(store: Store, services: list[str], report: Report = silent) -> None:
    """Remove the named volumes of services that are not active. Raises Conflict where one is, NisoError."""
    recover(store, report, services)
    with locked(store, services):
        for name in services:
            if (row := store.service(name)) is not None and row.active:
                raise Conflict(
                    f"service {name!r} is active, and has its volumes", f"niso deactivate {name}"
                )
            volumes.check_removable(name)
        for name in services:
            volumes.remove_all(name, report)


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay.

    Raises Conflict, NotFound, ProcessError; then those that it had stopped are started again, but one that has ended by itself.
    """
    from niso.services import start

    recover(store, report, services)
    with locked(store, services):
        rows = []
        for name in services:
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            # found before anything is stopped
            if spec.understood(row.spec) is None:
                raise spec.damaged(name, row.manifest_path)
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(
                        f"{name}: {folder} is gone", f"niso activate {row.manifest_path}"
                    )
            rows.append(row)
        begin(store, services, "restart")
        try:
            rows = _with_name_servers(store, rows)
            start.restart(rows, report)
        except BaseException:
            _end_restart(store, services, report)
            raise
        _end_intents(store, services)


def _with_name_servers(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """The rows with the resolv.conf that the host has now, and so in the store; who is on the host's own network reads that itself."""
    from niso.kernel import host_facts

    text = host_facts.resolv_conf()[0]
    said = [spec.parse(row.spec) for row in rows]
    now = [
        row._replace(spec=json.dumps(each._replace(resolv_conf=text)._asdict()))
        if each.netns
        else row
        for row, each in zip(rows, said, strict=True)
    ]
    if now != rows:
        with store.transaction():
            for row in now:
                store.put_service(row)
    return now


def _end_restart(store: Store, services: list[str], report: Report) -> None:
    """Have the processes run that a restart which came to no end has stopped. One that cannot is failed, as `niso ps` says."""
    for name in services:
        try:
            start_again(store, name)
        except NisoError as error:
            report(f"{name}: cannot be started again: {error.message}")
    _end_intents(store, services)


def port_forward(
    store: Store, name: str, port: Port, *, replace: bool = False, report: Report = silent
) -> tuple[bool, list[tuple[str, Port]]]:
    """Publish one more port of an active service, see `portmap.forward`."""
    recover(store, report, [name])
    held = ports.concerned(store, name, port, replace)
    with locked(store, sorted(held)):
        return ports.forward(store, name, port, replace, held, report)


def port_unforward(store: Store, name: str, port: Port, report: Report = silent) -> None:
    """Take away a port that `port_forward` added, see `portmap.unforward`."""
    recover(store, report, [name])
    with locked(store, [name]):
        ports.unforward(store, name, port, report)


def recover(store: Store, report: Report = silent, names: Iterable[str] = ()) -> int:
    """Finish or undo what a process that is gone left half-way; gives of how many services. What a living one is at is left to it.

    What cannot be done for one of ``names`` is raised as an ErrorGroup at the end; for others it is only reported, since
    it is no business of the command that comes next.
    """
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
                    errors |= _finish(store, intent, report)
                    locks.close()  # each is whole by itself
            if begun:
                process.end_unrecorded_conmons({intent.service for intent in begun})
                errors |= undo(store, begun, report)
    for name, error in errors.items():
        report(f"{name}: what was begun cannot be ended yet: {error.message}")
    told = [error for name, error in errors.items() if name in concerned]
    if told:
        raise ErrorGroup(told)
    return done


def _finish(store: Store, intent: Intent, report: Report) -> dict[str, NisoError]:
    """Finish what is no activation; what went wrong, by service."""
    name, removes = intent.service, intent.action in ("remove", "remove volumes")
    try:
        if intent.action == "ports":
            ports.finish(store, report)
        elif intent.action == "restart":
            report(f"end restart of {name}")
            process.end_unrecorded_conmons({name})
            _end_restart(store, [name], report)
        else:
            stop.raise_all(stop.finish(store, [name], report, not removes, intent.action == "stop"))
            if removes:
                stop.forget(store, [name], report, intent.action == "remove volumes")
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


def _end_intents(store: Store, services: list[str]) -> None:
    with Lock(), store.transaction():
        for name in services:
            store.end_intent(name)
