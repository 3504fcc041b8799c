"""Test paths of packets in fixed cases: host, outside, internal networks, published ports."""

from __future__ import annotations

import pytest
from policy_fixed import (
    EVERYWHERE,
    HOST6,
    OUTSIDE6,
    WORLD,
    ask,
    passes,
    with_ports,
)
from policy_worlds import HOST, OUTSIDE, known, policy, with_policy

from niso.kernel import ruleset
from niso.look import packet_path
from niso.look.flows import refusal
from niso.look.packet_path import Packet
from niso.manifest.policy import parse_entry
from niso.plan.records import ANY, ANY4, ANY6, PortMapping
from niso.plan.verdict import Reason, decide, matches

# --- the host and the outside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [HOST, HOST6, "10.99.1.1", "fd00:1::1", "10.99.2.1", "127.0.0.1", "fe80::1"]
)
def test_host_may_always_connect_in(source: str) -> None:
    closed = with_policy(
        WORLD, "db", policy(allow_from=[], deny_from=["0.0.0.0/0", "::/0", "network:backend"])
    )
    verdict = ask(closed, source, "db", family=6 if ":" in source else 4)
    assert verdict.passes
    assert verdict.ingress.message == "the host may always connect"
    assert verdict.path.message == "the host can reach every service"


@pytest.mark.parametrize("address", [HOST, "10.99.1.1", HOST6, "fd00:1::1", "fe80::1"])
def test_egress_counts_for_the_hosts_own_addresses(address: str) -> None:
    family = 6 if ":" in address else 4
    assert passes(WORLD, "api", address, 53, "udp", family)
    assert not passes(
        with_policy(WORLD, "api", policy(allow=[])), "api", address, 53, "udp", family
    )
    named = with_policy(
        WORLD, "api", policy(allow=[f"[{address}]:53" if family == 6 else f"{address}:53"])
    )
    assert passes(named, "api", address, 53, "udp", family)
    assert not passes(named, "api", address, 54, "udp", family)
    assert not passes(named, "api", address, None, "icmp", family)
    verdict = ask(named, "api", address, 53, "udp", family)
    assert verdict.ingress.message == "the host has no niso policy"
    assert verdict.destination == ("", address)


def test_name_server_of_a_network_is_for_that_network_alone() -> None:
    for own, other in (("10.99.1.1", "10.99.2.1"), ("fd00:1::1", "fd00:3::1")):
        family = 6 if ":" in own else 4
        for proto in ("tcp", "udp"):
            assert passes(WORLD, "api", own, 53, proto, family)
            assert passes(WORLD, "api", other, 54, proto, family)
            assert not passes(WORLD, "api", other, 53, proto, family)
            assert passes(WORLD, own, other, 53, proto, family)  # the host itself
    assert passes(WORLD, "api", HOST, 53, "udp") and passes(WORLD, "api", "10.99.2.1", 53, "sctp")


def test_egress_by_prefix_counts_for_the_outside() -> None:
    rules = with_policy(WORLD, "api", policy(allow=["0.0.0.0/0:443/tcp"], deny=["198.51.100.0/24"]))
    assert passes(rules, "api", OUTSIDE, 443)
    assert not passes(rules, "api", OUTSIDE, 80)
    assert not passes(rules, "api", "198.51.100.7", 443)
    assert not passes(rules, "api", OUTSIDE6, 443, family=6)
    assert ask(rules, "api", OUTSIDE, 443).ingress.message == f"{OUTSIDE} has no niso policy"


@pytest.mark.parametrize("destination", ["10.99.1.3", "fd00:1::3"])
def test_outside_reaches_no_service_that_publishes_nothing(destination: str) -> None:
    source = OUTSIDE6 if ":" in destination else OUTSIDE
    verdict = ask(WORLD, source, destination)
    assert not verdict.passes
    assert (
        verdict.path.message
        == "db can be reached from outside the host only by its published ports"
    )


@pytest.mark.parametrize(
    ("source", "family"), [("10.99.1.77", 4), ("fd00:1::77", 6), ("10.99.3.200", 4)]
)
def test_address_that_nobody_has_reaches_nobody_and_is_not_reached(
    source: str, family: int
) -> None:
    assert (
        ask(WORLD, source, "db", family=family).path.message
        == f"no service has the address {source}"
    )
    assert ask(WORLD, "api", source, family=family).path.passes is False
    assert (
        ask(WORLD, HOST if family == 4 else HOST6, source).path.message
        == f"no service has the address {source}"
    )


def test_service_that_is_not_active_sends_and_gets_nothing_but_its_name_holds() -> None:
    assert ask(WORLD, "api", "idle").path.message == "idle is not active"
    assert ask(WORLD, "idle", "api").path.message == "idle is not active"
    named = parse_entry("idle", "key", False)
    assert matches(named, WORLD, "10.99.1.6", 80, "tcp")


def test_a_recorded_drop_of_a_service_that_has_ended_names_what_dropped_it() -> None:
    """And not the present state of the service: its network was internal, or a policy denied it."""
    vault = WORLD.services["vault"]
    ended = WORLD._replace(services={**WORLD.services, "vault": vault._replace(active=False)})
    for world in (WORLD, ended):
        closed = with_policy(world, "api", policy(deny_from=["0.0.0.0/0"]))
        reason = refusal(closed, "10.99.3.3", "10.99.1.2", "tcp", 80, False)
        assert reason is not None and "internal" in reason.message, reason


@pytest.mark.parametrize(
    "destination", ["10.99.1.255", "255.255.255.255", "224.0.0.251", "ff02::fb", "ff02::1"]
)
def test_broadcast_and_multicast_reach_no_service_and_egress_counts_for_them(
    destination: str,
) -> None:
    family = 6 if ":" in destination else 4
    verdict = ask(WORLD, "api", destination, 5353, "udp", family)
    rule = (ruleset.BRIDGE, "between", "broadcast, multicast")
    assert verdict.path == Reason(False, "broadcast and multicast do not reach services", rule=rule)
    assert verdict.egress.passes
    closed = with_policy(WORLD, "api", policy(allow=["db"]))
    assert not ask(closed, "api", destination, 5353, "udp", family).egress.passes


def test_multicast_reaches_the_services_of_its_network_that_admit_it() -> None:
    network = WORLD.networks["backend"]._replace(multicast=True)
    world = WORLD._replace(networks={**WORLD.networks, "backend": network})
    world = with_policy(world, "db", policy(allow_from=["api:5353/udp"]))
    for to in ("10.99.1.255", "224.0.0.251", "ff02::fb"):
        family = 6 if ":" in to else 4
        said = ask(world, "api", to, 5353, "udp", family)
        assert said.passes and " db" in said.ingress.message.partition(";")[0], said
        said = ask(world, "api", to, 5354, "udp", family)
        assert "refused by the policies of db" in said.ingress.message, said
        assert not ask(world, "api", to, 80, "tcp", family).passes
    assert not ask(world, OUTSIDE, "10.99.1.255", 5353, "udp").passes
    closed = with_policy(world, "api", policy(allow=["db"]))
    assert not ask(closed, "api", "224.0.0.251", 5353, "udp").passes


def test_link_local_addresses_lead_to_the_host_alone() -> None:
    assert passes(WORLD, "api", "fe80::1", 22, family=6)
    assert passes(WORLD, "fd00:1::5", "fe80::1", 22, family=6)  # by the link that has the address
    assert not passes(WORLD, "api", "fe80::2", 22, family=6)


def test_loopback_is_each_ones_own() -> None:
    closed = with_policy(WORLD, "api", policy(allow=[], allow_from=[]))
    assert passes(closed, "api", "127.0.0.1")
    assert passes(closed, "api", "::1", family=6)
    assert ask(closed, "api", "127.0.0.1").path.message == "127.0.0.1 is api's own loopback address"
    assert not passes(WORLD, OUTSIDE, "127.0.0.1")
    assert not passes(WORLD, OUTSIDE6, "::1")
    assert passes(WORLD, HOST, "127.0.0.1")


def test_what_concerns_no_service_is_let_be() -> None:
    for source, destination in (
        (OUTSIDE, HOST),
        (HOST, OUTSIDE),
        (OUTSIDE, "198.51.100.1"),
        (OUTSIDE6, HOST6),
    ):
        assert passes(WORLD, source, destination)


def test_families_do_not_reach_each_other() -> None:
    assert not decide(WORLD, "10.99.1.2", "fd00:1::3", 80, "tcp").passes


@pytest.mark.parametrize(
    ("port", "proto"), [(None, "tcp"), (None, "udp"), (80, "icmp"), (80, "gre"), (80, "")]
)
def test_port_without_protocol_that_has_ports_is_refused(port: int | None, proto: str) -> None:
    with pytest.raises(ValueError, match="with port"):
        decide(WORLD, "10.99.1.2", "10.99.1.3", port, proto)


def test_addresses_are_taken_in_any_form() -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api"]))
    verdict = decide(only, "FD00:1:0::2", "fd00:1::0:3", 80, "tcp")
    assert (verdict.passes, verdict.source, verdict.destination) == (
        True,
        ("api", "fd00:1::2"),
        ("db", "fd00:1::3"),
    )


@pytest.mark.parametrize("family", [4, 6])
def test_address_of_a_bridge_is_not_reached_from_outside(family: int) -> None:
    """Not even a port that is published there; the host and services reach it."""
    gateway, host, outside = (
        ("10.99.1.1", HOST, OUTSIDE) if family == 4 else ("fd00:1::1", HOST6, OUTSIDE6)
    )
    base = with_ports("api", PortMapping(ANY, 8080, 80, "tcp"), base=WORLD)
    for port in (22, 8080):
        verdict = ask(base, outside, gateway, port, family=family)
        assert not verdict.passes and verdict.path.message.startswith(f"{gateway} is the address")
        assert passes(base, host, gateway, port, family=family)
        assert passes(base, "db", gateway, port, family=family)
    assert not decide(base, outside, gateway, None, "icmp").passes


# --- internal networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_service_of_an_internal_network_reaches_host_and_network_and_nothing_else(
    family: int,
) -> None:
    host, outside = (HOST, OUTSIDE) if family == 4 else (HOST6, OUTSIDE6)
    assert passes(WORLD, "safe", "vault", family=family)
    assert passes(WORLD, "safe", host, family=family)
    assert passes(
        WORLD, "safe", "10.99.2.1" if family == 4 else "fd00:1::1", family=family
    )  # another network's gateway
    assert passes(WORLD, host, "safe", family=family)
    for destination in (outside, "api"):
        verdict = ask(WORLD, "safe", destination, family=family)
        assert (
            verdict.path.message
            == "network inner is internal: it reaches only the host and its own services"
        )
    assert not passes(WORLD, "api", "safe", family=family)
    assert not passes(WORLD, outside, "safe", family=family)


@pytest.mark.parametrize("family", [4, 6])
def test_internal_network_has_no_detour_by_published_ports(family: int) -> None:
    host, outside = (HOST, OUTSIDE) if family == 4 else (HOST6, OUTSIDE6)
    shared = known(
        "shared", {"backend": ("10.99.1.8", "fd00:1::8"), "inner": ("10.99.3.8", "fd00:3::8")}
    )
    base = WORLD._replace(services={**WORLD.services, "shared": shared})
    base = with_ports("api", PortMapping(ANY, 8080, 80, "tcp"), base=base)
    base = with_ports("vault", PortMapping(ANY, 8081, 80, "tcp"), base=base)
    base = with_ports("shared", PortMapping(ANY, 8082, 80, "tcp"), base=base)
    assert not passes(base, "safe", host, 8080, family=family)
    assert passes(base, "safe", host, 8081, family=family)
    # who is on the internal network too is reached there
    verdict = ask(base, "safe", host, 8082, family=family)
    assert (verdict.passes, verdict.destination.address) == (
        True,
        "10.99.3.8" if family == 4 else "fd00:3::8",
    )
    for client in ("blog", outside) if family == 4 else (outside, "api"):
        assert passes(base, client, host, 8081, family=family)


def test_service_that_is_on_an_internal_network_first_gets_out_by_the_other_one() -> None:
    first = known(
        "first", {"inner": ("10.99.3.9", "fd00:3::9"), "backend": ("10.99.1.9", "fd00:1::9")}
    )
    base = WORLD._replace(services={**WORLD.services, "first": first})
    assert not passes(base, "10.99.3.9", OUTSIDE)
    assert passes(base, "10.99.1.9", OUTSIDE)
    assert passes(base, "10.99.1.9", "api")


# --- published ports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["db", "blog", OUTSIDE, HOST, "127.0.0.1", "10.99.2.1"])
@pytest.mark.parametrize("address", [HOST, "10.99.1.1", "10.99.2.1"])
def test_published_port_is_reached_by_every_address_of_the_host(source: str, address: str) -> None:
    verdict = ask(EVERYWHERE, source, address, 8080)
    if source == OUTSIDE and address != HOST:
        assert not verdict.passes  # a bridge's address is not reached from outside
        return
    assert verdict.passes
    assert (verdict.destination, verdict.port) == (("api", "10.99.1.2"), 80)
    assert (
        verdict.path.message
        == f"{address}:8080/tcp is a published port of api; it leads to 10.99.1.2:80"
    )


def test_published_port_is_of_both_families_where_it_has_no_address() -> None:
    verdict = ask(EVERYWHERE, OUTSIDE6, HOST6, 8080)
    assert (verdict.passes, verdict.destination) == (True, ("api", "fd00:1::2"))
    assert (
        verdict.path.message
        == f"[{HOST6}]:8080/tcp is a published port of api; it leads to [fd00:1::2]:80"
    )
    assert verdict.port == 80
    only4 = with_ports("blog", PortMapping(ANY, 8080, 80, "tcp"))  # on a network without IPv6
    assert ask(only4, OUTSIDE6, HOST6, 8080).destination.service == ""


@pytest.mark.parametrize(
    ("host_ip", "four", "six"), [(ANY, True, True), (ANY4, True, False), (ANY6, False, True)]
)
def test_published_port_of_one_family_is_not_of_the_other(
    host_ip: str, four: bool, six: bool
) -> None:
    one = with_ports("api", PortMapping(host_ip, 8080, 80, "tcp"))
    assert (ask(one, OUTSIDE, HOST, 8080).destination.service == "api") is four
    assert (ask(one, OUTSIDE6, HOST6, 8080).destination.service == "api") is six


def test_published_port_is_of_its_protocol_and_number_alone() -> None:
    for port, proto in (
        (8081, "tcp"),
        (8079, "tcp"),
        (8080, "udp"),
        (8080, "sctp"),
        (None, "icmp"),
        (80, "tcp"),
    ):
        verdict = ask(EVERYWHERE, OUTSIDE, HOST, port, proto)
        assert (verdict.destination, verdict.port) == (("", HOST), port)
        more = "" if port is None else f", and no service publishes {port}/{proto} there"
        assert verdict.path.message == f"{HOST} is the host's own address{more}"


def test_port_that_is_published_on_loopback_is_the_hosts_alone() -> None:
    inner = with_ports("api", PortMapping("127.0.0.1", 8080, 80, "tcp"))
    assert ask(inner, HOST, "127.0.0.1", 8080).destination == ("api", "10.99.1.2")
    assert ask(inner, "127.0.0.1", "127.0.0.1", 8080).passes
    assert ask(inner, "127.0.0.1", "127.0.0.2", 8080).destination.service == ""
    for source in (OUTSIDE, "db", HOST):
        assert ask(inner, source, HOST, 8080).destination.service == ""
    assert not passes(inner, OUTSIDE, "127.0.0.1", 8080)
    assert ask(inner, "db", "127.0.0.1", 8080).destination.service == "db"


def test_loopback_of_ipv6_has_no_published_ports() -> None:
    assert ask(EVERYWHERE, "::1", "::1", 8080).destination == ("", "::1")


@pytest.mark.parametrize(("port", "inside"), [(8000, 9000), (8004, 9004), (8010, 9010)])
def test_range_leads_each_port_to_its_own(port: int, inside: int) -> None:
    ranged = with_ports("api", PortMapping(ANY, 8000, 9000, "udp", 11))
    verdict = ask(ranged, OUTSIDE, HOST, port, "udp")
    assert (verdict.destination.service, verdict.port) == ("api", inside)
    for outside in (7999, 8011):
        assert ask(ranged, OUTSIDE, HOST, outside, "udp").destination.service == ""


@pytest.mark.parametrize("order", [1, -1])
def test_specific_address_wins_over_all_addresses(order: int) -> None:
    ports = (
        PortMapping(ANY, 8080, 80, "tcp"),
        PortMapping(HOST, 8080, 81, "tcp"),
        PortMapping(HOST6, 8080, 82, "tcp"),
    )[::order]
    both = with_ports("web", *ports)
    assert ask(both, OUTSIDE, HOST, 8080).port == 81
    assert ask(both, "api", "10.99.2.1", 8080).port == 80
    assert ask(both, "db", HOST, 8080).port == 81
    both = with_ports("api", *ports)
    assert ask(both, OUTSIDE6, HOST6, 8080).port == 82


def test_address_that_is_not_the_hosts_leads_nowhere() -> None:
    absent = with_ports("api", PortMapping("192.0.2.99", 8080, 80, "tcp"))
    assert ask(absent, "db", "192.0.2.99", 8080).destination == ("", "192.0.2.99")


def test_port_without_a_number_yet_leads_nowhere() -> None:
    waiting = with_ports("api", PortMapping(ANY, 0, 80, "tcp", 3))
    assert ask(waiting, OUTSIDE, HOST, 1).destination.service == ""


def test_port_of_a_service_that_is_not_active_is_not_published() -> None:
    idle = with_ports("idle", PortMapping(ANY, 8080, 80, "tcp"))
    assert ask(idle, OUTSIDE, HOST, 8080).destination == ("", HOST)


@pytest.mark.parametrize(
    ("source", "address"),
    [(OUTSIDE, "10.99.2.3"), ("blog", "10.99.2.3"), ("db", "10.99.1.5"), (HOST, "10.99.2.3")],
)
def test_service_of_two_networks_is_reached_on_the_one_that_its_client_is_on(
    source: str, address: str
) -> None:
    assert ask(
        with_ports("web", PortMapping(ANY, 8080, 80, "tcp")), source, HOST, 8080
    ).destination == (
        "web",
        address,
    )


def test_service_is_published_by_the_families_of_its_first_network_alone() -> None:
    published = with_ports("web", PortMapping(ANY, 8080, 80, "tcp"))
    assert ask(published, "db", HOST6, 8080, family=6).destination == ("", HOST6)
    assert ask(published, OUTSIDE6, HOST6, 8080).destination == ("", HOST6)


def test_policy_of_ingress_sees_own_port_and_real_client_behind_a_published_port() -> None:
    rules = with_policy(EVERYWHERE, "api", policy(allow_from=[f"{OUTSIDE}:80", "blog:80"]))
    assert passes(rules, OUTSIDE, HOST, 8080)
    assert passes(rules, "blog", HOST, 8080)
    assert not passes(rules, "db", HOST, 8080)
    assert not passes(rules, "192.0.2.3", HOST, 8080)
    rules = with_policy(EVERYWHERE, "api", policy(allow_from=[f"{OUTSIDE}:8080"]))
    assert not passes(rules, OUTSIDE, HOST, 8080)
    assert ask(rules, OUTSIDE, HOST, 8080).dropped_by == Reason(
        False, "not listed in network.policy.allow_from of api", "api", "network.policy.allow_from"
    )


def test_empty_allow_list_closes_published_ports_too_but_to_the_host() -> None:
    closed = with_policy(EVERYWHERE, "api", policy(allow_from=[]))
    assert not any(passes(closed, source, HOST, 8080) for source in (OUTSIDE, "db", "blog"))
    assert not passes(closed, OUTSIDE6, HOST6, 8080)
    assert passes(closed, "127.0.0.1", "127.0.0.1", 8080)
    assert passes(closed, HOST, HOST, 8080)


def test_policy_of_egress_sees_the_service_behind_a_published_port() -> None:
    for text, allowed in (
        ("api:80", True),
        ("api:8080", False),
        (f"{HOST}:8080", False),
        ("10.99.1.2:80", True),
    ):
        assert (
            passes(with_policy(EVERYWHERE, "blog", policy(allow=[text])), "blog", HOST, 8080)
            is allowed
        )
        assert (
            passes(with_policy(EVERYWHERE, "blog", policy(deny=[text])), "blog", HOST, 8080)
            is not allowed
        )


@pytest.mark.parametrize("family", [4, 6])
def test_service_reaches_itself_by_every_way_whatever_policies_say(family: int) -> None:
    text = ["0.0.0.0/0", "::/0", "api", "network:backend"]
    closed = with_policy(
        EVERYWHERE, "api", policy(allow_from=[], allow=[], deny_from=text, deny=text)
    )
    own, host, gateway = (
        ("10.99.1.2", HOST, "10.99.1.1") if family == 4 else ("fd00:1::2", HOST6, "fd00:1::1")
    )
    for destination, port in ((own, 80), (host, 8080), (gateway, 8080)):
        verdict = ask(closed, "api", destination, port, family=family)
        assert verdict.passes
        assert verdict.ingress.message == verdict.egress.message == "api may always reach itself"
        assert (verdict.destination, verdict.port) == (("api", own), 80)
    assert not passes(closed, "api", host, 8081, family=family)  # that is the host, not itself


def test_service_of_two_networks_reaches_itself_on_the_other() -> None:
    closed = with_policy(WORLD, "web", policy(allow_from=[], allow=[]))
    assert passes(closed, "10.99.2.3", "10.99.1.5")
    assert passes(closed, "10.99.1.5", "10.99.2.3")


@pytest.mark.parametrize(
    ("address", "element"),
    [
        ("127.0.0.1", "127.0.0.1 . tcp . 40000 : 10.99.1.2 . 80"),
        (HOST, "tcp . 40000 : 10.99.1.2 . 81"),
    ],
)
def test_element_of_a_port_is_that_of_its_address_or_of_all(address: str, element: str) -> None:
    ports = (PortMapping("127.0.0.1", 40000, 80, "tcp"), PortMapping(ANY, 40000, 81, "tcp"))
    world = with_ports("api", *ports)
    verdict = decide(world, HOST, address, 40000, "tcp")
    packet = Packet(HOST, address, 40000, "tcp")
    (named,) = packet_path._published(world, packet, verdict, None)
    assert named.text == element
