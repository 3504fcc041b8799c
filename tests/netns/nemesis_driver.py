"""Run hosts of a cluster on a real etcd while a nemesis works on its members; in a network namespace of its own.

The nemesis kills members, stops them, cuts them off from the others or from the hosts, and compacts.
A cut is a rule that drops packets without an answer, by the group of the member's process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster_walk import HOSTS
from etcd_world import Member, Members, etcd

from niso.base.errors import Error
from niso.cluster.engine import NoAnswer
from niso.cluster.etcd import Etcd
from niso.cluster.membership import ClusterKeys

GROUP = 64_000
HERE = Path(__file__).parent
TABLE = "table inet cut\ndelete table inet cut\n"
READY_S = 60


class Nemesis:
    """Each act goes on for a while, and another one may begin meanwhile."""

    def __init__(self, members: Members, draw: random.Random) -> None:
        self.members, self.draw = members, draw
        self.acts: dict[str, int] = {}
        self.rules: dict[tuple[str, str], str] = {}

    def act(self) -> None:
        member = self.draw.choice(self.members)
        kinds = (self.killed, self.stopped, self.alone, self.unreachable)
        kind = self.draw.choice(kinds)
        self.acts[kind.__name__] = self.acts.get(kind.__name__, 0) + 1
        with kind(member):
            time.sleep(self.draw.random() * 2.5)
            if self.draw.random() < 0.3:
                self.compact()
            if self.draw.random() < 0.15:  # most members may be lost at once
                other = self.draw.choice([each for each in self.members if each is not member])
                with self.draw.choice(kinds)(other):
                    time.sleep(self.draw.random() * 1.5)
        time.sleep(self.draw.random() * 1.5)

    @contextmanager
    def killed(self, member: Member) -> Iterator[None]:
        member.signal(signal.SIGKILL)
        yield
        member.start(self.members)

    @contextmanager
    def stopped(self, member: Member) -> Iterator[None]:
        member.signal(signal.SIGSTOP)
        yield
        member.signal(signal.SIGCONT)

    @contextmanager
    def alone(self, member: Member) -> Iterator[None]:
        """Cut a member off from the other members."""
        own = member.peer.rpartition(":")[2]
        others = ", ".join(m.peer.rpartition(":")[2] for m in self.members if m is not member)
        with self.dropped(
            member,
            "peers",
            f"meta skgid != {member.group} tcp dport {own} drop\n"
            f"meta skgid {member.group} tcp dport {{ {others} }} drop",
        ):
            yield

    @contextmanager
    def unreachable(self, member: Member) -> Iterator[None]:
        """Cut a member off from the hosts; its own gateway uses the port too."""
        port = member.client.rpartition(":")[2]
        with self.dropped(member, "hosts", f"meta skgid != {member.group} tcp dport {port} drop"):
            yield

    @contextmanager
    def dropped(self, member: Member, whom: str, rules: str) -> Iterator[None]:
        self.rules[member.name, whom] = rules
        self.write()
        yield
        self.rules.pop((member.name, whom), None)
        self.write()

    def write(self) -> None:
        rules = "\n".join(self.rules.values())
        chain = f"chain output {{\ntype filter hook output priority 0\n{rules}\n}}"
        text = f"{TABLE}table inet cut {{\n{chain}\n}}\n"
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

    def compact(self) -> None:
        with suppress(Error), Etcd(self.members.access(), 1.0, 1) as engine:
            revision = engine.get("any", one=True).revision
            engine.call("/v3/kv/compaction", {"revision": str(revision)})
            self.acts["compacted"] = self.acts.get("compacted", 0) + 1


def start(
    members: Members, name: str, seed: int, seconds: float, share: float, folder: Path
) -> subprocess.Popen[str]:
    folder.mkdir()
    words = (json.dumps(members.access()), name, str(seed), str(seconds), str(share), str(folder))
    return subprocess.Popen(
        [sys.executable, str(HERE / "cluster_driver.py"), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hears(driver: subprocess.Popen[str], word: str) -> str:
    """Read a line of a driver, which begins so; else it has failed."""
    assert driver.stdout and driver.stderr
    line = driver.stdout.readline()
    if not line.startswith(word):
        raise SystemExit(driver.stderr.read())
    return line


def ready(members: Members) -> None:
    """Wait until the members agree again."""
    until = time.monotonic() + READY_S
    with Etcd(members.access()) as engine:
        while True:
            try:
                engine.get("ready")
                return
            except NoAnswer:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def main(folder: str, text: str, seconds: float, share: float) -> None:
    draw = random.Random(text)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with etcd(Path(folder), 3, GROUP) as members:
        with Etcd(members.access()) as engine:
            ClusterKeys(engine).make()
        drivers = [
            start(
                members, name, draw.randrange(1 << 30), seconds, share, Path(folder, f"host-{name}")
            )
            for name in HOSTS
        ]
        try:
            nemesis = Nemesis(members, draw)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                nemesis.act()
            ready(members)
            for driver in drivers:
                hears(driver, "done")
            steps = 0
            for order in ("heal", *["look"] * 4, "follow", "agree", "leave"):
                for driver in drivers:
                    assert driver.stdin
                    driver.stdin.write(f"{order}\n")
                    driver.stdin.flush()
                    steps += int(hears(driver, "ok").split()[1]) * (order == "leave")
            with Etcd(members.access()) as engine:
                left = engine.keys("/niso/v1/svc/") + engine.keys("/niso/v1/net/backend/")
            assert left == ["/niso/v1/net/backend/spec"], left
        finally:
            for driver in drivers:
                driver.kill()
    print(f"{steps} lines of steps;", ", ".join(f"{n} {kind}" for kind, n in nemesis.acts.items()))


if __name__ == "__main__":
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join((before, str(HERE.parent), str(HERE)))
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
