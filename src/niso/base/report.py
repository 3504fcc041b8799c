"""Define the events by which commands report progress and warnings to their caller.

An event that only one module sends is defined in that module. Steps that change the kernel
(`niso.kernel.kinds.kind.Step`) are events too. A receiver decides by the type of an event, never by
its text.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Protocol


# --- events of any command ------------------------------------------------------------------------


if TYPE_CHECKING:

    class Event(Protocol):
        """Base class of progress events: a step that is about to run, or something that has
        happened.
        """

        def describe(self) -> str:
            """Return the event as text: one line, or several lines if it stands for several
            commands.
            """

else:
    Event = object  # a Protocol would import typing


Report = Callable[[Event], None]
"""A function that receives the events of a command."""


def silent(_: Event) -> None:
    """Ignore an event; this is the receiver of events if the caller gives none."""


class Caution(NamedTuple):
    """Report a warning, such as a missing name server or another firewall."""

    text: str
    hints: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the event as a line of text."""
        return self.text


class Expects(NamedTuple):
    """Report, before the first step, which services must become healthy."""

    services: tuple[str, ...]

    def describe(self) -> str:
        """Return the event as a line of text."""
        return f"waiting until healthy: {', '.join(self.services)}"


class Finished(NamedTuple):
    """Report that the change is complete. Warnings and the handover to systemd follow."""

    def describe(self) -> str:
        """Return the event as a line of text."""
        return "done"


class WaitingForLock(NamedTuple):
    """Report that the command waits for another niso command.

    The other command changes ``service``, or, if that is "", the network.
    """

    service: str = ""

    def describe(self) -> str:
        target = self.service or "the network"
        return f"waiting for another niso command that is changing {target}"


class AskingCluster(NamedTuple):
    """Report that a command waits for etcd, the database of the cluster.

    It reserves names and addresses of services there, or publishes its changes.
    """

    def describe(self) -> str:
        return "waiting for the cluster to answer"


class Recovered(NamedTuple):
    """Report that the change of an interrupted ``command`` was rolled back or completed."""

    service: str
    command: str
    rolled_back: bool

    def describe(self) -> str:
        done = "rolled back" if self.rolled_back else "completed"
        return f"{self.service}: the interrupted {self.command} was {done}"


class Unfinished(NamedTuple):
    """Report that an interrupted change of a service failed again because of ``error``."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.service}: the interrupted change is still incomplete: {self.error.message}"


class NotStarted(NamedTuple):
    """Report that a service could not be restarted because of ``error``."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.service}: cannot start it again: {self.error.message}"


# --- events of services and their processes -------------------------------------------------------


class Starting(NamedTuple):
    """Report that niso starts the process of a service.

    ``argv`` is the command line of the process; it is empty if the process is restarted.
    """

    service: str
    argv: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"start {self.service}" + (f": {' '.join(self.argv)}" if self.argv else "")


class Stopping(NamedTuple):
    """Report that niso begins to stop the process of a service."""

    service: str

    def describe(self) -> str:
        return f"stop {self.service}"


class Healthy(NamedTuple):
    """Report that a service has become healthy."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is healthy"


class Completed(NamedTuple):
    """Report that a job has exited with status 0."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is completed"


class WaitingForHealth(NamedTuple):
    """Report that the command waits for the results of health checks."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"waiting for the health checks of {', '.join(self.services)}"


class Undoing(NamedTuple):
    """Report that niso begins to roll back an activation that was interrupted or has failed."""

    service: str

    def describe(self) -> str:
        return f"roll back the activation of {self.service}"


class CopyingPackage(NamedTuple):
    """Report that niso begins to copy a package."""

    folder: str

    def describe(self) -> str:
        return f"copy package {self.folder}"


class ShowingHosts(NamedTuple):
    """Report that niso mounts another hosts file in a running service.

    ``folder`` is the folder of the new file. If it is "", the file is again the service's own.
    """

    service: str
    folder: str = ""

    def describe(self) -> str:
        which = f"the hosts file {self.folder}" if self.folder else "its hosts file"
        return f"mount {which} in {self.service}"


class Forgetting(NamedTuple):
    """Report that niso begins to delete a service's reserved addresses, logs and package copies."""

    service: str

    def describe(self) -> str:
        return f"delete the record of {self.service}"


class RemovingVolumes(NamedTuple):
    """Report that niso begins to delete the named volumes of a service."""

    service: str
    volumes: tuple[str, ...]

    def describe(self) -> str:
        return f"delete the volumes of {self.service}: {', '.join(self.volumes)}"


class WaitingForPacket(NamedTuple):
    """Report that the command waits for a packet to the service ``to``, or for a reply from it.

    ``kind`` is "reply" for the reply, "test" for a packet that niso itself sends, or "real" for a
    packet of another program.
    """

    to: str
    kind: str

    def describe(self) -> str:
        what = {"reply": "a reply from", "test": "a test packet to"}.get(self.kind, "a packet to")
        return f"waiting for {what} {self.to}"


class Command(NamedTuple):
    """Report a change of the kernel as the command line that would have the same effect."""

    text: str

    def describe(self) -> str:
        return self.text
