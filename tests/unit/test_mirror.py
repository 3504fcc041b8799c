"""Test that a host follows the cluster: from claims on the fake engine to the fake kernel, at every step."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable

import pytest
from cluster_world import KEYS, ME, Cluster
from fake_world import World

from niso.base import names
from niso.base.errors import KernelError
from niso.change.deactivate import remove
from niso.cluster import mirror
from niso.cluster.claims import Claims, Wanted
from niso.kernel.kinds.addresses import Fdb, PermanentNeighbour
from niso.kernel.kinds.kind import State


@pytest.fixture
def cluster(world: World) -> Cluster:
    return Cluster(world)


def test_service_of_another_host_is_there_with_all_that_it_needs(cluster: Cluster) -> None:
    api = cluster.claim("a", "api", "shop")
    assert cluster.follow() == ["api"]
    four, six = api.networks["backend"]
    assert cluster.claims() == {("api", "198.51.100.1")}
    assert cluster.allowed() == {four}
    assert {f"{four} shop", f"{six} shop"} <= cluster.lines()
    state = cluster.world.kernel.everything(State())
    mac = names.mac("api", "backend", cluster.world.store.cluster_id())
    assert state[Fdb] == {Fdb("nx-backend", mac, "198.51.100.1")}
    assert {
        PermanentNeighbour("", "niso-backend", address, mac) for address in (four, six)
    } <= state[PermanentNeighbour]
    cluster.world.assert_whole()
    done = len(cluster.world.kernel.done)
    assert cluster.follow() == []
    assert len(cluster.world.kernel.done) == done
    cluster.release("a", "api")
    assert cluster.follow() == ["api"]
    assert not cluster.claims() and not cluster.allowed()
    assert not cluster.world.kernel.everything(State())[Fdb]
    cluster.world.assert_whole()


def test_names_are_those_of_what_is_up_on_a_host_that_lives(cluster: Cluster) -> None:
    api = cluster.claim("c", "api", up=False)
    line = f"{api.networks['backend'][0]} api"
    cluster.follow()
    assert line not in cluster.lines() and cluster.claims()
    Claims(cluster.engine, "c").publish("api", api.mark, up=True)
    cluster.follow()
    assert line in cluster.lines()
    cluster.engine.revoke(cluster.lease)  # c's
    cluster.follow()
    assert line not in cluster.lines()
    assert cluster.claims() == {("api", "198.51.100.3")} and cluster.allowed()
    cluster.world.assert_whole()


def test_service_of_two_hosts_has_its_name_and_the_instances_of_the_live_one(
    cluster: Cluster,
) -> None:
    for host, number in (("a", 1), ("c", 2)):
        claims = Claims(cluster.engine, host)
        web = claims.claim(Wanted("web", ("backend",), ("web",), {}, {}, front=True))
        one = claims.claim(Wanted(f"web.{number}", ("backend",), (), {}, {}))
        assert claims.publish("web", web.mark, True)
        assert claims.publish(f"web.{number}", one.mark, True)

    def slots() -> set[str]:
        elements = cluster.world.kernel.elements.values()
        return {str(e.value[0]) for e in elements if e.container == "slots4"}

    line = f"{web.networks['backend'][0]} web"
    cluster.follow()
    assert line in cluster.lines() and len(slots()) == 2
    # c was the last to publish the service, so the address is recorded as on c
    cluster.engine.revoke(cluster.lease)
    cluster.follow()
    assert line in cluster.lines() and len(slots()) == 1
    assert one.networks["backend"][0] not in slots()
    cluster.world.assert_whole()
    lives = cluster.engine.get(KEYS.live("a"), one=True).items
    cluster.engine.revoke(lives[0].lease)
    cluster.follow()
    assert line not in cluster.lines() and not slots()
    cluster.world.assert_whole()


def test_service_that_moves_is_heard_from_its_new_host_alone(cluster: Cluster) -> None:
    cluster.claim("c", "api")
    cluster.follow()
    cluster.engine.revoke(cluster.lease)
    wanted = Wanted("api", ("backend",), ("api",), {}, {})
    Claims(cluster.engine, "a").claim(wanted, take=True)
    cluster.follow()
    assert cluster.claims() == {("api", "198.51.100.1")}
    assert {entry.host for entry in cluster.world.kernel.everything(State())[Fdb]} == {
        "198.51.100.1"
    }
    cluster.world.assert_whole()


def test_own_service_that_another_host_has_taken_is_named(cluster: Cluster) -> None:
    assert mirror.fenced(cluster.world.store, cluster.seen(), ME) == []
    Claims(cluster.engine, "x")
    for item in cluster.engine.get(f"{KEYS.live(ME)}").items:
        cluster.engine.revoke(item.lease)
    wanted = Wanted("db", ("backend",), ("db",), {}, {})
    Claims(cluster.engine, "a").claim(wanted, take=True)
    assert mirror.fenced(cluster.world.store, cluster.seen(), ME) == ["db"]


def breach(cluster: Cluster) -> bool:
    """Return whether evil may be heard at an address that db's policy lets in."""
    store, kernel = cluster.world.store, cluster.world.kernel
    evil = names.mac("evil", "backend", store.cluster_id())
    heard = [
        e.fields for e in kernel.elements.values() if e.container == "vx44" and e.fields[2] == evil
    ]
    allowed = {str(int.from_bytes(bytes(map(int, a.split("."))))) for a in cluster.allowed()}
    return any(fields[3] in allowed for fields in heard)


def follow_until(
    cluster: Cluster, number: int, before: Callable[[], None] = lambda: None
) -> list[str] | None:
    """Follow the cluster, with step ``number`` of the kernel refused; return None if it was reached."""
    steps = itertools.count(1)

    def refuse(_: object) -> int:
        before()
        return errno.ENOMEM if next(steps) == number else 0

    cluster.world.kernel.fail = refuse
    try:
        return cluster.follow()
    except KernelError:
        return None
    finally:
        cluster.world.kernel.fail = lambda step: 0


def test_address_that_another_service_has_now_never_meets_the_old_policy(cluster: Cluster) -> None:
    """Before each step of the kernel, and in whatever state a failure at one of them leaves it."""
    address = cluster.claim("a", "api").networks["backend"][0]
    cluster.follow()
    assert cluster.allowed() == {address}
    cluster.release("a", "api")
    cluster.claim("c", "evil", address=address)
    kernel = cluster.world.kernel

    def is_sound() -> None:
        assert not breach(cluster)

    for number in range(1, 40):
        changed = follow_until(cluster, number, is_sound)
        is_sound()
        if changed is not None:
            break
    else:
        pytest.fail("it never ends")
    assert number > 4 and changed
    assert cluster.claims() == {("evil", "198.51.100.3")}
    assert not cluster.allowed() and not breach(cluster)
    assert address in kernel.forgotten, "its flows have ended"
    cluster.world.assert_whole()


def test_change_that_the_kernel_broke_off_leaves_nothing_of_what_has_gone_since(
    cluster: Cluster,
) -> None:
    """A service is claimed, its host is told in part, and another has its address by then."""
    for number in range(1, 40):
        address = cluster.claim("a", "api").networks["backend"][0]
        if follow_until(cluster, number) is not None:
            break
        cluster.release("a", "api")
        cluster.claim("c", "evil", address=address)
        cluster.follow()
        assert cluster.claims() == {("evil", "198.51.100.3")}, number
        cluster.world.assert_whole()
        cluster.release("c", "evil")
        cluster.follow()
        assert not cluster.claims()
    assert number > 4


def test_command_first_goes_back_from_what_the_kernel_broke_off(cluster: Cluster) -> None:
    """Elements of its policy for a service that the rows do not have would stay, for its next address."""
    world = cluster.world
    package = str(world.folder / "db")
    for number in range(1, 40):
        cluster.claim("a", "api")
        if follow_until(cluster, number) is not None:
            break
        remove(world.machine, ["db"])
        cluster.release("a", "api")
        cluster.follow()
        world.assert_whole()
        world.activate(package)
        world.assert_whole()
    assert number > 4
