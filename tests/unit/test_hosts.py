"""Test the text of hosts files: complete, sorted by address, exact."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.kernel.kinds import hosts_files

BOUNDED = settings(max_examples=samples(25, 200), deadline=None)
ADDRESS = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number))) | (
    st.integers(0, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number)))
)
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True).map(
    lambda name: hosts_files.line_names((name,))
)
LINES = st.sets(st.builds(hosts_files.hosts_line, ADDRESS, NAMES), max_size=12)


def parsed(lines: set[str]) -> set[tuple[str, str]]:
    return {tuple(line.rstrip("\n").split("  ")) for line in lines}  # type: ignore[misc]


@BOUNDED
@given(LINES, LINES, LINES)
def test_edit_is_set_algebra(there, removed, added) -> None:
    text = hosts_files.edit(hosts_files.HEADER, set(), there)
    assert set(hosts_files.lines(text) or ()) == parsed(there)
    edited = hosts_files.edit(text, removed, added)
    found = hosts_files.lines(edited)
    assert found is not None
    assert len(found) == len(set(found))
    assert set(found) == parsed(there - removed | added)


@BOUNDED
@given(LINES, LINES, LINES)
def test_edited_file_keeps_its_header_and_is_sorted_by_address(there, removed, added) -> None:
    text = hosts_files.edit(hosts_files.edit(hosts_files.HEADER, set(), there), removed, added)
    assert text.startswith(hosts_files.HEADER)
    assert text.endswith("\n")
    order = [ipaddress.ip_address(address) for address, _ in hosts_files.lines(text) or ()]
    assert order == sorted(order, key=lambda a: (a.version, int(a)))


@BOUNDED
@given(LINES, LINES, LINES, st.data())
def test_line_of_somebody_else_stays_and_is_in_nobodys_way(there, removed, added, data) -> None:
    """Only a repair writes the whole file again: until then services come and go."""
    lines = sorted(there)
    lines.insert(data.draw(st.integers(0, len(lines))), "# a note\n")
    text = hosts_files.HEADER + "".join(lines)
    edited = hosts_files.edit(text, removed, added)[len(hosts_files.HEADER) :]
    assert {*edited.splitlines(keepends=True)} == (there - removed | added | {"# a note\n"})


@BOUNDED
@given(LINES, LINES)
def test_edit_and_its_reverse_leave_the_file_as_it_was(there, added) -> None:
    text = hosts_files.edit(hosts_files.HEADER, set(), there - added)
    assert hosts_files.edit(hosts_files.edit(text, set(), added), added, set()) == text


def test_line_has_domain_and_bare_name_of_each_name_hostname_first() -> None:
    names = hosts_files.line_names(("postgres", "db"))
    assert (
        hosts_files.hosts_line("10.99.1.3", names)
        == "10.99.1.3  postgres.niso.local postgres db.niso.local db\n"
    )


def test_header_alone_has_no_services() -> None:
    assert hosts_files.lines(hosts_files.HEADER) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1 localhost\n",
        hosts_files.HEADER[:-1],
        hosts_files.HEADER[5:] + "10.99.0.2  a\n",
        hosts_files.HEADER + "10.99.0.2 one-space\n",
        hosts_files.HEADER + "10.99.0.2  \n",
        hosts_files.HEADER + "\n",
        hosts_files.HEADER + "10.99.0.2  a\n\n",
        hosts_files.HEADER + "10.99.0.2  a.niso.local a",
        hosts_files.HEADER + "garbage  a\n",
        hosts_files.HEADER + "10.99.0.256  a\n",
        hosts_files.HEADER + "10.99.0.2\t a\n",
        hosts_files.HEADER + "# a comment  by somebody\n",
        hosts_files.HEADER + "\x00\x00\x00",
    ],
)
def test_file_that_niso_did_not_write_like_this_is_recognised(text) -> None:
    assert hosts_files.lines(text) is None


@BOUNDED
@given(LINES.filter(bool), st.data())
def test_file_cut_off_anywhere_is_either_whole_lines_or_recognised(there, data) -> None:
    text = hosts_files.edit(hosts_files.HEADER, set(), there)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    found = hosts_files.lines(cut)
    assert found is None or set(found) < parsed(there)
