"""How many samples a random test draws: few by default, many with ``NISO_TEST_LONG=1``."""

from __future__ import annotations

import os

LONG = os.environ.get("NISO_TEST_LONG") == "1"


def samples(quick: int, long: int) -> int:
    """Return ``long`` with ``NISO_TEST_LONG=1``, else ``quick``."""
    return long if LONG else quick


def some_steps(kills: bool) -> range:
    """Return the steps of a short command that a test breaks: a third, or all in a long run.

    Kills and failures get different ones."""
    return range(2 if kills and not LONG else 1, 80, samples(3, 1))
