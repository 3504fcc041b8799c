"""Test the remedies that niso names for chains of other programs that drop its packets."""

from __future__ import annotations

import pytest
from foreign_rules import BACKEND, BRIDGE, DROP, IIF, IN, INET, IP, IP6, OUT, REPLIES, Rules, named
from hypothesis import given
from hypothesis import strategies as st

from niso.kernel.foreign_chains import Chain, ChainVerdict
from niso.look.other_firewalls import OUTWARD, PUBLISHED, ForeignDrop, drops


def remedy(
    family: int, table: str, name: str, *bridges: str, rules: Rules | None = None
) -> tuple[str, ...]:
    fake = rules or Rules()
    if name not in fake.chains:
        fake.chains[name] = []
    places = [(bridge, 0, {}) for bridge in bridges or ("niso-backend",)]
    (drop,) = drops(fake, [Chain(family, table, name, False)], places, False, (4, 6))
    assert drop.bridges == tuple(bridge for bridge, _, _ in places)
    return drop.remedy


STRICT = ("StrictForwardPorts=no in /etc/firewalld/firewalld.conf", "firewall-cmd --reload")


def through(*chains: str) -> Rules:
    return Rules(*((ChainVerdict("jump", chain),) for chain in chains))


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (
            (IP, "filter", "FORWARD"),
            ["iptables -I FORWARD -i {} -j ACCEPT", "iptables -I FORWARD -o {} -j ACCEPT"],
        ),
        (
            (IP6, "filter", "FORWARD"),
            ["ip6tables -I FORWARD -i {} -j ACCEPT", "ip6tables -I FORWARD -o {} -j ACCEPT"],
        ),
        (
            (IP, "security", "FORWARD"),
            [
                "iptables -t security -I FORWARD -i {} -j ACCEPT",
                "iptables -t security -I FORWARD -o {} -j ACCEPT",
            ],
        ),
        ((BRIDGE, "filter", "FORWARD"), ["ebtables -I FORWARD --logical-in {} -j ACCEPT"]),
        (
            (INET, "firewalld", "filter_FORWARD"),
            [
                "firewall-cmd --permanent --zone=trusted --add-interface={}",
                "firewall-cmd --zone=trusted --add-interface={}",
                *STRICT,
            ],
        ),
    ],
)
def test_remedy_is_a_command_of_the_tool_and_one_for_all_bridges(given, lines) -> None:
    assert remedy(*given) == tuple(line.format("niso-backend") for line in lines)
    assert remedy(*given, "niso-a", "niso-b") == tuple(line.format("niso-+") for line in lines)
    several = remedy(*given, "niso-a", "other")
    assert len(several) == 2 * len(lines) - (2 if lines[-1] == STRICT[-1] else 0)


def test_remedy_goes_where_docker_and_ufw_keep_the_users_rules() -> None:
    docker, ufw, ufw6 = (
        through("DOCKER-USER"),
        through("ufw-before-forward"),
        through("ufw6-user-forward"),
    )
    ufw.chains["ufw-before-forward"] = [(ChainVerdict("jump", "ufw-user-forward"),)]
    user = (
        "iptables -I DOCKER-USER -i niso-backend -j ACCEPT",
        "iptables -I DOCKER-USER -o niso-backend -j ACCEPT",
    )
    route = ("ufw route allow in on niso-backend", "ufw route allow out on niso-backend")
    assert remedy(IP, "filter", "FORWARD", rules=docker) == user
    assert remedy(IP, "filter", "FORWARD", rules=ufw) == route
    assert remedy(IP6, "filter", "FORWARD", rules=ufw6) == route
    assert remedy(IP, "filter", "FORWARD", rules=through("ufw-user-forward", "DOCKER-USER")) == user
    early = Rules((DROP,), (ChainVerdict("jump", "DOCKER-USER"),))
    assert remedy(IP, "filter", "FORWARD", rules=early)[0].startswith("iptables -I FORWARD ")


def test_remedy_is_no_wider_than_what_is_dropped() -> None:
    for rules, lines in (
        (Rules(REPLIES, IN), ("iptables -I FORWARD -o niso-backend -j ACCEPT",)),
        (Rules(REPLIES, OUT), ("iptables -I FORWARD -i niso-backend -j ACCEPT",)),
    ):
        assert remedy(IP, "filter", "FORWARD", rules=rules) == lines


def test_remedy_goes_to_a_chain_that_all_dropped_packets_come_through() -> None:
    rules = Rules((IIF, named("niso-backend"), DROP), (ChainVerdict("jump", "DOCKER-USER"),))
    assert remedy(IP, "filter", "FORWARD", rules=rules)[0].startswith("iptables -I FORWARD ")


def test_remedy_of_other_tables_is_for_nft_and_safe_to_paste() -> None:
    assert remedy(INET, "filter", "forward") == (
        "nft 'insert rule inet filter forward iifname \"niso-backend\" accept'",
        "nft 'insert rule inet filter forward oifname \"niso-backend\" accept'",
    )
    assert (
        remedy(IP, "t-1", "fw.x", "niso-a", "niso-b")[1]
        == "nft 'insert rule ip t-1 fw.x oifname \"niso-*\" accept'"
    )
    for name in ("a b", "x;reboot", "$(reboot)", "'", "", "9lives", "-f", "\x1b[2J", "a\nb", "ü"):
        for line in remedy(IP, name, "c") + remedy(IP, "t", name):
            assert line.startswith("have this chain begin with: ") and line.isprintable()


@given(st.text(), st.text())
def test_what_is_shown_of_foreign_names_is_printable(table, name) -> None:
    for drop in drops(Rules(), [Chain(IP, table, name, False)], [BACKEND], True, (4,)):
        assert drop.describe().isprintable() and drop.chain.count(" ") == 2
        assert all(line.isprintable() for line in drop.remedy)


def test_words_are_one_line() -> None:
    drop = ForeignDrop("ip filter FORWARD", (PUBLISHED, OUTWARD), (), ("niso-a", "niso-b"))
    assert (
        drop.describe()
        == "nftables chain ip filter FORWARD drops connections of niso-a, niso-b (published, outward)"
    )
