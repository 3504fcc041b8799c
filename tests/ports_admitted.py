"""Admit services with ports to a store, on a host where programs listen."""

from __future__ import annotations

import pytest
from fakes.kernel import Fake
from fakes.processes import FakeProcesses
from snapshots_made import network
from stored import add_network, put

from niso.base.errors import Conflict
from niso.change import ports as change_ports
from niso.kernel.sockets import Listener
from niso.manifest.addresses_and_ports import parse_port
from niso.plan.records import NetworkRecord, PortMapping, SubnetRecord
from niso.runtime.machine import Machine
from niso.store.store import Store

KERNEL = Fake()
KERNEL.programs = {7: (42, "nginx")}
FOUR, DUAL = network(0), network(1, dual=True)
SIX = NetworkRecord("six", "niso-six", 1500, (SubnetRecord(6, "fd00:7::/64", "fd00:7::1"),))
NETWORKS = (FOUR, DUAL, SIX)


def machine(store: Store) -> Machine:
    return Machine(store, KERNEL, FakeProcesses(KERNEL))


def listener(address: str, port: int, inode: int = 7) -> Listener:
    return Listener(6 if ":" in address else 4, address, port, inode)


def wanted(*texts: str) -> list[PortMapping]:
    return [parse_port(text, "key") for text in texts]


def new_store(on: str = "", **ports: list[PortMapping]) -> Store:
    """A store whose services have these ports on the IPv4 network, or ``on``; ``api`` is there too, without any."""
    store = Store.open()
    with store.transaction():
        for one in NETWORKS:
            add_network(store, one)
        for service, mine in {"api": [], **ports}.items():
            put(store, service, (on or FOUR.name,), ports=tuple(mine))
    return store


NO_MORE = ((), frozenset[str](), (), ())
"""Of `ports.admit`: no keys, no other services, no ports by name, none published before."""


def admit(store: Store, *texts: str, service: str = "api") -> list[PortMapping]:
    """The ports that an activation of a service gets for a manifest of these, recorded as it records them."""
    row = store.service(service)
    before = [port for _, port in store.ports(service)] if row is not None and row.active else []
    with store.transaction():
        ports, chosen = change_ports.admit(
            machine(store), service, wanted(*texts), before, *NO_MORE
        )
        store.set_ports(service, ports, chosen)
    return ports


def refused(store: Store, *texts: str, service: str = "api") -> Conflict:
    before = store.ports(service)
    with pytest.raises(Conflict) as caught:
        admit(store, *texts, service=service)
    assert store.ports(service) == before
    return caught.value
