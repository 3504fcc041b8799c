"""Events of a command's work: typed fields, and the words that people read.

A kernel step (niso.kernel.kinds.kind) is an event too. Listeners decide by an event's type, never
by its words.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal, Protocol

    class Event(Protocol):
        """Something that is happening or has happened."""

        def describe(self) -> str:
            """Return its words for people: one line, or several where each is a command."""

else:
    Event = object  # Protocol would import typing


Report = Callable[[Event], None]
"""Receives the events of a command as they happen."""


def silent(_: Event) -> None:
    """Ignore an event."""


class Command(NamedTuple):
    """A kernel change, as an equivalent command line."""

    text: str

    def describe(self) -> str:
        return self.text


class Starting(NamedTuple):
    """A service's process is being started. ``argv`` is empty for a restart."""

    service: str
    argv: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"start {self.service}" + (f": {' '.join(self.argv)}" if self.argv else "")


class Stopping(NamedTuple):
    """A service's process is being stopped."""

    service: str

    def describe(self) -> str:
        return f"stop {self.service}"


class Healthy(NamedTuple):
    """A service became healthy while the command waited for it."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is healthy"


class Undoing(NamedTuple):
    """A failed or interrupted activation is being rolled back."""

    service: str

    def describe(self) -> str:
        return f"undo the activation of {self.service}"


class EndingRestart(NamedTuple):
    """An interrupted restart is being completed."""

    service: str

    def describe(self) -> str:
        return f"finish the restart of {self.service}"


class Forgetting(NamedTuple):
    """A service is being removed with its leases, logs and package copies."""

    service: str

    def describe(self) -> str:
        return f"forget {self.service}"


class RemovingVolumes(NamedTuple):
    """The named volumes of a service are being deleted."""

    service: str
    volumes: tuple[str, ...]

    def describe(self) -> str:
        return f"remove the volumes of {self.service}: {', '.join(self.volumes)}"


class CopyingPackage(NamedTuple):
    """A package is being copied."""

    folder: str

    def describe(self) -> str:
        return f"copy package {self.folder}"


class ShowingHosts(NamedTuple):
    """A running service gets the hosts file of another folder, or its own one refreshed."""

    service: str
    folder: str = ""

    def describe(self) -> str:
        if self.folder:
            return f"switch {self.service} to the hosts file {self.folder}"
        return f"refresh the hosts file of {self.service}"


class FinishingPorts(NamedTuple):
    """Port changes recorded by another command are being completed."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"finish the port changes of {', '.join(self.services)}"


class RepairingStore(NamedTuple):
    """Rows of the store are being rewritten or deleted."""

    action: Literal["write", "delete"]
    table: str
    service: str = ""

    def describe(self) -> str:
        whose = f" of {self.service}" if self.service else ""
        return f"{self.action} {self.table}{whose} in the store"


class WritingSpec(NamedTuple):
    """The spec of a running service is being rewritten."""

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
    """The command waits for another one, which changes ``service`` or (if "") the network."""

    service: str = ""

    def describe(self) -> str:
        changed = self.service or "the network"
        return f"waiting for another niso command that is changing {changed}"


class WaitingForHealth(NamedTuple):
    """The command waits for health check results."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"waiting for health checks of {', '.join(self.services)}"


class WaitingForPacket(NamedTuple):
    """The command waits for the answer to a packet, or for the packet to arrive."""

    to: str
    answer: bool

    def describe(self) -> str:
        awaited = "an answer from" if self.answer else "a packet to reach"
        return f"waiting for {awaited} {self.to}"


class EndingLost(NamedTuple):
    """Processes of a service that no run folder accounts for are being ended."""

    cgroup: str

    def describe(self) -> str:
        return f"end the processes in cgroup {self.cgroup}"


class Unfinished(NamedTuple):
    """An interrupted change cannot be completed yet, because of ``error``."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.service}: cannot finish an interrupted change yet: {self.error.message}"


class NotStarted(NamedTuple):
    """A service could not be started again, because of ``error``."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.service}: cannot start it again: {self.error.message}"


class RestartingInstead(NamedTuple):
    """A service is restarted because changing it while it runs failed with ``error``."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.error.message}; restart {self.service}"
