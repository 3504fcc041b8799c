"""Write addresses and ports as text, and read the family of an address."""

from __future__ import annotations


def family_of(address: str) -> int:
    """Return the IP version, 4 or 6, of an address or prefix in text form."""
    return 6 if ":" in address else 4


def bracketed(address: str) -> str:
    """Return ``[fd00::1]`` for an IPv6 address, and an IPv4 address unchanged (RFC 3986, 3.2.2)."""
    return f"[{address}]" if family_of(address) == 6 else address


def span(first: int, count: int) -> str:
    """Return a port or a range of ``count`` ports: ``8000`` or ``8000-8010``."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
