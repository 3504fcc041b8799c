"""Test hosts of a cluster by random commands; see tests/cluster_walk.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_walk import Walk
from samples import samples

STEPS = 40


@pytest.fixture
def walk(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Walk]:
    for variable in ("NISO_RUN_DIR", "NISO_STATE_DIR"):
        monkeypatch.setenv(variable, os.environ.get(variable, str(tmp_path)))
    made = Walk(tmp_path, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("walk", range(samples(3, 500)), indirect=True)
def test_hosts_never_disagree_on_who_is_heard_and_agree_in_the_end(walk: Walk) -> None:
    try:
        for _ in range(STEPS):
            walk.step()
            walk.require_safe()
        walk.heal()
        for _ in range(4):
            walk.look()
        walk.require_agreed()
    except BaseException as error:
        error.add_note("\n".join(walk.done))
        raise
