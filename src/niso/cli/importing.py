"""Implement niso import, which converts a compose file to a stack.toml."""

from __future__ import annotations

import sys

from niso.api.compose_files import ImportedStack, import_compose
from niso.cli import output
from niso.cli.parse import Args


def run(_: str, args: Args) -> int:
    made = import_compose(args.file, args.output or None)
    if args.json:
        output.as_json(made)
    elif made.file is None:
        print(made.text, end="")
        print("\n".join(_notes(made)), file=sys.stderr)
    else:
        print(f"{output.escaped(made.file)}: stack {made.stack} of {', '.join(made.services)}")
        print("\n".join(_notes(made)))
    return 0


def _notes(made: ImportedStack) -> list[str]:
    lines = ["not taken over:"] if made.missing else ["everything was taken over"]
    for gap in made.missing:
        place = ": ".join(filter(None, (gap.service, gap.key)))
        lines.append(output.escaped(f"  {place}: {gap.text}"))
    if made.commands:
        lines.append("root file systems, in the folder of the stack.toml; one of each two lines:")
        lines += (output.escaped(f"  {command}") for command in made.commands)
    return lines
