"""Implement niso net flows, graph, capture and trace."""

from __future__ import annotations

import contextlib
import sys

from niso.api.host import Host, connect
from niso.base.addresses import bracketed
from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import IO, NoReturn

    from niso.api.captures import Capture, Traced
    from niso.api.flow_views import Flow, Flows
    from niso.api.top_views import FlowLoad

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
        output.table(COLUMNS, [_cells(flow) for flow in _merged(rows)])
    return 0


def _merged(flows: Iterable[Flow]) -> list[Flow]:
    return output.merged(flows, lambda f: (f.from_.name, _to(f), f.verdict, decided_by(f)))


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


def _capture(host: Host, args: Args) -> int:
    from niso.api.guard import duration

    seconds = None if args.seconds is None else duration(args.seconds, "--for")
    if args.write == "-" and output.is_terminal():
        raise UsageError("a capture is not for a terminal", "-w FILE, or a pipe", "-w")
    services, peer = args.names, None
    if len(services) > 1 and _is_peer(services[-1]):
        *services, peer = services
    with contextlib.ExitStack() as stack:
        running = host.capture(
            *services,
            peer=peer,
            filter=" ".join(args.filter),
            count=args.count,
            lines=args.write is None,
            drops=args.drops,
        )
        capture = stack.enter_context(running)
        file: IO[bytes] = sys.stdout.buffer
        if args.write not in (None, "-"):
            # wait for the file's header before replacing a file: by then tcpdump has accepted the
            # filter
            first = capture.read()
            try:
                file = stack.enter_context(open(args.write, "wb", buffering=0))
            except OSError as error:
                raise _unwritten(args.write, error) from None
            if not first:
                return 0
            try:
                _write_all(file, first)
                return _copy(capture, file, seconds, as_text=False)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _unwritten(args.write, error) from None
        return _copy(capture, file, seconds, args.write is None)


def _write_all(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    file.flush()


def _unwritten(path: str, error: OSError) -> UsageError:
    reason = (error.strerror or "").lower()
    return UsageError(f"cannot write {path}: {reason}", "choose another file", "-w")


def _is_peer(word: str) -> bool:
    """Return whether a word is a peer, not just a service: ``db:80``, ``host``, an address."""
    return word == "host" or not word[:1].isalpha() or not set(word).isdisjoint(":/")


def _copy(capture: Capture, file: IO[bytes], seconds: float | None, as_text: bool) -> int:
    """Copy a capture to a file until it ends; return the exit status."""
    import select
    import time

    end = None if seconds is None else time.monotonic() + seconds
    poll = select.poll()
    poll.register(capture, select.POLLIN)
    poll.register(file, 0)  # reports a closed pipe even while nothing is written
    status = 0
    while True:
        try:
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000
            ready = dict(poll.poll(left))
            if file.fileno() in ready:
                raise BrokenPipeError
            if not ready:
                end = None
                capture.stop()
                continue
            data = capture.read_ready()
        except KeyboardInterrupt:
            if status:
                raise
            status = 130
            capture.stop()
            continue
        if data is None:
            continue
        if not data:
            return status
        if as_text:
            lines = data.decode("utf-8", "replace").splitlines()
            data = "".join(output.escaped(line) + "\n" for line in lines).encode()
        _write_all(file, data)


def _trace(host: Host, args: Args) -> int:
    from niso.api.guard import duration
    from niso.cli.progress import Progress

    seconds = duration(args.seconds, "--for")
    try:
        with Progress(args) as host.progress:
            traced = host.trace(args.source, args.destination, any_packet=args.any, wait_s=seconds)
    except KeyboardInterrupt:
        return 130
    if traced is None:
        which = "packet" if args.any else "new connection, datagram or ping"
        raise Error(
            f"no {which} from {args.source} to {args.destination} within {args.seconds}",
            f"niso net explain {args.source} {args.destination} says what would happen to one",
        )
    if args.json:
        output.as_json(traced)
    else:
        _print_traced(traced)
    return 0 if traced.passes else 1


def _print_traced(traced: Traced) -> None:
    def end(address: str, port: int | None) -> str:
        return address if port is None else f"{bracketed(address)}:{port}"

    ends = end(traced.source, traced.source_port), end(traced.destination, traced.port)
    print(f"{ends[0]} {output.arrow()} {ends[1]}/{traced.proto}")
    wide = max((len(f"{s.table} {s.chain}") for s in traced.stages), default=0)
    for stage in traced.stages:
        verdict = stage.verdict.replace("→", output.arrow())
        line = f"  {f'{stage.table} {stage.chain}':<{wide}}  {verdict:<16}  {stage.words}"
        print(output.escaped(line.rstrip()))
    if not traced.others:
        print("  (no other table saw it)")


def _cells(flow: Flow) -> tuple[str, ...]:
    last = "-"
    if flow.ago is not None:
        last = "now" if flow.ago < 1 else f"{output.duration(flow.ago)} ago"
    new, opened = str(flow.new or "-"), str(flow.open or "-")
    return (flow.from_.name, _to(flow), new, opened, last, flow.verdict, decided_by(flow) or "-")


def _to(flow: Flow) -> str:
    return f"{bracketed(flow.to.name)}:{flow.port}/{flow.proto}"


def decided_by(flow: Flow | FlowLoad) -> str:
    """Return what decides about a flow: ``published 8080``, ``db allow_from[0] "api:80"``."""
    parts = [] if flow.published is None else [f"published {flow.published}"]
    if flow.key:
        line = f"{flow.service} {flow.key.removeprefix('network.policy.')}"
        line += f' "{flow.text}"' if flow.text else ""
        parts.append(line if flow.agrees else f"now denied: {line}")
    elif flow.verdict == "drop":
        parts.append((flow.words or "") if flow.agrees else "now allowed")
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
    by = f"  {decided_by(flow)}" if decided_by(flow) else ""
    return f"{flow.last}  {ends}  {flow.verdict}{by}{times}"
