"""Activate services: create their networks and start their processes. Restart services.

If one service of a command fails, all are rolled back. The command has niso's lock while it plans
and writes the change, and the lock of each service until the service's process has started.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from niso.base.errors import Conflict, Error, ErrorGroup, NotFound, raise_all
from niso.base.locks import Busy, Lock, lock_after
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy
from niso.base.report import CopyingPackage, Stopping, silent
from niso.base.signals import signals_blocked
from niso.change import outside_names_refresh, scope, start, stop
from niso.change.admit import NO_STACK, Change, NoClaims, StackMembership, record_all
from niso.change.journal import begin, end_restart, locked, locked_instances, recover
from niso.change.scope import Target, leaving, report_to_cluster, scope_left, scope_of
from niso.change.start import After
from niso.change.targets import of_row, replaced
from niso.kernel import host_facts
from niso.look.host_ports import Port, rows
from niso.reconcile.change import change, desired_now, plan
from niso.runtime import package
from niso.runtime.machine import Machine
from niso.store import service_rows
from niso.store.service_rows import LEAVING, OUT, SERVING, ServiceRow
from niso.store.snapshots import Scope
from niso.store.store import Store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from niso.change import cluster_claims, deploy, undo
    from niso.change.deploy import Rollout
    from niso.plan.verdict import PolicyContext
else:
    deploy, undo = lazy("niso.change.deploy"), lazy("niso.change.undo")


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
    dry_run: bool = False,
    after: After | None = None,
    stack: StackMembership = NO_STACK,
    is_first: bool = True,
) -> list[Outcome]:
    """Activate services with their networks and processes. If one service fails, roll back all.

    ``timeout_s`` is the time in seconds for the start of each service. ``after`` maps services to
    {dependency: state to reach}. For a ``stack``, also create its networks, record its members, and
    stop services that were removed from its file. ``is_first`` is false for later steps of a
    deploy. Raises InvalidInput, Conflict, KernelError or ProcessError after the roll-back.
    """
    if dry_run:
        return _planned(machine, targets, stack)
    names = [*stack.leaving, *(target.name for target in targets)]
    recover(machine, names)
    outside_names_refresh.prepare(machine, targets)
    locks, targets = _locked(machine.store, targets, stack)
    with locks:
        rollouts = _rollouts(machine, targets)
        for one in rollouts:  # conmon's exit commands must not restart the processes now
            locks.enter_context(locked_instances(machine.store, one.instances))
        ending = {*machine.store.instances.with_instances(stack.leaving)} - {*stack.leaving}
        ending |= {*_dropped(machine.store, targets)}
        locks.enter_context(locked_instances(machine.store, ending))
        activation = _Activation(machine, targets, stack, rollouts)
        try:
            activation.copy_packages()
            activation.claim()
            activation.stop_leaving()
            changes = activation.change()
            activation.start(changes, timeout_s, after)
            activation.claims.publish()
            changed = activation.finish(changes)
        except BaseException as error:
            activation.undo(error)
            activation.record_failures(error)
            raise
        finally:
            activation.claims.close()
        activation.release_claims(changes)
        activation.complete()
        outcomes = activation.outcomes(changes, changed)
    if is_first and any(one.more for one in rollouts):
        _continue(machine, rollouts, timeout_s)
    return outcomes


def foreseen(
    machine: Machine, targets: list[Target], stack: StackMembership = NO_STACK
) -> tuple[PolicyContext, PolicyContext]:
    """Return the data from which policies are evaluated, before and after an activation.

    The activation is only simulated: nothing changes.
    """
    from niso.reconcile.live_world import read_world

    worlds: list[PolicyContext] = []
    observe = lambda: worlds.append(read_world(machine.kernel, machine.store))  # noqa: E731
    _planned(machine._replace(report=silent), targets, stack, observe)
    return worlds[0], worlds[1]


def _planned(
    machine: Machine,
    targets: list[Target],
    stack: StackMembership,
    observe: Callable[[], object] = lambda: None,
) -> list[Outcome]:
    """Report the steps of `activate` without carrying them out, and return the planned outcomes.

    ``observe`` is called twice in a transaction that is then cancelled: while the store has its
    present rows, and again when it has the rows that the activation would write.
    """
    store = machine.store
    targets = scope.with_followers(store, targets, stack.leaving)
    activation = _Activation(machine, targets, stack, _rollouts(machine, targets))
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
    """Lock the services of an activation. Return (locks, targets to activate).

    The targets include active services that must restart because they share a namespace. These
    services, and those that were removed from the stack's file, are locked too. Raises NotFound if
    another command has removed a service, and Conflict if other commands repeatedly add services to
    restart.
    """
    names = {*stack.leaving, *(target.name for target in wanted)}
    for _ in range(_TRIES):
        with locked(store, list(names)) as locks:
            now = scope.with_followers(store, wanted, stack.leaving)
            missing = {target.name for target in now} - names
            if not missing:
                return locks.pop_all(), now
            names |= missing
    raise Conflict("other niso commands keep starting services that share a namespace", "try again")


def _dropped(store: Store, targets: list[Target]) -> list[str]:
    plain = (target.name for target in targets if not target.spec.is_front)
    return [name for service in plain for name in store.instances.names(service)]


def _rollouts(machine: Machine, targets: list[Target]) -> list[Rollout]:
    return [deploy.rollout(machine, target) for target in targets if target.spec.is_front]


def _continue(machine: Machine, rollouts: list[Rollout], timeout_s: float) -> None:
    """Replace the remaining instances of services whose deploy needs several steps.

    If a step fails, the instances that were already replaced get the former version again, unless
    ``deploy.on_failure`` is keep.
    """
    try:
        for done in range(max(one.more for one in rollouts)):
            left = [one.front for one in rollouts if one.more > done]
            activate(machine, left, timeout_s, is_first=False)
    except Exception as error:
        former = [
            target
            for one in rollouts
            if not deploy.keeps(one) and (target := deploy.before(one)) is not None
        ]
        try:
            activate(machine, former, timeout_s)
        except Error as other:
            raise ErrorGroup([error, other] if isinstance(error, Error) else [other]) from error
        raise


class _Activation:
    """The steps of one activation. The caller must have locked the services."""

    def __init__(
        self,
        machine: Machine,
        targets: list[Target],
        stack: StackMembership,
        rollouts: list[Rollout],
    ) -> None:
        self._machine, self._store, self._kernel = machine, machine.store, machine.kernel
        self._stack, self._rollouts = stack, rollouts
        self._began = time.time()
        # services whose rows change together with the slots of their service address
        self._swapped = [one.front for one in rollouts if one.replaces]
        self._targets = [*targets, *(instance for one in rollouts for instance in one.new)]
        self._dropped = _dropped(self._store, targets)
        self._retired = [name for one in rollouts for name in one.retired]
        names = [target.name for target in self._targets]
        ending = self._store.instances.with_instances(stack.leaving)
        self._names = [*ending, *self._dropped, *self._retired, *names]
        self._files = [(t, files) for t in self._targets if (files := t.files) is not None]
        self._copies = {t.name: files.copy_path(t.spec.front or t.name) for t, files in self._files}
        self._leaving: list[ServiceRow] = []
        """Rows of the active services and instances that the activation stops for good."""
        self._has_steps = False
        """Whether the activation changed, or would change, an object of the kernel."""
        self.claims: cluster_claims.ActivationClaims | NoClaims = NoClaims()
        """The names and addresses that the services have reserved in etcd."""

    # --- the steps, in order ------------------------------------------------------------------
    def copy_packages(self) -> None:
        """Copy changed packages, after recording intents so that recovery can delete the copies."""
        fresh = self._fresh()
        begin(self._store, [target.name for target, _ in fresh], "activate")
        for target, files in fresh:
            self._report_copy(files)
            files.copy(target.spec, target.manifest_path)

    def claim(self, dry_run: bool = False) -> None:
        """Reserve names and addresses in etcd. With ``dry_run``, only check that they are free."""
        if not self._store.cluster_id():
            return
        from niso.change import cluster_claims

        requests = self._stack.networks
        made = [request.name for request in requests if not request.span]
        unobserved = [request.name for request in requests if not request.observe]
        self.claims = cluster_claims.prepare(
            self._machine, self._targets, made, dry_run, unobserved
        )

    def stop_leaving(self) -> None:
        """Stop services that the stack's file no longer has, unless the change has conflicts."""
        self._find_leaving()
        if self._leaving:
            # detect conflicts before anything is stopped
            with Lock(), change(self._kernel, self._store, self._scope(), dry_run=True):
                self._record()
        for one in self._rollouts if self._retired else ():
            deploy.retire(self._machine, one)
        names = dict.fromkeys([*self._stack.leaving, *(row.name for row in self._leaving)])
        # the intents of retired instances have the rows from before they left the slots
        fresh = [name for name in names if name not in self._retired]
        begin(self._store, fresh, "activate")
        ended = stop.stop(self._machine, self._leaving, {})
        raise_all([*ended.values()])
        self._stop_converted()

    def change(self) -> list[Change]:
        active = {*self._store.active_services()}
        fresh = [t for t in self._targets if t.spec.network.mode == "bridge"]
        count = sum(t.files is not None and t.name not in active for t in fresh)
        with Lock(), self._kernel.namespaces_ahead(count):
            self.claims.remove_displaced()
            scope = self._scope()
            with change(
                self._kernel, self._store, scope, self._machine.report, rows_first=True
            ) as made:
                changes = self._record()
                outside_names_refresh.bar(self._machine, self._targets)
        self._has_steps = bool(made.steps)
        return changes

    def start(self, changes: list[Change], timeout_s: float, after: After | None) -> None:
        runs = [done for done in changes if done.row.has_process]
        if not self._rollouts:
            start.run(self._machine, runs, timeout_s, after)
            return

        after = deploy.needs(after, self._rollouts)
        healthy = deploy.first_slots(self._machine, self._rollouts)
        start.run(self._machine, runs, timeout_s, after, healthy)

    def finish(self, changes: list[Change]) -> set[str]:
        """Delete intents, unused networks and old package copies. Return the changed services."""
        fronts = {one.name: one for one in self._rollouts}
        begin(self._store, [target.name for target in self._swapped], "activate")
        for target in self._targets:
            if target.files is not None and target.instance is None:
                copy, spec = self._copies[target.name], target.spec
                package.keep_manifest(copy, spec, self._store.internal(spec.network.networks))
        left = _left(changes)
        # the activation has succeeded: an interrupt here would only leave unused copies
        with Lock(), signals_blocked():
            with self._last_change(left):
                changes += self._swap()
                changed = self._changed(changes)
                plain = [
                    done.row
                    for done in changes
                    if done.target.instance is None and done.name not in fronts
                ]
                deployed = [row for row in plain if row.name in changed]
                stop.record(self._store, deployed, self._began, "done")
                self._end(left)
            for row in plain:
                self._keep_packages(
                    row.name, {row.package, *self._store.instances.packages(row.name)}
                )
            for name in fronts:
                self._keep_packages(name, deploy.used_packages(self._store, name))
            for _, files in self._files:
                if files.contents is not None:
                    files.contents.save()
        return changed

    def _keep_packages(self, service: str, copies: set[str]) -> None:
        present = self._copies[service]
        package.keep_only(service, {*copies, present})
        for copy in copies - {present}:
            package.drop_manifest(copy)

    def complete(self) -> None:
        """Monitor new instances, then stop the replaced ones. Start `niso health` if needed."""
        if self._leaving:
            stop.stop_timers(self._machine, [row.name for row in self._leaving])
        if self._dropped:
            stop.forget(self._machine, self._dropped)
        if self._rollouts or any(_restarts(target) for target in self._targets):
            from niso.change import health_agent

            health_agent.ensure(self._machine)
        if self._rollouts:
            deploy.complete(self._machine, self._rollouts, self._began)

    def outcomes(self, changes: list[Change], changed: set[str]) -> list[Outcome]:
        """Return one outcome per service. A changed instance counts as a change of its service."""
        changed = {name.partition(".")[0] for name in changed}
        with self._store.reading():
            return [
                _outcome(self._store, done, done.name in changed)
                for done in changes
                if done.target.instance is None
            ]

    def release_claims(self, changes: list[Change]) -> None:
        """Report stopped services, and services whose claims must change, to the cluster."""
        if not self._store.cluster_id():
            return
        from niso.change import cluster_claims

        pairs = ((c.name, c.before.provider if c.before else None) for c in changes)
        untold = cluster_claims.behind(self._store, pairs)
        others = (name for name in self._names if name not in self.claims)
        # first the instances that now serve, so that other hosts always have some
        instances = [t.name for one in self._rollouts for t in one.new]
        instances += [name for one in self._rollouts for name in one.old]
        services = list(dict.fromkeys((*instances, *untold, *others)))
        cluster_claims.report_changes(self._machine, services)

    def undo(self, error: BaseException) -> None:
        undo.undo_all(self._machine, self._names, error)
        if self.claims.homes:
            report_to_cluster(self._machine, self.claims.homes)

    def record_failures(self, error: BaseException) -> None:
        """Record the failed deploys for `niso history`.

        If the command was interrupted and another process has niso's lock, nothing is recorded.
        """
        fronts = {one.name for one in self._rollouts}
        rows = []
        for target in self._targets:
            if target.instance is None and target.name not in fronts:
                row = self._store.service(target.name)
                if row is not None and target.name in self._copies:
                    manifest = service_rows.encode_service(target.spec)
                    rows.append(row._replace(manifest=manifest, package=self._copies[row.name]))
        if not rows and not self._rollouts:
            return
        with suppress(Busy), lock_after(error), self._store.transaction():
            stop.record(self._store, rows, self._began, "failed", error)
            deploy.record_failures(self._store, self._rollouts, self._began, error)

    # --- without changing anything ------------------------------------------------------------
    def plan(self) -> list[Outcome]:
        """Report what the steps would do, and return the planned outcomes.

        Writes rows in the caller's transaction. The caller must cancel the transaction.
        """
        store, kernel = self._store, self._kernel
        for _, files in self._fresh():
            self._report_copy(files)
        self._find_leaving()
        for row in self._leaving:
            self._machine.report(Stopping(row.name))
        scope = self._scope()
        before = desired_now(kernel, store, scope)
        changes = self._record()
        outside_names_refresh.bar(self._machine, self._targets)
        steps = plan(kernel, store, scope, before).steps
        self._has_steps = bool(steps)
        for step in steps:
            self._machine.report(step)
        changes += self._swap()
        for done in changes:
            if done.rehosts:
                self._machine.report(start.event_of(done.row, rehosts=True))
        for done in changes:
            if done.restarts:
                if done.before is not None and done.before.active:
                    self._machine.report(Stopping(done.name))
                self._machine.report(start.event_of(done.row, done.rehosts))
        changed = self._changed(changes)
        left = _left(changes)
        scope = scope_left(store, left)
        before = desired_now(kernel, store, scope)
        self._end(left)
        reported = set(steps)  # these steps were only planned, so the next plan contains them again
        for step in plan(kernel, store, scope, before).steps if left else []:
            if step not in reported:
                self._machine.report(step)
        return self.outcomes(changes, changed)

    # --- parts of steps -----------------------------------------------------------------------
    def _fresh(self) -> list[tuple[Target, package.PackageFiles]]:
        whole = ((t, f) for t, f in self._files if t.instance is None)
        return [(t, f) for t, f in whole if f.must_be_copied(t.name, t.manifest_path)]

    def _report_copy(self, files: package.PackageFiles) -> None:
        if files.folder:  # a service of a stack.toml may have no package
            self._machine.report(CopyingPackage(files.folder))

    def _find_leaving(self) -> None:
        leaving = self._store.instances.with_instances(self._stack.leaving)
        rows = map(self._store.service, [*leaving, *self._dropped, *self._retired])
        self._leaving = [row for row in rows if row is not None and row.active]

    def _scope(self) -> Scope:
        store = self._store
        made = [one.name for one in self._stack.networks if store.network(one.name) is None]
        scope = scope_of(store, self._targets).joined(stop.scope_of(store, self._leaving))
        scope = scope.joined(Scope((), (), names=tuple(("network", name) for name in made)))
        return scope.joined(self.claims.scope())

    def _record(self) -> list[Change]:
        self.claims.record()
        targets = [target for target in self._targets if target not in self._swapped]
        return record_all(self._machine, targets, self._copies, self._leaving, self._stack)

    def _swap(self) -> list[Change]:
        """Direct new connections of services with replicas to new instances. Return changes."""
        if not self._rollouts:
            return []

        changes = record_all(self._machine, self._swapped, self._copies, [], NO_STACK)
        deploy.swap(self._store, self._rollouts)
        for one in self._rollouts:
            if one.is_first or ((one.replaces or one.retired) and not one.more):
                deploy.record(self._store, one, self._began, "done")
        return changes

    def _last_change(self, left: set[str]) -> AbstractContextManager[object]:
        if not self._rollouts:
            return leaving(self._machine, left)
        scope = scope_of(self._store, [one.front for one in self._rollouts])
        scope = scope.joined(scope_left(self._store, left))
        return change(self._kernel, self._store, scope, self._machine.report, teardown=True)

    def _stop_converted(self) -> None:
        rows = [
            row
            for one in self._rollouts
            if (row := self._store.service(one.name)) is not None and row.active and row.has_process
        ]
        begin(self._store, [row.name for row in rows], "activate")
        ended = stop.stop(self._machine, rows, {})
        raise_all([*ended.values()])

    def _changed(self, changes: list[Change]) -> set[str]:
        """Return the names of the services whose rows or processes changed. If only kernel objects
        changed, all services of the activation count as changed.
        """
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
        for name in self._dropped:  # these are forgotten last, or by the next command
            self._store.begin_intent(name, "remove", time.time())
        self._store.drop_implicit_networks(left)


def _restarts(target: Target) -> bool:
    check = target.spec.process.healthcheck if target.spec.process is not None else None
    return check is not None and check.on_unhealthy != "none"


def _left(changes: list[Change]) -> set[str]:
    return {
        name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)
    }


def _outcome(store: Store, done: Change, changed: bool) -> Outcome:
    name = done.row.name
    addresses = tuple(address for _, address in store.addresses(name))
    ports = rows((port for _, port in store.ports(name)), store.port_families(name))
    program = done.target.spec.program
    ran = program.kind == "job" and program.schedule is None
    return Outcome(name, changed, addresses, ports, ran)


def restart(
    machine: Machine,
    services: list[str],
    after: After | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Restart the processes of active services. Their networks stay unchanged.

    ``after`` maps services to {dependency: state to reach}. ``meanwhile`` is called while none of
    the processes runs. Raises Conflict, NotFound or ProcessError, and the errors of ``meanwhile``.
    After an error, processes that niso has stopped are started again.
    """
    store = machine.store
    recover(machine, services)
    for name in services:
        if (front := store.require_active(name)).mode == "front":
            newest = max((one.version for one in store.instances.of(name)), default=0)
            again = of_row(front)._replace(again=newest + 1)
            activate(machine, [again], start.TIMEOUT_S)
    services = [name for name in services if store.require_active(name).has_process]
    with locked(store, services):
        rows = []
        for name in services:
            row = store.require_active(name)
            # detect errors before anything is stopped
            row.require_process()
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(f"{folder} is gone", row.activation_command, service=name)
            replaced(row)
            rows.append(row)
        instances = [name for name in services if store.instances.get(name) is not None]
        began, error = time.time(), None
        recorded = [row for row in rows if row.name not in instances]
        begin(store, services, "restart")
        try:
            rows = _refreshed(store, rows)
            _leave(machine, instances)
            if meanwhile is not None:
                errors = stop.stop(machine, rows, after or {})
                raise_all([*errors.values()])
                meanwhile()
            start.restart(machine, rows, after)
            stop.end_intents(store, services)
            _serve(machine, instances)
        except BaseException as failure:
            error = failure
            end_restart(machine, services)
            raise
        finally:
            with suppress(Busy), lock_after(error), store.transaction():
                stop.record(store, recorded, began, "failed" if error else "done", error)


def _leave(machine: Machine, instances: list[str]) -> None:
    """Send no new connections to instances before a restart, and wait until open ones finish."""
    for name in instances:
        from niso.change import health_agent

        # not OUT: niso health would let it serve again
        health_agent.move(machine, name, SERVING, LEAVING)
        spec = machine.store.require_active(name).require_service()
        if spec.program.deploy is not None:
            deploy.drain(machine, [name], spec.program.deploy.drain_s)


def _serve(machine: Machine, instances: list[str]) -> None:
    for name in instances:
        from niso.change import health_agent

        for state in (LEAVING, OUT):
            health_agent.move(machine, name, state, SERVING)


def _refreshed(store: Store, rows: list[ServiceRow]) -> list[ServiceRow]:
    """Record the host's present DNS settings in the rows of services, and return the updated rows.
    The row of a service in the host's own network namespace stays unchanged.
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
