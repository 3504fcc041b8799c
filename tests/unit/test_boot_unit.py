"""Test the text of a service's systemd unit, and that systemd parses each word as intended."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from niso.base import paths
from niso.base.errors import Conflict
from niso.change import boot
from niso.runtime import units as runtime_units


def words(line: str) -> list[str]:
    """Split a line as systemd does: quotes, C escapes, then specifiers (systemd.syntax(7), systemd.unit(5))."""
    found: list[bytes] = []
    text = os.fsencode(line)
    i, inside, word = 0, False, None
    while i < len(text):
        each = text[i : i + 1]
        if each == b'"':
            inside, word = not inside, word or b""
        elif each == b"\\":
            i += 1
            kind = text[i : i + 1]
            if kind == b"x":
                word = (word or b"") + bytes([int(text[i + 1 : i + 3], 16)])
                i += 2
            else:
                assert kind in b'"\\', kind
                word = (word or b"") + kind
        elif each == b" " and not inside:
            if word is not None:
                found.append(word)
            word = None
        else:
            assert each != b"'", (
                "a single quote outside of double ones would begin a string" if not inside else ""
            )
            word = (word or b"") + each
        i += 1
    assert not inside
    if word is not None:
        found.append(word)
    for each in found:
        assert b"%" not in each.replace(b"%%", b""), "a specifier"
    return [os.fsdecode(each.replace(b"%%", b"%")) for each in found]


ODD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(ODD, min_size=1, max_size=4))
@example(["/a b", "100%", '"', "\\", "'", "$HOME", "a\nb", "ü", ";", "#", ""])
def test_any_word_is_read_back(given) -> None:
    line = " ".join(runtime_units.quoted(each) for each in given)
    assert "\n" not in line and all(c.isascii() and (c == " " or c.isprintable()) for c in line)
    if all("'" not in each for each in given):
        assert words(line) == given


def test_a_single_quote_stands_in_double_ones() -> None:
    assert runtime_units.quoted("it's") == '"it\'s"'


def test_bytes_that_are_no_text_are_kept() -> None:
    assert words(runtime_units.quoted(os.fsdecode(b"/a\xff"))) == [os.fsdecode(b"/a\xff")]


def lines(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_usual_folders_are_not_named(monkeypatch) -> None:
    monkeypatch.delenv("NISO_STATE_DIR")
    monkeypatch.delenv("NISO_RUN_DIR")
    text = boot.unit_text("api", "01234567", None, 10.0, False, False)
    assert lines(text, "Environment") == [] and lines(text, "Requires") == []
    assert lines(text, "RequiresMountsFor") == ["/var/lib/niso"]
    assert [words(line) for line in lines(text, "ExecStart")] == [
        [f":{sys.executable}", "-I", "-m", "niso.cli", "activate", "api"]
    ]
    assert lines(text, "Restart") == ["no"] and lines(text, "Type") == ["notify"]
    assert (
        text.startswith("# written by niso enable, removed by niso disable;")
        and "01234567" in text.splitlines()[0]
    )


def test_only_units_of_this_state_folder_are_replaced() -> None:
    def refuse(text: str, state_id: str) -> None:
        units = SimpleNamespace(read=lambda service: text)
        boot._refuse_foreign(units, SimpleNamespace(state_id=lambda: state_id), "api")

    own = boot.unit_text("api", "01234567", None, 1.0, False, False)
    refuse(own, "01234567")
    with pytest.raises(Conflict):
        refuse(own, "89abcdef")
    with pytest.raises(Conflict):
        refuse("# written by hand\n[Unit]\n", "01234567")


def test_other_folders_and_pool_are_given_on(monkeypatch) -> None:
    state = '/srv/ni so/%h/"$x"\\ü'
    monkeypatch.setenv("NISO_STATE_DIR", state)
    monkeypatch.setenv("NISO_RUN_DIR", "/run/other")
    monkeypatch.setenv("NISO_POOL", "10.5.0.0/16")
    text = boot.unit_text("api", "01234567", None, 10.0, False, False)
    assert [words(line) for line in lines(text, "Environment")] == [
        [f"NISO_STATE_DIR={state}"],
        ["NISO_RUN_DIR=/run/other"],
        ["NISO_POOL=10.5.0.0/16"],
    ]
    assert [words(line) for line in lines(text, "RequiresMountsFor")] == [[state]]
    assert paths.state_dir() == state


def test_a_sharer_comes_with_and_after_its_provider() -> None:
    text = boot.unit_text("side", "01234567", "api", 10.0, False, False)
    assert lines(text, "Requires") == ["niso-api.service"]
    (after,) = lines(text, "After")
    assert {
        "niso-api.service",
        "network-online.target",
        "nftables.service",
        "docker.service",
        "libvirtd.service",
    } <= set(after.split())


@pytest.mark.parametrize("stop_timeout_s", [0.2, 10.0, 3600.0])
def test_systemd_waits_longer_than_niso(stop_timeout_s) -> None:
    text = boot.unit_text("api", "01234567", None, stop_timeout_s, False, False)
    assert int(lines(text, "TimeoutStopSec")[0]) > stop_timeout_s + 60
    assert int(lines(text, "TimeoutStartSec")[0]) > 60
