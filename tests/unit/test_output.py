"""Test output: tables, escapes, arrows, durations."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.api import host
from niso.base import names
from niso.base import text as base_text
from niso.cli import output
from niso.look import host_ports
from niso.plan.records import PortMapping

BOUNDED = settings(max_examples=samples(50, 200), deadline=None)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain-text_1", "plain-text_1"),
        ("größe→", "größe→"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x00\x7f", "\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\u200b", "\\u200b"),
        ("\udcff", "\\udcff"),
    ],
)
def test_escaped_shows_what_a_terminal_would_obey(raw, shown) -> None:
    assert output.escaped(raw) == shown


@BOUNDED
@given(st.text())
def test_escaped_text_is_printable_and_escaping_it_again_changes_nothing(text) -> None:
    once = output.escaped(text)
    assert once.isprintable()
    assert output.escaped(once) == once
    once.encode("utf-8")


def test_table_columns_are_as_wide_as_their_widest_value(capsys) -> None:
    output.table(("NAME", "N"), [("a", "1"), ("longer-name", "22")])
    assert capsys.readouterr().out == "NAME         N\na            1\nlonger-name  22\n"


def test_table_without_rows_is_its_columns(capsys) -> None:
    output.table(("NAME", "SUBNET", "SERVICES"), [])
    assert capsys.readouterr().out == "NAME  SUBNET  SERVICES\n"


def test_table_escapes_values_and_aligns_by_what_is_shown(capsys) -> None:
    output.table(("A", "B"), [("\x1b", "x"), ("yy", "z")])
    assert capsys.readouterr().out == "A     B\n\\x1b  x\nyy    z\n"


def test_json_is_read_back_and_holds_no_control_bytes(capsys) -> None:
    value = {"path": "/srv/größe\x1b\u202e\x9b"}
    output.as_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value
    assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize(
    ("port", "shown"),
    [
        (PortMapping("", 8080, 80, "tcp"), "8080→80"),
        (PortMapping("0.0.0.0", 53, 53, "udp"), "53→53/udp"),
        (PortMapping("127.0.0.1", 5432, 5432, "tcp"), "127.0.0.1:5432→5432"),
        (PortMapping("", 80, 81, "sctp"), "80→81/sctp"),
        (PortMapping("::", 8080, 80, "tcp"), "[::]:8080→80"),
        (PortMapping("2001:db8::1", 53, 53, "udp"), "[2001:db8::1]:53→53/udp"),
        (PortMapping("", 8000, 8000, "tcp", 11), "8000-8010→8000-8010"),
        (PortMapping("127.0.0.1", 8000, 9000, "udp", 2), "127.0.0.1:8000-8001→9000-9001/udp"),
        (PortMapping("::", 8000, 8000, "tcp", 11), "[::]:8000-8010→8000-8010"),
    ],
)
def test_port_text(port, shown, monkeypatch) -> None:
    monkeypatch.setattr(output, "arrow", lambda: "→")
    rows = host_ports.rows([port], (4, 6))
    assert output.ports_text(rows) == shown
    assert output.as_listed(port.text) == shown  # in ps --all-hosts
    monkeypatch.undo()
    monkeypatch.setattr(output, "arrow", lambda: "->")
    assert output.ports_text(rows) == shown.replace("→", "->")


@pytest.mark.parametrize(
    ("host_ip", "families", "rows"),
    [
        ("", (4,), ["0.0.0.0"]),
        ("", (6,), ["::"]),
        ("", (4, 6), ["0.0.0.0", "::"]),
        ("0.0.0.0", (4, 6), ["0.0.0.0"]),
        ("::", (4, 6), ["::"]),
        ("127.0.0.1", (4, 6), ["127.0.0.1"]),
        ("2001:db8::1", (4, 6), ["2001:db8::1"]),
        ("", (), []),
    ],
)
def test_port_has_a_row_for_all_addresses_of_each_family_of_the_network(
    host_ip, families, rows
) -> None:
    port = PortMapping(host_ip, 80, 80, "tcp")
    assert [row.host_ip for row in host_ports.rows([port], families)] == rows


def test_ports_in_json_are_a_row_each_and_a_range_says_how_many_it_has() -> None:
    given = (PortMapping("", 8080, 80, "tcp"), PortMapping("127.0.0.1", 8000, 9000, "udp", 3))
    assert host.plain(host_ports.rows(given, (4, 6))) == [
        {"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "proto": "tcp"},
        {"host_ip": "::", "host_port": 8080, "container_port": 80, "proto": "tcp"},
        {
            "host_ip": "127.0.0.1",
            "host_port": 8000,
            "container_port": 9000,
            "proto": "udp",
            "range": 3,
        },
    ]
    assert host.plain(host_ports.rows((), (4,))) == []


def test_address_with_a_port_is_in_brackets_where_it_is_ipv6() -> None:
    assert names.bracketed("2001:db8::1") == "[2001:db8::1]"
    assert names.bracketed("192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("encoding", "arrow"), [("utf-8", "→"), ("ascii", "->"), ("latin-1", "->"), ("cp437", "->")]
)
def test_arrow_is_what_the_output_can_show(encoding, arrow) -> None:
    code = "from niso.cli import output; print(output.arrow())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.stdout.decode(encoding).strip() == arrow


@pytest.mark.parametrize(
    ("locale", "arrow"),
    [
        ({"LC_ALL": "C"}, "->"),
        ({"LANG": "POSIX"}, "->"),
        ({"LC_ALL": "", "LC_CTYPE": "C", "LANG": "en_US.UTF-8"}, "->"),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, "→"),
        ({}, "→"),
    ],
)
def test_arrow_is_ascii_in_a_locale_without_it(locale, arrow, monkeypatch) -> None:
    """Python itself writes UTF-8 there (PEP 540)."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert output.arrow() == arrow


def test_output_in_ascii_shows_other_letters_by_number(tmp_path) -> None:
    """No command ends with an error because a path has a letter that the terminal has not."""
    code = (
        "import niso.cli.main as m, niso.cli.output as o\n"
        "m.run = lambda _: (o.table(('PATH',), [('/srv/gr\\u00f6\\u00dfe',)]), 0)[1]\n"
        "m.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.stdout.decode("ascii").splitlines() == ["PATH", "/srv/gr\\xf6\\xdfe"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (59.99, "59s"),
        (60, "1m0s"),
        (192, "3m12s"),
        (3599, "59m59s"),
        (3600, "1h0m"),
        (18240, "5h4m"),
        (86399, "23h59m"),
        (86400, "1d0h"),
        (12 * 86400 + 3 * 3600, "12d3h"),
    ],
)
def test_duration(seconds, shown) -> None:
    assert output.duration(seconds) == shown


def test_times_are_rfc_3339_in_utc() -> None:
    assert base_text.time_text(0) == "1970-01-01T00:00:00Z"
    assert base_text.time_text(1764000000.5) == "2025-11-24T16:00:00Z"
    assert base_text.time_text(None) is None


def test_notes_keep_their_lines_and_escape_the_rest(capsys) -> None:
    output.note("one\ntwo\x1b")
    output.step("three\nfour\x1b")
    output.warn("five\nsix")
    out, err = capsys.readouterr()
    assert out == "three\nfour\\x1b\n"
    assert err == "one\ntwo\\x1b\nniso: warning: five\\x0asix\n"


# --- on a terminal -----------------------------------------------------------------------------------------------------


ROWS = [
    ("api", "running", "10.99.0.2, fd00:99::2", "8080→80, 443→443, 127.0.0.1:53→53/udp"),
    ("db", "failed", "-", "-"),
]


def on_terminal(columns: int, **environment: str) -> tuple[str, str]:
    """What a table, a warning and an error are on a terminal of so many columns: (stdout, stderr)."""
    code = (
        "from niso.cli import output\n"
        f"output.table(('SERVICE', 'STATUS', 'ADDRESS', 'PORTS'), {ROWS!r})\n"
        "output.warn('careful', ['do'])\noutput.error('gone', 'look')\n"
    )
    ends = [pty.openpty(), pty.openpty()]
    said = []
    for near, _ in ends:
        fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = (
        {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        | {"TERM": "xterm"}
        | environment
    )
    subprocess.run(
        [sys.executable, "-c", code], stdout=ends[0][1], stderr=ends[1][1], check=True, env=env
    )
    for near, far in ends:
        os.close(far)
        said.append(os.read(near, 65536).decode().replace("\r\n", "\n"))
        os.close(near)
    return said[0], said[1]


def test_wide_terminal_shows_words_of_status_and_the_beginning_of_errors_in_colour() -> None:
    out, err = on_terminal(120)
    assert out == (
        "SERVICE  STATUS   ADDRESS                PORTS\n"
        "api      \x1b[32mrunning\x1b[0m  10.99.0.2, fd00:99::2  8080→80, 443→443, 127.0.0.1:53→53/udp\n"
        "db       \x1b[31mfailed\x1b[0m   -                      -\n"
    )
    assert (
        err
        == "\x1b[33mniso: warning:\x1b[0m careful\n  hint: do\n\x1b[31mniso:\x1b[0m gone\n  hint: look\n"
    )


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}])
def test_no_colour_where_it_is_not_wanted_or_cannot_be(environment) -> None:
    out, err = on_terminal(120, **environment)
    assert "\x1b" not in out + err and "running" in out


def test_empty_no_color_is_none() -> None:
    assert "\x1b[32m" in on_terminal(120, NO_COLOR="")[0]


def test_narrow_terminal_folds_lists_and_cuts_nothing_off() -> None:
    out, _ = on_terminal(58, NO_COLOR="1")
    assert out == (
        "SERVICE  STATUS   ADDRESS     PORTS\n"
        "api      running  10.99.0.2,  8080→80, 443→443,\n"
        "                  fd00:99::2  127.0.0.1:53→53/udp\n"
        "db       failed   -           -\n"
    )
    for said in ("abc", "0", "-5", "²"):
        assert on_terminal(58, NO_COLOR="1", COLUMNS=said)[0] == out
    tight, _ = on_terminal(47, NO_COLOR="1")
    assert tight.startswith(
        "SERVICE STATUS  ADDRESS    PORTS\napi     running 10.99.0.2, 8080→80, 443→443,\n"
    )
    least, _ = on_terminal(20, NO_COLOR="1")
    assert all(
        item in least.replace(",", "").split()
        for _, _, a, p in ROWS
        for item in f"{a}, {p}".split(", ")
    )


def test_what_is_no_terminal_has_every_row_in_a_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output.table(("SERVICE", "STATUS", "ADDRESS", "PORTS"), ROWS)
    assert len(capsys.readouterr().out.splitlines()) == 3
    # columns that may be left out go until the table fits
    monkeypatch.setenv("COLUMNS", "14")
    for optional, shown in ((("C", "A"), "A    B"), (("A",), "B    C"), (("A", "C"), "B    C")):
        output.table(("A", "B", "C"), [("aaa", "bbb", "ccc"), ("a", "b", "c" * 5)], optional)
        assert capsys.readouterr().out.splitlines()[0] == shown


@BOUNDED
@given(
    st.lists(
        st.lists(
            st.lists(st.text("ab1", min_size=1), max_size=4).map(", ".join), min_size=3, max_size=3
        )
    ),
    st.integers(1, 80),
)
def test_folded_table_has_every_item_in_its_column(rows, room) -> None:
    lines = [["A", "B", "C"], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    folded, narrow = output._narrowed(lines, widths, room)
    assert all(len(line[i]) <= narrow[i] <= widths[i] for line in folded for i in range(3))
    fits = sum(narrow) + 4 <= room
    least = [
        max(len(f"{item},") for line in lines for item in line[i].split(", ")) for i in range(3)
    ]
    assert fits or sum(least) + 4 > room
    for i in range(3):
        whole = "".join(value for line in lines for value in line[i]).replace(" ", "")
        assert "".join(value for line in folded for value in line[i]).replace(" ", "") == whole


@pytest.mark.parametrize("words", [["schema"], ["--help"], ["net", "--help"]])
def test_a_reader_that_has_gone_is_no_error_to_speak_of(words: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "niso.cli", *words]
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            argv, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60, env=buffered
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_list_of_lists_is_folded_between_all_of_their_items() -> None:
    assert output._items("this host; services, by a; 10.0.0.1, b") == [
        "this host;",
        "services,",
        "by a;",
        "10.0.0.1,",
        "b",
    ]
    assert output._items("one") == ["one"] and output._items("") == [""]
