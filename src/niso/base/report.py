"""How a command tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Takes one line of progress, without its newline."""


def silent(_: str) -> None:
    pass
