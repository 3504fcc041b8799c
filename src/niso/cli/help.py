"""Format help: the first screen, the actions of a group, one command."""

from __future__ import annotations

import os
import textwrap

from niso.cli.command import Command, Group, sentence, synopsis
from niso.cli.output import columns_variable

WIDEST = 100


def width() -> int:
    """Return the width of help in columns; 80 without a terminal."""
    try:
        columns = columns_variable() or os.get_terminal_size(1).columns
    except OSError:
        columns = 80
    return min(max(columns, 40), WIDEST)


def first_screen(version: str, commands: list[Command | Group]) -> str:
    """Return what ``niso`` alone prints: at most 23 lines of 80, so that a prompt fits below."""
    columns = width()
    head = f"niso {version}: networking for services on Linux, without a daemon or a proxy"
    use, more = "usage: niso COMMAND ...", "niso help COMMAND shows its options and examples"
    asides = [one.name for one in commands if isinstance(one, Command) and one.aside]
    lines = _list(
        [(one.name, one.does) for one in commands if one.name not in asides], columns
    ) + _wrapped(f"also: {', '.join((*asides, 'help', 'version'))}", columns)
    begin = [
        ("sudo niso activate ./api", "a folder with a manifest.toml; then niso ps"),
        ("sudo niso lab", "a disposable host for experiments"),
    ]
    if columns < 80:
        texts = "".join(_wrapped(text, columns) for text in (head, use, more))
        return f"{texts}\n{lines}\nstart:\n{_list(begin, columns)}"
    (first, what), (second, where) = begin
    return f"""\
{head}
{use}       {more}

{lines}
start:  {first}   {what}
        {second:<{len(first)}}   {where}
"""


def group(of: Group) -> str:
    """Return the help of a command with actions."""
    columns = width()
    short = {action: action.name.removeprefix(f"{of.name} ") for action in of.actions}
    lines = _list([(name, one.does) for one, name in short.items() if not one.aside], columns)
    asides: dict[str, list[str]] = {}  # first word -> second words
    for name in (name for one, name in short.items() if one.aside):
        first, _, second = name.partition(" ")
        asides.setdefault(first, []).append(second)
    if asides:
        shown = (f"{first} {'|'.join(more)}".rstrip() for first, more in asides.items())
        lines += _wrapped(f"also: {', '.join(shown)}", columns)
    example = next(action for action in of.actions if action.examples).name
    return (
        f"usage: niso {of.name} ACTION ...\n\n{_wrapped(sentence(of.does), columns)}\n"
        f"actions:\n{lines}\n"
        + _wrapped(f"niso help {example} shows its options and examples", columns)
    )


def command(of: Command) -> str:
    """Return the help of one command."""
    columns = width()
    parts = [usage(of, columns, "usage: ") + "\n", _wrapped(sentence(of.does), columns)]
    if of.about:
        parts.append(_wrapped(of.about, columns))
    if of.arguments:
        parts.append(
            "arguments:\n"
            + _list([(a.metavar, _defaulted(a.help, a.default)) for a in of.arguments], columns)
        )
    options = [(_aligned(o.takes), _defaulted(o.help, o.default)) for o in of.options]
    parts.append("options:\n" + _list([*options, ("-h, --help", "print this help")], columns))
    if of.examples:
        head = "examples:\n" if len(of.examples) > 1 else "example:\n"
        parts.append(head + "".join(f"  {line}\n" for line in examples(of, columns - 2)))
    if of.exits:
        parts.append("exit status:\n" + _list(list(of.exits), columns))
    return "\n".join(parts)


def _aligned(option: str) -> str:
    """Indent a long option without a short form, so that long names line up."""
    return f"    {option}" if option.startswith("--") else option


def _defaulted(text: str, default: str) -> str:
    return f"{text} (default: {default})" if default else text


def usage(of: Command, columns: int, before: str = "") -> str:
    """Return the synopsis, wrapped between its parts, with ``before`` in front."""
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


def _wrapped(text: str, columns: int) -> str:
    return textwrap.fill(text, columns, break_on_hyphens=False, break_long_words=False) + "\n"


def _list(rows: list[tuple[str, str]], columns: int) -> str:
    """Format two columns; the second wraps within itself."""
    left = min(max(len(word) for word, _ in rows), 22)
    shown = []
    for word, meaning in rows:
        lines = textwrap.wrap(
            meaning, columns - left - 4, break_on_hyphens=False, break_long_words=False
        )
        head = f"  {word:<{left}}  "
        if len(word) > left:
            shown.append(f"  {word}")
            head = " " * (left + 4)
        shown.append(f"{head}{lines[0]}")
        shown += [" " * (left + 4) + line for line in lines[1:]]
    return "\n".join(shown) + "\n"


def examples(of: Command, columns: int) -> list[str]:
    """Format commands with remarks; a remark that does not fit next to its command goes above it.

    Commands are never wrapped.
    """
    short = [
        len(line)
        for line, remark in of.examples
        if remark and len(line) + len(remark) <= columns - 6
    ]
    column = max((length for length in short if length <= 44), default=0)
    lines = []
    for line, remark in of.examples:
        beside = f"{line:<{column}}    # {remark}" if remark else line
        lines += [beside] if len(beside) <= columns or not remark else [f"# {remark}", line]
    return lines
