"""Define enable, lab, validate, help and others, niso cluster, kubernetes and firewall.

`HABITS` maps commands of other tools to the niso command that does the same.
`niso.cli.parse.unknown_command` prints the niso command as a hint. docs/guide/coming-from-docker.md
shows `HABITS` as a table, which ``./dev docs`` writes.
"""

from __future__ import annotations

from niso.cli.command import (
    CHANGES,
    FOR,
    JSON,
    REPORTS,
    TIMEOUT,
    VERBOSE,
    Argument,
    Command,
    Option,
)

# --- general commands -----------------------------------------------------------------------------


COMMANDS = (
    Command(
        "enable",
        "start services at boot",
        (Argument("NAME+", "a known service", "disabled"),),
        (
            Option("--no-firewall", "do not run niso firewall enable with the first service"),
            *REPORTS,
        ),
        "With systemd as init, each service gets a unit niso-NAME.service: systemctl status, stop, "
        "start and restart work, and journalctl -u niso-NAME shows the service's output. With "
        "another init, run niso restore at boot. The first enabled service also gets what niso "
        "firewall enable does.",
        lines="niso enable api\nniso enable db api",
    ),
    Command(
        "disable",
        "do not start services at boot",
        (Argument("NAME+", "a known service", "enabled"),),
        REPORTS,
        "Active services stay active.",
        lines="niso disable api",
        aside=True,
    ),
    Command(
        "restore",
        "activate all enabled services, at boot or by hand",
        options=(TIMEOUT, *REPORTS),
        about="Each service gets the manifest of its last activation and its addresses, ports and "
        "forwards. If one fails, the others are still activated.",
        lines="niso restore\n@reboot /usr/local/bin/niso restore  # a line in root's crontab",
        statuses="0 all enabled services are active\n1 some failed; each has an error",
        aside=True,
    ),
    Command(
        "agent",
        "follow the cluster that this host is in, in the foreground",
        about="niso-agent.service runs this command. It keeps the names and addresses of services "
        "on other hosts up to date, and shows them that this host is alive. Without it, this host "
        "keeps what it knows, and after 10 seconds other hosts leave its names out.",
        lines="niso agent  # until Ctrl-C",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "health",
        "watch services with replicas, in the foreground",
        about="Commands start it when a service needs it, and it ends when none does. An instance "
        "whose process ends or that becomes unhealthy gets no new connections, and gets them again "
        'after two successful probes. A service with on_unhealthy = "restart" is restarted. If '
        "it dies, connections go on, and the next niso command starts it again.",
        lines="niso health  # until Ctrl-C",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "top",
        "show traffic and new flows of services, live",
        (Argument("NAME?", "only this service, with its flows and TCP connections", "service"),),
        (
            Option("-n N", "print N tables, one every 2 seconds", number=True, key="count"),
            Option("--json", "print one JSON object per table"),
        ),
        "IN and OUT are bits per second, NEW/s new flows and refused attempts, DENIED the packets "
        "that the policy has dropped in all. BY is the published port or the manifest entry that "
        "decides on a flow. Of one service it also shows the TCP connections, with RTT, "
        "retransmitted segments (RETRANS) and total bytes. On a terminal: arrows and Enter choose "
        "a service and show its flows and connections, d shows only what was denied, s sorts, / "
        "finds. e explains the flow or connection with the cursor, c captures it, or a service; l "
        "follows the logs. Escape goes back, q ends. That needs Textual (python3-textual, or "
        "niso[top] with pip). With -n, --json or a pipe it prints tables, one without -n.",
        lines="niso top\nniso top -n 1\nniso top api -n 2 --json  # now, and two seconds later",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "events",
        "show what happens to services and networks, as it happens",
        (Argument("NAME?", "only this service", "service"),),
        (
            Option(
                "--since WHEN",
                "begin with what is known since a time (2026-03-01T12:00:00Z) or period (2h)",
            ),
            FOR,
            Option("--json", "print one JSON object per event"),
        ),
        "Each line has the time, the service or network, what happened and details. What a command "
        "does at once is one line. Changes of niso's nftables tables by other programs are shown "
        "as foreign, with the program and its PID. Health is as niso ps last probed it. Nothing is "
        "recorded: --since shows what niso knows of the present run of each service.",
        lines="niso events --for 10s\n"
        "niso events api --since 1h --for 1s  # of the last hour, and one second more\n"
        "niso events --for 1s --json",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "web",
        "show services and their flows as a live map in a browser",
        options=(
            Option("--port PORT", "port of 127.0.0.1", "9500", number=True),
            Option("--socket PATH", "a Unix socket instead, for root alone"),
            Option("--open", "open it in the browser of the user who called sudo"),
            FOR,
        ),
        about="Prints the address of the map, with the token that it asks for. The map is "
        "read-only. One process reads the state as root. Another one, without privileges, files or "
        "network, serves the page on 127.0.0.1. Both end with the command. Needs Starlette and "
        "uvicorn (python3-starlette and python3-uvicorn, or niso[web] with pip).",
        lines="niso web\n"
        "niso web --for 1h\n"
        "niso web --socket /run/niso-web.sock  # ssh -L 9500:/run/niso-web.sock root@HOST",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "metrics",
        "print metrics for Prometheus",
        options=(
            Option(
                "--listen PORT",
                "serve them by HTTP until Ctrl-C, on 127.0.0.1 or at ADDR:PORT",
                group="way",
            ),
            Option("--inetd", "answer one HTTP request on stdin", group="way"),
            Option(
                "-o --output FILE",
                "write them to this file, as a whole, for node_exporter's textfile collector",
                group="way",
            ),
            Option(
                "--flows N",
                "print at most N series of flows, the most frequent first",
                "200",
                number=True,
            ),
        ),
        about="State and health of services, traffic by network, what policies let pass and "
        "dropped, flows by name, published ports. The format is text 0.0.4. HTTP has no encryption "
        "and no password: whoever reaches ADDR can read them. Needs prometheus_client "
        "(python3-prometheus-client, or niso[metrics] with pip).",
        lines="niso metrics\n"
        "niso metrics --listen 9501  # http://127.0.0.1:9501/metrics\n"
        "niso metrics --listen [::1]:9501\n"
        "niso metrics -o /var/lib/prometheus/node-exporter/niso.prom  # from a timer",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "lab",
        "open a disposable host for experiments",
        (
            Argument(
                "[-- CMD...]", "the command to run (default: your shell)", "command", key="command"
            ),
        ),
        (Option("--write FOLDER...", "keep what is written in this folder of the machine"),),
        "The lab shows the files of the machine. What is written is discarded with the lab, also "
        "in the current folder; /tmp, /run and niso's state begin empty. Where the machine's /usr "
        "is an overlay, /usr is read-only. A lab protects the machine from accidents only: its "
        "root is still root of the machine's kernel and devices. Sysctls but net and /sys but "
        "cgroups are read-only, and nothing can load modules, reboot, set the clock or use I/O "
        "ports, nor can a service that asks for these capabilities start. The host has 192.0.2.1 "
        "and 2001:db8::1 on uplink0. `ip netns exec client ...` runs a command on another machine "
        "(192.0.2.2), `ip netns exec neighbour ...` on a third (192.0.2.3). The lab has no "
        "connection to the outside. Everything in it ends with the command. Without root, the "
        "lab is in a user namespace (user_namespaces(7)). This needs newuidmap (apt install "
        "uidmap) and 65,536 subordinate ids. Nothing then limits memory and CPU, and /usr and "
        "other users' files are read-only, except a copy of /etc. If a setting forbids the "
        "namespace, the error names it.",
        lines="niso lab\n"
        "niso lab -- sh -c 'niso activate ./api && curl http://192.0.2.1:8080'\n"
        "niso lab --write . -- sh -c 'ip address > addresses'  # keep the file",
        statuses="N the exit status of the command\n"
        "125 the lab could not be created\n"
        "126 the command is not executable\n"
        "127 the command was not found\n"
        "128+N the command was killed by signal N",
        root=False,
        aside=True,  # the last line of the first screen shows it
    ),
    Command(
        "reset",
        "remove everything of niso from the kernel, and end all services",
        options=(
            Option("-y --yes", "do not ask", ends=True),
            *CHANGES,
        ),
        about="Stops the processes of all services and removes all namespaces, bridges and rules "
        "of niso. The command first lists what it removes, and asks. It works without a store. "
        "Services, their volumes and the store are kept: niso activate starts them again.",
        lines="niso reset --dry-run  # list what it would remove\nniso reset",
        ends=True,
        aside=True,
    ),
    Command(
        "validate",
        "validate manifests and stacks without changing anything",
        (Argument("PATH*", "a manifest, a stack.toml or their folder (default: .)", "file"),),
        (JSON,),
        "For CI jobs and editors. Reports the errors of all files, each with the line of its key. "
        "A stack is checked with the manifests of its packages, and its services beside each "
        "other: two cannot have the same host port, address or name. niso activate --dry-run also "
        "checks what depends on a machine: whether programs, users and paths of the host exist, "
        "and whether names, ports and addresses are free there.",
        lines="niso validate  # the files of this folder\nniso validate ./api ./shop/stack.toml",
        statuses="0 all files are valid\n1 a file has errors",
        root=False,
    ),
    Command(
        "schema",
        "print the JSON Schema of manifest.toml or stack.toml",
        (Argument("FILE?", "manifest or stack", "schema", "manifest"),),
        about="For editors that validate TOML against a JSON Schema. VS Code (Even Better TOML) "
        "and Taplo read the line `#:schema ./manifest.schema.json` at the top of a manifest.",
        lines="niso schema > manifest.schema.json\nniso schema stack > stack.schema.json",
        root=False,
        aside=True,
    ),
    Command(
        "import",
        "convert a compose file to a stack.toml",
        (Argument("FILE", "a compose.yaml", "file"),),
        (Option("-o --output DIR", "folder for the stack.toml (default: print it)"), JSON),
        "Takes over what niso has keys for, and lists everything else, also as comments in the "
        "file. The list goes to stderr if the file is printed. Images are not fetched; the "
        "commands that do it are printed. An existing stack.toml is never overwritten. Needs "
        "PyYAML (python3-yaml).",
        lines="niso import compose.yaml\nniso import compose.yaml --output my-shop",
        statuses="0 the file was converted, maybe not all of it\n1 it could not be read",
        root=False,
        aside=True,
    ),
    Command(
        "completion",
        "print a completion script for bash or zsh",
        (Argument("SHELL", "bash or zsh", "shell"),),
        about="Commands, actions and options are completed for every user; names and ports only in "
        "root's shell, since only root can read the store.",
        lines="source <(niso completion bash)  # in ~/.bashrc\n"
        "niso completion bash > /etc/bash_completion.d/niso  # for all users\n"
        "source <(niso completion zsh)  # in ~/.zshrc, after compinit",
        root=False,
        aside=True,
    ),
    Command(
        "help",
        "show the help of a command",
        (Argument("COMMAND*", "a command and its action", "help", key="words"),),
        root=False,
    ),
    Command("version", "print niso's version, and the commit of a checkout", root=False),
    Command(
        "complete",
        "print completions of a command line; called by the scripts of niso completion",
        (
            Argument("SHELL", "bash or zsh"),
            Argument("-- WORD...", "the command line, or its words", key="words"),
        ),
        root=False,
    ),
    Command(
        "on-exit",
        "record the end of a service and apply its restart policy; called by conmon",
        (
            Argument("SERVICE", "the service that has ended"),
            Argument("RUN", "the folder of its run"),
        ),
    ),
)


# --- niso cluster ---------------------------------------------------------------------------------


_ENCRYPT = Option(
    "--encrypt HOW",
    "encrypt packets between hosts; HOW is kernel (default) or userspace",
    implied="kernel",
)
_KUBECONFIG = Option(
    "--kubeconfig FILE",
    "file with the address and credentials of the API server",
    "/etc/niso/kubeconfig",
)
_ACTIONS = (
    Command(
        "cluster init",
        "create a cluster with this host as its first one",
        options=(
            Option(
                "--address ADDRESS",
                "address of this host for the others (default: that of the default route)",
            ),
            Option("--name HOST", "name of this host (default: the hostname)"),
            _ENCRYPT,
            Option("--etcd URLS", "use an existing etcd, at URLs separated by commas"),
            Option("--cacert FILE", "the authority of its certificates (PEM)"),
            Option("--cert FILE", "the certificate for it (PEM)"),
            Option("--key FILE", "the key of that certificate (PEM)"),
            Option("--user FILE", "etcd's user: a file with one line, NAME:PASSWORD"),
            Option("--prefix PREFIX", "prefix of the cluster's keys in etcd (default: /niso/v1/)"),
            *REPORTS,
        ),
        about="Hosts agree through etcd on names and addresses. Without --etcd this host runs it, "
        "with certificates of the cluster's own: niso-etcd.service, in /var/lib/niso-etcd. "
        "niso-agent.service follows what other hosts have. Without systemd, etcd is started in the "
        "background, and you have to run niso agent yourself. Hosts need TCP ports 2379 and 2380 "
        "for etcd. Packets of services between them are VXLAN, UDP port 4799. With --encrypt these "
        "packets go through the kernel's WireGuard, UDP port 4800. On a host whose kernel lacks "
        "it, --encrypt=userspace uses the process wireguard-go, at a tenth of the speed. All hosts "
        "encrypt, or none.",
        lines="niso cluster init --address 198.51.100.1\n"
        "niso cluster init --encrypt --address 198.51.100.1\n"
        "niso cluster init --etcd https://e:2379 --cacert c --cert h --key k",
    ),
    Command(
        "cluster invite",
        "print the invitation of a host, a secret",
        (Argument("HOST", "name of the host"),),
        (
            Option("--address ADDRESS", "address of HOST for the others; needed without --renew"),
            Option("--renew", "new certificates and keys for a host that is in the cluster"),
            Option("--member", "the host may run a member of etcd"),
        ),
        "The invitation has a certificate and its key, valid for ten years. Whoever has it can "
        "join as that host, so it is never printed on a terminal. `| ssh b niso cluster join -` "
        "keeps it off the disk. Any member of etcd can make it. With --member, and for the first "
        "three hosts, it also has the key that signs certificates.",
        lines="niso cluster invite b --address 198.51.100.2 > b.join\n"
        "niso cluster invite b --renew > b.join",
    ),
    Command(
        "cluster join",
        "join a cluster with an invitation",
        (Argument("FILE", "the invitation, or - for stdin", "folder"),),
        (
            Option("--member", "run a member of etcd", group="member", means=1),
            Option("--no-member", "run none", group="member", means=2, key="member"),
            _ENCRYPT,
            *REPORTS,
        ),
        "The first three hosts run a member of etcd: with three, the loss of one changes nothing. "
        "A host of an encrypted cluster encrypts as the first host does. --encrypt=HOW chooses "
        "another way for this host.",
        lines="niso cluster join b.join",
    ),
    Command(
        "cluster status",
        "show the hosts and the members of etcd",
        options=(JSON,),
        about="SERVICES counts the services of a host, whether they run or not. BEHIND is how long "
        "a host's agent has had changes to read or apply. If etcd does not answer, hosts are shown "
        "as this one last knew them.",
        lines="niso cluster status",
        statuses="0 etcd answers\n1 it does not, or this host is in no cluster",
    ),
    Command(
        "cluster leave",
        "take this host out of its cluster",
        options=(
            Option("--force", "also if the cluster does not answer; it then still lists this host"),
            VERBOSE,
        ),
        about="Fails if services are on networks of the cluster. The member of etcd ends, and its "
        "data are deleted.",
        lines="niso cluster leave",
        ends=True,
    ),
    Command(
        "cluster forget",
        "remove a lost host from the cluster for good",
        (Argument("HOST", "a host that is gone"),),
        about="Its services' names and addresses become free, and its member of etcd is dropped. A "
        "service that should continue elsewhere must be taken over first. Members of etcd refuse "
        "the host's certificate. HOST can also have left, or never have used its invitation.",
        lines="niso cluster forget c",
        ends=True,
    ),
    Command(
        "cluster member add",
        "run a member of etcd on this host",
        (Argument("HOST?", "this host's name, as a check"),),
        (VERBOSE,),
        "The first three hosts that join are members by themselves. After the loss of one, another "
        "host takes its place. The host needs the key that members have: it comes with an "
        "invitation.",
        lines="niso cluster member add",
    ),
    Command(
        "cluster member remove",
        "stop running a member on this host, or drop that of a lost host",
        (Argument("HOST?", "a lost host (default: this one)"),),
        (VERBOSE,),
        "Deletes the member's data. The host stays in the cluster.",
        lines="niso cluster member remove\nniso cluster member remove c  # c is lost",
        ends=True,
    ),
    Command(
        "cluster recover",
        "continue after etcd has lost its data or most of its members",
        options=(
            Option(
                "--force",
                "continue with this host's member alone, after most members were lost for good",
                ends=True,
            ),
            *REPORTS,
        ),
        about="Without --force, writes the cluster's hosts, networks, names and addresses to etcd "
        "again, as far as this host knows them. The agents of other hosts add what they know. If "
        "no member of etcd answers, this host runs the first one. A backup has more: restore the "
        "backup if there is one. With --force, this host's member of etcd forgets all others and "
        "keeps its data, except changes of the last moment. Stop all other members first: two "
        "halves that both continue would lease the same addresses. A host that was a member "
        "becomes one again by niso cluster member remove and then add.",
        lines="niso cluster recover  # etcd has lost its data\n"
        "niso cluster recover --force  # two of three members are lost",
        aside=True,
    ),
    Command(
        "cluster backup",
        "write etcd's data to a file",
        (Argument("FILE", "the file to write; replaced as a whole", "folder"),),
        about="The file is a snapshot, for etcdctl snapshot restore.",
        lines="niso cluster backup /root/cluster.db",
    ),
    Command(
        "cluster etcd",
        "run this host's member of etcd in the foreground",
        about="niso-etcd.service runs this command. Without systemd, run it at boot.",
        lines="niso cluster etcd",
        aside=True,
    ),
)
_KUBERNETES = (
    Command(
        "kubernetes run",
        "apply Kubernetes' network policies to the pods of this node, in the foreground",
        options=(_KUBECONFIG,),
        about="Applies to pods that niso-cni attaches with the key kubernetes. While it does not "
        "run, pods keep the policies that they have, and new pods do not start.",
        lines="niso kubernetes run  # until Ctrl-C",
        statuses="130 stopped with Ctrl-C",
    ),
    Command(
        "kubernetes enable",
        "let systemd run niso kubernetes run, now and at boot",
        options=(_KUBECONFIG, *REPORTS),
        lines="niso kubernetes enable --kubeconfig /root/kubeconfig",
    ),
    Command(
        "kubernetes disable",
        "undo niso kubernetes enable",
        options=REPORTS,
        lines="niso kubernetes disable",
        ends=True,
    ),
)
_FIREWALL = (
    Command(
        "firewall enable",
        "restore niso's rules whenever another firewall has loaded its own",
        options=REPORTS,
        about="Adds niso net repair --kernel to each start, reload and stop of nftables.service "
        "and firewalld.service, which may flush all rules.",
        lines="niso firewall enable",
    ),
    Command(
        "firewall disable",
        "undo niso firewall enable",
        options=REPORTS,
        lines="niso firewall disable",
        ends=True,
    ),
)
GROUPS = (
    Command("cluster", "let several hosts share networks", actions=_ACTIONS),
    Command("kubernetes", "apply network policies to pods of this node", actions=_KUBERNETES),
    Command("firewall", "restore niso's rules after other firewalls", actions=_FIREWALL),
)


# --- habits of other tools ------------------------------------------------------------------------


HABITS = {
    "run, create": "niso activate ./FOLDER: ports, volumes and the rest are in the folder's"
    " manifest.toml",
    "start": "niso activate NAME: a known service, with the manifest of its last activation",
    "update, reload, daemon-reload, apply, wait": "niso activate ./FOLDER: applies the changes of"
    " its manifest, and waits until it is healthy",
    "rename": "another name in a manifest is another service, with addresses and volumes of its"
    " own",
    "stop": "niso deactivate NAME: its address and logs are kept",
    "rm, delete, container rm": "niso remove NAME: named volumes are kept; --volumes deletes them",
    "ls, list, status, is-active, list-units, container ls, container list, get": "niso ps: lists"
    " inactive services too",
    "show, describe, container inspect, is-enabled": "niso inspect NAME",
    "attach, journalctl, log": "niso logs NAME -f",
    "sh, shell, enter": "niso exec NAME -- sh: uses a terminal if there is one",
    "cp": "niso exec NAME -- cat FILE: or mount a host folder as a volume",
    "port": "niso net ports: --exposed shows from where each is reachable",
    "ss, netstat, lsof": "niso ps --listening: where the programs of each service listen",
    "stats": "niso ps --stats: niso top is live, niso net stats counts packets",
    "expose": "niso port-forward NAME 8081:80: no restart",
    "up, compose up, compose start, compose create, stack start, stack deploy": "niso stack up:"
    " reads ./stack.toml",
    "down, compose down, compose stop, stack stop, stack rm": "niso stack down",
    "compose ps, compose ls, stack ls": "niso stack ps",
    "compose logs": "niso stack logs",
    "compose restart": "niso stack restart",
    "compose exec, stack exec": "niso exec NAME -- CMD",
    "compose config, stack config": "niso stack up --dry-run: shows the steps",
    "compose, docker-compose": "niso stack up: niso help stack lists the actions",
    "network ls, network list, net ls": "niso net list",
    "network inspect, net show": "niso net inspect NAME",
    "network create, net add": "niso net create NAME: with --subnet, --internal and --ipv6 as in"
    " docker",
    "network rm, network remove, net rm, net delete": "niso net remove NAME",
    "network connect, network disconnect, net connect, net disconnect": "niso activate ./FOLDER:"
    " after a change of networks in its manifest; the process keeps running",
    "network": "niso net list: niso help net lists the actions",
    "export, checkpoint, commit": "niso save NAME: the package, its volumes and networks",
    "volume import": "niso load FILE: loads an archive of niso save",
    "volumes, volume ls": "niso volume list: with sizes; a volume belongs to one service",
    "volume rm, volume prune": "niso volume remove SERVICE/NAME",
    "volume create": "niso activate ./FOLDER: creates the volumes of [volumes] in its manifest",
    "secret, secrets": "a secret is a file, which a manifest names in [secrets]",
    "generate systemd, generate, quadlet": "niso enable NAME: starts the service at boot",
    "info, system info": "niso version",
    "build, pull, push, images, image, login": "there are no images: a service is a"
    " folder, and can have a root file system",
    "prune, system prune, network prune, net prune": "networks that a manifest made are removed"
    " with their last service",
    "compose scale, service scale": "niso scale NAME=N: the service has replicas in its manifest",
    "rollout, service update": "niso activate ./FOLDER: niso history NAME, niso rollback NAME",
    "service rollback": "niso rollback NAME",
}
"""Commands of docker, compose, podman, systemctl and kubectl, each with a hint.

Commands are without the tool's name. A hint is a remark, or the niso command with the same effect.
If several commands match a command line, the longest applies.
"""
_PROGRAMS = ("docker", "podman", "compose", "docker-compose", "systemctl", "kubectl")


def answer(words: list[str]) -> str:
    """Return the niso command for a command line of another tool, or "" if `HABITS` has none.

    Options in ``words`` are ignored. The first two words are looked up in `HABITS`, then the words
    after a tool's name such as ``docker``, then only the first word.
    """
    meant = {word: hint for theirs, hint in HABITS.items() for word in theirs.split(", ")}
    typed = [word for word in words if not word.startswith("-")]
    for count in (2, 1):
        if count == 1 and typed and typed[0] in _PROGRAMS and (known := answer(typed[1:])):
            return known
        if len(typed) >= count and (known := meant.get(" ".join(typed[:count]), "")):
            return known
    return ""
