"""Run the command ``niso``: find the subcommand, run it, report errors, set the exit status.

Only the module of the subcommand is imported, to keep start-up short.
"""

from __future__ import annotations

import io
import os
import sys

from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import interrupts
from niso.cli.command import Command, Group
from niso.cli.parse import HELP, asks_help, parse
from niso.cli.registry import ALIASES, COMMANDS, find, module, unknown_command

if TYPE_CHECKING:
    from typing import NoReturn

JUDGES = ("net check", "net explain")
"""Commands whose exit status 1 is a result: there are differences, or the packet is dropped."""


def main() -> None:
    """Run the console script and end the process."""
    os.umask(0o022)
    _have_outputs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # characters that the encoding lacks are printed as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        interrupts.end_on_signals()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # a signal before `run` handles it
        _report(Error("interrupted"), False)
        status = 130
    try:
        sys.stdout.flush()  # write out what was printed before an error
    except OSError:
        pass  # already reported by `run`, or the output is no longer read
    _end(status)


def _have_outputs() -> None:
    """Open /dev/null for each standard descriptor that the caller closed.

    Otherwise a database or a lock file could get its number and be overwritten.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) returns the lowest free number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _end(status: int) -> NoReturn:
    """Close the stores and end this process.

    The interpreter's own shutdown is skipped: it takes up to 8 ms.
    """
    if "niso.api.session" in sys.modules:
        sys.modules["niso.api.session"].close_all()
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status. Raises nothing."""
    as_json = False
    try:
        try:
            as_json = (
                "--json" in arguments[: arguments.index("--")]
                if "--" in arguments
                else "--json" in arguments
            )
            return _run(arguments, as_json)
        finally:
            interrupts.state.over = True
    except KeyboardInterrupt:
        _report(Error("interrupted"), as_json)
        return 130


def _run(arguments: list[str], as_json: bool) -> int:
    """Run one command like `run`, but raise KeyboardInterrupt."""
    failed = (
        125
        if arguments[:1] in (["exec"], ["lab"])
        else 2
        if " ".join(arguments[:2]) in JUDGES
        else 0
    )
    try:
        status = _command(arguments or ["help"])
        sys.stdout.flush()
        return status
    except Error as error:
        return _failed(error, as_json, max(failed, error.exit_status))
    except BrokenPipeError:
        # the output is no longer read
        return failed or 1
    except Exception as error:
        if os.environ.get("NISO_TRACEBACK") == "1":
            raise
        return _failed(_explained(error), as_json, failed or 1)


def _explained(error: Exception) -> Error:
    """Convert an exception that no layer has converted to an `Error`."""
    try:
        from niso.cli.failures import explained

        return explained(error)
    except (OSError, MemoryError):  # without descriptors or memory, nothing can be imported
        if isinstance(error, OSError):
            return Error(f"{error.filename or 'system call'}: {error.strerror}")
        return Error(str(error) or type(error).__name__)


def _report(error: Error, as_json: bool) -> None:
    """Print an error on stderr."""
    try:
        from niso.cli.failures import report

        report(error, as_json)
    except (OSError, MemoryError):  # nothing can be imported
        try:
            os.write(2, f"niso: {error.message}\n".encode(errors="backslashreplace"))
        except OSError:
            pass  # stderr is closed


def _failed(error: Error, as_json: bool, status: int) -> int:
    """Report an error and return ``status``.

    Raises KeyboardInterrupt if a signal came before, because the error can be its consequence.
    """
    _report(error, as_json)
    if interrupts.state.last > 0:
        raise KeyboardInterrupt
    return status


def _command(arguments: list[str]) -> int:
    name = ALIASES.get(arguments[0], arguments[0])
    for word in arguments:
        # the store and the JSON for crun can only contain text
        if name != "lab" and not _encodable(word):
            raise UsageError(
                f"{word!r} is not valid UTF-8", "names, paths and commands must be UTF-8"
            )
    if name not in COMMANDS:
        _refuse_early_option(arguments, 0)
        raise unknown_command(arguments)
    words = arguments[1:]
    command = find(name, " ".join(words[:2]))
    if isinstance(command, Group):
        if not words or words[0] in HELP:
            return _print_help([name])
        _refuse_early_option(arguments, 1)
        raise unknown_command(arguments)
    words = words[command.name.count(" ") :]
    if asks_help(words, command):
        return _print_help(command.name.split())
    parsed = parse(command, words)
    if command.root and os.geteuid() != 0:
        raise Error(
            "needs root",
            f"sudo niso {' '.join(arguments)}" if _plain(arguments) else "run it with sudo",
        )
    if command.root:
        from niso.base import paths

        paths.is_command = True
    return int(module(COMMANDS[name][0]).run(command.name, parsed))


def _refuse_early_option(arguments: list[str], place: int) -> None:
    """Raise UsageError if the word at ``place`` is an option that belongs after the command."""
    option, words = arguments[place], [*arguments[:place], *arguments[place + 1 :]]
    if not option.startswith("-") or not words or words[0] not in COMMANDS:
        return
    command = find(words[0], " ".join(words[1:3]))
    if isinstance(command, Command):
        takes = any(option in known.flags and not known.metavar for known in command.options)
        fits = takes and "--" not in words and _plain([*words, option])
        hint = (
            f"niso {' '.join(words)} {option}"
            if fits
            else f"niso {command.name} --help lists its options"
        )
        raise UsageError(f"unknown command {option!r}", f"options go after the command: {hint}")


def _print_help(words: list[str]) -> int:
    from niso.cli import meta

    return meta.print_help(words)


def _encodable(word: str) -> bool:
    """Return whether a word is valid UTF-8; invalid bytes arrive as surrogates (PEP 383)."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(arguments: list[str]) -> bool:
    """Return whether the words need no quotes in a shell."""
    return all(word and all(c.isalnum() or c in "-_./:=,@%+" for c in word) for word in arguments)
