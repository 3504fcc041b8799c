"""Build the world that a stack.toml declares, with made-up addresses. Pure."""

from __future__ import annotations

import ipaddress

from niso.base import names
from niso.manifest.stack_file import Stack
from niso.plan.known_world import Known, World
from niso.plan.records import Endpoint, Network, Subnet

_POOL = "10.99.{}.0/24"


def declared(stack: Stack) -> World:
    """Return the services and networks of a stack as a world.

    A network without a declared subnet gets one that depends on nothing but the file; so do the
    addresses of services. They serve the policy engine only, and are not those of the host.
    """
    used = {name for member in stack.members for name in member.loaded.spec.networks}
    networks = {}
    for number, name in enumerate(sorted({*stack.networks, *used})):
        wanted = stack.networks[name].subnets if name in stack.networks else ()
        cidrs = list(wanted) or [_POOL.format(number % 256)]
        subnets = tuple(
            Subnet(net.version, str(net), str(net[1]))
            for net in sorted(map(ipaddress.ip_network, cidrs), key=lambda net: net.version)
        )
        networks[name] = Network(name, names.bridge(name), 1500, subnets)
    services = {}
    for number, member in enumerate(sorted(stack.members, key=lambda member: member.name)):
        spec = member.loaded.spec
        endpoints = tuple(
            Endpoint(name, _addresses(networks[name], number, spec.statics(name)))
            for name in (spec.networks if spec.mode == "bridge" else ())
        )
        ports = tuple(published.port for published in spec.ports)
        services[spec.name] = Known(spec.name, spec.names, endpoints, spec.policy, ports)
    return World(services, networks)


def _addresses(network: Network, number: int, statics: tuple[str, ...]) -> tuple[str, ...]:
    result = []
    for subnet in network.subnets:
        net = ipaddress.ip_network(subnet.cidr)
        static = [address for address in statics if ipaddress.ip_address(address) in net]
        # the last addresses of the subnet, where static ones are rare
        result.append(static[0] if static else str(net[-2 - number % (net.num_addresses - 3)]))
    return tuple(result)
