"""Test which subnets a network may have, and a host's unique local prefix."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.base.errors import UsageError
from niso.plan import records
from niso.plan.subnets import parse_subnet, unique_local

BOUNDED = settings(max_examples=samples(50, 200), deadline=None)


@given(st.text("0123456789abcdef", min_size=8, max_size=8))
@BOUNDED
def test_unique_local_prefix_follows_from_the_state_id(state_id: str) -> None:
    found = unique_local(state_id)
    assert found == unique_local(state_id)
    assert found.prefixlen == 48 and found.subnet_of(IPv6Network("fd00::/8"))  # RFC 4193: L is 1


def test_unique_local_prefixes_of_hosts_differ_in_all_40_bits() -> None:
    numbers = [
        int(unique_local(f"{n:08x}").network_address) >> 80 & (1 << 40) - 1 for n in range(400)
    ]
    assert len(set(numbers)) == 400
    for bit in range(40):
        assert 120 < sum(number >> bit & 1 for number in numbers) < 280


@pytest.mark.parametrize(
    "text",
    [
        "fd00::/64",
        "fdff:ffff:ffff::/48",
        "2001:db8::/126",
        "2a00:1450::/56",
        "10.0.0.0/8",
        "192.168.1.4/30",
    ],
)
def test_subnet_that_hosts_can_have(text: str) -> None:
    assert parse_subnet(text) == ip_network(text)
    assert records.first_free(ip_network(text), 1, []) == 2


@pytest.mark.parametrize(
    "text",
    [
        "::1/128",
        "::/0",
        "::/48",
        "::ffff:10.0.0.0/120",
        "fe80::/64",
        "fec0::/48",
        "ff00::/64",
        "ff05::/126",
        "100::/64",
        "1000::/48",
        "e000::/48",
        "fd00::/32",
        "fd00::/128",
        "fd00::1%eth0/64",
        "fd00::",
        "fd00::/x",
        "",
        "127.0.0.0/8",
        "0.0.0.0/8",
        "240.0.0.0/8",
        "169.254.0.0/16",
    ],
)
def test_subnet_that_hosts_cannot_have(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_subnet(text)
    assert caught.value.key == "--subnet" and caught.value.hint


@given(st.integers(0, (1 << 128) - 1), st.integers(0, 128))
@BOUNDED
def test_ipv6_subnet_is_either_refused_or_ordinary_unicast(number: int, length: int) -> None:
    net = IPv6Network((number >> (128 - length) << (128 - length), length))
    try:
        assert parse_subnet(str(net)) == net
    except UsageError:
        return
    assert not (
        net.is_multicast
        or net.is_link_local
        or net.is_loopback
        or net.is_reserved
        or net.is_site_local
    )
    assert 48 <= length <= 126
