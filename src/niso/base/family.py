"""The family of an address in text form."""

from __future__ import annotations


def family_of(address: str) -> int:
    """Return the IP version, 4 or 6, of an address or prefix in text form."""
    return 6 if ":" in address else 4
