"""Read an engine's input, and format errors for it."""

from __future__ import annotations

import sys

from niso.base.errors import Error, ErrorGroup, InvalidInput

_MOST_BYTES = 4 << 20
"""The most bytes that an engine may send. The annotations of a pod have at most 256 KiB."""


MALFORMED = (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError)
"""Exceptions raised by a malformed call. Nothing has changed at that point."""


def read_stdin() -> str:
    """Read stdin. Raises InvalidInput if it is too long, ValueError."""
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InvalidInput("stdin: the configuration is too long")
    return data.decode()


def one_line(error: Error) -> str:
    """Format an error on one line, with its next step."""
    if isinstance(error, ErrorGroup):
        return "; ".join(map(one_line, error.errors))
    return f"niso: {error.message}{f' ({error.hint})' if error.hint else ''}"
