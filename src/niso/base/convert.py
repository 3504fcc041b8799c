"""Tables of a file as named tuples: what their keys may be, and plain data, as of TOML or JSON, made into them and back.

A table is a `niso.base.lite_typing.NamedTuple`. A key of it may be ``str``, ``int``, ``float`` (a whole number too), ``bool``, a
table, ``tuple[X, ...]`` (an array), ``dict[str, X]`` or ``Mapping[str, X]`` (a table of any keys), ``Literal`` of texts, ``object``
(any plain data, left as it is), or several of these with ``|``, and None, which TOML does not have.
Of those with ``|`` one at most is an array, one a table and one a text. A key without a default must be there.

To import a library for this was 6 of the 61 ms of an `activate` with nothing to change. Here a small manifest takes 7 µs, the first
0.1 ms, since its types are read then; a stored one 29 µs.
"""

from __future__ import annotations

import sys
from types import GenericAlias, UnionType

from niso.base.lite_typing import TYPE_CHECKING, Choice

if TYPE_CHECKING:
    from typing import Any

    type Kind = dict[type, Any]
    """What a value may be: each type that plain data has then, with what must be inside it. That is None for str, int, bool and
    None, the texts of a Literal, the Kind of each item of an array or of a table of any keys, else the table."""

_known: dict[tuple[str, str], Kind] = {}


class Mismatch(ValueError):
    """Data is not of the type that it should be; `niso.manifest.validate.walk` says of everything in it what is wrong."""


def kind(of: Any) -> Kind:
    """What a value of a type may be."""
    if type(of) is UnionType:
        return {form: inside for part in of.__args__ for form, inside in kind(part).items()}
    if type(of) is GenericAlias:
        return (
            {list: kind(of.__args__[0])} if of.__origin__ is tuple else {dict: kind(of.__args__[1])}
        )
    if type(of) is Choice:
        return {str: of.texts}
    if of is float:
        return {float: None, int: None}
    return {dict: of} if is_table(of) else {of: None}


def field(table: Any, name: str) -> Kind:
    """What a key of a table may be. The text of its type is read when it is asked for, and once: most manifests have few keys."""
    module, text = known = table.__module__, table.__annotations__[name]
    if known not in _known:
        _known[known] = kind(eval(text, vars(sys.modules[module])))  # noqa: S307  # niso's own text
    return _known[known]


def fields(table: Any) -> dict[str, Kind]:
    """What all keys of a table may be."""
    return {name: field(table, name) for name in table._fields}


def required(table: Any) -> list[str]:
    """The keys of a table that must be there."""
    return [name for name in table._fields if name not in table._field_defaults]


def is_table(of: Any) -> bool:
    return hasattr(of, "_fields")


def convert[T](data: object, table: type[T]) -> T:
    """Plain data as a table, with the defaults of the keys that it has not.

    Nothing is made fit: a number is no text, and true no number. Raises Mismatch, exactly where `niso.manifest.validate.walk` finds something.
    """
    return _convert(data, {dict: table})  # type: ignore[no-any-return]


def _convert(data: Any, may_be: Kind) -> Any:
    form = type(data)
    if form not in may_be:
        if object in may_be:
            return data
        raise Mismatch
    inside = may_be[form]
    if inside is None:
        return data
    if form is list:
        return tuple([_convert(item, inside) for item in data])
    if form is dict:
        if is_table(inside):
            return _table(data, inside)
        return {name: _convert(item, inside) for name, item in data.items()}
    if data not in inside:
        raise Mismatch
    return data


def _table(data: dict[str, object], table: Any) -> Any:
    if not data.keys() <= set(table._fields):
        raise Mismatch
    made = []
    for name in table._fields:
        if name in data:
            made.append(_convert(data[name], field(table, name)))
        elif name in table._field_defaults:
            default = table._field_defaults[name]
            made.append(dict(default) if type(default) is dict else default)
        else:
            raise Mismatch
    return tuple.__new__(table, made)


def plain(value: Any) -> Any:
    """What `convert` made, as plain data with every key of its tables."""
    if is_table(value):
        return {name: plain(item) for name, item in zip(value._fields, value, strict=True)}
    if type(value) is dict:
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if type(value) in (tuple, list) else value
