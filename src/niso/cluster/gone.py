"""Remember since when hosts are gone, as this host's agent has seen it: a file in the run folder.

Clocks of different hosts are never compared. A time is of this host's clock that only goes forward,
which begins with the boot, as the run folder does.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable

from niso.base import files, paths


def since() -> dict[str, float]:
    """Return the time.monotonic() at which each host that is gone was first seen so."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(files.read(_path()) or b"{}")
        return {str(host): float(seen_s) for host, seen_s in found.items()}
    return {}


def note(gone: Iterable[str], now_s: float) -> None:
    """Record which hosts are gone. Raises OSError."""
    before = since()
    now = {host: before.get(host, now_s) for host in sorted(gone)}
    if now != before:
        files.replace(_path(), json.dumps(now).encode(), 0o600)


def _path() -> str:
    return os.path.join(paths.run_dir(), "gone")
