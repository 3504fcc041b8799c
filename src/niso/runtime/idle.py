"""Whether a service that was just started has come to wait for something, as a program does when it has what it needs.

A program that cannot run, or gives up at once, never waits before it ends: it is busy, or reads its files. So rest is told apart
from an end to come without waiting for as long as an end may take.
"""

from __future__ import annotations

import os

from niso.runtime import oci

_MOST = 64
"""Threads that are looked at; a service with more is not said to be at rest."""

Mark = tuple[tuple[int, bytes], ...]
"""Each thread, and how often it has run."""


def mark(init: int) -> Mark | None:
    """None unless all threads of a service sleep, one of them is the entrypoint's, and no process of it waits for another.

    Two equal ones: none has run between them. ``init``: its PID 1. A kernel that does not tell of children gives None.
    """
    found: list[tuple[int, bytes]] = []
    entered = False
    pids = [init]
    try:
        for pid in pids:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                word = file.read().partition(b"\0")[0]
            # PID 1, and what it has forked, until that becomes another program
            entered = entered or word not in (b"", oci.INIT.encode())
            for thread in os.listdir(f"/proc/{pid}/task"):
                runs = _runs(f"/proc/{pid}/task/{thread}/status")
                with open(
                    f"/proc/{pid}/task/{thread}/children", encoding="ascii"
                ) as file_of_children:
                    children = [int(word) for word in file_of_children.read().split()]
                if runs is None or len(found) >= _MOST or (children and pid != init):
                    return None  # a shell goes on, or ends, with what it has started
                found.append((int(thread), runs))
                pids += children
    except (FileNotFoundError, ProcessLookupError):
        return None
    return tuple(found) if entered else None


def is_starved(init: int) -> bool:
    """Whether PID 1 or a child of it wants to run and has not had 0.1 s of a processor yet: the machine is too busy to tell of it."""
    try:
        with open(f"/proc/{init}/task/{init}/children", encoding="ascii") as children:
            pids = [init, *map(int, children.read().split())]
        for pid in pids:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = (
                    file.read().rpartition(b") ")[2].split()
                )  # proc_pid_stat(5), from the third on
            if (
                fields[0] in (b"R", b"D")
                and int(fields[11]) + int(fields[12]) < os.sysconf("SC_CLK_TCK") // 10
            ):
                return True
    except (FileNotFoundError, ProcessLookupError):
        pass
    return False


def _runs(path: str) -> bytes | None:
    """How often a thread has been switched, as the kernel writes it; None where it does not sleep (proc_pid_status(5))."""
    with open(path, "rb") as file:
        text = file.read()
    _, _, state = text.partition(b"\nState:\t")
    return text[text.rfind(b"\nvoluntary_ctxt_switches") :] if state[:1] == b"S" else None
