"""Provide named tuples that load quickly, and the parts of `typing` that niso needs at run time.

`activate` loads 77 classes of named tuples. For each class, ``typing.NamedTuple`` compiles two
strings of source code and every annotation, which takes 0.14 ms. Short commands need the module
typing for nothing else. Importing typing and making these classes took 15 of the 113 ms of
`activate`, and 6 of the 29 ms of `net list`.
"""

from __future__ import annotations

from _collections import _tuplegetter  # type: ignore[import-not-found]  # as in collections
from types import FunctionType

TYPE_CHECKING = False
"""False, as `typing.TYPE_CHECKING` is at run time. Type checkers recognize this name."""

if TYPE_CHECKING:
    from typing import Any, NamedTuple, Self
else:
    Any = object  # used only in annotations, which are not evaluated

__all__ = ["TYPE_CHECKING", "Any", "NamedTuple", "named_tuple"]

_getters = [_tuplegetter(place, "") for place in range(16)]
_new = tuple.__new__
_templates: dict[int, Any] = {}


def _template(count: int) -> Any:
    if count not in _templates:
        arguments = "".join(f"a{i}, " for i in range(count))
        text = f"lambda _cls, {arguments}: _new(_cls, ({arguments}))"
        _templates[count] = eval(text)  # noqa: S307  # it depends on nothing but a number
    return _templates[count]


def _maker(name: str, fields: tuple[str, ...], defaults: tuple[object, ...]) -> FunctionType:
    template = _template(len(fields))
    code = template.__code__.replace(
        co_varnames=("_cls", *fields), co_name="__new__", co_qualname=f"{name}.__new__"
    )
    return FunctionType(code, template.__globals__, "__new__", defaults or None)


class _Tuple(tuple[object, ...]):
    """The base class of all named tuples, with the methods that collections.namedtuple provides."""

    __slots__ = ()
    if TYPE_CHECKING:
        _fields: tuple[str, ...]

    def _replace(self, **changes: object) -> Self:
        values, fields = list(self), self._fields
        for name, value in changes.items():
            if name not in fields:
                raise TypeError(f"{type(self).__name__} has no {name}")
            values[fields.index(name)] = value
        return tuple.__new__(type(self), values)

    def _asdict(self) -> dict[str, object]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({values})"

    def __getnewargs__(self) -> tuple[object, ...]:
        return tuple(self)


class _Kind(type):
    """A metaclass that turns a class body into a named tuple, as ``typing.NamedTuple`` does."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        if not bases:
            return super().__new__(mcs, name, bases, body)
        fields = tuple(body.get("__annotations__", ()))
        optional = tuple([field for field in fields if field in body])
        if optional != fields[len(fields) - len(optional) :]:
            raise TypeError(f"{name}: a field without a default comes after one that has one")
        body["_field_defaults"] = {field: body[field] for field in optional}
        body["__new__"] = _maker(name, fields, tuple(body["_field_defaults"].values()))
        body["__slots__"] = ()
        body["_fields"] = body["__match_args__"] = fields
        while len(_getters) < len(fields):
            _getters.append(_tuplegetter(len(_getters), ""))
        body.update(zip(fields, _getters, strict=False))
        return type(name, (_Tuple,), body)


if not TYPE_CHECKING:
    # a module that derives a class from it must have "from __future__ import annotations"
    NamedTuple = _Kind("NamedTuple", (), {"__module__": __name__})


def named_tuple(name: str, types: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """Return a new named tuple class. ``types`` maps the names of all fields to types. ``defaults``
    maps the names of the last fields to default values.
    """
    return _Kind(name, (NamedTuple,), {"__annotations__": types, **defaults})
