"""New connections at a rate, from one network namespace: ``load.py NETNS RATE SEED`` (NETNS "" is the host's).

The first line of stdin is the targets, as JSON: ``[kind, address, port, name, weight]`` each. Kinds:

- steady: the service must answer with its name within `PATIENCE_S`;
- churned: nobody, or the service of that name;
- denied: nobody.

To the first `KEPT` steady targets a connection is kept open, by which a byte goes and comes all the time. Then each line is a word: "go", "pause"
(answered once no new connection is open), "say" and "end". Each is answered by a line of JSON: what there was so far.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import NamedTuple

PATIENCE_S = 20.0
"""For who must answer: a SYN that is lost comes again after 1, 3, 7 and 15 s."""
BRIEF_S = 1.0
"""For who need not."""
SLOW_S = 0.9
"""A SYN, or an answer, has been lost and sent again; or the machine is that busy."""
NICE = -10
TICK_S = 0.005
KEPT = 4
TOLD = 3
RESET = struct.pack("ii", 1, 0)


class Target(NamedTuple):
    kind: str
    address: str
    port: int
    name: str
    weight: float


class Open(NamedTuple):
    sock: socket.socket
    target: Target
    began: float


class Load:
    def __init__(self, rate: float, seed: int, targets: list[Target]) -> None:
        self._rate = rate
        self._chance = random.Random(seed)
        self._targets = targets
        self._weights = [target.weight for target in targets]
        self._poll = select.epoll()
        self._poll.register(0, select.EPOLLIN)
        self._open: dict[int, Open] = {}
        self._patient: deque[Open] = deque()
        self._brief: deque[Open] = deque()
        self._kept: dict[int, tuple[Open, float]] = {}
        self.going = False
        self.answers = dict.fromkeys(("steady", "churned", "denied"), 0)
        self.attempts = dict(self.answers)
        self.failures: list[tuple[float, str]] = []
        self.failed = 0
        self.behind = 0
        self.slow = 0
        self.slowest = 0.0
        self.echoes = 0

    def keep(self) -> None:
        for target in [target for target in self._targets if target.kind == "steady"][:KEPT]:
            sock = socket.create_connection((target.address, target.port), PATIENCE_S)
            if sock.recv(100).decode().strip() != target.name:
                raise RuntimeError(f"{target}: another service answered")
            sock.setblocking(False)
            self._kept[sock.fileno()] = (Open(sock, target, 0.0), time.monotonic())
            self._poll.register(sock, select.EPOLLIN)

    def run(self) -> None:
        began, due, beat = time.monotonic(), 0, 0.0
        while True:
            now = time.monotonic()
            if self.going:
                late = int((now - began) * self._rate) - due
                if late > self._rate:  # over a second behind: that is not made up for
                    self.behind += late
                    due += late
                for _ in range(min(late, 64)):
                    due += 1
                    self._begin(now)
            for number, _ in self._poll.poll(TICK_S):
                if number == 0:
                    if not self._told(sys.stdin.readline().strip()):
                        return
                    began, due = time.monotonic(), 0
                elif number in self._kept:
                    self._echoed(number)
                elif number in self._open:
                    self._answered(self._open.pop(number))
            self._expire(time.monotonic())
            if now - beat > 0.2:
                beat = now
                self._beat(now)

    def _told(self, word: str) -> bool:
        self.going = word == "go" or (self.going and word == "say")
        if word == "pause":
            while self._open:
                for number, _ in self._poll.poll(0.1):
                    if number in self._open:
                        self._answered(self._open.pop(number))
                self._expire(time.monotonic())
            now = time.monotonic()  # nothing was heard of those that are kept
            self._kept = {number: (kept, now) for number, (kept, _) in self._kept.items()}
        if word:
            self.say()
        return word not in ("end", "")

    def say(self) -> None:
        """A line of JSON: what there was so far."""
        said = {
            name: getattr(self, name)
            for name in ("attempts", "answers", "failed", "behind", "slow", "slowest", "echoes")
        }
        print(json.dumps({**said, "failures": self.failures, "kept": len(self._kept)}), flush=True)

    def _begin(self, now: float) -> None:
        target = self._chance.choices(self._targets, self._weights)[0]
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # it is ended by a reset: no TIME_WAIT, so ports do not run out
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.attempts[target.kind] += 1
        begun = Open(sock, target, now)
        said = sock.connect_ex((target.address, target.port))
        if said not in (0, errno.EINPROGRESS):
            self._over(begun, os.strerror(said))
            return
        self._open[sock.fileno()] = begun
        (self._patient if target.kind == "steady" else self._brief).append(begun)
        self._poll.register(sock, select.EPOLLIN)

    def _answered(self, found: Open) -> None:
        try:
            said = found.sock.recv(100).decode(errors="replace").strip()
        except OSError as error:
            self._over(found, os.strerror(error.errno or 0))
            return
        if said == found.target.name and found.target.kind != "denied":
            self.answers[found.target.kind] += 1
            took = time.monotonic() - found.began
            if found.target.kind == "steady":
                self.slowest = max(self.slowest, took)
                self.slow += took > SLOW_S
            found.sock.close()
        elif said:
            self.answers[found.target.kind] += 1
            self._fail(found.target, f"{said} answered")
            found.sock.close()
        else:
            self._over(found, "closed without an answer")

    def _expire(self, now: float) -> None:
        for pending, patience in ((self._patient, PATIENCE_S), (self._brief, BRIEF_S)):
            while pending and (pending[0].sock.fileno() < 0 or now - pending[0].began > patience):
                found = pending.popleft()
                if found.sock.fileno() >= 0:
                    self._open.pop(found.sock.fileno())
                    self._over(found, f"no answer in {patience:g} s")

    def _over(self, found: Open, what: str) -> None:
        """Ended without an answer."""
        found.sock.close()
        if found.target.kind == "steady":
            self._fail(found.target, what)

    def _fail(self, target: Target, what: str) -> None:
        self.failed += 1
        if len(self.failures) < TOLD:
            at = f"[{target.address}]" if ":" in target.address else target.address
            self.failures.append(
                (time.time(), f"{target.kind} {target.name} at {at}:{target.port}: {what}")
            )

    def _beat(self, now: float) -> None:
        """Send a byte by each connection that is kept, whose last one has come back."""
        for number, (kept, since) in list(self._kept.items()):
            if now - since > PATIENCE_S:
                self._lose(number, f"open connection: nothing came back in {PATIENCE_S:g} s")
                continue
            try:
                kept.sock.send(b"x")
            except OSError as error:
                self._lose(number, f"open connection: {os.strerror(error.errno or 0)}")

    def _echoed(self, number: int) -> None:
        kept, _ = self._kept[number]
        try:
            data = kept.sock.recv(100)
        except OSError as error:
            self._lose(number, f"open connection: {os.strerror(error.errno or 0)}")
            return
        if not data:
            self._lose(number, "open connection: closed")
            return
        self.echoes += len(data)
        self._kept[number] = (kept, time.monotonic())

    def _lose(self, number: int, what: str) -> None:
        kept, _ = self._kept.pop(number)
        kept.sock.close()
        self._fail(kept.target, what)


def hurry(pid: int) -> None:
    """Let a process go before others: what is looked for is what niso does to connections, not what a busy machine does."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)


def main(netns: str, rate: str, seed: str) -> None:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("this sends traffic: only in a lab")
    if netns:
        there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        os.setns(there, os.CLONE_NEWNET)
        os.close(there)
    hurry(os.getpid())
    targets = [Target(*each) for each in json.loads(sys.stdin.readline())]
    load = Load(float(rate), int(seed), targets)
    load.keep()
    load.say()
    load.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
