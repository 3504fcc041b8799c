"""List the commands, with the module that implements each and its entry in the catalogue."""

from __future__ import annotations

from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli.command import Command, Group

if TYPE_CHECKING:
    from types import ModuleType

COMMANDS = {
    "activate": ("service", "service"),
    "deactivate": ("service", "service"),
    "restart": ("service", "service"),
    "remove": ("service", "service"),
    "ps": ("inspect", "service"),
    "inspect": ("inspect", "service"),
    "logs": ("inspect", "service"),
    "exec": ("exec", "service"),
    "kill": ("exec", "service"),
    "port-forward": ("forward", "service"),
    "net": ("net", "net"),
    "stack": ("stack", "stack"),
    "cluster": ("cluster", "cluster"),
    "enable": ("boot", "general"),
    "disable": ("boot", "general"),
    "restore": ("boot", "general"),
    "agent": ("cluster", "general"),
    "kubernetes": ("kubernetes", "general"),
    "top": ("top", "general"),
    "events": ("events", "general"),
    "web": ("web", "general"),
    "metrics": ("metrics", "general"),
    "lab": ("meta", "general"),
    "check": ("meta", "general"),
    "schema": ("meta", "general"),
    "import": ("importing", "general"),
    "completion": ("complete", "general"),
    "complete": ("complete", "general"),
    "on-exit": ("meta", "general"),
    "help": ("meta", "general"),
    "version": ("meta", "general"),
}
"""Command -> (module of cli that runs it, module of cli/catalogue that describes it)."""

HIDDEN = ("complete", "on-exit")
"""Commands that only programs call; help and completion leave them out."""

ALIASES = {"-h": "help", "--help": "help", "-V": "version", "--version": "version"}


def find(name: str, action: str) -> Command | Group:
    """Return the command with this name and action; the group if it has no such action.

    ``action`` can have two words, of which the second may be an argument.
    """
    catalogue = module(f"catalogue.{COMMANDS[name][1]}")
    group: Group | None = getattr(catalogue, "GROUP", None)
    commands: tuple[Command, ...] = group.actions if group else catalogue.COMMANDS
    wanted = (f"{name} {action}", f"{name} {action.partition(' ')[0]}") if group else (name,)
    match = next((command for command in commands if command.name in wanted), None)
    return match or group or commands[0]


def unknown_command(words: list[str]) -> UsageError:
    """Return the error for words that name no command, or no action of a group.

    Its hint is the equivalent niso command if another tool has a command of this name. Otherwise it
    is the closest command, unless that ends or deletes something.
    """
    from niso.cli.catalogue.habits import answer, habit
    from niso.cli.parse import unknown

    group = find(words[0], "") if words[0] in COMMANDS else None
    kind, name = ("action", " ".join(words[:2])) if group else ("command", words[0])
    known = habit(words)
    if known is not None:
        return UsageError(f"unknown {kind} {name!r}", answer(known))
    if isinstance(group, Group):
        actions = {action.name: action.ends for action in group.actions}
        return unknown(kind, name, actions, f"niso help {group.name} lists them", group.name)
    every = [find(command, "") for command in COMMANDS if command not in HIDDEN]
    ends = {one.name: isinstance(one, Command) and one.ends for one in every}
    return unknown(kind, name, ends, "niso help lists them")


def module(name: str) -> ModuleType:
    """Import and return a module of cli."""
    # importlib would load two more modules for every command
    return __import__(f"niso.cli.{name}", fromlist=["run"])
