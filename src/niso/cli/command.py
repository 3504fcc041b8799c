"""Define the types that describe commands, and list the commands with their modules.

niso generates its parser, help, completion, man pages and docs/reference from the descriptions in
cli/catalogue.
"""

from __future__ import annotations

import os

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from niso.cli.parse import Args


class Argument(NamedTuple):
    """A positional argument of a command, such as ``NAME``, ``FILE?``, ``PATH*`` or ``-- CMD...``.

    The notation may end with ``?`` (optional), ``+`` (one or more values) or ``*`` (any number).
    After ``-- ``, the argument takes all remaining words. ``completes`` is a key of
    `complete._KINDS`. ``key`` is the attribute of `Args` that gets the value, by default the
    argument's name in lower case, with an s if several values are allowed.
    """

    spelled: str
    help: str
    completes: str = ""
    default: str = ""
    key: str = ""

    @property
    def metavar(self) -> str:
        return self.spelled.rstrip("?*+")

    @property
    def times(self) -> str:
        """How many values the argument takes: ``?``, ``*``, ``+``, "" (one) or ``...`` (all)."""
        return "..." if "-- " in self.spelled else self.spelled[len(self.metavar) :]

    @property
    def dest(self) -> str:
        return self.key or self.metavar.lower() + "s" * (self.times in ("*", "+"))


class Option(NamedTuple):
    """An option of a command, such as ``-v --verbose``, ``-n N``, ``--port PORT...``.

    A word after the flags is the name of the option's value. With ``...``, the option can be given
    several times. An option without a value is a switch, which sets ``means`` (default True).
    Options of the same ``group`` exclude each other. ``ends`` is True if the option stops or
    deletes something. ``implied`` makes the value optional: ``--flag=VALUE``, or ``--flag`` for
    ``implied``. ``key`` is the attribute of `Args` that gets the value, by default the last flag.
    """

    spelled: str
    help: str
    default: str = ""
    number: bool = False
    group: str = ""
    means: int = 0
    ends: bool = False
    implied: str = ""
    key: str = ""

    @property
    def flags(self) -> list[str]:
        return [word for word in self.spelled.split() if word.startswith("-")]

    @property
    def dest(self) -> str:
        return self.key or self.flags[-1].lstrip("-").replace("-", "_")

    @property
    def metavar(self) -> str:
        """The name of the option's value in help, or "" if the option takes no value."""
        word = self.spelled.split()[-1]
        return "" if word.startswith("-") else word.removesuffix("...")

    @property
    def many(self) -> bool:
        return self.spelled.endswith("...")

    @property
    def takes(self) -> str:
        """The option as shown in help: ``-n, --lines N``, ``--encrypt[=HOW]``."""
        return ", ".join(self.flags) + self.value

    @property
    def value(self) -> str:
        """The option's value as shown in help after a flag, such as `` N``."""
        if self.implied:
            return f"[={self.metavar}]"
        return f" {self.metavar}" if self.metavar else ""


class Command(NamedTuple):
    """The description of a command.

    ``does`` is an imperative phrase for help. Each line of ``lines`` is an example, and can end
    with two spaces, ``#``, a space and a remark. Each line of ``statuses`` describes an exit
    status. ``root`` is True if the command needs root. ``ends`` is True if the command stops or
    deletes something. Such a command is never suggested for a misspelt one. If ``aside`` is True,
    the help of its group lists only the command's name.

    A command with ``actions`` is a group. Each action has a name such as ``net list``.
    """

    name: str
    does: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    about: str = ""
    lines: str = ""
    statuses: str = ""
    root: bool = True
    ends: bool = False
    aside: bool = False
    actions: tuple[Command, ...] = ()

    @property
    def examples(self) -> list[tuple[str, str]]:
        split = (line.partition("  # ") for line in self.lines.splitlines())
        return [(example, remark) for example, _, remark in split]

    @property
    def exits(self) -> tuple[tuple[str, str], ...]:
        split = (line.partition(" ") for line in self.statuses.splitlines())
        return tuple((number, meaning) for number, _, meaning in split)


VERBOSE = Option("-v --verbose", "print each step")
TRUST_OWNER = Option("--trust-owner", "accept files that users other than root and you can change")
JSON = Option("--json", "print the result and errors as JSON")
TIMEOUT = Option(
    "--timeout TIME", "how long to wait for each service to start or become healthy", "60s"
)
FOR = Option("--for TIME", "end after this time", key="seconds")
REPORTS = (VERBOSE, JSON)
CHANGES = (Option("--dry-run", "print the steps without changing anything"), *REPORTS)


def meaning(of: Argument | Option) -> str:
    """Return the help text of an argument or option, with its default value if it has one."""
    return f"{of.help} (default: {of.default})" if of.default else of.help


def synopsis(command: Command) -> list[str]:
    """Return the parts of a command's usage line, such as ``[-n N]``. Lines break between them."""
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
    return f"{phrase[:1].upper()}{phrase[1:]}."


# --- the list of commands -------------------------------------------------------------------------


_RUNS = (
    (
        "activate deactivate restart remove ps scale rollback history",
        "service_commands.run",
        "service",
    ),
    ("inspect logs", "service_commands.run", "service"),
    ("exec kill port-forward", "service_commands.run", "service"),
    ("net", "net_commands.run_net", "net"),
    ("stack", "service_commands.run", "service"),
    ("volume save load", "service_commands.run", "volume"),
    ("cluster", "cluster_commands.run_cluster", "general"),
    ("enable disable restore", "service_commands.run", "general"),
    ("agent", "cluster_commands.run_cluster", "general"),
    ("health", "general_commands.run_health", "general"),
    ("kubernetes", "cluster_commands.run_kubernetes", "general"),
    ("top", "traffic_commands.run_top", "general"),
    ("events", "traffic_commands.run_events", "general"),
    ("web", "browser.run", "general"),
    ("metrics", "prometheus.run", "general"),
    ("firewall reset", "service_commands.run", "general"),
    ("lab validate schema", "general_commands.run_meta", "general"),
    ("import", "general_commands.run_importing", "general"),
    ("completion complete", "complete.run", "general"),
    ("on-exit help version", "general_commands.run_meta", "general"),
)
COMMANDS = {name: (run, described) for names, run, described in _RUNS for name in names.split()}
"""The function of cli that runs each command, and the module of cli/catalogue that describes it."""

GROUPS = ("net", "stack", "volume", "cluster", "kubernetes", "firewall")
"""The commands that have actions, such as ``niso net list``."""

HIDDEN = ("complete", "on-exit")
"""Commands that only other programs call. Help and completion leave them out."""

HEADINGS = {
    "Services": (
        "activate, deactivate, ps, logs",
        "restart, remove, exec, inspect, port-forward, scale, rollback, history, kill, volume, "
        "save, load, enable, disable",
    ),
    "Stacks": ("stack", "validate, import, schema"),
    "Networks": ("net", ""),
    "See": ("top, net flows, web", "events, metrics, net graph, net capture, net drops"),
    "Fix": ("net explain, net check, net repair", "net trace, net ping, reset, lab"),
    "Hosts": ("cluster", "firewall, kubernetes"),
}
"""The first screen of help: for each heading, commands with descriptions, and further names."""

PLUMBING = "agent, cluster etcd, health, kubernetes run, restore, net gc, net refresh, completion"
"""The commands that units, timers and other programs call; ``niso help plumbing`` lists them."""

ALIASES = {"-h": "help", "--help": "help", "-V": "version", "--version": "version"}


def find(name: str, action: str) -> Command:
    """Return the description of the command ``name``, or of the action ``action`` in this group.

    ``action`` may have two words, such as ``member add``. If the group has no such action, returns
    the description of the group.
    """
    catalogue = module(f"catalogue.{COMMANDS[name][1]}")
    group = next((group for group in catalogue.GROUPS if group.name == name), None)
    commands: tuple[Command, ...] = group.actions if group else catalogue.COMMANDS
    wanted = (f"{name} {action}", f"{name} {action.partition(' ')[0]}") if group else (name,)
    match = next((command for command in commands if command.name in wanted), None)
    return match or group or commands[0]


RENAMED = (
    ("check", "", "validate"),
    ("net log", "", "net drops"),
    ("net apply", "", "net repair"),
    ("stack status", "", "stack ps"),
    ("cluster member alone", "", "cluster recover --force"),
    ("cluster init", "--restore", "cluster recover"),
    ("enable", "--firewall", "firewall enable"),
    ("disable", "--firewall", "firewall disable"),
    ("kubernetes", "--enable", "kubernetes enable"),
    ("kubernetes", "--disable", "kubernetes disable"),
    ("kubernetes", "", "kubernetes run"),
    ("net names", "--host", "net names"),
    ("net repair", "--sweep", "reset --yes"),
    ("activate", "--replace", "activate --take-over"),
    ("activate", "--take", "activate --from-lost-host"),
    ("stack up", "--replace", "stack up --take-over"),
    ("port-forward", "--replace", "port-forward --take-over"),
)
"""Former commands: the command, one of its options or "", and the words that replace both."""

_OF_OTHERS = {
    "stop": "deactivate",
    "rm": "remove",
    "start": "activate",
    "up": "stack up",
    "down": "stack down",
    "net ls": "net list",
    "net rm": "net remove",
}
"""Commands of other tools that niso accepts, because they can mean only one command of niso."""


def present(words: list[str]) -> tuple[list[str], str]:
    """Convert a command line that begins with a renamed command, or a command of another tool.

    Returns (words with niso's present command, note). The note for the user names the new command.
    It is "" unless the command was renamed.
    """
    end = words.index("--") if "--" in words else len(words)
    for former, option, now in RENAMED:
        size = len(former.split())
        given, beyond = words[size:end], words[end:]
        if words[:size] != former.split():
            continue
        if option:
            place = next(
                (at for at, word in enumerate(given) if word.split("=")[0] == option), None
            )
            if place is None:
                continue
            value = given[place].partition("=")[2]
            given[place : place + 1] = [value] if value else []
        elif now.startswith(f"{former} ") and given and (given[0] in ALIASES or given[0][0] != "-"):
            continue  # an action of the group, or its help
        note = f"'niso {f'{former} {option}'.rstrip()}' is now 'niso {now.removesuffix(' --yes')}'"
        return [*now.split(), *given, *beyond], note
    for size in (2, 1):
        now = _OF_OTHERS.get(" ".join(words[:size]), "")
        if len(words) < size or not now:
            continue
        is_file = any("/" in word or word.endswith(".toml") for word in words[1:])
        if now.startswith("stack") and not (is_file or os.path.exists("stack.toml")):
            continue  # no stack is meant
        if now == "activate" and (is_file or len(words) == 1):
            continue  # docker start takes no folder
        return [*now.split(), *words[size:]], ""
    return words, ""


def runner(name: str) -> Callable[[str, Args], int]:
    """Import the module of a command, and return the function that runs the command."""
    place, _, function = COMMANDS[name][0].partition(".")
    run: Callable[[str, Args], int] = getattr(module(place), function)
    return run


def module(name: str) -> ModuleType:
    # importlib would load two more modules for every command
    return __import__(f"niso.cli.{name}", fromlist=["run"])
