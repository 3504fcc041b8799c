"""Run as the command of a test's lab, and start what the test asks for (see `conftest.Lab`).

fd 0 is a SOCK_SEQPACKET socket. A request is JSON: ``{"argv", "env", "cwd", "netns", "tty"}`` with four descriptors (stdin,
stdout, stderr, and a socket that gets ``pid N`` and at the end ``exit N``), or ``{"kill": pid, "signal": number}``. Started
from here a command is in all of the lab's namespaces and cgroups, which a test process could not enter without leaving its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios


def serve(deadline_seconds: int) -> None:
    signal.alarm(deadline_seconds)
    control = socket.socket(fileno=os.dup(0))
    os.set_inheritable(control.fileno(), False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    control.send(b"ready")
    while True:
        ready, _, _ = select.select([control, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            reap(children)
        if control in ready:
            message, fds, _, _ = socket.recv_fds(control, 1 << 20, 4)
            for fd in fds:
                os.set_inheritable(fd, False)
            if not message:
                return
            request = json.loads(message)
            if "kill" in request:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(request["kill"], request["signal"])
                continue
            status = socket.socket(fileno=fds[3])
            started_read, started_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                start(request, fds)
            children[pid] = status
            os.close(started_write)
            os.read(
                started_read, 1
            )  # ends when the command has been executed, and can be killed as a group
            os.close(started_read)
            status.send(b"pid %d" % pid)
            for fd in fds[:3]:
                os.close(fd)


def reap(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with contextlib.suppress(OSError):  # where the test no longer listens
            children[pid].send(b"exit %d" % os.waitstatus_to_exitcode(status))
        children.pop(pid).close()


def start(request: dict, fds: list[int]) -> None:
    try:
        signal.set_wakeup_fd(-1)
        signal.alarm(0)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        if request["tty"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if request["netns"]:
            os.setns(os.open(f"/run/netns/{request['netns']}", os.O_RDONLY), os.CLONE_NEWNET)
        os.chdir(request["cwd"])
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
