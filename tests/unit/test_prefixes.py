"""Compare addresses and prefixes as numbers with `ipaddress`."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from niso.base import names

ADDRESSES = st.ip_addresses().map(str)


@given(ADDRESSES, st.integers(0, 32), ADDRESSES)
def test_prefix_is_that_of_ipaddress(start: str, length: int, other: str) -> None:
    net = ipaddress.ip_network(f"{start}/{length}", strict=False)
    prefix = names.prefix(str(net))
    assert prefix.num_addresses == net.num_addresses
    assert ipaddress.ip_address(prefix.address_at(0)) == net.network_address
    assert ipaddress.ip_address(prefix.address_at(net.num_addresses - 1)) == net.broadcast_address
    for none in (-1, net.num_addresses):
        with pytest.raises(ValueError):
            prefix.address_at(none)
    assert prefix.contains(other) == (ipaddress.ip_address(other) in net)
    assert prefix.contains(start)
    assert prefix.offset(start) == int(ipaddress.ip_address(start)) - int(net.network_address)


@given(ADDRESSES)
@example("::102:304")
@example("::ffff:1.2.3.4")
@example("::1")
def test_address_in_a_packet_is_that_of_ipaddress(text: str) -> None:
    assert names.packed(text) == ipaddress.ip_address(text).packed
    assert names.unpacked(names.packed(text)) == text
    assert names.number(text) == int(ipaddress.ip_address(text))
