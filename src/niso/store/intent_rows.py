"""The rows of intents: changes under way, each with the rows of its service as they were before."""

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
"""The tables that hold a service, parents first; the column with its name is ``name`` in the first, else ``service``."""


class Intent(NamedTuple):
    """A change that was begun: what to do if its process is gone."""

    service: str
    action: (
        str  # activate | deactivate | stop (deactivate, and keep the forwards) | remove | restart
    )
    undo: str
    """JSON: {table: [{column: value}, ...]}, a blob as {"hex": ...}; of ports {"moved": [{field of Port: value}, ...]}."""

    @property
    def before(self) -> ServiceRow | None:
        """The row of the service before the change; None where it was not known, or the intent is no change of it."""
        saved = decoded(self.undo).get("service")
        return service_row(tuple(saved[0][name] for name in ServiceRow._fields)) if saved else None

    @property
    def names(self) -> list[str]:
        """The names that the service had before the change."""
        return [row["name"] for row in decoded(self.undo).get("host_name", ())]


class IntentRows:
    """The part of the store that is about changes under way."""

    _db: sqlite3.Connection

    def intents(self) -> list[Intent]:
        rows = self._db.execute("SELECT service, action, undo FROM intent ORDER BY created_at")
        return [Intent(*row) for row in rows]

    def intent(self, service: str) -> Intent | None:
        row = self._db.execute(
            "SELECT service, action, undo FROM intent WHERE service=?", (service,)
        ).fetchone()
        return Intent(*row) if row else None

    def begin_intent(self, service: str, action: str, now: float) -> None:
        """Note, before a change, what the service's rows are, so that whoever finds it unfinished can undo it."""
        undo = encoded(self.rows(service))
        self._db.execute(
            "INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?)", (service, action, undo, now)
        )

    def end_intent(self, service: str) -> None:
        self._db.execute("DELETE FROM intent WHERE service=?", (service,))

    def is_as_before(self, intent: Intent) -> bool:
        """Whether the service's rows are as the intent found them."""
        return bool(decoded(intent.undo) == self.rows(intent.service))

    def rows(self, service: str) -> dict[str, list[dict[str, object]]]:
        """All of a service, table by table, each row by its columns, as JSON can hold it."""
        rows = {}
        for table in ROW_TABLES:
            key = "name" if table == "service" else "service"
            found = self._db.execute(f"SELECT * FROM {table} WHERE {key}=?", (service,))
            columns = [column[0] for column in found.description]
            rows[table] = [
                {
                    column: {"hex": v.hex()} if isinstance(v, bytes) else v
                    for column, v in zip(columns, row, strict=True)
                }
                for row in found
            ]
        return rows
