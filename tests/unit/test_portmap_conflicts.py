"""Test host ports that cannot be given: those of services, processes, families and forwards."""

from __future__ import annotations

import pytest
from ports_admitted import (
    DUAL,
    FOUR,
    KERNEL,
    NETWORKS,
    NO_MORE,
    SIX,
    admit,
    listener,
    machine,
    new_store,
    refused,
    wanted,
)
from refusals import refuses
from stored import add_network, put

from niso.base.errors import Conflict
from niso.change import ports
from niso.kernel.sockets import Listener
from niso.plan.records import NetworkRecord
from niso.store.store import Store


@pytest.fixture(autouse=True)
def listening() -> dict[str, list[Listener]]:
    """Protocol -> the sockets that the host has; each with the inode 7 is of program "nginx"."""
    KERNEL.listening = {}
    return KERNEL.listening


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
        for network in NETWORKS:
            add_network(store, network)
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
        store.set_inactive("blog")
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
    with refuses(Conflict, "8080", key="network.ports[4]"), store.transaction():
        ports.admit(
            machine(store),
            "api",
            wanted("80:80", "8080:80"),
            (),
            ("network.ports[0]", "network.ports[4]"),
            *NO_MORE[1:],
        )


# --- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "asked", "message"),
    [
        (
            FOUR,
            "[::]:80:80",
            "[::]:80/tcp is an IPv6 port, and the default route's network of service 'api' has no IPv6 subnet",
        ),
        (
            FOUR,
            "[2001:db8::1]::80",
            "is an IPv6 port, and the default route's network of service 'api' has no IPv6 subnet",
        ),
        (
            SIX,
            "0.0.0.0:80:80",
            "0.0.0.0:80/tcp is an IPv4 port, and the default route's network of service 'api' has no IPv4 subnet",
        ),
        (
            SIX,
            "127.0.0.1:80:80",
            "127.0.0.1:80/tcp is an IPv4 port, and the default route's network of service 'api' has no IPv4",
        ),
    ],
)
def test_port_of_a_family_that_the_network_has_not_is_a_conflict(
    on: NetworkRecord, asked: str, message: str
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
def test_port_without_an_address_is_one_of_each_family_that_the_network_has(
    on: NetworkRecord,
) -> None:
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
