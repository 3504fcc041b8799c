"""Guard the public API: check arguments; convert exceptions of lower layers to `Error`."""

from __future__ import annotations

import os
import sys

from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LEAST_TIMEOUT_S = 0.2


def guarded[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """Make a method of the API raise `Error` instead of sqlite3.Error and OSError.

    A request of the method to report waits for locks ends with the method.
    """

    def call(*args: P.args, **named: P.kwargs) -> R:
        owner: Any = args[0]
        listening = owner.session.listening
        try:
            return method(*args, **named)
        except Error:
            raise
        except Exception as error:
            if error is owner.session.callback_error:
                raise  # raised by the caller's callback
            known = explained(error)
            if known is None:
                raise
            raise known from error
        finally:
            owner.session.listen_no_more(listening)

    call.__name__, call.__qualname__ = method.__name__, method.__qualname__
    call.__doc__, call.__module__ = method.__doc__, method.__module__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # as functools.wraps, for inspect
    return call


def explained(error: Exception) -> Error | None:
    """Convert an sqlite3.Error, OSError or error in a damaged row to an `Error`, others to None."""
    kind = type(error)
    if kind.__module__ == "sqlite3":
        from sqlite3 import DatabaseError, OperationalError

        from niso.store.sqlite import unusable

        if isinstance(error, OperationalError) or kind is DatabaseError:
            return unusable(error)
        return None
    # niso writes UTF-8 and JSON there; compared by name, because json is not always loaded
    if kind.__name__ in ("UnicodeDecodeError", "JSONDecodeError") and _is_of_store(error):
        from niso.store.sqlite import unusable

        return unusable(error)
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return Error(f"{error.filename}: {error.strerror}")
    try:
        os.getcwd()
    except OSError:
        return Error(
            "the current directory no longer exists", "cd to an existing one and try again"
        )
    return Error(f"system call: {error.strerror}")


def _is_of_store(error: Exception) -> bool:
    """Return whether an exception was raised while the store was read."""
    at = error.__traceback__
    names: list[str] = []
    while at is not None:
        names.append(str(at.tb_frame.f_globals["__name__"]))
        at = at.tb_next
    own = [name for name in names if name.startswith("niso.")]
    return bool(own) and own[-1].startswith("niso.store.")


def text(value: object, what: str) -> str:
    """Check a str argument and return it. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"must be a string, not {type(value).__name__}", None, what)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{value!r} is not valid UTF-8", "names, paths and commands must be UTF-8", what
        ) from None
    return value


def texts(values: Iterable[object], what: str) -> list[str]:
    """Return str arguments as a list. Raises UsageError, including for a single str."""
    if isinstance(values, str | bytes):
        raise UsageError("must be a list of strings, not one string", None, what)
    try:
        given = list(values)
    except TypeError:
        raise UsageError(
            f"must be a list of strings, not {type(values).__name__}", None, what
        ) from None
    return [text(value, what) for value in given]


_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
"""Unit of a period -> seconds."""


def path(value: object, what: str) -> str:
    """Return a str or os.PathLike argument as a str. Raises UsageError."""
    try:
        return text(os.fspath(value), what)  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(f"must be a path, not {type(value).__name__}", None, what) from None


def seconds(value: object, what: str, low: float) -> float:
    """Check an argument in seconds, at least ``low``, and return it. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"must be a number of seconds, not {type(value).__name__}", None, what)
    if not low <= value < float("inf"):
        raise UsageError(f"must be at least {low:g} seconds", None, what, value=f"{value:g}")
    return float(value)


def duration(value: str, what: str) -> float:
    """Parse a duration as in a manifest, such as ``60s``, to seconds. Raises UsageError."""
    from niso.base.errors import InvalidInput
    from niso.manifest import values

    try:
        return values.duration(value, what, low=LEAST_TIMEOUT_S)
    except InvalidInput as error:
        raise UsageError.of(error) from None


def line_count(value: object) -> int | None:
    """Check the number of lines to print, None for all, and return it. Raises UsageError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"lines: must be an integer, not {type(value).__name__}")
    if value < 0:
        raise UsageError(f"-n {value}: must be 0 or more", "niso logs NAME -n 20")
    return min(value, sys.maxsize)


def moment(value: object, what: str) -> float:
    """Parse a time (RFC 3339), or a period until now such as ``2h``, to seconds since 1970.

    A time without an offset is local time. Raises UsageError.
    """
    import time
    from datetime import datetime

    given = text(value, what)
    digits, unit = given[:-1], _PERIODS.get(given[-1:])
    if unit and digits.isascii() and digits.isdigit() and len(digits) < 10:
        return time.time() - int(digits) * unit
    try:
        return datetime.fromisoformat(given).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(
            "must be a time or a period",
            "a time like 2026-03-01T12:00:00Z, or a period like 10m, 2h or 7d",
            what,
            value=repr(given),
        ) from None


def callers() -> set[int]:
    """Return the uids whose files niso trusts: root, this process's, and the user of sudo(8)."""
    sudo = os.environ.get("SUDO_UID", "")
    return {0, os.geteuid(), *([int(sudo)] if sudo.isascii() and sudo.isdigit() else [])}


def user_of(user: str | None) -> Any:
    """Parse the User of ``exec --user``. Raises UsageError."""
    from niso.base.errors import InvalidInput, UsageError
    from niso.manifest import values

    try:
        return None if user is None else values.user(text(user, "user"), "--user")
    except InvalidInput as error:
        raise UsageError.of(error) from error
