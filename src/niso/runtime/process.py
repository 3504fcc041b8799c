"""Start and stop the process of a service.

A caller that changes anything holds the service's lock (`niso.base.locks`).
``<run>/services/<service>/`` has spec.json, state.json and one folder ``run-N`` per start (OCI
bundle, pid files, exit status). A recorded pid counts only while the kernel lists that process in
the service's cgroup.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress

from niso.base import failpoint, paths, trees
from niso.base.errors import Error, ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.process_spec import ProcessSpec
from niso.runtime import cgroup, crun, exit_command, logs, status, unit
from niso.runtime.pids import (
    children,
    command_line,
    is_init,
    open_in_service,
    open_supervisor,
    read_pid,
    send_signal,
    wait_readable,
)
from niso.runtime.spec import cgroup_of, load, read_json, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_KILL_S = 10.0
"""How long a process may take to end after SIGKILL."""
_AT_ONCE = 500
"""The most containers that one crun deletes: an argument has at most 128 KiB (execve(2))."""


_FILES, _BYTES, _INODES = 64, 1 << 18, 64
"""The needs of a start: open files, and bytes and files in the run folder."""


def require_room() -> None:
    """Raise ProcessError if a start would fail for lack of descriptors, space or files.

    Callers check this before they stop a process to restart it.
    """
    held: list[int] = []
    try:
        held += (os.dup(0) for _ in range(_FILES))
    except OSError as error:
        words = f"cannot start a process: {error.strerror}"
        raise ProcessError(words, f"ulimit -n must be at least {2 * _FILES}") from error
    finally:
        for fd in held:
            os.close(fd)
    room = os.statvfs(paths.run_dir())
    # a file system without a limit of files has none
    if room.f_bavail * room.f_frsize < _BYTES or (room.f_files and room.f_favail < _INODES):
        what = "space" if room.f_bavail * room.f_frsize < _BYTES else "file"
        raise ProcessError(
            f"cannot start a process: no {what} is left in {paths.run_dir()}",
            f"df -h {paths.run_dir()}; df -i {paths.run_dir()}",
        )


class Start:
    """A start in progress: crun creates the container, and `finish` starts it.

    The caller must call `finish` or `close`. The constructor first removes leftovers of an earlier
    activation. Raises `ProcessError` with the message of crun; then no process, cgroup, mount or
    file except the log is left.
    """

    def __init__(self, spec: ProcessSpec) -> None:
        # "starting" does not block: this niso has the lock, so only a niso that died can have left
        # it.
        if status.read(spec.service).state in ("running", "restarting"):
            raise ProcessError(f"{spec.service} is already running", "niso ps shows it")
        stop(spec.service)
        self._service = spec.service
        with _whole(spec.service):
            _end_orphans(spec.service, cgroup_of(spec))
            failpoint.hit(f"write the spec of {spec.service}")
            os.makedirs(paths.service_dir(spec.service), 0o700, exist_ok=True)
            save(spec)
            self._run = Run(spec, 0, {"restarts": 0, "failures": 0})

    @property
    def fd(self) -> int:
        """Return a descriptor that becomes readable when `is_created` becomes true."""
        return self._run.fd

    @property
    def is_created(self) -> bool:
        """Return whether `finish` would not block: the container exists, or its creation failed."""
        return wait_readable(self._run.fd, 0)

    def finish(self) -> int:
        """Start the created container; return the pid of its PID 1 on the host."""
        with _whole(self._service):
            pid = self._run.finish()
            unit.hand_over(self._service, status.conmon(self._service))
            return pid

    def close(self) -> None:
        """Release a start that will not be finished; `stop` ends its processes."""
        self._run.close()


@contextmanager
def _whole(service: str) -> Iterator[None]:
    """Context manager: remove everything of the service if the block fails."""
    try:
        yield
    except Error:
        stop(service, 0)
        raise
    except OSError as error:
        stop(service, 0)
        raise _failed(service, "start", error) from error


def start(spec: ProcessSpec) -> int:
    """Start a service and wait for its `Start`; return the pid of its PID 1 on the host."""
    return Start(spec).finish()


class Run:
    """One run of a service in progress, recorded in state.json.

    ``number`` counts the runs of this activation from 0. ``counts`` has the numbers of restarts and
    failures. Raises the errors of `niso.runtime.launch.Launch`.
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
        from niso.runtime import launch

        self._launch = launch.Launch(spec, status.bundle_of(spec.service, number))
        self.fd = self._launch.fd

    def finish(self) -> int:
        """Start the container, record it as running, return the pid of its PID 1."""
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
        """Release a run that will not be finished."""
        self._launch.close()


def open_init(service: str) -> int:
    """Open a pidfd of the service's PID 1, which the caller closes; -1 if none runs."""
    return open_in_service(service, status.read(service).pid)


def terminate(service: str) -> int:
    """Send SIGTERM to a service and disable its restart policy; call `stop` to complete the stop.

    Returns a pidfd of its PID 1, which the caller closes; -1 if no PID 1 runs that handles SIGTERM.
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
    """Stop a service and remove its runtime state; no-op if there is none.

    Sends SIGTERM, then SIGKILL after ``timeout_s`` seconds (default: the spec's stop timeout).
    The restart policy does not apply. Raises `ProcessError` if a process does not end.
    """
    try:
        if _end_runs(service, timeout_s):
            _delete([service])
            _remove(service)
    except OSError as error:
        raise _failed(service, "stop", error) from error


def stop_all(services: Iterable[str]) -> dict[str, Error]:
    """Like `stop` with a timeout of 0 s for each service, but with one crun process for all.

    Returns the errors by service.
    """
    errors: dict[str, Error] = {}

    def attempt(names: Iterable[str], do: Callable[[str], bool]) -> list[str]:
        """Return the services for which ``do`` returns true."""
        done = []
        for name in names:
            try:
                if do(name):
                    done.append(name)
            except ProcessError as error:
                errors[name] = error
            except OSError as error:
                errors[name] = _failed(name, "stop", error)
        return done

    ended = attempt(services, lambda name: _end_runs(name, 0))
    _delete(ended)
    attempt(ended, _remove)
    return errors


def _end_runs(service: str, timeout_s: float | None) -> bool:
    """Kill the process of a service and its conmon; return False if it has no runtime state."""
    folder = paths.service_dir(service)
    _end_orphans(service, None)
    if not os.path.isdir(folder):
        return False
    spec = load(service)
    if timeout_s is None:
        timeout_s = spec.stop_timeout_s if spec else 0.0
    unit.stand_in(service, status.conmon(service))
    _end_all(service, spec, status.bundles(folder), timeout_s)
    return True


def _remove(service: str) -> bool:
    """Remove the runtime state of a service that crun no longer knows."""
    trees.remove(_crun_state(service))  # crun cannot read what an interrupted create left
    _end_cgroup(service, load(service))
    failpoint.hit(f"remove the runtime files of {service}")
    trees.remove(paths.service_dir(service))
    exit_command.remove_unused()
    forget_health(service)
    return True


def forget_health(service: str) -> None:
    """Delete the last health check result; no-op if there is none. Raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(paths.health_file(service))


def abandon(spec: ProcessSpec, bundle: str) -> None:
    """Clean up after a run that failed to start; keep other files. Raises `ProcessError`."""
    if os.path.isdir(bundle):
        _end_all(spec.service, spec, [bundle], 0)
        clear(spec.service)
        _end_cgroup(spec.service, spec)
        trees.remove(bundle)


def _failed(service: str, what: str, error: OSError) -> ProcessError:
    where = f": {error.filename}" if error.filename else ""
    return ProcessError(f"cannot {what} its process: {error.strerror}{where}", service=service)


def _end_all(service: str, spec: ProcessSpec | None, runs: list[str], timeout_s: float) -> None:
    """Kill the processes of runs and their conmons.

    The container is deleted from crun afterwards: a conmon in the middle of a creation could still
    complete it.
    """
    failpoint.hit(f"stop the process of {service}")
    for bundle in runs:
        _touch(f"{bundle}/{status.STOPPING}")
    for bundle in runs:
        _end(spec, bundle, timeout_s)
    failpoint.hit(f"remove what is left of the process of {service}")
    for bundle in runs:
        end_conmon(bundle)


def _end_cgroup(service: str, spec: ProcessSpec | None) -> None:
    if spec is not None:
        _kill_cgroup(service, cgroup_of(spec))
        cgroup.remove_with_parent(cgroup_of(spec))


def end_orphans(service: str, path: str) -> None:
    """Kill the processes left in the cgroup ``path`` of a service without a folder.

    Then removes the cgroup. Raises `ProcessError`.
    """
    try:
        _end_orphans(service, path)
        cgroup.remove_with_parent(path)
    except OSError as error:
        raise _failed(service, "stop", error) from error


def has_conmon(service: str) -> bool:
    """Return whether a conmon started with this run folder supervises a process of the service."""
    return bool(_conmons((service,)))


def _end_orphans(service: str, path: str | None) -> None:
    """Kill the processes of a service whose folder was removed; no-op if there are none.

    crun's state still names the bundle and the cgroup. Without crun's state, the cgroup ``path``
    decides: no process may be in it by now.
    """
    # The state of an interrupted create lacks these keys and counts as none.
    known = read_json(os.path.join(crun.state_dir(), crun.container_id(service), "status")) or {}
    lost = known.keys() >= {"bundle", "cgroup-path"} and not os.path.isdir(str(known["bundle"]))
    if not lost and (path is None or not cgroup.pids(path)):
        return
    failpoint.hit(f"end the lost process of {service}")
    path = path or str(known["cgroup-path"])
    clear(service)
    _kill_cgroup(service, path)
    # Its exit command would mistake the next run, in a folder of the same name, for its own.
    for pid, bundle in _conmons((service,)):
        _end_conmon(pid, bundle)
    cgroup.remove_with_parent(path)


def end_unrecorded_conmons(services: Collection[str]) -> None:
    """Kill every conmon that an interrupted start left before its pid file was written.

    Such a conmon would mistake a later run in a folder of the same name for its own. The caller
    holds the locks of the services. Scans all processes.
    """
    for pid, bundle in _conmons(services):
        if pid != read_pid(f"{bundle}/conmon.pid"):
            _end_conmon(pid, bundle)


def _conmons(services: Collection[str]) -> list[tuple[int, str]]:
    """List (pid, bundle) of every conmon of the services, from all command lines in /proc."""
    start = os.fsencode(os.path.join(paths.run_dir(), "services")) + b"/"
    conmons = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = command_line(pid)
        for word in words:
            service, _, run = os.fsdecode(word.removeprefix(start)).partition("/")
            if not word.startswith(start) or service not in services or not run.startswith("run-"):
                continue
            # crun's command line also names the bundle, but never conmon.pid.
            if word + b"/conmon.pid" in words:
                conmons.append((pid, os.fsdecode(word)))
    return conmons


def clear(service: str) -> None:
    """Delete the container from crun, in whatever state it is; no-op if crun has none."""
    _delete([service])
    # crun cannot read what an interrupted create left.
    trees.remove(_crun_state(service))


def _delete(services: Iterable[str]) -> None:
    """Have crun delete containers; those that it cannot read stay."""
    known = [name for name in services if os.path.isdir(_crun_state(name))]
    if len(known) == 1:
        crun.run("delete", "--force", crun.container_id(known[0]))
        return
    for at in range(0, len(known), _AT_ONCE):
        names = "|".join(map(crun.container_id, known[at : at + _AT_ONCE]))
        crun.run("delete", "--force", "--regex", f"^({names})$")


def _crun_state(service: str) -> str:
    return os.path.join(crun.state_dir(), crun.container_id(service))


def _end(spec: ProcessSpec | None, bundle: str, timeout_s: float) -> None:
    """Send SIGTERM, then SIGKILL, to the PID 1 of a run.

    The kernel kills all other processes of the run with it (pid_namespaces(7)).
    """
    pid = read_pid(f"{bundle}/pid")
    pidfd = open_in_service(spec.service, pid) if spec else -1
    if pidfd >= 0:
        try:
            # A container that was created but never started does not handle SIGTERM.
            if timeout_s > 0 and is_init(pid):
                send_signal(pidfd, signal.SIGTERM)
                if wait_readable(pidfd, timeout_s):
                    return
            send_signal(pidfd, signal.SIGKILL)
            if not wait_readable(pidfd, _KILL_S):
                raise ProcessError(
                    f"{spec.service if spec else bundle}: process {pid} did not end after SIGKILL"
                )
        finally:
            os.close(pidfd)


def end_conmon(bundle: str) -> None:
    """Kill the exit command of a run, then its conmon, which may first write the last log lines.

    Once the service has ended, conmon has no other child than the exit command or an interrupted
    crun create.
    """
    pid = read_pid(f"{bundle}/conmon.pid")
    if pid is not None:
        _end_conmon(pid, bundle)


def _end_conmon(pid: int, bundle: str) -> None:
    conmon = open_supervisor(pid, bundle)
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
            # The exit command writes its pid before it checks STOPPING, so one of the two sees the
            # other.
            for child in (*children(pid), read_pid(f"{bundle}/{status.EXITED_PID}")):
                command = open_supervisor(child, bundle)
                if command >= 0:
                    send_signal(command, signal.SIGKILL)
                    os.close(command)
            pause_s = min(2 * pause_s, 0.02)
    finally:
        os.close(conmon)


def _kill_cgroup(service: str, path: str) -> None:
    """Kill the processes left in the cgroup ``path``, such as those of an interrupted create."""
    for pid in cgroup.pids(path):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Check after the open, as open_in_service does.
            if not cgroup.holds(path, pid):
                continue
            send_signal(pidfd, signal.SIGKILL)
            if not wait_readable(pidfd, _KILL_S):
                raise ProcessError(f"process {pid} did not end after SIGKILL", service=service)
        finally:
            os.close(pidfd)


def _touch(path: str) -> None:
    """Create the file ``path`` unless anything exists at that path."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as error:
        # another file type, such as a FIFO or folder
        if error.errno not in (errno.ENXIO, errno.EISDIR):
            raise
