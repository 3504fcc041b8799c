"""Assign host ports to services: refuse ports that are taken, and choose free ones.

For `niso.change.port_forward`, this module also adds and removes published ports while the service
runs. If a command was killed during such a change, the next command completes it (`finish`).
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Sequence

from niso.base.errors import Conflict, Error, raise_all
from niso.base.locks import Lock
from niso.base.report import event_class
from niso.change import scope as change_scope
from niso.change import stop
from niso.kernel.kinds.kind import State
from niso.kernel.nft_elements import Element
from niso.look.host_ports import HOLDERS, Listeners, as_held, published_by, same_place, taken
from niso.plan.elements import hairpin, published
from niso.plan.records import PortMapping
from niso.reconcile.change import change
from niso.runtime.machine import Machine
from niso.store.store import Store

FREE_FIRST, FREE_LAST = 20_000, 29_999
"""The range from which niso chooses a host port if a manifest names none.

It is below Linux's ephemeral port range (ip_local_port_range).
"""


def admit(
    machine: Machine,
    service: str,
    wanted: Sequence[PortMapping],
    before: Iterable[PortMapping],
    keys: Sequence[str],
    together: frozenset[str],
    named: tuple[PortMapping, ...],
    published: Container[PortMapping],
) -> tuple[list[PortMapping], list[PortMapping]]:
    """Check the host ports that a manifest sets, and choose host ports for its other ports.

    Returns (all ports to publish, the ports among them whose host port was chosen). ``before`` are
    the present ports of the service, which are not checked again. ``together`` are the command's
    services, whose present ports count as free. ``named`` are all host ports in the command's
    manifests, which are never chosen. ``published`` are the ports in the manifest of the last
    activation. A port that `niso port-forward` has since given to another service is left out. The
    caller must be in a transaction. Raises a Conflict that names the key and the port's owner, or
    an ErrorGroup.
    """
    store = machine.store
    keys = keys or [f"network.ports[{position}]" for position in range(len(wanted))]
    attached = store.attachments.get(service)
    # the container engine of an attachment may listen on its ports itself
    listens = attached is not None and attached.owner in HOLDERS
    have = set(before)
    families = store.port_families(service)
    forwards = store.forwards(service)
    listeners = Listeners(machine.kernel, families)
    ports: list[PortMapping] = []
    chosen: list[PortMapping] = []
    errors: list[Error] = []
    new = [port for port in wanted if port not in have]
    gone = {port for port, _, _ in taken(store, service, new, published)}
    # errors are collected, so that one run names all ports that must change
    for key, port in zip(keys, wanted, strict=True):
        try:
            check_family(service, port, families, key)
            assigned = port
            if not port.host_port:
                others = [*wanted, *ports], named
                free = _choose(store, service, port, others, have, listeners, key)
                assigned = port._replace(host_port=free)
                chosen.append(assigned)
            # a port that the service has is not checked: its own listener would conflict
            elif port not in have:
                if port in gone:
                    continue  # the port stays with the service that forwards it
                _check_holders(store, service, port, key, together)
                if not listens:
                    listeners.check(port, key)
                _check_forwards(service, port, forwards, key)
            ports.append(assigned)
        except Conflict as error:
            errors.append(error)
    for forward in forwards:
        key = f"port-forward {forward.text}"
        try:
            check_family(service, forward, families, key)
            # after a reboot, another service or process may have the reserved host port
            if forward not in have:
                _check_holders(store, service, forward, key, together)
                listeners.check(forward, key)
        except Conflict as error:
            errors.append(error)
    raise_all(errors)
    return ports, chosen


def check_family(service: str, port: PortMapping, families: tuple[int, ...], key: str) -> None:
    """Raise Conflict if a port is published for an IP version that the service does not have."""
    if not set(port.families) & set(families):
        family = port.families[0]
        raise Conflict(
            f"{port.host_side} is an IPv{family} port, and the default route's network of service "
            f"{service!r} has no IPv{family} subnet",
            "niso net create NAME --ipv6 creates a network with both families; list it first"
            if family == 6
            else "omit the address, or list a network with an IPv4 subnet first",
            key,
        )


def _check_holders(
    store: Store, service: str, port: PortMapping, key: str, together: frozenset[str]
) -> None:
    for holder, held in store.port_holders(port, together):
        if holder != service:
            message = f"host port {port.host_side} is published by {holder!r}{as_held(held, port)}"
            hint = f"choose another host port, or release it from {holder}"
            if holder in together:
                hint = f"{holder} is part of this command: choose another port for one of the two"
            if held in store.forwards(holder):
                hint = f"choose another host port, or withdraw the forward {held.text} of {holder}"
            raise Conflict(message, hint, key)


def _check_forwards(
    service: str, port: PortMapping, forwards: Iterable[PortMapping], key: str
) -> None:
    for forward in forwards:
        if same_place(forward, port):
            reason = f"host port {port.host_side} is forwarded to another port of {service!r}"
            hint = f"choose another host port, or withdraw the forward {forward.text}"
            raise Conflict(reason, hint, key)


def _choose(
    store: Store,
    service: str,
    port: PortMapping,
    others: tuple[Iterable[PortMapping], Iterable[PortMapping]],
    have: set[PortMapping],
    listeners: Listeners,
    key: str,
) -> int:
    """Choose a host port: the service's previous one if it is free, otherwise the lowest free one.

    ``others`` are ports not to choose: the ports of this manifest, and the host ports in all
    manifests of the command. ``have`` are the service's present ports. ``key`` is the manifest key
    for the error. Raises Conflict if no host port is free.
    """
    mine, named = others
    kept = store.chosen_port(service, port)
    if kept is not None:
        again = port._replace(host_port=kept)
        held = any(holder != service for holder, _ in store.port_holders(again))
        clear = not any(same_place(again, other) for other in mine if other.host_port)
        if clear and (again in have or not (held or listeners.clashing(again))):
            return kept
    taken = store.spans(port.proto, FREE_FIRST, FREE_LAST)
    taken += [
        (other.host_port, other.last)
        for other in (*mine, *named)
        if other.host_port and other.proto == port.proto
    ]
    taken += [(other.port, other.port) for other in listeners.of(port.proto)]
    candidate = FREE_FIRST
    for first, last in sorted(taken):
        if first - candidate >= port.count:
            break
        candidate = max(candidate, last + 1)
    if candidate + port.count - 1 > FREE_LAST:
        many = "port" if port.count == 1 else f"{port.count} ports in a row"
        raise Conflict(f"no {many} of {FREE_FIRST}-{FREE_LAST} free", "specify a host port", key)
    return candidate


# --- changes of a running service's ports ---------------------------------------------------------

FinishingPorts = event_class(
    "FinishingPorts", lambda services: f"complete the port changes of {', '.join(services)}"
)


def finish(machine: Machine) -> None:
    """Complete the changes of ports that interrupted `niso port-forward` commands have recorded.

    The caller must have niso's lock. A running `niso port-forward` has this lock as long as its
    record exists, so all records are from interrupted commands. They are completed in one change,
    because one service may have taken a port from another.
    """
    store = machine.store
    with Lock():
        moved = store.moved_ports()
        if moved:
            machine.report(FinishingPorts(tuple(sorted({service for service, _ in moved}))))
            with _moving(machine, moved, store.moved_on()) as made:
                made.doubt(_elements(store, moved))
            stop.end_intents(store, sorted({service for service, _ in moved}))


_Port = tuple[str, PortMapping]  # (service, port)
_Moved = list[_Port]


def _change(machine: Machine, come: _Moved, go: _Moved, back: Sequence[_Port] = ()) -> None:
    """Record added and removed ports and update the kernel, or undo both steps after an error.

    All ports are pairs (service, port): ``come`` to forward, ``go`` to stop forwarding, and
    ``back``, from manifests, to publish again. The caller must have niso's lock.
    """
    store = machine.store
    moved = [*come, *back, *go]
    names = {service for service, _ in moved}
    # a network that a service has left may still have its bridge set up for the service's ports
    on = set(change_scope.concerned(store, names).networks or ())
    rows = {name: (store.port_rows(name), store.published_row(name)) for name in names}
    made = _moving(machine, moved, on)
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
            made.scope = made.scope.joined(change_scope.concerned(store, names, on))
        stop.end_intents(store, sorted({service for service, _ in moved}))
    except BaseException:
        if made.is_recorded:
            with _moving(machine, moved, on, teardown=True) as undone:
                for name, (ports, published) in rows.items():
                    store.put_port_rows(name, ports)
                    store.put_published_row(name, published)
                undone.scope = undone.scope.joined(change_scope.concerned(store, names, on))
            stop.end_intents(store, sorted({service for service, _ in moved}))
        raise


def _moving(machine: Machine, moved: _Moved, on: set[str], teardown: bool = False) -> change:
    """Return the context manager of a change that adds or removes these published ports.

    ``on`` are the networks that the ports used before the change. The rows are committed before the
    kernel changes. If niso is then killed, the next command completes the change from the rows.
    """
    store, kernel = machine.store, machine.kernel
    scope = change_scope.concerned(store, sorted({service for service, _ in moved}), on)
    fronts = {service for service, _ in moved if _is_front(store, service)}
    # the ports of a service address share elements that lead to the port inside
    shared = [port for service in sorted(fronts) for _, port in store.ports(service)]
    ports = tuple(dict.fromkeys([*(port for _, port in moved), *shared]))
    scope = scope._replace(ports=ports)
    return change(kernel, store, scope, machine.report, teardown=teardown, rows_first=True)


def _elements(store: Store, ports: _Moved) -> State:
    """Return the nftables elements for ports, and for services that connect to their own port."""
    elements: set[Element] = set()
    for service, port in ports:
        own = store.addresses(service)
        front = _is_front(store, service)
        for name in {network for network, _ in own}:
            its = [address for network, address in own if network == name]
            bridge = "" if name == own[0][0] else store.require_network(name).bridge
            elements.update(published(service, port, its, bridge, front))
        if not front:
            elements.update(hairpin(store.home(service), [(address, "") for _, address in own]))
    return State(elements)


def _is_front(store: Store, service: str) -> bool:
    row = store.service(service)
    return row is not None and row.mode == "front"
