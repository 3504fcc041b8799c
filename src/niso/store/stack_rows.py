"""Which services belong to which stack. A service belongs to one at most, as long as it is known or until it leaves the file."""

from __future__ import annotations

import sqlite3


class StackRows:
    """The part of the store that is about stacks."""

    _db: sqlite3.Connection

    def stack_of(self, service: str) -> str | None:
        """The stack that a service belongs to."""
        row = self._db.execute(
            "SELECT stack FROM stack_member WHERE service=?", (service,)
        ).fetchone()
        return str(row[0]) if row else None

    def stack_members(self, stack: str) -> list[str]:
        """The known services of a stack, by name."""
        rows = self._db.execute(
            "SELECT service FROM stack_member WHERE stack=? ORDER BY service", (stack,)
        )
        return [row[0] for row in rows]

    def stacks(self) -> list[str]:
        """The names of all stacks that a known service belongs to."""
        return [
            row[0]
            for row in self._db.execute("SELECT DISTINCT stack FROM stack_member ORDER BY stack")
        ]

    # --- writing; inside a transaction ---------------------------------------------------------------------------

    def join_stack(self, service: str, stack: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO stack_member VALUES (?, ?)", (service, stack))

    def leave_stack(self, service: str) -> None:
        self._db.execute("DELETE FROM stack_member WHERE service=?", (service,))
