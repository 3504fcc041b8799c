"""Generate the pages of commands from the catalogue."""

from __future__ import annotations

from collections.abc import Iterator

from niso.cli import command as cli_command
from niso.cli import general_commands
from niso.cli.command import Command, meaning, sentence
from niso.cli.parse import examples, usage
from reference.document import Block, Code, Heading, Page, Terms, Text

_COLUMNS = 68
"""Width of a synopsis: man(1) indents it on a terminal of 80 columns."""

EXITS = (
    ("0", "success, or nothing to change"),
    ("1", "failure; nothing is left half done"),
    ("2", "usage error"),
    (
        "130",
        "interrupted; the unfinished change is rolled back or, if it was a stop, completed by the "
        "next command; completed changes are kept",
    ),
)
ERRORS = (
    "Errors go to stderr, one per line: `niso:` and the message, then an indented `hint:` with the "
    'next step if there is one. With `--json` each error is one object per line, `{"error": '
    '{"message", "hint", "key"}}`; hint and key can be null, and key is the path of a manifest '
    "key, "
    "such as `network.ports[1]`. Warnings (`niso: warning:`) are always text; they do not change "
    "the exit status."
)
PROGRESS = (
    "A step that takes over a second is reported on stderr, then every ten seconds (not with "
    "`--json`); `-v` prints each step. On a terminal, tables wrap wide lists, and STATUS, HEALTH "
    "and the prefix of errors are coloured. Control characters in names and output of services are "
    "escaped on a terminal."
)
ENVIRONMENT = (
    ("NISO_STATE_DIR", "folder of persistent state (default: /var/lib/niso)"),
    ("NISO_RUN_DIR", "folder of volatile state (default: /run/niso)"),
    (
        "NISO_POOL",
        "address pool for networks without --subnet (default: 10.99.0.0/16)",
    ),
    ("NO_COLOR", "disables colour if not empty, as TERM=dumb does"),
    ("COLUMNS", "width of tables and help on a terminal"),
    ("NISO_TRACEBACK", "1 prints the traceback of an unexpected error"),
)
FILES = (
    (
        "/var/lib/niso",
        "the store, copies of packages, named volumes and logs; readable by root only",
    ),
    ("/run/niso", "locks, hosts files and the state of running services"),
    (
        "/run/netns/niso-NAME",
        "the network namespace of a service, for `ip netns exec niso-NAME ...`",
    ),
    (
        "/etc/systemd/system/niso-NAME.service",
        "the unit of an enabled service, if systemd is the init",
    ),
)
MANUALS = (
    "niso(1)",
    "niso-cluster(1)",
    "niso-firewall(1)",
    "niso-kubernetes(1)",
    "niso-net(1)",
    "niso-stack(1)",
    "niso-cni(1)",
    "niso-docker(1)",
    "niso-netavark(1)",
    "niso-manifest(5)",
    "niso-stack(5)",
)


def page_blocks() -> Iterator[Block]:
    """Return the contents of docs/reference/commands.md."""
    yield Text(
        "`--help` of each command and `man niso` have the same contents. Services are given by "
        "name, hostname or alias, with or without .niso.local. "
        f"{_root()}"
    )
    for entry in general_commands.documented():
        commands = entry.actions or (entry,)
        if entry.actions:
            yield Heading(f"niso {entry.name}")
            yield Text(sentence(entry.does))
        for command in commands:
            yield Heading(f"niso {command.name}", 2 if entry.actions else 1)
            yield from _command(command)
    yield from _common()


def _root() -> str:
    """Return which commands need root, as a sentence."""
    every = [cli_command.find(name, "") for name in cli_command.COMMANDS if name != "complete"]
    free = sorted(one.name for one in every if not one.root)
    return f"All commands except {', '.join(free[:-1])} and {free[-1]} need root."


def manuals() -> Iterator[Page]:
    """Return niso(1), niso-net(1) and niso-stack(1)."""
    first = general_commands.documented()
    groups = [entry for entry in first if entry.actions]
    blocks: list[Block] = [
        Heading("Synopsis"),
        Code("niso COMMAND [ARGUMENTS] [OPTIONS]\nniso help [COMMAND [ACTION]]\nniso version"),
        Heading("Description"),
        Text(
            "niso runs services on one machine and connects them: with bridges, veth pairs, "
            "addresses, names and published ports. The kernel does all of this; there is no daemon "
            "and no proxy process. A service is a folder with a manifest.toml, see "
            "niso-manifest(5). Services are given by name, hostname or alias, with or without "
            ".niso.local. "
            f"{_root()}"
        ),
        Heading("Commands"),
    ]
    for entry in first:
        blocks.append(Heading(f"niso {entry.name}", 2))
        if not entry.actions:
            blocks += _command(entry)
        else:
            blocks.append(Text(f"{sentence(entry.does)} See niso-{entry.name}(1)."))
    yield Page(
        "niso",
        1,
        "networking for services on Linux, without a daemon or a proxy",
        (*blocks, *_common()),
        _others("niso(1)"),
    )
    for group in groups:
        blocks = [
            Heading("Synopsis"),
            Code("\n".join(usage(action, _COLUMNS, "") for action in group.actions)),
        ]
        blocks += [Heading("Description"), Text(sentence(group.does)), Heading("Actions")]
        for action in group.actions:
            blocks += [Heading(f"niso {action.name}", 2), *_command(action)]
        blocks += [Heading("Exit status"), Terms(EXITS)]
        yield Page(
            f"niso-{group.name}", 1, group.does, tuple(blocks), _others(f"niso-{group.name}(1)")
        )


def _others(own: str) -> tuple[str, ...]:
    return tuple(manual for manual in MANUALS if manual != own)


def _command(command: Command) -> Iterator[Block]:
    yield Code(usage(command, _COLUMNS, ""))
    yield Text(sentence(command.does) + (f" {command.about}" if command.about else ""))
    rows = [(argument.metavar, meaning(argument)) for argument in command.arguments]
    rows += [(option.takes, meaning(option)) for option in command.options]
    if rows:
        yield Terms(tuple(rows))
    if command.exits:
        yield Text("Exit status:")
        yield Terms(command.exits)
    if command.examples:
        yield Code("\n".join(examples(command, _COLUMNS)), "sh")


def _common() -> Iterator[Block]:
    yield Heading("Exit status")
    yield Terms(EXITS)
    yield Text("Commands with other exit statuses list them.")
    yield Heading("Errors and progress")
    yield Text(ERRORS)
    yield Text(PROGRESS)
    yield Heading("Environment")
    yield Terms(ENVIRONMENT)
    yield Heading("Files")
    yield Terms(FILES)
