"""Test the desired state of hand-made snapshots."""

from __future__ import annotations

import re

import pytest
from snapshots_made import (
    FORCED,
    STATE_ID,
    SWITCHED,
    elements,
    endpoint,
    everything,
    network,
)

from niso.base import names
from niso.kernel import ruleset
from niso.kernel.kinds.addresses import Address, Route
from niso.kernel.kinds.hosts_files import HostsFile, HostsLine
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.links import Bridge, Veth
from niso.kernel.kinds.namespaces import Netns
from niso.kernel.kinds.nft import Ruleset
from niso.kernel.kinds.sysctls import Sysctl
from niso.kernel.nft_elements import Element
from niso.plan.desired import desired
from niso.plan.records import (
    NetworkRecord,
    PlannedService,
    PortMapping,
    ServiceEndpoint,
    Snapshot,
    SubnetRecord,
)

ALIAS = "niso:0123abcd"
BACKEND, FRONT = network(0), network(1)
API = PlannedService(
    "api", 3, (endpoint(BACKEND, 2),), (PortMapping("", 8080, 80, "tcp"),), ("web", "api")
)
DB = PlannedService("db", 1, (endpoint(BACKEND, 3),), (), ("db",))


def test_empty_store_wants_nothing_but_the_sysctls_as_they_were() -> None:
    assert desired(Snapshot(STATE_ID)) == State()
    assert desired(everything((), ())) == State([Sysctl("", "net/ipv4/ip_forward", "0")])


def test_network_without_services_is_a_bridge_that_lets_nothing_through() -> None:
    state = desired(everything((BACKEND,), ()))
    assert state[Ruleset] == {Ruleset(ruleset.DIGEST)}
    assert state[Bridge] == {
        Bridge(
            "niso-backend", 1500, ALIAS, True, False, False, names.mac("", "niso-backend", ALIAS)
        )
    }
    assert state[Address] == {Address("", "niso-backend", "10.99.0.1/24")}
    assert state[Sysctl] == {
        Sysctl("", "net/ipv4/ip_forward", "0"),
        Sysctl("", "net/ipv4/conf/niso-backend/route_localnet", "0"),
        Sysctl("", "net/ipv6/conf/niso-backend/disable_ipv6", "1"),
    }
    assert elements(state, "bridges") == {'"niso-backend"': ("", "backend")}
    assert elements(state, "subnets4") == {"10.99.0.0/24": ("", "backend")}
    assert elements(state, "closed") == {}
    assert not state[Netns] | state[Veth] | state[Route] | state[HostsFile] | state[HostsLine]


def test_service_that_publishes() -> None:
    state = desired(everything((BACKEND,), (API,)))
    host_end, mac = names.veth("api", "backend", 3), names.mac("api", "backend", STATE_ID)
    assert state[Netns] == {Netns("niso-api", ALIAS)}
    assert state[Veth] == {
        Veth(host_end, "niso-api", "eth0", mac, 1500, "niso-backend", True, ALIAS)
    }
    assert Address("niso-api", "eth0", "10.99.0.2/24", routed=False) in state[Address]
    assert state[Route] == {
        Route("niso-api", "0.0.0.0/0", "10.99.0.1", "eth0"),
        Route("niso-api", "10.99.0.0/24", "10.99.0.1", "eth0"),
        Route("niso-api", "10.99.0.1/32", "", "eth0"),
    }
    assert elements(state, "publish_any4") == {"tcp . 8080": ("10.99.0.2 . 80", "api")}
    assert elements(state, "publish_any6") == {}
    assert elements(state, "sources4", ruleset.BRIDGE) == {
        f'"{host_end}" . {mac} . 10.99.0.2': ("", "api")
    }
    for table in (ruleset.INET, ruleset.BRIDGE):
        assert elements(state, "ports", table) == {f'"{host_end}"': ("", "api")}
    assert Sysctl("", "net/ipv4/conf/niso-backend/route_localnet", "1") in state[Sysctl]
    assert Sysctl("", "net/ipv4/ip_forward", "1") in state[Sysctl]
    assert {s.name: s.value for s in state[Sysctl] if s.netns} == {
        "net/ipv4/ip_unprivileged_port_start": "0",
        "net/ipv4/ping_group_range": "0\t2147483647",
        "net/ipv4/conf/all/promote_secondaries": "1",
        "net/ipv4/neigh/eth0/mcast_solicit": "0",
        "net/ipv6/conf/default/disable_ipv6": "1",
    }
    assert state[HostsFile] == {HostsFile("backend")}
    assert state[HostsLine] == {
        HostsLine("backend", "10.99.0.1", "host.niso.local"),
        HostsLine("backend", "10.99.0.2", "web.niso.local web api.niso.local api"),
    }


def test_forwarding_that_was_off_is_closed_for_others_and_goes_back_with_the_last_service() -> None:
    assert elements(desired(everything((BACKEND,), (API,), "0")), "closed") == {"ipv4": ("", "")}
    assert elements(desired(everything((BACKEND,), (API,), "1")), "closed") == {}
    for before in ("0", "1"):
        after = desired(everything((BACKEND,), (), before))
        assert Sysctl("", "net/ipv4/ip_forward", before) in after[Sysctl]


def test_service_that_publishes_nothing_has_no_hairpin_and_no_route_localnet() -> None:
    state = desired(everything((BACKEND,), (DB,)))
    assert [veth.hairpin for veth in state[Veth]] == [False]
    assert [(bridge.tracked4, bridge.tracked6) for bridge in state[Bridge]] == [(False, False)]
    assert elements(state, "hairpin4") == {}
    assert Sysctl("", "net/ipv4/conf/niso-backend/route_localnet", "0") in state[Sysctl]


def test_two_networks_are_eth0_and_eth1_and_ports_lead_to_the_first_but_for_those_on_the_second() -> (
    None
):
    ports = (
        PortMapping("", 8080, 80, "tcp"),
        PortMapping("192.0.2.1", 53, 53, "udp"),
        PortMapping("127.0.0.1", 9, 9, "tcp"),
    )
    both = API._replace(endpoints=(endpoint(FRONT, 5), endpoint(BACKEND, 2)), ports=ports)
    state = desired(everything((BACKEND, FRONT), (both,)))
    assert {(v.peer, v.bridge, v.hairpin) for v in state[Veth]} == {
        ("eth0", "niso-front", True),
        ("eth1", "niso-backend", True),
    }
    assert state[Route] == {
        Route("niso-api", "0.0.0.0/0", "10.99.1.1", "eth0"),
        Route("niso-api", "10.99.1.0/24", "10.99.1.1", "eth0"),
        Route("niso-api", "10.99.1.1/32", "", "eth0"),
        Route("niso-api", "10.99.0.1/32", "", "eth1"),
        Route("niso-api", "10.99.0.0/24", "10.99.0.1", "eth1"),
    }
    assert elements(state, "publish_any4") == {"tcp . 8080": ("10.99.1.5 . 80", "api")}
    assert elements(state, "publish_addr4") == {
        "192.0.2.1 . udp . 53": ("10.99.1.5 . 53", "api"),
        "127.0.0.1 . tcp . 9": ("10.99.1.5 . 9", "api"),
    }
    assert elements(state, "local_any4") == {
        '"niso-backend" . tcp . 8080': ("10.99.0.2 . 80", "api")
    }
    # 127.0.0.1 is reached from no bridge
    assert elements(state, "local_addr4") == {
        '"niso-backend" . 192.0.2.1 . udp . 53': ("10.99.0.2 . 53", "api")
    }
    assert elements(state, "hairpin4") == {
        "10.99.1.5 . 10.99.1.5": ("10.99.1.1", "api"),
        "10.99.1.5 . 10.99.0.2": ("10.99.0.1", "api"),
        "10.99.0.2 . 10.99.1.5": ("10.99.1.1", "api"),
        "10.99.0.2 . 10.99.0.2": ("10.99.0.1", "api"),
    }
    assert {(b.name, b.tracked4, b.tracked6) for b in state[Bridge]} == {
        ("niso-backend", True, False),
        ("niso-front", True, False),
    }
    # only the first is reached by 127.0.0.1
    loopback = {
        s.name.split("/")[3]: s.value for s in state[Sysctl] if s.name.endswith("route_localnet")
    }
    assert loopback == {"niso-front": "1", "niso-backend": "0"}


def test_port_has_only_the_families_of_the_primary_network() -> None:
    dual = network(0, dual=True)
    both = API._replace(endpoints=(endpoint(FRONT, 5), endpoint(dual, 2)))
    front = both._replace(mode="front", serving=((1, both.endpoints),))
    for name, service in (("local", both), ("front_local", front)):
        state = desired(everything((dual, FRONT), (service,)))
        assert elements(state, f"{name}_any4") and not elements(state, f"{name}_any6"), name


def test_who_shares_two_networks_is_given_the_address_on_the_readers_first() -> None:
    both = API._replace(endpoints=(endpoint(FRONT, 5), endpoint(BACKEND, 2)))
    turned = DB._replace(endpoints=(endpoint(BACKEND, 3), endpoint(FRONT, 6)))
    lines = desired(everything((BACKEND, FRONT), (both, turned)))[HostsLine]
    seen = {(line.folder, line.names.split()[:2][-1]): line.address for line in lines}
    assert seen == {
        ("front+backend", "host.niso.local"): "10.99.1.1",
        ("backend+front", "host.niso.local"): "10.99.0.1",
        ("front+backend", "web"): "10.99.1.5",
        ("front+backend", "db"): "10.99.1.6",
        ("backend+front", "web"): "10.99.0.2",
        ("backend+front", "db"): "10.99.0.3",
        # the other address has a name of its own
        ("front+backend", "api.backend.niso.local"): "10.99.0.2",
        ("front+backend", "db.backend.niso.local"): "10.99.0.3",
        ("backend+front", "api.front.niso.local"): "10.99.1.5",
        ("backend+front", "db.front.niso.local"): "10.99.1.6",
    }


def test_services_of_other_networks_are_in_no_hosts_file_of_ours() -> None:
    other = DB._replace(endpoints=(endpoint(FRONT, 3),))
    lines = desired(everything((BACKEND, FRONT), (API, other)))[HostsLine]
    called = {(line.folder, line.names.split()[:2][-1]) for line in lines}
    assert {one for one in called if one[1] != "host.niso.local"} == {
        ("backend", "web"),
        ("front", "db"),
    }


def test_dual_stack_has_each_thing_of_both_families() -> None:
    dual = network(0, dual=True)
    service = API._replace(endpoints=(endpoint(dual, 2),))
    state = desired(everything((dual,), (service,)))
    # other services of the subnet are reached by the gateway's MAC
    assert {(a.address, a.routed) for a in state[Address] if a.netns} == {
        ("10.99.0.2/24", False),
        ("fd00:99:1::2/64", False),
    }
    (bridge,), (veth,) = state[Bridge], state[Veth]
    for family, address in ((4, "10.99.0.2"), (6, "fd00:99:1::2")):
        receivers = elements(state, f"receivers{family}", ruleset.BRIDGE)
        assert receivers == {f"{bridge.mac} . {address}": (veth.mac, "api")}
    assert {a.address for a in state[Address] if not a.netns} == {
        "10.99.0.1/24",
        "fd00:99:1::1/64",
        "fe80::1/64",
    }
    assert {(r.destination, r.gateway) for r in state[Route]} == {
        ("0.0.0.0/0", "10.99.0.1"),
        ("10.99.0.0/24", "10.99.0.1"),
        ("10.99.0.1/32", ""),
        ("fd00:99:1::1/128", ""),
        ("::/0", "fd00:99:1::1"),
        ("fd00:99:1::/64", "fd00:99:1::1"),
    }
    assert elements(state, "publish_any6") == {"tcp . 8080": ("fd00:99:1::2 . 80", "api")}
    assert list(elements(state, "subnets6")) == ["fd00:99:1::/64"]
    assert len(elements(state, "sources6", ruleset.BRIDGE)) == 1
    assert elements(state, "hairpin4") == {"10.99.0.2 . 10.99.0.2": ("10.99.0.1", "api")}
    assert elements(state, "hairpin6") == {"fd00:99:1::2 . fd00:99:1::2": ("fd00:99:1::1", "api")}
    assert [(b.tracked4, b.tracked6) for b in state[Bridge]] == [(True, True)]
    assert {(s.netns, s.value) for s in state[Sysctl] if "disable_ipv6" in s.name} == {
        ("", "0"),
        ("niso-api", "0"),
    }
    assert Sysctl("niso-api", "net/ipv6/conf/default/addr_gen_mode", "1") in state[Sysctl]
    assert {line.address for line in state[HostsLine] if "web" in line.names} == {
        "10.99.0.2",
        "fd00:99:1::2",
    }
    assert {line.address for line in state[HostsLine] if "web" not in line.names} == {
        "10.99.0.1",
        "fd00:99:1::1",
    }


@pytest.mark.parametrize(
    ("port", "four", "six"),
    [
        (
            PortMapping("0.0.0.0", 80, 81, "udp"),
            {"publish_any4": {"udp . 80": "10.99.0.2 . 81"}},
            {},
        ),
        (
            PortMapping("::", 80, 81, "sctp"),
            {},
            {"publish_any6": {"sctp . 80": "fd00:99:1::2 . 81"}},
        ),
        (
            PortMapping("192.0.2.1", 80, 81, "tcp"),
            {"publish_addr4": {"192.0.2.1 . tcp . 80": "10.99.0.2 . 81"}},
            {},
        ),
        (
            PortMapping("2001:db8::1", 80, 81, "tcp"),
            {},
            {"publish_addr6": {"2001:db8::1 . tcp . 80": "fd00:99:1::2 . 81"}},
        ),
        (
            PortMapping("", 8000, 8000, "tcp", 11),
            {"range_any4": {"tcp . 8000-8010": "10.99.0.2"}},
            {"range_any6": {"tcp . 8000-8010": "fd00:99:1::2"}},
        ),
        (
            PortMapping("127.0.0.1", 8000, 8000, "udp", 11),
            {"range_addr4": {"127.0.0.1 . udp . 8000-8010": "10.99.0.2"}},
            {},
        ),
        (
            PortMapping("::", 8000, 9000, "tcp", 2),
            {},
            {
                "publish_any6": {
                    "tcp . 8000": "fd00:99:1::2 . 9000",
                    "tcp . 8001": "fd00:99:1::2 . 9001",
                }
            },
        ),
    ],
)
def test_form_of_a_port_is_elements_of_the_families_of_its_host_address(
    port: PortMapping, four: dict, six: dict
) -> None:
    dual = network(0, dual=True)
    service = API._replace(endpoints=(endpoint(dual, 2),), ports=(port,))
    state = desired(everything((dual,), (service,)))
    found = {
        name: {key: value for key, (value, _) in each.items()}
        for name in ruleset.CONTAINERS[ruleset.INET]
        if name.startswith(("publish_", "range_", "local_")) and (each := elements(state, name))
    }
    assert found == four | six


def test_port_that_only_ipv6_has_opens_no_way_from_loopback() -> None:
    dual = network(0, dual=True)
    for host_ip, value in (
        ("::", "0"),
        ("2001:db8::1", "0"),
        ("192.0.2.1", "0"),
        ("127.0.0.1", "1"),
        ("", "1"),
    ):
        service = API._replace(
            endpoints=(endpoint(dual, 2),), ports=(PortMapping(host_ip, 80, 80, "tcp"),)
        )
        state = desired(everything((dual,), (service,)))
        assert Sysctl("", "net/ipv4/conf/niso-backend/route_localnet", value) in state[Sysctl], (
            host_ip
        )


def test_internal_network_is_named_in_the_set_that_lets_nothing_out() -> None:
    inside = network(0, internal=True)
    state = desired(everything((inside, FRONT), (API,)))
    assert elements(state, "internal") == {'"niso-backend"': ("", "backend")}
    assert elements(state, "publish_any4") == {"tcp . 8080": ("10.99.0.2 . 80", "api")}


def test_broadcast_address_of_each_ipv4_subnet_is_named() -> None:
    state = desired(everything((network(0, dual=True), FRONT), ()))
    assert elements(state, "broadcasts", ruleset.BRIDGE) == {
        "10.99.0.255": ("", "backend"),
        "10.99.1.255": ("", "front"),
    }


@pytest.mark.parametrize("before", [FORCED, SWITCHED])
def test_ipv6_forwarding_is_on_and_closed_for_others_while_a_service_has_ipv6(
    before: tuple,
) -> None:
    dual = network(0, dual=True)
    service = API._replace(endpoints=(endpoint(dual, 2),))
    state = desired(everything((dual,), (service,), ipv6_before=before))
    assert elements(state, "closed") == {"ipv4": ("", ""), "ipv6": ("", "")}
    on = {s.name: s.value for s in state[Sysctl] if s.name in dict(before)}
    assert on == {name: "2" if name.endswith("accept_ra") else "1" for name, _ in before}
    # an IPv4 service alone needs nothing of it: all goes back
    state = desired(
        everything(
            (dual, FRONT), (DB._replace(endpoints=(endpoint(FRONT, 3),)),), ipv6_before=before
        )
    )
    assert elements(state, "closed") == {"ipv4": ("", "")}
    assert {s.name: s.value for s in state[Sysctl] if s.name in dict(before)} == dict(before)


def test_ipv6_forwarding_that_was_on_is_left_on_and_closed_to_nobody() -> None:
    dual = network(0, dual=True)
    service = API._replace(endpoints=(endpoint(dual, 2),))
    before = (("net/ipv6/conf/all/forwarding", "1"),)
    state = desired(everything((dual,), (service,), "1", before))
    assert elements(state, "closed") == {}
    for snapshot in (
        everything((dual,), (service,), "1", before),
        everything((dual,), (), "1", before),
    ):
        assert Sysctl("", "net/ipv6/conf/all/forwarding", "1") in desired(snapshot)[Sysctl]


def test_ipv6_alone() -> None:
    only = NetworkRecord(
        "six", "niso-six", 1500, (SubnetRecord(6, "fd00:7::/64", "fd00:7::1"),), False
    )
    service = PlannedService(
        "api",
        1,
        (ServiceEndpoint("six", ("fd00:7::2",)),),
        (PortMapping("", 1, 2, "tcp"),),
        ("api",),
    )
    state = desired(everything((only,), (service,)))
    assert {r.destination for r in state[Route]} == {"::/0", "fd00:7::/64", "fd00:7::1/128"}
    assert elements(state, "publish_any4") == {}
    assert elements(state, "publish_any6") == {"tcp . 1": ("fd00:7::2 . 2", "api")}


def test_new_activation_changes_the_link_and_keeps_the_mac() -> None:
    first = desired(everything((BACKEND,), (API,)))
    again = desired(everything((BACKEND,), (API._replace(generation=4),)))
    assert {v.name for v in first[Veth]}.isdisjoint({v.name for v in again[Veth]})
    assert {v.mac for v in first[Veth]} == {v.mac for v in again[Veth]}


def test_element_of_a_state_says_who_owns_it() -> None:
    state = desired(everything((BACKEND,), (API,)))
    owners = {element.owner for element in state[Element]}
    assert owners == {"", "api", "backend"}
    unowned = {element.container for element in state[Element] if not element.owner}
    assert unowned == {"owner", "closed", "before"}
    assert Element(ruleset.INET, "owner", ("id-0123abcd",)) in state[Element]


def test_another_service_adds_no_element_to_a_set_of_intervals_of_several_fields() -> None:
    """The kernel compares an element that it deletes from one with all others (nft_pipapo_remove)."""
    slow = {
        name
        for name, kind in re.findall(
            r"\t(?:set|map) (\w+) \{ type ([^:;]*)[^}]*flags interval", ruleset.TABLES
        )
        if " . " in kind
    }
    assert {"own4", "own6", "range_any4"} <= slow
    both = BACKEND, network(1, dual=True)
    one, two = (desired(everything(both, services)) for services in ((DB,), (DB, API)))
    added = {element.container for element in two[Element] - one[Element]}
    assert "sources4" in added and not added & slow
