"""Call containerd's CRI as the kubelet does: gRPC by curl, and just enough of protocol buffers.

Numbers of fields are those of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

import re
from typing import Any

from conftest import Lab

Fields = dict[int, Any]
_VARINT, _BYTES = 0, 2


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def encoded(fields: Fields) -> bytes:
    """A message: numbers, texts, messages, and lists of these by the number of their field."""
    out = b""
    for field, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                out += _varint(field << 3 | _VARINT) + _varint(each)
            else:
                data = encoded(each) if isinstance(each, dict) else each.encode()
                out += _varint(field << 3 | _BYTES) + _varint(len(data)) + data
    return out


def decoded(data: bytes) -> dict[int, list[Any]]:
    """The fields of a message: numbers and bytes."""
    found: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(data):
        tag = varint()
        assert tag & 7 in (_VARINT, _BYTES), f"wire type {tag & 7}"
        if tag & 7 == _VARINT:
            found.setdefault(tag >> 3, []).append(varint())
        else:
            length = varint()
            found.setdefault(tag >> 3, []).append(data[at : at + length])
            at += length
    return found


def pairs(given: dict[str, str]) -> list[Fields]:
    """A map of texts."""
    return [{1: key, 2: value} for key, value in given.items()]


class Refused(Exception):
    """The answer was an error of gRPC."""


class Cri:
    """A client in the lab."""

    def __init__(self, lab: Lab, socket: str) -> None:
        self.lab, self.socket = lab, socket

    def words(self, method: str) -> tuple[str, ...]:
        url = f"http://localhost/runtime.v1.RuntimeService/{method}"
        return (
            *("curl", "-sS", "--http2-prior-knowledge", "--unix-socket", self.socket, "-X", "POST"),
            *("-H", "Content-Type: application/grpc", "-H", "TE: trailers", "--max-time", "60"),
            *("--data-binary", "@-", "-D", "/dev/stderr", url),
        )

    def call(self, method: str, fields: Fields) -> dict[int, list[Any]]:
        """Return the fields of the answer. Raises Refused."""
        done = self.lab.run(*self.words(method), input=framed(fields), text=False, check=False)
        heads = done.stderr.decode()
        if not re.search(r"^grpc-status: 0\b", heads, re.MULTILINE):
            raise Refused(heads)
        return decoded(done.stdout[5:])

    def run(self, name: str, space: str = "shop", **more: Any) -> tuple[str, Fields]:
        """Run a pod's sandbox: ``ports`` [(host, inside)], ``annotations``; return its id and configuration."""
        config: Fields = {
            1: {1: name, 2: f"uid-{name}", 3: space},
            2: name,
            3: "/tmp/logs",
            5: [{2: inside, 3: host} for host, inside in more.get("ports", ())],
            7: pairs(more.get("annotations", {})),
            8: {},
        }
        sandbox: bytes = self.call("RunPodSandbox", {1: config})[1][0]
        return sandbox.decode(), config

    def start(self, sandbox: str, config: Fields, image: str, *command: str) -> str:
        """Start a container in a sandbox."""
        container = {1: {1: "main"}, 2: {1: image}, 3: list(command), 11: "main", 15: {}}
        made = self.call("CreateContainer", {1: sandbox, 2: container, 3: config})[1][0].decode()
        self.call("StartContainer", {1: made})
        return str(made)

    def address(self, sandbox: str) -> str:
        status = decoded(self.call("PodSandboxStatus", {1: sandbox})[1][0])
        return str(decoded(status[5][0])[1][0].decode())

    def end(self, sandbox: str) -> None:
        self.call("StopPodSandbox", {1: sandbox})
        self.call("RemovePodSandbox", {1: sandbox})


def framed(fields: Fields) -> bytes:
    """A message as gRPC sends it."""
    data = encoded(fields)
    return b"\0" + len(data).to_bytes(4, "big") + data
