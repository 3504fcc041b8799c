"""Test the ruleset's text and elements; tests/netns/test_ruleset_check.py validates them in the kernel."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruleset_elements import SYSCTLS, all_elements, policy_elements
from samples import samples

from niso.kernel import policy_rules, ruleset
from niso.kernel.kinds.nft import owner
from niso.kernel.nft_elements import Element
from niso.plan import elements as plan_elements

NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@settings(max_examples=samples(25, 100), deadline=None)
@given(NAME, NAME)
def test_no_name_can_break_out_of_its_place(service, network) -> None:
    for element in all_elements(service, network):
        statement = element.statement("add")
        assert "\n" not in statement
        assert statement.count("{") == statement.count("}") == 1
        assert statement.count(";") == 0
        # outside quotes nothing but what render wrote is left: verbs, set names, keys, values
        outside = re.sub(r'"[^"]*"', "", statement)
        assert '"' not in outside
        assert re.fullmatch(r"add element (inet|bridge) niso \w+ \{ [0-9a-z:./ -]+ \}", outside), (
            outside
        )


def test_comment_comes_before_the_value_and_only_where_something_is_added() -> None:
    element = Element(ruleset.INET, "publish_any4", ("tcp", 1), ("10.0.0.2", 2), "api")
    assert element.statement("add") == (
        'add element inet niso publish_any4 { tcp . 1 comment "api" : 10.0.0.2 . 2 }'
    )
    assert element.statement("delete") == "delete element inet niso publish_any4 { tcp . 1 }"
    assert plan_elements.closed(4).statement("add") == "add element inet niso closed { ipv4 }"


def test_list_of_containers_is_that_of_the_text() -> None:
    found: dict[str, list[str]] = {}
    table = ""
    for line in ruleset.TABLES.splitlines():
        if heading := re.fullmatch(r"table (\w+ \w+) \{", line):
            table = heading[1]
            found[table] = []
        # what is dynamic is filled by the rules themselves
        if (container := re.match(r"\t(?:set|map) (\w+) ", line)) and "dynamic" not in line:
            found[table].append(container[1])
    assert {name: tuple(each) for name, each in found.items()} == ruleset.CONTAINERS
    assert {
        name for containers in ruleset.CONTAINERS.values() for name in containers
    } >= ruleset.LATE | ruleset.POLICIES


def test_all_kinds_of_elements_are_there_and_each_is_of_its_types() -> None:
    """So that what is given to the kernel above, and to the fake one, is all that there is."""
    elements = [*owner("0123abcd"), plan_elements.closed(4), *all_elements("api", "backend")]
    elements += plan_elements.before("net/ipv4/ip_forward", "0")
    elements += plan_elements.links_before(4, [(7, "br0")])
    elements += policy_elements()
    assert {(e.table, e.container) for e in elements} == {
        (table, name) for table, containers in ruleset.CONTAINERS.items() for name in containers
    }
    for element in elements:
        key, value, interval = ruleset.DECLARED[element.table, element.container]
        assert len(element.text.split(" . ")) == len(element.fields) == len(key.split(" . "))
        assert bool(element.value_text) == (value is not None)
        assert len(element.value_text.split(" . ")) == len((value or "").split(" . "))
        # a range of ports needs a map that takes intervals
        assert interval or not re.search(r"\d-\d", element.text.rpartition(" . ")[2])


@pytest.mark.parametrize(("name", "value"), SYSCTLS)
def test_what_a_sysctl_was_is_read_back(name: str, value: str) -> None:
    (element,) = plan_elements.before(name, value)
    assert plan_elements.sysctl_before(element) == (name, value)


@pytest.mark.parametrize("link", ['x"y', "a;b", "x}", "a23456789012345 6"])
def test_link_whose_name_is_no_word_of_nft_is_left_out(link: str) -> None:
    assert plan_elements.before(f"net/ipv6/conf/{link}/accept_ra", "1") == []
    assert plan_elements.before("net/ipv4/ip_forward", "0 } ; flush ruleset") == []


def test_only_published_ports_may_go_before_what_they_lead_to() -> None:
    # the end of an audit is always safe
    guards = ruleset.LATE | ruleset.POLICIES | {policy_rules.WATCHED, *policy_rules.PLACES}
    early = {
        name
        for containers in ruleset.CONTAINERS.values()
        for name in containers
        if name not in guards
    }
    kinds = (
        "local_addr",
        "local_any",
        "publish_addr",
        "publish_any",
        "range_addr",
        "range_any",
        "kept_addr",
        "kept_any",
        "kept_range_addr",
        "kept_range_any",
        "hairpin",
        "vips",
        "slots",
        "near",
        "front_addr",
        "front_any",
        "front_local_addr",
        "front_local_any",
        "front_port",
    )
    ports = {f"{kind}{family}" for kind in kinds for family in (4, 6)}
    # claims, without which nobody of another host is heard; receivers, without which nobody is
    # reached by a gateway's MAC; and without ``later`` all links are closed
    assert early == ports | {
        *("here", "later", *ruleset.CLAIMS, "receivers4", "receivers6"),
        # without the port in ``multicast``, its service hears no multicast, whatever its policy
        ruleset.MULTICAST,
        *(name for _, name in ruleset.DECLARED if name.startswith(policy_rules.HEARS)),
    }


def test_every_set_that_is_declared_is_used_by_a_rule() -> None:
    for containers in ruleset.CONTAINERS.values():
        for name in set(containers) - {"owner", "policies", "before"}:
            assert re.search(rf"@{name}\b", ruleset.TABLES), name


def test_text_has_both_families() -> None:
    for container in (
        "subnets",
        "sources",
        "publish_any",
        "publish_addr",
        "range_any",
        "range_addr",
        "hairpin",
    ):
        for family in "46":
            assert f"@{container}{family}" in ruleset.TABLES
    for words in ("ip saddr @subnets4", "ip6 saddr @subnets6", "dnat ip to", "dnat ip6 to"):
        assert words in ruleset.TABLES


def test_digest_is_of_the_text() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", ruleset.DIGEST)
    marks = {element.fields for element in owner("0123abcd")}
    assert marks == {("id-0123abcd",), (f"rules-{ruleset.DIGEST}",)}
    assert {element.table for element in owner("0123abcd")} == set(ruleset.CONTAINERS)
    assert all(len(mark) <= 15 for (mark,) in marks), "an ifname holds 15 characters"
