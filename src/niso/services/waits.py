"""Track starting and ending processes: started, healthy, or failed with the reason."""

from __future__ import annotations

import os
import time

from niso.base.errors import Error, ProcessError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.plan.process_spec import ProcessSpec
from niso.plan.records import Healthcheck
from niso.runtime.pids import wait_readable
from niso.runtime.spec import namespace
from niso.runtime.status import describe_exit
from niso.store.store import ServiceRow

if TYPE_CHECKING:
    from niso.runtime.health_probe import Probe
    from niso.runtime.idle import Mark
    from niso.runtime.processes import Processes

STARTED_WITHIN_S = 0.2
"""A process that ends within this time (s) failed to start.

A wrong entrypoint only shows when PID 1's child ends.
"""
_BUSY_S = 2.0
"""The most (s) that this time is extended on a busy machine, where the process got little CPU."""
RESTS_S, _LOOK_S = 0.002, 0.001
"""A process has started if all its threads slept for RESTS_S (s). First sample: after _LOOK_S."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.05, 0.5
_LAST_LINES = 5


class Start(NamedTuple):
    row: ServiceRow
    stops: ProcessSpec | None  # the present process, which ends first
    starts: bool
    check: Healthcheck | None  # None: wait only until it is started
    timeout_s: float
    job: bool = False  # it must exit with status 0; ``timeout_s`` can be infinite

    @property
    def name(self) -> str:
        return self.row.name


class End:
    """Tracks a process that was told to end and will be started again."""

    def __init__(self, processes: Processes, start: Start, timeout_s: float) -> None:
        self.start = start
        self.pidfd = processes.terminate(start.name) if timeout_s > 0 else -1
        self.next_at = time.monotonic() + (timeout_s if self.pidfd >= 0 else 0.0)

    @property
    def is_over(self) -> bool:
        """Return whether the process has ended or exceeded its timeout."""
        return not is_alive(self.pidfd) or time.monotonic() >= self.next_at

    def close(self) -> None:
        """Close the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Wait:
    """Tracks a running process until it is started, healthy or failed."""

    def __init__(self, processes: Processes, start: Start) -> None:
        self.start, self._processes = start, processes
        now = processes.status(start.name)
        # a restart since our start means that the process ended; if it ran before, the restart may
        # be an old one
        self.pidfd = (
            processes.open_init(start.name) if now.restarts == 0 or not start.starts else -1
        )
        self.run = (now.pid or 0, now.started_at or 0.0)
        began = time.monotonic()
        self.deadline = began + start.timeout_s
        self._ripe_at = min(began + STARTED_WITHIN_S, self.deadline) if start.starts else began
        self._look_at, self._look_s = began, _LOOK_S
        self._mark: Mark | None = None
        self._rests_since, self._rests, self._began = began, False, began
        self._started = False
        self.well = start.check is None
        self.probe: Probe | None = None
        self.ask_at = began
        self.reason = ""
        self._pause_s = _FIRST_PAUSE_S
        self._failures = 0
        lives_s = now.lives_s or 0.0
        self._counts_at = began - lives_s + (start.check.start_period_s if start.check else 0.0)

    @property
    def next_at(self) -> float:
        """The time (monotonic, s) of the next step if no event comes before."""
        moments = [self.deadline]
        # only is_started compares with the clock: otherwise the time could pass between the two
        if not self._started:
            moments.append(min(self._ripe_at, self._look_at))
        if not self.well and self.probe is None:
            moments.append(self.ask_at)
        return min(moments)

    @property
    def is_started(self) -> bool:
        """Return whether the process has run for `STARTED_WITHIN_S`, or become idle before that."""
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
        waits_on = (
            self.start.starts
            and not self._rests
            and now < min(self._began + _BUSY_S, self.deadline)
        )
        if (
            now >= self._ripe_at
            and waits_on
            and self.pidfd >= 0
            and self._processes.is_starved(self.run[0])
        ):
            self._ripe_at = now + STARTED_WITHIN_S / 4
        self._started = now >= self._ripe_at
        return self._started

    def step(self) -> None:
        """Evaluate a finished probe, and start the next one when it is due.

        Raises ProcessError if the service is unhealthy.
        """
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
        self.well = not self.reason
        if self.reason and probe.said:
            self.reason += f"; it said: {probe.said}"
        if self.well:
            return
        now = time.monotonic()
        if probe.began >= self._counts_at:
            self._failures += 1
            self._counts_at = probe.began + check.interval_s
            if self._failures >= check.retries:
                times = "once" if check.retries == 1 else f"{check.retries} times"
                raise failed(
                    self._processes,
                    self.start.name,
                    f"is unhealthy, the probe failed {times}: {self.reason}",
                )
        self.ask_at = now + min(self._pause_s, check.interval_s)
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)

    def close(self) -> None:
        """Close the pidfd and a running probe."""
        if self.probe is not None:
            self.probe.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def until_started(processes: Processes, row: ServiceRow) -> None:
    """Wait until a new process counts as started, for about `STARTED_WITHIN_S`.

    Raises Error if it ends before, unless it is never restarted and exits with status 0.
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
    """Return the error for a job that has exceeded its timeout."""
    what = f"has not ended after {start.timeout_s:g}s{_last_output(processes, start.name)}"
    hint = "raise service.timeout in its manifest, or leave it out"
    return ProcessError(what, hint, service=start.name)


def failed(processes: Processes, service: str, what: str) -> ProcessError:
    return ProcessError(
        f"{what}{_last_output(processes, service)}",
        "see [healthcheck] in its manifest",
        service=service,
    )


def ended(processes: Processes, start: Start, unhealthy: bool) -> Error:
    """Return the error for a process that ended, with its exit status and last output."""
    from niso.runtime import volumes

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
    if start.job:
        return ProcessError(f"the job failed ({how})" + output, hint, service=service)
    return ProcessError(f"its process ended {when} ({how})" + output, hint, service=service)


def _last_output(processes: Processes, service: str) -> str:
    """Return the last output of the current run as a suffix for a message.

    Output of earlier runs would not explain the error.
    """
    lines = processes.last_lines(service, _LAST_LINES)
    return "; last output:" + "".join(f"\n    {line}" for line in lines) if lines else ""


def is_alive(pidfd: int) -> bool:
    """Return whether the process of a pidfd is running; False for -1."""
    return pidfd >= 0 and not wait_readable(pidfd, 0)
