"""The ruleset's text: what libnftables makes of it is asked of `nft --check` where that is there, in a namespace of its own."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niso.base import names
from niso.kernel import nft_tables
from niso.kernel.kinds.element import Edit, Element
from niso.kernel.kinds.ruleset import owner
from niso.manifest.parse_policy import parse_entry
from niso.plan import nft, policy_maps
from niso.plan.records import Member, Policed, Policy, Port, Subnet

NAME = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
ODD_NAMES = (
    "a",
    "a0",
    "a-9",
    "x" * 63,
    "a" + "-" * 61 + "z",
    "n1-2-3",
    "inet",
    "table",
    "set",
    "add",
    "comment",
    "drop",
)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def in_new_namespace() -> None:
    """For preexec_fn: the child may use netlink there as root of a namespace that nobody else sees."""
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        os._exit(77)


def checked(text: str) -> subprocess.CompletedProcess[str]:
    """What ``nft --check`` says of a text; nothing is changed, and what it would change is in a namespace of its own."""
    if shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("nft is not installed")
    done = subprocess.run(
        ["nft", "--check", "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin"},
        preexec_fn=in_new_namespace,
    )
    if done.returncode == 77:
        pytest.skip("no namespaces here")
    return done


def all_elements(service: str, network: str, number: int = 0) -> list[Element]:
    """Every kind of element that a service on a network can bring, of both families."""
    link = names.veth(service, network, number + 1)
    mac = names.mac(service, network, "0123abcd")
    four, six = f"10.{number}.0.2", f"fd00:{number:x}::2"
    subnets = (
        Subnet(4, f"10.{number}.0.0/24", f"10.{number}.0.1"),
        Subnet(6, f"fd00:{number:x}::/64", f"fd00:{number:x}::1"),
    )
    first = 1000 + 10 * number
    ports = (
        Port("", 1 + number, 65535, "tcp"),
        Port("0.0.0.0", 60000 + number, 1, "udp"),
        Port("::", 60000 + number, 1, "tcp"),
        Port("", 50000 + number, 1, "sctp"),
        Port("192.0.2.1", 50000 + number, 1, "tcp"),
        Port("2001:db8::1", 50000 + number, 1, "tcp"),
        Port("127.0.0.1", first, first, "udp", 10),
        Port("2001:db8::1", first, first, "udp", 10),
        Port("", first, first, "sctp", 10),
        Port("", first, first + 1, "tcp", 10),
    )
    return [
        *nft.network(network, names.bridge(network), subnets, internal=True),
        *nft.endpoint(service, link, mac, (four, six)),
        *(element for port in ports for element in nft.published(service, port, (four, six))),
        *(
            element
            for port in ports
            for element in nft.published_on(service, port, names.bridge(network), (four, six))
        ),
        *nft.hairpin(service, ((four, subnets[0].gateway), (six, subnets[1].gateway))),
    ]


def test_tables_are_accepted_by_the_kernel() -> None:
    done = checked(nft_tables.TABLES)
    assert done.returncode == 0, done.stderr


def test_elements_of_odd_but_valid_names_are_accepted_by_the_kernel() -> None:
    elements = [*owner("0123abcd"), nft.closed(4), nft.closed(6)]
    for number, name in enumerate(ODD_NAMES):
        elements += all_elements(name, ODD_NAMES[-1 - number], number)
    statements = [Edit("add", e).text() for e in elements] + [
        Edit("delete", e).text() for e in elements
    ]
    done = checked("\n".join([nft_tables.TABLES, *statements]))
    assert done.returncode == 0, done.stderr


def test_check_sees_what_the_kernel_would_refuse() -> None:
    assert checked(nft_tables.TABLES + "\nadd element inet niso nonesuch { 1 }").returncode != 0
    assert (
        checked(nft_tables.TABLES + '\ndelete element inet niso ports { "eth0" }').returncode != 0
    )


@settings(max_examples=100, deadline=None)
@given(NAME, NAME)
def test_no_name_can_break_out_of_its_place(service, network) -> None:
    for element in all_elements(service, network):
        statement = Edit("add", element).text()
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
    element = Element(nft_tables.INET, "publish_any4", "tcp . 1", "10.0.0.2 . 2", "api")
    assert Edit("add", element).text() == (
        'add element inet niso publish_any4 { tcp . 1 comment "api" : 10.0.0.2 . 2 }'
    )
    assert Edit("delete", element).text() == "delete element inet niso publish_any4 { tcp . 1 }"
    assert Edit("add", nft.closed(4)).text() == "add element inet niso closed { ipv4 }"


def test_list_of_containers_is_that_of_the_text() -> None:
    found: dict[str, list[str]] = {}
    table = ""
    for line in nft_tables.TABLES.splitlines():
        if heading := re.fullmatch(r"table (\w+ \w+) \{", line):
            table = heading[1]
            found[table] = []
        # what is dynamic is filled by the rules themselves
        if (container := re.match(r"\t(?:set|map) (\w+) ", line)) and "dynamic" not in line:
            found[table].append(container[1])
    assert {name: tuple(each) for name, each in found.items()} == nft_tables.CONTAINERS
    assert {
        name for containers in nft_tables.CONTAINERS.values() for name in containers
    } >= nft_tables.LATE | nft_tables.POLICIES


def test_all_kinds_of_elements_are_there_and_each_is_of_its_types() -> None:
    """So that what is given to the kernel above, and to the fake one, is all that there is."""
    elements = [*owner("0123abcd"), nft.closed(4), *all_elements("api", "backend")]
    elements += nft.before("net/ipv4/ip_forward", "0")
    elements += policy_elements()
    assert {(e.table, e.container) for e in elements} == {
        (table, name) for table, containers in nft_tables.CONTAINERS.items() for name in containers
    }
    for element in elements:
        key, value, interval = nft_tables.DECLARED[element.table, element.container]
        assert len(element.element.split(" . ")) == len(key.split(" . "))
        assert bool(element.value) == (value is not None)
        assert len(element.value.split(" . ")) == len((value or "").split(" . "))
        # a range of ports needs a map that takes intervals
        assert interval or not re.search(r"\d-\d", element.element.rpartition(" . ")[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/eth0.5/accept_ra", "1"),
        ("net/ipv6/conf/a23456789012345/force_forwarding", "0"),
    ],
)
def test_what_a_sysctl_was_is_read_back(name: str, value: str) -> None:
    (element,) = nft.before(name, value)
    assert nft.sysctl_before(element.element) == (name, value)
    done = checked(f"{nft_tables.TABLES}\n{Edit('add', element).text()}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", ['x"y', "a;b", "x}", "a23456789012345 6"])
def test_link_whose_name_is_no_word_of_nft_is_left_out(link: str) -> None:
    assert nft.before(f"net/ipv6/conf/{link}/accept_ra", "1") == []
    assert nft.before("net/ipv4/ip_forward", "0 } ; flush ruleset") == []


def policy_elements() -> list[Element]:
    """Of a policy with something in each part."""
    written = [
        *("db/icmp", "db:80/tcp", "db:90-95", "10.0.0.0/8:80", "[fd00::/8]:90-95"),
        *("0.0.0.0/0:80", "[::/0]:80", "0.0.0.0/0:9-10", "[::/0]:9-10"),
    ]
    ingress = tuple(
        parse_entry(text, f"network.policy.allow_from[{i}]", False)
        for i, text in enumerate(written)
    )
    egress = tuple(
        parse_entry(text, f"network.policy.egress.allow[{i}]", True)
        for i, text in enumerate(written)
    )
    own = Policed("api", ("10.99.1.2", "fd00::2"), Policy(allow_from=ingress, egress_allow=egress))
    return policy_maps.elements(own, [Member("service", "db", ("10.99.1.3", "fd00::3"))])


def test_elements_of_policies_are_accepted_by_the_kernel() -> None:
    elements = policy_elements()
    statements = [Edit("add", e).text() for e in elements] + [
        Edit("delete", e).text() for e in elements
    ]
    done = checked("\n".join([nft_tables.TABLES, *statements]))
    assert done.returncode == 0, done.stderr


def test_only_published_ports_may_go_before_what_they_lead_to() -> None:
    guards = nft_tables.LATE | nft_tables.POLICIES
    early = {
        name
        for containers in nft_tables.CONTAINERS.values()
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
        "hairpin",
    )
    assert early == {f"{kind}{family}" for kind in kinds for family in (4, 6)}


def test_every_set_that_is_declared_is_used_by_a_rule() -> None:
    for containers in nft_tables.CONTAINERS.values():
        for name in set(containers) - {"owner", "policies", "before"}:
            assert re.search(rf"@{name}\b", nft_tables.TABLES), name


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
            assert f"@{container}{family}" in nft_tables.TABLES
    for words in ("ip saddr @subnets4", "ip6 saddr @subnets6", "dnat ip to", "dnat ip6 to"):
        assert words in nft_tables.TABLES


def test_digest_is_of_the_text() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", nft_tables.DIGEST)
    marks = {element.element for element in owner("0123abcd")}
    assert marks == {'"id-0123abcd"', f'"rules-{nft_tables.DIGEST}"'}
    assert {element.table for element in owner("0123abcd")} == set(nft_tables.CONTAINERS)
    assert all(len(mark.strip('"')) <= 15 for mark in marks), "an ifname holds 15 characters"
