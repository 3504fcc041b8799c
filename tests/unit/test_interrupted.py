"""Test Ctrl-C between acquiring something and the block that releases it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.kernel import Fake
from fakes.processes import FakeProcesses

from niso.base import locks
from niso.base.errors import Error
from niso.base.locks import Lock
from niso.base.native import signal
from niso.base.report import WaitingForLock
from niso.base.signals import ENDING, signals_blocked
from niso.change import undo
from niso.cli import main
from niso.cli.main import BURST_S, interrupt, state
from niso.runtime import crun, entrypoint, lifecycle
from niso.runtime.machine import Machine
from niso.store import sqlite
from niso.store.store import Store


def interrupted(real: Callable[..., Any]) -> Callable[..., Any]:
    """``real``, and then Ctrl-C."""

    def run(*args: Any) -> Any:
        real(*args)
        raise KeyboardInterrupt

    return run


def test_nisos_lock_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", interrupted(fcntl.flock))
        with pytest.raises(KeyboardInterrupt), Lock():
            pytest.fail("it is interrupted before")
    fd = os.open(os.path.join(os.environ["NISO_RUN_DIR"], "lock"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_no_transaction_is_left_open() -> None:
    store = Store.open()
    connection = store._db

    class Connection:
        in_transaction = property(lambda _: connection.in_transaction)

        def execute(self, text: str) -> Any:
            done = connection.execute(text)
            if text.startswith("BEGIN"):
                raise KeyboardInterrupt
            return done

    with pytest.raises(KeyboardInterrupt), sqlite.Transaction(Connection()):  # type: ignore[arg-type]
        pytest.fail("it is interrupted before")
    with store.transaction():
        pass


def test_signals_are_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = signal.pthread_sigmask, []

    def mask(how: int, which: Any) -> Any:
        calls.append(how)
        done = real(how, which)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(signal, "pthread_sigmask", mask)
        with pytest.raises(KeyboardInterrupt), signals_blocked():
            pytest.fail("it is interrupted before")
    assert not real(signal.SIG_BLOCK, ()) & set(ENDING)


LOSES_IT = """
import os, signal, sys, time
from niso.cli.main import end_on_signals

class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10):
            pass
        sys.exit("it has not come here")

if sys.argv[1:] == ["held"]:
    from niso.base.signals import signals_blocked
end_on_signals()
try:
    it = Lost()
    del it
    if sys.argv[1:] == ["held"]:
        with signals_blocked():
            time.sleep(0.1)
            sys.stdout.write("held, ")
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("how", ["", "held"])
def test_one_that_comes_where_nothing_can_be_raised_comes_again(how: str) -> None:
    argv = [sys.executable, "-c", LOSES_IT, *([how] if how else [])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (
        "held, interrupted\n" if how else "interrupted\n",
        "",
        0,
    )


def test_error_after_one_is_told_and_the_command_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: list[str]) -> int:
        try:
            interrupt()
        except KeyboardInterrupt:
            raise Error("a file is closed twice") from None
        return 0

    monkeypatch.setattr(main, "_command", command)
    monkeypatch.setattr(state, "last", -BURST_S)
    monkeypatch.setattr(state, "over", False)
    assert main.run(["ps"]) == 130
    assert capsys.readouterr().err == "niso: a file is closed twice\nniso: interrupted\n"


def test_nothing_is_closed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        closed.append(fd)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "close", lambda fd: close(fd) if not closed else real(fd))
        entrypoint.open_inside({"": "/"}, "/usr/bin/env")


def test_nisos_lock_that_an_interrupt_kept_from_being_released_is_taken_again() -> None:
    held = """
import fcntl, os
from niso.base.locks import Lock
from niso.base.native import signal
Lock().__enter__()  # and an interrupt comes as the block ends, before anything is closed
with Lock():
    fd = os.open(os.path.join(os.environ["NISO_RUN_DIR"], "lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("held")
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
    done = subprocess.run(
        [sys.executable, "-c", held], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("held\n", "")


def test_nisos_lock_whose_release_was_interrupted_is_taken_again_by_who_undoes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Lock, "__exit__", interrupted(lambda *_: None))
            with Lock():
                pass
    except KeyboardInterrupt:
        with Lock():
            assert is_held()
    assert not is_held()


def test_nisos_lock_that_is_taken_in_its_own_block_is_refused_and_stays_held() -> None:
    with Lock():
        with pytest.raises(RuntimeError, match="already holds"), Lock():
            pytest.fail("the outer one would have been released")
        assert is_held()
    with Lock():  # and one after the other is none of that
        assert is_held()


def is_held() -> bool:
    """Whether somebody has niso's lock."""
    fd = os.open(os.path.join(os.environ["NISO_RUN_DIR"], "lock"), os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_lock_that_another_one_holds_is_waited_for_no_longer_than_asked() -> None:
    with Lock():
        fd = os.open(os.path.join(os.environ["NISO_RUN_DIR"], "lock"), os.O_RDWR)
        try:
            locks.flock(fd, WaitingForLock(), 0.05)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


def test_first_one_lets_the_undoing_of_a_failure_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "last", -BURST_S)
    monkeypatch.setattr(state, "over", False)
    monkeypatch.setattr(undo, "undoing", True)
    interrupt()
    interrupt()  # a burst is one
    monkeypatch.setattr(state, "last", state.last - BURST_S)
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_one_that_comes_while_modules_are_imported_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "over", False)
    for there in (types.ModuleType("niso.change.undo"), None):
        monkeypatch.setattr(state, "last", -BURST_S)
        monkeypatch.setitem(sys.modules, "niso.change.undo", there)
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_undoing_is_one_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(undo, "undo", lambda *_: seen.append(undo.undoing) or {})
    kernel = Fake()
    machine = Machine(Store.open(), kernel, FakeProcesses(kernel))
    undo.undo_all(machine, [], Error("it is unhealthy"))
    undo.undo_all(machine, [], KeyboardInterrupt())
    assert (seen, undo.undoing) == ([True, False], False)


def test_crun_that_creates_is_no_conmon(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = os.path.join(os.environ["NISO_RUN_DIR"], "services", "a", "run-0").encode()
    lines = {
        1: [b"conmon", b"-b", bundle, b"-p", bundle + b"/pid", b"-P", bundle + b"/conmon.pid"],
        2: [
            b"crun",
            b"create",
            b"--bundle",
            bundle,
            b"--pid-file",
            bundle + b"/pid",
            b"niso-service-a",
        ],
    }
    monkeypatch.setattr(crun, "command_line", lambda pid: lines.get(pid, []))
    monkeypatch.setattr(os, "listdir", lambda _: ["1", "2", "self"])
    assert lifecycle._conmons(["a"]) == [(1, bundle.decode())]
    assert lifecycle._conmons(["a-b"]) == []  # the name of the other service is part of its own


def test_create_that_conmon_waits_for_is_killed_with_it(tmp_path: Path) -> None:
    waits = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    child = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", waits, child, str(tmp_path)]) as conmon:
        (tmp_path / "conmon.pid").write_text(str(conmon.pid))
        while not (pids := crun.children(conmon.pid)) or not crun.is_supervisor(
            pids[0], str(tmp_path)
        ):
            assert conmon.poll() is None
            time.sleep(0.01)
        lifecycle.end_conmon(str(tmp_path))
        assert not os.path.exists(f"/proc/{pids[0]}")
        assert conmon.wait(5) == 0  # it ended by itself, before it would have been killed


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "99999999999999999999", "9" * 5000])
def test_file_without_a_possible_pid_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert crun.read_pid(f"{tmp_path}/pid") is None


def test_nisos_lock_of_another_thread_is_waited_for() -> None:
    order: list[str] = []

    def other() -> None:
        with Lock():
            order.append("other")

    with Lock():
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("this one")
    thread.join(60)
    assert order == ["this one", "other"]
