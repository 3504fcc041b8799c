"""Run niso help, version, validate, schema, lab, on-exit, health and import."""

from __future__ import annotations

import sys

from niso import __version__
from niso.base import paths
from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import signal
from niso.cli import output, parse
from niso.cli.command import ALIASES, COMMANDS, HIDDEN, Command, find, present
from niso.cli.parse import HELP, Args

if TYPE_CHECKING:
    from collections.abc import Callable

    import niso
    from niso.runtime.units import Following


# --- help, version and others ---------------------------------------------------------------------


def run_meta(name: str, args: Args) -> int:
    if name == "help":
        return print_help(args.words)
    if name == "version":
        print(f"niso {paths.version()}")
    elif name == "on-exit":
        from niso.api.host import connect
        from niso.runtime import on_exit

        hooks = connect().services.exit_hooks(args.service) if "." in args.service else ()
        on_exit.main(args.service, args.run, *hooks)
    elif name == "lab":
        if args.command and not args.command[0]:
            hint = "niso lab -- CMD; niso lab alone starts a shell"
            raise UsageError("the command is empty", hint)

        from niso.lab.supervisor import run

        return run(args.command, args.write)
    else:
        from niso.api import without_host

        if name == "validate":
            valid = without_host.validate(*(args.paths or ["."]))
            return output.results(args, valid, _valid)
        known = {"manifest": without_host.manifest_schema, "stack": without_host.stack_schema}
        if args.file not in known:
            raise UsageError(f"unknown file {args.file!r}", "manifest or stack")
        output.as_json(known[args.file]())
    return 0


def _valid(file: niso.Valid) -> str:
    services = f" of {', '.join(file.services)}" if file.kind == "stack" else ""
    lines = [f"{output.escaped(file.path)}: valid {file.kind} {file.name}{services}"]
    return "\n".join((*lines, *(f"  hint: {output.escaped(hint)}" for hint in file.hints)))


def print_help(words: list[str]) -> int:
    """Print the help of a command or action, or the first screen of help. Raises UsageError."""
    if not words or words[0] in HELP:
        print(parse.first_screen(__version__), end="")
        return 0
    if words == ["plumbing"]:
        print(parse.plumbing(), end="")
        return 0
    words = present([*words, HELP[1]])[0][:-1]
    name = ALIASES.get(words[0], words[0])
    if name not in COMMANDS:
        raise parse.unknown_command(words)
    topic = find(name, " ".join(words[1:3]))
    if not topic.actions:
        print(parse.command(topic), end="")
        return 0
    prefix = next((word for word in words[1:] if word not in HELP), "")
    if prefix and not any(one.name.startswith(f"{name} {prefix} ") for one in topic.actions):
        raise parse.unknown_command(words)
    print(parse.group(topic, prefix), end="")
    return 0


def documented() -> list[Command]:
    """Return the commands to document: all except help, version and hidden commands."""
    return [find(name, "") for name in COMMANDS if name not in (*HIDDEN, "help", "version")]


# --- niso import ----------------------------------------------------------------------------------


def run_importing(_: str, args: Args) -> int:
    from niso.api.without_host import import_compose

    return output.result(args, import_compose(args.file, args.output or None), _print_imported)


def _print_imported(made: niso.ImportedStack) -> None:
    if made.file is None:
        print(made.text, end="")
    else:
        print(f"{output.escaped(made.file)}: stack {made.stack} of {', '.join(made.services)}")
    lines = ["not taken over:"] if made.missing else ["everything was taken over"]
    for gap in made.missing:
        place = ": ".join(filter(None, (gap.service, gap.key)))
        lines.append(output.escaped(f"  {place}: {gap.text}"))
    if made.commands:
        lines.append("root file systems, in the folder of the stack.toml; one of each two lines:")
        lines += (output.escaped(f"  {command}") for command in made.commands)
    print("\n".join(lines), file=sys.stderr if made.file is None else None)


# --- agents ---------------------------------------------------------------------------------------


def follow(start: Callable[[Callable[[str], None]], Following]) -> int:
    """Run the agent that ``start(log)`` returns until a signal arrives. Return the exit status."""
    following = start(lambda line: print(output.escaped(line), flush=True))
    ended = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        following.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    following.run()
    return 130 if signal.SIGINT in ended else 0


def run_health(name: str, args: Args) -> int:
    from niso.api.host import connect

    return follow(connect().services.watch_health)
