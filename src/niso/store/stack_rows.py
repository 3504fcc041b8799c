"""Store the members of stacks.

A service belongs to at most one stack, until it is removed or leaves the stack's file.
"""

from __future__ import annotations

import sqlite3


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
