"""What the documents name and this version does not do yet: refused by name, so that nobody takes it for a typo."""

from __future__ import annotations

from niso.errors import UsageError

COMMANDS = ("completion",)


def refuse_command(name: str) -> None:
    """Raise UsageError if ``name`` is a command that is to come."""
    if name in COMMANDS:
        raise UsageError(f"niso {name} is not supported yet", "niso --help lists what is")
