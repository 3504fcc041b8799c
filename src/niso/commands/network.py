"""Create and remove networks."""

from __future__ import annotations

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import Lock
from niso.base.report import Report, silent
from niso.plan.records import Network
from niso.reconcile.change import change
from niso.services.machine import Machine
from niso.services.networks import NetworkRequest, check, ensure
from niso.store.store import Scope, Store

if TYPE_CHECKING:
    from niso.services.span_networks import Arriving


def create(
    machine: Machine, request: NetworkRequest, report: Report = silent, dry_run: bool = False
) -> Network | None:
    """Create a network and its bridge; return None if the same network already exists.

    A network that spans hosts is created in the cluster too, or added from there. Raises
    UsageError, KernelError, and Conflict if name, subnet or bridge is taken; then nothing has
    changed.
    """
    check(request)
    if not request.span:
        return _create(machine, request, report, dry_run)
    from niso.base import wake
    from niso.services import span_networks

    proposed = span_networks.propose(machine, request, dry_run)
    try:
        network = _create(machine, proposed.request, report, dry_run, proposed.arriving)
    except BaseException:
        span_networks.withdraw(machine, proposed, report)
        raise
    if not dry_run:
        wake.agent()
    return network


def _create(
    machine: Machine,
    request: NetworkRequest,
    report: Report,
    dry_run: bool,
    arriving: Arriving | None = None,
) -> Network | None:
    store, kernel = machine.store, machine.kernel
    with Lock():
        scope = Scope((), (request.name,), names=(("network", request.name),))
        if arriving is not None:
            scope = scope.joined(arriving.scope(store))
        network: Network | None = None
        made = change(kernel, store, scope, report, rows_first=True, dry_run=dry_run)
        try:
            with made:
                network = ensure(machine, request, False) if arriving is None else None
                if arriving is not None:
                    unobserved = () if request.observe else (request.name,)
                    network = next(iter(arriving.record(machine, False, unobserved)), None)
                    arriving.fill(store)
        except BaseException:
            if network is not None and made.is_recorded:  # its bridge could not be made
                with change(kernel, store, scope, teardown=True, rows_first=True):
                    store.drop_network(request.name)
            raise
    return network


def remove(
    machine: Machine, names: list[str], report: Report = silent, dry_run: bool = False
) -> None:
    """Remove networks and their bridges, all or none.

    A network that spans hosts is removed from the cluster first, even if only other hosts had
    services on it. Raises NotFound, Conflict if a service is on one of the networks, on any host,
    and KernelError.
    """
    store, kernel = machine.store, machine.kernel
    here = {name: store.network(name) for name in names}
    for name, network in here.items():
        if network is not None or not store.cluster_id():
            _require_unused(store, name)
    if spanning := [name for name in names if (n := here[name]) is None or n.span is not None]:
        from niso.services import span_networks

        span_networks.remove(machine, spanning, dry_run)
    with Lock():
        # the agent may have removed a network that the cluster no longer has
        names = [name for name in names if name not in spanning or store.network(name) is not None]
        for name in names:
            _require_unused(store, name)
        scope = Scope((), tuple(names), names=tuple(("network", name) for name in names))
        if spanning:
            scope = span_networks.going(store, scope, every=True)
        # if this fails or niso dies, the networks stay known for repair
        with change(kernel, store, scope, report, teardown=True, dry_run=dry_run):
            for name in names:
                store.require_network(name)
                store.drop_network(name)


def _require_unused(store: Store, name: str) -> None:
    """Raise NotFound if there is no such network, Conflict if a service of this host is on it."""
    store.require_network(name)
    members = [service for service, _ in store.members(name)] or store.held_by(name)
    if members:
        raise Conflict(
            f"network {name!r} is used by {', '.join(members)}",
            "it can be removed once they are removed or on other networks",
        )
