"""What the store holds, as plain data, so that a plan can be made without it."""

from __future__ import annotations

from typing import NamedTuple


class Subnet(NamedTuple):
    family: int  # 4 or 6
    cidr: str
    gateway: str


class Network(NamedTuple):
    name: str
    bridge: str
    mtu: int
    subnets: tuple[Subnet, ...]
    publishes: bool  # an active service on it has a published port


class Port(NamedTuple):
    host_ip: str  # "" is every address of each family that the network has; "0.0.0.0" every IPv4 one
    host_port: int
    container_port: int
    proto: str


class Endpoint(NamedTuple):
    network: str
    addresses: tuple[str, ...]  # one for each subnet of the network


class Service(NamedTuple):
    """An active service."""

    name: str
    generation: int
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...]
    names: tuple[str, ...]  # hostname first


class Snapshot(NamedTuple):
    """``services`` and ``networks`` are those in scope; every network that a service in scope is on is there too.

    ``readers`` are the ordered lists of networks of all active services that see one in scope; for those in ``fresh``
    the whole file is in scope, so ``neighbours`` holds all services that stand in it.
    """

    state_id: str
    networks: tuple[Network, ...] = ()
    services: tuple[Service, ...] = ()
    readers: frozenset[tuple[str, ...]] = frozenset()
    fresh: frozenset[tuple[str, ...]] = frozenset()
    neighbours: tuple[Service, ...] = ()
    any_network: bool = False
    any_active: bool = False
    sysctls_before: tuple[tuple[str, str], ...] = ()
