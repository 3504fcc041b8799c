"""``without_process.py ARGS``: the command ``niso`` for a service that has all but a process. Only in a lab.

So the network's share of a whole command can be seen, Python's start included: peers' network commands start no process either.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any


def nothing(*_: Any, **__: Any) -> None:
    return None


def main() -> None:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("only in a lab")
    from niso.cli.main import main as command
    from niso.runtime import process
    from niso.services import start

    replaced = {
        "start": nothing,
        "stop": nothing,
        "ask_to_end": lambda *_, **__: -1,
        "runs": lambda *_, **__: True,
        "status": lambda *_, **__: SimpleNamespace(state="running", pid=1, error=None),
    }
    for name, value in replaced.items():
        setattr(process, name, value)
    start.run = start.expect = nothing  # type: ignore[assignment]
    command()


if __name__ == "__main__":
    main()
