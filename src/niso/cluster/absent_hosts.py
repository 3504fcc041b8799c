"""Record when this host's agent last synchronised, and since when other hosts are gone.

The record is a file in the run folder. Clocks of different hosts are never compared. Times are of
this host's monotonic clock, which starts at boot; the run folder is empty then too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

from niso.base import files, paths
from niso.base.lite_typing import NamedTuple


class Look(NamedTuple):
    """What the agent knew at its last sync pass; times are of time.monotonic()."""

    at_s: float | None  # time of the last pass; None before the first
    gone: dict[str, float]  # hosts that are gone, each with the time since when


def last() -> Look:
    """Read the record of the last sync pass; an empty one if there is none or it is unreadable."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(files.read(_path()) or b"{}")
        gone = {str(host): float(seen_s) for host, seen_s in kept["gone"].items()}
        return Look(float(kept["at"]), gone)
    return Look(None, {})


def note(gone: Iterable[str], now_s: float) -> None:
    """Record a sync pass and the hosts that are gone. Raises OSError."""
    before = last().gone
    now = {host: before.get(host, now_s) for host in sorted(gone)}
    kept = json.dumps({"at": now_s, "gone": now})
    files.replace(_path(), kept.encode(), 0o600)


def _path() -> str:
    return os.path.join(paths.run_dir(), "gone")
