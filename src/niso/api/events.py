"""Events that the API adds to those of `niso.base.report`, for the ``progress`` callback."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Expects(NamedTuple):
    """The services whose start ends when they are healthy; sent before the first step."""

    services: tuple[str, ...]

    def describe(self) -> str:
        """Return the event for people: a line."""
        return f"start until healthy: {', '.join(self.services)}"


class Finished(NamedTuple):
    """The change is complete. Cautions and the hand-over to systemd follow."""

    def describe(self) -> str:
        """Return the event for people: a line."""
        return "done"


class Caution(NamedTuple):
    """Something that may keep the result from working: no name server, another firewall."""

    text: str
    hints: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the event for people: a line."""
        return self.text
