"""Test that neighbours learn the new MAC of a reused address, also if a namespace is held open."""

from __future__ import annotations

import pytest
from conftest import Lab, assert_whole
from services import idle, on

OLD = "02:66:66:66:66:66"


def known(lab: Lab, address: str) -> str:
    """The MAC that the service "peer" has for an address."""
    entries = lab.ip_json("neigh", "show", address, "dev", "eth0", netns="niso-peer")
    return str(entries[0].get("lladdr", "")) if entries else ""


def mac(lab: Lab, service: str) -> str:
    return str(lab.ip_json("link", "show", "eth0", netns=f"niso-{service}")[0]["address"])


@pytest.mark.parametrize("nud", ["stale", "reachable"])
def test_neighbours_hear_of_the_new_holder_of_an_address(lab: Lab, nud: str) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99::/64")
    lab.niso("activate", idle(lab, "peer", network=on("backend")))
    for address in ("10.99.1.3", "fd00:99::3"):
        lab.run(
            "ip",
            "neigh",
            "replace",
            address,
            "lladdr",
            OLD,
            "dev",
            "eth0",
            "nud",
            nud,
            netns="niso-peer",
        )
        assert known(lab, address) == OLD
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    assert [
        each["local"]
        for each in lab.ip_json("address", "show", "eth0", netns="niso-api")[0]["addr_info"]
    ] == [
        "10.99.1.3",
        "fd00:99::3",
    ]
    for address in ("10.99.1.3", "fd00:99::3"):
        lab.wait_for(
            lambda address=address: known(lab, address) == mac(lab, "api"), 5, f"news of {address}"
        )
    # the host and its services know each other without asking, so the machine's neighbour table
    # has as many entries of them as before; what was announced leaves none behind either
    for address in ("10.99.1.3", "fd00:99::3"):
        lab.run("ping", "-c", "1", "-W", "3", address)
    entries = lab.ip_json("neigh", "show", netns="niso-api")
    entries += lab.ip_json("neigh", "show", "dev", "niso-backend")
    assert {each["dst"] for each in entries} == {
        *("10.99.1.1", "fd00:99::1", "10.99.1.2", "fd00:99::2", "10.99.1.3", "fd00:99::3")
    }
    assert all(each["state"] == ["PERMANENT"] for each in entries), entries


def test_pair_goes_with_a_namespace_that_somebody_holds(lab: Lab) -> None:
    """Nobody in the namespace has a way to the bridge any more, and the links are gone when the command comes back."""
    lab.niso("activate", idle(lab, "base"), idle(lab, "api"))
    holder = lab.popen("ip", "netns", "exec", "niso-api", "sleep", "1000")
    lab.wait_for(
        lambda: lab.run("ip", "netns", "pids", "niso-api").stdout.count("\n") >= 3,
        what="the holder",
    )
    links = {link["ifname"] for link in lab.ip_json("link")}
    lab.niso("deactivate", "api")
    left = {link["ifname"] for link in lab.ip_json("link")}
    assert len(links - left) == 1 and not left - links
    assert (
        lab.run("nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "-br", "link").stdout.split()[
            0
        ]
        == "lo"
    )
    assert_whole(lab)
    lab.niso("activate", "api")
    assert_whole(lab)
