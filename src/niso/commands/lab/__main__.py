"""``python -m niso.commands.lab [-- CMD...]``: a lab without the rest of niso's command line."""

from __future__ import annotations

import sys

from niso.base.errors import NisoError
from niso.commands.lab.supervisor import FAILED, run


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    try:
        return run(arguments)
    except NisoError as error:
        print(f"niso: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
