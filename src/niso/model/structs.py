"""msgspec without typing_extensions: where that is installed msgspec loads it, for older Pythons' sake, which is 8 ms of a command."""

from __future__ import annotations

import sys

_NAME = "typing_extensions"

if _NAME in sys.modules:
    import msgspec
else:
    sys.modules[_NAME] = None  # type: ignore[assignment]  # "import" of it fails, as where it is not installed
    try:
        import msgspec
    finally:
        del sys.modules[_NAME]

__all__ = ["msgspec"]
