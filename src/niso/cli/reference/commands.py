"""The commands, from their catalogue."""

from __future__ import annotations

from collections.abc import Iterator

from niso.cli import meta
from niso.cli.command import Command, Group, sentence
from niso.cli.help import examples, usage
from niso.cli.reference.document import Block, Code, Heading, Page, Terms, Text

_COLUMNS = 68
"""Of a synopsis: man(1) indents it on a terminal of 80."""

EXITS = (
    ("0", "done, or so already"),
    ("1", "it could not be done; nothing is left half done"),
    ("2", "wrong use"),
    (
        "130",
        "interrupted; what was begun is undone, or by the next command finished where nothing else can be (an end); what was done stays",
    ),
)
ERRORS = (
    "What is wrong goes to stderr, a line each: `niso:` and what is wrong, then, where there is one, an indented `hint:` with "
    'the next step. With `--json` it is one object a line, `{"error": {"message", "hint", "key"}}`; hint and key are null '
    "where there is none, and key is the path of a key of a manifest, as `network.ports[1]`. Warnings (`niso: warning:`) are "
    "always text: what they tell of does not keep the command from its end."
)
PROGRESS = (
    "What takes over a second is told on stderr, then again every ten seconds (not with `--json`); `-v` tells each step as it is taken. A table on a "
    "terminal folds its lists where they are too wide, and STATUS, HEALTH and the beginning of an error have colour there. Names and "
    "lines of services never reach a terminal with control bytes in them."
)
ENVIRONMENT = (
    ("NISO_STATE_DIR", "where what must last is kept, in place of /var/lib/niso"),
    ("NISO_RUN_DIR", "where what a reboot ends is kept, in place of /run/niso"),
    (
        "NISO_POOL",
        "the prefix that networks without --subnet are taken from, in place of 10.99.0.0/16",
    ),
    ("NO_COLOR", "no colour where it is not empty; none either with TERM=dumb"),
    ("COLUMNS", "the width of tables and help on a terminal, in place of its own"),
    ("NISO_TRACEBACK", "1 shows where in niso's code an unexpected error happened"),
)
FILES = (
    (
        "/var/lib/niso",
        "the store, copies of packages, named volumes and logs; root alone can read it",
    ),
    ("/run/niso", "locks, hosts files and what runs now"),
    (
        "/run/netns/niso-NAME",
        "the network namespace of a service, for `ip netns exec niso-NAME ...`",
    ),
    (
        "/etc/systemd/system/niso-NAME.service",
        "the unit of a service that is enabled, where systemd is the init",
    ),
)
MANUALS = ("niso(1)", "niso-net(1)", "niso-stack(1)", "niso-manifest(5)", "niso-stack(5)")


def page_blocks() -> Iterator[Block]:
    """All commands, for docs/reference/commands.md."""
    yield Text(
        "Each command and action tells the same of itself with `--help`, and `man niso` has it too. What is called with a service takes "
        "its name, its hostname or an alias, each with .niso.local or without. All but help, version, schema and completion need root."
    )
    for each in meta.first_screen():
        commands = each.actions if isinstance(each, Group) else (each,)
        if isinstance(each, Group):
            yield Heading(f"niso {each.name}")
            yield Text(sentence(each.does))
        for command in commands:
            yield Heading(f"niso {command.name}", 2 if isinstance(each, Group) else 1)
            yield from _command(command)
    yield from _common()


def manuals() -> Iterator[Page]:
    """niso(1), niso-net(1), niso-stack(1)."""
    first = meta.first_screen()
    groups = [each for each in first if isinstance(each, Group)]
    blocks: list[Block] = [
        Heading("Synopsis"),
        Code("niso COMMAND [ARGUMENTS] [OPTIONS]\nniso help [COMMAND [ACTION]]\nniso version"),
        Heading("Description"),
        Text(
            "niso runs services on one machine and gives each a network of its own: a bridge, a veth pair, an address, names for its "
            "peers, and published ports. The kernel does all of it; there is no daemon and no proxy process. A service is a folder with "
            "a manifest.toml, see niso-manifest(5). What is called with a service takes its name, its hostname or an alias, each with .niso.local or without. All but "
            "help, version, schema and completion need root."
        ),
        Heading("Commands"),
    ]
    for each in first:
        blocks.append(Heading(f"niso {each.name}", 2))
        if isinstance(each, Command):
            blocks += _command(each)
        else:
            blocks.append(Text(f"{sentence(each.does)} See niso-{each.name}(1)."))
    yield Page(
        "niso",
        1,
        "networks for services on Linux, without daemon and proxy",
        (*blocks, *_common()),
        _others("niso(1)"),
    )
    for group in groups:
        blocks = [
            Heading("Synopsis"),
            Code("\n".join(usage(each, _COLUMNS) for each in group.actions)),
        ]
        blocks += [Heading("Description"), Text(sentence(group.does)), Heading("Actions")]
        for action in group.actions:
            blocks += [Heading(f"niso {action.name}", 2), *_command(action)]
        blocks += [Heading("Exit status"), Terms(EXITS)]
        yield Page(
            f"niso-{group.name}", 1, group.does, tuple(blocks), _others(f"niso-{group.name}(1)")
        )


def _others(own: str) -> tuple[str, ...]:
    return tuple(each for each in MANUALS if each != own)


def _command(command: Command) -> Iterator[Block]:
    yield Code(usage(command, _COLUMNS))
    yield Text(sentence(command.does) + (f" {command.about}" if command.about else ""))
    rows = [(each.metavar, _with_default(each.help, each.default)) for each in command.arguments]
    rows += [(each.takes, _with_default(each.help, each.default)) for each in command.options]
    if rows:
        yield Terms(tuple(rows))
    if command.exits:
        yield Text("Exit status:")
        yield Terms(command.exits)
    if command.examples:
        yield Code("\n".join(examples(command, _COLUMNS)), "sh")


def _with_default(words: str, default: str) -> str:
    return f"{words} (default: {default})" if default else words


def _common() -> Iterator[Block]:
    yield Heading("Exit status")
    yield Terms(EXITS)
    yield Text("Where a command has others, they stand with it.")
    yield Heading("Errors and progress")
    yield Text(ERRORS)
    yield Text(PROGRESS)
    yield Heading("Environment")
    yield Terms(ENVIRONMENT)
    yield Heading("Files")
    yield Terms(FILES)
