"""Define the events of services and their processes (see `niso.base.report`)."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


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


class WaitingForHealth(NamedTuple):
    """The command waits for the results of health checks."""

    services: tuple[str, ...]

    def describe(self) -> str:
        return f"waiting for the health checks of {', '.join(self.services)}"


class Undoing(NamedTuple):
    """An interrupted or failed activation of a service is being rolled back."""

    service: str

    def describe(self) -> str:
        return f"roll back the activation of {self.service}"


class CopyingPackage(NamedTuple):
    """A package is being copied."""

    folder: str

    def describe(self) -> str:
        return f"copy package {self.folder}"


class ShowingHosts(NamedTuple):
    """A running service gets another hosts file mounted: that of ``folder``, or its own again."""

    service: str
    folder: str = ""

    def describe(self) -> str:
        which = f"the hosts file {self.folder}" if self.folder else "its hosts file"
        return f"mount {which} in {self.service}"


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


class WaitingForPacket(NamedTuple):
    """The command waits for a packet ``to`` a service, or for the reply from the service.

    ``kind`` is "reply", "test" for niso's own packet, or "real" for a packet that other programs
    send.
    """

    to: str
    kind: str

    def describe(self) -> str:
        what = {"reply": "a reply from", "test": "a test packet to"}.get(self.kind, "a packet to")
        return f"waiting for {what} {self.to}"


class Command(NamedTuple):
    """A change of the kernel, shown as the equivalent command line."""

    text: str

    def describe(self) -> str:
        return self.text
