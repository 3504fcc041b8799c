"""What a command is called with, as data: the parser, the help, completion, the man pages and the reference are all made of it."""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Argument(NamedTuple):
    """A word that stands at its place. ``times`` is how many there may be: one, ``?``, ``*``, ``+``, or ``...`` (all that is left)."""

    dest: str
    metavar: str
    help: str
    times: str = ""
    completes: str = ""  # a word of cli/complete.py; what can stand here
    default: str = ""


class Option(NamedTuple):
    """A switch, or with ``metavar`` an option that takes a value. Of one ``group`` only one can be given."""

    dest: str
    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    default: str = ""
    many: bool = False
    number: bool = False
    group: str = ""
    means: int = 0  # the value of ``dest`` where this switch is given, in place of True

    @property
    def takes(self) -> str:
        """``-n, --lines N``"""
        return ", ".join(self.flags) + (f" {self.metavar}" if self.metavar else "")


class Command(NamedTuple):
    """``does`` is a phrase that ends ``it is there to ...``; ``examples`` are command and remark, ``exits`` status and meaning."""

    name: str
    does: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    about: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    exits: tuple[tuple[str, str], ...] = ()
    root: bool = True


class Group(NamedTuple):
    """A command that has actions, each a `Command` of its own named ``net list``."""

    name: str
    does: str
    actions: tuple[Command, ...]


VERBOSE = Option("verbose", ("-v", "--verbose"), "print each step as it is taken")
DRY_RUN = Option("dry_run", ("--dry-run",), "print the steps and change nothing")
JSON = Option("json", ("--json",), "print the result, and errors, as JSON")
TIMEOUT = Option(
    "timeout",
    ("--timeout",),
    "how long to wait until each service has started, or is healthy",
    "TIME",
    "60s",
)


def synopsis(command: Command) -> list[str]:
    """The words of a usage line that belong together: ``niso net create``, ``NAME``, ``[--subnet CIDR]...``."""
    shown = [f"niso {command.name}"]
    for argument in command.arguments:
        if argument.times == "...":
            shown.append(argument.metavar)
            continue
        repeats = "..." if argument.times in ("*", "+") else ""
        word = argument.metavar + repeats
        shown.append(f"[{word}]" if argument.times in ("?", "*") else word)
    groups: dict[str, list[str]] = {}
    for option in command.options:
        word = option.flags[0] + (f" {option.metavar}" if option.metavar else "")
        if option.group:
            groups.setdefault(option.group, []).append(word)
            if len(groups[option.group]) > 1:
                continue
            shown.append(option.group)  # its place; the words come below
        else:
            shown.append(f"[{word}]{'...' if option.many else ''}")
    return [f"[{' | '.join(groups[each])}]" if each in groups else each for each in shown]


def sentence(phrase: str) -> str:
    return f"{phrase[:1].upper()}{phrase[1:]}."
