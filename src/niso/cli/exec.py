"""Run exec: a command inside a service."""

from __future__ import annotations

from niso.api.host import connect
from niso.cli.parse import Args


def run(_: str, args: Args) -> int:
    return connect().services.exec(args.name, args.command)
