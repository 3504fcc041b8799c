"""Test three hosts with a real etcd: commands, agents, kernels.

It runs on host a. Hosts b and c have the services.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Process
from etcd_world import provide
from many_hosts import SUBNETS, Host, underlay
from services import ask, echo, on

REVOKE = """\
import sys
from niso.cluster import config
config.require().engine().revoke(int(sys.argv[1]))
"""


class Cluster:
    """The hosts, and the engine's process on the first one."""

    def __init__(self, hosts: list[Host]) -> None:
        self.a, self.b, self.c = hosts
        provide(self.a.lab)
        self.a.lab.niso("cluster", "init", "--name", "a", "--address", self.a.address[4])
        for host in (self.b, self.c):
            invited = self.a.lab.niso("cluster", "invite", host.name, "--address", host.address[4])
            host.lab.niso("cluster", "join", "-", "--no-member", input=invited.stdout)
        subnets = [word for cidr in SUBNETS.values() for word in ("--subnet", cidr)]
        self.b.lab.niso("net", "create", "backend", "--span", *subnets)
        self.agents = {host.name: self.start_agent(host) for host in (self.b, self.c)}

    def end_engine(self) -> None:
        pid = self.a.lab.path("/run/niso/etcd.pid").read_text().strip()
        self.a.lab.run("kill", "-KILL", pid)

    def start_engine(self) -> None:
        self.a.lab.popen("niso", "cluster", "etcd", stdout=-3, stderr=-3)

    def start_agent(self, host: Host) -> Process:
        return host.lab.popen("niso", "agent")

    def activate(self, host: Host, service: str, *options: str, **keys: Any) -> str:
        path = echo(host.lab, service, network=on("backend", **keys))
        done = host.lab.niso("activate", path, "--json", *options)
        [outcome] = json.loads(done.stdout)
        return str(outcome["address"][0])

    def sees(self, host: Host, address: str, name: str) -> bool:
        text = host.lab.path("/run/niso/hosts/backend/hosts").read_text()
        return any(
            line.split()[:1] == [address] and name in line.split() for line in text.splitlines()
        )


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with underlay("a", "b", "c") as hosts:
        yield Cluster(hosts)


def test_services_meet_by_name_policies_hold_and_a_lost_host_is_replaced(cluster: Cluster) -> None:
    b, c = cluster.b, cluster.c
    db = cluster.activate(b, "db", policy={"allow_from": ["api:80"]})
    api = cluster.activate(c, "api")
    evil = cluster.activate(c, "evil")
    assert [db, api, evil] == ["10.99.1.2", "10.99.1.3", "10.99.1.4"]
    c.lab.wait_for(lambda: cluster.sees(c, db, "db"), 20, "db's name on c")
    b.lab.wait_for(lambda: cluster.sees(b, evil, "evil"), 20, "evil's name on b")
    c.lab.wait_for(lambda: ask(c.lab, db, 80, "niso-api") == f"db {api}", 20, "an answer of db")
    assert ask(c.lab, db, 80, "niso-evil") == ""
    for host in (b, c):
        assert host.lab.niso("net", "check").stdout.startswith("OK"), host.name
    # the engine and an agent are killed: what runs goes on
    cluster.end_engine()
    cluster.agents["c"].send_signal(signal.SIGKILL)
    assert ask(c.lab, db, 80, "niso-api") == f"db {api}"
    b.lab.niso("restart", "db")
    c.lab.wait_for(lambda: ask(c.lab, db, 80, "niso-api") == f"db {api}", 20, "an answer of db")
    # they come back
    cluster.start_engine()
    cluster.agents["c"] = cluster.start_agent(c)
    # b is lost with its agent: its names go, and c takes its service, with the address
    cluster.agents["b"].send_signal(signal.SIGKILL)
    c.lab.wait_for(lambda: not cluster.sees(c, db, "db"), 30, "db's name gone on c")
    assert cluster.activate(c, "db", "--take") == db
    c.lab.wait_for(lambda: ask(c.lab, db, 80, "niso-api") == f"db {api}", 20, "db on c")
    # b is there again: nobody hears its db, and it ends it
    assert "db" in b.lab.niso("ps").stdout
    cluster.agents["b"] = cluster.start_agent(b)
    b.lab.wait_for(lambda: "running" not in b.lab.niso("ps").stdout, 20, "db ended on b")
    assert ask(c.lab, db, 80, "niso-api") == f"db {api}"
    for host in (b, c):
        assert host.lab.niso("net", "check").stdout.startswith("OK"), host.name
    # b leaves once it has no service there, and takes the network off
    refused = b.lab.niso("cluster", "leave", check=False)
    assert refused.returncode == 1 and "on networks of the cluster: db" in refused.stderr
    b.lab.niso("remove", "db")
    b.lab.niso("cluster", "leave")
    assert cluster.agents["b"].wait(20) == 0
    assert "backend" not in b.lab.niso("net", "list").stdout
    assert b.lab.niso("net", "check").stdout.startswith("OK")
    # c is lost for good: a gives up what it had
    cluster.agents["c"].send_signal(signal.SIGKILL)
    lease = c.lab.path("/run/niso/lease").read_text()
    cluster.a.lab.run(sys.executable, "-c", REVOKE, lease)  # else it takes 10 s
    done = cluster.a.lab.niso("cluster", "forget", "c")
    assert done.stdout == "c: forgotten, with api, db, evil\n"
