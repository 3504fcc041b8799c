"""Keep the systemd unit of a service attached to its conmon through every restart.

Only niso restarts a service. It notifies systemd of the unit's new main process (sd_notify(3),
MAINPID). systemd therefore sees a restarted service as running, and a final exit as the end of the
unit, with its exit status.

Only a process in the unit's cgroup may send the notification. The exit command is in the cgroup, as
a child of conmon. A niso command is not: before it kills conmon, it moves a process of its own into
the unit. This stand-in stays until the next conmon runs. If it ends without a next conmon, the unit
ends, as for a service that was deactivated.
"""

from __future__ import annotations

import os
import select

from niso.base.lite_typing import TYPE_CHECKING
from niso.base.signals import heed_signals, keep_only, signals_held
from niso.runtime import cgroup

if TYPE_CHECKING:
    from typing import NoReturn

_NOTIFY = "/run/systemd/notify"
_JOURNAL = "/run/systemd/journal/socket"
_NOTIFY_S = 5.0
"""How long systemd may take to handle a message."""


def name(service: str) -> str:
    """Return the name of a service's unit."""
    return f"niso-{service}.service"


def booted() -> bool:
    """Return whether systemd is the init (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def has_ended() -> bool:
    """Return whether a unit's ExecStop runs because its main process has ended.

    Otherwise it runs to end that process (systemd.exec(5), $EXIT_CODE).
    """
    return "EXIT_CODE" in os.environ


def path(service: str, pid: int | None = None) -> str | None:
    """Return the cgroup of a service's unit if process ``pid`` (default: this one) is in it.

    None if the process is not in it, or has ended (proc_pid_cgroup(5)).
    """
    try:
        with open(
            f"/proc/{pid or 'self'}/cgroup", encoding="utf-8", errors="surrogateescape"
        ) as lines:
            cgroups = [line.rstrip("\n").split(":", 2)[2] for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((path for path in cgroups if path.endswith(f"/{name(service)}")), None)


def logs_to_journal(service: str) -> bool:
    """Return whether journald runs and a conmon started now will be in the service's unit."""
    return (service in _stand_ins or path(service) is not None) and os.path.exists(_JOURNAL)


def adopt(pids: list[int], to: str) -> None:
    """Move processes into the cgroup ``to``, in each hierarchy that has it and accepts them."""
    for root in cgroup.roots():
        for pid in pids:
            cgroup.move(pid, f"{root}{to}")


def tell(*lines: str) -> None:
    """Send assignments (``MAINPID=12``, ``READY=1``) to systemd and wait until they are handled.

    Waits up to `_NOTIFY_S`. Raises OSError.
    """
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_NOTIFY_S)
        sender.connect(_NOTIFY)
        sender.send("\n".join(lines).encode())
        # systemd closes the descriptor once it has handled earlier messages (sd_notify_barrier(3)).
        read, write = os.pipe()
        try:
            socket.send_fds(sender, [b"BARRIER=1"], [write])
            os.close(write)
            write = -1
            poll = select.poll()
            poll.register(read, select.POLLIN)
            poll.poll(_NOTIFY_S * 1000)
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)


_stand_ins: dict[str, tuple[int, int, str, int]] = {}
"""Service: the pipe to its stand-in, the pipe from it, the unit's cgroup, the stand-in's pid."""


def stand_in(service: str, conmon: int | None) -> None:
    """Move a stand-in process into the unit of ``conmon``, which the caller is about to kill.

    No-op if conmon is not in a unit, or this process is in the same unit.
    """
    if conmon is None or service in _stand_ins or path(service) is not None:
        return
    unit = path(service, conmon)
    if unit is None:
        return
    with signals_held():
        wait, hold = os.pipe()
        done, say = os.pipe()
        pid = os.fork()
        if pid == 0:
            _stand(unit, wait, say)
        os.close(wait)
        os.close(say)
        os.waitpid(pid, 0)
        stand_in_pid = os.read(done, 20)
        _stand_ins[service] = (hold, done, unit, int(stand_in_pid or b"-1"))


def hand_over(service: str, conmon: int | None) -> None:
    """Make the next conmon the unit's main process in place of the stand-in, which then ends."""
    if service not in _stand_ins or conmon is None:
        return
    hold, done, unit, _ = _stand_ins.pop(service)
    try:
        adopt([conmon], unit)
        os.write(hold, f"{conmon}".encode())
        os.close(hold)
        os.read(done, 1)
    except OSError:
        return  # the unit was stopped in the meantime
    finally:
        os.close(done)


def give_back(service: str, conmon: int | None, path: str | None) -> None:
    """Stop a service's unit, but not its processes.

    ``path`` is the service's cgroup; None if the cgroup has been removed, and only the stand-in is
    left.
    """
    stand_in(service, conmon)
    if service not in _stand_ins:
        return
    hold, done, unit, stand_in_pid = _stand_ins.pop(service)
    if path is not None:
        for root in cgroup.roots():
            for pid in cgroup.pids_in(f"{root}{unit}"):
                if pid != stand_in_pid:
                    cgroup.keep_in(root, pid, path)
    os.close(hold)
    os.read(done, 1)
    os.close(done)


def _stand(unit: str, wait: int, say: int) -> NoReturn:
    """Run the stand-in, in a second fork: systemd becomes its parent and sees its exit status."""
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        keep_only((wait, say))
        heed_signals()
        adopt([os.getpid()], unit)
        tell(f"MAINPID={os.getpid()}")
        os.write(say, f"{os.getpid()}".encode())
        conmon = os.read(wait, 20)
        if conmon:
            tell(f"MAINPID={conmon.decode()}")
    finally:
        os._exit(0)
