"""The rows of policies: what each service's says, whom it names, and on which networks it makes itself felt."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from niso.records import Entry, Member, Peer, Policy

Name = tuple[str, str]
"""(kind, name) of a peer: "service" or "network"."""


class PolicyRows:
    """The part of the store that is about policies."""

    _db: sqlite3.Connection

    def policy(self, service: str) -> Policy | None:
        """A service's policy; None where its manifest says nothing."""
        row = self._db.execute("SELECT text FROM policy WHERE service=?", (service,)).fetchone()
        return _decoded(json.loads(row[0])) if row else None

    def policy_names(self, services: Iterable[str]) -> set[Name]:
        """Whom the policies of these services name."""
        return {
            (kind, name)
            for service in services
            for kind, name in self._db.execute("SELECT kind, name FROM policy_peer WHERE service=?", (service,))
        }

    def naming(self, kind: str, name: str) -> list[str]:
        """The known services whose policies have this name."""
        rows = self._db.execute(
            "SELECT service FROM policy_peer WHERE kind=? AND name=? ORDER BY service", (kind, name)
        )
        return [row[0] for row in rows]

    def _members(self, names: Iterable[Name] | None) -> tuple[Member, ...]:
        """Of ``names`` (None: of all) those that a policy of an active service has, with what they stand for now."""
        active = (
            "SELECT 1 FROM policy_peer p JOIN service s ON s.name=p.service AND s.active=1 WHERE p.kind=? AND p.name=?"
        )
        if names is None:
            wanted = self._db.execute(
                "SELECT DISTINCT kind, p.name FROM policy_peer p JOIN service s ON s.name=p.service AND s.active=1"
            ).fetchall()
        else:
            wanted = [name for name in set(names) if self._db.execute(f"{active} LIMIT 1", name).fetchone()]
        return tuple(Member(kind, name, *self._meant(kind, name)) for kind, name in sorted(wanted))

    def _meant(self, kind: str, name: str) -> tuple[str, tuple[str, ...]]:
        """Who a name belongs to, "" for nobody yet, and the addresses or subnets that it stands for."""
        if kind == "network":
            rows = self._db.execute("SELECT cidr FROM subnet WHERE network=? ORDER BY family", (name,)).fetchall()
            return (name if rows else "", tuple(row[0] for row in rows))
        found = self._db.execute(
            "SELECT s.name, s.provider, s.active FROM host_name h JOIN service s ON s.name=h.service WHERE h.name=?",
            (name,),
        ).fetchone()
        if found is None:
            return ("", ())
        service, provider, active = found
        # also of one that is not active: its leases stay its own. Those of a provider are another's, but while it is shared
        home = service if provider is None else provider if active else ""
        rows = self._db.execute(
            "SELECT address FROM lease WHERE service=? ORDER BY network, family", (home,)
        ).fetchall()
        return (service, tuple(row[0] for row in rows))

    # --- writing; inside a transaction ---------------------------------------------------------------------------

    def set_policy(self, service: str, policy: Policy | None) -> None:
        """Replace a service's policy; after its endpoints."""
        for table in ("policy", "policy_peer", "policed"):
            self._db.execute(f"DELETE FROM {table} WHERE service=?", (service,))
        if policy is None:
            return
        self._db.execute("INSERT INTO policy VALUES (?, ?)", (service, json.dumps(policy)))
        entries = [*(policy.allow_from or ()), *policy.deny_from, *(policy.egress_allow or ()), *policy.egress_deny]
        peers = {(entry.peer.kind, entry.peer.name) for entry in entries if entry.peer.kind != "prefix"}
        self._db.executemany("INSERT INTO policy_peer VALUES (?, ?, ?)", [(service, *peer) for peer in sorted(peers)])
        self._db.execute(
            "INSERT INTO policed SELECT DISTINCT service, network FROM endpoint WHERE service=?", (service,)
        )


def _decoded(value: list[object]) -> Policy:
    def entries(found: object) -> tuple[Entry, ...] | None:
        return None if found is None else tuple(Entry(e[0], e[1], Peer(*e[2]), *e[3:]) for e in found)  # type: ignore[attr-defined]

    allow, deny, egress_allow, egress_deny, log = value
    return Policy(entries(allow), entries(deny) or (), entries(egress_allow), entries(egress_deny) or (), bool(log))
