"""Check hosts with real kernels and a real etcd under random commands, while members, agents and wires fail.

Whatever happens, no answer passes that the policy of its service does not allow, and no kernel hears two services at one
address. In the end all hosts say the same, their kernels are as they should be, and once all is removed, nothing is
left. It is part of ``./dev test-long``; test_cluster_nemesis.py does more steps, with kernels in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from cluster_hosts import Cluster, cluster
from conftest import Process
from services import BUSYBOX

SECONDS = 120
ASKED = 12
ALLOWED = {
    "api": {"api", "db", "evil", "web"},
    "db": {"api"},
    "evil": {"api", "db", "evil", "web"},
    "web": {"api", "db"},
}
KEYS = """\
from niso.cluster import config
own = config.require()
with own.engine() as engine:
    print(*engine.keys(own.keys.prefix + "svc/"), *engine.keys(own.keys.prefix + "net/"))
"""


class Checker:
    def __init__(self, made: Cluster, draw: random.Random) -> None:
        self.made, self.draw = made, draw
        self.heals: list[Callable[[], object]] = []
        self.done: list[str] = []
        self.answers = self.silent = 0

    def round(self) -> None:
        """Let something fail, run commands, and ask meanwhile."""
        for heal in self.heals:
            heal()
        self.heals.clear()
        if self.draw.random() < 0.6:
            with contextlib.suppress(pytest.fail.Exception):  # what is to fail has not started yet
                self.fail()
        running = [self.begin(name) for name in self.made.hosts if self.draw.random() < 0.8]
        self.ask()
        for process in running:
            if process is not None:
                if self.draw.random() < 0.2:
                    time.sleep(self.draw.random() * 0.5)
                    with contextlib.suppress(OSError):
                        process.send_signal(signal.SIGKILL)
                    self.done.append("  one is killed")
                process.communicate(timeout=60)
        self.require_unique()

    def fail(self) -> None:
        name = self.draw.choice([*self.made.hosts])
        kind = self.draw.choice(("etcd killed", "etcd stopped", "agent killed", "wire down"))
        self.done.append(f"{name}: {kind}")
        if kind == "etcd killed":
            self.made.signal_etcd(name, signal.SIGKILL)
            self.heals.append(lambda: self.made.start_etcd(name))
        elif kind == "etcd stopped":
            self.made.signal_etcd(name, signal.SIGSTOP)
            self.heals.append(lambda: self.made.signal_etcd(name, signal.SIGCONT))
        elif kind == "agent killed":
            self.made.kill_agent(name)
            if self.draw.random() < 0.5:  # others take its services
                with contextlib.suppress(pytest.fail.Exception):
                    other = self.draw.choice([host for host in self.made.hosts if host != name])
                    self.made.end_lease(name, other)
            self.heals.append(lambda: self.made.start_agent(name))
        else:
            self.made.wire(name, "down")
            self.heals.append(lambda: self.made.wire(name, "up"))

    def begin(self, name: str) -> Process | None:
        lab, service = self.made.hosts[name].lab, self.draw.choice([*ALLOWED])
        what = self.draw.choices(("activate", "deactivate", "remove", "restart"), (8, 2, 2, 1))[0]
        words = [what, service]
        if what == "activate":
            keys: dict[str, Any] = {}
            if len(ALLOWED[service]) < len(ALLOWED):
                keys["policy"] = {"allow_from": [f"{each}:80" for each in sorted(ALLOWED[service])]}
            if self.draw.random() < 0.3:
                keys["ip"] = f"10.99.1.{self.draw.randrange(2, 6)}"
            words = [what, self.made.package(name, service, **keys)]
            words += ["--from-lost-host"] * (self.draw.random() < 0.5)
        self.done.append(f"{name}: {' '.join(words)}")
        return lab.popen("niso", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ask(self) -> None:
        """Ask from services of all hosts, whatever they may reach."""
        asked = []
        labs = [host.lab for host in self.made.hosts.values()]
        there = [
            (lab, who)
            for lab in labs
            for who in ALLOWED
            if os.path.exists(lab.path(f"/run/netns/niso-{who}"))
        ]
        for _ in range(ASKED if there else 0):
            lab, who = self.draw.choice(there)
            address = f"10.99.1.{self.draw.randrange(2, 7)}"
            with contextlib.suppress(OSError, pytest.fail.Exception):
                process = lab.popen(*(BUSYBOX, "nc", "-w", "1", address, "80"), netns=f"niso-{who}")
                asked.append((who, address, process))
        for who, address, process in asked:
            out, _ = process.communicate(timeout=20)
            if text := str(out).split():
                self.answers += 1
                self.done.append(f"  {who} asks {address}: {text}")
                assert who in (text[0], *ALLOWED[text[0]]), f"{text[0]} answers {who} at {address}"
            else:
                self.silent += 1

    def require_unique(self) -> None:
        for name, host in self.made.hosts.items():
            words = ("nft", "-j", "list", "map", "inet", "niso", "vx44")
            shown = host.lab.run(*words, check=False).stdout
            for each in json.loads(shown)["nftables"] if shown else ():
                elements = [e["elem"]["val"] for e, _ in each.get("map", {}).get("elem", ())]
                heard = [tuple(map(str, e["concat"][1::2])) for e in elements]
                assert len(set(heard)) == len(heard), f"{name} hears two at one address: {elements}"

    # --- the end ---

    def agrees(self) -> bool:
        views = []
        for name in self.made.hosts:
            done = self.made.niso(name, "ps", "--all-hosts", "--json", check=False)
            if done.returncode:
                return False
            rows = json.loads(done.stdout)
            views.append({row["service"]: row["host"] for row in rows})
        checks = [self.made.niso(name, "net", "check", check=False) for name in self.made.hosts]
        return all(view == views[0] for view in views) and not any(c.returncode for c in checks)

    def end(self) -> None:
        for heal in self.heals:
            heal()
        for name in self.made.hosts:  # what was killed is undone or finished
            self.made.niso(name, "net", "repair", check=False)
        self.made.wait("a", self.agrees, "hosts that agree", 120)
        for name in self.made.hosts:
            rows = json.loads(self.made.niso(name, "ps", "--json").stdout)
            self.made.niso(name, "remove", *(row["service"] for row in rows))
        self.made.wait(
            "a", lambda: self.left() == {"/niso/v1/net/backend/spec"}, "no claim left", 90
        )
        self.made.check(*self.made.hosts)

    def left(self) -> set[str]:
        lab = self.made.hosts["a"].lab
        return set(lab.run(sys.executable, "-c", KEYS, check=False).stdout.split())


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_nothing_undeclared_passes_whatever_fails() -> None:
    seed = os.urandom(4).hex()
    with cluster("a", "b", "c", members=3, seconds=SECONDS + 300) as made:
        checker = Checker(made, random.Random(seed))
        try:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                checker.round()
            checker.end()
        except BaseException as error:
            error.add_note(f"seed {seed}\n" + "\n".join(checker.done))
            raise
        assert checker.answers
        print(f"{checker.answers} answers, {checker.silent} without any")
