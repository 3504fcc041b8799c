"""Test services on several networks and with static addresses, and addresses that change owner."""

from __future__ import annotations

from conftest import Lab
from services import (
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    echo,
    idle,
    inside,
    on,
    package,
    send,
)


def test_service_on_two_networks_has_eth0_and_eth1_and_its_default_route_by_the_first(
    lab: Lab,
) -> None:
    api = echo(
        lab, "api", network={"networks": ["backend", "frontend"], "ip": {"frontend": "10.77.5.9"}}
    )
    lab.niso("net", "create", "frontend", "--subnet", "10.77.5.0/24")
    lab.niso(
        "activate",
        api,
        idle(lab, "db", network=on("backend")),
        idle(lab, "web", network=on("frontend")),
    )
    assert inside(lab, "api", "eth0")["addr_info"][0]["local"] == "10.99.1.2"
    assert inside(lab, "api", "eth1")["addr_info"][0]["local"] == "10.77.5.9"
    assert [
        route["gateway"] for route in lab.ip_json("route", "show", "default", netns="niso-api")
    ] == ["10.99.1.1"]
    assert answer(lab, "10.99.1.2", 80, "niso-db") == f"api {address(lab, 'db')}"
    assert ask(lab, "10.77.5.9", 80, "niso-web") == f"api {address(lab, 'web')}"
    assert ask(lab, "10.99.1.2", 80, "niso-web") == ""
    assert ask(lab, HOST, 80, "niso-db") == ""


# --- static addresses -------------------------------------------------------------------------------------------------


def test_changed_static_address_moves_the_service_and_its_name(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api", network={"ip": "10.99.0.50"}), idle(lab, "peer"))
    lab.niso("activate", idle(lab, "api", network={"ip": "10.99.0.60"}))
    assert address(lab, "api") == "10.99.0.60"
    assert len(inside(lab, "api", "eth0")["addr_info"]) == 1
    assert (
        lab.niso("exec", "peer", "--", "getent", "hosts", "api").stdout.split()[0] == "10.99.0.60"
    )
    assert "1 received" in lab.niso("exec", "peer", "--", "ping", "-c1", "-W2", "api").stdout


def test_address_that_became_free_inherits_no_flow(lab: Lab) -> None:
    """A UDP flow from outside, not closed by anybody, would live on in conntrack for its 30 s."""
    lab.niso("activate", package(lab, "old", "sleep", "1000"))
    send(lab, "niso-old", CLIENT, 9999)
    assert "src=10.99.0.2" in lab.run("conntrack", "-L").stdout
    lab.niso("remove", "old")
    lab.niso("activate", idle(lab, "new"))
    assert address(lab, "new") == "10.99.0.2"
    assert "10.99.0.2" not in lab.run("conntrack", "-L").stdout
