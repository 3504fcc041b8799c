"""schema and lab."""

from __future__ import annotations

import argparse


def configure(name: str, parser: argparse.ArgumentParser) -> None:
    if name == "schema":
        parser.epilog = (
            "example:\n  niso schema > manifest.schema.json    for an editor that checks TOML by JSON Schema\n"
        )
        return
    parser.epilog = """\
The host has 192.0.2.1 and 2001:db8::1 on uplink0; `ip netns exec client ...` is another machine (192.0.2.2), `ip netns
exec neighbour ...` a third (192.0.2.3). There is no way out. All of it ends with the command.

examples:
  niso lab
  niso lab -- sh -c 'niso activate ./api && ip netns exec client curl http://192.0.2.1:8080'
"""
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...", help="default: your shell")


def run(name: str, args: argparse.Namespace) -> int:
    if name == "schema":
        from niso.cli.output import as_json
        from niso.model.schema import schema

        as_json(schema())
        return 0
    from niso.lab import process

    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    return process.run(command)
