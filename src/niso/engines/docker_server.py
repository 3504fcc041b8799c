"""Serve Docker's remote network driver ``niso`` on a Unix socket; exit when idle.

The protocol is JSON over HTTP (moby, libnetwork/docs/remote.md; seen with Docker 26.1). systemd
passes the socket (sd_listen_fds(3)); otherwise the first argument is its path.
`niso.engines.docker_calls` carries out the calls.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler

from niso.base.errors import Error, InvalidInput
from niso.engines import docker_calls, protocol

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_IDLE_S = 30.0
_MOST_BYTES = 4 << 20
_TYPE = "application/vnd.docker.plugins.v1.2+json"


class _Handler(BaseHTTPRequestHandler):
    """Answers one call. The server is single-threaded, so calls are serialised."""

    timeout = 10  # seconds until a silent client is disconnected
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        call = self.path.rpartition(".")[2]
        status = 200
        try:
            answer = docker_calls.answer(call, self._body())
        except Error as error:
            status, answer = 500, {"Err": protocol.one_line(error)}
        except OSError as error:
            status, answer = 500, {"Err": f"niso: {error}"}
        except protocol.MALFORMED as error:
            status, answer = 500, {"Err": f"niso: does not understand {call}: {error!r}"}
        if "Err" in answer:
            docker_calls.say(f"{call}: {answer['Err']}")
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> dict[str, object]:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MOST_BYTES:
            raise InvalidInput("this call is too long")
        body = json.loads(self.rfile.read(length).decode() or "{}")
        if not isinstance(body, dict):
            raise InvalidInput("this call is not a JSON object")
        return body

    def log_message(self, *_: object) -> None:
        """Log nothing: Docker calls often."""


class _Server(socketserver.UnixStreamServer):
    def __init__(self, listening: socket.socket) -> None:
        super().__init__("", _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.last = time.monotonic()

    def handle_error(self, *_: object) -> None:
        """Log why a call failed: the client disconnected, or the store has an error."""
        docker_calls.say(f"a call failed: {sys.exc_info()[1]!r}")

    def process_request(self, *given: object) -> None:
        self.last = time.monotonic()
        super().process_request(*given)  # type: ignore[arg-type]


def main() -> None:
    """Serve until idle for a while; on a socket that systemd did not pass, for ever."""
    try:
        listening, is_passed = _listening()
    except (OSError, Error) as error:
        docker_calls.say(f"niso-docker: {error}")
        os._exit(1)
    with _Server(listening) as server:
        is_taken_up = False
        while True:
            is_taken_up = is_taken_up or docker_calls.take_up()
            is_waiting = docker_calls.settle()
            server.timeout = docker_calls.WAIT_S if is_waiting else _IDLE_S
            server.handle_request()
            is_idle = time.monotonic() - server.last >= _IDLE_S
            if is_passed and is_idle and not docker_calls.settle():
                return


def _listening() -> tuple[socket.socket, bool]:
    """Return the socket, and whether systemd passed it. Raises OSError, Error."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        return socket.socket(fileno=_FIRST_FD), True
    if len(sys.argv) != 2 or not sys.argv[1].startswith("/"):
        raise InvalidInput("give the path of a socket, /run/docker/plugins/niso.sock")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # for root only: whoever can write to it controls niso
    try:
        if os.path.lexists(sys.argv[1]):
            os.unlink(sys.argv[1])
        listening.bind(sys.argv[1])
    finally:
        os.umask(before)
    listening.listen()
    return listening, False
