"""Kubernetes' API server, as far as niso asks it: lists, watches and their ends, over HTTP on loopback.

`FakeApi.put` and `FakeApi.delete` change objects, as do PUT and DELETE requests. Run as a program (``PORT``) it serves a lab.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
BOOKMARK_S = 0.2


def kind_of(path: str) -> tuple[str, str, str]:
    """(kind, namespace, name) of a path like /api/v1/namespaces/shop/pods/web; "" for all."""
    words = path.split("/")
    words = words[3:] if words[1] == "api" else words[4:]
    if words[0] == "namespaces" and len(words) > 2:
        return words[2], words[1], words[3] if len(words) > 3 else ""
    return words[0], "", words[1] if len(words) > 1 else ""


class FakeApi:
    """The objects, and what has happened to them since the versions that are still remembered."""

    def __init__(self, port: int = 0) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.events: list[tuple[int, str, Json]] = []
        self.version = 100
        self.forgotten = 0  # a watch from here or before is refused
        self.refuses = 0  # answer everything with this status
        self.says: list[bytes] = []  # bodies that answer the next requests instead, with 200
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self.cut = 0  # grows when all watches are to end
        self.closed = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._get(self)

            def do_PUT(self) -> None:
                kind, space, name = kind_of(self.path)
                data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                data.setdefault("metadata", {}).update(
                    {"name": name} | ({"namespace": space} if space else {})
                )
                outer.put(kind, data)
                answer(self, 200, {})

            def do_DELETE(self) -> None:
                outer.delete(*kind_of(self.path))
                answer(self, 200, {})

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.closed = True
        self.end_watches()
        self.server.shutdown()
        self.server.server_close()

    def put(self, kind: str, data: Json) -> None:
        meta = data["metadata"]
        key = (kind, meta.get("namespace", ""), meta["name"])
        with self.changed:
            self.version += 1
            known = "MODIFIED" if key in self.objects else "ADDED"
            meta["resourceVersion"] = str(self.version)
            former = self.objects.get(key, {"metadata": {"uid": f"uid-{self.version}"}})
            meta.setdefault("uid", former["metadata"]["uid"])
            self.objects[key] = json.loads(json.dumps(data))
            self.events.append((self.version, known, self.objects[key] | {"_kind": kind}))
            self.changed.notify_all()

    def delete(self, kind: str, space: str, name: str) -> None:
        with self.changed:
            self.version += 1
            gone = self.objects.pop((kind, space, name))
            gone = gone | {"metadata": gone["metadata"] | {"resourceVersion": str(self.version)}}
            self.events.append((self.version, "DELETED", gone | {"_kind": kind}))
            self.changed.notify_all()

    def forget(self) -> None:
        """Forget what has happened, as the server does after some minutes, and end all watches."""
        with self.changed:
            self.version += 1
            self.forgotten = self.version
            self.events.clear()
            self.cut += 1
            self.changed.notify_all()

    def end_watches(self) -> None:
        with self.changed:
            self.cut += 1
            self.changed.notify_all()

    def _get(self, to: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(to.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.requests.append(to.path)
        cut = self.cut  # before it is asked whether to refuse: a watch that is let in then ends
        if self.closed:
            to.close_connection = True
            return None
        if self.refuses:
            return answer(to, self.refuses, {"kind": "Status", "message": "no"})
        if self.says:
            return answer(to, 200, self.says.pop(0))
        kind, space, name = kind_of(parts.path)
        if query.get("watch"):
            return self._watch(to, kind, int(query["resourceVersion"]), cut)
        wanted = query.get("fieldSelector", "").removeprefix("metadata.name=") or name
        with self.changed:
            items = [
                each
                for (a, b, c), each in sorted(self.objects.items())
                if a == kind and space in ("", b) and wanted in ("", c)
            ]
            version = self.version
        start = int(query.get("continue", 0))
        limit = int(query.get("limit", 0)) or len(items) or 1
        meta = {"resourceVersion": str(version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        return answer(to, 200, {"metadata": meta, "items": items[start : start + limit]})

    def _watch(
        self, to: http.server.BaseHTTPRequestHandler, kind: str, version: int, cut: int
    ) -> None:
        to.send_response(200)
        to.send_header("Transfer-Encoding", "chunked")
        to.end_headers()

        def send(data: Json) -> None:
            line = json.dumps(data).encode() + b"\n"
            to.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

        with contextlib.suppress(OSError):
            if version < self.forgotten:
                send({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "old"}})
            else:
                while self.cut == cut:
                    with self.changed:
                        if self.cut == cut and self.version <= version:
                            self.changed.wait(BOOKMARK_S)
                        if self.cut != cut:
                            break
                        new = [e for e in self.events if e[0] > version]
                        version = self.version
                    for _, what, data in new:
                        if data["_kind"] == kind:
                            send({"type": what, "object": data})
                    mark = {"metadata": {"resourceVersion": str(version)}}
                    send({"type": "BOOKMARK", "object": mark})
            to.wfile.write(b"0\r\n\r\n")


def answer(to: http.server.BaseHTTPRequestHandler, status: int, data: Json | bytes) -> None:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    to.send_response(status)
    to.send_header("Content-Length", str(len(text)))
    to.end_headers()
    to.wfile.write(text)


if __name__ == "__main__":
    FakeApi(int(sys.argv[1]))
    threading.Event().wait()
