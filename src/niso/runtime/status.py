"""Read the status of a service's process from niso's files and /proc.

No locks or child processes are needed. `niso.look.services` derives the column STATUS of `niso ps`
from this status.
"""

from __future__ import annotations

import os
import sys
import time

from niso.base import files, paths, signals
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import lazy
from niso.plan.specs import ProcessSpec
from niso.runtime import cgroups, crun

if TYPE_CHECKING:
    from typing import Any

    from niso.runtime import root
else:
    root = lazy("niso.runtime.root")


STOPPING = "stopping"
"""Name of a file in the folder of a run. If it exists, a stop of the run has begun, and the restart
policy does not apply.
"""
EXITED_PID = "exited.pid"
"""Name of a file in the folder of a run. It has the pid of conmon's exit command."""

CONMON_S = 5.0
"""Seconds that conmon may take to write the last log lines and exit after the service has
exited.
"""


class Status(NamedTuple):
    """The present status of a service's process."""

    state: str
    """one of running, starting, restarting, exited, failed and none"""
    exit_code: int | None
    """exit status of the last run; 128 + N if signal N killed it"""
    pid: int | None
    """pid of the service's PID 1 on the host"""
    started_at: float | None
    """Unix time of the start, in seconds"""
    restarts: int
    error: str | None
    """why the last restart failed"""
    lives_s: float | None = None
    """seconds since the start, independent of clock changes; None if unknown"""
    ended_at: float | None = None
    """Unix time at which the last run ended, in seconds"""


NONE = Status("none", None, None, None, 0, None)


def read(service: str, closely: bool = False) -> Status:
    """Return the status of a service's process. With ``closely``, also detects that PID 1 has
    exited although its conmon does not react. This takes up to 5 s.
    """
    shown = _read(service)
    if not closely or shown.state != "running":
        return shown
    deadline = time.monotonic() + CONMON_S
    while (
        shown.state == "running"
        and crun.state_letter(
            shown.pid or crun.int_or_none((crun.read_state(service) or {}).get("pid"))
        )
        in "ZX"
    ):
        keeper = conmon(service)
        if (
            keeper is not None and crun.state_letter(keeper) in "Tt"
        ) or time.monotonic() >= deadline:
            message = f"its process has ended, but its conmon (pid {keeper}) does not react"
            return shown._replace(state="failed", pid=None, error=message)
        time.sleep(0.02)
        shown = _read(service)
    return shown


def _read(service: str) -> Status:
    record = crun.read_state(service)
    if record is None:
        return NONE
    phase = str(record["phase"])
    bundle = bundle_of(service, int(record["run"]))
    started_at = record.get("started_at")
    began, ended_at = record.get("started_monotonic"), record.get("ended_at")
    shown = Status(
        state=phase,
        exit_code=crun.int_or_none(record.get("exit_code")),
        pid=None,
        started_at=started_at if isinstance(started_at, float) else None,
        restarts=int(record["restarts"]),
        error=str(record["error"]) if record.get("error") else None,
        lives_s=max(0.0, time.monotonic() - began) if isinstance(began, float) else None,
        ended_at=ended_at if isinstance(ended_at, float) else None,
    )
    if phase == "running":
        return _read_running(service, record, bundle, shown)
    if phase == "starting" and not os.path.exists(f"/proc/{record.get('starter', 0)}"):
        return shown._replace(state="failed")
    if phase == "restarting" and not crun.is_supervisor(
        crun.read_pid(f"{bundle}/{EXITED_PID}"), bundle
    ):
        return shown._replace(state="failed")
    return shown


def _read_running(service: str, record: dict[str, Any], bundle: str, shown: Status) -> Status:
    pid = crun.int_or_none(record.get("pid"))
    if pid is not None and crun.in_service(service, pid):
        return shown._replace(pid=pid)
    code = exit_code(service, bundle)
    if code is None:
        # conmon is about to write the exit status; without a conmon it is lost.
        return shown._replace(state="running" if conmon(service) is not None else "failed")
    shown = shown._replace(state="exited", exit_code=code, ended_at=ended_at(service, bundle))
    spec = crun.load(service)
    is_final = spec is not None and not restarts_after(spec.restart, code)
    if is_final or os.path.exists(f"{bundle}/{STOPPING}"):
        return shown
    if conmon(service) is not None or crun.is_supervisor(
        crun.read_pid(f"{bundle}/{EXITED_PID}"), bundle
    ):
        return shown._replace(state="restarting")
    if crun.read_state(service) != record:  # the exit command has just recorded the end
        return _read(service)
    return shown._replace(state="failed", error="nothing has recorded its end or restarted it")


def runs(service: str) -> bool:
    """Return whether a service runs or will be restarted, and is not being stopped."""
    return not is_stopping(service) and read(service).state in (
        "running",
        "starting",
        "restarting",
    )


def is_stopping(service: str) -> bool:
    """Return whether a stop of the present run has begun and is not complete."""
    return _has_run_file(service, STOPPING)


def _has_run_file(service: str, name: str) -> bool:
    record = crun.read_state(service)
    return record is not None and os.path.exists(f"{bundle_of(service, record['run'])}/{name}")


def in_own_netns(service: str) -> bool:
    """Return whether a service's PID 1 is in the network namespace where niso expects it.

    A service without its own namespace must be in the caller's namespace. Returns True if the
    namespace of PID 1 cannot be determined.
    """
    return is_in_own_netns(crun.load(service), read(service).pid)


def is_in_own_netns(spec: ProcessSpec | None, pid: int | None) -> bool:
    try:
        expected = os.stat((spec.netns if spec else "") or "/proc/self/ns/net")
        actual = os.stat(f"/proc/{pid}/ns/net")
        if expected.st_dev != actual.st_dev:
            return True  # an ordinary file: no namespace has the name
        return spec is None or os.path.samestat(actual, expected)
    except OSError:
        return True


def known_to_crun(service: str, pid: int) -> bool:
    """Return whether crun has recorded ``pid`` as PID 1 of the service's container."""
    try:
        known = crun.read_json(f"{crun.container_dir(service)}/status")
    except OSError:
        return False
    return (known or {}).get("pid") == pid


def outside_cgroup(service: str, keeper: int | None) -> bool:
    """Return whether a service's PID 1 is outside the service's cgroup in any hierarchy.

    ``keeper`` is the pid of conmon, or None. Returns False without a conmon, and if PID 1 is not a
    child of conmon.
    """
    record = crun.read_json(f"{paths.service_dir(service)}/state.json")
    spec = crun.load(service)
    pid = crun.int_or_none((record or {}).get("pid"))
    if spec is None or pid is None or keeper is None or pid not in crun.children(keeper):
        return False
    return crun.is_init(pid) and not cgroups.holds_wholly(crun.cgroup_of(spec), pid)


def restarts_after(policy: str, code: int) -> bool:
    return policy == "always" or (policy == "on-failure" and code != 0)


def conmon(service: str) -> int | None:
    """Return the pid of conmon in the service's present run, or None if it has exited."""
    record = crun.read_state(service)
    if record is None:
        return None
    bundle = bundle_of(service, record["run"])
    pid = crun.read_pid(f"{bundle}/conmon.pid")
    return pid if crun.is_supervisor(pid, bundle) else None


def supervisors(service: str) -> list[int]:
    """Return the pids of a service's conmon, and of its descendants outside the container."""
    pids = [pid] if (pid := conmon(service)) is not None else []
    for parent in pids:  # the list grows while it is walked
        pids += crun.children(parent)
    return [pid for pid in pids if not crun.in_service(service, pid)]


def describe_exit(code: int | None) -> str:
    """Return an exit status in words: ``exit status 1``, or ``killed by SIGKILL`` for 137."""
    if code is None:
        return "no exit status"
    if name := signals.name_of(code - 128):
        return f"killed by {name}"
    return f"exit status {code}"


def out_of_memory(service: str) -> bool:
    """Return whether the memory limit has killed a process of a service's present run."""
    return _has_run_file(service, "persist/oom")


def former_oom_kills(service: str) -> int:
    """Return how many processes the memory limit has killed in former runs of this activation. The
    number comes from state.json, because the cgroups of former runs no longer exist.
    """
    return crun.int_or_none((crun.read_state(service) or {}).get("oom_kills")) or 0


def bundle_of(service: str, number: int) -> str:
    return f"{paths.service_dir(service)}/run-{number}"


def write_state(service: str, record: dict[str, Any]) -> None:
    crun.write_json(f"{paths.service_dir(service)}/state.json", record)


def exit_code(service: str, bundle: str) -> int | None:
    """Return the exit status that conmon has written for a run, or None if there is none yet."""
    try:
        return int(files.read(f"{bundle}/exits/{crun.container_id(service)}") or b"")
    except ValueError:
        return None


def ended_at(service: str, bundle: str) -> float | None:
    """Return the Unix time, in seconds, at which conmon wrote the exit status, or None."""
    try:
        return os.stat(f"{bundle}/exits/{crun.container_id(service)}").st_mtime
    except OSError:
        return None


def forget_health(service: str) -> None:
    """Delete the recorded probe results of a service, if they exist."""
    try:
        os.unlink(paths.health_file(service))
    except FileNotFoundError:
        return


def services() -> list[str]:
    """Return the services that have a runtime folder, including those without a process."""
    return crun.names_in(os.path.join(paths.run_dir(), "services"))


def bundles(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("run-")]


# --- the script that conmon runs at the end -------------------------------------------------------


SHELL = "/bin/sh"
"""The program that runs the script: /run is often mounted noexec."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root/.local/bin"
MODULE = "niso.runtime.on_exit"


def exit_script() -> str:
    return os.path.join(paths.run_dir(), "on-exit")


def _script_text() -> str:
    """Return the content of conmon's exit script, which runs this installation of niso.

    After an upgrade of Python, the interpreter of a virtual environment still exists but does not
    find the modules of the old version. The script therefore also checks that the target of the
    interpreter's symbolic link still exists.
    """
    own = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_exit.py")
    python = _quoted(sys.executable)
    needs = (sys.executable, os.path.realpath(sys.executable), own)
    return (
        "# conmon runs this when a service of niso ends\n"
        # so that stopping a thousand services at once does not start Python a thousand times for
        # nothing
        f'test -e "$2/{STOPPING}" && exit\n'
        f"if {' && '.join(f'test -e {_quoted(name)}' for name in needs)}; then\n"
        f'    exec {python} -I -m {MODULE} "$@"\n'
        "fi\n"
        f'PATH={_PATH} exec niso on-exit "$@"\n'
    )


def write_exit_script() -> None:
    """Write conmon's exit script unless it is up to date.

    The caller must have the lock ``.cgroup`` in shared mode, so that a concurrent call of
    `launch.remove_unused` does not remove the script before the service has started.
    """
    wanted = os.fsencode(root.once(_script_text))
    if files.read(exit_script()) == wanted:
        return
    draft = f"{exit_script()}.{os.getpid()}.new"
    with open(files.make(draft, 0o600), "wb") as file:
        file.write(wanted)
    files.rename(draft, exit_script())


def renew_exit_script() -> None:
    """Write conmon's exit script again if another installation of niso wrote it. Never raises."""
    try:
        if files.read(exit_script()) is not None:
            write_exit_script()
    except OSError:
        return


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
