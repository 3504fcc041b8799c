"""Measure how far an agent lags: since when there are changes that it has not processed."""

from __future__ import annotations


class Lag:
    """The lag of an agent. Times are of one monotonic clock. Several threads may call `notice`."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def notice(self, now_s: float) -> None:
        """Record that there is a change to process."""
        self._last_s = now_s
        if self._since_s is None:
            self._since_s = now_s

    def caught_up(self, began_s: float) -> None:
        """Record that all changes up to ``began_s``, the start of a sync pass, are processed."""
        self._since_s = self._last_s if self._last_s > began_s else None

    def seconds(self, now_s: float) -> float:
        """Return for how long the oldest change has been waiting; 0 if there is none."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
