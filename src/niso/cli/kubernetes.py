"""Implement niso kubernetes."""

from __future__ import annotations

from niso.api.host import connect
from niso.cli import agents, output
from niso.cli.parse import Args
from niso.cli.progress import Progress


def run(name: str, args: Args) -> int:
    host = connect()
    config = args.kubeconfig
    if not (args.enable or args.disable):
        return agents.follow(lambda log: host.kubernetes.follow(log, config))
    with Progress(args) as host.progress:
        done = host.kubernetes.enable(config) if args.enable else host.kubernetes.disable()
    if args.json:
        output.as_json(done)
        return 0
    state = ("enabled" if args.enable else "disabled") if done.changed else "unchanged"
    print(f"{done.service}: {state}  {done.unit}")
    return 0
