"""Send requests to etcd through its JSON gateway (etcd.io/docs/v3.5/dev-guide/api_grpc_gateway).

Any member can answer. If a member does not answer, the request is sent to the next one. A request
that no member answers fails after about `ROUNDS` × `REQUEST_S` seconds. If the cluster has fewer
members, a request waits longer for each of them.

In JSON, fields that are false or 0 are left out, and 64-bit numbers are strings. When etcd has
users, the gateway accepts only client certificates without a common name.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
from collections.abc import Iterable, Iterator, Sequence

from niso.base.errors import Error
from niso.base.named_tuples import Any, NamedTuple
from niso.cluster.engine import (
    COMPACTED,
    PREFIX,
    Answer,
    Batch,
    Compare,
    Delete,
    KeyValue,
    NoAnswer,
    Put,
    Refused,
    Txn,
)

REQUEST_S = 2.0
ROUNDS = 3
LONGEST = 8 << 20
"""The maximum bytes of a line of a watch: etcd limits a request to 1.5 MB, sent as base64."""
_HINT = "running services continue; niso cluster status shows the members"
_UNAVAILABLE = (500, 502, 503, 504)
_HINTS = {
    "space exceeded": "etcd is full: etcdctl defrag, then etcdctl alarm disarm",
    "permission denied": "its user has to read and write all keys below the prefix",
    "corrupt": "a member of etcd has other data than the others: etcdctl alarm list names it",
}
_NO_LEASE = 5  # NOT_FOUND (google.rpc.Code)
_UNAUTHENTICATED = 16
_FILES = "cluster.toml names it"

_tokens: dict[tuple[str, str] | None, str] = {}
"""Maps (user, password) to an authentication token, for all clients of this process.

etcd takes 150 ms to check a password (bcrypt). A check for each thread would take too long.
"""
_PASSWORD_S = 10.0
"""The timeout of a password check in seconds. An earlier retry would start a second check."""


class Reach(NamedTuple):
    """The members of etcd and the paths of credentials for them."""

    members: tuple[str, ...]  # "198.51.100.1:2379", "[2001:db8::1]:2379"
    cacert: str = ""  # path of a PEM file, as the next two; "" for plain HTTP
    cert: str = ""
    key: str = ""
    user_file: str = ""  # a file with one line, NAME:PASSWORD, if etcd has users
    prefix: str = PREFIX
    own: bool = False  # whether niso runs etcd, so that its members may change

    def located(self, folder: str) -> Reach:
        """Return a copy in which relative paths are made absolute, below ``folder``."""
        chosen = (self.cacert, self.cert, self.key, self.user_file)
        cacert, cert, key, user = (os.path.join(folder, file) if file else "" for file in chosen)
        return self._replace(cacert=cacert, cert=cert, key=key, user_file=user)


class Etcd:
    """A client of etcd, for one thread at a time. Raises Error for an unusable credential file."""

    def __init__(self, reach: Reach, request_s: float = REQUEST_S, rounds: int = ROUNDS) -> None:
        self._members = list(reach.members)
        self._request_s = request_s
        self._wait_s = request_s * max(1.0, rounds / len(reach.members))
        self._rounds = rounds
        self._context = _context(reach) if reach.cacert else None
        self._user = _user(reach.user_file) if reach.user_file else None
        self.date = ""  # Date header of the last answer (RFC 9110, 6.6.1)
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Etcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
        """Return all keys with a prefix. If ``one``, ``prefix`` is the name of a single key. With
        ``stale``, the answer may be old: a member that is cut off from the others may answer.
        """
        body = _span(prefix, not one)
        if stale:
            body["serializable"] = True
        answer = self.call("/v3/kv/range", body, True)
        items = sorted(_item(item) for item in answer.get("kvs", ()))
        return Answer(_revision(answer), tuple(items))

    def keys(self, prefix: str) -> list[str]:
        """Return the names of the keys with a prefix, without their values."""
        answer = self.call("/v3/kv/range", {**_span(prefix, True), "keys_only": True}, True)
        return sorted(_text(item["key"]) for item in answer.get("kvs", ()))

    def mark(self, prefix: str) -> tuple[int, int, int, int]:
        """Return a fingerprint of the keys with a prefix.

        The fingerprint is etcd's revision, the modified revision and the lease of the key that was
        changed last (0 without keys), and the number of keys. While the last three values are
        equal, no key has changed: a changed key has a new revision, and a deletion changes the
        number of keys. If etcd was restored from a backup, revisions can repeat, but the lease then
        differs. A count_only request would ignore revisions (etcd 3.5.16).
        """
        order = {"limit": 1, "keys_only": True, "sort_order": "DESCEND", "sort_target": "MOD"}
        answer = self.call("/v3/kv/range", {**_span(prefix, True), **order}, True)
        last: dict[str, Any] = next(iter(answer.get("kvs", ())), {})
        newest, lease = (int(last.get(field, 0)) for field in ("mod_revision", "lease"))
        return _revision(answer), newest, lease, int(answer.get("count", 0))

    def commit(self, txn: Txn) -> int:
        """Carry out a transaction. Return etcd's revision, or 0 if a condition was not met.

        If NoAnswer is raised with ``unknown``, etcd may have carried out the transaction, or may
        still carry it out.
        """
        body = {
            "compare": [_compare(condition) for condition in txn.conditions],
            "success": [_change(change) for change in txn.changes],
        }
        answer = self.call("/v3/kv/txn", body)
        return _revision(answer) if answer.get("succeeded") else 0

    def grant(self, ttl_s: int) -> int:
        """Create a lease and return its id. It expires after ``ttl_s`` (at least 2) seconds."""
        return int(self.call("/v3/lease/grant", {"TTL": ttl_s}, True)["ID"])

    def renew_lease(self, lease: int) -> bool:
        """Renew a lease. Returns False if the lease no longer exists."""
        # the answer for an expired lease has no TTL
        answer = self.call("/v3/lease/keepalive", {"ID": str(lease)}, True, wait_s=self._request_s)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        """Revoke a lease, which deletes its keys. Does nothing if the lease has expired."""
        try:
            self.call("/v3/lease/revoke", {"ID": str(lease)}, True)
        except Refused as error:
            if error.code != _NO_LEASE:
                raise

    def watch(self, prefix: str, revision: int, silence_s: float) -> Iterator[Batch]:
        """Yield the changes of keys with a prefix, in batches, from the revision ``revision`` on.

        Raises Refused (`COMPACTED`) if etcd no longer has all changes from this revision on. Raises
        NoAnswer if nothing arrives for ``silence_s`` seconds, or if the member has no leader.
        """
        request = {**_span(prefix, True), "start_revision": revision, "progress_notify": True}
        connection, response = self._open("/v3/watch", {"create_request": request})
        try:
            if connection.sock is not None:
                connection.sock.settimeout(silence_s)
            while True:
                line = response.readline(LONGEST)
                if not line:
                    raise NoAnswer(f"the watch of {prefix} has ended", _HINT)
                batch = _batch(line)
                if batch is not None:
                    yield batch
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"the watch of {prefix} has ended: {error}", _HINT) from error
        finally:
            connection.close()
            self._next()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Call a streaming API of etcd, and yield the JSON of each answer. Raises NoAnswer."""
        connection, response = self._open(path, body)
        try:
            while line := response.readline(LONGEST):
                answer = _document(line)
                if "error" in answer:
                    raise NoAnswer(f"{path}: {_error(line)[1]}", _HINT)
                yield answer.get("result", {})
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"{path}: {error}", _HINT) from error
        finally:
            connection.close()

    def call(
        self, path: str, body: dict[str, Any], repeatable: bool = False, wait_s: float | None = None
    ) -> dict[str, Any]:
        """Send a request to the members in turn until one answers. Return the answer's JSON.

        A request that is not ``repeatable`` is sent again only if no member can have received it.
        ``wait_s`` is the timeout in seconds for each member. Raises NoAnswer and Refused.
        """
        problems: dict[str, None] = {}  # an ordered set
        tries, renewed = self._rounds * len(self._members), False
        while tries > 0:
            tries, sent = tries - 1, False
            try:
                connection = self._connected()
                headers = self._headers()
                sent = True
                _wait(connection, wait_s or self._wait_s)
                connection.request("POST", path, json.dumps(body), headers)
                response = connection.getresponse()
                status, text = response.status, response.read()
                self.date = response.getheader("Date", "")
                if status == 200:
                    return _document(text)
                problems[_error(text)[1]] = None
            except (OSError, http.client.HTTPException, ValueError) as error:
                status, problems[_problem(error)] = 0, None
                self.close()
            if status and status not in _UNAVAILABLE:
                code, reason = _error(text)
                if code == _UNAUTHENTICATED and self._user and not renewed:
                    _tokens.pop(self._user, None)  # tokens expire
                    tries, renewed = tries + 1, True
                    continue
                hint = next((hint for part, hint in _HINTS.items() if part in reason), _HINT)
                raise Refused(f"etcd refuses the request: {reason}", hint, code)
            if sent and not repeatable:
                self._next()
                raise NoAnswer(self._silence(problems), _HINT, unknown=True)
            self._next()
        raise NoAnswer(self._silence(problems), _HINT)

    def _headers(self) -> dict[str, str]:
        headers = {"Host": "niso"}
        token = _tokens.get(self._user)
        if self._user and not token:
            connection = self._connected()
            _wait(connection, max(self._wait_s, _PASSWORD_S))
            body = json.dumps(dict(zip(("name", "password"), self._user, strict=True)))
            connection.request("POST", "/v3/auth/authenticate", body, headers)
            response = connection.getresponse()
            text = response.read()
            if response.status in _UNAVAILABLE:
                raise ValueError(_error(text)[1])
            if response.status != 200:
                code, reason = _error(text)
                hint = "the file of --user, or what cluster.toml names as user, has its password"
                raise Refused(f"etcd refuses user {self._user[0]}: {reason}", hint, code)
            token = _tokens[self._user] = str(_document(text)["token"])
        return headers | ({"Authorization": token} if token else {})

    def _open(
        self, path: str, body: dict[str, Any]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a streaming request to the members in turn until one answers. Return (connection,
        response). Raises NoAnswer.
        """
        problem = ""
        for _ in range(len(self._members)):
            self.close()  # a stream needs a connection of its own
            try:
                connection = self._connected()
                # a member that is cut off from the others then ends the stream: else it would send
                # no events, but report progress
                headers = self._headers() | {"Grpc-Metadata-hasleader": "true"}
                self._connection = None
                _wait(connection, self._wait_s)
                connection.request("POST", path, json.dumps(body), headers)
                response = connection.getresponse()
                if response.status == 200:
                    return connection, response
                problem = _error(response.read(LONGEST))[1]
                connection.close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = _problem(error)
            self._next()
        raise NoAnswer(self._silence([problem]), _HINT)

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, _, port = self._members[0].rpartition(":")
            place = (host.strip("[]"), int(port))
            if self._context is None:
                connection = http.client.HTTPConnection(*place, timeout=self._wait_s)
            else:
                connection = http.client.HTTPSConnection(
                    *place, timeout=self._wait_s, context=self._context
                )
            connection.connect()
            self._connection = connection
        return self._connection

    def _next(self) -> None:
        self.close()
        self._members.append(self._members.pop(0))

    def _silence(self, problems: Iterable[str]) -> str:
        members = ", ".join(sorted(self._members))
        return f"the cluster does not answer ({members}): {'; '.join(problems)}"


def _wait(connection: http.client.HTTPConnection, seconds: float) -> None:
    if connection.sock is not None:
        connection.sock.settimeout(seconds)


def _context(reach: Reach) -> ssl.SSLContext:
    for path in (reach.cacert, reach.cert, reach.key):
        try:
            with open(path or reach.cacert, "rb"):
                pass
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise Error(f"cannot be read: {reason}", _FILES, file=path) from None
    try:
        context = ssl.create_default_context(cafile=reach.cacert)
        if reach.cert:
            context.load_cert_chain(reach.cert, reach.key)
    except ssl.SSLError as error:
        reason = f"not a certificate and its key, or its authority: {error.reason or error}"
        raise Error(reason, _FILES, file=reach.cert or reach.cacert) from None
    return context


def _user(path: str) -> tuple[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            name, separator, password = file.readline().rstrip("\n").partition(":")
    except (OSError, ValueError) as error:
        raise Error(f"cannot be read: {error}", _FILES, file=path) from None
    if not name or not separator or not password:
        raise Error("has no line NAME:PASSWORD", _FILES, file=path)
    return name, password


def _document(text: bytes) -> dict[str, Any]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("not an answer of etcd")
    return document


def _error(text: bytes) -> tuple[int, str]:
    """Return (google.rpc.Code, reason) of an error response, or code 0 for invalid JSON."""
    try:
        document = _document(text)
        inner = document.get("error", document)
        inner = inner if isinstance(inner, dict) else document
        return int(inner.get("code", 0)), str(inner.get("message") or inner.get("error"))
    except (ValueError, TypeError):
        return 0, "an answer that is not etcd's"


def _problem(error: Exception) -> str:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    if isinstance(error, ssl.SSLError):
        reason = (getattr(error, "reason", "") or reason).replace("_", " ")
    if isinstance(error, (ssl.SSLError, ConnectionResetError, BrokenPipeError)):
        # with TLS 1.3 a refused certificate shows only when the connection is used
        return f"a certificate was refused, or the connection closed ({reason.lower()})"
    reason = reason.partition(": ")[2] if reason.startswith("_ssl.c:") else reason
    return reason[:1].lower() + reason[1:]


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(packed: str) -> str:
    return base64.b64decode(packed).decode(errors="replace")


def _span(key: str, prefix: bool) -> dict[str, Any]:
    end = {"range_end": _packed(key[:-1] + chr(ord(key[-1]) + 1))} if prefix else {}
    return {"key": _packed(key), **end}


def _compare(condition: Compare) -> dict[str, Any]:
    target = {"target": "CREATE", "create_revision": 0}
    if condition.modified:
        target = {"target": "MOD", "mod_revision": condition.modified}
    return {**_span(condition.key, condition.prefix), **target, "result": "EQUAL"}


def _change(change: Put | Delete) -> dict[str, Any]:
    if isinstance(change, Delete):
        return {"request_delete_range": _span(change.key, change.prefix)}
    put = {"key": _packed(change.key), "value": _packed(change.value), "lease": str(change.lease)}
    return {"request_put": put}


def _item(kv: dict[str, Any]) -> KeyValue:
    lease = int(kv.get("lease", 0))
    return KeyValue(_text(kv["key"]), _text(kv.get("value", "")), int(kv["mod_revision"]), lease)


def _revision(answer: dict[str, Any]) -> int:
    return int(answer.get("header", {}).get("revision", 0))


def _batch(line: bytes) -> Batch | None:
    """Parse a line of a watch to (revision, events). Raises Refused (`COMPACTED`) and NoAnswer.
    Returns None for the first line, which only confirms the watch.
    """
    document = _document(line)
    if "error" in document:
        raise NoAnswer(f"the watch has ended: {_error(line)[1]}", _HINT)
    result = document.get("result", {})
    if "compact_revision" in result:  # etcd would keep the stream open
        raise Refused("etcd no longer has all changes of the watch", code=COMPACTED)
    if result.get("canceled"):
        raise NoAnswer(f"the watch has ended: {result.get('cancel_reason', '')}", _HINT)
    events: Sequence[dict[str, Any]] = result.get("events", ())
    if not events and result.get("created"):
        return None
    return (
        _revision(result),
        tuple(
            (key, None if e.get("type") == "DELETE" else _item(e["kv"]), modified)
            for e in events
            for key, modified in ((_text(e["kv"]["key"]), int(e["kv"]["mod_revision"])),)
        ),
    )
