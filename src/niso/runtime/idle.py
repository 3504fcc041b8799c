"""Detect that a newly started service is idle, as a program is once it has started up.

A program that cannot run, or exits at once, never sleeps before it ends: it computes or reads its
files. So idleness distinguishes a successful start from one that is about to fail, without a fixed
wait.
"""

from __future__ import annotations

import os

from niso.runtime.spec import INIT

_MAX_THREADS = 64
"""A service with more threads is never reported as idle."""
_FIRST_FIELD = 3
"""What follows the command name in /proc/PID/stat begins with this field (proc_pid_stat(5))."""
_STATE, _UTIME, _STIME = 3 - _FIRST_FIELD, 14 - _FIRST_FIELD, 15 - _FIRST_FIELD

Mark = tuple[tuple[int, bytes], ...]
"""Each thread with its number of context switches, as text."""


def mark(init: int) -> Mark | None:
    """Return the context switches of all threads of a service if it is idle, else None.

    It is idle if all its threads sleep, one of them runs the entrypoint, and no process below PID 1
    has children, since a shell may continue, or end, when its child ends. Two equal marks mean that
    no thread ran in between. ``init`` is the service's PID 1. Always None on a kernel without
    CONFIG_PROC_CHILDREN.
    """
    threads: list[tuple[int, bytes]] = []
    entered = False
    pids = [init]
    try:
        for pid in pids:  # grows while it is walked
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program = file.read().partition(b"\0")[0]
            # PID 1's child has PID 1's command line until it executes the entrypoint.
            entered = entered or program not in (b"", INIT.encode())
            for tid in os.listdir(f"/proc/{pid}/task"):
                switches = _switches(f"/proc/{pid}/task/{tid}/status")
                children = _children(pid, tid)
                if switches is None or len(threads) >= _MAX_THREADS or (children and pid != init):
                    return None
                threads.append((int(tid), switches))
                pids += children
    except (FileNotFoundError, ProcessLookupError):
        return None
    return tuple(threads) if entered else None


def is_starved(init: int) -> bool:
    """Return whether PID 1 or a child of it is runnable but has had less than 0.1 s of CPU time.

    The machine is then too busy to conclude from the elapsed time that the start succeeded.
    """
    try:
        for pid in (init, *_children(init, str(init))):
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            ticks = int(fields[_UTIME]) + int(fields[_STIME])
            if fields[_STATE] in (b"R", b"D") and ticks < os.sysconf("SC_CLK_TCK") // 10:
                return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def _children(pid: int, tid: str) -> list[int]:
    """List the children of a thread (proc_pid_task_tid_children(5)).

    Raises OSError if the thread has ended.
    """
    with open(f"/proc/{pid}/task/{tid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def _switches(path: str) -> bytes | None:
    """Read the context switches from a thread's status file (proc_pid_status(5)).

    None unless the thread sleeps.
    """
    with open(path, "rb") as file:
        text = file.read()
    _, _, state = text.partition(b"\nState:\t")
    return text[text.rfind(b"\nvoluntary_ctxt_switches") :] if state[:1] == b"S" else None
