"""The engine's word on fixed cases: what passes, what does not, and which line or default says so.

backend and frontend are open networks, inner is an internal one; backend and inner have IPv6. `web` is on frontend and
backend in this order, all others on one.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from policy_worlds import HOST, OUTSIDE, known, network, policy, with_policy, world

from niso.model.policy import parse_entry
from niso.policy import Known, Verdict, World, decide, matches
from niso.records import ANY, ANY4, ANY6, Network, Policy, Port

BACKEND = network("backend", "10.99.1.0/24", "fd00:1::/64")
FRONTEND = network("frontend", "10.99.2.0/24")
INNER = network("inner", "10.99.3.0/24", "fd00:3::/64", internal=True)
NETWORKS = (BACKEND, FRONTEND, INNER)
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
HOSTS = (HOST, HOST6, "fe80::1")

API = known("api", {"backend": ("10.99.1.2", "fd00:1::2")}, names=("shop", "api"))
DB = known("db", {"backend": ("10.99.1.3", "fd00:1::3")})
CACHE = known("cache", {"backend": ("10.99.1.4", "fd00:1::4")})
BLOG = known("blog", {"frontend": ("10.99.2.2",)})
WEB = known("web", {"frontend": ("10.99.2.3",), "backend": ("10.99.1.5", "fd00:1::5")})
SAFE = known("safe", {"inner": ("10.99.3.2", "fd00:3::2")})
VAULT = known("vault", {"inner": ("10.99.3.3", "fd00:3::3")})
IDLE = known("idle", {"backend": ("10.99.1.6", "fd00:1::6")}, active=False)
SERVICES = (API, DB, CACHE, BLOG, WEB, SAFE, VAULT, IDLE)
WORLD = world(SERVICES, NETWORKS, HOSTS)


def lease(world: World, place: str, family: int = 4) -> str:
    """The address of a service's name, on its first network that has the family; an address stays as it is."""
    if place in world.services:
        own = (address for endpoint in world.services[place].endpoints for address in endpoint.addresses)
        return next(address for address in own if (":" in address) == (family == 6))
    return place


def ask(
    world: World, source: str, destination: str, to: int | None = 80, proto: str = "tcp", family: int = 4
) -> Verdict:
    return decide(world, lease(world, source, family), lease(world, destination, family), to, proto)


def passes(
    world: World, source: str, destination: str, to: int | None = 80, proto: str = "tcp", family: int = 4
) -> bool:
    verdict = ask(world, source, destination, to, proto, family)
    assert verdict.passes is (verdict.dropped_by is None)
    return verdict.passes


def who_reaches(world: World, service: str, to: int | None = 80, proto: str = "tcp", family: int = 4) -> set[str]:
    """Which of the three others on backend do."""
    names = {"api", "db", "cache"} - {service}
    return {name for name in names if passes(world, name, service, to, proto, family)}


def with_ports(name: str, *ports: Port, base: World = WORLD) -> World:
    return base._replace(services={**base.services, name: base.services[name]._replace(ports=ports)})


# --- policies: the cases of Kubernetes' network-policy conformance ---------------------------------------------------

FLOWS = [(80, "tcp"), (53, "udp"), (9, "sctp"), (None, "icmp"), (None, "gre")]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "proto"), FLOWS)
def test_without_policies_all_on_one_network_may_connect(port: int | None, proto: str, family: int) -> None:
    assert who_reaches(WORLD, "db", port, proto, family) == {"api", "cache"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "proto"), FLOWS)
def test_deny_all_ingress(port: int | None, proto: str, family: int) -> None:
    closed = with_policy(WORLD, "db", policy(allow_from=[]))
    assert who_reaches(closed, "db", port, proto, family) == set()
    assert passes(closed, "db", "api", port, proto, family)  # its own connections are not meant
    assert who_reaches(closed, "api", port, proto, family) == {"db", "cache"}
    verdict = ask(closed, "api", "db", port, proto, family)
    assert (verdict.path.passes, verdict.egress.passes, verdict.ingress.passes) == (True, True, False)
    assert verdict.dropped_by == verdict.ingress
    assert verdict.ingress.words == "network.policy.allow_from of db is empty"
    assert verdict.ingress[2:] == ("db", "network.policy.allow_from", "")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "proto"), FLOWS)
def test_deny_all_egress(port: int | None, proto: str, family: int) -> None:
    closed = with_policy(WORLD, "api", policy(allow=[]))
    assert not any(passes(closed, "api", to, port, proto, family) for to in ("db", "cache"))
    outside, host = (OUTSIDE, HOST) if family == 4 else (OUTSIDE6, HOST6)
    assert not passes(closed, "api", outside, port, proto, family)
    assert not passes(closed, "api", host, port, proto, family)
    assert who_reaches(closed, "api", port, proto, family) == {"db", "cache"}
    verdict = ask(closed, "api", "db", port, proto, family)
    assert verdict.dropped_by == verdict.egress
    assert verdict.egress[2:] == ("api", "network.policy.egress.allow", "")
    assert verdict.ingress.words == "db has no allow_from, and its deny_from does not name the source"


def test_deny_all_of_both_directions() -> None:
    closed = with_policy(WORLD, "api", policy(allow_from=[], allow=[]))
    assert who_reaches(closed, "api") == set()
    assert not passes(closed, "api", "db")
    assert passes(closed, "cache", "db")


@pytest.mark.parametrize("family", [4, 6])
def test_allow_by_peer(family: int) -> None:
    for text in ("api", "shop", "api.niso.local", "shop.niso.local"):
        only = with_policy(WORLD, "db", policy(allow_from=[text]))
        for port, proto in FLOWS:
            assert who_reaches(only, "db", port, proto, family) == {"api"}
        verdict = ask(only, "api", "db", family=family)
        assert verdict.ingress.words == f'network.policy.allow_from[0] of db, "{text}", allows it'
        assert verdict.ingress[2:] == ("db", "network.policy.allow_from[0]", text)
        verdict = ask(only, "cache", "db", family=family)
        assert verdict.ingress.words == "network.policy.allow_from of db does not name it"


@pytest.mark.parametrize("family", [4, 6])
def test_allow_by_peer_and_port(family: int) -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api:80", "cache:81-83"]))
    for port, who in ((79, set()), (80, {"api"}), (81, {"cache"}), (83, {"cache"}), (84, set())):
        for proto in ("tcp", "udp", "sctp"):
            assert who_reaches(only, "db", port, proto, family) == who
    assert who_reaches(only, "db", None, "icmp", family) == set()
    assert who_reaches(only, "db", None, "gre", family) == set()


@pytest.mark.parametrize("other", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_protocol_that_is_named_is_the_only_one(proto: str, other: str) -> None:
    for text in (f"api:80/{proto}", f"api/{proto}"):
        assert passes(with_policy(WORLD, "db", policy(allow_from=[text])), "api", "db", 80, other) is (proto == other)
        assert passes(with_policy(WORLD, "db", policy(deny_from=[text])), "api", "db", 80, other) is (proto != other)
        assert not passes(with_policy(WORLD, "db", policy(allow_from=[text])), "api", "db", None, "icmp")
    every_port = with_policy(WORLD, "db", policy(allow_from=[f"api/{proto}"]))
    assert passes(every_port, "api", "db", 65535, proto)


@pytest.mark.parametrize("family", [4, 6])
def test_icmp_alone_and_all_but_icmp(family: int) -> None:
    ping = with_policy(WORLD, "db", policy(allow_from=["api/icmp"]))
    assert who_reaches(ping, "db", None, "icmp", family) == {"api"}
    assert who_reaches(ping, "db", 80, "tcp", family) == set()
    silent = with_policy(WORLD, "db", policy(deny_from=["api/icmp"]))
    assert who_reaches(silent, "db", None, "icmp", family) == {"cache"}
    assert who_reaches(silent, "db", 80, "tcp", family) == {"api", "cache"}


def test_all_ports_that_are_named_are_still_no_icmp() -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api:1-65535"]))
    assert passes(only, "api", "db", 65535, "udp")
    assert not passes(only, "api", "db", None, "icmp")
    assert passes(with_policy(WORLD, "db", policy(deny_from=["api:1-65535"])), "api", "db", None, "icmp")


def test_stacked_rules_add_up_and_several_name_one_peer() -> None:
    stacked = with_policy(WORLD, "db", policy(allow_from=["api:80", "cache:81", "api:81", "cache:80/udp"]))
    assert who_reaches(stacked, "db", 80) == {"api"}
    assert who_reaches(stacked, "db", 81) == {"api", "cache"}
    assert who_reaches(stacked, "db", 80, "udp") == {"api", "cache"}
    assert ask(stacked, "api", "db", 81).ingress.key == "network.policy.allow_from[2]"


def test_allow_all_by_the_two_families() -> None:
    four = with_policy(WORLD, "db", policy(allow_from=["0.0.0.0/0"]))
    assert (who_reaches(four, "db"), who_reaches(four, "db", family=6)) == ({"api", "cache"}, set())
    both = with_policy(WORLD, "db", policy(allow_from=["0.0.0.0/0", "::/0"]))
    assert who_reaches(both, "db", family=6) == {"api", "cache"}


def test_updated_policy_counts_and_a_policy_that_is_gone_does_not() -> None:
    changing = with_policy(WORLD, "db", policy(allow_from=["api"]))
    assert who_reaches(changing, "db") == {"api"}
    changing = with_policy(changing, "db", policy(allow_from=["cache"]))
    assert who_reaches(changing, "db") == {"cache"}
    assert who_reaches(with_policy(changing, "db", Policy()), "db") == {"api", "cache"}


def test_updated_peer_is_followed_to_its_address_and_to_its_name() -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api"]))
    moved = known("api", {"backend": ("10.99.1.9", "fd00:1::9")})
    after = only._replace(services={**only.services, "api": moved})
    assert passes(after, "10.99.1.9", "db")
    assert passes(after, "fd00:1::9", "db", family=6)
    assert not passes(after, "10.99.1.2", "db")
    renamed = only._replace(services={**only.services, "api": API._replace(names=("other",))})
    assert not passes(renamed, "api", "db")


@pytest.mark.parametrize("family", [4, 6])
def test_name_that_is_not_known_names_nobody_until_it_comes_and_when_it_is_gone(family: int) -> None:
    waiting = with_policy(with_policy(WORLD, "db", policy(allow_from=["ghost"])), "api", policy(deny=["ghost:80"]))
    assert who_reaches(waiting, "db", family=family) == set()
    assert passes(waiting, "api", "cache", family=family)
    ghost = known("g", {"backend": ("10.99.1.7", "fd00:1::7")}, names=("ghost", "g"))
    there = waiting._replace(services={**waiting.services, "g": ghost})
    assert passes(there, "g", "db", family=family)
    assert not passes(there, "api", "g", family=family)
    assert passes(there, "api", "g", 81, family=family)
    gone = there._replace(services={name: each for name, each in there.services.items() if name != "g"})
    assert not passes(gone, lease(there, "g", family), "db", family=family)


def test_address_that_another_service_has_got_is_not_taken_for_the_one_that_had_it() -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api"]))
    heir = known("heir", {"backend": API.endpoints[0].addresses})
    services = {name: each for name, each in only.services.items() if name != "api"}
    assert not passes(only._replace(services={**services, "heir": heir}), "heir", "db")


@pytest.mark.parametrize("family", [4, 6])
def test_ingress_and_egress_together(family: int) -> None:
    both = with_policy(WORLD, "db", policy(allow_from=["api:80"], allow=["cache:53/udp"]))
    assert who_reaches(both, "db", family=family) == {"api"}
    assert passes(both, "db", "cache", 53, "udp", family)
    assert not passes(both, "db", "cache", 53, "tcp", family)
    assert not passes(both, "db", "api", family=family)


@pytest.mark.parametrize("family", [4, 6])
def test_egress_denied_although_the_server_allows(family: int) -> None:
    rules = with_policy(WORLD, "db", policy(allow_from=["api"]))
    rules = with_policy(rules, "api", policy(deny=["db:80"]))
    verdict = ask(rules, "api", "db", family=family)
    assert not verdict.passes
    assert verdict.dropped_by == verdict.egress
    assert verdict.ingress.passes
    assert verdict.egress.words == 'network.policy.egress.deny[0] of api, "db:80", denies it'
    assert passes(rules, "api", "db", 81, family=family)


def test_ingress_denied_although_the_client_allows() -> None:
    rules = with_policy(with_policy(WORLD, "db", policy(deny_from=["api"])), "api", policy(allow=["db"]))
    verdict = ask(rules, "api", "db")
    assert (verdict.passes, verdict.egress.passes, verdict.dropped_by) == (False, True, verdict.ingress)


@pytest.mark.parametrize(
    ("allow", "deny"), [("10.99.0.0/16", "10.99.1.4/32"), ("10.99.1.4/32", "10.99.1.0/24"), ("cache", "cache")]
)
def test_block_that_is_denied_is_an_exception_and_no_allow_takes_it_back(allow: str, deny: str) -> None:
    rules = with_policy(WORLD, "db", policy(allow_from=[allow], deny_from=[deny]))
    assert not passes(rules, "cache", "db")
    rules = with_policy(WORLD, "cache", policy(allow=["10.99.0.0/16", "10.99.1.3"], deny=["10.99.1.3/32"]))
    assert passes(rules, "cache", "api")
    assert not passes(rules, "cache", "db")


def test_exception_for_one_port_leaves_the_others() -> None:
    rules = with_policy(WORLD, "api", policy(deny=["0.0.0.0/0:53/udp"]))
    assert not passes(rules, "api", "db", 53, "udp")
    assert passes(rules, "api", "db", 53, "tcp")
    assert not passes(rules, "api", OUTSIDE, 53, "udp")


def test_empty_deny_list_denies_nothing() -> None:
    assert passes(with_policy(WORLD, "db", policy(deny_from=[], deny=[])), "api", "db")


def test_deny_is_the_entry_that_is_named_where_an_allow_matches_too() -> None:
    rules = with_policy(WORLD, "db", policy(allow_from=["api"], deny_from=["cache", "network:backend"]))
    assert ask(rules, "api", "db").ingress[2:] == ("db", "network.policy.deny_from[1]", "network:backend")


# --- families and networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "four", "six"),
    [
        ("10.99.1.2", True, False),
        ("10.0.0.0/8", True, False),
        ("fd00:1::2", False, True),
        ("::/0", False, True),
        ("api", True, True),
        ("network:backend", True, True),
        ("network:frontend", False, False),
    ],
)
def test_rule_opens_and_closes_the_families_that_it_names_alone(text: str, four: bool, six: bool) -> None:
    opened = with_policy(WORLD, "db", policy(allow_from=[text]))
    assert (passes(opened, "api", "db"), passes(opened, "api", "db", family=6)) == (four, six)
    closed = with_policy(WORLD, "db", policy(deny_from=[text]))
    assert (passes(closed, "api", "db"), passes(closed, "api", "db", family=6)) == (not four, not six)


def test_network_means_those_on_it_by_their_address_there() -> None:
    # web is on frontend and backend, and each network sees another address of it
    rules = with_policy(WORLD, "db", policy(allow_from=["network:frontend"]))
    assert not passes(rules, "10.99.1.5", "db")
    rules = with_policy(WORLD, "blog", policy(allow_from=["network:frontend"]))
    assert passes(rules, "10.99.2.3", "blog")
    rules = with_policy(WORLD, "db", policy(allow_from=["web"]))
    assert passes(rules, "10.99.1.5", "db")
    assert passes(rules, "fd00:1::5", "db", family=6)


def test_network_in_egress_is_its_services_and_not_the_host_on_it() -> None:
    rules = with_policy(WORLD, "api", policy(allow=["network:backend"]))
    assert passes(rules, "api", "db")
    assert passes(rules, "api", "db", family=6)
    assert not passes(rules, "api", "10.99.1.1", 53, "udp")
    assert not passes(rules, "api", "fd00:1::1", 53, "udp", 6)
    for text in ("10.99.1.1:53/udp", "10.99.1.0/24"):
        named = with_policy(WORLD, "api", policy(allow=[text]))
        assert passes(named, "api", "10.99.1.1", 53, "udp")


def test_network_that_is_not_known_means_nobody() -> None:
    assert not passes(with_policy(WORLD, "db", policy(allow_from=["network:ghost"])), "api", "db")
    assert passes(with_policy(WORLD, "db", policy(deny_from=["network:ghost"])), "api", "db")


def test_network_and_service_of_one_name_are_not_mixed_up() -> None:
    twin = known("backend", {"frontend": ("10.99.2.9",)})
    both = WORLD._replace(services={**WORLD.services, "backend": twin})
    assert not passes(with_policy(both, "db", policy(allow_from=["backend"])), "api", "db")
    assert not passes(with_policy(both, "blog", policy(allow_from=["network:backend"])), "backend", "blog")


def test_policy_opens_no_way_between_networks() -> None:
    open_all = with_policy(with_policy(WORLD, "db", policy(allow_from=["blog"])), "blog", policy(allow=["db"]))
    verdict = ask(open_all, "blog", "db")
    assert (verdict.passes, verdict.egress.passes, verdict.ingress.passes) == (False, True, True)
    assert (
        verdict.path.words == "networks frontend and backend are apart: only published ports lead from one to the other"
    )


def test_service_of_two_networks_reaches_both_by_its_address_there_alone() -> None:
    assert passes(WORLD, "10.99.2.3", "blog")
    assert passes(WORLD, "10.99.1.5", "db")
    assert not passes(WORLD, "10.99.2.3", "db")
    assert not passes(WORLD, "10.99.1.5", "blog")
    assert passes(WORLD, "10.99.2.3", OUTSIDE)
    verdict = ask(WORLD, "10.99.1.5", OUTSIDE)  # the default route is by the first
    assert verdict.path.words == f"web sends to {OUTSIDE} by network frontend, where 10.99.1.5 is not its address"
    assert (
        ask(WORLD, "fd00:1::5", OUTSIDE6, family=6).path.words
        == "web has no way to IPv6 addresses outside its networks"
    )
    assert passes(WORLD, "fd00:1::5", "db", family=6)
    assert passes(WORLD, "10.99.1.5", "10.99.1.1")
    assert not passes(WORLD, "10.99.2.3", "10.99.1.1")


# --- the host and the outside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [HOST, HOST6, "10.99.1.1", "fd00:1::1", "10.99.2.1", "127.0.0.1", "fe80::1"])
def test_host_may_always_connect_in(source: str) -> None:
    closed = with_policy(WORLD, "db", policy(allow_from=[], deny_from=["0.0.0.0/0", "::/0", "network:backend"]))
    verdict = ask(closed, source, "db", family=6 if ":" in source else 4)
    assert verdict.passes
    assert verdict.ingress.words == "the host may always connect in"
    assert verdict.path.words == "the host can reach every service"


@pytest.mark.parametrize("address", [HOST, "10.99.1.1", HOST6, "fd00:1::1", "fe80::1"])
def test_egress_counts_for_the_hosts_own_addresses(address: str) -> None:
    family = 6 if ":" in address else 4
    assert passes(WORLD, "api", address, 53, "udp", family)
    assert not passes(with_policy(WORLD, "api", policy(allow=[])), "api", address, 53, "udp", family)
    named = with_policy(WORLD, "api", policy(allow=[f"[{address}]:53" if family == 6 else f"{address}:53"]))
    assert passes(named, "api", address, 53, "udp", family)
    assert not passes(named, "api", address, 54, "udp", family)
    assert not passes(named, "api", address, None, "icmp", family)
    verdict = ask(named, "api", address, 53, "udp", family)
    assert verdict.ingress.words == "the host has no policy of niso"
    assert verdict.destination == ("", address)


def test_egress_by_prefix_counts_for_the_outside() -> None:
    rules = with_policy(WORLD, "api", policy(allow=["0.0.0.0/0:443/tcp"], deny=["198.51.100.0/24"]))
    assert passes(rules, "api", OUTSIDE, 443)
    assert not passes(rules, "api", OUTSIDE, 80)
    assert not passes(rules, "api", "198.51.100.7", 443)
    assert not passes(rules, "api", OUTSIDE6, 443, family=6)
    assert ask(rules, "api", OUTSIDE, 443).ingress.words == f"{OUTSIDE} has no policy of niso"


@pytest.mark.parametrize("destination", ["10.99.1.3", "fd00:1::3"])
def test_outside_reaches_no_service_that_publishes_nothing(destination: str) -> None:
    source = OUTSIDE6 if ":" in destination else OUTSIDE
    verdict = ask(WORLD, source, destination)
    assert not verdict.passes
    assert verdict.path.words == "db can be reached from outside the host by published ports only"


@pytest.mark.parametrize(("source", "family"), [("10.99.1.77", 4), ("fd00:1::77", 6), ("10.99.3.200", 4)])
def test_address_that_nobody_has_reaches_nobody_and_is_not_reached(source: str, family: int) -> None:
    assert ask(WORLD, source, "db", family=family).path.words == f"no service has the address {source}"
    assert ask(WORLD, "api", source, family=family).path.passes is False
    assert ask(WORLD, HOST if family == 4 else HOST6, source).path.words == f"no service has the address {source}"


def test_service_that_is_not_active_sends_and_gets_nothing_but_its_name_holds() -> None:
    assert ask(WORLD, "api", "idle").path.words == "idle is not active"
    assert ask(WORLD, "idle", "api").path.words == "idle is not active"
    named = parse_entry("idle", "key", False)
    assert matches(named, WORLD, "10.99.1.6", 80, "tcp")


@pytest.mark.parametrize("destination", ["10.99.1.255", "255.255.255.255", "224.0.0.251", "ff02::fb", "ff02::1"])
def test_broadcast_and_multicast_reach_no_service_and_egress_counts_for_them(destination: str) -> None:
    family = 6 if ":" in destination else 4
    verdict = ask(WORLD, "api", destination, 5353, "udp", family)
    assert verdict.path == (False, "broadcast and multicast pass to no service", "", "", "")
    assert verdict.egress.passes
    closed = with_policy(WORLD, "api", policy(allow=["db"]))
    assert not ask(closed, "api", destination, 5353, "udp", family).egress.passes


def test_link_local_addresses_lead_to_the_host_alone() -> None:
    assert passes(WORLD, "api", "fe80::1", 22, family=6)
    assert passes(WORLD, "fd00:1::5", "fe80::1", 22, family=6)  # by the link that has the address
    assert not passes(WORLD, "api", "fe80::2", 22, family=6)


def test_loopback_is_each_ones_own() -> None:
    closed = with_policy(WORLD, "api", policy(allow=[], allow_from=[]))
    assert passes(closed, "api", "127.0.0.1")
    assert passes(closed, "api", "::1", family=6)
    assert ask(closed, "api", "127.0.0.1").path.words == "127.0.0.1 is its own loopback to api"
    assert not passes(WORLD, OUTSIDE, "127.0.0.1")
    assert not passes(WORLD, OUTSIDE6, "::1")
    assert passes(WORLD, HOST, "127.0.0.1")


def test_what_concerns_no_service_is_let_be() -> None:
    for source, destination in ((OUTSIDE, HOST), (HOST, OUTSIDE), (OUTSIDE, "198.51.100.1"), (OUTSIDE6, HOST6)):
        assert passes(WORLD, source, destination)


def test_families_do_not_reach_each_other() -> None:
    assert not decide(WORLD, "10.99.1.2", "fd00:1::3", 80, "tcp").passes


@pytest.mark.parametrize(("port", "proto"), [(None, "tcp"), (None, "udp"), (80, "icmp"), (80, "gre"), (80, "")])
def test_port_without_protocol_that_has_ports_is_refused(port: int | None, proto: str) -> None:
    with pytest.raises(ValueError, match="with port"):
        decide(WORLD, "10.99.1.2", "10.99.1.3", port, proto)


def test_addresses_are_taken_in_any_form() -> None:
    only = with_policy(WORLD, "db", policy(allow_from=["api"]))
    verdict = decide(only, "FD00:1:0::2", "fd00:1::0:3", 80, "tcp")
    assert (verdict.passes, verdict.source, verdict.destination) == (True, ("api", "fd00:1::2"), ("db", "fd00:1::3"))


# --- internal networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_service_of_an_internal_network_reaches_host_and_network_and_nothing_else(family: int) -> None:
    host, outside = (HOST, OUTSIDE) if family == 4 else (HOST6, OUTSIDE6)
    assert passes(WORLD, "safe", "vault", family=family)
    assert passes(WORLD, "safe", host, family=family)
    assert passes(
        WORLD, "safe", "10.99.2.1" if family == 4 else "fd00:1::1", family=family
    )  # another network's gateway
    assert passes(WORLD, host, "safe", family=family)
    for destination in (outside, "api"):
        verdict = ask(WORLD, "safe", destination, family=family)
        assert verdict.path.words == "network inner is internal: it leads to the host and its own services only"
    assert not passes(WORLD, "api", "safe", family=family)
    assert not passes(WORLD, outside, "safe", family=family)


@pytest.mark.parametrize("family", [4, 6])
def test_internal_network_has_no_detour_by_published_ports(family: int) -> None:
    host, outside = (HOST, OUTSIDE) if family == 4 else (HOST6, OUTSIDE6)
    shared = known("shared", {"backend": ("10.99.1.8", "fd00:1::8"), "inner": ("10.99.3.8", "fd00:3::8")})
    base = WORLD._replace(services={**WORLD.services, "shared": shared})
    base = with_ports("api", Port(ANY, 8080, 80, "tcp"), base=base)
    base = with_ports("vault", Port(ANY, 8081, 80, "tcp"), base=base)
    base = with_ports("shared", Port(ANY, 8082, 80, "tcp"), base=base)
    assert not passes(base, "safe", host, 8080, family=family)
    assert passes(base, "safe", host, 8081, family=family)
    # who is on the internal network too is reached there
    verdict = ask(base, "safe", host, 8082, family=family)
    assert (verdict.passes, verdict.destination.address) == (True, "10.99.3.8" if family == 4 else "fd00:3::8")
    for client in ("blog", outside) if family == 4 else (outside, "api"):
        assert passes(base, client, host, 8081, family=family)


def test_service_that_is_on_an_internal_network_first_does_not_get_out_by_it() -> None:
    first = known("first", {"inner": ("10.99.3.9", "fd00:3::9"), "backend": ("10.99.1.9", "fd00:1::9")})
    base = WORLD._replace(services={**WORLD.services, "first": first})
    assert not passes(base, "10.99.3.9", OUTSIDE)
    assert not passes(base, "10.99.1.9", OUTSIDE)
    assert passes(base, "10.99.1.9", "api")


# --- published ports -------------------------------------------------------------------------------------------------

EVERYWHERE = with_ports("api", Port(ANY, 8080, 80, "tcp"))


@pytest.mark.parametrize("source", ["db", "blog", OUTSIDE, HOST, "127.0.0.1", "10.99.2.1"])
@pytest.mark.parametrize("address", [HOST, "10.99.1.1", "10.99.2.1"])
def test_published_port_is_reached_by_every_address_of_the_host(source: str, address: str) -> None:
    verdict = ask(EVERYWHERE, source, address, 8080)
    assert verdict.passes
    assert (verdict.destination, verdict.port) == (("api", "10.99.1.2"), 80)
    assert verdict.path.words == f"{address}:8080/tcp is a published port of api and leads to 10.99.1.2:80"


def test_published_port_is_of_both_families_where_it_has_no_address() -> None:
    verdict = ask(EVERYWHERE, OUTSIDE6, HOST6, 8080)
    assert (verdict.passes, verdict.destination) == (True, ("api", "fd00:1::2"))
    assert verdict.path.words == f"[{HOST6}]:8080/tcp is a published port of api and leads to [fd00:1::2]:80"
    assert verdict.port == 80
    only4 = with_ports("blog", Port(ANY, 8080, 80, "tcp"))  # on a network without IPv6
    assert ask(only4, OUTSIDE6, HOST6, 8080).destination.service == ""


@pytest.mark.parametrize(("host_ip", "four", "six"), [(ANY, True, True), (ANY4, True, False), (ANY6, False, True)])
def test_published_port_of_one_family_is_not_of_the_other(host_ip: str, four: bool, six: bool) -> None:
    one = with_ports("api", Port(host_ip, 8080, 80, "tcp"))
    assert (ask(one, OUTSIDE, HOST, 8080).destination.service == "api") is four
    assert (ask(one, OUTSIDE6, HOST6, 8080).destination.service == "api") is six


def test_published_port_is_of_its_protocol_and_number_alone() -> None:
    for port, proto in ((8081, "tcp"), (8079, "tcp"), (8080, "udp"), (8080, "sctp"), (None, "icmp"), (80, "tcp")):
        verdict = ask(EVERYWHERE, OUTSIDE, HOST, port, proto)
        assert (verdict.destination, verdict.port) == (("", HOST), port)
        assert verdict.path.words == f"{HOST} is the host's own"


def test_port_that_is_published_on_loopback_is_the_hosts_alone() -> None:
    inner = with_ports("api", Port("127.0.0.1", 8080, 80, "tcp"))
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
    ranged = with_ports("api", Port(ANY, 8000, 9000, "udp", 11))
    verdict = ask(ranged, OUTSIDE, HOST, port, "udp")
    assert (verdict.destination.service, verdict.port) == ("api", inside)
    for outside in (7999, 8011):
        assert ask(ranged, OUTSIDE, HOST, outside, "udp").destination.service == ""


@pytest.mark.parametrize("order", [1, -1])
def test_specific_address_wins_over_all_addresses(order: int) -> None:
    ports = (Port(ANY, 8080, 80, "tcp"), Port(HOST, 8080, 81, "tcp"), Port(HOST6, 8080, 82, "tcp"))[::order]
    both = with_ports("web", *ports)
    assert ask(both, OUTSIDE, HOST, 8080).port == 81
    assert ask(both, OUTSIDE, "10.99.2.1", 8080).port == 80
    assert ask(both, "db", HOST, 8080).port == 81
    both = with_ports("api", *ports)
    assert ask(both, OUTSIDE6, HOST6, 8080).port == 82


def test_address_that_is_not_the_hosts_leads_nowhere() -> None:
    absent = with_ports("api", Port("192.0.2.99", 8080, 80, "tcp"))
    assert ask(absent, "db", "192.0.2.99", 8080).destination == ("", "192.0.2.99")


def test_port_without_a_number_yet_leads_nowhere() -> None:
    waiting = with_ports("api", Port(ANY, 0, 80, "tcp", 3))
    assert ask(waiting, OUTSIDE, HOST, 1).destination.service == ""


def test_port_of_a_service_that_is_not_active_is_not_published() -> None:
    idle = with_ports("idle", Port(ANY, 8080, 80, "tcp"))
    assert ask(idle, OUTSIDE, HOST, 8080).destination == ("", HOST)


@pytest.mark.parametrize(
    ("source", "address"), [(OUTSIDE, "10.99.2.3"), ("blog", "10.99.2.3"), ("db", "10.99.1.5"), (HOST, "10.99.2.3")]
)
def test_service_of_two_networks_is_reached_on_the_one_that_its_client_is_on(source: str, address: str) -> None:
    assert ask(with_ports("web", Port(ANY, 8080, 80, "tcp")), source, HOST, 8080).destination == ("web", address)


def test_service_is_published_by_ipv6_where_only_its_second_network_has_it_for_those_on_it() -> None:
    published = with_ports("web", Port(ANY, 8080, 80, "tcp"))
    assert ask(published, "db", HOST6, 8080, family=6).destination == ("web", "fd00:1::5")
    assert ask(published, OUTSIDE6, HOST6, 8080).destination == ("", HOST6)


def test_policy_of_ingress_sees_own_port_and_real_client_behind_a_published_port() -> None:
    rules = with_policy(EVERYWHERE, "api", policy(allow_from=[f"{OUTSIDE}:80", "blog:80"]))
    assert passes(rules, OUTSIDE, HOST, 8080)
    assert passes(rules, "blog", HOST, 8080)
    assert not passes(rules, "db", HOST, 8080)
    assert not passes(rules, "192.0.2.3", HOST, 8080)
    rules = with_policy(EVERYWHERE, "api", policy(allow_from=[f"{OUTSIDE}:8080"]))
    assert not passes(rules, OUTSIDE, HOST, 8080)
    assert ask(rules, OUTSIDE, HOST, 8080).dropped_by == (
        *(False, "network.policy.allow_from of api does not name it", "api", "network.policy.allow_from", ""),
    )


def test_empty_allow_list_closes_published_ports_too_but_to_the_host() -> None:
    closed = with_policy(EVERYWHERE, "api", policy(allow_from=[]))
    assert not any(passes(closed, source, HOST, 8080) for source in (OUTSIDE, "db", "blog"))
    assert not passes(closed, OUTSIDE6, HOST6, 8080)
    assert passes(closed, "127.0.0.1", "127.0.0.1", 8080)
    assert passes(closed, HOST, HOST, 8080)


def test_policy_of_egress_sees_the_service_behind_a_published_port() -> None:
    for text, allowed in (("api:80", True), ("api:8080", False), (f"{HOST}:8080", False), ("10.99.1.2:80", True)):
        assert passes(with_policy(EVERYWHERE, "blog", policy(allow=[text])), "blog", HOST, 8080) is allowed
        assert passes(with_policy(EVERYWHERE, "blog", policy(deny=[text])), "blog", HOST, 8080) is not allowed


@pytest.mark.parametrize("family", [4, 6])
def test_service_reaches_itself_by_every_way_whatever_policies_say(family: int) -> None:
    text = ["0.0.0.0/0", "::/0", "api", "network:backend"]
    closed = with_policy(EVERYWHERE, "api", policy(allow_from=[], allow=[], deny_from=text, deny=text))
    own, host, gateway = ("10.99.1.2", HOST, "10.99.1.1") if family == 4 else ("fd00:1::2", HOST6, "fd00:1::1")
    for destination, port in ((own, 80), (host, 8080), (gateway, 8080)):
        verdict = ask(closed, "api", destination, port, family=family)
        assert verdict.passes
        assert verdict.ingress.words == verdict.egress.words == "api may always reach itself"
        assert (verdict.destination, verdict.port) == (("api", own), 80)
    assert not passes(closed, "api", host, 8081, family=family)  # that is the host, not itself


def test_service_of_two_networks_reaches_itself_on_the_other() -> None:
    closed = with_policy(WORLD, "web", policy(allow_from=[], allow=[]))
    assert passes(closed, "10.99.2.3", "10.99.1.5")
    assert passes(closed, "10.99.1.5", "10.99.2.3")


# --- matches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "port", "proto", "expected"),
    [
        ("api", "10.99.1.2", 80, "tcp", True),
        ("api", "fd00:1::2", None, "icmp", True),
        ("api", "10.99.1.3", 80, "tcp", False),
        ("web", "10.99.1.5", 80, "tcp", True),
        ("web", "10.99.2.3", None, "gre", True),
        ("api:80", "10.99.1.2", 80, "sctp", True),
        ("api:80", "10.99.1.2", 81, "tcp", False),
        ("api:80", "10.99.1.2", None, "icmp", False),
        ("api:80/udp", "10.99.1.2", 80, "tcp", False),
        ("network:backend", "10.99.1.77", 80, "tcp", True),
        ("network:backend", "10.99.1.1", 80, "tcp", False),
        ("network:backend", "fd00:1::1", 80, "tcp", False),
        ("network:backend", "fd00:1::77", 80, "tcp", True),
        ("network:frontend", "10.99.1.2", 80, "tcp", False),
        ("10.99.1.0/24", "10.99.1.1", 80, "tcp", True),
        ("0.0.0.0/0", "fd00:1::2", 80, "tcp", False),
        ("::/0", "10.99.1.2", 80, "tcp", False),
    ],
)
def test_entry_matches_peer_port_and_protocol(text: str, address: str, port: Any, proto: str, expected: bool) -> None:
    for egress in (False, True):
        assert matches(parse_entry(text, "key", egress), WORLD, address, port, proto) is expected


def test_sharer_means_its_provider_and_one_without_a_network_means_nobody() -> None:
    shared = known("api", {"backend": ("10.99.1.2",)}, names=("api", "sidecar"))
    lonely = Known("lonely", ("lonely",), ())
    base = world((shared, DB, lonely), NETWORKS, HOSTS)
    assert passes(with_policy(base, "db", policy(allow_from=["sidecar"])), "10.99.1.2", "db")
    assert not passes(with_policy(base, "db", policy(allow_from=["lonely"])), "10.99.1.2", "db")


def test_fixed_world_is_as_networks_can_be() -> None:
    networks: dict[str, Network] = {each.name: each for each in NETWORKS}
    taken = [address for each in SERVICES for endpoint in each.endpoints for address in endpoint.addresses]
    assert len(set(taken)) == len(taken)
    for each in SERVICES:
        for endpoint in each.endpoints:
            for subnet, address in zip(networks[endpoint.network].subnets, endpoint.addresses, strict=True):
                assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet.cidr)
