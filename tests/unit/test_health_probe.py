"""Test probes against servers in this process, and the resulting health."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from fakes.processes import Answered

from niso.base import paths
from niso.base.report import Event, WaitingForHealth
from niso.change import health_agent
from niso.plan.records import Healthcheck
from niso.runtime import health
from niso.runtime.health import Probed

CHECK = Healthcheck("127.0.0.1", 80, "127.0.0.1:80", "/", 5.0, 2.0, 3, 10.0)
RUN = (12, 1000.0)


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None] | None = None) -> Iterator[int]:
    """A listener on loopback that gives each connection to ``answer``; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if answer:
                        connection.settimeout(5)
                        connection.recv(4096)
                        answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


class Silence:
    """Servers that keep each connection open without a word, until `close`."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def keep(self, _: socket.socket) -> None:
        self._over.wait(60)

    def close(self) -> None:
        self._over.set()


def says(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text)


def ask(port: int, **changes: object) -> str:
    (words,) = health.answers([health.begin(CHECK._replace(port=port, **changes), "api", None)])  # type: ignore[arg-type]
    return words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 200\r\n", ""),
        (b"HTTP/1.1 399 X\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 204 X\r\n", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 X\r\n", "status 500"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", "status 400"),
        (b"HTTP/1.1 099 X\r\n\r\n", "status 99"),
        (b"HTTP/1.1 200", "no HTTP response"),
        (b"HTTP/1.1 20 X\r\n", "no HTTP response"),
        (b"HTTP/1.1 2000 X\r\n", "no HTTP response"),
        (b"HTTP/2.0 200 X\r\n", "no HTTP response"),
        (b"HTTP/1.1 +20 X\r\n", "no HTTP response"),
        (b"HTTP/1.1 \xb2\xb2\xb2 X\r\n", "no HTTP response"),
        (b"\n", "no HTTP response"),
        (b"x" * 100_000, "no HTTP response"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed without a response"),
        (b"", "closed without a response"),
    ],
)
def test_first_line_decides(text: bytes, words: str) -> None:
    with server(says(text)) as port:
        said = ask(port)
    assert said == (f"http://127.0.0.1:80/: {words}" if words else "")


def test_request_names_host_and_path_and_ends_the_connection() -> None:
    got: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(
        target=lambda: got.append(listener.accept()[0].recv(4096)), daemon=True
    )
    thread.start()
    ask(listener.getsockname()[1], host="api:81", path="/a?b", timeout_s=1)
    thread.join(60)
    listener.close()
    head, *lines = got[0].decode().split("\r\n")
    assert head == "GET /a?b HTTP/1.1"
    assert {"Host: api:81", "Connection: close"} <= set(lines)
    assert got[0].endswith(b"\r\n\r\n")


def test_port_that_accepts_is_enough_without_a_path() -> None:
    with server() as port:
        assert ask(port, path=None, address="") == ""


def test_port_that_nobody_has_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert ask(port, path=None) == f"tcp {port}: connection refused (127.0.0.1)"


def test_host_without_ipv6_does_not_hide_why_ipv4_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Booted with ipv6.disable=1, a kernel has no sockets for ::1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    plain = health._socket

    def without(address: str, namespace: str | None) -> socket.socket:
        if ":" in address:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return plain(address, namespace)

    monkeypatch.setattr(health, "_socket", without)
    assert ask(port, path=None) == f"tcp {port}: connection refused (127.0.0.1)"
    assert ask(port, path=None, address="::1") == f"tcp {port}: no IPv6 on this host (::1)"


def test_probe_that_meets_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux connects a socket to itself where the port that it gets is the one it asks for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    plain = health._socket

    def bound(address: str, namespace: str | None) -> socket.socket:
        sock = plain(address, namespace)
        sock.bind((address, port))
        return sock

    monkeypatch.setattr(health, "_socket", bound)
    assert ask(port, path=None) == f"tcp {port}: connection refused (127.0.0.1)"


def test_server_that_never_ends_its_interim_responses_is_given_up() -> None:
    """It is faster than the probe, which would never wait, and so never see its deadline."""

    class Fast:
        reads = 0

        def send(self, data: bytes) -> int:
            return len(data)

        def recv(self, size: int) -> bytes:
            self.reads += 1
            assert self.reads < 100, "the probe reads for ever"
            return (b"HTTP/1.1 100 Continue\r\n\r\n" * 200)[:4000]

    with pytest.raises(StopIteration) as end:
        next(health._http(Fast(), CHECK))  # type: ignore[arg-type]
    assert end.value.value.endswith("no HTTP response")


def test_silent_server_is_given_up_and_does_not_delay_the_others() -> None:
    silence = Silence()
    with (
        server(silence.keep) as silent,
        server(says(b"HTTP/1.1 200 OK\r\n\r\n")) as well,
        contextlib.closing(silence),
    ):
        slow = CHECK._replace(port=silent, timeout_s=2)
        quick = CHECK._replace(port=well)
        probes = [health.HealthProbe(slow, None), health.HealthProbe(quick, None)]
        while probes[1].answer is None:
            health.advance(
                [probe for probe in probes if probe.answer is None], (), probes[0].deadline
            )
        assert (probes[0].answer, probes[1].answer) == (None, "")
        while probes[0].answer is None:
            health.advance([probes[0]], (), probes[0].deadline)
        assert probes[0].answer == "http://127.0.0.1:80/: answer of 127.0.0.1: no answer within 2s"


def test_server_that_answers_byte_by_byte_is_given_up() -> None:
    def trickle(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK":
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    with server(trickle) as port:
        assert ask(port, timeout_s=0.1).endswith("answer of 127.0.0.1: no answer within 0.1s")


def test_server_that_accepts_no_more_is_given_up() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # until its queue is full
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        assert "connect to 127.0.0.1: no answer within 0.2s" in ask(
            listener.getsockname()[1], path=None, timeout_s=0.2
        )


# --- what is known ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (None, "starting"),
        (Probed(RUN, 1001.0, 1001.0, 0, ""), "healthy"),
        (Probed(RUN, 1005.0, 0.0, 9, "no"), "starting"),  # all in the start period
        (Probed(RUN, 500.0, 0.0, 3, "no"), "unhealthy"),  # the clock was set back
        (Probed(RUN, 1012.0, 0.0, 2, "no"), "starting"),
        (Probed(RUN, 1012.0, 0.0, 3, "no"), "unhealthy"),
        (Probed(RUN, 2000.0, 0.0, 1, "no"), "unhealthy"),  # nobody has asked for long
        (Probed(RUN, 1104.0, 1100.0, 1, "no"), "healthy"),
        (Probed(RUN, 1108.0, 1100.0, 2, "no"), "healthy"),
        (Probed(RUN, 1108.0, 1100.0, 3, "no"), "unhealthy"),
        (Probed(RUN, 1116.0, 1100.0, 1, "no"), "unhealthy"),
    ],
)
def test_state_follows_from_the_answers(found: Probed | None, state: str) -> None:
    assert health.judge(CHECK, RUN[1], found).state == state


@pytest.mark.parametrize("jump_s", [-86400, 86400])
def test_start_period_is_as_long_whatever_the_clock_does(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    now, wall = time.monotonic(), time.time()
    state = SimpleNamespace(state="running", pid=os.getpid(), started_at=wall - 4.0)
    monkeypatch.setattr(health_agent.status, "read", lambda service: state)
    monkeypatch.setattr(
        health_agent.crun, "open_in_service", lambda service, pid: os.pidfd_open(pid)
    )
    one = health_agent._Watched("api", "web", CHECK)
    health_agent._probe_if_due(one, now)
    one.close()
    monkeypatch.setattr(health_agent.time, "time", lambda: wall + jump_s)
    for later_s, counts in ((0.0, False), (20.0, True)):
        monkeypatch.setattr(health_agent.time, "monotonic", lambda later=later_s: now + later)
        assert health_agent._counts(one) == counts


def test_answers_are_counted_for_one_run_of_the_process() -> None:
    health.write_record("api", CHECK, RUN, "no")
    assert (
        health.read_record("api") is None
    )  # the service's folder is not there: nothing may be left
    folder = paths.service_dir("api")
    os.makedirs(folder)
    health.write_record("api", CHECK, RUN, "no")
    health.write_record("api", CHECK, RUN, "none")
    found = health.read_record("api")
    assert found is not None and (found.failures, found.failure, found.well_at) == (2, "none", 0.0)
    health.write_record("api", CHECK, RUN, "")
    found = health.read_record("api")
    assert found is not None and found.failures == 0 and found.well_at > 0
    health.write_record("api", CHECK, (13, 2000.0), "no")
    found = health.read_record("api")
    assert found is not None and (found.run, found.failures, found.well_at) == (
        (13, 2000.0),
        1,
        0.0,
    )


DAMAGED = {"run": RUN, "asked_at": 1.0, "well_at": 0.0, "failures": 1, "words": ""}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"run": 1}']
    + [json.dumps(DAMAGED | {name: None}) for name in DAMAGED]
    + [json.dumps(DAMAGED | {"asked_at": "1"}), json.dumps(DAMAGED | {"asked_at": 10**400})],
)
def test_record_that_cannot_be_read_counts_as_none(text: str) -> None:
    os.makedirs(os.path.dirname(paths.health_file("api")))
    with open(paths.health_file("api"), "w", encoding="utf-8") as file:
        file.write(text)
    assert health.read_record("api") is None


def test_only_those_that_are_due_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Healthcheck] = []
    told: list[Event] = []

    def begin(check: Healthcheck, service: str, namespace: str | None) -> health.HealthProbe:
        asked.append(check)
        return Answered(check, "")

    monkeypatch.setattr(health, "begin", begin)
    for name in ("one", "two"):
        os.makedirs(paths.service_dir(name))
    services = [
        health.HealthTarget(name, CHECK._replace(port=port), None, RUN)
        for name, port in (("one", 1), ("two", 2))
    ]
    health.write_record("one", CHECK, RUN, "")
    assert {
        name: found.state for name, found in health.check_all(services, told.append).items()
    } == {
        "one": "healthy",
        "two": "healthy",
    }
    assert [check.port for check in asked] == [2]
    health.check_all(services, told.append)
    assert len(asked) == 1
    found = health.read_record("one")
    assert found is not None
    with open(
        paths.health_file("one"), "w", encoding="utf-8"
    ) as file:  # a clock that was set back asks again
        file.write(json.dumps(found._replace(asked_at=time.time() + 3600)._asdict()))
    health.check_all(services, told.append)
    assert [check.port for check in asked] == [2, 1]
    assert told == [WaitingForHealth(("two",)), WaitingForHealth(("one",))]
