"""Test reading conmon's log files across rotations."""

from __future__ import annotations

import os
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from niso.base.errors import UsageError
from niso.look.session import moment
from niso.runtime import logs

STAMP = "2026-01-02T03:04:05.{:09d}+00:00"


class Files:
    """The log folder of the service ``demo``, written as conmon does."""

    def __init__(self, state: pathlib.Path) -> None:
        self.folder = state / "logs" / "demo"
        self.folder.mkdir(parents=True)
        self.count = 0

    def add(
        self, text: str, tag: str = "F", stream: str = "stdout", name: str = "service.log"
    ) -> None:
        self.count += 1
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(f"{STAMP.format(self.count)} {stream} {tag} {text}\n")


@pytest.fixture
def files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NISO_RUN_DIR", str(tmp_path / "run"))
    return Files(tmp_path / "state")


def test_log_of_a_service_that_never_ran_is_empty(files: Files) -> None:
    assert list(logs.read("other")) == []
    assert list(logs.read("other", 5)) == []


def test_partial_records_are_one_line_also_with_the_other_stream_between(files: Files) -> None:
    files.add("one ", "P")
    files.add("other", stream="stderr")
    files.add("two ", "P")
    files.add("three")
    files.add("")
    assert list(logs.read("demo")) == [b"other\n", b"one two three\n", b"\n"]


def test_line_that_was_not_ended_has_no_newline(files: Files) -> None:
    files.add("whole")
    files.add("prompt> ", "P")
    assert list(logs.read("demo")) == [b"whole\n", b"prompt> "]
    assert list(logs.read("demo", 1)) == [b"prompt> "]


def test_timestamp_is_that_of_the_lines_beginning(files: Files) -> None:
    files.add("a", "P")
    files.add("b")
    assert list(logs.read("demo", timestamps=True)) == [f"{STAMP.format(1)} ab\n".encode()]


def test_rotated_files_come_first_and_a_kept_one_only_once(files: Files) -> None:
    files.add("oldest", name="service.log.2")
    files.add("older", name="service.log.1")
    files.add("old", name="service.log.kept")
    files.add("new")
    assert list(logs.read("demo")) == [b"oldest\n", b"older\n", b"old\n", b"new\n"]
    os.unlink(files.folder / "service.log.kept")
    os.link(files.folder / "service.log", files.folder / "service.log.kept")
    assert list(logs.read("demo")) == [b"oldest\n", b"older\n", b"new\n"]


@pytest.mark.parametrize("last", [0, 1, 2, 3, 99, 100, 101, 2999, 3000, 3001, 10_000])
def test_last_lines_are_the_last_of_all(files: Files, last: int) -> None:
    for i in range(3000):
        name = "service.log.2" if i < 500 else "service.log.1" if i < 2900 else "service.log"
        if i % 7 == 0:
            files.add("begin ", "P", name=name)
        files.add(
            f"{i} {'x' * (i % 300)}",
            stream="stderr" if i % 7 and i % 5 == 0 else "stdout",
            name=name,
        )
    whole = list(logs.read("demo"))
    assert len(whole) == 3000
    assert list(logs.read("demo", last)) == (whole[-last:] if last else [])


def test_last_lines_read_little_of_a_large_log(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(files.folder / "service.log", "w", encoding="utf-8") as file:
        for i in range(200_000):
            file.write(f"{STAMP.format(i)} stdout F line {i}\n")
    counted = 0
    pread = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal counted
        counted += length
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert list(logs.read("demo", 2)) == [b"line 199998\n", b"line 199999\n"]
    assert counted < 1 << 20


@pytest.fixture
def follower(files: Files) -> Iterator[tuple[list[bytes], threading.Thread]]:
    files.add("before")
    files.add("unfinished ", "P")
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.extend(iter_into(seen)), daemon=True)
    thread.start()
    yield seen, thread
    shutil.rmtree(files.folder, ignore_errors=True)
    thread.join(60)


def iter_into(seen: list[bytes]) -> list[bytes]:
    for line in logs.read("demo", 1, follow=True):
        seen.append(line)
    return []


def wait_for(seen: list[bytes], expected: list[bytes]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if seen == expected:
            return
        pause.wait(0.01)
    assert seen == expected


def test_follow_goes_on_over_rotation_and_ends_with_the_folder(
    files: Files, follower: tuple[list[bytes], threading.Thread]
) -> None:
    seen, thread = follower
    files.add("line")
    wait_for(seen, [b"unfinished line\n"])
    os.rename(files.folder / "service.log", files.folder / "service.log.1")
    files.add("late", name="service.log.1")
    files.add("new")
    wait_for(seen, [b"unfinished line\n", b"late\n", b"new\n"])
    shutil.rmtree(files.folder)
    thread.join(60)
    assert not thread.is_alive()


def test_follow_shows_a_record_only_when_it_is_whole(
    files: Files, follower: tuple[list[bytes], threading.Thread]
) -> None:
    seen, _ = follower
    with open(files.folder / "service.log", "ab", buffering=0) as file:
        file.write(f"{STAMP.format(7)} stdout F ha".encode())
        threading.Event().wait(0.2)
        assert seen == []
        file.write(b"lf\n")
    wait_for(seen, [b"unfinished half\n"])


def test_line_written_while_the_past_is_read_is_shown_once(files: Files) -> None:
    files.add("past")
    lines = logs.records("demo", None, True, None)
    assert [record.text for record in (next(lines), next(lines)) if record] == [b"past"]
    files.add("between")  # the past has been read, following has not begun
    shown = next(lines)
    assert shown is not None and shown.text == b"between"


def test_small_log_is_given_its_second_name_and_not_rotated(files: Files) -> None:
    files.add("line")
    logs.rotate_if_large("demo")
    assert sorted(os.listdir(files.folder)) == ["service.log", "service.log.kept"]
    assert os.path.samefile(files.folder / "service.log", files.folder / "service.log.kept")


def test_large_log_is_rotated_and_two_older_ones_are_kept(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 10)
    for text in ("one", "two", "three", "four"):
        files.add(text)
        logs.rotate_if_large("demo")
    assert list(logs.read("demo")) == [b"three\n", b"four\n"]
    assert sorted(os.listdir(files.folder)) == ["service.log.1", "service.log.2"]


def test_file_that_conmon_replaced_by_itself_lives_on(files: Files) -> None:
    files.add("first")
    logs.rotate_if_large("demo")
    os.unlink(files.folder / "service.log")
    files.add("second")
    assert list(logs.read("demo")) == [b"first\n", b"second\n"]
    logs.rotate_if_large("demo")
    assert list(logs.read("demo")) == [b"first\n", b"second\n"]
    os.unlink(files.folder / "service.log")
    files.add("third")
    assert list(logs.read("demo")) == [b"first\n", b"second\n", b"third\n"]


def test_since_begins_with_the_first_line_of_that_time(files: Files) -> None:
    lines = [
        f"2026-01-02T03:0{minute}:00.000000000+01:00 stdout F {minute}\n" for minute in range(5)
    ]
    (files.folder / "service.log.1").write_text("".join(lines[:2]) + "not a line\n")
    (files.folder / "service.log").write_text("".join(lines[2:]))
    third = datetime(2026, 1, 2, 2, 2, tzinfo=UTC).timestamp()
    assert list(logs.read("demo", since=third)) == [b"2\n", b"3\n", b"4\n"]
    assert list(logs.read("demo", 1, since=third)) == [b"4\n"]
    assert list(logs.read("demo", since=third + 1000)) == []
    assert list(logs.read("demo", since=0)) == [f"{minute}\n".encode() for minute in range(5)]


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("2h", 7200), ("7d", 604_800), ("2026-03-01T12:00:00Z", None)]
)
def test_a_moment_is_a_time_or_a_period(text: str, ago: int | None) -> None:
    at = moment(text, "--since")
    if ago is None:
        assert at == datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    else:
        assert abs(time.time() - ago - at) < 60


@pytest.mark.parametrize("text", ["", "yesterday", "5", "-5m", "1.5h", "٣m", "99999999999999h"])
def test_what_is_not_a_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        moment(text, "--since")
    assert "10m" in (caught.value.hint or "")


def write_log(files: Files, service: str, *lines: str) -> None:
    folder = files.folder.parent / service
    folder.mkdir(exist_ok=True)
    with open(folder / "service.log", "a", encoding="utf-8") as file:
        for line in lines:
            second, text = line.split(" ", 1)
            file.write(f"2026-01-02T03:04:{second}.000000000+00:00 stdout F {text}\n")


def test_logs_of_several_services_are_one_in_order_of_time(files: Files) -> None:
    write_log(files, "api", "01 a", "04 d", "05 e")
    write_log(files, "db", "02 b", "03 c")
    names = ["api", "db", "never-ran"]
    expected = [("api", b"a\n"), ("db", b"b\n"), ("db", b"c\n"), ("api", b"d\n"), ("api", b"e\n")]
    assert list(logs.read_joint(names, None, False, False, None)) == expected
    assert list(logs.read_joint(names, 1, False, False, None)) == [("db", b"c\n"), ("api", b"e\n")]


def test_followed_logs_begin_in_order_and_go_on_until_all_are_removed(files: Files) -> None:
    write_log(files, "api", "01 a", "03 c")
    write_log(files, "db", "02 b")
    lines = logs.read_joint(["api", "db"], None, True, False, None)
    assert [next(lines) for _ in range(3)] == [("api", b"a\n"), ("db", b"b\n"), ("api", b"c\n")]
    write_log(files, "db", "04 d")
    assert next(lines) == ("db", b"d\n")
    write_log(files, "api", "05 e")
    assert next(lines) == ("api", b"e\n")
    for service in ("api", "db"):
        shutil.rmtree(files.folder.parent / service)
    assert list(lines) == []
