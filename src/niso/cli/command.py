"""Define commands as data.

The parser, help, completion, man pages and docs/reference are generated from these data.
"""

from __future__ import annotations

from niso.base.lite_typing import NamedTuple


class Argument(NamedTuple):
    """A positional argument.

    ``times`` says how often it can occur: empty (once), ``?``, ``*``, ``+``, or ``...`` (the
    remaining words). ``completes`` is a key of `complete._KINDS`.
    """

    dest: str
    metavar: str
    help: str
    times: str = ""
    completes: str = ""
    default: str = ""


class Option(NamedTuple):
    """A switch, or with ``metavar`` an option that takes a value.

    Options with the same ``group`` are mutually exclusive. ``means`` is the value of ``dest`` if
    the switch is given, instead of True. ``ends`` says whether it ends or deletes something.
    ``implied`` is the value of an option that is given without one; then a value can only follow
    after =.
    """

    dest: str
    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    default: str = ""
    many: bool = False
    number: bool = False
    group: str = ""
    means: int = 0
    ends: bool = False
    implied: str = ""

    @property
    def takes(self) -> str:
        """Return the option as help shows it: ``-n, --lines N``, ``--encrypt[=HOW]``."""
        return ", ".join(self.flags) + self.value

    @property
    def value(self) -> str:
        """Return the option's value as help shows it after a flag; "" if it takes none."""
        if self.implied:
            return f"[={self.metavar}]"
        return f" {self.metavar}" if self.metavar else ""


class Command(NamedTuple):
    """A command.

    ``does`` is an imperative phrase, ``examples`` are pairs of command and remark, ``exits`` pairs
    of exit status and meaning. ``root`` says whether it needs root. ``ends`` says whether it ends
    or deletes something; such a command is never suggested for a misspelt one. ``aside`` says
    whether the first screen of help, or its group's help, only lists its name.
    """

    name: str
    does: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    about: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    exits: tuple[tuple[str, str], ...] = ()
    root: bool = True
    ends: bool = False
    aside: bool = False


class Group(NamedTuple):
    """A command with actions; each action is a `Command` named as ``net list``."""

    name: str
    does: str
    actions: tuple[Command, ...]


VERBOSE = Option("verbose", ("-v", "--verbose"), "print each step")
DRY_RUN = Option("dry_run", ("--dry-run",), "print the steps without changing anything")
TRUST_OWNER = Option(
    "trust_owner",
    ("--trust-owner",),
    "accept files that users other than root and you can change",
)
JSON = Option("json", ("--json",), "print the result and errors as JSON")
TIMEOUT = Option(
    "timeout",
    ("--timeout",),
    "how long to wait for each service to start or become healthy",
    "TIME",
    "60s",
)


def synopsis(command: Command) -> list[str]:
    """Return the parts of a usage line: ``niso net create``, ``NAME``, ``[--subnet CIDR]...``.

    A line can break between parts, not inside them.
    """
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
        word = option.flags[0] + option.value
        if option.group:
            groups.setdefault(option.group, []).append(word)
            if len(groups[option.group]) > 1:
                continue
            shown.append(option.group)  # replaced below by the options of the group
        else:
            shown.append(f"[{word}]{'...' if option.many else ''}")
    return [f"[{' | '.join(groups[part])}]" if part in groups else part for part in shown]


def sentence(phrase: str) -> str:
    """Format a phrase as a sentence."""
    return f"{phrase[:1].upper()}{phrase[1:]}."
