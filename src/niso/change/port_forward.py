"""Publish additional ports of an active service, and stop publishing them (`niso port-forward`)."""

from __future__ import annotations

from niso.base.errors import Conflict, NotFound
from niso.base.locks import Lock
from niso.change.journal import locked, recover
from niso.change.ports import _change, check_family
from niso.look.host_ports import Listeners, as_held, published_by, same_place
from niso.plan.records import PortMapping
from niso.runtime.machine import Machine
from niso.store.store import Store


def port_forward(
    machine: Machine, name: str, port: PortMapping, *, replace: bool = False
) -> tuple[bool, list[tuple[str, PortMapping]]]:
    """Publish one more port of an active service immediately.

    Returns (whether anything changed, ports taken from other services as pairs (service, port)). If
    the host port is taken, ``replace`` takes it from its owner. Without ``replace``, raises
    Conflict. Raises KernelError. After an error nothing has changed.
    """
    recover(machine, [name])
    store, key = machine.store, "PORT"
    concerned = {name, *(holder for holder, _ in store.port_holders(port) if replace)}
    with locked(store, sorted(concerned)), Lock():
        store.require_active(name)
        if store.has_port(name, port):
            return False, []
        _check_mode(store, name, key)
        check_family(name, port, store.port_families(name), key)
        holders = store.port_holders(port)
        losers = [(who, held) for who, held in holders if who != name or same_place(held, port)]
        row = store.service(name)
        for _, held in store.ports(name) if row is not None and row.mode == "front" else ():
            if port.diverges(held) and (name, held) not in losers:
                reason = f"{held.text} leads this host port to another port of {name!r}"
                hint = "choose another host port: a service address has one mapping of a port"
                raise Conflict(reason, hint, key, names_key=False)
        if losers and not replace:
            holder, held = losers[0]
            reason = f"host port {port.host_side} is published by {holder!r}{as_held(held, port)}"
            hint = f"--take-over takes {held.text} from {holder}"
            if holder == name:
                hint = f"--take-over replaces {held.text}"
            if _is_part(port, held):
                hint = "it is part of a range: move the whole range, or change that manifest"
            raise Conflict(reason, hint, key, names_key=False)
        for holder, held in losers:
            if _is_part(port, held):
                reason = f"host port {port.host_side} is part of {held.host_side} of {holder!r}"
                hint = "move the whole range, or change that manifest"
                raise Conflict(reason, hint, key, names_key=False)
            if holder not in concerned:
                reason = f"{holder!r} has just taken host port {port.host_side}"
                raise Conflict(reason, "try again", key, names_key=False)
        Listeners(machine.kernel, store.port_families(name)).check(port, key)
        _change(machine, [(name, port)], losers)
        return True, losers


def _is_part(port: PortMapping, held: PortMapping) -> bool:
    return held.host_port < port.host_port or held.last > port.last


def kept_out(store: Store, service: str, port: PortMapping) -> list[tuple[str, PortMapping]]:
    """Return the ports in manifests of active services that cannot be published because of
    ``port``.

    The result has pairs (service, port). A host port that several services request is left out,
    because it is not clear which of them would get the port.
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


def port_unforward(machine: Machine, name: str, port: PortMapping) -> list[tuple[str, PortMapping]]:
    """Stop publishing a port that `port_forward` published. The service need not be active.

    `port_forward` may have taken the host port from services whose manifests publish it. Their
    ports are published again in the same transaction, and returned as pairs (service, port). Raises
    NotFound if the port is not forwarded, and Conflict if the manifest publishes it.
    """
    recover(machine, [name])
    store = machine.store
    concerned = {name, *(holder for holder, _ in kept_out(store, name, port))}
    with locked(store, sorted(concerned)), Lock():
        forwards = store.forwards(name)
        if port not in forwards:
            store.require_active(name)
            if store.has_port(name, port):
                reason = f"{port.text} is in the manifest of {name!r}"
                hint = "remove it there and activate the service"
                raise Conflict(reason, hint, "PORT", names_key=False)
            added = ", ".join(forward.text for forward in forwards) or "none"
            raise NotFound(f"{port.text} is not forwarded to {name!r}", f"its forwards: {added}")
        back = []
        for holder, claimed in kept_out(store, name, port):
            if holder not in concerned:  # it was activated in the meantime
                continue
            try:
                Listeners(machine.kernel, store.port_families(holder)).check(claimed, "PORT")
            except Conflict as error:
                what = f"{holder}: {claimed.text} is not published again: {error.reason}"
                machine.caution(what, (f"stop it, then niso activate {holder}",))
                continue
            back.append((holder, claimed))
        _change(machine, [], [(name, port)], back)
        return back


def _check_mode(store: Store, service: str, key: str) -> None:
    home = store.service(store.home(service))
    if home is not None and home.mode in ("host", "none"):
        whose = f"service {service!r}"
        if home.name != service:
            whose = f"{home.name!r}, whose network {service!r} shares,"
        if home.mode == "host":
            reason = f"{whose} has mode host"
            raise Conflict(reason, "its listening ports are already the host's", key)
        reason = f"{whose} has mode none: it cannot be reached"
        raise Conflict(reason, 'set mode = "bridge" to have a network', key)
