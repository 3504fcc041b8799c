"""Services that identify themselves on TCP and UDP, and clients that run while ports change.

A talker keeps one socket, and so one source port, as a client does whose flow must follow a port. All datagrams are numbered,
so that what was sent after a command has returned can be told from what was on its way.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from typing import Any

from conftest import Lab, Process
from samples import SLOW
from services import answer, on, package, send
from wire import Wire

SERVER = """\
import selectors, socket, sys
name, ports = sys.argv[1], [int(port) for port in sys.argv[2:]]
selector = selectors.DefaultSelector()
def listen(port):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        server = socket.socket(socket.AF_INET, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        if kind == socket.SOCK_STREAM:
            server.listen(4096)
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ, accept if kind == socket.SOCK_STREAM else datagram)
def datagram(server):
    data, peer = server.recvfrom(2048)
    print("got", data.decode(), "from", peer[0], flush=True)
    server.sendto(f"{name} {data.decode()} {peer[0]} {server.getsockname()[1]}".encode(), peer)
def accept(server):
    for _ in range(64):
        try:
            connection, peer = server.accept()
        except OSError:
            return
        connection.setblocking(False)
        connection.send(f"{name} {server.getsockname()[1]} {peer[0]}\\n".encode())
        selector.register(connection, selectors.EVENT_READ, stream)
def stream(connection):
    try:
        data = connection.recv(65536)
        if data:
            connection.send(data)
            return
    except OSError:
        pass
    selector.unregister(connection)
    connection.close()
for port in ports:
    listen(port)
while True:
    for key, _ in selector.select():
        key.data(key.fileobj)
"""
"""TCP: ``NAME PORT PEER``, then gives back what it is sent. UDP: ``NAME DATA PEER PORT``, and writes the data to its log."""


def speaker(lab: Lab, name: str, *inner: int, network: str = "niso-default", **keys: Any) -> str:
    """A package whose service speaks as `SERVER` on the ports ``inner`` (80 without); ``keys`` are of [network]. It restarts soon."""
    ports = [str(port) for port in inner or (80,)]
    command = ("/usr/bin/python3", "-ISu", "/app/speak.py", name, *ports)
    soon = {"restart_delay": "100ms"}
    return package(
        lab, name, *command, files={"speak.py": SERVER}, network=on(network, **keys), service=soon
    )


def received(lab: Lab, name: str, inner: str, port: int = 80) -> list[tuple[str, str]]:
    """(data, peer) of every datagram that a speaker at the address ``inner`` has got in this life, oldest first.

    A last one goes straight to it, so that what came before is in the log when that is.
    """
    mark = f"mark-{time.monotonic_ns()}"
    send(lab, None, inner, port, mark)

    def log() -> str:
        text = str(lab.niso("logs", name).stdout)
        return text if mark in text else ""

    lines = lab.wait_for(log, 10, f"{mark} in the log of {name}").splitlines()
    found = [
        match.groups() for line in lines if (match := re.fullmatch(r"got (\S+) from (\S+)", line))
    ]
    return [(data, peer) for data, peer in found if not data.startswith("mark-")]


class Talker:
    """One UDP socket that sends ``PREFIX-NUMBER`` to one place; what it sent, and who answered to what."""

    def __init__(self, name: str, made: socket.socket, to: tuple[str, int]) -> None:
        self.name, self.socket = name, made
        self.sent = 0
        self.answers: dict[int, tuple[str, str]] = {}  # number: (service, the address that it saw)
        self.port = 0  # of the service, by its last answer
        made.connect(to)

    def send(self) -> None:
        self.sent += 1
        with contextlib.suppress(OSError):  # refused the one before, or no way to send for a moment
            self.socket.send(f"{self.name}-{self.sent}".encode())

    def hear(self) -> None:
        while True:
            try:
                service, data, peer, port = self.socket.recv(2048).decode().split()
            except ConnectionRefusedError:
                continue
            except BlockingIOError:
                return
            self.port = int(port)
            self.answers[int(data.rpartition("-")[2])] = (service, peer)

    def after(self, number: int) -> dict[int, str]:
        """Who answered to each datagram from ``number`` on; "" where nobody did yet."""
        return {each: self.answers.get(each, ("", ""))[0] for each in range(number, self.sent + 1)}


class Talkers:
    """``with Talkers(wire) as talkers``: all of them send every 50 ms in a thread of its own."""

    INTERVAL_SECONDS = 0.05

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.all: list[Talker] = []
        self._end = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Talkers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def add(self, name: str, netns: str | None, address: str, port: int) -> Talker:
        made = Talker(
            name, self._wire.socket(netns, socket.AF_INET, socket.SOCK_DGRAM), (address, port)
        )
        with self._busy:
            self.all.append(made)
        return made

    def _run(self) -> None:
        while not self._end.wait(self.INTERVAL_SECONDS):
            with self._busy:
                for each in self.all:
                    each.hear()
                    each.send()

    def now(self) -> dict[Talker, int]:
        """The number of each one's next datagram: all that is sent from now on has it, or a greater one."""
        with self._busy:
            return {each: each.sent + 1 for each in self.all}

    def say(self, lab: Lab, since: dict[Talker, int], service: str, count: int = 4) -> None:
        """Every talker's datagrams since then are answered by that service, each of them; by nobody where it is ""."""
        last = {each: number + count for each, number in since.items()}
        lab.wait_for(
            lambda: all(each.sent > last[each] + 2 for each in since), 20, "the talkers have sent"
        )

        def wrong() -> list[str]:
            with self._busy:
                for each in since:
                    each.hear()
                return [
                    f"{each.name}: datagram {number} was answered by {who or 'nobody'}, not by {service or 'nobody'}"
                    for each, first in since.items()
                    for number, who in each.after(first).items()
                    if number <= last[each] and who != service
                ]

        deadline = time.monotonic() + 30  # for an answer that is still on its way
        while (found := wrong()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not found, "\n".join(found)


class Conversation:
    """A TCP connection to a speaker that stays open."""

    def __init__(self, wire: Wire, netns: str | None, address: str, port: int) -> None:
        self.way = f"{netns or 'host'} to {address}:{port}"
        self._socket = wire.socket(netns, socket.AF_INET, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect((address, port))
        self._file = self._socket.makefile("rw")
        self.service = self._file.readline().split()[0]

    def goes_on(self, word: str) -> bool:
        """Whether what is said still comes back."""
        try:
            self._file.write(f"{word}\n")
            self._file.flush()
            return self._file.readline() == f"{word}\n"
        except OSError:
            return False

    def has_ended(self) -> bool:
        """Whether nothing comes back any more, within a second."""
        self._socket.settimeout(1)
        return not self.goes_on("still there")


LOAD = r"""
import errno, json, selectors, socket, sys, time
address, port, rate, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), 12
selector = selectors.DefaultSelector()
selector.register(0, selectors.EVENT_READ)
began, done, open_ones, number, ending = time.monotonic(), [], {}, 0, None
def finish(one, how):
    started = open_ones.pop(one)
    done.append((started, time.monotonic() - started, how))
    selector.unregister(one)
    one.close()
print("ready", flush=True)
while ending is None or (open_ones and time.monotonic() < ending + patience):
    now = time.monotonic()
    while ending is None and number < (now - began) * rate and number < (now - began) * rate + 50:
        number += 1
        one = socket.socket()
        one.setblocking(False)
        open_ones[one] = time.monotonic()
        error = one.connect_ex((address, port))
        selector.register(one, selectors.EVENT_READ)
        if error not in (0, errno.EINPROGRESS):
            finish(one, errno.errorcode[error])
    for key, _ in selector.select(0.0005):
        if key.fileobj == 0:
            selector.unregister(0)
            ending = time.monotonic()
            continue
        try:
            text = key.fileobj.recv(100).decode()
            finish(key.fileobj, text.split()[0] if text else "closed without an answer")
        except BlockingIOError:
            pass
        except OSError as error:
            finish(key.fileobj, errno.errorcode[error.errno])
for one in list(open_ones):
    finish(one, "no answer")
print(json.dumps(done))
"""


class Load:
    """New TCP connections from a namespace, so many a second, each of which waits for a speaker's first word.

    A slow machine gets fewer (`SLOW`)."""

    def __init__(self, lab: Lab, netns: str, address: str, port: int, rate: int) -> None:
        self._process: Process = lab.popen(
            "python3", "-ISc", LOAD, address, str(port), str(rate / SLOW), netns=netns, stdin=-1
        )
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"

    def end(self) -> list[tuple[float, float, str]]:
        """(when it began by the monotonic clock, seconds it took, the service that answered or what went wrong)."""
        out, err = self._process.communicate("end\n", 40)
        assert self._process.returncode == 0, err
        return [(began, took, how) for began, took, how in json.loads(out)]


def start(lab: Lab, *folders: str) -> None:
    """Activate speakers, and wait until each listens."""
    lab.niso("activate", *folders)
    for name in (folder.rpartition("/")[2] for folder in folders):
        inner = json.loads(lab.niso("inspect", name).stdout)["endpoints"][0]["address"][0]
        ports = json.loads(
            lab.path(f"/tmp/packages/{name}/manifest.toml")
            .read_text()
            .split("args = ")[1]
            .splitlines()[0]
        )
        answer(lab, inner, int(ports[3]))
