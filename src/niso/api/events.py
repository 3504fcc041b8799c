"""Define events that only the API sends, in addition to those of `niso.base.report`."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Expects(NamedTuple):
    """The services that must become healthy; sent before the first step."""

    services: tuple[str, ...]

    def describe(self) -> str:
        """Return the event as a line of text."""
        return f"waiting until healthy: {', '.join(self.services)}"


class Finished(NamedTuple):
    """The change is complete. Warnings and the handover to systemd follow."""

    def describe(self) -> str:
        """Return the event as a line of text."""
        return "done"


class Caution(NamedTuple):
    """A warning: a missing name server, another firewall."""

    text: str
    hints: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the event as a line of text."""
        return self.text
