"""Format times and periods as text."""

from __future__ import annotations

import time


def time_text(seconds: float | None) -> str | None:
    """Format a time (seconds since 1970) as RFC 3339 in UTC; None stays None."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def exact_time_text(seconds: float) -> str:
    """Format a time like `time_text`, to the millisecond."""
    return f"{str(time_text(seconds))[:-1]}.{int(seconds % 1 * 1000):03d}Z"


def period_text(seconds: float) -> str:
    """Format a period in minutes or hours."""
    return f"{seconds / 3600:.0f}h" if seconds >= 7200 else f"{seconds / 60:.0f}m"
