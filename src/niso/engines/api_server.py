"""Read a kubeconfig, and get, list and watch objects of Kubernetes' API server.

The API is described at kubernetes.io, API concepts, and the kubeconfig in k8s.io/client-go,
tools/clientcmd/api/v1. A kubeconfig key that niso does not support is an error: with incomplete
credentials, niso would act as another user.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import urlencode, urlsplit

from niso.base import files
from niso.base.errors import Error, InvalidInput, NotFound
from niso.base.named_tuples import Any, NamedTuple
from niso.manifest import yaml_file

REQUEST_S = 10.0
_LONGEST = 64 << 20
"""The maximum number of bytes of an answer: a page of 500 objects of at most 1.5 MB in etcd."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Socket options with which a server that no longer answers is detected after 25 s."""
_FAILURES = (OSError, http.client.HTTPException, ValueError)
"""Exceptions of a failed connection. ValueError: the token is not valid in an HTTP header."""
GONE = 410
_NOT_FOUND = 404


class ApiServerError(Error):
    """An error of the API server. ``status`` is the HTTP status, or -1 if no answer arrived."""

    def __init__(self, reason: str, hint: str | None = None, status: int = -1) -> None:
        super().__init__(reason, hint)
        self.status = status


class ApiServer:
    """A client of Kubernetes' API server, for one thread. Raises Error for invalid certificates."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._context = _context(access) if access.server.startswith("https:") else None
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        """Return the JSON at a path of the API, or None for status 404. Raises ApiServerError."""
        try:
            for fresh in (False, True):
                known = self._connection is not None and not fresh
                try:
                    if not known:
                        self._close()
                        self._connection = self._connect()
                    assert self._connection is not None
                    response = self._request(self._connection, path, query or {})
                    data = _parsed(path, response.read(_LONGEST))
                    break
                except _FAILURES:
                    # the server may have closed a known connection while idle: try a new one
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
        """Watch a path of the API: yield the JSON of each event until the server ends the watch.
        Raises ApiServerError, also if no event arrives for ``silence_s`` seconds.
        """
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

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._access.server)
        host, timeout = parts.hostname or "", REQUEST_S
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
        token = self._access.token
        if self._access.token_file:
            with open(self._access.token_file, encoding="ascii") as file:
                token = file.read().strip()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        base = urlsplit(self._access.server).path
        asked = f"?{urlencode(query)}" if query else ""
        connection.request("GET", f"{base}{path}{asked}", headers=headers)
        return connection.getresponse()

    def _no_answer(self, error: Exception) -> ApiServerError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ApiServerError(
            f"{self._access.server}: {reason}", "pods keep the policies that they have"
        )


def _context(access: Access) -> ssl.SSLContext:
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


def _parsed(path: str, content: bytes) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ApiServerError(f"{path}: the answer is not an object of JSON")
    return data


def _refused(path: str, status: int, data: Mapping[str, Any]) -> ApiServerError:
    said = str(data.get("message") or data.get("reason") or "no reason")
    hint = None
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        hint = "it needs get, list and watch of pods, namespaces and networkpolicies"
    return ApiServerError(f"{path}: the API server answers {status}: {said}", hint, status)


# --- address and credentials ----------------------------------------------------------------------

_MOST_BYTES = 1 << 20
_CLUSTER = ("server", "certificate-authority", "certificate-authority-data", "tls-server-name")
_USER = (
    *("token", "tokenFile", "client-certificate", "client-certificate-data"),
    *("client-key", "client-key-data"),
)


class Access(NamedTuple):
    """The address of an API server, and the credentials in PEM. Missing values are ""."""

    server: str  # "https://192.0.2.1:6443"
    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    token_file: str = ""  # overrides token; read for each request, because it is renewed
    server_name: str = ""  # name in the server's certificate; "" for the host of ``server``


def read(path: str) -> Access:
    """Read the address and credentials from a kubeconfig's current context. Raises Error."""
    path = os.path.abspath(path)
    text = _bytes(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = yaml_file.load(path, "a kubeconfig")
    if not isinstance(data, dict):
        raise InvalidInput("is not a mapping", "pass a kubeconfig", file=path)
    context = _named(path, data, "context", data.get("current-context") or "")
    cluster = _named(path, data, "cluster", str(context.get("cluster", "")))
    user = _named(path, data, "user", str(context.get("user", ""))) if context.get("user") else {}
    _require(path, cluster, "cluster", _CLUSTER)
    _require(path, user, "user", _USER)
    server = cluster.get("server")
    if not isinstance(server, str) or not _is_url(server):
        raise InvalidInput("has no URL of a server", "a line server: https://...", file=path)
    if not (server.startswith("https://") or is_loopback(urlsplit(server).hostname or "")):
        # without TLS, others could read the token and forge policies
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
        os.path.join(os.path.dirname(path), str(token_file)) if token_file else "",
        str(cluster.get("tls-server-name") or ""),
    )


def is_loopback(host: str) -> bool:
    """Return whether the host of a URL is a loopback address or ``localhost``."""
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


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
            how = files.file_changed_by_others(path, {0, os.geteuid()}, file.fileno())
    except FileNotFoundError:
        raise NotFound("no such file", "--kubeconfig FILE names another one", file=path) from None
    except OSError as error:
        raise Error(f"cannot be read: {error.strerror}", file=path) from error
    if len(content) > _MOST_BYTES:
        raise InvalidInput(f"larger than {_MOST_BYTES} bytes", file=path)
    if how is not None:
        # a user who can change the file can choose the server of the policies
        raise InvalidInput(
            f"other users than root can change it: {how}",
            f"chown root: and chmod go-w {path} and its folder",
            file=path,
        )
    return content


def _named(path: str, data: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    some = data.get(f"{kind}s")
    for item in some if isinstance(some, list) else ():
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(kind), dict):
            return dict(item[kind])
    what = f"{kind} {name!r}" if name else "current-context"
    raise InvalidInput(f"has no {what}", "kubectl config view shows what it has", file=path)


def _require(path: str, given: Mapping[str, Any], kind: str, keys: Iterable[str]) -> None:
    for key in sorted(given.keys() - set(keys)):
        if given[key]:
            known = ", ".join(keys)
            raise InvalidInput(f"{kind}.{key} is not supported", f"niso knows {known}", file=path)


def _content(path: str, given: Mapping[str, Any], key: str) -> bytes:
    """Return the PEM content of a kubeconfig's key, such as client-key, or b"" if it is absent. The
    content is either in the key KEY-data, or in the file whose path is the value of KEY.
    """
    data, file = given.get(f"{key}-data"), given.get(key)
    if data:
        try:
            return base64.b64decode(str(data), validate=True)
        except ValueError:
            raise InvalidInput(f"{key}-data is not base64", file=path) from None
    return _bytes(os.path.join(os.path.dirname(path), str(file))) if file else b""


# --- listing and watching one kind of objects -----------------------------------------------------

WATCH_S = 240
"""Seconds for which the server keeps a watch open. It sends bookmarks about once a minute."""
_SILENCE_S = WATCH_S + 30.0
RESYNC_S = 1800.0
"""Seconds between full lists. A full list finds changes that a watch missed."""
_PAGE = "500"
_BACK_OFF_S = (0.2, 15.0)
_LONGEST_VERSION = 20
"""The maximum number of digits of a 64-bit number."""

Key = tuple[str, str]
"""The namespace and the name of an object."""

type Cached = dict[Key, tuple[int, Any]]
"""Objects, each with its resource version, which increases with each change in the cluster."""


class WatchedObjects:
    """A cache of the parsed objects at ``path`` in the API server, such as all pods.

    ``parse`` converts an object's JSON to the cached value. If it raises ValueError, the object is
    logged and not cached. The thread of `run` calls ``changed`` after each change of the cache.
    """

    def __init__(
        self,
        path: str,
        connect: Callable[[], ApiServer],
        parse: Callable[[Mapping[str, Any]], Any],
        changed: Callable[[], object],
        log: Callable[[str], None],
    ) -> None:
        self.path = path
        self._connect = connect
        self._parse = parse
        self._changed = changed
        self._log = log
        self._kept: Cached = {}
        self._merged: Cached = {}  # objects merged since the current list was started
        self._version = 0  # resource version of the last list or event; 0 before the first
        self._lock = threading.Lock()
        self._said = ""

    @property
    def is_filled(self) -> bool:
        """Return whether the cache is filled: all objects have been listed at least once."""
        return self._version > 0

    def objects(self) -> dict[Key, Any]:
        """Return a copy of the cache: {(namespace, name): parsed object}."""
        with self._lock:
            return {key: obj for key, (_, obj) in self._kept.items()}

    def merge(self, data: Mapping[str, Any]) -> None:
        """Add the objects of ``data``, an answer of `get`, if it is newer than the cache.

        A cached object that ``data`` lacks stays until the watch reports its deletion. Raises
        ApiServerError if ``data`` is no list of objects.
        """
        version, items = self._listed(data)
        with self._lock:
            if version > self._version:
                for item in items:
                    self._keep(self._kept, item)
                    self._keep(self._merged, item)

    def _listed(self, data: Mapping[str, Any]) -> tuple[int, list[Any]]:
        items = data.get("items") or []
        if not (version := _version(data)) or not isinstance(items, list):
            raise ApiServerError(f"{self.path}: the answer is not a list with a resourceVersion")
        for item in items:
            _key(item)
        return version, items

    def run(self, over: threading.Event) -> None:
        """Update the cache until ``over`` is set. Retries after errors, with growing delays."""
        wait, listed = _BACK_OFF_S[0], 0.0
        again = True
        server: ApiServer | None = None
        while not over.is_set():
            try:
                server = server or self._connect()
                if again or time.monotonic() - listed > RESYNC_S:
                    self._list(server)
                    again, listed = False, time.monotonic()
                    self._changed()
                self._watch(server, over)
                wait, self._said = _BACK_OFF_S[0], ""
            except Error as error:
                status = error.status if isinstance(error, ApiServerError) else -1
                again = again or status >= 0
                # a watch from a version that the server has dropped is normal, not an error
                if status != GONE:
                    self._say(error.message)
            over.wait(wait * (0.5 + os.urandom(1)[0] / 255))
            wait = min(2 * wait, _BACK_OFF_S[1])

    def _list(self, server: ApiServer) -> None:
        kept: Cached = {}
        with self._lock:
            self._merged.clear()
        query = {"limit": _PAGE}
        while True:
            page = server.get(self.path, query)
            if page is None:
                raise ApiServerError(f"{self.path}: the API server does not have it", None, 404)
            version, items = self._listed(page)
            for item in items:
                self._keep(kept, item)
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                break
            query["continue"] = str(token)
        with self._lock:
            # drop what neither the list nor `merge` has, even with a higher version: etcd may have
            # been restored from a backup
            kept |= {key: one for key, one in self._merged.items() if one[0] > version}
            self._kept, self._version = kept, version

    def _watch(self, server: ApiServer, over: threading.Event) -> None:
        query = {
            "resourceVersion": str(self._version),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        for event in server.watch(self.path, query, _SILENCE_S):
            if over.is_set():
                return
            item: Any = event.get("object")
            kind = event.get("type")
            key, version = _key(item), _version(item)
            if not version or not isinstance(item, dict):
                raise ApiServerError(
                    f"{self.path}: a watch sends an object without a resourceVersion"
                )
            with self._lock:
                before = self._kept.get(key)
                if kind in ("ADDED", "MODIFIED"):
                    self._keep(self._kept, item)
                elif kind == "DELETED" and before is not None and before[0] <= version:
                    del self._kept[key]
                after = self._kept.get(key)
                self._version = max(self._version, version)
            # most events of pods only change their status
            if (before and before[1]) != (after and after[1]):
                self._changed()

    def _keep(self, kept: Cached, item: Mapping[str, Any]) -> None:
        key, version = _key(item), _version(item)
        if key in kept and kept[key][0] > version:
            return
        try:
            kept[key] = (version, self._parse(item))
        except ValueError as error:
            kept.pop(key, None)
            self._log(f"{self.path}: {error}")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._log(text)


def _key(item: object) -> Key:
    meta = _meta(item)
    return str(meta.get("namespace") or ""), str(meta.get("name") or "")


def _version(item: object) -> int:
    text = str(_meta(item).get("resourceVersion") or "0")
    return int(text) if text.isdecimal() and len(text) <= _LONGEST_VERSION else 0


def _meta(item: object) -> Mapping[str, Any]:
    meta = item.get("metadata") if isinstance(item, dict) else None
    if not isinstance(meta, dict):
        raise ApiServerError("the API server sends what is not an object of its API")
    return meta
