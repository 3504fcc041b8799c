"""Run niso net explain, ping, stats, log, flows, graph, capture, trace, learn; niso events, top."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from datetime import UTC, datetime

from niso.api.host import Host, connect, plain
from niso.base.errors import Error, UsageError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import bracketed
from niso.cli import output
from niso.cli.output import Progress
from niso.cli.parse import Args
from niso.look.session import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

    import niso


# --- ping and explain -----------------------------------------------------------------------------


def run_net(action: str, args: Args) -> int:
    return int(globals()[f"_{action}"](connect(), args))


def _ping(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        pong = host.ping(args.source, args.destination)
    from_, to = (_end(end.service, end.address, None, end.host) for end in (pong.from_, pong.to))
    ms = pong.seconds * 1000
    shown = f"{from_} {output.arrow()} {to}: ok ({ms:.{1 if ms >= 0.1 else 2}f}ms)"
    return output.result(args, pong, lambda _: print(shown))


def _explain(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        explained = host.explain(
            args.source, args.destination, family=args.family, prove=args.prove
        )
    output.result(args, explained, _print_explained)
    proof = explained.proof
    return 0 if explained.passes and (proof is None or proof.agrees is not False) else 1


def _print_explained(explained: niso.Explanation) -> None:
    listening = explained.listening
    is_heard = listening is None or listening.listens
    others = explained.others
    but = "" if is_heard else ", but nothing listens there"
    if others is not None and others.is_dropped:
        but = ", but another firewall drops it"
    _print_judged(explained.judged, but)
    for sharer, service in explained.shares.items():
        print(f"  {sharer} shares the network namespace, addresses and policy of {service}")
    other = explained.other_family
    if other is not None and other.passes != explained.passes:
        reason = other.dropped_by
        verdict = f"drop: {reason.words}" if reason else "pass"
        family = 6 if ":" in other.asked.address else 4
        print(output.escaped(f"  over IPv{family} ({other.asked.address}) {verdict}"))
    if listening is not None and not is_heard:
        print(output.escaped(f"  {'listens':<8} {'none':<4}  {listening.words}"))
    if explained.proof is not None:
        _print_proof(explained.judged, explained.proof, listening)
    if others is not None:
        _print_others(others)


def _print_others(others: niso.OtherFirewalls) -> None:
    lines = [("?", text) for text in others.unseen]
    if others.passes:
        chains = ", ".join(others.passes)
        lines.insert(0, ("pass", f"by chains of other programs: nftables {chains}"))
    # the last line decides
    lines += [("?", one.words) for one in others.drops if one.verdict != "drop"]
    lines += [("drop", one.words) for one in others.drops if one.verdict == "drop"]
    for verdict, text in lines:
        print(output.escaped(f"  {'others':<8} {verdict:<4}  {text}"))


def _print_judged(judged: niso.Judged, but: str) -> None:
    arrow = output.arrow()
    asked = (
        [_end(None, judged.asked.address, judged.asked.port)]
        if judged.to.address != judged.asked.address
        else []
    )
    from_, to = judged.from_, judged.to
    reached = _end(to.service, to.address, to.port, to.host)
    ends = [_end(from_.service, from_.address, from_.port, from_.host), *asked, reached]
    print(f"{f' {arrow} '.join(ends)}/{judged.asked.proto}: {judged.verdict}{but}")
    names = ["path", "egress", "ingress"]
    if judged.by != "path" and judged.path.verdict == "drop":
        names = ["egress", "ingress", "path"]  # the kernel's order: the first drop decides
    for name in names:
        part = getattr(judged, name)
        print(output.escaped(f"  {name:<8} {part.verdict}  {part.words}"))
        for line in part.nft:
            print(output.escaped(f"  {'':<8} {'':<4}  nft {line}"))
        for rule in part.elsewhere:
            print(output.escaped(f"  {'':<8} {'':<4}  on {rule.host}, computed: nft {rule.nft}"))


def _end(service: str | None, address: str, port: int | None, host: str | None = None) -> str:
    shown = bracketed(address) if port is not None else address
    if service:
        shown = f"{service} ({address}{f' on {host}' if host else ''})"
    return shown if port is None else f"{shown}:{port}"


def _print_proof(judged: niso.Judged, proof: niso.Proof, listening: niso.Listening | None) -> None:
    to = judged.to.service or judged.to.address
    if judged.to.instances:
        to = judged.to.instances[0]
    if proof.unsent:
        result = f"the sender's kernel refused the packet: {proof.unsent}"
    elif proof.arrived is None:
        reply = "replied to" if proof.answered else "did not reply to"
        result = f"{to} {reply} a test packet"
        if proof.answered and listening is not None and not listening.listens:
            result += f", but nothing listens on port {listening.port}"
    else:
        result = f"a test packet {'reached' if proof.arrived else 'did not reach'} {to}"
        if proof.arrived and listening is not None and not listening.listens:
            result += f", where nothing listens on port {listening.port}"
    outcome = {True: "confirmed", False: "CONTRADICTED", None: "inconclusive"}[proof.agrees]
    print(output.escaped(f"  {'proof':<8} {outcome}: {result}"))
    for count in proof.counters:
        before, after = ("no rule" if n is None else n for n in (count.before, count.after))
        print(output.escaped(f"  {'':<8} counted {before} {output.arrow()} {after}: {count.label}"))
    if proof.agrees is False:
        print(f"  {'':<8} niso net check shows what differs from the configuration")


# --- stats and log --------------------------------------------------------------------------------


def _stats(host: Host, args: Args) -> int:
    rows = host.stats(instances=args.instances)
    audits = any(row.in_audits is not None for row in rows)
    counts = (f"{way}-{what}" for way in ("IN", "OUT") for what in ("PACKETS", "BYTES", "DROPS"))
    columns = ("SERVICE", *counts, "FOREIGN") + ("IN-AUDITS", "OUT-AUDITS") * audits
    cells = [["-" if value is None else str(value) for value in row] for row in rows]
    shown = [line[: len(columns)] for line in cells]
    return output.result(args, rows, lambda _: output.table(columns, shown))


def _drops(host: Host, args: Args) -> int:
    try:
        with Progress(args) as host.progress, host.drops(args.name) as drops:
            while True:
                _wait(drops)
                _print_lines(drops.read(), args.json, _drop_text)
    except KeyboardInterrupt:
        return 130


def _wait(source: niso.Drops | niso.Events | None, seconds: float | None = None) -> bool:
    """Wait for data from ``source``, at most ``seconds``. Return False if none arrived. Raises
    BrokenPipeError if the reader of stdout has exited.
    """
    poll = select.poll()
    if source is not None:
        poll.register(source, select.POLLIN)
    poll.register(sys.stdout, 0)
    ready = dict(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))
    if sys.stdout.fileno() in ready:
        raise BrokenPipeError
    return bool(ready)


def _print_lines[T](results: Iterable[T], as_json: bool, line: Callable[[T], str]) -> None:
    for one in results:
        print(json.dumps(plain(one)) if as_json else output.escaped(line(one)))
    sys.stdout.flush()


def _drop_text(drop: niso.Drop) -> str:
    source = drop.source.service or bracketed(drop.source.address)
    to = drop.destination
    port = "" if to.port is None else f":{to.port}"
    ends = f"{source} {output.arrow()} {to.service or bracketed(to.address)}{port}/{drop.proto}"
    return f"{drop.time}  {drop.service}  {drop.direction}  {drop.key}  {ends}  {drop.interface}"


# --- flows, graph, capture and trace --------------------------------------------------------------


COLUMNS = ("FROM", "TO", "NEW", "OPEN", "LAST", "VERDICT", "BY")
_EVERY_S = 1.0


def _flows(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        if args.forget:
            if args.follow or args.since:
                other = "--follow" if args.follow else "--since"
                raise UsageError(f"excludes {other}", "omit one of them", "--forget")
            host.forget_flows(args.name, denied=args.denied)
            return 0
        if args.follow:
            try:
                with host.follow_flows(
                    args.name, denied=args.denied, instances=args.instances
                ) as flows:
                    while True:
                        _wait(None, _EVERY_S)
                        _print_lines(flows.read(), args.json, _line)
            except KeyboardInterrupt:
                return 130
        rows = host.flows(args.name, denied=args.denied, since=args.since, instances=args.instances)
    return output.result(args, rows, lambda r: output.table(COLUMNS, map(_cells, _merged(r))))


def _merged(flows: Iterable[niso.Flow]) -> list[niso.Flow]:
    return output.merged(flows, lambda f: (*output.ends(f), f.verdict, decided_by(f)))


def _graph(host: Host, args: Args) -> int:
    with Progress(args) as host.progress:
        if args.format == "png" and not args.output and output.is_terminal():
            raise UsageError("a PNG is not for a terminal", "-o FILE.png", "--format")
        picture = host.graph(
            args.format, stack=args.stack, since=args.since, declared=args.declared
        )
    if args.output:
        try:
            with open(args.output, "wb") as file:
                file.write(picture)
        except OSError as error:
            raise _unwritten(args.output, error, "-o") from None
    else:
        sys.stdout.buffer.write(picture)
    return 0


def _capture(host: Host, args: Args) -> int:
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
            # with the header, tcpdump has accepted the filter: only then is a file replaced
            first = capture.read()
            try:
                file = stack.enter_context(open(args.write, "wb", buffering=0))
            except OSError as error:
                raise _unwritten(args.write, error) from None
            if not first:
                return 0
            try:
                _write_all(file, first)
                status = _copy(capture, file, seconds, as_text=False)
                output.note(_captured(args.write, services, capture.packets, args.drops))
                return status
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _unwritten(args.write, error) from None
        return _copy(capture, file, seconds, args.write is None)


def _captured(path: str, services: list[str], packets: int, drops: bool) -> str:
    """Format the summary of a capture: the file, the number of packets and the services."""
    number = f"{packets} {'dropped ' * drops}packet{'s' * (packets != 1)}"
    whose = f" of {', '.join(services)}" if services else ""
    return f"{path}: {number}{whose}, with the names of services; wireshark {path} shows it"


def _write_all(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    file.flush()


def _unwritten(path: str, error: OSError, option: str = "-w") -> UsageError:
    reason = (error.strerror or "").lower()
    return UsageError(f"cannot write {path}: {reason}", "choose another file", option)


def _is_peer(word: str) -> bool:
    """Return whether an argument of capture is a peer: ``db:80``, ``host`` or an address. Otherwise
    the argument is a service to capture.
    """
    return word == "host" or not word[:1].isalpha() or not set(word).isdisjoint(":/")


def _copy(capture: niso.Capture, file: IO[bytes], seconds: float | None, as_text: bool) -> int:
    """Copy a capture to a file, for at most ``seconds``. Return 0, or 130 after Ctrl-C."""
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
    seconds = duration(args.seconds, "--for")
    try:
        with Progress(args) as host.progress:
            traced = host.trace(args.source, args.destination, any_packet=args.any, wait_s=seconds)
    except KeyboardInterrupt:
        return 130
    if traced is None:
        which = "packet" if args.any else "new connection, datagram or ping"
        reason = f"no {which} from {args.source} to {args.destination} within {args.seconds}"
        hint = f"niso net explain {args.source} {args.destination} says what would happen to one"
        if args.json:
            output.as_json({"verdict": "none", "reason": reason})
        raise Error(reason, hint)
    output.result(args, traced, lambda one: _print_traced(one, bool(args.verbose)))
    return 0 if traced.passes else 1


def _print_traced(traced: niso.Traced, verbose: bool) -> None:
    from_ = _end(traced.source_name, traced.source, traced.source_port)
    direct = all(stage.verdict != "dnat" for stage in traced.stages)
    name = traced.destination_name if direct else None
    to = _end(name, traced.destination, traced.port)
    print(f"{from_} {output.arrow()} {to}/{traced.proto}")
    shown = [stage for stage in traced.stages if verbose or not stage.records]
    wide = max((len(f"{s.table} {s.chain}") for s in shown), default=0)
    for stage in shown:
        verdict = stage.verdict.replace("→", output.arrow())
        line = f"  {f'{stage.table} {stage.chain}':<{wide}}  {verdict:<16}  {stage.words}"
        print(output.escaped(line.rstrip()))
    if not traced.others:
        print("  (no other table saw it)")
    print(output.escaped(f"{traced.verdict}: {traced.reason}"))


def _cells(flow: niso.Flow) -> tuple[str, ...]:
    return (*output.flow_cells(flow), flow.verdict, decided_by(flow) or "-")


def decided_by(flow: niso.Flow | niso.FlowLoad) -> str:
    """Format the port and policy entry that decided on a flow: ``published 80, db allow_from[0]
    "api:80"``.

    The result also shows whether the present policies decide differently. Returns "" if no
    published port and no policy is involved.
    """
    parts = [] if flow.published is None else [f"published {flow.published}"]
    if flow.key:
        line = f"{flow.service} {flow.key.removeprefix('network.policy.')}"
        line += f' "{flow.text}"' if flow.text else ""
        parts.append(line if flow.agrees else f"now denied: {line}")
    elif flow.verdict == "drop":
        parts.append((flow.words or "") if flow.agrees else "now allowed")
    return ", ".join(parts)


def _line(flow: niso.Flow) -> str:
    ends = f" {output.arrow()} ".join(output.ends(flow))
    times = f"  ({flow.new} times)" if flow.new > 1 else ""
    by = f"  {decided_by(flow)}" if decided_by(flow) else ""
    return f"{flow.last}  {ends}  {flow.verdict}{by}{times}"


# --- niso net learn -------------------------------------------------------------------------------


_SHORT_S = 86_400
"""If flows were recorded for less than this time in seconds, daily events may be missing."""


def _learn(host: Host, args: Args) -> int:
    if args.write and not args.yes and not sys.stdin.isatty():
        raise UsageError("--write asks before it writes, and there is no terminal", "add --yes")
    since = args.since
    with Progress(args) as host.progress:
        if args.for_:
            host.learn(*args.names, egress=args.egress)  # reports mistakes before the wait
            since = _watch(args.for_)
        learned = host.learn(*args.names, since=since, egress=args.egress)
        if args.json:
            output.as_json(learned)
            return 0
        if args.write:
            return _write_policies(host, args, host.learned_changes(learned))
    for number, policy in enumerate(learned):
        print("\n" * bool(number) + output.escaped_lines("\n".join(_lines(policy))))
    sys.stdout.flush()
    _say_how_long(learned)
    return 0


def _watch(period: str) -> str:
    """Wait for a period such as ``1h``, or until Ctrl-C. Return the start time (RFC 3339)."""
    seconds = duration(period, "--for")
    start = datetime.now(UTC)
    output.note(f"niso: watching for {period}; Ctrl-C ends it early")
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    return start.isoformat()


def _lines(policy: niso.LearnedPolicy) -> Iterator[str]:
    """Yield the lines of a learned policy as a TOML table, with the recorded flows as comments."""
    # a path with a newline must not end the comment
    where = output.escaped(policy.file or f"{policy.service} (no manifest)")
    peers = sum(entry.allowed for entry in policy.allow_from)
    denied = sum("denied" in entry.note and not entry.allowed for entry in policy.allow_from)
    known = f"{peers} {'entry' if peers == 1 else 'entries'}"
    if policy.watched is not None:
        known += f" after {output.duration(policy.watched)}"
    known += f"; {denied} denied" if denied else ""
    yield f"# {where}: {policy.service}, {known}"
    yield f"[{policy.table}]"
    yield from _list("allow_from", policy.allow_from)
    if policy.egress is not None:
        yield ""
        yield f"[{policy.table}.egress]"
        yield from _list("allow", policy.egress)


def _list(key: str, entries: tuple[niso.LearnedEntry, ...]) -> Iterator[str]:
    if not entries:
        yield f"{key} = []  # nobody" if key == "allow_from" else f"{key} = []  # nowhere"
        return
    yield f"{key} = ["
    texts = [f"{'' if entry.allowed else '# '}{json.dumps(entry.text)}," for entry in entries]
    width = max(map(len, texts))
    for text, entry in zip(texts, entries, strict=True):
        comment = "; ".join(part for part in (entry.note, _evidence(entry)) if part)
        yield f"  {text:{width}}  # {comment}" if comment else f"  {text}"
    yield "]"


def _evidence(entry: niso.LearnedEntry) -> str:
    parts = []
    if entry.new:
        times = "once" if entry.new == 1 else f"{entry.new} times"
        parts.append(f"{entry.new} new" if entry.allowed else times)
    if entry.ago is not None:
        parts.append(f"last {output.ago(entry.ago)}")
    if entry.open:
        parts.append(f"{entry.open} open" if entry.new else f"{entry.open} open, none new")
    return ", ".join(parts)


def _say_how_long(learned: tuple[niso.LearnedPolicy, ...]) -> None:
    watched = [policy.watched or 0.0 for policy in learned]
    if watched:
        least = min(watched)
        rare = "once a day or once a month" if least < _SHORT_S else "once a month"
        output.note(
            f"niso: watched for {output.duration(least)}: what happens {rare} has not been seen"
        )


def _write_policies(host: Host, args: Args, changes: tuple[niso.PolicyChange, ...]) -> int:
    if not changes:
        print("unchanged")
        return 0
    for change in changes:
        print(output.escaped_lines(change.diff), end="")
    sys.stdout.flush()
    if not args.yes:
        files = ", ".join(change.file for change in changes)
        try:
            answer = input(output.escaped(f"write {files}? [y/N] "))
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was written")
            return 1
    host.write_policies(changes)
    for change in changes:
        output.note(output.escaped(f"niso: {change.file}: written; {change.apply} applies it"))
    return 0


def run_events(_: str, args: Args) -> int:
    seconds = None if args.seconds is None else duration(args.seconds, "--for")
    end = None if seconds is None else time.monotonic() + seconds
    with Progress(args) as progress, connect(progress=progress) as host:
        try:
            with host.events(args.name, since=args.since) as events:
                _print_lines(events.past(), args.json, _event_text)
                while _wait(events, None if end is None else end - time.monotonic()):
                    _print_lines(events.read(), args.json, _event_text)
        except KeyboardInterrupt:
            return 130
    return 0


def _event_text(event: niso.Happened) -> str:
    detail = event.detail.replace("→", output.arrow())
    name = event.service or event.network or "-"
    return f"{event.time}  {name:<12}  {event.what:<15}  {detail}".rstrip()


# --- niso top -------------------------------------------------------------------------------------


EVERY_S = 2.0
TOP_COLUMNS = (
    "SERVICE",
    "HEALTH",
    "CPU",
    "MEMORY",
    "IN",
    "OUT",
    "NEW/s",
    "DENIED IN",
    "DENIED OUT",
    "NETWORKS",
)
FLOW_COLUMNS = ("FROM", "TO", "TRAFFIC", "NEW/s", "VERDICT", "BY")
SOCKET_COLUMNS = ("FROM", "TO", "STATE", "RTT", "RETRANS", "RECEIVED", "SENT")


def run_top(_: str, args: Args) -> int:
    from niso.cli import top_screen

    if args.count is not None and args.count < 1:
        raise UsageError("must be 1 or more", "niso top -n 1", "-n", value=str(args.count))
    if args.count is None and not args.json and output.is_terminal() and os.isatty(0):
        return top_screen.show(args.name)
    with Progress(args) as progress, connect(progress=progress) as host:
        try:
            with host.top(args.name) as top:
                _print_loads(top, args)
        except KeyboardInterrupt:
            return 130
    return 0


def _print_loads(top: niso.Top, args: Args) -> None:
    for number in range(args.count or 1):
        end = time.monotonic() + EVERY_S
        while (wait := end - time.monotonic()) > 0:
            _wait(None, wait)
        load = top.read()
        if args.json:
            print(json.dumps(plain(load)))
        else:
            print("\n" * bool(number), end="")
            shown = [cells(service) for service in load.services]
            output.table(TOP_COLUMNS, shown, ("NETWORKS", "NEW/s"))
            if args.name is not None:
                print()
                output.table(FLOW_COLUMNS, [flow_cells(flow) for flow in load.flows])
                print()
                output.table(SOCKET_COLUMNS, [socket_cells(socket) for socket in load.sockets])
        sys.stdout.flush()


def summary(load: niso.Load) -> list[tuple[str, str]]:
    """Return the parts of niso top's first line, as pairs (text, name of its style)."""
    from niso.look.top import runs  # imported late: other commands of this module need no samples

    others = ("attached", "completed", "scheduled")
    up = sum(runs(service.status) or service.status in others for service in load.services)
    unhealthy = sum(service.health == "unhealthy" for service in load.services)
    new = dict.fromkeys(("pass", "audit", "drop"), 0.0)
    for flow in load.flows:
        new[flow.verdict] += flow.new
    parts = [(f"{up} of {len(load.services)} up", "")]
    parts += [(f"{unhealthy} unhealthy", "bad")] * bool(unhealthy)
    parts += [(f"{new['pass'] + new['audit']:.1f} new/s", "")]
    parts += [(f"{new['drop']:.1f} refused/s", "bad")] * bool(new["drop"])
    parts += [(f"{new['audit']:.1f} in audit/s", "waiting")] * bool(new["audit"])
    parts += [(rate(sum(service.received or 0 for service in load.services)), "")]
    return parts


def cells(load: niso.ServiceLoad) -> tuple[str, ...]:
    state = load.status
    if load.health and load.status == "running":
        state = output.health_text(load.health, load.health_age)
    denied = (
        "-" if number is None else str(number) for number in (load.denied_in, load.denied_out)
    )
    networks = ", ".join(load.networks) or "-"
    new = "-" if load.new is None else f"{load.new:.1f}"
    rates = rate(load.received), rate(load.sent)
    uses = output.percent(load.cpu), output.size(load.memory)
    return (load.service, state, *uses, *rates, new, *denied, networks)


def flow_cells(flow: niso.FlowLoad) -> tuple[str, ...]:
    figures = rate(flow.bits), f"{flow.new:.1f}"
    return (*output.ends(flow), *figures, flow.verdict, decided_by(flow) or "-")


def socket_cells(socket: niso.ServiceSocket) -> tuple[str, ...]:
    from_ = f"{bracketed(socket.from_.name)}:{socket.from_port}"
    to = f"{bracketed(socket.to.name)}:{socket.port}/tcp"
    rtt = "-" if socket.rtt is None else f"{socket.rtt * 1000:.2f} ms"
    resent = "-" if socket.retransmitted is None else str(socket.retransmitted)
    sizes = _scaled(socket.received, "B"), _scaled(socket.sent, "B")
    return (from_, to, socket.state, rtt, resent, *sizes)


def rate(bits: float | None) -> str:
    """Format bits per second with at most three digits, such as ``391 kb/s``. None is ``-``."""
    return _scaled(bits, "b/s")


def _scaled(number: float | None, unit: str) -> str:
    if number is None:
        return "-"
    for prefix in ("", "k", "M", "G"):
        if number < 999.5 or prefix == "G":
            break
        number /= 1000
    digits = 1 if number < 9.95 and prefix else 0
    return f"{number:.{digits}f} {prefix}{unit}"


def explain_words(flow: niso.FlowLoad) -> list[str]:
    to, port = bracketed(flow.to.address), flow.port
    if flow.published is not None:
        # the destination before DNAT
        to = "127.0.0.1" if flow.from_.address.startswith("127.") else "host"
        port = flow.published
    return ["net", "explain", flow.from_.address, f"{to}:{port}/{flow.proto}"]


def capture_words(service: str, flow: niso.FlowLoad | None) -> list[str]:
    """Return the arguments of ``niso net capture`` for a service, or for one of its flows."""
    words = ["net", "capture", service]
    if flow is not None:
        other = flow.from_ if flow.to.service == service else flow.to
        is_host = other.service is None and other.name == "host"
        words.append(f"{'host' if is_host else bracketed(other.address)}:{flow.port}")
        words += ["--drops"] * (flow.verdict == "drop")
    return words


def logs_words(service: str) -> list[str]:
    return ["logs", service, "-n", "200", "-f"]
