"""What a service goes through: activate, deactivate, remove, restart, and the recovery of what a dead process left.

Every change is noted in the store (an intent) before the kernel sees it. Whoever finds an intent whose process is gone
finishes it (deactivate, remove) or undoes it (activate). niso's lock is held over plan and write; a service's own lock is
held from its first change to its last, waiting for its process included.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from typing import NamedTuple

from niso import package, paths
from niso.admission import Change, record, scope_of
from niso.apply import Lock, Report, converge, desired_now, planned, silent
from niso.errors import Conflict, ErrorGroup, NisoError
from niso.kernel import conntrack
from niso.records import Port
from niso.runtime import process
from niso.runtime.lock import service_lock
from niso.runtime.spec import ProcessSpec
from niso.state import State
from niso.store.store import Intent, Scope, ServiceRow, Store
from niso.targets import Target

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
            copies = {t.name: os.path.join(paths.package_dir(t.name), t.fingerprint or "") for t in targets}
            return _plan_only(store, targets, copies, report)
    recover(store, report)
    with ExitStack() as locks:
        for target in sorted(targets, key=lambda each: each.name):
            locks.enter_context(service_lock(target.name))
        copies = {target.name: _copy(target, report) for target in targets}
        changes: list[Change] = []
        try:
            with Lock():
                scope = scope_of(store, targets)
                with store.transaction():
                    before = desired_now(store, scope)
                    changes += [record(store, target, copies[target.name]) for target in targets]
                steps = converge(store, scope, before, report)
                _flush(before, desired_now(store, scope))
            _run(changes, timeout_s, report)
        except BaseException as error:
            _undo_all(store, changes, error, report)
            for target in targets:
                kept = store.service(target.name)
                package.keep_only(target.name, {kept.package} if kept else set())
            raise
        with Lock(), store.transaction():
            left = {name for c in changes if c.before for name in set(c.before.networks) - set(c.row.networks)}
            if left:
                scope = Scope((), tuple(left))
                before = desired_now(store, scope)
                store.drop_implicit_networks(left)
                converge(store, scope, before, report, teardown=True)
            for change in changes:
                store.end_intent(change.name)
        for change in changes:
            package.keep_only(change.name, {change.row.package})
        return [_outcome(store, change, bool(steps)) for change in changes]


def _copy(target: Target, report: Report) -> str:
    if target.fingerprint is None:
        return target.folder
    report(f"copy package {target.folder}")
    return package.copy(target.name, target.folder, target.rootfs, target.fingerprint)


def _plan_only(store: Store, targets: list[Target], copies: dict[str, str], report: Report) -> list[Outcome]:
    scope = scope_of(store, targets)
    before = desired_now(store, scope)
    changes = [record(store, target, copies[target.name]) for target in targets]
    steps = planned(store, scope, before)
    for step in steps:
        report(step.describe())
    for change in changes:
        if change.restarts:
            report(f"start {change.name}: {' '.join(json.loads(change.row.spec)['argv'])}")
    return [_outcome(store, change, bool(steps)) for change in changes]


def stored_spec(row: ServiceRow) -> ProcessSpec:
    """The process spec of a service's last activation."""
    return ProcessSpec(**json.loads(row.spec))


def _run(changes: list[Change], timeout_s: float, report: Report) -> None:
    """Start the processes that must be, and see that they do not end at once."""
    for change in changes:
        if change.restarts:
            if change.before is not None and change.before.active:
                report(f"stop {change.name}")
                process.stop(change.name, stored_spec(change.before).stop_timeout_s)
            report(f"start {change.name}")
            process.start(stored_spec(change.row))
    for change in changes:
        if change.restarts:
            process.started_ok(change.name, min(STARTED_WITHIN_S, timeout_s))


def _undo_all(store: Store, changes: list[Change], cause: BaseException, report: Report) -> None:
    """Bring all back as it was; what cannot be undone is added to the error that caused it."""
    errors: list[NisoError] = []
    for change in reversed(changes):
        intent = store.intent(change.name)
        if intent is None:
            continue
        try:
            _undo(store, intent, report)
        except NisoError as error:
            errors.append(error)
    if errors and isinstance(cause, NisoError):
        raise ErrorGroup([cause, *errors]) from cause


def _undo(store: Store, intent: Intent, report: Report) -> None:
    """Undo a begun activation; the caller holds the service's lock."""
    name = intent.service
    report(f"undo activation of {name}")
    now = store.service(name)
    saved = json.loads(intent.undo)["service"]
    old_spec = saved[0][ServiceRow._fields.index("spec")] if saved else None
    keeps = now is not None and old_spec is not None and _runs_with(name, old_spec)
    if not keeps:
        process.stop(name, 0)
    # the kernel follows inside the transaction: if niso dies here the intent is found again, with all that it is about
    with Lock(), store.transaction():
        on = now.networks if now else ()
        before = desired_now(store, Scope((name,), on))
        store.undo(intent)
        restored = store.service(name)
        scope = Scope((name,), (*on, *(restored.networks if restored else ())))
        converge(store, scope, before, report, teardown=True)
        _flush(before, desired_now(store, scope))
        store.end_intent(name)
        _forget_sysctls(store)
    _settle(before)
    if restored is not None and restored.active and not keeps:
        process.start(stored_spec(restored))


def _runs_with(name: str, spec_text: str) -> bool:
    from niso.runtime import spec

    saved = spec.load(name)
    return (
        saved is not None
        and json.loads(spec_text) == saved._asdict()
        and process.status(name).state in ("running", "starting", "restarting")
    )


def _forget_sysctls(store: Store) -> None:
    if not store.any_active():
        store.clear_sysctls_before()


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
        with Lock():
            for name in services:
                _plan_deactivation(store, name, report)
        return []
    recover(store, report)
    outcomes = []
    for name in services:
        with service_lock(name):
            row = store.service(name)
            active = row is not None and row.active
            if active:
                _begin(store, name, "deactivate")
                _finish(store, name, report, ends=True)
            outcomes.append((name, active))
    return outcomes


def remove(store: Store, services: list[str], report: Report = silent) -> None:
    """Deactivate services and forget them, their leases, logs and copies. Raises NisoError."""
    recover(store, report)
    for name in services:
        with service_lock(name):
            if store.service(name) is not None:
                _begin(store, name, "remove")
                _finish(store, name, report, ends=False)
                _forget(store, name, report)


def restart(store: Store, services: list[str], report: Report = silent) -> None:
    """End and start the processes of active services; namespace, addresses and ports stay."""
    recover(store, report)
    for name in services:
        with service_lock(name):
            row = store.service(name)
            if row is None or not row.active:
                raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
            report(f"restart {name}")
            spec = stored_spec(row)
            process.stop(name, spec.stop_timeout_s)
            process.start(spec)
            process.started_ok(name, STARTED_WITHIN_S)


def recover(store: Store, report: Report = silent) -> None:
    """Finish or undo what a process that is gone left half-way. What a living one is at is left to it."""
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
            if intent.action == "activate":
                _undo(store, intent, report)
                kept = store.service(intent.service)
                package.keep_only(intent.service, {kept.package} if kept else set())
            else:
                _finish(store, intent.service, report, ends=intent.action == "deactivate")
                if intent.action == "remove":
                    _forget(store, intent.service, report)
        finally:
            lock.__exit__()


def _begin(store: Store, name: str, action: str) -> None:
    with Lock(), store.transaction():
        store.begin_intent(name, action, time.time())


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
        converge(store, scope, before, report, teardown=True)
        _flush(before, desired_now(store, scope))
        if ends:
            store.end_intent(name)
        _forget_sysctls(store)
    _settle(before)


def _forget(store: Store, name: str, report: Report) -> None:
    report(f"forget {name}")
    row = store.service(name)
    package.keep_only(name, set())
    package.delete_tree(paths.log_dir(name))
    on = row.networks if row else ()
    with Lock():
        scope = Scope((), on)
        with store.transaction():
            before = desired_now(store, scope)
            store.forget(name)
            store.drop_implicit_networks(on)
            converge(store, scope, before, report, teardown=True)
            store.end_intent(name)


def _plan_deactivation(store: Store, name: str, report: Report) -> None:
    row = store.service(name)
    if row is None or not row.active:
        return
    report(f"stop {name}")
    scope = Scope((name,), row.networks)
    with store.transaction() as transaction:
        transaction.cancel()
        before = desired_now(store, scope)
        store.set_active(name, False)
        for step in planned(store, scope, before):
            report(step.describe())


def _settle(before: State) -> None:
    """Wait, for at most 2 s and under no lock, until the kernel has cleared the links of namespaces that went."""
    from niso.kernel.rtnetlink import Rtnl

    deadline = time.monotonic() + 2
    with Rtnl() as rtnl:
        for veth in before.veths:
            while rtnl.link(veth.name) is not None and time.monotonic() < deadline:
                time.sleep(0.002)
