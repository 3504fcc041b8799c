"""Run a command inside a running service, as the service's user (``niso exec``, crun exec).

crun changes the owner of its stdin and stdout to the service's user (fchown(2)). To preserve the
owner of the caller's files, niso passes pipes to crun, or a new terminal if the caller has one, and
copies the bytes.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import termios
import threading
import time
import tty
from collections.abc import Sequence
from contextlib import closing, suppress
from types import FrameType

from niso.base.errors import InvalidInput, ProcessError
from niso.base.named_tuples import TYPE_CHECKING
from niso.plan.specs import ProcessUser
from niso.runtime import crun, entrypoint
from niso.runtime.crun import DEFAULT_PATH, load, read_json, read_state, write_json
from niso.runtime.oci import SHELL_TERM
from niso.runtime.status import bundle_of, read

if TYPE_CHECKING:
    from typing import Any


CANNOT, NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 125, 126, 127, 128
_NAMES = "SIGTERM SIGINT SIGHUP SIGQUIT SIGUSR1 SIGUSR2"
FORWARDED = tuple(signal.Signals[name] for name in _NAMES.split())
_BLOCK = 1 << 16
_RETRY_MS = 20
_END_S = 2.0
"""Seconds that a command may take to exit after SIGTERM if its output cannot be written."""


def execute(
    service: str,
    command: list[str],
    user: ProcessUser | None = None,
    files: tuple[int, int, int] = (0, 1, 2),
    forwarded: tuple[int, ...] = FORWARDED,
) -> int:
    """Run a command in a service, and return its exit status: 128 + N after signal N.

    The command runs as ``user``, by default as the service's user, with the service's capabilities
    and limits. ``files`` are the command's stdin, stdout and stderr, by default the caller's.
    Signals in ``forwarded`` are passed to the command. The command gets a terminal if both stdin
    and stdout are terminals. Raises `ProcessError` with exit_status 127 (command not found), 126
    (not executable) or 125 (other).
    """
    for fd in (0, 1, 2):
        # Occupy the number of a closed standard descriptor, so that no other file gets it.
        # Read-only: a write still fails with EBADF.
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDONLY)
    stem, oci_process = prepare(service, command, user)
    oci_process["terminal"] = os.isatty(files[0]) and os.isatty(files[1])
    with closing(_Session(service, stem, oci_process, files)) as session:
        return session.run(forwarded)


def capture(
    service: str, command: list[str], stdin: bytes = b"", user: ProcessUser | None = None
) -> tuple[int, bytes, bytes]:
    """Run a command in a service. Return its exit status, its stdout and its stderr. No signal is
    forwarded, so any thread can call this function. Raises the errors of `execute`.
    """
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        _write_all(files[0], stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        status = execute(service, command, user, (files[0], files[1], files[2]), ())
        written = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in files[1:]]
    finally:
        for fd in files:
            os.close(fd)
    return status, written[0], written[1]


def prepare(
    service: str, command: list[str], user: ProcessUser | None = None
) -> tuple[str, dict[str, Any]]:
    """Prepare to run a command in a service with crun exec.

    Returns the path prefix of the run's temporary files, and the process object for crun (OCI
    runtime-spec, config.md, Process). Raises the errors of `execute`.
    """
    now = read(service)
    if now.pid is None and now.state == "running":  # the service is starting or stopping
        time.sleep(0.05)
        now = read(service)
    if now.pid is None:
        state = "it is being started or stopped" if now.state == "running" else now.state
        hint = f"niso logs {service} shows what it wrote; a restart starts it again"
        raise _failed(CANNOT, f"{service} has no running process ({state})", hint)
    record = read_state(service)
    bundle = bundle_of(service, int(record["run"]) if record else 0)
    config = read_json(f"{bundle}/config.json")
    if config is None:
        raise _failed(CANNOT, f"{service} is being stopped")
    oci_process: dict[str, Any] = {**config["process"], "args": command, "terminal": False}
    if user is not None:
        _become(service, user, oci_process)
    _check_command(service, now.pid, command[0], oci_process)
    return f"{bundle}/exec-{os.getpid()}-{threading.get_ident()}", oci_process


def _become(service: str, user: ProcessUser, oci_process: dict[str, Any]) -> None:
    """Set the user, the groups and HOME in a process object (OCI runtime-spec, config.md, User).
    The user is looked up in the rootfs or on the host, not in files that the service may have
    written.
    """
    spec = load(service)
    if spec is None:
        raise _failed(CANNOT, f"{service} is being stopped")
    try:
        uid, gid, groups, _, home = entrypoint.resolve_user(spec.rootfs, user, spec.uid, service)
    except InvalidInput as error:
        raise _failed(CANNOT, f"{service}: user {error.reason}", error.hint) from error
    ids = {"uid": uid, "gid": gid, "additionalGids": list(groups)}
    oci_process["user"] = {**oci_process["user"], **ids}
    if "HOME" not in spec.environment:
        kept = [entry for entry in oci_process["env"] if not entry.startswith("HOME=")]
        oci_process["env"] = [*kept, f"HOME={home}"]


def _check_command(service: str, pid: int, command: str, oci_process: dict[str, Any]) -> None:
    """Raise `ProcessError` if a command does not exist in a service, or cannot be executed. ``pid``
    is a process of the service. Without this check, a missing command would look like a command
    that exits with status 127.
    """
    mounts = {"": f"/proc/{pid}/root"}
    environment = dict(entry.split("=", 1) for entry in oci_process["env"])
    if "/" not in command:
        path_env = environment.get("PATH", DEFAULT_PATH)
        path = entrypoint.search(mounts, command, path_env) if command else None
        if path is None:
            reason = f"{service}: {command!r} is not on its PATH ({path_env})"
            raise _failed(NOT_FOUND, reason, "use the absolute path of a command")
    else:
        folder = oci_process["cwd"].rstrip("/")
        path = command if command.startswith("/") else f"{folder}/{command}"
    problem = entrypoint.problem_with(mounts, path)
    if problem is not None:
        exit_status = NOT_FOUND if problem.missing else NOT_EXECUTABLE
        raise _failed(exit_status, f"{service}: {command!r} {problem.text}")


def spawn(
    service: str,
    stem: str,
    oci_process: dict[str, Any],
    files: Sequence[int],
    options: Sequence[str] = (),
    **settings: Any,
) -> int:
    """Start crun exec in a new process group, and return its pid.

    ``stem`` and ``oci_process`` are the results of `prepare`. ``files`` are the command's stdin,
    stdout and stderr. ``options`` are further options for crun, and ``settings`` are arguments for
    posix_spawn.
    """
    write_json(f"{stem}.json", oci_process)
    os.close(os.open(f"{stem}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    argv = ["crun", f"--root={crun.state_dir()}", f"--log=file:{stem}.log", "exec"]
    argv += ["--process", f"{stem}.json", "--pid-file", f"{stem}.pid", *options]
    argv.append(crun.container_id(service))
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(files)]
    # A group of its own: niso forwards the signals that the terminal sends to niso's group.
    settings |= {"file_actions": actions, "setpgroup": 0}
    return os.posix_spawn(crun.tool("crun"), argv, crun.environment(), **settings)


class _Session:
    """One run of crun exec, with its input, output and signals copied by niso.

    ``stem`` is the path prefix of its temporary files. ``oci_process`` is its process object.
    ``files`` are the caller's stdin, stdout and stderr.
    """

    def __init__(
        self, service: str, stem: str, oci_process: dict[str, Any], files: tuple[int, int, int]
    ) -> None:
        self._files = files
        self._service = service
        self._stem = stem
        self._process = oci_process
        self._terminal = bool(oci_process["terminal"])
        self._signals: list[int] = []
        """Numbers of the signals that were received and not yet forwarded."""
        self._saved_tty: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        """The caller's signal handlers by signal number, to be restored."""
        self._pid, self._pidfd = 0, -1
        """The crun process. The pid is 0 after its exit status was read."""
        self._master = -1
        self._to_write = b""
        """Bytes that were read from stdin and not yet written to the command."""
        self._sink = -1
        """Descriptor for the command's stdin; -1 after it was closed."""
        self._sources: dict[int, int] = {}
        """Maps the descriptor of each output of the command to its number: 1 for stdout, 2 for
        stderr.
        """
        self._started = False

    def run(self, forwarded: tuple[int, ...]) -> int:
        for number in forwarded:
            self._handlers[number] = signal.signal(number, self._note)
        if self._terminal:
            self._spawn_on_terminal()
        else:
            self._spawn_on_pipes()
        try:
            self._relay()
        except OSError as error:
            self._end_command()
            reason = f"{self._service}: cannot write its output: {error.strerror}"
            raise _failed(CANNOT, reason) from error
        _, wait_status = os.waitpid(self._pid, 0)
        self._pid = 0
        code = os.waitstatus_to_exitcode(wait_status)
        with open(f"{self._stem}.log", "rb") as file:
            reply = crun.plain_message(file.read(_BLOCK))
        if reply:
            raise self._refused(reply)
        return SIGNALLED - code if code < 0 else code

    def close(self) -> None:
        if self._saved_tty is not None:
            with suppress(termios.error):  # it has hung up
                termios.tcsetattr(0, termios.TCSADRAIN, self._saved_tty)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for fd in {self._pidfd, self._sink, self._master, *self._sources}:
            if fd >= 0:
                os.close(fd)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        for suffix in ("json", "pid", "log", "sock"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._stem}.{suffix}")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _resize(self, *_: object) -> None:
        if self._master >= 0:
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _spawn(self, options: list[str], *files: int) -> None:
        self._pid = spawn(self._service, self._stem, self._process, files, options)
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
        """Start crun exec on a new terminal, and set the caller's terminal to raw mode."""
        rows, columns = os.get_terminal_size(0)[::-1]
        self._process["consoleSize"] = {"height": rows, "width": columns}
        environment = self._process["env"]
        if not any(entry.startswith("TERM=") for entry in environment):
            term = os.environ.get("TERM") or SHELL_TERM
            self._process["env"] = [*environment, f"TERM={term}"]
        self._master = self._receive_master()
        if self._master < 0:
            return
        self._saved_tty = termios.tcgetattr(0)
        tty.setraw(0, termios.TCSADRAIN)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resize)
        self._resize()
        os.set_blocking(self._master, False)
        self._sink = self._master
        self._sources = {self._master: 1}

    def _receive_master(self) -> int:
        """Start crun exec and return the master descriptor of its terminal, or -1 if crun fails."""
        folder, name = os.path.split(f"{self._stem}.sock")
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Through the descriptor: the path of a socket has at most 107 bytes (unix(7)).
        address = f"/proc/{os.getpid()}/fd/{folder_fd}/{name}"
        empty, empty_end = os.pipe()
        discarded, output = os.pipe()
        os.close(empty_end)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen(1)
            try:
                self._spawn(["--tty", "--console-socket", address], empty, output, output)
            finally:
                os.close(empty)
                os.close(output)
            poll = select.poll()
            poll.register(listener.fileno(), select.POLLIN)
            poll.register(self._pidfd, select.POLLIN)
            descriptors: list[int] = []
            if listener.fileno() in {fd for fd, _ in poll.poll()}:
                with listener.accept()[0] as connection:
                    _, descriptors, _, _ = socket.recv_fds(connection, 256, 1)
        os.close(folder_fd)
        os.close(discarded)
        return descriptors[0] if descriptors else -1

    def _relay(self) -> None:
        """Copy input, output and signals until crun exits, and then the rest of the output."""
        stdin_open = self._sink >= 0
        while True:
            self._started = self._started or os.path.exists(f"{self._stem}.pid")
            poll = self._poll(stdin_open)
            ready = dict(poll.poll(1000 if self._started and not self._signals else _RETRY_MS))
            self._forward()
            if ready.get(self._sink, 0) & (select.POLLOUT | select.POLLERR):
                self._feed()
            if self._files[0] in ready:
                stdin_open = self._take()
            for fd in [fd for fd in self._sources if ready.get(fd, 0) & ~select.POLLOUT]:
                self._pass_on(fd)
            if self._pidfd in ready:
                self._drain()
                return

    def _poll(self, stdin_open: bool) -> select.poll:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        for fd, target in self._sources.items():
            # Before the command starts, only crun writes to stderr, and its log has the same
            # messages.
            if self._started or target != 2:
                poll.register(fd, select.POLLIN)
        if self._sink >= 0 and self._to_write:
            events = select.POLLIN if self._sink in self._sources else 0
            poll.register(self._sink, select.POLLOUT | events)
        elif self._sink >= 0 and stdin_open:
            poll.register(self._files[0], select.POLLIN)
        return poll

    def _drain(self) -> None:
        failed = not self._started and os.path.getsize(f"{self._stem}.log") > 0
        for fd in [fd for fd, target in self._sources.items() if target != 2 or not failed]:
            os.set_blocking(fd, False)
            while fd in self._sources and self._pass_on(fd):
                pass

    def _take(self) -> bool:
        try:
            self._to_write = os.read(self._files[0], _BLOCK)
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
            self._to_write = b""
            if not self._terminal:
                os.close(self._sink)
            self._sink = -1

    def _pass_on(self, fd: int) -> bool:
        try:
            block = os.read(fd, _BLOCK)
        except BlockingIOError:
            return False
        except OSError:
            block = b""  # EIO: no process has the terminal open any more (pty(7))
        if block and _write_all(self._files[self._sources[fd]], block):
            return True
        # At the end, or niso's own reader has closed: closing makes the command get SIGPIPE.
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
            # The pid may be recycled by now: check it after the open.
            while self._signals and crun.in_service(self._service, pid):
                signal.pidfd_send_signal(target, self._signals.pop(0))
        except ProcessLookupError:
            return
        finally:
            os.close(target)

    def _end_command(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signals = [number]
            deadline = time.monotonic() + _END_S
            while time.monotonic() < deadline:
                self._forward()
                if crun.wait_readable(self._pidfd, _RETRY_MS / 1000):
                    return

    def _refused(self, reply: str) -> ProcessError:
        if not os.path.exists(f"{crun.container_dir(self._service)}/status"):
            message = f"{self._service}: crun has lost its state: {reply}"
            return _failed(CANNOT, message, f"a restart of {self._service} writes it again")
        if "Permission denied" in reply:
            return _failed(NOT_EXECUTABLE, f"{self._service}: {reply}")
        if "executable file" in reply or "No such file" in reply:
            return _failed(NOT_FOUND, f"{self._service}: {reply}")
        return _failed(CANNOT, f"{self._service}: crun exec: {reply}")


def _write_all(fd: int, data: bytes) -> bool:
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


def _failed(exit_status: int, message: str, hint: str | None = None) -> ProcessError:
    error = ProcessError(message, hint)
    error.exit_status = exit_status
    return error
