"""What a service goes through: activate, deactivate, remove, restart, and the recovery of what a dead process left.

Every change is noted in the store (an intent) before the kernel sees it. Whoever finds an intent whose process is gone
finishes it (deactivate, remove) or undoes it (activate, restart). niso's lock is held over plan and write; a service's own lock is
held from its first change to its last, waiting for its process included.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import groupby

from niso import ending, membership, names, package, paths, policies, portmap, sharing, starting
from niso.admission import Change, record, release, scope_of
from niso.apply import Lock, Report, carry_out, converge, desired_now, plan, silent
from niso.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.membership import Membership
from niso.records import Port
from niso.recovery import in_order, start_again, undo, undo_all
from niso.runtime import spec, volumes
from niso.runtime.lock import remove_locks, service_lock
from niso.runtime.spec import ProcessSpec
from niso.state import State
from niso.store.store import Intent, Scope, ServiceRow, Store
from niso.targets import Target, still_so
from niso.typed import NamedTuple


class Outcome(NamedTuple):
    service: str
    changed: bool
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]


# --- activate --------------------------------------------------------------------------------------------------------


def activate(
    store: Store,
    targets: list[Target],
    timeout_s: float,
    report: Report = silent,
    dry_run: bool = False,
    after: starting.After | None = None,
    stack: Membership | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> list[Outcome]:
    """Make all ``targets`` active, all or none; their processes start as ``after`` and ``meanwhile`` say (`starting.run`).

    An active service whose manifest changed gets the difference; one that is as it should be is left alone. With ``stack`` they
    belong to it from then on, its networks are made, and those that leave it end. Raises InvalidInput, Conflict, KernelError,
    ProcessError; then everything is as before.
    """
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            return _plan_only(
                store, sharing.with_followers(store, targets, stack.leaving if stack else ()), report, stack
            )
    recover(store, report, [*(stack.leaving if stack else ()), *(target.name for target in targets)])
    targets = sharing.with_followers(store, targets, stack.leaving if stack else ())
    every = [*(stack.leaving if stack else ()), *(target.name for target in targets)]
    with _locked(store, every):
        targets = [still_so(store, target) for target in targets]
        changes: list[Change] = []
        try:
            _begin_copies(store, targets)
            copies = {target.name: _copy(target, report) for target in targets}
            leaving = _stopped(store, targets, copies, stack, report)
            with Lock():
                scope = _scope(store, targets, leaving, stack)
                with store.transaction():
                    before = desired_now(store, scope)
                    known = {(names.netns(t.name), address) for t in targets for _, address in store.addresses(t.name)}
                    recorded = _recorded(store, targets, copies, leaving, stack)
                    # what is somebody else's is found before anything is on record or changed
                    planned = plan(store, scope, before, trusting=True)
                changes += recorded
                policies.introduce(store, before, planned.want)
                steps = carry_out(store, scope, before, planned, report, known=known)
                reached = desired_now(store, scope)
                ending.flush(before, reached)
                portmap.flush(before, reached)
                if policies.narrows(before, reached):
                    # a name that shared an address may have been what let it
                    shared = [row.provider for row in (*(c.before for c in changes), *leaving) if row and row.provider]
                    policies.cut(store, [*(change.name for change in changes), *shared])
            starting.run(changes, timeout_s, report, after, meanwhile)
            with Lock(), store.transaction():
                touched = _touched(store, changes, bool(steps))
                scope, before = _drop_left(store, changes, stack)
                if scope.networks:
                    converge(store, scope, before, report, teardown=True)
        except BaseException as error:
            undo_all(store, every, error, report)
            raise
        for change in changes:
            package.keep_only(change.name, {change.row.package})
        return [_outcome(store, change, change.name in touched) for change in changes]


def _stopped(
    store: Store, targets: list[Target], copies: dict[str, str], stack: Membership | None, report: Report
) -> list[ServiceRow]:
    """The services that leave the stack, their processes stopped; what ends them is undone like an activation."""
    if stack is None or not stack.leaving:
        return []
    rows = _leaving(store, stack)
    if rows:
        # what cannot be is found before anything is stopped
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            scope = _scope(store, targets, rows, stack)
            before = desired_now(store, scope)
            _recorded(store, targets, copies, rows, stack)
            plan(store, scope, before, trusting=True)
    _begin(store, list(stack.leaving), "activate")
    ending.raise_all(list(ending.stop(rows, report, stack.needs).values()))
    return rows


def _leaving(store: Store, stack: Membership | None) -> list[ServiceRow]:
    """The active services that leave the stack."""
    rows = [store.service(name) for name in (stack.leaving if stack else ())]
    return [row for row in rows if row is not None and row.active]


def _scope(store: Store, targets: list[Target], leaving: list[ServiceRow], stack: Membership | None) -> Scope:
    scope = scope_of(store, targets)
    # a name of one that shares a namespace stands for an address while it is active
    concerned = {*scope.names, *store.names_with(store.with_companions(row.name for row in leaving if row.provider))}
    made = (wish.name for wish in (stack.networks if stack else ()) if store.network(wish.name) is None)
    concerned.update(("network", name) for name in made)
    names = (*(scope.services or ()), *store.with_companions(row.name for row in leaving))
    on = {*(scope.networks or ()), *(network for row in leaving for network in row.networks)}
    return Scope(names, tuple(sorted(on)), names=tuple(sorted(concerned)))


def _recorded(
    store: Store, targets: list[Target], copies: dict[str, str], leaving: list[ServiceRow], stack: Membership | None
) -> list[Change]:
    if stack is not None:
        membership.prepare(store, stack, copies)
        ending.go(store, leaving)
    for target in targets:
        release(store, target)
    together = frozenset((*copies, *(row.name for row in leaving)))
    changes = [record(store, target, copies[target.name], together) for target in targets]
    sharing.check(store, [change.row for change in changes], leaving)
    if stack is not None:
        for change in changes:
            store.join_stack(change.name, stack.stack)
    return changes


def _touched(store: Store, changes: list[Change], steps: bool) -> set[str]:
    """The services that an activation has changed, by their rows; all of them where the kernel alone was not as it should be."""
    found = {
        change.name
        for change in changes
        if change.restarts or (intent := store.intent(change.name)) is None or not store.is_as_before(intent)
    }
    return {change.name for change in changes} if steps and not found else found


def _begin_copies(store: Store, targets: list[Target]) -> None:
    """Note the intent of those whose package must be copied first: whoever finds it removes the copy."""
    fresh = [t.name for t in targets if t.fingerprint is not None and not package.is_copied(t.name, t.fingerprint)]
    _begin(store, fresh, "activate")


def _copy_path(target: Target, report: Report) -> str:
    """Where the copy of the package is, or will be."""
    if target.fingerprint is None:
        return target.folder
    if not package.is_copied(target.name, target.fingerprint):
        report(f"copy package {target.folder}")
    return os.path.join(paths.package_dir(target.name), target.fingerprint)


def _copy(target: Target, report: Report) -> str:
    path = _copy_path(target, report)
    if target.fingerprint is not None:
        package.copy(target.name, target.folder, target.rootfs, target.fingerprint, target.manifest_path)
    return path


def _plan_only(store: Store, targets: list[Target], report: Report, stack: Membership | None) -> list[Outcome]:
    copies = {target.name: _copy_path(target, report) for target in targets}
    leaving = _leaving(store, stack)
    for row in leaving:
        report(f"stop {row.name}")
    scope = _scope(store, targets, leaving, stack)
    before = desired_now(store, scope)
    changes = _recorded(store, targets, copies, leaving, stack)
    steps = plan(store, scope, before).steps
    for step in steps:
        report(step.describe())
    for change in changes:
        if change.rehosts:
            report(starting.words(change))
    for change in changes:
        if change.restarts:
            if change.before is not None and change.before.active:
                report(f"stop {change.name}")
            report(starting.words(change))
    touched = _touched(store, changes, bool(steps))
    scope, before = _drop_left(store, changes, stack)
    said = {step.describe() for step in steps}  # the kernel has not done them, so they are found again
    for step in plan(store, scope, before).steps if scope.networks else []:
        if step.describe() not in said:
            report(step.describe())
    return [_outcome(store, change, change.name in touched) for change in changes]


def _drop_left(store: Store, changes: list[Change], stack: Membership | None) -> tuple[Scope, State]:
    """End the intents and drop the networks that nobody is on any more; the scope that this changed, and its state before."""
    for name in (*(change.name for change in changes), *(stack.leaving if stack else ())):
        store.end_intent(name)
    left = {name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)}
    scope = Scope((), tuple(sorted(left)), names=tuple(("network", name) for name in sorted(left)))
    before = desired_now(store, scope)
    store.drop_implicit_networks(left)
    return scope, before


def stored_spec(row: ServiceRow) -> ProcessSpec:
    """The process spec of a service's last activation."""
    return spec.parse(row.spec)


def _outcome(store: Store, change: Change, changed: bool) -> Outcome:
    addresses = tuple(address for _, address in store.addresses(change.name))
    ports = tuple(port for _, port in store.ports(change.name))
    return Outcome(change.name, changed, addresses, ports)


# --- deactivate, remove, restart -------------------------------------------------------------------------------------


def deactivate(
    store: Store,
    services: list[str],
    report: Report = silent,
    dry_run: bool = False,
    keep_forwards: bool = False,
    needs: ending.Needs | None = None,
) -> list[tuple[str, bool]]:
    """Stop services and take down their networks; leases stay. Gives (service, whether it was active).

    With ``keep_forwards`` their forwards come back with them. Processes end at once, but those that others depend on after them.
    """
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            sharing.refuse_end(store, services)
            ending.plan_only(store, services, report)
        return []
    recover(store, report, services)
    with _locked(store, services):
        active = [name for name in services if (row := store.service(name)) is not None and row.active]
        _begin(store, active, "stop" if keep_forwards else "deactivate")
        errors = ending.finish(store, active, report, True, keep_forwards, needs)
        idle = [name for name in services if name not in active and store.forwards(name)]
        if idle and not keep_forwards:
            with Lock(), store.transaction():
                for name in idle:
                    store.end_publishing(name)
        ending.raise_all(errors)
    return [(name, name in active) for name in services]


def remove(store: Store, services: list[str], report: Report = silent, with_volumes: bool = False) -> None:
    """Deactivate services and forget them, their leases, logs and copies, and ``with_volumes`` their named volumes.

    Volumes that are left of a service that is not known go too. Raises NisoError.
    """
    recover(store, report, services)
    with _locked(store, services):
        known = [name for name in services if store.service(name) is not None]
        if with_volumes:
            for name in services:
                volumes.check_removable(name)  # before anything is stopped
        _begin(store, known, "remove volumes" if with_volumes else "remove")
        errors = ending.finish(store, known, report, ends=False)
        ended = [name for name in known if (row := store.service(name)) and not row.active]
        ending.forget(store, ended, report, with_volumes)
        for name in services if with_volumes else ():
            if name not in known:
                volumes.remove_all(name, report)
        ending.raise_all(errors)


def remove_volumes(store: Store, services: list[str], report: Report = silent) -> None:
    """Remove the named volumes of services that are not active. Raises Conflict where one is, NisoError."""
    recover(store, report, services)
    with _locked(store, services):
        for name in services:
            if (row := store.service(name)) is not None and row.active:
                raise Conflict(f"service {name!r} is active, and has its volumes", f"niso deactivate {name}")
            volumes.check_removable(name)
        for name in services:
            volumes.remove_all(name, report)


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay.

    Raises Conflict, NotFound, ProcessError; then those that it had stopped are started again, but one that has ended by itself.
    """
    recover(store, report, services)
    with _locked(store, services):
        rows = []
        for name in services:
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            # found before anything is stopped
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(f"{name}: {folder} is gone", f"niso activate {row.manifest_path}")
            rows.append(row)
        _begin(store, services, "restart")
        try:
            starting.restart(rows, report)
        except BaseException:
            _end_restart(store, services, report)
            raise
        _end_intents(store, services)


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
    held = portmap.concerned(store, name, port, replace)
    with _locked(store, sorted(held)):
        return portmap.forward(store, name, port, replace, held, report)


def port_unforward(store: Store, name: str, port: Port, report: Report = silent) -> None:
    """Take away a port that `port_forward` added, see `portmap.unforward`."""
    recover(store, report, [name])
    with _locked(store, [name]):
        portmap.unforward(store, name, port, report)


def recover(store: Store, report: Report = silent, names: Iterable[str] = ()) -> int:
    """Finish or undo what a process that is gone left half-way; gives of how many services. What a living one is at is left to it.

    What cannot be done for one of ``names`` is raised as an ErrorGroup at the end; for others it is only reported, since
    it is no business of the command that comes next.
    """
    concerned = set(names)
    errors: dict[str, NisoError] = {}
    done = 0
    for activations, group in groupby(in_order(store, store.intents()), lambda intent: intent.action == "activate"):
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
            errors |= undo(store, begun, report) if begun else {}
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
            portmap.finish(store, report)
        elif intent.action == "restart":
            report(f"end restart of {name}")
            _end_restart(store, [name], report)
        else:
            ending.raise_all(ending.finish(store, [name], report, not removes, intent.action == "stop"))
            if removes:
                ending.forget(store, [name], report, intent.action == "remove volumes")
    except NisoError as error:
        return {name: error}
    return {}


def _locked(store: Store, services: list[str]) -> ExitStack:
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


def _begin(store: Store, services: list[str], action: str) -> None:
    """Note the intent of all at once: if niso dies at the first, the others are finished too."""
    if services:
        with Lock(), store.transaction():
            if action not in ("activate", "restart"):
                sharing.refuse_end(store, services)
            for name in services:
                store.begin_intent(name, action, time.time())


def _end_intents(store: Store, services: list[str]) -> None:
    with Lock(), store.transaction():
        for name in services:
            store.end_intent(name)
