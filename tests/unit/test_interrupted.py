"""Ctrl-C between the step that takes something and the block that gives it back: whoever undoes must be able to take it again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

import pytest

from niso.apply import Lock
from niso.child import ENDING, signals_held
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
    import signal

    real, calls = signal.pthread_sigmask, []

    def mask(how: int, which: Any) -> Any:
        calls.append(how)
        done = real(how, which)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(signal, "pthread_sigmask", mask)
        with pytest.raises(KeyboardInterrupt), signals_held():
            pytest.fail("it is interrupted before")
    assert not real(signal.SIG_BLOCK, ()) & set(ENDING)
