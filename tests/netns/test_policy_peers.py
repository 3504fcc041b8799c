"""Test policies as their peers appear, disappear and share addresses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from policy_shop import EVERY, Shop
from services import idle
from wire import Wire


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
