"""Define the commands of niso net: networks, attachments, policies, flows, check and repair."""

from __future__ import annotations

from niso.cli.command import CHANGES, FOR, JSON, REPORTS, Argument, Command, Option

_SINCE = Option(
    "--since TIME", "only what was new since then: a time (RFC 3339) or a period such as 2h"
)
_FROM = Argument("FROM", "a service, an address or host", "end", key="source")
_INSTANCES = Option("-i --instances", "show the instances of services with replicas apart")
_TO = Argument(
    "TO",
    "a service, an address or host, optionally with :PORT and /PROTO",
    "target",
    key="destination",
)
_ACTIONS = (
    Command(
        "net create",
        "create a network and its bridge",
        (Argument("NAME", "up to 63 of a-z, 0-9 and -, starting with a letter"),),
        (
            Option(
                "--subnet CIDR...",
                "a subnet, at most one per family (default: the next free /24 of the pool that no "
                "route of the host uses)",
            ),
            Option("--ipv6", "add an IPv6 subnet: a /64 of the host's unique local prefix"),
            Option("--gateway IP...", "the bridge's address (default: the first of the subnet)"),
            Option("--internal", "forward nothing out; the host and published ports are reachable"),
            Option(
                "--mtu N", "MTU in bytes (default: that of the default route's link)", number=True
            ),
            Option(
                "--allow-public", "accept a public prefix, which this host can then no longer reach"
            ),
            Option("--no-observe", "do not have the kernel remember its flows"),
            Option(
                "--span", "span the hosts of the cluster; if the cluster has this network, use it"
            ),
            Option(
                "--multicast",
                "let UDP multicasts and broadcasts pass between its services, as policies allow",
            ),
            *CHANGES,
        ),
        "activate also creates missing networks that a manifest names. If the network already "
        "exists with the same settings, nothing changes.",
        lines="niso net create backend  # the next free /24\n"
        "niso net create backend --subnet 10.99.1.0/24\n"
        "niso net create dmz --subnet 10.50.0.0/22 --gateway 10.50.3.254 --mtu 1400\n"
        "niso net create dual --ipv6  # both families\n"
        "niso net create dual --subnet 10.99.2.0/24 --subnet fd00:99:2::/64\n"
        "niso net create db --internal",
    ),
    Command(
        "net list",
        "list networks",
        options=(JSON,),
        about="The default network, niso-default, comes first; the others are sorted by name. In a "
        "cluster, ELSEWHERE counts services of other hosts.",
        lines="niso net list",
    ),
    Command(
        "net inspect",
        "show a network and its services",
        (Argument("NAME", "a network", "network"),),
        (JSON,),
        lines="niso net inspect niso-default",
    ),
    Command(
        "net remove",
        "remove unused networks",
        (Argument("NAME+", "a network", "network"),),
        CHANGES,
        "Fails if a known service, active or not, uses one of the networks; the error names the "
        "services. A network that spans hosts is removed from all of them.",
        lines="niso net remove backend",
        ends=True,
    ),
    Command(
        "net attach",
        "connect a network namespace of another program to niso's networks",
        (Argument("NAME", "its name for commands, policies and services"),),
        (
            Option("--netns PATH", "the file of the namespace"),
            Option("--pid N", "the namespace of this process", number=True),
            Option("--new", "create a namespace, /run/netns/niso-NAME"),
            Option(
                "--network NETWORK...",
                "a network, optionally with ,interface=NAME ,ip=ADDRESS ,mac=ADDRESS (default: "
                "niso-default)",
            ),
            Option("-p --port PORT...", "publish a port"),
            Option("--alias NAME...", "an additional name"),
            Option("--allow-from ENTRIES", "entries of a policy, separated by spaces or commas"),
            Option("--deny-from ENTRIES", "the same, of deny_from"),
            Option("--egress-allow ENTRIES", "the same, of egress.allow"),
            Option("--egress-deny ENTRIES", "the same, of egress.deny"),
            Option("--log", "log what the policy drops"),
            Option("--bandwidth in=RATE,out=RATE", "limits on each network, in bits per second"),
            Option("--owner WORD", "the program that manages the namespace (default: cli)"),
            Option("--id ID", "the owner's id for it"),
            Option(
                "--unit UNIT", "with --new: put this service unit of systemd into it, by a drop-in"
            ),
            *REPORTS,
        ),
        "The namespace gets an interface on each network, addresses, routes, ports and policy as a "
        "service does. niso starts no process in it, and touches nothing else in it. Attach again "
        "to change something: only the difference is applied. niso identifies the namespace by its "
        "cookie: if the path leads to another one later, the attachment is gone. With --unit, "
        "systemd attaches it before the unit starts, also after a reboot.",
        lines="niso net attach box --pid 4711 --network backend\n"
        "niso net attach box --netns /run/netns/blue --network backend,ip=10.99.1.9\n"
        "niso net attach web --new -p 8081:80 --allow-from '10.0.0.0/8 api:80'\n"
        "niso net attach web --new --unit web.service -p 8081:80  # a unit of systemd",
        aside=True,
    ),
    Command(
        "net detach",
        "disconnect attached namespaces from niso's networks",
        (Argument("NAME+", "an attachment", "service"),),
        (Option("--id ID", "only if the attachment still has this id"), *REPORTS),
        "An attachment that is gone already is not an error. The namespace stays, unless niso made "
        "it. The address is kept for the same owner and name until no other is free. Without --id, "
        "the files of net attach --unit are removed too; the unit has the host's network from its "
        "next start on.",
        lines="niso net detach box",
        ends=True,
        aside=True,
    ),
    Command(
        "net gc",
        "detach attachments whose namespace has ended",
        options=(
            Option("--owner WORD", "only attachments of this owner"),
            Option(
                "--valid IDS",
                "ids that the owner still has, separated by spaces; detach its other attachments "
                "too",
            ),
            *REPORTS,
        ),
        about="A namespace ends with the last process or mount that holds it, or by a reboot.\n\n"
        "Containers that Podman no longer has are detached too, if no process is in them. Networks "
        "that Podman has removed are removed, if no service is on them.",
        lines="niso net gc\nniso net gc --owner podman --valid 'b186d057f65e'",
        ends=True,
        aside=True,
    ),
    Command(
        "net ports",
        "list published ports",
        options=(
            Option("--exposed", "show from where each port can be reached"),
            Option("--all-hosts", "also list the ports of other hosts"),
            JSON,
        ),
        about="A port without a host address has a row for each address family of its network. "
        "With --all-hosts it has one row, and HOST is the host of the cluster where it is open. Of "
        "other hosts only services on networks that span hosts are known. If the cluster does not "
        "answer, a warning says that only the ports of this host are listed.",
        lines="niso net ports\nniso net ports --exposed",
    ),
    Command(
        "net rules",
        "print niso's nftables rules",
        options=(Option("--json", "print them as JSON, see libnftables-json(5)"),),
        about="niso owns the tables inet niso and bridge niso and changes no others. Sets that "
        "rules fill are shown without elements: niso net flows shows the flows that they remember.",
        lines="niso net rules",
        aside=True,
    ),
    Command(
        "net ping",
        "send an ICMP echo from one service to another",
        (
            Argument("FROM", "an active service", "active", key="source"),
            Argument("TO", "an active service on a common network", "active", key="destination"),
        ),
        (JSON,),
        "The packet is sent from FROM's namespace to the address of TO in FROM's hosts file. If "
        "there is no reply, the error names the reason: a service is not active, there is no "
        "common network, a policy entry drops the packet, or TO does not reply.",
        lines="niso net ping api postgres",
        statuses="0 TO replied\n1 no reply; the error names the reason",
    ),
    Command(
        "net explain",
        "show whether a packet passes, and which manifest entry decides",
        (_FROM, _TO),
        (
            Option("-4", "use IPv4", group="family", means=4, key="family"),
            Option("-6", "use IPv6", group="family", means=6, key="family"),
            Option("--prove", "send a test packet and check that the kernel agrees"),
            JSON,
        ),
        "PROTO is tcp (the default), udp or sctp. Without a port the packet is an ICMP echo "
        "request. Put an IPv6 address with a port in brackets. IPv4 is used between services if "
        "both have it. If TO is a service with replicas, the source port decides which instance "
        "gets the packet: FROM:PORT names the instance. The line listens says if no program of the "
        "service listens there. The lines others say what nftables chains of other programs do to "
        "the packet; niso net trace shows the same of real packets.",
        lines="niso net explain api postgres:5432\n"
        "niso net explain api postgres:5432 --prove  # with a test packet\n"
        "niso net explain 192.0.2.7 192.0.2.1:8080/tcp"
        "  # from another machine to a published port\n"
        "niso net explain api '[fd00:99:1::2]:53/udp'\n"
        "niso net explain host api  # ICMP echo\n"
        "niso net explain api:40001 web:80  # which instance gets a connection from this port",
        statuses="0 the packet passes, whether a program listens or not\n"
        "1 it is dropped, also by another firewall, or the test packet contradicts the verdict\n"
        "2 invalid arguments: a name is unknown, or an end has no address of the family",
    ),
    Command(
        "net stats",
        "show traffic and drop counters of services",
        options=(_INSTANCES, JSON),
        about="IN and OUT are traffic to and from a service since its activation, counted by its "
        "links. IN-DROPS and OUT-DROPS are packets dropped by the service's own ingress and egress "
        "policy since the policy last changed; drops by the other side's policy are counted there. "
        "FOREIGN counts frames dropped because the service sent them with an address or type that "
        "it does not own. IN-AUDITS and OUT-AUDITS are packets that a policy in audit would have "
        "dropped; they are shown while there is one.",
        lines="niso net stats",
    ),
    Command(
        "net flows",
        "show who connected to whom and who was refused",
        (Argument("NAME?", "a service (default: all)", "service"),),
        (
            Option("-f --follow", "show new flows as they happen"),
            Option("--denied", "show only what was dropped, or would be without an audit"),
            Option(
                "--forget",
                "delete the recorded flows of all services, or of NAME; with --denied, the refused",
            ),
            _INSTANCES,
            _SINCE,
            JSON,
        ),
        "The kernel remembers flows for a week; no process of niso runs. NEW counts new flows, or "
        "attempts that were dropped, OPEN those that are open now. BY is the published port or the "
        "manifest entry that decides at present. Only TCP, UDP and SCTP are shown; on a network "
        "without ports and policies, UDP counts packets. niso's own test packets and networks with "
        "--no-observe are left out. -f looks once a second. Of each source, the kernel records at "
        "most 2,048 flows at once and 12 more an hour, and 256 refused flows and 2 more an hour. "
        "--forget makes room, for all sources or for one service.",
        lines="niso net flows\n"
        "niso net flows postgres --since 1h\n"
        "niso net flows --denied\n"
        "niso net flows --forget --denied api\n"
        "niso net flows -f api  # until Ctrl-C",
        statuses="130 stopped with Ctrl-C",
    ),
    Command(
        "net graph",
        "draw who talks to whom",
        options=(
            Option(
                "--format FORMAT",
                "mermaid (which GitHub and GitLab render), dot, svg or png; the last two need the "
                "program dot of Graphviz",
                "mermaid",
            ),
            Option(
                "--declared",
                "what policies allow, without any traffic; with --stack it depends on the stack's "
                "files alone",
            ),
            Option("--stack DIR", "only the services of this stack"),
            _SINCE,
            Option("-o --output FILE", "write to this file"),
        ),
        about="Services are grouped by their networks. Red, dashed edges were denied; yellow, "
        "dotted ones would be without an audit. An edge of a --declared picture is an entry of a "
        "policy or a published port. Beyond 8 addresses, other machines are drawn as one.",
        lines="niso net graph  # traffic of the last week\n"
        "niso net graph --format svg -o net.svg\n"
        "niso net graph --declared --stack ./shop  # for a README",
    ),
    Command(
        "net capture",
        "capture packets of services, with names, by tcpdump",
        (
            Argument(
                "NAME+",
                "an active service; the last one can be a PEER: a service with a port (db:5432), "
                "an address, or host",
                "active",
            ),
            Argument(
                "[-- EXPRESSION]",
                "only packets that match this expression, see pcap-filter(7)",
                key="filter",
            ),
        ),
        (
            Option(
                "--drops", "show only the headers of packets that nftables drops, with the reason"
            ),
            Option("-w FILE", "write a pcapng file with the names; - is stdout", key="write"),
            Option("-c N", "end after N packets", number=True, key="count"),
            FOR,
        ),
        "tcpdump runs on the host, in the network namespaces of the services. With a PEER, only "
        "packets from and to it are shown. With several services, each line begins with the "
        "service that saw the packet. A packet that niso drops on its way is seen in the namespace "
        "of its sender only; --drops shows it with the manifest entry, or the rule of any program, "
        "that drops it. --drops looks at up to 500 packets a second for each rule. Wireshark shows "
        "the names, and the reasons as comments. Ctrl-C ends it.",
        lines="niso net capture api\n"
        "niso net capture api postgres:5432 -c 10\n"
        "niso net capture api postgres -- tcp port 5432  # what both see\n"
        "niso net capture postgres --drops  # what is refused, with the reason\n"
        "niso net capture api -w api.pcapng --for 1m\n"
        "niso net capture api -w -  # for a pipe into wireshark -k -i -",
        statuses="130 stopped with Ctrl-C",
    ),
    Command(
        "net learn",
        "write policies from the traffic that was seen",
        (Argument("SERVICE*", "services (default: all active ones)", "service", key="names"),),
        (
            _SINCE._replace(group="time"),
            Option(
                "--for TIME",
                "watch for this long, such as 10m, then print; Ctrl-C ends it early",
                group="time",
                key="for_",
            ),
            Option("--egress", "also where the services connected"),
            Option(
                "--write", "show how the manifests would change, ask, and write them", group="form"
            ),
            Option("-y --yes", "write without asking"),
            JSON._replace(group="form"),
        ),
        "Prints an allow list of what passed within a week and would still pass, or is open "
        "now. Services are entries by name. A published port that another machine used is "
        "allowed for other machines (outside). What was denied is only a comment. The host may "
        "always connect and is not listed. Only TCP, UDP and SCTP are seen, so add PEER/icmp "
        "where ping is needed. An allow list that exists is narrowed, never widened. If flows "
        "may be missing, because the kernel's sets were full or a network has multicast, its "
        "unused entries stay. --write keeps comments and order, and needs tomlkit "
        "(python3-tomlkit, or niso[learn] with pip).",
        lines="niso net learn\n"
        "niso net learn postgres --since 2d\n"
        "niso net learn api --egress --write",
        statuses="1 nothing was written, because the answer was no",
    ),
    Command(
        "net refresh",
        "resolve the outside names of policies again",
        options=(
            Option("--all", "also names whose TTL has not expired"),
            Option(
                "--for TIME",
                "keep running for this long, such as 24h, and resolve each name when it is due",
                key="for_",
            ),
            *REPORTS,
        ),
        about="Asks the name servers of the host for the names in network.policy.egress.allow "
        "whose TTL has expired, and puts the answers into the rules and the services' hosts files. "
        "Open connections stay. niso activate asks too. niso enable has systemd call this every "
        "minute. It needs dnspython (python3-dnspython, or niso[names] with pip).",
        lines="niso net refresh\nniso net refresh --all",
        statuses="3 a name has no address\n130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "net policy show",
        "show what each entry of a policy let pass, and when last",
        (Argument("SERVICE", "a service", "service", key="name"),),
        (
            Option(
                "--unused TIME",
                "only entries without open flows that decided on nothing for this long, such as 7d",
            ),
            JSON,
        ),
        "PACKETS are first packets of flows. They count since the policy last changed, or the "
        "addresses of the peer. LAST is remembered for a week, also across such changes. An entry "
        "with OPEN flows is in use, however old they are. The lines without an entry are for peers "
        "that the list does not have.",
        lines="niso net policy show postgres\nniso net policy show postgres --unused 7d",
        aside=True,
    ),
    Command(
        "net policy test",
        "show what activating a manifest or stack would cut",
        (
            Argument(
                "MANIFEST|STACK",
                "a manifest.toml or stack.toml, or its folder",
                "package",
                key="path",
            ),
        ),
        (
            Option(
                "--since TIME",
                "only flows that were new since then: a time (RFC 3339) or a period such as 2h",
            ),
            JSON,
        ),
        "Judges the flows of the last week, and those that are open, as the rules would after niso "
        "activate or stack up. Nothing changes. cut: it passes and would not. audit: it would be "
        "cut, but the policy is in audit. new: it was denied and would pass. Ports that are no "
        "longer published and networks that a service leaves cut flows too.",
        lines="niso net policy test ./postgres",
        statuses="0 nothing would be cut\n"
        "1 something would be cut\n"
        "2 no flow was seen, so there is nothing to judge by",
        aside=True,
    ),
    Command(
        "net trace",
        "follow a real packet through all hooks",
        (_FROM, _TO),
        (
            Option("--for TIME", "how long to wait for one", "30s", key="seconds"),
            Option("--any", "any packet, also of an open connection"),
            *REPORTS,
        ),
        "Waits for the next packet from FROM to TO, by IPv4 or IPv6; of TCP for a new connection, "
        "without :PORT for one of ICMP. With a service's name, PORT can be a published port. Shows "
        "each chain that decided something, also those of other programs, and new addresses; -v "
        "also shows chains that only mark or record packets. The last line is the verdict. niso "
        "net explain follows a packet without sending one, and with --prove sends one itself. "
        "Nothing is left in the kernel, even if the command is killed.",
        lines="niso net trace api postgres:5432\n"
        "niso net trace 192.0.2.2 api:8080  # a client of a published port",
        statuses="0 the packet passed\n1 it was dropped, or none came\n130 stopped with Ctrl-C",
    ),
    Command(
        "net drops",
        "print packets dropped by policies, live",
        (Argument("NAME?", "a service (default: all)", "service"),),
        (Option("--json", "print one JSON object per line"),),
        "Prints a line for each packet dropped by a policy with `log = true`: time, service, "
        "direction, manifest key, source, destination, link. It shows at most 20 per second for "
        "each address of a service and direction, after a burst of 50. Nothing is stored: drops "
        "while no reader runs are only counted (niso net stats). Only one reader can run at a "
        "time. Stop it with Ctrl-C.",
        lines="niso net drops\nniso net drops api",
        statuses="130 stopped with Ctrl-C",
        aside=True,
    ),
    Command(
        "net names",
        "let the host itself resolve the names of services",
        (
            Argument(
                "on|off?",
                "write the names to /etc/hosts of the host from now on, or remove them",
                "switch",
                key="state",
            ),
        ),
        (JSON,),
        "Services find each other by name in any case. With on, niso keeps a block of "
        "NAME.niso.local in /etc/hosts up to date, and removes it with the last service. The rest "
        "of the file stays as it is. A file that is a mount point, a symbolic link or immutable is "
        "refused.",
        lines="niso net names\nniso net names on\nniso net names off",
        aside=True,
    ),
    Command(
        "net check",
        "compare the kernel with the configuration",
        (Argument("NAME?", "a service or network (default: everything)", "known"),),
        (Option("-v --verbose", "print a line for each object"), JSON),
        "Each line names one object that is missing, foreign or different. More than ten of a kind "
        "are one line with their number and three of them. Nothing is changed. "
        "Policies that are in audit, that name nobody, or that deny a service its name server are "
        "warnings. In a cluster it also sends test packets to the other hosts.",
        lines="niso net check\nniso net check api",
        statuses="0 the kernel matches the configuration\n"
        "1 there are differences\n"
        "2 the kernel could not be read, or NAME is unknown",
    ),
    Command(
        "net repair",
        "repair niso's own objects that net check reports",
        options=(
            Option(
                "--kernel",
                "only the network: start and stop no process, finish no interrupted change",
            ),
            *CHANGES,
        ),
        about="Correct objects are not touched. Attachments whose namespace no longer exists are "
        "detached, and the files in /etc/niso/policies are applied to all attachments.",
        lines="niso net repair --dry-run  # show the steps\n"
        "niso net repair\n"
        "niso net repair --kernel  # after another firewall has loaded its rules",
    ),
)
GROUPS = (Command("net", "manage networks, published ports and policies", actions=_ACTIONS),)
