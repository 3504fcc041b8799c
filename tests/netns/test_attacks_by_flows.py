"""Test that no frame makes a flow that policies and networks have not judged.

The kernel confirms the flow of a frame that a bridge passes to the host but that is not for the host's
MAC (br_nf_local_in, net/bridge/br_netfilter_hooks.c), before any rule of `forward` has seen it. What
comes from its other end is the answer then, and established.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from services import filter_bridged, idle, on
from wire import FAMILY, Wire

MACS = ("ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "01:00:5e:00:00:01", "another port's")


@pytest.fixture
def lab_of_two() -> Iterator[Lab]:
    """Mate and web are apart: mate is on an internal network, and web denies what mate may send it."""
    with Lab() as lab:
        filter_bridged(lab, 1)
        for name, number, more in (("inner", 1, ["--internal"]), ("frontend", 2, [])):
            cidrs = (f"10.99.{number}.0/24", f"fd00:99:{number}::/64")
            lab.niso("net", "create", name, "--subnet", cidrs[0], "--subnet", cidrs[1], *more)
        closed = {"network.policy": {"allow_from": []}}
        lab.niso(
            "activate",
            idle(lab, "mate", network=on("inner"), **closed),
            idle(lab, "other", network=on("inner"), **closed),
            idle(lab, "web", network=on("frontend")),
        )
        yield lab


@pytest.mark.parametrize("to", ["web", "other"])
@pytest.mark.parametrize("family", [4, 6])
def test_flow_that_no_rule_has_judged_is_not_answered(
    lab_of_two: Lab, family: int, to: str
) -> None:
    lab = lab_of_two

    def end(name: str) -> tuple[str, str]:
        (link,) = lab.ip_json("address", "show", "eth0", netns=f"niso-{name}")
        addresses = [info["local"] for info in link["addr_info"]]
        return link["address"], next(a for a in addresses if (":" in a) == (family == 6))

    (mac, own), (_, far) = end("mate"), end(to)
    ports = [link for link in lab.ip_json("link") if link.get("master") == "niso-inner"]
    port_of_other = next(link for link in ports if link["ifname"].startswith("niother-"))
    other = port_of_other["address"]
    # niso deletes this entry, and the kernel adds it again when somebody sets the MAC
    entry = (other, "dev", port_of_other["ifname"], "master")
    lab.run("bridge", "fdb", "replace", *entry, "permanent")
    with Wire(lab) as wire:
        ends = []
        for name, address in (("mate", own), (to, far)):
            made = wire.socket(f"niso-{name}", FAMILY[family], socket.SOCK_DGRAM)
            made.bind((address, 5000))
            ends.append(made)
        mate, peer = ends
        raw = wire.link("niso-mate", "eth0")
        reached = {}
        for port, word in enumerate(MACS, 6000):
            ip = IP(src=own, dst=far) if family == 4 else IPv6(src=own, dst=far)
            frame = Ether(src=mac, dst=other if word == "another port's" else word)
            raw.send(frame / ip / UDP(sport=5000, dport=5000) / Raw(b"start"))
            for _ in range(3):
                peer.sendto(b"back %d" % port, (own, 5000))
            reached[word] = lab.observed(lambda: _received(mate), 0.5)
            while _received(mate):
                pass
            lab.run("conntrack", "-F")
        assert not any(reached.values()), reached
    lab.run("bridge", "fdb", "delete", *entry)
    assert_whole(lab)


def _received(made: socket.socket) -> bytes:
    try:
        return made.recv(100)
    except OSError:
        return b""


BROADCASTS = """
import socket, sys
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
for port in range(1, 60000, 6):
    made.sendto(b"x", ("10.99.1.255", port))
"""


def test_broadcasts_take_no_place_in_the_table_of_flows(lab_of_two: Lab) -> None:
    """A program needs no right for them, and its limit of new flows is asked after the bridge."""
    lab_of_two.run("python3", "-ISc", BROADCASTS, netns="niso-mate")
    shown = lab_of_two.run("conntrack", "-L", "-s", "10.99.1.2").stdout
    assert shown.count("\n") < 100, shown.count("\n")
