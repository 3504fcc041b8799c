"""Store policies: each service's policy, the peers in it, and the networks where it applies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from niso.plan.records import Audit, Entry, Member, Peer, PlannedService, Policed, Policy
from niso.store.name_rows import NameRows, OutsideRows
from niso.store.sqlite import decoded, encoded

Name = tuple[str, str]
"""A service or network that a policy names, as (kind, name): kind "service" or "network"."""


_TABLES = ("policy", "policy_peer", "outside_peer", "policed")
_ELSEWHERE = "SELECT address FROM remote WHERE service=? ORDER BY network, family"
_INSTANCES_ELSEWHERE = (
    "SELECT address FROM remote WHERE service>?||'.' AND service<?||'/'"
    " ORDER BY network, family, address"
)


FRONTS = (
    "SELECT name FROM (SELECT DISTINCT front FROM instance) CROSS JOIN service ON name=front"
    " WHERE mode='front'"
)
"""SQL query for the services with a service address."""


class PolicyRows(NameRows):
    """The queries of the store for policies."""

    def policy(self, service: str) -> Policy | None:
        """Return a service's policy as written in its manifest, or None if it has no policy."""
        text = self._text("SELECT text FROM policy WHERE service=?", service)
        return None if text is None else policy_of(decoded(text))

    def policied(self) -> list[str]:
        return self._column("SELECT service FROM policy ORDER BY service")

    def audits(self) -> dict[str, tuple[int, int]]:
        """Return {service: (start, end)} of audits of policies, also ended ones, as Unix times."""
        rows = self._run(
            "SELECT service, json_extract(audit, '$[1]'), json_extract(audit, '$[2]') FROM ("
            "SELECT service, CASE WHEN json_valid(text) THEN json_extract(text, '$[5]') END audit"
            " FROM policy) WHERE audit IS NOT NULL AND json_valid(audit)"
        )
        return {
            service: (since, until)
            for service, since, until in rows
            if isinstance(since, int) and isinstance(until, int)
        }

    def policy_now(self, service: str) -> Policy | None:
        """Return a service's policy in which each name is replaced by the service that has it now.

        A name that no service has is replaced by "", which matches nothing. The entry is not
        deleted, because a deny list could then become empty, which means no policy. A name that
        several services have becomes one entry for each of these services (`NameRows.meant`).
        """
        policy = self.policy(service)
        if policy is None:
            return None

        def peers(peer: Peer, denies: bool) -> list[Peer]:
            if peer.kind != "service":
                return [peer]
            meant = self.meant(service, peer.name)[denies]
            return [Peer(peer.kind, name) for name in meant or ("",)]

        return policy.with_peers(peers)

    @property
    def outside(self) -> OutsideRows:
        return OutsideRows(self._db)

    def names_outside(self, service: str | None = None) -> bool:
        """Return whether a service's policy, or for None any policy, contains DNS names."""
        query = "SELECT 1 FROM outside_peer WHERE ?1 IS NULL OR service=?1 LIMIT 1"
        return self._has(query, service)

    def _apart(self) -> list[str]:
        """Return the services that have a hosts file of their own, sorted."""
        return self._column(
            "SELECT service FROM extra_host UNION SELECT service FROM outside_peer"
            f" EXCEPT {FRONTS} ORDER BY 1"
        )

    def _policed(
        self, services: Iterable[PlannedService], names: Iterable[Name]
    ) -> Iterator[Policed]:
        """Yield the policies of services, and the entries of other policies that contain names.

        ``names`` are names whose addresses have changed. A policy of another service that contains
        such a name is yielded with these addresses (`Policed.only`).
        """
        # the instances of a service with a service address have its policy
        fronts = self._column(FRONTS)
        whole = {service.name for service in services}.union(fronts)
        for service in services:
            if service.mode == "front":
                continue
            policy = self.policy_now(service.name)
            if policy is not None:
                addresses = tuple(
                    address for endpoint in service.endpoints for address in endpoint.addresses
                )
                yield Policed(service.name, addresses, policy)
        only: dict[str, frozenset[str] | None] = {}
        for kind, name in sorted(names):
            # all services with the name count: each policy may refer to another one, or did before
            holders = (
                {name, *self.holders(name), *self.holders_elsewhere(name)}
                if kind == "service"
                else ()
            )
            meant = frozenset(at for own in holders for at in self._meant(kind, own)[0])
            for service_name in self._naming(kind, name):
                # changing a network affects more than single peers
                before = only.get(service_name, frozenset())
                only[service_name] = None if kind == "network" or before is None else before | meant
        for service_name, values in sorted(only.items()):
            policy = self.policy_now(service_name)
            if service_name not in whole and policy is not None:
                query = "SELECT address FROM lease WHERE service=? ORDER BY address"
                own = tuple(self._column(query, service_name))
                yield Policed(service_name, own, policy, values)

    def naming(self, kind: str, name: str) -> list[str]:
        """Return all recorded services whose policies name this service or network, sorted."""
        return self._column(
            "SELECT service FROM policy_peer WHERE kind=? AND name=? ORDER BY service", kind, name
        )

    def _naming(self, kind: str, name: str) -> list[str]:
        return self._column(
            "SELECT p.service FROM policy_peer p JOIN service s ON s.name=p.service AND s.active=1"
            " WHERE p.kind=? AND p.name=? ORDER BY p.service",
            *(kind, name),
        )

    def _members(self, policed: Iterable[Policed]) -> tuple[Member, ...]:
        """Return the addresses of all names that entries of these policies refer to.

        A policy with ``only`` is recomputed only for the peers with these addresses. Of its
        services, only those with one of these addresses are included.
        """
        wanted: set[Name] = set()
        for policy in policed:
            for entry in policy.policy.entries():
                if entry.peer.kind in ("network", "outside") or (
                    entry.peer.kind == "service" and policy.only is None
                ):
                    wanted.add((entry.peer.kind, entry.peer.name))
            # an address in a manifest matches any holder, so the holder is needed
            single = [
                entry.peer.name.partition("/")[0]
                for entry in policy.policy.entries()
                if entry.peer.kind == "prefix"
            ]
            for address in () if policy.only is None else {*policy.only, *single}:
                wanted.update(("service", name) for name in self._names_of(address))
        return tuple(Member(kind, name, *self._meant(kind, name)) for kind, name in sorted(wanted))

    def _names_of(self, address: str) -> list[str]:
        """Return the services of all hosts that use an address, also by sharing a namespace."""
        return self._column(
            "SELECT s.name FROM lease l"
            " JOIN service s ON s.name=l.service OR (s.provider=l.service AND s.active=1)"
            " WHERE l.address=?1"
            " UNION ALL SELECT i.front FROM lease l JOIN instance i ON i.service=l.service"
            " WHERE l.address=?1"
            " UNION ALL SELECT service FROM remote WHERE address=?1"
            # the name of a service means its instances
            " UNION ALL SELECT substr(service, 1, instr(service, '.')-1) FROM remote"
            " WHERE address=?1 AND instr(service, '.')",
            address,
        )

    def _elsewhere(self, name: str) -> list[str]:
        """Return the addresses of a service of other hosts, or those of its instances."""
        instances = self._column(_INSTANCES_ELSEWHERE, name, name)
        return instances or self._column(_ELSEWHERE, name)

    def _meant(self, kind: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (addresses or subnets, gateways) of a name in a policy."""
        if kind == "outside":
            return self.outside.meant(name), ()
        if kind == "network":
            rows = self._run(
                "SELECT cidr, gateway FROM subnet WHERE network=? ORDER BY family", name
            ).fetchall()
            return tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        holder = self._run(
            "SELECT name, provider, active, mode FROM service WHERE name=?", name
        ).fetchone()
        if holder is None:
            return tuple(self._elsewhere(name)), ()
        service, provider, active, mode = holder
        if mode == "front":  # its address never is the source or destination in a policy
            addresses = self._column(
                "SELECT address FROM lease JOIN instance USING (service) WHERE front=?"
                " ORDER BY network, family, address",
                name,
            )
            return tuple(addresses), ()
        # an inactive service keeps its addresses; one that shares another's namespace has the
        # addresses of that one only while it is active
        home = service if provider is None else provider if active else ""
        query = "SELECT address FROM lease WHERE service=? ORDER BY network, family"
        addresses = self._column(query, home)
        if not addresses and not active:  # the service may have been moved to another host
            addresses = self._elsewhere(name)
        return tuple(addresses), ()

    # --- writing; inside a transaction ------------------------------------------------------------

    def set_policy(self, service: str, policy: Policy | None) -> None:
        """Replace a service's policy. The rows of its endpoints must be up to date."""
        tables: dict[str, Sequence[tuple[object, ...]]] = dict.fromkeys(_TABLES, ())
        if policy is not None:
            on = self._column("SELECT network FROM endpoint WHERE service=?", service)
            tables = rows_of_policy(service, policy, on)
        for table, rows in tables.items():
            self._set_rows(table, service, rows)


def rows_of_policy(
    service: str, policy: Policy, networks: Iterable[str]
) -> dict[str, Sequence[tuple[object, ...]]]:
    """Return {table: rows} to store for a policy; ``networks`` are the networks of its service."""
    peers = {
        (entry.peer.kind, entry.peer.name)
        for entry in policy.entries()
        if entry.peer.kind in ("service", "network")
    }
    return {
        "policy": [(service, encoded(policy))],
        "policy_peer": [(service, *peer) for peer in sorted(peers)],
        "outside_peer": [(service, name) for name in policy.outside_names()],
        "policed": [(service, network) for network in networks],
    }


def policy_of(value: list[object]) -> Policy:
    """Decode a policy that `PolicyRows.set_policy` encoded as JSON."""

    def entries(items: object) -> tuple[Entry, ...] | None:
        if items is None:
            return None
        return tuple(Entry(e[0], e[1], Peer(*e[2]), *e[3:]) for e in items)  # type: ignore[attr-defined]

    allow, deny, egress_allow, egress_deny, log, audit = value
    return Policy(
        entries(allow),
        entries(deny) or (),
        entries(egress_allow),
        entries(egress_deny) or (),
        bool(log),
        Audit(*audit) if audit else None,  # type: ignore[misc]
    )
