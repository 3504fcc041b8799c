"""Publish and withdraw ports of running services (`niso port-forward`)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from niso.base.errors import Conflict, NotFound
from niso.base.lite_typing import NamedTuple
from niso.base.locks import Lock
from niso.base.report import Caution, Report, silent
from niso.kernel.kinds.element import Element
from niso.kernel.state import State
from niso.plan import nft
from niso.plan.records import Port
from niso.reconcile.change import change
from niso.services import concern
from niso.services.machine import Machine
from niso.services.ports import Listeners, as_held, check_family, published_by, same_place
from niso.store.store import Store


class FinishingPorts(NamedTuple):
    """Reported when port changes of an interrupted command are completed."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"complete the port changes of {', '.join(self.services)}"


def concerned(store: Store, service: str, port: Port, replace: bool) -> set[str]:
    """Return the services whose ports `forward` would change; the caller must lock them."""
    return {service} | ({holder for holder, _ in store.port_holders(port)} if replace else set())


def forward(
    machine: Machine,
    service: str,
    port: Port,
    replace: bool,
    locked: set[str],
    report: Report = silent,
) -> tuple[bool, list[tuple[str, Port]]]:
    """Publish one more port of an active service immediately.

    Returns (whether anything changed, (service, port) pairs that lost the host port). With
    ``replace``, the host port is taken from its holders in one kernel transaction. ``locked`` are
    the services whose locks the caller holds. Raises Conflict, KernelError; then nothing has
    changed.
    """
    store, key = machine.store, "PORT"
    with Lock():
        store.require_active(service)
        if store.has_port(service, port):
            return False, []
        _check_mode(store, service, key)
        check_family(service, port, store.port_families(service), key)
        holders = store.port_holders(port)
        losers = [
            (holder, held)
            for holder, held in holders
            if holder != service or same_place(held, port)
        ]
        if losers and not replace:
            holder, held = losers[0]
            message = f"host port {port.host_side} is published by {holder!r}{as_held(held, port)}"
            hint = f"--replace takes {held.text} from {holder}"
            if holder == service:
                hint = f"--replace replaces {held.text}"
            if _is_part(port, held):
                hint = "it is part of a range: move the whole range, or change that manifest"
            raise Conflict(message, hint, key, names_key=False)
        for holder, held in losers:
            if _is_part(port, held):
                message = f"host port {port.host_side} is part of {held.host_side} of {holder!r}"
                raise Conflict(
                    message, "move the whole range, or change that manifest", key, names_key=False
                )
            if holder not in locked:
                raise Conflict(
                    f"{holder!r} has just taken host port {port.host_side}",
                    "try again",
                    key,
                    names_key=False,
                )
        Listeners(machine.kernel, store.port_families(service)).check(port, key)
        _change(machine, [(service, port)], losers, report)
    return True, losers


def _is_part(port: Port, held: Port) -> bool:
    """Return whether ``held`` has host ports outside ``port``, which would be lost too."""
    return held.host_port < port.host_port or held.last > port.last


def kept_out(store: Store, service: str, port: Port) -> list[tuple[str, Port]]:
    """Return (service, port) for each manifest port that only this forward keeps unpublished.

    They are those of active services. A host port that several services want is left out.
    """
    claims = []
    for row in store.active_rows():
        for claimed in dict.fromkeys(published_by(row)):
            if not claimed.host_port or store.has_port(row.name, claimed):
                continue
            if not (same_place(port, claimed) if row.name == service else port.clashes(claimed)):
                continue
            holders = [held for held in store.port_holders(claimed) if held != (service, port)]
            if not any(who != row.name or same_place(held, claimed) for who, held in holders):
                claims.append((row.name, claimed))
    return [
        (name, claimed)
        for name, claimed in claims
        if not any(name != who and claimed.clashes(other) for who, other in claims)
    ]


def unforward(
    machine: Machine, service: str, port: Port, locked: set[str], report: Report = silent
) -> list[tuple[str, Port]]:
    """Withdraw a port that `forward` added, even if its service has not started since a reboot.

    Ports of services in ``locked`` that only this forward kept unpublished are published again, in
    one kernel transaction, and returned. Raises NotFound if the port is not forwarded, Conflict if
    the manifest publishes it.
    """
    store = machine.store
    with Lock():
        forwards = store.forwards(service)
        if port not in forwards:
            store.require_active(service)
            if store.has_port(service, port):
                message = f"{port.text} is in the manifest of {service!r}"
                raise Conflict(
                    message, "remove it there and activate the service", "PORT", names_key=False
                )
            added = ", ".join(forward.text for forward in forwards) or "none"
            raise NotFound(f"{port.text} is not forwarded to {service!r}", f"its forwards: {added}")
        back = []
        for holder, claimed in kept_out(store, service, port):
            if holder not in locked:  # it was activated in the meantime
                continue
            try:
                Listeners(machine.kernel, store.port_families(holder)).check(claimed, "PORT")
            except Conflict as error:
                what = f"{holder}: {claimed.text} is not published again: {error.reason}"
                report(Caution(what, (f"stop it, then niso activate {holder}",)))
                continue
            back.append((holder, claimed))
        _change(machine, [], [(service, port)], report, back)
    return back


def finish(machine: Machine, report: Report = silent) -> None:
    """Apply the port changes recorded by interrupted commands.

    They are applied together, because one service may have taken a port from another. A live
    command holds niso's lock from its record to the end, so every record found here is from an
    interrupted one.
    """
    store = machine.store
    with Lock():
        moved = store.moved_ports()
        if moved:
            report(FinishingPorts(tuple(sorted({service for service, _ in moved}))))
            with _moving(machine, moved, store.moved_on(), report) as made:
                made.doubt(_elements(store, moved))
            _end(store, moved)


_One = tuple[str, Port]
_Moved = list[_One]


def _change(
    machine: Machine, come: _Moved, go: _Moved, report: Report, back: Sequence[_One] = ()
) -> None:
    """Record added and withdrawn ports and update the kernel; on failure, roll back both.

    ``come`` are new forwards, ``go`` withdrawn ports, ``back`` manifest ports to publish again. The
    caller holds niso's lock.
    """
    store = machine.store
    moved = [*come, *back, *go]
    names = {service for service, _ in moved}
    # a network that a service has left may still have its bridge set up for the service's ports
    on = set(concern.concerned(store, names).networks or ())
    rows = {name: (store.port_rows(name), store.published_row(name)) for name in names}
    made = _moving(machine, moved, on, report)
    try:
        with made:
            for service, port in go:
                store.take_port(service, port)
            for service, port in come:
                store.add_forward(service, port)
            for service, port in back:
                row = store.service(service)
                store.add_back(service, port, published_by(row) if row is not None else ())
            store.begin_moving(moved, on, time.time())
            made.scope = made.scope.joined(concern.concerned(store, names, on))
        _end(store, moved)
    except BaseException:
        if made.is_recorded:
            with _moving(machine, moved, on, report, teardown=True) as undone:
                for name, (ports, published) in rows.items():
                    store.put_port_rows(name, ports)
                    store.put_published_row(name, published)
                undone.scope = undone.scope.joined(concern.concerned(store, names, on))
            _end(store, moved)
        raise


def _moving(
    machine: Machine, moved: _Moved, on: set[str], report: Report, teardown: bool = False
) -> change:
    """Return the context of a change of these ports alone.

    ``on`` are the networks that it concerned before. The rows are first: if niso dies, the next
    command finds which ports were moved.
    """
    store, kernel = machine.store, machine.kernel
    scope = concern.concerned(store, sorted({service for service, _ in moved}), on)
    scope = scope._replace(ports=tuple(port for _, port in moved))
    return change(kernel, store, scope, report, teardown=teardown, rows_first=True)


def _end(store: Store, moved: _Moved) -> None:
    """Record that these ports have been moved."""
    with store.transaction():
        for name in sorted({service for service, _ in moved}):
            store.end_intent(name)


def _elements(store: Store, ports: _Moved) -> State:
    """Return the map elements of these ports.

    This includes the elements that a service has as long as it publishes any port.
    """
    elements: set[Element] = set()
    for service, port in ports:
        own = store.addresses(service)
        first = [address for network, address in own if network == own[0][0]]
        elements.update(nft.published(service, port, first))
        for name in {network for network, _ in own} - {own[0][0]}:
            there = [address for network, address in own if network == name]
            elements.update(
                nft.published_on(service, port, store.require_network(name).bridge, there)
            )
        elements.update(nft.hairpin(store.home(service), [(address, "") for _, address in own]))
    return State(elements)


def _check_mode(store: Store, service: str, key: str) -> None:
    """Raise Conflict if neither a service nor its provider has a network to forward a port to."""
    home = store.service(store.home(service))
    if home is not None and home.mode in ("host", "none"):
        whose = (
            f"service {service!r}"
            if home.name == service
            else f"{home.name!r}, whose network {service!r} shares,"
        )
        if home.mode == "host":
            raise Conflict(
                f"{whose} has mode host", "its listening ports are already the host's", key
            )
        raise Conflict(
            f"{whose} has mode none: it cannot be reached",
            'set mode = "bridge" to have a network',
            key,
        )
