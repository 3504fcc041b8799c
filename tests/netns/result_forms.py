"""Compare JSON with the form that the reference gives of it."""

from __future__ import annotations

from typing import Any

from reference.results import Field

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


def conforms(value: Any, fields: tuple[Field, ...], where: str) -> None:
    """An object has these keys and no others, and each is what it should be."""
    assert isinstance(value, dict), where
    needed = {field.name for field in fields if not field.when}
    assert needed <= value.keys() <= {field.name for field in fields}, where
    for field in fields:
        if field.name not in value:
            continue
        found, here = value[field.name], f"{where}.{field.name}"
        if found is None:
            assert field.null, here
            continue
        assert isinstance(found, TYPES[field.type]), here
        assert field.type == "boolean" or not isinstance(found, bool), here
        if field.of:
            for each in found if isinstance(found, list) else [found]:
                conforms(each, field.of, here)
