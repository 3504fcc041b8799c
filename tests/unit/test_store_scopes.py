"""Test the store's snapshots of a scope: what they hold and what they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_changes import BOUNDED, CHANGES, NAMES, NETWORKS, PORTS, SERVICES, filled
from stored import TemporaryStore, add_network, put

from niso.base import names
from niso.base.errors import Conflict
from niso.kernel.kinds.kind import State
from niso.plan.desired import desired
from niso.plan.records import PortMapping, Snapshot
from niso.store.snapshots import ALL, Scope
from niso.store.store import Store


def owner_is_in(scope: Scope, obj, snapshot: Snapshot) -> bool:
    """Whether one thing of the whole state belongs to a scope, told from the thing's own fields."""
    services = set(scope.services or ())
    active = [service for service in snapshot.services if service.name in services]
    networks = set(scope.networks or ()) | {
        endpoint.network for service in active for endpoint in service.endpoints
    }
    kind = type(obj).__name__
    bridges = {names.bridge(network) for network in networks}
    readers = {names.hosts_folder(reader): reader for reader in snapshot.readers}
    for service in snapshot.apart:
        folder = names.own_hosts_folder(service.name)
        readers[folder] = tuple(endpoint.network for endpoint in service.endpoints)
    folders = {folder for folder, reader in readers.items() if set(reader) & networks}
    of_networks = ("bridges", "same_bridge", "subnets4", "subnets6", "broadcasts", "internal")
    of_networks += ("gateways4", "gateways6", "own4", "own6", "host_macs")
    watched_bridge = kind == "Element" and obj[:2] == ("inet niso", "watched")
    if watched_bridge or (kind == "Element" and obj.container in of_networks):
        return obj.comment in networks
    if kind == "Element":
        return not obj.comment or obj.comment in services
    if kind == "Bridge":
        return obj.name in bridges
    if kind == "RoutingRule":
        subnets = {s.cidr for n in snapshot.networks if n.name in networks for s in n.subnets}
        return obj.name in bridges or obj.name.removeprefix("lo ") in subnets
    if kind in ("Address", "Sysctl") and not obj.netns:
        link = (
            obj.link
            if kind == "Address"
            else obj.name.split("/")[3]
            if "/conf/" in obj.name
            else None
        )
        return link is None or link in bridges
    if kind == "PermanentNeighbour" and not obj.netns:
        return obj.address in {
            address
            for service in active
            for endpoint in service.endpoints
            for address in endpoint.addresses
        }
    if kind in ("Netns", "Veth", "Address", "Route", "Sysctl", "PermanentNeighbour"):
        netns = obj.name if kind == "Netns" else obj.netns
        return netns in {names.netns(service) for service in services}
    if kind == "HostsFile":
        return obj.folder in folders
    if kind == "HostsLine":
        only = [
            s.name
            for s in snapshot.services
            if s not in snapshot.apart
            and tuple(e.network for e in s.endpoints) == readers[obj.folder]
        ]
        if obj.folder.startswith("="):
            only = [obj.folder.removeprefix("=")]
        whole = set(only) <= services
        mine = {f"{service.names[0]}.niso.local" for service in active} | {
            f"{service.name}.{endpoint.network}.niso.local"
            for service in active
            for endpoint in service.endpoints
        }
        if obj.names in ("host.niso.local", "more"):
            return readers[obj.folder][0] in networks
        return obj.folder in folders and (whole or obj.names.split()[0] in mine)
    return True


@BOUNDED
@given(
    CHANGES,
    st.lists(st.sampled_from(SERVICES), unique=True).map(tuple),
    st.lists(st.sampled_from(NAMES), unique=True).map(tuple),
    st.lists(st.sampled_from(SERVICES), unique=True),
)
def test_state_of_a_scope_is_the_whole_state_restricted_to_it(
    changes, services, networks, apart
) -> None:
    with TemporaryStore() as store:
        filled(store, changes)
        with store.transaction():
            for name in apart:
                if store.service(name) is not None:
                    store.set_extra_hosts(name, [("more", "192.0.2.7")])
        scope = Scope(services, networks)
        everything = store.snapshot(ALL)
        part, whole = desired(store.snapshot(scope)), desired(everything)
        assert part == State(t for t in whole if owner_is_in(scope, t, everything))


@BOUNDED
@given(CHANGES, st.lists(st.sampled_from(SERVICES), unique=True).map(tuple))
def test_snapshot_of_a_scope_is_part_of_the_whole(changes, services) -> None:
    with TemporaryStore() as store:
        filled(store, changes)
        part, whole = store.snapshot(Scope(services)), store.snapshot(ALL)
        assert set(part.services) == {
            service for service in whole.services if service.name in services
        }
        assert set(part.networks) <= set(whole.networks)
        assert {e.network for s in part.services for e in s.endpoints} <= {
            n.name for n in part.networks
        }
        assert part.readers <= whole.readers
        assert part.fresh <= whole.fresh == whole.readers
        assert set(part.neighbours) <= set(whole.services)
        assert (part.state_id, part.any_network, part.forwards) == (
            whole.state_id,
            whole.any_network,
            whole.forwards,
        )


def test_snapshot_of_one_service_costs_a_step_along_an_index_for_each_other_and_no_more() -> None:
    """Instructions of SQLite's virtual machine are counted (its progress handler), not time."""
    store = Store.open()
    filled(store, [("put", "api", NAMES[:1], [8000])])

    def instructions(work) -> int:
        count = 0

        def ten() -> int:
            nonlocal count
            count += 10
            return 0

        store._db.set_progress_handler(ten, 10)
        work()
        store._db.set_progress_handler(None, 0)
        return count

    def one_service() -> int:
        return instructions(lambda: store.snapshot(Scope(("api",), NAMES[:1])))

    few = one_service()
    with store.transaction():
        for number in range(200):
            put(store, f"other{number}", NAMES[:1])
    assert (one_service() - few) / 200 < 15
    assert instructions(lambda: store.snapshot(ALL)) / 200 > 75, "the count counts nothing"
    store.set_inactive("api")
    with store.transaction():
        for number in range(200):
            store.set_inactive(f"other{number}")
    # no service of the network is active: all of its conditions are evaluated
    assert instructions(lambda: store.network(NAMES[0])) < 400


def test_full_network_names_no_more_than_five_holders() -> None:
    store = Store.open()
    with store.transaction():
        add_network(store, NETWORKS[0])
        for number in range(253):
            put(store, f"s{number}", NAMES[:1])
        for number in range(7):
            store.set_inactive(f"s{number}")
    with pytest.raises(Conflict) as full, store.transaction():
        put(store, "late", NAMES[:1])
    assert (
        full.value.hint
        == "create a larger network; inactive services keep addresses until they are removed: "
        "s0, s1, s2, s3, s4 and 2 more"
    )
    assert store.service("late") is None


def test_what_a_begun_change_gave_up_is_held_until_it_ends() -> None:
    left, other = NETWORKS[0].name, NETWORKS[2].name
    with TemporaryStore() as store:
        with store.transaction():
            add_network(store, NETWORKS[0], implicit=True)
            add_network(store, NETWORKS[2])
            put(store, "api", (left,), ports=(PortMapping("", 80, 80, "tcp"),), hostname="old")
        with store.transaction():
            store.begin_intent("api", "activate", 1.0)
            put(store, "api", (other,), hostname="new")
        intent = store.intent("api")
        assert intent is not None
        assert store.name_holder("old") == "api"
        assert store.lease_holder("10.99.0.2") == "api"
        assert list(store.used_numbers(left, 4)) == [2]
        assert store.port_holders(PortMapping("", 80, 1, "tcp")) == [
            ("api", PortMapping("", 80, 80, "tcp"))
        ]
        with store.transaction():
            assert store.drop_implicit_networks([left]) == []
            put(store, "next", (left,))
        assert store.addresses("next") == [(left, "10.99.0.3")]
        with store.transaction():
            store.undo([intent])
            store.end_intent("api")
        assert store.addresses("api") == [(left, "10.99.0.2")]
        with store.transaction():
            store.forget("api")
        assert store.name_holder("old") is None
        assert store.port_holders(PortMapping("", 80, 1, "tcp")) == []


def test_queries_of_a_change_do_not_walk_through_all_services() -> None:
    with TemporaryStore() as store:
        add_network(store, NETWORKS[0])
        put(store, "api", (NAMES[0],), ports=(PORTS[2],))
        asked: list[str] = []
        store._db.set_trace_callback(asked.append)
        store.snapshot(
            Scope(("api",), (NAMES[0],), names=(("service", "api"), ("network", NAMES[0])))
        )
        store.instances.active("serving", "out")
        store.instances.of_two_versions()
        store.acted_on_services()
        store.checked_services()
        store.scheduled()
        store._db.set_trace_callback(None)
        plans = {
            q: [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {q}")]
            for q in asked
            if "SELECT" in q
        }
    assert plans and not [
        q
        for q, plan in plans.items()
        if any("service_active" in step or step == "SCAN service" for step in plan)
        and "COUNT" not in q
        and "LIMIT 1" not in q
    ]
