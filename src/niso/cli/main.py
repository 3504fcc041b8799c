"""The command ``niso``: finds the sub-command, runs it, and turns errors into text and an exit status.

A sub-command's module is imported only when it is used, so that a command costs no more than what it does.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from niso.errors import ErrorGroup, NisoError, UsageError

if TYPE_CHECKING:
    import argparse
    from types import ModuleType

VERSION = "0.1.0"

COMMANDS = {
    "activate": ("lifecycle", "set up a service's network and start it"),
    "deactivate": ("lifecycle", "stop services and take down their networks"),
    "remove": ("lifecycle", "deactivate services and forget them"),
    "restart": ("lifecycle", "end and start a service's process; its network stays"),
    "ps": ("look", "all known services and how they are"),
    "inspect": ("look", "all that niso knows of a service"),
    "logs": ("look", "what a service wrote"),
    "exec": ("execute", "run a command inside a service"),
    "port-forward": ("forward", "publish one more port of a running service"),
    "stack": ("stack", "several services as one thing: up, down, status"),
    "enable": ("boot", "activate services at boot"),
    "disable": ("boot", "do not activate services at boot any more"),
    "restore": ("boot", "activate all enabled services, at boot or by hand"),
    "net": ("net", "networks, ports, policies: list, create, inspect, explain, ping, stats, check, repair and more"),
    "schema": ("plain", "the JSON Schema of manifest.toml"),
    "lab": ("plain", "a throw-away host to try things in"),
}

WITHOUT_ROOT = ("schema",)

FIRST_SCREEN = """\
niso {version}: networking for services on Linux, without a daemon and without a userland proxy

usage: niso COMMAND [...]      niso COMMAND --help tells all of one command

{commands}

a first service:  sudo niso activate ./api      (a folder with a manifest.toml)
                  niso ps; niso net inspect niso-default; niso logs api -f
without a risk:   sudo niso lab
"""


def main() -> None:
    """Entry point of the console script; ends the process."""
    os.umask(0o022)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a letter that the terminal's encoding does not have is shown by its number
        sys.stdout.reconfigure(errors="backslashreplace")
    status: object = 0
    try:
        status = run(sys.argv[1:])
    except SystemExit as ended:  # of argparse
        status = ended.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # as `run` does: what is left of the text is for nobody
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = status or 1
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; gives its exit status. Raises nothing but SystemExit of argparse."""
    as_json = "--json" in arguments[: arguments.index("--")] if "--" in arguments else "--json" in arguments
    failed = 125 if arguments[:1] in (["exec"], ["lab"]) else 0
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            return _help(arguments[1:])
        if arguments[0] in ("-V", "--version", "version"):
            print(f"niso {VERSION}")
            return 0
        return _command(arguments)
    except NisoError as error:
        _report(error, as_json)
        return max(failed, error.exit_status)
    except KeyboardInterrupt:
        _report(NisoError("interrupted"), as_json)
        return 130
    except BrokenPipeError:
        # whoever read our output has gone: nothing to say, and Python must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return failed or 1
    except Exception as error:
        if os.environ.get("NISO_TRACEBACK") == "1":
            raise
        _report(_explained(error), as_json)
        return failed or 1


def _help(arguments: list[str]) -> int:
    if arguments:
        return _command([*arguments, "--help"])
    commands = "\n".join(f"  {name:<12} {words}" for name, (_, words) in COMMANDS.items())
    print(FIRST_SCREEN.format(version=VERSION, commands=commands), end="")
    return 0


def _command(arguments: list[str]) -> int:
    from niso.cli import later

    name = arguments[0]
    if name not in COMMANDS:
        later.refuse_command(name)
        raise unknown("command", name, list(COMMANDS), "niso --help lists them")
    parser = new_parser(f"niso {name}", COMMANDS[name][1])
    module = _module(COMMANDS[name][0])
    module.configure(name, parser)
    parsed = parser.parse_args(arguments[1:])
    if name not in WITHOUT_ROOT and os.geteuid() != 0 and not (name in ("net", "stack") and _asks_help(arguments)):
        raise NisoError("needs root", f"sudo niso {' '.join(arguments)}" if _plain(arguments) else "run it with sudo")
    _end_on_signals()
    return int(module.run(name, parsed))


def _asks_help(arguments: list[str]) -> bool:
    """Whether an action's own parser will print its help and end."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "-h" in options or "--help" in options


def _module(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"niso.cli.{name}")


def new_parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser in niso's style: wrong use raises UsageError, and options cannot be shortened."""
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def __init__(self, *args: Any, **options: Any) -> None:
            # argparse would import shutil (with all compressors) for this, and asks at each add_argument
            super().__init__(*args, **{"width": _columns() - 2, **options})

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise UsageError(message, f"{self.prog} --help")

    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=Formatter,
        allow_abbrev=False,
    )


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (OSError, ValueError):
        return 80


def unknown(kind: str, name: str, known: list[str], otherwise: str) -> UsageError:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return UsageError(f"no {kind} {name!r}", f"did you mean {near[0]!r}?" if near else otherwise)


def _plain(arguments: list[str]) -> bool:
    """Whether the words can stand in a hint as they are."""
    return all(word and all(c.isalnum() or c in "-_./:=,@%+" for c in word) for word in arguments)


def _end_on_signals() -> None:
    """TERM and HUP end a command as Ctrl-C does: what it has begun is undone."""
    import signal

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, interrupt)


def _explained(error: Exception) -> NisoError:
    """An error that no layer translated, in words."""
    kind = type(error)
    if kind.__module__ == "sqlite3":
        from sqlite3 import DatabaseError, OperationalError

        from niso.store.sqlite import unusable

        if isinstance(error, OperationalError) or kind is DatabaseError:
            return unusable(error)
    if isinstance(error, OSError):
        return NisoError(f"{error.filename or 'system call'}: {error.strerror}")
    return NisoError(
        f"unexpected {kind.__name__}: {error}", "this is a defect of niso; NISO_TRACEBACK=1 shows where it happened"
    )


def _report(error: NisoError, as_json: bool) -> None:
    from niso.cli.output import escaped

    if sys.stderr is None:  # closed: print would take stdout in its place
        return
    errors = error.errors if isinstance(error, ErrorGroup) else [error]
    try:
        if as_json:
            import json

            for each in errors:
                body = {"message": each.message, "hint": each.hint, "key": each.key}
                print(json.dumps({"error": body}), file=sys.stderr)
            return
        for each in errors:
            # a service's last words are lines of their own; all else is quoted where the message was made
            print("niso: " + "\n".join(escaped(line) for line in each.message.split("\n")), file=sys.stderr)
            if each.hint:
                print(f"  hint: {escaped(each.hint)}", file=sys.stderr)
    except OSError:
        pass  # nobody can be told
