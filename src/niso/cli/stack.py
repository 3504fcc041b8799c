"""Implement niso stack up, down, status, restart and logs."""

from __future__ import annotations

from niso.api.guard import duration
from niso.api.host import Host, connect
from niso.cli import inspect, output, service
from niso.cli.parse import Args
from niso.cli.progress import Progress


def run(name: str, args: Args) -> int:
    return {
        "stack up": _up,
        "stack down": _down,
        "stack status": _status,
        "stack ps": _status,
        "stack restart": _restart,
        "stack logs": _logs,
    }[name](connect(), args)


def _up(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        done = host.stacks.up(
            args.dir,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.replace,
            trust_owner=args.trust_owner,
        )
    if args.dry_run:
        if not args.json:
            import os

            from niso.cli import policy

            is_file = os.path.isfile(args.dir)
            policy.say_what_changes(
                host, args.dir if is_file else os.path.join(args.dir, "stack.toml")
            )
        return 0
    if args.json:
        output.as_json(done)
        return 0
    for name in done.networks:
        print(f"network {name}: created")
    for name in done.idle:
        print(f"network {name}: not created, no service uses it")
    for name in done.left:
        print(f"{name}: inactive, removed from the stack")
    service.print_outcomes(args, done.services)
    return 0


def _down(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.down(args.dir, volumes=args.volumes, dry_run=args.dry_run)
    if args.dry_run:
        return 0
    service.print_stopped(args, done.services)
    if not args.json and not done.services:
        print(f"stack {done.stack}: no known services, unchanged")
    return 0


def _status(host: Host, args: Args) -> int:
    with output.LateProgress(args) as host.progress:
        lines = host.stacks.status(args.dir)
    inspect.print_lines(args, lines)
    return 0


def _restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.stacks.restart(args.dir)
    service.print_done(args, done, "restarted")
    if not args.json and not done:
        print("no service of the stack is active")
    return 0


def _logs(host: Host, args: Args) -> int:
    lines = host.stacks.logs(
        args.dir,
        lines=args.lines,
        follow=args.follow,
        timestamps=args.timestamps,
        since=args.since,
    )
    return inspect.print_chunks(
        (f"{name} | ".encode() + line.removesuffix(b"\n") + b"\n" for name, line in lines),
        args.follow,
    )
