"""Implement niso events."""

from __future__ import annotations

import json
import select
import sys
import time

from niso.api.host import connect
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.api.event_views import Events, Happened


def run(_: str, args: Args) -> int:
    from niso.api.guard import duration

    seconds = None if args.seconds is None else duration(args.seconds, "--for")
    end = None if seconds is None else time.monotonic() + seconds
    with output.LateProgress(args) as progress, connect(progress=progress) as host:
        try:
            with host.events(args.name, since=args.since) as events:
                _print(events.past(), args.json)
                _follow(events, end, args.json)
        except KeyboardInterrupt:
            return 130
    return 0


def _follow(events: Events, end: float | None, as_json: bool) -> None:
    poll = select.poll()
    poll.register(events, select.POLLIN)
    poll.register(sys.stdout, 0)  # reports a closed pipe even while nothing is written
    while True:
        left = None if end is None else max(0.0, end - time.monotonic()) * 1000
        ready = dict(poll.poll(left))
        if sys.stdout.fileno() in ready:
            raise BrokenPipeError
        if not ready:
            return
        _print(events.read(), as_json)


def _print(happened: Iterable[Happened], as_json: bool) -> None:
    from niso.api.as_json import plain

    for one in happened:
        if as_json:
            print(json.dumps(plain(one)))
            continue
        name = one.service or one.network or "-"
        detail = one.detail.replace("→", output.arrow())
        print(output.escaped(f"{one.time}  {name:<12}  {one.what:<15}  {detail}".rstrip()))
    sys.stdout.flush()
