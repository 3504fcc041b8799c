"""Test that progress depends on the type of an event."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from niso.base.errors import Error
from niso.base.report import (
    AskingCluster,
    Command,
    Event,
    ExpectingHealth,
    Finished,
    Forgetting,
    Healthy,
    Recovered,
    Starting,
    Stopping,
    Undoing,
    Unfinished,
    WaitingForLock,
    WarningEvent,
)
from niso.cli.output import Progress
from niso.kernel.kinds.kind import Step
from niso.kernel.kinds.sysctls import Sysctl


def progress(**options: Any) -> Progress:
    args: Any = SimpleNamespace(json=False, **options)
    return Progress(args)


@pytest.mark.parametrize(
    ("events", "waited"),
    [
        ([Starting("api", ("sleep", "1"))], ["api"]),
        ([Starting("api"), Starting("web")], ["api", "web"]),
        ([Starting("api"), Starting("web"), Healthy("api")], ["web"]),
        ([Starting("other")], []),  # it has no healthcheck
        ([Starting("api"), Forgetting("is healthy")], ["api"]),  # whatever its name is
        ([Starting("api"), Undoing("api")], []),
        ([Starting("api"), Stopping("web")], []),
    ],
)
def test_it_knows_which_services_are_waited_for(events: list[Event], waited: list[str]) -> None:
    shows = progress()
    with shows as report:
        report(ExpectingHealth(("api", "web")))
        for event in events:
            report(event)
        assert list(shows._unhealthy) == waited


def test_what_became_of_an_interrupted_change_is_always_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as report:
        report(Recovered("db", "remove", False))
        report(Unfinished("web", Error("no such link", service="web")))
    assert capsys.readouterr().err == (
        "niso: warning: db: the interrupted remove was completed\n"
        "niso: warning: web: the interrupted change is still incomplete: web: no such link\n"
    )


def test_thread_begins_with_what_may_be_slow() -> None:
    shows = progress()
    with shows as report:
        report(Command("start of nothing"))
        assert not shows._running
        report(WaitingForLock())
        assert shows._running
        report(Finished())
        assert not shows._running  # what follows is no part of what was waited for


def test_slow_line_names_what_runs_not_the_last_step_that_was_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("niso.cli.output.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("niso.cli.output.start_new_thread", lambda *_: None)
    shows = progress()
    with shows as report:
        for event, step, since in (
            (Stopping("api"), "stop api", 101),
            # a plan is announced as a whole before it is executed, checked and recorded
            (Step("add", Sysctl("", "net/ipv4/ip_forward", "1")), "changing the network", 102),
            (Command("ip netns attach niso-api 1"), "changing the network", 102),
            (AskingCluster(), "waiting for the cluster to answer", 104),
            (Starting("api"), "start api", 105),
        ):
            now[0] += 1
            report(event)
            assert (shows._step, shows._since) == (step, since)
        report(Finished())


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ({"verbose": True}, "", "start api: sleep 1\nnft 'a'\nnft 'b'\n"),
        ({"dry_run": True}, "start api: sleep 1\nnft 'a'\nnft 'b'\n", ""),
        ({}, "", ""),
    ],
)
def test_options_show_every_line(
    capfd: pytest.CaptureFixture[str],
    options: dict[str, bool],
    out: str,
    err: str,
) -> None:
    with progress(**options) as report:
        report(Starting("api", ("sleep", "1")))
        report(Command("nft 'a'\nnft 'b'"))
    assert capfd.readouterr() == (out, err)


@pytest.mark.parametrize("options", [{}, {"verbose": True}, {"dry_run": True}])
def test_warning_is_shown_whatever_the_options(
    capfd: pytest.CaptureFixture[str], options: dict[str, bool]
) -> None:
    with progress(**options) as report:
        report(WarningEvent("beware", ("do this",)))
    out = "nothing to do\n" if options.get("dry_run") else ""
    assert capfd.readouterr() == (out, "niso: warning: beware\n  hint: do this\n")


def test_wait_for_a_lock_is_no_step_of_a_dry_run(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(dry_run=True, verbose=True) as report:
        report(WaitingForLock())
    assert capfd.readouterr().out == "nothing to do\n"
    with pytest.raises(OSError), progress(dry_run=True):
        raise OSError
    assert capfd.readouterr().out == ""
