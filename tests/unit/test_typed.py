"""Test that niso's named tuples, JSON and signals behave like those of the standard library."""

from __future__ import annotations

import copy
import json
import pickle
import signal
import subprocess
import sys
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niso.base import named_tuples, signals
from niso.base.native import from_json, to_json


class Ours(named_tuples.NamedTuple):
    """One."""

    name: str
    """A field may have its words."""
    port: int = 80
    more: tuple[int, ...] = ()

    @property
    def both(self) -> str:
        return f"{self.name}:{self.port}"


class Theirs(typing.NamedTuple):
    """One."""

    name: str
    port: int = 80
    more: tuple[int, ...] = ()

    @property
    def both(self) -> str:
        return f"{self.name}:{self.port}"


class Nothing(named_tuples.NamedTuple):
    pass


class Child(Ours):
    def port_text(self) -> str:
        return str(self.port)


def test_is_as_one_of_typing() -> None:
    for kind in (Ours, Theirs):
        one = kind("a", more=(1, 2))
        assert (one.name, one.port, one.more, one.both) == ("a", 80, (1, 2), "a:80")
        assert (
            one == ("a", 80, (1, 2))
            and hash(one) == hash(("a", 80, (1, 2)))
            and isinstance(one, tuple)
        )
        assert kind._fields == kind.__match_args__ == ("name", "port", "more")
        assert kind._field_defaults == {"port": 80, "more": ()}
        assert kind.__doc__ == "One." and kind.__module__ == __name__
        assert repr(one) == f"{kind.__name__}(name='a', port=80, more=(1, 2))"
        assert one._asdict() == {"name": "a", "port": 80, "more": (1, 2)}
        assert (
            one._replace(port=81) == kind("a", 81, (1, 2)) and type(one._replace(port=81)) is kind
        )
        assert pickle.loads(pickle.dumps(one)) == one and type(copy.deepcopy(one)) is kind
        assert typing.get_type_hints(kind) == {"name": str, "port": int, "more": tuple[int, ...]}
        match one:
            case kind(_, port):
                assert port == 80
        with pytest.raises(AttributeError):
            one.port = 1  # type: ignore[misc]
        with pytest.raises(AttributeError):
            one.other = 1  # type: ignore[attr-defined, union-attr]
        with pytest.raises((TypeError, ValueError), match="other"):
            one._replace(other=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "arguments, named",
    [((), {}), (("a", 1, (), 4), {}), (("a",), {"name": "b"}), (("a",), {"other": 1})],
)
def test_wrong_arguments_are_refused_in_the_same_words(
    arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    words = []
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError) as raised:
            kind(*arguments, **named)
        words.append(str(raised.value).replace(kind.__name__, "KIND"))
    assert words[0] == words[1]


@pytest.mark.parametrize("count", range(40))
def test_tuple_of_any_number_of_fields(count: int) -> None:
    """The first 21 numbers have a function that is written out."""
    fields = [f"field{number}" for number in range(count)]
    made = named_tuples.named_tuple("Made", dict.fromkeys(fields, int), {})
    one = made(*range(count))
    assert one == made(**dict(zip(fields, range(count), strict=True))) == tuple(range(count))
    assert [getattr(one, field) for field in fields] == list(range(count))
    with pytest.raises(TypeError):
        made(*range(count + 1))


def test_one_without_fields_and_one_that_inherits() -> None:
    assert Nothing() == () and repr(Nothing()) == "Nothing()"
    assert Child("a", 5).port_text() == "5" and type(Child("a")._replace(port=6)) is Child


def test_a_field_without_a_default_cannot_follow_one_that_has_one() -> None:
    with pytest.raises(TypeError, match="Bad"):
        named_tuples._Kind(
            "Bad", (named_tuples.NamedTuple,), {"__annotations__": {"a": "int", "b": "int"}, "a": 1}
        )


def test_does_not_import_typing() -> None:
    code = "import sys, niso.base.named_tuples, niso.plan.records, niso.kernel.kinds.kind; sys.exit('typing' in sys.modules)"
    subprocess.run(
        [sys.executable, "-ISc", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"], check=True
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(), some), max_leaves=8
)


@given(VALUES, st.sampled_from(["", " ", "\n\t"]))
def test_json_is_that_of_the_standard_library(value: object, blank: str) -> None:
    text = json.dumps(value)
    assert to_json(value) == text
    short = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert to_json(value, compact=True) == short
    assert json.dumps(from_json(f"{blank}{text}{blank}")) == text
    assert json.dumps(from_json(text.encode())) == text


ODD = st.sampled_from(
    [
        *(
            '{"a": 1, "a": 2}',
            '"\\ud800"',
            '"\ud800"',
            "NaN",
            "[-Infinity]",
            "-",
            "-0",
            "1.",
            "1e999",
        ),
        *(
            "9" * 4000,
            "9" * 5000,
            "[" * 100_000,
            '{"a":' * 100_000,
            "[" * 500 + "]" * 500,
            "\ufeff1",
        ),
        *(
            '{"a": [1, {"b": null}]}',
            '"\\u00e9\\ud83d\\ude00"',
            '"\x00"',
            '"\x7f"',
            "\u00a01",
            "",
            " ",
        ),
    ]
)


@given(ODD | st.text('[]{}:,"\\ \n\t0-1e.ntu\u00a0\ufeff', max_size=8), st.booleans())
def test_odd_json_has_the_result_of_the_standard_library(text: str, in_bytes: bool) -> None:
    given: list[str | bytes] = [text]
    if in_bytes:
        given = [text.encode(code, "surrogatepass") for code in ("utf-8", "utf-8-sig", "utf-16")]
        given.append(text.encode("latin-1", "replace") + b"\xe9")
    for one in given:
        results = []
        for decode in (json.loads, from_json):
            try:
                results.append(repr(decode(one)))
            except (ValueError, RecursionError) as error:
                results.append(f"{type(error).__name__}: {error}")
        assert results[0] == results[1]


def test_json_refuses_other_types() -> None:
    own: list[object] = []
    own.append(own)
    for value in ({"a": {1}}, {(1,): 2}, own, b"a"):
        errors = []
        for encode in (json.dumps, to_json):
            with pytest.raises((TypeError, ValueError)) as caught:
                encode(value)
            errors.append((type(caught.value), str(caught.value).partition("\n")[0]))
        assert errors[0] == errors[1]
    with pytest.raises(TypeError):
        from_json(None)  # type: ignore[arg-type]  # a NULL of a damaged store


def test_without_the_modules_in_c_the_public_ones_are_used() -> None:
    missing = ("_signal", "_socket", "_json", "_sha2", "_weakref", "_sqlite3")
    code = f"""
import builtins, sys
real = builtins.__import__
def imported(name, *more):
    if name in {missing!r} and more[0]["__name__"].startswith("niso"):
        raise ImportError(name)
    return real(name, *more)
builtins.__import__ = imported
from niso.base import names, native, signals
from niso.store import sqlite
import hashlib, signal, socket, sqlite3, weakref
same = native.signal is signal, native.socket is socket, native.ref is weakref.ref
same += native.sha256 is hashlib.sha256, sqlite.sqlite3 is sqlite3
value = {{"a": [1, "\\xe9", None]}}
texts = native.to_json(value), native.to_json(value, compact=True)
print(*same, *texts, native.from_json(texts[0]) == value, signals.name_of(15), names.packed("::1")[-1])
"""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], capture_output=True, text=True, check=False
    )
    texts = '{"a": [1, "\\u00e9", null]} {"a":[1,"\xe9",null]}'
    assert done.stdout == f"{'True ' * 5}{texts} True SIGTERM 1\n", done.stderr


def test_signals_have_the_names_of_the_standard_library() -> None:
    assert signals.numbers() == {name: int(one) for name, one in signal.Signals.__members__.items()}
    for number in range(1, 65):
        try:
            assert signals.name_of(number) == signal.Signals(number).name
        except ValueError:
            assert signals.name_of(number) == ""
