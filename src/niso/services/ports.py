"""Assign host ports to services: find present holders and free ports.

The caller of `admit` is in a transaction of the store.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from niso.base.addresses import bracketed, family_of
from niso.base.errors import Conflict, Error, ErrorGroup
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.plan.records import Port
from niso.services.machine import Machine
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.kernel.sockdiag import Listener
    from niso.store.store import ServiceRow

HOLDERS = ("podman",)
"""Owners of attachments that themselves listen on published ports."""
FREE_FIRST, FREE_LAST = 20_000, 29_999
"""Host ports that niso chooses from if a manifest names none.

They lie below Linux's ephemeral range (ip_local_port_range).
"""


class Command(NamedTuple):
    """What a command means for ports of other services."""

    services: frozenset[str] = frozenset()
    """The command's services: their released ports are free, since all are rolled back together."""
    named: tuple[Port, ...] = ()
    """Host ports named in the command's manifests; they are not chosen for ports without one."""


def admit(
    machine: Machine,
    service: str,
    wanted: Sequence[Port],
    before: Iterable[Port],
    keys: Sequence[str] = (),
    command: Command = Command(),  # noqa: B008  # it is immutable
    published: Container[Port] = (),
    held: bool = False,
) -> tuple[list[Port], list[Port]]:
    """Return (a manifest's ports with host ports, those whose host port was chosen here).

    ``before`` are the present ports of the service, which are not checked again. ``keys`` are the
    manifest keys of ``wanted``, for messages. ``published`` are the manifest ports of the last
    activation; those that `taken` returns are left out. With ``held``, the engine of an attachment
    itself listens on the ports, to keep other programs from them. Raises Conflict, which names key
    and holder, or an ErrorGroup of several.
    """
    store = machine.store
    keys = keys or [f"network.ports[{position}]" for position in range(len(wanted))]
    have = set(before)
    families = store.port_families(service)
    forwards = store.forwards(service)
    listeners = Listeners(machine.kernel, families)
    ports: list[Port] = []
    chosen: list[Port] = []
    errors: list[Error] = []
    new = [port for port in wanted if port not in have]
    gone = {port for port, _, _ in taken(store, service, new, published)}
    for key, port in zip(keys, wanted, strict=True):
        try:
            check_family(service, port, families, key)
            assigned = port
            if not port.host_port:
                assigned = port._replace(
                    host_port=_choose(
                        store,
                        service,
                        port,
                        ([*wanted, *ports], command.named),
                        have,
                        listeners,
                        key,
                    )
                )
                chosen.append(assigned)
            elif port not in have:
                if port in gone:
                    continue  # it stays with the service whose forward took it
                _check_holders(store, service, port, key, command.services)
                if not held:
                    listeners.check(port, key)
                _check_forwards(service, port, forwards, key)
            ports.append(assigned)
        except Conflict as error:
            errors.append(error)
    for forward in forwards:
        try:
            check_family(service, forward, families, f"port-forward {forward.text}")
        except Conflict as error:
            errors.append(error)
            continue
        # the reservation survived a reboot, and another service or process may have the host port
        # now
        if forward not in have:
            try:
                _check_holders(
                    store, service, forward, f"port-forward {forward.text}", command.services
                )
                listeners.check(forward, f"port-forward {forward.text}")
            except Conflict as error:
                errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return ports, chosen


def published_by(row: ServiceRow) -> tuple[Port, ...]:
    """Return the manifest ports of the last activation; none if the row is damaged."""
    spec = row.service
    return tuple(published.port for published in spec.ports) if spec is not None else ()


def taken(
    store: Store, service: str, wanted: Iterable[Port], published: Container[Port]
) -> list[tuple[Port, str, Port]]:
    """Return the ports of ``wanted`` that `niso port-forward` took since the last activation.

    Each is (port, service that has it now, port of that service). It may be the same service, with
    another container port. Such a port is in the last manifest (``published``) but no longer in the
    record, and stays taken as long as the forward exists.
    """
    gone = [
        port
        for port in wanted
        if port.host_port and port in published and not store.has_port(service, port)
    ]
    forwards = store.all_forwards() if gone else []
    return [
        (port, holder, held)
        for port in gone
        for holder, held in forwards
        if (same_place(held, port) if holder == service else held.clashes(port))
    ]


def unpublished(store: Store, service: str) -> list[Port]:
    """Return the manifest ports of an active service that a former forward took from it."""
    row = store.service(service)
    wanted = published_by(row) if row is not None else ()
    lost = [
        port
        for port in dict.fromkeys(wanted)
        if not (
            store.has_port(service, port)
            if port.host_port
            else store.chosen_port(service, port) is not None
        )
    ]
    still = {port for port, _, _ in taken(store, service, lost, lost)}
    return [port for port in lost if port not in still]


def same_place(one: Port, other: Port) -> bool:
    """Return whether both ports claim a host port at the same address.

    A port on all addresses and one on a single address coexist; the specific one takes precedence.
    """
    alike = one.host_ip == other.host_ip or (one.is_wide and other.is_wide)
    return alike and one.clashes(other)


def check_family(service: str, port: Port, families: tuple[int, ...], key: str) -> None:
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
    store: Store, service: str, port: Port, key: str, together: frozenset[str]
) -> None:
    """Raise Conflict if another service has the host port."""
    for holder, held in store.port_holders(port, together):
        if holder != service:
            message = f"host port {port.host_side} is published by {holder!r}{as_held(held, port)}"
            hint = f"choose another host port, or release it from {holder}"
            if holder in together:
                hint = f"{holder} is part of this command: choose another port for one of the two"
            if held in store.forwards(holder):
                hint = f"choose another host port, or withdraw the forward {held.text} of {holder}"
            raise Conflict(message, hint, key)


def _check_forwards(service: str, port: Port, forwards: Iterable[Port], key: str) -> None:
    """Raise Conflict if `niso port-forward` publishes another port of this service there."""
    for forward in forwards:
        if same_place(forward, port):
            raise Conflict(
                f"host port {port.host_side} is forwarded to another port of {service!r}",
                f"choose another host port, or withdraw the forward {forward.text}",
                key,
            )


def as_held(held: Port, wanted: Port) -> str:
    """Return " as HOST_SIDE" if the holder's host side differs from the wanted one, else ""."""
    return "" if held.host_side == wanted.host_side else f" as {held.host_side}"


class Listeners:
    """The host's listening sockets, read once for each protocol and only if needed."""

    def __init__(self, kernel: Kernel, families: tuple[int, ...]) -> None:
        self._kernel = kernel
        # of the service's network: packets of other families are not forwarded
        self._families = families
        self._found: dict[str, list[Listener]] = {}

    def of(self, proto: str) -> list[Listener]:
        if proto not in self._found:
            self._found[proto] = self._kernel.listeners(proto)
        return self._found[proto]

    def clashing(self, port: Port) -> list[Listener]:
        """Return the sockets that now receive packets to ``port``."""
        return [
            listener
            for listener in self.of(port.proto)
            if port.host_port <= listener.port <= port.last
            and family_of(listener.address) in self._families
            and port.clashes(Port(listener.address, listener.port, 0, port.proto))
        ]

    def check(self, port: Port, key: str) -> None:
        """Raise Conflict if a process of the host listens on the host port."""
        for listener in self.clashing(port):
            program, at = self.described(listener)
            raise Conflict(
                f"host port {port.host_side} is used by {program}, which listens on {at}",
                "stop it, or choose another port",
                key,
            )

    def described(self, listener: Listener) -> tuple[str, str]:
        """Return the program that owns a socket, and the socket's address and port."""
        who = self._kernel.socket_holder(listener.inode)
        program = f"{who[1]} (pid {who[0]})" if who else "a process that is not visible from here"
        return program, f"{bracketed(listener.address)}:{listener.port}"


class Shadow(NamedTuple):
    """A program of the host that bound a published port after the activation.

    It receives no packets: they go to the service.
    """

    service: str
    port: Port
    program: str
    at: str
    """The address and port that it listens on."""
    family: int

    @property
    def what(self) -> str:
        return f"{self.program} listens on {self.at}, and gets no packets for {self.port.host_side}"


def shadows(kernel: Kernel, store: Store, services: Iterable[str]) -> list[Shadow]:
    """Return the programs of the host that bound ports of active services. Raises KernelError."""
    listeners: dict[tuple[int, ...], Listeners] = {}
    result = []
    for service in services:
        if (store.attachment_key(service) or ("", ""))[0] in HOLDERS:
            continue
        families = store.port_families(service)
        present = listeners.setdefault(families, Listeners(kernel, families))
        for _, port in store.ports(service):
            for listener in present.clashing(port):
                program, at = present.described(listener)
                family = family_of(listener.address)
                result.append(Shadow(service, port, program, at, family))
    return result


def _choose(
    store: Store,
    service: str,
    port: Port,
    others: tuple[Iterable[Port], Iterable[Port]],
    have: set[Port],
    listeners: Listeners,
    key: str,
) -> int:
    """Choose a host port for a port without one: its previous one, else the lowest free one.

    ``others`` are the ports of this manifest, and the ports of all manifests of the command. Raises
    Conflict if no port is free.
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
