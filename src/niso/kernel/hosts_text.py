"""Parse and edit hosts files as glibc and busybox read them (hosts(5)): one line per address."""

from __future__ import annotations

import socket

from niso.base.addresses import family_of
from niso.base.names import DOMAIN

HEADER = (
    "# written by niso; changes as services come and go\n"
    "127.0.0.1  localhost\n"
    "::1  localhost ip6-localhost ip6-loopback\n"
)

HOST = f"host.{DOMAIN}"
"""The host's name in every hosts file."""


def line_names(names: tuple[str, ...]) -> str:
    """Return the names part of a service's line: each name with the domain, then without."""
    return " ".join(f"{name}.{DOMAIN} {name}" for name in names)


def name_on(service: str, network: str) -> str:
    """Return the name for a service's addresses on a network after the first one shared with it."""
    return f"{service}.{network}.{DOMAIN}"


def line(address: str, names: str) -> str:
    return f"{address}  {names}\n"


def _order(text: str) -> tuple[int, bytes]:
    address = text.partition(" ")[0]
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return (family, socket.inet_pton(family, address))


def _rank(text: str) -> tuple[int, bytes]:
    """Return the sort key of a line. A line that niso did not write gets the lowest."""
    try:
        return _order(text)
    except (OSError, ValueError):
        return (0, b"")


def edit(text: str, remove: set[str], add: set[str]) -> str:
    """Return ``text`` without the lines ``remove`` and with the lines ``add``, sorted by address.

    Both sets contain complete lines. ``text`` is searched by bisection, because parsing all lines
    would take time for each service.
    """
    changes: list[tuple[int, int, tuple[int, bytes], str]] = []  # start, end, sort key, replacement
    for line in remove - add:
        at = _find(text, line, _place(text, line))
        if at < 0:  # another program has changed the order of the lines
            at = text.find(f"\n{line}") + 1
        if at > 0:
            changes.append((at, at + len(line), _order(line), ""))
    for line in add:
        place = _place(text, line)
        if _find(text, line, place) < 0:
            changes.append((place, place, _order(line), line))
    pieces, done = [], 0
    for start, end, _, new in sorted(changes):  # the order of lines with one address
        pieces += [text[done:start], new]
        done = end
    return "".join((*pieces, text[done:]))


def _place(text: str, line: str) -> int:
    """Return the offset at which to insert a line: after lines of the same or a lower address."""
    order, low, high = _order(line), len(HEADER), len(text)
    while low < high:
        start = max(low, text.rfind("\n", low, (low + high) // 2) + 1)
        end = text.find("\n", start) + 1 or len(text)
        if _rank(text[start:end]) <= order:
            low = end
        else:
            high = start
    return low


def _find(text: str, line: str, place: int) -> int:
    """Return the offset of a line among those of its address; -1 if it is missing.

    These lines end at the offset ``place``.
    """
    order = _order(line)
    while place > len(HEADER):
        end, place = place, text.rfind("\n", 0, place - 1) + 1
        if text[place:end] == line:
            return place
        if _rank(text[place:end]) != order:
            break
    return -1


def lines(text: str) -> list[tuple[str, str]] | None:
    """Return (address, names) of each service's line; None if niso did not write the file."""
    if not text.startswith(HEADER) or not text.endswith("\n"):
        return None
    result = []
    for text_line in text[len(HEADER) : -1].split("\n") if len(text) > len(HEADER) else ():
        address, gap, names = text_line.partition("  ")
        try:
            _order(text_line)
        except OSError:
            return None
        if not gap or not names:
            return None
        result.append((address, names))
    return result
