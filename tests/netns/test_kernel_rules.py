"""Policy rules of niso.kernel.rtnetlink against iproute2's and pyroute2's view of the same kernel."""

from __future__ import annotations

import json
import os
import socket

import pytest
from kernel_world import sh, throw_away_host
from pyroute2 import IPRoute

from niso.kernel import netns
from niso.kernel.rtnetlink import PolicyRule, Rtnl

ALIAS = "niso:0123abcd"
RULES = [("10.99.2.2/32", "10.99.2.0/24", "-4"), ("fd00:99:2::2/128", "fd00:99:2::/64", "-6")]


@pytest.mark.parametrize(("source", "wider", "family"), RULES)
@pytest.mark.parametrize("table", [100, 70_000])
@throw_away_host
def test_rules_are_added_once_read_and_deleted(source: str, wider: str, family: str, table: int) -> None:
    address = source.partition("/")[0]

    def shown() -> list[tuple[int, str, int, str, str]]:
        listed = json.loads(sh(f"ip -j -d -N {family} rule"))
        return [
            (r["priority"], r["src"], r.get("srclen", 0), r["table"], r["protocol"])
            for r in listed
            if r["protocol"] == "3"
        ]

    with Rtnl() as rtnl:
        standard = rtnl.rules()
        assert {(rule.priority, rule.source, rule.table) for rule in standard} >= {
            (32766, "0.0.0.0/0", 254),
            (32766, "::/0", 254),
        }
        assert all(rule.protocol == 2 for rule in standard)
        rtnl.delete_rule(source, table, 1000)
        for _ in range(2):
            rtnl.add_rule(source, table, 1000)
            rtnl.add_rule(wider, table + 1, 1001)
        length = int(wider.partition("/")[2])
        net = wider.partition("/")[0]
        assert shown() == [(1000, address, 0, str(table), "3"), (1001, net, length, str(table + 1), "3")]
        with IPRoute() as other:
            number = socket.AF_INET6 if family == "-6" else socket.AF_INET
            ours = [rule for rule in other.get_rules(family=number) if rule.get_attr("FRA_PROTOCOL") == 3]
            assert [
                (r.get_attr("FRA_PRIORITY"), r.get_attr("FRA_SRC"), r["src_len"], r.get_attr("FRA_TABLE")) for r in ours
            ] == [(1000, address, int(source.partition("/")[2]), table), (1001, net, length, table + 1)]
        new = [rule for rule in rtnl.rules() if rule not in standard]
        assert new == [PolicyRule(1000, source, table, 3), PolicyRule(1001, wider, table + 1, 3)]
        sh(f"ip {family} rule add from {address} lookup {table} priority 1000 proto static")
        for _ in range(2):
            rtnl.delete_rule(source, table, 1000)
        assert PolicyRule(1000, source, table, 4) in rtnl.rules()  # another's
        assert shown() == [(1001, net, length, str(table + 1), "3")]


@pytest.mark.parametrize(("source", "wider", "family"), RULES)
@throw_away_host
def test_rule_with_another_condition_is_not_taken_for_ours(source: str, wider: str, family: str) -> None:
    with Rtnl() as rtnl:
        before = rtnl.rules()
        for words in (
            f"from {source} fwmark 1 lookup 100",
            f"from {source} to {wider} lookup 100",
            f"from {source} iif lo lookup 100",
            f"from {source} lookup 100 suppress_prefixlength 0",
            f"from {source} prohibit",
        ):
            sh(f"ip {family} rule add {words} priority 1000 protocol boot")
        assert rtnl.rules() == before
        rtnl.add_rule(source, 100, 1000)
        assert [rule for rule in rtnl.rules() if rule not in before] == [PolicyRule(1000, source, 100, 3)]
        sh(f"ip {family} rule add not from {source} lookup 100 priority 1001 protocol boot")
        rtnl.add_rule(source, 100, 1001)
        assert PolicyRule(1001, source, 100, 3) in rtnl.rules()
        assert len(json.loads(sh(f"ip -j {family} rule show priority 1001"))) == 2


@pytest.mark.parametrize(
    ("subnets", "far"),
    [(("10.99.1.{}/24", "10.99.2.{}/24"), "198.51.100.1"), (("fd00:1::{}/64", "fd00:2::{}/64"), "2001:db8:5::1")],
)
@throw_away_host
def test_reply_leaves_by_the_link_whose_address_it_carries(subnets: tuple[str, str], far: str) -> None:
    everywhere = "::/0" if ":" in far else "0.0.0.0/0"
    length = 128 if ":" in far else 32
    netns.create("niso-api")

    def way(source: str) -> tuple[str, str]:
        (route,) = json.loads(sh(f"ip -j -n niso-api route get {far} from {source}"))
        return route["dev"], route["gateway"]

    with Rtnl() as rtnl:
        for number in range(len(subnets)):
            rtnl.add_bridge(f"niso-{number}", mtu=1400, alias=ALIAS)
            fd = netns.open_fd("niso-api")
            rtnl.add_veth(
                f"niapi-{number}",
                peer=f"eth{number}",
                peer_netns_fd=fd,
                peer_mac=f"0a:00:00:00:00:0{number}",
                mtu=1400,
                bridge=f"niso-{number}",
                hairpin=False,
                alias=ALIAS,
            )
            os.close(fd)
        with netns.inside("niso-api"), Rtnl() as inner:
            for number, subnet in enumerate(subnets):
                inner.set_link(f"eth{number}", up=True)
                link = inner.link(f"eth{number}")
                assert link
                inner.add_address(link.index, subnet.format(2))
                gateway = subnet.format(1).partition("/")[0]
                if number == 0:
                    inner.add_route(everywhere, gateway, link.index)
            first, second = (subnet.format(2).partition("/")[0] for subnet in subnets)
            gateways = [subnet.format(1).partition("/")[0] for subnet in subnets]
            assert way(second) == ("eth0", gateways[0])
            inner.add_route(everywhere, gateways[1], link.index, table=101)
            inner.add_rule(f"{second}/{length}", 101, 1000)
            assert (way(first), way(second)) == (("eth0", gateways[0]), ("eth1", gateways[1]))
            inner.delete_rule(f"{second}/{length}", 101, 1000)
            assert way(second) == ("eth0", gateways[0])
