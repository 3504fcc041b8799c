"""Test what holds for the desired state of each snapshot, by random ones."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from samples import samples
from snapshots_made import (
    elements,
    snapshots,
)

from niso.base import names
from niso.kernel import ruleset
from niso.kernel.kinds.addresses import Address, Route
from niso.kernel.kinds.hosts_files import HostsFile, HostsLine
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import Ruleset
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired

BOUNDED = settings(max_examples=samples(30, 120), deadline=None)


@BOUNDED
@given(snapshots())
def test_plan_is_the_same_each_time_and_names_each_thing_once(snapshot) -> None:
    state = desired(snapshot)
    assert state == desired(snapshot)
    things = list(state)
    assert len({(type(obj), obj.key()) for obj in things}) == len(things)
    assert len({veth.mac for veth in state[Veth]}) == len(state[Veth])


@BOUNDED
@given(snapshots())
def test_everything_that_a_thing_refers_to_is_there(snapshot) -> None:
    state = desired(snapshot)
    bridges, spaces = {b.name for b in state[Bridge]}, {n.name for n in state[Netns]}
    links = {("", name) for name in bridges} | {(v.netns, v.peer) for v in state[Veth]}
    for veth in state[Veth]:
        assert veth.netns in spaces
        assert veth.bridge in bridges
    for obj in (*state[Address], *state[Route]):
        assert (obj.netns, obj.link) in links
    for route in state[Route]:
        on = [
            ipaddress.ip_interface(a.address)
            for a in state[Address]
            if (a.netns, a.link) == (route.netns, route.link)
        ]
        to = route.gateway or route.destination.partition("/")[0]
        assert any(ipaddress.ip_address(to) in each.network for each in on)
    assert {line.folder for line in state[HostsLine]} <= {file.folder for file in state[HostsFile]}
    if state[Element]:
        assert state[Ruleset]


@BOUNDED
@given(snapshots())
def test_each_link_is_guarded_and_each_guard_is_of_a_link(snapshot) -> None:
    state = desired(snapshot)
    assert set(elements(state, "bridges")) == {f'"{bridge.name}"' for bridge in state[Bridge]}
    for table in (ruleset.INET, ruleset.BRIDGE):
        assert set(elements(state, "ports", table)) == {f'"{veth.name}"' for veth in state[Veth]}
    sources = {
        *elements(state, "sources4", ruleset.BRIDGE),
        *elements(state, "sources6", ruleset.BRIDGE),
    }
    own = {
        f'"{veth.name}" . {veth.mac} . {address.address.partition("/")[0]}'
        for veth in state[Veth]
        for address in state[Address]
        if (address.netns, address.link) == (veth.netns, veth.peer)
    }
    assert sources == own
    receivers = {
        f"{element.fields[-1]} {element.value[0]}"
        for element in state[Element]
        if element.container in ("receivers4", "receivers6")
    }
    assert receivers == {" ".join(source.split(" . ")[:0:-1]) for source in own}


@BOUNDED
@given(snapshots())
def test_each_published_port_leads_to_an_address_of_its_owner(snapshot) -> None:
    state = desired(snapshot)
    for element in state[Element]:
        if element.is_mapped and not element.container.startswith("receivers"):
            address = element.value[0]
            if element.container.startswith("hairpin"):
                gateways = {
                    subnet.gateway for network in snapshot.networks for subnet in network.subnets
                }
                assert address in gateways
                continue
            if element.container.startswith("macs"):
                assert address in {v.mac for v in state[Veth]}
                continue
            assert [
                a
                for a in state[Address]
                if a.address.split("/")[0] == address and a.netns == f"niso-{element.owner}"
            ]


@BOUNDED
@given(snapshots())
def test_each_service_finds_itself_and_all_its_neighbours_by_name(snapshot) -> None:
    state = desired(snapshot)
    for reader in snapshot.services:
        folder = names.hosts_folder(tuple(endpoint.network for endpoint in reader.endpoints))
        lines = [line.names.split()[0] for line in state[HostsLine] if line.folder == folder]
        wanted = {"host.niso.local"}
        for service in snapshot.services:
            on = {endpoint.network for endpoint in service.endpoints}
            shared = [e.network for e in reader.endpoints if e.network in on]
            wanted |= {f"{service.names[0]}.niso.local"} if shared else set()
            wanted |= {f"{service.name}.{network}.niso.local" for network in shared[1:]}
        assert set(lines) == wanted


@BOUNDED
@given(snapshots())
def test_no_link_of_a_service_asks_for_neighbours(snapshot) -> None:
    state = desired(snapshot)
    asked = {(veth.netns, f"net/ipv4/neigh/{veth.peer}/mcast_solicit", "0") for veth in state[Veth]}
    assert asked <= {tuple(sysctl) for sysctl in state[Sysctl]}
