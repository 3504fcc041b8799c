"""Define the events by which commands report progress and warnings to their caller.

Events that only one module reports are defined in that module. Steps that change the kernel
(`niso.kernel.kinds.kind.Step`) are events too. A receiver decides by an event's type what to do.
"""

from __future__ import annotations

from collections.abc import Callable

from niso.base.named_tuples import TYPE_CHECKING, named_tuple

if TYPE_CHECKING:
    from typing import Any, Protocol


if TYPE_CHECKING:

    class Event(Protocol):
        """A progress event: a step that is about to run, or something that has happened."""

        def describe(self) -> str:
            """Return the event as text for users. A step has one line for each of its commands."""

else:
    Event = object  # a Protocol would import typing


Report = Callable[[Event], None]
"""A function that receives the events of a command."""


def silent(_: Event) -> None:
    """Ignore an event. Commands without a caller that wants events use this function."""


def event_class(name: str, sentence: Callable[..., str]) -> type[Any]:
    """Return a new class of events: a named tuple called ``name``. The function ``sentence``
    returns the text for ``describe``. Its parameters become the fields of the class.
    """
    fields = sentence.__code__.co_varnames[: sentence.__code__.co_argcount]
    defaults = sentence.__defaults__ or ()
    made: type[Any] = named_tuple(
        name,
        dict.fromkeys(fields, object),
        dict(zip(fields[len(fields) - len(defaults) :], defaults, strict=True)),
    )
    made.__module__ = sentence.__module__
    made.describe = lambda self: sentence(*self)
    return made


WarningEvent = event_class("WarningEvent", lambda text, hints=(): text)
"""A warning, such as a missing name server or another firewall."""
ExpectingHealth = event_class(
    "ExpectingHealth", lambda services: f"waiting until healthy: {', '.join(services)}"
)
"""The services that must become healthy. The event is reported before the first step."""
Finished = event_class("Finished", lambda: "done")
"""The change is complete. Only warnings and the handover to systemd follow."""
WaitingForLock = event_class(
    "WaitingForLock",
    lambda service="": (
        f"waiting for another niso command that is changing {service or 'the network'}"
    ),
)
"""The command waits for another command that changes ``service``, or the network if that is ""."""
AskingCluster = event_class("AskingCluster", lambda: "waiting for the cluster to answer")
"""The command waits for etcd, in order to reserve names and addresses or to publish its changes."""
Recovered = event_class(
    "Recovered",
    lambda service, command, rolled_back: (
        f"{service}: the interrupted {command} was {'rolled back' if rolled_back else 'completed'}"
    ),
)
Unfinished = event_class(
    "Unfinished",
    lambda service, error: (
        f"{service}: the interrupted change is still incomplete: {error.message}"
    ),
)
"""An interrupted change of a service could again not be completed, because of ``error``."""
NotStarted = event_class(
    "NotStarted", lambda service, error: f"{service}: cannot start it again: {error.message}"
)


Starting = event_class(
    "Starting",
    lambda service, argv=(): f"start {service}" + (f": {' '.join(argv)}" if argv else ""),
)
"""niso starts the process of a service. If the process is restarted, ``argv`` is empty."""
Stopping = event_class("Stopping", lambda service: f"stop {service}")
Healthy = event_class("Healthy", lambda service: f"{service} is healthy")
Completed = event_class("Completed", lambda service: f"{service} is completed")
WaitingForHealth = event_class(
    "WaitingForHealth", lambda services: f"waiting for the health checks of {', '.join(services)}"
)
Undoing = event_class("Undoing", lambda service: f"roll back the activation of {service}")
CopyingPackage = event_class("CopyingPackage", lambda folder: f"copy package {folder}")
ShowingHosts = event_class(
    "ShowingHosts",
    lambda service, folder="": (
        f"mount {f'the hosts file {folder}' if folder else 'its hosts file'} in {service}"
    ),
)
"""niso mounts another hosts file in a running service. "" means the service's own file."""
Forgetting = event_class("Forgetting", lambda service: f"delete the record of {service}")
"""niso deletes a service's reserved addresses, logs and package copies."""
RemovingVolumes = event_class(
    "RemovingVolumes",
    lambda service, volumes: f"delete the volumes of {service}: {', '.join(volumes)}",
)
GivingVolume = event_class(
    "GivingVolume",
    lambda service, volume, uid, files=0: (
        f"give volume {service}/{volume} to uid {uid}" + (f": {files} files" if files else "")
    ),
)
"""niso changes the owner of a named volume's files to its service's uid. ``files`` is their number
so far."""
Saving = event_class("Saving", lambda service, what: f"save {what} of {service}")
Extracting = event_class("Extracting", lambda file: f"extract and check {file}")
WaitingForPacket = event_class(
    "WaitingForPacket",
    lambda to, kind: (
        "waiting for "
        + {"reply": "a reply from", "test": "a test packet to"}.get(kind, "a packet to")
        + f" {to}"
    ),
)
"""The command waits for a packet. ``kind`` is "test" for a packet of niso to the service ``to``,
"real" for a packet of another program to this service, or "reply" for its reply."""
Command = event_class("Command", lambda text: text)
"""A change of the kernel: a command line with the same effect, or a description."""
