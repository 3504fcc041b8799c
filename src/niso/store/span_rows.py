"""Read and write the rows of networks that span hosts: what other hosts have there.

These rows are a mirror of the cluster's claims (docs/design/cluster.md). Only stores with such a
network load this module.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable

from niso.base.lite_typing import NamedTuple
from niso.plan.records import Endpoint, Remote
from niso.store.sqlite import decoded, encoded

_QUERY = (
    "SELECT r.service, p.address, r.network, r.address, r.up AND p.live"
    " FROM remote r JOIN span s ON s.network=r.network JOIN peer p ON p.host=r.host"
)


class Address(NamedTuple):
    """A claimed address of a service of another host."""

    network: str
    family: int
    address: str
    service: str
    host: str  # its name
    gen: int
    up: bool


def remotes(db: sqlite3.Connection, services: Collection[str] | None = None) -> list[Remote]:
    """Return the services of other hosts with these names, or all, sorted by name."""
    if services is None:
        return _remotes(db, "", ())
    marks = ", ".join("?" for _ in services)
    return _remotes(db, f"WHERE r.service IN ({marks})", tuple(services))


def remotes_on(db: sqlite3.Connection, networks: Collection[str]) -> list[Remote]:
    """Return the services of other hosts on these networks, with only these, sorted by name."""
    marks = ", ".join("?" for _ in networks)
    return _remotes(db, f"WHERE r.network IN ({marks})", tuple(networks))


def _remotes(db: sqlite3.Connection, where: str, values: tuple[str, ...]) -> list[Remote]:
    rows = db.execute(f"{_QUERY} {where} ORDER BY r.service, r.network, r.family", values)
    made: dict[str, Remote] = {}
    for service, host, network, address, seen in rows:
        have = made.get(service)
        if have is None:
            have = Remote(service, host, (), _names(db, service) if seen else ())
        *others, last = have.endpoints or (Endpoint("", ()),)
        if last.network == network:
            endpoint = last._replace(addresses=(*last.addresses, address))
        else:
            others = list(have.endpoints)
            endpoint = Endpoint(network, (address,))
        made[service] = have._replace(endpoints=(*others, endpoint))
    return list(made.values())


def _names(db: sqlite3.Connection, service: str) -> tuple[str, ...]:
    query = "SELECT name FROM remote_name WHERE service=? ORDER BY position"
    rows = db.execute(query, (service,))
    return tuple(row[0] for row in rows)


class Claim(NamedTuple):
    """What this host holds in the cluster for a service of its own.

    ``mark`` is a random text in the claim: who got no answer to a request finds by it whether it
    was carried out. ``gen`` counts the claim's changes of host and addresses.
    """

    service: str
    mark: str
    gen: int
    addresses: dict[str, tuple[str, ...]]  # by network


def claim(db: sqlite3.Connection, service: str) -> Claim | None:
    """Return the claim of a service of this host, or None."""
    row = db.execute("SELECT * FROM claim WHERE service=?", (service,)).fetchone()
    return _claim(row) if row else None


def claims(db: sqlite3.Connection) -> list[Claim]:
    """Return the claims of all services of this host, sorted by name."""
    return [_claim(row) for row in db.execute("SELECT * FROM claim ORDER BY service")]


def _claim(row: tuple[str, str, int, str]) -> Claim:
    service, mark, gen, addresses = row
    held = {network: tuple(each) for network, each in decoded(addresses).items()}
    return Claim(service, mark, gen, held)


# --- writing; inside a transaction ----------------------------------------------------------------


def set_span(db: sqlite3.Connection, network: str, vni: int, port: int, local: str) -> None:
    """Record that a network spans hosts."""
    db.execute("INSERT OR REPLACE INTO span VALUES (?, ?, ?, ?)", (network, vni, port, local))


def set_peer(db: sqlite3.Connection, host: str, state_id: str, address: str, live: bool) -> None:
    """Record another host."""
    db.execute("INSERT OR REPLACE INTO peer VALUES (?, ?, ?, ?)", (host, state_id, address, live))


def set_service(
    db: sqlite3.Connection, service: str, addresses: Iterable[Address], names: Iterable[str]
) -> None:
    """Replace what is known of a service of another host; without addresses it is forgotten."""
    db.execute("DELETE FROM remote WHERE service=?", (service,))
    db.execute("DELETE FROM remote_name WHERE service=?", (service,))
    rows = list(addresses)
    db.executemany("INSERT OR REPLACE INTO remote VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    if rows:
        db.executemany(
            "INSERT OR REPLACE INTO remote_name VALUES (?, ?, ?)",
            [(name, service, position) for position, name in enumerate(names)],
        )


def set_claim(db: sqlite3.Connection, claim: Claim) -> None:
    """Record what this host holds for a service."""
    addresses = encoded(claim.addresses)
    row = (claim.service, claim.mark, claim.gen, addresses)
    db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?)", row)


def drop_claim(db: sqlite3.Connection, service: str) -> None:
    """Delete the record of a claim; no-op if there is none."""
    db.execute("DELETE FROM claim WHERE service=?", (service,))
