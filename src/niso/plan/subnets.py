"""Choose addresses for endpoints and prefixes for networks. Pure; the store has the leases.

An address is handled as its number within its subnet (0 is the network address), so that IPv4 and
IPv6 work alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from niso.base.lite_typing import TYPE_CHECKING
from niso.base.prefixes import Prefix

if TYPE_CHECKING:
    import ipaddress

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_POOL = "10.99.0.0/16"
"""The prefix that IPv4 subnets are taken from, unless ``NISO_POOL`` is another."""


def unique_local(state_id: str) -> ipaddress.IPv6Network:
    """Return the /48 prefix for IPv6 subnets: fd and 40 bits of the state id (RFC 4193, 3.2.2).

    All subnets of one host share this prefix; prefixes of different hosts rarely clash.
    """
    import ipaddress

    global_id = sha256(f"{state_id}/RFC 4193".encode()).digest()[:5]
    return ipaddress.IPv6Network((bytes([0xFD]) + global_id + bytes(10), 48))


def last(subnet: Network | Prefix) -> int:
    """Return the highest number that an endpoint can have (IPv4: below the broadcast, RFC 919)."""
    return subnet.num_addresses - (2 if subnet.version == 4 else 1)


def first_free(subnet: Network | Prefix, gateway: int, used: Iterable[int]) -> int | None:
    """Return the lowest free number; None if the subnet is full.

    The network's, the gateway's and the broadcast address are never free, nor are the numbers in
    ``used`` (ascending).
    """
    candidate = 1
    for number in used:
        while candidate == gateway:
            candidate += 1
        if number > candidate:
            break
        if number == candidate:
            candidate += 1
    while candidate == gateway:
        candidate += 1
    return candidate if candidate <= last(subnet) else None


def refusal(subnet: Network | Prefix, gateway: int, number: int) -> str | None:
    """Return why an endpoint cannot have this static address; None if it can."""
    if number == 0:
        return "it is the address of the network itself"
    if number == gateway:
        return "it is the gateway"
    if subnet.version == 4 and number == subnet.num_addresses - 1:
        return "it is the broadcast address"
    return None


def free_prefix(
    pool: Network, length: int, taken: Iterable[Network], kept: Network | None = None
) -> Network | None:
    """Return the lowest prefix of ``length`` in ``pool`` that is free; None if there is none.

    It overlaps neither ``taken`` nor ``kept``.
    """
    import ipaddress

    size = 1 << (pool.max_prefixlen - length)
    spans = sorted(
        (int(net.network_address), int(net.broadcast_address))
        for net in taken
        if net.version == pool.version
    )
    if kept is not None:
        spans = sorted([*spans, (int(kept.network_address), int(kept.broadcast_address))])
    start = int(pool.network_address)
    end = int(pool.broadcast_address)
    for low, high in spans:
        if high < start:
            continue
        if low > start + size - 1:
            break
        start = (high // size + 1) * size
    if start + size - 1 > end:
        return None
    return (
        ipaddress.ip_network((start, length))
        if pool.version == 4
        else ipaddress.IPv6Network((start, length))
    )
