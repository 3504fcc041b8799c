"""Test that names are those of a network: on fakes, from hosts files to policies and stacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_world import World
from hypothesis import given, settings
from hypothesis import strategies as st
from names_seen import address, allowed, on, seen
from refusals import refuses
from samples import samples
from stored import TemporaryStore, add_network, put

from niso.base import names
from niso.base.errors import Conflict, Error, InvalidInput, NotFound, ProcessError, flatten
from niso.change import activate
from niso.change.deactivate import deactivate, remove
from niso.look import packet_path
from niso.manifest.policy import parse
from niso.plan.records import NetworkRecord, SubnetRecord

# --- the same name on two networks ------------------------------------------------------------------------------------


def test_two_networks_have_a_name_each_and_none_sees_the_other(world: World) -> None:
    world.activate(
        world.package("one-db", network=on("one", hostname="db")),
        world.package("two-db", network=on("two", hostname="db")),
        world.package("one-api", network=on("one")),
        world.package("two-api", network=on("two")),
    )
    for network in ("one", "two"):
        found = seen(world, network)
        assert found["db"] == address(world, f"{network}-db")
        assert set(found) == {"db", f"{network}-db", f"{network}-api"}
    world.assert_whole()
    assert world.store.resolve("db.niso.local", "one-api") == "one-db"
    assert world.store.resolve("db", "two-api") == "two-db"
    with refuses(Conflict, "'db'", "'one-db' (network one)", "'two-db' (network two)"):
        world.store.resolve("db")
    ends = packet_path.resolve_both(world.store, "one-api", "db")
    assert [end.service for end in ends] == ["one-api", "one-db"]
    remove(world.machine, ["two-db"])
    assert world.store.resolve("db") == "one-db"  # the only one
    world.assert_whole()


@pytest.mark.parametrize("by", ["hostname", "aliases"])
def test_name_that_another_service_has_on_a_common_network_is_refused(
    world: World, by: str
) -> None:
    world.activate(world.package("one-db", network=on("one", "both", aliases=["db"])))
    mine = {by: "db" if by == "hostname" else ["db"]}
    before = world.picture()
    with refuses(Conflict, "'db'", "'one-db'", "'both'"):
        world.activate(world.package("two-db", network=on("two", "both", **mine)))
    assert world.picture() == before
    world.activate(world.package("two-db", network=on("two", **mine)))
    before = world.picture()
    with pytest.raises(Conflict):  # nor may it move there later
        world.activate(world.package("two-db", network=on("two", "both", **mine)))
    assert world.picture() == before
    world.assert_whole()


def test_name_of_an_inactive_service_stays_its_own(world: World) -> None:
    named = {"hostname": "front", "aliases": ["web"]}
    world.activate(world.package("api", network=named))
    deactivate(world.machine, ["api"])
    before = world.picture()
    taken: dict[str, dict[str, Any]] = {
        "api": {"hostname": "api"},
        "web": {"hostname": "web"},
        "front": {"aliases": ["front"]},
    }
    for name, other in taken.items():
        key = f"network.{next(iter(other))}"
        with refuses(Conflict, repr(name), "'api'", key=key):
            world.activate(world.package("second", network=other))
    with refuses(Conflict, "'front'", "'api'", key="package.name"):
        world.activate(world.package("front"))
    assert world.picture() == before
    remove(world.machine, ["api"])
    world.activate(world.package("front"))
    world.assert_whole()


def test_names_of_a_sharer_are_those_of_its_provider_network(world: World) -> None:
    world.activate(world.package("api", network=on("one")))
    world.activate(world.package("db", network={"mode": "share", "share": "api"}))
    assert seen(world, "one")["db"] == address(world, "api")
    with refuses(
        Conflict,
        "db",
        "one",
        key="network.aliases",
        hint="choose another name, here or in the manifest of db",
        file="one-db/manifest.toml",
    ):
        world.activate(world.package("one-db", network=on("one", aliases=["db"])))
    world.activate(world.package("two-db", network=on("two", aliases=["db"])))
    with refuses(
        Conflict,
        "db",
        "two-db",
        key="package.name",
        hint="choose another name, here or in the manifest of two-db",
        file="db/manifest.toml",
    ):
        world.activate(world.package("api", network=on("one", "two")))
    world.assert_whole()


def test_service_called_so_is_meant_by_a_command_and_else_the_only_one(world: World) -> None:
    world.activate(
        world.package("db", network=on("one")),
        world.package("two-db", network=on("two", hostname="db", aliases=["cache"])),
    )
    assert world.store.resolve("db") == "db"
    assert world.store.resolve("cache") == "two-db"
    with pytest.raises(NotFound):
        world.store.resolve("cash")


def test_reader_on_both_networks_sees_the_name_of_its_first_one(world: World) -> None:
    proxy = world.package("proxy", network=on("two", "one"))
    world.activate(
        world.package("one-db", network=on("one", hostname="db")),
        world.package("two-db", network=on("two", hostname="db")),
        proxy,
    )
    one, two = address(world, "one-db"), address(world, "two-db")
    assert seen(world, "two", "one")["db"] == two
    assert seen(world, "two", "one")["one-db"] == one  # its other name stays
    assert packet_path.resolve_both(world.store, "proxy", "db")[1].service == "two-db"
    world.assert_whole()
    deactivate(world.machine, ["two-db"])
    assert seen(world, "two", "one")["db"] == one
    assert packet_path.resolve_both(world.store, "proxy", "db")[1].service == "one-db"
    world.assert_whole()
    world.activate(world.package("two-db", network=on("two", hostname="db")))
    assert seen(world, "two", "one")["db"] == two
    world.assert_whole()
    world.activate(world.package("two-db", network=on("two", hostname="database")))
    assert seen(world, "two", "one")["db"] == one
    world.activate(world.package("late", network=on("two", aliases=["db", "one-db"])))
    assert "one-db" in seen(world, "one")  # its own network is not concerned
    assert seen(world, "two", "one")["one-db"] == address(world, "late")
    world.assert_whole()
    remove(world.machine, ["late"])
    world.activate(world.package("proxy", network=on("one", "two")))
    assert seen(world, "one", "two")["db"] == one
    world.assert_whole()


# --- the host, extra hosts, name servers, static addresses ----------------------------------------------------------


def lines(world: World, folder: str) -> set[str]:
    return {f"{line.address} {line.names}" for line in world.kernel.hosts[folder]}


def test_host_has_a_name_on_the_first_network_of_the_reader(world: World) -> None:
    world.make("two", "10.99.2.0/24", "fd00:2::/64")
    world.activate(
        world.package("api", network=on("one")),
        world.package("both", network=on("two", "one")),
    )
    first, second = world.store.network("one"), world.store.network("two")
    assert first and second
    assert seen_host(world, "one") == {subnet.gateway for subnet in first.subnets}
    assert seen_host(world, "two", "one") == {"10.99.2.1", "fd00:2::1"}
    world.assert_whole()


def seen_host(world: World, *networks: str) -> set[str]:
    wanted = names.hosts_folder(networks)
    return {line.address for line in world.kernel.hosts[wanted] if line.names == "host.niso.local"}


def test_extra_hosts_are_in_a_file_of_that_service_alone(world: World) -> None:
    world.make("one", "10.99.1.0/24", "fd00:1::/64")
    extra = {"old.example": "192.0.2.7", "also": "192.0.2.7", "gw": "host-gateway"}
    world.activate(
        world.package("api", network=on("one", extra_hosts=extra)),
        world.package("db", network=on("one")),
    )
    shared, own = names.hosts_folder(("one",)), names.own_hosts_folder("api")
    more = {"192.0.2.7 also old.example", "10.99.1.1 gw", "fd00:1::1 gw"}
    assert lines(world, own) == lines(world, shared) | more
    assert not lines(world, shared) & more
    world.assert_whole()
    # it follows what comes and goes, in the running process
    process = world.pid("api")
    world.activate(world.package("web", network=on("one", aliases=["www"])))
    assert lines(world, own) == lines(world, shared) | more
    assert any("www" in line for line in lines(world, own))
    remove(world.machine, ["web"])
    world.activate(world.package("api", network=on("one", extra_hosts={"db": "192.0.2.9"})))
    assert "192.0.2.9 db" in lines(world, own)
    assert not any("db.niso.local" in line for line in lines(world, own))  # it comes first
    assert any("db.niso.local" in line for line in lines(world, shared))
    world.assert_whole()
    world.activate(world.package("api", network=on("one")))
    assert own not in world.kernel.hosts
    assert world.pid("api") == process
    world.activate(world.package("api", network=on("one", extra_hosts=extra)))
    remove(world.machine, ["db"])
    assert shared not in world.kernel.hosts
    world.assert_whole()
    remove(world.machine, ["api"])
    assert world.kernel.hosts == {}
    world.assert_whole()


def test_failed_change_of_extra_hosts_is_undone(world: World) -> None:
    world.activate(world.package("api", network=on("one", extra_hosts={"a": "192.0.2.7"})))
    before = world.picture()
    world.processes.dies["db"] = 3
    with pytest.raises(ProcessError):
        world.activate(
            world.package("api", network=on("one", extra_hosts={"b": "192.0.2.7"})),
            world.package("db", network=on("one")),
        )
    assert world.picture() == before
    world.assert_whole()


def test_name_servers_are_those_of_the_manifest_and_a_change_restarts(world: World) -> None:
    def resolver() -> str:
        row = world.store.service("api")
        assert row is not None
        return row.require_process().resolv_conf

    world.activate(world.package("api", network=on("one")))
    first = world.pid("api")
    dns = {"dns": ["192.0.2.53", "fd00::53"], "dns_search": ["example.com", "lan"]}
    world.activate(world.package("api", network=on("one", **dns)))
    servers = [line for line in resolver().splitlines() if line.startswith(("name", "search"))]
    assert servers == ["nameserver 192.0.2.53", "nameserver fd00::53", "search example.com lan"]
    assert world.pid("api") != first
    activate.restart(world.machine, ["api"])
    assert "nameserver 192.0.2.53\n" in resolver()
    world.activate(world.package("api", network=on("one", dns_search=[])))
    assert "search" not in resolver() and "192.0.2.53" not in resolver()


def test_static_addresses_of_both_families(world: World) -> None:
    world.make("one", "10.99.1.0/24", "fd00:1::/64")
    world.activate(world.package("db", network=on("one")))
    process = world.pid("db")
    world.activate(world.package("db", network=on("one", ip=["10.99.1.9", "fd00:1::99"])))
    assert address(world, "db") == {"10.99.1.9", "fd00:1::99"}
    assert world.pid("db") == process
    world.assert_whole()
    world.activate(world.package("db", network=on("one", ip={"one": "fd00:1::7"})))
    assert address(world, "db") == {"10.99.1.9", "fd00:1::7"}
    before = world.picture()
    for ip, reason in (
        ("fd00:1::7", "is leased to service 'db'"),
        ("fd00:2::7", "is not in fd00:1::/64"),
        ("fd00:1::1", "cannot be a service's address"),
    ):
        with pytest.raises((Conflict, InvalidInput), match=reason):
            world.activate(world.package("api", network=on("one", ip=["10.99.1.20", ip])))
    with refuses(
        InvalidInput,
        "four",
        "fd00:1::8",
        key="network.ip",
        hint="remove it from network.ip, or create the network first: niso net create four --subnet CIDR",
        file="api/manifest.toml",
    ):
        world.activate(world.package("api", network=on("four", ip="fd00:1::8")))
    with refuses(
        Conflict,
        "10.99.1.66",
        "'fresh'",
        "10.99.1.0/24",
        "'one'",
        key="network.ip",
        hint="choose another one, or create the network first: niso net create fresh --subnet CIDR",
        file="api/manifest.toml",
    ):
        world.activate(world.package("api", network=on("fresh", ip="10.99.1.66")))
    for wrong in (
        "10.99.1.1",
        "10.99.1.0",
        "10.99.1.255",
        "10.98.1.5",
        "x",
        {"other": "10.99.1.5"},
    ):
        with refuses(Error) as caught:
            world.activate(world.package("api", network=on("one", ip=wrong)))
        assert {error.key for error in flatten(caught.value)} <= {"network.ip", "network.ip.other"}
    assert world.picture() == before
    world.assert_whole()


def test_static_address_makes_its_network_and_is_given_to_nobody_else(world: World) -> None:
    world.activate(world.package("api", network=on("backend", ip="10.60.7.3")))
    assert world.store.require_network("backend").subnets[0].cidr == "10.60.7.0/24"
    deactivate(world.machine, ["api"])
    world.activate(world.package("one", network=on("backend")))
    world.activate(world.package("two", network=on("backend")))
    assert [address(world, name) for name in ("one", "two")] == [{"10.60.7.2"}, {"10.60.7.4"}]
    with refuses(Conflict, "10.60.7.3", "'api'", key="network.ip"):
        world.activate(world.package("thief", network=on("backend", ip="10.60.7.3")))
    world.activate(world.package("api", network=on("backend", ip="10.60.7.60")))
    assert seen(world, "backend")["api"] == {"10.60.7.60"}
    world.assert_whole()


def test_hosts_file_has_each_active_service_hostname_first_then_name_then_aliases(
    world: World,
) -> None:
    named = on("backend", hostname="front", aliases=["web", "www"])
    world.activate(world.package("api", network=named))
    for name, networks in (
        ("db", ["backend"]),
        ("apart", ["frontend"]),
        ("both", ["frontend", "backend"]),
    ):
        world.activate(world.package(name, network=on(*networks)))
    own = (
        "10.99.1.2 front.niso.local front api.niso.local api web.niso.local web www.niso.local www"
    )
    assert set(world.kernel.hosts) == {"backend", "frontend", "frontend+backend"}
    assert own in lines(world, "backend") and own in lines(world, "frontend+backend")
    assert not any("api" in line for line in lines(world, "frontend"))
    assert "10.99.1.4 both.backend.niso.local" in lines(world, "frontend+backend")
    deactivate(world.machine, ["api"])
    assert not any("api" in line for line in lines(world, "backend"))
    before = world.pid("db")
    world.activate(world.package("api", network=on("backend", aliases=["new"])))
    assert "10.99.1.2 api.niso.local api new.niso.local new" in lines(world, "backend")
    assert world.pid("db") == before
    world.assert_whole()


# --- policies ---------------------------------------------------------------------------------------------------------


def test_alias_on_another_network_is_never_what_a_policy_means(world: World) -> None:
    """The attack: whoever may call a service ``db`` on any network would be let in by a port."""
    world.activate(
        world.package("api", network=on("one", ports=["80:80"], policy={"allow_from": ["db"]})),
        world.package("evil", network=on("two", aliases=["db"])),
    )
    assert not allowed(world, "evil", "api", 80)
    world.activate(world.package("one-db", network=on("one", hostname="db")))
    assert allowed(world, "one-db", "api", 80) and not allowed(world, "evil", "api", 80)
    remove(world.machine, ["one-db"])
    assert not allowed(world, "evil", "api", 80)
    before = world.picture()
    with pytest.raises(Conflict):  # it cannot come closer and be one of two
        world.activate(
            world.package("evil", network=on("two", "one", aliases=["db"])),
            world.package("one-db", network=on("one", hostname="db")),
        )
    assert world.picture() == before
    world.assert_whole()


def test_second_service_of_a_name_in_a_policy_is_refused_not_let_in(world: World) -> None:
    policy = {"allow_from": ["db:80"], "egress": {"allow": ["db.niso.local:5432"]}}
    api = world.package("api", network=on("one", "two"))
    world.activate(api, world.package("one-db", network=on("one", hostname="db")))
    (Path(api).parent / "manifest.toml").write_text(
        Path(api).read_text()
        + "[network.policy]\n"
        + f"allow_from = {json.dumps(policy['allow_from'])}\n"
        + '[network.policy.egress]\nallow = ["db.niso.local:5432"]\n'
    )
    world.activate(api)
    before = world.picture()
    with pytest.raises(Conflict) as caught:
        world.activate(world.package("two-db", network=on("two", hostname="db")))
    assert "network.hostname: the name 'db' would be ambiguous in network.policy.allow_from[0]" in (
        caught.value.message
    )
    assert "'one-db' (network one), 'two-db' (network two)" in caught.value.message
    assert world.picture() == before
    # the other way round: both are there when the policy comes
    remove(world.machine, ["api"])
    world.activate(world.package("two-db", network=on("two", hostname="db")))
    with refuses(Conflict, "'db:80'", key="network.policy.allow_from[0]"):
        world.activate(api)
    world.assert_whole()


def test_service_that_is_called_so_yields_to_the_one_on_the_policys_network(world: World) -> None:
    """What is allowed moves, and what is denied stays denied for both."""
    world.activate(
        world.package("api", network=on("one", policy={"allow_from": ["db"]})),
        world.package("web", network=on("one", policy={"deny_from": ["db"]})),
        world.package("db", network=on("two")),
    )
    assert allowed(world, "db", "api", 80) and not allowed(world, "db", "web", 80)
    world.activate(world.package("one-db", network=on("one", hostname="db")))
    assert not allowed(world, "db", "api", 80) and allowed(world, "one-db", "api", 80)
    assert not allowed(world, "db", "web", 80) and not allowed(world, "one-db", "web", 80)
    world.assert_whole()
    remove(world.machine, ["one-db"])
    assert allowed(world, "db", "api", 80)
    world.assert_whole()


NETWORKS = ("one", "two", "three")
CALLED = ("db", "web", "api")


@settings(max_examples=samples(40, 400), deadline=None)
@given(st.data())
def test_policy_never_lets_in_who_is_neither_called_so_nor_on_a_common_network(data: Any) -> None:
    """On random services: with the rules as they are for one of them, for all names and networks."""
    with TemporaryStore() as store, store.transaction():
        for index, name in enumerate(NETWORKS):
            subnet = SubnetRecord(4, f"10.99.{index}.0/24", f"10.99.{index}.1")
            add_network(store, NetworkRecord(name, "", 1500, (subnet,)))
        for service in ("db", "web", "x", "y"):
            at = data.draw(st.lists(st.sampled_from(NETWORKS), min_size=1, unique=True))
            own = data.draw(st.sampled_from(CALLED))
            put(store, service, tuple(at), hostname=own)
        at = tuple(data.draw(st.lists(st.sampled_from(NETWORKS), min_size=1, unique=True)))
        put(store, "asker", at)
        store.set_policy("asker", parse(["db"], ["web"], None, (), False))
        effective = store.policy_now("asker")
        assert effective is not None and effective.allow_from is not None
        let_in = {entry.peer.name for entry in effective.allow_from} - {""}  # stands for nobody
        kept_out = {entry.peer.name for entry in effective.deny_from}
        beside = {
            name: {
                service
                for service in ("db", "web", "x", "y")
                if name in store.names(service) and set(store.networks_of(service)) & set(at)
            }
            for name in ("db", "web")
        }
        assert let_in == (
            beside["db"] if len(beside["db"]) == 1 else set() or (set() if beside["db"] else {"db"})
        )
        assert kept_out == beside["web"] | {"web"}
