"""enable, disable, restore."""

from __future__ import annotations

from niso.base.errors import ErrorGroup
from niso.cli import output, service
from niso.cli.parse import Args
from niso.cli.progress import Progress
from niso.commands import boot
from niso.store.store import Store


def run(name: str, args: Args) -> int:
    if name == "restore":
        return _restore(args)
    store = Store.open(create=False)
    names = list(dict.fromkeys(store.resolve(each) for each in args.names))
    with Progress(args) as report:
        marked = (boot.enable if name == "enable" else boot.disable)(store, names, report)
    if args.json:
        output.as_json(
            [
                {"service": each.service, "changed": each.changed, "unit": each.unit}
                for each in marked
            ]
        )
        return 0
    for each in marked:
        words = (
            f"{name}d"
            if each.changed
            else f"is {name}d already"
            if name == "enable"
            else "is not enabled"
        )
        print(f"{each.service}: {words}{f'  {each.unit}' if each.unit else ''}")
    return 0


def _restore(args: Args) -> int:
    timeout_s = service.timeout(args.timeout)
    store = Store.open(create=False)
    with Progress(
        args, service.with_healthcheck(store, [row.name for row in store.services() if row.enabled])
    ) as report:
        done = boot.restore(store, timeout_s, report)
    service.warn(store, done.outcomes)
    service.settle(store, [outcome.service for outcome in done.outcomes])
    if args.json:
        output.as_json([service.outcome_json(store, outcome) for outcome in done.outcomes])
    else:
        for outcome in done.outcomes:
            print(service.outcome_text(outcome))
        if not done.outcomes and not done.errors:
            print("no service is enabled")
    if done.errors:
        raise ErrorGroup(done.errors)
    return 0
