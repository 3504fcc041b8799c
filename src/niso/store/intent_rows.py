"""Store intents: changes in progress, each with its service's rows before the change."""

from __future__ import annotations

import sqlite3

from niso.base.lite_typing import NamedTuple
from niso.store.service_row import ServiceRow, service_row
from niso.store.sqlite import decoded, encoded

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
