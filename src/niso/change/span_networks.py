"""Create networks that span hosts, add existing ones to this host, and remove them.

Commands that concern only networks of one host do not load this module.
"""

from __future__ import annotations

import ipaddress
from contextlib import closing, suppress

from niso.base import names
from niso.base.errors import Conflict, Error, NotFound
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.change import networks
from niso.cluster import encryption, mirror
from niso.cluster.key_values import Cluster, Spec
from niso.cluster.membership import FIRST_VNI, MOST_VNI, ClusterKeys, require_joined, require_own
from niso.plan.records import NetworkRecord, Span, SubnetRecord
from niso.plan.subnets import NetworkRequest, require_same
from niso.runtime.machine import Machine
from niso.store.snapshots import Scope
from niso.store.span_rows import RemoteAddress
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from niso.cluster.config import Config
    from niso.cluster.etcd import Etcd


HEADERS = {4: 50, 6: 70}
"""Bytes that VXLAN adds to a packet, by the address family (4 or 6) of the hosts' addresses."""


class Arriving(NamedTuple):
    """Networks of the cluster to be added to this host, with the remote services on them."""

    joined: Config
    port: int  # UDP port of VXLAN
    specs: tuple[Spec, ...]  # the settings of the networks
    seen: mirror.EngineView  # what etcd records about services on the networks
    made: bool = False  # whether `propose` created the network in the cluster
    exists: bool = True  # whether the cluster has it; false if a dry run would create it

    @classmethod
    def none(cls, joined: Config) -> Arriving:
        return cls(joined, 0, (), mirror.EngineView((), {}, frozenset()))

    def scope(self, store: Store) -> Scope:
        changed = mirror.changed_services(store, self.seen, self.joined.host)
        return mirror.scope_of(store, changed, changed)

    def fill(self, store: Store) -> None:
        """Record other hosts' services on these networks, in the caller's transaction."""
        changed = mirror.changed_services(store, self.seen, self.joined.host)
        mirror.write(store, self.seen, self.joined.host, changed)

    def record(
        self, machine: Machine, implicit: bool, unobserved: Collection[str] = ()
    ) -> list[NetworkRecord]:
        """Record the networks on this host, and return those that are new to this host.

        The caller must be in a transaction. In the same transaction, the caller must record the
        services that other hosts have on these networks. Raises Conflict if the number (VNI) of a
        network is used by another network of this host, or if its subnet overlaps a prefix that
        this host uses.
        """
        store, made = machine.store, []
        for spec in self.specs:
            holder = store.across.vni_holder(spec.vni)
            if holder not in (None, spec.name):
                raise Conflict(
                    f"network {spec.name!r} has the number of network {holder!r}, which the cluster"
                    " does not have any more",
                    f"niso net inspect {holder}: it can be removed once no service is on it",
                )
            if store.network(spec.name) is not None:
                if not implicit:
                    store.make_explicit(spec.name)
                continue
            plain = request_of(spec, spec.name not in unobserved)._replace(span=False)
            try:
                networks.ensure(machine, plain, implicit=implicit)
            except Conflict as error:  # another host chose the subnets, not this command
                error.hint = "the cluster has it with this subnet: another one here has to go"
                raise
            store.across.set_span(spec.name, spec.vni, self.port, _wire(store, self.joined))
            made.append(store.require_network(spec.name))
        return made


def arriving(joined: Config, engine: Etcd, cluster: Cluster, specs: Sequence[Spec]) -> Arriving:
    """Read from etcd which services of other hosts are on networks to be added to this host.

    Raises Conflict if packets of a network do not fit the MTU of this host's link.
    """
    hosts = ClusterKeys(engine, joined.keys).hosts()
    own = next((host for host in hosts if host.name == joined.host), None)
    for spec in specs:
        if own is not None and (fits := own.mtu - header(joined)) < spec.mtu:
            raise Conflict(
                f"network {spec.name!r} has an MTU of {spec.mtu}, and packets of {fits} bytes fit"
                f" the link of {joined.address}",
                f"raise the MTU of that link to {spec.mtu + header(joined)}",
            )
    items = {s.name: engine.get(joined.keys.addresses(s.name)).items for s in specs}
    subnets = {spec.name: spec.subnets for spec in specs}
    seen = mirror.seen(hosts, dict(items), joined.keys, subnets, joined.host)
    return Arriving(joined, cluster.port, tuple(specs), seen)


def propose(
    machine: Machine, request: NetworkRequest, dry_run: bool
) -> tuple[NetworkRequest, Arriving]:
    """Create a network in the cluster unless it already exists there. This host is not changed.

    Returns (request with the cluster's settings, data to record on this host). With ``dry_run``,
    the cluster is not changed either. Raises Error, NoAnswer if etcd does not answer, and Conflict
    if the cluster's network has other settings, or overlaps another network.
    """
    store, name = machine.store, request.name
    if name == names.DEFAULT_NETWORK:
        raise Conflict(f"network {name!r} is each host's own", "choose another name", "NAME")
    joined = require_joined(machine)
    present = store.network(name)
    if present is not None:
        require_same(present, request)
    with closing(joined.engine()) as engine:
        membership = ClusterKeys(engine, joined.keys)
        cluster = require_own(store, membership)
        spec, made = membership.network(name), False
        exists = spec is not None or not dry_run
        if spec is None:
            try:
                spec = _planned(machine, request, membership, joined, present)
                if not dry_run:
                    spec, made = membership.create_network(spec), True
            except Conflict:
                spec = membership.network(name)  # another host created it at the same time
                if spec is None:
                    raise
        there = _network(spec, joined, cluster)._replace(observe=request.observe)
        require_same(there, request, "in the cluster ")
        new = arriving(joined, engine, cluster, [spec])
        return request_of(spec, request.observe), new._replace(made=made, exists=exists)


def request_of(spec: Spec, observe: bool) -> NetworkRequest:
    """Return a request with the settings of one of the cluster's networks."""
    return NetworkRequest(
        spec.name,
        tuple(cidr for cidr, _ in spec.subnets),
        gateways=tuple(gateway for _, gateway in spec.subnets),
        internal=spec.internal,
        mtu=spec.mtu,
        allow_public=True,
        observe=observe,
        span=True,
    )


def _planned(
    machine: Machine,
    request: NetworkRequest,
    membership: ClusterKeys,
    joined: Config,
    present: NetworkRecord | None,
) -> Spec:
    """Choose the settings of a new network of the cluster. ``present`` is this host's network of
    the same name, whose settings are then used, or None.
    """
    fits = min((host.mtu for host in membership.hosts()), default=1500) - header(joined)
    if request.mtu is not None and request.mtu > fits:
        reason = f"{request.mtu}: between the hosts of the cluster, packets of {fits} bytes fit"
        raise Conflict(reason, f"omit it to use {fits}", "--mtu")
    network = present
    if network is None:
        besides = [
            (ipaddress.ip_network(cidr), f"network {spec.name!r} in the cluster")
            for spec in membership.networks()
            for cidr, _ in spec.subnets
        ]
        sized = request._replace(mtu=fits if request.mtu is None else request.mtu)
        network = networks.plan_network(machine, sized, besides=besides)
    pairs = tuple((subnet.cidr, subnet.gateway) for subnet in network.subnets)
    taken = {spec.vni for spec in membership.networks()}
    free = next(vni for vni in range(FIRST_VNI, MOST_VNI) if vni not in taken)
    return Spec(request.name, free, network.mtu, pairs, network.internal)


def header(joined: Config) -> int:
    """Return how many bytes VXLAN and encryption add to a packet between hosts."""
    outer = 6 if ":" in joined.address else 4
    return HEADERS[6] + encryption.HEADERS[outer] if joined.encryption else HEADERS[outer]


def _wire(store: Store, joined: Config) -> str:
    inner = joined.encryption and encryption.address(store.cluster_id(), joined.host)
    return inner or joined.address


def _network(spec: Spec, joined: Config, cluster: Cluster) -> NetworkRecord:
    subnets = tuple(
        SubnetRecord(6 if ":" in cidr else 4, cidr, gateway) for cidr, gateway in spec.subnets
    )
    span = Span(cluster.identity, spec.vni, cluster.port, joined.address)
    bridge = names.bridge(spec.name)
    return NetworkRecord(spec.name, bridge, spec.mtu, subnets, spec.internal, span=span)


def withdraw(machine: Machine, proposed: Arriving) -> None:
    """Remove a network from the cluster if `propose` created it. Errors become warnings."""
    if proposed.made:
        name = proposed.specs[0].name
        try:
            remove(machine, [name])
        except Error as error:
            hint = f"niso net create {name} --span takes it over"
            machine.caution(f"the cluster keeps the network: {error.message}", (hint,))


def remove(machine: Machine, removed: Sequence[str], dry_run: bool = False) -> None:
    """Remove networks from the cluster. A network that the cluster no longer has is skipped.

    Raises NotFound if neither this host nor the cluster has a network, Conflict if a service of any
    host is on it, and NoAnswer if etcd does not answer. After an error nothing has changed.
    """
    joined = machine.joined()
    if joined is None:
        return
    with closing(joined.engine()) as engine:
        membership = ClusterKeys(engine, joined.keys)
        require_own(machine.store, membership)
        for name in removed:
            if machine.store.network(name) is None and membership.network(name) is None:
                machine.store.require_network(name)
            used = sorted({f"{a.service} on {a.host}" for a in _addresses(engine, joined, name)})
            if used:
                more = f" and {len(used) - 5} more" if len(used) > 5 else ""
                reason = f"network {name!r} is used by {', '.join(used[:5])}{more}"
                raise Conflict(
                    reason, "it can be removed once they are removed or on other networks"
                )
        for name in () if dry_run else removed:
            with suppress(NotFound):
                membership.remove_network(name)


def _addresses(engine: Etcd, joined: Config, name: str) -> list[RemoteAddress]:
    items = engine.get(joined.keys.addresses(name)).items
    services = mirror.seen((), {name: items}, joined.keys).services
    return [address for known in services.values() for address in known.addresses]


def going(store: Store, scope: Scope, every: bool = False) -> Scope:
    """Add to a scope the services of other hosts on networks that a change may delete.

    Without ``every``, these networks are the implicit networks of the scope that span hosts. With
    ``every``, they are all networks of the scope that span hosts.
    """
    on = store.across.spanning(scope.networks or (), implicit=not every)
    return scope.joined(mirror.scope_on(store, on)) if on else scope
