"""Parse command lines.

argparse would take a seventh of the time of a short command (docs/design/dependencies.md), and it
cannot report a misspelt option while an argument is missing. Options can come anywhere before
``--`` and cannot be abbreviated.
"""

from __future__ import annotations

from collections.abc import Mapping

from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli.command import Argument, Command, Option

if TYPE_CHECKING:
    from typing import Any

HELP = ("-h", "--help")


class Args:
    """The values of a command's arguments and options, as attributes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None


def asks_help(words: list[str], command: Command) -> bool:
    """Return whether -h or --help is for niso, not for the command that niso runs."""
    for word in words:
        if word == "--" or (
            not word.startswith("-") and command.arguments and command.arguments[0].times == "..."
        ):
            return False
        if word in HELP:
            return True
    return False


def parse(command: Command, words: list[str]) -> Args:
    """Parse the words of a command line to values. Raises UsageError."""
    flags = {flag: option for option in command.options for flag in option.flags}
    given: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    placed: list[str] = []
    remaining: list[str] = []
    single = sum(argument.times != "..." for argument in command.arguments)
    takes_remaining = single < len(command.arguments)
    repeats = any(argument.times in ("*", "+") for argument in command.arguments)
    left = list(words)
    while left:
        # if the number of arguments varies, only -- begins the remaining words
        ends = left[0] == "--" or not (repeats or _is_option(left[0]))
        if takes_remaining and (repeats or len(placed) == single) and ends:
            remaining = left[1:] if left[0] == "--" else left
            break
        word = left.pop(0)
        if word == "--":
            placed += left
            break
        if not _is_option(word):
            placed.append(word)
            continue
        flag, value = _split(word, flags)
        option = flags.get(flag)
        if option is None:
            raise _no_option(command, flag, flags)
        if option.group and set_by.setdefault(option.group, flag) != flag:
            raise _wrong(command, f"{set_by[option.group]} and {flag} are mutually exclusive")
        if not option.metavar:
            if value is not None and word.startswith("--"):
                raise _wrong(command, f"{flag} takes no value: {word!r}")
            if value:  # -ft is -f -t
                left.insert(0, f"-{value}")
            given[option.dest] = option.means or True
            continue
        if value is None and option.implied:
            value = option.implied
        elif value is None:
            if not left or left[0] == "--" or left[0] in flags:
                raise _wrong(command, f"{flag} needs a value: {option.takes}")
            value = left.pop(0)
        _take(command, option, flag, value, given)
    return Args(_defaults(command) | given | _places(command, placed, remaining))


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _split(word: str, flags: dict[str, Option]) -> tuple[str, str | None]:
    """Split ``--mtu=9``, ``-n5`` or ``-ft`` in two; the second part is None if there is none."""
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        return flag, value if equals else None
    if word in flags or word[:2] not in flags:
        return word, None
    return word[:2], word[2:]


def _take(command: Command, option: Option, flag: str, value: str, given: dict[str, Any]) -> None:
    if option.number:
        try:
            given[option.dest] = int(value)
        except ValueError:
            raise _wrong(command, f"{flag} {value!r}: must be a whole number") from None
    elif option.many:
        given.setdefault(option.dest, []).append(value)
    else:
        given[option.dest] = value


def _defaults(command: Command) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in command.options:
        values[option.dest] = (
            []
            if option.many
            else (option.default or None)
            if option.metavar or option.means
            else False
        )
    return values


def _places(command: Command, placed: list[str], remaining: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    left = list(placed)
    for argument in command.arguments:
        if argument.times == "...":
            values[argument.dest] = remaining
        elif argument.times in ("*", "+"):
            values[argument.dest], left = left, []
            if argument.times == "+" and not values[argument.dest]:
                raise _missing(command, argument)
        elif left:
            values[argument.dest] = left.pop(0)
        elif argument.times == "?":
            values[argument.dest] = argument.default or None
        else:
            raise _missing(command, argument)
    if left:
        raise _wrong(command, f"unexpected argument {left[0]!r}")
    return values


def _missing(command: Command, argument: Argument) -> UsageError:
    return _wrong(command, f"missing {argument.metavar}: {argument.help}")


def _no_option(command: Command, flag: str, flags: dict[str, Option]) -> UsageError:
    every = {known: option.ends for known, option in flags.items()} | dict.fromkeys(HELP, False)
    return unknown("option", flag, every, f"niso {command.name} --help lists them")


def _wrong(command: Command, message: str) -> UsageError:
    return UsageError(message, f"niso {command.name} --help")


def unknown(
    kind: str, name: str, known: Mapping[str, bool], otherwise: str, group: str = ""
) -> UsageError:
    """Return the error for an unknown word; its hint names the closest word of ``known``.

    ``known`` says of each word whether it stops or deletes something. If such a word is as close,
    no word is suggested, because the user may mean it or its opposite. Names of actions begin with
    their ``group``, which is not compared.
    """
    import difflib

    shared = f"{group} " if group else ""
    words = {word.removeprefix(shared): ends for word, ends in known.items()}
    typed = name.removeprefix(shared)
    near = difflib.get_close_matches(typed, words, 1)
    if not near and typed.startswith("--"):  # an abbreviation
        near = [word for word in words if word.startswith(typed)][:1]
    hint = otherwise
    if near and not _is_opposite(typed, near[0]):
        as_near = difflib.SequenceMatcher(None, near[0], typed).ratio()
        ending = [word for word, ends in words.items() if ends]
        if not difflib.get_close_matches(typed, ending, 1, as_near):
            hint = f"did you mean '{shared}{near[0]}'?"
    return UsageError(f"unknown {kind} {name!r}", hint)


def _is_opposite(typed: str, word: str) -> bool:
    """Return whether only one of two words begins with a negation, such as ``unattach``."""
    return any(typed.startswith(start) != word.startswith(start) for start in ("de", "dis", "un"))
