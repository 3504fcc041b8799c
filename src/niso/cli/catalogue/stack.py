"""The words of niso stack."""

from __future__ import annotations

from niso.cli.command import DRY_RUN, JSON, TIMEOUT, VERBOSE, Argument, Command, Group, Option

_DIR = Argument("dir", "DIR", "a folder with a stack.toml, or the file", "?", "folder", ".")

GROUP = Group(
    "stack",
    "several services as one thing: up, down, status",
    (
        Command(
            "stack up",
            "make everything be as stack.toml says, all or none",
            (_DIR,),
            (TIMEOUT, DRY_RUN, VERBOSE, JSON),
            "Makes the networks and activates the services in the order of what they need, in parallel where it can. Once more, it "
            "applies what has changed in the file, and deactivates what has left it.",
            (
                ("niso stack up", "the stack.toml here"),
                ("niso stack up ./shop", ""),
                ("niso stack up --dry-run", "what it would do"),
            ),
            (("0", "everything is as the file says"), ("1", "nothing has changed")),
        ),
        Command(
            "stack down",
            "deactivate all services of the stack",
            (_DIR,),
            (
                Option("volumes", ("--volumes",), "delete the services' named volumes too"),
                DRY_RUN,
                VERBOSE,
                JSON,
            ),
            "Addresses, networks and, without --volumes, volumes stay; niso remove NAME forgets a service.",
            (("niso stack down ./shop", ""),),
        ),
        Command(
            "stack status",
            "list the services of the stack and how they are",
            (_DIR,),
            (JSON,),
            "The columns are those of niso ps.",
            (("niso stack status ./shop", ""),),
        ),
    ),
)
