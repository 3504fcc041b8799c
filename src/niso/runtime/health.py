"""Asking services whether they are well: probes that never block, and what was answered last.

A probe is a socket made inside the service's network namespace, so nothing runs there and nothing is parsed by a shell. Any number
of probes go on at once in one poll(2); each is over when its time is, whatever the other end does.
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
from niso.base.errors import NisoError
from niso.base.family import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.base.locks import open_lock
from niso.base.report import Report, WaitingForHealth
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl
from niso.plan.records import Healthcheck
from niso.runtime import process
from niso.runtime.spec import read_json

if TYPE_CHECKING:
    from typing import Any

_MOST_ANSWER = 16 << 10
_MOST_ADDRESSES = 16
_BLOCK = 4096

_Steps = Generator[tuple[socket.socket, int], None, str]


class Probe:
    """One question under way. ``fd`` becomes ready for ``events`` (poll(2)) when it can go on; ``answer`` is None until it is over."""

    def __init__(self, check: Healthcheck, namespace: str | None) -> None:
        """Begin. ``namespace``: the name below /run/netns, None for the caller's own."""
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd = -1
        self.events = 0
        self.answer: str | None = None
        """"" is well, else what is wrong in words."""
        self._check = check
        self._doing = ["connect"]
        self._steps = _steps(check, namespace, self._doing)
        self.go_on()

    def go_on(self) -> None:
        """Do what can be done without waiting."""
        try:
            sock, self.events = next(self._steps)
            self.fd = sock.fileno()
        except StopIteration as end:
            self.answer = end.value
        except (NisoError, OSError) as error:  # its namespace is gone
            self.answer = f"{self._check.words}: {error}"

    def give_up_if_late(self) -> None:
        """End with a word on what took too long where the time is over."""
        if self.answer is None and time.monotonic() >= self.deadline:
            self.close()
            self.answer = f"{self._check.words}: {self._doing[0]}: no answer within {self._check.timeout_s:g}s"

    def close(self) -> None:
        """Close the socket of a probe that nobody waits for any more."""
        self._steps.close()


def _steps(check: Healthcheck, namespace: str | None, doing: list[str]) -> _Steps:
    """The course of a probe: yields what it waits for, returns "" or what is wrong."""
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
                number = errno.ECONNREFUSED  # met itself: a port that nobody listens on, chosen for our own end (RFC 9293, simultaneous open)
            if number == 0:
                if check.path is None:
                    return ""
                doing[0] = f"answer of {address}"
                return (yield from _http(sock, check))
            refusals = refusals or f"{check.words}: {os.strerror(number).lower()} ({address})"
        except OSError as error:
            refusals = (
                refusals or f"{check.words}: {(error.strerror or str(error)).lower()} ({address})"
            )
        finally:
            sock.close()
    return refusals


def _candidates(check: Healthcheck, namespace: str | None) -> Generator[str, None, None]:
    """The addresses to try. Those of the links are only looked up when nobody answers on loopback."""
    if check.address:
        yield check.address
        return
    yield "127.0.0.1"
    yield "::1"
    with _inside(namespace), Rtnl() as rtnl:
        found = [each.address.partition("/")[0] for each in rtnl.addresses()]
    own = [each for each in found if not each.startswith(("127.", "fe80:")) and each != "::1"]
    yield from own[:_MOST_ADDRESSES]


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
    """Ask (RFC 9112) and read no more than the status line; interim answers (RFC 9110, 15.2) come before it."""
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
    got = b""
    while len(got) < _MOST_ANSWER:
        try:
            block = sock.recv(_BLOCK)
        except BlockingIOError:
            yield sock, select.POLLIN
            continue
        got += block
        status, got = _status(got)
        if status is not None:
            return "" if 200 <= status < 400 else f"{check.words}: status {status}"
        if not block:
            break
        if b"\n" in got and not got.startswith(b"HTTP/"):
            break
    what = "no HTTP answer" if got or len(got) >= _MOST_ANSWER else "closed without an answer"
    return f"{check.words}: {what}"


def _status(got: bytes) -> tuple[int | None, bytes]:
    """The final status code where ``got`` has it, and what is left to look at after interim answers."""
    while True:
        line, end, _ = got.partition(b"\n")
        words = line.split(b" ", 2)
        if (
            not end
            or not line.startswith(b"HTTP/1.")
            or len(words) < 2
            or len(words[1].strip()) != 3
        ):
            return None, got
        code = words[1].strip()
        if not code.isdigit():
            return None, got
        if not code.startswith(b"1"):
            return int(code), got
        _, blank, rest = got.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not blank:
            return None, got
        got = rest


def turn(probes: Sequence[Probe], others: Sequence[int], until: float) -> None:
    """Wait until a probe can go on or one of ``others`` (descriptors, POLLIN) is ready, at most until ``until`` (monotonic), and go on."""
    poll = select.poll()
    for probe in probes:
        poll.register(probe.fd, probe.events)
        until = min(until, probe.deadline)
    for fd in others:
        poll.register(fd, select.POLLIN)
    # poll(2) knows whole milliseconds, and to wait for 3 in the place of 2 is to be late at each look at a start
    ready = {fd for fd, _ in poll.poll(max(0, int((until - time.monotonic()) * 1000)))}
    if not ready and (rest_s := until - time.monotonic()) > 0:
        time.sleep(min(rest_s, 0.001))
    for probe in probes:
        if probe.fd in ready:
            probe.go_on()
        probe.give_up_if_late()


def ask(asked: Sequence[tuple[Healthcheck, str | None]]) -> list[str]:
    """Ask all at once, each a check and a namespace; for each "" or what is wrong. Takes as long as the longest timeout at most."""
    probes: list[Probe] = []
    try:
        probes += [Probe(check, namespace) for check, namespace in asked]
        while open_ones := [probe for probe in probes if probe.answer is None]:
            turn(open_ones, (), open_ones[0].deadline)
    finally:
        for probe in probes:
            probe.close()
    return [probe.answer or "" for probe in probes]


# --- what was answered last ------------------------------------------------------------------------------------------


class Probed(NamedTuple):
    """What is known of one run of a service's process: ``run`` is (pid, when it started)."""

    run: tuple[int, float]
    asked_at: float
    """Seconds since 1970; 0 for never."""
    well_at: float
    """When it last was well; 0 for never."""
    failures: int
    """In a row, until now."""
    words: str
    """What was wrong last."""


class Asked(NamedTuple):
    """A running service whose health is wanted."""

    service: str
    check: Healthcheck
    namespace: str | None
    run: tuple[int, float]


class Health(NamedTuple):
    state: str
    """healthy, unhealthy or starting."""
    words: str
    """What the last probe said; "" where it was well."""


def note(service: str, run: tuple[int, float], words: str) -> None:
    """Record one answer; ``words`` as `Probe.answer`. For a service that goes meanwhile, nothing is left. Raises OSError."""
    before = known(service)
    now = time.time()
    if before is None or before.run != run:
        before = Probed(run, 0.0, 0.0, 0, "")
    if words:
        after = before._replace(asked_at=now, failures=before.failures + 1, words=words)
    else:
        after = Probed(run, now, now, 0, "")
    path = paths.health_file(service)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    draft = f"{path}.{os.getpid()}"  # two may write at once
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(after._asdict()))
    os.rename(draft, path)
    if not os.path.isdir(paths.service_dir(service)):
        process.forget_health(service)


def known(service: str) -> Probed | None:
    """What was answered last; None where nothing is known."""
    try:
        found = read_json(paths.health_file(service))
        return None if found is None else Probed(**{**found, "run": tuple(found["run"])})
    except (ValueError, TypeError, KeyError):
        return None


def look(services: Sequence[Asked], report: Report) -> dict[str, Health]:
    """How services are, asked at most once an interval; all that are to be asked are asked at once. ``report`` is told of whom."""
    import fcntl

    if late := [each.service for each in services if _is_due(each)]:
        report(WaitingForHealth(tuple(late)))
        lock = open_lock(".health")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            due = [
                each for each in services if _is_due(each)
            ]  # another one may have asked meanwhile
            for each, words in zip(
                due, ask([(each.check, each.namespace) for each in due]), strict=True
            ):
                note(each.service, each.run, words)
        finally:
            os.close(lock)
    return {each.service: judge(each.check, each.run[1], _own(each)) for each in services}


def _own(asked: Asked) -> Probed | None:
    found = known(asked.service)
    return found if found is not None and found.run == asked.run else None


def _is_due(asked: Asked) -> bool:
    found = _own(asked)
    return found is None or not 0 <= time.time() - found.asked_at < asked.check.interval_s


def judge(check: Healthcheck, started_at: float, found: Probed | None) -> Health:
    """What the answers mean. Nobody asks while nobody looks, so one failure counts for all that would have been since it was well."""
    if found is None:
        return Health("starting", "")
    if not found.failures:
        return Health("healthy", "")
    well_until = max(found.well_at, started_at + check.start_period_s)
    if not found.well_at and found.asked_at <= well_until:
        return Health("starting", found.words)
    if (
        found.failures >= check.retries
        or found.asked_at - well_until >= check.retries * check.interval_s
    ):
        return Health("unhealthy", found.words)
    return Health("healthy" if found.well_at else "starting", found.words)
