"""Errors as text or JSON on stderr; what no layer translated gets words here."""

from __future__ import annotations

import os
import sys

from niso.base.errors import ErrorGroup, NisoError


def explained(error: Exception) -> NisoError:
    """An error that no layer translated, in words."""
    kind = type(error)
    if kind.__module__ == "sqlite3":
        from sqlite3 import DatabaseError, OperationalError

        from niso.store.sqlite import unusable

        if isinstance(error, OperationalError) or kind is DatabaseError:
            return unusable(error)
    if isinstance(error, OSError) and error.filename is None:
        return _unnamed(error)
    if isinstance(error, OSError):
        return NisoError(f"{error.filename}: {error.strerror}")
    return NisoError(
        f"unexpected {kind.__name__}: {error}",
        "this is a defect of niso; NISO_TRACEBACK=1 shows where it happened",
    )


def _unnamed(error: OSError) -> NisoError:
    """A system call's error that does not say of what: of the output or the current folder, where these are not as they should be."""
    try:
        sys.stdout.flush()  # what could not be written is still there, unless it was much
        os.write(1, b"")
    except OSError as again:
        if again.errno == error.errno:
            return NisoError(
                f"the output cannot be written: {error.strerror}", "send it where there is room"
            )
    try:
        os.getcwd()
    except OSError:
        return NisoError(
            "the current folder is not there any more", "cd to one that is there, and try again"
        )
    return NisoError(f"system call: {error.strerror}")


def report(error: NisoError, as_json: bool) -> None:
    from niso.cli.output import error as error_lines

    errors = error.errors if isinstance(error, ErrorGroup) else [error]
    try:
        if as_json:
            import json

            for each in errors:
                body = {"message": each.message, "hint": each.hint, "key": each.key}
                print(json.dumps({"error": body}), file=sys.stderr)
            return
        for each in errors:
            error_lines(each.message, each.hint)
    except OSError:
        pass  # nobody can be told
