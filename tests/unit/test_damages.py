"""Test that the table of damages covers each way in which a kernel object can differ."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "netns"))
from damages import DAMAGES, NO_CASE, OF_SPANS, OF_WIREGUARD, OTHERS

from niso.kernel.kinds import kind as kinds_kind


def cases() -> set[str]:
    """``Veth missing``, ``Veth foreign``, and of each field that does not say which thing it is ``Veth.mtu``."""
    found = set()
    for kind in (each.type for each in kinds_kind.KINDS):
        named = kind(*kind._fields).key()
        found |= {f"{kind.__name__} missing", f"{kind.__name__} foreign"}
        found |= {f"{kind.__name__}.{field}" for field in kind._fields if field not in named}
    return found


def test_every_kind_is_damaged_in_every_way() -> None:
    done = {case for damage in DAMAGES.values() for case in damage.of}
    assert done | NO_CASE.keys() | OF_SPANS | OF_WIREGUARD == cases() | set(OTHERS)
    assert not done & NO_CASE.keys()
