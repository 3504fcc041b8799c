"""Real members of etcd, on loopback, with certificates of a cluster's own authority."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import TESTS, Lab

from niso.cluster import invitation
from niso.cluster.engine import NoAnswer
from niso.cluster.etcd import Etcd, Reach

BINARY = shutil.which("etcd") or str(TESTS.parent / ".cache/etcd/usr/bin/etcd")
START_SECONDS = 90


def flags(name: str, data: str, client: str, peer: str, tls: str) -> list[str]:
    """The flags of a member, of a cluster of one unless others follow."""
    chosen = (invitation.CERTIFICATE, invitation.KEY, invitation.AUTHORITY)
    files = [f"{tls}/{each}" for each in chosen]
    words = {
        "name": name,
        "data-dir": data,
        "listen-client-urls": f"https://{client}",
        "advertise-client-urls": f"https://{client}",
        "listen-peer-urls": f"https://{peer}",
        "initial-advertise-peer-urls": f"https://{peer}",
        "initial-cluster": f"{name}=https://{peer}",
        "heartbeat-interval": "50",
        "election-timeout": "500",
        "experimental-watch-progress-notify-interval": "500ms",
        "log-level": "error",
        **dict(zip(("cert-file", "key-file", "trusted-ca-file"), files, strict=True)),
        **dict(
            zip(("peer-cert-file", "peer-key-file", "peer-trusted-ca-file"), files, strict=True)
        ),
    }
    more = ("--client-cert-auth", "--peer-client-cert-auth", "--unsafe-no-fsync")
    return [*(f"--{key}={value}" for key, value in words.items()), *more]


def spent_s(process: subprocess.Popen[bytes]) -> float:
    """The processor time of a process (proc_pid_stat(5))."""
    with open(f"/proc/{process.pid}/stat", encoding="ascii") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Member:
    """One member; its process is started by `start` and ends with the test at the latest.

    Rules can tell its packets by ``group``.
    """

    def __init__(
        self, name: str, folder: pathlib.Path, ports: tuple[int, int], group: int | None = None
    ) -> None:
        self.name, self.folder, self.group = name, folder, group
        self.client, self.peer = (f"127.0.0.1:{port}" for port in ports)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, members: list[Member], *more: str) -> None:
        tls = str(self.folder.parent)
        words = [*flags(self.name, str(self.folder), self.client, self.peer, tls), *more]
        others = ",".join(f"{m.name}=https://{m.peer}" for m in members)
        self.process = subprocess.Popen(
            [BINARY, *words, f"--initial-cluster={others}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "GOMAXPROCS": "1"},
            group=self.group,
        )

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)


class Members(list[Member]):
    """All members, of one cluster."""

    folder: pathlib.Path

    def access(self, *names: str) -> Reach:
        """How to reach these members, or all."""
        chosen = tuple(m.client for m in self if not names or m.name in names)
        files = (invitation.AUTHORITY, invitation.CERTIFICATE, invitation.KEY)
        return Reach(chosen, *(str(self.folder / name) for name in files))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def etcd(
    folder: pathlib.Path, count: int = 1, first_group: int | None = None, more: tuple[str, ...] = ()
) -> Iterator[Members]:
    """Start members and wait until they write. With ``first_group`` each has a group of its own.

    ``more`` are flags of their first start.
    """
    if not os.access(BINARY, os.X_OK):
        pytest.fail("etcd is missing: ./dev test unpacks it", pytrace=False)
    invitation.make_authority(str(folder), "test")
    invitation.issue(str(folder), str(folder), ["127.0.0.1"])
    ports = free_ports(2 * count)
    members = Members(
        Member(
            f"m{number}",
            folder / f"m{number}",
            (ports[2 * number], ports[2 * number + 1]),
            None if first_group is None else first_group + number,
        )
        for number in range(count)
    )
    members.folder = folder
    try:
        for member in members:
            member.start(members, *more)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with Etcd(members.access()) as engine:
                    engine.get("ready")
                break
            except NoAnswer:
                assert time.monotonic() < deadline, "etcd does not answer"
                time.sleep(0.05)
        yield members
    finally:
        for member in members:
            if member.process and member.process.poll() is None:
                member.process.send_signal(signal.SIGCONT)
                member.signal(signal.SIGKILL)


def provide(lab: Lab) -> None:
    """Have a lab find etcd as if it were installed."""
    if not shutil.which("etcd"):
        lab.run("ln", "-s", BINARY, "/usr/local/bin/etcd")


def provide_wireguard(lab: Lab) -> None:
    """Have a lab find WireGuard's tool and process as if they were installed."""
    for package, name in (("wireguard-tools", "wg"), ("wireguard-go", "wireguard-go")):
        if not shutil.which(name):
            unpacked = TESTS.parent / ".cache" / package / "usr/bin" / name
            lab.run("ln", "-s", str(unpacked), f"/usr/local/bin/{name}")
