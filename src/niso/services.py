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
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

from niso import forwarding, names, package, paths, policies, portmap
from niso.admission import Change, record, release, scope_of
from niso.apply import Lock, Report, carry_out, converge, desired_now, plan, silent
from niso.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.kernel import conntrack, netns
from niso.kernel.write import remove_hosts
from niso.records import Port
from niso.runtime import process
from niso.runtime.lock import remove_locks, service_lock
from niso.runtime.spec import ProcessSpec
from niso.state import State
from niso.store.store import Intent, Scope, ServiceRow, Store
from niso.targets import Target, still_so

STARTED_WITHIN_S = 0.2
"""An end within this time is a failed activation: a wrong entrypoint shows only as the end of PID 1's child."""


class Outcome(NamedTuple):
    service: str
    changed: bool
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]


# --- activate --------------------------------------------------------------------------------------------------------


def activate(
    store: Store, targets: list[Target], timeout_s: float, report: Report = silent, dry_run: bool = False
) -> list[Outcome]:
    """Make all ``targets`` active, all or none.

    An active service whose manifest changed gets the difference; one that is as it should be is left alone. Raises
    InvalidInput, Conflict, KernelError, ProcessError; then everything is as before.
    """
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            return _plan_only(store, targets, report)
    recover(store, report, [target.name for target in targets])
    with _locked(store, [target.name for target in targets]):
        targets = [still_so(store, target) for target in targets]
        changes: list[Change] = []
        try:
            _begin_copies(store, targets)
            copies = {target.name: _copy(target, report) for target in targets}
            with Lock():
                scope = scope_of(store, targets)
                with store.transaction():
                    before = desired_now(store, scope)
                    recorded = _recorded(store, targets, copies)
                    # what is somebody else's is found before anything is on record or changed
                    planned = plan(store, scope, before, trusting=True)
                changes += recorded
                policies.introduce(store, before, planned.want)
                steps = carry_out(store, scope, before, planned, report)
                after = desired_now(store, scope)
                _flush(before, after)
                portmap.flush(before, after)
                if policies.narrows(before, after):
                    policies.cut(store, [change.name for change in changes])
            _run(changes, timeout_s, report)
            with Lock(), store.transaction():
                scope, before = _drop_left(store, changes)
                if scope.networks:
                    converge(store, scope, before, report, teardown=True)
        except BaseException as error:
            _undo_all(store, [target.name for target in targets], error, report)
            raise
        for change in changes:
            package.keep_only(change.name, {change.row.package})
        return [_outcome(store, change, bool(steps)) for change in changes]


def _recorded(store: Store, targets: list[Target], copies: dict[str, str]) -> list[Change]:
    for target in targets:
        release(store, target)
    together = frozenset(copies)
    return [record(store, target, copies[target.name], together) for target in targets]


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


def _plan_only(store: Store, targets: list[Target], report: Report) -> list[Outcome]:
    scope = scope_of(store, targets)
    before = desired_now(store, scope)
    changes = _recorded(store, targets, {target.name: _copy_path(target, report) for target in targets})
    steps = plan(store, scope, before).steps
    for step in steps:
        report(step.describe())
    for change in changes:
        if change.restarts:
            if change.before is not None and change.before.active:
                report(f"stop {change.name}")
            report(_start_words(change.row))
    scope, before = _drop_left(store, changes)
    for step in plan(store, scope, before).steps if scope.networks else []:
        report(step.describe())
    return [_outcome(store, change, bool(steps)) for change in changes]


def _drop_left(store: Store, changes: list[Change]) -> tuple[Scope, State]:
    """End the intents and drop the networks that nobody is on any more; the scope that this changed, and its state before."""
    for change in changes:
        store.end_intent(change.name)
    left = {name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)}
    scope = Scope((), tuple(sorted(left)), names=tuple(("network", name) for name in sorted(left)))
    before = desired_now(store, scope)
    store.drop_implicit_networks(left)
    return scope, before


def _start_words(row: ServiceRow) -> str:
    return f"start {row.name}: {' '.join(stored_spec(row).argv)}"


def stored_spec(row: ServiceRow) -> ProcessSpec:
    """The process spec of a service's last activation."""
    return ProcessSpec(**json.loads(row.spec))


def _run(changes: list[Change], timeout_s: float, report: Report) -> None:
    """Start the processes that must be, and see that they do not end at once: each by its own time."""
    within_s = min(STARTED_WITHIN_S, timeout_s)
    young: deque[tuple[float, str]] = deque()  # (when it is old enough, service), in that order
    for change in changes:
        while young and young[0][0] <= time.monotonic():
            process.started_ok(young.popleft()[1], 0)
        if change.restarts:
            if change.before is not None and change.before.active:
                report(f"stop {change.name}")
                process.stop(change.name, stored_spec(change.before).stop_timeout_s)
            report(_start_words(change.row))
            process.start(stored_spec(change.row))
            young.append((time.monotonic() + within_s, change.name))
    for ripe_at, name in young:
        process.started_ok(name, max(0.0, ripe_at - time.monotonic()))


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
    saved = json.loads(intent.undo)
    old_spec = saved["service"][0][ServiceRow._fields.index("spec")] if saved["service"] else None
    if now is None or old_spec is None or not _runs_with(name, old_spec):
        process.stop(name, 0)
    # the kernel follows inside the transaction: if niso dies here the intent is found again, with all that it is about
    with Lock(), store.transaction():
        on = now.networks if now else ()
        old_names = [row[0] for row in saved.get("host_name", ())]
        concerned = {*store.names_with([name]), *(("service", each) for each in old_names)}
        concerned |= {("network", each) for each in on}
        scope = Scope((name,), on, names=tuple(sorted(concerned)))
        before = desired_now(store, scope)
        store.undo(intent)
        forwarding.note_late(store)
        restored = store.service(name)
        scope = scope._replace(networks=(*on, *(restored.networks if restored else ())))
        converge(store, scope, before, report, teardown=True)
        if restored is None or not restored.active:
            netns.clear_unfinished(names.netns(name))
        after = desired_now(store, scope)
        for file in before.hosts_files - after.hosts_files:
            remove_hosts(file.folder)  # a kill may have left one that was being made, which reads as none
        _flush(before, after)
        forwarding.forget(store)
    _settle(before)


def _forget_failed(name: str, kept: ServiceRow | None) -> None:
    """Delete the copies that a failed activation made, and the log of a service that is not known without it."""
    package.keep_only(name, {kept.package} if kept else set())
    if kept is None:
        package.delete_tree(paths.log_dir(name))


def _runs_with(name: str, spec_text: str) -> bool:
    from niso.runtime import spec

    saved = spec.load(name)
    return saved is not None and json.loads(spec_text) == saved._asdict() and process.runs(name)


def _flush(before: State, after: State) -> None:
    """No flow of an address that is gone is left for the next one that gets it."""
    gone = {a.address.partition("/")[0] for a in before.addresses if a.netns}
    gone -= {a.address.partition("/")[0] for a in after.addresses if a.netns}
    if gone:
        conntrack.flush_addresses(gone)


def _outcome(store: Store, change: Change, changed: bool) -> Outcome:
    addresses = tuple(address for _, address in store.addresses(change.name))
    ports = tuple(port for _, port in store.ports(change.name))
    return Outcome(change.name, changed or change.restarts, addresses, ports)


# --- deactivate, remove, restart -------------------------------------------------------------------------------------


def deactivate(
    store: Store, services: list[str], report: Report = silent, dry_run: bool = False
) -> list[tuple[str, bool]]:
    """Stop services and take down their networks; leases stay. Gives (service, whether it was active)."""
    if dry_run:
        with Lock(), store.transaction() as transaction:
            transaction.cancel()
            lines: dict[str, None] = {}  # what one service's end has done is no step of the next one's
            for name in services:
                _plan_deactivation(store, name, lines.setdefault)
            for line in lines:
                report(line)
        return []
    recover(store, report, services)
    with _locked(store, services):
        active = [name for name in services if (row := store.service(name)) is not None and row.active]
        _begin(store, active, "deactivate")
        _each(active, lambda name: _finish(store, name, report, ends=True))
    return [(name, name in active) for name in services]


def remove(store: Store, services: list[str], report: Report = silent) -> None:
    """Deactivate services and forget them, their leases, logs and copies. Raises NisoError."""

    def end(name: str) -> None:
        _finish(store, name, report, ends=False)
        _forget(store, name, report)

    recover(store, report, services)
    with _locked(store, services):
        known = [name for name in services if store.service(name) is not None]
        _begin(store, known, "remove")
        _each(known, end)


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay."""
    recover(store, report, services)
    with _locked(store, services):
        specs = []
        for name in services:
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            # found before anything is stopped
            for folder in (row.package, row.rootfs):
                if folder is not None and not os.path.isdir(folder):
                    raise NotFound(f"{name}: {folder} is gone", f"niso activate {row.manifest_path}")
            specs.append(stored_spec(row))
        for spec in specs:
            report(f"restart {spec.service}")
            process.stop(spec.service, spec.stop_timeout_s)
            process.start(spec)
            process.started_ok(spec.service, STARTED_WITHIN_S)


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
                _finish(store, intent.service, report, ends=intent.action == "deactivate")
                if intent.action == "remove":
                    _forget(store, intent.service, report)
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


def _each(services: list[str], end: Callable[[str], None]) -> None:
    """Do it for all, and raise what went wrong afterwards."""
    errors: list[NisoError] = []
    for name in services:
        try:
            end(name)
        except NisoError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)


def _finish(store: Store, name: str, report: Report, ends: bool) -> None:
    """Stop a service and take down its network; the caller holds its lock. ``ends`` the intent that it has begun."""
    row = store.service(name)
    if row is None:
        return
    report(f"stop {name}")
    process.stop(name, stored_spec(row).stop_timeout_s)
    scope = Scope((name,), row.networks)
    with Lock(), store.transaction():
        before = desired_now(store, scope)
        store.set_active(name, False)
        forwarding.note_late(store)
        store.end_publishing(name)
        converge(store, scope, before, report, teardown=True)
        netns.clear_unfinished(names.netns(name))
        _flush(before, desired_now(store, scope))
        if ends:
            store.end_intent(name)
        forwarding.forget(store)
    _settle(before)


def _forget(store: Store, name: str, report: Report) -> None:
    report(f"forget {name}")
    row = store.service(name)
    package.keep_only(name, set())
    package.delete_tree(paths.log_dir(name))
    on = row.networks if row else ()
    with Lock():
        scope = Scope((), on, names=(*store.names_with([name]), *(("network", each) for each in on)))
        with store.transaction():
            before = desired_now(store, scope)
            store.forget(name)
            store.end_intent(name)
            store.drop_implicit_networks(on)
            converge(store, scope, before, report, teardown=True)


def _plan_deactivation(store: Store, name: str, report: Report) -> None:
    row = store.service(name)
    if row is None or not row.active:
        return
    report(f"stop {name}")
    scope = Scope((name,), row.networks)
    before = desired_now(store, scope)
    store.set_active(name, False)
    forwarding.note_late(store)
    for step in plan(store, scope, before).steps:
        report(step.describe())


def _settle(before: State) -> None:
    """Wait, for at most 2 s and under no lock, until the kernel has cleared the links of namespaces that went."""
    from niso.kernel.rtnetlink import Rtnl

    deadline = time.monotonic() + 2
    with Rtnl() as rtnl:
        for veth in before.veths:
            while rtnl.link(veth.name) is not None and time.monotonic() < deadline:
                time.sleep(0.002)
