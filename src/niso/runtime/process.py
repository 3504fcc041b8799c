"""A service's process: start, stop, restart, status. Who changes something holds the service's lock (`niso.base.locks`).

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

from niso.base import failpoint, files, paths
from niso.base.errors import NisoError, ProcessError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.plan.process_spec import ProcessSpec
from niso.runtime import cgroup, launch, logs, oci, unit
from niso.runtime.spec import load, read_json, read_state, save, write_json

if TYPE_CHECKING:
    from typing import Any

_CONMON_S = 5.0
"""How long conmon may take to write the last lines and end, once the service has."""
_KILL_S = 10.0


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


class Start:
    """A start under way: the service is being created, and runs when `finish` has come back. The caller does that, or `close`.

    Whatever is left of an earlier activation is cleared first. Both raise `ProcessError` in the runtime's own words and then leave no
    process, cgroup, mount or file (but its log).
    """

    def __init__(self, spec: ProcessSpec) -> None:
        # "starting" is no hindrance: under the lock nobody else starts it, so that one died on the way.
        if status(spec.service).state in ("running", "restarting"):
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
        return launch.wait_gone(self._run.fd, 0)

    def finish(self) -> int:
        """The pid of its PID 1 on the host."""
        with _whole(self._service):
            pid = self._run.finish()
            unit.hand_over(self._service, conmon(self._service))
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
        write_state(spec.service, self._record)
        self._launch = launch.Launch(spec, bundle_of(spec.service, number))
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
        write_state(self._service, {**self._record, **now})
        return pid

    def close(self) -> None:
        """Let go of one that is not to be finished."""
        self._launch.close()


def hold(service: str) -> int:
    """A pidfd (pidfd_open(2)) of the service's present PID 1, which the caller closes; -1 where none runs."""
    return _open(service, status(service).pid)


def lives(pidfd: int) -> bool:
    """Whether the process of `hold` has not ended."""
    return pidfd >= 0 and not launch.wait_gone(pidfd, 0)


def ask_to_end(service: str) -> int:
    """Send a service TERM, after which its restart policy does not act; what comes then is for `stop`.

    Gives a pidfd of its PID 1, which the caller closes; -1 where none runs that would heed it.
    """
    folder = paths.service_dir(service)
    if not os.path.isdir(folder):
        return -1
    failpoint.hit(f"ask the process of {service} to end")
    unit.stand_in(service, conmon(service))
    for bundle in bundles(folder):
        _touch(f"{bundle}/{launch.STOPPING}")
    for bundle in bundles(folder):
        pid = _read_pid(f"{bundle}/pid")
        pidfd = _open(service, pid)
        if pidfd >= 0 and _is_init(pid):
            _signal(pidfd, signal.SIGTERM)
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
        unit.stand_in(service, conmon(service))
        _end_all(service, spec, bundles(folder), timeout_s)
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
    return ProcessError(f"cannot {what} its process: {error.strerror}{where}", service=service)


def _end_all(service: str, spec: ProcessSpec | None, runs: list[str], timeout_s: float) -> None:
    failpoint.hit(f"stop the process of {service}")
    for bundle in runs:
        _touch(f"{bundle}/{launch.STOPPING}")
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
    known = (
        read_json(os.path.join(launch.crun_root(), launch.container_id(service), "status")) or {}
    )
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
        if pid != _read_pid(f"{bundle}/conmon.pid"):
            _end_conmon(pid, bundle)


def _conmons(services: Collection[str]) -> list[tuple[int, str]]:
    """Every conmon of services, with its bundle, by the command lines of all processes."""
    start = os.fsencode(os.path.join(paths.run_dir(), "services")) + b"/"
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        words = _command_line(pid)
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
        write_state(
            service,
            {"run": 0, "phase": "failed", "restarts": 0, "failures": 0, "error": error.message},
        )
        raise


def status(service: str, closely: bool = False) -> Status:
    """How the process is, from files and /proc; no lock, no fork.

    With ``closely`` its PID 1 itself is looked at too: it may have ended, and its conmon not take that in.
    """
    shown = _status(service)
    if not closely or shown.state != "running":
        return shown
    # a look at a process that lives takes none of this time
    deadline = time.monotonic() + _CONMON_S
    while (
        shown.state == "running"
        and _letter(shown.pid or _number((read_state(service) or {}).get("pid"))) in "ZX"
    ):
        keeper = conmon(service)
        if (keeper is not None and _letter(keeper) in "Tt") or time.monotonic() >= deadline:
            words = f"its process has ended, and its conmon (pid {keeper}) does not take that in"
            return shown._replace(state="failed", pid=None, error=words)
        time.sleep(0.02)
        shown = _status(service)
    return shown


def _status(service: str) -> Status:
    record = read_state(service)
    if record is None:
        return NONE
    phase = str(record["phase"])
    bundle = bundle_of(service, int(record["run"]))
    pid = _number(record.get("pid"))
    code = _number(record.get("exit_code"))
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
            f"{bundle}/{launch.STOPPING}"
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
    if phase == "restarting" and not _alive_as(_read_pid(f"{bundle}/{launch.EXITED_PID}"), bundle):
        return shown._replace(state="failed")
    return shown


def runs(service: str) -> bool:
    """Whether it runs, or will again by its restart policy, and nobody has begun to stop it."""
    return not stop_begun(service) and status(service).state in (
        "running",
        "starting",
        "restarting",
    )


def stop_begun(service: str) -> bool:
    """Whether somebody has begun to stop its present run, and not finished."""
    record = read_state(service)
    return record is not None and os.path.exists(
        f"{bundle_of(service, int(record['run']))}/{launch.STOPPING}"
    )


def at_home(service: str) -> bool:
    """Whether its process is in the network namespace that has its name now; True where that cannot be told."""
    spec = load(service)
    pid = status(service).pid
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
            read_json(os.path.join(launch.crun_root(), launch.container_id(service), "status"))
            or {}
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
    pid = _number((record or {}).get("pid"))
    if spec is None or pid is None or keeper is None or pid not in _children(keeper):
        return False
    return _is_init(pid) and not cgroup.holds_wholly(oci.cgroup(spec), pid)


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
    pid = _read_pid(f"{bundle}/conmon.pid")
    return pid if _alive_as(pid, bundle) else None


def keepers(service: str) -> list[int]:
    """The conmon of the service's present run, then its children: its exit command, and what that has started."""
    found = [pid] if (pid := conmon(service)) is not None else []
    for each in found:
        found += _children(each)
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
        return int(files.read(f"{bundle}/exits/{launch.container_id(service)}") or b"")
    except ValueError:
        return None


def clear(service: str) -> None:
    """Have crun forget the container, whatever its state; nothing there is fine."""
    state = os.path.join(launch.crun_root(), launch.container_id(service))
    if os.path.isdir(state):
        launch.crun("delete", "--force", launch.container_id(service))
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


def in_service(service: str, pid: int) -> bool:
    """Whether ``pid`` is one of the service's processes now, and not another one that got its number."""
    spec = load(service)
    return spec is not None and cgroup.holds(oci.cgroup(spec), pid)


def _end(spec: ProcessSpec | None, bundle: str, timeout_s: float) -> None:
    """TERM, wait, KILL, wait: the PID 1 of a run, with which all its processes go (pid_namespaces(7))."""
    pid = _read_pid(f"{bundle}/pid")
    pidfd = _open(spec.service, pid) if spec else -1
    if pidfd >= 0:
        try:
            # A container that was created and never started does not heed TERM.
            if timeout_s > 0 and _is_init(pid):
                _signal(pidfd, signal.SIGTERM)
                if launch.wait_gone(pidfd, timeout_s):
                    return
            _signal(pidfd, signal.SIGKILL)
            if not launch.wait_gone(pidfd, _KILL_S):
                raise ProcessError(
                    f"{spec.service if spec else bundle}: process {pid} does not end after SIGKILL"
                )
        finally:
            os.close(pidfd)


def end_conmon(bundle: str) -> None:
    """Have the exit command of a run end, then its conmon, which has first to write the service's last lines.

    What children conmon still has when the service is gone are its exit command, or a create that was cut off.
    """
    pid = _read_pid(f"{bundle}/conmon.pid")
    if pid is not None:
        _end_conmon(pid, bundle)


def _end_conmon(pid: int, bundle: str) -> None:
    conmon = _pidfd(pid, bundle)
    if conmon < 0:
        return
    pause_s = 0.001
    deadline = time.monotonic() + _CONMON_S
    try:
        while not launch.wait_gone(conmon, pause_s):
            if time.monotonic() >= deadline:
                _signal(conmon, signal.SIGKILL)
                launch.wait_gone(conmon, _KILL_S)
                return
            # The exit command writes its pid first and looks for the mark after: one of the two sees the other.
            for child in (*_children(pid), _read_pid(f"{bundle}/{launch.EXITED_PID}")):
                command = _pidfd(child, bundle)
                if command >= 0:
                    _signal(command, signal.SIGKILL)
                    os.close(command)
            pause_s = min(2 * pause_s, 0.02)
    finally:
        os.close(conmon)


def _children(pid: int | None) -> list[int]:
    """The children of a process with one thread (proc_pid_task_tid_children(5)); none where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _kill_rest(service: str, path: str) -> None:
    """Kill what is still in the service's cgroup ``path``: a create that was cut off may leave its first process."""
    for pid in cgroup.pids(path):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Checked after the open, as in _open.
            if not cgroup.holds(path, pid):
                continue
            _signal(pidfd, signal.SIGKILL)
            if not launch.wait_gone(pidfd, _KILL_S):
                raise ProcessError(f"process {pid} does not end after SIGKILL", service=service)
        finally:
            os.close(pidfd)


def _open(service: str, pid: int | None) -> int:
    """A pidfd of the service's process ``pid``; -1 where that is gone or another's by now."""
    if pid is None:
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    # Checked after the open: from here on the descriptor means this process whatever becomes of the number.
    if in_service(service, pid):
        return pidfd
    os.close(pidfd)
    return -1


def _pidfd(pid: int | None, bundle: str) -> int:
    """A pidfd of the conmon or exit command of ``bundle``; -1 where that is gone."""
    if pid is None:
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if _alive_as(pid, bundle):
        return pidfd
    os.close(pidfd)
    return -1


def _alive_as(pid: int | None, bundle: str) -> bool:
    """Whether ``pid`` lives and has ``bundle`` on its command line, as conmon and the exit command do."""
    words = [] if pid is None else _command_line(pid)
    name = os.fsencode(bundle)
    return name in words or b"--exit-command-arg=" + name in words


def _command_line(pid: int) -> list[bytes]:
    """The words of a process's command line (proc_pid_cmdline(5)); none where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _letter(pid: int | None) -> str:
    """The state of a process (proc_pid_stat(5)): Z is a zombie, T and t are stopped; X where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b") ")[2][0])
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _is_init(pid: int | None) -> bool:
    return pid is not None and _command_line(pid)[:1] == [oci.INIT.encode()]


def _signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def left() -> list[str]:
    """Every service that has a process, or what is left of one."""
    try:
        return sorted(os.listdir(os.path.join(paths.run_dir(), "services")))
    except (FileNotFoundError, NotADirectoryError):
        return []


def bundles(folder: str) -> list[str]:
    """The folders of all runs that are left in a service's folder."""
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith("run-")]


def _touch(path: str) -> None:
    """Have ``path`` be there, whatever it is."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EISDIR):  # a FIFO, a folder
            raise


def _read_pid(path: str) -> int | None:
    try:
        return int(files.read(path) or b"")
    except ValueError:
        return None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
