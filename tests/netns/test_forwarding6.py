"""Test IPv6 forwarding of the host: on while needed, closed for others, restored afterwards.

Each test is done with force_forwarding, and without as on kernels before Linux 6.17: there its file is masked, as
container runtimes mask files of /proc.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snapshots
from conftest import Lab, assert_whole
from samples import LONG
from services import idle, on, pings, refused

CLIENT6, BEYOND6 = "2001:db8::2", "2001:db8:1::2"
CONF = "/proc/sys/net/ipv6/conf"
WAYS = ["force_forwarding", "accept_ra"]


@pytest.fixture(params=WAYS)
def host(lab: Lab, request: pytest.FixtureRequest) -> Lab:
    """A lab host between uplink0 and far0, behind which is ``beyond``; two networks are made, no service is active."""
    lab.run("ip", "netns", "add", "beyond")
    lab.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")  # links settle at once
    for words in (
        "link add far0 type veth peer name eth0 netns beyond",
        "address add 2001:db8:1::1/64 dev far0 nodad",
        "netns exec beyond sysctl -qw net.ipv6.conf.eth0.accept_dad=0",
        "link set far0 up",
        "-n beyond address add 2001:db8:1::2/64 dev eth0 nodad",
        "-n beyond link set eth0 up",
        "-n beyond -6 route add default via 2001:db8:1::1",
        "-n client -6 route add 2001:db8:1::/64 via 2001:db8::1",
    ):
        lab.run("ip", *words.split())
    has = lab.path(f"{CONF}/default/force_forwarding").exists()
    if request.param == "force_forwarding" and not has:
        pytest.skip("this kernel is older than Linux 6.17, and has no force_forwarding")
    if request.param == "accept_ra" and has:
        lab.run("mount", "--bind", "/dev/null", f"{CONF}/default/force_forwarding")
    lab.niso("net", "create", "plain")
    lab.niso("net", "create", "dual", "--ipv6")
    return lab


def way(lab: Lab) -> str:
    return WAYS[not lab.run("cat", f"{CONF}/default/force_forwarding", check=False).stdout]


def value(lab: Lab, name: str) -> str:
    done = lab.run("cat", f"{CONF}/{name}", check=False)
    return "0" if done.returncode else str(done.stdout).strip()  # before Linux 6.17


def put(lab: Lab, name: str, to: str) -> None:
    lab.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", to, f"{CONF}/{name}")


def activate(lab: Lab, name: str, network: str) -> None:
    lab.niso("activate", idle(lab, name, network=on(network)))


def kernel_now(lab: Lab) -> dict[str, Any]:
    """All but what niso itself keeps; the lab's links do not change by being looked at."""
    return snapshots.take(lab) | {"store": None, "files": None}


def ends(lab: Lab, name: str) -> None:
    lab.niso("deactivate", name)


def swept(lab: Lab, _: str) -> None:
    lab.niso("reset", "--yes")
    lab.niso("net", "repair")


def refused_late(lab: Lab, name: str) -> None:
    """The activation that was the first is undone: here by a second one of a service that ends at once."""
    ends(lab, name)
    said = refused(
        lab, "activate", idle(lab, "bad", network=on("dual"), binary={"args": ["false"]})
    )
    assert "bad" in said


ENDS = (ends, swept, refused_late)
OWN = ("", "far0", "default")


@pytest.mark.parametrize(
    ("host", "end", "own"),
    [
        (way, end, own)
        for i, way in enumerate(WAYS)
        for j, end in enumerate(ENDS)
        for k, own in enumerate(OWN)
        if LONG or k == (i + j) % 3  # each way with each end, and each own link with both ways
    ],
    indirect=["host"],
)
def test_all_is_as_it_was_after_the_last_service(
    host: Lab, end: Callable[[Lab, str], None], own: str
) -> None:
    """``own``: a link that the administrator has made a router's by itself keeps that, and no other gets it."""
    what = "force_forwarding" if way(host) == "force_forwarding" else "forwarding"
    if own:
        host.niso("net", "remove", "dual", "plain")  # a bridge begins with the default
        put(host, f"{own}/{what}", "1")
        host.niso("net", "create", "plain")
        host.niso("net", "create", "dual", "--ipv6")
    before = kernel_now(host)
    activate(host, "api", "dual")
    assert pings(host, CLIENT6, "niso-api")
    assert_whole(host)
    end(host, "api")
    assert snapshots.differences(before, kernel_now(host)) == []
    assert_whole(host)


def test_ipv6_goes_back_with_its_last_service_while_others_stay(host: Lab) -> None:
    """Meanwhile another program ends it, which is found and mended."""
    activate(host, "plain", "plain")
    before = kernel_now(host)
    activate(host, "one", "dual")
    activate(host, "two", "dual")
    put(host, "all/forwarding", "0")
    assert not pings(host, CLIENT6, "niso-two")
    said = host.niso("net", "check", check=False).stdout
    assert "force_forwarding" in said or "all/forwarding" in said
    host.niso("net", "repair")
    assert_whole(host)
    ends(host, "one")
    assert pings(host, CLIENT6, "niso-two")
    assert_whole(host)
    ends(host, "two")
    assert snapshots.differences(before, kernel_now(host)) == []
    # and what another program changes from then on is its own
    put(host, "all/forwarding", "1")
    assert_whole(host)
    ends(host, "plain")
    assert value(host, "all/forwarding") == "1"


def test_what_concerns_no_niso_bridge_is_routed_only_if_it_was_before(host: Lab) -> None:
    assert not pings(host, BEYOND6, "client")
    activate(host, "api", "dual")
    assert pings(host, CLIENT6, "niso-api")
    assert not pings(host, BEYOND6, "client") and not pings(host, CLIENT6, "beyond")
    ends(host, "api")
    put(host, "all/forwarding", "1")
    before = kernel_now(host)
    assert pings(host, BEYOND6, "client")
    activate(host, "api", "dual")
    assert pings(host, CLIENT6, "niso-api")
    assert pings(host, BEYOND6, "client") and pings(host, CLIENT6, "beyond")
    assert value(host, "far0/accept_ra") == "1"
    ends(host, "api")
    assert snapshots.differences(before, kernel_now(host)) == []


def bring(lab: Lab, name: str, number: int, *kind: str) -> None:
    """Create a link that leads to the namespace endNUMBER, with 198.51.NUMBER.0/24 and 2001:db8:NUMBER::/64.

    ``kind`` are the words that create it if it is not a veth pair: its port is then one.
    """
    end, port = f"end{number}", f"{name}p" if kind else name
    words = [
        f"netns add {end}",
        f"link add {port} type veth peer name eth0 netns {end}",
        f"link set {port} up",
        *(
            (f"link add {name} {' '.join(kind)}", f"link set {port} master {name}")
            if kind[:2] == ("type", "bridge")
            else ()
        ),
        f"address add 198.51.{number}.1/24 dev {name}",
        f"address add 2001:db8:{number}::1/64 dev {name} nodad",
        f"link set {name} up",
        f"-n {end} address add 198.51.{number}.2/24 dev eth0",
        f"-n {end} address add 2001:db8:{number}::2/64 dev eth0 nodad",
        f"-n {end} link set eth0 up",
        f"-n {end} route add default via 198.51.{number}.1",
        f"-n {end} -6 route add default via 2001:db8:{number}::1",
    ]
    for line in words:
        lab.run("ip", *line.split())


def passing(lab: Lab, *numbers: int) -> list[tuple[int, int, str]]:
    """Return the pings between the ends of `bring`, (from, to, IP version), whose answer arrives."""
    found = []
    for source in numbers:
        for to in numbers:
            for version, address in (("4", f"198.51.{to}.2"), ("6", f"2001:db8:{to}::2")):
                if source != to and pings(lab, address, f"end{source}"):
                    found.append((source, to, version))
    return found


@pytest.mark.first
def test_links_that_existed_before_stay_closed_and_later_ones_are_open(host: Lab) -> None:
    """A machine with two uplinks does not become a router; bridges and tunnels that come later work."""
    host.run("sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.ip_forward=0")
    bring(host, "a1", 41)
    bring(host, "a2", 42, "type", "bridge")
    activate(host, "api", "dual")
    assert passing(host, 41, 42) == []
    # a former link keeps its index when it is renamed, and its name when it is created again
    host.run("ip", "link", "set", "a1", "down")
    host.run("ip", "link", "set", "a1", "name", "new1")
    for line in (
        "link set new1 up",
        "address add 2001:db8:41::1/64 dev new1 nodad",
        "link delete a2",
        "link delete a2p",
        "netns delete end42",
    ):
        host.run("ip", *line.split())
    bring(host, "a2", 42, "type", "bridge")
    assert passing(host, 41, 42) == []
    # a bridge, and a pair that a program moved into a namespace, are for somebody who forwards
    bring(host, "b1", 43, "type", "bridge")
    bring(host, "b2", 44)
    later = [
        (source, to, version)
        for source in (41, 42, 43, 44)
        for to in (41, 42, 43, 44)
        for version in "46"
        if source != to and {source, to} != {41, 42}
    ]
    assert passing(host, 41, 42, 43, 44) == later
    assert "came after" in host.niso("net", "explain", "198.51.41.2", "198.51.43.2").stdout
    assert (
        "did not forward"
        in host.niso("net", "explain", "198.51.41.2", "198.51.42.2", check=False).stdout
    )
    assert_whole(host)
    # a later macvlan leads to the same wire as its link: like a new network card, it stays closed
    for line in (
        "link add link new1 name card1 type macvlan mode bridge",
        "address flush dev new1",
        "link set card1 up",
        "address add 198.51.41.1/24 dev card1",
        "address add 2001:db8:41::1/64 dev card1 nodad",
        "-n end41 neighbour flush dev eth0",
    ):
        host.run("ip", *line.split())
    assert passing(host, 41, 42) == []
    assert pings(host, "198.51.43.2", "end41") and pings(host, "2001:db8:43::2", "end41")
    # a bridge needs forwarding: it stays on, and the former links stay closed
    ends(host, "api")
    assert host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "1\n"
    assert passing(host, 41, 42) == []
    assert pings(host, "198.51.43.2", "end41")
    activate(host, "api", "dual")
    assert passing(host, 41, 42) == []
    assert_whole(host)
    host.run("ip", "link", "delete", "b1")
    ends(host, "api")
    assert host.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "0\n"


def test_link_that_comes_later_works_and_is_as_others_afterwards(host: Lab) -> None:
    activate(host, "api", "dual")
    for words in (
        "link add late0 type veth peer name eth1 netns beyond",
        "address add 2001:db8:2::1/64 dev late0 nodad",
        "link set late0 up",
        "-n beyond address add 2001:db8:2::2/64 dev eth1 nodad",
        "-n beyond link set eth1 up",
    ):
        host.run("ip", *words.split())
    assert pings(host, "2001:db8:2::2", "niso-api")
    host.niso("net", "create", "later", "--ipv6")
    activate(host, "second", "later")
    assert pings(host, CLIENT6, "niso-second")
    assert_whole(host)
    ends(host, "api")
    ends(host, "second")
    for name in ("forwarding", "accept_ra", "force_forwarding"):
        assert (
            value(host, f"late0/{name}")
            == value(host, f"far0/{name}")
            == ("1" if name == "accept_ra" else "0")
        )
        assert value(host, f"niso-later/{name}") == value(host, f"far0/{name}")
    # links that go are in nobody's way
    activate(host, "api", "dual")
    host.run("ip", "link", "del", "far0")
    assert_whole(host)
    host.niso("activate", "second")
    host.run("ip", "link", "del", "niso-later")
    host.niso("net", "repair")
    assert pings(host, CLIENT6, "niso-second")
    assert_whole(host)
    host.niso("remove", "second", "api")
    host.niso("net", "remove", "later", "dual")
    assert value(host, "all/forwarding") == value(host, "uplink0/force_forwarding") == "0"
    assert value(host, "uplink0/accept_ra") == "1"


def sysctls_of_others(lab: Lab) -> dict[str, str]:
    """The host's, but for those of niso's own links."""
    found = snapshots.take(lab)["in the host"]["sysctls"]
    return {name: value for name, value in found.items() if "/niso-" not in name}


def test_sweep_without_a_store_puts_sysctls_back(host: Lab) -> None:
    """What they were is in the kernel too, also of a link that came later; far0 had its own before."""
    put(host, "far0/force_forwarding" if way(host) == "force_forwarding" else "far0/accept_ra", "1")
    before = sysctls_of_others(host)
    activate(host, "api", "dual")
    assert sysctls_of_others(host) != before
    host.run("ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    host.run("sh", "-c", "rm -rf /var/lib/niso/*")
    host.niso("reset", "--yes")
    for name in ("forwarding", "accept_ra", "force_forwarding"):
        assert value(host, f"late0/{name}") == (value(host, f"default/{name}") or "0"), name
    host.run("ip", "link", "delete", "late0")
    assert snapshots.differences(before, sysctls_of_others(host)) == []


ADVERTISE = """\
import socket, struct, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, int(sys.argv[1]), 0, 0), ("ff02::1", 0))
"""
"""A router advertisement (RFC 4861, 4.2) with a lifetime in seconds; the kernel fills in the checksum."""


def learned(lab: Lab) -> list[int]:
    """Return the lifetimes (s) of the host's default routes from router advertisements."""
    return [
        route["expires"]
        for route in lab.ip_json("-6", "route", "show", "default")
        if route.get("protocol") == "ra"
    ]


def test_host_keeps_its_route_from_router_advertisements_and_hears_more(host: Lab) -> None:
    host.run("ip", "-6", "route", "del", "default")
    host.client("python3", "-ISc", ADVERTISE, "600")
    host.wait_for(lambda: learned(host), 10, "a route from the advertisement")
    activate(host, "api", "dual")
    assert 0 < learned(host)[0] <= 600
    host.run("ip", "-n", "client", "address", "add", "2001:db8:9::9/128", "dev", "lo")
    assert pings(host, "2001:db8:9::9", "niso-api")
    host.client("python3", "-ISc", ADVERTISE, "1800")
    host.wait_for(lambda: learned(host) and learned(host)[0] > 600, 10, "the second advertisement")
    ends(host, "api")
    assert learned(host)[0] > 600
    host.client("python3", "-ISc", ADVERTISE, "3600")
    host.wait_for(lambda: learned(host) and learned(host)[0] > 1800, 10, "the third advertisement")
