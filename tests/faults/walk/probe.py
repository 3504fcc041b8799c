"""Connections of a walk: many at once, from any namespace of the lab, by sockets that the test holds."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time

from wire import Wire

from walk.reach import Flow

AGAIN_S = 1.5
"""After so long without an answer that must come, another socket tries."""
SILENCE_S = 0.15
"""How long one that must not come is waited for, at least."""


class Probe:
    """A connection that is being tried; ``said`` is who answered."""

    def __init__(self, wire: Wire, flow: Flow) -> None:
        self.flow = flow
        self.said = ""
        self._wire = wire
        self._begin()

    def _begin(self) -> None:
        self.began = time.monotonic()
        is_tcp = self.flow.proto == "tcp"
        netns = {"host": None, "client": "client"}.get(self.flow.source, f"niso-{self.flow.source}")
        kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
        self.socket = self._wire.socket(
            netns, socket.AF_INET6 if self.flow.six else socket.AF_INET, kind, keep=False
        )
        with contextlib.suppress(OSError):
            self.socket.connect((self.flow.address, self.flow.port))
            if not is_tcp:
                self.socket.send(b"hello")

    def again(self) -> None:
        """Try again from a new socket."""
        self.socket.close()
        self._begin()

    def hear(self) -> bool:
        """Take what has come; return whether that ended it."""
        try:
            data = self.socket.recv(2048)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.said = data.decode().split()[0] if data else ""
        return True


def connect(wire: Wire, flows: list[Flow], patience_s: float) -> list[str]:
    """Try all connections at once; return those that did not end as wanted, a line each.

    An answer that must come may take ``patience_s``.
    """
    probes = [Probe(wire, flow) for flow in flows]
    began = time.monotonic()
    try:
        left = [probe for probe in probes if probe.flow.wanted]
        while left and time.monotonic() - began < patience_s:
            ready = set(select.select([probe.socket for probe in left], [], [], 0.05)[0])
            for probe in left:
                refused = probe.socket in ready and probe.hear() and not probe.said
                # who must answer may be starting, and refuses until it listens
                if refused or (not probe.said and time.monotonic() - probe.began > AGAIN_S):
                    time.sleep(0.005)
                    probe.again()
            left = [probe for probe in left if not probe.said]
        time.sleep(max(0.0, SILENCE_S - (time.monotonic() - began)))
        for probe in probes:
            if not probe.said:
                probe.hear()
        return [
            f"{probe.flow.text}: answered by {probe.said or 'nobody'}, "
            f"wanted {probe.flow.wanted or 'nobody'}"
            for probe in probes
            if probe.said != probe.flow.wanted
        ]
    finally:
        for probe in probes:
            probe.socket.close()


def hosts_file(wire: Wire, netns: str, port: int, patience_s: float) -> str:
    """Return /etc/hosts as the service that listens on ``port`` in a namespace sees it."""
    deadline = time.monotonic() + patience_s
    while True:
        with wire.socket(netns, socket.AF_INET, socket.SOCK_STREAM, keep=False) as made:
            made.settimeout(2)
            try:
                made.connect(("127.0.0.1", port))
                with made.makefile("rw") as file:
                    file.readline()
                    file.write("hosts\n")
                    file.flush()
                    return str(json.loads(file.readline()))
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    return ""
                time.sleep(0.05)
