"""Test that errors are data, rendered in one place."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from niso.base.errors import Conflict, Error, ErrorGroup, InvalidInput, UsageError, flatten
from niso.cli import main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Error("needs root"), "needs root"),
        (Error("is gone", service="api"), "api: is gone"),
        (InvalidInput("nested too deep", file="/m.toml"), "/m.toml: nested too deep"),
        (
            InvalidInput(
                "is a number", None, "a.b", file="/m.toml", value="3", right="must be a string"
            ),
            "/m.toml: a.b: 3 is a number (must be a string)",
        ),
        (
            InvalidInput("missing key a.b", None, "a.b", right="a string", names_key=False),
            "missing key a.b (a string)",
        ),
        (
            InvalidInput(
                "unknown key", None, "a.c", value="3", right="did you mean a.b?", about_key=True
            ),
            "a.c = 3: unknown key (did you mean a.b?)",
        ),
        (
            InvalidInput("is out of range", None, "--mtu", value="3", right="68 to 65535"),
            "--mtu 3 is out of range (68 to 65535)",
        ),
        (UsageError("10.0.0.0/33: too long", None, "--subnet"), "--subnet 10.0.0.0/33: too long"),
        (Conflict("port 80 is taken", None, "PORT", names_key=False), "port 80 is taken"),
        (Error("is gone", service="api", file="/m.toml"), "/m.toml: is gone"),
    ],
)
def test_message_says_where_and_what(error: Error, message: str) -> None:
    assert (error.message, str(error)) == (message, message)


def test_error_of_another_class_says_the_same_in_the_same_place() -> None:
    error = InvalidInput("is r", "h", "k", file="/f", value="v", right="w", service="s")
    other = Conflict.of(error)
    assert type(other) is Conflict
    assert vars(other) == vars(error)
    other.file, other.key = "/stack.toml", "service[0].k"
    assert other.message == "/stack.toml: service[0].k: v is r (w)"
    assert error.file == "/f"


def test_group_says_all_and_takes_hint_and_key_of_the_first() -> None:
    inner = ErrorGroup([UsageError("a", "do b", "K"), Error("c", service="s")])
    assert (inner.message, inner.hint, inner.key, inner.exit_status) == (
        "K: a; s: c",
        "do b",
        "K",
        2,
    )
    assert [one.reason for one in flatten(ErrorGroup([inner, Error("d")]))] == ["a", "c", "d"]


# --- where nothing can be imported or held any more -------------------------------------------------------------------


def test_lack_of_memory_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: list[str]) -> int:
        raise MemoryError

    monkeypatch.setattr(main, "_command", command)
    assert main.run(["version"]) == 1
    assert capsys.readouterr().err.startswith("niso: out of memory\n")


def test_error_is_said_where_no_module_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    def command(_: list[str]) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/run/niso/lock")

    monkeypatch.setattr(main, "_command", command)
    monkeypatch.delitem(sys.modules, "niso.cli.main", raising=False)
    monkeypatch.delattr("niso.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder()])
    assert main.run(["version"]) == 1
    assert capfd.readouterr().err == "niso: /run/niso/lock: Too many open files\n"
