"""Test address numbers and the next free prefix, for both families."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.plan import records, subnets

BOUNDED = settings(max_examples=samples(50, 200), deadline=None)
C = ip_network("10.99.1.0/24")
SIX = ip_network("fd00::/64")


@pytest.mark.parametrize(
    ("net", "gateway", "used", "free"),
    [
        (C, 1, [], 2),
        (C, 1, [2], 3),
        (C, 1, [3], 2),
        (C, 1, [2, 3, 5], 4),
        (C, 254, [], 1),
        (C, 2, [1], 3),
        (C, 2, [1, 3], 4),
        (C, 254, list(range(1, 254)), None),
        (C, 1, list(range(2, 255)), None),
        (C, 1, list(range(2, 254)), 254),
        (ip_network("10.99.1.0/30"), 1, [], 2),
        (ip_network("10.99.1.0/30"), 1, [2], None),
        (ip_network("10.99.1.0/30"), 2, [1], None),
        (SIX, 1, [], 2),
        (SIX, 1, list(range(2, 300)), 300),
        (ip_network("fd00::/126"), 1, [2], 3),
        (ip_network("fd00::/126"), 1, [2, 3], None),
    ],
)
def test_first_free_is_the_lowest_that_may_be_had(net, gateway, used, free) -> None:
    assert records.first_free(net, gateway, used) == free


@BOUNDED
@given(st.integers(26, 30), st.data())
def test_first_free_agrees_with_trying_each_number(length, data) -> None:
    net = ip_network(f"10.99.1.0/{length}")
    hosts = range(1, net.num_addresses - 1)
    gateway = data.draw(st.sampled_from(hosts))
    used = data.draw(st.sets(st.sampled_from(hosts)))
    expected = next((n for n in hosts if n != gateway and n not in used), None)
    assert records.first_free(net, gateway, sorted(used)) == expected


def test_first_free_reads_no_further_than_the_first_gap() -> None:
    def used():
        yield from (2, 3, 9)
        raise AssertionError("read on")

    assert records.first_free(C, 1, used()) == 4


@pytest.mark.parametrize(
    ("net", "number", "word"),
    [
        (C, 0, "network"),
        (C, 1, "gateway"),
        (C, 255, "broadcast"),
        (C, 254, None),
        (C, 2, None),
        (SIX, 0, "network"),
        (SIX, 1, "gateway"),
        (SIX, SIX.num_addresses - 1, None),
    ],
)
def test_refusal_names_why_a_number_cannot_be(net, number, word) -> None:
    reason = records.refusal(net, 1, number)
    assert reason is None if word is None else word in reason


@pytest.mark.parametrize(
    ("pool", "length", "taken", "kept", "free"),
    [
        ("10.99.0.0/16", 24, [], None, "10.99.0.0/24"),
        ("10.99.0.0/16", 24, [], "10.99.0.0/24", "10.99.1.0/24"),
        ("10.99.0.0/16", 24, ["10.99.1.0/24"], "10.99.0.0/24", "10.99.2.0/24"),
        ("10.99.0.0/16", 24, ["10.99.1.128/25"], "10.99.0.0/24", "10.99.2.0/24"),
        ("10.99.0.0/16", 24, ["10.99.0.0/17"], None, "10.99.128.0/24"),
        (
            "10.99.0.0/16",
            24,
            ["10.99.0.0/17", "10.99.3.0/24", "10.99.3.7/32"],
            None,
            "10.99.128.0/24",
        ),
        ("10.99.0.0/16", 24, ["10.0.0.0/8"], None, None),
        ("10.99.0.0/16", 24, ["0.0.0.0/1", "fd00::/8"], None, None),
        ("10.99.0.0/16", 24, ["192.168.0.0/16", "fd00::/8"], None, "10.99.0.0/24"),
        ("10.99.0.0/24", 24, ["10.99.0.9/32"], None, None),
        ("10.99.0.0/24", 24, [], None, "10.99.0.0/24"),
        ("255.255.254.0/23", 24, ["255.255.254.0/24"], None, "255.255.255.0/24"),
        ("255.255.254.0/23", 24, ["255.255.254.0/23"], None, None),
        ("fd00::/48", 64, ["fd00::/64", "fd00:0:0:1::5/128"], None, "fd00:0:0:2::/64"),
        ("fd00::/48", 64, ["10.0.0.0/8"], "fd00::/64", "fd00:0:0:1::/64"),
        ("::/0", 64, [], None, "::/64"),
    ],
)
def test_free_prefix_is_the_lowest_that_overlaps_nothing(pool, length, taken, kept, free) -> None:
    found = subnets.free_prefix(
        ip_network(pool),
        length,
        [ip_network(each) for each in taken],
        ip_network(kept) if kept else None,
    )
    assert found == (ip_network(free) if free else None)


@BOUNDED
@given(st.lists(st.tuples(st.integers(0, 2**10 - 1), st.integers(22, 32))))
def test_free_prefix_agrees_with_trying_each(spans) -> None:
    pool = ip_network("10.99.0.0/22")
    taken = [
        ip_network((int(pool.network_address) + offset, length), strict=False)
        for offset, length in spans
    ]
    expected = next(
        (p for p in pool.subnets(new_prefix=24) if not any(p.overlaps(t) for t in taken)), None
    )
    assert subnets.free_prefix(pool, 24, taken) == expected
