"""Activate services: create their networks and start their processes. Restart services.

If one service of a command fails, all are rolled back. niso's lock is locked while the change is
planned and written, a service's own lock until its process has started.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from niso.base.errors import Conflict, NotFound, raise_all
from niso.base.locks import Lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.report import CopyingPackage, Report, Stopping, silent
from niso.base.signals import signals_held
from niso.change import outside_names_refresh, sharing, start, stop
from niso.change.admit import NO_STACK, Change, NoClaims, StackMembership, record_all
from niso.change.journal import begin, end_restart, locked, recover
from niso.change.scope import leaving, scope_left, scope_of
from niso.change.start import After
from niso.change.targets import Target, replaced
from niso.change.undo import undo_all
from niso.kernel import host_facts
from niso.look.host_ports import Port, rows
from niso.plan.verdict import PolicyContext
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


_TRIES = 10


class Outcome(NamedTuple):
    """Result of an activation for one service."""

    service: str  # the service's name
    changed: bool  # false if the service was already active and nothing changed
    address: tuple[str, ...]  # addresses, one per network and family; can be empty
    ports: tuple[Port, ...]  # published ports, one per address family
    completed: bool  # true for a job, which has run and exited with status 0


def activate(
    machine: Machine,
    targets: list[Target],
    timeout_s: float,
    report: Report = silent,
    dry_run: bool = False,
    after: After | None = None,
    stack: StackMembership = NO_STACK,
) -> list[Outcome]:
    """Activate ``targets``; if one of them fails, roll back all of them.

    ``timeout_s`` (seconds) and ``after`` are those of `start.run`. With ``stack``, its networks are
    created, the services join it, and services no longer in its file are stopped. Raises
    InvalidInput, Conflict, KernelError or ProcessError after the roll-back.
    """
    if dry_run:
        return _planned(machine, targets, stack, report)
    names = [*stack.leaving, *(target.name for target in targets)]
    recover(machine, report, names)
    outside_names_refresh.prepare(machine, targets, report)
    locks, targets = _locked(machine.store, targets, stack)
    with locks:
        activation = _Activation(machine, targets, stack, report)
        try:
            activation.copy_packages()
            activation.claim()
            activation.stop_leaving()
            changes = activation.change()
            start.run(machine.processes, changes, timeout_s, report, after)
            activation.claims.publish(report)
            changed = activation.finish(changes)
        except BaseException as error:
            activation.undo(error)
            raise
        finally:
            activation.claims.close()
        activation.release_claims(changes)
        return [_outcome(machine.store, done, done.name in changed) for done in changes]


def foreseen(
    machine: Machine, targets: list[Target], stack: StackMembership = NO_STACK
) -> tuple[PolicyContext, PolicyContext]:
    """Return what policies would be evaluated against before and after `activate`."""
    worlds: list[PolicyContext] = []
    observe = lambda: worlds.append(read_world(machine.kernel, machine.store))  # noqa: E731
    _planned(machine, targets, stack, silent, observe)
    return worlds[0], worlds[1]


def _planned(
    machine: Machine,
    targets: list[Target],
    stack: StackMembership,
    report: Report,
    observe: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Report the steps of `activate` without carrying them out, and return the planned outcomes.

    ``observe`` is called twice in a transaction that is cancelled afterwards: with the present
    rows, and with the rows that the activation would write.
    """
    store = machine.store
    targets = sharing.with_followers(store, targets, stack.leaving)
    activation = _Activation(machine, targets, stack, report)
    activation.claim(dry_run=True)
    answers = outside_names_refresh.look(machine, targets)
    with Lock(), store.transaction() as transaction:
        transaction.cancel()
        observe()
        store.outside.put(answers)
        outcomes = activation.plan()
        observe()
        return outcomes


def _locked(
    store: Store, wanted: list[Target], stack: StackMembership
) -> tuple[ExitStack, list[Target]]:
    """Lock the services, those that leave the stack, and those that must restart with them.

    The targets are read again under the locks. Raises NotFound if a service was removed, and
    Conflict if more services keep appearing.
    """
    names = {*stack.leaving, *(target.name for target in wanted)}
    for _ in range(_TRIES):
        with locked(store, list(names)) as locks:
            now = sharing.with_followers(store, wanted, stack.leaving)
            missing = {target.name for target in now} - names
            if not missing:
                return locks.pop_all(), now
            names |= missing
    raise Conflict("other niso commands keep starting services that share a namespace", "try again")


class _Activation:
    """The steps of one activation. The caller must have locked its services."""

    def __init__(
        self, machine: Machine, targets: list[Target], stack: StackMembership, report: Report
    ) -> None:
        self._machine, self._store, self._kernel = machine, machine.store, machine.kernel
        self._targets, self._stack, self._report = targets, stack, report
        self._names = [*stack.leaving, *(target.name for target in targets)]
        self._files = [(target, files) for target in targets if (files := target.files) is not None]
        self._copies = {target.name: files.copy_path(target.name) for target, files in self._files}
        self._leaving: list[ServiceRow] = []
        """Rows of the active services that leave the stack."""
        self._has_steps = False
        """Whether the activation changed, or would change, an object of the kernel."""
        self.claims: cluster_claims.ActivationClaims | NoClaims = NoClaims()
        """The names and addresses that the services have reserved in etcd."""

    # --- the steps, in order ------------------------------------------------------------------
    def copy_packages(self) -> None:
        """Copy changed packages; by the intents recorded first, recovery deletes the copies."""
        fresh = self._fresh()
        begin(self._store, [target.name for target, _ in fresh], "activate")
        for target, files in fresh:
            self._report_copy(files)
            files.copy(target.spec, target.manifest_path)

    def claim(self, dry_run: bool = False) -> None:
        """Reserve in etcd, or with ``dry_run`` only check, what the services need."""
        if not self._store.cluster_id():
            return
        from niso.change import cluster_claims

        requests = self._stack.networks
        made = [request.name for request in requests if not request.span]
        unobserved = [request.name for request in requests if not request.observe]
        self.claims = cluster_claims.prepare(
            self._machine, self._targets, made, self._report, dry_run, unobserved
        )

    def stop_leaving(self) -> None:
        """Stop the services that leave the stack, unless the new rows are refused."""
        self._find_leaving()
        if self._leaving:
            # detect conflicts before anything is stopped
            with Lock(), change(self._kernel, self._store, self._scope(), dry_run=True):
                self._record()
        begin(self._store, [*self._stack.leaving], "activate")
        ended = stop.stop(self._machine.processes, self._leaving, self._report, {})
        raise_all([*ended.values()])

    def change(self) -> list[Change]:
        """Write the rows of the services, and change the kernel to match."""
        with Lock():
            self.claims.remove_displaced(self._report)
            scope = self._scope()
            with change(self._kernel, self._store, scope, self._report, rows_first=True) as made:
                changes = self._record()
                outside_names_refresh.bar(self._machine, self._targets, self._report)
        self._has_steps = bool(made.steps)
        return changes

    def finish(self, changes: list[Change]) -> set[str]:
        """Delete intents, unused networks and old copies; return the services that changed."""
        for done in changes:
            package.keep_manifest(done.row.package, done.target.spec)
        left = _left(changes)
        # the activation has succeeded: an interrupt here would only leave unused copies
        with Lock(), signals_held():
            with leaving(self._machine, left, self._report):
                changed = self._changed(changes)
                self._end(left)
            for done in changes:
                package.keep_only(done.row.name, {done.row.package})
            for _, files in self._files:
                if files.contents is not None:
                    files.contents.save()
        return changed

    def release_claims(self, changes: list[Change]) -> None:
        """Report to the cluster which services were stopped or need no reservation in etcd now."""
        if not self._store.cluster_id():
            return
        from niso.change import cluster_claims

        pairs = ((c.name, c.before.provider if c.before else None) for c in changes)
        untold = cluster_claims.behind(self._store, pairs)
        others = (name for name in self._names if name not in self.claims)
        services = list(dict.fromkeys((*untold, *others)))
        cluster_claims.report_changes(self._machine, services, self._report)

    def undo(self, error: BaseException) -> None:
        """Undo the activation because of ``error``. Raises ErrorGroup if undoing fails too."""
        undo_all(self._machine, self._names, error, self._report)
        if self.claims.homes:
            stop.report_to_cluster(self._machine, self.claims.homes, self._report)

    # --- without changing anything ------------------------------------------------------------
    def plan(self) -> list[Outcome]:
        """Report what the steps would do, in the caller's transaction, which it cancels."""
        store, kernel = self._store, self._kernel
        for _, files in self._fresh():
            self._report_copy(files)
        self._find_leaving()
        for row in self._leaving:
            self._report(Stopping(row.name))
        scope = self._scope()
        before = desired_now(kernel, store, scope)
        changes = self._record()
        outside_names_refresh.bar(self._machine, self._targets, self._report)
        steps = plan(kernel, store, scope, before).steps
        self._has_steps = bool(steps)
        for step in steps:
            self._report(step)
        for done in changes:
            if done.rehosts:
                self._report(start.event_of(done.row, rehosts=True))
        for done in changes:
            if done.restarts:
                if done.before is not None and done.before.active:
                    self._report(Stopping(done.name))
                self._report(start.event_of(done.row, done.rehosts))
        changed = self._changed(changes)
        left = _left(changes)
        scope = scope_left(store, left)
        before = desired_now(kernel, store, scope)
        self._end(left)
        reported = set(steps)  # these were not carried out, so the next plan contains them again
        for step in plan(kernel, store, scope, before).steps if left else []:
            if step not in reported:
                self._report(step)
        return [_outcome(store, done, done.name in changed) for done in changes]

    # --- parts of steps -----------------------------------------------------------------------
    def _fresh(self) -> list[tuple[Target, package.PackageFiles]]:
        return [(t, f) for t, f in self._files if f.must_be_copied(t.name, t.manifest_path)]

    def _report_copy(self, files: package.PackageFiles) -> None:
        if files.folder:  # a service of a stack.toml may have no package
            self._report(CopyingPackage(files.folder))

    def _find_leaving(self) -> None:
        rows = map(self._store.service, self._stack.leaving)
        self._leaving = [row for row in rows if row is not None and row.active]

    def _scope(self) -> Scope:
        store = self._store
        made = [one.name for one in self._stack.networks if store.network(one.name) is None]
        scope = scope_of(store, self._targets).joined(stop.scope_of(store, self._leaving))
        scope = scope.joined(Scope((), (), names=tuple(("network", name) for name in made)))
        return scope.joined(self.claims.scope())

    def _record(self) -> list[Change]:
        self.claims.record()
        return record_all(self._machine, self._targets, self._copies, self._leaving, self._stack)

    def _changed(self, changes: list[Change]) -> set[str]:
        """Return the services whose rows or processes changed; all if only the kernel did."""
        changed = {
            done.name
            for done in changes
            if done.restarts
            or (intent := self._store.intent(done.name)) is None
            or not self._store.is_as_before(intent)
        }
        only_kernel = self._has_steps and not self._leaving and not changed
        return {done.name for done in changes} if only_kernel else changed

    def _end(self, left: set[str]) -> None:
        for name in self._names:
            self._store.end_intent(name)
        self._store.drop_implicit_networks(left)


def _left(changes: list[Change]) -> set[str]:
    """Return the networks that services have left in this change."""
    return {
        name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)
    }


def _outcome(store: Store, done: Change, changed: bool) -> Outcome:
    name = done.row.name
    addresses = tuple(address for _, address in store.addresses(name))
    ports = rows((port for _, port in store.ports(name)), store.port_families(name))
    return Outcome(name, changed, addresses, ports, done.target.spec.program.kind == "job")


def restart(
    machine: Machine, services: list[str], report: Report = silent, after: After | None = None
) -> None:
    """Restart the processes of active services; their networks stay unchanged.

    ``after`` is that of `start.run`. Raises Conflict, NotFound or ProcessError. After an error,
    processes that niso has stopped are started again.
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
            stop.end_intents(store, services)
        except BaseException:
            end_restart(machine, services, report)
            raise


def _refreshed(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """Write the host's present DNS settings into the rows, except in its own namespace."""
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
