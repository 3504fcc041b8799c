"""Check the store's rows for consistency, and restore deleted ones.

Most rows of a service follow from its manifest. They are restored by the code that writes them:
in a copy in memory to find the differences, then in the store.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from niso.base import names
from niso.base.addresses import family_of
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import nft_tables
from niso.kernel.interface import Kernel
from niso.plan import nft
from niso.plan.records import Port
from niso.plan.service_spec import ServiceSpec
from niso.reconcile import forwarding
from niso.runtime.processes import Processes
from niso.store import leases, specs
from niso.store.store import ServiceRow, Store

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem


class Defect(NamedTuple):
    """Describe a defect of ``table``.

    ``problem`` is "missing" (a row of ``service`` is lost), "foreign" (a row of an unknown service)
    or "different" (a damaged row).
    """

    problem: Problem
    table: str
    service: str


def find_defects(kernel: Kernel, store: Store) -> list[Defect]:
    """Return the defects of the store. Changes nothing.

    Raises Error if the store is damaged beyond that.
    """
    store.require_sound()
    defects = [Defect("foreign", table, service) for table, service in store.orphans()]
    copy = store.in_memory()
    try:
        copy.drop_orphans()
        copy.keep_rows()
        restored = set()
        for row in copy.each_service():
            spec = row.service
            if copy.intent(row.name) is None and spec is not None:
                _restore(kernel, copy, row, spec)
                restored.add(row.name)
        defects += [
            Defect("missing", table, name)
            for name, table in sorted(copy.rows_added())
            if name in restored
        ]
        if store.any_active() and store.sysctls_before().keys() != _sysctls(kernel, copy):
            defects.append(Defect("missing", "sysctl", ""))
    finally:
        copy.close()
    return defects


def damaged(store: Store) -> list[ServiceRow]:
    """Return the services whose manifest or process spec in the store is unreadable."""
    return [
        row
        for row in store.each_service()
        if row.service is None or (row.has_process and row.process is None)
    ]


def repair_row(processes: Processes, store: Store, row: ServiceRow) -> None:
    """Rewrite the process spec of a `damaged` row from the running service.

    Raises Error if the service has none or the manifest is damaged.
    """
    spec = processes.spec(row.name)
    if spec is None or row.service is None:
        raise row.damaged()
    with store.transaction():
        store.put_service(row._replace(spec=specs.encode_process(spec)))


def repair_defects(kernel: Kernel, store: Store, found: Iterable[Defect]) -> None:
    """Repair the defects; the caller is in a transaction of the store. Raises Error."""
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
    """Restore the rows that follow from a service's own row; existing rows stay.

    Raises Error if a network is missing.
    """
    name = row.name
    store.set_names(name, spec.names)
    store.set_extra_hosts(name, spec.extra_hosts.items())
    for network in row.networks:
        if store.network(network) is None:
            raise Error(
                f"network {network!r} of service {name!r} is not in the store",
                f"niso net create {network} --subnet CIDR, "
                f"with the prefix of the address of {names.bridge(network)}",
            )
    store.set_endpoints(name, row.networks)
    for position, network in enumerate(row.networks):
        _lease_again(kernel, store, row, network, position)
        # one that another host has taken over keeps what lease it has
        if store.require_network(network).span is None or store.claimed(name, network):
            leases.lease(store, name, network, spec.statics(network))
    policy = spec.policy
    if policy.audit is not None:
        from niso.services import auditing

        policy = auditing.kept(policy, store, name)
    store.set_policy(name, None if policy.is_empty else policy)
    if row.active and store.port_families(name):
        _ports_again(kernel, store, name, [published.port for published in spec.ports])
        store.note_published(name)


def _ports_again(kernel: Kernel, store: Store, service: str, wanted: list[Port]) -> None:
    """Restore the manifest ports that the kernel still has for the service.

    A port that is in neither store nor kernel may have been taken (port-forward --replace). That is
    not a defect.
    """
    forwards = set(store.forwards(service))
    before = {port for _, port in store.ports(service)} - forwards
    fixed = set(store.manifest_ports(service))
    chosen, lost, ports = [], False, []
    for port in wanted:
        kept = port.host_port or store.chosen_port(service, port) or 0
        restored = port._replace(host_port=kept)
        if restored not in before:
            back = _port_in_kernel(kernel, store, service, port)
            if back is None or back in forwards:
                continue
            restored, lost = back, True
        ports.append(restored)
        if restored not in fixed and not port.host_port:
            chosen.append(restored)
    if lost:
        store.set_ports(service, ports, chosen)


def _port_in_kernel(kernel: Kernel, store: Store, service: str, port: Port) -> Port | None:
    """Return the port with its chosen host port if niso's maps assign it to the service.

    Return None otherwise.
    """
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
    """Restore lost leases from the addresses on an active service's link."""
    lost = [
        s
        for s in store.require_network(network).subnets
        if store.lease_of(row.name, network, s.family) is None
    ]
    if not lost or not row.active:
        return
    links = {link.network: link for link in store.attachments.links(row.name)}
    inner = links[network].interface if network in links else f"eth{position}"
    there = kernel.addresses_in(names.netns(row.name), inner)
    on_link = [ipaddress.ip_interface(text).ip for text in there]
    for subnet in lost:
        prefix = ipaddress.ip_network(subnet.cidr)
        for address in on_link:
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
    """Restore the recorded forwarding sysctls from the kernel's copy; return all recorded names."""
    marks = kernel.list_elements(nft_tables.INET, "before") or ()
    for name, value in map(nft.sysctl_before, marks):
        store.set_sysctl_before(name, value)
    on = {network for row in store.services() if row.active for network in row.networks}
    if on:
        forwarding.record(kernel, store, sorted(on))
    return set(store.sysctls_before())
