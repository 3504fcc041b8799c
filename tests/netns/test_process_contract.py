"""The same cases on real processes and on those in memory: both do, refuse and answer the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import process_cases
import pytest
from conftest import Lab

REAL = """
import json, sys
sys.path[:0] = sys.argv[1:]
import process_cases
print(json.dumps(process_cases.answers(process_cases.RealHost)))
"""


def test_both_kinds_of_processes_do_and_refuse_the_same(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NISO_RUN_DIR", str(tmp_path))
    expected = json.loads(lab.run("python", "-c", REAL, *sys.path, timeout=100).stdout)
    answers = process_cases.answers(process_cases.FakeHost)
    for case, seen in expected.items():
        for number, fact in enumerate(seen):
            assert (case, answers[case][number]) == (case, fact)
    assert answers == expected
