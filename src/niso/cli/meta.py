"""Implement niso help, version, check, schema, lab and on-exit."""

from __future__ import annotations

from niso import __version__
from niso.base.errors import UsageError
from niso.cli import registry
from niso.cli.command import Command, Group
from niso.cli.parse import HELP, Args


def run(name: str, args: Args) -> int:
    if name == "help":
        return print_help(args.words)
    if name == "version":
        print(f"niso {__version__}")
        return 0
    if name == "check":
        return _check(args)
    if name == "schema":
        return _schema(args.file)
    if name == "on-exit":
        from niso.runtime import on_exit

        on_exit.main(args.service, args.run)
        return 0
    if args.command and not args.command[0]:
        raise UsageError("the command is empty", "niso lab -- CMD; niso lab alone starts a shell")
    from niso.commands.lab.supervisor import run

    return run(args.command, args.write)


def _schema(file: str) -> int:
    from niso.api import validation
    from niso.cli.output import as_json

    known = {"manifest": validation.manifest_schema, "stack": validation.stack_schema}
    if file not in known:
        raise UsageError(f"unknown file {file!r}", "manifest or stack")
    as_json(known[file]())
    return 0


def _check(args: Args) -> int:
    from niso.api.validation import validate
    from niso.cli import output

    valid = validate(*(args.paths or ["."]))
    if args.json:
        output.as_json(valid)
        return 0
    for file in valid:
        what = f"{file.kind} {file.name}"
        if file.kind == "stack":
            what += f" of {', '.join(file.services)}"
        print(f"{output.escaped(file.path)}: valid {what}")
    return 0


def print_help(words: list[str]) -> int:
    """Print the help of the command or action named, or the first screen. Raises UsageError."""
    from niso.cli import help

    if not words or words[0] in HELP:
        print(help.first_screen(__version__, first_screen()), end="")
        return 0
    name = registry.ALIASES.get(words[0], words[0])
    if name not in registry.COMMANDS:
        raise registry.unknown_command(words)
    topic = registry.find(name, " ".join(words[1:3]))
    if isinstance(topic, Command):
        print(help.command(topic), end="")
    elif words[1:] and words[1] not in HELP:
        raise registry.unknown_command(words)
    else:
        print(help.group(topic), end="")
    return 0


def first_screen() -> list[Command | Group]:
    """Return the commands for the first screen: all but help, version and hidden ones."""
    return [
        registry.find(name, "")
        for name in registry.COMMANDS
        if name not in (*registry.HIDDEN, "help", "version")
    ]
