"""What a command tells of its work: events, each with its fields, and with the words that people read.

A step of the kernel (niso.kernel.kinds.kind) is an event too. Who listens decides by an event's type, never by its words.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal, Protocol

    class Event(Protocol):
        """Something that is being done, or that has happened."""

        def describe(self) -> str:
            """Return it for people: a line, or lines where each is a command."""

else:
    Event = object  # Protocol would be an import of typing


Report = Callable[[Event], None]
"""Takes the events of a command as they come."""


def silent(_: Event) -> None:
    """Take an event and tell nobody."""


class Command(NamedTuple):
    """A change of the kernel, as a command line that makes it."""

    text: str

    def describe(self) -> str:
        return self.text


class Starting(NamedTuple):
    """The process of a service is started; ``argv`` is empty where it is only started again."""

    service: str
    argv: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"start {self.service}" + (f": {' '.join(self.argv)}" if self.argv else "")


class Stopping(NamedTuple):
    """The process of a service is asked to end."""

    service: str

    def describe(self) -> str:
        return f"stop {self.service}"


class Healthy(NamedTuple):
    """A service that was waited for is healthy."""

    service: str

    def describe(self) -> str:
        return f"{self.service} is healthy"


class Undoing(NamedTuple):
    """The interrupted or failed activation of a service is undone."""

    service: str

    def describe(self) -> str:
        return f"undo activation of {self.service}"


class EndingRestart(NamedTuple):
    """The interrupted restart of a service is brought to its end."""

    service: str

    def describe(self) -> str:
        return f"end restart of {self.service}"


class Forgetting(NamedTuple):
    """A service is removed with its leases, logs and copies."""

    service: str

    def describe(self) -> str:
        return f"forget {self.service}"


class RemovingVolumes(NamedTuple):
    """The named volumes of a service are deleted."""

    service: str
    volumes: tuple[str, ...]

    def describe(self) -> str:
        return f"remove the volumes of {self.service}: {', '.join(self.volumes)}"


class CopyingPackage(NamedTuple):
    """A package is copied."""

    folder: str

    def describe(self) -> str:
        return f"copy package {self.folder}"


class ShowingHosts(NamedTuple):
    """A running service is shown a hosts file: that of ``folder``, or its own once more."""

    service: str
    folder: str = ""

    def describe(self) -> str:
        which = f"the hosts file {self.folder}" if self.folder else "its hosts file"
        return f"show {self.service} {which}"


class FinishingPorts(NamedTuple):
    """Changes of ports that another command has recorded are carried out."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"ports of {', '.join(self.services)}"


class RepairingStore(NamedTuple):
    """Rows of the store are written again, or deleted."""

    action: Literal["write", "delete"]
    table: str
    service: str = ""

    def describe(self) -> str:
        whose = f" of {self.service}" if self.service else ""
        return f"{self.action} {self.table}{whose} in the store"


class WritingSpec(NamedTuple):
    """What a running service was started from is written again."""

    service: str

    def describe(self) -> str:
        return f"write spec.json of {self.service}"


class ChangingUnit(NamedTuple):
    """A systemd unit file is written or removed."""

    action: Literal["write", "remove"]
    path: str

    def describe(self) -> str:
        return f"{self.action} {self.path}"


class WaitingForLock(NamedTuple):
    """Another niso command is waited for: one that changes ``service``, or else the network."""

    service: str = ""

    def describe(self) -> str:
        work = f"is at work on {self.service}" if self.service else "changes the network"
        return f"wait for another niso command, which {work}"


class WaitingForHealth(NamedTuple):
    """The answers of healthchecks are waited for."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"wait for the health of {', '.join(self.services)}"


class WaitingForPacket(NamedTuple):
    """A packet has been sent ``to`` somebody: its answer is waited for, or what becomes of it."""

    to: str
    answer: bool

    def describe(self) -> str:
        what = "an answer of" if self.answer else "what comes of a packet to"
        return f"wait for {what} {self.to}"


class EndingLost(NamedTuple):
    """Processes of a service that no run folder knows are ended."""

    cgroup: str

    def describe(self) -> str:
        return f"end what runs in the cgroup {self.cgroup}"


class Unfinished(NamedTuple):
    """An interrupted change of a service could not be ended yet, since ``error`` came."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.service}: what was begun cannot be ended yet: {self.error.message}"


class NotStarted(NamedTuple):
    """A service that was to run again could not be started, since ``error`` came."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.service}: cannot be started again: {self.error.message}"


class RestartingInstead(NamedTuple):
    """A service is restarted, since ``error`` came when it was to be changed as it ran."""

    service: str
    error: NisoError

    def describe(self) -> str:
        return f"{self.error.message}; restart {self.service}"
