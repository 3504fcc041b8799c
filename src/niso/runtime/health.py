"""Record the latest results of each service's probes, and derive its health from them.

The probes themselves are in `niso.runtime.health_probe`, which is loaded only for services with a
health check.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence

from niso.base import paths
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import open_lock
from niso.base.report import Report
from niso.base.service_events import WaitingForHealth
from niso.plan.records import Healthcheck
from niso.runtime import process
from niso.runtime.spec import read_json

if TYPE_CHECKING:
    from niso.runtime.health_probe import Probe


def advance(probes: Sequence[Probe], others: Sequence[int], until: float) -> None:
    """Wait until a probe can continue or one of the descriptors ``others`` is readable.

    Then advances the probes that can continue. Returns at ``until`` (monotonic seconds) at the
    latest.
    """
    poll = select.poll()
    for probe in probes:
        poll.register(probe.fd, probe.events)
        until = min(until, probe.deadline)
    for fd in others:
        poll.register(fd, select.POLLIN)
    # poll(2) counts whole milliseconds: round down and sleep for the rest, so that the wait does
    # not end late.
    ready = {fd for fd, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000)))}
    if not ready and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.001))
    for probe in probes:
        if probe.fd in ready:
            probe.go_on()
        probe.give_up_if_late()


class Probed(NamedTuple):
    """The probe results of one run of a service."""

    run: tuple[int, float]
    """(PID 1 as a host pid, its start time in seconds since 1970)."""
    asked_at: float
    """Time of the last probe, in seconds since 1970; 0 for never."""
    well_at: float
    """Time of the last successful probe; 0 for never."""
    failures: int
    """Number of consecutive failures."""
    failure: str
    """Why the last probe failed; "" if it succeeded."""


class Target(NamedTuple):
    """A running service to be checked."""

    service: str
    check: Healthcheck
    namespace: str | None
    run: tuple[int, float]
    """As in `Probed`."""


class Health(NamedTuple):
    state: str
    """healthy, unhealthy or starting."""
    failure: str
    """Why the last probe failed; "" if it succeeded."""


def write_record(service: str, run: tuple[int, float], failure: str) -> None:
    """Record the result of a probe: ``failure`` is `Probe.answer`. Raises OSError.

    If the service is removed concurrently, the record is deleted.
    """
    before = read_record(service)
    now = time.time()
    if before is None or before.run != run:
        before = Probed(run, 0.0, 0.0, 0, "")
    if failure:
        after = before._replace(asked_at=now, failures=before.failures + 1, failure=failure)
    else:
        after = Probed(run, now, now, 0, "")
    path = paths.health_file(service)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}"  # two processes may write concurrently
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(after._asdict()))
    os.rename(draft, path)
    if not os.path.isdir(paths.service_dir(service)):
        process.forget_health(service)


def read_record(service: str) -> Probed | None:
    """Read the probe results of a service; None if there are none, or the file is damaged."""
    try:
        fields = read_json(paths.health_file(service))
        record = None if fields is None else Probed(**{**fields, "run": tuple(fields["run"])})
    except (ValueError, TypeError, KeyError):
        return None
    kinds = {"asked_at": float, "well_at": float, "failures": int, "failure": str}
    if all(isinstance(getattr(record, name, None), kind) for name, kind in kinds.items()):
        return record
    return None


def check_all(targets: Sequence[Target], report: Report) -> dict[str, Health]:
    """Return the health of services, after probing those not probed within their interval.

    The probes run concurrently. ``report`` receives the names of the services.
    """
    import fcntl

    if due := [target for target in targets if _is_due(target)]:
        from niso.runtime import health_probe

        report(WaitingForHealth(tuple(target.service for target in due)))
        lock = open_lock(".health")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have probed some of them in the meantime.
            due = [target for target in due if _is_due(target)]
            failures = health_probe.probe_all(
                [(target.check, target.service, target.namespace) for target in due]
            )
            for target, failure in zip(due, failures, strict=True):
                write_record(target.service, target.run, failure)
        finally:
            os.close(lock)
    return {
        target.service: judge(target.check, target.run[1], _current(target)) for target in targets
    }


def _current(target: Target) -> Probed | None:
    """Read the probe results of the target's present run; None if there are none."""
    record = read_record(target.service)
    return record if record is not None and record.run == target.run else None


def _is_due(target: Target) -> bool:
    record = _current(target)
    return record is None or not 0 <= time.time() - record.asked_at < target.check.interval_s


def judge(check: Healthcheck, started_at: float, record: Probed | None) -> Health:
    """Derive the health from the recorded results.

    Services are probed only on request. So a failure also counts for the probes that would have run
    since the last success.
    """
    if record is None:
        return Health("starting", "")
    if not record.failures:
        return Health("healthy", "")
    well_until = max(record.well_at, started_at + check.start_period_s)
    if not record.well_at and record.asked_at <= well_until:
        return Health("starting", record.failure)
    if (
        record.failures >= check.retries
        or record.asked_at - well_until >= check.retries * check.interval_s
    ):
        return Health("unhealthy", record.failure)
    return Health("healthy" if record.well_at else "starting", record.failure)
