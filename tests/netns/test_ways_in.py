"""Test every path to a published port: by client, host address, and the source the service sees.

Networks: ``backend`` (api, peer) and ``frontend`` (web, both first, which is on backend second) have both families, ``old``
(plain) has IPv4 only, ``inner`` (vault, mate) is internal with both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attack_world import CLIENT, GATEWAY, HOST, NEIGHBOUR, SUBNETS, create_networks
from conftest import Lab
from services import filter_bridged, idle
from ways import Cell, Path, Port, Servers, travel, wrong
from wire import PROTOCOLS, Addresses, Wire

NETWORKS = {
    "api": ["backend"],
    "peer": ["backend"],
    "web": ["frontend"],
    "both": ["frontend", "backend"],
    "plain": ["old"],
    "vault": ["inner"],
    "mate": ["inner"],
}

PUBLISHED = [
    Port("api", "8080:8080", 8080, 8080, "any"),
    Port("api", "8081:80", 8081, 80, "any"),
    Port("api", "192.0.2.1:8082:8082", 8082, 8082, HOST[4]),
    Port("api", "[2001:db8::1]:8087:8087", 8087, 8087, HOST[6]),
    Port("api", "127.0.0.1:8083:8083", 8083, 8083, "127.0.0.1"),
    Port("api", "0.0.0.0:8084:8084", 8084, 8084, "any4"),
    Port("api", "[::]:8085:8085", 8085, 8085, "any6"),
    Port("api", "10.99.1.1:8086:8086", 8086, 8086, "10.99.1.1"),
    Port("api", "8100-8103:8100-8103", 8100, 8100, "any"),
    Port("api", "8100-8103:8100-8103", 8103, 8103, "any"),
    Port("api", "8110-8111:8310-8311", 8111, 8311, "any"),
    Port("api", "192.0.2.1:8120-8121:8120-8121", 8121, 8121, HOST[4]),
    Port("api", "[2001:db8::1]:8130-8131:8130-8131", 8131, 8131, HOST[6]),
    Port("api", "127.0.0.1:8140-8141:8140-8141", 8141, 8141, "127.0.0.1"),
    Port("both", "8090:90", 8090, 90, "any"),
    Port("both", "8093:93", 8093, 93, "any", bound=False),
    Port("plain", "8091:91", 8091, 91, "any4"),
    Port("vault", "8092:92", 8092, 92, "any"),
]
# a service listens there, but nobody said that it may be reached by the host: each side of a range, the container's port
UNPUBLISHED = [Port("api", "", port, port, "nowhere") for port in (80, 8099, 8104, 8310, 9000)]
PORTS = [*PUBLISHED, *UNPUBLISHED]


class World:
    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab, self.wire = lab, wire
        create_networks(lab)
        lab.niso("activate", *(idle(lab, name, network=self._network(name)) for name in NETWORKS))
        self.addresses = {
            name: [Addresses(lab, f"niso-{name}", f"eth{n}") for n in range(len(networks))]
            for name, networks in NETWORKS.items()
        }
        for name in SUBNETS:
            Addresses(lab, None, f"niso-{name}")
        for subnet in SUBNETS["backend"]:
            lab.run(
                "ip",
                "route",
                "add",
                subnet,
                "via",
                HOST[6 if ":" in subnet else 4],
                netns="neighbour",
            )

    @staticmethod
    def _network(name: str) -> dict[str, Any]:
        entries = dict.fromkeys(port.entry for port in PUBLISHED if port.service == name)
        ports = [f"{entry}/{proto}" for entry in entries for proto in PROTOCOLS]
        return {"networks": NETWORKS[name], "ports": ports}

    def paths(self, family: int) -> list[Path]:
        """``by`` is the network by which a service sends."""
        host, backend, frontend = (
            HOST[family],
            GATEWAY["backend"][family],
            GATEWAY["frontend"][family],
        )
        found = [
            Path("client", "client", host, CLIENT[family]),
            Path("neighbour", "neighbour", host, NEIGHBOUR[family]),
            Path("neighbour with a route", "neighbour", backend, NEIGHBOUR[family]),
            Path("host by its address", None, host, host),
            Path("host by a bridge", None, backend, backend),
            Path("host by another bridge", None, frontend, frontend),
            Path("host by loopback", None, "127.0.0.1" if family == 4 else "::1", ""),
        ]
        if family == 4:
            found.append(Path("host by another loopback", None, "127.0.0.77", ""))
        for name, networks in NETWORKS.items():
            if own := self.addresses[name][0].ip(family):
                found.append(Path(name, f"niso-{name}", host, own, networks[0]))
                found.append(
                    Path(
                        f"{name} by its bridge",
                        f"niso-{name}",
                        GATEWAY[networks[0]][family],
                        own,
                        networks[0],
                    )
                )
        web, both = self.addresses["web"][0], self.addresses["both"][1]
        found.append(Path("web by another bridge", "niso-web", backend, web.ip(family), "frontend"))
        found.append(
            Path("both by its second bridge", "niso-both", backend, both.ip(family), "backend")
        )
        return found

    def cells(self, family: int) -> list[Cell]:
        return [self.cell(path, port, family) for path in self.paths(family) for port in PORTS]

    def cell(self, path: Path, port: Port, family: int) -> Cell:
        """What must come of a path and a port: the contract, section 6."""
        networks = NETWORKS[port.service]
        network = (
            path.by if path.by in networks else networks[0]
        )  # on the client's network, if the service is there
        server = self.addresses[port.service][networks.index(network)].ip(family)
        out_of_inner = path.by == "inner" and network != "inner"
        by_a_route = path.netns == "neighbour" and path.to != HOST[family]
        if not port.is_at(path.to) or not server or out_of_inner or by_a_route:
            return Cell(path, port, "", "")
        own_address = path.source in (
            address.ip(family) for address in self.addresses[port.service]
        )
        by_a_bridge = path.netns is None and path.to != HOST[family]
        # the host is known by its address on the service's bridge where it used that of another bridge or of no wire
        return Cell(
            path,
            port,
            server,
            GATEWAY[network][family] if own_address or by_a_bridge else path.source,
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


@pytest.mark.parametrize("nf_call", [0, 1])
@pytest.mark.parametrize("proto", PROTOCOLS)
@pytest.mark.parametrize("family", [4, 6])
def test_each_way_in_reaches_whom_it_should_and_no_other(
    world: World, family: int, proto: str, nf_call: int
) -> None:
    filter_bridged(world.lab, nf_call)
    cells = world.cells(family)
    servers = Servers(world.wire, PORTS, world.addresses, proto, family)
    try:
        found = wrong(travel(servers, cells))
    finally:
        servers.close()
    assert any(cell.sees for cell in cells) and not all(cell.sees for cell in cells)
    assert not found, f"{len(found)} of {len(cells)} are wrong:\n" + "\n".join(found)
    assert servers.unsound == []


def test_localhost_is_answered_by_loopback(world: World) -> None:
    """By name, as people do it: a client that is given ::1 first is refused there at once and takes 127.0.0.1."""
    servers = Servers(world.wire, PORTS, world.addresses, "tcp", 4)
    listener = next(
        key for key in servers.selector.get_map().values() if key.data[1].getsockname()[1] == 8080
    )
    code = "import socket; s = socket.create_connection(('localhost', 8080), 5); print(s.getpeername()[0])"
    try:
        assert world.lab.run("python3", "-ISc", code).stdout == "127.0.0.1\n"
        assert listener.data[1].accept()[1][0] == GATEWAY["backend"][4]
    finally:
        servers.close()
