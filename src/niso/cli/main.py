"""The command ``niso``: finds the sub-command, runs it, and turns errors into text and an exit status.

A sub-command's module is imported only when it is used, so that a command costs no more than what it does.
"""

from __future__ import annotations

import gc
import io
import os
import sys

from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import interrupts
from niso.cli.command import Command, Group
from niso.cli.failures import explained, report
from niso.cli.parse import HELP, asks_help, parse, unknown
from niso.cli.registry import ALIASES, COMMANDS, find, module

if TYPE_CHECKING:
    from typing import NoReturn

JUDGES = ("net check", "net explain")
"""Those whose 1 is an answer: not as it should be, dropped."""


def main() -> None:
    """Entry point of the console script; ends the process."""
    os.umask(0o022)
    # imports make no garbage to speak of, and to look for it again and again is a tenth of their time
    gc.set_threshold(50_000)
    _have_outputs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a letter that the terminal's encoding does not have is shown by its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        interrupts.end_on_signals()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` was ready for it
        report(Error("interrupted"), False)
        status = 130
    try:
        sys.stdout.flush()  # what was printed before an error
    except OSError:
        pass  # said by `run`, or there is nobody to tell
    _end(status)


def _have_outputs() -> None:
    """Open /dev/null in place of what the caller has closed, lest a database or a lock gets its number, and is written to."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # it gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _end(status: int) -> NoReturn:
    """End this process as it is: to take the interpreter apart first is up to 8 ms of a command. SQLite is told of its end."""
    if "niso.api.session" in sys.modules:
        sys.modules["niso.api.session"].close_all()
    os._exit(status)


def run(arguments: list[str]) -> int:
    """Run one command; gives its exit status. Raises nothing."""
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
        report(Error("interrupted"), as_json)
        return 130


def _run(arguments: list[str], as_json: bool) -> int:
    """As `run`. Raises KeyboardInterrupt."""
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
        # whoever read our output has gone: nothing to say
        return failed or 1
    except Exception as error:
        if os.environ.get("NISO_TRACEBACK") == "1":
            raise
        return _failed(explained(error), as_json, failed or 1)


def _failed(error: Error, as_json: bool, status: int) -> int:
    """Tell of an error; gives ``status``. Raises KeyboardInterrupt where that came first: the error may be its consequence."""
    report(error, as_json)
    if interrupts.state.last > 0:
        raise KeyboardInterrupt
    return status


def _command(arguments: list[str]) -> int:
    name = ALIASES.get(arguments[0], arguments[0])
    for each in arguments:
        # the store keeps text, and crun is told of a command in JSON, which would change other bytes
        if name != "lab" and not _encodable(each):
            raise UsageError(
                f"{each!r} is not UTF-8", "names, paths and what exec runs are UTF-8 text"
            )
    if name not in COMMANDS:
        _refuse_early_option(arguments, 0)
        visible = [each for each in COMMANDS if each != "complete"]
        raise unknown("command", name, visible, "niso help lists them")
    words = arguments[1:]
    command = find(name, words[0] if words else "")
    if isinstance(command, Group):
        if not words or words[0] in HELP:
            return _print_help([name])
        _refuse_early_option(arguments, 1)
        raise unknown(
            "action",
            f"{name} {words[0]}",
            [each.name for each in command.actions],
            f"niso help {name} lists them",
        )
    if command.name != name:
        words = words[1:]
    if asks_help(words, command):
        return _print_help(command.name.split())
    parsed = parse(command, words)
    if command.root and os.geteuid() != 0:
        raise Error(
            "needs root",
            f"sudo niso {' '.join(arguments)}" if _plain(arguments) else "run it with sudo",
        )
    return int(module(COMMANDS[name][0]).run(command.name, parsed))


def _refuse_early_option(arguments: list[str], place: int) -> None:
    """Raise UsageError where an option stands at ``place``, and after it what it should have followed."""
    option, words = arguments[place], [*arguments[:place], *arguments[place + 1 :]]
    if not option.startswith("-") or not words or words[0] not in COMMANDS:
        return
    command = find(words[0], words[1] if words[1:] else "")
    if isinstance(command, Command):
        takes = any(option in each.flags and not each.metavar for each in command.options)
        fits = takes and "--" not in words and _plain([*words, option])
        hint = (
            f"niso {' '.join(words)} {option}"
            if fits
            else f"niso {command.name} --help lists its options"
        )
        raise UsageError(f"no command {option!r}", f"options go after the command: {hint}")


def _print_help(words: list[str]) -> int:
    from niso.cli import meta

    return meta.print_help(words)


def _encodable(word: str) -> bool:
    """Whether a word is text: bytes of the command line that are no UTF-8 come as surrogates (PEP 383)."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(arguments: list[str]) -> bool:
    """Whether the words can stand in a hint as they are."""
    return all(word and all(c.isalnum() or c in "-_./:=,@%+" for c in word) for word in arguments)
