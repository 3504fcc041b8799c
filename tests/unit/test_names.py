"""Test names of kernel objects: length, determinism, uniqueness."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from samples import samples

from niso.base import names
from niso.kernel.ruleset import TUNNEL

NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
LINK = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
BOUNDED = settings(max_examples=samples(50, 200), deadline=None)


@BOUNDED
@given(NAME, NAME, st.integers(1, 10**6))
def test_link_names_fit_the_kernel(service, network, generation) -> None:
    for name in (names.bridge(network), names.veth(service, network, generation)):
        assert len(name) <= names.MAX_IFNAME
        assert LINK.fullmatch(name)


@BOUNDED
@given(NAME)
def test_bridge_name_is_plain_where_it_fits(network) -> None:
    plain = f"niso-{network}"
    if len(plain) <= 15 and network != "niso-default":
        assert names.bridge(network) == plain
    else:
        assert names.bridge(network) != plain


@BOUNDED
@given(NAME, NAME, st.integers(1, 10**6))
def test_rules_may_tell_links_by_the_beginning_of_their_names(service, network, generation) -> None:
    assert names.bridge(network).startswith("niso-")
    assert names.vxlan(network).startswith("nx-")
    assert names.veth(service, network, generation).startswith("n") and TUNNEL.startswith("n")


def test_names_of_the_contract() -> None:
    assert names.bridge("backend") == "niso-backend"
    assert names.bridge("niso-default") == "niso-default"
    assert names.netns("api") == "niso-api"
    assert names.alias("0123abcd") == "niso:0123abcd"


def test_long_networks_that_begin_alike_get_different_bridges() -> None:
    found = {names.bridge(f"a-network-with-number-{number}") for number in range(200)}
    assert len(found) == 200


def test_each_endpoint_and_generation_has_a_link_name_of_its_own() -> None:
    found = [
        names.veth(service, network, generation)
        for service in ("api", "api2", "application-one", "application-two")
        for network in ("a", "b", "a-b")
        for generation in range(1, 50)
    ]
    assert len(set(found)) == len(found)


def test_slash_of_the_hashed_text_cannot_be_moved_between_its_parts() -> None:
    assert names.veth("a-b", "c", 1) != names.veth("a", "b-c", 1)
    assert names.mac("a-b", "c", "x") != names.mac("a", "b-c", "x")


@BOUNDED
@given(NAME, NAME, st.sampled_from(("0123abcd", "ffffffff")))
def test_mac_is_unicast_locally_administered_and_stays(service, network, state_id) -> None:
    mac = names.mac(service, network, state_id)
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
    first = int(mac[:2], 16)
    assert first & 1 == 0
    assert first & 2 == 2
    assert mac == names.mac(service, network, state_id)


def test_mac_differs_by_service_network_and_state_folder() -> None:
    assert (
        len({names.mac(s, n, i) for s in ("a", "b") for n in ("a", "b") for i in ("0", "1")}) == 8
    )


@BOUNDED
@given(st.lists(NAME, min_size=1, max_size=5, unique=True))
def test_hosts_folder_is_one_path_component_that_keeps_the_order(networks) -> None:
    folder = names.hosts_folder(tuple(networks))
    assert len(folder.encode()) <= 255
    assert "/" not in folder
    assert folder not in (".", "..")
    if len(networks) > 1:
        assert folder != names.hosts_folder(tuple(reversed(networks)))
