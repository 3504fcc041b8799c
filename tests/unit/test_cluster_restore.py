"""Test what hosts write again after the engine has lost its data, all or those since a backup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_world import KEYS, ME, Hosted, create, lose
from fake_world import World
from fakes.engine import FakeEngine
from refusals import refuses

from niso.base.errors import Conflict
from niso.change.deactivate import deactivate, remove
from niso.cluster.claims import Claims, Wanted
from niso.cluster.engine import NoAnswer, decode
from niso.cluster.key_values import HostEntry
from niso.cluster.own_claims import restore

OWN = HostEntry(ME, f"id-{ME}", "198.51.100.2", 1500, True)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Hosted]:
    with World(tmp_path) as world:
        made = Hosted(world)
        made.claim("c", "web", "www")
        made.claim("a", "down", up=False)
        made.activate(made.package("idle"))
        deactivate(world.machine, ["idle"])
        made.look()
        yield made


def wipe(host: Hosted) -> dict[str, dict[str, object]]:
    """Have the engine lose its data; return what it had, without what no host knows."""
    engine = host.engine
    had = {item.key: decode(item.value, item.key) for item in engine.get(KEYS.prefix).items}
    empty = FakeEngine()
    for name in ("_items", "_history", "_leases", "_revision"):
        setattr(engine, name, getattr(empty, name))
    return had


def test_all_that_a_host_knows_is_written_again_and_newer_claims_have_higher_numbers(
    host: Hosted,
) -> None:
    picture, kernel = host.world.picture(), host.claims()
    had = wipe(host)
    highest = max(int(str(value["gen"])) for value in had.values() if "gen" in value)
    for now_s in (0.0, 100.0):
        host.look(now_s)
    assert host.said == [
        f"etcd has no cluster, not {host.world.store.cluster_id()}: nothing is changed"
    ]
    with refuses(Conflict, hint="niso cluster status shows both"):
        host.activate(host.package("new"))
    assert host.world.picture() == picture and host.engine.get(KEYS.prefix).items == ()
    restore(host.world.store, host.membership, OWN, "")
    for item in host.engine.get(KEYS.prefix).items:
        have, was = decode(item.value, item.key), had.pop(item.key)
        for unlike in ("claim", "boot", "base"):
            have.pop(unlike, None), was.pop(unlike, None)
        if item.key.startswith(KEYS.services):
            was = {"up": False, "ports": [], "policy": "", "sharers": {}, **was}
            if was["host"] == "c":
                was["up"] = True
        assert have == was, item.key
    assert had.keys() == {KEYS.live(ME)}, "the agents that live say so themselves"
    assert host.agent.renew_lease(host.engine, 0)
    host.look(200.0)
    assert host.record("db") and host.up("db") and not host.up("idle")
    assert host.claims() == kernel
    host.activate(host.package("new"))
    held = host.held("new")
    assert held and held.gen > highest
    with refuses(Conflict, hint="niso cluster status shows its hosts"):
        restore(host.world.store, host.membership, OWN, "")
    host.world.assert_whole()


@pytest.mark.parametrize("lost", ["there", "back"])
def test_restore_that_is_broken_off_is_done_by_the_next(host: Hosted, lost: str) -> None:
    had = wipe(host).keys() - {KEYS.live(ME)}
    for number in range(1, 30):
        host.engine.lose += [""] * number + [lost] * 40
        try:
            restore(host.world.store, host.membership, OWN, "")
        except NoAnswer:
            host.engine.lose.clear()
            if host.membership.cluster() is not None:
                break
            host.look()
            assert host.engine.get(KEYS.service("db"), one=True).items == () or number > 3
            continue
        break
    host.engine.lose.clear()
    assert {item.key for item in host.engine.get(KEYS.prefix).items} == had
    assert number > 5


def test_what_a_backup_does_not_have_is_written_again_and_the_older_claim_gives_way(
    host: Hosted,
) -> None:
    old = dict(host.engine._items)
    create(host, "late", "10.99.6.0/24")
    host.activate(host.package("api", "late"))
    remove(host.world.machine, ["idle"])
    lose(host, "c")
    web = host.activate(host.package("web"), take=True)
    host.engine._items = old
    host.look()
    # c, which is back, takes its own for the one that counts
    assert "restored" in " ".join(host.said) and host.record("api") and host.up("api")
    held = host.held("web")
    assert held and held.host == ME and held.networks["backend"][0] == web
    assert host.record("web") and host.up("web") and host.held("idle") is None
    claims = Claims(host.engine, "a")
    with refuses(Conflict, "web", ME):
        claims.claim(Wanted("web", ("backend",), ("web",), {}, {}), take=True)
    host.world.assert_whole()


def test_address_that_a_backup_gives_to_another_service_is_named(host: Hosted) -> None:
    other = host.claim("a", "other")
    old = dict(host.engine._items)
    host.release("a", "other")
    assert host.activate(host.package("api")) == other.networks["backend"][0]
    host.engine._items = old
    host.look()
    assert "api: address 10.99.1.6 on network 'backend' belongs to 'other' on a" in host.said
    host.release("a", "other")  # a's agent has no record of it
    host.look()
    assert host.record("api") and host.up("api")
    host.world.assert_whole()
