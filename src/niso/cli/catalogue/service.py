"""What is called with services: the words of activate, deactivate, remove, restart, ps, inspect, logs, exec, port-forward."""

from __future__ import annotations

from niso.cli.command import DRY_RUN, JSON, TIMEOUT, VERBOSE, Argument, Command, Option

COMMANDS = (
    Command(
        "activate",
        "set up the network of services and start them, all or none",
        (
            Argument(
                "what", "PATH|NAME", "a manifest, its folder, or a known service", "+", "package"
            ),
        ),
        (TIMEOUT, DRY_RUN, VERBOSE, JSON),
        "An argument with a / or ending in .toml is a manifest or its folder, else a known service, with the manifest of its "
        "last activation, else a folder. Where something cannot be done, all is put back as it was. A service that is active "
        "already gets what has changed in its manifest; the process is started anew only where it must be.",
        (
            ("niso activate ./api", "a folder with a manifest.toml"),
            ("niso activate ./db ./cache ./api", "all or none"),
            ("niso activate api", "a known service"),
            ("niso activate --dry-run ./api", "what it would do"),
        ),
        (
            ("0", "all are active, and healthy where they have a healthcheck"),
            ("1", "nothing has changed"),
        ),
    ),
    Command(
        "deactivate",
        "stop services and take down their networks",
        (Argument("names", "NAME", "an active service", "*", "active"),),
        (
            Option(
                "all", ("--all",), "all active services, those that share another's network first"
            ),
            DRY_RUN,
            VERBOSE,
            JSON,
        ),
        "A service keeps its addresses, logs and volumes for its next activation. What niso port-forward has published ends.",
        (("niso deactivate api", "its address stays its own"), ("niso deactivate --all", "")),
        (
            ("0", "they are not active any more, or were not"),
            ("1", "one of them cannot go, and none has gone"),
        ),
    ),
    Command(
        "restart",
        "end and start the process of services; the network stays",
        (Argument("names", "NAME", "an active service", "+", "active"),),
        (VERBOSE, JSON),
        "Namespace, addresses, published ports and what shares the network stay as they are.",
        (("niso restart api", ""),),
    ),
    Command(
        "remove",
        "deactivate services and forget them",
        (
            Argument(
                "names",
                "NAME",
                "a known service; with --volumes one too that is long gone",
                "+",
                "service",
            ),
        ),
        (Option("volumes", ("--volumes",), "delete its named volumes too"), VERBOSE, JSON),
        "Frees the addresses, and deletes the logs and niso's copy of the package. Named volumes stay, but for --volumes.",
        (("niso remove api", ""), ("niso remove --volumes api", "and its data")),
    ),
    Command(
        "ps",
        "list the known services and how they are",
        (),
        (JSON,),
        "STATUS is running, starting, restarting, exited (N), failed or inactive; HEALTH is what the healthcheck says, which "
        "is asked now where its interval has passed. A process that has ended for good leaves its service active.",
        (("niso ps", ""), ("niso ps --json", "")),
    ),
    Command(
        "inspect",
        "print all that niso knows of a service, as JSON",
        (Argument("name", "NAME", "a known service", "", "service"),),
        (Option("json", ("--json",), "the same: there is no other form"),),
        "",
        (("niso inspect api", ""),),
    ),
    Command(
        "logs",
        "print what a service wrote",
        (Argument("name", "NAME", "a known service", "", "service"),),
        (
            Option("follow", ("-f", "--follow"), "go on as it writes, until it is removed"),
            Option("lines", ("-n", "--lines"), "the last N lines only", "N", number=True),
            Option("timestamps", ("-t", "--timestamps"), "an RFC 3339 time before each line"),
        ),
        "At least the last 10 MB are kept, over restarts and deactivations too.",
        (("niso logs api -n 20", ""), ("niso logs api -f -t", "")),
    ),
    Command(
        "exec",
        "run a command inside a service",
        (
            Argument("name", "NAME", "an active service", "", "active"),
            Argument("command", "-- CMD...", "the command and its arguments", "...", "nothing"),
        ),
        (),
        "It has the service's namespaces, root file system, user, environment and limits; stdin, terminal, signals and exit "
        "status pass through.",
        (("niso exec api -- cat /etc/hosts", ""), ("niso exec api -- sh", "")),
        (
            ("N", "the command's own"),
            ("125", "niso could not run it"),
            ("126", "it is not executable"),
            ("127", "it is not found"),
            ("128+N", "signal N ended it"),
        ),
    ),
    Command(
        "port-forward",
        "publish one more port of an active service, without a restart",
        (
            Argument("name", "NAME", "an active service", "", "active"),
            Argument("port", "PORT", "[ADDRESS:]HOST:CONTAINER[/PROTO], ranges too", "", "forward"),
        ),
        (
            Option("remove", ("--remove",), "take it away again", group="which"),
            Option(
                "replace",
                ("--replace",),
                "take the host port from the service that has it",
                group="which",
            ),
            VERBOSE,
            JSON,
        ),
        "It survives a crash, a restart, an unchanged activate and a reboot, and ends with deactivate. --replace takes the host "
        "port at all of its addresses; open connections live on.",
        (
            ("niso port-forward api 9090:9090", "at once"),
            ("niso port-forward dns 127.0.0.1:53:53/udp", "from this host only"),
            ("niso port-forward api-2 8080:8080 --replace", "from whoever has it"),
            ("niso port-forward api 9090:9090 --remove", ""),
        ),
    ),
)
