"""The edge of the public API: arguments are checked, and errors of layers below become niso's."""

from __future__ import annotations

import os

from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LEAST_TIMEOUT_S = 0.2


def guarded[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Make a method of the API raise no error of SQLite or of the system, but niso's."""

    def call(*args: P.args, **named: P.kwargs) -> R:
        try:
            return method(*args, **named)
        except Error:
            raise
        except Exception as error:
            owner: Any = args[0]
            if error is owner.session.callback_error:
                raise  # an error of the caller's own
            known = explained(error)
            if known is None:
                raise
            raise known from error

    call.__name__, call.__qualname__ = method.__name__, method.__qualname__
    call.__doc__, call.__module__ = method.__doc__, method.__module__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # as functools.wraps, for inspect
    return call


def explained(error: Exception) -> Error | None:
    """Return niso's error for one of SQLite or of the system; None for any other."""
    kind = type(error)
    if kind.__module__ == "sqlite3":
        from sqlite3 import DatabaseError, OperationalError

        from niso.store.sqlite import unusable

        if isinstance(error, OperationalError) or kind is DatabaseError:
            return unusable(error)
        return None
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return Error(f"{error.filename}: {error.strerror}")
    try:
        os.getcwd()
    except OSError:
        return Error(
            "the current folder is not there any more", "cd to one that is there, and try again"
        )
    return Error(f"system call: {error.strerror}")


def text(value: object, what: str) -> str:
    """Return an argument that is text. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{what}: must be text, not {type(value).__name__}", None, what)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{value!r} is not UTF-8", "names, paths and what exec runs are UTF-8 text", what
        ) from None
    return value


def texts(values: Iterable[object], what: str) -> list[str]:
    """Return arguments that are text. Raises UsageError, also for one text in place of several."""
    if isinstance(values, str | bytes):
        raise UsageError(f"{what}: must be several texts, not one", None, what)
    try:
        given = list(values)
    except TypeError:
        raise UsageError(
            f"{what}: must be several texts, not {type(values).__name__}", None, what
        ) from None
    return [text(value, what) for value in given]


def path(value: object, what: str) -> str:
    """Return the path that a text or an os.PathLike is. Raises UsageError."""
    try:
        return text(os.fspath(value), what)  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(
            f"{what}: must be a path, not {type(value).__name__}", None, what
        ) from None


def seconds(value: object, what: str, low: float) -> float:
    """Return an argument that is a time in seconds, ``low`` or more. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{what}: must be seconds, not {type(value).__name__}", None, what)
    if not low <= value < float("inf"):
        raise UsageError(f"{what} {value:g}: must be {low:g} seconds or more", None, what)
    return float(value)


def duration(words: str, what: str) -> float:
    """Return the seconds of a duration as manifests have it: ``60s``. Raises UsageError."""
    from niso.base.errors import InvalidInput
    from niso.manifest import values

    try:
        return values.duration(words, what, low=LEAST_TIMEOUT_S)
    except InvalidInput as error:
        raise UsageError.of(error) from None
