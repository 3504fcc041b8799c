"""Test published ports: every form of the text, errors, clashes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_packets import packets, small_ports, takes
from refusals import refuses
from samples import samples

from niso.base.errors import InvalidInput
from niso.manifest.addresses_and_ports import contradictions, distinct, parse_port
from niso.plan.records import PortMapping

BOUNDED = settings(max_examples=samples(80, 400), deadline=None)
KEY = "network.ports[0]"

FORMS = [
    ("8080:80", PortMapping("", 8080, 80, "tcp")),
    ("8080:80/tcp", PortMapping("", 8080, 80, "tcp")),
    ("53:5353/udp", PortMapping("", 53, 5353, "udp")),
    ("80:81/sctp", PortMapping("", 80, 81, "sctp")),
    ("0.0.0.0:65535:1", PortMapping("0.0.0.0", 65535, 1, "tcp")),
    ("127.0.0.1:5432:5433", PortMapping("127.0.0.1", 5432, 5433, "tcp")),
    ("192.0.2.1:53:53/udp", PortMapping("192.0.2.1", 53, 53, "udp")),
    ("8000-8010:8000-8010", PortMapping("", 8000, 8000, "tcp", 11)),
    ("8000-8010:9000-9010/udp", PortMapping("", 8000, 9000, "udp", 11)),
    ("127.0.0.1:8000-8010:8000-8010/sctp", PortMapping("127.0.0.1", 8000, 8000, "sctp", 11)),
    ("1-65535:1-65535", PortMapping("", 1, 1, "tcp", 65535)),
    ("80-80:81-81", PortMapping("", 80, 81, "tcp")),
    ("80-80:81", PortMapping("", 80, 81, "tcp")),
    ("8080", PortMapping("", 8080, 8080, "tcp")),
    ("53/udp", PortMapping("", 53, 53, "udp")),
    ("8000-8010", PortMapping("", 8000, 8000, "tcp", 11)),
    (":8080", PortMapping("", 0, 8080, "tcp")),
    (":53/udp", PortMapping("", 0, 53, "udp")),
    (":8000-8010", PortMapping("", 0, 8000, "tcp", 11)),
    ("127.0.0.1::80", PortMapping("127.0.0.1", 0, 80, "tcp")),
    ("[::]::80", PortMapping("::", 0, 80, "tcp")),
    ("[::]:8080:80", PortMapping("::", 8080, 80, "tcp")),
    ("[::]:8080", PortMapping("::", 8080, 8080, "tcp")),
    ("[2001:db8::1]:8080:80/udp", PortMapping("2001:db8::1", 8080, 80, "udp")),
    ("[2001:db8::1]:8000-8010:8000-8010", PortMapping("2001:db8::1", 8000, 8000, "tcp", 11)),
    # one address has one spelling
    ("[2001:0DB8:0:0::0001]:80:80", PortMapping("2001:db8::1", 80, 80, "tcp")),
    ("[0:0:0:0:0:0:0:0]:80:80", PortMapping("::", 80, 80, "tcp")),
]


def first_of(found: list[tuple[int, int]]) -> tuple[int, int] | None:
    return found[0] if found else None


@pytest.mark.parametrize(("text", "port"), FORMS)
def test_form_is_read(text: str, port: PortMapping) -> None:
    assert parse_port(text, KEY) == port


NO_HOST = [
    (
        "[::1]:8080:8080",
        "the kernel accepts no packets for ::1 from a bridge, so replies would be lost",
    ),
    (
        "[0:0:0:0:0:0:0:1]:80:80",
        "the kernel accepts no packets for ::1 from a bridge, so replies would be lost",
    ),
    ("[::1]:80", "the kernel accepts no packets for ::1 from a bridge, so replies would be lost"),
    ("[::1]::80", "the kernel accepts no packets for ::1 from a bridge, so replies would be lost"),
    (
        "[::1]:80:80/udp",
        "the kernel accepts no packets for ::1 from a bridge, so replies would be lost",
    ),
    ("[::ffff:192.0.2.1]:80:80", "is an IPv4-mapped address, write 192.0.2.1"),
    ("[::ffff:0.0.0.0]:80:80", "is an IPv4-mapped address, write 0.0.0.0"),
    ("[::ffff:127.0.0.1]:80:80", "is an IPv4-mapped address, write 127.0.0.1"),
    ("[fe80::1]:80:80", "is a link-local address, which means nothing without its link"),
    ("[ff02::1]:80:80", "is a multicast address"),
    ("224.0.0.1:80:80", "is a multicast address"),
    ("255.255.255.255:80:80", "cannot be an address of a host"),
    ("0.0.0.1:80:80", "cannot be an address of a host"),
    ("0.1.2.3:80:80", "cannot be an address of a host"),
]


@pytest.mark.parametrize(("text", "reason"), NO_HOST)
def test_address_by_which_no_host_can_be_reached_is_refused_with_the_reason(
    text: str, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_port(text, KEY)
    assert caught.value.key == KEY
    assert caught.value.message.startswith(f'{KEY}: "{text}" is not a valid port mapping: ')
    assert reason in caught.value.message


def test_loopback_of_ipv6_is_refused_with_what_to_write_instead() -> None:
    with refuses(InvalidInput, "127.0.0.1", key="network.ports[0]", hint='for example "8080:8080"'):
        parse_port("[::1]:8080:8080", KEY)


GARBAGE = [
    *(
        "",
        ":",
        "::",
        ":::",
        "a:b",
        "0:80",
        "80:0",
        ":0",
        "0",
        "80:",
        "80:65536",
        "65536",
        "080:80",
        "-1:80",
        "80-:80",
    ),
    *(
        "-80:80",
        "80:80/",
        "80:80/TCP",
        "80:80/icmp",
        "80:80/tcp/udp",
        "/tcp",
        "80 :80",
        " 80:80",
        "80:80\n",
        "+80:80",
    ),
    *(
        "1.2.3:80:80",
        "256.0.0.1:80:80",
        "127.0.0.01:80:80",
        "127.0.0.1:80",
        ":80:80",
        "localhost:80:80",
        "1:2:3:4",
    ),
    *(
        "[::g]:80:80",
        "[::1]80:80",
        "[::1:80:80",
        "[]:80:80",
        "[127.0.0.1]:80:80",
        "[fe80::1%eth0]:80:80",
        "::1:80:80",
    ),
    *(
        "80-70:80-70",
        "80-90:80-89",
        "80-90:80",
        "80:80-90",
        ":80-70",
        "80-90-95:80-90",
        "0-5:0-5",
        "65530-65536:1-7",
    ),
    *(
        "127.0.0.1:0:80",
        "[::]:",
        "127.0.0.1::",
        "٣:80",
        "8e1:80",
        "0x50:80",
        "8_0:80",
        "9" * 5000 + ":80",
    ),
]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_port(text, KEY)
    assert caught.value.key == KEY
    assert "([ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp], " in caught.value.message
    assert caught.value.hint == 'for example "8080:8080"'
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("80-90:80-89", "the two ranges differ in length"),
        ("80-90:80", "the two ranges differ in length"),
        ("80-70:80-70", "range 80-70 ends before it starts"),
        ("80:80/icmp", '"icmp" is not a valid protocol'),
        ("80:80/", '"" is not a valid protocol'),
        ("1.2.3:80:80", '"1.2.3" is not a valid IPv4 address'),
        ("localhost:80:80", '"localhost" is not a valid IPv4 address'),
        ("[::g]:80:80", "it does not start with an IPv6 address in brackets"),
        ("80:65536", '"65536" is not a valid port'),
        (":0", '"0" is not a valid port'),
    ],
)
def test_refusal_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_port(text, KEY)
    assert f"is not a valid port mapping: {reason} (" in caught.value.message


@BOUNDED
@given(small_ports(("tcp", "udp", "sctp")))
def test_port_that_is_written_as_the_user_writes_it_is_read_as_the_same(port: PortMapping) -> None:
    assert parse_port(port.text, KEY) == port


# --- several -----------------------------------------------------------------------------------------------------


def parsed(*texts: str) -> tuple[PortMapping, ...]:
    return tuple(parse_port(text, KEY) for text in texts)


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (("80:80", "80:80/tcp", "80", "80-80:80-80"), ("80:80",)),
        (("80:80", "0.0.0.0:80:80", "[::]:80:80"), ("80:80",)),
        (("0.0.0.0:80:80", "80:80"), ("80:80",)),
        (("0.0.0.0:80:80", "[::]:80:80"), ("0.0.0.0:80:80", "[::]:80:80")),
        (("80:80", "127.0.0.1:80:80"), ("80:80", "127.0.0.1:80:80")),
        (("80:80", "80:80/udp"), ("80:80", "80:80/udp")),
        (("8000-8010:8000-8010", "8000-8010"), ("8000-8010",)),
        ((":80", ":80", "0.0.0.0::80"), (":80",)),
        ((":80", ":81"), (":80", ":81")),
        (("0.0.0.0:81:81", "82:80", "81:80/udp"), ("0.0.0.0:81:81", "82:80", "81:80/udp")),
    ],
)
def test_equal_entries_are_one_in_the_order_of_the_first(
    texts: tuple[str, ...], left: tuple[str, ...]
) -> None:
    assert distinct(parsed(*texts)) == parsed(*left)


@pytest.mark.parametrize(
    ("texts", "places"),
    [
        (("80:80", "80:81"), (1, 0)),
        (("443:443", "80:80", "0.0.0.0:80:81"), (2, 1)),
        (("80:80", "[::]:80:81"), (1, 0)),
        (("127.0.0.1:80:80", "127.0.0.1:80:81"), (1, 0)),
        (("8000-8010:8000-8010", "8005:8005"), (1, 0)),
        (("8005:80", "8000-8010:8000-8010"), (1, 0)),
        (("8000-8010:8000-8010", "8010-8020:8010-8020"), (1, 0)),
        (("8000-8010:8000-8010", "8001:8001/udp", "8010:1"), (2, 0)),
        # specific beside all is fine, and so are families, protocols and free ports
        (("80:80", "127.0.0.1:80:81"), None),
        (("80:80", "127.0.0.1:80:81", "[2001:db8::1]:80:82"), None),
        (("8000-8010:8000-8010", "127.0.0.1:8005:1"), None),
        (("0.0.0.0:80:80", "[::]:80:81"), None),
        (("80:80", "80:81/udp", "80:82/sctp"), None),
        (("8000-8010:8000-8010", "8011:8005", "7999:8005"), None),
        ((":80", ":81", "80:80"), None),
        (("80:80", "80:80/tcp", "0.0.0.0:80:80"), None),
    ],
)
def test_host_port_that_is_published_twice_differently_is_found(
    texts: tuple, places: tuple[int, int] | None
) -> None:
    assert first_of(contradictions(parsed(*texts))) == places


def same(one: PortMapping, other: PortMapping) -> bool:
    """Whether they publish the same, but perhaps of one family and of both."""
    return one[1:] == other[1:]


@BOUNDED
@given(st.lists(small_ports(free=True), max_size=6))
def test_contradictions_are_those_of_a_look_at_each_port(ports: list[PortMapping]) -> None:
    expected = {
        (later, earlier)
        for later in range(len(ports))
        for earlier in range(later)
        if takes(ports[later]) & takes(ports[earlier]) and not same(ports[later], ports[earlier])
    }
    found = first_of(contradictions(ports))
    assert found in expected if expected else found is None


@BOUNDED
@given(st.lists(small_ports(free=True), max_size=6))
def test_distinct_ports_without_contradiction_need_each_place_once(
    ports: list[PortMapping],
) -> None:
    left = distinct(tuple(ports))
    assert first_of(contradictions(left)) is None or first_of(contradictions(ports)) is not None
    assert all_of(ports) == all_of(left)
    if first_of(contradictions(ports)) is None:
        assert sum(len(takes(port)) for port in left) == len(all_of(left))


def all_of(ports: Iterable[PortMapping]) -> set[tuple[str, str, int]]:
    return {place for port in ports for place in takes(port)}


@BOUNDED
@given(small_ports(), small_ports())
def test_ports_clash_if_a_packet_could_be_for_both(one: PortMapping, other: PortMapping) -> None:
    expected = bool(packets(one) & packets(other))
    assert one.clashes(other) is expected
    assert other.clashes(one) is expected


@BOUNDED
@given(small_ports())
def test_families_and_last_port_follow_from_the_text(port: PortMapping) -> None:
    assert set(port.families) == {6 if ":" in address else 4 for address, _, _ in packets(port)}
    assert {number for _, _, number in packets(port)} == set(range(port.host_port, port.last + 1))
