"""Measure how far an agent is behind: since when there has been something that it has not seen."""

from __future__ import annotations


class Lag:
    """Times are of one clock that only goes forward. Several threads may call `notice`."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = 0.0

    def notice(self, now_s: float) -> None:
        """Record that there is something to see."""
        self._last_s = now_s
        if self._since_s is None:
            self._since_s = now_s

    def caught_up(self, began_s: float) -> None:
        """Record that all is seen that was there when a look began."""
        self._since_s = self._last_s if self._last_s > began_s else None

    def seconds(self, now_s: float) -> float:
        """Return for how long something has not been seen; 0 if all is seen."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
