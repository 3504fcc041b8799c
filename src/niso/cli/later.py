"""What the documents name and this version does not do yet: refused by name, so that nobody takes it for a typo."""

from __future__ import annotations

from niso.errors import UsageError

COMMANDS = ("completion",)
OPTIONS = {
    "remove": ("--volumes",),
}


def refuse_command(name: str) -> None:
    """Raise UsageError if ``name`` is a command that is to come."""
    if name in COMMANDS:
        raise UsageError(f"niso {name} is not supported yet", "niso --help lists what is")


def refuse_options(command: str, arguments: list[str]) -> None:
    """Raise UsageError if an option among ``arguments`` is one that is to come."""
    for option in OPTIONS.get(command, ()):
        if any(word == option or word.startswith(f"{option}=") for word in arguments):
            raise UsageError(f"niso {command} {option} is not supported yet", f"niso {command} --help lists what is")
