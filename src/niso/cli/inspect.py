"""Implement niso ps, inspect and logs."""

from __future__ import annotations

import os
import sys

from niso.api.host import Host, connect
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.api.service_views import ServiceLine

COLUMNS = ("SERVICE", "STATUS", "HEALTH", "MODE", "ADDRESS", "PORTS", "UPTIME")


def run(name: str, args: Args) -> int:
    host = connect()
    if name == "logs":
        return _logs(host, args)
    if name == "ps" and args.all_hosts:
        return _everywhere(host, args)
    with output.LateProgress(args) as host.progress:
        if name == "inspect":
            output.as_json(host.services.inspect(args.name))
        else:
            lines = host.services.list()
    if name == "ps":
        print_lines(args, lines)
    return 0


def _everywhere(host: Host, args: Args) -> int:
    """Print the services of all hosts of the cluster."""
    with output.LateProgress(args) as host.progress:
        lines = host.services.everywhere()
    if args.json:
        output.as_json(lines)
        return 0
    output.table(
        ("SERVICE", "HOST", "STATUS", "ADDRESS", "PORTS"),
        [
            (
                line.service,
                line.host,
                line.status,
                ", ".join(line.address) or "-",
                ", ".join(map(output.as_listed, line.ports)) or "-",
            )
            for line in lines
        ],
    )
    return 0


def print_lines(args: Args, lines: tuple[ServiceLine, ...]) -> None:
    """Print services as a table or as JSON."""
    if args.json:
        output.as_json(lines)
        return
    with_policy = any(line.audit_until for line in lines)
    output.table(
        (*COLUMNS, "POLICY") if with_policy else COLUMNS,
        [
            (
                line.service,
                f"{line.status}, {line.interrupted} interrupted"
                if line.interrupted
                else line.status,
                line.health or "-",
                line.mode or "-",
                ", ".join(line.address) or "-",
                ", ".join(output.ports_text(line.ports)) if line.ports else "-",
                "-" if line.uptime is None else output.duration(line.uptime),
                *(("audit" if line.audit_until else "-",) if with_policy else ()),
            )
            for line in lines
        ],
    )


def _logs(host: Host, args: Args) -> int:
    chunks = host.services.logs(
        args.name,
        lines=args.lines,
        follow=args.follow,
        timestamps=args.timestamps,
        since=args.since,
    )
    return print_chunks(chunks, args.follow)


def print_chunks(chunks: Iterable[bytes], follow: bool) -> int:
    """Print lines of logs, each immediately with ``follow``; return the exit status."""
    raw = sys.stdout.buffer
    terminal = output.is_terminal()
    gone: list[bool] = []
    try:
        if follow:
            _watch_reader(gone)
        for chunk in chunks:
            raw.write(_on_terminal(chunk) if terminal else chunk)
            if follow:
                raw.flush()
        raw.flush()
    except KeyboardInterrupt:
        if gone:
            raise BrokenPipeError from None
        return 130
    return 0


def _watch_reader(gone: list[bool]) -> None:
    """Interrupt this command when its output is no longer read, even if nothing is written.

    An item is then added to ``gone``.
    """
    import select
    import signal
    import threading

    def watch() -> None:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        poll.poll()
        gone.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _on_terminal(chunk: bytes) -> bytes:
    return output.escaped_lines(chunk.decode("utf-8", "replace")).encode()
