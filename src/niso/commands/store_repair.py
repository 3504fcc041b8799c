"""Whether the store's rows agree with one another, and how what somebody has deleted of them comes back.

A service's manifest says most of its rows again. It is done by the code that writes them, in a copy in memory to see what would
change, and then in the store.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from niso.base import names
from niso.base.errors import NisoError
from niso.base.family import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_tables
from niso.kernel.interface import Kernel
from niso.plan import nft
from niso.plan.records import Policy, Port
from niso.plan.service_spec import ServiceSpec
from niso.reconcile import forwarding
from niso.runtime.processes import Processes
from niso.store import leases, specs
from niso.store.store import ServiceRow, Store

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem


class Hole(NamedTuple):
    """``problem`` is missing, foreign or different; ``table`` has lost a row of ``service``, has one of a service that is not there, or a damaged one."""

    problem: Problem
    table: str
    service: str


def holes(kernel: Kernel, store: Store) -> list[Hole]:
    """What is not as it should be. Changes nothing. Raises NisoError where the store is damaged beyond that."""
    store.require_sound()
    found = [Hole("foreign", table, service) for table, service in store.orphans()]
    copy = store.in_memory()
    try:
        copy.drop_orphans()
        for row in copy.services():
            spec = row.service
            if copy.intent(row.name) is None and spec is not None:
                before = copy.rows(row.name)
                _restore(kernel, copy, row, spec)
                after = copy.rows(row.name)
                found += [
                    Hole("missing", table, row.name)
                    for table, rows in after.items()
                    if not set(map(repr, rows)) <= set(map(repr, before[table]))
                ]
        if store.any_active() and store.sysctls_before().keys() != _sysctls(kernel, copy):
            found.append(Hole("missing", "sysctl", ""))
    finally:
        copy.close()
    return found


def damaged(store: Store) -> list[ServiceRow]:
    """Services whose manifest or process spec in the store cannot be understood."""
    return [row for row in store.services() if row.service is None or row.process is None]


def mend(processes: Processes, store: Store, row: ServiceRow) -> None:
    """Write the spec of a `damaged` row again, as the running service has it. Raises NisoError where that is not enough."""
    said = processes.spec(row.name)
    if said is None or row.service is None:
        raise row.damaged()
    with store.transaction():
        store.put_service(row._replace(spec=specs.encode_process(said)))


def fill(kernel: Kernel, store: Store, found: Iterable[Hole]) -> None:
    """Put them right; the caller is in a transaction of the store. Raises NisoError."""
    wanted = list(found)
    store.drop_orphans()
    for name in sorted(
        {hole.service for hole in wanted if hole.problem == "missing" and hole.service}
    ):
        row = store.service(name)
        if row is not None:
            _restore(kernel, store, row, row.require_service())
    if any(hole.table == "sysctl" for hole in wanted):
        _sysctls(kernel, store)


def _restore(kernel: Kernel, store: Store, row: ServiceRow, spec: ServiceSpec) -> None:
    """Write the rows of a service that its own row says again; what is there stays."""
    name = row.name
    store.set_names(name, spec.names)
    for network in row.networks:
        if store.network(network) is None:
            raise NisoError(
                f"network {network!r} of service {name!r} is not in the store",
                f"niso net create {network} --subnet CIDR, with the prefix of the address of {names.bridge(network)}",
            )
    store.set_endpoints(name, row.networks)
    for position, network in enumerate(row.networks):
        _lease_again(kernel, store, row, network, position)
        leases.lease(store, name, network, spec.addresses.get(network))
    store.set_policy(name, None if spec.policy._replace(log=False) == Policy() else spec.policy)
    if row.active and store.port_families(name):
        _ports_again(kernel, store, name, [published.port for published in spec.ports])
        store.note_published(name)


def _ports_again(kernel: Kernel, store: Store, service: str, wanted: list[Port]) -> None:
    """Publish again what the manifest names and the kernel still has as the service's.

    A port that neither has may have been taken from it (port-forward --replace): that is no hole.
    """
    forwards = set(store.forwards(service))
    before = {port for _, port in store.ports(service)} - forwards
    fixed = set(store.manifest_ports(service))
    chosen, lost, ports = [], False, []
    for port in wanted:
        kept = port.host_port or store.chosen_port(service, port) or 0
        found = port._replace(host_port=kept)
        if found not in before:
            back = _port_in_kernel(kernel, store, service, port)
            if back is None or back in forwards:
                continue
            found, lost = back, True
        ports.append(found)
        if found not in fixed and not port.host_port:
            chosen.append(found)
    if lost:
        store.set_ports(service, ports, chosen)


def _port_in_kernel(kernel: Kernel, store: Store, service: str, port: Port) -> Port | None:
    """The port, with the host port that was chosen for it, where niso's maps have it as the service's; else None."""
    own = store.addresses(service)
    first = [address for network, address in own if network == own[0][0]]
    for address in first if not port.host_port else ():
        where = f"publish_{'any' if port.is_wide else 'addr'}{family_of(address)}"
        for element, (value, owner) in (kernel.list_elements(nft_tables.INET, where) or {}).items():
            *_, proto, number = element.split(" . ")
            if (owner, proto, value) == (
                service,
                port.proto,
                f"{address} . {port.container_port}",
            ):
                port = port._replace(host_port=int(number))
    if not port.host_port:
        return None
    has = [
        (kernel.list_elements(e.table, e.container) or {}).get(e.element) == (e.value, service)
        for e in nft.published(service, port, first)
    ]
    return port if has and all(has) else None


def _lease_again(
    kernel: Kernel, store: Store, row: ServiceRow, network: str, position: int
) -> None:
    """Lease the addresses that an active service's link has to it, where they are on record no more."""
    lost = [
        s
        for s in store.require_network(network).subnets
        if store.lease_of(row.name, network, s.family) is None
    ]
    if not lost or not row.active:
        return
    there = kernel.addresses_in(names.netns(row.name), f"eth{position}")
    found = [ipaddress.ip_interface(each).ip for each in there]
    for subnet in lost:
        prefix = ipaddress.ip_network(subnet.cidr)
        for address in found:
            free = store.lease_holder(str(address)) is None and str(address) != subnet.gateway
            if (
                address in prefix
                and free
                and store.lease_of(row.name, network, subnet.family) is None
            ):
                number = int(address) - int(prefix.network_address)
                store.add_lease(
                    row.name, network, subnet.family, number, str(address), static=False
                )


def _sysctls(kernel: Kernel, store: Store) -> set[str]:
    """Note again what was found of forwarding, as the kernel still has it on record; which sysctls are noted then."""
    marks = kernel.list_elements(nft_tables.INET, "before") or ()
    for name, value in map(nft.sysctl_before, marks):
        store.set_sysctl_before(name, value)
    on = {network for row in store.services() if row.active for network in row.networks}
    if on:
        forwarding.record(kernel, store, sorted(on))
    return set(store.sysctls_before())
