"""The rows of policies: what each service's says, whom it names, and on which networks it makes itself felt."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator

from niso.plan.records import Entry, Member, Peer, Policed, Policy, Service
from niso.store.sqlite import decoded, encoded

Name = tuple[str, str]
"""(kind, name) of a peer: "service" or "network"."""


class PolicyRows:
    """The part of the store that is about policies."""

    _db: sqlite3.Connection

    def policy(self, service: str) -> Policy | None:
        """A service's policy; None where its manifest says nothing."""
        row = self._db.execute("SELECT text FROM policy WHERE service=?", (service,)).fetchone()
        return _policy(decoded(row[0])) if row else None

    def _policed(self, services: Iterable[Service], names: Iterable[Name]) -> Iterator[Policed]:
        """These active services' policies, and of others that have one of ``names`` what hangs on it."""
        whole = {service.name for service in services}
        for service in services:
            policy = self.policy(service.name)
            if policy is not None:
                addresses = tuple(
                    address for endpoint in service.endpoints for address in endpoint.addresses
                )
                yield Policed(service.name, addresses, policy)
        only: dict[str, set[str] | None] = {}
        for kind, name in sorted(names):
            addresses = self._meant(kind, name)[0]
            for service_name in self._naming(kind, name):
                # what a network stands for changes more than single peers
                before = only.get(service_name, set())
                only[service_name] = (
                    None if kind == "network" or before is None else before | set(addresses)
                )
        for service_name, values in sorted(only.items()):
            policy = self.policy(service_name)
            if service_name not in whole and policy is not None:
                rows = self._db.execute(
                    "SELECT address FROM lease WHERE service=? ORDER BY address", (service_name,)
                )
                own = tuple(row[0] for row in rows)
                yield Policed(
                    service_name, own, policy, None if values is None else frozenset(values)
                )

    def naming(self, kind: str, name: str) -> list[str]:
        """The known services whose policies have this name."""
        rows = self._db.execute(
            "SELECT service FROM policy_peer WHERE kind=? AND name=? ORDER BY service", (kind, name)
        )
        return [row[0] for row in rows]

    def _naming(self, kind: str, name: str) -> list[str]:
        """The active services whose policies have this name."""
        rows = self._db.execute(
            "SELECT p.service FROM policy_peer p JOIN service s ON s.name=p.service AND s.active=1"
            " WHERE p.kind=? AND p.name=? ORDER BY p.service",
            (kind, name),
        )
        return [row[0] for row in rows]

    def _members(self, policed: Iterable[Policed]) -> tuple[Member, ...]:
        """What the names in these policies stand for: for one of which only some addresses matter, of these."""
        wanted: set[Name] = set()
        for each in policed:
            for entry in each.policy.entries():
                if entry.peer.kind == "network" or (
                    entry.peer.kind == "service" and each.only is None
                ):
                    wanted.add((entry.peer.kind, entry.peer.name))
            # addresses that stand in the manifest are looked at whoever has them, so who that is must be known
            single = [
                e.peer.name.partition("/")[0]
                for e in each.policy.entries()
                if e.peer.kind == "prefix"
            ]
            for address in () if each.only is None else {*each.only, *single}:
                wanted.update(("service", name) for name in self._answers_to(address))
        return tuple(Member(kind, name, *self._meant(kind, name)) for kind, name in sorted(wanted))

    def _answers_to(self, address: str) -> list[str]:
        rows = self._db.execute(
            "SELECT n.name FROM lease l JOIN service s ON s.name=l.service OR (s.provider=l.service AND s.active=1)"
            " JOIN host_name n ON n.service=s.name WHERE l.address=?",
            (address,),
        )
        return [row[0] for row in rows]

    def _meant(self, kind: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The addresses or subnets that a name stands for, none while nobody has it, and a network's gateways."""
        if kind == "network":
            rows = self._db.execute(
                "SELECT cidr, gateway FROM subnet WHERE network=? ORDER BY family", (name,)
            ).fetchall()
            return tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        found = self._db.execute(
            "SELECT s.name, s.provider, s.active FROM host_name h JOIN service s ON s.name=h.service WHERE h.name=?",
            (name,),
        ).fetchone()
        if found is None:
            return (), ()
        service, provider, active = found
        # also of one that is not active: its leases stay its own. Those of a provider are another's, but while it is shared
        home = service if provider is None else provider if active else ""
        rows = self._db.execute(
            "SELECT address FROM lease WHERE service=? ORDER BY network, family", (home,)
        ).fetchall()
        return tuple(row[0] for row in rows), ()

    # --- writing; inside a transaction ---------------------------------------------------------------------------

    def set_policy(self, service: str, policy: Policy | None) -> None:
        """Replace a service's policy; after its endpoints."""
        for table in ("policy", "policy_peer", "policed"):
            self._db.execute(f"DELETE FROM {table} WHERE service=?", (service,))
        if policy is None:
            return
        self._db.execute("INSERT INTO policy VALUES (?, ?)", (service, encoded(policy)))
        peers = {
            (entry.peer.kind, entry.peer.name)
            for entry in policy.entries()
            if entry.peer.kind != "prefix"
        }
        self._db.executemany(
            "INSERT INTO policy_peer VALUES (?, ?, ?)", [(service, *peer) for peer in sorted(peers)]
        )
        self._db.execute(
            "INSERT INTO policed SELECT DISTINCT service, network FROM endpoint WHERE service=?",
            (service,),
        )


def _policy(value: list[object]) -> Policy:
    def entries(found: object) -> tuple[Entry, ...] | None:
        if found is None:
            return None
        return tuple(Entry(e[0], e[1], Peer(*e[2]), *e[3:]) for e in found)  # type: ignore[attr-defined]

    allow, deny, egress_allow, egress_deny, log = value
    return Policy(
        entries(allow),
        entries(deny) or (),
        entries(egress_allow),
        entries(egress_deny) or (),
        bool(log),
    )
