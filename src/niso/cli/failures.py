"""Report errors on stderr as text or JSON."""

from __future__ import annotations

import os
import sys

from niso.base.errors import Error, ErrorGroup


def explained(error: Exception) -> Error:
    """Convert an exception that no layer has converted to an `Error`."""
    from niso.api.guard import explained as known

    if isinstance(error, OSError) and error.filename is None:
        return _of_output(error) or known(error) or Error(f"system call: {error.strerror}")
    if isinstance(error, MemoryError):
        return Error("out of memory", "free some, or raise the limit: ulimit -v")
    return known(error) or Error(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug in niso; NISO_TRACEBACK=1 shows where it happened",
    )


def _of_output(error: OSError) -> Error | None:
    """Return an `Error` if the failed system call was a write to stdout; else None."""
    try:
        sys.stdout.flush()  # fails again, except after a write larger than the buffer
        os.write(1, b"")
    except OSError as again:
        if again.errno == error.errno:
            return Error(
                f"cannot write to stdout: {error.strerror}", "redirect the output elsewhere"
            )
    return None


def report(error: Error, as_json: bool) -> None:
    """Print an error, or each error of a group, on stderr."""
    from niso.cli.output import error as error_lines

    errors = error.errors if isinstance(error, ErrorGroup) else [error]
    try:
        if as_json:
            import json

            for one in errors:
                body = {"message": one.message, "hint": one.hint, "key": one.key}
                print(json.dumps({"error": body}), file=sys.stderr)
            return
        for one in errors:
            error_lines(one.message, one.hint)
    except OSError:
        pass  # stderr is closed
