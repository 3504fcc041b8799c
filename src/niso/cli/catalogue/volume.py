"""Define the commands niso volume, save and load."""

from __future__ import annotations

from niso.cli.command import (
    JSON,
    REPORTS,
    TIMEOUT,
    TRUST_OWNER,
    Argument,
    Command,
    Option,
)

COMMANDS = (
    Command(
        "save",
        "save services with their data to an archive",
        (Argument("NAME*", "a known service", "service"),),
        (
            Option("--stack STACK", "all services of a stack, by the stack's name"),
            Option("--all", "all services"),
            Option("-o --output FILE", "the archive, or - for standard output"),
            Option("--secrets", "include the content of secrets"),
            Option("--stop", "stop active services while they are saved", ends=True),
            *REPORTS,
        ),
        "The archive has the package and root file system of each service, its manifest as it is "
        "active, its named volumes, and its addresses, ports and networks. Host folders that are "
        "mounted as volumes are not saved. It is a tar file, compressed by zstd or, without it, "
        "gzip, with a SHA-256 of each file; only root can read it. Without --stop, services keep "
        "running: a file that changes meanwhile is saved half old and half new, and most "
        "databases need --stop. The default FILE is NAME-DATE.niso.",
        lines="niso save db --stop  # db-2026-11-30.niso\n"
        "niso save --stack shop --secrets -o shop.niso\n"
        "niso save --all -o - | ssh backup 'cat > host.niso'",
        aside=True,
    ),
    Command(
        "load",
        "load services from an archive of niso save",
        (Argument("FILE", "an archive", "file"),),
        (
            Option("--as PREFIX", "load them as the services of a new stack of this name"),
            TIMEOUT,
            TRUST_OWNER,
            *REPORTS,
        ),
        "Services, volumes and networks keep their names, subnets and addresses where these are "
        "free, and get new ones otherwise; a host port that is taken is replaced by one that niso "
        "chooses. A service or volume of a name that exists is refused. With --as, names of "
        "services and networks begin with PREFIX-. Services that were active are started, except "
        "jobs. If anything fails, all that was loaded is removed. An archive decides what runs as "
        "root, so it must belong to root or, with sudo, to you.",
        lines="niso load db-2026-11-30.niso\n"
        "niso load shop.niso --as test  # next to the services that were saved",
        statuses="0 all services are loaded\n1 failed; nothing was loaded",
        aside=True,
    ),
)

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
        lines="niso volume remove db/data",
        statuses="0 the volumes are deleted\n1 a service is active, or a volume has a mount in it",
        ends=True,
    ),
)
GROUPS = (Command("volume", "manage named volumes: list, inspect, remove", actions=_ACTIONS),)
