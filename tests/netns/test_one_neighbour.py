"""Test that services reach each other by their gateway's MAC: one neighbour, however many peers."""

from __future__ import annotations

import socket
import sys

import pytest
from conftest import Lab, assert_whole
from services import echo, filter_bridged, idle, on
from wire import FAMILY, Wire

BOTH = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99::/64")


def neighbours(lab: Lab, service: str) -> dict[str, list[str]]:
    """Return address -> states of all entries of a service."""
    entries = lab.ip_json("neigh", "show", netns=f"niso-{service}")
    return {str(entry["dst"]): entry["state"] for entry in entries}


def answers(lab: Lab, service: str, address: str) -> bool:
    argv = ("ping", "-c", "1", "-W", "2", address)
    return lab.run(*argv, netns=f"niso-{service}", check=False).returncode == 0


def mac(lab: Lab, service: str) -> str:
    return str(lab.ip_json("link", "show", "eth0", netns=f"niso-{service}")[0]["address"])


SEND = """
import socket
for family, start in ((socket.AF_INET, "10.99.1."), (socket.AF_INET6, "fd00:99::")):
    for number in range(50, 250):
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            try:
                one.sendto(b"x", (f"{start}{number}", 9))
            except OSError:  # the answer to an earlier one
                pass
"""


def test_pair_of_services_takes_no_entry_of_the_neighbour_table(lab: Lab) -> None:
    """Nor do packets to addresses that nobody has, which are refused at once.

    The table is the machine's: a service could fill it, and no other reached a new neighbour.
    """
    lab.niso("net", "create", "backend", *BOTH)
    lab.niso("activate", *(idle(lab, name, network=on("backend")) for name in ("a", "b", "c")))
    for own, others in (("a", (3, 4)), ("b", (2, 4)), ("c", (2, 3))):
        assert all(answers(lab, own, f"10.99.1.{other}") for other in others)
        assert all(answers(lab, own, f"fd00:99::{other}") for other in others)
    for address in ("10.99.1.77", "fd00:99::77"):
        argv = ("ping", "-c", "1", "-W", "2", address)
        said = lab.run(*argv, netns="niso-a", check=False).stdout
        assert "From 10.99.1.1 " in said or "From fd00:99::1 " in said
    lab.run(sys.executable, "-c", SEND, netns="niso-a")
    for own in ("a", "b", "c"):
        gateways = {"10.99.1.1": ["PERMANENT"], "fd00:99::1": ["PERMANENT"]}
        assert neighbours(lab, own) == gateways
    on_bridge = lab.ip_json("neigh", "show", "dev", "niso-backend")
    assert {entry["dst"] for entry in on_bridge} == {
        f"{start}{number}" for start in ("10.99.1.", "fd00:99::") for number in (2, 3, 4)
    }
    assert all(entry["state"] == ["PERMANENT"] for entry in on_bridge)
    assert_whole(lab)
    # the next holder of an address is reached at once
    before = mac(lab, "b")
    lab.niso("remove", "b")
    lab.niso("activate", idle(lab, "new", network=on("backend")))
    assert mac(lab, "new") != before
    assert answers(lab, "a", "10.99.1.3") and answers(lab, "a", "fd00:99::3")


def test_frames_to_the_receivers_own_mac_still_arrive(lab: Lab) -> None:
    """As those of a service that an earlier version started, until `niso net repair`."""
    lab.niso("net", "create", "backend", *BOTH)
    lab.niso("activate", echo(lab, "db", network=on("backend")))
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    inside = {"netns": "niso-api"}
    lab.run("sysctl", "-qw", "net.ipv4.neigh.eth0.mcast_solicit=3", **inside)
    for prefix, address in (("10.99.1.0/24", "10.99.1.2"), ("fd00:99::/64", "fd00:99::2")):
        family = "-6" if ":" in prefix else "-4"
        lab.run("ip", family, "route", "del", prefix, **inside)
        lab.run("ip", family, "route", "add", prefix, "dev", "eth0", "proto", "kernel", **inside)
        assert answers(lab, "api", address)
    entries = neighbours(lab, "api")
    assert {"10.99.1.2", "fd00:99::2"} <= entries.keys()
    assert (
        "the kernel's route to its prefix bypasses the gateway"
        in lab.niso("net", "check", check=False).stdout
    )
    lab.niso("net", "repair")
    assert_whole(lab)
    routes = lab.ip_json("route", "show", "10.99.1.0/24", netns="niso-api")
    assert [route["gateway"] for route in routes] == ["10.99.1.1"]


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


@pytest.mark.parametrize("calls", [0, 1])
def test_nobody_who_listens_on_the_bridge_makes_packets_arrive_twice(lab: Lab, calls: int) -> None:
    """A bridge hands what it switches to the host too while tcpdump listens on it (promiscuous).

    The host says nothing about the copies: no error, and no redirect.
    """
    filter_bridged(lab, calls)
    lab.niso("net", "create", "backend", *BOTH, "--internal")
    lab.niso("activate", *(idle(lab, name, network=on("backend")) for name in ("a", "b")))
    lab.run("ip", "link", "set", "niso-backend", "promisc", "on")
    with Wire(lab) as wire:
        bridge, port = wire.link(None, "niso-backend"), wire.link("niso-b", "eth0")
        back = wire.link("niso-a", "eth0")
        for family, to in ((4, "10.99.1.3"), (6, "fd00:99::3")):
            sender = wire.socket("niso-a", FAMILY[family], socket.SOCK_DGRAM)
            for number in range(5):
                sender.sendto(b"datagram %d" % number, (to, 9))
        last = b"datagram 4"
        lab.wait_for(lambda: sum(last in frame for frame in port.look()) >= 2, 5, "the last ones")
        lab.wait_for(lambda: sum(last in frame for frame in bridge.look()) >= 2, 5, "copies")
        came = [frame for frame in port.look() if b"datagram" in frame]
        asked = [frame for frame in came if frame[12:14] == b"\x08\x00" and frame[23] == 17]
        asked6 = [frame for frame in came if frame[12:14] == b"\x86\xdd" and frame[20] == 17]
        assert (len(asked), len(asked6)) == (5, 5)
        lab.run("ping", "-c", "1", "-W", "5", "10.99.1.1", netns="niso-a")
        router = bytes.fromhex(
            lab.ip_json("link", "show", "niso-backend")[0]["address"].replace(":", "")
        )
        told = [frame for frame in back.look() if frame[6:12] == router and b"datagram" in frame]
        assert not told
