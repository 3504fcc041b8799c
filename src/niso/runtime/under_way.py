"""Share what concurrent starts of one process read from the host, while any start is in progress.

The starts of a command follow each other within milliseconds, so the results stay valid.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_lock = _thread.allocate_lock()
_starts = 0
_read: dict[object, Any] = {}
"""The results of `once`, by the function and its arguments."""
_at_end: list[Callable[[], object]] = []
"""Functions to call when no start is in progress any more."""


def begin() -> None:
    """Count a start that begins; the caller must call `end`."""
    global _starts
    with _lock:
        _starts += 1


def end() -> None:
    """Count a start that ends; after the last one in progress, drop the shared results."""
    global _starts
    with _lock:
        _starts -= 1
        if _starts:
            return
        _read.clear()
        while _at_end:
            _at_end.pop()()


def at_end(drop: Callable[[], object]) -> None:
    """Call ``drop`` when the last start in progress ends; use this inside a start."""
    with _lock:
        _at_end.append(drop)


def once[T](read: Callable[..., T], *args: object) -> T:
    """Return ``read(*args)``, cached while a start is in progress; the caller must not modify it.

    Outside of a start, calls ``read`` each time. Raises what ``read`` raises, and then caches
    nothing.
    """
    key = (read, *args)
    with _lock:
        if key in _read:
            known: T = _read[key]
            return known
    value = read(*args)
    with _lock:
        if _starts:
            _read[key] = value
    return value
