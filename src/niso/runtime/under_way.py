"""Share what several starts of one process need of the host, while any of them is under way.

The starts of a command follow each other within milliseconds, so the next one need not look again.
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
"""What `once` has read, by the function and its arguments."""
_at_end: list[Callable[[], object]] = []
"""What to call when no start is under way any more."""


def begin() -> None:
    """Announce a start; the caller must call `end`."""
    global _starts
    with _lock:
        _starts += 1


def end() -> None:
    """Drop what starts share if this was the last one under way."""
    global _starts
    with _lock:
        _starts -= 1
        if _starts:
            return
        _read.clear()
        while _at_end:
            _at_end.pop()()


def at_end(drop: Callable[[], object]) -> None:
    """Have ``drop`` called at the end of the last start under way; call this in a start."""
    with _lock:
        _at_end.append(drop)


def once[T](read: Callable[..., T], *args: object) -> T:
    """Return what ``read(*args)`` returns; the caller must not change it.

    Outside of a start it is read each time. Raises what ``read`` raises, and then keeps nothing.
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
