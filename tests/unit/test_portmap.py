"""Test the assignment of host ports: requested, chosen and kept ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_packets import packets, small_ports, takes
from ports_admitted import (
    DUAL,
    KERNEL,
    NETWORKS,
    NO_MORE,
    admit,
    listener,
    machine,
    new_store,
    refused,
    wanted,
)
from samples import samples
from stored import TemporaryStore, add_network, put

from niso.base.errors import Conflict, ErrorGroup
from niso.change import ports as change_ports
from niso.change.ports import FREE_FIRST, FREE_LAST
from niso.kernel.sockets import Listener
from niso.manifest.addresses_and_ports import contradictions, distinct
from niso.plan.records import PortMapping


def first_of(found: list[tuple[int, int]]) -> tuple[int, int] | None:
    return found[0] if found else None


@pytest.fixture(autouse=True)
def listening() -> dict[str, list[Listener]]:
    """Protocol -> the sockets that the host has; each with the inode 7 is of program "nginx"."""
    KERNEL.listening = {}
    return KERNEL.listening


# --- free ports --------------------------------------------------------------------------------------------------


def test_port_that_is_left_open_is_the_lowest_free_one_and_the_others_stay_as_they_are() -> None:
    store = new_store()
    ports, chosen = change_ports.admit(
        machine(store), "api", wanted("8080:80", ":81", "9090:90"), (), *NO_MORE
    )
    assert ports == wanted("8080:80", "20000:81", "9090:90")
    assert chosen == wanted("20000:81")


def test_chosen_port_is_kept_over_activations_deactivation_and_other_ports_of_the_manifest() -> (
    None
):
    store = new_store()
    assert admit(store, ":80") == wanted("20000:80")
    assert admit(store, ":79", ":80") == wanted("20001:79", "20000:80")
    with store.transaction():
        store.set_inactive("api")
    assert admit(store, ":80", ":79") == wanted("20000:80", "20001:79")


def test_chosen_port_is_another_for_another_container_port_protocol_address_or_length() -> None:
    store = new_store()
    assert admit(store, ":80", ":80/udp", ":81", "127.0.0.1::80", ":8000-8001") == wanted(
        "20000:80", "20000:80/udp", "20001:81", "127.0.0.1:20002:80", "20003-20004:8000-8001"
    )


def test_ports_of_others_are_not_chosen_whether_they_are_active_or_not() -> None:
    store = new_store(
        db=wanted("20000:1"), web=wanted("127.0.0.1:20002-20004:1-3"), dns=wanted("20001:1/udp")
    )
    with store.transaction():
        store.set_inactive("db")
    assert admit(store, ":80", ":81", ":82") == wanted("20001:80", "20005:81", "20006:82")


def test_port_that_another_service_keeps_is_not_chosen() -> None:
    store = new_store(db=[])
    assert admit(store, ":1", service="db") == wanted("20000:1")
    with store.transaction():
        store.set_inactive("db")
    assert admit(store, ":80") == wanted("20001:80")
    assert admit(store, ":1", service="db") == wanted("20000:1")


def test_port_that_a_begun_change_gave_up_is_not_chosen() -> None:
    store = new_store(db=wanted("20000:1", "20001-20002:5-6"))
    with store.transaction():
        store.begin_intent("db", "activate", 1.0)
        store.set_ports("db", ())
    assert admit(store, ":80") == wanted("20003:80")


def test_ports_on_which_the_host_listens_are_not_chosen(listening) -> None:
    listening["tcp"] = [
        listener("127.0.0.1", 20000),
        listener("::", 20001),
        listener("0.0.0.0", 20003),
    ]
    listening["udp"] = [listener("0.0.0.0", 20002)]
    assert admit(new_store(), ":80", ":81") == wanted("20002:80", "20004:81")


def test_ports_that_the_same_manifest_names_are_not_chosen_wherever_they_stand() -> None:
    assert admit(new_store(), ":80", "20000:1", ":81", "127.0.0.1:20001-20002:5-6") == wanted(
        "20003:80", "20000:1", "20004:81", "127.0.0.1:20001-20002:5-6"
    )


def test_own_forward_is_not_chosen() -> None:
    store = new_store()
    with store.transaction():
        store.add_forward("api", PortMapping("", 20000, 1, "tcp"))
    assert admit(store, ":80") == wanted("20001:80")


def test_range_that_is_left_open_gets_as_many_ports_in_a_row() -> None:
    store = new_store(db=wanted("20003:1", "20008:1"))
    assert admit(store, ":8000-8003", ":9000-9002") == wanted(
        "20004-20007:8000-8003", "20000-20002:9000-9002"
    )


def test_kept_port_that_the_manifest_now_names_for_another_is_given_up() -> None:
    store = new_store()
    assert admit(store, ":80") == wanted("20000:80")
    ports = admit(store, ":80", "20000:81")
    assert ports[1] == wanted("20000:81")[0]
    assert first_of(contradictions(ports)) is None, ports[0].text


def test_kept_port_that_another_service_has_meanwhile_is_given_up() -> None:
    store = new_store(db=[])
    assert admit(store, ":80") == wanted("20000:80")
    with store.transaction():
        store.set_inactive("api")
    assert admit(store, "20000:1", service="db") == wanted("20000:1")
    assert admit(store, ":80") == wanted("20001:80")


def test_kept_port_on_which_the_host_listens_meanwhile_is_given_up_unless_the_service_has_it_now(
    listening,
) -> None:
    store = new_store()
    assert admit(store, ":80") == wanted("20000:80")
    listening["tcp"] = [listener("127.0.0.1", 20000)]
    assert admit(store, ":80") == wanted("20000:80")
    with store.transaction():
        store.set_inactive("api")
    assert admit(store, ":80") == wanted("20001:80")


def test_no_port_left_is_a_conflict_that_names_the_key() -> None:
    store = new_store(db=wanted(f"{FREE_FIRST}-{FREE_LAST}:1-10000"))
    error = refused(store, "80:80", ":81")
    assert error.message == "network.ports[1]: no port of 20000-29999 free"
    assert (error.key, error.hint) == ("network.ports[1]", "specify a host port")
    assert admit(store, ":81/udp") == wanted("20000:81/udp")


def test_ports_that_are_free_but_not_in_a_row_are_not_enough() -> None:
    store = new_store(db=wanted(f"{FREE_FIRST}-{FREE_LAST - 3}:1-9997"))
    assert (
        refused(store, ":1-4").message
        == "network.ports[0]: no 4 ports in a row of 20000-29999 free"
    )
    assert admit(store, ":1-3") == wanted("29997-29999:1-3")
    assert refused(store, ":1-3", ":9").message == "network.ports[1]: no port of 20000-29999 free"


def test_last_port_of_the_range_is_given_and_what_lies_above_it_does_not_matter() -> None:
    store = new_store(db=wanted(f"{FREE_FIRST}-{FREE_LAST - 1}:1-9999", "40000:1"))
    assert admit(store, ":1") == wanted("29999:1")


# --- all together ------------------------------------------------------------------------------------------------


@settings(max_examples=samples(37, 150), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("api", "db", "web")), st.lists(small_ports(free=True), max_size=3)
        ),
        max_size=6,
    )
)
def test_whatever_is_admitted_no_packet_is_for_two_services_and_no_port_is_there_twice(
    manifests,
) -> None:
    with TemporaryStore() as store:
        with store.transaction():
            for network in NETWORKS:
                add_network(store, network)
            for name in ("api", "db", "web"):
                put(store, name, (DUAL.name,))
        for service, entries in manifests:
            asked = list(distinct(tuple(entries)))
            if first_of(contradictions(asked)) is not None:
                continue
            before = [port for _, port in store.ports(service)]
            try:
                ports, chosen = change_ports.admit(machine(store), service, asked, before, *NO_MORE)
            except (Conflict, ErrorGroup):
                continue
            assert [port[2:] for port in ports] == [port[2:] for port in asked]
            assert all(port.host_port >= FREE_FIRST and port.last <= FREE_LAST for port in chosen)
            with store.transaction():
                store.set_ports(service, ports, chosen)
            whose: dict[tuple[str, str, int], str] = {}
            for name, port in store.active_ports():
                for packet in packets(port):
                    assert whose.setdefault(packet, name) == name
            for name in ("api", "db", "web"):
                mine = [port for _, port in store.ports(name)]
                assert sum(len(takes(port)) for port in mine) == len(
                    {place for port in mine for place in takes(port)}
                )


@settings(max_examples=samples(50, 200), deadline=None)
@given(small_ports(("tcp", "udp", "sctp")))
def test_text_of_a_port_names_its_host_side_for_messages(port: PortMapping) -> None:
    shown = port.host_side
    assert shown.endswith(f"/{port.proto}")
    assert shown.startswith(
        f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:" if port.host_ip else ""
    )
    assert port.text.startswith(shown.rpartition("/")[0])
