"""Test what a check of a host says of its cluster that no packet shows: names, clocks, its agent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from cluster_world import ME, Cluster
from fake_world import World
from fakes.kernel import Fake

from niso.change import cluster_check, networks
from niso.cluster import agent as cluster_agent
from niso.cluster import own_etcd
from niso.cluster.config import Config
from niso.cluster.etcd import Reach
from niso.cluster.key_values import Spec
from niso.cluster.own_etcd import EtcdState
from niso.plan.subnets import NetworkRequest

OWN = Config(ME, "198.51.100.2", Reach(("198.51.100.1:2379",)))


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the host."""
    own = ["127.0.0.1/8", "198.51.100.2/24"]
    monkeypatch.setattr(Fake, "host_addresses", lambda self: own)
    return own


def said(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: float = 0.0,
    alarms: tuple[str, ...] = (),
) -> list[str]:
    monkeypatch.setattr(Config, "engine", lambda own, brief=False: cluster.engine)
    state = EtcdState("3.5.16", "1", "1", 7, ahead_s, alarms)
    monkeypatch.setattr(own_etcd, "state", lambda access, place: state)
    monkeypatch.setattr(cluster_check, "_answered", lambda wanted: dict.fromkeys(wanted, True))
    findings, warnings = cluster_check.check(cluster.world.machine, OWN, None)
    assert findings == []
    return [warning for warning, _ in warnings]


def test_what_hides_the_clusters_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with World(tmp_path) as world:
        cluster = Cluster(world)
        cluster_agent.note((), time.monotonic())
        assert said(cluster, monkeypatch) == []
        subnets = (("10.99.7.0/24", "10.99.7.1"),)
        cluster.membership.create_network(Spec("front", 0, 1430, subnets, False))
        networks.create(world.machine, NetworkRequest("front", ("10.98.7.0/24",)))
        world.activate(world.package("web", network={"network": "front"}))
        cluster.claim("a", "web")
        assert said(cluster, monkeypatch) == [
            "network front is this host's own, and hides the one that spans hosts",
            "service web is one of this host, and hides that of a",
        ]


def test_clocks_that_differ_and_an_agent_that_does_not_look_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with World(tmp_path) as world:
        cluster = Cluster(world)
        cluster_agent.note((), time.monotonic() - 300)
        agent, clock = said(cluster, monkeypatch, ahead_s=125)
        assert agent == "the agent of this host looked last 300 s ago"
        assert clock == "this host's clock is 125 s behind that of 198.51.100.1:2379"
        assert len(said(cluster, monkeypatch, ahead_s=-59)) == 1
        assert said(cluster, monkeypatch, alarms=("NOSPACE", "ELSE"))[1:] == [
            "etcd is full: nothing new can be claimed (alarm NOSPACE)",
            "etcd has an alarm (alarm ELSE)",
        ]
        cluster.engine.down = True
        [_, none] = said(cluster, monkeypatch)
        assert none.startswith("this host is not compared with the others")


def test_host_without_its_address_between_the_hosts_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    with World(tmp_path) as world:
        cluster = Cluster(world)
        addresses.pop()
        for down in (False, True):
            cluster.engine.down = down
            monkeypatch.setattr(Config, "engine", lambda own, brief=False: cluster.engine)
            monkeypatch.setattr(cluster_check, "_etcd", lambda own: [])
            [finding] = cluster_check.check(world.machine, OWN, None)[0]
            assert finding.text.startswith("missing: 198.51.100.2, by which the other hosts")


def test_a_member_of_etcd_says_the_time() -> None:
    ahead: Any = own_etcd._ahead_s
    assert ahead("Thu, 01 Jan 1970 00:02:00 GMT", 60.0) == 60
    assert ahead("", 60.0) == ahead("soon", 60.0) == 0
