"""Define results of commands that change services."""

from __future__ import annotations

from niso.api.published_ports import Port
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from niso.base.errors import Error


class Outcome(NamedTuple):
    """Result of an activation for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false if it was already active and nothing changed"""
    address: tuple[str, ...]
    """addresses, one per network and family; can be empty"""
    ports: tuple[Port, ...]
    """published ports, one per address family"""
    completed: bool
    """true for a job, which has run and exited with status 0"""


class Done(NamedTuple):
    """Result of a command for one service."""

    service: str
    """the service's name"""
    changed: bool
    """false if nothing changed"""


class Restored(NamedTuple):
    """Result of `Services.restore`; services start even if others fail."""

    outcomes: tuple[Outcome, ...]
    errors: tuple[Error, ...]
