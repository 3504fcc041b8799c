"""Run a command in a lab, with a supervisor outside its pid namespace.

The caller forks the supervisor, the supervisor forks the lab's PID 1, and PID 1 forks the command.
The caller forwards signals, gives the terminal to the command and takes it back. The supervisor
cleans up after the command. If the supervisor is killed, the caller cleans up. If both are killed,
the next lab cleans up. If the caller or the supervisor dies, the kernel kills PID 1
(PR_SET_PDEATHSIG, prctl(2)), and with it every process in the lab (pid_namespaces(7)).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from niso.base import paths
from niso.base.errors import Error, UsageError
from niso.base.native import call_libc
from niso.kernel import proc_sys
from niso.kernel.netlink import refused, refusing
from niso.lab import lab_host, user_namespace

HOSTNAME = "niso-lab"
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

_NAMES = "SIGHUP SIGINT SIGQUIT SIGTERM SIGUSR1 SIGUSR2 SIGWINCH"
_PASSED_ON = {signal.Signals[name] for name in _NAMES.split()}
_PARENT_GONE = signal.SIGRTMIN
_WATCHED = _PASSED_ON | {signal.SIGCHLD, signal.SIGTTOU, _PARENT_GONE}
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 1, 24
_DROPPED = (16, 17, 22, 25)
"""Capabilities that the lab's processes do not have.

They are CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT and CAP_SYS_TIME (linux/capability.h).
"""

_NO_LIMITS = "a lab without root has no cgroups: nothing limits the memory and CPU of services"

_NO_BRIDGE_NETFILTER = (
    "without the kernel module br_netfilter, services of one network get no reply from each "
    "other's published ports ('sudo niso lab -- true' loads it)"
)


class _Terminal:
    """The controlling terminal, which is given to the command if possible.

    If the command has its own process group, ``kill 0`` only affects the lab, and Ctrl-C does not
    reach niso. In a pipeline or in the background, the command stays in the shell's process group,
    which needs the terminal.
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

        self.fd = fd
        self._settings = termios.tcgetattr(fd)

    def give(self) -> None:
        """Put this process in the foreground, in a process group of its own if possible."""
        if self.own_group:
            os.setpgid(0, 0)
        if self.fd >= 0:
            os.tcsetpgrp(self.fd, os.getpgrp())

    def take_back(self, status: int) -> None:
        if self.fd < 0:
            return

        with suppress(OSError, termios.error):  # the terminal has hung up
            os.tcsetpgrp(self.fd, os.getpgrp())
            if status > 128:  # killed by a signal: the terminal may still be in raw mode
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self._settings)
        os.close(self.fd)


def run(command: list[str], writable: Iterable[str] = ()) -> int:
    """Run a command in a new lab. Return its exit status.

    The default command is $SHELL, or else /bin/bash. Writes in the folders ``writable`` persist.
    The exit status is 128 + N if signal N killed the command, 126 if it is not executable, and 127
    if it is not found; in the last two cases the reason is printed on stderr. Without root,
    the lab is in a user namespace. Raises Error if the lab cannot be created.
    """
    kept = [_folder(path) for path in writable]
    command = command or [os.environ.get("SHELL") or "/bin/bash"]
    if user_namespace.is_needed():
        user_namespace.enter()
    else:
        with suppress(Error):  # whatever needs the module reports the error
            # Load it outside the lab: inside, its sysctls would not be this machine's.
            proc_sys.load_bridge_netfilter()
    name = lab_host.PREFIX + os.urandom(4).hex()
    folders: list[lab_host.LabCgroup] = []
    if not paths.in_user_namespace():
        lab_host.sweep()
        folders = lab_host.make(name)
    failure_read, failure_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    lab = _Lab(name, folders, command, mask, _Terminal(), kept)
    try:
        caller = os.getpid()
        supervisor = os.fork()
        if supervisor == 0:
            _in_child(failure_write, lambda: _supervise(lab, caller, failure_write))
        os.close(failure_write)
        status = _wait_for(supervisor)
        lab.terminal.take_back(status)
        lab_host.remove(folders)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with open(failure_read, "rb") as file:
        failure = file.read()
    if failure:
        raise Error(*json.loads(failure))
    return status


class _Lab(NamedTuple):
    """The state of a lab that the caller, the supervisor and PID 1 share."""

    name: str
    folders: list[lab_host.LabCgroup]
    command: list[str]
    mask: set[int | signal.Signals]
    """The caller's signal mask."""
    terminal: _Terminal
    writable: list[str]
    """Absolute paths of folders whose changes persist."""


def _folder(path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(f"{path} is not a folder", None, "--write")
    if real == "/":
        raise UsageError("the whole machine cannot be written", "name a folder of it", "--write")
    return real


def _in_child(failure: int, work: Callable[[], int]) -> NoReturn:
    """Run a function in this forked process, and exit with the status that it returns. An error is
    written to the pipe ``failure`` as JSON, [message, hint], for the caller of `run`.
    """
    status = FAILED
    try:
        status = work()
    except Error as error:
        os.write(failure, json.dumps([error.message, error.hint]).encode())
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        known = refused(f"create a lab{where}", error.errno or 0)
        os.write(failure, json.dumps([known.message, known.hint]).encode())
    finally:
        os._exit(status)


def _wait_for(child: int) -> int:
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return _status(status)
        elif info.si_signo == _PARENT_GONE:
            os.kill(child, signal.SIGKILL)
        # The command itself receives signals from the terminal (si_code > 0).
        elif info.si_signo in _PASSED_ON and info.si_code <= 0:
            os.kill(child, info.si_signo)


def _status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _die_with_parent(number: int) -> None:
    with refusing("follow the parent's death"):
        call_libc("prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)


def _supervise(lab: _Lab, caller: int, failure: int) -> int:
    _die_with_parent(_PARENT_GONE)
    if os.getppid() != caller:
        os.kill(os.getpid(), _PARENT_GONE)
    alive = os.pidfd_open(os.getpid())
    os.unshare(os.CLONE_NEWPID)
    first = os.fork()
    if first == 0:
        _in_child(failure, lambda: _run_init(lab, alive))
    os.close(failure)
    # The process that cleans up must not be stopped by the terminal or a signal to the caller's
    # group.
    os.setpgid(0, 0)
    os.chdir("/")
    status = _wait_for(first)
    lab_host.remove(lab.folders)
    return status


def _run_init(lab: _Lab, supervisor: int) -> int:
    """Run the lab's PID 1: set up the lab, run the command, and reap exited processes. Return the
    command's exit status. ``supervisor`` is a pidfd of the supervisor.
    """
    _die_with_parent(signal.SIGKILL)
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    if poll.poll(0):  # the supervisor died before the prctl
        return FAILED
    cgroup_mounts = [] if paths.in_user_namespace() else lab_host.mounts()
    entered = lab_host.enter(lab.folders)
    os.unshare(
        os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWCGROUP
    )
    lab_host.enable_controllers(entered)
    lab_host.build_mounts(lab.name, HOSTNAME, cgroup_mounts, entered, lab.writable)
    socket.sethostname(HOSTNAME)
    segment = lab_host.build_machines()
    if paths.in_user_namespace():
        os.write(2, f"niso: {_NO_LIMITS}\n".encode())
        if not os.path.isdir(f"/proc/sys/{proc_sys.BRIDGE_NETFILTER}"):
            os.write(2, f"niso: {_NO_BRIDGE_NETFILTER}\n".encode())
    for capability in _DROPPED:  # also for programs that the command executes (capabilities(7))
        with suppress(OSError):
            call_libc("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
    environment = _environment()
    child = os.fork()
    if child == 0:
        _execute(lab, environment)
    os.chdir("/")
    status = _reap_until_end(child, lab.terminal)
    os.close(segment)
    return status


def _environment() -> dict[str, str]:
    folders = [key for key in ("TMPDIR", "XDG_RUNTIME_DIR") if key in os.environ]
    missing = [key for key in folders if not os.path.isdir(os.environ[key])]
    dropped = {"NISO_STATE_DIR", "NISO_RUN_DIR", "NISO_POOL", *missing}
    environment = {key: value for key, value in os.environ.items() if key not in dropped}
    own = os.path.join(paths.python_prefix(), "bin")
    folders = environment.get("PATH", os.defpath).split(":")
    environment["PATH"] = ":".join([*folders, *{own}.difference(folders)])
    environment["NISO_LAB"] = "1"
    return environment


def _execute(lab: _Lab, environment: dict[str, str]) -> NoReturn:
    status = FAILED
    command = lab.command
    try:
        lab.terminal.give()
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        for number in _PASSED_ON:
            # A Python handler would swallow a signal that is pending when the mask is restored.
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, lab.mask)
        os.execvpe(command[0], command, environment)
    except OSError as error:
        status = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else NOT_EXECUTABLE
        reason = f"cannot be executed: {(error.strerror or '').lower()}"
        reason = "not found" if status == NOT_FOUND else reason
        os.write(2, f"niso: '{command[0]}' {reason}\n".encode())
    finally:
        os._exit(status)


def _reap_until_end(command: int, terminal: _Terminal) -> int:
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
            # No other process could continue it: the shell outside only sees the caller.
            if terminal.fd >= 0 and os.WSTOPSIG(status) == signal.SIGTSTP:
                os.killpg(command, signal.SIGCONT)
