"""niso stack: up, down and status of the services of one stack.toml."""

from __future__ import annotations

import argparse

from niso import stack
from niso.apply import Report
from niso.cli import lifecycle, output
from niso.cli.progress import Progress
from niso.errors import UsageError
from niso.model import stack as model
from niso.store.store import Store

ACTIONS = {
    "up": "make everything be as stack.toml says, all or none",
    "down": "deactivate all services of the stack",
    "status": "the services of the stack and how they are",
}

EPILOG = {
    "up": """\
examples:
  niso stack up                       the stack.toml here
  niso stack up examples/shop
  niso stack up --dry-run             what it would do
""",
    "down": """\
Addresses, networks and, without --volumes, volumes stay; niso remove NAME forgets a service, and its networks go with the last one.

examples:
  niso stack down examples/shop
""",
    "status": "examples:\n  niso stack status examples/shop\n",
}


def configure(_: str, parser: argparse.ArgumentParser) -> None:
    parser.usage = "niso stack ACTION [DIR] [...]"
    parser.epilog = "actions:\n" + "".join(f"  {name:<10} {words}\n" for name, words in ACTIONS.items())
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(_: str, args: argparse.Namespace) -> int:
    from niso.cli.main import new_parser, unknown

    if not args.rest:
        raise UsageError("niso stack needs an action", f"one of {', '.join(ACTIONS)}")
    action = args.rest[0]
    if action not in ACTIONS:
        raise unknown(
            "action", f"stack {action}", [f"stack {name}" for name in ACTIONS], "niso stack --help lists them"
        )
    parser = new_parser(f"niso stack {action}", ACTIONS[action], EPILOG[action])
    parser.add_argument(
        "dir", nargs="?", default=".", metavar="DIR", help="a folder with a stack.toml (default: this one)"
    )
    if action == "up":
        parser.add_argument(
            "--timeout", default="60s", metavar="TIME", help="how long to wait for each service (default 60s)"
        )
    if action == "down":
        parser.add_argument("--volumes", action="store_true", help="delete the services' named volumes too")
    if action != "status":
        parser.add_argument("--dry-run", action="store_true", help="print the steps and change nothing")
        parser.add_argument("-v", "--verbose", action="store_true", help="print each step")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parsed = parser.parse_args(args.rest[1:])
    return {"up": _up, "down": _down, "status": _status}[action](parsed)


def _up(args: argparse.Namespace) -> int:
    timeout_s = lifecycle.timeout(args.timeout)
    loaded = stack.load(args.dir)
    store = Store.open(create=not args.dry_run)
    waits = frozenset(member.name for member in loaded.members if member.has_healthcheck)
    with Progress(waits) as progress:
        done = stack.up(store, loaded, timeout_s, _report(args, progress), args.dry_run)
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


def _down(args: argparse.Namespace) -> int:
    store = Store.open(create=False)
    with Progress() as progress:
        done = stack.down(store, args.dir, _report(args, progress), args.dry_run, args.volumes)
    if args.dry_run:
        return 0
    if args.json:
        output.as_json([{"service": service, "changed": changed} for service, changed in done.services])
        return 0
    for service, changed in done.services:
        print(f"{service}: {'inactive' if changed else 'is not active'}")
    if not done.services:
        print(f"stack {done.stack}: no service of it is known, nothing to do")
    return 0


def _status(args: argparse.Namespace) -> int:
    from niso.cli import look

    outline = model.outline(args.dir)
    store = Store.open(create=False)
    return look.ps(store, args.json, {*outline.after, *store.stack_members(outline.name)})


def _report(args: argparse.Namespace, progress: Progress) -> Report:
    return output.step if args.dry_run else output.note if args.verbose else progress.report
