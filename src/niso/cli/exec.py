"""Implement exec, which runs a command inside a service, and kill, which sends a signal to one."""

from __future__ import annotations

from niso.api.host import connect
from niso.cli.parse import Args


def run(name: str, args: Args) -> int:
    if name == "exec":
        return connect().services.exec(args.name, args.command, user=args.user)
    sent = connect().services.kill(*args.names, signal=args.signal)
    if args.json:
        from niso.cli import output

        output.as_json(sent)
        return 0
    for one in sent:
        print(f"{one.service}: {one.signal} sent{', its process has ended' if one.ended else ''}")
    return 0
