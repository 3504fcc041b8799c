"""The words of niso net."""

from __future__ import annotations

from niso.cli.command import DRY_RUN, JSON, VERBOSE, Argument, Command, Group, Option

GROUP = Group(
    "net",
    "networks, ports and policies: make, list, explain, check, repair",
    (
        Command(
            "net create",
            "make a network and its bridge",
            (
                Argument(
                    "name", "NAME", "a-z 0-9 -, begins with a letter, at most 63", "", "nothing"
                ),
            ),
            (
                Option(
                    "subnet",
                    ("--subnet",),
                    "the network's addresses; a second one is of the other family; without it: the next free /24 of the pool, "
                    "beside what the host's routes use",
                    "CIDR",
                    many=True,
                ),
                Option(
                    "ipv6",
                    ("--ipv6",),
                    "an IPv6 subnet too: a /64 of the host's own unique local prefix",
                ),
                Option(
                    "gateway",
                    ("--gateway",),
                    "the bridge's address; without it: the subnet's first",
                    "IP",
                    many=True,
                ),
                Option(
                    "internal",
                    ("--internal",),
                    "nothing is forwarded out; the host and published ports work",
                ),
                Option(
                    "mtu",
                    ("--mtu",),
                    "largest packet; without it: that of the default route's link",
                    "N",
                    number=True,
                ),
                DRY_RUN,
                VERBOSE,
                JSON,
            ),
            "A network that a manifest names and that is not there is made by activate, too. One that is there already with "
            "the same settings is left as it is.",
            (
                ("niso net create backend", "the next free /24"),
                ("niso net create backend --subnet 10.99.1.0/24", ""),
                ("niso net create dmz --subnet 10.50.0.0/22 --gateway 10.50.3.254 --mtu 1400", ""),
                ("niso net create dual --ipv6", "both families"),
                ("niso net create dual --subnet 10.99.2.0/24 --subnet fd00:99:2::/64", ""),
                ("niso net create db --internal", ""),
            ),
        ),
        Command(
            "net list",
            "list the networks",
            (),
            (JSON,),
            "The default network, niso-default, comes first, the others by their names.",
            (("niso net list", ""),),
        ),
        Command(
            "net inspect",
            "show one network and its services",
            (Argument("name", "NAME", "a network", "", "network"),),
            (JSON,),
            "",
            (("niso net inspect niso-default", ""),),
        ),
        Command(
            "net remove",
            "remove networks that no known service is on",
            (Argument("names", "NAME", "a network", "+", "network"),),
            (DRY_RUN, VERBOSE, JSON),
            "A network that a known service is on, active or not, is refused, and the services are named.",
            (("niso net remove backend", ""),),
        ),
        Command(
            "net ports",
            "list the published ports",
            (),
            (Option("exposed", ("--exposed",), "say from where each can be reached"), JSON),
            "A port without a host address has a row for each family that its network has.",
            (("niso net ports", ""), ("niso net ports --exposed", "")),
        ),
        Command(
            "net rules",
            "print niso's nftables rules",
            (),
            (Option("json", ("--json",), "as libnftables gives them (libnftables-json(5))"),),
            "niso has the tables inet niso and bridge niso, and changes no others.",
            (("niso net rules", ""),),
        ),
        Command(
            "net ping",
            "send an ICMP echo from one service to another",
            (
                Argument("source", "FROM", "an active service", "", "active"),
                Argument(
                    "destination", "TO", "an active service with a network in common", "", "active"
                ),
            ),
            (JSON,),
            "From inside FROM's namespace to TO's address as FROM's hosts file gives it. Where nothing comes back, the reason is "
            "said: not active, no common network, which line of whose policy, or no answer.",
            (("niso net ping api postgres", ""),),
            (("0", "it answered"), ("1", "it did not, and why")),
        ),
        Command(
            "net explain",
            "tell whether a packet passes, and which line or default decides",
            (
                Argument("source", "FROM", "a service, an address, or host", "", "end"),
                Argument(
                    "destination",
                    "TO",
                    "the same, with :PORT and /PROTO where wanted",
                    "",
                    "target",
                ),
            ),
            (
                Option("family", ("-4",), "by IPv4", group="family", means=4),
                Option("family", ("-6",), "by IPv6", group="family", means=6),
                Option(
                    "prove",
                    ("--prove",),
                    "send one such packet, and see that the kernel's rules count it",
                ),
                JSON,
            ),
            "After :PORT may stand /tcp (the default), /udp or /sctp; without a port it is an ICMP echo. An IPv6 address with a "
            "port stands in brackets. Services are asked for by IPv4 where both have it.",
            (
                ("niso net explain api postgres:5432", ""),
                ("niso net explain api postgres:5432 --prove", "with a real packet"),
                (
                    "niso net explain 192.0.2.7 192.0.2.1:8080/tcp",
                    "another machine, a published port",
                ),
                ("niso net explain api '[fd00:99:1::2]:53/udp'", ""),
                ("niso net explain host api", "an ICMP echo"),
            ),
            (
                ("0", "it passes"),
                ("1", "it is dropped, or what came of the real packet does not agree"),
                (
                    "2",
                    "there is no such packet to judge: an unknown name, or no address of that family",
                ),
            ),
        ),
        Command(
            "net stats",
            "count traffic and drops by service and direction",
            (),
            (JSON,),
            "IN is what came to a service, OUT what it sent, since it was activated, as its links counted it. IN-DROPS and "
            "OUT-DROPS are packets that its own ingress and egress policy dropped since that was last changed (what the other "
            "side's policy dropped is counted there), FOREIGN frames it sent with an address or form that is not its own.",
            (("niso net stats", ""),),
        ),
        Command(
            "net log",
            "print drops of policies as they happen",
            (Argument("name", "NAME", "a service; without it: all", "?", "service"),),
            (Option("json", ("--json",), "one object a line"),),
            "One line for each packet that a policy with log = true drops (of each rule at most 20 a second): when, whose policy "
            "in which direction, the manifest's key, from whom to whom, by which link. Nothing is kept: what is dropped while "
            "nobody reads is only counted (niso net stats). One reader at a time; Ctrl-C ends it.",
            (("niso net log", ""), ("niso net log api", "")),
            (("130", "Ctrl-C ended it"),),
        ),
        Command(
            "net check",
            "compare what should be with what the kernel has",
            (
                Argument(
                    "name", "NAME", "one service or network; without it: everything", "?", "known"
                ),
            ),
            (JSON,),
            "Each line names a thing that is missing, foreign or different. It changes nothing.",
            (("niso net check", ""), ("niso net check api", "")),
            (
                ("0", "all is as it should be"),
                ("1", "it is not"),
                ("2", "it could not be looked at, or NAME is unknown"),
            ),
        ),
        Command(
            "net repair",
            "put right what net check finds",
            (),
            (
                Option("sweep", ("--sweep",), "remove all that is niso's from the kernel instead"),
                DRY_RUN,
                VERBOSE,
                JSON,
            ),
            "What is right is not touched. --sweep ends the processes of all services too, also where the store is lost; what "
            "niso knows of services stays.",
            (
                ("niso net repair --dry-run", "what it would do"),
                ("niso net repair", ""),
                ("niso net repair --sweep", ""),
            ),
        ),
    ),
)
