"""Test services and attachments that one host takes over from another; the host is b, with db on backend."""

from __future__ import annotations

import pytest
from cluster_world import ME, Hosted, lose
from fake_world import World

from niso.base.errors import Error
from niso.cluster.claims import Claims, Wanted
from niso.cluster.key_values import HostEntry, Spec


@pytest.fixture
def host(world: World) -> Hosted:
    return Hosted(world)


def test_attachment_that_is_taken_over_is_detached(host: Hosted) -> None:
    host.attach("one")
    lose(host, ME)
    taken = Claims(host.engine, "c").claim(Wanted("one", ("backend",), ("one",), {}, {}), take=True)
    assert taken.host == "c"
    host.look()
    assert host.world.store.service("one") is None and host.record("one")
    host.world.assert_whole()


def test_lost_service_is_taken_over_with_its_addresses_and_nothing_of_the_old_host(
    host: Hosted,
) -> None:
    other = host.claim("c", "web")
    host.look()
    assert ("web", "198.51.100.3") in host.claims()
    lose(host, "c")
    assert host.activate(host.package("web"), take=True) == other.networks["backend"][0]
    assert host.up("web") and host.record("web")
    assert host.claims() == set() and not host.world.store.across.addresses()
    host.world.assert_whole()
    host.look()
    host.world.assert_whole()
    assert host.said == []


def test_service_that_fails_to_start_goes_back_to_the_host_that_it_was_taken_from(
    host: Hosted,
) -> None:
    other = host.claim("c", "web")
    host.look()
    lose(host, "c")
    host.world.processes.fail = lambda what: what.startswith("start")
    with pytest.raises(Error):
        host.activate(host.package("web"), take=True)
    host.world.processes.fail = lambda what: False
    back = host.held("web")
    assert back and (back.host, back.mark, back.networks) == ("c", other.mark, other.networks)
    assert host.up("web") and back.former == ""
    host.look()
    assert ("web", "198.51.100.3") in host.claims()
    host.world.assert_whole()


@pytest.mark.parametrize("how", ["taken", "forgotten", "taken to a network of others"])
def test_service_that_another_host_took_is_ended_and_its_address_is_free_for_others(
    host: Hosted, how: str
) -> None:
    forgotten, on = how == "forgotten", "backend"
    lose(host, ME)
    claims = Claims(host.engine, "a")
    if forgotten:
        assert host.membership.forget(ME) == ["db"]
    if "network" in how:
        on = "front"
        host.membership.create_network(Spec(on, 0, 1430, (("10.99.7.0/24", "10.99.7.1"),)))
    taken = claims.claim(Wanted("db", (on,), ("db",), {}, {}), take=not forgotten)
    claims.publish("db", taken.mark, up=True)
    host.look()
    assert host.said[0] == "taken over by other hosts, and ended here: db"
    if forgotten:
        host.membership.join(HostEntry(ME, f"id-{ME}", "198.51.100.2", 1500, False))
    assert host.world.store.across.claim("db") is None
    host.release("a", "db")
    host.look()
    assert host.activate(host.package("api")) == "10.99.1.2"
    assert host.record("api")
    host.world.assert_whole()


def test_policy_means_a_service_where_it_is_now_and_not_its_former_address(host: Hosted) -> None:
    host.activate(host.package("web", policy={"allow_from": ["db"]}))
    assert host.allowed() == {"10.99.1.2"}
    lose(host, ME)
    claims = Claims(host.engine, "a")
    other = claims.claim(
        Wanted("db", ("backend",), ("db",), {"backend": ("10.99.1.9",)}, {}), take=True
    )
    claims.publish("db", other.mark, up=True)
    host.look()
    assert host.world.store.service("db") and host.allowed() == {"10.99.1.9"}
    host.release("a", "db")
    host.claim("c", "evil", address="10.99.1.2")
    host.look()
    assert ("evil", "198.51.100.3") in host.claims() and host.allowed() == set()
    host.world.assert_whole()


def test_address_that_somebody_else_just_had_is_his_no_more(host: Hosted) -> None:
    """The mirror is behind: web has gone, and its address is this host's now."""
    address = host.claim("c", "web").networks["backend"][0]
    host.look()
    host.release("c", "web")
    assert host.activate(host.package("api")) == address
    assert host.claims() == set()
    assert address in host.allowed(), "db allows api"
    host.world.assert_whole()
