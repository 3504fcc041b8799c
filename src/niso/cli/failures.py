"""Errors as text or JSON on stderr; what no layer translated gets words here."""

from __future__ import annotations

import os
import sys

from niso.base.errors import Error, ErrorGroup


def explained(error: Exception) -> Error:
    """An error that no layer translated, in words."""
    from niso.api.guard import explained as known

    if isinstance(error, OSError) and error.filename is None:
        return _of_output(error) or known(error) or Error(f"system call: {error.strerror}")
    return known(error) or Error(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of niso; NISO_TRACEBACK=1 shows where it happened",
    )


def _of_output(error: OSError) -> Error | None:
    """An error of a system call that does not say of what, where it is of the output."""
    try:
        sys.stdout.flush()  # what could not be written is still there, unless it was much
        os.write(1, b"")
    except OSError as again:
        if again.errno == error.errno:
            return Error(
                f"the output cannot be written: {error.strerror}", "send it where there is room"
            )
    return None


def report(error: Error, as_json: bool) -> None:
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
