"""Test the agent on the fake engine and kernel: what one look does, and that it looks when something changes."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_world import KEYS, ME, Cluster
from fake_world import World
from fakes.engine import FakeEngine
from samples import samples

from niso.base.errors import Conflict, Error
from niso.base.locks import Lock
from niso.change.deactivate import deactivate
from niso.cluster import agent as cluster_agent
from niso.cluster import mirror
from niso.cluster.agent import GUARD_S, TTL_S, Agent
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Answer, Delete, NoAnswer, Put, Txn, decode, encode
from niso.cluster.key_values import HostEntry
from niso.cluster.mirror import EngineView
from niso.cluster.own_claims import recorded
from niso.kernel.real import Kernel
from niso.store.sqlite import encoded
from niso.store.store import Store


class Hosted:
    """The agent of the world's host, with what it has said and ended."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.said: list[str] = []
        self.ended: list[str] = []
        self.me = (ME, f"id-{ME}", self.world.store.cluster_id(), "boot")
        self.agent = Agent(self.me, lambda: cluster.engine, self.end, self.said.append)

    def end(self, services: list[str]) -> None:
        deactivate(self.world.machine, services)
        self.ended += services

    def look(self, now_s: float = 0.0, whole: bool = True) -> list[str]:
        world = self.world
        return self.agent.poll(world.store, world.kernel, self.cluster.engine, now_s, whole)

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


def test_service_is_ended_that_has_back_an_address_which_others_have_claimed_since(
    host: Hosted,
) -> None:
    """A command had given it up, was killed, and was undone: rows and record differ."""
    engine, store = host.cluster.engine, host.world.store
    address = next(each for _, each in store.addresses("db"))
    host.cluster.release(ME, "db")
    host.cluster.claim("a", "evil", address=address)
    now = Claims(engine, ME).claim(Wanted("db", ("backend",), ("db",), {}, {}))
    with store.transaction():
        store.across.set_claim(recorded(now))
    assert host.look() == ["evil"]
    assert host.ended == ["db"]
    assert host.cluster.claims() == {("evil", "198.51.100.1")}
    host.look()
    assert Claims(engine, ME).held("db") is None
    host.world.assert_whole()


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
        cluster.membership.join(HostEntry(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
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
    lease = agent.renew_lease(engine, 0)
    assert agent.renew_lease(engine, lease) == lease
    engine.advance(TTL_S + 1)
    other = agent.renew_lease(engine, lease)
    assert other not in (0, lease)
    host.cluster.membership.engine.commit(Txn((), (Delete(KEYS.host(ME)),)))
    engine.revoke(other)
    assert agent.renew_lease(engine, other) == 0
    assert "not a host of the cluster" in host.said[-1]


def test_host_that_left_and_joined_again_lives_by_the_lease_that_is_left(host: Hosted) -> None:
    cluster, engine, live = host.cluster, host.cluster.engine, KEYS.live(ME)
    lease = host.agent.renew_lease(engine, 0)
    cluster.engine.commit(Txn((), (Delete(live),)))
    again = Agent(host.me, lambda: engine, lambda names: None, host.said.append)
    assert again.renew_lease(engine, lease) == lease
    assert engine.get(live, one=True).items
    engine.advance(TTL_S + 1)
    assert not engine.get(live, one=True).items


def test_agent_that_cannot_look_says_by_how_much_it_is_behind(host: Hosted) -> None:
    engine, membership = host.cluster.engine, host.cluster.membership
    lease = host.agent.renew_lease(engine, 0)
    membership.say_late(ME, lease, 41)
    assert membership.late() == {ME: 41}
    membership.say_late(ME, lease, 0)
    assert membership.late() == {}
    membership.say_late(ME, lease, 41)
    engine.advance(TTL_S + 1)
    assert membership.late() == {}, "it goes with the host"
    host.look(100)
    host.look(130)
    assert cluster_agent.last() == (130, dict.fromkeys("abc", 100))


class Others:
    """What other hosts do, at random: they claim, start, stop, give up, take over, come and go."""

    def __init__(self, host: Hosted, seed: int) -> None:
        self.draw = random.Random(seed)
        self.engine, self.membership = host.cluster.engine, host.cluster.membership
        self.leases: dict[str, int] = {}
        for name in "ac":
            self.engine.commit(Txn((), (Delete(KEYS.live(name)),)))
            self.live(name)

    def live(self, name: str) -> None:
        if name not in self.leases:
            self.leases[name] = self.engine.grant(TTL_S)
            self.membership.live(name, f"id-{name}", self.leases[name], "boot")

    def lose(self, name: str) -> None:
        if lease := self.leases.pop(name, 0):
            self.engine.revoke(lease)

    def act(self) -> None:
        draw = self.draw
        service, name = draw.choice(("api", "web", "evil", "db")), draw.choice("ac")
        claims = Claims(self.engine, name)
        held, what = claims.held(service), draw.random()
        if what < 0.4:
            at = draw.choice(((), ("10.99.1.5",), ("10.99.1.6",)))
            names = (service, *draw.choice(((), ("shop",), ("cart", "shop"))))
            wanted = Wanted(service, ("backend",), names, {"backend": at} if at else {}, {})
            claims.publish(service, claims.claim(wanted).mark, up=draw.random() < 0.8)
        elif what < 0.6 and held and held.host != ME:
            Claims(self.engine, held.host).release(service, held.mark)
        elif what < 0.7 and held and held.host not in (ME, name):
            self.lose(held.host)
            claims.claim(Wanted(service, ("backend",), (service,), {}, {}), take=True)
        elif what < 0.8 and held:
            claims.publish(service, held.mark, up=draw.random() < 0.5)
        elif what < 0.9:
            draw.choice((self.live, self.lose))(name)
        else:
            key = KEYS.address("backend", draw.choice(("10.99.1.9", "10.99.1.1", "x")))
            value = {"service": "bad", "host": name, "gen": 1, "names": [], "up": True}
            put = Put(key, encode(value | {"gen": draw.choice((1, "9"))}))
            self.engine.commit(Txn((), (draw.choice((put, Delete(key))),)))


@pytest.mark.parametrize("seed", range(samples(6, 500)))
def test_look_at_what_has_changed_leaves_nothing_to_a_whole_one(
    host: Hosted, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, world, parts = Others(host, seed), host.world, 0
    follow = mirror.apply_claims

    def counted(store: Store, kernel: Kernel, now: EngineView, own: str) -> list[str]:
        nonlocal parts
        parts += now.only is not None
        return follow(store, kernel, now, own)

    monkeypatch.setattr(mirror, "apply_claims", counted)
    for _ in range(30):
        for _ in range(others.draw.randrange(1, 4)):
            with contextlib.suppress(Conflict):
                others.act()
        called = others.draw.random() < 0.1
        with contextlib.suppress(Conflict):
            if called and others.draw.random() < 0.5:
                deactivate(world.machine, ["db"])
            elif called:
                world.activate(str(world.folder / "db"))
        host.look(whole=called)
        before, done = world.picture(), len(world.kernel.done)
        if host.agent._view._is_done:  # what it was not sure of, it looks at again
            assert host.look(whole=True) == []
            assert (world.picture(), len(world.kernel.done)) == (before, done)
    world.assert_whole()
    assert parts > 10, "most looks are at a part"


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
        wait(lambda: host.agent.host_keys._is_followed)
        before = read.count(KEYS.hosts)
        for number in range(20):
            more = HostEntry(f"h{number}", f"id-{number}", f"198.51.101.{number}", 1500, False)
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
        thread.join(60)
    assert not thread.is_alive()
    host.world.assert_whole()


def test_agent_waits_for_its_files_and_ends_well_once_the_host_has_left(
    host: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_agent, "about", lambda seconds: 0.01)
    cluster, missing = host.cluster, [True]

    def connect() -> FakeEngine:
        if missing[0]:
            raise Error("this host is in no cluster")
        return cluster.engine

    following = Agent(host.me, connect, host.end, host.said.append)
    ended = threading.Event()

    def run() -> None:
        store = Store.open()
        following.run(store, host.world.kernel)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    wait(lambda: "this host is in no cluster" in host.said)
    missing[0] = False
    address = cluster.claim("a", "api").networks["backend"][0]
    wait(lambda: f"{address} api" in cluster.lines())
    cluster.claim("a", "web")  # a look is on its way
    missing[0] = True
    with Lock(), host.world.store.transaction():
        host.world.store.across.set_cluster("")
    following._notice()
    assert ended.wait(60)
    assert host.said[-1].startswith("this host has left cluster")


def test_command_that_calls_just_as_a_look_begins_gets_a_whole_one(
    host: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[bool] = []
    following = host.agent

    class Called(threading.Event):
        def is_set(self) -> bool:
            was = super().is_set()
            if len(whole) == 1:
                self.set()
                following._notice()
            return was

    def look(
        store: Store, kernel: Kernel, engine: FakeEngine, now_s: float, is_whole: bool
    ) -> None:
        whole.append(is_whole)
        following._notice()

    following._called = Called()
    monkeypatch.setattr(following, "poll", look)

    def run() -> None:
        following.run(Store.open(), host.world.kernel)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait(lambda: len(whole) > 3)
    following.stop()
    thread.join(60)
    assert whole[:4] == [True, False, True, False]


def test_look_of_a_host_that_leaves_meanwhile_writes_nothing(host: Hosted) -> None:
    cluster, store = host.cluster, host.world.store
    cluster.claim("a", "api")
    host.look()
    now = cluster.seen()
    with Lock(), store.transaction():
        store.across.set_cluster("")
    assert mirror.apply_claims(store, host.world.kernel, now, ME) == []
    assert store.across.peers() == {} == store.across.addresses()


def wait(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):  # the fake kernel changes while it is read
            if so():
                return
        time.sleep(0.01)
    pytest.fail("not so in time")


def test_policy_that_was_changed_while_the_engine_was_silent_is_said_later(host: Hosted) -> None:
    """Its addresses and names are as the cluster has them: nothing else shows that it is behind."""
    world, engine = host.world, host.cluster.engine
    host.look()
    engine.down = True
    policy = {"allow_from": ["web"]}
    world.activate(world.package("db", network={"network": "backend", "policy": policy}))
    with pytest.raises(NoAnswer):
        host.look(31.0)
    engine.down = False
    host.look(62.0)
    held = Claims(engine, ME).held("db")
    assert held is not None and held.policy == encoded(world.store.policy("db"))
