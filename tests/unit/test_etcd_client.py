"""Test what the client of etcd does of its own: tokens of users, and why nothing has answered."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from niso.cluster import etcd
from niso.cluster.etcd import Etcd, Reach, _problem


class Member(BaseHTTPRequestHandler):
    """Checks passwords, and takes only the last token."""

    protocol_version = "HTTP/1.1"
    issued: ClassVar[list[str]] = []
    others_drop_it = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = 200, {}
        if self.path.endswith("/authenticate"):
            self.issued.append(f"token {len(self.issued)}")
            answer = {"token": self.issued[-1]}
        elif self.headers["Authorization"] != self.issued[-1]:
            status, answer = 401, {"code": 16, "error": "invalid auth token"}
            if self.others_drop_it:
                etcd._tokens.clear()
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        if status == 401:
            self.send_header("Connection", "close")  # the next request opens another
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def access(tmp_path: Path) -> Iterator[Reach]:
    (tmp_path / "user").write_text("niso:secret\n")
    Member.issued.clear()
    with HTTPServer(("127.0.0.1", 0), Member) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Reach((f"127.0.0.1:{server.server_port}",), user_file=str(tmp_path / "user"))
        server.shutdown()


def test_password_is_checked_once_for_all_clients_until_the_token_ends(
    access: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        with Etcd(access) as client:
            client.get("x")
    assert len(Member.issued) == 1
    Member.issued.append("etcd was started again")
    for _ in range(2):
        with Etcd(access) as client:
            client.get("x")
    assert len(Member.issued) == 3
    Member.issued.append("and again, and another thread was the first to see it")
    monkeypatch.setattr(Member, "others_drop_it", True)
    with Etcd(access, rounds=1) as client:
        client.get("x")
    assert len(Member.issued) == 5


def test_reason_is_for_people() -> None:
    assert _problem(ConnectionRefusedError(111, "Connection refused")) == "connection refused"
    assert _problem(TimeoutError("timed out")) == "timed out"
    assert _problem(TimeoutError("_ssl.c:1012: The read timed out")) == "the read timed out"
    for error in (BrokenPipeError(32, "Broken pipe"), ssl.SSLError(1, "bad certificate")):
        assert _problem(error).startswith("a certificate was refused, or the connection closed (")
