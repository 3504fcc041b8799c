"""The table of damages has a case for each way in which a thing of each kind of State can be other than wanted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "netns"))
from damages import DAMAGES, NO_CASE, OTHERS

from niso.plan.state import State, Thing


def cases() -> set[str]:
    """``Veth missing``, ``Veth foreign``, and of each field that does not say which thing it is ``Veth.mtu``."""
    found = set()
    for kind in get_args(Thing):
        named = kind(*kind._fields).key()
        found |= {f"{kind.__name__} missing", f"{kind.__name__} foreign"}
        found |= {f"{kind.__name__}.{field}" for field in kind._fields if field not in named}
    return found


def test_every_kind_is_damaged_in_every_way() -> None:
    done = {case for damage in DAMAGES.values() for case in damage.of}
    assert done | NO_CASE.keys() == cases() | set(OTHERS)
    assert not done & NO_CASE.keys()


def test_every_field_of_state_is_a_kind_of_thing() -> None:
    """So that a new field of State is a new kind above."""
    kinds = {
        str(annotation).partition("[")[2].rstrip("]")
        for annotation in State.__annotations__.values()
    }
    kinds = {name.removesuffix("')").rstrip("]") for name in kinds}
    assert kinds == {kind.__name__ for kind in get_args(Thing)}
