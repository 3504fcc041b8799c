"""Start the processes of services in dependency order, and wait until each is started or healthy.

All waits run concurrently: while one service is probed, others start, answer or end. A process
that ends during the wait fails at once, with its last output in the error.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping

from niso.base.errors import Conflict
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.report import Event, Report, silent
from niso.base.service_events import Completed, Healthy, ShowingHosts, Starting, Stopping
from niso.plan.process_spec import ProcessSpec
from niso.plan.records import Healthcheck
from niso.runtime import health
from niso.services import rehost
from niso.services.waits import End, Start, Wait, ended, failed, is_alive, late
from niso.store.store import ServiceRow

if TYPE_CHECKING:
    from niso.runtime.processes import Processes
    from niso.runtime.processes import Start as Begun
    from niso.services.admit import Change

TIMEOUT_S = 60.0
"""Timeout (s) of a restart that waits for healthy."""

STARTED, HEALTHY, COMPLETED = "started", "healthy", "completed"
After = Mapping[str, Mapping[str, str]]
"""service -> {service that it depends on: STARTED, HEALTHY or, for a job, COMPLETED}."""
_REACHES = {
    STARTED: (STARTED, HEALTHY, COMPLETED),
    HEALTHY: (HEALTHY,),
    COMPLETED: (COMPLETED,),
}
"""The states that satisfy each required state."""

_AT_ONCE = 2 * len(os.sched_getaffinity(0))
"""Number of containers created at once, while niso prepares the next.

Half of the time, each waits for RCU grace periods and locks of the kernel.
"""


def run(
    processes: Processes,
    changes: list[Change],
    timeout_s: float,
    report: Report = silent,
    after: After | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Start the processes that must start, each after its dependencies in ``after``; wait for all.

    From its own start, each process has ``timeout_s`` to become idle or live for
    `STARTED_WITHIN_S`, and to become healthy if it has a healthcheck. For a job, wait until it has
    exited with status 0, within the timeout of its manifest. A process that already runs as wanted
    is waited for only if another depends on it, its healthcheck is new, or it was restarted by its
    policy and has not been healthy since. ``meanwhile`` is called once while a container is being
    created. Raises ProcessError with the reason, Conflict if the order is impossible. The caller
    must stop what was started before the error.
    """
    for change in changes:
        if change.rehosts:
            report(event_of(change))
            rehost.swap_or_restart(processes, change.row.require_process(), report)
    begin = {change.name for change in changes if change.restarts}
    after = {name: needs for name, needs in (after or {}).items() if name in begin}
    needed = {
        dependency
        for needs in after.values()
        for dependency, state in needs.items()
        if state == HEALTHY
    }
    starts = []
    for change in changes:
        was = change.before if change.before is not None and change.before.active else None
        check = check_of(change.row)
        asked = (
            change.restarts
            or change.name in needed
            or (was is not None and check_of(was) != check)
            or (check is not None and not _was_healthy(processes, change.name))
        )
        # if the old record is damaged, the new one has the stop timeout
        stops = (
            (was.process or change.row.require_process())
            if was is not None and change.restarts
            else None
        )
        starts.append(
            _begins(change.row, stops, change.restarts, check if asked else None, timeout_s)
        )
    _check_order(processes, starts, after)
    _Starting(processes, starts, after, report, meanwhile).all()


def expect(processes: Processes, changes: list[Change]) -> None:
    """Announce that `run` will soon start the processes of ``changes``.

    Kernel work that the start would have to wait for can then finish earlier.
    """
    if any(change.restarts for change in changes):
        processes.expect()


def restart(
    processes: Processes,
    rows: list[ServiceRow],
    report: Report = silent,
    after: After | None = None,
) -> None:
    """Restart the processes of active services, and wait for all as `run` does.

    ``after`` is as for `run`. Raises ProcessError.
    """
    starts = [_begins(row, row.require_process(), True, check_of(row), TIMEOUT_S) for row in rows]
    _Starting(processes, starts, after or {}, report).all()


def _begins(
    row: ServiceRow,
    stops: ProcessSpec | None,
    starts: bool,
    check: Healthcheck | None,
    timeout_s: float,
) -> Start:
    """Return the `Start` of a service, or of a job with its manifest's timeout."""
    spec = row.service
    if spec is None or spec.kind != "job":
        return Start(row, stops, starts, check, timeout_s)
    return Start(row, stops, starts, None, spec.timeout_s or math.inf, job=True)


def check_of(row: ServiceRow) -> Healthcheck | None:
    """Return the healthcheck of a service's manifest; None if it has none or is damaged."""
    spec = row.service  # None if the row is damaged, which `niso net check` reports
    return spec.healthcheck if spec is not None else None


def event_of(change: Change) -> Event:
    """Return the event that `run` reports when it starts a service or swaps its hosts file."""
    if change.rehosts:
        folder = os.path.basename(change.row.require_process().hosts_folder)
        return ShowingHosts(change.name, folder)
    return _starting(change.row)


def _was_healthy(processes: Processes, service: str) -> bool:
    """Return whether a service has been healthy since its policy last restarted it."""
    now = processes.status(service)
    if now.restarts == 0:
        return True  # its activation has waited until it was healthy
    known, run = health.read_record(service), (now.pid or 0, now.started_at or 0.0)
    return known is not None and known.run == run and known.well_at > 0


def _starting(row: ServiceRow) -> Starting:
    return Starting(row.name, row.require_process().argv)


def _check_order(processes: Processes, starts: list[Start], after: After) -> None:
    """Raise Conflict if a service depends on one that will not reach the required state."""
    known = {start.name: start for start in starts}
    for name, dependencies in after.items():
        for dependency, state in dependencies.items():
            start = known.get(dependency)
            if start is not None:
                if state == HEALTHY and start.check is None:
                    raise Conflict(
                        f"{name} waits until {dependency} is healthy, "
                        f"but {dependency} has no healthcheck",
                        f"add [healthcheck] to the manifest of {dependency}, or wait for started",
                    )
                if state == COMPLETED and not start.job:
                    raise Conflict(
                        f"{name} waits until {dependency} is completed, "
                        f"but {dependency} is not a job",
                        f'set service.kind = "job" for {dependency}, or wait for started',
                    )
                continue
            now = processes.status(dependency)
            if state == COMPLETED:
                well = now.state == "exited" and now.exit_code == 0
            else:
                recorded = health.read_record(dependency)
                well = now.state == "running" and (
                    state == STARTED or (recorded is not None and recorded.failures == 0)
                )
            if not well:
                raise Conflict(
                    f"{name} waits until {dependency} is {state}, but it is not",
                    f"niso ps, for {dependency}",
                )


class _Starting:
    """All starts of one command, run concurrently."""

    def __init__(
        self,
        processes: Processes,
        starts: list[Start],
        after: After,
        report: Report,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        self._processes = processes
        self._meanwhile = meanwhile
        self._todo = starts
        self._after = after
        self._report = report
        self._names = {start.name for start in starts}
        self._reached: dict[str, str] = {}
        self._ends: list[End] = []
        self._begun: list[tuple[Start, Begun]] = []
        self._waits: list[Wait] = []

    def all(self) -> None:
        if any(start.stops is not None for start in self._todo):
            self._processes.require_room()
        try:
            while self._todo or self._ends or self._begun or self._waits:
                start = next(self._ready(), None)
                if start is not None:
                    self._todo.remove(start)
                    self._begin(start)
                elif not self._waits and not self._begun and not self._ends and self._todo:
                    names = ", ".join(start.name for start in self._todo)
                    raise Conflict(
                        f"dependency cycle among {names}",
                        "remove one of the dependencies between them",
                    )
                self._turn(wait=next(self._ready(), None) is None)
        finally:
            for end in self._ends:
                end.close()
            for _, begun in self._begun:
                begun.close()
            for wait in self._waits:
                wait.close()

    def _ready(self) -> Iterator[Start]:
        """Yield the starts whose dependencies are met, in the order of the command.

        None is ready while `_AT_ONCE` containers are being created.
        """
        for start in self._todo if len(self._begun) < _AT_ONCE else ():
            needs = self._after.get(start.name, {})
            if all(
                dependency not in self._names
                or self._reached.get(dependency) in _REACHES.get(state, (state,))
                for dependency, state in needs.items()
            ):
                yield start

    def _begin(self, start: Start) -> None:
        if not start.starts and start.check is None and not start.job:
            self._reached[start.name] = STARTED
            return
        if start.stops is not None:
            self._report(Stopping(start.name))
            self._ends.append(End(self._processes, start, start.stops.stop_timeout_s))
        else:
            self._start(start)

    def _start(self, start: Start) -> None:
        if start.starts:
            self._report(_starting(start.row))
            self._begun.append((start, self._processes.begin(start.row.require_process())))
        else:
            self._waits.append(Wait(self._processes, start))

    def _created(self) -> None:
        """Start the processes of the containers that have been created, and track them."""
        for pair in list(self._begun):
            start, begun = pair
            if begun.is_created:
                self._begun.remove(pair)
                begun.finish()
                self._waits.append(Wait(self._processes, start))

    def _turn(self, wait: bool) -> None:
        """Advance every start that can advance; with ``wait``, first wait for the next event."""
        for waiter in self._waits:
            waiter.step()
        if wait and self._begun and self._meanwhile is not None:
            self._meanwhile()
            self._meanwhile = None
        if self._waits or self._ends or self._begun:
            under_way: list[Wait | End] = [*self._waits, *self._ends]
            moments = (waiter.next_at for waiter in under_way)
            until = min((*moments, time.monotonic() + TIMEOUT_S)) if wait else 0.0
            probes = [
                waiter.probe
                for waiter in self._waits
                if waiter.probe is not None and waiter.probe.answer is None
            ]
            over = any(
                waiter.probe is not None and waiter.probe.answer is not None
                for waiter in self._waits
            )
            pidfds = [waiter.pidfd for waiter in under_way if waiter.pidfd >= 0] + [
                begun.fd for _, begun in self._begun
            ]
            health.advance(probes, pidfds, 0.0 if over else until)
        self._created()
        self._stop_ended()
        for waiter in list(self._waits):
            waiter.step()
            self._look(waiter)

    def _stop_ended(self) -> None:
        """Clean up ended processes, stop those past their timeout, and start all of them next."""
        over = [end for end in self._ends if end.is_over]
        for end in over:
            self._ends.remove(end)
            end.close()
        errors = self._processes.stop_all([end.start.name for end in over])
        if errors:
            raise next(iter(errors.values()))
        self._todo[:0] = [end.start._replace(stops=None) for end in over]

    def _has_succeeded(self, wait: Wait) -> bool:
        """If a process was meant to end and succeeded, record that and return True.

        Such a process is a job, or one that is never restarted, with exit status 0.
        """
        start = wait.start
        once = start.job or (wait.well and start.row.require_process().restart == "no")
        if not once or self._processes.exit_code(start.name) != 0:
            return False
        if start.job:
            self._report(Completed(start.name))
        self._reached[start.name] = COMPLETED if start.job else STARTED
        self._waits.remove(wait)
        wait.close()
        return True

    def _look(self, wait: Wait) -> None:
        """Record whether a process is started or healthy.

        Raises ProcessError if it has ended or exceeded its timeout.
        """
        start = wait.start
        if not is_alive(wait.pidfd):
            if self._has_succeeded(wait):
                return
            raise ended(self._processes, start, not wait.well)
        if not wait.is_started:
            return
        now = time.monotonic()
        if start.job:
            if now >= wait.deadline:
                raise late(self._processes, start)
            self._reached.setdefault(start.name, STARTED)
        elif wait.well:
            if start.check is not None:
                health.write_record(start.name, wait.run, "")
                self._report(Healthy(start.name))
            self._reached[start.name] = HEALTHY if start.check is not None else STARTED
            self._waits.remove(wait)
            wait.close()
        elif now >= wait.deadline:
            reason = wait.reason or "no probe has ended"
            raise failed(
                self._processes, start.name, f"is not healthy after {start.timeout_s:g}s: {reason}"
            )
        else:
            self._reached.setdefault(start.name, STARTED)
