"""Which of a service's processes its systemd unit follows: its conmon, through every restart, whoever starts it again.

niso alone starts a service again. systemd is only told (sd_notify(3), MAINPID) which process is the unit's main one now, so
it sees a service that is restarted as one that runs on, and an end for good as the end of the unit, with its exit status.
Only a process of the unit's cgroup may say so. The exit command is one, as a child of conmon. A command by hand is none:
before it ends a process it puts one of its own in the unit, which stands in until the next conmon is there, and whose end
without one is the unit's, as that of a service that was deactivated.
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
_HEARD_S = 5.0
"""How long systemd may take to hear a message."""


def name(service: str) -> str:
    """The unit's."""
    return f"niso-{service}.service"


def booted() -> bool:
    """Whether systemd is the init here (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def has_ended() -> bool:
    """Whether a unit's stop is called because its main process has ended, not to end it (systemd.exec(5), $EXIT_CODE)."""
    return "EXIT_CODE" in os.environ


def path(service: str, pid: int | None = None) -> str | None:
    """The cgroup of a service's unit, if process ``pid`` (default: this one) is in it (proc_pid_cgroup(5))."""
    try:
        with open(
            f"/proc/{pid or 'self'}/cgroup", encoding="utf-8", errors="surrogateescape"
        ) as lines:
            found = [line.rstrip("\n").split(":", 2)[2] for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((each for each in found if each.endswith(f"/{name(service)}")), None)


def logs_to_journal(service: str) -> bool:
    """Whether a conmon that is started now will be in the unit, and journald there."""
    return (service in _stand_ins or path(service) is not None) and os.path.exists(_JOURNAL)


def adopt(pids: list[int], to: str) -> None:
    """Move processes into the cgroup ``to`` in each hierarchy that has it and takes them."""
    for root in cgroup.roots():
        for pid in pids:
            _move(pid, f"{root}{to}")


def _move(pid: int, folder: str) -> None:
    try:
        with open(f"{folder}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(pid))
    except OSError:
        return


def tell(*lines: str) -> None:
    """Tell systemd (``MAINPID=12``, ``READY=1``), and wait until it has heard it. Raises OSError."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_HEARD_S)
        sender.connect(_NOTIFY)
        sender.send("\n".join(lines).encode())
        # "BARRIER=1": systemd closes the descriptor when it has handled what came before (sd_notify_barrier(3))
        read, write = os.pipe()
        try:
            socket.send_fds(sender, [b"BARRIER=1"], [write])
            os.close(write)
            write = -1
            select.select([read], [], [], _HEARD_S)
        finally:
            os.close(read)
            if write >= 0:
                os.close(write)


_stand_ins: dict[str, tuple[int, int, str, int]] = {}
"""service -> (the pipe to its stand-in, the pipe from it, the unit's cgroup, its pid)"""


def stand_in(service: str, conmon: int | None) -> None:
    """Before ``conmon`` ends by hand: put a process in its place in the unit, if it is in one and we are not."""
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
        said = os.read(done, 20)
        _stand_ins[service] = (hold, done, unit, int(said or b"-1"))


def hand_over(service: str, conmon: int | None) -> None:
    """The next conmon is there: the stand-in makes it the unit's main process, and ends."""
    if service not in _stand_ins or conmon is None:
        return
    hold, done, unit, _ = _stand_ins.pop(service)
    try:
        adopt([conmon], unit)
        os.write(hold, f"{conmon}".encode())
        os.close(hold)
        os.read(done, 1)
    except OSError:
        return  # the unit was stopped meanwhile
    finally:
        os.close(done)


def give_back(service: str, conmon: int | None) -> None:
    """Take conmon, and what else is there of the service, out of the unit into the root cgroup; the unit ends, they live on."""
    stand_in(service, conmon)
    if service not in _stand_ins:
        return
    hold, done, unit, standing = _stand_ins.pop(service)
    for root in cgroup.roots():
        for pid in cgroup.pids_in(f"{root}{unit}"):
            if pid != standing:
                _move(pid, root)
    os.close(hold)
    os.read(done, 1)
    os.close(done)


def _stand(unit: str, wait: int, say: int) -> NoReturn:
    """The stand-in: in a second fork, so that its parent is systemd, which then sees how it ends."""
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        keep_only((wait, say))
        heed_signals()
        adopt([os.getpid()], unit)
        tell(f"MAINPID={os.getpid()}")
        os.write(say, f"{os.getpid()}".encode())
        follower = os.read(wait, 20)
        if follower:
            tell(f"MAINPID={follower.decode()}")
    finally:
        os._exit(0)
