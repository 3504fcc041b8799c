"""Read the rows from which `niso.plan` computes plans: networks, active services, and policies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of
from niso.plan import records
from niso.plan.records import NetworkRecord, PlannedService, PortMapping, ServiceEndpoint, Snapshot
from niso.store.attached_rows import AttachedRows
from niso.store.policy_rows import Name, PolicyRows
from niso.store.port_rows import PortRows
from niso.store.service_rows import SERVING, Instances
from niso.store.sqlite import Transaction, damaged, decoded, encoded, marks

if TYPE_CHECKING:
    from niso.store.span_rows import SpanRows

_PUBLISHED = (
    "SELECT 1 FROM published p JOIN service v ON v.name=p.service AND v.active=1"
    " WHERE p.network=n.name"
)
# peers on a service's other networks reach its published ports there. The first network is one
# of these only if it is internal (`niso.plan.records.primary`)
_PUBLISHED_BESIDE = (
    "SELECT 1 FROM endpoint e JOIN service v ON v.name=e.service AND v.active=1"
    " JOIN published p ON p.service=e.service WHERE e.network=n.name"
)
_PUBLISHED_BESIDE_BY_SHARER = (
    # CROSS fixes the join order: otherwise SQLite scans all active services
    "SELECT 1 FROM endpoint e CROSS JOIN service v ON v.provider=e.service AND v.active=1"
    " JOIN published p ON p.service=v.name WHERE e.network=n.name"
)
# connections to the service address of a service of other hosts are translated here
_INSTANCES_ELSEWHERE = (
    "SELECT 1 FROM meta m JOIN remote r ON r.network=n.name AND instr(r.service, '.')"
    " WHERE m.key='instances'"
)


_FRONT_NETWORKS = (
    "SELECT networks FROM (SELECT DISTINCT front FROM instance) CROSS JOIN service ON name=front"
    " WHERE active=1 AND mode='front'"
)


class Scope(NamedTuple):
    """The services, networks, names and ports that a command concerns. None means all services."""

    services: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    ports: tuple[PortMapping, ...] | None = None  # only these ports of the services
    names: tuple[Name, ...] = ()
    """Names in policies whose addresses have changed: names of services and networks."""
    remotes: tuple[str, ...] = ()
    """Names of services of other hosts."""

    def joined(self, other: Scope) -> Scope:
        """Return a scope with the services, networks and names of both scopes.

        The ports are those of this scope; the ports of ``other`` are ignored. Neither scope may be
        `ALL`, because None (all services) would become an empty tuple.
        """
        return Scope(
            tuple(sorted({*(self.services or ()), *(other.services or ())})),
            tuple(sorted({*(self.networks or ()), *(other.networks or ())})),
            self.ports,
            tuple(sorted({*self.names, *other.names})),
            tuple(sorted({*self.remotes, *other.remotes})),
        )


ALL = Scope()


class SnapshotRows(PortRows, PolicyRows):
    """Database queries for the input of plans."""

    def state_id(self) -> str:
        """Return the random id of the state folder. Raises Error if the store has no id."""
        state_id = self._meta("state_id")
        if state_id is None:
            raise damaged("it has no state_id")
        return state_id

    def active_services(self) -> list[str]:
        return self._column("SELECT name FROM service WHERE active=1 ORDER BY name")

    def any_active(self, family: int | None = None) -> bool:
        """Return whether any service on a network is active. With ``family`` (4 or 6), only
        networks with this IP version count.
        """
        if family is None:
            return self._has("SELECT 1 FROM service WHERE active=1 AND networks!='[]' LIMIT 1")
        return self._has(
            # CROSS fixes the join order: few networks have a second family
            "SELECT 1 FROM subnet s CROSS JOIN endpoint e ON e.network=s.network"
            " CROSS JOIN service v ON v.name=e.service AND v.active=1 WHERE s.family=? LIMIT 1",
            family,
        )

    def sysctls_before(self) -> dict[str, str]:
        """Return {name: former value} of the sysctls that niso has changed."""
        return dict(self._run("SELECT name, before FROM sysctl"))

    def nat_before(self) -> dict[str, int]:
        """Return {chain: number of NAT rules} of other programs before niso's first service."""
        text = self._meta("nat_before")
        return dict(decoded(text)) if text else {}

    def set_nat_before(self, rules: dict[str, int]) -> None:
        self._set_meta("nat_before", encoded(rules))

    def forget_nat_before(self) -> None:
        self._set_meta("nat_before", None)

    def links_before(self) -> dict[int, tuple[tuple[int, str], ...]]:
        """Return {IP version: (index, name) of each link that existed when niso enabled forwarding
        for this version}. Versions that the host already forwarded are left out.
        """
        found = decoded(self._meta("links_before") or "{}")
        return {int(version): tuple(map(tuple, links)) for version, links in found.items()}

    def set_links_before(self, links: Mapping[int, Iterable[tuple[int, str]]]) -> None:
        kept = {str(version): list(some) for version, some in links.items()}
        self._set_meta("links_before", encoded(kept) if kept else None)

    def keeps_forwarding(self) -> bool:
        """Return whether forwarding stays on without active services, for other programs."""
        return self._meta("keeps_forwarding") is not None

    def set_keeps_forwarding(self, keeps: bool) -> None:
        self._set_meta("keeps_forwarding", "1" if keeps else None)

    def host_forwards(self, family: int | None = None) -> bool:
        """Return whether the host forwards packets since niso enabled forwarding: while a service
        is active, and afterwards if other programs need forwarding (`keeps_forwarding`). niso's
        rules then drop packets that the host did not forward before. With ``family`` 6, returns
        whether the host forwards IPv6 packets for this reason. Without networks, returns False.
        """
        if self.any_active(family):
            return True
        if not (self.keeps_forwarding() and self._has("SELECT 1 FROM network LIMIT 1")):
            return False
        return family is None or self._has(
            # with the sysctl force_forwarding of each link, others set this one themselves
            "SELECT 1 FROM sysctl WHERE name='net/ipv6/conf/all/forwarding'"
        )

    def writes_host_names(self) -> bool:
        """Return whether niso writes the names of services to the host's own hosts file."""
        return self._meta("host_knows") is not None

    def set_writes_host_names(self, knows: bool) -> None:
        self._set_meta("host_knows", "1" if knows else None)

    def network(self, name: str) -> NetworkRecord | None:
        return next(iter(self._networks((name,))), None)

    def networks(self) -> list[NetworkRecord]:
        return self._networks(None)

    def networks_made(self) -> dict[str, tuple[float, str]]:
        """Return {network: (Unix time of its creation, its subnets as one string)}."""
        made: dict[str, tuple[float, str]] = {}
        for name, at, cidr in self._run(
            "SELECT n.name, n.created_at, s.cidr FROM network n"
            " LEFT JOIN subnet s ON s.network=n.name ORDER BY n.name, s.family"
        ):
            before = f"{made[name][1]}, " if name in made else ""
            made[name] = at, f"{before}{cidr or ''}"
        return made

    def names_with(self, services: Iterable[str]) -> tuple[Name, ...]:
        """Return ("service", name) for each name that policies can use for these services."""
        named = self.with_fronts(services)
        return tuple(
            sorted({("service", name) for service in named for name in self.names(service)})
        )

    @property
    def instances(self) -> Instances:
        """Return an object with the queries for instances and deploys."""
        return Instances(self._db)

    def with_fronts(self, services: Iterable[str]) -> set[str]:
        """Return the given services, with the services of instances, to which policies refer."""
        instances = ((name, self.instances.get(name)) for name in services)
        return {one for name, own in instances for one in (name, own.front if own else name)}

    def _networks(self, only: tuple[str, ...] | None) -> list[NetworkRecord]:
        where, values = ("", ()) if only is None else (f"WHERE n.name IN ({marks(only)})", only)
        rows = self._run(
            "SELECT n.name, n.bridge, n.mtu, family, cidr, gateway, internal, observe,"
            f" EXISTS({_PUBLISHED}) OR EXISTS({_PUBLISHED_BESIDE} AND e.position>0)"
            f" OR EXISTS({_PUBLISHED_BESIDE_BY_SHARER} AND e.position>0)"
            # CASE, because SQLite evaluates both sides of AND: this one reads all endpoints
            f" OR CASE WHEN n.internal THEN EXISTS({_PUBLISHED_BESIDE})"
            f" OR EXISTS({_PUBLISHED_BESIDE_BY_SHARER}) ELSE 0 END"
            f" OR p.vni IS NOT NULL AND EXISTS({_INSTANCES_ELSEWHERE}),"
            f" EXISTS({_PUBLISHED} AND by_loopback),"
            " EXISTS(SELECT 1 FROM policed p JOIN service v ON v.name=p.service AND v.active=1"
            " WHERE p.network=n.name), n.multicast, vni, port, local"
            " FROM network n JOIN subnet s ON s.network=n.name"
            f" LEFT JOIN span p ON p.network=n.name {where} ORDER BY n.name, family",
            *values,
        )
        networks: dict[str, NetworkRecord] = {}
        for name, bridge, mtu, family, cidr, gateway, *flags, vni, port, local in rows:
            subnets = networks[name].subnets if name in networks else ()
            span = None if vni is None else records.Span(self.cluster_id(), vni, port, local)
            both = (*subnets, records.SubnetRecord(family, cidr, gateway))
            internal, observe, publishes, by_loopback, policed, multicast = map(bool, flags)
            uses = (internal, observe, publishes, by_loopback, policed, span, multicast)
            networks[name] = NetworkRecord(name, bridge, mtu, both, *uses)
        return list(networks.values())

    def cluster_id(self) -> str:
        """Return the id of the cluster that this host is in, or "" if it is in none."""
        return self._text("SELECT json_extract(value, '$.id') FROM meta WHERE key='cluster'") or ""

    @property
    def across(self) -> SpanRows:
        """Return an object with the queries for networks that span hosts."""
        from niso.store.span_rows import SpanRows  # most hosts are in no cluster

        return SpanRows(self._db)

    def is_broken_off(self) -> bool:
        """Return whether an update of this host's copy of the cluster's data was interrupted."""
        return self._meta("attempt") is not None

    def others(self) -> list[PlannedService]:
        return self.across.remotes() if self._has("SELECT 1 FROM span LIMIT 1") else []

    def claimed(self, service: str, network: str) -> tuple[str, ...]:
        """Return the addresses reserved in the cluster for a service of this host on a network."""
        claim = self.across.claim(service)
        return claim.addresses.get(network, ()) if claim else ()

    def _remotes(
        self, scope: Scope, seen: set[str]
    ) -> tuple[tuple[PlannedService, ...], tuple[PlannedService, ...]]:
        spans = self.across
        if scope.services is None:
            every = tuple(spans.remotes())
            return every, every
        some = spans.remotes(scope.remotes) if scope.remotes else ()
        return tuple(some), tuple(spans.remotes(seen, "network"))

    def _active(
        self, names: Iterable[str], ports: tuple[PortMapping, ...] | None = None
    ) -> Iterator[PlannedService]:
        any_named = self.names_outside()
        for name in names:
            row = self._run(
                f"SELECT generation, mode, {_recorded('network.limits')},"
                f" {_recorded('network.bandwidth')}, {_recorded('process.capabilities')},"
                f" {_recorded('network.sysctls')}"
                " FROM service WHERE name=? AND active=1",
                name,
            ).fetchone()
            if row is None:
                continue
            own = row[1] != "share"  # share: uses the namespace of another service
            sharers = self.sharers(name) if own else []
            if row[1] == "attached":
                outside, links = AttachedRows(self._db).planned(name)
            else:
                outside, links = None, {}
            endpoints = self._addresses_on(name)
            yield PlannedService(
                name=name,
                generation=row[0],
                endpoints=tuple(
                    ServiceEndpoint(network, addresses, *links.get(network, ()))
                    for network, addresses in endpoints.items()
                ),
                ports=tuple(
                    self.some_ports(name, ports)
                    if ports is not None
                    else (port for _, port in self.ports(name))
                ),
                publishes=own and any(map(self.publishes, (name, *sharers))),
                names=self.names_there(name) if own else (),
                mode=row[1],
                limits=records.ATTACHED_LIMITS if row[1] == "attached" else _limits(row[2]),
                bandwidth=_bandwidth(row[3]),
                sysctls=_sysctls(row[5]),
                extra_hosts=self._hosts(name, endpoints) if any_named else self.extra_hosts(name),
                outside=outside,
                raw=row[1] == "attached"
                or (own and (_is_raw(row[4]) or any(map(self._sharer_is_raw, sharers)))),
                serving=tuple(self._serving(name)) if row[1] == "front" else (),
                elsewhere=self._serving_elsewhere(name) if row[1] == "front" else (),
            )

    def _addresses_on(self, service: str) -> dict[str, tuple[str, ...]]:
        endpoints: dict[str, tuple[str, ...]] = {}
        for network, address in self.addresses(service):
            endpoints[network] = (*endpoints.get(network, ()), address)
        return endpoints

    def _serving(self, front: str) -> Iterator[tuple[int, tuple[ServiceEndpoint, ...]]]:
        for instance in self.instances.of(front, SERVING):
            on = self._addresses_on(instance.service)
            yield instance.ordinal, tuple(ServiceEndpoint(*pair) for pair in on.items())

    def _serving_elsewhere(self, front: str) -> tuple[tuple[int, tuple[ServiceEndpoint, ...]], ...]:
        return self.across.elsewhere(front) if self._meta("instances") is not None else ()

    def _sharer_is_raw(self, name: str) -> bool:
        query = f"SELECT {_recorded('process.capabilities')} FROM service WHERE name=?"
        return any(map(_is_raw, self._column(query, name)))

    def _hosts(
        self, service: str, endpoints: dict[str, tuple[str, ...]]
    ) -> tuple[tuple[str, str], ...]:
        """Return (name, address) for each line that only this service's hosts file has.

        The lines are the extra hosts of the manifest, and the DNS names in the policy. A DNS name
        has only addresses of families for which the service has a default route.
        """
        extra = self.extra_hosts(service)
        if not self.names_outside(service):
            return extra
        networks = {network.name: network for network in self._networks(tuple(endpoints))}
        first = records.primary(
            [ServiceEndpoint(*endpoint) for endpoint in endpoints.items()], networks
        )
        families = {family_of(address) for address in first.addresses} if first else set()
        outside = self.outside.hosts(service)
        return (*extra, *(host for host in outside if family_of(host[1]) in families))

    def snapshot(self, scope: Scope) -> Snapshot:
        """Read the rows of a scope in one transaction, as input of `niso.plan.desired`."""
        with Transaction(self._db, writes=False):
            return self._snapshot(scope)

    def _snapshot(self, scope: Scope) -> Snapshot:
        everything = scope.services is None
        named = self.active_services() if scope.services is None else scope.services
        services = tuple(self._active(named, scope.ports))
        wire = tuple(self._column("SELECT DISTINCT port FROM span ORDER BY port"))
        wanted = None
        if scope.services is not None:
            mine = {endpoint.network for service in services for endpoint in service.endpoints}
            mine |= self._networks_of(scope.remotes)
            wanted = tuple(sorted(mine | set(scope.networks or ())))
        # services with the same list of networks share a hosts file: the number of readers of each
        lists: dict[tuple[str, ...], int] = {
            tuple(decoded(text)): count
            for text, count in self._run(
                "SELECT networks, COUNT(*) FROM service WHERE active=1 GROUP BY networks"
            )
        }
        lists.pop((), None)
        for text in self._column(_FRONT_NETWORKS):  # these services read no hosts file
            lists[tuple(decoded(text))] -= 1
        lists = {networks: count for networks, count in lists.items() if count}
        apart = tuple(self._active(self._apart()))
        for service in apart:  # the service has a hosts file of its own
            on = tuple(endpoint.network for endpoint in service.endpoints)
            lists[on] -= 1
            if not lists[on]:
                del lists[on]
        if wanted is not None:
            lists = {reader: count for reader, count in lists.items() if set(reader) & set(wanted)}
            apart = tuple(
                service for service in apart if {e.network for e in service.endpoints} & set(wanted)
            )
        # a hosts file without a reader outside the scope is written from scratch
        own = [
            service
            for service in services
            if service.mode in ("bridge", "attached") and service not in apart
        ]
        inside = [tuple(endpoint.network for endpoint in service.endpoints) for service in own]
        fresh = frozenset(
            reader for reader, count in lists.items() if everything or inside.count(reader) == count
        )
        # a change of ports alone does not affect policies
        policed = tuple(self._policed(services, scope.names)) if scope.ports is None else ()
        seen = {network for reader in fresh for network in reader}
        seen |= {e.network for service in apart if service in services for e in service.endpoints}
        neighbours = services if everything else tuple(self._active(self._on(seen)))
        remotes, listed = self._remotes(scope, seen) if wire else ((), ())
        forwards = self.host_forwards()
        return Snapshot(
            state_id=self.state_id(),
            networks=tuple(self._networks(wanted)),
            services=services,
            readers=frozenset(lists),
            fresh=fresh,
            neighbours=neighbours,
            apart=apart,
            policed=policed,
            members=self._members(policed),
            any_network=self._has("SELECT 1 FROM network LIMIT 1"),
            forwards=forwards,
            forwards6=self.host_forwards(6),
            # after niso's last network, forwarding stays on for others
            sysctls_before=tuple(sorted(self.sysctls_before().items()))
            if forwards or not self.keeps_forwarding()
            else (),
            links_before=tuple(sorted(self.links_before().items())),
            wire=wire,
            tunnel=self.across.tunnel() if wire else None,
            remotes=remotes,
            listed=listed,
        )

    def _networks_of(self, remotes: tuple[str, ...]) -> set[str]:
        query = f"SELECT DISTINCT network FROM remote WHERE service IN ({marks(remotes)})"
        return set(self._column(query, *remotes)) if remotes else set()

    def _on(self, networks: set[str]) -> list[str]:
        where = f"network IN ({marks(networks)})"
        query = f"SELECT DISTINCT service FROM endpoint WHERE {where} ORDER BY service"
        return self._column(query, *networks)


def _recorded(field: str) -> str:
    """Return an SQL expression for a field of a stored ServiceSpec. It is NULL for damaged JSON."""
    return f"CASE WHEN json_valid(manifest) THEN json_extract(manifest, '$.{field}') END"


def _limits(text: object) -> records.Limits:
    try:
        limits = records.Limits(**decoded(text))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return records.LIMITS
    return limits if all(type(rate) is int and rate >= 0 for rate in limits) else records.LIMITS


def _is_raw(text: object) -> bool:
    try:
        return not records.SENDS_RAW.isdisjoint(decoded(text))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _sysctls(text: object) -> tuple[tuple[str, str], ...]:
    try:
        pairs = sorted(decoded(text).items())  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):
        return ()
    return tuple(pairs) if all(type(value) is str for _, value in pairs) else ()


def _bandwidth(text: object) -> tuple[int, int]:
    """Decode (in, out) in bytes per second. 0 means no limit. A damaged record has no limits."""
    try:
        rates = decoded(text)  # type: ignore[arg-type]
        both = (rates.get("in", 0), rates.get("out", 0))
    except (TypeError, ValueError, AttributeError):
        return (0, 0)
    return both if all(type(rate) is int and rate >= 0 for rate in both) else (0, 0)
