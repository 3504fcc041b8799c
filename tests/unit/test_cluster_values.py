"""Test values of the cluster that niso has not written: nothing but claims reaches the kernel, and no error is without a key."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import KEYS, ME, Cluster
from fake_world import World
from samples import samples

from niso.base.errors import Error
from niso.cluster import key_values
from niso.cluster.agent import Agent
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import Delete, Put, Txn, encode
from niso.cluster.key_values import Spec
from niso.cluster.membership import ClusterKeys
from niso.kernel.ruleset import CLAIMS

SUBNETS = (("10.99.7.0/24", "10.99.7.1"),)
SAMPLES = samples(150, 5000)
THINGS: list[Any] = [
    None,
    True,
    -1,
    1 << 70,
    1.5,
    "",
    "a b",
    "0.0.0.0/0",
    "10.99.1.2",
    "localhost",
    "x" * 300,
    "x\nlocalhost",
    [],
    [None],
    {},
    {"a": 1},
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with World(tmp_path) as world:
        yield Cluster(world)


def agent(cluster: Cluster, said: list[str]) -> Agent:
    me = (ME, f"id-{ME}", cluster.world.store.cluster_id(), "boot")
    return Agent(me, lambda: cluster.engine, lambda names: None, said.append)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("10.99.1.7", True),
        ("fd00:1::7", True),
        ("10.99.1.07", False),
        ("0.0.0.0/0", False),
        ("fd00:1:0::7", False),
        ("fe80::1%eth0", False),
        ("10.99.1.7 . 1", False),
        ("", False),
    ],
)
def test_address_is_one_in_its_usual_form(address: str, good: bool) -> None:
    assert key_values.is_address(address) is good


def test_claim_outside_the_network_or_of_a_wrong_name_is_ignored_and_named(
    cluster: Cluster,
) -> None:
    good = cluster.claim("a", "api").networks["backend"]
    value = {"service": "bad", "host": "a", "gen": 1, "names": ["bad"], "up": True}
    wrong = {
        "0.0.0.0/0": value,
        "10.99.1.9": value | {"service": "localhost"},
        "10.99.1.10": value | {"names": ["x\n1.2.3.4 y"]},
        "10.99.1.11": value | {"host": "../a"},
        "10.99.1.18": value | {"names": [f"n{number}" for number in range(121)]},
        "10.99.1.12": value | {"gen": "9"},
        "10.99.1.13": value | {"host": "own"},
        "10.99.1.14": value | {"host": "many"},
        "10.99.1.15": value | {"host": "six"},
        "10.99.1.0": value,
        "10.99.1.1": value,
        "10.99.1.255": value,
        "fd00:1::1": value,
    }
    outside = {"8.8.8.8": value, "fd00:2::8": value | {"service": "bad6", "names": ["bad6"]}}
    for host, place in (("own", "198.51.100.2"), ("many", "224.0.0.1"), ("six", "2001:db8::6")):
        put = Put(KEYS.host(host), encode({"id": host, "address": place, "mtu": 1500}))
        assert cluster.engine.commit(Txn((), (put,)))
    for address, each in (wrong | outside).items():
        put = Put(KEYS.address("backend", address), encode(each))
        assert cluster.engine.commit(Txn((), (put,)))
    for address, text in (("10.99.1.16", "no JSON"), ("10.99.1.17", "[" * 100_000)):
        wrong[address] = value
        put = Put(KEYS.address("backend", address), text)
        assert cluster.engine.commit(Txn((), (put,)))
    said: list[str] = []
    looking = agent(cluster, said)
    for _ in range(2):
        looking.poll(cluster.world.store, cluster.world.kernel, cluster.engine, 0)
    assert {service for service, _ in cluster.claims()} == {"api"}
    assert cluster.lines() >= {f"{good[0]} api"}
    assert not [
        line for line in cluster.lines() if "bad" in line or "localhost" in line.split()[1:]
    ]
    assert len(said) == 1 and said[0].startswith("without a valid value, and ignored: ")
    assert all(KEYS.address("backend", address) in said[0] for address in wrong | outside)


def test_any_damage_of_any_value_is_ignored_or_an_error_with_its_key(cluster: Cluster) -> None:
    cluster.claim("a", "api", "alias")
    cluster.claim("c", "web", up=False)
    store, kernel, engine = cluster.world.store, cluster.world.kernel, cluster.engine
    agent(cluster, []).poll(store, kernel, engine, 0)
    items = [item for item in engine.get(KEYS.prefix).items if not item.key.endswith("/live")]

    def heard() -> set[tuple[str, ...]]:
        """MAC and address of what may be heard: where from is for a value to say."""
        found = [e for e in kernel.elements.values() if e.container in CLAIMS]
        return {e.fields[2:] for e in found}

    legal = heard()
    membership, claims = ClusterKeys(engine), Claims(engine, "a")
    wanted = Wanted("new", ("backend",), ("new", "api"), {}, {})
    for seed in range(SAMPLES):
        chance = random.Random(seed)
        item = chance.choice(items)
        value = json.loads(item.value)
        if chance.random() < 0.2 or not value:
            text = chance.choice(["", "[]", "nul", "{", json.dumps(chance.choice(THINGS))])
        else:
            name = chance.choice(sorted(value))
            if chance.random() < 0.3:
                del value[name]
            else:
                value[name] = chance.choice(THINGS)
            text = json.dumps(value)
        assert engine.commit(Txn((), (Put(item.key, text),)))
        for call in (
            lambda: agent(cluster, []).poll(store, kernel, engine, 0),
            membership.networks,
            membership.services,
            lambda: membership.create_network(Spec("other", 0, 1400, SUBNETS)),
            lambda: claims.foreseen(wanted, take=False),
            lambda: claims.foreseen(wanted._replace(service="web", names=("web",)), take=True),
        ):
            with contextlib.suppress(Error):
                call()
        assert heard() <= legal, (seed, item.key, text)
        other = Delete(KEYS.network("other"), prefix=True)
        assert engine.commit(Txn((), (Put(item.key, item.value), other)))
        agent(cluster, []).poll(store, kernel, engine, float(seed))
    cluster.world.assert_whole()
    assert {service for service, _ in cluster.claims()} == {"api", "web"}
