"""No service takes places in the machine's neighbour table by sockets that are bound to one of its links.

For such a socket Linux takes an IPv4 address for a neighbour if no route by that link leads there: on a second link, which has no
default route, and with SO_DONTROUTE on any. On a service's links the kernel asks for none (mcast_solicit). So the entries fail at
once, and the kernel deletes such ones when it needs room. The table is the machine's: what would fill it is only sent where the
entries give way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from conftest import TESTS, Lab, assert_whole
from services import CLIENT, HOST, ask, echo, idle, pings

CODE = (TESTS / "netns" / "neighbour_attacker.py").read_text()
SUBNETS = {"one": ("10.99.1.0/24", "fd00:99:1::/64"), "two": ("10.99.2.0/24", "fd00:99:2::/64")}
GATEWAYS = {"eth0": ("10.99.1.1", "fd00:99:1::1"), "eth1": ("10.99.2.1", "fd00:99:2::1")}
WAYS = {
    4: ("udp", "tcp", "ping", "pktinfo", "dontroute", "multicast", "broadcast"),
    6: ("udp", "tcp", "ping", "pktinfo", "dontroute", "multicast", "link-local"),
}
FEW, MANY = 100, 3000  # the table has 1,024 places (gc_thresh3)
FRESH = [f"192.0.2.{number}" for number in range(20, 60)]
"""Addresses of another machine on the host's uplink, for which the host has not asked yet."""

GIVE_WAY = {"FAILED", "NOARP"}
"""States of entries that the kernel deletes when it needs room. PERMANENT ones do not count."""

both = {"network": {"networks": ["one", "two"]}}


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    with Lab(deadline_seconds=300) as lab:
        for name, subnets in SUBNETS.items():
            lab.niso("net", "create", name, *(w for each in subnets for w in ("--subnet", each)))
        lab.niso(
            "activate",
            echo(lab, "mallory", network={**both["network"], "ports": ["8080:80"]}),
            echo(lab, "peer", **both),
        )
        for address in FRESH:
            lab.run("ip", "address", "add", f"{address}/24", "dev", "eth0", netns="client")
        yield lab


def attack(
    lab: Lab, link: str, family: int, way: str, count: int, service: str = "mallory"
) -> Counter[str]:
    """Attack from within a service; return how many entries its link then has, by state."""
    words = ("/usr/bin/python3", "-ISc", CODE, link, str(family), way, str(count))
    lab.niso("exec", service, "--", *words)
    return entries(lab, f"niso-{service}", link)


def entries(lab: Lab, netns: str, link: str) -> Counter[str]:
    shown = lab.ip_json("neigh", "show", "dev", link, "nud", "all", netns=netns)
    return Counter(state for entry in shown for state in entry["state"])


def solicit(lab: Lab, value: int, netns: str = "niso-mallory") -> None:
    """Set how often the kernel asks for an IPv4 neighbour on the links of a namespace; its default is 3."""
    settings = (f"net.ipv4.neigh.{link}.mcast_solicit={value}" for link in GATEWAYS)
    lab.run("sysctl", "-qw", *settings, netns=netns)


def assert_no_attack(lab: Lab, service: str) -> None:
    for link in GATEWAYS:
        for way in ("udp", "dontroute"):
            found = attack(lab, link, 4, way, FEW, service)
            assert found.keys() - GIVE_WAY == {"PERMANENT"}, (link, way, found)
            assert found["PERMANENT"] == 2


def assert_reaches(lab: Lab) -> None:
    """Assert that mallory and peer reach each other by both links, and mallory the host and outside, both ways."""
    for family in (0, 1):
        for link, prefix in (("eth0", 1), ("eth1", 2)):
            start = (f"10.99.{prefix}.", f"fd00:99:{prefix}::")[family]
            assert pings(lab, f"{start}3", "niso-mallory") and pings(lab, f"{start}2", "niso-peer")
            assert pings(lab, GATEWAYS[link][family], "niso-mallory")
            assert pings(lab, f"{start}2")
    assert pings(lab, CLIENT, "niso-mallory") and pings(lab, "2001:db8::2", "niso-mallory")
    assert ask(lab, HOST, 8080, "client") == f"mallory {CLIENT}"


@pytest.fixture
def asks(host: Lab) -> Iterator[None]:
    """Have the kernel ask on mallory's links, as an earlier version left them."""
    solicit(host, 3)
    yield
    host.niso("net", "repair")
    host.run("ip", "neigh", "flush", "all", netns="niso-mallory")


@pytest.mark.usefixtures("asks")
@pytest.mark.parametrize(
    ("link", "way"),
    [("eth1", way) for way in WAYS[4][:5]] + [("eth0", "dontroute")],
)
def test_link_asks_for_every_address_by_default(host: Lab, link: str, way: str) -> None:
    """What the attack is, without the defence: entries that the kernel keeps for 3 s."""
    assert attack(host, link, 4, way, FEW)["INCOMPLETE"] == FEW


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("link", ["eth0", "eth1"])
def test_service_asks_for_no_address(host: Lab, link: str, family: int) -> None:
    for way in WAYS[family]:
        found = attack(host, link, family, way, FEW)
        assert found.keys() - GIVE_WAY == {"PERMANENT"}, (way, found)
        assert found["PERMANENT"] == 2, way


@pytest.mark.parametrize(("link", "way"), [("eth1", "udp"), ("eth1", "tcp"), ("eth0", "dontroute")])
def test_host_finds_neighbours_while_the_table_is_full(host: Lab, link: str, way: str) -> None:
    assert attack(host, link, 4, way, MANY)["FAILED"] > FEW
    for _ in range(3):
        assert pings(host, FRESH.pop())
        assert pings(host, FRESH.pop(), "niso-peer")
    host.run("ip", "neigh", "flush", "all", netns="niso-mallory")
    assert_reaches(host)


CONNECT = """\
import selectors, socket, sys
waits, answers, links = selectors.DefaultSelector(), {}, sys.argv[1:]
for index in range(0, len(links), 4):
    link, dont_route, address, port = links[index:index + 4]
    own = socket.socket()
    own.setblocking(False)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
    own.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, int(dont_route))
    answers[index] = own.connect_ex((address, int(port)))
    if answers[index] == 115:  # EINPROGRESS
        waits.register(own, selectors.EVENT_WRITE, index)
while waits.get_map() and (ready := waits.select(1)):
    for key, _ in ready:
        answers[key.data] = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        waits.unregister(key.fileobj)
print(*answers.values())
"""


@pytest.mark.parametrize("nf_call", ["0", "1"])
def test_what_the_attack_sends_opens_no_way(host: Lab, nf_call: str) -> None:
    """By the second link only what its gateway leads to is reached, as the routes say."""
    lab = host
    lab.niso("net", "create", "inner", "--subnet", "10.99.3.0/24", "--internal")
    lab.niso("activate", idle(lab, "inside", network={"networks": ["inner", "two"]}))
    lab.niso("activate", echo(lab, "next", network={"network": "inner"}))
    calls = "net.bridge.bridge-nf-call-iptables"
    before = lab.run("sysctl", "-n", calls).stdout.strip()
    lab.run("sysctl", "-qw", f"{calls}={nf_call}")

    def opened(*ways: tuple[str, int, str, int]) -> list[tuple[str, int, str, int]]:
        """Return those ways (link, SO_DONTROUTE, address, port) by which a connection opens."""
        words = (str(word) for way in ways for word in way)
        said = lab.niso("exec", "inside", "--", "/usr/bin/python3", "-ISc", CONNECT, *words).stdout
        return [way for way, status in zip(ways, said.split(), strict=True) if status == "0"]

    lab.wait_for(lambda: opened(("eth0", 0, "10.99.3.3", 80)), 10, "one of the same network")
    allowed = [("eth1", 0, "10.99.2.3", 80), ("eth1", 0, "10.99.2.1", 8080)]
    closed = [
        *(("eth0", CLIENT, 80), ("eth0", HOST, 8080), ("eth0", "10.99.1.3", 80)),
        *(("eth0", "10.99.3.1", 8080), ("eth1", CLIENT, 80), ("eth1", "10.99.3.3", 80)),
        ("eth1", "10.99.1.3", 80),
    ]
    ways = [(link, way, address, port) for link, address, port in closed for way in (0, 1)]
    assert opened(*allowed, *ways) == allowed
    lab.niso("remove", "inside", "next")
    lab.niso("net", "remove", "inner")
    lab.run("sysctl", "-qw", f"{calls}={before}")


def test_both_families_work_without_questions(host: Lab) -> None:
    assert_reaches(host)
    # an MTU on the way
    host.run("ip", "link", "set", "uplink0", "mtu", "1300")
    for address in (CLIENT, "2001:db8::2"):
        words = ("ping", "-c1", "-W1", "-M", "do", "-s", "1350", address)
        assert host.run(*words, netns="niso-mallory", check=False).returncode
        shown = host.ip_json("route", "get", address, netns="niso-mallory")[0]
        assert "1300" in json.dumps(shown), shown
    host.run("ip", "link", "set", "uplink0", "mtu", "1500")


def test_service_of_an_earlier_version_asks_until_its_repair(host: Lab) -> None:
    solicit(host, 3)
    found = host.niso("net", "check", check=False).stdout.splitlines()
    assert len(found) == 2 and all("mcast_solicit" in line for line in found), found
    connection = host.popen("nc", HOST, "8080", netns="client", stdin=-1, stdout=-1)
    assert connection.stdout and connection.stdin
    assert connection.stdout.readline() == f"mallory {CLIENT}\n".encode()
    host.niso("net", "repair")
    connection.stdin.write(b"still open\n")
    assert connection.stdout.readline() == b"still open\n"
    connection.terminate()
    assert_whole(host)
    assert_no_attack(host, "mallory")


def test_bridge_that_was_down_finds_services_before_its_repair(host: Lab) -> None:
    """It has lost its neighbour entries, and asks for those of IPv4."""
    host.run("ip", "link", "set", "niso-two", "down")
    host.run("ip", "link", "set", "niso-two", "up")
    assert pings(host, "10.99.2.2") and pings(host, "10.99.2.1", "niso-mallory")
    host.niso("net", "repair")
    assert_whole(host)


DAMAGES = {
    "asks": "sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=3 net.ipv4.neigh.eth1.mcast_solicit=1",
    "neighbours gone": "ip neigh flush all nud permanent; ip -6 neigh flush all nud permanent",
    "down and up": "ip link set eth1 down; ip link set eth1 up",
    "other names": "ip link set eth1 down name other; ip link set eth0 down name eth1",
    "gone": "ip link delete eth1",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("words", [("net", "repair"), ("activate", "mallory")], ids=" ".join)
def test_attack_fails_after_each_damage(host: Lab, damage: str, words: tuple[str, ...]) -> None:
    host.run("sh", "-c", DAMAGES[damage], netns="niso-mallory")
    host.niso(*words)
    assert_whole(host)
    assert_no_attack(host, "mallory")
    assert_reaches(host)


@pytest.mark.parametrize("how", [("restart",), ("deactivate", "activate")], ids=" ".join)
def test_attack_fails_after_another_start(host: Lab, how: tuple[str, ...]) -> None:
    for command in how:
        host.niso(command, "mallory")
    assert_no_attack(host, "mallory")
    host.wait_for(lambda: ask(host, HOST, 8080, "client"), 10, "mallory serves")
    assert_reaches(host)


def test_attack_fails_on_a_network_that_a_running_service_gets(host: Lab) -> None:
    lab = host
    lab.niso("activate", idle(lab, "late", network={"network": "one"}))
    lab.niso("activate", idle(lab, "late", **both))
    assert_no_attack(lab, "late")
    lab.niso("activate", idle(lab, "late", network={"networks": ["two", "one"]}))
    assert_whole(lab)
    assert_no_attack(lab, "late")
    lab.niso("remove", "late")


def test_attached_namespace_asks_for_no_address(host: Lab) -> None:
    """It is niso's pair, with niso's neighbour entries, as a service's."""
    lab = host
    lab.run("ip", "netns", "add", "blue")
    networks = ("--network", "one", "--network", "two")
    lab.niso("net", "attach", "blue", "--netns", "/run/netns/blue", *networks)
    words = ("/usr/bin/python3", "-ISc", CODE)
    for link in GATEWAYS:
        for way in ("udp", "dontroute"):
            lab.run(*words, link, "4", way, str(FEW), netns="blue")
            found = entries(lab, "blue", link)
            assert found.keys() - GIVE_WAY == {"PERMANENT"} and found["PERMANENT"] == 2
    assert_whole(lab)
    solicit(lab, 3, "blue")
    shown = lab.niso("net", "check", check=False).stdout
    assert shown.count("mcast_solicit='0' in niso-blue (value is '3', should be '0')") == 2
    lab.niso("net", "repair")
    assert_whole(lab)
    assert pings(lab, "10.99.2.3", "blue") and pings(lab, CLIENT, "blue")
    lab.niso("net", "detach", "blue")
    lab.run("ip", "netns", "delete", "blue")
