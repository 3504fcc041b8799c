"""The command ``niso``: finds the sub-command, runs it, and turns errors into text and an exit status.

A sub-command's module is imported only when it is used, so that a command costs no more than what it does.
"""

from __future__ import annotations

# what `signal` is made of: that makes enums of its numbers, and to import enum is 1.5 ms of a short command
import _signal  # type: ignore[import-not-found]
import gc
import io
import os
import sys

from niso.base.errors import ErrorGroup, NisoError, UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli.command import Command, Group
from niso.cli.parse import HELP, asks_help, parse, unknown

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import ModuleType
    from typing import NoReturn

VERSION = "0.1.0"

COMMANDS = {
    "activate": ("service", "service"),
    "deactivate": ("service", "service"),
    "restart": ("service", "service"),
    "remove": ("service", "service"),
    "ps": ("inspect", "service"),
    "inspect": ("inspect", "service"),
    "logs": ("inspect", "service"),
    "exec": ("exec", "service"),
    "port-forward": ("forward", "service"),
    "net": ("net", "net"),
    "stack": ("stack", "stack"),
    "enable": ("boot", "machine"),
    "disable": ("boot", "machine"),
    "restore": ("boot", "machine"),
    "lab": ("meta", "machine"),
    "schema": ("meta", "machine"),
    "completion": ("complete", "machine"),
    "complete": ("complete", "machine"),
    "help": ("meta", "machine"),
    "version": ("meta", "machine"),
}
"""The module that runs each command, and the one of cli/catalogue that has its words."""

ALIASES = {"-h": "help", "--help": "help", "-V": "version", "--version": "version"}

JUDGES = ("net check", "net explain")
"""Those whose 1 is an answer: not as it should be, dropped."""

WITHOUT_STORE = ("lab", "net rules")
"""Those that are not about what the store knows."""


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
        _end_on_signals()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # before `run` was ready for it
        _report(NisoError("interrupted"), False)
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
    if "niso.store.store" in sys.modules:
        sys.modules["niso.store.store"].close_all()
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
            _interrupts.over = True
    except KeyboardInterrupt:
        _report(NisoError("interrupted"), as_json)
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
    except NisoError as error:
        return _failed(error, as_json, max(failed, error.exit_status))
    except BrokenPipeError:
        # whoever read our output has gone: nothing to say
        return failed or 1
    except Exception as error:
        if os.environ.get("NISO_TRACEBACK") == "1":
            raise
        return _failed(_explained(error), as_json, failed or 1)


def _failed(error: NisoError, as_json: bool, status: int) -> int:
    """Tell of an error; gives ``status``. Raises KeyboardInterrupt where that came first: the error may be its consequence."""
    _report(error, as_json)
    if _interrupts.last > 0:
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
        raise NisoError(
            "needs root",
            f"sudo niso {' '.join(arguments)}" if _plain(arguments) else "run it with sudo",
        )
    if command.root and command.name not in WITHOUT_STORE and "--sweep" not in words:
        _refuse_lost_store()
    return int(_module(COMMANDS[name][0]).run(command.name, parsed))


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


def _refuse_lost_store() -> None:
    from niso.base import paths

    if not os.path.lexists(paths.database()):
        from niso.commands import lost_store

        lost_store.refuse()


def find(name: str, action: str) -> Command | Group:
    """The command of this name, or of this action of it; the group where it has no such action."""
    words = _module(f"catalogue.{COMMANDS[name][1]}")
    group: Group | None = getattr(words, "GROUP", None)
    commands: tuple[Command, ...] = group.actions if group else words.COMMANDS
    wanted = f"{name} {action}" if group else name
    return next((each for each in commands if each.name == wanted), None) or group or commands[0]


def _print_help(words: list[str]) -> int:
    from niso.cli import meta

    return meta.print_help(words)


def _module(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"niso.cli.{name}")


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


class _interrupts:
    """What INT, TERM and HUP do to a command."""

    last = 0.0
    """When one of them did something, in seconds of the monotonic clock."""
    over = False
    """The command has ended: what is left is to say how, which nothing shall keep it from."""
    lost = False
    """One came where Python throws away what is raised, and will come again."""


_BURST_S = 1.0
"""timeout(1) and some shells send a signal to a process and then to its group: so long these count as one."""
_AGAIN_S = 0.001


def _interrupt(*_: object) -> None:
    """End a command: what it has begun is undone. Another one, later, ends the undoing too; the first does not, where the command
    has failed and is undoing already: `_failed` tells of both."""
    import time

    now = time.monotonic()
    if _interrupts.over or now - _interrupts.last < _BURST_S:
        return
    is_first, _interrupts.last = _interrupts.last <= 0, now
    recovery = sys.modules.get("niso.services.undo")  # which may be in the middle of its import
    if not (is_first and getattr(recovery, "undoing", False)):
        raise KeyboardInterrupt


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Have an interrupt come again that came where nothing can be raised: importlib has such a place after each import, the
    callback of a weak reference, and a command that lost its interrupt there would go on to its end."""
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # from a timer's handler, since what would be raised in here is thrown away as well
    _interrupts.lost = True
    _signal.setitimer(_signal.ITIMER_REAL, _AGAIN_S)
    _interrupts.lost = False


def _again(*_: object) -> None:
    if _interrupts.lost:
        _signal.setitimer(_signal.ITIMER_REAL, _AGAIN_S)
        return
    _interrupts.last = -_BURST_S
    _signal.raise_signal(_signal.SIGTERM)  # which waits where signals are held


def _end_on_signals() -> None:
    """TERM and HUP end a command as Ctrl-C does: see `_interrupt`."""
    _interrupts.last, _interrupts.over = -_BURST_S, False
    _signal.signal(_signal.SIGTERM, _interrupt)
    _signal.signal(_signal.SIGALRM, _again)
    sys.unraisablehook = _unraisable
    _signal.signal(
        _signal.SIGCHLD, _signal.SIG_DFL
    )  # ignored, as some parents leave it, children end without a status
    for number in (_signal.SIGINT, _signal.SIGHUP):
        if _signal.getsignal(number) != _signal.SIG_IGN:  # in the background of a script, by nohup
            _signal.signal(number, _interrupt)


def _explained(error: Exception) -> NisoError:
    """An error that no layer translated, in words."""
    kind = type(error)
    if kind.__module__ == "sqlite3":
        from sqlite3 import DatabaseError, OperationalError

        from niso.store.sqlite import unusable

        if isinstance(error, OperationalError) or kind is DatabaseError:
            return unusable(error)
    if isinstance(error, OSError) and error.filename is None:
        return _unnamed(error)
    if isinstance(error, OSError):
        return NisoError(f"{error.filename}: {error.strerror}")
    return NisoError(
        f"unexpected {kind.__name__}: {error}",
        "this is a defect of niso; NISO_TRACEBACK=1 shows where it happened",
    )


def _unnamed(error: OSError) -> NisoError:
    """A system call's error that does not say of what: of the output or the current folder, where these are not as they should be."""
    try:
        sys.stdout.flush()  # what could not be written is still there, unless it was much
        os.write(1, b"")
    except OSError as again:
        if again.errno == error.errno:
            return NisoError(
                f"the output cannot be written: {error.strerror}", "send it where there is room"
            )
    try:
        os.getcwd()
    except OSError:
        return NisoError(
            "the current folder is not there any more", "cd to one that is there, and try again"
        )
    return NisoError(f"system call: {error.strerror}")


def _report(error: NisoError, as_json: bool) -> None:
    from niso.cli.output import error as error_lines

    errors = error.errors if isinstance(error, ErrorGroup) else [error]
    try:
        if as_json:
            import json

            for each in errors:
                body = {"message": each.message, "hint": each.hint, "key": each.key}
                print(json.dumps({"error": body}), file=sys.stderr)
            return
        for each in errors:
            error_lines(each.message, each.hint)
    except OSError:
        pass  # nobody can be told
