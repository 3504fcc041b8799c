"""``without_process.py ARGS``: the command ``niso`` without starting processes. Use only in a lab.

This measures the network's share of a command, including the start of Python, comparable to network
commands of the peers, which start no process either.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def nothing(*_: Any, **__: Any) -> None:
    return None


def main() -> None:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("only in a lab")
    from niso.change import start
    from niso.cli.main import main as command
    from niso.runtime import lifecycle, status

    lifecycle.start = lifecycle.stop = nothing  # type: ignore[assignment]
    lifecycle.terminate = lambda *_, **__: -1
    status.runs = lambda *_, **__: True
    status.read = lambda *_, **__: status.Status("running", None, 1, 0.0, 0, None)
    start.run = nothing  # type: ignore[assignment]
    command()


if __name__ == "__main__":
    main()
