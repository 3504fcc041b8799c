"""Run niso metrics. Only this module imports prometheus_client."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import socketserver
import sys
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

from niso.api.host import connect
from niso.base import files
from niso.base.errors import Error, UsageError, missing_library
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import output
from niso.cli.parse import Args

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from prometheus_client.core import Metric as Family


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOCAL = "127.0.0.1"
_PATIENCE_S = 30
"""The timeout in seconds of an HTTP request, including the answer."""
_AT_ONCE = 8


def run(_: str, args: Args) -> int:
    _library()
    flows = int(args.flows)
    if args.listen:
        return _listen(args.listen, flows)
    if args.inetd:
        return _answer_stdin(flows)
    with output.Progress(args) as progress:
        body = text(flows, progress)
    if args.output:
        _write(args.output, body)
    else:
        sys.stdout.write(body.decode())
    return 0


def _library() -> Any:
    try:
        import prometheus_client.core
    except ImportError:
        name, what = "prometheus_client", "writes the metrics"
        raise missing_library(name, what, "prometheus-client") from None
    return prometheus_client


def text(flows: int, progress: Any = None) -> bytes:
    """Return metrics in Prometheus' text format 0.0.4, with at most ``flows`` series of flows."""
    library = _library()

    def collect() -> Iterator[Family]:
        with connect(progress=progress) as host:
            metrics = host.metrics(flows=flows)
        for metric in metrics:
            # the library expects the name of a counter without _total
            name = metric.name.removesuffix("_total")
            family: Family = library.core.Metric(name, metric.help, metric.type)
            for sample in metric.samples:
                family.add_sample(metric.name, sample.labels, sample.value)
            yield family

    body: bytes = library.generate_latest(SimpleNamespace(collect=collect))
    return body


def _write(path: str, body: bytes) -> None:
    """Write a file atomically. Raises UsageError if this fails or the path is not a plain file."""
    # node_exporter reads only *.prom, and therefore ignores this temporary file
    draft = f"{path}.{os.getpid()}"
    try:
        files.require_plain(path)
        fd = files.make(draft, 0o644)
        try:
            files.write(fd, body)
        finally:
            os.close(fd)
        os.rename(draft, path)
    except OSError as error:
        with suppress(OSError):
            files.remove(draft)
        reason = (error.strerror or "").lower()
        hint = "choose another file, or omit -o and redirect the output"
        raise UsageError(f"cannot write {path}: {reason}", hint, "-o") from None


# --- HTTP -----------------------------------------------------------------------------------------


class _Scrape(BaseHTTPRequestHandler):
    """The handler of an HTTP request. SIGALRM kills its process after a timeout."""

    flows = 0
    server_version, sys_version = "niso", ""

    def setup(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE_S)
        super().setup()

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            body = text(self.flows)
        except Error as error:
            output.error(error.message, error.hint)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Do nothing, because Prometheus sends a request every few seconds."""


class _MetricsServer(socketserver.ForkingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    block_on_close = False  # children exit by themselves
    max_children = _AT_ONCE

    def __init__(self, address: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Scrape)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print why a request failed, for example because the client disconnected."""
        output.error(f"metrics: {sys.exception()}", None)


def _listen(where: str, flows: int) -> int:
    address, port = address_of(where)
    _Scrape.flows = flows
    with connect() as host:
        host.metrics(flows=flows)  # reports mistakes before the first request
    try:
        server = _MetricsServer(address, port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "niso metrics --listen [ADDR:]PORT"
        raise Error(f"cannot listen on {where}: {reason}", hint) from None
    with server:
        shown = f"[{address}]" if ":" in address else address
        output.note(f"niso: http://{shown}:{server.server_address[1]}/metrics; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


def address_of(where: str) -> tuple[str, int]:
    """Parse ``[ADDR:]PORT`` to an address (default 127.0.0.1) and a port. Raises UsageError."""
    host, _, port = where.rpartition(":")
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    valid = port.isascii() and port.isdigit() and int(port[:6]) <= 65535
    if host:
        try:
            # only an IPv6 address is written in brackets
            right = ipaddress.ip_address(bare).version == (6 if bare != host else 4)
        except ValueError:
            right = False
        valid = valid and right
    if not valid or (not host and ":" in where):
        hint = "9501, 192.0.2.1:9501 or [::1]:9501"
        raise UsageError("must be [ADDR:]PORT", hint, "--listen", value=repr(where))
    return bare or _LOCAL, int(port)


def _answer_stdin(flows: int) -> int:
    """Answer one HTTP request on stdin, which is a socket from systemd with Accept=yes."""
    _Scrape.flows = flows
    try:
        connection = socket.socket(fileno=os.dup(0))
    except OSError:
        hint = "systemd.socket(5) with Accept=yes, and StandardInput=socket in the service"
        raise UsageError("needs a socket as stdin", hint, "--inetd") from None
    server: Any = None  # the handler does not use it
    with connection:
        try:
            _Scrape(connection, ("", 0), server)
        except OSError as error:
            raise Error(f"metrics: {(error.strerror or str(error)).lower()}") from None
    return 0
