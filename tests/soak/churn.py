"""Churn the services of the soak: niso commands, several at a time, chosen by a seed.

Each worker has services of its own, so each command has to succeed.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import threading
import time
from typing import Any, NamedTuple

PACKAGES = "/tmp/packages"
ANSWER = pathlib.Path(__file__).with_name("answer.py")
SHARED = ("shared", "six", "quiet")
"""Networks that steady services are on: with published ports and policies; with IPv6 too; with neither, but now and then a port."""
PASSING = 5
"""So many more networks come with their first service and go with the last."""
FIRST_PORT, PORTS_EACH = 10_000, 10
LISTENED = (8000, 8001, 8002)
SERVER = "/app/answer.py"
COMMAND_S = 300.0
"""One that takes longer hangs: on a busy machine 200 services at once take a while."""
STEADY: dict[str, dict[str, Any]] = {
    "st0": {"network": "shared", "ports": ["9000:8000"]},
    "st1": {"network": "six", "ports": ["9001:8000", "[2001:db8::1]:9011:8001"]},
    "st2": {"network": "shared", "ports": ["9002:8000"], "policy": {"allow_from": ["st0"]}},
    "st3": {"network": "quiet"},
    "st4": {"network": "quiet"},
    "st6": {"network": "six", "ports": ["9006:8000"]},
    "st5": {
        "networks": ["shared", "six"],
        "ports": ["9100-9105:9100-9105"],
        "policy": {"egress": {"deny": ["st0"]}},
    },
}


class Ran(NamedTuple):
    argv: tuple[str, ...]
    began: float
    ended: float
    status: int
    said: str


def niso(*argv: str) -> Ran:
    began = time.time()
    try:
        done = subprocess.run(
            ["niso", *argv],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Ran(argv, began, time.time(), -1, f"has not ended in {COMMAND_S:g} s")
    return Ran(argv, began, time.time(), done.returncode, (done.stdout + done.stderr).strip())


def package(name: str, network: dict[str, Any]) -> str:
    """Write a package, or its manifest anew; gives its folder."""
    folder = f"{PACKAGES}/{name}"
    ports = [*LISTENED, *(range(9100, 9106) if name == "st5" else ())]
    lines = [
        "[package]",
        f'name = "{name}"',
        'version = "1"',
        "[binary]",
        'entrypoint = "/usr/bin/python3"',
    ]
    lines += [f"args = {json.dumps(['-ISB', SERVER, name, *map(str, ports)])}", "[network]"]
    policy = network.get("policy", {})
    lines += [f"{key} = {json.dumps(value)}" for key, value in network.items() if key != "policy"]
    lines += [
        "[network.policy]",
        *(f"{key} = {json.dumps(value)}" for key, value in policy.items() if key != "egress"),
    ]
    lines += [
        "[network.policy.egress]",
        *(f"{key} = {json.dumps(value)}" for key, value in policy.get("egress", {}).items()),
    ]
    if name in STEADY:
        lines += ["[healthcheck]", f"tcp = {LISTENED[0]}"]  # it is asked once it listens
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(f"{folder}/answer.py"):
        pathlib.Path(folder, "answer.py").write_text(
            ANSWER.read_text(encoding="utf-8"), encoding="utf-8"
        )
    pathlib.Path(folder, "manifest.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def churned(number: int) -> str:
    return f"ch{number:03}"


def host_port(number: int) -> int:
    """The first of the host ports that are this service's alone: who answers there must be it."""
    return FIRST_PORT + number * PORTS_EACH


def base(number: int) -> dict[str, Any]:
    """How a churned service is where the world is counted."""
    network: dict[str, Any] = {
        "network": [*SHARED[:2], *(f"pass{n}" for n in range(PASSING))][number % (2 + PASSING)]
    }
    network["ports"] = [f"{host_port(number)}:8000"]
    if number % 4 == 0:
        network["policy"] = {
            "allow_from": ["st0", "0.0.0.0/0:8000"],
            "deny_from": [churned(number + 1)],
        }
    return network


class Worker:
    """Does one thing after another to its own services."""

    def __init__(self, name: str, seed: str, services: list[int], count: int) -> None:
        self._name = name
        self._chance = random.Random(seed)
        self._services = services
        self._count = count
        self._active = set(services)
        self._forwards: dict[int, list[str]] = {}
        self.ran: list[Ran] = []

    def churn(self, until: threading.Event) -> None:
        """To be called when all are active; whoever calls activates all of them afterwards, so that they are as `base` says."""
        while not until.is_set():
            number = self._chance.choice(self._services)
            deeds = [
                self._deactivate,
                self._restart,
                self._change,
                self._forward,
                self._network,
                self._remove,
            ]
            deed = (
                self._chance.choices(deeds, (3, 2, 6, 3, 1, 1))[0]
                if number in self._active
                else self._activate
            )
            deed(number)
        for number, forwards in self._forwards.items():
            for forward in forwards:
                self._do("port-forward", churned(number), forward, "--remove")
        self._forwards = {}
        self._active = set(self._services)  # as they are about to be

    def _do(self, *argv: str) -> None:
        self.ran.append(niso(*argv))

    def _activate(self, number: int) -> None:
        self._do("activate", package(churned(number), self._drawn(number)))
        self._active.add(number)

    _change = _activate

    def _deactivate(self, number: int) -> None:
        several = {
            number,
            *self._chance.sample(
                sorted(self._active), min(len(self._active), self._chance.choice((1, 1, 1, 4)))
            ),
        }
        self._do("deactivate", *(churned(each) for each in several))
        self._gone(several)

    def _remove(self, number: int) -> None:
        self._do("remove", churned(number))
        self._gone({number})

    def _gone(self, numbers: set[int]) -> None:
        self._active -= numbers
        for number in numbers:
            self._forwards.pop(number, None)

    def _restart(self, number: int) -> None:
        self._do("restart", churned(number))

    def _forward(self, number: int) -> None:
        there = self._forwards.setdefault(number, [])
        if there:
            self._do("port-forward", churned(number), there.pop(), "--remove")
            return
        there.append(f"{host_port(number) + 8}:8002")
        self._do("port-forward", churned(number), there[-1])

    def _network(self, number: int) -> None:
        name = f"made-{self._name}"
        self._do("net", "create", name, *(("--ipv6",) if self._chance.randrange(2) else ()))
        self._do("net", "remove", name)

    def _drawn(self, number: int) -> dict[str, Any]:
        chance, first = self._chance, host_port(number)
        networks = [*SHARED, *(f"pass{n}" for n in range(PASSING))]
        if (
            number % 3
        ):  # who is on "quiet" is so without a policy: the switched frames of its bridge are then not tracked
            networks.remove("quiet")
        found: dict[str, Any] = {"networks": chance.sample(networks, chance.choice((1, 1, 1, 2)))}
        kinds = (
            [],
            [f"{first}:8000"],
            [f"{first}:8000", f"127.0.0.1:{first + 1}:8001"],
            [f"{first}:8001", f"{first + 2}-{first + 3}:8000-8001"],
            [f"{first}:8000", f"{first + 4}-{first + 7}:{first + 4}-{first + 7}"],
        )
        found["ports"] = chance.choice(kinds)
        peers = [
            *STEADY,
            *(churned(chance.randrange(self._count)) for _ in range(4)),
            "network:shared",
            "10.99.0.0/16:8000",
        ]
        policies: tuple[dict[str, Any], ...] = (
            {},
            {"allow_from": chance.sample(peers, 3)},
            {"deny_from": chance.sample(peers, 2)},
            {
                "allow_from": chance.sample(peers, 2),
                "egress": {"allow": [f"{each}:8000" for each in chance.sample(peers[:-1], 2)]},
            },
            {"egress": {"deny": chance.sample(peers, 2)}},
        )
        found["policy"] = chance.choice(policies) if "quiet" not in found["networks"] else {}
        return found
