"""Implement `niso.runtime.processes.Processes` with conmon and crun."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec
from niso.runtime import exit_command, process, status
from niso.runtime.spec import load, read_state, save

if TYPE_CHECKING:
    from niso.base.errors import Error
    from niso.plan.findings import Finding
    from niso.plan.records import Healthcheck
    from niso.runtime.health_probe import Probe
    from niso.runtime.idle import Mark
    from niso.runtime.lost_services import Lost
    from niso.runtime.systemd import Systemd

_EXIT_CODE_S = 1.0
"""How long conmon may take to write an exit status."""


class RealProcesses:
    """The processes of services on this machine."""

    @property
    def units(self) -> Systemd:
        from niso.runtime.systemd import Systemd

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
        from niso.runtime import defects

        return defects.of_process(service)

    # --- start and stop ---

    def renew(self) -> None:
        exit_command.renew()

    def require_room(self) -> None:
        process.require_room()

    def expect(self) -> None:
        from niso.runtime import launch

        launch.expect()

    def begin(self, spec: ProcessSpec) -> process.Start:
        return process.Start(spec)

    def start(self, spec: ProcessSpec) -> int:
        return process.start(spec)

    def terminate(self, service: str) -> int:
        return process.terminate(service)

    def stop(self, service: str, timeout_s: float | None = None) -> None:
        process.stop(service, timeout_s)

    def stop_all(self, services: Iterable[str]) -> dict[str, Error]:
        return process.stop_all(services)

    def end_unrecorded(self, services: Collection[str]) -> None:
        process.end_unrecorded_conmons(services)

    def lost(self, state_ids: Iterable[str]) -> list[Lost]:
        from niso.runtime import lost_services

        return lost_services.find(state_ids)

    def end_lost(self, lost: Lost) -> None:
        process.end_orphans(lost.service, lost.cgroup)

    def swap_hosts(self, spec: ProcessSpec) -> None:
        from niso.runtime import hosts_mount

        hosts_mount.swap(spec)

    # --- waiting ---

    def open_init(self, service: str) -> int:
        return process.open_init(service)

    def mark(self, pid: int) -> Mark | None:
        from niso.runtime import idle

        return idle.mark(pid)

    def is_starved(self, pid: int) -> bool:
        from niso.runtime import idle

        return idle.is_starved(pid)

    def probe(self, check: Healthcheck, service: str, service_netns: str | None) -> Probe:
        from niso.runtime import health_probe

        return health_probe.begin(check, service, service_netns)

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
        from datetime import datetime

        from niso.runtime import logs

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
