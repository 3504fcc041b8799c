"""Test the assignment of host ports: requested, chosen and kept ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples
from snapshots_made import network
from stored import TemporaryStore, add_network, put
from test_port_forms import packets, small_ports, takes

from niso.base.errors import Conflict, ErrorGroup
from niso.kernel.fake import Fake
from niso.kernel.sockdiag import Listener
from niso.manifest.parse_ports import contradictions, distinct, parse_port
from niso.plan.records import Network, Port, Subnet
from niso.runtime.fake_processes import FakeProcesses
from niso.services import ports as portmap
from niso.services.machine import Machine
from niso.services.ports import FREE_FIRST, FREE_LAST
from niso.store.store import Store

KERNEL = Fake()
KERNEL.programs = {7: (42, "nginx")}
FOUR, DUAL = network(0), network(1, dual=True)
SIX = Network("six", "niso-six", 1500, (Subnet(6, "fd00:7::/64", "fd00:7::1"),))
NETWORKS = (FOUR, DUAL, SIX)


def first_of(found: list[tuple[int, int]]) -> tuple[int, int] | None:
    return found[0] if found else None


@pytest.fixture(autouse=True)
def listening() -> dict[str, list[Listener]]:
    """Protocol -> the sockets that the host has; each with the inode 7 is of program "nginx"."""
    KERNEL.listening = {}
    return KERNEL.listening


def machine(store: Store) -> Machine:
    return Machine(store, KERNEL, FakeProcesses(KERNEL))


def listener(address: str, port: int, inode: int = 7) -> Listener:
    return Listener(6 if ":" in address else 4, address, port, inode)


def wanted(*texts: str) -> list[Port]:
    return [parse_port(text, "key") for text in texts]


def new_store(on: str = "", **ports: list[Port]) -> Store:
    """A store whose services have these ports on the IPv4 network, or ``on``; ``api`` is there too, without any."""
    store = Store.open()
    with store.transaction():
        for each in NETWORKS:
            add_network(store, each)
        for service, mine in {"api": [], **ports}.items():
            put(store, service, (on or FOUR.name,), ports=tuple(mine))
    return store


def admit(store: Store, *texts: str, service: str = "api") -> list[Port]:
    """The ports that an activation of a service gets for a manifest of these, recorded as it records them."""
    row = store.service(service)
    before = [port for _, port in store.ports(service)] if row is not None and row.active else []
    with store.transaction():
        ports, chosen = portmap.admit(machine(store), service, wanted(*texts), before)
        store.set_ports(service, ports, chosen)
    return ports


def refused(store: Store, *texts: str, service: str = "api") -> Conflict:
    before = store.ports(service)
    with pytest.raises(Conflict) as caught:
        admit(store, *texts, service=service)
    assert store.ports(service) == before
    return caught.value


# --- free ports --------------------------------------------------------------------------------------------------


def test_port_that_is_left_open_is_the_lowest_free_one_and_the_others_stay_as_they_are() -> None:
    store = new_store()
    ports, chosen = portmap.admit(machine(store), "api", wanted("8080:80", ":81", "9090:90"), ())
    assert ports == wanted("8080:80", "20000:81", "9090:90")
    assert chosen == wanted("20000:81")


def test_chosen_port_is_kept_over_activations_deactivation_and_other_ports_of_the_manifest() -> (
    None
):
    store = new_store()
    assert admit(store, ":80") == wanted("20000:80")
    assert admit(store, ":79", ":80") == wanted("20001:79", "20000:80")
    with store.transaction():
        store.set_active("api", False)
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
        store.set_active("db", False)
    assert admit(store, ":80", ":81", ":82") == wanted("20001:80", "20005:81", "20006:82")


def test_port_that_another_service_keeps_is_not_chosen() -> None:
    store = new_store(db=[])
    assert admit(store, ":1", service="db") == wanted("20000:1")
    with store.transaction():
        store.set_active("db", False)
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
        store.add_forward("api", Port("", 20000, 1, "tcp"))
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
        store.set_active("api", False)
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
        store.set_active("api", False)
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


# --- conflicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "asked", "message"),
    [
        ("8080:80", "8080:80", "host port 8080/tcp is published by 'blog'"),
        (
            "8080:80",
            "127.0.0.1:8080:80",
            "host port 127.0.0.1:8080/tcp is published by 'blog' as 8080/tcp",
        ),
        (
            "127.0.0.1:8080:80",
            "8080:80",
            "host port 8080/tcp is published by 'blog' as 127.0.0.1:8080/tcp",
        ),
        ("8000-8010:1-11", "8005:80", "host port 8005/tcp is published by 'blog' as 8000-8010/tcp"),
        ("8005:80", "8000-8010:1-11", "host port 8000-8010/tcp is published by 'blog' as 8005/tcp"),
        ("53:53/udp", "53:1/udp", "host port 53/udp is published by 'blog'"),
        ("0.0.0.0:80:80", "80:80", "host port 80/tcp is published by 'blog' as 0.0.0.0:80/tcp"),
    ],
)
def test_port_of_another_service_is_a_conflict_that_names_it_and_how_it_has_it(
    held, asked, message
) -> None:
    error = refused(new_store(blog=wanted(held)), "1:1", asked)
    assert error.message == f"network.ports[1]: {message}"
    assert (error.hint, error.key) == (
        "choose another host port, or release it from blog",
        "network.ports[1]",
    )


def test_port_of_another_service_in_ipv6_is_shown_in_brackets() -> None:
    store = Store.open()
    with store.transaction():
        for each in NETWORKS:
            add_network(store, each)
        put(store, "blog", (DUAL.name,), ports=tuple(wanted("[2001:db8::1]:80:80")))
        put(store, "api", (DUAL.name,))
    message = refused(store, "80:80").message
    assert (
        message
        == "network.ports[0]: host port 80/tcp is published by 'blog' as [2001:db8::1]:80/tcp"
    )
    assert admit(store, "0.0.0.0:80:80", "[2001:db8::2]:80:81") == wanted(
        "0.0.0.0:80:80", "[2001:db8::2]:80:81"
    )


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        ("8080:80", "8080:80/udp"),
        ("127.0.0.1:8080:80", "192.0.2.1:8080:80"),
        ("8000-8010:1-11", "8011:1"),
        ("8000-8010:1-11", "7990-7999:1-10"),
    ],
)
def test_port_beside_that_of_another_service_is_given(held: str, asked: str) -> None:
    assert admit(new_store(blog=wanted(held)), asked) == wanted(asked)


def test_port_of_an_inactive_service_is_given() -> None:
    store = new_store(blog=wanted("8080:80"))
    with store.transaction():
        store.set_active("blog", False)
    assert admit(store, "8080:80") == wanted("8080:80")


@pytest.mark.parametrize(
    ("socket", "asked", "message"),
    [
        (
            ("0.0.0.0", 80),
            "80:80",
            "host port 80/tcp is used by nginx (pid 42), which listens on 0.0.0.0:80",
        ),
        (
            ("127.0.0.1", 80),
            "80:80",
            "host port 80/tcp is used by nginx (pid 42), which listens on 127.0.0.1:80",
        ),
        (
            ("192.0.2.1", 80),
            "192.0.2.1:80:80",
            "host port 192.0.2.1:80/tcp is used by nginx (pid 42), which listens on 192.0.2.1:80",
        ),
        (
            ("0.0.0.0", 8005),
            "8000-8010",
            "host port 8000-8010/tcp is used by nginx (pid 42), which listens on 0.0.0.0:8005",
        ),
    ],
)
def test_port_on_which_a_process_listens_is_a_conflict_that_names_it(
    listening, socket, asked, message
) -> None:
    listening["tcp"] = [listener(*socket)]
    error = refused(new_store(), asked)
    assert error.message == f"network.ports[0]: {message}"
    assert (error.hint, error.key) == ("stop it, or choose another port", "network.ports[0]")


@pytest.mark.parametrize("address", ["::", "::1"])
def test_process_that_only_takes_ipv6_is_in_the_way_where_the_network_has_ipv6(
    listening, address
) -> None:
    listening["tcp"] = [listener(address, 80)]
    message = refused(new_store(DUAL.name), "80:80").message
    assert message == (
        f"network.ports[0]: host port 80/tcp is used by nginx (pid 42), which listens on [{address}]:80"
    )


@pytest.mark.parametrize("address", ["::", "::1"])
def test_process_that_only_takes_ipv6_is_in_nobodys_way_on_an_ipv4_network(
    listening, address
) -> None:
    listening["tcp"] = [listener(address, 80)]
    assert admit(new_store(), "80:80") == wanted("80:80")


def test_process_that_cannot_be_seen_is_said_to_be_so(listening) -> None:
    listening["udp"] = [listener("0.0.0.0", 53, inode=0)]
    message = refused(new_store(), "53:53/udp").message
    assert (
        "host port 53/udp is used by a process that is not visible from here, which listens on 0.0.0.0:53"
        in message
    )


@pytest.mark.parametrize(
    ("socket", "asked"),
    [
        (("127.0.0.1", 80), "192.0.2.1:80:80"),
        (("::", 80), "0.0.0.0:80:80"),
        (("::1", 80), "127.0.0.1:80:80"),
        (("0.0.0.0", 80), "80:80/udp"),
        (("0.0.0.0", 8011), "8000-8010"),
        (("0.0.0.0", 80), "81:80"),
    ],
)
def test_port_beside_that_of_a_listener_is_given(listening, socket, asked) -> None:
    listening["tcp"] = [listener(*socket)]
    assert admit(new_store(), asked) == wanted(asked)


def test_port_that_the_service_has_is_not_looked_at_again(listening) -> None:
    store = new_store()
    admit(store, "80:80", "8000-8010")
    listening["tcp"] = [listener("0.0.0.0", 80), listener("0.0.0.0", 8000)]
    assert admit(store, "80:80", "8000-8010") == wanted("80:80", "8000-8010")
    assert "8000-8011/tcp is used by nginx" in refused(store, "80:80", "8000-8011").message


def test_messages_call_a_port_by_the_key_that_the_manifest_has_it_under() -> None:
    store = new_store(blog=wanted("8080:80"))
    with pytest.raises(Conflict) as caught, store.transaction():
        portmap.admit(
            machine(store),
            "api",
            wanted("80:80", "8080:80"),
            (),
            ("network.ports[0]", "network.ports[4]"),
        )
    assert caught.value.key == "network.ports[4]"
    assert caught.value.message.startswith("network.ports[4]: host port 8080/tcp ")


# --- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "asked", "message"),
    [
        (
            FOUR,
            "[::]:80:80",
            "[::]:80/tcp is an IPv6 port, and the network of service 'api' has no IPv6 subnet",
        ),
        (
            FOUR,
            "[2001:db8::1]::80",
            "is an IPv6 port, and the network of service 'api' has no IPv6 subnet",
        ),
        (
            SIX,
            "0.0.0.0:80:80",
            "0.0.0.0:80/tcp is an IPv4 port, and the network of service 'api' has no IPv4 subnet",
        ),
        (
            SIX,
            "127.0.0.1:80:80",
            "127.0.0.1:80/tcp is an IPv4 port, and the network of service 'api' has no IPv4",
        ),
    ],
)
def test_port_of_a_family_that_the_network_has_not_is_a_conflict(
    on: Network, asked: str, message: str
) -> None:
    store = new_store()
    with store.transaction():
        put(store, "api", (on.name, DUAL.name))
    error = refused(store, "1:1", asked)
    assert error.message.startswith("network.ports[1]: ")
    assert message in error.message
    assert error.key == "network.ports[1]"
    assert error.hint


@pytest.mark.parametrize("on", NETWORKS)
def test_port_without_an_address_is_one_of_each_family_that_the_network_has(on: Network) -> None:
    store = new_store()
    with store.transaction():
        put(store, "api", (on.name,))
    assert admit(store, "80:80") == wanted("80:80")


def test_ports_of_both_families_are_given_on_a_dual_stack_network() -> None:
    store = new_store()
    with store.transaction():
        put(store, "api", (DUAL.name,))
    asked = ("0.0.0.0:80:80", "[::]:80:81", "[2001:db8::1]:82:82/udp", "[::]::83")
    assert admit(store, *asked) == wanted(
        "0.0.0.0:80:80", "[::]:80:81", "[2001:db8::1]:82:82/udp", "[::]:20000:83"
    )


# --- forwards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "asked", "remove"),
    [
        ("80:1", "80:80", "80:1"),
        ("0.0.0.0:80:1", "80:80", "0.0.0.0:80:1"),
        ("8000-8010:1-11/udp", "8005:5/udp", "8000-8010:1-11/udp"),
        ("127.0.0.1:53:1/udp", "127.0.0.1:53:53/udp", "127.0.0.1:53:1/udp"),
    ],
)
def test_port_that_is_forwarded_to_another_is_a_conflict_that_says_how_to_end_it(
    forward, asked, remove
) -> None:
    store = new_store()
    with store.transaction():
        store.add_forward("api", *wanted(forward))
    error = refused(store, asked)
    assert error.message.startswith("network.ports[0]: host port ")
    assert error.message.endswith(" is forwarded to another port of 'api'")
    assert error.hint == f"choose another host port, or withdraw the forward {remove}"


def test_port_that_is_forwarded_as_the_manifest_now_has_it_becomes_its_own() -> None:
    store = new_store()
    with store.transaction():
        store.add_forward("api", *wanted("80:80"))
    assert admit(store, "80:80") == wanted("80:80")
    assert store.forwards("api") == []


def test_specific_address_beside_a_forward_of_all_is_given() -> None:
    store = new_store()
    with store.transaction():
        store.add_forward("api", *wanted("80:1"))
    assert admit(store, "127.0.0.1:80:80") == wanted("127.0.0.1:80:80")
    assert store.forwards("api") == wanted("80:1")


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
            for each in NETWORKS:
                add_network(store, each)
            for name in ("api", "db", "web"):
                put(store, name, (DUAL.name,))
        for service, entries in manifests:
            asked = list(distinct(tuple(entries)))
            if first_of(contradictions(asked)) is not None:
                continue
            before = [port for _, port in store.ports(service)]
            try:
                ports, chosen = portmap.admit(machine(store), service, asked, before)
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
def test_text_of_a_port_names_its_host_side_for_messages(port: Port) -> None:
    shown = port.host_side
    assert shown.endswith(f"/{port.proto}")
    assert shown.startswith(
        f"[{port.host_ip}]:" if ":" in port.host_ip else f"{port.host_ip}:" if port.host_ip else ""
    )
    assert port.text.startswith(shown.rpartition("/")[0])
