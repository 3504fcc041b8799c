"""Who reaches whom in a `World`: which service, if any, answers a connection.

By ``docs/design/packet.md`` (paths) and ``docs/guide/policies.md`` (policies).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from walk.known import Service
from walk.model import World
from walk.parts import (
    CLIENT,
    CLIENT6,
    CLIENT_PORT,
    HOST,
    HOST6,
    HOST_PORTS,
    INNER,
    LOOPBACK,
    RANGE_PORTS,
    Entry,
    Port,
)


class Flow(NamedTuple):
    """A connection: from ``source`` (a service, "client" or "host") to an address and port."""

    source: str
    address: str
    port: int
    proto: str
    wanted: str = ""
    """The service that answers; "" if nobody does."""

    @property
    def six(self) -> bool:
        return ":" in self.address

    @property
    def text(self) -> str:
        return f"{self.source} to {self.address}:{self.port}/{self.proto}"


def flows(world: World) -> list[Flow]:
    """Return every connection that the walk may try, with who answers."""
    found = []
    targets: list[tuple[str, int]] = []
    for name in world.active():
        home = world.services[world.home(name)]
        leases = (*home.leases.values(), *home.leases6.values())
        targets += [(lease, INNER[name]) for lease in leases if lease]
    # any port of a service, and one that nobody listens on behind some address
    for host in (HOST, HOST6):
        targets += [(host, port) for port in (*HOST_PORTS, *RANGE_PORTS, *INNER.values())]
    homes = [name for name in world.active() if world.home(name) == name]
    sources = ["client", "host", *(n for n in homes if world.services[n].manifest.provides)]
    for source in sources:
        mine = list(targets)
        if source == "host":
            mine += [(LOOPBACK, port) for port in (*HOST_PORTS, *RANGE_PORTS)]
        elif source != "client":
            mine += [(CLIENT, CLIENT_PORT), (CLIENT6, CLIENT_PORT)]
        for address, port in mine:
            for proto in ("tcp", "udp"):
                flow = Flow(source, address, port, proto)
                found.append(flow._replace(wanted=answers(world, flow)))
    return found


def primary(world: World, networks: Sequence[str]) -> str:
    """Return the network of the default route and of published ports."""
    return next((name for name in networks if not world.networks[name].internal), networks[0])


def answers(world: World, flow: Flow) -> str:
    """Return who answers a connection; "" if nobody does."""
    source = world.services.get(flow.source)
    first = primary(world, source.manifest.on) if source and source.manifest.on else None
    if source and first is None:
        return ""  # mode none: no way out
    beyond = flow.address in (HOST, HOST6, CLIENT, CLIENT6)
    if source and flow.six and beyond and first not in source.leases6:
        return ""  # no default route of this family
    if flow.address in (HOST, HOST6, LOOPBACK):
        landed = published(world, flow, first)
        if landed is not None:
            return _through(world, flow, *landed)
        return _on_host(world, flow, source)
    if flow.address in (CLIENT, CLIENT6):
        if source is None or world.networks[str(first)].internal:
            return ""
        return "client" if leaves(world, flow.source, flow.address, flow.port, flow.proto) else ""
    return _direct(world, flow, source)


def published(world: World, flow: Flow, first: str | None) -> tuple[str, str, Port] | None:
    """Return (service, network of the address it is reached at, port) of a published port.

    ``first`` is the network that the packet comes from, if a service sends it.
    """
    found: tuple[str, Port] | None = None
    for name in world.active():
        for port in world.services[name].ports:
            inner = dict(port.each).get(flow.port)
            home = world.services[world.home(name)]
            if flow.six and primary(world, home.manifest.on) not in home.leases6:
                continue
            same = inner is not None and port.proto == flow.proto
            if same and port.at in ("", flow.address) and (found is None or port.at):
                found = (name, replace(port, host=flow.port, inner=inner, count=1))
    if found is None:
        return None
    networks = world.services[world.home(found[0])].manifest.on
    return found[0], first if first in networks else primary(world, networks), found[1]


def _through(world: World, flow: Flow, name: str, network: str, port: Port) -> str:
    """Return who answers at a published port."""
    home = world.home(name)
    lease = _leases(world.services[home], flow)[network]
    listener = _listener(world, home, port.inner)
    source = world.services.get(flow.source)
    if source is None:
        client = CLIENT6 if flow.six else CLIENT
        allowed = flow.source == "host" or enters(world, home, client, port.inner, flow.proto)
        return listener if allowed else ""
    if flow.source == home:
        return listener
    first = primary(world, source.manifest.on)
    if first != network and world.networks[first].internal:
        return ""
    allowed = leaves(world, flow.source, lease, port.inner, flow.proto) and enters(
        world, home, _leases(source, flow)[first], port.inner, flow.proto
    )
    return listener if allowed else ""


def _on_host(world: World, flow: Flow, source: Service | None) -> str:
    """Return which service of mode host answers."""
    for name in world.active():
        if world.services[name].manifest.mode == "host" and INNER[name] == flow.port:
            if source and not leaves(world, flow.source, flow.address, flow.port, flow.proto):
                return ""
            return name
    return ""


def _direct(world: World, flow: Flow, source: Service | None) -> str:
    """Return who answers at a service's own address."""
    home, network = next(
        (name, network)
        for name, it in world.services.items()
        for network, lease in (*it.leases.items(), *it.leases6.items())
        if lease == flow.address
    )
    listener = _listener(world, home, flow.port)
    if flow.source in ("host", home):
        return listener
    if source is None or network not in source.manifest.on:
        return ""
    mine = _leases(source, flow)[network]
    allowed = leaves(world, flow.source, flow.address, flow.port, flow.proto) and enters(
        world, home, mine, flow.port, flow.proto
    )
    return listener if allowed else ""


def _leases(service: Service, flow: Flow) -> dict[str, str]:
    """Return network -> address of the flow's family."""
    return service.leases6 if flow.six else service.leases


def _listener(world: World, home: str, port: int) -> str:
    """Return the active service in a namespace that listens on a port."""
    here = [home, *world.sharers(home)]
    return next((n for n in here if INNER[n] == port and world.services[n].active), "")


def enters(world: World, home: str, source: str, port: int, proto: str) -> bool:
    """Whether the ingress policy of a service lets ``source`` (an address) in."""
    manifest = world.services[home].manifest
    side = manifest.policy.allow_from, manifest.policy.deny_from
    return manifest.audit or _passes(world, home, side, source, port, proto)


def leaves(world: World, home: str, target: str, port: int, proto: str) -> bool:
    """Whether the egress policy of a service lets it connect to ``target`` (an address)."""
    manifest = world.services[home].manifest
    side = manifest.policy.egress_allow, manifest.policy.egress_deny
    return manifest.audit or _passes(world, home, side, target, port, proto)


def _passes(
    world: World,
    home: str,
    side: tuple[tuple[Entry, ...] | None, tuple[Entry, ...]],
    address: str,
    port: int,
    proto: str,
) -> bool:
    """Whether one side of a service's policy, (allow, deny), lets it talk with an address."""
    allow, deny = side

    def named(entries: tuple[Entry, ...], denies: bool) -> bool:
        return any(
            entry.port in (0, port)
            and entry.proto in ("", proto)
            and _means(world, home, entry.peer, address, denies)
            for entry in entries
        )

    return (allow is None or named(allow, False)) and not named(deny, True)


def _means(world: World, asker: str, peer: str, address: str, denies: bool) -> bool:
    """Whether a peer in the policy of ``asker`` is an address."""
    kind, _, name = peer.rpartition(":")
    if kind == "network":
        network = world.networks.get(name)
        if network is None:
            return False
        if ":" in address:
            return (
                network.six
                and address.rpartition(":")[0] == network.subnet6
                and not address.endswith("::1")
            )
        return address.rpartition(".")[0] == network.subnet and not address.endswith(".1")
    if peer[0].isdigit() or peer.startswith("::"):
        return ipaddress.ip_address(address) in ipaddress.ip_network(peer)
    for holder in world.meant(asker, peer, denies):
        it = world.services[holder]
        if it.manifest.share:
            home = world.services.get(world.home(holder)) if it.active else None
            it = home or Service(it.manifest)
        if address in it.leases.values() or address in it.leases6.values():
            return True
    return False
