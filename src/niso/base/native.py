"""Provide signals, sockets, JSON, SHA-256 and weak references from CPython's private C modules.

Most of a short command's time is its start. `signal` and `socket` define their constants as enums,
`json` compiles regular expressions, and `hashlib` loads OpenSSL: 40 of the 205 million instructions
of a CNI ADD (docs/design/performance.md). niso needs only the C modules that they wrap. The C
modules have the same functions, classes and exceptions, but their constants are plain integers, and
a socket is no context manager (use ``contextlib.closing``). If a Python lacks one of the C modules,
the public module is used.

`call_libc` calls functions of the C library that Python does not have. `lazy` delays an import.
"""

from __future__ import annotations

import os
from types import ModuleType, SimpleNamespace

from niso.base.named_tuples import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    import socket
    from hashlib import sha256
    from weakref import ref
else:
    try:
        import _signal as signal
    except ImportError:
        import signal
    try:
        import _socket as socket
    except ImportError:
        import socket
    try:
        from _sha2 import sha256
    except ImportError:
        from hashlib import sha256
    try:
        from _weakref import ref
    except ImportError:
        from weakref import ref

__all__ = ["call_libc", "from_json", "lazy", "ref", "sha256", "signal", "socket", "to_json"]

_BLANKS = " \t\n\r"
_decoder: Any = SimpleNamespace(  # the attributes of json.JSONDecoder
    strict=True,
    object_hook=None,
    object_pairs_hook=None,
    array_hook=None,
    parse_float=float,
    parse_int=int,
    parse_constant=float,
)
_c: Any
try:
    import _json as _c

    _scan = _c.make_scanner(_decoder)
except (ImportError, AttributeError):
    _c = None


def from_json(given: str | bytes) -> Any:
    """Decode JSON, as ``json.loads`` does. Raises ValueError if ``given`` is not valid JSON."""
    if _c is not None and isinstance(given, str | bytes):
        try:
            text = given.decode() if isinstance(given, bytes) else given
            value, end = _scan(text, len(text) - len(text.lstrip(_BLANKS)))
            if not text[end:].strip(_BLANKS):
                return value
        except (StopIteration, UnicodeDecodeError):  # the text ends early, or is not UTF-8
            pass
    import json

    return json.loads(given)  # almost always raises the error


def to_json(value: object, compact: bool = False) -> str:
    """Encode a value as JSON, as ``json.dumps`` does.

    With ``compact``, the result has no spaces, and non-ASCII characters are not escaped. Raises
    TypeError for a type that JSON does not have, and ValueError for a value that contains itself.
    """
    colon, comma = (":", ",") if compact else (": ", ", ")
    if _c is None:
        import json

        return json.dumps(value, ensure_ascii=not compact, separators=(comma, colon))
    escape = _c.encode_basestring if compact else _c.encode_basestring_ascii
    if isinstance(value, str):
        return str(escape(value))
    encode = _c.make_encoder({}, _refuse, escape, None, colon, comma, False, False, True)
    return "".join(encode(value, 0))


_libc: Any = None  # ctypes.CDLL: opening it takes longer than a mount


def call_libc(function: str, *arguments: object, path: str = "") -> int:
    """Call a function of the C library, and return its result.

    A str is passed as the bytes of a file name. A negative result raises OSError, with the file
    name ``path``.
    """
    global _libc
    import ctypes  # few commands need it

    _libc = _libc or ctypes.CDLL(None, use_errno=True)
    words = (
        os.fsencode(value)
        if isinstance(value, str)
        else ctypes.c_long(value)
        if isinstance(value, int)
        else value
        for value in arguments
    )
    result = int(getattr(_libc, function)(*words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path or None)
    return result


def _refuse(value: object) -> None:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def lazy(name: str) -> Any:
    """Return a stand-in for the module ``name``, such as "niso.kernel.sockets".

    The first call of one of its functions or classes imports the module. The stand-in has no
    constants, and its classes are not for ``isinstance``. For type checkers, the caller imports the
    real module under ``if TYPE_CHECKING``.
    """
    stand_in: Any = ModuleType(name)

    # modules that delegate to functions, such as kernel/real.py, look them up during their import
    def attribute(of_module: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            module = __import__(name, fromlist=("",))
            return getattr(module, of_module)(*arguments, **named)

        return call

    stand_in.__getattr__ = attribute
    return stand_in
