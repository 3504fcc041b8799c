"""Test that seldom kinds are read only where something asks for them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import niso.kernel.real  # noqa: F401  # every kind is registered
from niso.kernel.kinds import kind as kinds_kind
from niso.kernel.kinds.kind import Reading, Space, State


def reading(everything: bool) -> Reading:
    """Return one whose sockets fail."""
    return Reading("niso:1", SimpleNamespace(), None, everything, everything)  # type: ignore[arg-type]


@pytest.mark.parametrize("space", ["", "niso-api"])
@pytest.mark.parametrize(
    "name", ["RoutingRule", "WireGuard", "Vxlan", "Fdb", "Shaper", "ForeignPort", "Neighbour"]
)
def test_seldom_kind_reads_nothing_without_candidates(name: str, space: str) -> None:
    (kind,) = (kind for kind in kinds_kind.KINDS if kind.type.__name__ == name)
    assert [*kind.read(Space(reading(everything=False), space, {}), ())] == []
    assert not kind.wanted(State(), State())
    assert not kind.blocking(State(), State())
