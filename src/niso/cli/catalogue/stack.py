"""Describe niso stack."""

from __future__ import annotations

from niso.cli.catalogue.service import LOG_OPTIONS
from niso.cli.command import (
    DRY_RUN,
    JSON,
    TIMEOUT,
    TRUST_OWNER,
    VERBOSE,
    Argument,
    Command,
    Group,
    Option,
)

_DIR = Argument("dir", "DIR", "a stack.toml or its folder", "?", "folder", ".")

GROUP = Group(
    "stack",
    "manage the services of a stack.toml: up, down, ps, logs, restart",
    (
        Command(
            "stack up",
            "apply a stack.toml, all or nothing",
            (_DIR,),
            (
                TIMEOUT,
                Option(
                    "replace",
                    ("--replace",),
                    "take over the stack of this name, and services, from other folders",
                    ends=True,
                ),
                TRUST_OWNER,
                DRY_RUN,
                VERBOSE,
                JSON,
            ),
            "Creates the networks and activates the services in dependency order, in parallel "
            "where possible. On an active stack it applies the changes of the file and deactivates "
            "services that were removed from it. If anything fails, everything is rolled back.",
            (
                ("niso stack up", "the stack.toml here"),
                ("niso stack up ./shop", ""),
                ("niso stack up --dry-run", "show the steps"),
            ),
            (
                ("0", "the stack matches the file"),
                (
                    "1",
                    "failed; changes were rolled back, or the error says what is left for niso "
                    "net repair",
                ),
            ),
        ),
        Command(
            "stack down",
            "deactivate all services of the stack",
            (_DIR,),
            (
                Option(
                    "volumes",
                    ("--volumes",),
                    "also delete the named volumes of the services",
                    ends=True,
                ),
                DRY_RUN,
                VERBOSE,
                JSON,
            ),
            "Addresses and networks are kept, and so are volumes unless --volumes is given. niso "
            "remove NAME deletes the record of a service.",
            (("niso stack down ./shop", ""),),
            ends=True,
        ),
        Command(
            "stack status",
            "list the services of the stack and their status",
            (_DIR,),
            (JSON,),
            "The columns are the same as those of niso ps.",
            (("niso stack status ./shop", ""),),
        ),
        Command(
            "stack ps",
            "list the services of the stack, as stack status",
            (_DIR,),
            (JSON,),
            examples=(("niso stack ps ./shop", ""),),
        ),
        Command(
            "stack restart",
            "restart the processes of the stack's active services",
            (_DIR,),
            (VERBOSE, JSON),
            "Namespaces, addresses and published ports are not affected. Services that others "
            "depend on restart first.",
            (("niso stack restart ./shop", ""),),
            ends=True,
        ),
        Command(
            "stack logs",
            "print the output of all services of the stack",
            (_DIR,),
            LOG_OPTIONS,
            "Each line starts with the name of its service. -n counts for each service.",
            (("niso stack logs ./shop -n 20", ""), ("niso stack logs -f", "")),
        ),
    ),
)
