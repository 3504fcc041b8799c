"""Encode and decode JSON by the C code below `json`, as `json.dumps` and `json.loads` do.

`json` compiles regular expressions, for which it loads `re` and `enum`: 17 of the 182 million
instructions of an attachment.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class _Rules:
    """The attributes that the scanner reads, with the values that `json.JSONDecoder` has."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # of NaN, Infinity and -Infinity


_scan = make_scanner(_Rules)  # type: ignore[arg-type]
_BLANKS = " \t\n\r"


def loads(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, RecursionError, and TypeError if none."""
    if not isinstance(text, str):  # NULL in a damaged row
        raise TypeError(f"a JSON text is expected, not {type(text).__name__}")
    plain = text.strip(_BLANKS)
    try:
        value, end = _scan(plain, 0)
    except StopIteration as error:
        raise ValueError(f"a value is expected at character {error.value}") from None
    if end != len(plain):
        raise ValueError(f"there is more after the value, at character {end}")
    return value


def dumps(value: object, *, compact: bool = False) -> str:
    """Return the JSON of a value. Raises TypeError, RecursionError, ValueError.

    A compact one has no blanks, and characters outside of ASCII as they are.
    """
    between, after_key = (",", ":") if compact else (", ", ": ")
    quoted = encode_basestring if compact else encode_basestring_ascii
    encode = make_encoder({}, _refuse, quoted, None, after_key, between, False, False, True)
    return "".join(encode(value, 0))


def _refuse(value: object) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
