"""Test claims and membership on the fake engine: who gets what, races, and requests without an answer."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.engine import FakeEngine
from refusals import refuses

from niso.base.errors import Conflict, NotFound
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Keys, NoAnswer, Put, Txn, decode
from niso.cluster.key_values import HostEntry, Spec
from niso.cluster.membership import FIRST_VNI, ClusterKeys

KEYS = Keys()
BACKEND = Spec("backend", 0, 1430, (("10.99.1.0/24", "10.99.1.1"), ("fd00:1::/64", "fd00:1::1")))


@pytest.fixture
def engine() -> FakeEngine:
    """With hosts a, b and c, of which c does not live, and a network."""
    engine = FakeEngine()
    cluster = ClusterKeys(engine)
    cluster.make()
    for number, name in enumerate("abc", 1):
        cluster.join(HostEntry(name, f"id-{name}", f"198.51.100.{number}", 1500, False))
    for name in "ab":
        assert cluster.live(name, f"id-{name}", engine.grant(10), "boot")
    cluster.create_network(BACKEND)
    return engine


def wanted(name: str, *networks: str, **more: dict[str, tuple[str, ...]]) -> Wanted:
    fields: dict[str, dict[str, tuple[str, ...]]] = {"requested": {}, "preferred": {}, **more}
    return Wanted(name, networks or ("backend",), (name,), **fields)


def addresses(engine: FakeEngine) -> dict[str, str]:
    """Who has each address of backend, by the engine's keys alone."""
    prefix = KEYS.addresses("backend")
    return {
        item.key.removeprefix(prefix): decode(item.value, item.key)["service"]
        for item in engine.get(prefix).items
    }


def test_claim_has_addresses_and_names_that_nobody_else_gets(engine: FakeEngine) -> None:
    one = Claims(engine, "a").claim(wanted("api"))
    other = Claims(engine, "b").claim(wanted("db"))
    assert one.networks == {"backend": ("10.99.1.2", "fd00:1::2")}
    assert other.networks == {"backend": ("10.99.1.3", "fd00:1::3")}
    assert (one.host, one.names) == ("a", ("api",))
    assert Claims(engine, "b").held("api") == one
    taken = Wanted("evil", ("backend",), ("evil", "api"), {}, {})
    with refuses(Conflict, "backend", "api", hint="choose another one"):
        Claims(engine, "b").claim(taken)
    asked = wanted("evil", requested={"backend": ("10.99.1.2",)})
    with refuses(Conflict, "api", "10.99.1.2", hint="choose another one"):
        Claims(engine, "b").claim(asked)
    with refuses(NotFound, "front", hint="niso net list"):
        Claims(engine, "b").claim(wanted("evil", "front"))
    assert set(addresses(engine).values()) == {"api", "db"}


def test_claim_that_is_wanted_again_is_the_same(engine: FakeEngine) -> None:
    claims = Claims(engine, "a")
    first = claims.claim(wanted("api"))
    before = engine.mark(KEYS.prefix)
    assert claims.claim(wanted("api")) == first
    assert engine.mark(KEYS.prefix) == before


def test_changed_claim_keeps_what_stays_and_gives_up_the_rest(engine: FakeEngine) -> None:
    claims = Claims(engine, "a")
    first = claims.claim(Wanted("api", ("backend",), ("web", "api"), {}, {}))
    assert claims.publish("api", first.mark, up=True)
    asked = wanted("api", requested={"backend": ("10.99.1.9",)})
    second = claims.claim(asked)
    assert second.networks == {"backend": ("10.99.1.9", "fd00:1::2")}
    assert second.gen == first.gen + 1 and second.mark != first.mark
    assert addresses(engine) == {"10.99.1.9": "api", "fd00:1::2": "api"}
    assert engine.keys(f"{KEYS.network('backend')}n/") == [KEYS.name("backend", "api")]
    # the address that it had is up still, the new one is not yet
    ups = {i.key: decode(i.value, i.key)["up"] for i in engine.get(KEYS.addresses("backend")).items}
    assert sorted(ups.values()) == [False, True]


def test_preferred_address_is_taken_if_it_is_free(engine: FakeEngine) -> None:
    claims = Claims(engine, "a")
    claims.claim(wanted("api", preferred={"backend": ("10.99.1.7", "fd00:1::7")}))
    claims.claim(wanted("db", preferred={"backend": ("10.99.1.7",)}))
    assert addresses(engine)["10.99.1.7"] == "api"
    assert addresses(engine)["10.99.1.2"] == "db"


def test_full_network_says_so(engine: FakeEngine) -> None:
    ClusterKeys(engine).create_network(Spec("tiny", 0, 1430, (("10.99.9.0/30", "10.99.9.1"),)))
    claims = Claims(engine, "a")
    claims.claim(wanted("api", "tiny"))
    with refuses(Conflict, "10.99.9.0/30", hint="create a larger network"):
        claims.claim(wanted("db", "tiny"))


def test_service_of_a_host_that_lives_is_not_taken(engine: FakeEngine) -> None:
    mine = Claims(engine, "a").claim(wanted("api"))
    for take in (False, True):
        with refuses(Conflict, "api", hint="it can be activated here once it is removed on a"):
            Claims(engine, "b").claim(wanted("api"), take=take)
    lost = Claims(engine, "c").claim(wanted("web"))
    with refuses(
        Conflict,
        "web",
        hint="--from-lost-host moves it here with 10.99.1.3, fd00:1::3; c stops it when it comes back",
    ) as raised:
        Claims(engine, "b").claim(wanted("web"))
    assert "--from-lost-host" in (raised.value.hint or "")
    taken = Claims(engine, "b").claim(wanted("web"), take=True)
    assert (taken.host, taken.gen, taken.networks) == ("b", lost.gen + 1, lost.networks)
    # who has lost it changes nothing any more, by his own record
    behind = Claims(engine, "c")
    assert not behind.publish("web", lost.mark, up=True)
    assert not behind.release("web", lost.mark)
    assert Claims(engine, "b").held("web") == taken
    assert Claims(engine, "a").held("api") == mine


def test_host_that_comes_back_in_the_last_moment_keeps_its_service(engine: FakeEngine) -> None:
    lost = Claims(engine, "c").claim(wanted("web"))
    commit = engine.commit

    def back_first(txn):
        engine.commit = commit
        assert ClusterKeys(engine).live("c", "id-c", engine.grant(10), "boot")
        return commit(txn)

    engine.commit = back_first
    with refuses(Conflict, "web", hint="it can be activated here once it is removed on c"):
        Claims(engine, "b").claim(wanted("web"), take=True)
    assert Claims(engine, "c").held("web") == lost


def test_up_and_down_are_said_with_the_address(engine: FakeEngine) -> None:
    claims = Claims(engine, "a")
    mine = claims.claim(wanted("api"))
    key = KEYS.address("backend", "10.99.1.2")
    for up in (True, False, True):
        assert claims.publish("api", mine.mark, up)
        value = decode(engine.get(key, one=True).items[0].value, key)
        assert value == {
            "service": "api",
            "host": "a",
            "gen": mine.gen,
            "names": ["api"],
            "up": up,
        }
    assert not claims.publish("api", "another mark", up=False)
    assert claims.release("api", mine.mark)
    assert engine.keys(KEYS.services) == [] and addresses(engine) == {}
    assert not claims.release("api", mine.mark)


@pytest.mark.parametrize("lost", [["there"], ["back"], ["there", "back"], ["back", "there"] * 3])
def test_request_without_an_answer_is_settled(engine: FakeEngine, lost: list[str]) -> None:
    claims = Claims(engine, "a")
    engine.lose = list(lost)
    mine = claims.claim(wanted("api"))
    assert claims.held("api") == mine
    assert set(addresses(engine)) == {"10.99.1.2", "fd00:1::2"}
    engine.lose = list(lost)
    assert claims.publish("api", mine.mark, up=True)
    engine.lose = list(lost)
    assert claims.release("api", mine.mark)
    assert engine.keys(KEYS.services) == [] and addresses(engine) == {}


def test_outcome_that_nobody_tells_is_unknown_and_no_other(engine: FakeEngine) -> None:
    claims = Claims(engine, "a")
    engine.lose = ["back"]
    commit = engine.commit

    def then_down(txn):
        try:
            return commit(txn)
        finally:
            engine.down = True

    engine.commit = then_down
    with pytest.raises(NoAnswer) as raised:
        claims.claim(wanted("api"))
    assert raised.value.unknown
    engine.down, engine.commit = True, commit
    with pytest.raises(NoAnswer) as raised:
        claims.claim(wanted("db"))
    assert not raised.value.unknown, "nothing was sent"


def test_claims_at_once_are_all_different(engine: FakeEngine) -> None:
    def one(number: int) -> str:
        mine = Claims(engine, "abc"[number % 3]).claim(wanted(f"s{number}"))
        return mine.networks["backend"][0]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(64)))
    assert len(set(found)) == 64
    held = addresses(engine)
    assert {held[address] for address in found} == {f"s{number}" for number in range(64)}


def front(name: str, *names: str, **more: dict[str, tuple[str, ...]]) -> Wanted:
    return wanted(name, **more)._replace(names=(name, *names), front=True)


def ups(engine: FakeEngine) -> set[tuple[str, bool]]:
    """Return (host, up) of the addresses."""
    values = (decode(item.value, item.key) for item in engine.get(KEYS.addresses("backend")).items)
    return {(value["host"], value["up"]) for value in values}


def test_service_with_a_service_address_is_on_several_hosts(engine: FakeEngine) -> None:
    a, b, cluster = Claims(engine, "a"), Claims(engine, "b"), ClusterKeys(engine)
    one = a.claim(front("web"))
    assert a.publish("web", one.mark, up=True, about={"ports": ["80"]})
    engine.lose = ["there", "back"]
    two = b.claim(front("web"))
    assert (two.networks, two.gen, two.names) == (one.networks, one.gen, one.names)
    assert two.mark != one.mark and two.hosts == ("b", "a")
    assert ups(engine) == {("a", True)}, "unchanged for other hosts until it is up"
    assert not b.publish("web", one.mark, up=True), "each has its own mark"
    # down on b: up all the same
    assert b.publish("web", two.mark, up=False, about={"ports": ["81"]})
    assert {up for _, up in ups(engine)} == {True}
    assert b.publish("web", two.mark, up=True)
    assert a.publish("web", one.mark, up=True)
    listed = [(claim.host, claim.up, claim.ports) for claim in cluster.services()]
    assert listed == [("a", True, ("80",)), ("b", True, ("81",))]
    assert cluster.services_of("a") == cluster.services_of("b") == ["web"]
    # a new claim of one does not take it from the other
    again = a.claim(front("web"), renew=True)
    assert again.gen == one.gen and again.mark != one.mark
    held = b.held("web")
    assert held is not None and (held.host, held.mark) == ("b", two.mark)
    # who leaves leaves it to the others, also if the answer is lost
    engine.lose = ["back"]
    assert a.release("web", again.mark)
    assert ups(engine) == {("b", True)}
    assert not a.publish("web", again.mark, up=False)
    assert b.release("web", two.mark)
    assert engine.keys(KEYS.services) == [] and addresses(engine) == {}
    assert engine.keys(f"{KEYS.network('backend')}n/") == []


def test_service_on_several_hosts_has_the_same_names_and_addresses(engine: FakeEngine) -> None:
    a, b = Claims(engine, "a"), Claims(engine, "b")
    one = a.claim(front("web", "www"))
    with refuses(
        Conflict,
        "a",
        "web",
        hint="it can be activated here once it is removed on a; to run it on both, set"
        " service.replicas on both",
    ):
        b.claim(wanted("web"))
    alike = (
        "networks, addresses and names are the same on all hosts: they can be changed while it is"
        " active on one host"
    )
    with refuses(Conflict, "on a too", "www", hint=alike, key="network.aliases"):
        b.claim(front("web"))
    asked = front("web", "www", requested={"backend": ("10.99.1.9",)})
    with refuses(Conflict, "10.99.1.2", "10.99.1.9", hint=alike, key="network.ip"):
        b.claim(asked)
    ClusterKeys(engine).create_network(Spec("side", 0, 1430, (("10.99.2.0/24", "10.99.2.1"),)))
    other = front("web", "www")._replace(networks=("backend", "side"))
    with refuses(Conflict, "backend", "side", hint=alike, key="network.networks"):
        b.claim(other)
    assert a.held("web") == one
    b.claim(front("web", "www"))
    with refuses(
        Conflict,
        "on b too",
        hint="service.replicas gives it one; without, it has to be removed on b",
        key="service.replicas",
    ):
        a.claim(wanted("web")._replace(names=("web", "www")))
    with refuses(Conflict, "on b too", "www", hint=alike, key="network.aliases"):
        a.claim(front("web"))
    # a command that changes it on its only host first completes
    c = Claims(engine, "a").claim(front("api"))
    Claims(engine, "a").claim(front("api", "more"), keep=True)
    Claims(engine, "a").claim(front("api"), keep=True)
    with refuses(Conflict, "a is changing api", hint="try again"):
        b.claim(front("api"))
    assert c.gen


def test_service_of_several_lost_hosts_is_taken_over_and_returns(engine: FakeEngine) -> None:
    a, b, c = (Claims(engine, host) for host in "abc")
    one, two = a.claim(front("web")), b.claim(front("web"))
    assert a.publish("web", one.mark, True) and b.publish("web", two.mark, True)
    engine.revoke(engine.get(KEYS.live("a"), one=True).items[0].lease)
    # b is alive: c joins without taking anything over
    three = c.claim(front("web"), take=True)
    assert three.gen == one.gen and {*three.hosts} == {"a", "b", "c"}
    assert c.release("web", three.mark)
    engine.revoke(engine.get(KEYS.live("b"), one=True).items[0].lease)
    with refuses(Conflict, "web is on", "do not answer") as raised:
        c.claim(front("web"))
    assert "--from-lost-host moves it here with 10.99.1.2" in (raised.value.hint or "")
    taken = c.claim(front("web"), take=True)
    assert (taken.hosts, taken.gen) == (("c",), one.gen + 1)
    assert not a.publish("web", one.mark, up=True) and not b.release("web", two.mark)
    # it did not start: it is the lost hosts' again
    assert c.release("web", taken.mark)
    held = a.held("web")
    assert held is not None and {*held.hosts} == {"a", "b"} and held.mark == one.mark
    # a is forgotten, and b has it alone
    engine.lose = ["back"]
    assert ClusterKeys(engine).forget("a") == ["web"]
    held = b.held("web")
    assert held is not None and (held.hosts, held.mark) == (("b",), two.mark)
    assert {host for host, _ in ups(engine)} == {"b"}


def test_backup_without_a_host_that_joined_later_loses_nothing(engine: FakeEngine) -> None:
    a, b = Claims(engine, "a"), Claims(engine, "b")
    one = a.claim(front("web"))
    backup = engine.get(KEYS.service("web"), one=True).items[0].value
    two = b.claim(front("web"))
    engine.commit(Txn((), (Put(KEYS.service("web"), backup),)))
    for name in "ab":
        engine.revoke(engine.get(KEYS.live(name), one=True).items[0].lease)
    again = b.claim(front("web"), since=two.gen)
    assert again.hosts == ("b", "a") and again.gen == one.gen


# --- the cluster itself ---------------------------------------------------------------------------------------------


def test_cluster_is_made_once() -> None:
    engine = FakeEngine()
    engine.lose = ["back"]
    made = ClusterKeys(engine).make()
    assert ClusterKeys(engine).cluster() == made
    with refuses(Conflict, made.identity, hint="join it, or choose another prefix"):
        ClusterKeys(engine).make()
    assert ClusterKeys(FakeEngine()).cluster() is None


def test_hosts_are_known_by_name_id_and_address(engine: FakeEngine) -> None:
    cluster = ClusterKeys(engine)
    assert [(h.name, h.alive) for h in cluster.hosts()] == [("a", True), ("b", True), ("c", False)]
    for wrong in (
        HostEntry("a", "id-other", "198.51.100.9", 1500, False),
        HostEntry("d", "id-a", "198.51.100.9", 1500, False),
        HostEntry("d", "id-d", "198.51.100.1", 1500, False),
    ):
        with pytest.raises(Conflict):
            cluster.join(wrong)
    engine.lose = ["back", "there"]
    cluster.join(HostEntry("a", "id-a", "198.51.100.11", 9000, False))
    assert cluster.hosts()[0][:4] == ("a", "id-a", "198.51.100.11", 9000)
    assert not cluster.live("a", "id-other", engine.grant(10), "boot")


def test_host_that_is_lost_is_forgotten_with_its_claims(engine: FakeEngine) -> None:
    cluster = ClusterKeys(engine)
    Claims(engine, "a").claim(wanted("api"))
    Claims(engine, "c").claim(wanted("web"))
    with refuses(Conflict, hint="only a host that is gone can be forgotten"):
        cluster.forget("a")
    with pytest.raises(NotFound):
        cluster.forget("d")
    engine.lose = ["back"]
    assert cluster.forget("c") == ["web"]
    assert [host.name for host in cluster.hosts()] == ["a", "b"]
    assert set(addresses(engine).values()) == {"api"}


def test_networks_do_not_overlap_and_each_has_its_number(engine: FakeEngine) -> None:
    cluster = ClusterKeys(engine)
    engine.lose = ["back"]
    front = cluster.create_network(Spec("front", 0, 1430, (("10.99.2.0/24", "10.99.2.1"),)))
    assert [spec.vni for spec in cluster.networks()] == [FIRST_VNI, FIRST_VNI + 1]
    assert cluster.create_network(front._replace(vni=0)) == front
    with refuses(Conflict, "front", hint="choose another name"):
        cluster.create_network(front._replace(mtu=9000))
    inside = Spec("other", 0, 1430, (("10.99.1.128/25", "10.99.1.129"),))
    with refuses(Conflict, "backend", "10.99.1.0/24", hint="choose another subnet"):
        cluster.create_network(inside)
    mine = Claims(engine, "a").claim(wanted("api"))
    with refuses(Conflict, hint="niso ps shows the services"):
        cluster.remove_network("backend")
    Claims(engine, "a").release("api", mine.mark)
    engine.lose = ["there", "back"]
    cluster.remove_network("backend")
    assert cluster.networks() == [front]
    assert engine.keys(KEYS.network("backend")) == []
    numbers = itertools.count(FIRST_VNI)
    assert cluster.create_network(BACKEND).vni == next(numbers)


def test_value_that_another_program_wrote_is_named(engine: FakeEngine) -> None:
    from niso.base.errors import Error
    from niso.cluster.engine import Put, Txn

    for value in (
        "",
        "[]",
        "{",
        '{"host": "a"}',
        '{"host":"a","gen":1,"claim":"x","networks":[],"names":[]}',
    ):
        engine.commit(Txn((), (Put(KEYS.service("bad"), value),)))
        with refuses(
            Error, "svc/bad", hint="another program may have written it: etcdctl get shows it"
        ):
            Claims(engine, "a").held("bad")
