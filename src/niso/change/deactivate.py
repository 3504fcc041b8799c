"""Deactivate services, and delete their records and volumes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from niso.base.errors import Conflict, raise_all
from niso.base.locks import Lock
from niso.base.named_tuples import NamedTuple
from niso.change import stop
from niso.change.journal import begin, locked, recover
from niso.change.scope import report_to_cluster
from niso.runtime import volumes
from niso.runtime.machine import Machine


class Done(NamedTuple):
    """Whether a command changed a service or attachment. `niso.Changed` is the same class."""

    service: str  # the service's name
    changed: bool  # false if nothing changed


def deactivate(
    machine: Machine,
    services: list[str],
    dry_run: bool = False,
    keep_forwards: bool = False,
    needs: stop.Needs | None = None,
) -> list[Done]:
    """Stop services and remove their networks. The services' addresses stay reserved.

    With ``keep_forwards``, the ports that `niso port-forward` published are published again at the
    next activation. ``needs`` maps services to their dependencies: a dependency is stopped after
    the services that need it. With ``dry_run``, the steps are only reported. Raises Error, and
    NotFound if recovery has just completed the removal of a service.
    """
    store = machine.store
    named, services = services, store.instances.with_instances(services)
    if dry_run:
        with Lock():
            stop.refuse(store, services)
            stop.plan_only(machine, services)
        return []
    if not keep_forwards:
        stop.stop_timers(machine, named)
    recover(machine, services)
    with locked(store, services):
        find = store.service if keep_forwards else store.require_known
        with store.reading():
            rows = [find(name) for name in services]
        active = [row.name for row in rows if row is not None and row.active]
        began = time.time()
        begin(store, active, "stop" if keep_forwards else "deactivate")
        _leave_others(machine, active)
        errors = stop.finish(machine, active, True, keep_forwards, needs, began=began)
        if errors:
            known = (store.service(name) for name in named)
            left = [row for row in known if row is not None and row.active]
            with Lock(), store.transaction():
                stop.record(store, left, began, "failed", errors[0])
        idle = [name for name in services if name not in active and store.forwards(name)]
        if idle and not keep_forwards:
            with Lock(), store.transaction():
                for name in idle:
                    store.end_publishing(name)
        report_to_cluster(machine, services)
        raise_all(errors)
    if not keep_forwards:
        _stop_units(machine, named)
    return [Done(name, name in active) for name in named]


def _leave_others(machine: Machine, services: list[str]) -> None:
    if machine.store.cluster_id():
        from niso.change import deploy

        deploy.leave_others(machine, services)


def _stop_units(machine: Machine, services: list[str]) -> None:
    units = machine.processes.units
    for name in services if units.booted() else ():
        row = machine.store.service(name)
        if row is not None and row.enabled and row.mode == "front":
            units.stop([name])


def remove(machine: Machine, services: list[str], with_volumes: bool = False) -> None:
    """Deactivate services, and delete their records, leases, logs and copied packages.

    With ``with_volumes``, their named volumes are deleted too, even if the service no longer
    exists. Raises Error.
    """
    store = machine.store
    recover(machine, services)
    with locked(store, store.instances.with_instances(services)):
        known = [name for name in services if store.service(name) is not None]
        known = store.instances.with_instances(known)
        if with_volumes:
            for name in services:
                volumes.check_removable(name)  # before anything is stopped
        homes = [store.home(name) for name in known]
        begin(store, known, "remove volumes" if with_volumes else "remove")
        _leave_others(machine, known)
        errors = stop.finish(machine, known, ends=False)
        ended = [name for name in known if (row := store.service(name)) and not row.active]
        stop.forget(machine, ended, with_volumes)
        for name in services if with_volumes else ():
            if name not in known:
                volumes.remove_all(name, machine.report)
        report_to_cluster(machine, [*known, *homes])
        raise_all(errors)


def remove_volumes(machine: Machine, wanted: Iterable[tuple[str, str]]) -> None:
    """Delete named volumes, each given as (service, volume).

    If the volume is "", all volumes of the service are deleted. Raises Error, and Conflict if a
    service is active or something is mounted in a volume.
    """
    store, wanted = machine.store, list(wanted)
    services = list(dict.fromkeys(service for service, _ in wanted))
    recover(machine, services)
    with locked(store, services):
        for service, volume in wanted:
            if (row := store.service(service)) is not None and row.active:
                reason = f"service {service!r} is active and uses its volumes"
                raise Conflict(reason, "they can be removed once it is inactive")
            volumes.check_removable(service, volume)
        for service, volume in wanted:
            volumes.remove_all(service, machine.report, volume)
