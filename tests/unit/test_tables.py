"""Test the conversion of plain data to tables, and the stored form of a manifest."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_texts import MANIFESTS, NEAR
from samples import samples
from stack_texts import NETWORK, SERVICE, STACKS

from niso.base import convert
from niso.base.named_tuples import NamedTuple
from niso.manifest import json_schema, stack, validate
from niso.manifest.keys import Manifest

BOUNDED = settings(
    max_examples=samples(60, 300), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

# --- plain data to tables --------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    name: str
    level: Literal["low", "high"] = "low"


class Every(NamedTuple):
    """A key of each type that a key may have, and of those that are joined."""

    text: str = "x"
    number: int = 0
    truth: bool = False
    choice: Literal["a", "b"] = "a"
    leaf: Leaf = Leaf("x")
    texts: tuple[str, ...] = ()
    leaves: tuple[Leaf, ...] = ()
    numbers: dict[str, int] = {}  # noqa: RUF012
    named: dict[str, Leaf] = {}  # noqa: RUF012
    deep: dict[str, tuple[Literal["a", "b"], ...]] = {}  # noqa: RUF012
    maybe: Leaf | None = None
    several: str | tuple[str, ...] | dict[str, Leaf] | None = None


VALUES: list[tuple[Any, tuple[str, ...]]] = [
    # plain data of TOML or JSON, and the keys that may be it
    ("a", ("text", "choice", "several")),
    ("x", ("text", "several")),
    (1, ("number",)),
    (0, ("number",)),
    (2**70, ("number",)),
    (True, ("truth",)),
    (1.0, ()),
    (datetime.date(2026, 1, 2), ()),
    (None, ("maybe", "several")),
    ([], ("texts", "leaves", "several")),
    (["a"], ("texts", "several")),
    ([1], ()),
    ([None], ()),
    ([["a"]], ()),
    ([{}], ()),
    ([{"name": "x"}], ("leaves",)),
    ({}, ("numbers", "named", "deep", "several")),
    ({"name": "x"}, ("leaf", "maybe")),
    ({"name": "x", "level": "high"}, ("leaf", "maybe")),
    ({"name": "x", "level": "no"}, ()),
    ({"name": "x", "more": "x"}, ()),
    ({"name": 1}, ("numbers",)),
    ({"name": True}, ()),
    ({"k": {"name": "x"}}, ("named", "several")),
    ({"k": {}}, ()),
    ({"k": []}, ("deep",)),
    ({"k": ["a", "b"]}, ("deep",)),
    ({"k": ["a", "c"]}, ()),
]


@pytest.mark.parametrize(
    ("data", "keys"), VALUES, ids=lambda each: repr(each) if not isinstance(each, tuple) else ""
)
def test_key_takes_the_values_of_its_type_and_no_others(data: Any, keys: tuple[str, ...]) -> None:
    for key in Every._fields:
        errors = validate.walk({key: data}, Every)
        if key in keys:
            assert errors == []
            made = convert.convert({key: data}, Every)
            assert type(made) is Every
            back = convert.plain(made)
            assert tuple(back) == Every._fields and convert.convert(back, Every) == made
            if "name" not in repr(data):  # the others have a default inside
                assert back[key] == data and type(back[key]) is type(data)
        else:
            assert errors and all(str(error.key).startswith(key) for error in errors)
            with pytest.raises(ValueError):
                convert.convert({key: data}, Every)


class Kept(NamedTuple):
    """What only the store's tables have."""

    seconds: float = 0.0
    leaves: Mapping[str, Leaf] = {}
    anything: Mapping[str, object] = {}


def test_table_of_the_store_takes_seconds_and_any_data() -> None:
    data = {"seconds": 1.5, "leaves": {"k": {"name": "x"}}, "anything": {"a": [1.0, None, {}]}}
    made = convert.convert(data, Kept)
    assert made == Kept(1.5, {"k": Leaf("x")}, {"a": [1.0, None, {}]})
    assert convert.convert(convert.plain(made), Kept) == made
    assert convert.convert({"seconds": 2}, Kept).seconds == 2
    for wrong in ({"seconds": "1"}, {"seconds": True}, {"leaves": {"k": {}}}, {"anything": []}):
        with pytest.raises(ValueError):
            convert.convert(wrong, Kept)


def test_what_is_made_is_of_the_types_that_are_declared() -> None:
    data = {
        "texts": ["a"],
        "leaf": {"name": "l"},
        "leaves": [{"name": "m"}],
        "named": {"k": {"name": "n", "level": "high"}},
        "several": {"k": {"name": "o"}},
    }
    made = convert.convert(data, Every)
    assert made == Every(
        texts=("a",),
        leaf=Leaf("l"),
        leaves=(Leaf("m"),),
        named={"k": Leaf("n", "high")},
        several={"k": Leaf("o")},
    )
    assert [type(each) for each in (made.leaf, made.leaves[0], made.named["k"])] == [Leaf] * 3
    assert convert.convert({"several": ["a"]}, Every).several == ("a",)


def test_table_that_is_a_default_is_nobody_elses() -> None:
    one, other = (convert.convert({}, Every) for _ in range(2))
    one.numbers["a"] = 1
    assert other.numbers == Every().numbers == {}


def test_keys_that_are_missing_or_more_are_refused() -> None:
    for data in ({}, {"name": "a", "more": 1}, {"level": "low"}, {"Name": "a"}):
        with pytest.raises(ValueError):
            convert.convert(data, Leaf)
        assert validate.walk(data, Leaf)
    for data in (None, [], "a", 1, True, Leaf("a")):
        with pytest.raises(ValueError):
            convert.convert(data, Leaf)
        assert validate.walk(data, Leaf)


def agree(data: Any, table: type) -> None:
    """Data is refused where walk finds something, and what is made of it is the same again."""
    found = validate.walk(data, table)
    try:
        made = convert.convert(data, table)
    except ValueError:
        assert found
    else:
        assert not found
        assert convert.convert(json.loads(json.dumps(convert.plain(made))), table) == made


ANY = st.sampled_from([data for data, _ in VALUES])


@BOUNDED
@given(
    st.dictionaries(
        st.sampled_from([*Every._fields, "more"]),
        ANY | st.dictionaries(st.sampled_from(["k", "name"]), ANY),
    )
)
def test_data_is_refused_exactly_where_walk_finds_something(data: Any) -> None:
    agree(data, Every)


@BOUNDED
@given(MANIFESTS | NEAR)
def test_manifest_is_refused_exactly_where_walk_finds_something(data: Any) -> None:
    agree(data, Manifest)


@BOUNDED
@given(STACKS, SERVICE, NETWORK)
def test_parts_of_a_stack_are_refused_exactly_where_walk_finds_something(
    data: Any, service: Any, network: Any
) -> None:
    agree(data, stack._Whole)
    agree(network, stack.Network)
    agree(
        {name: value for name, value in service.items() if name in stack.StackServiceKeys._fields},
        stack.StackServiceKeys,
    )


def test_schema_knows_every_type() -> None:
    found = json_schema.definitions(Every)
    assert list(found) == ["Every", "Leaf"]
    properties = found["Every"]["properties"]
    assert properties["number"] == {"type": "integer", "default": 0}
    assert properties["choice"] == {"enum": ["a", "b"], "default": "a"}
    assert properties["leaves"] == {"type": "array", "items": {"$ref": "#/$defs/Leaf"}}
    assert properties["maybe"] == properties["leaf"] == {"$ref": "#/$defs/Leaf"}
    array = {"type": "array", "items": {"enum": ["a", "b"]}}
    assert properties["deep"] == {"type": "object", "additionalProperties": array}
    assert [each.get("type") for each in properties["several"]["anyOf"]] == [
        "string",
        "array",
        "object",
    ]
    assert (found["Every"]["required"], found["Leaf"]["required"]) == ([], ["name"])
