"""exec: a command inside a service."""

from __future__ import annotations

import argparse

from niso.errors import Conflict, UsageError
from niso.store.store import Store


def configure(_: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = """\
examples:
  niso exec api -- cat /etc/hosts
  niso exec api -- sh
exit status: the command's own; 125 niso could not, 126 not executable, 127 not found, 128+N ended by signal N
"""
    parser.add_argument("name", metavar="NAME", help="an active service")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...", help="the command and its arguments")


def run(_: str, args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("no command is given", f"niso exec {args.name} -- CMD")
    store = Store.open(create=False)
    service = store.resolve(args.name)
    row = store.service(service)
    if row is None or not row.active:
        raise Conflict(f"service {service!r} is not active", f"niso activate {service}")
    from niso.runtime.execute import execute

    return execute(service, command)
