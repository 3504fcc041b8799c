"""Compute SHA-256 without OpenSSL: ``hashlib`` would load it, which costs 3 ms of each command."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # CPython's own, the fallback of hashlib; it has no public name
    except ImportError:
        from hashlib import sha256

__all__ = ["sha256"]
