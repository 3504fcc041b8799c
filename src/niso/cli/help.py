"""Help on a terminal: the first screen, the actions of a group, all of one command."""

from __future__ import annotations

import os
import textwrap

from niso.cli.command import Command, Group, sentence, synopsis
from niso.cli.output import said_columns

WIDEST = 100


def width() -> int:
    """The columns that help has; 80 where it is not read on a terminal."""
    try:
        columns = said_columns() or os.get_terminal_size(1).columns
    except OSError:
        columns = 80
    return min(max(columns, 40), WIDEST)


def first_screen(version: str, commands: list[Command | Group]) -> str:
    """What ``niso`` alone prints: not more than 23 lines of 80, so that a prompt fits below it."""
    columns = width()
    head = f"niso {version}: networks for services on Linux, without daemon and proxy"
    use, more = "usage: niso COMMAND ...", "niso help COMMAND tells all of one, with examples"
    lines = _list([(command.name, command.does) for command in commands], columns)
    begin = [
        ("sudo niso activate ./api", "a folder with a manifest.toml; then niso ps"),
        ("sudo niso lab", "a machine to try it in, without a risk"),
    ]
    if columns < 80:
        texts = "".join(_wrapped(each, columns) for each in (head, use, more))
        return f"{texts}\n{lines}\nbegin:\n{_list(begin, columns)}"
    (first, what), (second, where) = begin
    return f"""\
{head}
{use}       {more}

{lines}
begin:  {first}   {what}
        {second:<{len(first)}}   {where}
"""


def group(of: Group) -> str:
    columns = width()
    lines = _list(
        [(each.name.removeprefix(f"{of.name} "), each.does) for each in of.actions], columns
    )
    example = next(each for each in of.actions if each.examples).name
    return (
        f"usage: niso {of.name} ACTION ...\n\n{_wrapped(sentence(of.does), columns)}\nactions:\n{lines}\n"
        + _wrapped(f"niso help {example} tells all of one, with examples", columns)
    )


def command(of: Command) -> str:
    """All of one command."""
    columns = width()
    parts = [usage(of, columns, "usage: ") + "\n", _wrapped(sentence(of.does), columns)]
    if of.about:
        parts.append(_wrapped(of.about, columns))
    if of.arguments:
        parts.append(
            "arguments:\n"
            + _list(
                [(each.metavar, _defaulted(each.help, each.default)) for each in of.arguments],
                columns,
            )
        )
    options = [(_aligned(each.takes), _defaulted(each.help, each.default)) for each in of.options]
    parts.append("options:\n" + _list([*options, ("-h, --help", "print this")], columns))
    if of.examples:
        head = "examples:\n" if len(of.examples) > 1 else "example:\n"
        parts.append(head + "".join(f"  {line}\n" for line in examples(of, columns - 2)))
    if of.exits:
        parts.append("exit status:\n" + _list(list(of.exits), columns))
    return "\n".join(parts)


def _aligned(option: str) -> str:
    """Long names stand below each other, whether there is a short one or not."""
    return f"    {option}" if option.startswith("--") else option


def _defaulted(words: str, default: str) -> str:
    return f"{words} (default: {default})" if default else words


def usage(of: Command, columns: int, before: str = "") -> str:
    """The synopsis in one line, or in several that break between its words; ``before`` stands before the first."""
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
    """Words and what they mean, the second column wrapped below itself."""
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
    """Commands and remarks: a command is never broken, and a remark that has no room beside it stands above it."""
    short = [
        len(line)
        for line, remark in of.examples
        if remark and len(line) + len(remark) <= columns - 6
    ]
    column = max((each for each in short if each <= 44), default=0)
    lines = []
    for line, remark in of.examples:
        beside = f"{line:<{column}}    # {remark}" if remark else line
        lines += [beside] if len(beside) <= columns or not remark else [f"# {remark}", line]
    return lines
