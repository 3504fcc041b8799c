"""Record the exit of a service's process, and apply its restart policy (conmon's exit command).

conmon runs ``python -m niso.runtime.on_exit SERVICE BUNDLE`` (`niso.runtime.launch`) when a service
has exited. This process may wait for the service's lock, or for the delay before a restart. A
command that stops the service therefore creates the file `status.STOPPING` in the folder of the
run, and then kills this process. The name of this module must not change, because conmons that an
earlier version of niso has started run the module by this name.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from niso.base import files
from niso.base.errors import Error
from niso.base.locks import service_lock
from niso.base.named_tuples import TYPE_CHECKING
from niso.plan.specs import ProcessSpec
from niso.runtime import cgroups, event_log, launch, lifecycle, logs, status, units
from niso.runtime.crun import cgroup_of, load, read_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


MAX_DELAY_S = 60.0
LONG_LIFE_S = 60.0
"""Seconds. After a run of this length, the restart delay is reset to its first value."""


def delay_s(first_s: float, failures: int) -> float:
    """Return the delay before a restart: ``first_s`` seconds, doubled for each consecutive failure.
    The maximum is 60 s, or ``first_s`` if ``first_s`` is greater.
    """
    return float(min(max(MAX_DELAY_S, first_s), first_s * 2 ** min(failures, 32)))


def main(
    service: str,
    bundle: str,
    ended: Callable[[], None] = lambda: None,
    restarted: Callable[[], None] = lambda: None,
) -> None:
    """Record the exit of a service's process, and restart the service if its policy requires it.
    ``ended`` is called after the exit is recorded, and ``restarted`` after a restart.
    """
    try:
        fd = files.make(f"{bundle}/{status.EXITED_PID}", 0o600)
        os.write(fd, str(os.getpid()).encode())
        os.close(fd)
    except FileNotFoundError:
        return
    # Checked after the pid is written: a stop first marks the run and then reads the pid.
    if os.path.exists(f"{bundle}/{status.STOPPING}"):
        return
    code = status.exit_code(service, bundle)
    if code is None:
        return
    with service_lock(service):
        spec = _current(service, bundle)
        if spec is None:
            return
        record = _record_end(spec, bundle, code)
        event_log.record_run(service)
    ended()
    while record["phase"] == "restarting":
        time.sleep(delay_s(spec.restart_delay_s, max(0, record["failures"] - 1)))
        with service_lock(service):
            if _current(service, bundle) is None:
                return
            record = _restart(spec, record)
            event_log.record_run(service)
        if record["phase"] == "running":
            restarted()


def _current(service: str, bundle: str) -> ProcessSpec | None:
    """Return a service's ProcessSpec, if ``bundle`` is its present run and no stop has begun."""
    record = read_state(service)
    if files.read(f"{bundle}/{status.EXITED_PID}") != str(os.getpid()).encode():
        # this run's folder was removed, and another run has created one of the same name
        return None
    if record is None or f"run-{record['run']}" != os.path.basename(bundle):
        return None
    return None if os.path.exists(f"{bundle}/{status.STOPPING}") else load(service)


def _record_end(spec: ProcessSpec, bundle: str, code: int) -> dict[str, Any]:
    """Clean up after a run, record its end, and return the new content of state.json."""
    record = read_state(spec.service) or {"run": 0, "restarts": 0, "failures": 0}
    for older in status.bundles(os.path.dirname(bundle)):
        if older != bundle:
            # The pid file is kept until now: a stop must also wait for the conmon of that run.
            lifecycle.end_conmon(older)
            files.remove_tree(older)
    path = cgroup_of(spec)
    kills = cgroups.usage(path).oom_kills or 0
    lifecycle.clear(spec.service)
    cgroups.remove_with_parent(path)
    logs.rotate_if_large(spec.service)
    began = record.get("started_monotonic")
    lived_s = time.monotonic() - began if isinstance(began, float) else 0.0
    failures = 0 if code == 0 or lived_s >= LONG_LIFE_S else int(record["failures"])
    restarts = status.restarts_after(spec.restart, code)
    record.pop("pid", None)
    record.update(
        phase="restarting" if restarts else "exited",
        exit_code=code,
        failures=failures + (code != 0),
        ended_at=status.ended_at(spec.service, bundle) or time.time(),
        oom_kills=int(record.get("oom_kills", 0)) + kills,
    )
    status.write_state(spec.service, record)
    if not restarts:  # no other code removes niso's own cgroup
        cgroups.release(status.supervisors(spec.service), path)
        cgroups.remove_with_parent(path)
    return record


def _restart(spec: ProcessSpec, record: dict[str, Any]) -> dict[str, Any]:
    """Start the next run of a service. ``record`` is the content of state.json. Returns {"phase":
    "running"}, or after a failure the new content of state.json, with the error.
    """
    number = int(record["run"]) + 1
    restarts, failures = int(record["restarts"]) + 1, int(record["failures"])
    counts = {"restarts": restarts, "failures": failures, "exit_code": record["exit_code"]}
    counts["oom_kills"] = record.get("oom_kills", 0)
    try:
        launch.Launch(spec, number, counts).finish()
    except (Error, OSError) as error:
        lifecycle.abandon(spec, status.bundle_of(spec.service, number))
        record = {**record, "failures": failures + 1, "error": str(error)}
        status.write_state(spec.service, record)
        return record
    conmon = status.conmon(spec.service)
    if conmon is not None and units.path(spec.service) is not None:
        # Otherwise systemd takes the exit of the previous conmon for the end of the service.
        with suppress(OSError):
            units.notify(f"MAINPID={conmon}")
    return {"phase": "running"}


if __name__ == "__main__":
    if "." in sys.argv[1]:  # an instance also leaves its service address, which needs other modules
        words = ("-I", "-m", "niso.cli", "on-exit", *sys.argv[1:])
        os.execv(sys.executable, (sys.executable, *words))
    main(sys.argv[1], sys.argv[2])
