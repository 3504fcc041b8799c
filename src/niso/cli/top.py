"""Implement niso top: tables for pipes and -n, a screen for terminals."""

from __future__ import annotations

import json
import os
import select
import sys
import time

from niso.api.host import Host, connect
from niso.base.addresses import bracketed
from niso.base.errors import UsageError
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args
from niso.cli.see import decided_by

if TYPE_CHECKING:
    from niso.api.top_views import FlowLoad, Load, ServiceLoad, ServiceSocket, Top

EVERY_S = 2.0
COLUMNS = ("SERVICE", "HEALTH", "IN", "OUT", "NEW/s", "DENIED IN", "DENIED OUT", "NETWORKS")
FLOW_COLUMNS = ("FROM", "TO", "TRAFFIC", "NEW/s", "VERDICT", "BY")
SOCKET_COLUMNS = ("FROM", "TO", "STATE", "RTT", "RETRANS", "RECEIVED", "SENT")


def run(_: str, args: Args) -> int:
    if args.count is not None and args.count < 1:
        raise UsageError("must be 1 or more", "niso top -n 1", "-n", value=str(args.count))
    if args.count is None and not args.json and output.is_terminal() and os.isatty(0):
        from niso.cli import top_screen

        return top_screen.show(args.name)
    with output.LateProgress(args) as progress, connect(progress=progress) as host:
        try:
            _print(host, args)
        except KeyboardInterrupt:
            return 130
    return 0


def _print(host: Host, args: Args) -> None:
    with host.top(args.name) as top:
        _print_looks(top, args)


def _print_looks(top: Top, args: Args) -> None:
    from niso.api.as_json import plain

    left = args.count or 1
    poll = select.poll()
    poll.register(sys.stdout, 0)  # reports a closed pipe even while nothing is written
    first = True
    while left:
        end = time.monotonic() + EVERY_S
        while (wait := end - time.monotonic()) > 0:
            if poll.poll(wait * 1000):
                raise BrokenPipeError
        load = top.read()
        if args.json:
            print(json.dumps(plain(load)))
        else:
            print("\n" * (not first), end="")
            output.table(COLUMNS, [cells(service) for service in load.services])
            if args.name is not None:
                print()
                output.table(FLOW_COLUMNS, [flow_cells(flow) for flow in load.flows])
                print()
                output.table(SOCKET_COLUMNS, [socket_cells(socket) for socket in load.sockets])
        sys.stdout.flush()
        first = False
        left -= 1


def summary(load: Load) -> list[tuple[str, str]]:
    """Return the parts of the headline (``2 of 3 up``, ``1 unhealthy`` ...) with their styles."""
    up = sum(service.status in ("running", "attached", "completed") for service in load.services)
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


def cells(load: ServiceLoad) -> tuple[str, ...]:
    """Return the cells of a service, in the order of `COLUMNS`."""
    state = load.health if load.health and load.status == "running" else load.status
    denied = (
        "-" if number is None else str(number) for number in (load.denied_in, load.denied_out)
    )
    networks = ", ".join(load.networks) or "-"
    new = "-" if load.new is None else f"{load.new:.1f}"
    rates = rate(load.received), rate(load.sent)
    return (load.service, state, *rates, new, *denied, networks)


def flow_cells(flow: FlowLoad) -> tuple[str, ...]:
    """Return the cells of a flow, in the order of `FLOW_COLUMNS`."""
    to = f"{bracketed(flow.to.name)}:{flow.port}/{flow.proto}"
    figures = rate(flow.bits), f"{flow.new:.1f}"
    return (flow.from_.name, to, *figures, flow.verdict, decided_by(flow) or "-")


def socket_cells(socket: ServiceSocket) -> tuple[str, ...]:
    """Return the cells of a socket, in the order of `SOCKET_COLUMNS`."""
    from_ = f"{bracketed(socket.from_.name)}:{socket.from_port}"
    to = f"{bracketed(socket.to.name)}:{socket.port}/tcp"
    rtt = "-" if socket.rtt is None else f"{socket.rtt * 1000:.2f} ms"
    resent = "-" if socket.retransmitted is None else str(socket.retransmitted)
    sizes = _scaled(socket.received, "B"), _scaled(socket.sent, "B")
    return (from_, to, socket.state, rtt, resent, *sizes)


def rate(bits: float | None) -> str:
    """Format bits per second with three digits: ``391 kb/s``."""
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


# --- commands that show more ------------------------------------------------------------------


def explain_words(flow: FlowLoad) -> list[str]:
    """Return the arguments of ``niso net explain`` for a flow."""
    to, port = bracketed(flow.to.address), flow.port
    if flow.published is not None:
        to, port = "host", flow.published  # the destination before DNAT
    return ["net", "explain", flow.from_.address, f"{to}:{port}/{flow.proto}"]


def capture_words(service: str, flow: FlowLoad | None) -> list[str]:
    """Return the arguments of ``niso net capture`` for a service, or for one of its flows."""
    words = ["net", "capture", service]
    if flow is not None:
        other = flow.from_ if flow.to.service == service else flow.to
        is_host = other.service is None and other.name == "host"
        words.append(f"{'host' if is_host else bracketed(other.address)}:{flow.port}")
        words += ["--drops"] * (flow.verdict == "drop")
    return words


def logs_words(service: str) -> list[str]:
    """Return the arguments of ``niso logs`` for a service."""
    return ["logs", service, "-n", "200", "-f"]
