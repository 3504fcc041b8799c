"""The commands by name: the module that runs each, and its entry in the catalogue."""

from __future__ import annotations

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
    "port-forward": ("forward", "service"),
    "net": ("net", "net"),
    "stack": ("stack", "stack"),
    "enable": ("boot", "general"),
    "disable": ("boot", "general"),
    "restore": ("boot", "general"),
    "lab": ("meta", "general"),
    "schema": ("meta", "general"),
    "completion": ("complete", "general"),
    "complete": ("complete", "general"),
    "help": ("meta", "general"),
    "version": ("meta", "general"),
}
"""The module that runs each command, and the one of cli/catalogue that has its words."""

ALIASES = {"-h": "help", "--help": "help", "-V": "version", "--version": "version"}


def find(name: str, action: str) -> Command | Group:
    """The command of this name, or of this action of it; the group where it has no such action."""
    words = module(f"catalogue.{COMMANDS[name][1]}")
    group: Group | None = getattr(words, "GROUP", None)
    commands: tuple[Command, ...] = group.actions if group else words.COMMANDS
    wanted = f"{name} {action}" if group else name
    return next((each for each in commands if each.name == wanted), None) or group or commands[0]


def module(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"niso.cli.{name}")
