"""Stop services: stop their processes in parallel, remove their networks, delete their records.

The caller must have the services' locks, and must have recorded the change of each service as in
progress (an intent). Attachments, which have no process, use this module too. To keep their calls
short, this module does not import code that only processes need.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterable, Iterator, Mapping

from niso.base import paths
from niso.base.errors import Error
from niso.base.locks import Lock
from niso.base.names import netns
from niso.base.report import Forgetting, Stopping
from niso.change.scope import all_names, concerned, in_use, with_remotes
from niso.reconcile import host_settings
from niso.reconcile.change import change
from niso.runtime.machine import Machine
from niso.store.service_rows import Deployed, ServiceRow
from niso.store.snapshots import Scope
from niso.store.store import Store

Needs = Mapping[str, Iterable[str]]
"""Maps a service to its dependencies, which are stopped after the service."""
_STOP_TIMEOUT_S = 10.0
"""Stop timeout in seconds if the row is damaged: the default of service.stop_timeout."""


def finish(
    machine: Machine,
    services: list[str],
    ends: bool,
    keep_forwards: bool = False,
    needs: Needs | None = None,
    resets: bool = False,
    began: float | None = None,
) -> list[Error]:
    """Stop services and remove their networks, and return the errors of failed stops.

    A service whose process could not be stopped keeps its network. With ``ends``, records of
    changes in progress (intents) are deleted. With ``keep_forwards``, ports of `niso port-forward`
    are published again at the next activation. With ``resets``, clients get a TCP reset for each
    connection that is still open when the process has exited. Without a reset, a client that only
    receives would wait for ever. ``began`` is the start of the command as a Unix time. If it is
    given, the stop is recorded for `niso history`. Raises Error if the kernel refuses a change. In
    this case no service is recorded as stopped, and the call can be repeated.
    """
    store = machine.store
    with store.reading():
        rows = [row for name in services if (row := store.service(name)) is not None]
    if not rows:
        return []
    errors = stop(machine, rows, needs or {})
    # keep a namespace as long as the process of a service that shares it is in it
    kept = {*errors, *(row.provider for row in rows if row.name in errors)}
    rows = [row for row in rows if row.name not in kept]
    for row in rows if resets else ():
        machine.kernel.destroy_connections(netns(row.name))
    withdraw(machine, rows, ends, keep_forwards, began=began)
    return list(errors.values())


def plan_only(machine: Machine, services: list[str]) -> None:
    """Report the steps that `finish` would take. The caller must have niso's lock."""
    store, kernel = machine.store, machine.kernel
    rows = [row for name in services if (row := store.service(name)) is not None and row.active]
    for row in rows:
        machine.report(Stopping(row.name))
    if rows:
        with change(kernel, store, scope_of(store, rows), machine.report, dry_run=True):
            deactivate_rows(machine, rows)


def forget(machine: Machine, services: list[str], with_volumes: bool = False) -> None:
    """Delete the records, files and intents of stopped services, and optionally their volumes.

    Raises Error if a file cannot be deleted. Then no record is deleted, and the call can be
    repeated.
    """
    from niso.runtime import package, volumes

    store, kernel = machine.store, machine.kernel
    for name in services if with_volumes else ():
        volumes.remove_all(name, machine.report)
    for name in services:
        machine.report(Forgetting(name))
        package.keep_only(name, set())
        for folder in (paths.package_dir(name), paths.log_dir(name)):
            if (error := package.delete_tree(folder)) is not None:
                where = error.filename or folder
                raise Error(f"cannot delete {where}: {error.strerror}", service=name)
    with Lock():
        scope = _to_forget(store, concerned(store, services))
        with change(kernel, store, scope, machine.report, teardown=True):
            _forget_rows(store, services, scope)


def _to_forget(store: Store, scope: Scope) -> Scope:
    """Return the scope extended by policies that name its services, and will match nothing."""
    return with_remotes(store, scope._replace(names=tuple(sorted(all_names(store, scope)))))


def _forget_rows(store: Store, services: Iterable[str], scope: Scope) -> None:
    """Delete all rows of services, and implicit networks that then have no services."""
    for name in services:
        store.forget(name)
        store.end_intent(name)
    store.drop_implicit_networks(scope.networks or ())


def stop_timers(machine: Machine, services: list[str]) -> None:
    """Stop the timers of jobs and the jobs that they run, so that no timer starts a job again."""
    units, enabled = machine.processes.units, machine.store.scheduled()
    for name in services:
        if enabled.get(name) and units.booted():
            units.stop_timer(name)


def stop(machine: Machine, rows: Iterable[ServiceRow], needs: Needs) -> dict[str, Error]:
    """Stop the processes of services. Return {service: error} of failed stops.

    ``needs`` maps services to their dependencies. A service is stopped before its dependencies and
    its provider. Services without such an order are stopped concurrently.
    """
    rows = list(rows)
    return machine.processes.stop_all(_ended(machine, rows, needs)) if rows else {}


def _ended(machine: Machine, rows: list[ServiceRow], needs: Needs) -> Iterator[str]:
    """Ask the processes of services to exit, in the order that `stop` describes. Yield the name of
    each service whose process has exited, or must be killed because of its timeout.

    The caller removes the runtime files of each yielded service before it takes the next name,
    while other processes exit.
    """
    left = {
        row.name: spec.stop_timeout_s if (spec := row.process) else _STOP_TIMEOUT_S for row in rows
    }
    providers = {row.name: [row.provider] if row.provider else [] for row in rows}
    # service -> its dependencies among these services, and the reverse
    needed = {
        name: {*needs.get(name, ()), *providers[name]} & left.keys() - {name} for name in left
    }
    dependents: dict[str, set[str]] = {name: set() for name in left}
    for name, dependencies in needed.items():
        for dependency in dependencies:
            dependents[dependency].add(name)
    asked: dict[str, tuple[int, float]] = {}  # service -> (pidfd, monotonic time to kill it)
    queue: list[str] = []  # the services to yield, in the order in which they were asked
    exited: set[str] = set()

    try:
        while left or asked or queue:
            ready = [name for name in left if not dependents[name]]
            # if none is ready and none is awaited, the rest is a cycle of dependencies: stop all
            for name in ready or ([] if asked else list(left)):
                machine.report(Stopping(name))
                timeout_s = left.pop(name)
                pidfd = machine.processes.terminate(name) if timeout_s > 0 else -1
                asked[name] = (pidfd, time.monotonic() + (timeout_s if pidfd >= 0 else 0.0))
                queue.append(name)
            while queue and queue[0] in exited:
                yield queue.pop(0)
            for name in _over(asked) if asked else ():
                pidfd, until = asked.pop(name)
                if pidfd >= 0:
                    os.close(pidfd)
                if until <= time.monotonic():
                    queue.remove(name)
                    yield name  # killed before its dependencies are stopped
                else:
                    exited.add(name)
                for dependency in needed[name]:
                    dependents[dependency].discard(name)
    finally:
        for pidfd, _ in asked.values():
            if pidfd >= 0:
                os.close(pidfd)


def _over(asked: Mapping[str, tuple[int, float]]) -> list[str]:
    """Wait until at least one process has exited or timed out. Return the names of these services.
    ``asked`` maps each service to (pidfd, monotonic time of its timeout).
    """
    poll = select.poll()
    for pidfd, _ in asked.values():
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
    left_s = min(until for _, until in asked.values()) - time.monotonic()
    ended = {fd for fd, _ in poll.poll(max(0, int(left_s * 1000 + 0.999)))}
    now = time.monotonic()
    return [name for name, (pidfd, until) in asked.items() if pidfd in ended or until <= now]


def end_intents(store: Store, services: Iterable[str]) -> None:
    with store.transaction():  # niso's lock is not needed: only the intents change
        for name in services:
            store.end_intent(name)


def refuse(store: Store, services: Iterable[str]) -> None:
    """Raise Conflict if the services to stop have sharers that are not stopped."""
    together = frozenset(services)
    for name in sorted(together):
        sharers = [other for other in store.held_sharers(name, together) if other not in together]
        if sharers:
            raise in_use(name, sharers)


# --- networks, after the processes have exited ----------------------------------------------------


def withdraw(
    machine: Machine,
    rows: Iterable[ServiceRow],
    ends: bool,
    keep_forwards: bool = False,
    forgets: bool = False,
    began: float | None = None,
) -> None:
    """Record services as inactive and remove their networks.

    With ``ends``, records of changes in progress (intents) are deleted. With ``forgets``, all rows
    of the services are deleted as well. With ``keep_forwards``, ports of `niso port-forward` are
    published again at the next activation. ``began`` is the start of the command as a Unix time. If
    it is given, the stop is recorded for `niso history`. Raises Error. After an error nothing is
    recorded, and the call can be repeated.
    """
    store, kernel = machine.store, machine.kernel
    rows = list(rows)
    links: list[str] = []
    with Lock():
        scope = scope_of(store, rows)
        scope = _to_forget(store, scope) if forgets else scope
        with change(kernel, store, scope, machine.report, teardown=True, detached=links):
            deactivate_rows(machine, rows, keep_forwards)
            if began is not None:
                own = [row for row in rows if not row.is_attachment]
                fronts = [row for row in own if store.instances.get(row.name) is None]
                record(store, fronts, began, "stopped")
            if forgets:
                _forget_rows(store, (row.name for row in rows), scope)
            elif ends:
                for row in rows:
                    store.end_intent(row.name)
    kernel.delete_detached(links)


def record(
    store: Store, rows: Iterable[ServiceRow], began: float, outcome: str, why: object = None
) -> None:
    """Record for `niso history` what a command did to services.

    ``began`` is the start of the command as a Unix time. ``outcome`` is "done", "failed", "taken
    back" or "stopped", and ``why`` the error if the command failed. The caller must be in a
    transaction.
    """
    reason = ""
    if why is not None:
        reason = why.message if isinstance(why, Error) else "interrupted"
    for row in rows:
        took_s = round(max(0.0, time.time() - began), 3)
        version = store.instances.next_version(row.name)
        what = (row.manifest, row.package, row.manifest_path)
        store.instances.put_deploy(
            Deployed(row.name, version, began, took_s, outcome, reason, *what)
        )


def deactivate_rows(
    machine: Machine, rows: Iterable[ServiceRow], keep_forwards: bool = False
) -> None:
    """Record services as inactive, without published ports, in the caller's transaction."""
    store = machine.store
    for row in rows:
        store.set_inactive(row.name)
    host_settings.note_late(machine.kernel, store)
    for row in rows:
        store.end_publishing(row.name, keep_forwards)


def scope_of(store: Store, rows: Iterable[ServiceRow]) -> Scope:
    """Return the scope of a change that removes the networks of services."""
    rows = list(rows)
    # the name of a service that shares a namespace resolves only while it is active
    with store.reading():
        shared = store.names_with(store.with_companions(row.name for row in rows if row.provider))
        return concerned(store, (row.name for row in rows), names=shared)
