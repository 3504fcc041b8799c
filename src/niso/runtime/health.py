"""Check the health of services by probes: a connection, or a command.

For a connection, niso creates a socket inside the service's network namespace. This needs neither a
process in the namespace nor a shell. Many probes can run concurrently with one poll(2). Each probe
ends at its deadline, even if the service does not react.

A command runs with crun exec, inside the service, as the service's user and within the service's
limits. The output may contain secrets, which no other user may read. Therefore niso keeps only the
last part of the output, in memory. crun changes the owner of its stdin and stdout, so these are
pipes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext, suppress

from niso.base import paths
from niso.base.errors import Error
from niso.base.locks import open_lock
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of
from niso.base.native import signal, socket, to_json
from niso.base.report import Report, WaitingForHealth
from niso.base.signals import signals_blocked
from niso.plan.records import Healthcheck
from niso.runtime import crun, event_log
from niso.runtime.crun import read_json
from niso.runtime.status import describe_exit, forget_health
from niso.runtime.units import HEALTH, wake_agent

if TYPE_CHECKING:
    from typing import Any

    from niso.runtime.units import Units


# --- results and the health that follows ----------------------------------------------------------


def advance(probes: Sequence[HealthProbe], others: Sequence[int], until: float) -> None:
    """Wait until at least one of ``probes`` is ready, and continue the probes that are ready.

    The wait also ends if a descriptor in ``others`` is readable, at the deadline of a probe, and at
    ``until`` (monotonic time in seconds). A probe fails when its deadline has passed.
    """
    poll = select.poll()
    for probe in probes:
        poll.register(probe.fd, probe.events)
        until = min(until, probe.deadline)
    for fd in others:
        poll.register(fd, select.POLLIN)
    # poll(2) counts whole milliseconds: round down and sleep for the rest, so that the wait does
    # not end late.
    ready = {fd for fd, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000)))}
    if not ready and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.001))
    for probe in probes:
        if probe.fd in ready:
            probe.advance()
        probe.give_up_if_late()


class Probed(NamedTuple):
    """When a run was last probed, when a probe last succeeded, and the failures since then."""

    run: tuple[int, float]
    """Identifies the run: the pid of PID 1 on the host, and its start as a Unix time in seconds."""
    asked_at: float
    """Unix time of the last probe, in seconds; 0 if there was none."""
    well_at: float
    """Unix time of the last successful probe, in seconds; 0 if there was none."""
    failures: int
    """Number of failures since the last success."""
    failure: str
    """Why the last probe failed; "" if it succeeded."""
    state: str = ""
    """The health that followed from the last probe, as in `Health`."""


class HealthTarget(NamedTuple):
    """A running service whose health is to be checked."""

    service: str
    check: Healthcheck
    namespace: str | None
    run: tuple[int, float]
    """Identifies the run, as in `Probed`."""


class Health(NamedTuple):
    """The health of a service (healthy, unhealthy or starting), according to its probes."""

    state: str
    """one of healthy, unhealthy and starting"""
    failure: str
    """Why the last probe failed; "" if it succeeded."""
    asked_at: float | None = None
    """Unix time of the last probe, in seconds; None if this run was not probed."""

    @property
    def age_s(self) -> float | None:
        """Return the seconds since the last probe, or None if there was none."""
        return None if self.asked_at is None else round(max(0.0, time.time() - self.asked_at), 3)


def write_record(service: str, check: Healthcheck, run: tuple[int, float], failure: str) -> None:
    """Record the result of a probe: ``failure`` is "" or the reason why the probe failed.

    ``run`` identifies the run as in `Probed`. If the health has changed, an event is recorded too.
    If the service is removed concurrently, the record is deleted again.
    """
    before = read_record(service)
    now = time.time()
    if before is None or before.run != run:
        before = Probed(run, 0.0, 0.0, 0, "")
    if failure:
        after = before._replace(asked_at=now, failures=before.failures + 1, failure=failure)
    else:
        after = Probed(run, now, now, 0, "")
    after = after._replace(state=judge(check, run[1], after).state)
    path = paths.health_file(service)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}"  # two processes may write concurrently
    with open(draft, "w", encoding="utf-8") as file:
        file.write(to_json(after._asdict()))
    os.rename(draft, path)
    if not os.path.isdir(paths.service_dir(service)):
        forget_health(service)
    elif after.state != before.state:
        event_log.record_health(service, run[1], after.state, failure, now)


def read_record(service: str) -> Probed | None:
    """Return the recorded probe results of a service, or None if they are missing or damaged."""
    try:
        fields = read_json(paths.health_file(service))
        record = None if fields is None else Probed(**{**fields, "run": tuple(fields["run"])})
    except (ValueError, TypeError, KeyError):
        return None
    kinds = {"asked_at": float, "well_at": float, "failures": int, "failure": str, "state": str}
    if all(isinstance(getattr(record, name, None), kind) for name, kind in kinds.items()):
        return record
    return None


def check_all(targets: Sequence[HealthTarget], report: Report) -> dict[str, Health]:
    """Probe services whose results are too old. Return the health of each service by name.

    A service is probed if its last probe is older than the interval of its healthcheck. The probes
    run concurrently. ``report`` receives an event with the services that are probed.
    """
    if due := [target for target in targets if _is_due(target)]:
        report(WaitingForHealth(tuple(target.service for target in due)))
        lock = open_lock(".health")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have probed some of them in the meantime.
            due = [target for target in due if _is_due(target)]
            failures = answers(begin(one.check, one.service, one.namespace) for one in due)
            for target, failure in zip(due, failures, strict=True):
                write_record(target.service, target.check, target.run, failure)
        finally:
            os.close(lock)
    return {one.service: judge(one.check, one.run[1], _current(one)) for one in targets}


def known(targets: Sequence[HealthTarget]) -> dict[str, Health]:
    """Return the recorded health of each service by name, without a probe."""
    return {one.service: judge(one.check, one.run[1], _current(one)) for one in targets}


def ask(units: Units, state_id: str, targets: Sequence[HealthTarget]) -> None:
    """Request probes of all services with a health check for the next 60 s.

    Starts the health agent if a record in ``targets`` is older than the interval of its health
    check and no agent is running. Returns without waiting for a probe.
    """
    path = paths.health_asked()
    try:
        with open(path, "a", encoding="utf-8"):
            os.utime(path)
    except OSError:  # the run folder cannot be written: the last results are shown with their age
        return
    if any(map(_is_due, targets)) and not wake_agent(HEALTH):
        with suppress(Error, OSError):  # health is only shown; the caller answers without it
            units.start_health(state_id)


def asked() -> bool:
    """Return whether a command has called `ask` within the last 60 s."""
    try:
        return 0 <= time.time() - os.stat(paths.health_asked()).st_mtime < ASKED_S
    except FileNotFoundError:
        return False


ASKED_S = 60.0


def due_in(service: str, check: Healthcheck, run: tuple[int, float]) -> float:
    """Return the seconds until the next probe of a service is due, or 0 if it is due now.

    ``run`` identifies the latest start of the service. Probes of earlier starts do not count.
    """
    record = _current(HealthTarget(service, check, None, run))
    left = 0.0 if record is None else record.asked_at + check.interval_s - time.time()
    return left if 0 < left <= check.interval_s else 0.0


def _current(target: HealthTarget) -> Probed | None:
    record = read_record(target.service)
    return record if record is not None and record.run == target.run else None


def _is_due(target: HealthTarget) -> bool:
    record = _current(target)
    return record is None or not 0 <= time.time() - record.asked_at < target.check.interval_s


def judge(check: Healthcheck, started_at: float, record: Probed | None) -> Health:
    """Derive the health of a service from the recorded results of its probes.

    ``started_at`` is the start of the run as a Unix time in seconds. Services are probed only on
    request. A failure therefore also counts for the probes that would have run since the last
    success.
    """
    if record is None:
        return Health("starting", "")
    if not record.failures:
        return Health("healthy", "", record.asked_at)
    well_until = max(record.well_at, started_at + check.start_period_s)
    # a probe before the start: the clock was set back
    if not record.well_at and started_at <= record.asked_at <= well_until:
        return Health("starting", record.failure, record.asked_at)
    ill_s = record.asked_at - well_until
    if record.failures >= check.retries or ill_s >= check.retries * check.interval_s:
        return Health("unhealthy", record.failure, record.asked_at)
    return Health("healthy" if record.well_at else "starting", record.failure, record.asked_at)


# --- probes by connection -------------------------------------------------------------------------


_MAX_RESPONSE = 16 << 10
"""Maximum size in bytes of a response, including interim responses. A longer response is not HTTP,
and must not keep a probe busy.
"""
_MAX_ADDRESSES = 16
_BLOCK = 4096

_Steps = Generator[tuple[socket.socket, int], None, str]


class HealthProbe:
    """A probe by connection. Call `advance` when ``fd`` is ready for ``events`` (see poll(2))."""

    def __init__(self, check: Healthcheck, namespace: str | None) -> None:
        """Start the probe in a namespace of /run/netns, by default in the caller's."""
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd = -1
        self.events = 0
        self.answer: str | None = None
        """None until the probe ends; then "" for healthy, or the reason why it failed."""
        self._check = check
        self._doing = ["connect: no answer"]
        self._steps = _steps(check, namespace, self._doing)
        self.advance()

    def advance(self) -> None:
        """Continue the probe as far as possible without blocking. Sets ``answer`` at the end."""
        try:
            sock, self.events = next(self._steps)
            self.fd = sock.fileno()
        except StopIteration as end:
            self.answer = end.value
        except (Error, OSError) as error:  # the namespace no longer exists
            self.answer = f"{self._check.target}: {error}"

    def give_up_if_late(self) -> None:
        """End the probe if its deadline has passed. The failure then names the unfinished step."""
        if self.answer is None and time.monotonic() >= self.deadline:
            self.close()
            late = f"{self._doing[0]} within {self._check.timeout_s:g}s"
            self.answer = f"{self._check.target}: {late}"

    @property
    def last_output(self) -> str:
        """Return the last line of output. A probe by connection has no output and returns ""."""
        return ""

    def close(self) -> None:
        self._steps.close()


def _steps(check: Healthcheck, namespace: str | None, doing: list[str]) -> _Steps:
    """Probe step by step. Each step yields (socket, events) and continues when the socket is ready
    for these events.

    The generator returns "" for healthy, or the reason why the probe failed. The generator sets
    ``doing[0]`` to the present step, for the message of a probe that is too slow.
    """
    refusals = ""
    for address in _candidates(check, namespace):
        try:
            sock = _socket(address, namespace)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            # a kernel that was booted with ipv6.disable=1
            refusals = refusals or f"{check.target}: no IPv6 on this host ({address})"
            continue
        try:
            doing[0] = f"connect to {address}: no answer"
            number = sock.connect_ex((address, check.port))
            if number in (errno.EINPROGRESS, errno.EAGAIN):
                yield sock, select.POLLOUT
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number == 0 and sock.getsockname() == sock.getpeername():
                # RFC 9293, 3.5: without a listener, a connection from the port to itself succeeds.
                number = errno.ECONNREFUSED
            if number == 0:
                if check.path is None:
                    return ""
                doing[0] = f"answer of {address}: no answer"
                return (yield from _http(sock, check))
            reason = os.strerror(number)
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            sock.close()
        refusals = refusals or f"{check.target}: {reason.lower()} ({address})"
    return refusals


def _candidates(check: Healthcheck, namespace: str | None) -> Generator[str, None, None]:
    if check.address:
        yield check.address
        return
    if not check.outer:
        yield "127.0.0.1"
        yield "::1"
    from niso.kernel.rtnetlink import Rtnl

    with _inside(namespace), Rtnl() as rtnl:
        addresses = [entry.address.partition("/")[0] for entry in rtnl.addresses()]
    inner = ("127.", "fe80:")
    own = [one for one in addresses if not one.startswith(inner) and one != "::1"]
    yield from own[:_MAX_ADDRESSES]


def _socket(address: str, namespace: str | None) -> socket.socket:
    with _inside(namespace):
        family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return socket.socket(family, socket.SOCK_STREAM | flags)


def _inside(namespace: str | None) -> Any:
    if namespace is None:
        return nullcontext()
    from niso.kernel import netns

    return netns.inside(namespace)


def _http(sock: socket.socket, check: Healthcheck) -> _Steps:
    """Send an HTTP request (RFC 9112), and evaluate the status line of the final response. Interim
    responses (RFC 9110, 15.2) are skipped. This is a part of the generator `_steps`.
    """
    request = (
        f"GET {check.path} HTTP/1.1\r\nHost: {check.host}\r\n"
        "User-Agent: niso\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ).encode("ascii")
    while request:
        try:
            request = request[sock.send(request) :]
        except BlockingIOError:
            yield sock, select.POLLOUT
    received = b""
    size = 0
    while size < _MAX_RESPONSE:
        try:
            block = sock.recv(_BLOCK)
        except BlockingIOError:
            yield sock, select.POLLIN
            continue
        size += len(block)
        status, received = _status(received + block)
        if status is not None:
            return "" if 200 <= status < 400 else f"{check.target}: status {status}"
        if not block:
            break
        if b"\n" in received and not received.startswith(b"HTTP/"):
            break
    what = "no HTTP response" if received or size >= _MAX_RESPONSE else "closed without a response"
    return f"{check.target}: {what}"


def _status(received: bytes) -> tuple[int | None, bytes]:
    while True:
        line, end, _ = received.partition(b"\n")
        words = line.split(b" ", 2)
        code = words[1].strip() if len(words) > 1 else b""
        if not (end and line.startswith(b"HTTP/1.") and len(code) == 3 and code.isdigit()):
            return None, received
        if not code.startswith(b"1"):
            return int(code), received
        _, blank, following = received.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not blank:
            return None, received
        received = following


def begin(check: Healthcheck, service: str, namespace: str | None) -> HealthProbe:
    if check.command:
        return CommandProbe(check, service)
    return HealthProbe(check, namespace)


def answers(begun: Iterable[HealthProbe]) -> list[str]:
    """Run probes in parallel to their ends, from their start by the iterator ``begun``. Returns the
    error text of each probe in the same order, or "" if the probe succeeded.
    """
    probes: list[HealthProbe] = []
    try:
        for probe in begun:
            probes.append(probe)
        while pending := [probe for probe in probes if probe.answer is None]:
            advance(pending, (), pending[0].deadline)
    finally:
        for probe in probes:
            probe.close()
    return [probe.answer or "" for probe in probes]


# --- probes by command ----------------------------------------------------------------------------


_OUTPUT_BLOCK = 1 << 16
_KEPT, _LINE = 4096, 200
"""How many bytes of output are stored, and how many characters of a line are shown at most."""


class CommandProbe(HealthProbe):
    """A probe by command. ``fd`` is ready when the command has exited or written output."""

    def __init__(self, check: Healthcheck, service: str) -> None:
        """Start the command in the service. The probe fails if the service is not running."""
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd, self.events = -1, select.POLLIN
        self.answer: str | None = None
        self._check, self._service = check, service
        self._doing = ["has not ended"]
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
        from niso.runtime import execute

        stem, process = execute.prepare(self._service, list(self._check.command))
        # several probes of one service may run at once: of this niso and of another one
        self._stem = f"{stem}-{time.monotonic_ns()}"
        stdin, end = os.pipe()
        self._output, output = os.pipe()
        os.close(end)
        os.set_blocking(self._output, False)
        ends = (stdin, output, output)
        try:
            with signals_blocked():  # a signal in between would leave a child that no code reaps
                self._pid = execute.spawn(self._service, self._stem, process, ends, setsigmask=())
            self._pidfd = os.pidfd_open(self._pid)
        finally:
            os.close(stdin)
            os.close(output)
        ready = select.epoll()
        self.fd = os.dup(ready.fileno())
        ready.register(self._pidfd, select.EPOLLIN)
        ready.register(self._output, select.EPOLLIN)
        ready.close()

    def advance(self) -> None:
        """Read the command's output. If the command has exited, read its exit status too. After the
        exit of the command, remaining processes of its process group are killed.
        """
        if self.answer is not None:
            return
        is_over = crun.wait_readable(self._pidfd, 0)
        if self._output >= 0:
            with suppress(BlockingIOError):
                block = os.read(self._output, _OUTPUT_BLOCK)
                self._tail = (self._tail + block)[-_KEPT:]
                if not block:  # the command has closed its output, and may still run
                    ready = select.epoll.fromfd(os.dup(self.fd))
                    ready.unregister(self._output)
                    ready.close()
                    os.close(self._output)
                    self._output = -1
        if not is_over:
            return
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        self._kill_group()
        with open(f"{self._stem}.log", "rb") as file:
            refusal = crun.plain_message(file.read(_OUTPUT_BLOCK))
        self._free()
        if refusal:
            self.answer = f"{self._check.target}: {refusal}"
        else:
            code = 128 - code if code < 0 else code
            self.answer = f"{self._check.target}: {describe_exit(code)}" if code else ""

    @property
    def last_output(self) -> str:
        """Return the last line of the command's output, with unprintable characters escaped."""
        lines = self._tail.decode("utf-8", "replace").split("\n")
        last = next((line for line in map(str.strip, reversed(lines)) if line), "")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in last[-_LINE:])

    def close(self) -> None:
        """Kill the command's process group if the command still runs. Release all resources."""
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
            if crun.in_service(self._service, pid):
                os.kill(pid, signal.SIGKILL)
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0

    def _kill_group(self) -> None:
        """Kill the remaining processes in the process group of a command that has exited. The
        kernel does not reuse the number of a process group while a process is in the group
        (free_pid, kernel/pid.c).
        """
        leader = crun.read_pid(f"{self._stem}.pid")
        for pid in crun.in_group(self._service, leader) if leader is not None else ():
            pidfd = crun.open_in_service(self._service, pid)
            if pidfd >= 0:
                crun.send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)

    def _free(self) -> None:
        for fd in (self.fd, self._pidfd, self._output):
            if fd >= 0:
                os.close(fd)
        self.fd = self._pidfd = self._output = -1
        for suffix in ("json", "pid", "log") if self._stem else ():
            with suppress(FileNotFoundError):
                os.unlink(f"{self._stem}.{suffix}")
