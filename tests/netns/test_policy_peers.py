"""Test policies as their peers appear, disappear and share addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from policy_flows import Asked, Flow
from policy_shop import EVERY, PROTOCOLS, Shop
from services import idle
from test_policy_packets import engine_world
from wire import Wire

from niso.kernel.policy_rules import POLICY_PARTS
from niso.plan import verdict

ANYBODY = {"any_port", "rest"}


@pytest.fixture
def shop(lab: Lab) -> Iterator[Shop]:
    with Wire(lab) as wire:
        yield Shop(lab, wire)


def test_peer_that_comes_changes_nothing_for_one_that_is_named_by_its_address_too(
    shop: Shop,
) -> None:
    shop.activate("api")
    own, own6 = shop.address("api"), shop.address("api", 6)
    shop.activate("db")
    shop.policy("db", {"allow_from": [own, own6, "web"], "deny_from": ["api"]})
    assert shop.reach("api", "db") == set()
    shop.activate("web")
    assert_whole(shop.lab)
    assert (shop.reach("api", "db"), shop.reach("web", "db")) == (set(), EVERY)
    shop.stop("remove", "web")
    assert shop.reach("api", "db") == set()


def test_ports_of_a_peer_that_goes_make_room_for_what_is_left_of_them(shop: Shop) -> None:
    """Two names of one address with ranges that overlap, of which one ends with it."""
    shop.activate("db", "api")
    side = idle(shop.lab, "side", network={"mode": "share", "share": "api"})
    shop.lab.niso("activate", side)
    shop.policy("db", {"allow_from": ["side:85-95", "api:80-90"]})
    shop.lab.niso("deactivate", "side", "api")
    assert_whole(shop.lab)
    shop.lab.niso("activate", "api", "side")
    assert_whole(shop.lab)
    shop.activate("moved", ip={"backend": "10.99.1.60"})
    shop.policy("db", {"allow_from": ["moved:80-90", "10.99.1.60:85-100"]})
    shop.activate("moved", ip={"backend": "10.99.1.61"})
    assert_whole(shop.lab)


def test_many_prefixes_and_ports_decide_as_the_engine_says(shop: Shop) -> None:
    """Prefixes that overlap, single ports and ranges, denials for everybody; by class and port."""
    ends = {"a": 10, "b": 20, "c": 30, "d": 40}
    shop.activate("db")
    for name, number in ends.items():
        shop.activate(name, ip={"backend": [f"10.99.1.{number}", f"fd00:99:1::{number:x}"]})
    at = {(name, n): shop.address(name, n) for name in ("db", *ends) for n in (4, 6)}
    odd = range(101, 140, 2)

    def both(text: str) -> list[str]:
        address, _, rest = text.partition("/")
        length, colon, ports = rest.partition(":")
        number = int(address.rpartition(".")[2])
        wide = address == "0.0.0.0"
        six = "::/0" if wide else f"fd00:99:1::{number:x}/{int(length) + 96}"
        return [text, f"[{six}]{colon}{ports}"]

    rules = {
        "allow_from": [
            *both("10.99.1.8/29:100-120/tcp"),  # a
            *both("10.99.1.0/27:110-130"),  # a, b and c
            *both("10.99.1.16/29"),  # b
            *both("10.99.1.40/32:104"),  # d
            *both("10.99.1.40/31:108/udp"),
            *both("0.0.0.0/0:150"),
            *(text for n in range(30) for text in both(f"10.99.1.{128 + 4 * n}/31")),
        ],
        "deny_from": [
            *both("10.99.1.30/31:112"),
            *(text for port in odd for text in both(f"0.0.0.0/0:{port}")),
        ],
    }
    for audited in (False, True):
        shop.policy("db", rules | ({"mode": "audit"} if audited else {}))
        world = engine_world(shop.lab)
        listed = shop.lab.run("nft", "list", "table", "inet", "niso").stdout
        maps = dict(re.findall(r"map in4_(\w+) \{(.*?)\n\t\}", listed, re.S))
        parts = {part for part in POLICY_PARTS if "elements" in maps[part]}
        assert parts == {"port", "peer", "class", "class_ports", "class_rest", *ANYBODY}
        asked = [
            Asked(f"niso-{name}", "niso-db", (at["db", family], port), proto)
            for name in ends
            for family in (4, 6)
            for proto in PROTOCOLS
            for port in (100, 103, 104, 108, 110, 111, 112, 118, 122, 130, 132, 150, 151)
        ]
        found: dict[Asked, Flow | None] = {}
        for name in ends:  # a port has one listener
            mine = [each for each in asked if each.client == f"niso-{name}"]
            found |= shop.flows.try_open(mine, 1.5)
            shop.flows.close_listeners()
            for flow in found.values():
                if flow is not None:
                    flow.client.close()
                    flow.server.close()
        wrong = []
        for each, flow in found.items():
            source = at[str(each.client).removeprefix("niso-"), 6 if ":" in each.at[0] else 4]
            ingress = verdict.evaluate(world, source, *each.at, each.proto)[1]
            if (flow is not None) is not ingress.passes:
                wrong.append((str(each), ingress))
        assert not wrong
        assert audited or len({flow is None for flow in found.values()}) == 2
    # what each entry let pass
    shop.policy("db", rules)
    (asked_,) = [
        one
        for one in asked
        if one.client == "niso-b" and one.at == (at["db", 4], 132) and one.proto == "tcp"
    ]

    def passed() -> int:
        shown = json.loads(shop.lab.niso("net", "policy", "show", "db", "--json").stdout)
        return next(int(one["packets"]) for one in shown if one["text"] == "10.99.1.16/29")

    before = passed()
    shop.flows.open(asked_)
    assert passed() == before + 1
    told = json.loads(shop.lab.niso("net", "explain", "b", "db:132", "--json").stdout)
    assert [text.split()[3] for text in told["ingress"]["nft"]] == [
        "ingress4",
        "in4_class",
        "in4_class_rest",
    ]


def test_class_of_a_sender_is_none_of_the_receiver(shop: Shop) -> None:
    """Both policies have one class, of other addresses; a packet has room for one class alone."""
    shop.activate("db", "api")
    shop.policy("db", {"allow_from": ["10.99.1.128/25", "[fd00:99:1::8000/113]"]})
    shop.policy("api", {"egress": {"allow": ["10.99.1.0/25", "[fd00:99:1::/113]"]}})
    assert shop.reach("api", "db") == set()
    shop.policy("db", None)
    assert shop.reach("api", "db") == EVERY


@pytest.mark.parametrize("goes", ["another provider", "its own network", "deactivate"])
def test_sharer_that_leaves_takes_what_its_name_allowed_with_it(shop: Shop, goes: str) -> None:
    shop.activate("db", "api", "other")
    shop.policy("db", {"allow_from": ["side"]})
    shop.lab.niso("activate", idle(shop.lab, "side", network={"mode": "share", "share": "api"}))
    assert shop.reach("api", "db") == EVERY
    cut = shop.open(("api", "db"))
    if goes == "deactivate":
        shop.lab.niso("deactivate", "side")
    elif goes == "another provider":
        shop.lab.niso(
            "activate", idle(shop.lab, "side", network={"mode": "share", "share": "other"})
        )
    else:
        shop.lab.niso("activate", idle(shop.lab, "side", network={"network": "backend"}))
    assert shop.flows.judge([], cut) == []
    assert shop.reach("api", "db") == set()
    assert_whole(shop.lab)


@pytest.mark.parametrize("ends", ["undone", "killed"])
def test_connection_that_a_policy_let_in_which_is_undone_is_cut(shop: Shop, ends: str) -> None:
    shop.activate("db", "api", "web")
    shop.policy("db", {"allow_from": ["web"]})
    alive = shop.open(("web", "db"))
    wider = shop.write("db", {"allow_from": ["web", "api"]})
    if ends == "killed":
        done = shop.lab.niso("activate", wider, env={"NISO_FAILPOINT": "4:kill"}, check=False)
        assert done.returncode == -9
        cut = shop.open(("api", "db"))
        assert "nothing to repair" not in shop.lab.niso("net", "repair").stdout
    else:
        unwell = {"tcp": 9, "interval": "500ms", "retries": 3, "start_period": "0s"}
        (shop.lab.path(f"{wider}/manifest.toml")).open("a").write(
            "\n[healthcheck]\n" + "".join(f"{key} = {value!r}\n" for key, value in unwell.items())
        )
        process = shop.lab.popen("niso", "activate", wider)
        shop.lab.wait_for(lambda: shop.reach("api", "db") == EVERY, 10, "the wider policy")
        cut = shop.open(("api", "db"))
        assert process.wait(60) == 1
    assert shop.flows.judge(alive, cut) == []
    assert shop.reach("api", "db") == set()
    assert_whole(shop.lab)


def test_network_without_ipv6_goes_while_another_forwards_it(shop: Shop) -> None:
    """A bridge whose forwarding is on record goes like any other: nothing of it is to be put back."""
    shop.lab.niso("net", "create", "old", "--subnet", "10.99.7.0/24")
    shop.lab.niso("activate", idle(shop.lab, "lone"))
    shop.activate("db")
    shop.policy("db", {"deny_from": ["network:niso-default"]})
    shop.lab.niso("net", "remove", "old")
    shop.lab.niso("remove", "lone")
    assert_whole(shop.lab)
    shop.lab.niso("net", "create", "new", "--ipv6")
    shop.lab.niso("activate", idle(shop.lab, "six", network={"network": "new"}))
    shop.lab.niso("remove", "six")
    shop.lab.niso("net", "remove", "new")
    assert_whole(shop.lab)


@pytest.mark.parametrize("ends", ["published anew", "deactivate"])
def test_bridge_that_a_publisher_has_left_is_as_others_when_its_ports_are_elsewhere(
    shop: Shop, ends: str
) -> None:
    """Open connections by a port that went live on, so its bridge stays tracked until the service publishes anew or ends."""
    shop.lab.niso("net", "create", "other", "--subnet", "10.99.7.0/24")
    shop.activate("db", ports=["8080:80"])
    shop.activate("db", ports=[], network="other")
    if ends == "deactivate":
        shop.lab.niso("deactivate", "db")
    else:
        shop.activate("db", ports=["8080:80"], network="other")
    assert_whole(shop.lab)
    assert tracked(shop.lab, "niso-backend") == 0
    assert tracked(shop.lab, "niso-other") == (ends != "deactivate")


def tracked(lab: Lab, bridge: str) -> int:
    data = lab.ip_json("-d", "link", "show", "dev", bridge)[0]["linkinfo"]["info_data"]
    return int(data["nf_call_iptables"])
