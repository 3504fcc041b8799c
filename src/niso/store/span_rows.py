"""Read and write the rows of networks that span hosts.

The hosts of a cluster share data in etcd (docs/design/cluster.md). The claim of a service is the
reservation of its names and addresses in etcd. The store has a copy of the claims of other hosts'
services, and a record of the claims of this host's services. This module is loaded only if the
store has a network that spans hosts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from niso.base.named_tuples import NamedTuple
from niso.base.names import family_of, owner
from niso.plan.records import PlannedService, ServiceEndpoint, Tunnel
from niso.store.sqlite import Rows, decoded, encoded, marks, sqlite3

_QUERY = (
    "SELECT r.service, p.address, p.rowid, r.network, r.address, r.up AND p.live"
    " FROM remote r JOIN span s ON s.network=r.network JOIN peer p ON p.host=r.host"
)

OF_FRONT = "service>?||'.' AND service<?||'/'"
"""An SQL condition for the instances (NAME.NUMBER) of a service. The service's name is a parameter
twice."""

_ORDINALS = 16
"""Added to the numbers of instances on other hosts. A host has at most 16 instances of a service,
so their ordinals differ from those of this host's instances."""


class RemoteAddress(NamedTuple):
    """An address that a service of another host has reserved in the cluster."""

    network: str
    family: int
    address: str
    service: str
    host: str  # the other host's name in the cluster
    gen: int
    up: bool


class ClaimRow(NamedTuple):
    """A service of this host, with the names and addresses that it has reserved in the cluster.

    ``mark`` is a random string in the reservation. If etcd does not answer a request, the host
    reads the string back to find out whether etcd carried out the request. ``mark`` is "" until
    data of the service may be published. ``gen`` grows with each change and each new reservation.
    """

    service: str
    mark: str
    gen: int
    addresses: dict[str, tuple[str, ...]]  # by network


Services = Mapping[str, tuple[tuple[RemoteAddress, ...], tuple[str, ...]]]
"""Maps a service of another host to (addresses, names)."""
Peers = Mapping[str, tuple[str, str, bool] | None]
"""Maps another host to (state id, address, whether alive). None means that the host is to be
removed."""


class SpanRows(Rows):
    """Database queries for networks that span hosts."""

    def remotes(
        self, values: Collection[str] | None = None, column: str = "service"
    ) -> list[PlannedService]:
        """Return services of other hosts, sorted by name. Without ``values``, return all.

        ``values`` are names of services. If ``column`` is "network", they are networks instead, and
        only endpoints on these networks are in the result.
        """
        order = "ORDER BY r.service, r.network, r.family"
        rows = self._of(_QUERY, values, f"r.{column}", order)
        made: dict[str, PlannedService] = {}
        for service, host, number, network, address, seen in rows.fetchall():
            have = made.get(service)
            if have is None:
                known_as = self.names(service) if seen else ()
                have = PlannedService(service, 0, (), (), known_as, host=host)
                have = have._replace(host_number=number)
            *others, last = have.endpoints or (ServiceEndpoint("", ()),)
            if last.network == network:
                endpoint = last._replace(addresses=(*last.addresses, address))
            else:
                others = list(have.endpoints)
                endpoint = ServiceEndpoint(network, (address,))
            made[service] = have._replace(endpoints=(*others, endpoint))
        for front in self.fronts().intersection(made):
            known = made[front]
            known_as = self.names(front) if self._is_up(front) else known.names
            made[front] = known._replace(
                mode="front", names=known_as, elsewhere=self.elsewhere(front)
            )
        return list(made.values())

    def _is_up(self, front: str) -> bool:
        """Return whether a service is up and has an instance on another live host. The service's
        own row contains only one of the hosts that run it.
        """
        return self._has(
            "SELECT 1 FROM remote f JOIN remote i"
            " ON i.service>f.service||'.' AND i.service<f.service||'/'"
            " JOIN peer p ON p.host=i.host WHERE f.service=? AND f.up AND p.live LIMIT 1",
            front,
        )

    def elsewhere(self, front: str) -> tuple[tuple[int, tuple[ServiceEndpoint, ...]], ...]:
        """Return (ordinal, endpoints) for each instance that serves on another host."""
        if self._meta("instances") is None:
            return ()
        return tuple((ordinal, on) for ordinal, _, on in self.serving(front))

    def fronts(self) -> set[str]:
        """Return the services with a service address that have instances on other hosts."""
        if self._meta("instances") is None:
            return set()
        names = self._column("SELECT DISTINCT service FROM remote WHERE instr(service, '.')")
        return {*map(owner, names)}

    def instances(self, front: str) -> list[str]:
        """Return the names of all instances of a service on other hosts, sorted."""
        query = f"SELECT DISTINCT service FROM remote WHERE {OF_FRONT} ORDER BY service"
        return self._column(query, front, front)

    def serving(self, front: str) -> list[tuple[int, str, tuple[ServiceEndpoint, ...]]]:
        """Return (ordinal, name, endpoints) for each instance that serves on another host.

        Such an instance receives connections to the service address of ``front``. Its ordinal
        differs from those of this host's instances. Instances on dead hosts are left out.
        """
        query = (
            "SELECT service, network, r.address FROM remote r JOIN peer p ON p.host=r.host"
            f" WHERE {OF_FRONT} AND up AND live ORDER BY service, network, family"
        )
        endpoints: dict[str, dict[str, tuple[str, ...]]] = {}
        for service, network, address in self._run(query, front, front):
            on = endpoints.setdefault(service, {})
            on[network] = (*on.get(network, ()), address)
        return [
            (
                _ORDINALS + int(service.rpartition(".")[2]),
                service,
                tuple(ServiceEndpoint(*pair) for pair in on.items()),
            )
            for service, on in endpoints.items()
        ]

    def addresses(
        self, services: Collection[str] | None = None
    ) -> dict[str, tuple[RemoteAddress, ...]]:
        """Return {service: sorted addresses} for given services of other hosts. None means all."""
        by_service: dict[str, list[RemoteAddress]] = {}
        query = "SELECT network, family, address, service, host, gen, up FROM remote"
        for network, family, address, service, host, gen, up in self._of(query, services):
            row = RemoteAddress(network, family, address, service, host, gen, bool(up))
            by_service.setdefault(service, []).append(row)
        return {service: tuple(sorted(rows)) for service, rows in by_service.items()}

    def called(self, services: Collection[str] | None) -> dict[str, tuple[str, ...]]:
        """Return {service: names, hostname first} for services of other hosts. None means all."""
        by_service: dict[str, tuple[str, ...]] = {}
        query = "SELECT service, name FROM remote_name"
        for service, name in self._of(query, services, order="ORDER BY service, position"):
            by_service[service] = (*by_service.get(service, ()), name)
        return by_service

    def _of(
        self, query: str, values: Collection[str] | None, column: str = "service", order: str = ""
    ) -> sqlite3.Cursor:
        """Run a query for the rows whose ``column`` is in ``values``, or all rows if it is None."""
        if values is None:
            return self._run(f"{query} {order}")
        where = f"WHERE {column} IN ({marks(values)})"
        return self._run(f"{query} {where} {order}", *tuple(values))

    def holders(self, addresses: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return {(network, address): service} for addresses that services of other hosts have."""
        query = "SELECT service FROM remote WHERE network=? AND address=?"
        found = {place: self._text(query, *place) for place in addresses}
        return {place: service for place, service in found.items() if service is not None}

    def names(self, service: str) -> tuple[str, ...]:
        return self.called((service,)).get(service, ())

    def peers(self) -> dict[str, tuple[str, str, bool]]:
        """Return {host: (state id, address, whether the host is alive)} for the other hosts."""
        rows = self._run("SELECT host, id, address, live FROM peer")
        return {host: (state_id, address, bool(live)) for host, state_id, address, live in rows}

    def number(self, host: str) -> int:
        """Return the number that the nftables rules of this host use for another host, or 0."""
        return int(self._text("SELECT rowid FROM peer WHERE host=?", host) or 0)

    def claim(self, service: str) -> ClaimRow | None:
        row = self._run("SELECT * FROM claim WHERE service=?", service).fetchone()
        return _claim(row) if row else None

    def claims(self, services: Collection[str] | None = None) -> list[ClaimRow]:
        """Return the claims of this host's services, sorted by service. None means all services."""
        return sorted(_claim(row) for row in self._of("SELECT * FROM claim", services))

    def leased(self) -> set[tuple[str, str]]:
        """Return (network, address) for this host's active services on networks that span hosts."""
        rows = self._run(
            "SELECT l.network, l.address FROM span s CROSS JOIN lease l ON l.network=s.network"
            " JOIN service v ON v.name=l.service AND v.active=1"
        )
        return {(network, address) for network, address in rows}

    def spanning(self, networks: Collection[str], implicit: bool = False) -> list[str]:
        """Return the networks among ``networks`` that span hosts, in the same order. With
        ``implicit``, only networks that are deleted with their last service on this host are
        returned.
        """
        which = "WHERE network IN (SELECT name FROM network WHERE implicit=1)" if implicit else ""
        spans = self._column(f"SELECT network FROM span {which}")
        return [network for network in networks if network in spans]

    def attempt(self) -> tuple[Services, Peers] | None:
        """Return the interrupted update of the copy of other hosts' services, or None."""
        text = self._meta("attempt")
        if text is None:
            return None
        services, peers = decoded(text)
        return {
            name: (tuple(RemoteAddress(*row) for row in addresses), tuple(names))
            for name, (addresses, names) in services.items()
        }, {host: tuple(peer) if peer else None for host, peer in peers.items()}

    def on(self, networks: Collection[str]) -> list[str]:
        """Return the services of other hosts that are on these networks, sorted."""
        query = "SELECT DISTINCT service FROM remote"
        return [row[0] for row in self._of(query, networks, "network", "ORDER BY service")]

    def vni_holder(self, vni: int) -> str | None:
        return self._text("SELECT network FROM span WHERE vni=?", vni)

    def tunnel(self) -> Tunnel | None:
        """Return this host's WireGuard tunnel, or None if the cluster is not encrypted."""
        text = self._meta("tunnel")
        if text is None:
            return None
        made = Tunnel(*decoded(text))
        return made._replace(others=tuple((*end,) for end in made.others))

    # --- writing; inside a transaction ------------------------------------------------------------

    def set_cluster(self, identity: str) -> None:
        """Record the id of this host's cluster. If the id is "", delete all rows of the cluster."""
        if identity:
            self._set_meta("cluster", encoded({"id": identity}))
            return
        self._run("DELETE FROM meta WHERE key IN ('cluster', 'attempt', 'tunnel', 'instances')")
        for table in ("remote_name", "remote", "peer", "claim"):
            self._run(f"DELETE FROM {table}")

    def set_tunnel(self, tunnel: Tunnel) -> None:
        self._set_meta("tunnel", encoded(list(tunnel)))

    def set_attempt(self, attempt: tuple[Services, Peers] | None) -> None:
        """Record an update of other hosts' services before it begins, or None after its end."""
        data = attempt and encoded([dict(part) for part in attempt])
        self._set_meta("attempt", data)

    def set_span(self, network: str, vni: int, port: int, local: str) -> None:
        """Record that a network spans hosts. ``local`` is this host's address for VXLAN packets."""
        self._put("span", network, vni, port, local)

    def set_peer(self, host: str, state_id: str, address: str, live: bool) -> None:
        """Record another host. A host that is already recorded keeps its row, whose number
        (rowid) the nftables rules use as the number of the host.
        """
        self._run(
            "INSERT INTO peer VALUES (?,?,?,?) ON CONFLICT (host) DO UPDATE"
            " SET id=excluded.id, address=excluded.address, live=excluded.live",
            *(host, state_id, address, live),
        )

    def drop_peer(self, host: str) -> None:
        self._run("DELETE FROM peer WHERE host=?", host)

    def set_service(
        self, service: str, addresses: Iterable[RemoteAddress], names: Iterable[str]
    ) -> None:
        """Replace the rows for another host's service. Without addresses, only delete them."""
        self._run("DELETE FROM remote WHERE service=?", service)
        self._run("DELETE FROM remote_name WHERE service=?", service)
        rows = list(addresses)
        for row in rows:
            self._put("remote", *row)
        for position, name in enumerate(names if rows else ()):
            self._put("remote_name", name, service, position)
        if owner(service) != service:
            self._note_instances()

    def hand_over(self, service: str, names: Iterable[str]) -> None:
        """Record a service of this host as a service of another host that runs it too.

        If no other host has a serving instance of the service, nothing changes.
        """
        claim, host = (
            self.claim(service),
            self._text(
                "SELECT r.host FROM remote r JOIN peer p ON p.host=r.host"
                f" WHERE {OF_FRONT} AND up AND live ORDER BY service",
                *(service, service),
            ),
        )
        if claim is None or host is None:
            return
        self.drop_claim(service)
        rows = [
            RemoteAddress(network, family_of(address), address, service, host, claim.gen, True)
            for network, addresses in claim.addresses.items()
            for address in addresses
        ]
        self.set_service(service, rows, names)

    def _note_instances(self) -> None:
        """Record whether other hosts have instances, so that queries for them can be skipped."""
        found = self._has("SELECT 1 FROM remote WHERE instr(service, '.') LIMIT 1")
        self._set_meta("instances", "1" if found else None)

    def forget_nameless(self) -> None:
        """Delete names of other hosts' services that no longer have an address in this store."""
        self._run("DELETE FROM remote_name WHERE service NOT IN (SELECT service FROM remote)")
        self._note_instances()

    def drop_stale_lease(self, service: str, address: str) -> None:
        """Delete an inactive service's lease of an address that another service needs.

        ``service`` has reserved the address in the cluster. The inactive service has moved to
        another host, or has given up its claim.
        """
        self._run(
            "DELETE FROM lease WHERE address=? AND service!=? AND service IN"
            " (SELECT name FROM service WHERE active=0)",
            *(address, service),
        )

    def set_claim(self, claim: ClaimRow) -> None:
        self._put("claim", claim.service, claim.mark, claim.gen, encoded(claim.addresses))

    def drop_claim(self, service: str) -> None:
        """Delete the record of a service's claim, and its leases on networks that span hosts."""
        self._run("DELETE FROM claim WHERE service=?", service)
        self._run(
            "DELETE FROM lease WHERE service=? AND network IN (SELECT network FROM span)", service
        )


def _claim(row: tuple[str, str, int, str]) -> ClaimRow:
    service, mark, gen, addresses = row
    held = {network: tuple(texts) for network, texts in decoded(addresses).items()}
    return ClaimRow(service, mark, gen, held)
