"""Describe the holders of addresses: services, networks, the host. Pure."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping

from niso.base.lite_typing import NamedTuple
from niso.plan.records import Endpoint, Network, Policy, Port

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Known(NamedTuple):
    """A recorded service, active or not: in policies, an inactive one stands for its leases."""

    name: str
    names: tuple[str, ...]  # its name and those of its sharers, to which policies resolve
    endpoints: tuple[Endpoint, ...]
    policy: Policy = Policy()
    ports: tuple[Port, ...] = ()  # published ports, each with its host port
    active: bool = True
    # holder of each port that the service does not have itself
    sharers: tuple[tuple[Port, str], ...] = ()
    audits: bool = False  # its policy denies nothing at present: audit
    host: str = ""  # the host that it runs on, if another one
    heard: bool = True  # whether its policy is known on this host


class World(NamedTuple):
    """All input of a verdict. Addresses are text in their canonical form."""

    services: Mapping[str, Known]
    networks: Mapping[str, Network]
    host: frozenset[str] = frozenset()  # the host's addresses, except 127.0.0.0/8, ::1 and gateways
    closed: frozenset[int] = frozenset()  # families that the host forwards for services only
    wires: frozenset[str] = frozenset()  # prefixes of the host's links
    # prefixes from which subnets are taken, also those of former networks
    pools: tuple[str, ...] = ()
    outside: Mapping[str, tuple[str, ...]] = {}  # outside name -> addresses that services may reach
    outside_ever: Mapping[str, tuple[str, ...]] = {}  # the same, including PAST addresses


Holder = tuple[Known, str]
"""The service that holds an address, and the network of the address."""


def holder_of(world: World, address: str) -> Holder | None:
    """Return the service that has an address, or None."""
    for known in world.services.values():
        for endpoint in known.endpoints:
            if address in endpoint.addresses:
                return known, endpoint.network
    return None


def addresses_of(known: Known) -> tuple[str, ...]:
    """Return all leases of a service."""
    return tuple(address for endpoint in known.endpoints for address in endpoint.addresses)


def is_host(world: World, address: str) -> bool:
    """Return whether an address is the host's.

    127.0.0.0/8 and ::1 are. Callers must first handle a service that sends to its own loopback.
    """
    if address in world.host or any(
        address == subnet.gateway
        for network in world.networks.values()
        for subnet in network.subnets
    ):
        return True
    return parsed(address).is_loopback


def gateways(network: Network) -> tuple[str, ...]:
    """Return the addresses of the network's bridge."""
    return tuple(subnet.gateway for subnet in network.subnets)


def network_of(world: World, address: str) -> Network | None:
    """Return the network whose subnets contain the address, even if it is not in use."""
    return next((network for network in world.networks.values() if holds(network, address)), None)


def is_for_services(world: World, address: str) -> bool:
    """Return whether only services get such an address: it is or was in a network.

    Former networks are recognised by the prefixes from which subnets are taken.
    """
    number = parsed(address)
    in_pool = any(within(number, prefix) for prefix in world.pools)
    return in_pool or network_of(world, address) is not None


def holds(network: Network, address: str) -> bool:
    """Return whether a subnet of the network contains the address."""
    number = parsed(address)
    return any(within(number, subnet.cidr) for subnet in network.subnets)


parsed = functools.lru_cache(4096)(ipaddress.ip_address)
"""Parse an address, with a cache: the addresses of a flow are parsed several times in a row."""


def within(address: Address, prefix: str) -> bool:
    """Return whether a prefix contains an address; False across families (see ipaddress)."""
    return address in _network(prefix)


@functools.lru_cache(1024)
def _network(prefix: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Parse a prefix; cached, because many flows are matched against it."""
    return ipaddress.ip_network(prefix)


def is_link_local6(address: Address) -> bool:
    return address.version == 6 and address.is_link_local


def is_broadcast(world: World, to: Address) -> bool:
    """Return whether an address is multicast, or a broadcast address of a network or link.

    The networks are niso's. See RFC 919 and RFC 1112.
    """
    if to.is_multicast or str(to) == "255.255.255.255":
        return True
    cidrs = (
        s.cidr for network in world.networks.values() for s in network.subnets if s.family == 4
    )
    return to.version == 4 and any(
        to == ipaddress.IPv4Network(cidr).broadcast_address for cidr in cidrs
    )
