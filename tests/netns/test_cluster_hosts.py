"""Test three hosts with a real engine: commands, agents, kernels.

etcd runs on host a. Hosts b and c have the services.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Process
from etcd_world import BINARY, flags
from many_hosts import SUBNETS, Host, underlay
from services import ask, echo, on

from niso.cluster import certificates

JOIN = """\
import json, sys
from niso.cluster import config
from niso.cluster.membership import Host, Membership
from niso.store.store import Store
what = json.loads(sys.argv[1])
files = [f"/tmp/tls/{name}" for name in ("authority.pem", "host.pem", "host.key")]
made = config.Config(what["name"], what["address"], config.Reach(("198.51.100.1:2379",), *files))
store = Store.open()
membership = Membership(made.engine())
cluster = membership.cluster() or membership.make()
membership.join(Host(what["name"], store.state_id(), what["address"], 1500, False))
with store.transaction():
    store.across.set_cluster(cluster.identity)
config.save(made)
"""
AGENT = """\
from niso.cluster import config
from niso.cluster.agent import Agent, Me, boot_id
from niso.commands.deactivate import deactivate
from niso.services.machine import real
from niso.store.store import Store
store = Store.open()
machine = real(store)
made = config.require()
me = Me(made.host, store.state_id(), store.cluster_id(), boot_id())
end = lambda services: deactivate(machine, services)
Agent(me, made.engine, end, lambda line: print(line, flush=True)).run(store, machine.kernel)
"""


class Cluster:
    """The hosts, and the engine's process on the first one."""

    def __init__(self, hosts: list[Host]) -> None:
        self.a, self.b, self.c = hosts
        authority = self.a.lab.path("/tmp/tls")
        for host in hosts:
            folder = host.lab.path("/tmp/tls")
            folder.mkdir()
            if host is self.a:
                certificates.make_authority(str(folder), "test")
            certificates.issue(str(authority), str(folder), [host.address[4]])
            copy = (authority / certificates.AUTHORITY).read_bytes()
            (folder / certificates.AUTHORITY).write_bytes(copy)
        self.engine = self.start_engine()
        for host in (self.b, self.c):
            what = json.dumps({"name": host.name, "address": host.address[4]})
            host.lab.run(sys.executable, "-c", JOIN, what)
        subnets = [word for cidr in SUBNETS.values() for word in ("--subnet", cidr)]
        self.b.lab.niso("net", "create", "backend", "--span", *subnets)
        self.agents = {host.name: self.start_agent(host) for host in (self.b, self.c)}

    def start_engine(self) -> Process:
        words = flags("a", "/tmp/etcd", "198.51.100.1:2379", "198.51.100.1:2380", "/tmp/tls")
        return self.a.lab.popen(BINARY, *words, stdout=-3, stderr=-3)

    def start_agent(self, host: Host) -> Process:
        return host.lab.popen(sys.executable, "-c", AGENT)

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
    cluster.engine.send_signal(signal.SIGKILL)
    cluster.agents["c"].send_signal(signal.SIGKILL)
    assert ask(c.lab, db, 80, "niso-api") == f"db {api}"
    b.lab.niso("restart", "db")
    c.lab.wait_for(lambda: ask(c.lab, db, 80, "niso-api") == f"db {api}", 20, "an answer of db")
    # they come back
    cluster.engine = cluster.start_engine()
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
