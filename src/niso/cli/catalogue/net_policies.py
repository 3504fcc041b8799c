"""Describe the policy commands of niso net; net.py lists them."""

from __future__ import annotations

from niso.cli.command import JSON, VERBOSE, Argument, Command, Option

COMMANDS = (
    Command(
        "net learn",
        "write policies from the traffic that was seen",
        (Argument("names", "SERVICE", "services (default: all active ones)", "*", "service"),),
        (
            Option(
                "since",
                ("--since",),
                "only what was new since then: a time (RFC 3339) or a period such as 2h",
                "TIME",
                group="time",
            ),
            Option(
                "for_",
                ("--for",),
                "watch for this long, such as 10m, then print; Ctrl-C ends it early",
                "TIME",
                group="time",
            ),
            Option("egress", ("--egress",), "also where the services connected"),
            Option(
                "write",
                ("--write",),
                "show how the manifests would change, ask, and write them",
                group="form",
            ),
            Option("yes", ("-y", "--yes"), "write without asking"),
            JSON._replace(group="form"),
        ),
        "Prints an allow list of what passed within a week and would still pass, or is open "
        "now. Services are entries by name. A published port that another machine used is "
        "allowed for everybody. What was denied is only a comment. The host may always connect "
        "and is not listed. Only TCP, UDP and SCTP are seen, so add PEER/icmp where ping is "
        "needed. An allow list that exists is narrowed, never widened. --write keeps comments "
        "and order, and needs tomlkit (python3-tomlkit, or niso[learn] with pip).",
        (
            ("niso net learn", ""),
            ("niso net learn postgres --since 2d", ""),
            ("niso net learn api --egress --write", ""),
        ),
        (("1", "nothing was written, because the answer was no"),),
    ),
    Command(
        "net refresh",
        "resolve the outside names of policies again",
        (),
        (
            Option("all", ("--all",), "also names whose TTL has not expired"),
            Option(
                "for_",
                ("--for",),
                "keep running for this long, such as 24h, and resolve each name when it is due",
                "TIME",
            ),
            VERBOSE,
            JSON,
        ),
        "Asks the name servers of the host for the names in network.policy.egress.allow whose TTL "
        "has expired, and puts the answers into the rules and the services' hosts files. Open "
        "connections stay. niso activate asks too. niso enable has systemd call this every minute. "
        "It needs dnspython (python3-dnspython, or niso[names] with pip).",
        (("niso net refresh", ""), ("niso net refresh --all", "")),
        (("3", "a name has no address"), ("130", "stopped with Ctrl-C")),
        aside=True,
    ),
    Command(
        "net policy show",
        "show what each entry of a policy let pass, and when last",
        (Argument("name", "SERVICE", "a service", "", "service"),),
        (
            Option(
                "unused",
                ("--unused",),
                "only entries without open flows that decided on nothing for this long, such as 7d",
                "TIME",
            ),
            JSON,
        ),
        "PACKETS are first packets of flows. They count since the policy last changed, or the "
        "addresses of the peer. LAST is remembered for a week, also across such changes. An entry "
        "with OPEN flows is in use, however old they are. The lines without an entry are for peers "
        "that the list does not have.",
        (("niso net policy show postgres", ""), ("niso net policy show postgres --unused 7d", "")),
        aside=True,
    ),
    Command(
        "net policy test",
        "show what activating a manifest or stack would cut",
        (
            Argument(
                "path",
                "MANIFEST|STACK",
                "a manifest.toml or stack.toml, or its folder",
                "",
                "package",
            ),
        ),
        (
            Option(
                "since",
                ("--since",),
                "only flows that were new since then: a time (RFC 3339) or a period such as 2h",
                "TIME",
            ),
            JSON,
        ),
        "Judges the flows of the last week, and those that are open, as the rules would after "
        "niso activate or stack up. Nothing changes. cut: it passes and would not. audit: it would "
        "be cut, but the policy is in audit. new: it was denied and would pass. Ports that are no "
        "longer published and networks that a service leaves cut flows too.",
        (("niso net policy test ./postgres", ""),),
        (
            ("0", "nothing would be cut"),
            ("1", "something would be cut"),
            ("2", "no flow was seen, so there is nothing to judge by"),
        ),
        aside=True,
    ),
)
