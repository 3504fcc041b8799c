"""Test the arithmetic and tables of the benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import page
import page_expect
import page_parts
from figures import Found, Row, number, percentile, ratio, slope, spread


def found() -> Found:
    """niso at 10 and 1,000; netavark, which came to 400 only; docker, which there is not."""
    it = Found()
    for at, values in ((10, [2.0, 4.0, 3.0]), (1_000, [4.0, 4.0, 4.0])):
        for value in values:
            it.add("attach", "niso", at, at, value)
    for value in (20.0, 80.0, 30.0):
        it.add("attach", "netavark", 10, 10, value)
    it.add("attach", "netavark", 400, 1_000, 100.0)
    it.lacks("", "docker", 0, "there is none")
    return it


def test_a_ratio_is_of_one_round_where_both_have_the_same_rounds() -> None:
    own, peer = found().row("attach", "niso", 10), found().row("attach", "netavark", 10)
    assert ratio(peer, own) == 10  # of 10, 20 and 10
    # of 0.5, 0.75 and 9; of the medians it would be 3, of sorted values 1.125
    assert ratio(Row("", "", 1, 1, [1, 6, 9]), Row("", "", 1, 1, [2, 8, 1])) == 0.75
    assert ratio(Row("", "", 1, 1, [9]), own) == 3
    assert ratio(own, None) is None


def test_a_slope_is_for_each_more() -> None:
    assert slope(found().rows("attach", "netavark")) == pytest.approx(70 / 390)
    assert slope(found().rows("attach", "netavark")[:1]) is None


def test_a_percentile_is_one_of_the_values() -> None:
    values = Row("", "", 1, 1, [float(each) for each in range(200, 0, -1)])
    assert (percentile(values, 0.99), percentile(values, 0.5)) == (198, 100)
    assert percentile(Row("", "", 1, 1, [7]), 0.99) == 7


def test_text_of_figures() -> None:
    assert spread(Row("", "", 1, 1, [3, 1, 2])) == "**2.00** (1.00 to 3.00)"
    assert spread(Row("", "", 1, 1, [1234.4])) == "1,234 (once)"
    assert [number(value) for value in (0.994, 9.994, 9.996, 99.94, 99.96)] == [
        "0.99",
        "9.99",
        "10.0",
        "99.9",
        "100",
    ]


def test_what_is_found_survives_a_file() -> None:
    again = Found.load(found().dump())
    assert again.dump() == found().dump()
    assert again.row("attach", "netavark", 1_000) == Row("attach", "netavark", 400, 1_000, [100.0])


def test_a_table_says_where_a_party_was_and_which_there_was_not() -> None:
    rows = (
        ("attach", "niso", "own"),
        ("attach", "netavark", "peer"),
        ("attach", "docker", "other"),
    )
    table = page_parts.table(found(), "ms", rows, [10, 1_000], ("attach", "niso"), "ms")
    assert table[2:] == [
        "| own | **3.00** (2.00 to 4.00) | 1.00 | **4.00** (4.00 to 4.00) | 1.00 |",
        "| peer | **30.0** (20.0 to 80.0) | 10.0 | 100 (once) with 400 services | 25.0 |",
        "| other | not measured | | | |",
        "",
    ]


def test_the_page_names_what_is_not_measured_and_a_quick_run() -> None:
    data = {
        "quick": True,
        "machine": "M",
        "versions": ["niso 1"],
        "date": "today",
        "seconds": 1,
        "load": ["0", "0"],
    }
    text = page.text({"services": data | found().dump()}, ["network"])
    assert "quick run" in text and "- machine: M" in text
    assert "- docker: there is none" in text
    assert "[![" in text and "(network.png)" in text and "(whole.png)" not in text
    assert "## Ports\n\nNot measured yet." in text


def test_the_section_about_several_hosts_has_what_was_found_and_names_what_was_not() -> None:
    it = Found()
    for value in (30.0, 20.0, 90.0):
        it.add("published until known", "b", 0, 0, value)
    for count, took in ((1_000, 8.0), (10_000, 16.0)):
        it.add("apply: one comes", f"beside {count}", count, count, took)
    for what, value in (("requests", 900), ("requests failed", 0), ("claims", 50)):
        it.add(what, "span", 0, 0, value)
    it.add("claims failed", "span", 0, 0, 1)
    it.add("slowest claim", "span", 0, 0, 500)
    it.lacks("traffic", "cluster", 0, "no compiler")
    data = {"machine": "", "versions": [""], "date": "", "seconds": 1, "load": ["0", "0"]}
    text = page.text({"cluster": data | {"quick": False} | it.dump()}, [])
    assert "has the name | **30.0** (20.0 to 90.0) ms | 99th percentile of 3: 90.0 ms |" in text
    assert (
        "with 10,000 services on other hosts: time for database rows and kernel objects | 16.0 (once) ms | ; ratio 2.00 |"
        in text
    )
    assert "0 of 900 requests failed; 1 of 50 claims failed | slowest claim 500 ms | 0 |" in text
    assert "idle agent, processor time | not measured" in text
    assert "- the cluster (traffic): no compiler" in text


def test_the_page_is_what_its_figures_make_of_it_and_says_in_ten_lines_what_to_expect() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs/bench"
    figures = json.loads((folder / "figures.json").read_text())
    text = page.text(figures, [picture.stem for picture in folder.glob("*.svg")])
    assert text == (folder / "README.md").read_text()
    section = text.partition("## What to expect\n\n")[2].partition("\n\n##")[0]
    assert section.count("- **") == 10
    assert page_expect.expect({}) == []  # without its figures no line is written


def test_niso_is_compared_in_words() -> None:
    assert page_expect._compared(1.0, 2.0) == "less than"
    assert page_expect._compared(2.0, 1.0) == "more than"
    assert page_expect._compared(0.99, 1.0) == "about the same as"
