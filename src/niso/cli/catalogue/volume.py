"""Describe niso volume, as data."""

from __future__ import annotations

from niso.cli.command import JSON, REPORTS, Argument, Command, Group, Option

_ACTIONS = (
    Command(
        "volume list",
        "list named volumes with their sizes",
        (Argument("NAME*", "a service, or a volume as SERVICE/NAME", "service"),),
        (JSON,),
        "SERVICE is active or inactive, or removed if there is no such service: its volumes stay "
        "until they are removed. MOUNT is the path inside the service, or - if its manifest no "
        "longer has the volume. SIZE is what the volume takes on the disk.",
        "niso volume list\nniso volume list db",
    ),
    Command(
        "volume inspect",
        "print volumes as JSON",
        (Argument("NAME+", "a volume as SERVICE/NAME, or a service", "service"),),
        (Option("--json", "no effect: the output is always JSON"),),
        "The folder of a volume on the host is its path. Only root may enter it.",
        "niso volume inspect db/data",
    ),
    Command(
        "volume remove",
        "delete named volumes with their content",
        (Argument("NAME+", "a volume as SERVICE/NAME", key="names"),),
        REPORTS,
        "The service of the volume must not be active. Its next activation creates an empty "
        "volume. niso remove --volumes deletes a service with all of its volumes.",
        "niso volume remove db/data",
        "0 the volumes are deleted\n1 a service is active, or something is mounted in a volume",
        ends=True,
    ),
)
GROUP = Group("volume", "manage named volumes: list, inspect, remove", _ACTIONS, aside=True)
