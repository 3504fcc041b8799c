"""Read and write the rows of services, of changes in progress and of stacks; assign addresses.

A service belongs to at most one stack, until the service is removed or is no longer in the stack's
file. A service with mode ``share`` shares the network namespace of another service, its
``provider``. Such a service has no endpoint, and uses the addresses, networks and address families
of its provider. While such a service is active, its names and ports belong to its provider's
namespace.

A lease is an address that is reserved for a service on a network; `lease` assigns it. ServiceSpec
and ProcessSpec are stored as JSON.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import merge

from niso.base import convert, paths
from niso.base.errors import Conflict, Error, InvalidInput
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import Prefix, family_of, prefix
from niso.base.native import from_json, to_json
from niso.plan import records
from niso.plan.records import Healthcheck, NetworkRecord, PortMapping, SubnetRecord
from niso.plan.specs import ProcessSpec, ProgramSpec, ServiceSpec
from niso.store.port_rows import PORT_COLUMNS, PRIMARY
from niso.store.sqlite import Rows, decoded, encoded, marks, other_intents

if TYPE_CHECKING:
    from typing import Any

    from niso.store.store import Store


BY = "NISO_BY"
"""The environment variable that overrides the recorded caller of a command. niso sets it for its
own commands, such as `niso health`."""
_UNSET = (1 << 32) - 1
_MOST = 300
"""The maximum length of a recorded command line, in characters."""

# --- services, changes in progress, stacks, modes and leases --------------------------------------


ROW_TABLES = (
    "service",
    "host_name",
    "extra_host",
    "endpoint",
    "lease",
    "port",
    "published",
    "policy",
    "policy_peer",
    "policed",
    "outside_peer",
    "attached",
    "attached_link",
    "instance",
    "stack_member",
)
"""The tables with rows of a service. A table comes after the tables that it references. The column
with the service's name is ``name`` in the first table, and ``service`` in the others."""


_IS_FREE = (
    "NOT EXISTS (SELECT 1 FROM lease l WHERE l.network=r.network AND l.family=r.family"
    " AND l.number=r.number)"
)
_PROVIDER = "(SELECT COALESCE(provider, name) FROM service WHERE name=?)"


class ServiceRow(NamedTuple):
    """A recorded service. The fields are the columns of the table ``service``."""

    name: str
    manifest_path: str
    manifest: str  # JSON of the ServiceSpec
    rootfs: str | None
    package: str
    fingerprint: str
    uid: int
    active: bool
    generation: int
    networks: tuple[str, ...]
    spec: str  # JSON of the ProcessSpec
    created_at: float  # seconds since 1970
    activated_at: float | None
    mode: str = "bridge"  # or host, none, share, attached, front
    provider: str | None = None  # with mode share: the service whose namespace is shared
    enabled: bool = False  # activated at boot

    @property
    def has_process(self) -> bool:
        """Return whether niso starts a process for the service itself.

        Another program starts the process of an attachment. For a service with a service address
        (mode front), niso starts instances, which have rows as services.
        """
        return self.mode not in ("attached", "front")

    @property
    def is_attachment(self) -> bool:
        """Return whether the service is an attachment, whose process another program starts."""
        return self.mode == "attached"

    @property
    def service(self) -> ServiceSpec | None:
        """Return the ServiceSpec of the last activation, or None if the row is damaged."""
        spec = service(self.manifest)
        is_whole = spec is not None and (spec.process is None) == self.is_attachment
        return spec if is_whole else None

    @property
    def process(self) -> ProcessSpec | None:
        """Return the ProcessSpec of the last activation, or None if the row is damaged."""
        spec: ProcessSpec | None = _decode(self.spec, ProcessSpec)
        return spec

    @property
    def healthcheck(self) -> Healthcheck | None:
        """Return the health check, or None if the service has none or its row is damaged."""
        return self._program.healthcheck if self._program is not None else None

    @property
    def _program(self) -> ProgramSpec | None:
        return self.service.process if self.service is not None else None

    @property
    def is_job(self) -> bool:
        """Return whether the service is a job: its process runs until it exits by itself."""
        return self._program is not None and self._program.kind == "job"

    @property
    def schedule(self) -> str | None:
        """Return the times at which systemd runs a job, or None for a job without a schedule."""
        return self._program.schedule if self._program is not None else None

    @property
    def folder(self) -> str:
        """Return the folder of the service's package, or "" if its package is empty."""
        program = self._program
        here = os.path.dirname(self.manifest_path)
        return here if program is None or program.folder is None else program.folder

    @property
    def activation_command(self) -> str:
        """Return the command that activates the service from its file again, for hints."""
        program = self._program
        is_inline = program is not None and program.folder is not None
        return f"niso {'stack up' if is_inline else 'activate'} {self.manifest_path}"

    def require_service(self) -> ServiceSpec:
        """Return the ServiceSpec of the last activation. Raises Error if the row is damaged."""
        if (spec := self.service) is None:
            raise self.damaged()
        return spec

    def require_process(self) -> ProcessSpec:
        """Return the ProcessSpec of the last activation. Raises Error if the row is damaged."""
        if (spec := self.process) is None:
            raise self.damaged()
        return spec

    def require_own(self) -> None:
        """Raise Conflict if the service is an attachment, whose process niso does not start."""
        if self.is_attachment:
            reason = f"{self.name!r} is an attachment: niso does not run its process"
            raise Conflict(reason, "use the engine that started it")

    def damaged(self) -> Error:
        message = f"service {self.name!r}: its record in the store is damaged"
        return Error(message, f"{self.activation_command} records it again; it can also be removed")


def service_row(row: tuple[object, ...]) -> ServiceRow:
    """Convert a row of the table ``service``, as SQLite returns it, to a `ServiceRow`."""
    fields = ServiceRow(*row[: len(ServiceRow._fields)])  # type: ignore[arg-type]
    package, copy = fields.package, f"/packages/{fields.name}/{fields.fingerprint}"
    if package.endswith(copy):
        package = f"{paths.state_dir()}{copy}"  # the state folder may have been moved
    return fields._replace(
        package=package,
        active=bool(fields.active),
        networks=tuple(decoded(str(fields.networks))),
        enabled=bool(fields.enabled),
    )


class Intent(NamedTuple):
    """A recorded change in progress. After a crash, the next command undoes or completes it."""

    service: str
    action: str
    """activate, deactivate, stop, remove, restart or ports. The action stop deactivates the service
    and keeps the ports that `niso port-forward` added."""
    undo: str
    """The rows of the service before the change as JSON: {table: [{column: value}, ...]}. A blob is
    {"hex": ...}. The key "volumes" lists the volumes of `created`. For the action ports, the JSON
    is {"moved": [{field of Port: value}, ...], "networks": [...]}."""

    @property
    def before(self) -> ServiceRow | None:
        """Return the service's row from before the change, or None if there was no row."""
        saved = decoded(self.undo).get("service")
        return service_row(tuple(saved[0][name] for name in ServiceRow._fields)) if saved else None

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in decoded(self.undo).get("host_name", ())]

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows that the service had before the change, as {table: rows}."""
        return {key: rows for key, rows in decoded(self.undo).items() if key != "volumes"}

    @property
    def created(self) -> list[tuple[str, str]]:
        """Return (service, volume) of each named volume that the change may have created."""
        return [(service, name) for service, name in decoded(self.undo).get("volumes", ())]


class ServiceRows(Rows):
    """Database queries for changes in progress, stacks, network modes and leases."""

    # --- changes in progress ----------------------------------------------------------------------

    def intents(self) -> list[Intent]:
        """Return all changes in progress, the oldest first."""
        rows = self._run("SELECT service, action, undo FROM intent ORDER BY created_at")
        return [Intent(*row) for row in rows]

    def intent(self, service: str) -> Intent | None:
        query = "SELECT service, action, undo FROM intent WHERE service=?"
        return next((Intent(*row) for row in self._run(query, service)), None)

    def begin_intent(
        self, service: str, action: str, now: float, created: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Record that a change of a service begins, with all present rows of the service for an
        undo. ``created`` has (service, volume) of each named volume that the change may create.
        """
        undo = self.rows(service) | ({"volumes": [*created]} if created else {})
        self._put("intent", service, action, encoded(undo), now)

    def end_intent(self, service: str) -> None:
        self._run("DELETE FROM intent WHERE service=?", service)

    def is_as_before(self, intent: Intent) -> bool:
        """Return whether a change in progress has so far left the service's rows unchanged."""
        return intent.rows == self.rows(intent.service)

    def rows(self, service: str) -> dict[str, list[dict[str, object]]]:
        """Return all rows of a service in a form for JSON: {table: [{column: value}, ...]}."""
        rows = {}
        for table in ROW_TABLES:
            key = "name" if table == "service" else "service"
            cursor = self._run(f"SELECT * FROM {table} WHERE {key}=?", service)
            columns = [column[0] for column in cursor.description]
            rows[table] = [
                {
                    column: {"hex": v.hex()} if isinstance(v, bytes) else v
                    for column, v in zip(columns, row, strict=True)
                }
                for row in cursor
            ]
        return rows

    def has_rows(self, table: str, service: str, rows: Collection[tuple[object, ...]]) -> bool:
        if not rows:
            return True
        return set(rows) <= set(self._run(f"SELECT * FROM {table} WHERE service=?", service))

    # --- stacks -----------------------------------------------------------------------------------

    def stack_of(self, service: str) -> str | None:
        return self._text("SELECT stack FROM stack_member WHERE service=?", service)

    def stack_members(self, stack: str) -> list[str]:
        return self._column(
            "SELECT service FROM stack_member WHERE stack=? ORDER BY service", stack
        )

    def stack_files(self, stack: str) -> list[str]:
        """Return the paths of the stack.toml files from which a stack's services were recorded."""
        return self._column(
            "SELECT DISTINCT file FROM stack_member WHERE stack=? AND file!='' ORDER BY file", stack
        )

    def stacks(self) -> list[str]:
        return self._column("SELECT DISTINCT stack FROM stack_member ORDER BY stack")

    def join_stack(self, service: str, stack: str, file: str) -> None:
        """Record that a service belongs to a stack, and no longer to any other stack. ``file`` is
        the stack.toml that declares the service.
        """
        self._put("stack_member", service, stack, file)

    def leave_stack(self, service: str) -> None:
        self._run("DELETE FROM stack_member WHERE service=?", service)

    # --- network modes ----------------------------------------------------------------------------

    def home(self, service: str) -> str:
        """Return the service whose network namespace a service uses, which may be itself."""
        return self._column(f"SELECT {_PROVIDER}", service)[0] or service

    def inactive_services(self) -> list[tuple[str, str, str]]:
        """Return (name, network mode, addresses) for each inactive service, sorted by name.

        The reserved addresses of a service are separated by spaces.
        """
        return self._run(
            "SELECT name, mode, coalesce((SELECT group_concat(l.address, ' ') FROM (SELECT * FROM"
            " lease WHERE service=name ORDER BY network, family) l), '')"
            " FROM service WHERE active=0 ORDER BY name"
        ).fetchall()

    def sharers(self, provider: str) -> list[str]:
        """Return the active services that share the network namespace of ``provider``, sorted."""
        return self._column(
            "SELECT name FROM service WHERE provider=? AND active=1 ORDER BY name", provider
        )

    def held_sharers(self, provider: str, but: frozenset[str] = frozenset()) -> list[str]:
        """Return the services that share the network namespace of ``provider``, sorted.

        Services that would share the namespace again after an undo of their change in progress are
        included, unless they are in ``but``.
        """
        sharers = set(self.sharers(provider))
        if other_intents(self._db, but):
            rows = self._run(
                "SELECT service FROM intent WHERE json_extract(undo, '$.service[0].provider')=?"
                " AND json_extract(undo, '$.service[0].active')=1",
                provider,
            )
            sharers.update(row[0] for row in rows if row[0] not in but)
        return sorted(sharers)

    def with_companions(self, services: Iterable[str]) -> tuple[str, ...]:
        """Return the given services and all active services in their network namespaces."""
        names = set(services)
        homes = {self.home(name) for name in names}
        sharers = {sharer for home in homes for sharer in self.sharers(home)}
        return tuple(sorted(names | homes | sharers))

    def ports_there(self, service: str) -> list[PortMapping]:
        """Return the ports of a service, then those of active services that share its namespace."""
        rows = self._run(
            f"SELECT {PORT_COLUMNS} FROM port JOIN service s ON s.name=port.service"
            " WHERE s.name=? OR (s.provider=? AND s.active=1) ORDER BY s.name!=?, s.name, position",
            *(service, service, service),
        )
        return [PortMapping(*row) for row in rows]

    def addresses(self, service: str) -> list[tuple[str, str]]:
        """Return (network, address) for each address of a service, in the order of its networks.

        A service in the network namespace of another service has that service's addresses.
        """
        return self._run(
            "SELECT e.network, l.address FROM endpoint e"
            " JOIN lease l ON l.service=e.service AND l.network=e.network"
            f" WHERE e.service={_PROVIDER} ORDER BY e.position, l.family",
            service,
        ).fetchall()

    def port_families(self, service: str) -> tuple[int, ...]:
        """Return the address families (4, 6) of the network on which a service publishes ports."""
        return tuple(
            self._column(
                "SELECT family FROM subnet s JOIN endpoint e ON e.network=s.network"
                f" WHERE e.service={_PROVIDER} AND {PRIMARY} ORDER BY family",
                service,
            )
        )

    # --- leases -----------------------------------------------------------------------------------

    def leases(self, network: str, family: int) -> list[tuple[str, str, bool]]:
        """Return (address, service, is active) for a network's reserved addresses, sorted."""
        rows = self._run(
            "SELECT address, service, active FROM lease JOIN service s ON s.name=lease.service"
            " WHERE network=? AND family=? ORDER BY number",
            *(network, family),
        )
        return [(row[0], row[1], bool(row[2])) for row in rows]

    def leases_of(self, services: Collection[str]) -> set[tuple[str, str]]:
        """Return (service, address) for leases of services, and leases that an undo restores."""
        among = f"service IN ({marks(services)})"
        rows = self._run(
            f"SELECT service, address FROM lease WHERE {among}"
            " UNION SELECT service, json_extract(value, '$.address')"
            f" FROM intent, json_each(undo, '$.lease') WHERE {among}",
            *services,
            *services,
        )
        return set(rows)

    def lease_of(self, service: str, network: str, family: int) -> tuple[str, bool] | None:
        """Return (address, whether it is static) of a service on a network, for an IP version.
        Returns None if no address is reserved.
        """
        row = self._run(
            "SELECT address, static FROM lease WHERE service=? AND network=? AND family=?",
            *(service, network, family),
        ).fetchone()
        return (row[0], bool(row[1])) if row else None

    def lease_holder(self, address: str) -> str | None:
        """Return the service for which an address is reserved, or would be reserved after an undo.
        Returns None if there is no such service.
        """
        return self._text(
            "SELECT service FROM lease WHERE address=?"
            " UNION ALL SELECT service FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$.address')=?",
            *(address, address),
        )

    def endpoints_like(self, prefix: str) -> list[tuple[str, str, int]]:
        """Return (service, network, generation) of services whose names have this prefix.

        Endpoints of inactive services are included, because the kernel may still be deleting their
        interfaces. Endpoints that an undo would restore are included too.
        """
        return self._run(
            "SELECT e.service, e.network, s.generation FROM endpoint e"
            " JOIN service s ON s.name=e.service WHERE e.service GLOB ?"
            " UNION SELECT i.service, json_extract(value, '$.network'),"
            " json_extract(undo, '$.service[0].generation')"
            " FROM intent i, json_each(undo, '$.endpoint') WHERE i.service GLOB ?",
            *(f"{prefix}*", f"{prefix}*"),
        ).fetchall()

    def used_numbers(
        self, network: str, family: int, released: Iterable[int] = ()
    ) -> Iterator[int]:
        """Yield the offsets of reserved addresses in a network's subnet, ascending. The offsets
        ``released``, and offsets that an undo would reserve again, count as reserved.
        """
        held = self._column(
            "SELECT unhex(json_extract(value, '$.number.hex'))"
            " FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$.network')=? AND json_extract(value, '$.family')=?",
            *(network, family),
        )
        rows = self._run(
            "SELECT number FROM lease WHERE network=? AND family=? ORDER BY number", network, family
        )
        leased = (int.from_bytes(row[0]) for row in rows)
        return merge(leased, sorted({*map(int.from_bytes, held), *released}))

    def released(self, network: str, family: int) -> list[int]:
        """Return the offsets of free addresses that attachments have released, the oldest first."""
        query = f"SELECT number FROM released r WHERE network=? AND family=? AND {_IS_FREE}"
        rows = self._column(f"{query} ORDER BY released_at, number", network, family)
        return [int.from_bytes(number) for number in rows]

    def released_by(self, owner: str, given: str, network: str, family: int) -> int | None:
        """Return the offset in its subnet of the address that an attachment had before it ended.
        Returns None without such an address, or if the address is in use again. ``owner`` and
        ``given`` (the owner's name for the attachment) identify the attachment.
        """
        rows = self._column(
            "SELECT number FROM released r WHERE owner=? AND given=? AND network=? AND family=?"
            f" AND {_IS_FREE} ORDER BY released_at DESC LIMIT 1",
            *(owner, given, network, family),
        )
        return int.from_bytes(rows[0]) if rows else None

    def attachment_key(self, service: str) -> tuple[str, str] | None:
        """Return (owner, the owner's name for the attachment), or None if it is no attachment."""
        query = "SELECT owner, given FROM attached WHERE service=?"
        return next(iter(self._run(query, service)), None)

    def add_lease(
        self, service: str, network: str, family: int, number: int, address: str, static: bool
    ) -> None:
        """Reserve an address for a service. ``number`` is the address's offset in its subnet."""
        self._run(
            "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)",
            *(network, family, number.to_bytes(16), address, service, int(static)),
        )

    def drop_lease(self, service: str, network: str, family: int) -> None:
        self._run(
            "DELETE FROM lease WHERE service=? AND network=? AND family=?", service, network, family
        )


# --- JSON of ServiceSpec and ProcessSpec ----------------------------------------------------------


def encode_service(spec: ServiceSpec) -> str:
    """Encode a ServiceSpec as JSON with all keys, because other versions have other defaults."""
    return to_json(convert.plain(spec), compact=True)


def encode_process(spec: ProcessSpec) -> str:
    """Encode a ProcessSpec as ASCII JSON, because resolv.conf need not be UTF-8."""
    return to_json(convert.plain(spec))


def service(text: str) -> ServiceSpec | None:
    """Decode the JSON of a ServiceSpec, or return None if it is damaged."""
    spec: ServiceSpec | None = _decode(text, ServiceSpec)
    return spec


# a command reads a row many times; one of thousands of services must not keep all in memory
@lru_cache(maxsize=512)
def _decode(text: str, table: type[Any]) -> Any:
    try:
        data = from_json(text)
        if table is ServiceSpec and "\\u" in text:
            # json accepts lone surrogates, which are not valid text
            to_json(data, compact=True).encode()
        return convert.convert(data, table)
    except (ValueError, RecursionError):
        return None


def forget_manifests() -> None:
    """Free the memory of decoded manifests, 8 KiB for each. Loops over all services call it."""
    _decode.cache_clear()


# --- assigning addresses to services --------------------------------------------------------------


KEY = "network.ip"


def lease(
    store: Store,
    service: str,
    network_name: str,
    statics: Sequence[str],
    beside: Container[str] = (),
    kept: tuple[str, str] | None = None,
    prefers: Sequence[str] = (),
) -> None:
    """Reserve an address for a service in each subnet of a network. Call it in a transaction.

    The address is the static address if there is one, otherwise the address that the service
    already has, otherwise the lowest free address. On a network that spans hosts, it is the address
    that the cluster has reserved for the service (its claim). ``statics`` has at most one address
    of each IP version. ``beside`` are the services that the same command activates. ``kept`` is
    (owner, owner's name) of an attachment, which gets its previous address again. Addresses in
    ``prefers`` are used if they are free. An address that an attachment has released is used only
    if no other address is free, and the address that was released first is used first. Raises
    InvalidInput if a static address is unusable, and Conflict if it is taken or the network is
    full.
    """
    network = store.require_network(network_name)
    wanted = {family_of(address): address for address in statics}
    for family in wanted.keys() - {subnet.family for subnet in network.subnets}:
        reason = f"network {network_name!r} has no IPv{family} subnet for {wanted[family]}"
        create = f"niso net create {network_name} --subnet CIDR"
        hint = f"remove it from network.ip, or create the network first: {create}"
        raise InvalidInput(reason, hint, KEY)
    claimed = store.claimed(service, network_name) if network.span is not None else ()
    for subnet in network.subnets:
        net = prefix(subnet.cidr)
        gateway = net.offset(subnet.gateway)
        static = wanted.get(subnet.family)
        if static is not None:
            if static in claimed:
                store.across.drop_stale_lease(service, static)
            number = _static_number(store, service, network_name, subnet, static, beside)
            if network.span is not None and static not in claimed:
                raise _unclaimed(service, network_name, subnet.cidr)
            store.drop_lease(service, network_name, subnet.family)
            store.add_lease(service, network_name, subnet.family, number, static, static=True)
        elif network.span is not None:
            _lease_claimed(store, service, network_name, subnet, claimed)
        elif store.lease_of(service, network_name, subnet.family) is None:
            where = network_name, subnet.family
            free = None if kept is None else store.released_by(*kept, *where)
            free = _preferred(store, prefers, net, gateway) if free is None else free
            if free is None:
                released = store.released(*where)
                free = records.first_free(net, gateway, store.used_numbers(*where, released))
                free = next(iter(released), None) if free is None else free
            if free is None:
                raise _full(store, network_name, subnet.family, subnet.cidr)
            address = net.address_at(free)
            store.add_lease(service, network_name, subnet.family, free, address, static=False)


def _preferred(store: Store, prefers: Sequence[str], net: Prefix, gateway: int) -> int | None:
    for address in prefers:
        if net.contains(address) and store.lease_holder(address) is None:
            number = net.offset(address)
            if not records.refusal(net, gateway, number):
                return number
    return None


def is_leased(store: Store, service: str, network: NetworkRecord, statics: Sequence[str]) -> bool:
    """Return whether a service already has all addresses that `lease` would reserve on a network.
    Also returns True if the network spans hosts and this host has no claim for the service.
    """
    spans = network.span is not None
    claimed = store.claimed(service, network.name) if spans else ()
    if spans and not claimed:
        return True
    wanted = {family_of(address): address for address in statics}
    for subnet in network.subnets:
        have = store.lease_of(service, network.name, subnet.family)
        static = wanted.pop(subnet.family, None)
        if have is None or (static is not None and have != (static, True)):
            return False
        if spans and have[0] not in claimed:
            return False
    return not wanted


def _lease_claimed(
    store: Store, service: str, network: str, subnet: SubnetRecord, claimed: Sequence[str]
) -> None:
    """Record a lease of the address that the cluster reserved for a service. Raises Conflict."""
    net = prefix(subnet.cidr)
    address = next((text for text in claimed if net.contains(text)), None)
    if address is None:
        raise _unclaimed(service, network, subnet.cidr)
    have = store.lease_of(service, network, subnet.family)
    if have is None or have[0] != address:
        store.drop_lease(service, network, subnet.family)
        number = net.offset(address)
        store.across.drop_stale_lease(service, address)
        holder = store.lease_holder(address)
        if holder is not None and holder != service:
            reason = f"{address} is still used by {holder!r}, which another host has taken over"
            raise Conflict(reason, "the agent of this host ends it: niso cluster status")
        store.add_lease(service, network, subnet.family, number, address, static=False)


def _unclaimed(service: str, network: str, cidr: str) -> Conflict:
    return Conflict(
        f"network {network!r} spans hosts, and {service!r} has claimed no address of {cidr}",
        "niso cluster status shows whether this host is in the cluster",
    )


def _static_number(
    store: Store,
    service: str,
    network: str,
    subnet: SubnetRecord,
    wanted: str,
    beside: Container[str],
) -> int:
    """Return the offset of a static address in its subnet. Raises InvalidInput if no service can
    have the address, and Conflict if it is taken.
    """
    net = prefix(subnet.cidr)
    if not net.contains(wanted):
        where = f"{subnet.cidr}, the subnet of network {network!r}"
        raise InvalidInput(f"{wanted} is not in {where}", None, KEY)
    number = net.offset(wanted)
    reason = records.refusal(net, net.offset(subnet.gateway), number)
    if reason:
        raise InvalidInput(f"{wanted} cannot be a service's address: {reason}", None, KEY)
    holder = store.lease_holder(wanted)
    if holder is not None and holder != service:
        hint = f"choose another; {holder} keeps it until it is removed"
        if holder in beside:
            hint = f"{holder} is part of this command: choose another address for one of the two"
        raise Conflict(f"{wanted} is leased to service {holder!r}", hint, KEY)
    return number


def _full(store: Store, network: str, family: int, cidr: str) -> Conflict:
    idle = [service for _, service, active in store.leases(network, family) if not active]
    shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
    hint = "create a larger network"
    if idle:
        hint += f"; inactive services keep addresses until they are removed: {shown}"
    return Conflict(f"network {network!r} ({cidr}) has no free address", hint)


# --- instances of services with a service address, and deploys ------------------------------------

# The row of such a service has mode front: it owns names, service address and ports, and runs no
# process. Its instances are ordinary services, called NAME.NUMBER.

STARTING, SERVING, LEAVING, OUT, KEPT = "starting", "serving", "leaving", "out", "kept"
"""The states of an instance. Only an instance in the state ``serving`` gets new connections to the
service address.

``starting``: the instance is not yet healthy. ``leaving``: another version has replaced it, and it
finishes its connections. ``out``: it is not healthy, or its process has ended. ``kept``: a failed
version has replaced it, and it runs until the next deploy (``deploy.on_failure``)."""
STATES = (STARTING, SERVING, LEAVING, OUT, KEPT)
KEPT_DEPLOYS, KEPT_MANIFESTS = 50, 10
KEPT_PACKAGES, KEPT_PLAIN_PACKAGES = 3, 2
"""How many package copies are kept: of a service with a service address, and of any other."""


class Instance(NamedTuple):
    """One instance of a service with a service address."""

    service: str  # NAME.NUMBER
    front: str  # the service that it is an instance of
    number: int
    ordinal: int  # 1 to the number of replicas; decides which slots the instance gets
    state: str
    version: int
    since: float = 0.0  # when it came into this state, in seconds since 1970; set by the store


class Deployed(NamedTuple):
    """The record of what one command did to a service, such as a deploy, a restart or a stop."""

    front: str  # the service
    version: int  # the generation; with a service address, the version of its instances
    at: float  # seconds since 1970
    took_s: float
    outcome: str  # "done", "failed", "taken back" or "stopped"
    why: str
    manifest: str  # JSON of the ServiceSpec; "" for all but the last KEPT_MANIFESTS
    package: str  # path of the package copy
    manifest_path: str
    package_version: str = ""  # package.version in the manifest
    login_uid: int | None = None
    sudo_user: str = ""
    command: str = ""


def front_of(service: str) -> str:
    """Return the service of an instance (NAME.NUMBER). Any other name is returned unchanged."""
    front, _, number = service.rpartition(".")
    return front if number.isdigit() and front else service


class Instances(Rows):
    """Database queries for instances and deploys."""

    def get(self, service: str) -> Instance | None:
        """Return the instance ``service``, a name such as ``web.2``, or None if there is none."""
        row = self._db.execute("SELECT * FROM instance WHERE service=?", (service,)).fetchone()
        return Instance(*row) if row else None

    def all(self) -> list[Instance]:
        """Return the instances of all services, including inactive instances."""
        rows = self._db.execute("SELECT * FROM instance ORDER BY front, number")
        return [Instance(*row) for row in rows]

    def of(self, front: str, *states: str) -> list[Instance]:
        """Return the instances of a service, in the order of their numbers. If ``states`` are
        given, only active instances in one of these states are returned.
        """
        rows = self._db.execute(
            "SELECT i.*, s.active FROM instance i JOIN service s ON s.name=i.service"
            " WHERE i.front=? ORDER BY i.number",
            (front,),
        )
        return [
            one
            for *row, active in rows
            if (one := Instance(*row)) and (not states or (active and one.state in states))
        ]

    def names(self, front: str) -> list[str]:
        """Return the names of all instances of a service, including inactive instances."""
        return [instance.service for instance in self.of(front)]

    def runners(self, services: Iterable[str]) -> list[str]:
        """Return the services or instances in which a command such as `niso exec` runs.

        A service with instances is replaced by one of its serving instances, or left out if none
        serves. Other services are returned unchanged.
        """
        result = []
        for service in services:
            if known := self.of(service):
                result += [one.service for one in self.of(service, SERVING)[:1]]
            if not known:
                result.append(service)
        return result

    def running(self, service: str) -> list[str]:
        """Return a service's active instances, or the service itself if it has no instances."""
        known = self.of(service)
        return [one.service for one in self.of(service, *STATES)] if known else [service]

    def in_service(self, front: str) -> tuple[int, int]:
        """Return (newest version, number) of a service's active instances in the state ``serving``
        or ``out``, or (0, 0) if there are none.
        """
        serving = self.of(front, SERVING, OUT)
        return max((one.version for one in serving), default=0), len(serving)

    def with_instances(self, services: Iterable[str]) -> list[str]:
        """Return services, each followed by its instances."""
        return [one for service in services for one in (service, *self.names(service))]

    def active(self, *states: str) -> list[Instance]:
        """Return the instances of all services that are active and in one of these states."""
        rows = self._db.execute(
            "SELECT i.* FROM instance i CROSS JOIN service s ON s.name=i.service AND s.active=1"
            f" WHERE i.state IN ({', '.join('?' for _ in states)}) ORDER BY i.front, i.number",
            states,
        )
        return [Instance(*row) for row in rows]

    def deploys(self, front: str | None) -> list[Deployed]:
        """Return the recorded deploys of a service, or of all services (None), oldest first."""
        rows = self._db.execute(
            "SELECT * FROM deploy WHERE front=?1 OR ?1 IS NULL ORDER BY front, version", (front,)
        )
        return [Deployed(*row) for row in rows]

    def packages(self, front: str) -> list[str]:
        """Return the paths of the package copies of a service's last successful deploys, newest
        first: at most three, or two if the service has no service address.
        """
        done = [deploy.package for deploy in self.deploys(front) if deploy.outcome == "done"]
        kept = KEPT_PACKAGES if self.names(front) else KEPT_PLAIN_PACKAGES
        return list(dict.fromkeys(reversed(done)))[:kept]

    def next_version(self, front: str) -> int:
        """Return the version number for the next deploy of a service."""
        rows = self._db.execute(
            "SELECT MAX(version) FROM (SELECT version FROM deploy WHERE front=?1"
            " UNION ALL SELECT version FROM instance WHERE front=?1)",
            (front,),
        )
        return int(rows.fetchone()[0] or 0) + 1

    def of_two_versions(self) -> list[str]:
        """Return services with active instances of two versions, as during a deploy.

        Services are left out if a deploy to the newer version is recorded.
        """
        rows = self._db.execute(
            "SELECT i.front FROM instance i CROSS JOIN service s ON s.name=i.service AND s.active=1"
            " WHERE i.state IN (?, ?) GROUP BY i.front HAVING COUNT(DISTINCT i.version) > 1"
            " AND MAX(i.version) >"
            " COALESCE((SELECT MAX(version) FROM deploy d WHERE d.front=i.front), 0)",
            (SERVING, OUT),
        )
        return [row[0] for row in rows]

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, instance: Instance) -> None:
        """Insert or replace an instance. The row of the instance's own service must exist."""
        before = self.get(instance.service)
        since = time.time() if before is None or before.state != instance.state else before.since
        row = instance._replace(since=since)
        self._db.execute("INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute(
            "INSERT INTO published SELECT e.service, e.network, 0 FROM endpoint e"
            " WHERE e.service=? ORDER BY e.position LIMIT 1"
            " ON CONFLICT (service) DO UPDATE SET network=excluded.network",
            (instance.service,),
        )

    def set_state(self, services: Iterable[str], state: str) -> None:
        """Set the recorded state of all instances in ``services`` to ``state``."""
        self._db.executemany(
            "UPDATE instance SET state=?1, since=?2 WHERE service=?3 AND state<>?1",
            [(state, time.time(), name) for name in services],
        )

    def put_deploy(self, deploy: Deployed) -> None:
        """Insert or replace the record of a deploy. Older records than the last 50 are deleted. If
        ``deploy`` has no command, this process's user and command line are recorded.
        """
        by = _caller() if not deploy.command else deploy[-3:]
        row = (*deploy[:-4], _package_version(deploy.manifest) or deploy.package_version, *by)
        self._db.execute(f"INSERT OR REPLACE INTO deploy VALUES ({marks(row)})", row)
        older = (deploy.front, deploy.version - KEPT_MANIFESTS)
        self._db.execute("UPDATE deploy SET manifest='' WHERE front=? AND version<=?", older)
        self._db.execute(
            "DELETE FROM deploy WHERE front=? AND version<=?",
            (deploy.front, deploy.version - KEPT_DEPLOYS),
        )


def _package_version(manifest: str) -> str:
    spec = service(manifest) if manifest else None
    package = spec.manifest.get("package") if spec is not None else None
    return str(package.get("version", "")) if isinstance(package, dict) else ""


def _caller() -> tuple[int | None, str, str]:
    """Return who runs this process: (uid of the login, caller of sudo, command line).

    The uid is None without a login; su(1) and sudo(8) do not change it. The caller is "" without
    sudo. See proc_pid_loginuid(5) and sudo(8).
    """
    own = (
        ["niso", *paths.command_line]
        if paths.command_line
        else [os.path.basename(sys.argv[0]), *sys.argv[1:]]
    )
    command = " ".join(own)
    by = os.environ.get(BY, "")
    if by:
        return None, "", _shown(f"{by}: {command}")
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            uid: int | None = int(file.read())
    except (OSError, ValueError):  # a kernel without auditing
        uid = None
    sudo_user = os.environ.get("SUDO_USER", "")
    return None if uid == _UNSET else uid, _shown(sudo_user), _shown(command)


def _shown(text: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= _MOST else f"{clean[: _MOST - 3]}..."
