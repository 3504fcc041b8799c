"""Implement niso activate, deactivate, remove and restart."""

from __future__ import annotations

from niso.api.guard import duration
from niso.api.host import Host, connect
from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.progress import Progress

if TYPE_CHECKING:
    from niso.api.outcomes import Done, Outcome


def run(name: str, args: Args) -> int:
    host = connect()
    return {
        "activate": _activate,
        "deactivate": _deactivate,
        "remove": _remove,
        "restart": _restart,
    }[name](host, args)


def _activate(host: Host, args: Args) -> int:
    timeout_s = duration(args.timeout, "--timeout")
    with Progress(args) as host.progress:
        outcomes = host.services.activate(
            *args.what,
            timeout=timeout_s,
            dry_run=args.dry_run,
            replace=args.replace,
            take=args.take,
            trust_owner=args.trust_owner,
        )
    if not args.dry_run:
        print_outcomes(args, outcomes)
    elif not args.json:
        from niso.cli import policy

        policy.say_what_changes(host, *args.what)
    return 0


def _deactivate(host: Host, args: Args) -> int:
    if args.all and args.names:
        raise UsageError("--all and NAME are mutually exclusive", "niso deactivate --help")
    if not args.all and not args.names:
        raise UsageError("missing NAME or --all", "niso deactivate --help")
    with Progress(args) as host.progress:
        if args.all:
            done = host.services.deactivate_all(dry_run=args.dry_run)
        else:
            done = host.services.deactivate(*args.names, dry_run=args.dry_run)
    if not args.dry_run:
        print_stopped(args, done)
        if args.all and not done and not args.json:
            print("no service is active")
    return 0


def _remove(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.remove(*args.names, volumes=args.volumes)
    print_done(args, done, "removed")
    return 0


def _restart(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        done = host.services.restart(*args.names)
    print_done(args, done, "restarted")
    return 0


def print_done(args: Args, done: tuple[Done, ...], state: str) -> None:
    """Print the results of a removal or a restart."""
    if args.json:
        output.as_json(done)
        return
    for result in done:
        print(f"{result.service}: {state}")


def print_stopped(args: Args, done: tuple[Done, ...]) -> None:
    """Print the results of a deactivation."""
    if args.json:
        output.as_json(done)
        return
    for result in done:
        state = "inactive" if result.changed else "already inactive, unchanged"
        print(f"{result.service}: {state}")


def print_outcomes(args: Args, outcomes: tuple[Outcome, ...]) -> None:
    """Print the results of an activation."""
    if args.json:
        output.as_json(outcomes)
        return
    for result in outcomes:
        state = "active" if result.changed else "already active, unchanged"
        state = "completed" if result.completed else state
        ports = ", ".join(output.ports_text(result.ports))
        shown = f"  ports: {ports}" if ports else ""
        print(f"{result.service}: {state}  {', '.join(result.address)}{shown}".rstrip())
