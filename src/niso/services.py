"""What a service goes through: activate, deactivate, remove, restart, and the recovery of what a dead process left.

Every change is noted in the store (an intent) before the kernel sees it. Whoever finds an intent whose process is gone
finishes it (deactivate, remove) or undoes it (activate). niso's lock is held over plan and write; a service's own lock is
held from its first change to its last, waiting for its process included.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from niso import ending, forwarding, membership, names, package, paths, policies, portmap, starting
from niso.admission import Change, record, release, scope_of
from niso.apply import Lock, Report, carry_out, converge, desired_now, plan, silent
from niso.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.kernel import netns
from niso.kernel.write import remove_hosts
from niso.membership import Membership
from niso.records import Port
from niso.runtime import process, spec
from niso.runtime.lock import remove_locks, service_lock
from niso.runtime.spec import ProcessSpec
from niso.state import State
from niso.store.store import Intent, Scope, ServiceRow, Store
from niso.targets import Target, still_so


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
) -> list[Outcome]:
    """Make all ``targets`` active, all or none; their processes start in the order that ``after`` asks for (`starting.run`).

    An active service whose manifest changed gets the difference; one that is as it should be is left alone. With ``stack`` they
    belong to it from then on, its networks are made, and those that leave it end. Raises InvalidInput, Conflict, KernelError,
    ProcessError; then everything is as before.
    """
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            return _plan_only(store, targets, report, stack)
    every = [*(stack.leaving if stack else ()), *(target.name for target in targets)]
    recover(store, report, every)
    with _locked(store, every):
        targets = [still_so(store, target) for target in targets]
        changes: list[Change] = []
        try:
            _begin_copies(store, targets)
            copies = {target.name: _copy(target, report) for target in targets}
            leaving = _stopped(store, targets, copies, stack, report)
            with Lock():
                scope = _scope(store, targets, leaving)
                with store.transaction():
                    before = desired_now(store, scope)
                    recorded = _recorded(store, targets, copies, leaving, stack)
                    # what is somebody else's is found before anything is on record or changed
                    planned = plan(store, scope, before, trusting=True)
                changes += recorded
                policies.introduce(store, before, planned.want)
                steps = carry_out(store, scope, before, planned, report)
                reached = desired_now(store, scope)
                ending.flush(before, reached)
                portmap.flush(before, reached)
                if policies.touched(before, reached):
                    policies.cut(store, [change.name for change in changes])
            starting.run(changes, timeout_s, report, after)
            with Lock(), store.transaction():
                touched = _touched(store, changes, bool(steps))
                scope, before = _drop_left(store, changes, stack)
                if scope.networks:
                    converge(store, scope, before, report, teardown=True)
        except BaseException as error:
            _undo_all(store, every, error, report)
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
            scope = _scope(store, targets, rows)
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


def _scope(store: Store, targets: list[Target], leaving: list[ServiceRow]) -> Scope:
    scope = scope_of(store, targets)
    names = (*(scope.services or ()), *(row.name for row in leaving))
    on = {*(scope.networks or ()), *(network for row in leaving for network in row.networks)}
    return Scope(names, tuple(sorted(on)), names=store.names_with(names))


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
    scope = _scope(store, targets, leaving)
    before = desired_now(store, scope)
    changes = _recorded(store, targets, copies, leaving, stack)
    steps = plan(store, scope, before).steps
    for step in steps:
        report(step.describe())
    for change in changes:
        if change.restarts:
            if change.before is not None and change.before.active:
                report(f"stop {change.name}")
            report(starting.words(change.row))
    touched = _touched(store, changes, bool(steps))
    scope, before = _drop_left(store, changes, stack)
    for step in plan(store, scope, before).steps if scope.networks else []:
        report(step.describe())
    return [_outcome(store, change, change.name in touched) for change in changes]


def _drop_left(store: Store, changes: list[Change], stack: Membership | None) -> tuple[Scope, State]:
    """End the intents and drop the networks that nobody is on any more; the scope that this changed, and its state before."""
    for name in (*(change.name for change in changes), *(stack.leaving if stack else ())):
        store.end_intent(name)
    left = {name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)}
    scope = Scope((), tuple(sorted(left)))
    before = desired_now(store, scope)
    store.drop_implicit_networks(left)
    return scope, before


def stored_spec(row: ServiceRow) -> ProcessSpec:
    """The process spec of a service's last activation."""
    return spec.parse(row.spec)


def _undo_all(store: Store, names: list[str], cause: BaseException, report: Report) -> None:
    """Bring all back as it was; what cannot be undone is added to the error that caused it."""
    errors: list[NisoError] = []
    for name in reversed(names):
        intent = store.intent(name)
        if intent is None:
            continue
        try:
            _undo(store, intent, report)
        except NisoError as error:
            errors.append(error)
        except (OSError, sqlite3.Error) as error:
            errors.append(NisoError(f"{name}: its activation is not undone yet: {error}", "niso net repair"))
    if errors and isinstance(cause, NisoError):
        raise ErrorGroup([cause, *errors]) from cause


def _undo(store: Store, intent: Intent, report: Report) -> None:
    """Undo a begun activation; the caller holds the service's lock."""
    name = intent.service
    report(f"undo activation of {name}")
    if not store.is_as_before(intent):
        _undo_record(store, intent, report)
    restored = store.service(name)
    failure: NisoError | None = None
    if restored is not None and restored.active and process.status(name).state in ("none", "failed"):
        try:
            process.start(stored_spec(restored))
        except NisoError as error:
            failure = error
    _forget_failed(name, restored)
    with Lock(), store.transaction():
        store.end_intent(name)
    if failure is not None:
        raise failure


def _undo_record(store: Store, intent: Intent, report: Report) -> None:
    """Put a service's rows and network back; a process that is not of these ends."""
    name = intent.service
    now = store.service(name)
    saved = json.loads(intent.undo)["service"]
    old_spec = saved[0][ServiceRow._fields.index("spec")] if saved else None
    if now is None or old_spec is None or not _runs_with(name, old_spec):
        process.stop(name, 0)
    # the kernel follows inside the transaction: if niso dies here the intent is found again, with all that it is about
    with Lock(), store.transaction():
        on = now.networks if now else ()
        names_before = store.names_with([name])
        before = desired_now(store, Scope((name,), on, names=names_before))
        store.undo(intent)
        forwarding.note_late(store)
        restored = store.service(name)
        scope = Scope((name,), (*on, *(restored.networks if restored else ())), names=names_before)
        converge(store, scope, before, report, teardown=True)
        if restored is None or not restored.active:
            netns.clear_unfinished(names.netns(name))
        after = desired_now(store, scope)
        for file in before.hosts_files - after.hosts_files:
            remove_hosts(file.folder)  # a kill may have left one that was being made, which reads as none
        ending.flush(before, after)
        forwarding.forget(store)
    ending.settle(before)


def _forget_failed(name: str, kept: ServiceRow | None) -> None:
    """Delete the copies that a failed activation made, and the log of a service that is not known without it."""
    package.keep_only(name, {kept.package} if kept else set())
    if kept is None:
        package.delete_tree(paths.log_dir(name))


def _runs_with(name: str, spec_text: str) -> bool:
    return spec.load(name) == spec.parse(spec_text) and process.runs(name)


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


def remove(store: Store, services: list[str], report: Report = silent) -> None:
    """Deactivate services and forget them, their leases, logs and copies. Raises NisoError."""
    recover(store, report, services)
    with _locked(store, services):
        known = [name for name in services if store.service(name) is not None]
        _begin(store, known, "remove")
        errors = ending.finish(store, known, report, ends=False)
        ending.forget(store, [name for name in known if (row := store.service(name)) and not row.active], report)
        ending.raise_all(errors)


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay."""
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
        starting.restart(rows, report)


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


def recover(store: Store, report: Report = silent, names: Iterable[str] = ()) -> None:
    """Finish or undo what a process that is gone left half-way. What a living one is at is left to it.

    What cannot be done for one of ``names`` is raised as an ErrorGroup at the end; for others it is only reported, since
    it is no business of the command that comes next.
    """
    errors: list[NisoError] = []
    concerned = set(names)
    for found in store.intents():
        try:
            lock = service_lock(found.service, 0)
            lock.__enter__()
        except Conflict:
            continue
        try:
            intent = store.intent(found.service)
            if intent is None:
                continue
            if intent.action == "ports":
                portmap.finish(store, report)
            elif intent.action == "activate":
                _undo(store, intent, report)
            else:
                ending.raise_all(
                    ending.finish(store, [intent.service], report, intent.action != "remove", intent.action == "stop")
                )
                if intent.action == "remove":
                    ending.forget(store, [intent.service], report)
        except NisoError as error:
            report(f"{found.service}: what was begun cannot be ended yet: {error.message}")
            if found.service in concerned:
                errors.append(error)
        finally:
            _remove_lock(store, found.service)
            lock.__exit__()
    if errors:
        raise ErrorGroup(errors)


def _locked(store: Store, services: list[str]) -> ExitStack:
    """The locks of several services, always taken in the same order; at the end those of unknown services are removed."""
    with ExitStack() as locks:
        for name in sorted(services):
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
            for name in services:
                store.begin_intent(name, action, time.time())
