"""Convert plain data, as parsed from TOML or JSON, to named tuples and back.

A table is a `niso.base.named_tuples.NamedTuple`. The type of a table's key may be ``str``, ``int``,
``float`` (which also accepts an integer), ``bool``, a table, ``tuple[X, ...]`` (an array),
``dict[str, X]`` or ``Mapping[str, X]`` (a table with arbitrary keys), ``Literal`` with strings,
``object`` (any plain data, unchanged), or a union of these with ``|``. A union may contain None,
for which TOML has no value, and at most one array, one table and one string type. A key without a
default is required.

No validation library is used, because it would take 6 of the 61 ms that `activate` takes when
nothing changes. This module needs 0.1 ms for the first small manifest, and 7 µs for each further
one.
"""

from __future__ import annotations

import sys
from types import GenericAlias, UnionType

from niso.base.named_tuples import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    type Kind = dict[type, Any]
    """The types that a value may have, each mapped to the type of its content.

    A str, int, bool or None has no content, so these types map to None. A str of a ``Literal`` maps
    to the allowed strings. An array, and a table with arbitrary keys, map to the Kind of their
    items. A table with fixed keys maps to its named tuple class.
    """

_SIMPLE = frozenset((str, int, float, bool, type(None)))
"""The types of plain values without content."""
_known: dict[tuple[str, Any], Kind] = {}
_read: dict[Any, dict[str, Kind]] = {}


def choice(*texts: str) -> Any:
    """Return a type annotation for these strings, as Literal. `typing` would take 6 ms to load."""
    return GenericAlias(list, texts)


def kind(of: Any) -> Kind:
    """Return which types a type annotation, such as ``tuple[str, ...]``, allows.

    The result is a `Kind`: it maps each allowed type to the type of its content.
    """
    if type(of) is UnionType:
        return {form: inside for part in of.__args__ for form, inside in kind(part).items()}
    if type(of) is GenericAlias:
        if of.__origin__ is list:  # `choice`
            return {str: of.__args__}
        return (
            {list: kind(of.__args__[0])} if of.__origin__ is tuple else {dict: kind(of.__args__[1])}
        )
    if of is float:
        return {float: None, int: None}
    return {dict: of} if is_table(of) else {of: None}


def field(table: Any, name: str) -> Kind:
    """Return which types the value of a key may have.

    ``table`` is the named tuple class that describes the key's table, and ``name`` is the key. The
    types are returned as `kind` returns them, and cached.
    """
    of = table.__annotations__[name]
    known = table.__module__, of
    if known not in _known:
        if isinstance(of, str):
            names = vars(sys.modules[table.__module__])
            of = eval(of, names, {"Literal": list})  # noqa: S307  # niso's own text
        _known[known] = kind(of)
    return _known[known]


def fields(table: Any) -> dict[str, Kind]:
    return {name: field(table, name) for name in table._fields}


def required(table: Any) -> list[str]:
    """Return the names of the keys of a table class that have no default."""
    return [name for name in table._fields if name not in table._field_defaults]


def is_table(of: Any) -> bool:
    return hasattr(of, "_fields")


def convert[T](data: object, table: type[T]) -> T:
    """Convert plain data to an instance of the named tuple class ``table``.

    Missing keys get their defaults. No value is converted to another type: a string key rejects a
    number, and a number key rejects true. Raises ValueError, without a location, if the data do not
    fit. `niso.manifest.validate.walk` reports exactly the same errors with their locations.
    """
    return _convert(data, {dict: table})  # type: ignore[no-any-return]


def _convert(data: Any, expected: Kind) -> Any:
    form = type(data)
    if form not in expected:
        if object in expected:
            return data
        raise ValueError
    inside = expected[form]
    if inside is None:
        return data
    if form is list:
        return tuple([_convert(item, inside) for item in data])
    if form is dict:
        if is_table(inside):
            return _table(data, inside)
        return {name: _convert(item, inside) for name, item in data.items()}
    if data not in inside:
        raise ValueError
    return data


def _table(data: dict[str, object], table: Any) -> Any:
    defaults, known = table._field_defaults, _read.setdefault(table, {})
    made, unread = [], len(data)
    for name in table._fields:
        if name in data:
            if name not in known:
                known[name] = field(table, name)
            expected, value = known[name], data[name]
            if (
                expected.get(type(value), expected) is not None
            ):  # most types contain nothing to convert
                value = _convert(value, expected)
            made.append(value)
            unread -= 1
        elif name in defaults:
            default = defaults[name]
            made.append(dict(default) if type(default) is dict else default)
        else:
            raise ValueError
    if unread:
        raise ValueError
    return tuple.__new__(table, made)


def plain(value: Any) -> Any:
    """Convert a result of `convert` back to plain data, including keys with default values."""
    form = type(value)
    if form in _SIMPLE:
        return value
    if is_table(form):
        values = [item if type(item) in _SIMPLE else plain(item) for item in value]
        return dict(zip(form._fields, values, strict=True))
    if form is dict:
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if form in (tuple, list) else value
