"""The words of a command line become values.

Of our own, since argparse is a seventh of what a short command takes (docs/design/dependencies.md), and cannot tell a misspelt option
while an argument is missing. Options may stand anywhere before ``--``, and cannot be shortened.
"""

from __future__ import annotations

from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli.command import Argument, Command, Option

if TYPE_CHECKING:
    from typing import Any

HELP = ("-h", "--help")


class Args:
    """The values by name: every argument and option of the command has one."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None


def asks_help(words: list[str], command: Command) -> bool:
    """Whether -h or --help is among the options, and no word of what is to be run."""
    for word in words:
        if word == "--" or (
            not word.startswith("-") and command.arguments and command.arguments[0].times == "..."
        ):
            return False
        if word in HELP:
            return True
    return False


def parse(command: Command, words: list[str]) -> Args:
    """Raises UsageError, which says what is right."""
    flags = {flag: option for option in command.options for flag in option.flags}
    given: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    placed: list[str] = []
    rest: list[str] = []
    single = sum(argument.times != "..." for argument in command.arguments)
    takes_rest = single < len(command.arguments)
    left = list(words)
    while left:
        if takes_rest and len(placed) == single and (left[0] == "--" or not _is_option(left[0])):
            rest = left[1:] if left[0] == "--" else left
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
            raise _wrong(command, f"{set_by[option.group]} and {flag} do not go together")
        if not option.metavar:
            if value is not None and word.startswith("--"):
                raise _wrong(command, f"{flag} takes no value: {word!r}")
            if value:  # -ft is -f -t
                left.insert(0, f"-{value}")
            given[option.dest] = option.means or True
            continue
        if value is None:
            if not left or left[0] == "--" or left[0] in flags:
                raise _wrong(command, f"{flag} needs a value: {option.takes}")
            value = left.pop(0)
        _take(command, option, flag, value, given)
    return Args(_defaults(command) | given | _places(command, placed, rest))


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _split(word: str, flags: dict[str, Option]) -> tuple[str, str | None]:
    """``--mtu=9``, ``-n5`` and ``-ft`` in two; what has no second part has None."""
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
    found: dict[str, Any] = {}
    for option in command.options:
        found[option.dest] = (
            []
            if option.many
            else (option.default or None)
            if option.metavar or option.means
            else False
        )
    return found


def _places(command: Command, placed: list[str], rest: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    left = list(placed)
    for argument in command.arguments:
        if argument.times == "...":
            found[argument.dest] = rest
        elif argument.times in ("*", "+"):
            found[argument.dest], left = left, []
            if argument.times == "+" and not found[argument.dest]:
                raise _missing(command, argument)
        elif left:
            found[argument.dest] = left.pop(0)
        elif argument.times == "?":
            found[argument.dest] = argument.default or None
        else:
            raise _missing(command, argument)
    if left:
        raise _wrong(command, f"{left[0]!r} is one word too many")
    return found


def _missing(command: Command, argument: Argument) -> UsageError:
    return _wrong(command, f"{argument.metavar} is missing: {argument.help}")


def _no_option(command: Command, flag: str, flags: dict[str, Option]) -> UsageError:
    return unknown("option", flag, [*flags, *HELP], f"niso {command.name} --help lists them")


def _wrong(command: Command, words: str) -> UsageError:
    return UsageError(words, f"niso {command.name} --help")


def unknown(kind: str, name: str, known: list[str], otherwise: str) -> UsageError:
    """The error of a word that is none of those known; it names the nearest."""
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    if not near and name.startswith("--"):  # the beginning of one
        near = [each for each in known if each.startswith(name)][:1]
    return UsageError(f"no {kind} {name!r}", f"did you mean {near[0]!r}?" if near else otherwise)
