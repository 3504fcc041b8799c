"""Define the events that report the progress of a command.

Kernel steps (niso.kernel.kinds.kind) are events too. Receivers decide by the type of an event,
never by its text.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal, Protocol

    class Event(Protocol):
        """A step that begins, or something that has happened."""

        def describe(self) -> str:
            """Return one line of text, or several lines of which each is a command."""

else:
    Event = object  # Protocol would import typing


Report = Callable[[Event], None]
"""Receives the events of a command."""


def silent(_: Event) -> None:
    """Discard an event."""


class Command(NamedTuple):
    """A change of the kernel, as an equivalent command line."""

    text: str

    def describe(self) -> str:
        return self.text


class Starting(NamedTuple):
    """The process of a service is started; ``argv`` is empty on a restart."""

    service: str
    argv: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"start {self.service}" + (f": {' '.join(self.argv)}" if self.argv else "")


class Stopping(NamedTuple):
    """The process of a service is stopped."""

    service: str

    def describe(self) -> str:
        return f"stop {self.service}"


class Healthy(NamedTuple):
    """A service has become healthy."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is healthy"


class Completed(NamedTuple):
    """A job has exited with status 0."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is completed"


class Undoing(NamedTuple):
    """The interrupted or failed activation of a service is rolled back."""

    service: str

    def describe(self) -> str:
        return f"roll back the activation of {self.service}"


class EndingRestart(NamedTuple):
    """The interrupted restart of a service is completed."""

    service: str

    def describe(self) -> str:
        return f"complete the restart of {self.service}"


class Forgetting(NamedTuple):
    """A service is being removed with its leases, logs and package copies."""

    service: str

    def describe(self) -> str:
        return f"delete the record of {self.service}"


class RemovingVolumes(NamedTuple):
    """The named volumes of a service are being deleted."""

    service: str
    volumes: tuple[str, ...]

    def describe(self) -> str:
        return f"delete the volumes of {self.service}: {', '.join(self.volumes)}"


class CopyingPackage(NamedTuple):
    """A package is being copied."""

    folder: str

    def describe(self) -> str:
        return f"copy package {self.folder}"


class AskingCluster(NamedTuple):
    """The cluster is asked for what a command needs, or told what it has done."""

    def describe(self) -> str:
        return "waiting for the cluster to answer"


class ShowingHosts(NamedTuple):
    """A hosts file is mounted in a running service: that of ``folder``, or its own again."""

    service: str
    folder: str = ""

    def describe(self) -> str:
        which = f"the hosts file {self.folder}" if self.folder else "its hosts file"
        return f"mount {which} in {self.service}"


class FinishingPorts(NamedTuple):
    """Port changes recorded by another command are completed."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"complete the port changes of {', '.join(self.services)}"


class RepairingStore(NamedTuple):
    """Rows of the store are rewritten or deleted."""

    action: Literal["write", "delete"]
    table: str
    service: str = ""

    def describe(self) -> str:
        whose = f" of {self.service}" if self.service else ""
        return f"{self.action} {self.table}{whose} in the store"


class WritingSpec(NamedTuple):
    """The spec.json of a running service is rewritten."""

    service: str

    def describe(self) -> str:
        return f"write spec.json of {self.service}"


class ChangingUnit(NamedTuple):
    """A systemd unit file is being written or removed."""

    action: Literal["write", "remove"]
    path: str

    def describe(self) -> str:
        return f"{self.action} {self.path}"


class WaitingForLock(NamedTuple):
    """Waits for another niso command, which changes ``service`` or else the network."""

    service: str = ""

    def describe(self) -> str:
        target = self.service or "the network"
        return f"waiting for another niso command that is changing {target}"


class WaitingForHealth(NamedTuple):
    """Waits for the results of health checks."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"waiting for the health checks of {', '.join(self.services)}"


class WaitingForPacket(NamedTuple):
    """Waits for a packet ``to`` a service, or for the reply from it.

    ``kind``: "reply", "test" for niso's own packet, or "real" for one that others send.
    """

    to: str
    kind: str

    def describe(self) -> str:
        what = {"reply": "a reply from", "test": "a test packet to"}.get(self.kind, "a packet to")
        return f"waiting for {what} {self.to}"


class EndingLost(NamedTuple):
    """Processes of a service without a run folder are killed."""

    cgroup: str

    def describe(self) -> str:
        return f"kill the processes in the cgroup {self.cgroup}"


class Recovered(NamedTuple):
    """A change that an interrupted ``command`` left behind was rolled back or completed."""

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
    """A service could not be started again because of ``error``."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.service}: cannot start it again: {self.error.message}"


class RestartingInstead(NamedTuple):
    """A service is restarted because ``error`` prevented a change while it runs."""

    service: str
    error: Error

    def describe(self) -> str:
        return f"{self.error.message}; restarting {self.service}"


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
