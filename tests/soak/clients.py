"""Define the clients of the soak and their targets."""

from __future__ import annotations

import json
import pathlib
import select
import subprocess
import sys
from typing import Any

from churn import churned, host_port

LOAD = pathlib.Path(__file__).with_name("load.py")
HOST, HOST6 = "192.0.2.1", "2001:db8::1"
ANSWER_S = 60.0
SHARES = {"client": 0.6, "": 0.1, "niso-st0": 0.12, "niso-st3": 0.1, "niso-st5": 0.08}
"""Of the connections, by the network namespace that they are made in; "" is the host's."""


def targets(at: dict[str, list[str]], count: int) -> dict[str, list[tuple[Any, ...]]]:
    """What `load.py` is told in each namespace. ``at`` are the steady services' addresses, IPv4 first, ``count`` how many are churned."""
    return {
        "client": [
            ("steady", HOST, 9000, "st0", 20),
            ("steady", HOST, 9001, "st1", 10),
            ("steady", HOST6, 9011, "st1", 10),
            ("steady", HOST, 9105, "st5", 20),
            ("steady", HOST, 9006, "st6", 20),
            ("denied", HOST, 9002, "st2", 1),
            ("denied", at["st0"][0], 8000, "st0", 1),
            *(
                ("churned", HOST, host_port(number) + more, churned(number), 20 / count * weight)
                for number in range(count)
                for more, weight in ((0, 0.8), (2, 0.1), (8, 0.1))
            ),
        ],
        "": [
            ("steady", "127.0.0.1", 9000, "st0", 30),
            ("steady", HOST, 9001, "st1", 30),
            ("steady", at["st4"][0], 8000, "st4", 30),
            ("steady", "127.0.0.1", 9101, "st5", 10),
        ],
        "niso-st0": [
            ("steady", at["st2"][0], 8000, "st2", 30),
            ("steady", HOST, 9002, "st2", 20),
            ("steady", HOST, 9000, "st0", 20),
            ("steady", HOST, 9001, "st1", 20),
            ("denied", at["st3"][0], 8000, "st3", 1),
        ],
        "niso-st3": [
            ("steady", at["st4"][0], 8000, "st4", 80),
            ("steady", HOST, 9000, "st0", 20),
            ("denied", HOST, 9002, "st2", 1),
        ],
        "niso-st5": [
            ("steady", HOST, 9001, "st1", 40),
            ("steady", at["st1"][0], 8000, "st1", 20),
            ("steady", at["st6"][1], 8000, "st6", 20),
            ("denied", at["st2"][0], 8000, "st2", 2),
            ("denied", at["st0"][0], 8000, "st0", 2),
            ("denied", HOST, 9000, "st0", 2),
        ],
    }


class Generator:
    """A `load.py` in a network namespace."""

    def __init__(self, netns: str, rate: float, seed: int, targets: list[tuple[Any, ...]]) -> None:
        self.netns = netns
        argv = [sys.executable, "-ISB", str(LOAD), netns, str(rate), str(seed)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.said: dict[str, Any] = {}
        self.tell(json.dumps(targets))

    @property
    def whose(self) -> str:
        return self.netns or "the host"

    def tell(self, line: str) -> None:
        """Say a line, and wait for the answer, which is in ``said`` then."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{line}\n")
        if not select.select([self._process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"the load of {self.whose} does not answer")
        self.said = json.loads(self._process.stdout.readline() or "null")
        if self.said is None:
            raise RuntimeError(f"the load of {self.whose} has ended")

    def end(self) -> None:
        self.tell("end")
        self._process.wait(ANSWER_S)
