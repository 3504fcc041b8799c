"""Find rows that are missing in niso's database, and restore them.

Most rows of a service follow from its manifest. These rows are compared with the manifest one
service at a time, so that memory use does not grow with the number of services. To list missing
rows, this module restores them in a copy of the database. To repair the database, the same code
restores the rows in the database itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence

from niso.base import names
from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of
from niso.base.native import lazy
from niso.kernel import ruleset
from niso.plan import elements
from niso.plan.records import NetworkRecord, Policy, PortMapping
from niso.plan.specs import ServiceSpec
from niso.reconcile import host_settings
from niso.store import service_rows
from niso.store.policy_rows import rows_of_policy
from niso.store.service_rows import LEAVING, OUT, SERVING, Instance, ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.kinds.kind import Problem
    from niso.kernel.real import Kernel
    from niso.reconcile import live_world
else:
    live_world = lazy("niso.reconcile.live_world")


Defect = tuple["Problem", str, str]
"""A problem, and the database table and service of the row that has the problem.

The problem is "missing" if the row does not exist, "foreign" if the row names an unknown service,
and "different" if the row that describes the service itself is damaged.
"""


def find_defects(kernel: Kernel, store: Store) -> list[Defect]:
    """Return the defects in the rows of the store. Raises Error if the database file is damaged."""
    with store.reading():
        store.require_sound()
        defects: list[Defect] = [("foreign", *orphan) for orphan in store.orphans()]
        changing = {intent.service for intent in store.intents()}
        networks = {network.name: network for network in store.networks()}
        lacking = []
        for name, _, _ in store.service_names():
            service_rows.forget_manifests()
            row = store.require_known(name)
            spec = row.service
            if spec is None or (row.has_process and row.process is None):
                defects.append(("different", "service", row.name))
            if (
                spec is not None
                and row.name not in changing
                and not _is_whole(kernel, store, networks, row, spec)
            ):
                lacking.append(row.name)
        if lacking:
            copy = store.in_memory()
            try:
                defects += _restored(kernel, copy, lacking)
            finally:
                copy.close()
        if store.any_active():
            # the value before niso of each sysctl that a service needs
            recorded, marked = store.sysctls_before(), _marked_sysctls(kernel)
            if not marked.keys() <= recorded.keys() or host_settings.unrecorded(
                kernel, store, recorded, store.networks_in_use()
            ):
                defects.append(("missing", "sysctl", ""))
        return defects


def _restored(kernel: Kernel, store: Store, services: Iterable[str]) -> list[Defect]:
    """Restore missing rows of services, and of services that share a namespace with them. Returns a
    defect for each restored row. Raises Error.
    """
    store.drop_orphans()
    defects: list[Defect] = []
    rows = [store.service(name) for name in store.with_companions(services)]
    # services that own their namespace come first: others have ports at the addresses of these
    for row in sorted(filter(None, rows), key=lambda row: row.provider is not None):
        spec = row.service
        if spec is None or store.intent(row.name) is not None:
            continue
        before = store.rows(row.name)
        _restore(kernel, store, row, spec)
        defects += [
            ("missing", table, row.name)
            for table, now in store.rows(row.name).items()
            if any(one not in before[table] for one in now)
        ]
    return sorted(defects, key=lambda defect: (defect[2], defect[1]))


def _is_whole(
    kernel: Kernel,
    store: Store,
    networks: Mapping[str, NetworkRecord],
    row: ServiceRow,
    spec: ServiceSpec,
) -> bool:
    """Return whether the database has all rows that follow from a service's row and the kernel."""
    name = row.name
    policy = _policy(store, name, spec)
    follow: dict[str, Sequence[tuple[object, ...]]] = {
        "host_name": [(known, name, place) for place, known in enumerate(spec.names)],
        "extra_host": [(name, *host) for host in spec.network.extra_hosts.items()],
        "endpoint": [(name, place, network) for place, network in enumerate(row.networks)],
    }
    if policy is not None:
        follow |= rows_of_policy(name, policy, row.networks)
    return (
        all(store.has_rows(table, name, rows) for table, rows in follow.items())
        and (not spec.front or store.instances.get(name) is not None)
        and all(
            network in networks
            and service_rows.is_leased(
                store, name, networks[network], spec.network.statics(network)
            )
            for network in row.networks
        )
        and not (
            row.active
            and store.port_families(name)
            and (_lost_ports(kernel, store, name, spec) or not store.is_noted(name))
        )
    )


def _policy(store: Store, service: str, spec: ServiceSpec) -> Policy | None:
    policy = spec.network.policy
    if policy.audit is not None:
        policy = live_world.kept(policy, store, service)
    return None if policy.is_empty else policy


def _restore(kernel: Kernel, store: Store, row: ServiceRow, spec: ServiceSpec) -> None:
    """Restore the missing rows that follow from a service's own row. Raises Error if a network is
    missing, or if another service now has an address of this service.
    """
    name = row.name
    store.set_names(name, spec.names)
    store.set_extra_hosts(name, spec.network.extra_hosts.items())
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
        # if another host has taken the service over, its leases are left unchanged
        if store.require_network(network).span is None or store.claimed(name, network):
            service_rows.lease(store, name, network, spec.network.statics(network))
    store.set_policy(name, _policy(store, name, spec))
    if spec.front and store.instances.get(name) is None:
        store.instances.put(_lost_instance(kernel, store, row, spec))
    if row.active and store.port_families(name):
        if lost := _lost_ports(kernel, store, name, spec):
            store.set_ports(name, *lost)
        store.note_published(name)


def _lost_instance(kernel: Kernel, store: Store, row: ServiceRow, spec: ServiceSpec) -> Instance:
    """Build the missing row of an instance from other data. The state is "serving" if the kernel's
    map of the service address contains the instance. It is "leaving" if the service has its full
    number of other instances. Otherwise it is "out" (not healthy).
    """
    own = {address for _, address in store.addresses(row.name)}
    deploy = spec.program.deploy
    replicas = deploy.replicas if deploy is not None else 1
    others = store.instances.of(spec.front, SERVING, OUT)
    free = [n for n in range(1, replicas + 1) if n not in {one.ordinal for one in others}]
    state = OUT if free and row.active else LEAVING
    for family in (4, 6) if free and row.active else ():
        slots = kernel.list_elements(ruleset.INET, f"slots{family}") or ()
        if any(own.intersection(element.value) for element in slots):
            state = SERVING
    done = [one for one in store.instances.deploys(spec.front) if one.outcome == "done"]
    versions = [one.version for one in others or done]
    number = int(row.name.rpartition(".")[2])
    ordinal = free[0] if free else number
    return Instance(row.name, spec.front, number, ordinal, state, max(versions, default=1))


def _lost_ports(
    kernel: Kernel, store: Store, service: str, spec: ServiceSpec
) -> tuple[list[PortMapping], list[PortMapping]] | None:
    """Return the arguments of `Store.set_ports` that restore missing manifest ports, or None.

    A port is missing if the kernel publishes it and the store has no row for it. A port that
    neither kernel nor store has is no defect: port-forward --take-over may have taken it.
    """
    forwards = set(store.forwards(service))
    before = {port for _, port in store.ports(service)} - forwards
    fixed = set(store.manifest_ports(service))
    chosen, lost, ports = [], False, []
    for port in (published.port for published in spec.network.ports):
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
    return (ports, chosen) if lost else None


def _port_in_kernel(
    kernel: Kernel, store: Store, service: str, port: PortMapping
) -> PortMapping | None:
    """Return a published port of a service, with the host port in niso's nftables maps.

    Returns None if the maps do not publish the port.
    """
    own = store.addresses(service)
    first = [address for network, address in own if network == own[0][0]]
    for address in first if not port.host_port else ():
        where = f"publish_{'any' if port.is_wide else 'addr'}{family_of(address)}"
        for element in kernel.list_elements(ruleset.INET, where) or ():
            *_, proto, number = element.fields
            if (element.owner, proto, element.value) == (
                service,
                port.proto,
                (address, port.container_port),
            ):
                port = port._replace(host_port=number)
    if not port.host_port:
        return None
    has = [
        element in (kernel.list_elements(element.table, element.container) or ())
        for element in elements.published(service, port, first)
    ]
    return port if has and all(has) else None


def _lease_again(
    kernel: Kernel, store: Store, row: ServiceRow, network: str, position: int
) -> None:
    """Restore an active service's missing address reservations from its network interface."""
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


def _marked_sysctls(kernel: Kernel) -> dict[str, str]:
    """Return the forwarding sysctls that nftables records, with their values before niso."""
    return dict(map(elements.sysctl_before, kernel.list_elements(ruleset.INET, "before") or ()))
