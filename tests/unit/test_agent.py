"""Test the agent on the fake engine and kernel: what one look does, and that it looks when something changes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_world import KEYS, ME, Cluster
from fake_world import World

from niso.cluster import gone
from niso.cluster.agent import GUARD_S, TTL_S, Agent, Me
from niso.cluster.claims import Claims, Wanted
from niso.cluster.keys import decode
from niso.cluster.membership import Host
from niso.cluster.requests import Answer, Delete, NoAnswer, Txn
from niso.commands.deactivate import deactivate
from niso.store.store import Store


class Hosted:
    """The agent of the world's host, with what it has said and ended."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.said: list[str] = []
        self.ended: list[str] = []
        me = Me(ME, f"id-{ME}", self.world.store.cluster_id(), "boot")
        self.agent = Agent(me, lambda: cluster.engine, self.end, self.said.append)

    def end(self, services: list[str]) -> None:
        deactivate(self.world.machine, services)
        self.ended += services

    def look(self, now_s: float = 0.0) -> list[str]:
        world = self.world
        return self.agent.look(world.store, world.kernel, self.cluster.engine, now_s)

    def is_up(self) -> bool:
        key = KEYS.address("backend", "10.99.1.2")
        return bool(decode(self.cluster.engine.get(key, one=True).items[0].value, key)["up"])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Hosted]:
    with World(tmp_path) as world:
        yield Hosted(Cluster(world))


def test_look_brings_what_others_have_and_says_what_is_here(host: Hosted) -> None:
    host.cluster.claim("a", "api")
    claims = Claims(host.cluster.engine, ME)
    held = claims.held("db")
    assert held is not None
    claims.publish("db", held.mark, up=False)
    assert host.look() == ["api"]
    assert host.is_up()
    deactivate(host.world.machine, ["db"])
    assert host.look() == []
    assert not host.is_up()
    host.world.assert_whole()
    assert host.said == []


def test_service_that_another_host_took_is_ended(host: Hosted) -> None:
    for item in host.cluster.engine.get(KEYS.live(ME)).items:
        host.cluster.engine.revoke(item.lease)
    wanted = Wanted("db", ("backend",), ("db",), {}, {})
    Claims(host.cluster.engine, "a").claim(wanted, take=True)
    host.look()
    assert host.ended == ["db"]
    assert host.said == ["taken over by other hosts, and ended here: db"]
    assert host.world.store.across.claims() == []


def test_other_cluster_or_none_changes_nothing(host: Hosted) -> None:
    host.cluster.claim("a", "api")
    host.look()
    engine = host.cluster.engine
    engine.commit(Txn((), (Delete(KEYS.prefix, prefix=True),)))
    before = host.world.picture()
    for _ in range(3):
        assert host.look() == []
    assert host.world.picture() == before
    assert len(host.said) == 1 and "has no cluster" in host.said[0]


def test_engine_that_does_not_answer_changes_nothing(host: Hosted) -> None:
    host.cluster.claim("a", "api")
    host.look()
    before = host.world.picture()
    host.cluster.engine.down = True
    with pytest.raises(NoAnswer):
        host.look()
    assert host.world.picture() == before and host.ended == []


def test_claims_that_a_backup_did_not_have_are_made_again(host: Hosted) -> None:
    held = Claims(host.cluster.engine, ME).held("db")
    assert held is not None
    host.cluster.release(ME, "db")
    host.look()
    again = Claims(host.cluster.engine, ME).held("db")
    assert again is not None and again.networks == held.networks
    host.look()
    assert host.is_up() and host.ended == []


def test_names_stay_for_a_while_if_all_go_at_once(host: Hosted) -> None:
    cluster = host.cluster
    for number, name in enumerate("defg", 11):
        cluster.membership.join(Host(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
        cluster.membership.live(name, f"id-{name}", cluster.engine.grant(10), "boot")
    address = cluster.claim("a", "api").networks["backend"][0]
    host.look(100)
    assert f"{address} api" in cluster.lines()
    cluster.engine.advance(60)
    for now_s in (101, 130, 100 + GUARD_S):
        host.look(now_s)
        assert f"{address} api" in cluster.lines()
    assert host.said == ["6 of 6 hosts have gone at once: their names stay for 60 s"]
    host.look(102 + GUARD_S)
    assert f"{address} api" not in cluster.lines()
    assert cluster.claims(), "the address stays"


def test_lease_is_kept_or_granted_and_only_for_a_member(host: Hosted) -> None:
    engine, agent = host.cluster.engine, host.agent
    lease = agent.keep(engine, 0)
    assert agent.keep(engine, lease) == lease
    engine.advance(TTL_S + 1)
    other = agent.keep(engine, lease)
    assert other not in (0, lease)
    host.cluster.membership.engine.commit(Txn((), (Delete(KEYS.host(ME)),)))
    engine.revoke(other)
    assert agent.keep(engine, other) == 0
    assert "not a host of the cluster" in host.said[-1]


def test_host_that_left_and_joined_again_lives_by_the_lease_that_is_left(host: Hosted) -> None:
    cluster, engine, live = host.cluster, host.cluster.engine, KEYS.live(ME)
    lease = host.agent.keep(engine, 0)
    cluster.engine.commit(Txn((), (Delete(live),)))
    again = Agent(host.agent.me, lambda: engine, lambda names: None, host.said.append)
    assert again.keep(engine, lease) == lease
    assert engine.get(live, one=True).items
    engine.advance(TTL_S + 1)
    assert not engine.get(live, one=True).items


def test_agent_that_cannot_look_says_by_how_much_it_is_behind(host: Hosted) -> None:
    engine, membership = host.cluster.engine, host.cluster.membership
    lease = host.agent.keep(engine, 0)
    membership.say_late(ME, lease, 41)
    assert membership.late() == {ME: 41}
    membership.say_late(ME, lease, 0)
    assert membership.late() == {}
    membership.say_late(ME, lease, 41)
    engine.advance(TTL_S + 1)
    assert membership.late() == {}, "it goes with the host"
    host.look(100)
    host.look(130)
    assert gone.last() == gone.Look(130, dict.fromkeys("abc", 100))


def test_running_agent_sees_what_changes(host: Hosted) -> None:
    cluster = host.cluster

    def run() -> None:
        store = Store.open()  # a thread has a connection of its own
        host.agent.run(store, host.world.kernel)
        store.close()

    read: list[str] = []
    get = cluster.engine.get

    def counted(prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
        read.extend([prefix] * (not one))
        return get(prefix, one=one, stale=stale)

    cluster.engine.get = counted  # type: ignore[method-assign]
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        for service, up in (("api", True), ("web", True)):
            address = cluster.claim("a", service, up=up).networks["backend"][0]
            wait(lambda line=f"{address} {service}": line in cluster.lines())
        wait(lambda: host.agent.roster.kept._is_followed)
        before = read.count(KEYS.hosts)
        for number in range(20):
            more = Host(f"h{number}", f"id-{number}", f"198.51.101.{number}", 1500, False)
            cluster.membership.join(more)
        wait(lambda: len(host.world.store.across.peers()) == 22)
        assert read.count(KEYS.hosts) - before == 20, "those that join read all, and nobody else"
        cluster.engine.down = True
        time.sleep(0.1)
        cluster.engine.down = False
        cluster.engine.compact()
        cluster.release("a", "web")
        wait(lambda: {name for name, _ in cluster.claims()} == {"api"})
    finally:
        host.agent.stop()
        thread.join(20)
    assert not thread.is_alive()
    host.world.assert_whole()


def wait(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):  # the fake kernel changes while it is read
            if so():
                return
        time.sleep(0.01)
    pytest.fail("not so in time")
