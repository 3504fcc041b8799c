"""Probe the health of services by connections, without blocking.

A probe is a socket made inside the service's network namespace: no process runs there, and no shell
parses anything. Probes by a command are in `niso.runtime.health_command`. Any number of probes
share one poll(2), and each ends at its deadline, whatever its peer does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Generator, Sequence

from niso.base.addresses import family_of
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import netns
from niso.kernel.rtnetlink import Rtnl
from niso.plan.records import Healthcheck
from niso.runtime.health import advance

if TYPE_CHECKING:
    from typing import Any

_MAX_RESPONSE = 16 << 10
"""Bytes, including interim responses. A longer response is not HTTP, and must not keep a probe
busy."""
_MAX_ADDRESSES = 16
_BLOCK = 4096

_Steps = Generator[tuple[socket.socket, int], None, str]


class Probe:
    """One probe in progress.

    ``fd`` becomes ready for ``events`` (poll(2)) when `go_on` can continue.
    """

    def __init__(self, check: Healthcheck, namespace: str | None) -> None:
        """Start the probe.

        ``namespace`` is a name below /run/netns; None means the caller's own.
        """
        self.began = time.monotonic()
        self.deadline = self.began + check.timeout_s
        self.fd = -1
        self.events = 0
        self.answer: str | None = None
        """None until the probe ends, then "" for healthy, else the reason."""
        self._check = check
        self._doing = ["connect"]
        self._steps = _steps(check, namespace, self._doing)
        self.go_on()

    def go_on(self) -> None:
        """Continue as far as possible without blocking."""
        try:
            sock, self.events = next(self._steps)
            self.fd = sock.fileno()
        except StopIteration as end:
            self.answer = end.value
        except (Error, OSError) as error:  # the namespace no longer exists
            self.answer = f"{self._check.target}: {error}"

    def give_up_if_late(self) -> None:
        """End the probe if its deadline has passed; the answer names the step that timed out."""
        if self.answer is None and time.monotonic() >= self.deadline:
            self.close()
            late = f"{self._doing[0]}: no answer within {self._check.timeout_s:g}s"
            self.answer = f"{self._check.target}: {late}"

    @property
    def said(self) -> str:
        """The last line of a command's output, printable; "" for other probes."""
        return ""

    def close(self) -> None:
        """Close the socket of a probe; no-op if the probe has ended."""
        self._steps.close()


def _steps(check: Healthcheck, namespace: str | None, doing: list[str]) -> _Steps:
    """Run a probe as a generator: yield (socket, events) to wait for; return "" or the reason."""
    refusals = ""
    for address in _candidates(check, namespace):
        sock = _socket(address, namespace)
        try:
            doing[0] = f"connect to {address}"
            number = sock.connect_ex((address, check.port))
            if number in (errno.EINPROGRESS, errno.EAGAIN):
                yield sock, select.POLLOUT
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number == 0 and sock.getsockname() == sock.getpeername():
                # RFC 9293, 3.5: without a listener, a connection from the port to itself succeeds.
                number = errno.ECONNREFUSED
            if number == 0:
                if check.path is None:
                    return ""
                doing[0] = f"answer of {address}"
                return (yield from _http(sock, check))
            refusals = refusals or f"{check.target}: {os.strerror(number).lower()} ({address})"
        except OSError as error:
            refusals = (
                refusals or f"{check.target}: {(error.strerror or str(error)).lower()} ({address})"
            )
        finally:
            sock.close()
    return refusals


def _candidates(check: Healthcheck, namespace: str | None) -> Generator[str, None, None]:
    """Yield the addresses to try: loopback, then those of the links (read only if needed)."""
    if check.address:
        yield check.address
        return
    yield "127.0.0.1"
    yield "::1"
    with _inside(namespace), Rtnl() as rtnl:
        addresses = [entry.address.partition("/")[0] for entry in rtnl.addresses()]
    own = [
        address
        for address in addresses
        if not address.startswith(("127.", "fe80:")) and address != "::1"
    ]
    yield from own[:_MAX_ADDRESSES]


def _socket(address: str, namespace: str | None) -> socket.socket:
    with _inside(namespace):
        family = socket.AF_INET6 if family_of(address) == 6 else socket.AF_INET
        return socket.socket(
            family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )


def _inside(namespace: str | None) -> Any:
    if namespace is not None:
        return netns.inside(namespace)
    from contextlib import nullcontext

    return nullcontext()


def _http(sock: socket.socket, check: Healthcheck) -> _Steps:
    """Send a request (RFC 9112) and read up to the status line of the final response.

    Interim responses (RFC 9110, 15.2) come before it.
    """
    lines = (
        f"GET {check.path} HTTP/1.1",
        f"Host: {check.host}",
        "User-Agent: niso",
        "Accept: */*",
        "Connection: close",
    )
    request = "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")
    while request:
        try:
            request = request[sock.send(request) :]
        except BlockingIOError:
            yield sock, select.POLLOUT
    received = b""
    size = 0
    while size < _MAX_RESPONSE:
        try:
            block = sock.recv(_BLOCK)
        except BlockingIOError:
            yield sock, select.POLLIN
            continue
        size += len(block)
        status, received = _status(received + block)
        if status is not None:
            return "" if 200 <= status < 400 else f"{check.target}: status {status}"
        if not block:
            break
        if b"\n" in received and not received.startswith(b"HTTP/"):
            break
    what = "no HTTP response" if received or size >= _MAX_RESPONSE else "closed without a response"
    return f"{check.target}: {what}"


def _status(received: bytes) -> tuple[int | None, bytes]:
    """Parse the final status code, skipping interim responses: (code or None, rest to parse)."""
    while True:
        line, end, _ = received.partition(b"\n")
        words = line.split(b" ", 2)
        if (
            not end
            or not line.startswith(b"HTTP/1.")
            or len(words) < 2
            or len(words[1].strip()) != 3
        ):
            return None, received
        code = words[1].strip()
        if not code.isdigit():
            return None, received
        if not code.startswith(b"1"):
            return int(code), received
        _, blank, following = received.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not blank:
            return None, received
        received = following


def begin(check: Healthcheck, service: str, namespace: str | None) -> Probe:
    """Begin a probe of a service; ``namespace`` is as for `Probe`."""
    if check.command:
        from niso.runtime.health_command import CommandProbe

        return CommandProbe(check, service)
    return Probe(check, namespace)


def probe_all(targets: Sequence[tuple[Healthcheck, str, str | None]]) -> list[str]:
    """Run probes concurrently; return "" or the reason for each.

    A target is (check, service, namespace). Takes at most the longest timeout.
    """
    probes: list[Probe] = []
    try:
        for target in targets:
            probes.append(begin(*target))
        while pending := [probe for probe in probes if probe.answer is None]:
            advance(pending, (), pending[0].deadline)
    finally:
        for probe in probes:
            probe.close()
    return [probe.answer or "" for probe in probes]
