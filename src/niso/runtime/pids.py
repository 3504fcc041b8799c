"""Identify processes by pid without mistaking a recycled pid for the original process.

The functions that open a pidfd (pidfd_open(2)) check the process after the open: from then on the
descriptor refers to that process, whatever happens to its pid.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from niso.base import files
from niso.runtime import cgroup
from niso.runtime.spec import INIT, cgroup_of, group, load

_PID_MAX = 1 << 22
"""The kernel's largest limit of pids (PID_MAX_LIMIT, linux/threads.h)."""


def in_service(service: str, pid: int) -> bool:
    """Return whether ``pid`` is now a process of the service, according to its cgroup."""
    path = group(service)
    return path is not None and cgroup.holds(path, pid)


def in_group(service: str, group: int) -> list[int]:
    """List the processes of a service in a process group (setpgid(2))."""
    spec = load(service)
    members = []
    for pid in cgroup.pids(cgroup_of(spec)) if spec is not None else ():
        try:
            if os.getpgid(pid) == group:
                members.append(pid)
        except ProcessLookupError:
            pass
    return members


def children(pid: int | None) -> list[int]:
    """List the children of a single-threaded process (proc_pid_task_tid_children(5)).

    Empty if the process has ended, or the kernel lacks CONFIG_PROC_CHILDREN.
    """
    return [int(word) for word in files.of_process(pid, f"task/{pid}/children").split()]


def open_in_service(service: str, pid: int | None) -> int:
    """Open a pidfd of the service's process ``pid``; -1 if it has ended or is not the service's."""
    return _open_if(pid, lambda pid: in_service(service, pid))


def open_supervisor(pid: int | None, bundle: str) -> int:
    """Open a pidfd of ``pid``, the conmon or exit command of ``bundle``; -1 if it has ended."""
    return _open_if(pid, lambda pid: is_supervisor(pid, bundle))


def _open_if(pid: int | None, is_it: Callable[[int], bool]) -> int:
    """Open a pidfd of ``pid``; -1 if it has ended or ``is_it`` returns false.

    ``is_it`` is called after the open: before, the pid could be reused for another process.
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
    """Return whether ``pid`` is the conmon or exit command of ``bundle``, by its command line."""
    words = [] if pid is None else command_line(pid)
    name = os.fsencode(bundle)
    return name in words or b"--exit-command-arg=" + name in words


def command_line(pid: int) -> list[bytes]:
    """Read the command line of a process (proc_pid_cmdline(5)); empty if it has ended."""
    content = files.of_process(pid, "cmdline")
    return content.split(b"\0") if content else []


def state_letter(pid: int | None) -> str:
    """Read the state of a process (proc_pid_stat(5)): Z zombie, T or t stopped, X ended."""
    return files.of_process(pid, "stat").rpartition(b") ")[2][:1].decode() or "X"


def is_init(pid: int | None) -> bool:
    """Return whether ``pid`` is the PID 1 (catatonit) of a service."""
    return pid is not None and command_line(pid)[:1] == [INIT.encode()]


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal by pidfd; no-op if the process has ended."""
    import signal

    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def read_pid(path: str) -> int | None:
    """Read the pid in a file; None if there is no file, or no valid pid in it. Raises OSError."""
    try:
        pid = int(files.read(path) or b"")
    except ValueError:
        return None
    return pid if 0 < pid <= _PID_MAX else None


def int_or_none(value: object) -> int | None:
    """Return ``value`` if it is an int, else None."""
    return value if isinstance(value, int) else None


def wait_readable(fd: int, timeout_s: float) -> bool:
    """Wait up to ``timeout_s`` until ``fd`` is readable; return whether it is.

    A pidfd is readable once its process has ended (pidfd_open(2)).
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
