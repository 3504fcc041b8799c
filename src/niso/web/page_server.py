"""Serve the web page of `niso web` and the current map, without privileges.

Another process reads the map as root, and sends each state of the map through a pipe. The server
drops all privileges before it answers the first request, so that it cannot read or change anything
on the host. See unshare(2), chroot(2), capabilities(7), prctl(2), setresuid(2).

A client needs a secret token to read states. The page takes it from the fragment of the URL,
which browsers do not send, and stores it for its own origin. The token is not a cookie, because
browsers send cookies to every port of a host. Requests change nothing, and only GET is supported.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import tempfile
import time
from contextlib import contextmanager, suppress
from hmac import compare_digest

from niso.base.errors import missing_library
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.native import call_libc

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


# --- the server -----------------------------------------------------------------------------------


try:
    import uvicorn

    # modules that uvicorn imports only while serving
    import uvicorn.lifespan.off
    import uvicorn.loops.asyncio
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError:
    raise missing_library(
        "starlette and uvicorn", "serve the page", "starlette", "uvicorn"
    ) from None

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""The host names that requests may have, with any port, because an ssh tunnel can use another port.

A page of another site that uses DNS rebinding sends its own host name, and is refused.
"""
MOST_STREAMS = 8
_MOST_CONNECTIONS = 32
_IDLE_S = 10.0
"""Seconds for which a connection may stay open without a complete request."""
_LAST_WORDS_S = 1.0
_BLOCK = 1 << 16
WATCHED, UNWATCHED = b"+", b"-"
"""What is reported when the first page is opened, and after the last page was closed."""
_FRESH_S = 10.0
"""The maximum age in seconds of a state for a new page. Without pages, niso does not measure."""
_PATIENCE_S = 10.0
ENDED = b'{"ended": true}\n'
"""The last line of a stream: no more states will follow."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


Page = dict[str, tuple[bytes, str]]
"""The content and the media type of each file of the page, by URL path."""


def files() -> Page:
    """Read the page's files: {URL path: (content, MIME type)}. Raises OSError."""
    page = {}
    for name in sorted(os.listdir(PAGE)):
        kind = _TYPES.get(os.path.splitext(name)[1])
        if kind is not None:
            with open(os.path.join(PAGE, name), "rb") as file:
                page["/" if name == "index.html" else f"/{name}"] = file.read(), kind
    return page


class States:
    """The latest state of the map, as a line of JSON, and the requests that wait for the next one.

    ``report`` is called with `WATCHED` when the first request that reads states arrives, and with
    `UNWATCHED` when the last such request has ended.
    """

    def __init__(self, report: Callable[[bytes], None] = lambda _: None) -> None:
        self.last = b""
        self.number = 0
        self.over = False
        self.streams = 0
        self._changed = asyncio.Event()
        self._report = report
        self._watchers = 0
        self._until = 0.0

    def put(self, line: bytes) -> None:
        self.last = line
        self.number += 1
        self._until = time.monotonic() + _FRESH_S
        self._wake()

    @contextmanager
    def watched(self) -> Iterator[int]:
        """Count a request as reading states during the ``with`` block. Yields the number of the
        last state if this state is too old to send, otherwise 0.
        """
        stale = 0 if self._watchers or time.monotonic() < self._until else self.number
        self._watchers += 1
        if self._watchers == 1:
            self._report(WATCHED)
        try:
            yield stale
        finally:
            self._watchers -= 1
            if self._watchers == 0:
                self._report(UNWATCHED)

    async def latest(self) -> bytes:
        """Return the latest state. If it is too old, first wait a short time for the next state."""
        with self.watched() as stale, suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while self.number == stale and not self.over:
                    await self._changed.wait()
        return self.last

    def end(self) -> None:
        self.over = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the latest state, and then each new state. A slow reader misses some states."""
        self.streams += 1
        try:
            with self.watched() as stale:
                seen = stale
                while True:
                    if self.number > seen:
                        seen = self.number
                        yield self.last
                    elif self.over:
                        yield ENDED
                        return
                    else:
                        await self._changed.wait()
        finally:
            self.streams -= 1


def application(states: States, token: str, page: Page) -> ASGIApp:
    """Return the ASGI application that serves the page. Clients need the token to read states."""

    def allowed(request: Request) -> bool:
        given = request.headers.get("authorization", "")
        return compare_digest(given.encode(), f"Bearer {token}".encode())

    async def state(request: Request) -> Response:
        if not allowed(request):
            return _refusal(403)
        line = await states.latest()
        return Response(line, media_type="application/json") if line else _refusal(503)

    async def stream(request: Request) -> Response:
        if not allowed(request):
            return _refusal(403)
        if states.streams >= MOST_STREAMS:
            return _refusal(503)
        return StreamingResponse(states.stream(), media_type="application/x-ndjson")

    async def file(request: Request) -> Response:
        body, kind = page[request.url.path]
        return Response(body, media_type=kind)

    async def unknown(request: Request, error: Exception) -> Response:
        return _refusal(getattr(error, "status_code", 404))

    routes = [
        Route("/api/state.json", state, methods=["GET"]),
        Route("/api/states.jsonl", stream, methods=["GET"]),
        *(Route(path, file, methods=["GET"]) for path in page),
    ]
    inner = Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown})

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with the status from `refused`. Add security headers."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        status = refused(scope)
        await (_refusal(status) if status else inner)(scope, receive, with_headers)

    return guarded


_WORDS = {
    403: "the token is missing or wrong: open the address that niso web printed",
    404: "there is nothing here",
    405: "this page only shows: GET alone",
    421: "this is for 127.0.0.1 and localhost alone",
    503: "too many pages are open, or nothing has been seen yet",
}


def _refusal(status: int) -> Response:
    return PlainTextResponse(f"{_WORDS.get(status, 'refused')}\n", status)


def refused(scope: Scope) -> int:
    """Return the HTTP status with which to refuse a request, or 0 to accept the request."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        values.setdefault(name, []).append(value)
    hosts = values.get(b"host", [])
    if len(hosts) != 1 or not _is_own(hosts[0].decode("latin-1")):
        return 421
    if scope["method"] != "GET":
        return 405
    # following a link to the page is allowed: it shows nothing without the token
    is_link = values.get(b"sec-fetch-mode") == [b"navigate"] and values.get(b"sec-fetch-dest") == [
        b"document"
    ]
    if is_link and scope["path"] == "/":
        return 0
    site = values.get(b"sec-fetch-site", [b"none"])
    return 0 if site in ([b"none"], [b"same-origin"]) else 403


def _is_own(host: str) -> bool:
    """Return whether a Host header (RFC 9110, 7.2) names a loopback address of this machine."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "80"
    return name in NAMES and port.isascii() and port.isdigit()


class _Impatient(H11Protocol):
    """An HTTP protocol that closes a connection if no complete request arrives in time. uvicorn
    itself only limits the time between a complete answer and the next request.
    """

    _last: object = None
    """The request at the previous check, or None if there was no request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_IDLE_S, self._look)

    def _look(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self.cycle is self._last:
            self.transport.close()
        elif not self.transport.is_closing():
            self._last = self.cycle
            self.loop.call_later(_IDLE_S, self._look)


def serve(listener: socket.socket, pipe: int, status: int, token: str) -> None:
    """Serve the page until the other end of ``pipe`` is closed. States are read from ``pipe``.

    When the server is ready, it writes a line to ``status``. After that, it writes `WATCHED` and
    `UNWATCHED` there. Raises OSError before the first request if privileges cannot be dropped.
    """
    page = files()
    asyncio.run(_rehearse(page))
    confine()
    asyncio.run(_serve(listener, pipe, status, token, page))


async def _rehearse(page: Page) -> None:
    """Answer made-up requests without a socket, to import all modules before `confine`."""
    states = States()
    states.put(b"{}\n")
    states.end()
    application_ = application(states, "", page)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def send(_: Message) -> None:
        pass

    scope: dict[str, object] = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
    }
    scope |= {"asgi": {"version": "3.0", "spec_version": "2.3"}, "client": None, "server": None}
    scope |= {"headers": [(b"host", b"localhost"), (b"authorization", b"Bearer ")]}
    scope |= {"query_string": b"", "root_path": ""}
    for path in ("/", "/api/state.json", "/api/states.jsonl", "/unknown"):
        await application_({**scope, "path": path, "raw_path": path.encode()}, receive, send)


async def _serve(listener: socket.socket, pipe: int, status: int, token: str, page: Page) -> None:
    os.set_blocking(status, False)

    def report(watched: bytes) -> None:
        with suppress(OSError):  # the collector has exited, or is stopped
            os.write(status, watched)

    states = States(report)
    config = uvicorn.Config(
        application(states, token, page),
        loop="asyncio",
        http=_Impatient,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    partial = bytearray()

    def read() -> None:
        try:
            block = os.read(pipe, _BLOCK)
        except BlockingIOError:
            return
        if not block:
            loop.remove_reader(pipe)
            states.end()
            server.should_exit = True
            # exit even if a browser keeps its connection open
            loop.call_later(_LAST_WORDS_S + 2, os._exit, 0)
            return
        partial.extend(block)
        *lines, begun = bytes(partial).split(b"\n")
        if lines:
            states.put(lines[-1] + b"\n")
            partial[:] = begun

    os.set_blocking(pipe, False)
    loop.add_reader(pipe, read)
    os.write(status, b"serving\n")
    await server.serve(sockets=[listener])


# --- dropping privileges --------------------------------------------------------------------------


NOBODY = 65534
"""The uid and gid of nobody and nogroup in Debian's base-passwd."""
_MOST_FILES = 64
_CAPBSET_READ, _CAPBSET_DROP, _SET_DUMPABLE = 23, 24, 4  # linux/prctl.h
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


def confine() -> None:
    """Give up access to files and the network, and root's user, groups and capabilities.

    Open descriptors stay usable, because a socket belongs to the network namespace in which it was
    created. All modules must be imported before this call. If it raises OSError, the caller must
    exit.
    """
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS | os.CLONE_NEWNS)
    # a deleted folder is empty, and no process can create anything in it
    empty = tempfile.mkdtemp(prefix="niso-web-", dir="/run")
    os.chdir(empty)
    os.rmdir(empty)
    os.chroot(".")
    for kind, most in (
        (resource.RLIMIT_NOFILE, _MOST_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    capability = 0
    while _is_known(capability):
        _prctl(_CAPBSET_DROP, capability)
        capability += 1
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_CAP_AMBIENT, _CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call_libc("capset", header, (ctypes.c_uint32 * 6)())
    _prctl(_SET_NO_NEW_PRIVS, 1)
    # no other process of this user may trace it
    _prctl(_SET_DUMPABLE, 0)


def _is_known(capability: int) -> bool:
    try:
        return call_libc("prctl", _CAPBSET_READ, capability, 0, 0, 0) >= 0
    except OSError:
        return False


def _prctl(option: int, value: int) -> None:
    call_libc("prctl", option, value, 0, 0, 0, path=f"prctl {option}")
