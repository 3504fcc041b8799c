"""Remember when this host's agent has looked last, and since when hosts are gone.

It is a file in the run folder. Clocks of different hosts are never compared. A time is of this
host's clock that only goes forward, which begins with the boot, as the run folder does.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

from niso.base import files, paths
from niso.base.lite_typing import NamedTuple


class Look(NamedTuple):
    """What the agent knew at its last look; times are of time.monotonic()."""

    at_s: float | None  # None before the first one
    gone: dict[str, float]  # since when hosts are seen gone


def last() -> Look:
    """Return the last look."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(files.read(_path()) or b"{}")
        gone = {str(host): float(seen_s) for host, seen_s in kept["gone"].items()}
        return Look(float(kept["at"]), gone)
    return Look(None, {})


def note(gone: Iterable[str], now_s: float) -> None:
    """Record a look, and which hosts are gone. Raises OSError."""
    before = last().gone
    now = {host: before.get(host, now_s) for host in sorted(gone)}
    kept = json.dumps({"at": now_s, "gone": now})
    files.replace(_path(), kept.encode(), 0o600)


def _path() -> str:
    return os.path.join(paths.run_dir(), "gone")
