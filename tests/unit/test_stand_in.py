"""Test what becomes of the stand-in of a service's process in a unit of systemd."""

from __future__ import annotations

import os

import pytest

from niso.runtime import cgroups, status, units


def test_stand_in_of_a_service_without_a_record_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """`niso remove` deletes the record first; otherwise it would wait 10 s for its own child."""
    wait, hold = os.pipe()
    done, say = os.pipe()
    monkeypatch.setattr(units, "load", lambda _: None)
    monkeypatch.setattr(status, "conmon", lambda _: None)
    monkeypatch.setattr(cgroups, "roots", lambda: pytest.fail("no process has a place to go to"))
    monkeypatch.setattr(units, "_stand_ins", {"api": (hold, done, "/niso-api.service", 1)})
    os.write(say, b".")
    units.Units().stop_unit_only("api")
    os.set_blocking(wait, False)
    assert os.read(wait, 1) == b""  # the end of the pipe, for which the stand-in waits
    assert units._stand_ins == {}
    os.close(wait)
    os.close(say)
