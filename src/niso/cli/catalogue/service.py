"""Define the commands for services (activate, ps, logs, exec and others) and for stacks."""

from __future__ import annotations

from niso.cli.command import (
    CHANGES,
    JSON,
    REPORTS,
    TIMEOUT,
    TRUST_OWNER,
    Argument,
    Command,
    Option,
)

# --- services -------------------------------------------------------------------------------------


LOG_OPTIONS = (
    Option("-f --follow", "follow new output until the service is removed"),
    Option("-n --tail --lines N", "print only the last N lines", number=True),
    Option("--since TIME", "print only lines since a time (RFC 3339) or for a period: 10m, 2h"),
    Option("-t --timestamps", "start each line with its time (RFC 3339)"),
)
"""The options of ``niso logs`` and ``niso stack logs``."""

COMMANDS = (
    Command(
        "activate",
        "start services with their networks, all or none",
        (
            Argument(
                "PATH|NAME+", "a manifest, its folder or a known service", "package", key="what"
            ),
        ),
        (
            TIMEOUT,
            Option(
                "--take-over", "take over services of these names from other folders", ends=True
            ),
            Option("--from-lost-host", "take over services from lost hosts of the cluster"),
            TRUST_OWNER,
            *CHANGES,
        ),
        "An argument that contains a / or ends in .toml is a manifest or its folder. Any other "
        "argument is a known service, with the manifest of its last activation, or else a folder. "
        "If anything fails, everything is rolled back. On an active service only the changes of "
        "its manifest are applied; its process is restarted only if a change requires it, or if it "
        "has crashed. The name of a service from another folder is refused without --take-over. A "
        "manifest must belong to root or, with sudo, to you: who can change it decides "
        "what runs as root.",
        lines="niso activate ./api  # a folder with a manifest.toml\n"
        "niso activate ./db ./cache ./api  # all or none\n"
        "niso activate api  # a known service\n"
        "niso activate --dry-run ./api  # show the steps",
        statuses="0 all services run, and those that were started pass their health checks\n"
        "1 failed; changes were rolled back, or the error says what is left for niso net repair",
    ),
    Command(
        "deactivate",
        "stop services and their networking",
        (Argument("NAME*", "an active service", "active"),),
        (
            Option("--all", "stop all active services, sharers before their providers", ends=True),
            *CHANGES,
        ),
        "Addresses, logs and volumes are kept for the next activation. Ports published with niso "
        "port-forward are withdrawn.",
        lines="niso deactivate api  # its address stays reserved\nniso deactivate --all",
        statuses="0 none of the services is active\n"
        "1 a service could not be stopped; the error says which",
        ends=True,
    ),
    Command(
        "restart",
        "stop and start the process of services; the network stays up",
        (Argument("NAME+", "an active service", "active"),),
        REPORTS,
        "Namespace, addresses, published ports and sharing services are not affected.",
        lines="niso restart api",
        ends=True,
    ),
    Command(
        "remove",
        "stop services and delete their records",
        (Argument("NAME+", "a known service; with --volumes also a removed one", "service"),),
        (Option("--volumes", "also delete the named volumes", ends=True), *REPORTS),
        "NAME is the service's own name, not a hostname or alias. Releases the addresses and "
        "deletes the logs and the copy of the package. Named volumes "
        "are kept unless --volumes is given.",
        lines="niso remove api\nniso remove --volumes api  # with its data",
        ends=True,
    ),
    Command(
        "ps",
        "list known services and their status",
        options=(
            Option("-a --all", "no effect: inactive services are always listed"),
            Option("--all-hosts", "also list the services of other hosts"),
            Option("--stats", "also show processor time, memory and restarts"),
            Option("-i --instances", "also list the instances of services with replicas"),
            Option("-l --listening", "also show on which ports the services listen"),
            JSON,
        ),
        about="STATUS is running, starting, restarting, exited (N), failed or inactive; of a job "
        "also scheduled or completed; of an attachment attached or gone; with replicas N/M "
        "running. A status followed by, for example, activate interrupted means that niso was "
        "killed during the change; the next command completes or undoes it. HEALTH is "
        "the last known result of the health check, and its age. ps "
        "waits for no probe. A service stays active after its process has exited. With "
        "--all-hosts, the STATUS of a service on another host is up, down, or host gone; only "
        "those on networks that span hosts are known. If the cluster does not answer, a warning "
        "says how old the list of the others is. With --stats, "
        "CPU is in percent of one processor over half a second, and MEMORY is without the file "
        "cache. RESTARTS is also shown if a service has restarted. With --listening, "
        "LISTENS has the ports on which programs listen, with the address if it is a single one, "
        "and after the word not the published ports on which no program listens.",
        lines="niso ps\nniso ps --listening\nniso ps --json",
    ),
    Command(
        "scale",
        "change the number of instances of a service",
        (Argument("NAME=N", "an active service with replicas, and 1 to 16", "active", key="name"),),
        (TIMEOUT, JSON),
        'The service must have service.replicas in its manifest, or update = "start-first". New '
        "instances get connections once they are healthy. Instances that end get no new "
        "connections, and have deploy.drain to finish their open ones. The number is in effect "
        "until the next activation of the manifest.",
        "niso scale api=5",
        "1 an instance did not become healthy: nothing was changed",
        aside=True,
    ),
    Command(
        "rollback",
        "activate a former package and manifest of a service",
        (
            Argument("NAME", "a known service", "service"),
            Argument("GENERATION?", "its number in niso history"),
        ),
        (
            Option("--to GENERATION", "the same"),
            TIMEOUT,
            JSON,
        ),
        "Without a number, this is the last generation with another package or manifest. A "
        "service with replicas is replaced as in any deploy, other services restart. Secrets are "
        "read as they are now. The last two packages are kept, with replicas the last three.",
        "niso rollback api\nniso rollback api 4",
        "1 the version did not become healthy: nothing was changed",
        aside=True,
    ),
    Command(
        "history",
        "list who activated, restarted or stopped services",
        (Argument("NAME?", "only this service", "service"),),
        (JSON,),
        "The last 50 of each service are kept. OUTCOME is done, failed (it was rolled back), taken "
        "back (it failed within deploy.monitor), or stopped. WHO is the user of the login, and of "
        "sudo if that is another one.",
        "niso history\nniso history api",
        aside=True,
    ),
    Command(
        "inspect",
        "print everything about a service as JSON",
        (Argument("NAME", "a known service", "service"),),
        (Option("--json", "no effect: the output is always JSON"),),
        lines="niso inspect api",
    ),
    Command(
        "logs",
        "print the output of a service",
        (Argument("NAME", "a known service", "service"),),
        LOG_OPTIONS,
        "At least the last 10 MB are kept, across restarts and deactivations.",
        lines="niso logs api -n 20\nniso logs api --since 10m\nniso logs api -f -t",
    ),
    Command(
        "exec",
        "run a command inside a service",
        (
            Argument("NAME", "an active service", "active"),
            Argument("-- CMD...", "the command and its arguments", key="command"),
        ),
        (
            Option("-i --interactive", "no effect: stdin is always passed on"),
            Option("-t --tty", "no effect: a terminal is used if there is one"),
            Option(
                "-u --user USER",
                "run as another user: a name of its root file system, or uid[:gid]",
            ),
        ),
        "The command gets the service's namespaces, root file system, user, environment, "
        "capabilities and limits. Stdin, terminal, signals and exit status pass through. --user "
        "changes the user and its groups only: root gets no capability that the service lacks.",
        lines="niso exec api -- cat /etc/hosts\n"
        "niso exec api -- sh\n"
        "niso exec --user 0 api -- id  # as root, but without its capabilities",
        statuses="N the exit status of the command\n"
        "125 niso could not run the command\n"
        "126 the command is not executable\n"
        "127 the command was not found\n"
        "128+N the command was killed by signal N",
    ),
    Command(
        "kill",
        "send a signal to the process of services",
        (Argument("NAME+", "an active service", "active"),),
        (Option("-s --signal SIG", "a signal by name or number", "KILL"), JSON),
        "The services stay active. The signal goes to the process of the entrypoint, and KILL ends "
        "all processes. A process that ends by it is started again if its restart policy says so; "
        "niso deactivate ends a service for good.",
        lines="niso kill --signal HUP api  # reload\nniso kill db  # as if it had crashed",
        statuses="0 the signal was sent; the output says whether the process has ended\n"
        "1 a service is not active or has no process",
        ends=True,
        aside=True,
    ),
    Command(
        "port-forward",
        "publish another port of an active service, without a restart",
        (
            Argument("NAME", "an active service", "active"),
            Argument(
                "PORT",
                "[ADDRESS:]HOST:CONTAINER[/PROTO]; HOST and CONTAINER can be ranges",
                "forward",
            ),
        ),
        (
            Option("--remove", "withdraw the port", group="which", ends=True),
            Option(
                "--take-over",
                "take over the host port from another service",
                group="which",
                ends=True,
            ),
            *REPORTS,
        ),
        "A forward survives crashes, restarts, reboots and activate, also with a changed manifest. "
        "deactivate withdraws it, and so does activate with a manifest that leaves the service no "
        "network. activate fails if the manifest publishes another port at the forward's host "
        "port. --take-over takes the host port on all of its addresses, and --remove publishes "
        "the port of a manifest that was taken so again; established connections are kept.",
        lines="niso port-forward api 9090:9090\n"
        "niso port-forward dns 127.0.0.1:53:53/udp  # from this host only\n"
        "niso port-forward api-2 8080:8080 --take-over  # take over the port\n"
        "niso port-forward api 9090:9090 --remove",
    ),
)


# --- niso stack -----------------------------------------------------------------------------------


_DIR = Argument("DIR?", "a stack.toml or its folder", "folder", ".")
_ACTIONS = (
    Command(
        "stack up",
        "apply a stack.toml, all or nothing",
        (_DIR,),
        (
            TIMEOUT,
            Option(
                "--take-over",
                "take over the stack of this name, and services, from other folders",
                ends=True,
            ),
            TRUST_OWNER,
            *CHANGES,
        ),
        "Creates the networks and activates the services in dependency order, in parallel where "
        "possible. On an active stack it applies the changes of the file and deactivates services "
        "that were removed from it. If anything fails, everything is rolled back.",
        lines="niso stack up  # the stack.toml here\n"
        "niso stack up ./shop\n"
        "niso stack up --dry-run  # show the steps",
        statuses="0 the stack matches the file\n"
        "1 failed; changes were rolled back, or the error says what is left for niso net repair",
    ),
    Command(
        "stack down",
        "deactivate all services of the stack",
        (_DIR,),
        (Option("--volumes", "also delete the named volumes of the services", ends=True), *CHANGES),
        "Addresses and networks are kept, and so are volumes unless --volumes is given. niso "
        "remove NAME deletes the record of a service.",
        lines="niso stack down ./shop",
        ends=True,
    ),
    Command(
        "stack ps",
        "list the services of the stack and their status",
        (_DIR,),
        (JSON,),
        "The columns are the same as those of niso ps.",
        lines="niso stack ps ./shop",
    ),
    Command(
        "stack restart",
        "restart the processes of the stack's active services",
        (_DIR,),
        REPORTS,
        "Namespaces, addresses and published ports are not affected. Services that others depend "
        "on restart first.",
        lines="niso stack restart ./shop",
        ends=True,
    ),
    Command(
        "stack logs",
        "print the output of all services of the stack",
        (_DIR,),
        LOG_OPTIONS,
        "Each line starts with the name of its service. -n counts for each service.",
        lines="niso stack logs ./shop -n 20\nniso stack logs -f",
    ),
)
GROUPS = (
    Command(
        "stack",
        "manage the services of a stack.toml: up, down, ps, logs, restart",
        actions=_ACTIONS,
    ),
)
