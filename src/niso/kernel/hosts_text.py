"""Parse and edit hosts files as glibc and busybox read them (hosts(5)), one line per address."""

from __future__ import annotations

from bisect import insort

from niso.base import lite_socket as socket
from niso.base.addresses import family_of
from niso.base.names import DOMAIN

HEADER = (
    "# written by niso; changes as services come and go\n"
    "127.0.0.1  localhost\n"
    "::1  localhost ip6-localhost ip6-loopback\n"
)

HOST = f"host.{DOMAIN}"
"""The name of the host in every file."""


def line_names(names: tuple[str, ...]) -> str:
    """Return a service's names as in its line: each with the domain, then without."""
    return " ".join(f"{name}.{DOMAIN} {name}" for name in names)


def name_on(service: str, network: str) -> str:
    """Return the name of a service's addresses on a network by which it is not reached first."""
    return f"{service}.{network}.{DOMAIN}"


def line(address: str, names: str) -> str:
    return f"{address}  {names}\n"


def _order(text: str) -> tuple[int, bytes]:
    address = text.partition(" ")[0]
    family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
    return (family, socket.inet_pton(family, address))


def edit(text: str, remove: set[str], add: set[str]) -> str:
    """Return ``text`` without the lines ``remove`` and with the lines ``add``, sorted by address.

    Both sets contain complete lines.
    """
    elsewhere = remove | add
    lines = [
        line for line in text[len(HEADER) :].splitlines(keepends=True) if line not in elsewhere
    ]
    for new in sorted(add):  # the order of lines of one address
        insort(lines, new, key=_order)
    return HEADER + "".join(lines)


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
