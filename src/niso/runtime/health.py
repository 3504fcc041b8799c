"""Probe the health of services without blocking, and record the last result of each.

A probe is a socket made inside the service's network namespace: no process runs there, and no
shell parses anything. One of a command is in `niso.runtime.health_command`. Any number of probes
share one poll(2), and each ends at its deadline, whatever its peer does.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import time
from collections.abc import Generator, Sequence

from niso.base import paths
from niso.base.addresses import family_of
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import open_lock
from niso.base.report import Report
from niso.base.service_events import WaitingForHealth
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl
from niso.plan.records import Healthcheck
from niso.runtime import process
from niso.runtime.spec import read_json

if TYPE_CHECKING:
    from typing import Any

_MAX_RESPONSE = 16 << 10
"""Bytes, interim responses included: more is not an HTTP server, and must not keep a probe busy."""
_MAX_ADDRESSES = 16
_BLOCK = 4096

_Steps = Generator[tuple[socket.socket, int], None, str]


class Probe:
    """One probe in progress.

    ``fd`` becomes ready for ``events`` (poll(2)) when `go_on` can continue.
    """

    def __init__(self, check: Healthcheck, namespace: str | None) -> None:
        """Start. ``namespace`` is a name below /run/netns; None means the caller's own."""
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd = -1
        self.events = 0
        self.answer: str | None = None
        """None until the probe ends, then "" for healthy, else the reason."""
        self._check = check
        self._doing = ["connect"]
        self._steps = _steps(check, namespace, self._doing)
        self.go_on()

    def go_on(self) -> None:
        """Continue as far as possible without blocking."""
        try:
            sock, self.events = next(self._steps)
            self.fd = sock.fileno()
        except StopIteration as end:
            self.answer = end.value
        except (Error, OSError) as error:  # the namespace is gone
            self.answer = f"{self._check.target}: {error}"

    def give_up_if_late(self) -> None:
        """End the probe if its deadline has passed; the answer names the step that was too slow."""
        if self.answer is None and time.monotonic() >= self.deadline:
            self.close()
            late = f"{self._doing[0]}: no answer within {self._check.timeout_s:g}s"
            self.answer = f"{self._check.target}: {late}"

    @property
    def said(self) -> str:
        """The last line that a command has written, printable; "" for other probes."""
        return ""

    def close(self) -> None:
        """Close the socket of a probe; no-op if it has ended."""
        self._steps.close()


def _steps(check: Healthcheck, namespace: str | None, doing: list[str]) -> _Steps:
    """Run a probe: yield the socket and events to wait for, return "" or the reason."""
    refusals = ""
    for address in _candidates(check, namespace):
        sock = _socket(address, namespace)
        try:
            doing[0] = f"connect to {address}"
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
                doing[0] = f"answer of {address}"
                return (yield from _http(sock, check))
            refusals = refusals or f"{check.target}: {os.strerror(number).lower()} ({address})"
        except OSError as error:
            refusals = (
                refusals or f"{check.target}: {(error.strerror or str(error)).lower()} ({address})"
            )
        finally:
            sock.close()
    return refusals


def _candidates(check: Healthcheck, namespace: str | None) -> Generator[str, None, None]:
    """Yield the addresses to try: loopback, then those of the links, read only if needed."""
    if check.address:
        yield check.address
        return
    yield "127.0.0.1"
    yield "::1"
    with _inside(namespace), Rtnl() as rtnl:
        addresses = [entry.address.partition("/")[0] for entry in rtnl.addresses()]
    own = [
        address
        for address in addresses
        if not address.startswith(("127.", "fe80:")) and address != "::1"
    ]
    yield from own[:_MAX_ADDRESSES]


def _socket(address: str, namespace: str | None) -> socket.socket:
    with _inside(namespace):
        family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
        return socket.socket(
            family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )


def _inside(namespace: str | None) -> Any:
    if namespace is not None:
        return netns.inside(namespace)
    from contextlib import nullcontext

    return nullcontext()


def _http(sock: socket.socket, check: Healthcheck) -> _Steps:
    """Send a request (RFC 9112) and read up to the status line of the final response.

    Interim responses (RFC 9110, 15.2) come before it.
    """
    lines = (
        f"GET {check.path} HTTP/1.1",
        f"Host: {check.host}",
        "User-Agent: niso",
        "Accept: */*",
        "Connection: close",
    )
    request = "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")
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
    """Parse the final status code, None if there is none yet, and skip interim responses.

    Returns it with the bytes that are still to be parsed.
    """
    while True:
        line, end, _ = received.partition(b"\n")
        words = line.split(b" ", 2)
        if (
            not end
            or not line.startswith(b"HTTP/1.")
            or len(words) < 2
            or len(words[1].strip()) != 3
        ):
            return None, received
        code = words[1].strip()
        if not code.isdigit():
            return None, received
        if not code.startswith(b"1"):
            return int(code), received
        _, blank, following = received.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not blank:
            return None, received
        received = following


def advance(probes: Sequence[Probe], others: Sequence[int], until: float) -> None:
    """Wait until a probe can go on or one of the descriptors ``others`` is readable; go on.

    Returns at ``until`` (monotonic seconds) at the latest.
    """
    poll = select.poll()
    for probe in probes:
        poll.register(probe.fd, probe.events)
        until = min(until, probe.deadline)
    for fd in others:
        poll.register(fd, select.POLLIN)
    # poll(2) counts whole milliseconds: round down and sleep for the rest, so as not to be late.
    ready = {fd for fd, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000)))}
    if not ready and (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, 0.001))
    for probe in probes:
        if probe.fd in ready:
            probe.go_on()
        probe.give_up_if_late()


def begin(check: Healthcheck, service: str, namespace: str | None) -> Probe:
    """Begin a probe of a service, whose ``namespace`` is as for `Probe`."""
    if check.command:
        from niso.runtime.health_command import CommandProbe

        return CommandProbe(check, service)
    return Probe(check, namespace)


def probe_all(targets: Sequence[tuple[Healthcheck, str, str | None]]) -> list[str]:
    """Run probes at the same time; return "" or the reason for each.

    Each target is a check, the service and its namespace.

    Takes at most the longest timeout.
    """
    probes: list[Probe] = []
    try:
        for target in targets:
            probes.append(begin(*target))
        while pending := [probe for probe in probes if probe.answer is None]:
            advance(pending, (), pending[0].deadline)
    finally:
        for probe in probes:
            probe.close()
    return [probe.answer or "" for probe in probes]


# --- the last answers ---------------------------------------------------------------------------


class Probed(NamedTuple):
    """The probe results of one run of a service."""

    run: tuple[int, float]
    """PID 1 on the host, and when it started (seconds since 1970)."""
    asked_at: float
    """Of the last probe, in seconds since 1970; 0 for never."""
    well_at: float
    """Of the last successful probe; 0 for never."""
    failures: int
    """Consecutive failures up to now."""
    failure: str
    """Why the last probe failed; "" if it succeeded."""


class Target(NamedTuple):
    """A running service to be checked."""

    service: str
    check: Healthcheck
    namespace: str | None
    run: tuple[int, float]
    """As in `Probed`."""


class Health(NamedTuple):
    state: str
    """healthy, unhealthy or starting."""
    failure: str
    """Why the last probe failed; "" if it succeeded."""


def write_record(service: str, run: tuple[int, float], failure: str) -> None:
    """Record the result of a probe: ``failure`` is `Probe.answer`. Raises OSError.

    If the service is removed meanwhile, the record is deleted.
    """
    before = read_record(service)
    now = time.time()
    if before is None or before.run != run:
        before = Probed(run, 0.0, 0.0, 0, "")
    if failure:
        after = before._replace(asked_at=now, failures=before.failures + 1, failure=failure)
    else:
        after = Probed(run, now, now, 0, "")
    path = paths.health_file(service)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}"  # two processes may write at once
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(after._asdict()))
    os.rename(draft, path)
    if not os.path.isdir(paths.service_dir(service)):
        process.forget_health(service)


def read_record(service: str) -> Probed | None:
    """Read the probe results of a service; None if there are none, or the file is damaged."""
    try:
        fields = read_json(paths.health_file(service))
        record = None if fields is None else Probed(**{**fields, "run": tuple(fields["run"])})
    except (ValueError, TypeError, KeyError):
        return None
    kinds = {"asked_at": float, "well_at": float, "failures": int, "failure": str}
    if all(isinstance(getattr(record, name, None), kind) for name, kind in kinds.items()):
        return record
    return None


def check_all(targets: Sequence[Target], report: Report) -> dict[str, Health]:
    """Return the health of services; probe at once all that were not probed for an interval.

    ``report`` receives their names.
    """
    import fcntl

    if due := [target for target in targets if _is_due(target)]:
        report(WaitingForHealth(tuple(target.service for target in due)))
        lock = open_lock(".health")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have probed some of them meanwhile.
            due = [target for target in due if _is_due(target)]
            failures = probe_all(
                [(target.check, target.service, target.namespace) for target in due]
            )
            for target, failure in zip(due, failures, strict=True):
                write_record(target.service, target.run, failure)
        finally:
            os.close(lock)
    return {
        target.service: judge(target.check, target.run[1], _current(target)) for target in targets
    }


def _current(target: Target) -> Probed | None:
    """Read the probe results of the target's present run; None if there are none."""
    record = read_record(target.service)
    return record if record is not None and record.run == target.run else None


def _is_due(target: Target) -> bool:
    record = _current(target)
    return record is None or not 0 <= time.time() - record.asked_at < target.check.interval_s


def judge(check: Healthcheck, started_at: float, record: Probed | None) -> Health:
    """Return the health that follows from the recorded results.

    Services are probed only when someone asks. So a failure also counts for the probes that would
    have run since the last success.
    """
    if record is None:
        return Health("starting", "")
    if not record.failures:
        return Health("healthy", "")
    well_until = max(record.well_at, started_at + check.start_period_s)
    if not record.well_at and record.asked_at <= well_until:
        return Health("starting", record.failure)
    if (
        record.failures >= check.retries
        or record.asked_at - well_until >= check.retries * check.interval_s
    ):
        return Health("unhealthy", record.failure)
    return Health("healthy" if record.well_at else "starting", record.failure)
