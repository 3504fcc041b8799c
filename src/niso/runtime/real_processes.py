"""Implement `niso.runtime.processes.Processes` with conmon and crun."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import datetime

from niso.base.errors import Error
from niso.base.named_tuples import TYPE_CHECKING
from niso.plan.records import Healthcheck
from niso.plan.specs import ProcessSpec
from niso.runtime import health, launch, lifecycle, logs, sources, status
from niso.runtime.crun import load, read_state, save
from niso.runtime.health import Probe
from niso.runtime.lifecycle import Lost, Mark
from niso.runtime.units import Systemd

if TYPE_CHECKING:
    from niso.plan.desired import Finding

_EXIT_CODE_S = 1.0
"""Seconds that conmon may take to write an exit status."""


class RealProcesses:
    """The processes of services on this machine."""

    @property
    def units(self) -> Systemd:

        return Systemd()

    # --- status ---

    def services(self) -> list[str]:
        return status.services()

    def status(self, service: str) -> status.Status:
        return status.read(service)

    def runs(self, service: str) -> bool:
        return status.runs(service)

    def is_stopping(self, service: str) -> bool:
        return status.is_stopping(service)

    def in_own_netns(self, service: str) -> bool:
        return status.in_own_netns(service)

    def spec(self, service: str) -> ProcessSpec | None:
        return load(service)

    def save(self, spec: ProcessSpec) -> None:
        save(spec)

    def defect(self, service: str) -> Finding | None:

        return sources.of_process(service)

    # --- start and stop ---

    def renew(self) -> None:
        launch.renew()

    def require_room(self) -> None:
        lifecycle.require_room()

    def begin(self, spec: ProcessSpec) -> lifecycle.Start:
        return lifecycle.Start(spec)

    def start(self, spec: ProcessSpec) -> int:
        return lifecycle.start(spec)

    def terminate(self, service: str) -> int:
        return lifecycle.terminate(service)

    def stop(self, service: str, timeout_s: float | None = None) -> None:
        lifecycle.stop(service, timeout_s)

    def stop_all(self, services: Iterable[str]) -> dict[str, Error]:
        return lifecycle.stop_all(services)

    def end_unrecorded(self, services: Collection[str]) -> None:
        lifecycle.end_unrecorded_conmons(services)

    def lost(self, state_ids: Iterable[str]) -> list[Lost]:

        return lifecycle.find(state_ids)

    def end_lost(self, lost: Lost) -> None:
        lifecycle.end_orphans(lost.service, lost.cgroup)

    def swap_hosts(self, spec: ProcessSpec) -> None:

        lifecycle.swap(spec)

    # --- waiting ---

    def open_init(self, service: str) -> int:
        return lifecycle.open_init(service)

    def mark(self, pid: int) -> Mark | None:

        return lifecycle.mark(pid)

    def is_starved(self, pid: int) -> bool:

        return lifecycle.is_starved(pid)

    def probe(self, check: Healthcheck, service: str, service_netns: str | None) -> Probe:

        return health.begin(check, service, service_netns)

    # --- the end of a process ---

    def exit_code(self, service: str) -> int | None:
        deadline = time.monotonic() + _EXIT_CODE_S
        while True:
            record = read_state(service) or {"run": 0}
            code: int | None = record.get("exit_code")
            if code is None:
                code = status.exit_code(service, status.bundle_of(service, int(record["run"])))
            if code is not None or time.monotonic() >= deadline:
                return code
            time.sleep(0.01)

    def out_of_memory(self, service: str) -> bool:
        return status.out_of_memory(service)

    def last_lines(self, service: str, count: int) -> list[str]:
        launched_at = (read_state(service) or {}).get("launched_at", 0.0)
        lines = []
        for line in logs.read(service, count, timestamps=True):
            stamp, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
            try:
                written_at = datetime.fromisoformat(stamp).timestamp()
            except ValueError:  # part of a line that was cut off
                continue
            if written_at >= launched_at:
                lines.append(text)
        return lines
