"""Variables that adapt the tests to the machine and the time at hand.

``NISO_TEST_LONG=1`` draws many samples in random tests, instead of few, and ``NISO_TEST_QUICK=1`` a
third of the few. ``NISO_SLOW=N`` multiplies time limits by N, for a machine that is N times slower,
such as an emulated one.
"""

from __future__ import annotations

import os

LONG = os.environ.get("NISO_TEST_LONG") == "1"
QUICK = os.environ.get("NISO_TEST_QUICK") == "1"
SLOW = float(os.environ.get("NISO_SLOW") or 1)
"""The factor of time limits. How long a test observes that nothing happens is not multiplied."""


def samples(usual: int, long: int) -> int:
    """Return ``long`` with ``NISO_TEST_LONG=1``, else ``usual``.

    With ``NISO_TEST_QUICK=1`` return a third of ``usual``, or three times a stride, of which ``long``
    is the smaller one."""
    if LONG:
        return long
    if not QUICK:
        return usual
    return 3 * usual if long < usual else max(1, usual // 3)


def some_steps(kills: bool) -> range:
    """Return the steps of a short command that a test breaks: a third, or all in a long run.

    Kills and failures get different ones."""
    return range(2 if kills and not LONG else 1, 80, samples(3, 1))
