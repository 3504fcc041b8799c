"""Create and remove networks."""

from __future__ import annotations

from niso.base.errors import Conflict
from niso.base.locks import Lock
from niso.base.report import Report, silent
from niso.plan.records import Network
from niso.reconcile.converge import converge, desired_now, plan
from niso.services.machine import Machine
from niso.services.networks import NetworkRequest, check, ensure
from niso.store.store import Scope


def create(
    machine: Machine, request: NetworkRequest, report: Report = silent, dry_run: bool = False
) -> Network | None:
    """Create a network and its bridge; return None if the same network already exists.

    Raises UsageError, KernelError, and Conflict if name, subnet or bridge is taken; then nothing
    has changed.
    """
    store, kernel = machine.store, machine.kernel
    check(request)
    with Lock():
        scope = Scope((), (request.name,), names=(("network", request.name),))
        with store.transaction() as transaction:
            before = desired_now(kernel, store, scope)
            network = ensure(machine, request, implicit=False)
            if dry_run:
                for step in plan(kernel, store, scope, before).steps:
                    report(step)
                transaction.cancel()
                return network
        try:
            converge(kernel, store, scope, before, report)
        except BaseException:
            if network is not None:
                _forget(machine, request.name)
            raise
    return network


def remove(
    machine: Machine, names: list[str], report: Report = silent, dry_run: bool = False
) -> None:
    """Remove networks and their bridges, all or none.

    Raises NotFound, Conflict if a known service is on one of them, and KernelError.
    """
    store, kernel = machine.store, machine.kernel
    with Lock():
        for name in names:
            store.require_network(name)
            members = [service for service, _ in store.members(name)] or store.held_by(name)
            if members:
                raise Conflict(
                    f"network {name!r} is used by {', '.join(members)}",
                    "it can be removed once they are removed or on other networks",
                )
        scope = Scope((), tuple(names), names=tuple(("network", name) for name in names))
        with store.transaction() as transaction:
            before = desired_now(kernel, store, scope)
            for name in names:
                store.drop_network(name)
            if dry_run:
                for step in plan(kernel, store, scope, before).steps:
                    report(step)
                transaction.cancel()
                return
            # inside the transaction: if this fails or niso dies, the networks stay known for repair
            converge(kernel, store, scope, before, report, teardown=True)


def _forget(machine: Machine, name: str) -> None:
    """Undo the creation of a network whose bridge could not be made."""
    store, kernel = machine.store, machine.kernel
    scope = Scope((), (name,), names=(("network", name),))
    before = desired_now(kernel, store, scope)
    with store.transaction():
        store.drop_network(name)
    converge(kernel, store, scope, before, teardown=True)
