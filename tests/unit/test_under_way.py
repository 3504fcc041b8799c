"""Test what starts share while any of them is under way."""

from __future__ import annotations

import pytest

from niso.runtime import root


class Reads:
    """Counts how often something was read."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, name: str = "") -> str:
        self.count += 1
        if name == "missing":
            raise OSError(name)
        return f"{name}{self.count}"


def test_nothing_is_kept_outside_of_a_start() -> None:
    reads = Reads()
    assert [root.once(reads.read, "a") for _ in range(2)] == ["a1", "a2"]


def test_starts_under_way_share_what_is_read_until_the_last_has_ended() -> None:
    reads = Reads()
    root.begin()
    assert [root.once(reads.read, name) for name in ("a", "b", "a")] == ["a1", "b2", "a1"]
    root.begin()
    root.end()
    assert root.once(reads.read, "a") == "a1"
    root.end()
    root.begin()
    assert root.once(reads.read, "a") == "a3"
    root.end()


def test_error_is_raised_each_time() -> None:
    reads = Reads()
    root.begin()
    for _ in range(2):
        with pytest.raises(OSError, match="missing"):
            root.once(reads.read, "missing")
    root.end()
    assert reads.count == 2
