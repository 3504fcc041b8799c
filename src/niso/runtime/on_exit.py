"""``python -m niso.runtime.on_exit SERVICE BUNDLE``: what conmon calls when a service has ended. Applies the restart policy.

A stop marks the run, then ends this process: it may be waiting for the lock that the stop holds, or for the time to try again.
"""

from __future__ import annotations

import os
import sys
import time

from niso.base import files
from niso.base.errors import NisoError
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.locks import service_lock
from niso.plan.process_spec import ProcessSpec
from niso.runtime import launch, logs, oci, process, unit
from niso.runtime.spec import load, read_state

if TYPE_CHECKING:
    from typing import Any

MAX_DELAY_S = 60.0
LONG_LIFE_S = 60.0
"""Who lived that long starts anew: the delay is the first one again."""


def delay_s(first_s: float, failures: int) -> float:
    """The wait before a start after so many failures in a row: ``first_s``, then twice as long each time, at most a minute (or ``first_s``)."""
    return float(min(max(MAX_DELAY_S, first_s), first_s * 2 ** min(failures, 32)))


def main(service: str, bundle: str) -> None:
    """Record the end of the run in ``bundle``; wait and start the service again where its policy says so."""
    try:
        with open(
            files.make(f"{bundle}/{launch.EXITED_PID}", 0o600), "w", encoding="ascii"
        ) as file:
            file.write(str(os.getpid()))
    except FileNotFoundError:
        return
    if os.path.exists(f"{bundle}/{launch.STOPPING}"):
        return
    code = process.exit_code(service, bundle)
    if code is None:
        return
    with service_lock(service):
        spec = _current(service, bundle)
        if spec is None:
            return
        record = _record_end(spec, bundle, code)
    while record["phase"] == "restarting":
        time.sleep(delay_s(spec.restart_delay_s, max(0, record["failures"] - 1)))
        with service_lock(service):
            if _current(service, bundle) is None:
                return
            record = _try_again(spec, record, bundle)


def _current(service: str, bundle: str) -> ProcessSpec | None:
    """The spec, if the run in ``bundle`` is still the service's present one and no stop is under way. Under the lock."""
    record = read_state(service)
    if files.read(f"{bundle}/{launch.EXITED_PID}") != str(os.getpid()).encode():
        return None  # a folder of the same name, made after somebody had removed ours
    if record is None or f"run-{record['run']}" != os.path.basename(bundle):
        return None
    return None if os.path.exists(f"{bundle}/{launch.STOPPING}") else load(service)


def _record_end(spec: ProcessSpec, bundle: str, code: int) -> dict[str, Any]:
    record = read_state(spec.service) or {"run": 0, "restarts": 0, "failures": 0}
    for older in process.bundles(os.path.dirname(bundle)):
        if older != bundle:
            # Kept until now: whoever stops the service waits for that run's conmon too.
            process.end_conmon(older)
            process.remove_tree(older)
    process.clear(spec.service)
    launch.remove_cgroups(oci.cgroup(spec))
    logs.rotate_if_large(spec.service)
    began = record.get("started_monotonic")
    lived_s = time.monotonic() - began if isinstance(began, float) else 0.0
    failures = 0 if code == 0 or lived_s >= LONG_LIFE_S else int(record["failures"])
    again = process.restarts_after(spec.restart, code)
    record.pop("pid", None)
    record.update(
        phase="restarting" if again else "exited",
        exit_code=code,
        failures=failures + (code != 0),
        ended_at=time.time(),
    )
    process.write_state(spec.service, record)
    return record


def _try_again(spec: ProcessSpec, record: dict[str, Any], bundle: str) -> dict[str, Any]:
    number = int(record["run"])
    restarts = int(record["restarts"])
    failures = int(record["failures"])
    try:
        counts = {"restarts": restarts + 1, "failures": failures, "exit_code": record["exit_code"]}
        process.Run(spec, number + 1, counts).finish()
    except (NisoError, OSError) as error:
        following = process.bundle_of(spec.service, number + 1)
        process.abandon(spec, following)
        record = {**record, "failures": failures + 1, "error": str(error)}
        process.write_state(spec.service, record)
        return record
    _tell_unit(spec.service)
    return {"phase": "running"}


def _tell_unit(service: str) -> None:
    conmon = process.conmon(service)
    if conmon is not None and unit.path(service) is not None:
        try:
            unit.tell(f"MAINPID={conmon}")
        except OSError:
            return  # systemd takes the end of this run's conmon for that of the service, which goes on


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
