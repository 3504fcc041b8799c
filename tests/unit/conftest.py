"""Unit tests run on any machine, as any user; each has a state and a run folder of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def folders_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NISO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("NISO_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("NISO_POOL", raising=False)
