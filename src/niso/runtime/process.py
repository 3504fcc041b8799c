"""A service's process: start, stop, restart, status. Who changes something holds the service's lock (`niso.runtime.service_lock`).

``<run>/services/<service>/`` holds spec.json, state.json and one folder ``run-N`` per start (bundle, pid files, exit status). What is
said of a process is always checked against the kernel: its pid counts only while that process is in the service's cgroup.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from niso.base import failpoint, paths
from niso.base.errors import NisoError, ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.runtime import cgroup, crun, launch, logs, oci, status, unit
from niso.runtime.pids import (
    children,
    command_line,
    is_init,
    open_in_service,
    open_keeper,
    read_pid,
    send_signal,
    wait_readable,
)
from niso.runtime.spec import ProcessSpec, load, read_json, save

if TYPE_CHECKING:
    from typing import Any

_KILL_S = 10.0


class Start:
    """A start under way: the service is being created, and runs when `finish` has come back. The caller does that, or `close`.

    Whatever is left of an earlier activation is cleared first. Both raise `ProcessError` in the runtime's own words and then leave no
    process, cgroup, mount or file (but its log).
    """

    def __init__(self, spec: ProcessSpec) -> None:
        # "starting" is no hindrance: under the lock nobody else starts it, so that one died on the way.
        if status.read(spec.service).state in ("running", "restarting"):
            raise ProcessError(f"{spec.service} runs already", f"niso restart {spec.service}")
        stop(spec.service)
        self._service = spec.service
        with _whole(spec.service):
            _end_lost(spec.service, oci.cgroup(spec))
            failpoint.hit(f"write the spec of {spec.service}")
            os.makedirs(paths.service_dir(spec.service), 0o700, exist_ok=True)
            save(spec)
            self._run = Run(spec, 0, {"restarts": 0, "failures": 0})

    @property
    def fd(self) -> int:
        """Can be read when it `is_created`."""
        return self._run.fd

    @property
    def is_created(self) -> bool:
        """Whether `finish` need not wait for its creation, or for the reason why it could not be."""
        return wait_readable(self._run.fd, 0)

    def finish(self) -> int:
        """The pid of its PID 1 on the host."""
        with _whole(self._service):
            pid = self._run.finish()
            unit.hand_over(self._service, status.conmon(self._service))
            return pid

    def close(self) -> None:
        """Let go of one that is not to be finished; `stop` ends it."""
        self._run.close()


@contextmanager
def _whole(service: str) -> Iterator[None]:
    """A start that fails leaves nothing of the service."""
    try:
        yield
    except NisoError:
        stop(service, 0)
        raise
    except OSError as error:
        stop(service, 0)
        raise _failed(service, "start", error) from error


def start(spec: ProcessSpec) -> int:
    """Start a service and wait for it, see `Start`; the pid of its PID 1 on the host."""
    return Start(spec).finish()


class Run:
    """The ``number``-th run of an activation under way, on record. ``counts``: restarts and failures so far.

    Raises what `niso.runtime.launch.Launch` does.
    """

    def __init__(self, spec: ProcessSpec, number: int, counts: dict[str, Any]) -> None:
        self._service = spec.service
        self._record = {
            "run": number,
            "phase": "starting",
            "launched_at": time.time(),
            "starter": os.getpid(),
            **counts,
        }
        status.write_state(spec.service, self._record)
        self._launch = launch.Launch(spec, status.bundle_of(spec.service, number))
        self.fd = self._launch.fd

    def finish(self) -> int:
        """Its pid, when it runs and is on record as running."""
        pid = self._launch.finish()
        logs.rotate_if_large(self._service)
        now = {
            "phase": "running",
            "pid": pid,
            "started_at": time.time(),
            "started_monotonic": time.monotonic(),
        }
        status.write_state(self._service, {**self._record, **now})
        return pid

    def close(self) -> None:
        """Let go of one that is not to be finished."""
        self._launch.close()


def hold(service: str) -> int:
    """A pidfd (pidfd_open(2)) of the service's present PID 1, which the caller closes; -1 where none runs."""
    return open_in_service(service, status.read(service).pid)


def lives(pidfd: int) -> bool:
    """Whether the process of `hold` has not ended."""
    return pidfd >= 0 and not wait_readable(pidfd, 0)


def ask_to_end(service: str) -> int:
    """Send a service TERM, after which its restart policy does not act; what comes then is for `stop`.

    Gives a pidfd of its PID 1, which the caller closes; -1 where none runs that would heed it.
    """
    folder = paths.service_dir(service)
    if not os.path.isdir(folder):
        return -1
    failpoint.hit(f"ask the process of {service} to end")
    unit.stand_in(service, status.conmon(service))
    for bundle in status.bundles(folder):
        _touch(f"{bundle}/{status.STOPPING}")
    for bundle in status.bundles(folder):
        pid = read_pid(f"{bundle}/pid")
        pidfd = open_in_service(service, pid)
        if pidfd >= 0 and is_init(pid):
            send_signal(pidfd, signal.SIGTERM)
            return pidfd
        if pidfd >= 0:
            os.close(pidfd)
    return -1


def stop(service: str, timeout_s: float | None = None) -> None:
    """End a service and remove all that is left of its process; nothing there is fine.

    TERM, then after ``timeout_s`` seconds (None: what its spec says) KILL. Its restart policy does not act. Raises `ProcessError` where
    something could not be ended.
    """
    folder = paths.service_dir(service)
    try:
        _end_lost(service, None)
        if not os.path.isdir(folder):
            return
        spec = load(service)
        if timeout_s is None:
            timeout_s = spec.stop_timeout_s if spec else 0.0
        unit.stand_in(service, status.conmon(service))
        _end_all(service, spec, status.bundles(folder), timeout_s)
        failpoint.hit(f"remove the runtime files of {service}")
        remove_tree(folder)
        forget_health(service)
    except OSError as error:
        raise _failed(service, "stop", error) from error


def forget_health(service: str) -> None:
    """Remove what the last probe said; none is fine. Raises OSError."""
    try:
        os.unlink(paths.health_file(service))
    except FileNotFoundError:
        return


def abandon(spec: ProcessSpec, bundle: str) -> None:
    """Undo one run that failed to start, and keep the rest of the service's folder. Raises `ProcessError`."""
    if os.path.isdir(bundle):
        _end_all(spec.service, spec, [bundle], 0)
        remove_tree(bundle)


def _failed(service: str, what: str, error: OSError) -> ProcessError:
    where = f": {error.filename}" if error.filename else ""
    return ProcessError(f"{service}: cannot {what} its process: {error.strerror}{where}")


def _end_all(service: str, spec: ProcessSpec | None, runs: list[str], timeout_s: float) -> None:
    failpoint.hit(f"stop the process of {service}")
    for bundle in runs:
        _touch(f"{bundle}/{status.STOPPING}")
    for bundle in runs:
        _end(spec, bundle, timeout_s)
    failpoint.hit(f"remove what is left of the process of {service}")
    for bundle in runs:
        end_conmon(bundle)
    # Only now: a conmon that was in the middle of a create could have made it whole behind our back.
    clear(service)
    if spec is not None:
        _kill_rest(service, oci.cgroup(spec))
        launch.remove_cgroups(oci.cgroup(spec))


def end_lost(service: str, path: str) -> None:
    """End what lives on in the cgroup ``path`` of a service whose folder is gone, and remove it. Raises `ProcessError`."""
    try:
        _end_lost(service, path)
        launch.remove_cgroups(path)
    except OSError as error:
        raise _failed(service, "stop", error) from error


def kept_here(service: str) -> bool:
    """Whether a conmon that was started with this run folder keeps a process of the service."""
    return bool(_conmons(service))


def _end_lost(service: str, path: str | None) -> None:
    """End what lives on of a service whose folder somebody has removed; nothing of that kind is fine.

    crun still knows its bundle and cgroup. Where crun's folder is gone too, the cgroup ``path`` tells: it has to be empty by now.
    """
    # what a create that was killed half-way has left counts as nothing
    known = read_json(os.path.join(crun.state_dir(), crun.container_id(service), "status")) or {}
    lost = known.keys() >= {"bundle", "cgroup-path"} and not os.path.isdir(str(known["bundle"]))
    if not lost and (path is None or not cgroup.pids(path)):
        return
    failpoint.hit(f"end the lost process of {service}")
    path = path or str(known["cgroup-path"])
    clear(service)
    _kill_rest(service, path)
    # Its exit command would take the next run, in a folder of the same name, for its own.
    for pid, bundle in _conmons((service,)):
        _end_conmon(pid, bundle)
    launch.remove_cgroups(path)


def end_strays(services: Collection[str]) -> None:
    """End each conmon of a start whose niso died that has not said its pid yet: it would take a later run in a folder of the same name
    for its own. The caller holds the services' locks. Looks at all processes."""
    for pid, bundle in _conmons(services):
        if pid != read_pid(f"{bundle}/conmon.pid"):
            _end_conmon(pid, bundle)


def _conmons(services: Collection[str]) -> list[tuple[int, str]]:
    """Every conmon of services, with its bundle, by the command lines of all processes."""
    start = os.fsencode(os.path.join(paths.run_dir(), "services")) + b"/"
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = command_line(pid)
        for word in words:
            service, _, run = os.fsdecode(word.removeprefix(start)).partition("/")
            if not word.startswith(start) or service not in services or not run.startswith("run-"):
                continue
            if (
                word + b"/conmon.pid" in words
            ):  # and no crun, which is told of the other files of that folder
                found.append((pid, os.fsdecode(word)))
    return found


def restart(service: str) -> int:
    """End the process and start it again from the same spec; the new pid. Raises `ProcessError`, `NotFound` is the caller's."""
    spec = load(service)
    if spec is None:
        raise ProcessError(f"{service} has no process to restart", f"niso activate {service}")
    stop(service)
    try:
        return start(spec)
    except ProcessError as error:
        # It stays active, so its status has to say what became of it.
        os.makedirs(paths.service_dir(service), 0o700, exist_ok=True)
        save(spec)
        status.write_state(
            service,
            {"run": 0, "phase": "failed", "restarts": 0, "failures": 0, "error": error.message},
        )
        raise


def clear(service: str) -> None:
    """Have crun forget the container, whatever its state; nothing there is fine."""
    state = os.path.join(crun.state_dir(), crun.container_id(service))
    if os.path.isdir(state):
        crun.run("delete", "--force", crun.container_id(service))
        # A create that was killed half-way leaves what crun itself cannot read.
        remove_tree(state)


def remove_tree(path: str) -> None:
    """Remove a folder of niso's own and all below it; links are removed, not followed. Nothing there is fine."""
    for folder, folders, others in os.walk(path, topdown=False):
        for name in others:
            os.unlink(os.path.join(folder, name))
        for name in folders:
            inner = os.path.join(folder, name)
            if os.path.islink(inner):
                os.unlink(inner)
            else:
                os.rmdir(inner)
    if os.path.isdir(path):
        os.rmdir(path)


def _end(spec: ProcessSpec | None, bundle: str, timeout_s: float) -> None:
    """TERM, wait, KILL, wait: the PID 1 of a run, with which all its processes go (pid_namespaces(7))."""
    pid = read_pid(f"{bundle}/pid")
    pidfd = open_in_service(spec.service, pid) if spec else -1
    if pidfd >= 0:
        try:
            # A container that was created and never started does not heed TERM.
            if timeout_s > 0 and is_init(pid):
                send_signal(pidfd, signal.SIGTERM)
                if wait_readable(pidfd, timeout_s):
                    return
            send_signal(pidfd, signal.SIGKILL)
            if not wait_readable(pidfd, _KILL_S):
                raise ProcessError(
                    f"{spec.service if spec else bundle}: process {pid} does not end after SIGKILL"
                )
        finally:
            os.close(pidfd)


def end_conmon(bundle: str) -> None:
    """Have the exit command of a run end, then its conmon, which has first to write the service's last lines.

    What children conmon still has when the service is gone are its exit command, or a create that was cut off.
    """
    pid = read_pid(f"{bundle}/conmon.pid")
    if pid is not None:
        _end_conmon(pid, bundle)


def _end_conmon(pid: int, bundle: str) -> None:
    conmon = open_keeper(pid, bundle)
    if conmon < 0:
        return
    pause_s = 0.001
    deadline = time.monotonic() + status.CONMON_S
    try:
        while not wait_readable(conmon, pause_s):
            if time.monotonic() >= deadline:
                send_signal(conmon, signal.SIGKILL)
                wait_readable(conmon, _KILL_S)
                return
            # The exit command writes its pid first and looks for the mark after: one of the two sees the other.
            for child in (*children(pid), read_pid(f"{bundle}/{status.EXITED_PID}")):
                command = open_keeper(child, bundle)
                if command >= 0:
                    send_signal(command, signal.SIGKILL)
                    os.close(command)
            pause_s = min(2 * pause_s, 0.02)
    finally:
        os.close(conmon)


def _kill_rest(service: str, path: str) -> None:
    """Kill what is still in the service's cgroup ``path``: a create that was cut off may leave its first process."""
    for pid in cgroup.pids(path):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Checked after the open, as in open_in_service.
            if not cgroup.holds(path, pid):
                continue
            send_signal(pidfd, signal.SIGKILL)
            if not wait_readable(pidfd, _KILL_S):
                raise ProcessError(f"{service}: process {pid} does not end after SIGKILL")
        finally:
            os.close(pidfd)


def _touch(path: str) -> None:
    """Have ``path`` be there, whatever it is."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EISDIR):  # a FIFO, a folder
            raise
