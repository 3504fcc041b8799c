"""Talk to Kubernetes' API server: get and watch objects (kubernetes.io, API concepts)."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlencode, urlsplit

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.kubernetes.kubeconfig import Access, is_loopback

if TYPE_CHECKING:
    from typing import Any

REQUEST_S = 10.0
_LONGEST = 64 << 20
"""The most bytes of an answer.

etcd's objects have at most 1.5 MB, and lists are read in pages of 500.
"""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Socket options: a server that no longer answers is detected after 25 s."""
_FAILURES = (OSError, http.client.HTTPException, ValueError)
"""Errors of a connection. ValueError: the token is not ASCII, or not valid in a header."""
GONE = 410
_NOT_FOUND = 404


class NoAnswer(Error):
    """Raised if the API server does not answer, or not in the form of its API."""


class Refused(Error):
    """Raised if the API server refuses a request; ``status`` is the HTTP status."""

    def __init__(self, reason: str, hint: str | None, status: int) -> None:
        super().__init__(reason, hint)
        self.status = status


class ApiServer:
    """A client of the API server. Not thread-safe: use one per thread.

    Raises Error if the certificates are unusable.
    """

    def __init__(self, access: Access, request_s: float = REQUEST_S) -> None:
        self._access = access
        self._request_s = request_s
        self._context = _context(access) if access.server.startswith("https:") else None
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """Get an object; None if it does not exist. Raises NoAnswer, Refused."""
        try:
            for fresh in (False, True):
                known = self._connection is not None and not fresh
                try:
                    response = self._request(self._connected(fresh), path, query or {})
                    data = _parsed(path, response.read(_LONGEST))
                    break
                except _FAILURES:
                    # a known connection may have been closed by the server while idle: try a new
                    # one
                    if not known:
                        raise
        except _FAILURES as error:
            self._close()
            raise self._no_answer(error) from error
        if response.status == _NOT_FOUND:
            return None
        if response.status != http.client.OK:
            raise _refused(path, response.status, data)
        return data

    def watch(
        self, path: str, query: Mapping[str, str], silence_s: float
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of a watch until the server ends it. Raises NoAnswer, Refused."""
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connect()
            response = self._request(connection, path, {**query, "watch": "1"})
            if response.status != http.client.OK:
                raise _refused(path, response.status, _parsed(path, response.read(_LONGEST)))
            if connection.sock is not None:
                connection.sock.settimeout(silence_s)
            while line := response.readline(_LONGEST):
                event = _parsed(path, line)
                if event.get("type") == "ERROR":
                    status = event.get("object")
                    status = status if isinstance(status, dict) else {}
                    code = status.get("code")
                    raise _refused(path, code if isinstance(code, int) else 0, status)
                yield event
        except _FAILURES as error:
            raise self._no_answer(error) from error
        finally:
            if connection is not None:
                connection.close()

    def _connected(self, fresh: bool) -> http.client.HTTPConnection:
        if fresh:
            self._close()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        """Open a connection. Raises OSError."""
        parts = urlsplit(self._access.server)
        host, timeout = parts.hostname or "", self._request_s
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
            connection.connect()
            if not is_loopback(str(connection.sock.getpeername()[0])):  # by the host's names
                connection.close()
                raise OSError("not on this machine, and without TLS")
        else:
            connection = http.client.HTTPSConnection(
                host, parts.port, timeout=timeout, context=self._context
            )
            plain = socket.create_connection((host, parts.port or 443), timeout)
            name = self._access.server_name or host
            connection.sock = self._context.wrap_socket(plain, server_hostname=name)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return connection

    def _request(
        self, connection: http.client.HTTPConnection, path: str, query: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "niso"}
        if token := _token(self._access):
            headers["Authorization"] = f"Bearer {token}"
        base = urlsplit(self._access.server).path
        asked = f"?{urlencode(query)}" if query else ""
        connection.request("GET", f"{base}{path}{asked}", headers=headers)
        return connection.getresponse()

    def _no_answer(self, error: Exception) -> NoAnswer:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return NoAnswer(f"{self._access.server}: {reason}", "pods keep the policies that they have")


def _context(access: Access) -> ssl.SSLContext:
    """Return the TLS settings: the server's authority and this client's certificate.

    Raises Error.
    """
    try:
        if access.authority:
            context = ssl.create_default_context(cadata=access.authority.decode("ascii"))
        else:
            context = ssl.create_default_context()
        if access.certificate:
            # the ssl module reads certificates only from files
            with _in_memory(access.certificate) as certificate, _in_memory(access.key) as key:
                fds = (f"/proc/self/fd/{file.fileno()}" for file in (certificate, key))
                context.load_cert_chain(*fds)
    except (ssl.SSLError, ValueError) as error:
        raise Error(f"certificates of the kubeconfig: {error}") from error
    return context


def _in_memory(content: bytes) -> Any:
    file = os.fdopen(os.memfd_create("niso", os.MFD_CLOEXEC), "w+b")
    file.write(content)
    file.flush()
    return file


def _token(access: Access) -> str:
    if not access.token_file:
        return access.token
    with open(access.token_file, encoding="ascii") as file:
        return file.read().strip()


def _parsed(path: str, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise NoAnswer(f"{path}: the answer is not an object of JSON")
    return data


def _refused(path: str, status: int, data: Mapping[str, Any]) -> Refused:
    said = str(data.get("message") or data.get("reason") or "no reason")
    hint = None
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        hint = "it needs get, list and watch of pods, namespaces and networkpolicies"
    return Refused(f"{path}: the API server answers {status}: {said}", hint, status)
