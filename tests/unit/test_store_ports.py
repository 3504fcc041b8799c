"""Test the store's published ports: holders, chosen ports, forwards, changes in progress."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_packets import packets, small_ports
from samples import samples
from snapshots_made import network
from stored import TemporaryStore, add_network, dump, put

from niso.plan.records import PortMapping
from niso.store.port_rows import CHOSEN, FORWARD, MANIFEST
from niso.store.snapshots import ALL
from niso.store.store import Store

BOUNDED = settings(max_examples=samples(25, 100), deadline=None)
NETWORKS = (network(0), network(1, dual=True))
BACKEND, FRONT = (each.name for each in NETWORKS)
SERVICES = ("api", "db", "web")


def new_store(**ports: tuple[PortMapping, ...]) -> Store:
    """A store whose services, on backend, are active and have these ports."""
    store = Store.open()
    with store.transaction():
        for each in NETWORKS:
            add_network(store, each)
        for service, mine in ports.items():
            put(store, service, (BACKEND,), ports=mine)
    return store


def origins(store: Store, service: str) -> list[tuple[PortMapping, str]]:
    rows = store._db.execute(
        "SELECT host_ip, host_port, container_port, proto, count, origin FROM port WHERE service=? ORDER BY position",
        (service,),
    )
    return [(PortMapping(*row[:5]), row[5]) for row in rows]


# --- who holds a host port ---------------------------------------------------------------------------------------

RANGE = PortMapping("", 8000, 9000, "tcp", 11)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        (PortMapping("", 8000, 1, "tcp"), True),
        (PortMapping("", 8005, 1, "tcp"), True),
        (PortMapping("", 8010, 1, "tcp"), True),
        (PortMapping("", 7999, 1, "tcp"), False),
        (PortMapping("", 8011, 1, "tcp"), False),
        (PortMapping("", 7990, 1, "tcp", 10), False),
        (PortMapping("", 7990, 1, "tcp", 11), True),
        (PortMapping("", 7990, 1, "tcp", 50), True),
        (PortMapping("", 8002, 1, "tcp", 3), True),
        (PortMapping("", 8010, 1, "tcp", 50), True),
        (PortMapping("", 8011, 1, "tcp", 50), False),
        (PortMapping("", 8005, 1, "udp"), False),
        (PortMapping("127.0.0.1", 8005, 1, "tcp"), True),
        (PortMapping("2001:db8::1", 8005, 1, "tcp"), True),
    ],
)
def test_port_within_a_range_is_held_by_the_service_of_the_range(
    wanted: PortMapping, held: bool
) -> None:
    assert new_store(api=(RANGE,)).port_holders(wanted) == ([("api", RANGE)] if held else [])


def test_ports_of_one_address_and_of_one_family_are_held_there_alone() -> None:
    one, six = PortMapping("192.0.2.1", 80, 80, "tcp"), PortMapping("::", 81, 81, "tcp")
    store = new_store(api=(one, six))
    assert store.port_holders(PortMapping("192.0.2.1", 80, 1, "tcp")) == [("api", one)]
    assert store.port_holders(PortMapping("192.0.2.2", 80, 1, "tcp")) == []
    assert store.port_holders(PortMapping("0.0.0.0", 80, 1, "tcp")) == [("api", one)]
    assert store.port_holders(PortMapping("::", 80, 1, "tcp")) == []
    assert store.port_holders(PortMapping("0.0.0.0", 81, 1, "tcp")) == []
    assert store.port_holders(PortMapping("2001:db8::1", 81, 1, "tcp")) == [("api", six)]


def test_ports_of_inactive_services_are_held_by_nobody() -> None:
    store = new_store(api=(RANGE,))
    with store.transaction():
        store.set_inactive("api")
    assert store.port_holders(RANGE) == []


ROWS = st.lists(st.tuples(st.sampled_from(SERVICES), small_ports()), max_size=6)


def filled(store: Store, rows: list[tuple[str, PortMapping]]) -> dict[str, tuple[PortMapping, ...]]:
    mine = {
        name: tuple(dict.fromkeys(port for service, port in rows if service == name))
        for name in SERVICES
    }
    with store.transaction():
        for each in NETWORKS:
            add_network(store, each)
        for name, ports in mine.items():
            put(store, name, (BACKEND,), ports=ports)
    return mine


@BOUNDED
@given(
    ROWS,
    ROWS,
    st.sets(st.sampled_from(SERVICES)),
    st.sets(st.sampled_from(SERVICES)),
    small_ports(),
)
def test_holders_and_spans_are_those_of_a_look_at_each_row(
    rows, later, inactive, begun, wanted
) -> None:
    """Also of the rows of begun changes: what those gave up is held as what is there is, until they have ended."""
    with TemporaryStore() as store:
        before = filled(store, rows)
        after = {
            name: tuple(dict.fromkeys(port for service, port in later if service == name))
            for name in begun
        }
        with store.transaction():
            for name in inactive:
                store.set_inactive(name)
            for name, ports in after.items():
                store.begin_intent(name, "activate", 1.0)
                put(store, name, (BACKEND,), ports=ports)  # which makes it active
        live = [
            (name, port)
            for name in SERVICES
            if name in begun or name not in inactive
            for port in after.get(name, before[name])
        ]
        given_up = [(name, port) for name in begun - inactive for port in before[name]]
        expected = {each for each in [*live, *given_up] if packets(each[1]) & packets(wanted)}
        found = store.port_holders(wanted)
        assert set(found) == expected
        assert len(found) == len(expected)

        known = [
            port for name in SERVICES for port in {*after.get(name, before[name]), *before[name]}
        ]
        first, last = wanted.host_port, wanted.last
        numbers = {
            number
            for port in known
            if port.proto == wanted.proto
            for number in range(port.host_port, port.last + 1)
            if first <= number <= last
        }
        spans = store.spans(wanted.proto, first, last)
        assert {
            number
            for low, high in spans
            for number in range(low, high + 1)
            if first <= number <= last
        } == numbers


def test_port_of_a_begun_change_whose_service_was_inactive_before_is_nobodys_when_it_is_left_out() -> (
    None
):
    store = new_store(api=(RANGE,))
    with store.transaction():
        store.set_inactive("api")
    with store.transaction():
        store.begin_intent("api", "activate", 1.0)
        put(store, "api", (BACKEND,), ports=())
    assert store.port_holders(RANGE) == []


# --- what came from where ----------------------------------------------------------------------------------------


def test_chosen_port_is_known_by_what_asked_for_it() -> None:
    chosen, named = PortMapping("", 20000, 80, "tcp", 2), PortMapping("", 20002, 81, "tcp", 2)
    store = new_store()
    with store.transaction():
        put(store, "api", (BACKEND,), ports=(named, chosen), chosen=(chosen,))
    assert origins(store, "api") == [(named, MANIFEST), (chosen, CHOSEN)]
    asks = chosen._replace(host_port=0)
    assert store.chosen_port("api", asks) == 20000
    assert store.chosen_port("db", asks) is None
    for other in (
        asks._replace(container_port=81),  # has its host port from the manifest
        asks._replace(proto="udp"),
        asks._replace(host_ip="127.0.0.1"),
        asks._replace(count=1),
        asks._replace(count=3),
    ):
        assert store.chosen_port("api", other) is None
    with store.transaction():
        store.set_inactive("api")
    assert store.chosen_port("api", asks) == 20000


def test_new_ports_of_the_manifest_leave_forwards_where_they_are() -> None:
    first, forward, second = (
        PortMapping("", 80, 80, "tcp"),
        PortMapping("127.0.0.1", 53, 53, "udp", 2),
        PortMapping("", 81, 81, "tcp"),
    )
    store = new_store(api=(first,))
    with store.transaction():
        store.add_forward("api", forward)
    assert store.forwards("api") == [forward]
    with store.transaction():
        store.set_ports("api", (second, first))
    assert origins(store, "api") == [(second, MANIFEST), (first, MANIFEST), (forward, FORWARD)]
    assert [port for _, port in store.ports("api")] == [second, first, forward]
    with store.transaction():
        store.set_ports("api", (first, forward))
    assert origins(store, "api") == [(first, MANIFEST), (forward, MANIFEST)]
    assert store.forwards("api") == []


def test_dropped_forwards_leave_the_ports_of_the_manifest_and_of_others() -> None:
    own, forward = PortMapping("", 80, 80, "tcp"), PortMapping("", 81, 81, "tcp")
    store = new_store(api=(own,), db=())
    with store.transaction():
        store.add_forward("api", forward)
        store.add_forward("db", forward._replace(host_port=82))
        store.end_publishing("api")
    assert origins(store, "api") == [(own, MANIFEST)]
    assert store.forwards("db") == [forward._replace(host_port=82)]


def test_taken_port_is_put_back_as_it_was_in_its_place() -> None:
    ports = tuple(PortMapping("", number, 80, "tcp") for number in (80, 81, 82))
    store = new_store(api=ports)
    before = dump(store)
    with store.transaction():
        rows = store.port_rows("api")
        store.take_port("api", ports[1])
        assert [port for _, port in store.ports("api")] == [ports[0], ports[2]]
        store.take_port("api", ports[1])
        store.put_port_rows("api", rows)
    assert dump(store) == before
    with store.transaction():
        store.take_port("api", ports[1])
        store.add_back("api", ports[1], ports)
    assert dump(store) == before


def test_some_ports_are_those_that_a_service_has() -> None:
    one, other = PortMapping("", 80, 80, "tcp"), PortMapping("", 81, 81, "tcp", 3)
    store = new_store(api=(one, other), db=())
    assert store.some_ports("api", [other, one._replace(host_ip="0.0.0.0"), other]) == [other]
    assert store.has_port("api", one)
    assert not store.has_port("db", one)
    assert not store.has_port("api", other._replace(count=2))
    assert (store.publishes("api"), store.publishes("db")) == (True, False)


def test_families_of_ports_are_those_of_the_first_network() -> None:
    store = new_store()
    with store.transaction():
        put(store, "api", (BACKEND, FRONT))
        put(store, "db", (FRONT, BACKEND))
    assert store.port_families("api") == (4,)
    assert store.port_families("db") == (4, 6)
    assert store.port_families("nobody") == ()


# --- on the move -------------------------------------------------------------------------------------------------


def test_ports_on_the_move_are_noted_by_service_until_each_has_ended() -> None:
    one, two, three = (PortMapping("", number, 80, "tcp") for number in (80, 81, 82))
    store = new_store(api=(one,), db=())
    with store.transaction():
        store.begin_moving([("db", one), ("api", two), ("db", three)], {"front", "back"}, 5.0)
    assert store.moved_ports() == [("api", two), ("db", one), ("db", three)]
    assert {(intent.service, intent.action) for intent in store.intents()} == {
        ("api", "ports"),
        ("db", "ports"),
    }
    # nobody holds what is only noted
    assert store.port_holders(two) == []
    assert store.spans("tcp", 81, 90) == []
    with store.transaction():
        store.end_intent("db")
    assert store.moved_ports() == [("api", two)]
    assert store.moved_on() == {"front", "back"}
    with store.transaction():
        store.end_intent("api")
    assert store.moved_ports() == []


def test_other_intents_are_no_moved_ports() -> None:
    store = new_store(api=(RANGE,))
    with store.transaction():
        store.begin_intent("api", "activate", 1.0)
    assert store.moved_ports() == []


def test_intent_notes_whole_rows() -> None:
    store = new_store(api=(RANGE,))
    with store.transaction():
        store.begin_intent("api", "activate", 1.0)
    (intent,) = store.intents()
    assert json.loads(intent.undo)["port"] == [
        {"service": "api", "position": 0, **RANGE._asdict(), "origin": MANIFEST}
    ]
    assert store.is_as_before(intent)
    with store.transaction():
        store.set_ports("api", (RANGE,), (RANGE,))
    assert not store.is_as_before(intent)


# --- what a network is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "by_loopback"),
    [
        (PortMapping("", 80, 80, "tcp"), True),
        (PortMapping("0.0.0.0", 80, 80, "tcp"), True),
        (PortMapping("127.0.0.1", 80, 80, "tcp"), True),
        (PortMapping("127.9.9.9", 80, 80, "tcp"), True),
        (PortMapping("192.0.2.1", 80, 80, "tcp"), False),
        (PortMapping("::", 80, 80, "tcp"), False),
        (PortMapping("2001:db8::1", 80, 80, "tcp"), False),
    ],
)
def test_network_is_told_that_ports_lead_into_it_and_whether_by_loopback(
    port: PortMapping, by_loopback: bool
) -> None:
    store = new_store()
    with store.transaction():
        put(store, "api", (FRONT, BACKEND), ports=(port,))
    told = {each.name: (each.publishes, each.by_loopback) for each in store.networks()}
    assert told == {FRONT: (True, by_loopback), BACKEND: (True, False)}
    with store.transaction():
        put(store, "api", (BACKEND,), ports=(port,))
    told = {each.name: (each.publishes, each.by_loopback) for each in store.networks()}
    assert told == {FRONT: (False, False), BACKEND: (True, by_loopback)}
    with store.transaction():
        store.set_inactive("api")
    assert not any(each.publishes or each.by_loopback for each in store.networks())


def test_snapshot_of_some_ports_says_whether_the_service_has_any() -> None:
    one, other = PortMapping("", 80, 80, "tcp"), PortMapping("", 81, 81, "tcp")
    store = new_store(api=(one, other))
    scope = ALL._replace(
        services=("api",), networks=(BACKEND,), ports=(other, other._replace(host_port=9))
    )
    (service,) = store.snapshot(scope).services
    assert (service.ports, service.publishes) == ((other,), True)
    with store.transaction():
        store.set_ports("api", ())
    (service,) = store.snapshot(scope).services
    assert (service.ports, service.publishes) == ((), True)  # what is open by them lives on
    with store.transaction():
        store.end_publishing("api")
    (service,) = store.snapshot(scope).services
    assert (service.ports, service.publishes) == ((), False)
