"""Implement niso enable, disable and restore."""

from __future__ import annotations

from niso.api.guard import duration
from niso.api.host import Host, connect
from niso.base.errors import ErrorGroup, UsageError
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress
from niso.cli.service import print_outcomes


def run(name: str, args: Args) -> int:
    host = connect()
    if name == "restore":
        return _restore(host, args)
    if bool(args.names) == args.firewall:
        raise UsageError("missing NAME, or --firewall alone", f"niso help {name}")
    if args.firewall:
        return _firewall(host, args, name == "enable")
    with Progress(args) as host.progress:
        change = host.services.enable if name == "enable" else host.services.disable
        marked = change(*args.names)
    if args.json:
        output.as_json(marked)
        return 0
    unchanged = "already enabled" if name == "enable" else "not enabled"
    for mark in marked:
        state = f"{name}d" if mark.changed else f"{unchanged}, unchanged"
        print(f"{mark.service}: {state}{f'  {mark.unit}' if mark.unit else ''}")
    return 0


def _firewall(host: Host, args: Args, on: bool) -> int:
    with Progress(args) as host.progress:
        done = host.guard_firewalls(on)
    if args.json:
        output.as_json(done)
        return 0
    for guarded in done:
        state = ("enabled" if on else "disabled") if guarded.changed else "unchanged"
        print(f"{guarded.service}: {state}  {guarded.unit}")
    return 0


def _restore(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.services.restore(timeout=timeout_s)
    print_outcomes(args, done.outcomes)
    if not args.json and not done.outcomes and not done.errors:
        print("no service is enabled")
    if done.errors:
        raise ErrorGroup([*done.errors])
    return 0
