"""Undo failed or interrupted activations: restore rows, objects of the kernel, and processes.

The caller must have the locks of the services.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from niso.base import paths
from niso.base.errors import Error, ErrorGroup, ProcessError
from niso.base.locks import Busy, Lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.report import Undoing
from niso.change import process_record, stop
from niso.change.scope import all_names, concerned, report_to_cluster, with_remotes
from niso.change.start import until_started
from niso.plan.specs import ProcessSpec
from niso.reconcile import host_settings
from niso.reconcile.change import change
from niso.runtime import package, volumes
from niso.runtime.machine import Machine
from niso.store.service_rows import OUT, SERVING, STARTING, Intent, ServiceRow, front_of
from niso.store.sqlite import sqlite3
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.runtime.processes import Processes


WAIT_S = 10.0
"""Seconds that an interrupted command waits for niso's lock to roll back its change.

After that it exits, and the next command rolls back, so that one signal is enough to end a command.
"""
undoing = False
"""Whether this process is currently undoing a failed command."""


def undo_all(machine: Machine, services: Iterable[str], cause: BaseException) -> None:
    """Undo an activation that failed or was interrupted by the exception ``cause``.

    If the undo succeeds, returns normally, and the caller raises ``cause`` again. If the undo
    fails, or a process that it has started again exits at once, raises an ErrorGroup of ``cause``
    and the new errors. Raises nothing if ``cause`` is not an Error.
    """
    global undoing
    store, is_failure = machine.store, isinstance(cause, Exception)
    begun = [intent for name in services if (intent := store.intent(name)) is not None]
    undoing = is_failure
    failures: list[Error] = []
    status = machine.processes.status
    ran = {intent.service: status(intent.service).started_at for intent in begun}
    try:
        final = not getattr(cause, "unknown", False)  # set by niso.cluster.engine.NoAnswer
        wait_s = None if is_failure else WAIT_S
        left = undo(machine, in_order(store, begun), wait_s, final)
        failures = _unstarted(machine, ran.keys() - left.keys(), ran) if is_failure else []
    except Error as error:
        left = {", ".join(intent.service for intent in begun): error}
    except (OSError, sqlite3.Error) as error:
        left = {", ".join(intent.service for intent in begun): Error(str(error))}
    finally:
        undoing = False
    failures += (_not_undone(names, error) for names, error in left.items())
    if failures and isinstance(cause, Error):
        raise ErrorGroup([cause, *failures]) from cause


def _unstarted(
    machine: Machine, undone: Iterable[str], ran: dict[str, float | None]
) -> list[Error]:
    """Wait for processes that an undo has started again. Return an error for each that exited.

    ``ran`` maps services to the start time of their process before the undo. A process can fail now
    because a secret, a volume or a database has changed since then.
    """
    processes, errors = machine.processes, []
    for name in sorted(undone):
        row, now = machine.store.service(name), processes.status(name)
        runs = row is not None and row.active and row.has_process and not row.is_job
        if row is None or not runs or now.started_at in (None, ran[name]):
            continue
        try:
            until_started(processes, row)
        except Error as error:
            reason = f"the rollback could not start it: {error.detail}"
            errors.append(Error(reason, error.hint, service=name))
    return errors


def _not_undone(names: str, error: Error) -> Error:
    reason = error.detail if error.service == names and not error.file else error.message
    text = f"the activation could not be rolled back completely: {reason}"
    return Error(text, error.hint or "niso net repair", service=names)


def in_order(store: Store, intents: Iterable[Intent]) -> list[Intent]:
    """Sort changes in progress (intents) into the order in which they must be undone.

    A present sharer comes before its provider. A service that becomes a sharer by the undo comes
    after its provider.
    """
    left = {intent.service: intent for intent in intents}
    firsts: dict[str, set[str]] = {name: set() for name in left}
    for name, intent in left.items():
        row, was = store.service(name), intent.before
        if intent.action == "activate" and was is not None and was.active and was.provider in left:
            firsts[name].add(was.provider)
        now = row.provider if row is not None and row.active else None
        if now in left and now not in firsts[name]:
            firsts[now].add(name)
    ordered: list[Intent] = []
    while left:
        name = next((name for name in left if not firsts[name] & left.keys()), next(iter(left)))
        ordered.append(left.pop(name))
    return ordered


def undo(
    machine: Machine, intents: list[Intent], wait_s: float | None = None, final: bool = True
) -> dict[str, Error]:
    """Undo several activations as one change of the store and the kernel.

    Activations may depend on each other, because one may use names or ports that another has
    released. ``wait_s`` is the time in seconds to wait for niso's lock, or None for no limit.
    ``final`` is false if a request of the activation may still reach etcd. Returns {service:
    error}. Raises Busy if niso's lock is not free within ``wait_s``.
    """
    if not intents:
        return {}
    store = machine.store
    for intent in intents:
        machine.report(Undoing(intent.service))
    errors: dict[str, Error] = {}
    # rows and slots of instances change together: the rows may be as before, and the slots not
    changed = [
        intent
        for intent in intents
        if not store.is_as_before(intent) or store.instances.of(front_of(intent.service))
    ]
    # first: a job would go on changing data while its rows are undone
    for intent in intents:
        _end_job(machine, intent.service)
    try:
        _undo_records(machine, changed, wait_s)
    except Busy:
        raise
    except Error as error:
        errors = {intent.service: error for intent in changed}
        for intent in changed if len(changed) > 1 else ():  # undo the possible ones separately
            try:
                _undo_records(machine, [intent], wait_s)
                del errors[intent.service]
            except Error as other:
                errors[intent.service] = other
    errors |= _remove_created(
        machine, [intent for intent in intents if intent.service not in errors]
    )
    undone = [intent.service for intent in intents if intent.service not in errors]
    _take_out(machine, undone)
    # order is irrelevant: a shared namespace exists even without its owner's process
    for name in undone:
        try:
            restored = store.service(name)
            if restored is None or not restored.is_job:
                start_again(machine, name)
        except Error as error:
            errors[name] = error
        kept = store.service(name)
        _forget_failed(store, name, kept)
        try:
            restore_manifest(store, kept)
        except Error as error:
            errors[name] = error
    # last: if this process is killed before, the next command repeats the undo
    stop.end_intents(store, undone)
    report_to_cluster(machine, undone, final)
    return errors


def _remove_created(machine: Machine, intents: list[Intent]) -> dict[str, Error]:
    """Delete the volumes that activations have created. Return {service: error}.

    A new volume can be incomplete: a database that is killed while it creates its files cannot use
    them later. Volumes of processes that still run stay.
    """
    errors: dict[str, Error] = {}
    used = {one for i in intents for one in i.created if machine.processes.runs(i.service)}
    for intent in intents:
        for service, name in intent.created:
            try:
                if (service, name) not in used:
                    path = os.path.join(paths.volume_dir(service), name)
                    has_files = os.path.isdir(path) and bool(os.listdir(path))
                    volumes.remove_all(service, machine.report, name)
                    if has_files:
                        what = f"{service}: the activation is undone, and the volume {name!r} that "
                        what += "it created is deleted with its files: they could be half made"
                        machine.caution(what)
            except Error as error:
                errors[intent.service] = error
    return errors


def restore_manifest(store: Store, row: ServiceRow | None) -> None:
    """Restore the manifest in a service's package copy from the service's row.

    Does nothing for an attachment, or for an instance, which uses the package copy of its service.
    """
    spec = row.service if row is not None and not row.is_attachment else None
    if row is not None and spec is not None and not spec.front and os.path.isdir(row.package):
        package.keep_manifest(row.package, spec, store.internal(spec.network.networks))


def _take_out(machine: Machine, names: Iterable[str]) -> None:
    """Send no new connections to instances without a process. niso health may change this later."""
    store = machine.store
    if not (dead := _without_process(machine, names)):
        return
    fronts = [one.front for name in dead if (one := store.instances.get(name)) is not None]
    with (
        Lock(),
        change(machine.kernel, store, concerned(store, fronts), machine.report, teardown=True),
    ):
        store.instances.set_state(_without_process(machine, dead), OUT)


def _without_process(machine: Machine, names: Iterable[str]) -> list[str]:
    own = [one for name in names if (one := machine.store.instances.get(name)) is not None]
    return [
        one.service
        for one in own
        if one.state == SERVING and not machine.processes.runs(one.service)
    ]


def _end_job(machine: Machine, name: str) -> None:
    row = machine.store.service(name)
    if row is not None and row.is_job and machine.processes.runs(name):
        with suppress(Error):  # a process that does not end is reported by the undo, or by `check`
            machine.processes.stop(name)


def start_again(machine: Machine, name: str) -> None:
    """Start the process of an active service that should run.

    Nothing is started if the process already runs as recorded, or has exited by itself.
    """
    processes = machine.processes
    restored = machine.store.service(name)
    if restored is not None and restored.active and restored.has_process:
        # its namespace was replaced, or it was being stopped
        if not processes.in_own_netns(name) or processes.is_stopping(name):
            processes.stop(name)
        # only a command with the service's lock starts the process, so that start was interrupted
        if processes.status(name).state == "starting":
            processes.stop(name, 0)
        if processes.status(name).state == "running" and not processes.units.is_supervised(name):
            processes.stop(name)  # its conmon has died too, so it would not be restarted
        if processes.status(name).state in ("none", "failed"):
            processes.start(restored.require_process())


def _undo_records(machine: Machine, intents: list[Intent], wait_s: float | None) -> None:
    """Restore the rows and networks of services, and stop processes that do not match the old rows.

    ``wait_s`` is the time in seconds to wait for niso's lock. Raises Busy or another Error. After
    an error the rows are unchanged.
    """
    if not intents:
        return
    store, kernel, processes, *_ = machine
    shown = _end_changed(machine, intents)
    providers = (intent.before.provider for intent in intents if intent.before)
    touched = {*(intent.service for intent in intents), *(name for name in providers if name)}
    links: list[str] = []
    with Lock(wait_s, required=True):
        restored_names = {("service", name) for intent in intents for name in intent.names}
        scope = concerned(store, touched)
        scope = concerned(store, touched, names=restored_names | all_names(store, scope))
        scope = with_remotes(store, scope)
        # if niso is killed here, the intents and their rows stay
        with change(kernel, store, scope, machine.report, teardown=True, detached=links) as undone:
            try:
                _doubt_slots(store, undone, (intent.service for intent in intents))
                store.undo(intents)
                if dead := _without_process(machine, (intent.service for intent in intents)):
                    undone.doubt()  # the kernel may still have the slots of the old rows
                    store.instances.set_state(dead, OUT)
            except sqlite3.IntegrityError as error:
                # another command is undoing a service of the same activation, and has not yet
                # released a name, address or port that this service had
                reason = f"another service still holds its name, address or port: {error}"
                raise Error(reason, "niso net repair") from error
            host_settings.note_late(kernel, store)
            # include networks of services that stay inactive: the activation may have dropped an
            # implicit network as its last step
            undone.scope = scope.joined(concerned(store, touched))
            undone.then(lambda: _show_hosts(processes, shown))
    kernel.delete_detached(links)


def _doubt_slots(store: Store, undone: change, names: Iterable[str]) -> None:
    """Make an undo delete the load balancing of instances that were starting. An interrupted change
    may have written load balancing to the kernel before the store recorded it.
    """
    own = [one for name in names if (one := store.instances.get(name)) is not None]
    if starting := [one.service for one in own if one.state == STARTING]:
        store.instances.set_state(starting, SERVING)
        undone.doubt()
        store.instances.set_state(starting, STARTING)


def _show_hosts(processes: Processes, shown: Iterable[ProcessSpec]) -> None:
    for old in shown:
        try:
            processes.swap_hosts(old)
        except ProcessError:
            processes.stop(old.service, 0)  # `start_again` starts it afterwards


def _end_changed(machine: Machine, intents: list[Intent]) -> list[ProcessSpec]:
    """Kill processes that do not match the old rows. If only the hosts file differs, the process
    continues. Returns the old ProcessSpecs of the processes that need another hosts file.
    """
    store, _, processes, *_ = machine
    shown: list[ProcessSpec] = []
    for intent in intents:
        name = intent.service
        now, was = store.service(name), intent.before
        old = was.process if was is not None and was.active else None
        now_spec = now.process if now is not None else None
        if old is None or now_spec is None:
            processes.stop(name, 0)
            continue
        swaps = process_record.can_swap(processes, now_spec, old)
        if not swaps and not _runs_with(processes, name, old):
            processes.stop(name, 0)
        # also if the process does not have the new file yet: the old one may have been missing
        elif (
            old.hosts_folder not in ("", now_spec.hosts_folder)
            and processes.status(name).pid is not None
        ):
            shown.append(old)
    return shown


def _forget_failed(store: Store, name: str, kept: ServiceRow | None) -> None:
    if kept is not None and kept.mode == "front":
        from niso.change import deploy

        package.keep_only(name, deploy.used_packages(store, name))
    elif kept is None or store.instances.get(name) is None:
        former = store.instances.packages(name) if kept else ()
        package.keep_only(name, {kept.package, *former} if kept else set())
    if kept is None:
        package.delete_tree(paths.log_dir(name))
        volumes.remove_empty_folder(name)


def _runs_with(processes: Processes, name: str, wanted: ProcessSpec) -> bool:
    return processes.spec(name) == wanted and processes.runs(name)
