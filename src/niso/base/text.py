"""Format times, periods and untrusted values as text for users."""

from __future__ import annotations

import time


def time_text(seconds: float | None) -> str | None:
    """Format a time (seconds since 1970) as RFC 3339 in UTC. Returns None for None."""
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def exact_time_text(seconds: float) -> str:
    """Format a time (seconds since 1970) as RFC 3339 in UTC with milliseconds."""
    return f"{str(time_text(seconds))[:-1]}.{int(seconds % 1 * 1000):03d}Z"


def period_text(seconds: float) -> str:
    """Format a duration in seconds as minutes (``5m``), or from 7200 s on as hours (``2h``)."""
    return f"{seconds / 3600:.0f}h" if seconds >= 7200 else f"{seconds / 60:.0f}m"


def escaped(text: str) -> str:
    """Escape unprintable characters as TOML does, so that a text is safe to print on a terminal."""
    if text.isprintable():
        return text
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(c if c.isprintable() else short.get(c) or _code(ord(c)) for c in text)


def _code(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def shown(value: object, limit: int = 80, depth: int = 2) -> str:
    """Format a value as TOML for a message, escaped and shortened.

    A string is cut to ``limit`` characters, and an array or table to 5 items. Values nested deeper
    than ``depth`` levels are left out.
    """
    if isinstance(value, str):
        head = value[:limit].replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped(head)}{"..." if len(value) > limit else ""}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        inner = [shown(item, 40, depth - 1) for item in value[:5]] if depth else []
        return f"[{', '.join([*inner, '...'] if len(value) > len(inner) else inner)}]"
    if isinstance(value, dict):
        pairs = list(value.items())[:5] if depth else []
        inner = [f"{shown(name, 40)} = {shown(item, 40, depth - 1)}" for name, item in pairs]
        return f"{{{', '.join([*inner, '...'] if len(value) > len(inner) else inner)}}}"
    try:
        return escaped(str(value))[:limit]
    except ValueError:  # an int of more digits than sys.set_int_max_str_digits allows
        return "a very large number"


def local_time_text(seconds: float) -> str:
    """Format a time (seconds since 1970) in the host's time zone, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
