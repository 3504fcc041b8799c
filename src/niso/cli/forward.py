"""Implement niso port-forward."""

from __future__ import annotations

from niso.api.host import connect
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress


def run(_: str, args: Args) -> int:
    host = connect()
    with Progress(args) as host.progress:
        if args.remove:
            done = host.services.port_unforward(args.name, args.port)
        else:
            done = host.services.port_forward(args.name, args.port, replace=args.replace)
    if args.json:
        output.as_json(done)
        return 0
    state = (
        "no longer published"
        if args.remove
        else "published"
        if done.changed
        else "already published, unchanged"
    )
    print(f"{done.service}: {', '.join(output.ports_text(done.ports))} {state}")
    for lost in done.taken:
        back = (
            ""
            if lost.service == done.service
            else "; --remove publishes the ports of its manifest again"
        )
        ports = ", ".join(output.ports_text(lost.ports))
        print(f"{lost.service}: {ports} no longer published{back}")
    for again in done.returned:
        print(f"{again.service}: {', '.join(output.ports_text(again.ports))} published again")
    return 0
