"""Implement niso net refresh."""

from __future__ import annotations

import sys
import time

from niso.api.host import Host, connect
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from niso.api.outside_views import OutsideName

_WITHOUT = 3
"""The exit status if a name has no address; errors have 1."""
COLUMNS = ("NAME", "ADDRESSES", "UNTIL", "SERVICES", "PROBLEM")


def run(args: Args) -> int:
    host = connect()
    if args.for_:
        from niso.api.guard import duration

        return _loop(host, args, time.monotonic() + duration(args.for_, "--for"))
    return _refresh(host, args)


def _refresh(host: Host, args: Args) -> int:
    from niso.cli.progress import Progress

    with Progress(args) as host.progress:
        names = host.refresh_names(force=args.all)
    if args.json:
        output.as_json(names)
    elif names:
        output.table(COLUMNS, [_row(name) for name in names])
    else:
        print("no policy has an outside name")
    return _WITHOUT if any(not name.addresses for name in names if name.services) else 0


def _loop(host: Host, args: Args, end: float) -> int:
    """Refresh whenever a name is due, until ``end`` or Ctrl-C."""
    status = 0
    try:
        while True:
            status = _refresh(host, args)
            sys.stdout.flush()
            wait = min(host.names_due(), end - time.monotonic())
            if wait <= 0:
                return status
            time.sleep(wait)
    except KeyboardInterrupt:
        return 130


def _row(name: OutsideName) -> tuple[str, ...]:
    return (
        name.name,
        ", ".join(name.addresses) or "-",
        name.until or "-",
        ", ".join(name.services) or "-",
        output.escaped(name.problem or "-"),
    )
