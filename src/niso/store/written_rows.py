"""The rows of a store of version 3 or older as those of version 4: manifests parsed, and intents by the names of columns.

There a manifest was kept with the texts of its keys, and an intent held rows as lists.
"""

from __future__ import annotations

import json
import sqlite3

from niso.base.errors import InvalidInput
from niso.base.lite_typing import TYPE_CHECKING
from niso.manifest import build
from niso.plan.records import Port
from niso.store import specs

if TYPE_CHECKING:
    from typing import Any


def add_functions(connection: sqlite3.Connection) -> None:
    """Have the SQL of the migration know ``parsed_manifest`` and ``named_undo``. The tables have all columns of version 3."""
    columns: dict[str, list[tuple[str, object]]] = {}  # table: (name, default) of each column
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'"):
        columns[table] = [
            (name, connection.execute(f"SELECT {default}").fetchone()[0] if default else None)
            for _, name, _, _, default, _ in connection.execute(f"PRAGMA table_info({table})")
        ]
    connection.create_function("parsed_manifest", 1, parsed_manifest, deterministic=True)
    connection.create_function("named_undo", 2, lambda *row: _named_undo(columns, *row))


def parsed_manifest(text: str) -> str:
    """The manifest as the store keeps it now. One that is damaged stays as it is: `niso net check` names it."""
    try:
        new = specs.encode_service(build.of_written(text))
        new.encode()  # json also reads halves of surrogate pairs, which are no text
        return new
    except (ValueError, RecursionError, InvalidInput):
        return text


def _named_undo(columns: dict[str, list[tuple[str, object]]], action: str, text: str) -> str:
    """What an intent notes, each row by its columns; what the version of the row did not have is its default."""
    undo: dict[str, list[Any]] = json.loads(text)
    if action == "ports":
        return json.dumps({"moved": [Port(*port)._asdict() for port in undo["moved"]]})
    named = {}
    for table, rows in undo.items():
        named[table] = [
            {
                name: row[i] if i < len(row) else default
                for i, (name, default) in enumerate(columns[table])
            }
            for row in rows
        ]
    for row in named.get("service", ()):
        row["manifest"] = parsed_manifest(str(row["manifest"]))
    return json.dumps(named)
