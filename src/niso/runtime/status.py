"""The status of a service's process, from niso's files and /proc; takes no lock and starts no process."""

from __future__ import annotations

import os
import signal
import time

from niso.base import files, paths
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.runtime import cgroup, crun, oci
from niso.runtime.pids import (
    children,
    in_service,
    int_or_none,
    is_init,
    is_keeper,
    read_pid,
    state_letter,
)
from niso.runtime.spec import load, read_json, read_state, write_json

if TYPE_CHECKING:
    from typing import Any

STOPPING = "stopping"
EXITED_PID = "exited.pid"

CONMON_S = 5.0
"""How long conmon may take to write the last lines and end, once the service has."""


class Status(NamedTuple):
    """A service's process as it is now."""

    state: str
    """running, starting, restarting, exited, failed or none."""
    exit_code: int | None
    """Of the last end; 128 + N for signal N."""
    pid: int | None
    """Of its PID 1, on the host."""
    started_at: float | None
    """Seconds since 1970."""
    restarts: int
    error: str | None
    """Why the last attempt to start it again failed."""


NONE = Status("none", None, None, None, 0, None)


def read(service: str, closely: bool = False) -> Status:
    """How the process is, from files and /proc; no lock, no fork.

    With ``closely`` its PID 1 itself is looked at too: it may have ended, and its conmon not take that in.
    """
    shown = _read(service)
    if not closely or shown.state != "running":
        return shown
    # a look at a process that lives takes none of this time
    deadline = time.monotonic() + CONMON_S
    while (
        shown.state == "running"
        and state_letter(shown.pid or int_or_none((read_state(service) or {}).get("pid"))) in "ZX"
    ):
        keeper = conmon(service)
        if (keeper is not None and state_letter(keeper) in "Tt") or time.monotonic() >= deadline:
            words = f"its process has ended, and its conmon (pid {keeper}) does not take that in"
            return shown._replace(state="failed", pid=None, error=words)
        time.sleep(0.02)
        shown = _read(service)
    return shown


def _read(service: str) -> Status:
    record = read_state(service)
    if record is None:
        return NONE
    phase = str(record["phase"])
    bundle = bundle_of(service, int(record["run"]))
    pid = int_or_none(record.get("pid"))
    code = int_or_none(record.get("exit_code"))
    since = record.get("started_at")
    shown = Status(
        phase,
        code,
        None,
        since if isinstance(since, float) else None,
        int(record["restarts"]),
        str(record["error"]) if record.get("error") else None,
    )
    if phase == "running":
        if pid is not None and in_service(service, pid):
            return shown._replace(pid=pid)
        code = exit_code(service, bundle)
        spec = load(service)
        if code is None:
            # Its conmon writes the exit status in a moment; without one nobody ever will.
            return shown._replace(state="running" if conmon_alive(service) else "failed")
        asked = os.path.exists(
            f"{bundle}/{STOPPING}"
        )  # to end, after which its restart policy does not act
        again = (
            spec is not None
            and restarts_after(spec.restart, code)
            and not asked
            and conmon_alive(service)
        )
        return shown._replace(state="restarting" if again else "exited", exit_code=code)
    if phase == "starting" and not os.path.exists(f"/proc/{record.get('starter', 0)}"):
        return shown._replace(state="failed")
    if phase == "restarting" and not is_keeper(read_pid(f"{bundle}/{EXITED_PID}"), bundle):
        return shown._replace(state="failed")
    return shown


def runs(service: str) -> bool:
    """Whether it runs, or will again by its restart policy, and nobody has begun to stop it."""
    return not stop_begun(service) and read(service).state in (
        "running",
        "starting",
        "restarting",
    )


def stop_begun(service: str) -> bool:
    """Whether somebody has begun to stop its present run, and not finished."""
    record = read_state(service)
    return record is not None and os.path.exists(
        f"{bundle_of(service, int(record['run']))}/{STOPPING}"
    )


def at_home(service: str) -> bool:
    """Whether its process is in the network namespace that has its name now; True where that cannot be told."""
    spec = load(service)
    pid = read(service).pid
    try:
        there = os.stat(
            (spec.netns if spec else "") or "/proc/self/ns/net"
        )  # without one it is the host's
        home = os.stat(f"/proc/{pid}/ns/net")
        if there.st_dev != home.st_dev:
            return True  # no namespace has the name
        return spec is None or os.path.samestat(home, there)
    except OSError:
        return True


def known_to_crun(service: str, pid: int) -> bool:
    """Whether crun's own state has ``pid`` as the service's PID 1: without it crun can neither run nor end anything in there."""
    try:
        known = (
            read_json(os.path.join(crun.state_dir(), crun.container_id(service), "status")) or {}
        )
    except (OSError, ValueError):
        return False
    return known.get("pid") == pid


def strayed(service: str) -> bool:
    """Whether its PID 1 lives, as its conmon's child, and somebody has moved it out of the service's cgroup.

    Where there are several hierarchies it has to be in the cgroup in all that crun uses.
    """
    record, keeper = (
        read_json(os.path.join(paths.service_dir(service), "state.json")),
        conmon(service),
    )
    spec = load(service)
    pid = int_or_none((record or {}).get("pid"))
    if spec is None or pid is None or keeper is None or pid not in children(keeper):
        return False
    return is_init(pid) and not cgroup.holds_wholly(oci.cgroup(spec), pid)


def restarts_after(policy: str, code: int) -> bool:
    """Whether a service with this restart policy starts again after exit status ``code``."""
    return policy == "always" or (policy == "on-failure" and code != 0)


def conmon_alive(service: str) -> bool:
    """Whether the conmon of the service's present run lives."""
    return conmon(service) is not None


def conmon(service: str) -> int | None:
    """The pid of the conmon of the service's present run; None where it has ended."""
    record = read_state(service)
    if record is None:
        return None
    bundle = bundle_of(service, int(record["run"]))
    pid = read_pid(f"{bundle}/conmon.pid")
    return pid if is_keeper(pid, bundle) else None


def keepers(service: str) -> list[int]:
    """The conmon of the service's present run, then its children: its exit command, and what that has started."""
    found = [pid] if (pid := conmon(service)) is not None else []
    for each in found:
        found += children(each)
    return [pid for pid in found if not in_service(service, pid)]


def describe_exit(code: int | None) -> str:
    """``exit status 1``, or the signal's name where ``code`` is 128 + N."""
    if code is None:
        return "no exit status"
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit status {code}"


def out_of_memory(service: str) -> bool:
    """Whether a process of the service's present run was killed because of its memory limit (conmon tells by a file)."""
    record = read_state(service)
    return record is not None and os.path.exists(
        f"{bundle_of(service, int(record['run']))}/persist/oom"
    )


def bundle_of(service: str, number: int) -> str:
    """The folder of an activation's ``number``-th run."""
    return os.path.join(paths.service_dir(service), f"run-{number}")


def write_state(service: str, record: dict[str, Any]) -> None:
    """Replace state.json. Raises OSError."""
    write_json(os.path.join(paths.service_dir(service), "state.json"), record)


def exit_code(service: str, bundle: str) -> int | None:
    """What conmon wrote at the end; None before it, and after a failed create (an empty file)."""
    try:
        return int(files.read(f"{bundle}/exits/{crun.container_id(service)}") or b"")
    except ValueError:
        return None


def left() -> list[str]:
    """Every service that has a process, or what is left of one."""
    try:
        return sorted(os.listdir(os.path.join(paths.run_dir(), "services")))
    except (FileNotFoundError, NotADirectoryError):
        return []


def bundles(folder: str) -> list[str]:
    """The folders of all runs that are left in a service's folder."""
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("run-")]
