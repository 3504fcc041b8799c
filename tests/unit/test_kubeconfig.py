"""Test how a kubeconfig is read."""

from __future__ import annotations

import base64
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from refusals import refuses

from niso.base.errors import Error, InvalidInput, NotFound
from niso.engines import api_server
from niso.engines.api_server import Access, ApiServer, ApiServerError


def config(cluster: dict[str, Any], user: dict[str, Any]) -> dict[str, Any]:
    return {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }


def test_kubeconfig_is_yaml_or_json(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CA")
    (tmp_path / "token").write_text("secret\n")
    data = config(
        {"server": "https://[2001:db8::1]:6443/", "certificate-authority": "ca.pem"},
        {
            "tokenFile": "token",
            "client-key-data": base64.b64encode(b"K").decode(),
            "client-certificate-data": base64.b64encode(b"C").decode(),
        },
    )
    wanted = Access("https://[2001:db8::1]:6443", b"CA", b"C", b"K", "", str(tmp_path / "token"))
    path = tmp_path / "config"
    path.write_text(json.dumps(data))
    assert api_server.read(str(path)) == wanted
    import yaml

    path.write_text(yaml.safe_dump(data))
    assert api_server.read(str(path)) == wanted


@pytest.mark.parametrize(
    ("cluster", "user", "reason"),
    [
        ({}, {}, "no URL of a server"),
        ({"server": "ftp://x"}, {}, "no URL of a server"),
        ({"server": "https://"}, {}, "no URL of a server"),
        ({"server": "https://[::1"}, {}, "no URL of a server"),
        ({"server": "https://x:port"}, {}, "no URL of a server"),
        ({"server": "https://x:99999"}, {}, "no URL of a server"),
        ({"server": "https://x/a b"}, {}, "no URL of a server"),
        ({"server": "http://192.0.2.1:8080"}, {}, "on another machine, without TLS"),
        ({"server": "http://api.example:8080"}, {}, "on another machine, without TLS"),
        ({"server": "http://127.0.0.1@192.0.2.1"}, {}, "on another machine, without TLS"),
        ({"server": "http://127.0.0.1.example"}, {}, "on another machine, without TLS"),
        ({"server": "http://localhost.example"}, {}, "on another machine, without TLS"),
        ({"server": "http://[2001:db8::1]:80"}, {}, "on another machine, without TLS"),
        ({"server": "http://0.0.0.0:80"}, {}, "on another machine, without TLS"),
        ({"server": "https://x", "insecure-skip-tls-verify": True}, {}, "is not supported"),
        ({"server": "https://x"}, {"exec": {"command": "aws"}}, "user.exec is not supported"),
        ({"server": "https://x"}, {"username": "root"}, "user.username is not supported"),
        ({"server": "https://x"}, {"client-key-data": "YQ=="}, "belong together"),
        ({"server": "https://x", "certificate-authority-data": "?"}, {}, "is not base64"),
    ],
)
def test_kubeconfig_that_niso_cannot_use_is_refused(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps(config(cluster, user)))
    with pytest.raises(InvalidInput, match=reason):
        api_server.read(str(path))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.9.8.7"])
def test_server_of_this_machine_needs_no_tls(tmp_path: Path, host: str) -> None:
    path = tmp_path / "config"
    path.write_text(json.dumps(config({"server": f"http://{host}:7443"}, {"token": "t"})))
    assert api_server.read(str(path)).server == f"http://{host}:7443"


def test_name_that_leads_to_another_machine_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """/etc/hosts or a resolver may say that localhost is elsewhere."""
    server = socket.create_server(("127.0.0.1", 0))
    access = Access(f"http://localhost:{server.getsockname()[1]}", token="secret")
    monkeypatch.setattr(api_server, "is_loopback", lambda address: address != "127.0.0.1")
    with server, pytest.raises(ApiServerError, match="not on this machine, and without TLS"):
        ApiServer(access).get("/api/v1/pods")
    # the connection was closed before a request


def test_kubeconfig_without_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        api_server.read(str(tmp_path / "none"))
    # kubernetes run and kubernetes enable take it
    assert caught.value.hint == "--kubeconfig FILE names another one"
    path = tmp_path / "config"
    with pytest.raises(NotFound):
        api_server.read(str(path))
    path.write_text("{}")
    path.chmod(0o666)
    with pytest.raises(InvalidInput, match="other users than root can change it"):
        api_server.read(str(path))
    path.chmod(0o660)
    os.chown(path, os.geteuid(), 12345 if os.geteuid() == 0 else os.getegid())
    if os.geteuid() == 0:
        with pytest.raises(InvalidInput, match="change it: it is writable for group 12345"):
            api_server.read(str(path))
    path.chmod(0o600)
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidInput, match="change it: its folder is writable for everybody"):
        api_server.read(str(path))
    tmp_path.chmod(0o700)
    with refuses(InvalidInput, hint="kubectl config view shows what it has", file="config"):
        api_server.read(str(path))
    path.write_text(json.dumps({"current-context": "c"}))
    with refuses(InvalidInput, hint="kubectl config view shows what it has", file="config"):
        api_server.read(str(path))
    with pytest.raises(Error, match="certificates of the kubeconfig"):
        ApiServer(Access("https://127.0.0.1:1", b"nonsense"))
