"""How many samples a random test draws: few by default, many with ``NISO_TEST_LONG=1``."""

from __future__ import annotations

import os

LONG = os.environ.get("NISO_TEST_LONG") == "1"


def samples(quick: int, long: int) -> int:
    """Return ``long`` with ``NISO_TEST_LONG=1``, else ``quick``."""
    return long if LONG else quick
