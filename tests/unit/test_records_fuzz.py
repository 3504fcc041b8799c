"""Test that damaged files of niso are treated as missing, without a traceback."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import samples

from niso.base import paths
from niso.base.text import time_text
from niso.cli.output import escaped_lines
from niso.kernel import sockets
from niso.runtime import crun, health, logs, status

BOUNDED = settings(
    max_examples=samples(60, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
PHASES = st.sampled_from(["running", "starting", "restarting", "exited", "failed", "none"])
STATE = st.fixed_dictionaries(
    {
        "run": st.integers() | VALUES,
        "phase": PHASES | VALUES,
        "restarts": st.integers(0, 9) | VALUES,
        "failures": st.integers() | VALUES,
    },
    optional={
        name: VALUES
        for name in (
            "pid",
            "exit_code",
            "started_at",
            "starter",
            "error",
            "launched_at",
            "started_monotonic",
        )
    },
)
HEALTH = st.fixed_dictionaries(
    {name: VALUES for name in ("run", "asked_at", "well_at", "failures", "words")},
    optional={"more": VALUES},
)


@pytest.fixture
def service() -> str:
    os.makedirs(paths.service_dir("demo"))
    os.makedirs(paths.log_dir("demo"))
    os.makedirs(os.path.dirname(paths.health_file("demo")))
    return "demo"


def written(path: str, content: Any) -> None:
    data = (
        content
        if isinstance(content, bytes)
        else json.dumps(content).encode("utf-8", "surrogatepass")
    )
    pathlib.Path(path).write_bytes(data)


@BOUNDED
@given(st.one_of(STATE, VALUES, st.binary(max_size=40)), st.one_of(VALUES, st.binary(max_size=40)))
@example(b"", b"")
@example(b"\xff", b"[" * 100_000)
@example({"run": 1, "phase": "starting", "restarts": 0, "failures": 0}, {"service": "demo"})
def test_damaged_records_of_a_process_count_as_none(service: str, state: Any, saved: Any) -> None:
    written(f"{paths.service_dir(service)}/state.json", state)
    written(f"{paths.service_dir(service)}/spec.json", saved)
    found = status.read(service)
    assert isinstance(found.state, str) and isinstance(found.restarts, int)
    assert crun.load(service) is None
    assert status.runs(service) in (True, False) and status.conmon(service) is None
    status.out_of_memory(service)
    logs.rotate_if_large(service)


@BOUNDED
@given(st.one_of(HEALTH, VALUES, st.binary(max_size=40)))
def test_damaged_answers_of_a_healthcheck_count_as_none(service: str, found: Any) -> None:
    written(paths.health_file(service), found)
    known = health.read_record(service)
    if known is not None:
        asked = health.HealthTarget(service, None, None, (1, 2.0))  # type: ignore[arg-type]
        assert known.run == (1, 2.0) or health._current(asked) is None


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(
            lambda text: b"2026-01-02T03:04:05.000000001+00:00 stdout F " + text
        ),
        st.binary(max_size=60).map(
            lambda text: b"2026-01-02T03:04:05.000000001+00:00 stderr P " + text
        ),
        st.binary(max_size=60),
    ),
    max_size=8,
)


@BOUNDED
@given(LINES, st.booleans(), st.none() | st.integers(0, 5), st.booleans())
def test_whatever_is_in_a_log_it_is_read_and_shown_without_control_bytes(
    service: str, lines: list[bytes], ended: bool, last: int | None, stamps: bool
) -> None:
    written(f"{paths.log_dir(service)}/{paths.LOG_NAME}", b"\n".join(lines) + b"\n" * ended)
    for chunk in logs.read(service, last, timestamps=stamps):
        shown = escaped_lines(chunk.decode("utf-8", "replace"))
        assert shown.replace("\n", "").replace("\t", "").isprintable()


@BOUNDED
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.just(b"HTTP/1.1 200 OK\r\n\r\n"),
            st.just(b"HTTP/1.1 100 \r\n"),
        ),
        max_size=6,
    )
)
def test_no_answer_to_a_healthcheck_makes_it_fail(blocks: list[bytes]) -> None:
    code, rest = health._status(b"".join(blocks))
    assert code is None or 200 <= code <= 999 or code < 100
    assert len(rest) <= len(b"".join(blocks))


@BOUNDED
@given(st.binary(max_size=80))
def test_words_of_the_runtime_are_one_line(words: bytes) -> None:
    assert "\n" not in crun.plain_message(words) and "\r" not in crun.plain_message(words)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=2**36))
def test_times_can_be_shown(seconds: float) -> None:
    assert time_text(seconds)


def test_name_that_a_program_gives_itself_is_one_line() -> None:
    mine = pathlib.Path("/proc/self/comm")
    before = mine.read_text()
    with socket.socket() as held:
        inode = os.fstat(held.fileno()).st_ino
        try:
            mine.write_text("x\nniso: done")
            found = sockets.holder(inode)
        finally:
            mine.write_text(before)
    assert found == (os.getpid(), "x niso: done")
