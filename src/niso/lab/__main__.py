"""Run a command in a lab: ``python -m niso.lab [-- CMD...]``."""

from __future__ import annotations

import sys

from niso.base.errors import Error
from niso.lab.supervisor import FAILED, run


def main(arguments: list[str]) -> int:
    """Run a command in a lab. Return its exit status, or 125 if the lab cannot be created."""
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    try:
        return run(arguments)
    except Error as error:
        print(f"niso: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
