"""Describe the attachment commands of niso net; net.py lists them."""

from __future__ import annotations

from niso.cli.command import JSON, VERBOSE, Argument, Command, Option

COMMANDS = (
    Command(
        "net attach",
        "connect a network namespace of another program to niso's networks",
        (Argument("name", "NAME", "its name for commands, policies and services", "", "nothing"),),
        (
            Option("netns", ("--netns",), "the file of the namespace", "PATH"),
            Option("pid", ("--pid",), "the namespace of this process", "N", number=True),
            Option("new", ("--new",), "create a namespace, /run/netns/niso-NAME"),
            Option(
                "network",
                ("--network",),
                "a network, optionally with ,interface=NAME ,ip=ADDRESS ,mac=ADDRESS "
                "(default: niso-default)",
                "NETWORK",
                many=True,
            ),
            Option("port", ("-p", "--port"), "publish a port", "PORT", many=True),
            Option("alias", ("--alias",), "an additional name", "NAME", many=True),
            Option(
                "allow_from",
                ("--allow-from",),
                "entries of a policy, separated by spaces or commas",
                "ENTRIES",
            ),
            Option("deny_from", ("--deny-from",), "the same, of deny_from", "ENTRIES"),
            Option("egress_allow", ("--egress-allow",), "the same, of egress.allow", "ENTRIES"),
            Option("egress_deny", ("--egress-deny",), "the same, of egress.deny", "ENTRIES"),
            Option("log", ("--log",), "log what the policy drops"),
            Option(
                "bandwidth",
                ("--bandwidth",),
                "limits on each network, in bits per second",
                "in=RATE,out=RATE",
            ),
            Option(
                "owner",
                ("--owner",),
                "the program that manages the namespace (default: cli)",
                "WORD",
            ),
            Option("id", ("--id",), "the owner's id for it", "ID"),
            Option(
                "unit",
                ("--unit",),
                "with --new: put this service unit of systemd into it, by a drop-in",
                "UNIT",
            ),
            VERBOSE,
            JSON,
        ),
        "The namespace gets an interface on each network, addresses, routes, ports and policy "
        "as a service does. niso starts no process in it, and touches nothing else in it. "
        "Attach again to change something: only the difference is applied. niso identifies the "
        "namespace by its cookie: if the path leads to another one later, the attachment is gone. "
        "With --unit, systemd attaches it before the unit starts, also after a reboot.",
        (
            ("niso net attach box --pid 4711 --network backend", ""),
            ("niso net attach box --netns /run/netns/blue --network backend,ip=10.99.1.9", ""),
            ("niso net attach web --new -p 8081:80 --allow-from '10.0.0.0/8 api:80'", ""),
            ("niso net attach web --new --unit web.service -p 8081:80", "a unit of systemd"),
        ),
        aside=True,
    ),
    Command(
        "net detach",
        "disconnect attached namespaces from niso's networks",
        (Argument("names", "NAME", "an attachment", "+", "service"),),
        (
            Option("id", ("--id",), "only if the attachment still has this id", "ID"),
            VERBOSE,
            JSON,
        ),
        "An attachment that is gone already is not an error. The namespace stays, unless niso "
        "made it. The address is kept for the same owner and name until no other is free. "
        "Without --id, the files of net attach --unit are removed too; the unit has the host's "
        "network from its next start on.",
        (("niso net detach box", ""),),
        ends=True,
        aside=True,
    ),
    Command(
        "net gc",
        "detach attachments whose namespace has ended",
        (),
        (
            Option("owner", ("--owner",), "only attachments of this owner", "WORD"),
            Option(
                "valid",
                ("--valid",),
                "ids that the owner still has, separated by spaces; detach its other attachments "
                "too",
                "IDS",
            ),
            VERBOSE,
            JSON,
        ),
        "A namespace ends with the last process or mount that holds it, or by a reboot.",
        (("niso net gc", ""), ("niso net gc --owner podman --valid 'b186d057f65e'", "")),
        ends=True,
        aside=True,
    ),
    Command(
        "net apply",
        "apply /etc/niso/policies to attachments",
        (),
        (VERBOSE, JSON),
        "The policies of the files there must allow a packet as well as the attachment's own. "
        "They are read whenever something is attached; after an edit, this applies them to "
        "what is attached already.",
        (("niso net apply", ""),),
        aside=True,
    ),
)
