"""Model systemd's units of services in memory, for processes in memory.

They refuse what systemd refuses: an unknown unit cannot be enabled or started, and only a process
of a unit says that it is ready. The unit file of an active unit cannot be removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.errors import Error, ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.runtime import unit

if TYPE_CHECKING:
    from niso.runtime.fake_processes import FakeProcesses


class FakeUnits:
    """Implement `niso.runtime.units.Units` without systemd."""

    def __init__(self, processes: FakeProcesses) -> None:
        self._processes = processes
        self.is_init = False
        self.caller: str | None = None  # the service in whose unit the command runs
        self.files: dict[str, str] = {}
        self.known: dict[str, str] = {}  # what systemd has read
        self.enabled: set[str] = set()
        self.active: set[str] = set()  # services whose process is in its unit

    def booted(self) -> bool:
        return self.is_init

    # --- unit files ---

    def read(self, service: str) -> str | None:
        return self.files.get(service)

    def write(self, service: str, text: str) -> None:
        self._processes.hit(f"write-unit {service}")
        self.files[service] = text

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
            del self.files[service], self.known[service]

    # --- running units ---

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
        if service not in self.known:
            raise Error(f"systemctl {what} {unit.name(service)}: it does not exist")
