"""Test the policy engine in fixed cases: verdict and deciding line."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from policy_fixed import (
    API,
    DB,
    HOST6,
    HOSTS,
    NETWORKS,
    OUTSIDE6,
    SERVICES,
    WORLD,
    ask,
    lease,
    passes,
    who_reaches,
)
from policy_worlds import HOST, OUTSIDE, known, policy, with_policy, world

from niso.manifest.policy import parse_entry
from niso.plan.records import NetworkRecord, Policy
from niso.plan.verdict import KnownService, matches

# --- policies: the cases of Kubernetes' network-policy conformance ---------------------------------------------------

FLOWS = [(80, "tcp"), (53, "udp"), (9, "sctp"), (None, "icmp"), (None, "gre")]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "proto"), FLOWS)
def test_without_policies_all_on_one_network_may_connect(
    port: int | None, proto: str, family: int
) -> None:
    assert who_reaches(WORLD, "db", port, proto, family) == {"api", "cache"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("port", "proto"), FLOWS)
def test_deny_all_ingress(port: int | None, proto: str, family: int) -> None:
    closed = with_policy(WORLD, "db", policy(allow_from=[]))
    assert who_reaches(closed, "db", port, proto, family) == set()
    assert passes(closed, "db", "api", port, proto, family)  # its own connections are not meant
    assert who_reaches(closed, "api", port, proto, family) == {"db", "cache"}
    verdict = ask(closed, "api", "db", port, proto, family)
    assert (verdict.path.passes, verdict.egress.passes, verdict.ingress.passes) == (
        True,
        True,
        False,
    )
    assert verdict.dropped_by == verdict.ingress
    assert verdict.ingress.message == "network.policy.allow_from of db is empty"
    assert verdict.ingress[2:5] == ("db", "network.policy.allow_from", "")


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
    assert verdict.egress[2:5] == ("api", "network.policy.egress.allow", "")
    assert verdict.ingress.message == "db has no ingress policy"


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
        assert (
            verdict.ingress.message == f'allowed by network.policy.allow_from[0] of db ("{text}")'
        )
        assert verdict.ingress[2:5] == ("db", "network.policy.allow_from[0]", text)
        verdict = ask(only, "cache", "db", family=family)
        assert verdict.ingress.message == "not listed in network.policy.allow_from of db"


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
        assert passes(
            with_policy(WORLD, "db", policy(allow_from=[text])), "api", "db", 80, other
        ) is (proto == other)
        assert passes(
            with_policy(WORLD, "db", policy(deny_from=[text])), "api", "db", 80, other
        ) is (proto != other)
        assert not passes(
            with_policy(WORLD, "db", policy(allow_from=[text])), "api", "db", None, "icmp"
        )
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
    assert passes(
        with_policy(WORLD, "db", policy(deny_from=["api:1-65535"])), "api", "db", None, "icmp"
    )


def test_stacked_rules_add_up_and_several_name_one_peer() -> None:
    stacked = with_policy(
        WORLD, "db", policy(allow_from=["api:80", "cache:81", "api:81", "cache:80/udp"])
    )
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
def test_name_that_is_not_known_names_nobody_until_it_comes_and_when_it_is_gone(
    family: int,
) -> None:
    waiting = with_policy(
        with_policy(WORLD, "db", policy(allow_from=["ghost"])), "api", policy(deny=["ghost:80"])
    )
    assert who_reaches(waiting, "db", family=family) == set()
    assert passes(waiting, "api", "cache", family=family)
    ghost = known("g", {"backend": ("10.99.1.7", "fd00:1::7")}, names=("ghost", "g"))
    there = waiting._replace(services={**waiting.services, "g": ghost})
    assert passes(there, "g", "db", family=family)
    assert not passes(there, "api", "g", family=family)
    assert passes(there, "api", "g", 81, family=family)
    gone = there._replace(
        services={name: each for name, each in there.services.items() if name != "g"}
    )
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
    assert verdict.egress.message == 'denied by network.policy.egress.deny[0] of api ("db:80")'
    assert passes(rules, "api", "db", 81, family=family)


def test_ingress_denied_although_the_client_allows() -> None:
    rules = with_policy(
        with_policy(WORLD, "db", policy(deny_from=["api"])), "api", policy(allow=["db"])
    )
    verdict = ask(rules, "api", "db")
    assert (verdict.passes, verdict.egress.passes, verdict.dropped_by) == (
        False,
        True,
        verdict.ingress,
    )


@pytest.mark.parametrize(
    ("allow", "deny"),
    [("10.99.0.0/16", "10.99.1.4/32"), ("10.99.1.4/32", "10.99.1.0/24"), ("cache", "cache")],
)
def test_block_that_is_denied_is_an_exception_and_no_allow_takes_it_back(
    allow: str, deny: str
) -> None:
    rules = with_policy(WORLD, "db", policy(allow_from=[allow], deny_from=[deny]))
    assert not passes(rules, "cache", "db")
    rules = with_policy(
        WORLD, "cache", policy(allow=["10.99.0.0/16", "10.99.1.3"], deny=["10.99.1.3/32"])
    )
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
    rules = with_policy(
        WORLD, "db", policy(allow_from=["api"], deny_from=["cache", "network:backend"])
    )
    assert ask(rules, "api", "db").ingress[2:5] == (
        "db",
        "network.policy.deny_from[1]",
        "network:backend",
    )


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
def test_rule_opens_and_closes_the_families_that_it_names_alone(
    text: str, four: bool, six: bool
) -> None:
    opened = with_policy(WORLD, "db", policy(allow_from=[text]))
    assert (passes(opened, "api", "db"), passes(opened, "api", "db", family=6)) == (four, six)
    closed = with_policy(WORLD, "db", policy(deny_from=[text]))
    assert (passes(closed, "api", "db"), passes(closed, "api", "db", family=6)) == (
        not four,
        not six,
    )


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
    assert not passes(
        with_policy(both, "blog", policy(allow_from=["network:backend"])), "backend", "blog"
    )


def test_policy_opens_no_way_between_networks() -> None:
    open_all = with_policy(
        with_policy(WORLD, "db", policy(allow_from=["blog"])), "blog", policy(allow=["db"])
    )
    verdict = ask(open_all, "blog", "db")
    assert (verdict.passes, verdict.egress.passes, verdict.ingress.passes) == (False, True, True)
    assert (
        verdict.path.message
        == "networks frontend and backend are isolated from each other: only published ports can be reached across"
    )


def test_service_of_two_networks_reaches_both_by_its_address_there_alone() -> None:
    assert passes(WORLD, "10.99.2.3", "blog")
    assert passes(WORLD, "10.99.1.5", "db")
    assert not passes(WORLD, "10.99.2.3", "db")
    assert not passes(WORLD, "10.99.1.5", "blog")
    assert passes(WORLD, "10.99.2.3", OUTSIDE)
    verdict = ask(WORLD, "10.99.1.5", OUTSIDE)  # the default route is by the first
    assert (
        verdict.path.message
        == f"web reaches {OUTSIDE} through network frontend, where 10.99.1.5 is not its address"
    )
    assert (
        ask(WORLD, "fd00:1::5", OUTSIDE6, family=6).path.message
        == "web has no IPv6 route out of its networks"
    )
    assert passes(WORLD, "fd00:1::5", "db", family=6)
    assert passes(WORLD, "10.99.1.5", "10.99.1.1")
    assert not passes(WORLD, "10.99.2.3", "10.99.1.1")


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
def test_entry_matches_peer_port_and_protocol(
    text: str, address: str, port: Any, proto: str, expected: bool
) -> None:
    for egress in (False, True):
        assert matches(parse_entry(text, "key", egress), WORLD, address, port, proto) is expected


def test_sharer_means_its_provider_and_one_without_a_network_means_nobody() -> None:
    shared = known("api", {"backend": ("10.99.1.2",)}, names=("api", "sidecar"))
    lonely = KnownService("lonely", ("lonely",), ())
    base = world((shared, DB, lonely), NETWORKS, HOSTS)
    assert passes(with_policy(base, "db", policy(allow_from=["sidecar"])), "10.99.1.2", "db")
    assert not passes(with_policy(base, "db", policy(allow_from=["lonely"])), "10.99.1.2", "db")


def test_fixed_world_is_as_networks_can_be() -> None:
    networks: dict[str, NetworkRecord] = {network.name: network for network in NETWORKS}
    taken = [
        address
        for service in SERVICES
        for endpoint in service.endpoints
        for address in endpoint.addresses
    ]
    assert len(set(taken)) == len(taken)
    for service in SERVICES:
        for endpoint in service.endpoints:
            for subnet, address in zip(
                networks[endpoint.network].subnets, endpoint.addresses, strict=True
            ):
                assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet.cidr)
