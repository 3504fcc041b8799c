"""Probe a service's health with a command that runs inside it, as its user and within its limits.

crun exec runs the command. Only the end of its output is kept, in memory: the output may contain
secrets, and no other user may read it. crun changes the owner of its stdin and stdout, so these are
pipes.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

from niso.base.errors import Error
from niso.base.signals import signals_held
from niso.plan.records import Healthcheck
from niso.runtime import crun, execute, pids
from niso.runtime.health_probe import Probe
from niso.runtime.spec import write_json
from niso.runtime.status import describe_exit

_BLOCK = 1 << 16
_KEPT, _LINE = 4096, 200
"""Bytes of output that are kept, and the most characters of a line that are shown."""


class CommandProbe(Probe):
    """A running command. ``fd`` becomes ready when the command has ended or has written output."""

    def __init__(self, check: Healthcheck, service: str) -> None:
        """Start the command.

        A service without a process counts as a failed probe, not as an error.
        """
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd, self.events = -1, select.POLLIN
        self.answer: str | None = None
        self._check, self._service = check, service
        self._pid, self._pidfd, self._output = 0, -1, -1
        self._stem = ""
        self._tail = b""
        try:
            self._start()
        except (Error, OSError) as error:
            self._free()
            reason = error.detail if isinstance(error, Error) else os.strerror(error.errno or 0)
            self.answer = f"{check.target}: {reason}"

    def _start(self) -> None:
        stem, process = execute.prepare(self._service, list(self._check.command))
        # several probes of one service may run at once: of this niso and of another one
        self._stem = f"{stem}-{time.monotonic_ns()}"
        write_json(f"{self._stem}.json", process)
        os.close(os.open(f"{self._stem}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        argv = ["crun", f"--root={crun.state_dir()}", f"--log=file:{self._stem}.log", "exec"]
        argv += ["--process", f"{self._stem}.json", "--pid-file", f"{self._stem}.pid"]
        argv.append(crun.container_id(self._service))
        stdin, end = os.pipe()
        self._output, output = os.pipe()
        os.close(end)
        os.set_blocking(self._output, False)
        actions = [
            (os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, output, output))
        ]
        try:
            with signals_held():  # a signal in between would leave a child that no code reaps
                self._pid = os.posix_spawn(
                    crun.tool("crun"),
                    argv,
                    crun.environment(),
                    file_actions=actions,
                    setpgroup=0,
                    setsigmask=(),
                )
            self._pidfd = os.pidfd_open(self._pid)
        finally:
            os.close(stdin)
            os.close(output)
        ready = select.epoll()
        self.fd = os.dup(ready.fileno())
        ready.register(self._pidfd, select.EPOLLIN)
        ready.register(self._output, select.EPOLLIN)
        ready.close()

    def go_on(self) -> None:
        """Read the command's output, and its exit status if it has ended.

        Processes that the command has started are killed when it ends.
        """
        if self.answer is not None:
            return
        is_over = pids.wait_readable(self._pidfd, 0)
        if self._output >= 0:
            with suppress(BlockingIOError):
                block = os.read(self._output, _BLOCK)
                self._tail = (self._tail + block)[-_KEPT:]
                if not block:  # the command has closed its output, and may still run
                    self._forget_output()
        if not is_over:
            return
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        self._end_group()
        with open(f"{self._stem}.log", "rb") as file:
            refusal = crun.plain_message(file.read(_BLOCK))
        self._free()
        if refusal:
            self.answer = f"{self._check.target}: {refusal}"
        else:
            code = 128 - code if code < 0 else code
            self.answer = f"{self._check.target}: {describe_exit(code)}" if code else ""

    @property
    def said(self) -> str:
        """The last line of the command's output, printable."""
        lines = self._tail.decode("utf-8", "replace").split("\n")
        last = next((line for line in map(str.strip, reversed(lines)) if line), "")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in last[-_LINE:])

    def give_up_if_late(self) -> None:
        """Kill the command if its deadline has passed."""
        if self.answer is None and time.monotonic() >= self.deadline:
            self.close()
            late = f"has not ended within {self._check.timeout_s:g}s"
            self.answer = f"{self._check.target}: {late}"

    def _forget_output(self) -> None:
        ready = select.epoll.fromfd(os.dup(self.fd))
        ready.unregister(self._output)
        ready.close()
        os.close(self._output)
        self._output = -1

    def close(self) -> None:
        """Kill the command and its process group if it still runs, and release all resources."""
        if self._pid:
            self._kill()
        self._free()

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        _, state = os.waitpid(self._pid, os.WUNTRACED)
        if not os.WIFSTOPPED(state):
            self._pid = 0
            return
        # crun is stopped and reaps no child, so the pid below cannot be reused
        with suppress(OSError, ValueError):
            with open(f"{self._stem}.pid", encoding="ascii") as file:
                pid = int(file.read())
            if pids.in_service(self._service, pid):
                os.kill(pid, signal.SIGKILL)
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0

    def _end_group(self) -> None:
        """Kill the rest of the process group of a command that has ended.

        While a process is in the group, no other process group gets its number (free_pid,
        kernel/pid.c).
        """
        leader = pids.read_pid(f"{self._stem}.pid")
        for pid in pids.in_group(self._service, leader) if leader is not None else ():
            pidfd = pids.open_in_service(self._service, pid)
            if pidfd >= 0:
                pids.send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)

    def _free(self) -> None:
        for fd in (self.fd, self._pidfd, self._output):
            if fd >= 0:
                os.close(fd)
        self.fd = self._pidfd = self._output = -1
        for suffix in ("json", "pid", "log") if self._stem else ():
            with suppress(FileNotFoundError):
                os.unlink(f"{self._stem}.{suffix}")
