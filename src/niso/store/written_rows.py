"""Migrate the rows of a store of version 3 or older to version 4.

Older stores have a manifest as it was written, and the rows of an intent as lists. Version 4 has
the parsed manifest, and rows by column names.
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
    """Register the SQL functions ``parsed_manifest`` and ``named_undo``.

    The tables must have all columns of version 3.
    """
    columns: dict[str, list[tuple[str, object]]] = {}  # table -> (name, default) of each column
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'"):
        columns[table] = [
            (name, connection.execute(f"SELECT {default}").fetchone()[0] if default else None)
            for _, name, _, _, default, _ in connection.execute(f"PRAGMA table_info({table})")
        ]
    connection.create_function("parsed_manifest", 1, parsed_manifest, deterministic=True)
    connection.create_function("named_undo", 2, lambda *row: _named_undo(columns, *row))


def parsed_manifest(text: str) -> str:
    """Convert a manifest to the form of version 4.

    A damaged manifest is returned unchanged: `niso net check` reports it.
    """
    try:
        new = specs.encode_service(build.of_written(text))
        new.encode()  # json accepts lone surrogates, which are not valid text
        return new
    except (ValueError, RecursionError, InvalidInput):
        return text


def _named_undo(columns: dict[str, list[tuple[str, object]]], action: str, text: str) -> str:
    """Convert the undo data of an intent to rows by column names.

    Columns that the row's version did not have get their defaults.
    """
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
