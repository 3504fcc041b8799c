"""Run niso kubernetes."""

from __future__ import annotations

from niso.api.host import connect
from niso.base.errors import UsageError
from niso.cli import agents, output
from niso.cli.parse import Args
from niso.cli.progress import Progress


def run(name: str, args: Args) -> int:
    from niso.api.host_kubernetes import KUBECONFIG

    host = connect()
    if args.disable and args.kubeconfig:
        raise UsageError("--kubeconfig has no meaning with --disable", f"niso help {name}")
    config = args.kubeconfig or KUBECONFIG
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
