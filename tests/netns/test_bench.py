"""Run the benchmarks in their smallest size; missing peers do not end them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import chapter_services
import page
from driver import Chapter

PEERS = frozenset({"batch", "netavark", "cni", "podman", "podman-niso", "docker"})
SMALL = chapter_services.Sizes(seconds=120, sizes=(2,), grow_s=(60,), rounds=1, rounds_s=1, many=2)


def test_niso_is_measured_and_who_is_left_out_is_named() -> None:
    found = chapter_services.measure(SMALL, PEERS)
    measured = {row.who for row in found.rows("attach")}
    assert measured == {"niso", "niso command"}, found.absent
    for what in ("attach", "detach", "start", "remove", "kib"):
        row = found.row(what, "niso", 2)
        assert row and row.at == 2 and all(value > 0 for value in row.values), (what, found.absent)
    processes = found.row("processes", "niso", 2)
    assert processes and processes.values == [6]  # conmon, catatonit and sleep of each
    assert {each.who for each in found.absent} == PEERS
    data = {
        "quick": True,
        "machine": "",
        "versions": [""],
        "date": "",
        "seconds": 1,
        "load": ["0", "0"],
    }
    text = page.text({"services": data | found.dump()}, [])
    assert "| `niso activate` | " in text and "| netavark setup | not measured |" in text
    assert "- docker: left out by --without" in text


def test_a_party_that_fails_is_noted_and_the_others_go_on() -> None:
    with Chapter(60) as chapter:
        assert chapter.lab("nobody") is None
        lab = chapter.lab("batch")
        assert lab
        cases = {
            "good": lambda: {"it": 1.0},
            "bad": lambda: lab.call("load", "tcp", "192.0.2.9", 1, 1),
        }
        chapter.in_turn("rounds", cases, 0, 0, 2, 20)
        assert lab.call("grow", 1, 20.0) == {"count": 1, "why": ""}
        ended = chapter.at_once(
            {"late": (lab, "grow", [3_000, 60.0]), "after": (lab, "ready", [])}, 0.3
        )
    assert [len(row.values) for row in chapter.found.rows("it")] == [2]
    assert [each.who for each in chapter.found.absent] == ["nobody", "bad", "late", "after"]
    assert ended == {}
