"""Activate services: set up their networks and start their processes, all or none; restart.

The change is recorded in the store as an intent before it reaches the kernel. If this process dies,
a later command undoes the intent (`niso.change.journal.recover`). niso's lock is held over plan and
write. A service's own lock is held from its first change to its last, including the wait for its
process.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from contextlib import ExitStack

from niso.base import paths
from niso.base.errors import Conflict, NotFound
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import CopyingPackage, Report, Stopping, silent
from niso.base.signals import signals_held
from niso.change import outside_names_refresh, sharing, start, stop
from niso.change import scope as change_scope
from niso.change.admit import Change, Membership, record_all
from niso.change.journal import begin, end_intents, end_restart, locked, recover
from niso.change.scope import concerned, scope_left, scope_of
from niso.change.start import After
from niso.change.targets import Target, apart, replaced, still_so
from niso.change.undo import undo_all
from niso.kernel import host_facts
from niso.look.host_ports import Port, rows
from niso.plan.dns_answers import Outside
from niso.plan.verdict import World
from niso.reconcile.change import change, desired_now, plan
from niso.reconcile.live_world import read_world
from niso.runtime import package
from niso.runtime.machine import Machine
from niso.store import service_rows
from niso.store.service_rows import ServiceRow
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.change import cluster_claims


# --- activate -------------------------------------------------------------------------------------


_TRIES = 10


class Outcome(NamedTuple):
    """Result of an activation for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false if the service was already active and nothing changed"""
    address: tuple[str, ...]
    """addresses, one per network and family; can be empty"""
    ports: tuple[Port, ...]
    """published ports, one per address family"""
    completed: bool
    """true for a job, which has run and exited with status 0"""


def activate(
    machine: Machine,
    targets: list[Target],
    timeout_s: float,
    report: Report = silent,
    dry_run: bool = False,
    after: start.After | None = None,
    stack: Membership | None = None,
) -> list[Outcome]:
    """Activate ``targets``; if one of them fails, roll back all.

    ``timeout_s`` and ``after`` are as for `start.run`. If a service is active, only the changes of
    its manifest are applied; an unchanged service is skipped. With ``stack``, its networks are
    created, the services join the stack, and services that are no longer in its file are stopped.
    Raises InvalidInput, Conflict, KernelError, ProcessError; then everything is rolled back.
    """
    store, kernel = machine.store, machine.kernel
    held: cluster_claims.Held | None = None
    if dry_run:
        followed = sharing.with_followers(store, targets, stack.leaving if stack else ())
        held = _held(machine, followed, stack, report, dry_run=True)
        answers = _answers(machine, targets)
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            if answers:
                store.outside.put(answers)
            return _plan_only(machine, followed, report, stack, held)
    ends = stack.leaving if stack else ()
    recover(machine, report, [*ends, *(target.name for target in targets)])
    if any(target.spec.policy.outside_names() for target in targets):
        outside_names_refresh.prepare(machine, targets, report)
    locks, targets = _locked(store, targets, ends)
    every = [*ends, *(target.name for target in targets)]
    with locks:
        try:
            fresh = _begin_copies(store, targets)
            copies = {target.name: _copy(target, fresh, report) for target in targets}
            held = _held(machine, targets, stack, report)
            leaving = _stopped(machine, targets, copies, stack, report, held)
            with Lock():
                if held is not None:
                    held.make_way(report)
                scope = _scope(store, targets, leaving, stack, held)
                with change(kernel, store, scope, report, rows_first=True) as made:
                    changes = record_all(machine, targets, copies, leaving, stack, held)
                    _bar_names(machine, targets, report)
                    start.expect(machine.processes, changes)
            start.run(machine.processes, changes, timeout_s, report, after)
            if held is not None:
                held.publish(report)
            _keep_manifests(changes)
            # the activation has succeeded: an interrupt here would only leave unused copies
            with Lock(), signals_held():
                with change_scope.leaving(machine, _left(changes), report):
                    touched = _touched(store, changes, bool(made.steps) and not leaving)
                    _drop_left(store, changes, stack)
                for done in changes:
                    package.keep_only(done.name, {done.row.package})
                for target in targets:
                    if target.contents is not None:
                        target.contents.save()
        except BaseException as error:
            _undo(machine, every, error, held, report)
            raise
        finally:
            if held is not None:
                held.close()
        if store.cluster_id():
            _tell(machine, _untold(store, every, changes, held), report)
        return [_outcome(store, done, done.name in touched) for done in changes]


def _undo(
    machine: Machine,
    every: list[str],
    error: BaseException,
    held: cluster_claims.Held | None,
    report: Report,
) -> None:
    """Undo the activation after an error. Raises ErrorGroup if that fails."""

    undo_all(machine, every, error, report)
    if held is not None and held.homes:
        _tell(machine, held.homes, report)


def _untold(
    store: Store, every: list[str], changes: list[Change], held: cluster_claims.Held | None
) -> list[str]:
    """Return the services whose claims in the cluster do not match their rows yet."""

    from niso.change import cluster_claims

    pairs = ((c.name, c.before.provider if c.before else None) for c in changes)
    untold = cluster_claims.behind(store, pairs)
    others = (name for name in every if held is None or name not in held)
    return list(dict.fromkeys((*untold, *others)))


def _tell(machine: Machine, services: Iterable[str], report: Report) -> None:
    """Publish to the cluster that services are inactive, or no longer need a claim."""

    from niso.change import cluster_claims

    cluster_claims.tell(machine, services, report)


def _locked(
    store: Store, wanted: list[Target], ends: tuple[str, ...]
) -> tuple[ExitStack, list[Target]]:
    """Lock the services, services that are being deactivated (``ends``), and their followers.

    Followers must restart if the services do. Returns the locks, and the services as read after
    locking: while this call waited, the owner of a lock may have stopped or started a sharer.
    Raises NotFound if a service was removed, Conflict if new followers keep appearing.
    """
    for _ in range(_TRIES):
        names = {*ends, *(t.name for t in wanted), *sharing.followers(store, wanted, ends)}
        with locked(store, list(names)) as locks:
            now = [still_so(store, target) for target in wanted]
            now = sharing.with_followers(store, now, ends)
            if names >= {target.name for target in now}:
                return locks.pop_all(), now
    raise Conflict("other niso commands keep starting services that share a namespace", "try again")


def _stopped(
    machine: Machine,
    targets: list[Target],
    copies: dict[str, str],
    stack: Membership | None,
    report: Report,
    held: cluster_claims.Held | None,
) -> list[ServiceRow]:
    """Stop the processes of services that leave the stack, and return the services' rows.

    A failed activation undoes this too, by intents.
    """
    if stack is None or not stack.leaving:
        return []
    store, kernel = machine.store, machine.kernel
    rows = _leaving(store, stack)
    if rows:
        # detect conflicts before anything is stopped
        with Lock():
            scope = _scope(store, targets, rows, stack, held)
            with change(kernel, store, scope, dry_run=True):
                record_all(machine, targets, copies, rows, stack, held)

    begin(store, list(stack.leaving), "activate")
    stop.raise_all(list(stop.stop(machine.processes, rows, report, stack.needs).values()))
    return rows


def _leaving(store: Store, stack: Membership | None) -> list[ServiceRow]:
    """Return the active services that leave the stack."""
    rows = [store.service(name) for name in (stack.leaving if stack else ())]
    return [row for row in rows if row is not None and row.active]


def _held(
    machine: Machine,
    targets: list[Target],
    stack: Membership | None,
    report: Report,
    dry_run: bool = False,
) -> cluster_claims.Held | None:
    """Claim what services need on networks that span hosts; None without such a network."""
    if not machine.store.cluster_id():
        return None

    from niso.change import cluster_claims

    requests = stack.networks if stack else ()
    made = [request.name for request in requests if not request.span]
    unobserved = [request.name for request in requests if not request.observe]
    return cluster_claims.prepare(machine, targets, made, report, dry_run, unobserved)


def _scope(
    store: Store,
    targets: list[Target],
    leaving: list[ServiceRow],
    stack: Membership | None,
    held: cluster_claims.Held | None,
) -> Scope:
    made = [
        request.name
        for request in (stack.networks if stack else ())
        if store.network(request.name) is None
    ]
    # the name of a service that shares a namespace resolves only while it is active
    shared = store.names_with(store.with_companions(row.name for row in leaving if row.provider))
    names = (*shared, *(("network", name) for name in made))
    scope = scope_of(store, targets).joined(
        concerned(store, (row.name for row in leaving), names=names)
    )
    return scope if held is None else scope.joined(held.scope())


def _touched(store: Store, changes: list[Change], steps: bool) -> set[str]:
    """Return the services whose rows an activation changed.

    If no row changed but the kernel did (``steps``), returns all services.
    """
    changed = {
        change.name
        for change in changes
        if change.restarts
        or (intent := store.intent(change.name)) is None
        or not store.is_as_before(intent)
    }
    return {change.name for change in changes} if steps and not changed else changed


def _begin_copies(store: Store, targets: list[Target]) -> list[str]:
    """Begin the intents of services whose package niso must copy; return these services.

    If this process is killed, recovery deletes the copies.
    """
    fresh = [target.name for target in targets if _is_fresh(target)]
    begin(store, fresh, "activate")
    return fresh


def _is_fresh(target: Target) -> bool:
    """Return whether niso must copy the package of a service."""
    return target.fingerprint is not None and not package.is_copied(
        target.name,
        target.fingerprint,
        target.folder,
        apart(target.rootfs, target.spec),
        target.manifest_path,
    )


def _copy_path(target: Target) -> str:
    """Return the path of the package copy."""
    if target.fingerprint is None:
        return target.folder
    return os.path.join(paths.package_dir(target.name), target.fingerprint)


def _copy(target: Target, fresh: Container[str], report: Report) -> str:
    """Return the path of a service's package copy.

    If the service is in ``fresh``, the copy is created first.
    """
    if target.name in fresh and target.fingerprint is not None and target.contents is not None:
        if target.folder:  # a service of a stack.toml may have no package
            report(CopyingPackage(target.folder))
        package.copy(
            target.name,
            target.folder,
            apart(target.rootfs, target.spec),
            target.fingerprint,
            target.contents,
            target.manifest_path,
            target.spec,
        )
    return _copy_path(target)


def _keep_manifests(changes: Iterable[Change]) -> None:
    """Write the active manifests into package copies that have other ones. Raises Error."""
    for one in changes:
        package.keep_manifest(one.row.package, one.row.require_service())


def foreseen(
    machine: Machine, targets: list[Target], stack: Membership | None = None
) -> tuple[World, World]:
    """Return services and networks before and after `activate`, as two policy contexts.

    Nothing changes. Raises the errors of `activate`.
    """

    store, kernel = machine.store, machine.kernel
    followed = sharing.with_followers(store, targets, stack.leaving if stack else ())
    held = _held(machine, followed, stack, silent, dry_run=True)
    answers = _answers(machine, targets)
    with Lock(), store.transaction() as transaction:
        transaction.cancel()
        before = read_world(kernel, store)
        if answers:
            store.outside.put(answers)
        _plan_only(machine, followed, silent, stack, held)
        return before, read_world(kernel, store)


def _bar_names(machine: Machine, targets: list[Target], report: Report) -> None:
    """Remove addresses of DNS names that are in networks which the command creates."""
    if any(target.spec.policy.outside_names() for target in targets):
        outside_names_refresh.bar(machine, targets, report)


def _answers(machine: Machine, targets: list[Target]) -> list[Outside]:
    """Resolve the DNS names in the services' policies without recording the answers."""
    if not any(target.spec.policy.outside_names() for target in targets):
        return []

    return outside_names_refresh.look(machine, targets)


def _plan_only(
    machine: Machine,
    targets: list[Target],
    report: Report,
    stack: Membership | None,
    held: cluster_claims.Held | None,
) -> list[Outcome]:
    store, kernel = machine.store, machine.kernel
    for target in filter(_is_fresh, targets):
        if target.folder:
            report(CopyingPackage(target.folder))
    copies = {target.name: _copy_path(target) for target in targets}
    leaving = _leaving(store, stack)
    for row in leaving:
        report(Stopping(row.name))
    scope = _scope(store, targets, leaving, stack, held)
    before = desired_now(kernel, store, scope)
    changes = record_all(machine, targets, copies, leaving, stack, held)
    _bar_names(machine, targets, report)
    steps = plan(kernel, store, scope, before).steps
    for step in steps:
        report(step)
    for done in changes:
        if done.rehosts:
            report(start.event_of(done))
    for done in changes:
        if done.restarts:
            if done.before is not None and done.before.active:
                report(Stopping(done.name))
            report(start.event_of(done))
    touched = _touched(store, changes, bool(steps) and not leaving)
    left = _left(changes)
    scope = scope_left(store, left)
    before = desired_now(kernel, store, scope)
    _drop_left(store, changes, stack)
    reported = set(steps)  # these were not carried out, so the next plan contains them again
    for step in plan(kernel, store, scope, before).steps if left else []:
        if step not in reported:
            report(step)
    return [_outcome(store, done, done.name in touched) for done in changes]


def _left(changes: list[Change]) -> set[str]:
    """Return the networks that services have left."""
    return {
        name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)
    }


def _drop_left(store: Store, changes: list[Change], stack: Membership | None) -> None:
    """End the intents and drop unused implicit networks."""
    for name in (*(done.name for done in changes), *(stack.leaving if stack else ())):
        store.end_intent(name)
    store.drop_implicit_networks(_left(changes))


def _outcome(store: Store, change: Change, changed: bool) -> Outcome:
    addresses = tuple(address for _, address in store.addresses(change.name))
    ports = rows((port for _, port in store.ports(change.name)), store.port_families(change.name))
    is_job = change.target.spec.kind == "job"
    return Outcome(change.name, changed, addresses, ports, is_job)


# --- restart --------------------------------------------------------------------------------------


def restart(
    machine: Machine,
    services: list[str],
    report: Report = silent,
    after: After | None = None,
) -> None:
    """Restart the processes of active services; namespace, addresses and ports stay.

    ``after`` is as for `start.run`, among these services. Raises Conflict, NotFound, ProcessError.
    After an error, niso starts the stopped processes again, except those that exited by themselves.
    """

    store = machine.store
    recover(machine, report, services)
    with locked(store, services):
        rows = []
        for name in services:
            row = store.require_active(name)
            # detect errors before anything is stopped
            row.require_process()
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(f"{folder} is gone", row.again, service=name)
            replaced(row)
            rows.append(row)
        begin(store, services, "restart")
        try:
            rows = _refreshed(store, rows)
            start.restart(machine.processes, rows, report, after)
            end_intents(store, services)
        except BaseException:
            end_restart(machine, services, report)
            raise


def _refreshed(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """Update the stored rows with the host's present resolv.conf, and return them.

    Services in the host's network read that file directly.
    """
    now = []
    for row in rows:
        old = row.require_process()
        text = host_facts.resolv_conf(old.dns, old.dns_search)[0]
        spec = old._replace(resolv_conf=text) if old.netns else old
        now.append(row._replace(spec=service_rows.encode_process(spec)) if spec != old else row)
    if now != rows:
        with store.transaction():
            for row in now:
                store.put_service(row)
    return now
