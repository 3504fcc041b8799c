"""The lab's processes: the caller, a supervisor outside the lab's pid namespace, the lab's PID 1, and the command.

    caller ── supervisor ── PID 1 ── command

The caller passes signals on and gives the terminal away and back. The supervisor cleans up, also when the caller is
killed; when the supervisor is killed, the caller does, and when both are, the next lab. Whichever dies, the kernel kills
PID 1 (PR_SET_PDEATHSIG) and with it all that is in the lab (pid_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from niso.base.errors import NisoError
from niso.commands.lab import cgroups, machines, mounts
from niso.kernel import modules
from niso.kernel.netlink import refused

HOSTNAME = "niso-lab"
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

_PASSED_ON = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
}
_PARENT_GONE = signal.SIGRTMIN
_WATCHED = _PASSED_ON | {signal.SIGCHLD, signal.SIGTTOU, _PARENT_GONE}
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Terminal:
    """Whether the command gets a process group of its own, and whether that is the terminal's foreground one.

    A group of its own keeps ``kill 0`` in the lab and Ctrl-C away from us. In a pipeline, or in the background, the shell's
    group must stay the terminal's, and the command stays in it.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.own_group = True
        try:
            fd = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return
        self.own_group = os.tcgetpgrp(fd) == os.getpgrp() and os.isatty(0) and os.isatty(1)
        if not self.own_group:
            os.close(fd)
            return
        import termios

        self.fd = fd
        self._settings = termios.tcgetattr(fd)

    def give(self) -> None:
        """To be called by the command's process."""
        if self.own_group:
            os.setpgid(0, 0)
        if self.fd >= 0:
            os.tcsetpgrp(self.fd, os.getpgrp())

    def take_back(self, status: int) -> None:
        if self.fd < 0:
            return
        import termios

        os.tcsetpgrp(self.fd, os.getpgrp())
        if status > 128:  # killed: it may have left the terminal raw
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._settings)
        os.close(self.fd)


def run(command: list[str]) -> int:
    """Run ``command`` (default: $SHELL, else /bin/bash) in a new lab; its exit status, 128+N where signal N ended it.

    126 where the command is not executable, 127 where it is not found (both said on stderr). Needs root. Raises NisoError
    where the lab could not be made.
    """
    command = command or [os.environ.get("SHELL") or "/bin/bash"]
    try:
        modules.load_bridge_netfilter()  # here: in the lab, the sysctls that come with it are not this machine's
    except NisoError:
        pass  # what needs it says so
    cgroups.sweep()
    name = cgroups.PREFIX + os.urandom(4).hex()
    folders = cgroups.make(name)
    failure_read, failure_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    terminal = _Terminal()
    try:
        caller = os.getpid()
        supervisor = os.fork()
        if supervisor == 0:
            _in_child(
                failure_write,
                lambda: _supervise(caller, name, folders, command, mask, terminal, failure_write),
            )
        os.close(failure_write)
        status = _wait_for(supervisor)
        terminal.take_back(status)
        cgroups.remove(folders)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with open(failure_read, "rb") as file:
        failure = file.read()
    if failure:
        raise NisoError(*json.loads(failure))
    return status


def _in_child(failure: int, work: Callable[[], int]) -> NoReturn:
    """Run ``work`` in a process just forked and exit with its result; its failure goes to the caller of `run`."""
    status = FAILED
    try:
        status = work()
    except NisoError as error:
        os.write(failure, json.dumps([error.message, error.hint]).encode())
    except OSError as error:
        known = refused(
            f"make a lab ({error.filename})" if error.filename else "make a lab", error.errno or 0
        )
        os.write(failure, json.dumps([known.message, known.hint]).encode())
    finally:
        os._exit(status)


def _wait_for(child: int) -> int:
    """Pass signals on until ``child`` has ended; its exit status, or 128+N."""
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _status(status)
        elif info.si_signo == _PARENT_GONE:
            os.kill(child, signal.SIGKILL)
        # What the terminal sends (si_code > 0) the command gets by itself.
        elif info.si_signo in _PASSED_ON and info.si_code <= 0:
            os.kill(child, info.si_signo)


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _die_with_parent(number: int) -> None:
    if _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise refused("follow the parent's death", ctypes.get_errno())


def _supervise(
    caller: int,
    name: str,
    folders: list[cgroups.Folder],
    command: list[str],
    mask: set[int | signal.Signals],
    terminal: _Terminal,
    failure: int,
) -> int:
    _die_with_parent(_PARENT_GONE)
    if os.getppid() != caller:
        os.kill(os.getpid(), _PARENT_GONE)
    alive = os.pidfd_open(os.getpid())
    os.unshare(os.CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        _in_child(failure, lambda: _first(alive, name, folders, command, mask, terminal))
    os.close(failure)
    # Neither the terminal nor a signal to the caller's group may stop the one who cleans up.
    os.setpgid(0, 0)
    os.chdir("/")
    status = _wait_for(first)
    cgroups.remove(folders)
    return status


def _first(
    alive: int,
    name: str,
    folders: list[cgroups.Folder],
    command: list[str],
    mask: set[int | signal.Signals],
    terminal: _Terminal,
) -> int:
    """The lab's PID 1: makes the lab, runs ``command``, reaps; its end is the end of all in the lab."""
    _die_with_parent(signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:  # too late: it has died already
        return FAILED
    cgroup_mounts = cgroups.mounts()
    entered = cgroups.enter(folders)
    os.unshare(
        os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWCGROUP
    )
    cgroups.settle(entered)
    extra = mounts.build(name, cgroup_mounts, entered)
    socket.sethostname(HOSTNAME)
    segment = machines.build()
    environment = _environment(extra)
    child = os.fork()
    if child == 0:
        _execute(command, environment, mask, terminal)
    os.chdir("/")
    status = _reap_until_end(child, terminal)
    os.close(segment)
    return status


def _environment(extra: dict[str, str]) -> dict[str, str]:
    dropped = {"NISO_STATE_DIR", "NISO_RUN_DIR", "NISO_POOL"}
    dropped |= {
        key for key in ("TMPDIR", "XDG_RUNTIME_DIR") if not os.path.isdir(os.environ.get(key, "/"))
    }
    environment = {key: value for key, value in os.environ.items() if key not in dropped} | extra
    own = os.path.join(sys.prefix, "bin")
    folders = environment.get("PATH", os.defpath).split(":")
    environment["PATH"] = ":".join(
        [*folders, *(folder for folder in (own,) if folder not in folders)]
    )
    environment["NISO_LAB"] = "1"
    return environment


def _execute(
    command: list[str],
    environment: dict[str, str],
    mask: set[int | signal.Signals],
    terminal: _Terminal,
) -> NoReturn:
    status = FAILED
    try:
        terminal.give()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        for number in _PASSED_ON:
            if callable(
                signal.getsignal(number)
            ):  # or a signal on the way to the command would end here
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(command[0], command, environment)
    except OSError as error:
        status = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        reason = (
            "not found"
            if status == NOT_FOUND
            else f"cannot be executed: {(error.strerror or '').lower()}"
        )
        os.write(2, f"niso: '{command[0]}' {reason}\n".encode())
    finally:
        os._exit(status)


def _reap_until_end(command: int, terminal: _Terminal) -> int:
    """Reap every process that ends and pass signals on; the exit status of ``command``, or 128+N."""
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo in _PASSED_ON:
            os.kill(command, info.si_signo)
        if info.si_signo != signal.SIGCHLD:
            continue
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if ended == 0:
                break
            if ended != command:
                continue
            if not os.WIFSTOPPED(status):
                return _status(status)
            # Nobody could continue it: the shell outside sees only the caller.
            if terminal.fd >= 0 and os.WSTOPSIG(status) == signal.SIGTSTP:
                os.killpg(command, signal.SIGCONT)
