"""Which host ports a service gets: who has them already, which are free, and the ports that come and go while it runs.

The caller of `admit` is in a transaction of the store; `forward` and `unforward` are whole commands.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Container, Iterable, Sequence

from niso.base.errors import Conflict, ErrorGroup, NisoError, NotFound
from niso.kernel import conntrack, sockdiag
from niso.kernel.rtnetlink import Rtnl
from niso.plan import nft
from niso.plan.records import ANY, ANY4, ANY6, Port
from niso.plan.state import Element, State
from niso.reconcile.converge import Lock, Report, converge, silent
from niso.store.store import Scope, Store

FREE_FIRST, FREE_LAST = 20_000, 29_999
"""Host ports that are given to manifests that leave the choice to niso: below Linux's own range (ip_local_port_range)."""


def shown(port: Port) -> str:
    """``127.0.0.1:8000-8010/udp``: the host's side, for messages."""
    address = (
        ""
        if port.host_ip == ANY
        else f"[{port.host_ip}]:"
        if ":" in port.host_ip
        else f"{port.host_ip}:"
    )
    return f"{address}{span(port.host_port, port.count)}/{port.proto}"


def span(first: int, count: int) -> str:
    """``8000`` or ``8000-8010``."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def admit(
    store: Store,
    service: str,
    wanted: Sequence[Port],
    before: Iterable[Port],
    keys: Sequence[str] = (),
    together: frozenset[str] = frozenset(),
    published: Callable[[], Container[Port]] | None = None,
) -> tuple[list[Port], list[Port]]:
    """The ports of a manifest with their host ports, and those of them whose host port is chosen here.

    ``before`` are those that the service has now: they are not looked at again. ``keys`` are what messages call ``wanted``. What
    services of ``together`` have given up is free: if this is undone, so are they. ``published`` gives those of the manifest of
    its last activation: one of them that is `taken` is left out.
    Raises Conflict, which names the key, and who has the port; an ErrorGroup where several cannot be.
    """
    keys = keys or [f"network.ports[{position}]" for position in range(len(wanted))]
    have = set(before)
    families = store.port_families(service)
    forwards = store.forwards(service)
    listeners = _Listeners(families)
    ports: list[Port] = []
    chosen: list[Port] = []
    errors: list[NisoError] = []
    new = [port for port in wanted if port not in have]
    gone = (
        {port for port, _, _ in taken(store, service, new, published)}
        if published is not None
        else set()
    )
    for key, port in zip(keys, wanted, strict=True):
        try:
            _check_family(service, port, families, key)
            found = port
            if not port.host_port:
                found = port._replace(
                    host_port=_choose(store, service, port, [*wanted, *ports], have, listeners, key)
                )
                chosen.append(found)
            elif port not in have:
                if port in gone:
                    continue  # it stays where it is
                _check_holders(store, service, port, key, together)
                listeners.check(port, key)
                _check_forwards(service, port, forwards, key)
            ports.append(found)
        except Conflict as error:
            errors.append(error)
    for forward in forwards:
        try:
            _check_family(service, forward, families, f"port-forward {text(forward)}")
        except Conflict as error:
            errors.append(error)
            continue
        if (
            forward not in have
        ):  # it was kept over a reboot, and somebody else may have the host port now
            try:
                _check_holders(store, service, forward, f"port-forward {text(forward)}", together)
                listeners.check(forward, f"port-forward {text(forward)}")
            except Conflict as error:
                errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)
    return ports, chosen


def taken(
    store: Store, service: str, wanted: Iterable[Port], published: Callable[[], Container[Port]]
) -> list[tuple[Port, str, Port]]:
    """Of the ports ``wanted`` those that `forward` took from a service since its last activation, for whom (it may be itself, with
    another port inside), and for which port.

    Then its last manifest (``published``) has it and its record does not. It stays taken as long as that forward is there.
    """
    gone = [port for port in wanted if port.host_port and not store.has_port(service, port)]
    forwards = store.all_forwards() if gone else []
    found = [
        (port, holder, held)
        for port in gone
        for holder, held in forwards
        if (_same_place(held, port) if holder == service else held.clashes(port))
    ]
    return [each for each in found if each[0] in published()] if found else []


def text(port: Port) -> str:
    """A port as the user writes it: ``127.0.0.1:53:53/udp``."""
    address, _, rest = shown(port).rpartition(f"{span(port.host_port, port.count)}/")
    proto = "" if rest == "tcp" else f"/{rest}"
    return f"{address}{span(port.host_port, port.count)}:{span(port.container_port, port.count)}{proto}"


def _same_place(one: Port, other: Port) -> bool:
    """Whether both would take a host port at the same address: of all and one, the one wins."""
    wide = (ANY, ANY4, ANY6)
    alike = one.host_ip == other.host_ip or (one.host_ip in wide and other.host_ip in wide)
    return alike and one.clashes(other)


def _check_family(service: str, port: Port, families: tuple[int, ...], key: str) -> None:
    if not set(port.families) & set(families):
        family = port.families[0]
        raise Conflict(
            f"{key}: {shown(port)} is an IPv{family} port, and the network of service {service!r} has no IPv{family} subnet",
            "niso net create NAME --ipv6 makes a network that has both"
            if family == 6
            else "leave the address out",
            key,
        )


def _check_mode(store: Store, service: str, key: str) -> None:
    """Raise Conflict where a service is on no network that a port could lead to."""
    home = store.service(store.home(service))
    if home is not None and home.mode in ("host", "none"):
        whose = (
            f"service {service!r}"
            if home.name == service
            else f"{home.name!r}, whose network {service!r} shares,"
        )
        if home.mode == "host":
            raise Conflict(
                f"{key}: {whose} is of mode host", "what it listens on is the host's already", key
            )
        raise Conflict(
            f"{key}: {whose} is of mode none: nothing leads there",
            'mode = "bridge" has a network',
            key,
        )


def _check_holders(
    store: Store, service: str, port: Port, key: str, together: frozenset[str]
) -> None:
    """Raise Conflict if another service has the host port."""
    for holder, held in store.port_holders(port, together):
        if holder != service:
            words = f"{key}: host port {shown(port)} is published by {holder!r}{_as(held, port)}"
            hint = f"niso deactivate {holder}, or choose another port"
            if holder in together:
                hint = (
                    f"{holder} is part of this command too: choose another port for one of the two"
                )
            if held in store.forwards(holder):
                hint = f"niso port-forward {holder} {text(held)} --remove, or choose another port"
            raise Conflict(words, hint, key)


def _check_forwards(service: str, port: Port, forwards: Iterable[Port], key: str) -> None:
    """Raise Conflict if `forward` publishes another port of this service there."""
    for forward in forwards:
        if _same_place(forward, port):
            raise Conflict(
                f"{key}: host port {shown(port)} is forwarded to another port of {service!r}",
                f"niso port-forward {service} {text(forward)} --remove",
                key,
            )


def _as(held: Port, wanted: Port) -> str:
    """How the holder has it, where that is not what was asked for."""
    return "" if shown(held) == shown(wanted) else f" as {shown(held)}"


class _Listeners:
    """The host's sockets that take packets of their own: read once for each protocol, when first asked for."""

    def __init__(self, families: tuple[int, ...]) -> None:
        self._families = families  # of the network: a packet of another one is not for the service
        self._found: dict[str, list[sockdiag.Listener]] = {}

    def of(self, proto: str) -> list[sockdiag.Listener]:
        if proto not in self._found:
            self._found[proto] = sockdiag.listeners(proto)
        return self._found[proto]

    def clashing(self, port: Port) -> list[sockdiag.Listener]:
        """Those that packets for ``port`` would be for."""
        return [
            each
            for each in self.of(port.proto)
            if port.host_port <= each.port <= port.last
            and (6 if ":" in each.address else 4) in self._families
            and port.clashes(Port(each.address, each.port, 0, port.proto))
        ]

    def check(self, port: Port, key: str) -> None:
        """Raise Conflict if a process of the host listens on the host port."""
        for listener in self.clashing(port):
            who = sockdiag.holder(listener.inode)
            program = (
                f"{who[1]} (pid {who[0]})" if who else "a process that cannot be seen from here"
            )
            at = f"[{listener.address}]" if ":" in listener.address else listener.address
            raise Conflict(
                f"{key}: host port {shown(port)} is used by {program}, which listens on {at}:{listener.port}",
                "stop it, or choose another port",
                key,
            )


def _choose(
    store: Store,
    service: str,
    port: Port,
    mine: Iterable[Port],
    have: set[Port],
    listeners: _Listeners,
    key: str,
) -> int:
    """A host port of its own for one that leaves it open: the one that it had, else the lowest that nobody has."""
    kept = store.chosen_port(service, port)
    if kept is not None:
        again = port._replace(host_port=kept)
        others = any(holder != service for holder, _ in store.port_holders(again))
        clear = not any(_same_place(again, each) for each in mine if each.host_port)
        if clear and (again in have or not (others or listeners.clashing(again))):
            return kept
    taken = store.spans(port.proto, FREE_FIRST, FREE_LAST)
    taken += [
        (each.host_port, each.last) for each in mine if each.host_port and each.proto == port.proto
    ]
    taken += [(each.port, each.port) for each in listeners.of(port.proto)]
    candidate = FREE_FIRST
    for first, last in sorted(taken):
        if first - candidate >= port.count:
            break
        candidate = max(candidate, last + 1)
    if candidate + port.count - 1 > FREE_LAST:
        many = "port" if port.count == 1 else f"{port.count} ports in a row"
        raise Conflict(
            f"{key}: no {many} of {FREE_FIRST}-{FREE_LAST} free", "name a host port", key
        )
    return candidate


# --- port-forward ----------------------------------------------------------------------------------------------------


def concerned(store: Store, service: str, port: Port, replace: bool) -> set[str]:
    """The services whose ports `forward` would change: the caller holds their locks."""
    return {service} | ({holder for holder, _ in store.port_holders(port)} if replace else set())


def forward(
    store: Store, service: str, port: Port, replace: bool, locked: set[str], report: Report = silent
) -> tuple[bool, list[tuple[str, Port]]]:
    """Publish one more port of an active service at once; (whether it was not yet, what was taken from which services).

    With ``replace`` it is taken from whichever service has it, in one transaction of the kernel. ``locked`` are the services
    whose locks the caller holds. Raises Conflict, KernelError; then nothing has changed.
    """
    key = "PORT"
    with Lock():
        _require_active(store, service)
        if store.has_port(service, port):
            return False, []
        _check_mode(store, service, key)
        _check_family(service, port, store.port_families(service), key)
        holders = store.port_holders(port)
        losers = [
            (holder, held)
            for holder, held in holders
            if holder != service or _same_place(held, port)
        ]
        if losers and not replace:
            holder, held = losers[0]
            words = f"host port {shown(port)} is published by {holder!r}{_as(held, port)}"
            hint = f"--replace takes {text(held)} from {holder}"
            if holder == service:
                hint = f"--replace puts it in the place of {text(held)}"
            if _is_part(port, held):
                hint = "it is part of a range: move the whole range, or change that manifest"
            raise Conflict(words, hint, key)
        for holder, held in losers:
            if _is_part(port, held):
                words = f"host port {shown(port)} is part of {shown(held)} of {holder!r}"
                raise Conflict(words, "move the whole range, or change that manifest", key)
            if holder not in locked:
                raise Conflict(
                    f"{holder!r} has just taken host port {shown(port)}", "try again", key
                )
        _Listeners(store.port_families(service)).check(port, key)
        _change(store, [(service, port)], losers, report)
    return True, losers


def _is_part(port: Port, held: Port) -> bool:
    """Whether ``held`` has ports beside those of ``port``, so that it cannot be taken away without them."""
    return held.host_port < port.host_port or held.last > port.last


def unforward(store: Store, service: str, port: Port, report: Report = silent) -> None:
    """Take away a port that `forward` added, or one that waits for its service since a reboot.

    Raises NotFound where there is none, Conflict where the manifest has it.
    """
    with Lock():
        forwards = store.forwards(service)
        if port not in forwards:
            _require_active(store, service)
            if store.has_port(service, port):
                words = f"{text(port)} is in the manifest of {service!r}"
                raise Conflict(words, "take it out there, and activate it again", "PORT")
            added = ", ".join(text(each) for each in forwards) or "none"
            raise NotFound(
                f"{text(port)} is not forwarded to {service!r}", f"its forwards: {added}"
            )
        _change(store, [], [(service, port)], report)


def finish(store: Store, report: Report = silent) -> None:
    """Carry out what processes that are gone have recorded of ports.

    All of it at once: what one service lost, another one may have got. A living process keeps niso's lock from its record
    to the end, so what is found here is nobody's.
    """
    with Lock():
        moved = store.moved_ports()
        if moved:
            report(f"ports of {', '.join(sorted({service for service, _ in moved}))}")
            _carry_out(store, moved, _elements(store, moved), report)


_Moved = list[tuple[str, Port]]


def _change(store: Store, come: _Moved, go: _Moved, report: Report) -> None:
    """Record it, and have the kernel follow; if it cannot, the record goes back. The caller holds niso's lock."""
    with store.transaction():
        rows = [row for service, port in go for row in store.take_port(service, port)]
        for service, port in come:
            store.add_forward(service, port)
        store.begin_moving([*come, *go], time.time())
    before = _elements(store, go)
    try:
        _carry_out(store, [*come, *go], before, report)
    except BaseException:
        with store.transaction():
            for service, port in come:
                store.take_port(service, port)
            store.put_port_rows(rows)
        _carry_out(store, [*come, *go], _elements(store, come), report, teardown=True)
        raise


def _carry_out(
    store: Store, moved: _Moved, before: State, report: Report, teardown: bool = False
) -> None:
    names = sorted({service for service, _ in moved})
    on = {network for name in names for network, _ in store.addresses(name)}
    # what a sharer's ports need of its provider's links is in scope too
    scope = Scope(store.with_companions(names), tuple(sorted(on)), tuple(port for _, port in moved))
    converge(store, scope, before, report, teardown)
    flush_ports((port.proto, port.host_port, port.last) for _, port in moved)
    with store.transaction():
        for name in names:
            store.end_intent(name)


def _elements(store: Store, ports: _Moved) -> State:
    """What these ports are, or were, in the kernel's maps; and what a service has there as long as it has any port."""
    found: set[Element] = set()
    for service, port in ports:
        own = store.addresses(service)
        first = [address for network, address in own if network == own[0][0]]
        found.update(nft.published(service, port, first))
        for name in {network for network, _ in own} - {own[0][0]}:
            there = [address for network, address in own if network == name]
            found.update(nft.published_on(service, port, store.require_network(name).bridge, there))
        found.update(nft.hairpin(store.home(service), [(address, "") for _, address in own]))
    return State(elements=frozenset(found))


def _require_active(store: Store, service: str) -> None:
    row = store.service(service)
    if row is None or not row.active:
        raise Conflict(f"service {service!r} is not active", f"niso activate {service}")


# --- flows -----------------------------------------------------------------------------------------------------------


def flush(before: State, after: State) -> None:
    """End the flows that a change of published ports concerns, but TCP that has an answer: they follow at once.

    A datagram that was sent while a port was away has left an entry without NAT, which would keep its client away.
    """
    changed = {
        element.element
        for element in before.elements ^ after.elements
        if element.container.startswith(("publish_", "range_"))
    }
    if changed:
        flush_ports(_claim(element) for element in changed)


def flush_ports(claims: Iterable[tuple[str, int, int]], answered: bool = False) -> None:
    """End the flows to (protocol, first port, last port) of this host's own addresses; TCP with an answer only if ``answered``."""
    conntrack.flush_ports(claims, own_addresses, answered)


def end_flows(ports: Iterable[Port]) -> None:
    """End all flows to published ports whose service is gone while the address that they led to stays."""
    claims = [(port.proto, port.host_port, port.last) for port in ports]
    if claims:
        flush_ports(claims, answered=True)


def own_addresses() -> list[str]:
    """Every address that the host takes for its own, 127.0.0.0/8 as a prefix."""
    with Rtnl() as rtnl:
        found = {str(ipaddress.ip_interface(each.address).ip) for each in rtnl.addresses()}
    return [*sorted(found), "127.0.0.0/8"]


def _claim(element: str) -> tuple[str, int, int]:
    """``10.0.0.1 . tcp . 8000-8010`` -> ("tcp", 8000, 8010)."""
    *_, proto, ports = element.split(" . ")
    first, _, last = ports.partition("-")
    return proto, int(first), int(last or first)
