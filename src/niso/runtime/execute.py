"""``niso exec``: one more command inside a running service, as the service (crun exec).

crun gives whatever it gets as stdin and stdout to the service's user (fchown(2)), so it never gets the caller's: the bytes are
relayed through pipes, or through a terminal of the service's own where the caller has one.
"""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType

from niso.base.errors import ProcessError
from niso.base.lite_typing import TYPE_CHECKING
from niso.runtime import crun, entrypoint, pids, status
from niso.runtime.oci import SHELL_TERM
from niso.runtime.spec import DEFAULT_PATH, read_json, read_state

if TYPE_CHECKING:
    from typing import Any

CANNOT, NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 125, 126, 127, 128
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_BLOCK = 1 << 16
_RETRY_MS = 20
_END_S = 2.0
"""How long a command may take to end after SIGTERM, when nobody gets its output any more."""


def execute(service: str, command: list[str]) -> int:
    """Run ``command`` in a service; its exit status, 128 + N where signal N ended it.

    Stdin, stdout, stderr and signals pass through, and a terminal where stdin and stdout both are one. Raises `ProcessError` with
    exit_status 127 (not found), 126 (not executable) or 125 (all else).
    """
    for fd in (0, 1, 2):
        # A descriptor that is closed would be taken by one of ours. For reading alone: who writes to it gets EBADF as before.
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDONLY)
    now = status.read(service)
    if now.pid is None and now.state == "running":  # it was just ending, or beginning
        time.sleep(0.05)
        now = status.read(service)
    if now.pid is None:
        state = "it is being started or stopped" if now.state == "running" else now.state
        raise _failed(
            CANNOT,
            f"{service} has no running process ({state})",
            f"niso restart {service}, or niso logs {service}",
        )
    record = read_state(service)
    bundle = status.bundle_of(service, int(record["run"]) if record else 0)
    config = read_json(f"{bundle}/config.json")
    if config is None:
        raise _failed(CANNOT, f"{service} is being stopped", None)
    terminal = os.isatty(0) and os.isatty(1)
    what: dict[str, Any] = {**config["process"], "args": command, "terminal": terminal}
    _check(service, now.pid, command[0], what)
    session = _Session(service, f"{bundle}/exec-{os.getpid()}", what)
    try:
        return session.run()
    finally:
        session.close()


def _check(service: str, pid: int, command: str, what: dict[str, Any]) -> None:
    """Look the command up in the running service's root, so that its absence is told from its own exit status."""
    mounts = {"": f"/proc/{pid}/root"}
    environment = dict(entry.split("=", 1) for entry in what["env"])
    if "/" not in command:
        path_env = environment.get("PATH", DEFAULT_PATH)
        found = entrypoint.search(mounts, command, path_env) if command else None
        if found is None:
            raise _failed(
                NOT_FOUND,
                f"{service}: {command!r} is not on its PATH ({path_env})",
                "give the absolute path of a command",
            )
    else:
        found = command if command.startswith("/") else f"{what['cwd'].rstrip('/')}/{command}"
    problem = entrypoint.problem_with(mounts, found)
    if problem is not None:
        missing = problem == "does not exist"
        raise _failed(
            NOT_FOUND if missing else NOT_EXECUTABLE, f"{service}: {command!r} {problem}", None
        )


class _Session:
    """One crun exec and the bytes that go to and fro."""

    def __init__(self, service: str, stem: str, what: dict[str, Any]) -> None:
        self._service = service
        self._stem = stem
        self._what = what
        self._terminal = bool(what["terminal"])
        self._signals: list[int] = []
        self._saved_tty: list[Any] | None = None
        self._old: dict[int, Any] = {}
        self._pidfd = -1
        self._pid = 0
        self._master = -1
        self._to_write = b""
        self._sink = -1
        self._sources: dict[int, int] = {}
        self._started = False

    def run(self) -> int:
        for number in FORWARDED:
            self._old[number] = signal.signal(number, self._note)
        if self._terminal:
            self._spawn_on_terminal()
        else:
            self._spawn_on_pipes()
        try:
            self._relay()
        except OSError as error:
            self._end_command()
            raise _failed(
                CANNOT, f"{self._service}: cannot write its output: {error.strerror}", None
            ) from error
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        with open(f"{self._stem}.log", "rb") as file:
            words = crun.plain_message(file.read(_BLOCK))
        if words:
            raise self._refused(words)
        return SIGNALLED - code if code < 0 else code

    def close(self) -> None:
        """Give the terminal and the signals back, and leave no file or descriptor."""
        if self._saved_tty is not None:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, self._saved_tty)
        for number, before in self._old.items():
            signal.signal(number, before)
        for fd in {self._pidfd, self._sink, self._master, *self._sources}:
            if fd >= 0:
                os.close(fd)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        for end in ("json", "pid", "log", "sock"):
            try:
                os.unlink(f"{self._stem}.{end}")
            except FileNotFoundError:
                continue

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _resized(self, *_: object) -> None:
        import fcntl
        import termios

        if self._master >= 0:
            fcntl.ioctl(
                self._master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            )

    def _spawn(self, more: list[str], stdin: int, stdout: int, stderr: int) -> None:
        from niso.runtime.spec import write_json

        write_json(f"{self._stem}.json", self._what)
        os.close(os.open(f"{self._stem}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        argv = ["crun", f"--root={crun.state_dir()}", f"--log=file:{self._stem}.log", "exec"]
        argv += ["--process", f"{self._stem}.json", "--pid-file", f"{self._stem}.pid", *more]
        argv.append(crun.container_id(self._service))
        actions = [
            (os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, stdout, stderr))
        ]
        # A process group of its own: what the terminal sends to ours, niso forwards.
        self._pid = os.posix_spawn(
            crun.tool("crun"), argv, crun.environment(), file_actions=actions, setpgroup=0
        )
        self._pidfd = os.pidfd_open(self._pid)

    def _spawn_on_pipes(self) -> None:
        stdin, self._sink = os.pipe()
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        self._sources = {out: 1, err: 2}
        os.set_blocking(self._sink, False)
        try:
            self._spawn([], stdin, stdout, stderr)
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)

    def _spawn_on_terminal(self) -> None:
        import socket
        import tty

        rows, columns = os.get_terminal_size(0)[::-1]
        self._what["consoleSize"] = {"height": rows, "width": columns}
        names = [entry.partition("=")[0] for entry in self._what["env"]]
        if "TERM" not in names:
            self._what["env"] = [*self._what["env"], f"TERM={os.environ.get('TERM') or SHELL_TERM}"]
        folder, name = os.path.split(f"{self._stem}.sock")
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # By the descriptor: a socket's path has at most 107 bytes (unix(7)).
        address = f"/proc/{os.getpid()}/fd/{folder_fd}/{name}"
        nothing, end = os.pipe()
        words, say = os.pipe()
        os.close(end)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen(1)
            try:
                self._spawn(["--tty", "--console-socket", address], nothing, say, say)
            finally:
                os.close(nothing)
                os.close(say)
            poll = select.poll()
            poll.register(listener.fileno(), select.POLLIN)
            poll.register(self._pidfd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if listener.fileno() in ready:
                with listener.accept()[0] as connection:
                    _, descriptors, _, _ = socket.recv_fds(connection, 256, 1)
                self._master = descriptors[0] if descriptors else -1
        os.close(folder_fd)
        os.close(words)
        if self._master < 0:
            return
        import termios

        self._saved_tty = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        self._old[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resized)
        self._resized()
        os.set_blocking(self._master, False)
        self._sink = self._master
        self._sources = {self._master: 1}

    def _relay(self) -> None:
        """Until crun ends: stdin in, outputs out, signals on. Then what is still in the pipes."""
        stdin_open = self._sink >= 0
        while True:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            self._started = self._started or os.path.exists(f"{self._stem}.pid")
            for fd in self._sources:
                # Until the command has started only crun writes there, and what it says is told from its log.
                if self._started or self._sources[fd] != 2:
                    poll.register(fd, select.POLLIN)
            if self._sink >= 0 and self._to_write:
                poll.register(
                    self._sink,
                    select.POLLOUT | (select.POLLIN if self._sink in self._sources else 0),
                )
            elif self._sink >= 0 and stdin_open:
                poll.register(0, select.POLLIN)
            ready = dict(poll.poll(1000 if self._started and not self._signals else _RETRY_MS))
            self._forward()
            if ready.get(self._sink, 0) & (select.POLLOUT | select.POLLERR):
                self._feed()
            if 0 in ready:
                stdin_open = self._take()
            for fd in [fd for fd in self._sources if ready.get(fd, 0) & ~select.POLLOUT]:
                self._pass_on(fd)
            if self._pidfd in ready:
                refused = not self._started and os.path.getsize(f"{self._stem}.log") > 0
                for fd in [
                    fd for fd, target in self._sources.items() if target != 2 or not refused
                ]:
                    os.set_blocking(fd, False)
                    while fd in self._sources and self._pass_on(fd):
                        pass
                return

    def _take(self) -> bool:
        """Read stdin once; whether there may be more."""
        try:
            self._to_write = os.read(0, _BLOCK)
        except BlockingIOError:
            return True
        except OSError:
            self._to_write = b""
        if not self._to_write:
            if not self._terminal:
                os.close(self._sink)
                self._sink = -1
            return False
        self._feed()
        return True

    def _feed(self) -> None:
        try:
            self._to_write = self._to_write[os.write(self._sink, self._to_write) :]
        except BlockingIOError:
            return
        except OSError:
            # The command reads no more: neither do we.
            self._to_write = b""
            if not self._terminal:
                os.close(self._sink)
            self._sink = -1

    def _pass_on(self, fd: int) -> bool:
        """Move one block from the command to where it belongs; False at the end and where there is none now."""
        try:
            block = os.read(fd, _BLOCK)
        except BlockingIOError:
            return False
        except OSError:
            block = b""  # EIO: the last one has closed the terminal (pty(7))
        if block and _write_all(self._sources[fd], block):
            return True
        # At the end, or nobody reads us any more: then the command gets its SIGPIPE.
        del self._sources[fd]
        if fd != self._master:
            os.close(fd)
        return False

    def _forward(self) -> None:
        if not self._signals:
            return
        try:
            with open(f"{self._stem}.pid", encoding="ascii") as file:
                pid = int(file.read())
            target = os.pidfd_open(pid)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return
        try:
            # The number may be another's by now; crun's child it is only as long as crun waits for it.
            while self._signals and pids.in_service(self._service, pid):
                signal.pidfd_send_signal(target, self._signals.pop(0))
        except ProcessLookupError:
            return
        finally:
            os.close(target)

    def _end_command(self) -> None:
        """TERM, then KILL: nobody gets what it writes. `close` ends crun."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signals = [number]
            deadline = time.monotonic() + _END_S
            while time.monotonic() < deadline:
                self._forward()
                if pids.wait_readable(self._pidfd, _RETRY_MS / 1000):
                    return

    def _refused(self, words: str) -> ProcessError:
        if not os.path.exists(
            os.path.join(crun.state_dir(), crun.container_id(self._service), "status")
        ):
            hint = f"niso restart {self._service}"
            return _failed(
                CANNOT, f"{self._service}: crun does not know it any more: {words}", hint
            )
        if "Permission denied" in words:
            return _failed(NOT_EXECUTABLE, f"{self._service}: {words}", None)
        if "executable file" in words or "No such file" in words:
            return _failed(NOT_FOUND, f"{self._service}: {words}", None)
        return _failed(CANNOT, f"{self._service}: crun exec: {words}", None)


def _write_all(fd: int, data: bytes) -> bool:
    """Write all of ``data``, also to a descriptor that somebody has made non-blocking; False where nobody reads it. Raises OSError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except BrokenPipeError:
            return False
    return True


def _failed(status: int, message: str, hint: str | None) -> ProcessError:
    error = ProcessError(message, hint)
    error.exit_status = status
    return error
