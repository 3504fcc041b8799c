"""Identify processes by number without mistaking a reused number for the old process."""

from __future__ import annotations

import os
import select
import signal
import time

from niso.base import files
from niso.runtime import cgroup, oci
from niso.runtime.spec import load


def in_service(service: str, pid: int) -> bool:
    """Whether ``pid`` is one of the service's processes now, and not another one that got its number."""
    spec = load(service)
    return spec is not None and cgroup.holds(oci.cgroup(spec), pid)


def children(pid: int | None) -> list[int]:
    """The children of a process with one thread (proc_pid_task_tid_children(5)); none where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def open_in_service(service: str, pid: int | None) -> int:
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


def open_keeper(pid: int | None, bundle: str) -> int:
    """A pidfd of the conmon or exit command of ``bundle``; -1 where that is gone."""
    if pid is None:
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if is_keeper(pid, bundle):
        return pidfd
    os.close(pidfd)
    return -1


def is_keeper(pid: int | None, bundle: str) -> bool:
    """Whether ``pid`` lives and has ``bundle`` on its command line, as conmon and the exit command do."""
    words = [] if pid is None else command_line(pid)
    name = os.fsencode(bundle)
    return name in words or b"--exit-command-arg=" + name in words


def command_line(pid: int) -> list[bytes]:
    """The words of a process's command line (proc_pid_cmdline(5)); none where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def state_letter(pid: int | None) -> str:
    """The state of a process (proc_pid_stat(5)): Z is a zombie, T and t are stopped; X where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return chr(file.read().rpartition(b") ")[2][0])
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_init(pid: int | None) -> bool:
    return pid is not None and command_line(pid)[:1] == [oci.INIT.encode()]


def send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return


def read_pid(path: str) -> int | None:
    try:
        return int(files.read(path) or b"")
    except ValueError:
        return None


def int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) else None


def wait_readable(pidfd: int, timeout_s: float) -> bool:
    """Wait at most ``timeout_s`` for a process to end (pidfd_open(2)); whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0, int(left * 1000 + 0.999))):
            return True
        if left <= 0:
            return False
