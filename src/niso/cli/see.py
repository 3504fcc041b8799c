"""Run niso net flows and graph."""

from __future__ import annotations

import sys

from niso.api.host import Host, connect
from niso.base.addresses import bracketed
from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from typing import NoReturn

    from niso.api.flow_views import Flow, Flows

COLUMNS = ("FROM", "TO", "NEW", "OPEN", "LAST", "VERDICT", "BY")
_EVERY_MS = 1000


def run(action: str, args: Args) -> int:
    return int(globals()[f"_{action}"](connect(), args))


def _flows(host: Host, args: Args) -> int:
    with output.LateProgress(args) as host.progress:
        if args.follow:
            try:
                with host.follow_flows(args.name, denied=args.denied) as flows:
                    _follow(flows, args.json)
            except KeyboardInterrupt:
                return 130
        rows = host.flows(args.name, denied=args.denied, since=args.since)
    if args.json:
        output.as_json(rows)
    else:
        output.table(COLUMNS, [_cells(flow) for flow in rows])
    return 0


def _graph(host: Host, args: Args) -> int:
    with output.LateProgress(args) as host.progress:
        if args.format == "png" and not args.output and output.is_terminal():
            raise UsageError("a PNG is not for a terminal", "-o FILE.png", "--format")
        picture = host.graph(
            args.format, stack=args.stack, since=args.since, declared=args.declared
        )
    if args.output:
        _write(args.output, picture)
    else:
        sys.stdout.buffer.write(picture)
        sys.stdout.flush()
    return 0


def _write(path: str, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise UsageError(f"cannot write {path}: {reason}", "choose another file", "-o") from None


def _cells(flow: Flow) -> tuple[str, ...]:
    last = "-"
    if flow.ago is not None:
        last = "now" if flow.ago < 1 else f"{output.duration(flow.ago)} ago"
    new, opened = str(flow.new or "-"), str(flow.open or "-")
    return (flow.from_.name, _to(flow), new, opened, last, flow.verdict, _by(flow) or "-")


def _to(flow: Flow) -> str:
    return f"{bracketed(flow.to.name)}:{flow.port}/{flow.proto}"


def _by(flow: Flow) -> str:
    """Return what decides: ``published 8080``, ``db allow_from[0] "api:80"``."""
    parts = [] if flow.published is None else [f"published {flow.published}"]
    if flow.key:
        line = f"{flow.service} {flow.key.removeprefix('network.policy.')}"
        line += f' "{flow.text}"' if flow.text else ""
        parts.append(line if flow.agrees else f"now denied: {line}")
    elif flow.verdict == "drop":
        parts.append(flow.words if flow.words and flow.agrees else "now allowed")
    return ", ".join(parts)


def _follow(flows: Flows, as_json: bool) -> NoReturn:
    import json
    import select

    from niso.api.as_json import plain

    poll = select.poll()
    poll.register(sys.stdout, 0)  # reports a closed pipe even while nothing is written
    while True:
        if poll.poll(_EVERY_MS):
            raise BrokenPipeError
        for flow in flows.read():
            print(json.dumps(plain(flow)) if as_json else output.escaped(_line(flow)))
        sys.stdout.flush()


def _line(flow: Flow) -> str:
    ends = f"{flow.from_.name} {output.arrow()} {_to(flow)}"
    times = f"  ({flow.new} times)" if flow.new > 1 else ""
    by = f"  {_by(flow)}" if _by(flow) else ""
    return f"{flow.last}  {ends}  {flow.verdict}{by}{times}"
