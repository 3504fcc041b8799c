"""Test that kinds which most commands do not load are read only where they are asked for."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from niso.kernel.kinds import order
from niso.kernel.reading import Reading, Space
from niso.kernel.state import State


def reading(everything: bool) -> Reading:
    """Return one whose sockets fail."""
    return Reading("niso:1", SimpleNamespace(), None, everything, everything)  # type: ignore[arg-type]


@pytest.mark.parametrize("space", ["", "niso-api"])
@pytest.mark.parametrize("name", sorted(order.SELDOM))
def test_seldom_kind_reads_nothing_without_candidates(name: str, space: str) -> None:
    order.load([name])
    (kind,) = (kind for kind in order.KINDS if kind.file == name)
    assert [*kind.read(Space(reading(everything=False), space, {}), ())] == []
    assert not kind.wanted(State(), State())
    assert not kind.in_the_way(State(), State())


@pytest.mark.parametrize(("everything", "left"), [(False, order.SELDOM), (True, set())])
def test_everything_is_read_with_all_kinds(everything: bool, left: set[str]) -> None:
    code = (
        "from test_kinds import order, reading\n"
        f"reading({everything})\n"
        "print(*(kind.file for kind in order.KINDS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=__file__.rpartition("/")[0],
    )
    assert done.stdout.split() == [name for name in order.NAMES if name not in left]
