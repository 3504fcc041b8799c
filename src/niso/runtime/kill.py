"""Send a signal to the process of a service (``niso kill``)."""

from __future__ import annotations

import os
import signal

from niso.base.errors import ProcessError, UsageError
from niso.runtime import pids, status

_ENDS_S = 1.0
"""How long a process may take to end after SIGKILL (seconds)."""
_LOOK_S = 0.05
"""How long to wait for a process to end after another signal, to report it (seconds)."""


def number(text: str) -> int:
    """Parse a signal, ``HUP``, ``SIGHUP`` or ``1``, to its number. Raises UsageError."""
    plain = text.upper().removeprefix("SIG")
    known = {sig.name.removeprefix("SIG"): sig.value for sig in signal.Signals}
    if plain in known:
        return known[plain]
    if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) in signal.valid_signals():
        return int(text)
    hint = f"a name such as HUP or USR1, or a number from 1 to {signal.SIGRTMAX.value}"
    raise UsageError(f"{text!r} is not a signal", hint, "--signal")


def name(number: int) -> str:
    """Return the name of a signal, ``SIGHUP``, or ``signal 35`` if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def send(service: str, number: int) -> bool:
    """Send a signal to a service's process; return whether the process has verifiably ended.

    SIGKILL goes to PID 1, with which the kernel kills all others (pid_namespaces(7)). Any other
    signal goes to the process of the entrypoint, PID 1's first child: PID 1 is an init, which
    cannot pass on SIGSTOP. Raises ProcessError if the service has no process.
    """
    pid = status.read(service).pid
    first = next(iter(pids.children(pid)), pid) if number != signal.SIGKILL else pid
    init = pids.open_in_service(service, pid)
    target = pids.open_in_service(service, first)
    try:
        if init < 0 or target < 0:
            state = status.read(service).state
            raise ProcessError(f"has no running process ({state})", "niso ps", service=service)
        try:
            signal.pidfd_send_signal(target, number)
        except ProcessLookupError:  # it has just ended
            return True
        return pids.wait_readable(init, _ENDS_S if number == signal.SIGKILL else _LOOK_S)
    finally:
        for fd in (init, target):
            if fd >= 0:
                os.close(fd)
