"""Test which folders stay visible below those that a lab covers."""

from __future__ import annotations

from pathlib import Path

from niso.lab import lab_host

CHECKOUT = Path(__file__).resolve().parents[2]


def test_lab_that_covers_nisos_checkout_still_sees_all_of_it() -> None:
    assert str(CHECKOUT) in lab_host._reachable("/", [str(CHECKOUT.parent)])
