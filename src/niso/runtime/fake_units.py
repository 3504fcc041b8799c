"""Model systemd's units of services in memory, for in-memory processes.

They refuse what systemd refuses: an unknown unit cannot be enabled or started, and only a process
of a unit can report that it is ready. The unit file of an active unit cannot be removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from niso.base.errors import Error, ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.runtime import unit
from niso.runtime.units import UNITS, unit_file

if TYPE_CHECKING:
    from niso.runtime.fake_processes import FakeProcesses


class FakeUnits:
    """Implement `niso.runtime.units.Units` in memory."""

    def __init__(self, processes: FakeProcesses) -> None:
        self._processes = processes
        self.is_init = False
        self.caller: str | None = None  # the service in whose unit this command runs
        self.files: dict[str, str] = {}  # path -> text
        self.known: dict[str, str] = {}  # the unit files that systemd has loaded
        self.others: dict[str, bool] = {}  # foreign units -> whether they are active
        self.enabled: set[str] = set()
        self.active: set[str] = set()  # services whose process is in their unit

    def booted(self) -> bool:
        return self.is_init

    # --- unit files ---

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def write(self, path: str, text: str) -> None:
        self._processes.hit(f"write {path}")
        self.files[path] = text

    def delete(self, path: str) -> None:
        self._processes.hit(f"delete {path}")
        self.files.pop(path, None)

    def reload(self) -> None:
        self._processes.hit("reload-units")
        self.known = dict(self.files)

    def is_enabled(self, service: str) -> bool:
        return service in self.enabled

    def enable(self, services: Iterable[str]) -> None:
        self.known = dict(self.files)
        for service in services:
            self._require(service, "enable")
            self.enabled.add(service)

    def remove(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "disable")
            if service in self.active:
                raise Error(f"{unit.name(service)} is active")
            self.enabled.discard(service)
            del self.files[unit_file(service)], self.known[unit_file(service)]

    # --- foreign units ---

    def is_known(self, unit: str) -> bool:
        return unit in self.others or os.path.join(UNITS, unit) in self.known

    def is_active(self, unit: str) -> bool:
        return self.others.get(unit, False)

    def start_unit(self, unit: str) -> None:
        self._processes.hit(f"start {unit}")
        if not self.is_known(unit):
            raise Error(f"systemctl start {unit}: it does not exist")
        self.others[unit] = True

    def stop_unit(self, unit: str) -> None:
        self._processes.hit(f"stop {unit}")
        if self.is_known(unit):
            self.others[unit] = False

    # --- running units of services ---

    def start(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "start")
            if self.is_supervised(service):
                self.active.add(service)

    def stop(self, services: Iterable[str]) -> None:
        for service in services:
            self._require(service, "stop")
            self.active.discard(service)

    def is_ours(self, service: str) -> bool:
        return self.caller == service

    def is_supervised(self, service: str) -> bool:
        return self._processes.status(service).state in ("running", "restarting")

    def is_outside(self, service: str) -> bool:
        return self.is_supervised(service) and service not in self.active

    def ready(self, service: str) -> None:
        if not self.is_ours(service):
            raise Error(f"this command is not in {unit.name(service)}")
        if not self.is_supervised(service):
            raise ProcessError("its process has ended", f"niso logs {service}", service=service)
        self.active.add(service)

    def give_back(self, service: str) -> None:
        self.active.discard(service)

    def _require(self, service: str, what: str) -> None:
        self._processes.hit(f"{what}-unit {service}")
        if unit_file(service) not in self.known:
            raise Error(f"systemctl {what} {unit.name(service)}: it does not exist")
