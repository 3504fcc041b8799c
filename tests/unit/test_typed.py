"""Test that niso's named tuples behave like those of typing."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import typing

import pytest

from niso.base import named_tuples


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
