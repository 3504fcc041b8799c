"""Compare niso's JSON with that of the standard library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niso.base import lite_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_values_are_written_and_read_as_by_json(value: Any) -> None:
    assert lite_json.dumps(value) == json.dumps(value)
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert lite_json.dumps(value, compact=True) == compact
    assert lite_json.loads(json.dumps(value, indent=1)) == lite_json.loads(compact) == value


@given(st.text(alphabet='{}[]":,\\ut0e1-.n \n') | st.text())
def test_texts_are_judged_as_by_json(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):
            lite_json.loads(text)
    else:
        assert repr(lite_json.loads(text)) == repr(expected)


def test_values_that_json_has_not_are_refused() -> None:
    for value in ({1, 2}, [object()], {("a",): 1}):
        with pytest.raises(TypeError):
            lite_json.dumps(value)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError):
        lite_json.dumps(endless)
