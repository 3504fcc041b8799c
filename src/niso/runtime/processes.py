"""Define `Processes`, through which commands reach the processes of services (conmon and crun).

Only code that starts, stops or inspects processes loads this module. `fakes.processes` of the tests
has the same methods, in memory.
"""

from __future__ import annotations

import time

from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import lazy
from niso.runtime import crun, status
from niso.runtime.units import Units

if TYPE_CHECKING:
    from niso.runtime import health, launch, lifecycle, logs, sources
else:  # a service that goes on running needs none of them
    health, lifecycle = lazy("niso.runtime.health"), lazy("niso.runtime.lifecycle")
    launch, logs = lazy("niso.runtime.launch"), lazy("niso.runtime.logs")
    sources = lazy("niso.runtime.sources")

_EXIT_CODE_S = 1.0
"""Seconds that conmon may take to write an exit status."""


class Processes:
    """The processes of services on this machine, as commands inspect and change them.

    A caller that changes anything must have the service's lock (`niso.base.locks`). The static
    methods are functions of other modules, which document them.
    """

    units = Units()

    # --- status ---

    services = staticmethod(status.services)
    runs = staticmethod(status.runs)
    is_stopping = staticmethod(status.is_stopping)
    in_own_netns = staticmethod(status.in_own_netns)
    spec = staticmethod(crun.load)
    save = staticmethod(crun.save)
    defect = staticmethod(sources.of_process)

    # --- start and stop ---

    renew = staticmethod(status.renew_exit_script)
    require_room = staticmethod(lifecycle.require_room)
    begin = staticmethod(lifecycle.begin)
    finish = staticmethod(lifecycle.finish)
    start = staticmethod(lifecycle.start)
    terminate = staticmethod(lifecycle.terminate)
    stop = staticmethod(lifecycle.stop)
    stop_all = staticmethod(lifecycle.stop_all)
    end_unrecorded = staticmethod(lifecycle.end_unrecorded_conmons)
    orphans = staticmethod(lifecycle.orphans)
    kill_orphan = staticmethod(lifecycle.kill_orphan)
    swap_hosts = staticmethod(lifecycle.swap)

    # --- waiting ---

    open_init = staticmethod(lifecycle.open_init)
    mark = staticmethod(lifecycle.mark)
    is_starved = staticmethod(lifecycle.is_starved)
    probe = staticmethod(health.begin)

    # --- the end of a process ---

    out_of_memory = staticmethod(status.out_of_memory)
    status = staticmethod(status.read)  # last, because it hides the module

    def exit_code(self, service: str) -> int | None:
        """Return the exit status of a service's last run. Wait at most 1 s; then return None."""
        deadline = time.monotonic() + _EXIT_CODE_S
        while True:
            record = crun.read_state(service) or {"run": 0}
            code: int | None = record.get("exit_code")
            if code is None:
                code = status.exit_code(service, status.bundle_of(service, int(record["run"])))
            if code is not None or time.monotonic() >= deadline:
                return code
            time.sleep(0.01)

    def last_lines(self, service: str, count: int) -> list[str]:
        """Return the last ``count`` lines, or fewer, that a service's present run has logged."""
        from datetime import datetime

        launched_at = (crun.read_state(service) or {}).get("launched_at", 0.0)
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
