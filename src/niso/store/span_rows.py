"""Read and write the rows of networks that span hosts.

The hosts of a cluster share their data in etcd (docs/design/cluster.md). A service reserves its
names and addresses there; this reservation is its claim. The store has a copy of the claims of
other hosts' services, and a record of the claims of this host's services. Only stores with a
network that spans hosts load this module.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping

from niso.base.named_tuples import NamedTuple
from niso.plan.records import Endpoint, Service, Tunnel
from niso.store.sqlite import decoded, encoded

_QUERY = (
    "SELECT r.service, p.address, r.network, r.address, r.up AND p.live"
    " FROM remote r JOIN span s ON s.network=r.network JOIN peer p ON p.host=r.host"
)


class Address(NamedTuple):
    """An address that a service of another host has reserved in the cluster."""

    network: str
    family: int
    address: str
    service: str
    host: str  # network name
    gen: int
    up: bool


class Claim(NamedTuple):
    """The reservation of names and addresses in the cluster for one of this host's services.

    ``mark`` is a random string that is stored in the reservation. After a request without an
    answer, the host reads it back to learn whether the request was carried out. It is "" while data
    of the service may not be published yet. ``gen`` grows with each change and each new
    reservation.
    """

    service: str
    mark: str
    gen: int
    addresses: dict[str, tuple[str, ...]]  # by network


class Attempt(NamedTuple):
    """A change of the copied rows of other hosts whose changes of the kernel are in progress.

    ``services`` maps each service of another host to its new (addresses, names). ``peers`` maps
    each host to its new (state id, address, whether the host is alive), or to None if the host is
    to be removed.
    """

    services: Mapping[str, tuple[tuple[Address, ...], tuple[str, ...]]]
    peers: Mapping[str, tuple[str, str, bool] | None]


class Spans:
    """The queries of the store for networks that span hosts."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def remotes(self, services: Collection[str] | None = None) -> list[Service]:
        """Return the services of other hosts with these names, or all if it is None, sorted by
        name.
        """
        if services is None:
            return self._remotes("", ())
        marks = ", ".join("?" for _ in services)
        return self._remotes(f"WHERE r.service IN ({marks})", tuple(services))

    def remotes_on(self, networks: Collection[str]) -> list[Service]:
        """Return the services of other hosts on these networks, sorted by name.

        Their endpoints on other networks are left out.
        """
        marks = ", ".join("?" for _ in networks)
        return self._remotes(f"WHERE r.network IN ({marks})", tuple(networks))

    def _remotes(self, where: str, values: tuple[str, ...]) -> list[Service]:
        rows = self._db.execute(f"{_QUERY} {where} ORDER BY r.service, r.network, r.family", values)
        made: dict[str, Service] = {}
        for service, host, network, address, seen in rows.fetchall():
            have = made.get(service)
            if have is None:
                known_as = self.names(service) if seen else ()
                have = Service(service, 0, (), (), known_as, host=host)
            *others, last = have.endpoints or (Endpoint("", ()),)
            if last.network == network:
                endpoint = last._replace(addresses=(*last.addresses, address))
            else:
                others = list(have.endpoints)
                endpoint = Endpoint(network, (address,))
            made[service] = have._replace(endpoints=(*others, endpoint))
        return list(made.values())

    def addresses(self, services: Collection[str] | None = None) -> dict[str, tuple[Address, ...]]:
        """Return the addresses of these services of other hosts, or of all if it is None.

        The dict maps each service to its addresses, sorted.
        """
        by_service: dict[str, list[Address]] = {}
        query = "SELECT network, family, address, service, host, gen, up FROM remote"
        for network, family, address, service, host, gen, up in self._of(query, services):
            row = Address(network, family, address, service, host, gen, bool(up))
            by_service.setdefault(service, []).append(row)
        return {service: tuple(sorted(rows)) for service, rows in by_service.items()}

    def called(self, services: Collection[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Return the names of these services of other hosts, or of all if it is None.

        The dict maps each service to its names, the hostname first.
        """
        by_service: dict[str, list[tuple[int, str]]] = {}
        query = "SELECT service, position, name FROM remote_name"
        for service, position, name in self._of(query, services):
            by_service.setdefault(service, []).append((position, name))
        return {
            service: tuple(name for _, name in sorted(names))
            for service, names in by_service.items()
        }

    def _of(self, query: str, services: Collection[str] | None) -> sqlite3.Cursor:
        if services is None:
            return self._db.execute(query)
        marks = ", ".join("?" for _ in services)
        return self._db.execute(f"{query} WHERE service IN ({marks})", tuple(services))

    def holders(self, addresses: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the services of other hosts that have these addresses, given as (network,
        address).

        The dict maps (network, address) to the service. Addresses that no service has are left out.
        """
        services = {}
        query = "SELECT service FROM remote WHERE network=? AND address=?"
        for place in addresses:
            if (row := self._db.execute(query, place).fetchone()) is not None:
                services[place] = str(row[0])
        return services

    def names(self, service: str) -> tuple[str, ...]:
        """Return the names of a service of another host, hostname first."""
        query = "SELECT name FROM remote_name WHERE service=? ORDER BY position"
        return tuple(row[0] for row in self._db.execute(query, (service,)))

    def peers(self) -> dict[str, tuple[str, str, bool]]:
        """Return the other hosts: a dict from the host name to (state id, address, whether it is
        alive).
        """
        rows = self._db.execute("SELECT host, id, address, live FROM peer")
        return {host: (state_id, address, bool(live)) for host, state_id, address, live in rows}

    def claim(self, service: str) -> Claim | None:
        """Return the reservation in the cluster of a service of this host, or None."""
        row = self._db.execute("SELECT * FROM claim WHERE service=?", (service,)).fetchone()
        return _claim(row) if row else None

    def claims(self, services: Collection[str] | None = None) -> list[Claim]:
        """Return the reservations of these (or, for None, all) services of this host, sorted."""
        return sorted(_claim(row) for row in self._of("SELECT * FROM claim", services))

    def leased(self) -> set[tuple[str, str]]:
        """Return (network, address) for the active services of this host on networks that span
        hosts.
        """
        rows = self._db.execute(
            "SELECT l.network, l.address FROM span s CROSS JOIN lease l ON l.network=s.network"
            " JOIN service v ON v.name=l.service AND v.active=1"
        )
        return {(network, address) for network, address in rows}

    def spanning(self, networks: Collection[str], implicit: bool = False) -> list[str]:
        """Return those of ``networks`` that span hosts, in the same order.

        With ``implicit``, return only those that are deleted with their last service on this host.
        """
        which = "WHERE network IN (SELECT name FROM network WHERE implicit=1)" if implicit else ""
        rows = self._db.execute(f"SELECT network FROM span {which}")
        spans = {row[0] for row in rows}
        return [network for network in networks if network in spans]

    def attempt(self) -> Attempt | None:
        """Return the change of the copied rows that was interrupted, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key='attempt'").fetchone()
        if row is None:
            return None
        services, peers = decoded(row[0])
        return Attempt(
            {
                name: (tuple(Address(*row) for row in addresses), tuple(names))
                for name, (addresses, names) in services.items()
            },
            {host: tuple(peer) if peer else None for host, peer in peers.items()},
        )

    def on(self, networks: Collection[str]) -> list[str]:
        """Return the services of other hosts on these networks, sorted."""
        marks = ", ".join("?" for _ in networks)
        query = f"SELECT DISTINCT service FROM remote WHERE network IN ({marks}) ORDER BY service"
        return [row[0] for row in self._db.execute(query, tuple(networks))]

    def vni_holder(self, vni: int) -> str | None:
        """Return the network with this VNI, or None."""
        row = self._db.execute("SELECT network FROM span WHERE vni=?", (vni,)).fetchone()
        return str(row[0]) if row else None

    def tunnel(self) -> Tunnel | None:
        """Return the WireGuard tunnel between the hosts; None if the cluster is not encrypted."""
        row = self._db.execute("SELECT value FROM meta WHERE key='tunnel'").fetchone()
        if row is None:
            return None
        made = Tunnel(*decoded(row[0]))
        return made._replace(others=tuple((*end,) for end in made.others))

    # --- writing; inside a transaction ------------------------------------------------------------

    def set_cluster(self, identity: str) -> None:
        """Record the id of the cluster that this host is in.

        With "", delete all rows of the cluster.
        """
        if identity:
            row = (encoded({"id": identity}),)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('cluster', ?)", row)
            return
        self._db.execute("DELETE FROM meta WHERE key IN ('cluster', 'attempt', 'tunnel')")
        for table in ("remote_name", "remote", "peer", "claim"):
            self._db.execute(f"DELETE FROM {table}")

    def set_tunnel(self, tunnel: Tunnel) -> None:
        """Record the WireGuard tunnel between the hosts."""
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('tunnel', ?)", (encoded(list(tunnel)),)
        )

    def set_attempt(self, attempt: Attempt | None) -> None:
        """Record a change of the copied rows before it begins; None records that it is complete."""
        if attempt is None:
            self._db.execute("DELETE FROM meta WHERE key='attempt'")
            return
        row = (encoded([dict(attempt.services), dict(attempt.peers)]),)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('attempt', ?)", row)

    def set_span(self, network: str, vni: int, port: int, local: str) -> None:
        """Record that a network spans hosts.

        ``vni`` is its VXLAN network identifier, ``port`` the UDP port, and ``local`` the address
        from which this host sends.
        """
        row = (network, vni, port, local)
        self._db.execute("INSERT OR REPLACE INTO span VALUES (?, ?, ?, ?)", row)

    def set_peer(self, host: str, state_id: str, address: str, live: bool) -> None:
        """Insert or replace the record of another host."""
        row = (host, state_id, address, live)
        self._db.execute("INSERT OR REPLACE INTO peer VALUES (?, ?, ?, ?)", row)

    def drop_peer(self, host: str) -> None:
        """Delete the record of another host; no-op if there is none."""
        self._db.execute("DELETE FROM peer WHERE host=?", (host,))

    def set_service(self, service: str, addresses: Iterable[Address], names: Iterable[str]) -> None:
        """Replace the addresses and names of another host's service.

        Without addresses, the service is deleted.
        """
        self._db.execute("DELETE FROM remote WHERE service=?", (service,))
        self._db.execute("DELETE FROM remote_name WHERE service=?", (service,))
        rows = list(addresses)
        self._db.executemany("INSERT OR REPLACE INTO remote VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        if rows:
            self._db.executemany(
                "INSERT OR REPLACE INTO remote_name VALUES (?, ?, ?)",
                [(name, service, position) for position, name in enumerate(names)],
            )

    def forget_nameless(self) -> None:
        """Delete the names of other hosts' services that no longer have an address here."""
        self._db.execute(
            "DELETE FROM remote_name WHERE service NOT IN (SELECT service FROM remote)"
        )

    def drop_stale_lease(self, service: str, address: str) -> None:
        """Delete the reservation of an address on this host, if it belongs to another, inactive
        service.

        ``service`` has reserved the address in the cluster. The inactive service has moved to
        another host, or has given up its own reservation in the cluster.
        """
        self._db.execute(
            "DELETE FROM lease WHERE address=? AND service!=? AND service IN"
            " (SELECT name FROM service WHERE active=0)",
            (address, service),
        )

    def set_claim(self, claim: Claim) -> None:
        """Record the reservation in the cluster of a service of this host."""
        row = (claim.service, claim.mark, claim.gen, encoded(claim.addresses))
        self._db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?)", row)

    def drop_claim(self, service: str) -> None:
        """Delete the record of a service's reservation in the cluster; no-op if there is none.

        The service also loses its addresses on this host, since other services may reserve them
        from now on.
        """
        self._db.execute("DELETE FROM claim WHERE service=?", (service,))
        self._db.execute(
            "DELETE FROM lease WHERE service=? AND network IN (SELECT network FROM span)",
            (service,),
        )


def _claim(row: tuple[str, str, int, str]) -> Claim:
    service, mark, gen, addresses = row
    held = {network: tuple(texts) for network, texts in decoded(addresses).items()}
    return Claim(service, mark, gen, held)
