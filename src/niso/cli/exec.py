"""exec: a command inside a service."""

from __future__ import annotations

from niso.base.errors import Conflict, UsageError
from niso.cli.parse import Args
from niso.store.store import Store


def run(_: str, args: Args) -> int:
    command = args.command
    if not command:
        raise UsageError("no command is given", f"niso exec {args.name} -- CMD")
    store = Store.open(create=False)
    service = store.resolve(args.name)
    row = store.service(service)
    if row is None or not row.active:
        raise Conflict(f"service {service!r} is not active", f"niso activate {service}")
    from niso.runtime.execute import execute

    return execute(service, command)
