"""Read the address of Kubernetes' API server, and the credentials, from a kubeconfig.

The format is that of k8s.io/client-go, tools/clientcmd/api/v1. Unsupported keys are an error,
because with incomplete credentials niso would be a different user.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from niso.base import files
from niso.base.errors import Error, InvalidInput, NotFound
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 1 << 20
_CLUSTER = ("server", "certificate-authority", "certificate-authority-data", "tls-server-name")
_USER = (
    "token",
    "tokenFile",
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
)


class Access(NamedTuple):
    """The address of an API server, with the files or PEM texts for a connection; "" for none."""

    server: str  # "https://192.0.2.1:6443"
    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    token_file: str = ""  # overrides token; read for each request, because it is renewed
    server_name: str = ""  # name in the server's certificate; "" for the host of ``server``


def read(path: str) -> Access:
    """Read the access of a kubeconfig's current context, in YAML or JSON.

    Raises NotFound, InvalidInput, and Error if a file cannot be read, or for YAML without PyYAML.
    """
    path = os.path.abspath(path)
    data = _load(path)
    context = _named(path, data, "context", data.get("current-context") or "")
    cluster = _named(path, data, "cluster", str(context.get("cluster", "")))
    user = _named(path, data, "user", str(context.get("user", ""))) if context.get("user") else {}
    _require(path, cluster, "cluster", _CLUSTER)
    _require(path, user, "user", _USER)
    server = cluster.get("server")
    if not isinstance(server, str) or not _is_url(server):
        raise InvalidInput("has no URL of a server", "a line server: https://...", file=path)
    if not (server.startswith("https://") or is_loopback(urlsplit(server).hostname or "")):
        # on the way, others read the token, and choose the policies
        raise InvalidInput(
            f"server {server!r} is on another machine, without TLS",
            "server: https://..., or http:// with 127.0.0.1, [::1] or localhost",
            file=path,
        )
    certificate = _content(path, user, "client-certificate")
    key = _content(path, user, "client-key")
    if bool(certificate) != bool(key):
        raise InvalidInput("client-certificate and client-key belong together", file=path)
    token_file = user.get("tokenFile") or ""
    return Access(
        server.rstrip("/"),
        _content(path, cluster, "certificate-authority"),
        certificate,
        key,
        str(user.get("token") or ""),
        _beside(path, str(token_file)) if token_file else "",
        str(cluster.get("tls-server-name") or ""),
    )


def is_loopback(host: str) -> bool:
    """Return whether a host of a URL is this machine's loopback: an address, or ``localhost``."""
    if host == "localhost":  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_url(text: str) -> bool:
    if not text.startswith(("https://", "http://")) or not text.isascii() or " " in text:
        return False
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:  # unpaired brackets, or a port that is not a number
        return False


def _load(path: str) -> dict[str, Any]:
    text = _bytes(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        from niso.importers import yaml_file

        return yaml_file.load(path, "a kubeconfig")
    if not isinstance(data, dict):
        raise InvalidInput("is not a mapping", "pass a kubeconfig", file=path)
    return data


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
            how = files.file_changed_by_others(path, {0, os.geteuid()}, file.fileno())
    except FileNotFoundError:
        raise NotFound("no such file", "niso kubernetes --kubeconfig FILE", file=path) from None
    except OSError as error:
        raise Error(f"cannot be read: {error.strerror}", file=path) from error
    if len(content) > _MOST_BYTES:
        raise InvalidInput(f"larger than {_MOST_BYTES} bytes", file=path)
    if how is not None:
        # whoever changes it chooses the server that policies come from
        raise InvalidInput(
            f"other users than root can change it: {how}",
            f"chown root: and chmod go-w {path} and its folder",
            file=path,
        )
    return content


def _named(path: str, data: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Return the context, cluster or user with this name. Raises InvalidInput."""
    some = data.get(f"{kind}s")
    for item in some if isinstance(some, list) else ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(kind), dict):
            return dict(item[kind])
    what = f"{kind} {name!r}" if name else "current-context"
    raise InvalidInput(f"has no {what}", "kubectl config view shows what it has", file=path)


def _require(path: str, given: Mapping[str, Any], kind: str, keys: Iterable[str]) -> None:
    """Raise InvalidInput for a key that niso does not support and that has a value."""
    for key in sorted(given.keys() - set(keys)):
        if given[key]:
            known = ", ".join(keys)
            raise InvalidInput(f"{kind}.{key} is not supported", f"niso knows {known}", file=path)


def _content(path: str, given: Mapping[str, Any], key: str) -> bytes:
    """Return the PEM text of a key, or of the file that it names. The text takes precedence."""
    data, file = given.get(f"{key}-data"), given.get(key)
    if data:
        try:
            return base64.b64decode(str(data), validate=True)
        except ValueError:
            raise InvalidInput(f"{key}-data is not base64", file=path) from None
    return _bytes(_beside(path, str(file))) if file else b""


def _beside(path: str, file: str) -> str:
    """Resolve the path of a file relative to the kubeconfig that names it."""
    return os.path.join(os.path.dirname(path), file)
