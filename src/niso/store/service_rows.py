"""Rows of services: the service itself, its changes in progress, and the stack it belongs to.

A service belongs to at most one stack, until it is removed or leaves the stack's file.
"""

from __future__ import annotations

import sqlite3

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.store.sqlite import decoded, encoded

if TYPE_CHECKING:
    from niso.plan.process_spec import ProcessSpec
    from niso.plan.service_spec import ServiceSpec

ROW_TABLES = (
    "service",
    "host_name",
    "endpoint",
    "lease",
    "port",
    "published",
    "policy",
    "policy_peer",
    "policed",
    "stack_member",
)
"""The tables with rows of a service, parents first.

The column with the service's name is ``name`` in the first table, ``service`` in the others.
"""


class ServiceRow(NamedTuple):
    """A known service; the fields are the columns of its table."""

    name: str
    manifest_path: str
    manifest: str  # JSON of `service`
    rootfs: str | None
    package: str
    fingerprint: str
    uid: int
    active: bool
    generation: int
    networks: tuple[str, ...]
    spec: str  # JSON of `process`
    created_at: float  # seconds since 1970
    activated_at: float | None
    mode: str = "bridge"  # or host, none, share
    provider: str | None = None  # with mode share: the service whose namespace it joins
    enabled: bool = False  # activated at boot

    @property
    def service(self) -> ServiceSpec | None:
        """Return the ServiceSpec of the last activation; None if the row is damaged."""
        from niso.store import specs  # not loaded by commands that only list

        return specs.service(self.manifest)

    @property
    def process(self) -> ProcessSpec | None:
        """Return the ProcessSpec of the last activation; None if the row is damaged."""
        from niso.store import specs

        return specs.process(self.spec)

    def require_service(self) -> ServiceSpec:
        """Return `service`. Raises Error if the row is damaged."""
        if (spec := self.service) is None:
            raise self.damaged()
        return spec

    def require_process(self) -> ProcessSpec:
        """Return `process`. Raises Error if the row is damaged."""
        if (spec := self.process) is None:
            raise self.damaged()
        return spec

    def damaged(self) -> Error:
        """Return the error for a damaged row."""
        message = f"service {self.name!r}: its record in the store is damaged"
        return Error(message, f"niso activate {self.manifest_path}, or niso remove {self.name}")


def service_row(row: tuple[object, ...]) -> ServiceRow:
    """Return a row of the table as a ServiceRow."""
    fields = ServiceRow(*row)  # type: ignore[arg-type]
    return fields._replace(
        active=bool(fields.active),
        networks=tuple(decoded(str(fields.networks))),
        enabled=bool(fields.enabled),
    )


class Intent(NamedTuple):
    """A change in progress: what to undo or finish if its process dies."""

    service: str
    action: str
    """activate, deactivate, stop (deactivate and keep the forwards), remove, restart or ports."""
    undo: str
    """JSON: {table: [{column: value}, ...]}, a blob as {"hex": ...}.

    For the action ports it is {"moved": [{field of Port: value}, ...]}.
    """

    @property
    def before(self) -> ServiceRow | None:
        """Return the service's row before the change; None for a new service or action ports."""
        saved = decoded(self.undo).get("service")
        return service_row(tuple(saved[0][name] for name in ServiceRow._fields)) if saved else None

    @property
    def names(self) -> list[str]:
        """Return the names that the service had before the change."""
        return [row["name"] for row in decoded(self.undo).get("host_name", ())]


class IntentRows:
    """The queries of the store for changes in progress."""

    _db: sqlite3.Connection

    def intents(self) -> list[Intent]:
        """Return all intents, oldest first."""
        rows = self._db.execute("SELECT service, action, undo FROM intent ORDER BY created_at")
        return [Intent(*row) for row in rows]

    def intent(self, service: str) -> Intent | None:
        """Return the intent of a service, or None."""
        row = self._db.execute(
            "SELECT service, action, undo FROM intent WHERE service=?", (service,)
        ).fetchone()
        return Intent(*row) if row else None

    def begin_intent(self, service: str, action: str, now: float) -> None:
        """Record a service's rows before a change, so that an interrupted one can be undone.

        ``now`` is in seconds since 1970.
        """
        undo = encoded(self.rows(service))
        self._db.execute(
            "INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?)", (service, action, undo, now)
        )

    def end_intent(self, service: str) -> None:
        """Delete the intent of a service; no-op if there is none."""
        self._db.execute("DELETE FROM intent WHERE service=?", (service,))

    def is_as_before(self, intent: Intent) -> bool:
        """Return whether the service's rows are those that the intent recorded."""
        return bool(decoded(intent.undo) == self.rows(intent.service))

    def rows(self, service: str) -> dict[str, list[dict[str, object]]]:
        """Return all rows of a service by table, as {column: value} for JSON."""
        rows = {}
        for table in ROW_TABLES:
            key = "name" if table == "service" else "service"
            cursor = self._db.execute(f"SELECT * FROM {table} WHERE {key}=?", (service,))
            columns = [column[0] for column in cursor.description]
            rows[table] = [
                {
                    column: {"hex": v.hex()} if isinstance(v, bytes) else v
                    for column, v in zip(columns, row, strict=True)
                }
                for row in cursor
            ]
        return rows


class StackRows:
    """The queries of the store for stacks."""

    _db: sqlite3.Connection

    def stack_of(self, service: str) -> str | None:
        """Return the stack that a service belongs to, or None."""
        row = self._db.execute(
            "SELECT stack FROM stack_member WHERE service=?", (service,)
        ).fetchone()
        return str(row[0]) if row else None

    def stack_members(self, stack: str) -> list[str]:
        """Return the known services of a stack, sorted."""
        rows = self._db.execute(
            "SELECT service FROM stack_member WHERE stack=? ORDER BY service", (stack,)
        )
        return [row[0] for row in rows]

    def stack_files(self, stack: str) -> list[str]:
        """Return the paths of the stack.toml files that a stack's services came from.

        Services of stores before version 5 have none.
        """
        rows = self._db.execute(
            "SELECT DISTINCT file FROM stack_member WHERE stack=? AND file!='' ORDER BY file",
            (stack,),
        )
        return [row[0] for row in rows]

    def stacks(self) -> list[str]:
        """Return the names of all stacks with a known service, sorted."""
        return [
            row[0]
            for row in self._db.execute("SELECT DISTINCT stack FROM stack_member ORDER BY stack")
        ]

    # --- writing; inside a transaction ------------------------------------------------------------

    def join_stack(self, service: str, stack: str, file: str) -> None:
        """Record that a service belongs to the stack of this stack.toml, and to no other one."""
        self._db.execute(
            "INSERT OR REPLACE INTO stack_member VALUES (?, ?, ?)", (service, stack, file)
        )

    def leave_stack(self, service: str) -> None:
        """Record that a service belongs to no stack."""
        self._db.execute("DELETE FROM stack_member WHERE service=?", (service,))
