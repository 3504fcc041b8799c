"""Hosts of a cluster in labs on one underlay, with niso's own commands: etcd, agents, services."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from conftest import DEADLINE_SECONDS, Process
from etcd_world import provide, provide_wireguard
from many_hosts import SUBNETS, Host, underlay
from services import echo, on

REVOKE = """\
import sys
from niso.cluster import config
config.require().engine().revoke(int(sys.argv[1]))
"""


class Cluster:
    """Hosts by name; the first ``members`` run etcd, and all have an agent. Backend spans them.

    ``family`` is that of the addresses between them, ``encrypt`` how they encrypt.
    """

    def __init__(self, hosts: list[Host], members: int, family: int = 4, encrypt: str = "") -> None:
        self.hosts = {host.name: host for host in hosts}
        first, *others = hosts
        for host in hosts[:members]:
            provide(host.lab)
        how = (f"--encrypt={encrypt}",) if encrypt else ()
        place = ("--name", first.name, "--address", first.address[family])
        first.lab.niso("cluster", "init", *place, *how)
        for host in others:
            place = (host.name, "--address", host.address[family])
            invitation = first.lab.niso("cluster", "invite", *place).stdout
            as_ = "--member" if host in hosts[:members] else "--no-member"
            host.lab.niso("cluster", "join", "-", as_, input=invitation)
        subnets = [word for cidr in SUBNETS.values() for word in ("--subnet", cidr)]
        first.lab.niso("net", "create", "backend", "--span", *subnets)
        self.agents: dict[str, Process] = {}
        for host in hosts:
            self.start_agent(host.name)

    def start_agent(self, name: str) -> None:
        agent = self.hosts[name].lab.popen("niso", "agent")
        assert agent.stdout and b"following cluster" in agent.stdout.readline()
        self.agents[name] = agent

    def pause_agent(self, name: str) -> None:
        """Stop a host's agent by a signal, while it does not hold the lock of that host."""
        with open(self.hosts[name].lab.path("/run/niso/lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.agents[name].send_signal(signal.SIGSTOP)

    def kill_agent(self, name: str, by: str = "") -> None:
        """Kill a host's agent; with another host's name, end the lease too."""
        self.agents[name].send_signal(signal.SIGKILL)
        if by:
            self.end_lease(name, by)

    def end_lease(self, name: str, by: str) -> None:
        """Have another host end the lease of one, which would else take 10 s."""
        lease = self.hosts[name].lab.path("/run/niso/lease").read_text()
        self.hosts[by].lab.run(sys.executable, "-c", REVOKE, lease)

    def signal_etcd(self, name: str, number: int) -> None:
        lab = self.hosts[name].lab
        lab.run("kill", f"-{number}", lab.path("/run/niso/etcd.pid").read_text().strip())

    def start_etcd(self, name: str) -> None:
        self.hosts[name].lab.popen("niso", "cluster", "etcd", stdout=-3, stderr=-3)

    def wire(self, name: str, state: str) -> None:
        """Connect a host with the others, or cut it off."""
        self.hosts[name].lab.run("ip", "link", "set", "under0", state)

    def between(self, *words: str) -> None:
        """Run a program in the namespace that connects the hosts."""
        middle = next(iter(self.hosts.values())).middle
        subprocess.run([*middle, *words], check=True)

    def niso(self, name: str, *words: str, check: bool = True) -> Any:
        return self.hosts[name].lab.niso(*words, check=check)

    def package(self, name: str, service: str, **keys: Any) -> str:
        return echo(self.hosts[name].lab, service, network=on("backend", **keys))

    def activate(self, name: str, service: str, *options: str, **keys: Any) -> str:
        """Return the service's IPv4 address."""
        path = self.package(name, service, **keys)
        [outcome] = json.loads(self.niso(name, "activate", path, "--json", *options).stdout)
        return str(outcome["address"][0])

    def refused(self, name: str, *words: str) -> str:
        done = self.niso(name, *words, check=False)
        assert done.returncode in (1, 2), done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    def rows(self, name: str) -> dict[str, tuple[str, str]]:
        """Return (host, status) of the services of all hosts, as one host shows them."""
        found = json.loads(self.niso(name, "ps", "--all-hosts", "--json").stdout)
        return {row["service"]: (row["host"], row["status"]) for row in found}

    def explain(self, name: str, source: str, destination: str) -> Any:
        words = ("net", "explain", source, destination, "-4", "--json")
        return json.loads(self.niso(name, *words, check=False).stdout)

    def status(self, name: str, service: str) -> str:
        """Return the status of a service of a host, as that host shows it; "" if it has none."""
        rows = json.loads(self.niso(name, "ps", "--json").stdout)
        return next((str(row["status"]) for row in rows if row["service"] == service), "")

    def sees(self, name: str, address: str, service: str) -> bool:
        """Whether a service's name resolves to an address on a host."""
        hosts = self.hosts[name].lab.path("/run/niso/hosts/backend/hosts")
        text = hosts.read_text() if os.path.exists(hosts) else ""
        return any(
            line.split()[:1] == [address] and service in line.split() for line in text.splitlines()
        )

    def wait(self, name: str, so: Any, what: str, seconds: float = 30) -> None:
        self.hosts[name].lab.wait_for(so, seconds, what)

    def check(self, *names: str) -> None:
        for name in names:
            assert self.niso(name, "net", "check").stdout.startswith("OK"), name


@contextlib.contextmanager
def cluster(
    *names: str,
    members: int = 1,
    family: int = 4,
    encrypt: str = "",
    seconds: int = DEADLINE_SECONDS,
) -> Iterator[Cluster]:
    """Hosts that end by themselves after ``seconds``."""
    with underlay(*names, seconds=seconds) as hosts:
        for host in hosts if encrypt else ():
            provide_wireguard(host.lab)
        made = Cluster(hosts, members, family, encrypt)
        try:
            yield made
        finally:
            for agent in made.agents.values():
                with contextlib.suppress(subprocess.SubprocessError, OSError):
                    agent.send_signal(signal.SIGKILL)
