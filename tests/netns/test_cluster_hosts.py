"""Test three hosts with a real engine: claims, agents, kernels. Small programs stand for the commands that are to come.

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
from many_hosts import MTU, SUBNETS, Host, network, underlay
from services import ask, echo, on

from niso.cluster import certificates

COMMON = """\
import json, sys
from niso.cluster.claims import Claims, Wanted
from niso.cluster.etcd import Access, Etcd
from niso.cluster.membership import Host, Membership, Spec
from niso.store.span_rows import Claim
from niso.store.store import Store
what = json.loads(sys.argv[1])
engine = Etcd(Access(("198.51.100.1:2379",), "/tmp/tls/authority.pem", "/tmp/tls/host.pem", "/tmp/tls/host.key"))
store = Store.open()
"""
JOIN = """\
membership = Membership(engine)
cluster = membership.cluster() or membership.make()
membership.join(Host(what["name"], store.state_id(), what["address"], 1500, False))
spec = membership.create_network(Spec("backend", 0, what["mtu"], tuple(map(tuple, what["subnets"]))))
with store.transaction():
    store._db.execute("INSERT INTO meta VALUES ('cluster', ?)", (json.dumps({"id": cluster.identity}),))
    store.across.set_span("backend", spec.vni, cluster.port, what["address"])
"""
CLAIM = """\
claims = Claims(engine, what["host"])
made = claims.claim(Wanted(what["service"], ("backend",), (what["service"],), {}, {}), take=what["take"])
with store.transaction():
    store.across.set_claim(Claim(made.service, made.mark, made.gen, made.networks))
print(made.networks["backend"][0])
"""
PUBLISH = """\
mark = store.across.claim(what["service"]).mark
assert Claims(engine, what["host"]).publish(what["service"], mark, True)
"""
AGENT = """\
from niso.cluster.agent import Agent, Me, boot_id
from niso.commands.deactivate import deactivate
from niso.services.machine import real
def connect():
    return Etcd(Access(("198.51.100.1:2379",), "/tmp/tls/authority.pem", "/tmp/tls/host.pem", "/tmp/tls/host.key"))
machine = real(store)
me = Me(what["host"], store.state_id(), store.cluster_id(), boot_id())
agent = Agent(me, connect, lambda services: deactivate(machine, services), lambda line: print(line, flush=True))
agent.run(store, machine.kernel)
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
        subnets = [
            (cidr, cidr.replace("0/24", "1").replace(":/64", ":1")) for cidr in SUBNETS.values()
        ]
        for host in (self.b, self.c):
            network(host)
            self.run(host, JOIN, name=host.name, address=host.address[4], mtu=MTU, subnets=subnets)
            host.lab.niso("net", "repair")
        self.agents = {host.name: self.start_agent(host) for host in (self.b, self.c)}

    def start_engine(self) -> Process:
        words = flags("a", "/tmp/etcd", "198.51.100.1:2379", "198.51.100.1:2380", "/tmp/tls")
        return self.a.lab.popen(BINARY, *words, stdout=-3, stderr=-3)

    def start_agent(self, host: Host) -> Process:
        return host.lab.popen(sys.executable, "-c", COMMON + AGENT, json.dumps({"host": host.name}))

    def run(self, at: Host, program: str, **what: Any) -> str:
        done = at.lab.run(sys.executable, "-c", COMMON + program, json.dumps(what))
        return str(done.stdout).strip()

    def activate(self, host: Host, service: str, take: bool = False, **keys: Any) -> str:
        address = self.run(host, CLAIM, host=host.name, service=service, take=take)
        host.lab.niso("activate", echo(host.lab, service, network=on("backend", **keys)))
        self.run(host, PUBLISH, host=host.name, service=service)
        return address

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
    assert cluster.activate(c, "db", take=True) == db
    c.lab.wait_for(lambda: ask(c.lab, db, 80, "niso-api") == f"db {api}", 20, "db on c")
    # b is there again: nobody hears its db, and it ends it
    assert "db" in b.lab.niso("ps").stdout
    cluster.agents["b"] = cluster.start_agent(b)
    b.lab.wait_for(lambda: "running" not in b.lab.niso("ps").stdout, 20, "db ended on b")
    assert ask(c.lab, db, 80, "niso-api") == f"db {api}"
    for host in (b, c):
        assert host.lab.niso("net", "check").stdout.startswith("OK"), host.name
