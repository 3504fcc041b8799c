"""Declare the interface to systemd's units of services. `niso.runtime.fake_units` needs no root."""

from __future__ import annotations

import os
from collections.abc import Iterable

from niso.base.lite_typing import TYPE_CHECKING
from niso.runtime import unit

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

UNITS = "/etc/systemd/system"
WANTED_BY = "multi-user.target"


def unit_file(service: str) -> str:
    """Return the path of a service's unit file."""
    return os.path.join(UNITS, unit.name(service))


class Units(Protocol):
    """The systemd units of services. Methods other than `booted` require systemd as the init.

    All raise Error if systemd refuses.
    """

    def booted(self) -> bool:
        """Return whether systemd is the init."""

    # --- unit files ---

    def read(self, path: str) -> str | None:
        """Return the text of a unit file or drop-in; None if there is none."""

    def write(self, path: str, text: str) -> None:
        """Replace a unit file or drop-in; call `enable` or `reload` to make systemd read it.

        Raises OSError.
        """

    def delete(self, path: str) -> None:
        """Delete a unit file or drop-in, and its folder if empty; no-op if it is missing."""

    def reload(self) -> None:
        """Reload systemd's unit files (daemon-reload)."""

    def is_enabled(self, service: str) -> bool:
        """Return whether systemd starts the unit at boot."""

    def enable(self, services: Iterable[str]) -> None:
        """Reload the units of services, and enable them to start at boot."""

    def remove(self, services: Iterable[str]) -> None:
        """Disable units and remove their files, once none is active; no-op without services."""

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        """Return whether systemd has a file for a unit."""

    def is_active(self, unit: str) -> bool:
        """Return whether a unit is active."""

    def start_unit(self, unit: str) -> None:
        """Start a unit and wait for it; no-op if it is active."""

    def stop_unit(self, unit: str) -> None:
        """Stop a unit and wait for it; no-op if it is inactive."""

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        """Start the units of services and wait for them."""

    def stop(self, services: Iterable[str]) -> None:
        """Stop the units of services, whose processes do not belong to them, and wait."""

    def is_ours(self, service: str) -> bool:
        """Return whether this command runs inside the service's unit."""

    def is_supervised(self, service: str) -> bool:
        """Return whether the service's process has a living conmon."""

    def is_outside(self, service: str) -> bool:
        """Return whether the service has a conmon that is not in its unit."""

    def ready(self, service: str) -> None:
        """Make the service's conmon the main process of its unit, in which this command runs.

        The caller holds the service's lock. Raises ProcessError if the process has ended.
        """

    def give_back(self, service: str) -> None:
        """Stop a service's unit, but not its processes. The caller holds the service's lock."""
