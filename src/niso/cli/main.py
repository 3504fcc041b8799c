"""Run the command ``niso``: find the subcommand, run it, report errors, and return its exit status.

Only the module of the subcommand is imported, so that commands start quickly. Errors are reported
on stderr as text or JSON. SIGTERM and SIGHUP interrupt a command as SIGINT (Ctrl-C) does.
"""

from __future__ import annotations

import io
import os
import sys
import time
from types import SimpleNamespace

from niso.base import paths
from niso.base.errors import Error, ErrorGroup, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import signal, to_json
from niso.cli.output import error as error_lines

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


JUDGES = ("net check", "net explain")
"""Commands whose exit status 1 is a result and not an error.

The result is that ``net check`` found differences or that the packet of ``net explain`` is dropped.
"""


def main() -> None:
    """Run niso with the arguments of this process, and end the process."""
    os.umask(0o022)
    _have_outputs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # characters that the output's encoding lacks are printed as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        end_on_signals()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # a signal before `run` handles it
        _report(Error("interrupted"), False)
        status = 130
    try:
        sys.stdout.flush()  # write out what was printed before an error
    except OSError:
        pass  # already reported by `run`, or the output is no longer read
    if "niso.look.session" in sys.modules:
        sys.modules["niso.look.session"].close_all()
    os._exit(status)  # without the interpreter's shutdown, which takes 8 ms


def _have_outputs() -> None:
    """Open /dev/null for each of the descriptors 0, 1 and 2 that is closed. Otherwise a database
    could get one of these descriptors, and output would overwrite it.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) returns the lowest free number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status. Raises no exception."""
    as_json = False
    try:
        try:
            end = arguments.index("--") if "--" in arguments else None
            as_json = "--json" in arguments[:end]
            return _run(arguments, as_json)
        finally:
            state.over = True
    except KeyboardInterrupt:
        _report(Error("interrupted"), as_json)
        return 130


def _run(arguments: list[str], as_json: bool) -> int:
    paths.command_line = arguments
    failed = 2 if " ".join(arguments[:2]) in JUDGES else 0
    if arguments[:1] in (["exec"], ["lab"]):
        failed = 125
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
        try:
            known = explained(error)
        except (OSError, MemoryError):  # without descriptors or memory, nothing can be imported
            known = Error(str(error) or type(error).__name__)
            if isinstance(error, OSError):
                known = Error(f"{error.filename or 'system call'}: {error.strerror}")
        return _failed(known, as_json, failed or 1)


MAX_SHOWN = 100
"""Limit of errors that a command prints as text."""


def _report(error: Error, as_json: bool) -> None:
    try:
        errors = error.errors if isinstance(error, ErrorGroup) else [error]
        for one in errors if as_json else errors[:MAX_SHOWN]:
            if as_json:
                body = {"message": one.message, "hint": one.hint, "key": one.key}
                print(to_json({"error": body}), file=sys.stderr)
            else:
                error_lines(one.message, one.hint)
        if not as_json and len(errors) > MAX_SHOWN:
            error_lines(f"{len(errors) - MAX_SHOWN} more errors", None)
    except (OSError, MemoryError):  # stderr is closed, or nothing can be imported
        try:
            os.write(2, f"niso: {error.message}\n".encode(errors="backslashreplace"))
        except OSError:
            pass  # stderr is closed


def _failed(error: Error, as_json: bool, status: int) -> int:
    """Print an error and return ``status``. Raises KeyboardInterrupt if a signal has arrived."""
    _report(error, as_json)
    if state.last > 0:  # the signal may have caused the error
        raise KeyboardInterrupt
    return status


def _command(arguments: list[str]) -> int:
    from niso.cli.command import ALIASES, COMMANDS, find, present, runner
    from niso.cli.parse import HELP, asks_help, parse, unknown_command

    arguments, note = present(arguments)
    if note:
        print(f"niso: {note}", file=sys.stderr)
    name = ALIASES.get(arguments[0], arguments[0])
    for word in arguments:
        # the store and JSON only contain text; invalid UTF-8 is decoded to surrogates (PEP 383)
        if name != "lab" and any("\ud800" <= character <= "\udfff" for character in word):
            hint = "names, paths and commands must be UTF-8"
            raise UsageError(f"{word!r} is not valid UTF-8", hint)
    if name not in COMMANDS:
        _refuse_early_option(arguments, 0)
        raise unknown_command(arguments)
    words = arguments[1:]
    command = find(name, " ".join(words[:2]))
    if command.actions:
        helps = next((at for at, word in enumerate(words) if word in HELP), len(words))
        if not words or helps < 2:
            return _print_help([name, *words[:helps]])
        _refuse_early_option(arguments, 1)
        raise unknown_command(arguments)
    words = words[command.name.count(" ") :]
    if asks_help(words, command):
        return _print_help(command.name.split())
    parsed = parse(command, words)
    if command.root and os.geteuid() != 0:
        shown = f"sudo niso {' '.join(arguments)}"
        raise Error("needs root", shown if _plain(arguments) else "run it with sudo")
    if command.root:
        paths.is_command = True
    return runner(name)(command.name, parsed)


def _refuse_early_option(arguments: list[str], place: int) -> None:
    from niso.cli.command import COMMANDS, find, present

    option, words = arguments[place], [*arguments[:place], *arguments[place + 1 :]]
    words = present(words)[0] if words else words
    if not option.startswith("-") or not words or words[0] not in COMMANDS:
        return
    command = find(words[0], " ".join(words[1:3]))
    if not command.actions:
        takes = any(option in known.flags and not known.metavar for known in command.options)
        fits = takes and "--" not in words and _plain([*words, option])
        hint = f"niso {command.name} --help lists its options"
        if fits:
            hint = f"niso {' '.join(words)} {option}"
        raise UsageError(f"unknown command {option!r}", f"options go after the command: {hint}")


def _print_help(words: list[str]) -> int:
    from niso.cli import general_commands

    return general_commands.print_help(words)


def _plain(arguments: list[str]) -> bool:
    return all(word and all(c.isalnum() or c in "-_./:=,@%+" for c in word) for word in arguments)


# --- errors ---------------------------------------------------------------------------------------


def explained(error: Exception) -> Error:
    """Convert an exception to the `Error` to print. An unexpected exception is called a bug."""
    from niso.look.session import explained as known

    if isinstance(error, OSError) and error.filename is None:
        return _of_output(error) or known(error) or Error(f"system call: {error.strerror}")
    if isinstance(error, MemoryError):
        return Error("out of memory", "free some, or raise the limit: ulimit -v")
    return known(error) or Error(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug in niso; NISO_TRACEBACK=1 shows where it happened",
    )


def _of_output(error: OSError) -> Error | None:
    try:
        sys.stdout.flush()  # fails again, except after a write larger than the buffer
        os.write(1, b"")
    except OSError as again:
        if again.errno == error.errno:
            hint = "redirect the output elsewhere"
            return Error(f"cannot write to stdout: {error.strerror}", hint)
    return None


# --- signals --------------------------------------------------------------------------------------


state = SimpleNamespace(last=0.0, over=False, lost=False)
"""The state of the signal handlers.

``last`` is when a signal was last handled, in seconds of the monotonic clock; up to 0 means never.
``over`` is true once the command has ended: signals no longer interrupt it while it prints errors.
``lost`` is true while `_unraisable` runs, because Python would discard an interrupt raised there.
"""
BURST_S = 1.0
"""Signals within this time in seconds count as one signal.

timeout(1) and some shells send a signal to a process, and then to its process group.
"""
_AGAIN_S = 0.001


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt in the running command, which then rolls back its change.

    A second signal interrupts the rollback too. If the command is already rolling back after an
    error, the first signal does not interrupt it, and `_failed` raises KeyboardInterrupt later.
    """
    now = time.monotonic()
    if state.over or now - state.last < BURST_S:
        return
    is_first, state.last = state.last <= 0, now
    recovery = sys.modules.get("niso.change.undo")  # may be partially imported
    if not (is_first and getattr(recovery, "undoing", False)):
        raise KeyboardInterrupt


def _unraisable(lost: UnraisableHookArgs) -> None:
    """Raise a KeyboardInterrupt again that Python would discard. This is `sys.unraisablehook`.
    importlib runs a weak reference callback after each import. Python discards a KeyboardInterrupt
    raised in this callback, and the command would otherwise continue to its end.
    """
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # raised from a timer, because exceptions raised in this hook are discarded too
    state.lost = True
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    state.lost = False


def _again(*_: object) -> None:
    if state.lost:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        return
    state.last = -BURST_S
    signal.raise_signal(signal.SIGTERM)  # stays pending while signals are blocked


def end_on_signals() -> None:
    """Install `interrupt` as the handler of SIGINT, SIGTERM and SIGHUP."""
    state.last, state.over = -BURST_S, False
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, _again)
    sys.unraisablehook = _unraisable
    # some parents leave SIGCHLD ignored, and then wait(2) returns no status
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        # leave an ignored signal ignored, as for background jobs of scripts and nohup(1)
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
