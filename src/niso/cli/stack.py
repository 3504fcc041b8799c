"""niso stack: up, down and status of the services of one stack.toml."""

from __future__ import annotations

from niso.cli import output
from niso.cli import service as lifecycle
from niso.cli.parse import Args
from niso.cli.progress import Progress
from niso.commands import stack
from niso.manifest import stack_file as model
from niso.store.store import Store


def run(name: str, args: Args) -> int:
    return {"stack up": _up, "stack down": _down, "stack status": _status}[name](args)


def _up(args: Args) -> int:
    timeout_s = lifecycle.timeout(args.timeout)
    loaded = stack.load(args.dir)
    store = Store.open(create=not args.dry_run)
    with Progress(
        args, [member.name for member in loaded.members if member.has_healthcheck]
    ) as report:
        done = stack.up(store, loaded, timeout_s, report, args.dry_run)
    if args.dry_run:
        return 0
    lifecycle.warn(store, done.outcomes)
    lifecycle.settle(store, [outcome.service for outcome in done.outcomes])
    if args.json:
        output.as_json(
            {
                "stack": loaded.name,
                "services": [lifecycle.outcome_json(store, outcome) for outcome in done.outcomes],
                "left": done.left,
                "networks": done.made,
            }
        )
        return 0
    for name in done.made:
        print(f"network {name}: created")
    for name in done.idle:
        print(f"network {name}: no service is on it, not made")
    for name in done.left:
        print(f"{name}: inactive, it left the stack")
    for outcome in done.outcomes:
        print(lifecycle.outcome_text(outcome))
    return 0


def _down(args: Args) -> int:
    store = Store.open(create=False)
    with Progress(args) as report:
        done = stack.down(store, args.dir, report, args.dry_run, args.volumes)
    if args.dry_run:
        return 0
    if args.json:
        output.as_json(
            [{"service": service, "changed": changed} for service, changed in done.services]
        )
        return 0
    for service, changed in done.services:
        print(f"{service}: {'inactive' if changed else 'is not active'}")
    if not done.services:
        print(f"stack {done.stack}: no service of it is known, nothing to do")
    return 0


def _status(args: Args) -> int:
    from niso.cli import inspect

    outline = model.outline(args.dir)
    store = Store.open(create=False)
    return inspect.ps(store, args, {*outline.after, *store.stack_members(outline.name)})
