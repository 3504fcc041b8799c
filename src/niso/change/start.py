"""Start the processes of services in dependency order, and wait until they have started.

A service with a healthcheck must also become healthy. All waits run concurrently. If a process
exits during the wait, the command fails immediately with the process's last output.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping

from niso.base import report as events
from niso.base.errors import Conflict, Error, ProcessError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy
from niso.base.report import Event
from niso.change import process_record
from niso.plan.records import Healthcheck
from niso.plan.specs import ProcessSpec
from niso.runtime import volumes
from niso.runtime.crun import namespace, wait_readable
from niso.runtime.status import describe_exit
from niso.store.service_rows import ServiceRow

if TYPE_CHECKING:
    from niso.change.admit import Change
    from niso.runtime import health
    from niso.runtime.health import HealthProbe
    from niso.runtime.launch import Launch
    from niso.runtime.lifecycle import Mark
    from niso.runtime.machine import Machine
    from niso.runtime.processes import Processes
else:
    health = lazy("niso.runtime.health")  # few services have a health check


TIMEOUT_S = 60.0
"""Seconds that a restart waits for a service to become healthy."""

STARTED, HEALTHY, COMPLETED = "started", "healthy", "completed"
After = Mapping[str, Mapping[str, str]]
"""Maps a service to its dependencies, and each dependency to the state that it must reach first:
STARTED, HEALTHY or, for a job, COMPLETED.
"""
_REACHES = {STARTED: (STARTED, HEALTHY, COMPLETED), HEALTHY: (HEALTHY,), COMPLETED: (COMPLETED,)}
"""Maps each required state to the states that satisfy it."""

# half of the time, each creation waits for RCU grace periods and locks of the kernel
_AT_ONCE = 2 * len(os.sched_getaffinity(0))
"""How many containers are created concurrently."""


def run(
    machine: Machine,
    changes: list[Change],
    timeout_s: float,
    after: After | None,
    healthy: Callable[[str], object] = lambda _: None,
) -> None:
    """Start processes in the order of their dependencies, and wait until all have started.

    ``after`` maps services to {dependency: state to reach}. ``healthy`` is called with each service
    that becomes healthy, before services that depend on it are started.

    Each process has ``timeout_s`` seconds from its own start. Within that time it must have run for
    0.2 seconds, or all its threads must have gone to sleep. With a healthcheck, it must also become
    healthy. A job must exit with status 0 within the timeout in its manifest. A process that
    already runs as desired is waited for only if another one depends on it, if its healthcheck is
    new, or if it has not been healthy since its last automatic restart. Raises ProcessError with
    the reason, and Conflict if dependencies cannot be met. After an error the caller must stop what
    was started.
    """
    processes = machine.processes
    for change in changes:
        if change.rehosts:
            machine.report(event_of(change.row, rehosts=True))
            process_record.swap_or_restart(machine, change.row)
    begin = {change.name for change in changes if change.restarts}
    after = {name: needs for name, needs in (after or {}).items() if name in begin}
    needed = {name for needs in after.values() for name, state in needs.items() if state == HEALTHY}
    starts = []
    for change in changes:
        was = change.before if change.before is not None and change.before.active else None
        row, restarts, check = change.row, change.restarts, change.row.healthcheck
        asked = (
            restarts
            or row.name in needed
            or (was is not None and was.healthcheck != check)
            or (check is not None and not _was_healthy(processes, row.name))
        )
        # if the old record is damaged, the new one has the stop timeout
        stops = (was.process or row.require_process()) if was is not None and restarts else None
        starts.append(_begins(row, stops, restarts, check if asked else None, timeout_s))
    _check_order(processes, starts, after)
    _Starting(machine, starts, after, healthy).all()


def restart(machine: Machine, rows: list[ServiceRow], after: After | None) -> None:
    """Restart processes of active services and wait for them. ``after`` is as for `run`."""
    starts = [_begins(row, row.require_process(), True, row.healthcheck, TIMEOUT_S) for row in rows]
    _Starting(machine, starts, after or {}).all()


def _begins(
    row: ServiceRow,
    stops: ProcessSpec | None,
    starts: bool,
    check: Healthcheck | None,
    timeout_s: float,
) -> Start:
    if not row.is_job or not starts:  # a job with a schedule waits for its time
        return Start(row, stops, starts, check, timeout_s)
    program = row.require_service().program
    return Start(row, stops, starts, None, program.timeout_s or math.inf, job=True)


def event_of(row: ServiceRow, rehosts: bool = False) -> Event:
    """Return the event for a service that starts, or gets another hosts file (``rehosts``)."""
    process = row.require_process()
    event: Event = events.Starting(row.name, process.argv)
    if rehosts:
        event = events.ShowingHosts(row.name, os.path.basename(process.hosts_folder))
    return event


def _was_healthy(processes: Processes, service: str) -> bool:
    """Return whether a service has been healthy since its last automatic restart, if any."""
    now = processes.status(service)
    if now.restarts == 0:
        return True  # its activation has waited until it was healthy
    known, run = health.read_record(service), (now.pid or 0, now.started_at or 0.0)
    return known is not None and known.run == run and known.well_at > 0


def _check_order(processes: Processes, starts: list[Start], after: After) -> None:
    """Raise Conflict if a service depends on another that cannot reach the required state."""
    known = {start.name: start for start in starts}
    for name, dependencies in after.items():
        for dependency, state in dependencies.items():
            start = known.get(dependency)
            if start is not None:
                reason = f"{name} waits until {dependency} is {state}, but {dependency}"
                if state == HEALTHY and start.check is None:
                    hint = f"add [healthcheck] to the manifest of {dependency}, or wait for started"
                    raise Conflict(f"{reason} has no healthcheck", hint)
                if state == COMPLETED and not start.job:
                    hint = f'set service.kind = "job" for {dependency}, or wait for started'
                    if start.row.is_job:
                        text = f"{reason} runs on a schedule"
                        raise Conflict(text, f"remove the schedule of {dependency}, or the need")
                    raise Conflict(f"{reason} is not a job", hint)
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
                reason = f"{name} waits until {dependency} is {state}, but it is not"
                raise Conflict(reason, f"niso ps, for {dependency}")


class _Starting:
    """All starts of processes of one command, which run concurrently."""

    def __init__(
        self,
        machine: Machine,
        starts: list[Start],
        after: After,
        healthy: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._processes, self._report = machine.processes, machine.report
        self._todo = starts
        self._after = after
        self._healthy = healthy
        self._names = {start.name for start in starts}
        self._reached: dict[str, str] = {}
        self._ends: list[End] = []
        self._begun: list[tuple[Start, Launch]] = []
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
                    reason = f"dependency cycle among {names}"
                    raise Conflict(reason, "remove one of the dependencies between them")
                self._advance(wait=next(self._ready(), None) is None)
        finally:
            for end in self._ends:
                end.close()
            for _, begun in self._begun:
                begun.close()
            for wait in self._waits:
                wait.close()

    def _ready(self) -> Iterator[Start]:
        """Yield services whose dependencies are ready. At most two starts per processor run."""
        for start in self._todo if len(self._begun) < _AT_ONCE else ():
            needs = self._after.get(start.name, {})
            if all(
                name not in self._names or self._reached.get(name) in _REACHES.get(state, (state,))
                for name, state in needs.items()
            ):
                yield start

    def _begin(self, start: Start) -> None:
        if not start.starts and start.check is None and not start.job:
            self._reached[start.name] = STARTED
            return
        if start.stops is not None:
            self._report(events.Stopping(start.name))
            self._ends.append(End(self._processes, start, start.stops.stop_timeout_s))
        else:
            self._start(start)

    def _start(self, start: Start) -> None:
        if start.starts:
            volumes.give_to_service(start.row.require_process(), self._report)
            self._report(event_of(start.row))
            self._begun.append((start, self._processes.begin(start.row.require_process())))
        else:
            self._waits.append(Wait(self._processes, start))

    def _created(self) -> None:
        for pair in list(self._begun):
            start, begun = pair
            if begun.is_created:
                self._begun.remove(pair)
                self._processes.finish(begun)
                self._waits.append(Wait(self._processes, start))

    def _advance(self, wait: bool) -> None:
        """Advance all starts as far as possible. With ``wait``, first wait for the next event."""
        for waiter in self._waits:
            waiter.step()
        if self._waits or self._ends or self._begun:
            under_way: list[Wait | End] = [*self._waits, *self._ends]
            moments = (waiter.next_at for waiter in under_way)
            until = min((*moments, time.monotonic() + TIMEOUT_S)) if wait else 0.0
            probes = [waiter.probe for waiter in self._waits if waiter.probe is not None]
            waiting = [probe for probe in probes if probe.answer is None]
            pidfds = [waiter.pidfd for waiter in under_way if waiter.pidfd >= 0]
            pidfds += [begun.fd for _, begun in self._begun]
            health.advance(waiting, pidfds, until if len(waiting) == len(probes) else 0.0)
        self._created()
        self._stop_ended()
        for waiter in list(self._waits):
            waiter.step()
            self._look(waiter)

    def _stop_ended(self) -> None:
        """Complete the stop of exited processes, and queue their services for a new start."""
        over = [end for end in self._ends if end.is_over]
        for end in over:
            self._ends.remove(end)
            end.close()
        if over and (errors := self._processes.stop_all([end.start.name for end in over])):
            raise next(iter(errors.values()))
        self._todo[:0] = [end.start._replace(stops=None) for end in over]

    def _has_succeeded(self, wait: Wait) -> bool:
        """Return whether a job, or a process without restarts, has exited with status 0. If so,
        record that the service has reached its state.
        """
        start = wait.start
        once = start.job or (wait.well and start.row.require_process().restart == "no")
        if not once or self._processes.exit_code(start.name) != 0:
            return False
        if start.job:
            self._report(events.Completed(start.name))
        self._reached[start.name] = COMPLETED if start.job else STARTED
        self._waits.remove(wait)
        wait.close()
        return True

    def _look(self, wait: Wait) -> None:
        """Record whether a process has started, is healthy or has exited. Raises ProcessError."""
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
                health.write_record(start.name, start.check, wait.run, "")
                self._report(events.Healthy(start.name))
                self._healthy(start.name)
            self._reached[start.name] = HEALTHY if start.check is not None else STARTED
            self._waits.remove(wait)
            wait.close()
        elif now >= wait.deadline:
            reason = wait.reason or "no probe has ended"
            what = f"is not healthy after {start.timeout_s:g}s: {reason}"
            raise failed(self._processes, start.name, what)
        else:
            self._reached.setdefault(start.name, STARTED)


# --- waiting: started, healthy, or failed with the reason -----------------------------------------

STARTED_WITHIN_S = 0.2
"""Seconds. A process that exits earlier has failed to start.

An entrypoint that cannot be run is only noticed when the child of PID 1 exits.
"""
_BUSY_S = 2.0
"""Maximum seconds until a process counts as started on a busy machine, where it got little CPU."""
RESTS_S, _LOOK_S = 0.002, 0.001
"""Seconds. A process counts as started when all its threads have slept for RESTS_S. The first
sample is taken after _LOOK_S.
"""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 0.5
_LAST_LINES = 5


class Start(NamedTuple):
    """The plan for starting one service's process, or for waiting until it is healthy."""

    row: ServiceRow
    stops: ProcessSpec | None  # the present process, which is stopped first
    starts: bool  # false if the process is already running, and is only waited for
    check: Healthcheck | None  # None: wait only until the process has started
    timeout_s: float
    job: bool = False  # the process must exit with status 0; ``timeout_s`` can be infinite

    @property
    def name(self) -> str:
        return self.row.name


class End:
    """A process that was asked to exit, so that its service can be started again."""

    def __init__(self, processes: Processes, start: Start, timeout_s: float) -> None:
        self.start = start
        self.pidfd = processes.terminate(start.name) if timeout_s > 0 else -1
        self.next_at = time.monotonic() + (timeout_s if self.pidfd >= 0 else 0.0)

    @property
    def is_over(self) -> bool:
        return not is_alive(self.pidfd) or time.monotonic() >= self.next_at

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)


class Wait:
    """A running process that is watched until it has started and is healthy, or has failed."""

    def __init__(self, processes: Processes, start: Start) -> None:
        self.start, self._processes = start, processes
        now = processes.status(start.name)
        # a restart since our start means that the process ended, but it may be an old one if the
        # process ran before
        is_new = now.restarts == 0 or not start.starts
        self.pidfd = processes.open_init(start.name, now.pid) if is_new else -1
        self.run = (now.pid or 0, now.started_at or 0.0)
        began = time.monotonic()
        self.deadline = began + start.timeout_s
        self._ripe_at = min(began + STARTED_WITHIN_S, self.deadline) if start.starts else began
        self._look_at, self._look_s = began, _LOOK_S
        self._mark: Mark | None = None
        self._rests_since, self._rests, self._began = began, False, began
        self._started = False
        self.well = start.check is None
        self.probe: HealthProbe | None = None
        self.ask_at = began
        self.reason = ""
        self._pause_s = _FIRST_PAUSE_S
        self._failures = self._successes = 0
        # an instance gets connections at once: a first answer may be that of a starting server
        self._enough = 2 if "." in start.name else 1
        lives_s = now.lives_s or 0.0
        self._counts_at = began - lives_s + (start.check.start_period_s if start.check else 0.0)

    @property
    def next_at(self) -> float:
        """Return the monotonic time, in seconds, of the next step if no event comes earlier."""
        moments = [self.deadline]
        # only is_started compares with the clock: otherwise the time could pass between the two
        if not self._started:
            moments.append(min(self._ripe_at, self._look_at))
        if not self.well and self.probe is None:
            moments.append(self.ask_at)
        return min(moments)

    @property
    def is_started(self) -> bool:
        """Return whether the process has run for 0.2 seconds, or all its threads were asleep.

        Once true, the result stays true. While a busy machine does not run the process, the time is
        extended, to at most two seconds.
        """
        now = time.monotonic()
        if self._started:
            return True
        if now < self._ripe_at and now >= self._look_at:
            mark = self._processes.mark(self.run[0]) if self.pidfd >= 0 else None
            if mark is None or mark != self._mark:
                self._mark, self._rests_since = mark, now
            elif now - self._rests_since >= RESTS_S:
                self._ripe_at, self._rests = now, True
            self._look_at = now + (self._look_s if mark is None else RESTS_S)
            self._look_s *= 1.25
        is_ripe = self._ripe_at <= now < min(self._began + _BUSY_S, self.deadline)
        waits_on = is_ripe and self.start.starts and not self._rests and self.pidfd >= 0
        if waits_on and self._processes.is_starved(self.run[0]):
            self._ripe_at = now + STARTED_WITHIN_S / 4
        self._started = now >= self._ripe_at
        return self._started

    def step(self) -> None:
        """Evaluate the result of a health probe, or start the next probe. Raises ProcessError."""
        check = self.start.check
        if check is None or self.well:
            return
        if self.probe is None and time.monotonic() >= self.ask_at:
            netns = namespace(self.start.row.require_process())
            self.probe = self._processes.probe(check, self.start.name, netns)
            self.probe.give_up_if_late()
        if self.probe is None or self.probe.answer is None:
            return
        probe, self.probe = self.probe, None
        probe.close()
        self.reason = probe.answer or ""
        self._successes = 0 if self.reason else self._successes + 1
        self.well = self._successes >= self._enough
        if self.reason and probe.last_output:
            self.reason += f"; it said: {probe.last_output}"
        if self.well:
            return
        now = time.monotonic()
        if not self.reason:
            self.ask_at = now + min(_FIRST_PAUSE_S, check.interval_s)
            return
        if probe.began >= self._counts_at:
            self._failures += 1
            self._counts_at = probe.began + check.interval_s
            if self._failures >= check.retries:
                times = "once" if check.retries == 1 else f"{check.retries} times"
                what = f"is unhealthy, the probe failed {times}: {self.reason}"
                raise failed(self._processes, self.start.name, what)
        self.ask_at = now + min(self._pause_s, check.interval_s)
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)

    def close(self) -> None:
        if self.probe is not None:
            self.probe.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def until_started(processes: Processes, row: ServiceRow) -> None:
    """Wait until a new process counts as started, for about 0.2 seconds or less.

    Raises Error if the process exits before that, except with restart policy "no" and status 0.
    """
    start = Start(row, None, True, None, 2 * _BUSY_S)
    wait = Wait(processes, start)
    try:
        while is_alive(wait.pidfd):
            if wait.is_started:
                return
            wait_readable(wait.pidfd, max(0.0, wait.next_at - time.monotonic()))
    finally:
        wait.close()
    if row.require_process().restart != "no" or processes.exit_code(row.name) != 0:
        raise ended(processes, start, False)


def late(processes: Processes, start: Start) -> ProcessError:
    """Return the error for a job that has not exited within its timeout."""
    what = f"has not ended after {start.timeout_s:g}s{_last_output(processes, start.name)}"
    hint = "raise service.timeout in its manifest, or leave it out"
    return ProcessError(what, hint, service=start.name)


def failed(processes: Processes, service: str, what: str) -> ProcessError:
    what += _last_output(processes, service)
    return ProcessError(what, "see [healthcheck] in its manifest", service=service)


def ended(processes: Processes, start: Start, unhealthy: bool) -> Error:
    """Return the error for a process that exited too early, with its last output."""
    service = start.name
    how = describe_exit(processes.exit_code(service))
    output = _last_output(processes, service)
    if processes.out_of_memory(service):
        how += ", out of memory: isolation.resources.memory_max"
    when = "before it was healthy" if unhealthy else "at once"
    hint = "see binary.entrypoint and binary.args in its manifest" if not output else None
    spec = start.row.require_process()
    if denied := volumes.unwritable(spec):
        paths = ", ".join(f"{volume.source} (volumes.{volume.name})" for volume in denied)
        hint = f"its user, uid {spec.uid}, cannot write to {paths}"
    what = "the job failed" if start.job else f"its process ended {when}"
    return ProcessError(f"{what} ({how}){output}", hint, service=service)


def _last_output(processes: Processes, service: str) -> str:
    lines = [line for line in processes.last_lines(service, _LAST_LINES) if line.strip()]
    return "; last output:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def is_alive(pidfd: int) -> bool:
    """Return whether the process of a pidfd is running. The pidfd -1 means no process."""
    return pidfd >= 0 and not wait_readable(pidfd, 0)
