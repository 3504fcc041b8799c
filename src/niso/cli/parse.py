"""Parse command lines, and format help: the first screen, a group of commands, one command.

niso does not use argparse, for two reasons. Its import takes a seventh of the time of a short
command (docs/design/dependencies.md). If an option is misspelt and an argument is missing, argparse
reports only the missing argument. Options may come anywhere before ``--``, and cannot be
abbreviated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import SimpleNamespace

from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli.command import (
    COMMANDS,
    HEADINGS,
    HIDDEN,
    PLUMBING,
    Argument,
    Command,
    Option,
    find,
    meaning,
    sentence,
    synopsis,
)
from niso.cli.output import columns_variable

if TYPE_CHECKING:
    from typing import Any


# --- command lines --------------------------------------------------------------------------------


HELP = ("-h", "--help")


Args = SimpleNamespace
"""The values of a command's arguments and options, as attributes."""


def asks_help(words: list[str], command: Command) -> bool:
    """Return whether a command line has -h or --help before the words of a program to run."""
    for word in words:
        if word == "--" or (
            not word.startswith("-") and command.arguments and command.arguments[0].times == "..."
        ):
            return False
        if word in HELP:
            return True
    return False


def parse(command: Command, words: list[str]) -> Args:
    """Parse the words after a command to values of its arguments and options. Raises UsageError."""
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
        # if the number of arguments varies, the words of a command to run begin after --
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
            known = {name: one.ends for name, one in flags.items()} | dict.fromkeys(HELP, False)
            raise unknown("option", flag, known, f"niso {command.name} --help lists them")
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
    values: dict[str, Any] = {}
    for option in command.options:
        without = (option.default or None) if option.metavar or option.means else False
        values[option.dest] = [] if option.many else without
    return Args(**(values | given | _places(command, placed, remaining)))


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _split(word: str, flags: dict[str, Option]) -> tuple[str, str | None]:
    """Split ``--mtu=9``, ``-n5`` or ``-ft`` into (flag, rest). A flag alone has the rest None."""
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


def _wrong(command: Command, message: str) -> UsageError:
    return UsageError(message, f"niso {command.name} --help")


def unknown(
    kind: str, name: str, known: Mapping[str, bool], otherwise: str, group: str = ""
) -> UsageError:
    """Build the error for an unknown word, such as a misspelt command or option.

    The hint is the most similar word in ``known``, or ``otherwise`` if no word is similar.
    ``known`` maps valid words to whether they stop or delete something. Such a word is never
    suggested: if it is the most similar one, the hint is ``otherwise``. The name of the ``group``
    is not compared.
    """
    import difflib

    shared = f"{group} " if group else ""
    words = {word.removeprefix(shared): ends for word, ends in known.items()}
    typed = name.removeprefix(shared)
    near = difflib.get_close_matches(typed, words, 1)
    if not near and typed.startswith("--"):  # an abbreviation
        near = [word for word in words if word.startswith(typed)][:1]
    hint = otherwise
    # exactly one of the two words begins with a negation, such as `unattach`
    is_opposite = near and any(
        typed.startswith(start) != near[0].startswith(start) for start in ("de", "dis", "un")
    )
    if near and not is_opposite:
        as_near = difflib.SequenceMatcher(None, near[0], typed).ratio()
        ending = [word for word, ends in words.items() if ends]
        if not difflib.get_close_matches(typed, ending, 1, as_near):
            hint = f"did you mean '{shared}{near[0]}'?"
    return UsageError(f"unknown {kind} {name!r}", hint)


def unknown_command(words: list[str]) -> UsageError:
    """Build the error for a command line that begins with no command or action. The hint is the
    closest command, or the niso command that replaces a command of another tool.
    """
    from niso.cli.catalogue.general import answer

    group = find(words[0], "") if words[0] in COMMANDS else None
    kind, name = ("action", " ".join(words[:2])) if group else ("command", words[0])
    if known := _for_paths(words) or answer(words):
        return UsageError(f"unknown {kind} {name!r}", known)
    if group is not None and group.actions:
        actions = {action.name: action.ends for action in group.actions}
        return unknown(kind, name, actions, f"niso help {group.name} lists them", group.name)
    every = [find(command, "") for command in COMMANDS if command not in HIDDEN]
    ends = {one.name: one.ends for one in every}
    return unknown(kind, name, ends, "niso help lists them")


def _for_paths(words: list[str]) -> str:
    """Return a hint if ``words`` are ``start PATH`` or ``up`` without a path, or else ""."""
    path = next((word for word in words[1:] if "/" in word or word.endswith(".toml")), "")
    if words[0] == "start" and path:
        return f"niso activate {path}: starts the service of a folder"
    if words[0] != "up" or any(not word.startswith("-") for word in words[1:]):
        return ""
    if os.path.exists("manifest.toml"):
        return "niso activate .: starts the service of ./manifest.toml; there is no ./stack.toml"
    for name in ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"):
        if os.path.exists(name):
            return f"niso import {name}: writes a stack.toml; then niso stack up"
    return "there is no ./stack.toml: niso stack up FOLDER, or niso activate FOLDER for one service"


# --- help -----------------------------------------------------------------------------------------


WIDEST = 100


def width() -> int:
    """Return the width of help in columns: 40 to `WIDEST`, and 80 without a terminal."""
    try:
        columns = columns_variable() or os.get_terminal_size(1).columns
    except OSError:
        columns = 80
    return min(max(columns, 40), WIDEST)


def first_screen(version: str) -> str:
    """Return the text that ``niso`` without arguments prints: the commands under `HEADINGS`. The
    text has at most 31 lines, so that it fits on a terminal of 32 lines.
    """
    columns = width()
    head = f"niso {version}: isolated services on Linux, each with its own network"
    text = _wrapped(head, columns)
    text += _wrapped("usage: niso COMMAND ..., or niso help COMMAND for options", columns)
    for heading, (described, others) in HEADINGS.items():
        rows = [(name, named(name).does) for name in described.split(", ")]
        text += f"{heading}\n{_list(rows, columns, 12)}"
        if others:
            text += _wrapped(f"also {others}", columns, "  ", 2)
    example = "niso lab, then niso stack up examples/pair"
    return f"{text}Start: sudo {example}\n"


def named(name: str) -> Command:
    """Return the description of a command or action with this name, such as ``net flows``."""
    command, _, action = name.partition(" ")
    return find(command, action)


def plumbing() -> str:
    """Return the help of the commands that units, timers and other programs call."""
    columns = width()
    rows = [(name, named(name).does) for name in PLUMBING.split(", ")]
    head = _wrapped("Commands that units, timers and other programs call:", columns)
    return head + _list(rows, columns)


def group(of: Command, prefix: str) -> str:
    """Return the help of a group, or only of the actions whose names begin with ``prefix``."""
    columns = width()
    own = f"{of.name} {prefix}".rstrip()
    short = {
        action: action.name.removeprefix(f"{own} ")
        for action in of.actions
        if action.name.startswith(f"{own} ")
    }
    every = bool(prefix)
    rows = [(name, one.does) for one, name in short.items() if every or not one.aside]
    lines = _list(rows, columns)
    asides: dict[str, list[str]] = {}  # first word -> second words
    for name in (name for one, name in short.items() if one.aside and not every):
        first, _, second = name.partition(" ")
        asides.setdefault(first, []).append(second)
    if asides:
        shown = (f"{first} {'|'.join(more)}".rstrip() for first, more in asides.items())
        lines += _wrapped(f"also: {', '.join(shown)}", columns)
    example = next((action for action in short if action.examples), of.actions[0]).name
    end = _wrapped(f"niso help {example} shows its options and examples", columns)
    does = "" if prefix else _wrapped(sentence(of.does), columns) + "\n"
    return f"usage: niso {own} ACTION ...\n\n{does}actions:\n{lines}\n{end}"


def command(of: Command) -> str:
    columns = width()
    parts = [usage(of, columns, "usage: ") + "\n", _wrapped(sentence(of.does), columns)]
    if of.about:
        parts.append(_wrapped(of.about, columns))
    if of.arguments:
        rows = [(argument.metavar, meaning(argument)) for argument in of.arguments]
        parts.append("arguments:\n" + _list(rows, columns))
    # a long option without a short form is indented, so that the long names are aligned
    options = [(" " * 4 * o.spelled.startswith("--") + o.takes, meaning(o)) for o in of.options]
    parts.append("options:\n" + _list([*options, ("-h, --help", "print this help")], columns))
    if of.examples:
        head = "examples:\n" if len(of.examples) > 1 else "example:\n"
        parts.append(head + "".join(f"  {line}\n" for line in examples(of, columns - 2)))
    if of.exits:
        parts.append("exit status:\n" + _list(list(of.exits), columns))
    return "\n".join(parts)


def usage(of: Command, columns: int, before: str) -> str:
    """Return the usage line of a command, after the text ``before``.

    A line longer than ``columns`` is wrapped between two arguments or options. The next lines are
    indented to the end of the command's name.
    """
    first, *words = synopsis(of)
    line = before + first
    indent = " " * (len(line) + 1)
    lines = []
    for word in words:
        if len(line) + 1 + len(word) > columns:
            lines.append(line)
            line = indent + word
        else:
            line += f" {word}"
    return "\n".join([*lines, line])


def _wrapped(text: str, columns: int, head: str = "", indent: int = 0) -> str:
    import textwrap

    filled = textwrap.TextWrapper(
        columns, head, " " * indent, break_on_hyphens=False, break_long_words=False
    )
    return filled.fill(text) + "\n"


def _list(rows: list[tuple[str, str]], columns: int, least: int = 0) -> str:
    left = max(min(max(len(word) for word, _ in rows), 22), least)
    shown = ""
    for word, text in rows:
        head = f"  {word:<{left}}  "
        if len(word) > left:
            shown += f"  {word}\n"
            head = " " * (left + 4)
        shown += _wrapped(text, columns, head, left + 4)
    return shown


def examples(of: Command, columns: int) -> list[str]:
    """Return the lines of a command's examples, each with its remark at the end or above."""
    short = [len(a) for a, b in of.examples if b and len(a) + len(b) <= columns - 6]
    column = max((length for length in short if length <= 44), default=0)
    lines = []
    for line, remark in of.examples:
        together = f"{line:<{column}}    # {remark}" if remark else line
        lines += [together] if len(together) <= columns or not remark else [f"# {remark}", line]
    return lines
