"""Run crun, read and write the records of an activation, and identify processes by pid.

The records are spec.json and state.json. If a process exits, the kernel may give its pid to another
process. Functions that find a process by its pid therefore first open a pidfd (pidfd_open(2)), and
then check the identity of the process. The pidfd refers to the checked process even if the pid is
reused later.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping
from functools import lru_cache

from niso.base import convert, files, paths, signals
from niso.base.errors import ProcessError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import from_json, signal, to_json
from niso.base.signals import ENDING, signals_blocked
from niso.plan.specs import ProcessSpec
from niso.runtime import cgroups

if TYPE_CHECKING:
    from typing import Any


# --- crun -----------------------------------------------------------------------------------------


_TOOL_FOLDERS = (
    *("/usr/bin", "/usr/local/bin", "/usr/sbin"),
    *("/usr/libexec/podman", "/usr/libexec/catatonit"),
)


def tool(name: str) -> str:
    """Return the absolute path of crun, conmon, catatonit or nsenter."""
    if signals.broken(name):
        return "/usr/bin/false"
    for folder in _TOOL_FOLDERS:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    package = "util-linux" if name == "nsenter" else name
    raise ProcessError(f"{name} is not installed", f"apt install {package}")


def state_dir() -> str:
    return os.path.join(paths.run_dir(), "crun")


def container_id(service: str) -> str:
    """Return crun's id of a service's container. With journald, conmon needs over 12 characters."""
    return f"niso-service-{service}"


def container_dir(service: str) -> str:
    """Return the folder in which crun records a service's container."""
    return os.path.join(state_dir(), container_id(service))


def environment() -> dict[str, str]:
    """Return the environment variables for conmon, crun and niso's exit command. LANG is left out:
    with LANG, conmon and nsenter would each read the twelve files of a locale.
    """
    fixed = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_CTYPE": "C.UTF-8"}
    names = (name for name in os.environ if name.startswith("NISO_") and "FAILPOINT" not in name)
    return {**fixed, **{name: os.environ[name] for name in names}}


def run(*args: str) -> tuple[int, str]:
    """Run crun to its end, even if a signal arrives. Return its exit status and its output."""

    program = tool("crun")
    with signals_blocked():
        read, write = os.pipe()
        try:
            pid = os.posix_spawn(
                program,
                ["crun", f"--root={state_dir()}", *args],
                environment(),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write, 2),
                ],
                setsigmask=(),
            )
        finally:
            os.close(write)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            try:
                output = read_all(read)
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        finally:
            _, wait_status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(wait_status), plain_message(output)


def start(service: str) -> None:
    """Start the process of a created container. Raises `ProcessError` or OSError.

    The container waits for a byte on a FIFO, which ``crun start`` would write
    (libcrun_status_write_exec_fifo, src/libcrun/status.c). Running crun only to write this byte
    would take a tenth of the processor time of a start. This protocol is unlikely to change,
    because a newer crun must be able to start containers that an older crun has created. If the
    FIFO or its reader is missing, ``crun start`` is run, which starts the container or reports the
    problem.
    """
    fifo = f"{container_dir(service)}/exec.fifo"
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        exit_status, message = run("start", container_id(service))
        if exit_status != 0:
            raise ProcessError(f"crun start: {message}", service=service) from None
        return
    try:
        os.unlink(fifo)  # crun calls the container running from then on
        os.write(fd, b"\0")
    finally:
        os.close(fd)


def plain_message(output: bytes) -> str:
    """Return a message of crun or conmon without time stamps, with its lines joined by "; "."""
    lines = []
    for line in output.decode("utf-8", "replace").splitlines():
        stamp, _, message = line.partition(": ")
        lines.append(message if stamp[:2] == "20" and "T" in stamp and message else line)
    return "; ".join(line.strip() for line in lines if line.strip())


def read_all(fd: int) -> bytes:
    """Read a descriptor to its end, close it, and return the first 64 KiB."""
    kept = b""
    try:
        while chunk := os.read(fd, 4096):
            kept += chunk[: (1 << 16) - len(kept)]
    finally:
        os.close(fd)
    return kept


def names_in(folder: str) -> list[str]:
    """Return the names in a folder, sorted. A missing folder counts as empty."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


# --- spec.json and state.json ---------------------------------------------------------------------


APP = "/app"
INIT = "/dev/niso-init"
"""PID 1 of a service: catatonit, mounted into the service's /dev."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def path_env(environment: Mapping[str, str]) -> str:
    return environment.get("PATH", DEFAULT_PATH)


def cgroup_of(spec: ProcessSpec) -> str:
    return paths.cgroup(spec.state_id, spec.service)


def namespace(spec: ProcessSpec) -> str | None:
    return os.path.basename(spec.netns) if spec.netns else None


def save(spec: ProcessSpec) -> None:
    write_json(f"{paths.service_dir(spec.service)}/spec.json", convert.plain(spec))


def load(service: str) -> ProcessSpec | None:
    """Return the ProcessSpec of a service's present activation, or None if missing or damaged."""
    text = files.read(f"{paths.service_dir(service)}/spec.json")
    return None if text is None else _parsed(text)


def group(service: str) -> str | None:
    """Return the path of a service's cgroup, or None if its spec.json is missing or damaged. Only
    the state id is decoded, because lists of many services call this function.
    """
    fields = read_json(f"{paths.service_dir(service)}/spec.json") or {}
    state_id = fields.get("state_id")
    return paths.cgroup(state_id, service) if isinstance(state_id, str) else None


@lru_cache(maxsize=1)
def _parsed(text: bytes) -> ProcessSpec | None:
    """Decode the content of a spec.json, or return None if it is damaged. The result is cached,
    because reading a status decodes the same content several times in a row.
    """
    fields = _parse_json(text)
    try:
        return None if fields is None else convert.convert(fields, ProcessSpec)
    except ValueError:  # damaged
        return None


def read_state(service: str) -> dict[str, Any] | None:
    """Return the content of a service's state.json, or None if it is missing or not valid."""
    record = read_json(f"{paths.service_dir(service)}/state.json")
    kinds = {"run": int, "phase": str, "restarts": int, "failures": int}
    if record is None:
        return None
    is_valid = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    return record if is_valid else None


def write_json(path: str, value: object) -> None:
    """Write a value as JSON to a file atomically, with mode 0600. Raises OSError."""
    draft = f"{path}.new"
    fd = files.make(draft, 0o600)
    try:
        files.write(fd, to_json(value).encode())
    finally:
        os.close(fd)
    files.rename(draft, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing or not valid."""
    text = files.read(path)
    return None if text is None else _parse_json(text)


def _parse_json(text: bytes) -> dict[str, Any] | None:
    try:
        value = from_json(text.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- processes by pid -----------------------------------------------------------------------------


_PID_MAX = 1 << 22
"""The largest number that the kernel allows as limit of pids (PID_MAX_LIMIT, linux/threads.h)."""


def in_service(service: str, pid: int) -> bool:
    path = group(service)
    return path is not None and cgroups.holds(path, pid)


def in_group(service: str, group: int) -> list[int]:
    """Return the pids of a service's processes in a process group (setpgid(2))."""
    spec = load(service)
    members = []
    for pid in cgroups.pids(cgroup_of(spec)) if spec is not None else ():
        try:
            if os.getpgid(pid) == group:
                members.append(pid)
        except ProcessLookupError:
            pass
    return members


def children(pid: int | None) -> list[int]:
    """Return the pids of the children of a single-threaded process.

    See proc_pid_task_tid_children(5). The result is empty if the process has exited, or if the
    kernel lacks CONFIG_PROC_CHILDREN.
    """
    return [int(word) for word in files.of_process(pid, f"task/{pid}/children").split()]


def open_in_service(service: str, pid: int | None) -> int:
    """Return a pidfd of ``pid`` if it is a process of the service, otherwise -1."""
    return _open_if(pid, lambda pid: in_service(service, pid))


def open_supervisor(pid: int | None, bundle: str) -> int:
    """Return a pidfd of ``pid`` if it is the conmon or exit command of a run, otherwise -1."""
    return _open_if(pid, lambda pid: is_supervisor(pid, bundle))


def _open_if(pid: int | None, is_it: Callable[[int], bool]) -> int:
    """Return a pidfd of a process. Return -1 if the process is missing or ``is_it`` is false.
    ``is_it`` is called after the pidfd is opened, because before that the pid could be reused.
    """
    if pid is None:
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if is_it(pid):
        return pidfd
    os.close(pidfd)
    return -1


def is_supervisor(pid: int | None, bundle: str) -> bool:
    """Return whether a process is conmon or the exit command of the run with this OCI bundle."""
    words = [] if pid is None else command_line(pid)
    name = os.fsencode(bundle)
    return name in words or b"--exit-command-arg=" + name in words


def command_line(pid: int) -> list[bytes]:
    """Return the command line of a process (proc_pid_cmdline(5)), or [] if it has exited."""
    content = files.of_process(pid, "cmdline")
    return content.split(b"\0") if content else []


def state_letter(pid: int | None) -> str:
    """Return the state letter of a process (proc_pid_stat(5)), or X if it has exited."""
    return files.of_process(pid, "stat").rpartition(b") ")[2][:1].decode() or "X"


def is_init(pid: int | None) -> bool:
    """Return whether the process is the PID 1 (catatonit) of a service."""
    return pid is not None and command_line(pid)[:1] == [INIT.encode()]


def send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def read_pid(path: str) -> int | None:
    """Return the pid in a file, or None if the file is missing or has no valid pid."""
    try:
        pid = int(files.read(path) or b"")
    except ValueError:
        return None
    return pid if 0 < pid <= _PID_MAX else None


def int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


def wait_readable(fd: int, timeout_s: float) -> bool:
    """Wait at most ``timeout_s`` seconds until a descriptor is readable, and return whether it is.
    A pidfd is readable when its process has exited.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0, int(left * 1000 + 0.999))):
            return True
        if left <= 0:
            return False
