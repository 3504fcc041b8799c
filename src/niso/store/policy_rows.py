"""Store the names of services, and policies with their peers, networks and DNS answers.

A service's name is unique on the host. Hostnames and aliases are unique on each network, so two
networks may each have a ``db``. A service that resolves such a name gets the address of the service
on its own networks.

All services share one record of the addresses of a DNS name in policies (table ``outside_name``).
The undo of a service's change therefore leaves this record unchanged.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from niso.base.errors import Conflict, NotFound
from niso.base.names import veth
from niso.plan.records import (
    FORMER,
    NOW,
    PAST,
    Audit,
    DnsAddress,
    Entry,
    Member,
    Outside,
    Peer,
    PlannedService,
    Policed,
    Policy,
)
from niso.store.service_rows import ServiceRows
from niso.store.sqlite import Rows, decoded, encoded, other_intents

Name = tuple[str, str]
"""A service or network that a policy names, as (kind, name): kind "service" or "network"."""


_TABLES = ("policy", "policy_peer", "outside_peer", "policed")
_ELSEWHERE = "SELECT address FROM remote WHERE service=? ORDER BY network, family"
_INSTANCES_ELSEWHERE = (
    "SELECT address FROM remote WHERE service>?||'.' AND service<?||'/'"
    " ORDER BY network, family, address"
)

_ON = (
    "SELECT h.service FROM host_name h JOIN service s ON s.name=h.service"
    " JOIN endpoint e ON e.service=COALESCE(s.provider, s.name)"
)


FRONTS = (
    "SELECT name FROM (SELECT DISTINCT front FROM instance) CROSS JOIN service ON name=front"
    " WHERE mode='front'"
)
"""SQL query for the services with a service address."""


class PolicyRows(ServiceRows):
    """Database queries for policies and for the names of services."""

    def policy(self, service: str) -> Policy | None:
        """Return a service's policy as written in its manifest, or None if it has no policy."""
        text = self._text("SELECT text FROM policy WHERE service=?", service)
        return None if text is None else policy_of(decoded(text))

    def policied(self) -> list[str]:
        return self._column("SELECT service FROM policy ORDER BY service")

    def audits(self) -> dict[str, tuple[int, int]]:
        """Return {service: (start, end)} of the audit periods of policies, as Unix times.

        In an audit period, packets that a policy would drop are only recorded. Periods that have
        ended are included.
        """
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
        """Return a service's policy with each name replaced by the service that has the name now.

        A name that no service has is replaced by "", which matches nothing. Its entry is not
        deleted: a deny list without entries would allow all packets. If several services have a
        name, its entry is replaced by one entry for each of them (`PolicyRows.resolved`).
        """
        policy = self.policy(service)
        if policy is None:
            return None

        def peers(peer: Peer, denies: bool) -> list[Peer]:
            if peer.kind != "service":
                return [peer]
            meant = self.resolved(service, peer.name)[denies]
            return [Peer(peer.kind, name) for name in meant or ("",)]

        return policy.with_peers(peers)

    @property
    def outside(self) -> OutsideRows:
        return OutsideRows(self._db)

    def names_outside(self, service: str | None = None) -> bool:
        """Return whether the policy of a service, or (None) any policy, contains DNS names."""
        query = "SELECT 1 FROM outside_peer WHERE ?1 IS NULL OR service=?1 LIMIT 1"
        return self._has(query, service)

    def _apart(self) -> list[str]:
        return self._column(
            "SELECT service FROM extra_host UNION SELECT service FROM outside_peer"
            f" EXCEPT {FRONTS} ORDER BY 1"
        )

    def _policed(
        self, services: Iterable[PlannedService], names: Iterable[Name]
    ) -> Iterator[Policed]:
        """Yield the policies to plan: those of ``services``, and others that refer to ``names``.

        ``names`` are names whose addresses have changed. Another service's policy is yielded with
        these addresses in `Policed.only`, so that only entries for these addresses are recomputed.
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
                yield Policed(service.name, addresses, policy, None, self._multicast(service.name))
        only: dict[str, frozenset[str] | None] = {}
        for kind, name in sorted(names):
            # all services with the name count: each policy may refer to another one, or did before
            holders = (
                {name, *self.holders(name), *self.holders_elsewhere(name)}
                if kind == "service"
                else ()
            )
            meant = frozenset(at for own in holders for at in self._resolved(kind, own)[0])
            for service_name in self._naming(kind, name):
                # changing a network affects more than single peers
                before = only.get(service_name, frozenset())
                only[service_name] = None if kind == "network" or before is None else before | meant
        for service_name, values in sorted(only.items()):
            policy = self.policy_now(service_name)
            if service_name not in whole and policy is not None:
                query = "SELECT address FROM lease WHERE service=? ORDER BY address"
                own = tuple(self._column(query, service_name))
                yield Policed(service_name, own, policy, values, self._multicast(service_name))

    def _multicast(self, service: str) -> tuple[tuple[str, str], ...]:
        """Return (address, bridge port) for a service's addresses on networks with multicast."""
        rows = self._run(
            "SELECT l.address, l.network, s.generation FROM network n"
            " CROSS JOIN lease l ON l.network=n.name AND l.service=?1"
            " JOIN service s ON s.name=?1 WHERE n.multicast=1 ORDER BY l.address",
            service,
        )
        return tuple((address, veth(service, network, made)) for address, network, made in rows)

    def naming(self, kind: str, name: str) -> list[str]:
        """Return services whose policies refer to a service or network (``kind``), sorted."""
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
        return tuple(
            Member(kind, name, *self._resolved(kind, name)) for kind, name in sorted(wanted)
        )

    def _names_of(self, address: str) -> list[str]:
        """Return the services of all hosts that have an address. Services that share a namespace
        share its addresses.
        """
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
        instances = self._column(_INSTANCES_ELSEWHERE, name, name)
        return instances or self._column(_ELSEWHERE, name)

    def _resolved(self, kind: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return (addresses of a service or subnets of a network, the network's gateways)."""
        if kind == "outside":
            return self.outside.resolved(name), ()
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
        if mode == "front":  # policies apply to the addresses of its instances
            addresses = self._column(
                "SELECT address FROM lease JOIN instance USING (service) WHERE front=?"
                " ORDER BY network, family, address",
                name,
            )
            # the service may be on other hosts too
            return (*addresses, *self._column(_INSTANCES_ELSEWHERE, name, name)), ()
        # an inactive service keeps its own addresses; a service in a shared namespace has the
        # addresses of the namespace's owner, but only while it is active
        home = service if provider is None else provider if active else ""
        query = "SELECT address FROM lease WHERE service=? ORDER BY network, family"
        addresses = self._column(query, home)
        if not addresses and not active:  # the service may have been moved to another host
            addresses = self._elsewhere(name)
        return tuple(addresses), ()

    # --- writing; inside a transaction ------------------------------------------------------------

    def set_policy(self, service: str, policy: Policy | None) -> None:
        """Replace a service's policy, or delete it (None). Write the service's endpoints first."""
        tables: dict[str, Sequence[tuple[object, ...]]] = dict.fromkeys(_TABLES, ())
        if policy is not None:
            on = self._column("SELECT network FROM endpoint WHERE service=?", service)
            tables = rows_of_policy(service, policy, on)
        for table, rows in tables.items():
            self._set_rows(table, service, rows)

    # --- names -----------------------------------------------------------------

    def names(self, service: str) -> tuple[str, ...]:
        """Return the names of a service: its hostname, its service name, and its aliases."""
        return tuple(
            self._column("SELECT name FROM host_name WHERE service=? ORDER BY position", service)
        )

    def names_there(self, service: str) -> tuple[str, ...]:
        """Return the names of a service and of active services that share its network namespace."""
        sharers = self.sharers(service)
        return (*self.names(service), *(name for sharer in sharers for name in self.names(sharer)))

    def extra_hosts(self, service: str) -> tuple[tuple[str, str], ...]:
        return tuple(
            self._run("SELECT name, address FROM extra_host WHERE service=? ORDER BY name", service)
        )

    def set_extra_hosts(self, service: str, hosts: Iterable[tuple[str, str]]) -> None:
        self._set_rows("extra_host", service, ((service, *host) for host in hosts))

    def networks_of(self, service: str) -> tuple[str, ...]:
        """Return a service's or its provider's networks, in the order of the manifest."""
        return tuple(
            self._column(
                "SELECT network FROM endpoint WHERE service=? ORDER BY position", self.home(service)
            )
        )

    def networks_in_use(self) -> list[str]:
        """Return the networks of active services, according to the services' own rows. These rows
        are complete even if rows of endpoints are missing in a damaged store.
        """
        return sorted({network for networks in self._network_lists() for network in networks})

    def _network_lists(self) -> list[list[str]]:
        rows = self._column("SELECT DISTINCT networks FROM service WHERE active=1")
        return [decoded(text) for text in rows]

    def holders(self, name: str) -> list[str]:
        """Return the recorded services with ``name`` as their name, hostname or alias, sorted."""
        return self._column("SELECT service FROM host_name WHERE name=? ORDER BY service", name)

    def holders_beside(self, service: str, name: str) -> list[str]:
        """Return the services with this name that share a network with ``service``, sorted."""
        return self._column(
            f"{_ON} WHERE h.name=? AND e.network IN (SELECT network FROM endpoint WHERE service=?)"
            " GROUP BY h.service ORDER BY h.service",
            *(name, self.home(service)),
        )

    def holders_elsewhere(self, name: str, beside: str | None = None) -> list[str]:
        """Return the services of other hosts that have a name, sorted. With ``beside``, only
        services that share a network with the service ``beside`` are returned.
        """
        query = "SELECT DISTINCT n.service FROM remote_name n"
        values: tuple[str, ...] = (name,)
        if beside is not None:
            query += (
                " JOIN remote r ON r.service=n.service"
                " JOIN endpoint e ON e.network=r.network AND e.service=?"
            )
            values = (self.home(beside), name)
        return self._column(f"{query} WHERE n.name=? ORDER BY n.service", *values)

    def hosts_of(self, name: str) -> list[str]:
        """Return the other hosts that have a service with this name, sorted."""
        return self._column(
            "SELECT DISTINCT r.host FROM remote r JOIN remote_name n ON n.service=r.service"
            " WHERE n.name=? ORDER BY r.host",
            name,
        )

    def resolved(self, service: str, name: str) -> tuple[list[str], list[str]]:
        """Return the services that a name in the policy of ``service`` refers to, as two lists.

        The first list is for allow entries, and has at most one service. This is the service with
        this hostname or alias on a network of ``service``, otherwise the service with this service
        name on any network. If the name is ambiguous, the list is empty, and activations are
        refused. The second list is for deny entries, and has all services that the name can refer
        to.
        """
        beside = self.holders_beside(service, name)
        elsewhere = self.holders_elsewhere(name, service)
        beside += [other for other in elsewhere if other not in beside]
        mode = self.mode(name)
        here = mode not in (None, "host")
        remote = "SELECT 1 FROM remote WHERE service=? LIMIT 1"
        called = [name] if here or (mode is None and self._has(remote, name)) else []
        allowed = beside if len(beside) == 1 else [] if beside else called
        return allowed, [*beside, *(own for own in called if own not in beside)]

    def shadows(
        self, services: Iterable[str], networks: Iterable[str], fresh: Iterable[str] = ()
    ) -> set[str]:
        """Return other services whose lines in hosts files may change together with ``services``.

        A hosts file has each name only once. If two of its networks have a service with this name,
        the file lists the service on the first of these networks. A change of one such service can
        therefore add or remove the other's name. ``networks`` and ``fresh`` are networks and names
        that ``services`` are about to get.
        """
        own = set(services)
        names = {*fresh, *(name for service in own for name in self.names(service))}
        others = {other for name in names for other in self.holders(name)} - own
        if not others:
            return set()
        on = {*networks, *(network for service in own for network in self.networks_of(service))}
        beside = {network for one in self._network_lists() if on & set(one) for network in one}
        return {other for other in others if beside & set(self.networks_of(other))}

    def resolve(self, name: str, asker: str | None = None) -> str:
        """Return the service that a user means by a name, with or without the suffix .niso.local.

        With ``asker``, this is the service that ``asker`` reaches by the name. Otherwise it is the
        service with this service name, or the only service with this hostname or alias. Raises
        NotFound, and Conflict if the name is ambiguous.
        """
        bare = bare_name(name)
        if (service := self._found(bare, asker)) is not None:
            return service
        if self._column("SELECT service FROM instance WHERE service=?", bare):
            return bare
        if there := self.hosts_of(bare):
            hint = f"it is on {', '.join(there)}: run the command there"
            raise NotFound(f"no service {name!r} on this host", hint)
        # a damaged key may be NULL
        known = self._column("SELECT DISTINCT name FROM host_name WHERE name!='' ORDER BY name")
        raise NotFound(f"no service {name!r}", suggest(bare, known, "niso ps lists the services"))

    # Names given up by a change in progress stay reserved: an undo may have to restore them.

    def name_holder(self, name: str) -> str | None:
        """Return the service that has a name, or that would have it after an undo of a change in
        progress. Returns None if no service has the name. Raises Conflict if the name is ambiguous.
        """
        if (service := self._found(name, None)) is not None:
            return service
        return next(iter(self._restored(name)), None)

    def holders_on(
        self, name: str, networks: Container[str], but: str, beside: AbstractSet[str]
    ) -> list[tuple[str, str]]:
        """Return (service, network) for each service that has a name on one of these networks.

        A service that would have the name after an undo of its change in progress is included,
        unless it is in ``beside``, the services of the caller's own command. The service ``but`` is
        left out.
        """
        held = {service: set(self.networks_of(service)) for service in self.holders(name)}
        restored = self._restored(name) if other_intents(self._db, beside) else {}
        for service, on in restored.items():
            if service not in beside:
                held[service] = held.get(service, set()) | on
        return [
            (service, network)
            for service, on in sorted(held.items())
            for network in sorted(on)
            if service != but and network in networks
        ]

    def shown(self, services: Iterable[str]) -> str:
        """Format services with their networks for messages, such as ``'db' (network backend)``."""
        parts = []
        for service in services:
            on = self.networks_of(service)
            where = f"network{'s' * (len(on) > 1)} {', '.join(on)}" if on else "no network"
            parts.append(f"{service!r} ({where})")
        return ", ".join(parts)

    def _found(self, bare: str, asker: str | None) -> str | None:
        candidates = self._reached(asker, bare) if asker else []
        if not candidates:
            everywhere = self.holders(bare)
            candidates = [bare] if bare in everywhere else everywhere
        if len(candidates) > 1:
            raise Conflict(
                f"{bare!r} is ambiguous, it could be {self.shown(candidates)}",
                f"use the name of the service, such as {candidates[0]}",
            )
        return candidates[0] if candidates else None

    def _reached(self, service: str, name: str) -> list[str]:
        return self._column(
            f"{_ON} JOIN endpoint own ON own.network=e.network AND own.service=?"
            " WHERE h.name=? ORDER BY s.active DESC, own.position LIMIT 1",
            *(self.home(service), name),
        )

    def _restored(self, name: str) -> dict[str, set[str]]:
        """Return {service: its networks} of services that would have the name after an undo."""
        restored: dict[str, set[str]] = {}
        rows = self._run(
            "SELECT service, COALESCE(json_extract(undo, '$.service[0].provider'), service)"
            " FROM intent WHERE EXISTS(SELECT 1 FROM json_each(undo, '$.host_name')"
            " WHERE json_extract(value, '$.name')=?)",
            name,
        ).fetchall()
        for service, home in rows:
            on = self._column(
                "SELECT json_extract(value, '$.network') FROM intent,"
                " json_each(undo, '$.endpoint') WHERE service=?"
                " UNION SELECT network FROM endpoint WHERE service=?",
                *(home, home),
            )
            restored[service] = set(on)
        return restored

    def mode(self, service: str) -> str | None:
        return self._text("SELECT mode FROM service WHERE name=?", service)


def rows_of_policy(
    service: str, policy: Policy, networks: Iterable[str]
) -> dict[str, Sequence[tuple[object, ...]]]:
    """Return {table: rows} to store for a policy. ``networks`` are the networks of ``service``."""
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
    """Decode a policy from its stored form, nested lists from JSON."""

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


# --- names of services ----------------------------------------------------------------------------


def bare_name(name: str) -> str:
    # importing names.DOMAIN would load another module in every command
    return name.removesuffix(".niso.local")


def suggest(name: str, known: list[str], otherwise: str) -> str:
    """Return a hint with the name in ``known`` that is most similar to the unknown ``name``, or
    ``otherwise`` if no name is similar.
    """
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


# --- outside names and DNS answers ----------------------------------------------------------------


class OutsideRows(Rows):
    """Database queries for DNS names in policies."""

    def of(self, service: str) -> tuple[str, ...]:
        """Return the DNS names in a service's policy, sorted."""
        query = "SELECT name FROM outside_peer WHERE service=? ORDER BY name"
        return tuple(self._column(query, service))

    def named(self, active: bool = False) -> list[str]:
        """Return the DNS names in all policies, or only in those of active services, sorted."""
        return self._column(
            "SELECT DISTINCT p.name FROM outside_peer p JOIN service s ON s.name=p.service"
            " WHERE s.active>=? ORDER BY p.name",
            int(active),
        )

    def naming(self, names: Iterable[str]) -> list[str]:
        """Return the active services whose policies contain one of these DNS names, sorted."""
        query = (
            "SELECT p.service FROM outside_peer p JOIN service s ON s.name=p.service AND s.active=1"
            " WHERE p.name=?"
        )
        return sorted({service for name in names for service in self._column(query, name)})

    def answer(self, name: str) -> Outside:
        """Return the recorded DNS answer for a name, or an empty answer if there is none."""
        text = self._text("SELECT answer FROM outside_name WHERE name=?", name)
        return (text and _answer(name, text)) or Outside(name)

    def answers(self) -> list[Outside]:
        """Return the recorded DNS answers for all DNS names in policies, sorted by name."""
        return [self.answer(name) for name in self.named()]

    def resolved(self, name: str) -> tuple[str, ...]:
        """Return the addresses to which policies with this DNS name allow connections."""
        return self.answer(name).in_state(NOW, FORMER)

    def ever(self, name: str) -> tuple[str, ...]:
        """Return all recorded addresses of a DNS name, even those that policies no longer allow."""
        return self.answer(name).in_state(NOW, FORMER, PAST)

    def hosts(self, service: str) -> list[tuple[str, str]]:
        """Return (name, address) for the lines of a service's hosts file that are for DNS names in
        its policy. The addresses are from the latest DNS answers.
        """
        return [
            (name, address)
            for name in self.of(service)
            for address in self.answer(name).in_state(NOW)
        ]

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, answers: Iterable[Outside]) -> None:
        for answer in answers:
            self._put("outside_name", answer.name, encoded(answer[1:]))

    def forget_others(self, before: float) -> None:
        """Delete DNS answers from before ``before`` (Unix time) for names that are in no policy."""
        query = "SELECT name FROM outside_name WHERE name NOT IN (SELECT name FROM outside_peer)"
        for name in self._column(query):
            if not self.answer(name).asked_at > before:
                self._run("DELETE FROM outside_name WHERE name=?", name)


def _answer(name: str, text: str) -> Outside | None:
    import ipaddress

    try:
        asked_at, due_at, problem, settled, addresses = decoded(text)
        known = tuple(
            DnsAddress(str(ipaddress.ip_address(address)), str(state), float(until))
            for address, state, until in addresses
        )
        times = float(asked_at), float(due_at)
        return Outside(name, *times, str(problem), settled is True, known)
    except (TypeError, ValueError):
        return None
