"""Define how a command reports its progress, and the events that any command may report.

Events of services are in `niso.base.service_events`; an event that only one module sends is defined
in that module. Kernel steps (niso.kernel.kinds.kind) are events too. Receivers decide by the type
of an event, never by its text.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Protocol

    class Event(Protocol):
        """A step that is about to run, or something that has happened."""

        def describe(self) -> str:
            """Return the event as one line of text, or as several lines with a command each."""

else:
    Event = object  # a Protocol would import typing


Report = Callable[[Event], None]
"""A function that receives the events of a command."""


def silent(_: Event) -> None:
    """Discard an event: the default receiver."""


class Caution(NamedTuple):
    """A warning, such as a missing name server or another firewall."""

    text: str
    hints: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the event as a line of text."""
        return self.text


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


class WaitingForLock(NamedTuple):
    """The command waits for another niso command, which changes ``service`` or ("") the network."""

    service: str = ""

    def describe(self) -> str:
        target = self.service or "the network"
        return f"waiting for another niso command that is changing {target}"


class AskingCluster(NamedTuple):
    """A command requests claims from the cluster, or reports its changes to the cluster."""

    def describe(self) -> str:
        return "waiting for the cluster to answer"


class Recovered(NamedTuple):
    """A change left behind by an interrupted ``command`` was rolled back or completed."""

    service: str
    command: str
    rolled_back: bool

    def describe(self) -> str:
        done = "rolled back" if self.rolled_back else "completed"
        return f"{self.service}: the interrupted {self.command} was {done}"


class Unfinished(NamedTuple):
    """An interrupted change of a service could not be completed because of ``error``."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.service}: the interrupted change is still incomplete: {self.error.message}"


class NotStarted(NamedTuple):
    """A service could not be restarted because of ``error``."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.service}: cannot start it again: {self.error.message}"
