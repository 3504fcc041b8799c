"""Test misuse of the Python API, and its results as values.

tests/netns/test_api.py has what needs a kernel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from refusals import refuses

import niso
from niso.api.host import JOINED, PYTHON_ONLY
from niso.base import locks, paths
from niso.look import session as look_session
from niso.look.services import Process
from niso.store.store import Store


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> niso.Host:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return niso.connect()


def test_without_root_nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with refuses(niso.Error, hint="run it with sudo"):
        niso.connect()


def holding(value: object) -> niso.Package:
    """Return a package with a value in its environment."""
    return niso.Package(
        {
            "package": {"name": "x", "version": "1"},
            "binary": {"entrypoint": "true"},
            "environment": {"A": value},
        },
        "/",
    )


def endless() -> dict[str, object]:
    table: dict[str, object] = {}
    table["a"] = table
    return table


MISUSES: list[tuple[Callable[[niso.Host], object], type[niso.Error], str]] = [
    (lambda host: host.services.activate(3), niso.UsageError, "what: must be a path, not int"),  # type: ignore[arg-type]
    (lambda host: host.services.activate("\udc80"), niso.UsageError, "not valid UTF-8"),
    (lambda host: host.services.activate("x", timeout="60s"), niso.UsageError, "seconds"),  # type: ignore[arg-type]
    (lambda host: host.services.activate("x", timeout=0), niso.UsageError, "timeout: 0 must"),
    (lambda host: host.services.activate("x", timeout=float("nan")), niso.UsageError, "nan"),
    (lambda host: host.services.activate("nobody"), niso.NotFound, "'nobody'"),
    (lambda host: host.services.activate("./none"), niso.NotFound, "no such file"),
    (lambda host: host.services.activate(niso.Package({}, "none")), niso.NotFound, "folder"),
    (lambda host: host.services.activate(niso.Package({}, "/")), niso.ErrorGroup, "package"),
    (lambda host: host.services.activate(niso.Package(3, "/")), niso.InvalidInput, "table"),  # type: ignore[arg-type]
    (lambda host: host.services.activate(niso.Package({1: {}}, "/")), niso.ErrorGroup, "1"),  # type: ignore[dict-item]
    (lambda host: host.services.activate(holding("\udcff")), niso.InvalidInput, "not valid UTF-8"),
    (lambda host: host.services.activate(holding({"\udcff": ""})), niso.InvalidInput, "UTF-8"),
    (
        lambda host: host.services.activate(holding(endless())),
        niso.InvalidInput,
        "nested too deeply",
    ),
    (
        lambda host: host.services.activate(holding(b"x")),
        niso.ErrorGroup,
        "an object of type bytes",
    ),
    (lambda host: host.services.inspect(None), niso.UsageError, "name: must be a string"),  # type: ignore[arg-type]
    (lambda host: host.services.inspect("nobody"), niso.NotFound, "'nobody'"),
    (lambda host: host.services.restart("nobody"), niso.NotFound, "'nobody'"),
    (lambda host: host.services.logs("nobody"), niso.NotFound, "'nobody'"),
    (lambda host: host.services.exec("nobody", "ls"), niso.UsageError, "list of strings"),
    (lambda host: host.services.run("nobody", []), niso.UsageError, "missing command"),
    (lambda host: host.services.run("nobody", ["ls"], stdin="x"), niso.UsageError, "stdin: must"),  # type: ignore[arg-type]
    (lambda host: host.services.port_forward("x", 80), niso.UsageError, "string"),  # type: ignore[arg-type]
    (lambda host: host.services.port_forward("x", "80:http"), niso.UsageError, "PORT"),
    (
        lambda host: host.services.run("nobody", ["l\0s"]),
        niso.UsageError,
        "command: contains a NUL",
    ),
    (lambda host: host.services.port_forward("x", "80:80"), niso.NotFound, "'x'"),
    (lambda host: host.networks.inspect("none"), niso.NotFound, "'none'"),
    (lambda host: host.networks.create("No"), niso.UsageError, "NAME"),
    (lambda host: host.networks.create("n", mtu="big"), niso.UsageError, "mtu"),  # type: ignore[arg-type]
    (
        lambda host: host.networks.create("n", subnets="10.0.0.0/8"),
        niso.UsageError,
        "list of strings",
    ),
    (lambda host: host.networks.create("n", subnets=3), niso.UsageError, "list of strings"),  # type: ignore[arg-type]
    (lambda host: host.stacks.up("none"), niso.NotFound, "none"),
    (lambda host: host.stacks.status(b"\xff"), niso.UsageError, "string"),  # type: ignore[arg-type]
    (lambda host: host.explain("a", "b", family=5), niso.UsageError, "family"),
    (lambda host: host.check("nobody"), niso.NotFound, "'nobody'"),
]


@pytest.mark.parametrize(("call", "kind", "words"), MISUSES)
def test_misuse_is_an_error_of_niso(
    host: niso.Host, call: Callable[[niso.Host], object], kind: type[niso.Error], words: str
) -> None:
    Store.open().close()
    with pytest.raises(kind) as caught:
        call(host)
    assert words in caught.value.message


def test_host_belongs_to_its_thread(host: niso.Host) -> None:
    Store.open().close()
    host.services.list()
    caught: list[BaseException] = []

    def use() -> None:
        try:
            host.services.list()
        except niso.Conflict as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "another thread" in str(caught[0])


def test_host_belongs_to_its_folders(
    host: niso.Host, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NISO_STATE_DIR", "NISO_RUN_DIR"):
        monkeypatch.setenv(name, os.environ[name])  # put back afterwards
    other = niso.connect(state_dir=tmp_path / "other", run_dir=str(tmp_path / "run2"))
    assert paths.state_dir() == str(tmp_path / "other") and paths.run_dir() == f"{tmp_path}/run2"
    assert other.services.list() == ()
    with refuses(niso.Conflict, hint="use one state folder and one run folder per process"):
        host.services.list()
    with refuses(niso.UsageError, key="state_dir"):
        niso.connect(state_dir=3)  # type: ignore[arg-type]


def test_relative_folders_are_those_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("NISO_STATE_DIR", "state")
    monkeypatch.setenv("NISO_RUN_DIR", "run")
    monkeypatch.chdir(tmp_path)
    with niso.connect():
        monkeypatch.chdir("/")
        assert paths.state_dir() == f"{tmp_path}/state"
        assert paths.run_dir() == f"{tmp_path}/run"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (":80", "8080:80"),
        ("127.0.0.1::80", "127.0.0.1:8080:80"),
        ("[::]::80-81/udp", "[::]:8080-8081:80-81/udp"),
    ],
)
def test_forward_without_a_host_port_shows_one_with_it(
    host: niso.Host, given: str, shown: str
) -> None:
    with pytest.raises(niso.UsageError) as caught:
        host.services.port_forward("api", given)
    assert caught.value.hint == f"niso port-forward api {shown}"


def test_store_that_appears_is_seen_and_a_closed_one_opened_again(host: niso.Host) -> None:
    assert host.networks.names() == ()
    Store.open().close()
    with host:
        assert host.services.names() == ()
    assert host.services.list() == ()


def test_damaged_store_is_an_error_of_niso(host: niso.Host) -> None:
    Store.open().close()
    with open(paths.database(), "wb") as file:
        file.write(b"no database" * 1000)
    with pytest.raises(niso.Error, match=r"state\.db"):
        host.services.list()


def test_errors_of_sqlite_and_of_the_system_become_nisos(host: niso.Host) -> None:
    class Broken:
        session = host.session

        @look_session.guarded
        def fail(self, error: Exception) -> None:
            raise error

    import sqlite3

    for error in (
        sqlite3.OperationalError("disk I/O error"),
        OSError(28, "No space left on device"),
        FileNotFoundError(2, "No such file or directory", "/x"),
    ):
        with pytest.raises(niso.Error) as caught:
            Broken().fail(error)
        assert caught.value.__cause__ is error
    with pytest.raises(ZeroDivisionError):  # a defect is seen as one
        Broken().fail(ZeroDivisionError())


def test_error_of_the_callback_is_the_callers_own(host: niso.Host) -> None:
    def full(event: niso.Event) -> None:
        raise OSError(28, "No space left on device")

    host.progress = full

    class Reporting:
        session = host.session

        @look_session.guarded
        def report(self) -> None:
            self.session.report(niso.Starting("api"))

    with pytest.raises(OSError, match="No space"):
        Reporting().report()


def test_results_become_the_data_of_json() -> None:
    port = niso.Port("::", 80, 8080, "tcp", 2, anywhere=True)
    row = {"host_ip": "::", "host_port": 80, "container_port": 8080, "proto": "tcp", "range": 2}
    assert niso.plain(port) == row
    published = niso.PublishedPort("api", "[::]:80-81", 8080, port, ("this host",))
    head = {"service": "api", "host": "[::]:80-81", "container": 8080}
    assert niso.plain(published) == {**head, **row, "from": ["this host"]}
    assert niso.plain((published._replace(from_=None),)) == [{**head, **row}]
    stats = niso.Stats("api", 1, 2, 3, 4, 5, None, 7, None, None)
    assert list(niso.plain(stats)) == [
        "service",
        *(f"{way}-{what}" for way in ("in", "out") for what in ("packets", "bytes", "drops")),
        *("foreign", "in-audits", "out-audits"),
    ]
    assert niso.plain({"a": 1}) == {"a": 1} and niso.plain(None) is None


def test_fields_that_json_treats_otherwise_are_fields() -> None:
    fields = {
        field for name in dir(niso) for field in getattr(getattr(niso, name), "_fields", ())
    } | {"label"}
    assert set(JOINED) | set(PYTHON_ONLY) <= fields
    assert Process(1, *[None] * 10).pid == 1


def test_results_cannot_be_changed() -> None:
    done = niso.Done("api", True)
    with pytest.raises(AttributeError):
        done.changed = False  # type: ignore[misc]
    assert done == niso.Done("api", True) and hash(done)


def test_error_has_message_hint_and_key() -> None:
    error = niso.Conflict("taken", "choose another", "network.ip")
    assert isinstance(error, niso.Error)
    assert (error.reason, error.hint, error.key) == ("taken", "choose another", "network.ip")
    assert error.message == "network.ip: taken"
    for kind in ("NotFound", "InvalidInput", "UsageError", "KernelError", "ProcessError"):
        assert issubclass(getattr(niso, kind), niso.Error)


@pytest.mark.parametrize("fails", [False, True])
def test_waiting_for_locks_is_reported_only_until_the_call_ends(
    host: niso.Host, fails: bool
) -> None:
    class Part:
        session = host.session

        @look_session.guarded
        def look(self) -> None:
            pass

        @look_session.guarded
        def change(self) -> None:
            self.session.report_waits()
            self.look()  # as a callback may, in the middle of a change
            assert locks.listener == self.session.report
            if fails:
                raise niso.Conflict("taken")

    with pytest.raises(niso.Conflict) if fails else nullcontext():
        Part().change()
    assert locks.listener is None
