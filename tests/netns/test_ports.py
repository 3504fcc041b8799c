"""Test published TCP ports and isolation with packets from clients, the host and services."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from conftest import Lab
from samples import SLOW
from services import (
    BRIDGE_CALLS,
    CLIENT,
    HOST,
    NEIGHBOUR,
    address,
    answer,
    ask,
    echo,
    filter_bridged,
    idle,
    on,
    pings,
    seen_source,
)

BACKEND, FRONTEND = "10.99.1.0/24", "10.99.2.0/24"


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """A host with two networks: api (published on 8080) and db on backend, web (published on 8081) on frontend.

    The tests that share it only send packets.
    """
    with Lab(deadline_seconds=900) as lab:
        lab.niso("net", "create", "backend", "--subnet", BACKEND)
        lab.niso("net", "create", "frontend", "--subnet", FRONTEND)
        raw = {"isolation": {"capabilities": ["NET_RAW"]}}
        lab.niso(
            "activate",
            echo(lab, "api", network=on("backend", ports=["8080:80"])),
            echo(lab, "db", network=on("backend"), **raw),
            echo(lab, "web", network=on("frontend", ports=["8081:80"])),
        )
        for name in ("api", "db", "web"):
            answer(lab, address(lab, name), 80)
        yield lab


WATCH = r"""
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 0))
print("ready", flush=True)
seconds = float(sys.argv[2])
while select.select([s], [], [], seconds)[0]:
    frame, (_, _, kind, *_) = s.recvfrom(2048)
    if kind != 4 and bytes.fromhex(sys.argv[3]) in frame:
        print(frame.hex(), flush=True)
"""


def dropped(lab: Lab, words: str) -> int:
    """Return the packets counted by rules whose comment contains this text."""
    return sum(
        part["counter"]["packets"]
        for thing in lab.nft_json()
        if "rule" in thing and words in thing["rule"].get("comment", "")
        for part in thing["rule"]["expr"]
        if "counter" in part
    )


# --- ways in ----------------------------------------------------------------------------------------------------------


@pytest.mark.rootless
@pytest.mark.parametrize("who", ["client", "neighbour"])
def test_other_machine_reaches_a_published_port_and_the_service_sees_its_address(
    shop: Lab, who: str
) -> None:
    assert ask(shop, HOST, 8080, who) == f"api {CLIENT if who == 'client' else NEIGHBOUR}"


@pytest.mark.rootless
def test_host_reaches_a_published_port_by_its_own_addresses_and_by_loopback(shop: Lab) -> None:
    assert ask(shop, HOST, 8080) == f"api {HOST}"
    assert ask(shop, "10.99.1.1", 8080) == "api 10.99.1.1"
    assert ask(shop, "127.0.0.1", 8080) == "api 10.99.1.1"  # a service cannot answer to 127.0.0.1
    assert ask(shop, "127.0.0.77", 8080) == "api 10.99.1.1"


@pytest.mark.rootless
def test_host_reaches_every_service_by_its_address(shop: Lab) -> None:
    for name in ("api", "db", "web"):
        assert ask(shop, address(shop, name), 80).startswith(f"{name} 10.99.")


@pytest.mark.rootless
def test_service_reaches_a_published_port_by_the_hosts_address(shop: Lab) -> None:
    assert ask(shop, HOST, 8081, "niso-api") == f"web {address(shop, 'api')}"
    assert ask(shop, HOST, 8080, "niso-db") == f"api {address(shop, 'db')}"


@pytest.mark.rootless
def test_services_of_a_network_reach_each_other_by_name_and_address(shop: Lab) -> None:
    assert ask(shop, address(shop, "db"), 80, "niso-api") == f"db {address(shop, 'api')}"
    done = shop.niso(
        "exec", "api", "--", "busybox", "nc", "-w", "2", "db.niso.local", "80", input=""
    )
    assert done.stdout.strip() == f"db {address(shop, 'api')}"


@pytest.mark.rootless
def test_service_reaches_out_as_the_host(shop: Lab) -> None:
    assert seen_source(shop, "niso-db", CLIENT) == HOST


@pytest.mark.rootless
def test_no_process_of_niso_listens_for_published_ports(shop: Lab) -> None:
    found = shop.run("ss", "-Hltn").stdout
    assert found == ""


# --- nothing else in --------------------------------------------------------------------------------------------------


def test_other_machine_with_a_route_reaches_no_service_but_by_published_ports(shop: Lab) -> None:
    shop.run("ip", "route", "replace", "10.99.0.0/16", "via", HOST, netns="neighbour")
    before = dropped(shop, "not published")
    for name in ("api", "db", "web"):
        assert ask(shop, address(shop, name), 80, "neighbour") == ""
    assert dropped(shop, "not published") > before
    assert (
        "100% packet loss"
        in shop.neighbour("ping", "-c1", "-W1", address(shop, "api"), check=False).stdout
    )
    assert ask(shop, HOST, 80, "neighbour") == ""
    assert ask(shop, HOST, 8080, "neighbour") == f"api {NEIGHBOUR}"


def test_services_of_different_networks_do_not_reach_each_other(shop: Lab) -> None:
    for source, target in (("api", "web"), ("web", "api"), ("web", "db")):
        assert ask(shop, address(shop, target), 80, f"niso-{source}") == ""
        ping = shop.run(
            "ping", "-c1", "-W1", address(shop, target), netns=f"niso-{source}", check=False
        )
        assert "100% packet loss" in ping.stdout


def test_service_does_not_reach_loopback_of_the_host(shop: Lab) -> None:
    """127.0.0.1:9 of the host listens; the service sends to it over its gateway, as route_localnet would let in."""
    server = "import socket; s = socket.create_server(('127.0.0.1', 9)); print(1, flush=True)\nwhile True:\n    s.accept()[0].sendall(b'loopback')"
    listener = shop.popen("python3", "-ISc", server)
    assert listener.stdout and listener.stdout.readline() == b"1\n"
    for netns, gateway in (("niso-web", "10.99.2.1"), ("neighbour", HOST)):
        shop.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo", netns=netns)
        shop.run("ip", "route", "add", "127.0.0.0/8", "via", gateway, netns=netns)
        try:
            shop.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1", netns=netns)
            before = dropped(shop, "loopback from a wire")
            assert ask(shop, "127.0.0.1", 9, netns) == ""
            assert dropped(shop, "loopback from a wire") > before, (
                "the packet never came to the host"
            )
        finally:
            shop.run("ip", "route", "del", "127.0.0.0/8", "via", gateway, netns=netns)
            shop.run("ip", "address", "add", "127.0.0.1/8", "dev", "lo", netns=netns)
    assert ask(shop, "127.0.0.1", 9) == "loopback"
    listener.kill()


def test_source_address_of_a_niso_subnet_is_not_believed_from_the_wire(shop: Lab) -> None:
    """The neighbour sends as db to the published port; without the rule the host would take it for db."""
    shop.run("ip", "address", "add", "10.99.1.77/32", "dev", "lo", netns="neighbour")
    before = dropped(shop, "a service's address from elsewhere")
    watch = shop.popen(
        "python3",
        "-ISc",
        WATCH,
        "eth0",
        "1",
        socket.inet_aton("10.99.1.77").hex(),
        netns="niso-api",
    )
    assert watch.stdout and watch.stdout.readline() == b"ready\n"
    send = "import socket; s = socket.socket(); s.settimeout(1); s.bind((%r, 0)); s.connect_ex((%r, 8080))"
    shop.neighbour("python3", "-ISc", send % ("10.99.1.77", HOST))
    assert watch.communicate()[0] == ""
    assert dropped(shop, "a service's address from elsewhere") > before


# --- from inside, with raw sockets ------------------------------------------------------------------------------------

RAW = r"""
import socket, struct, sys
own_mac, own_ip, gw_mac, gw_ip, kind = sys.argv[1:]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
ip = socket.inet_aton
def ether(src, kind, dst=mac(gw_mac)):
    return dst + src + struct.pack("!H", kind)
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
def udp(source):
    body = struct.pack("!HHHH", 4444, 5555, 12, 0) + b"spam"
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0, ip(source), ip(gw_ip))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body
def arp(sender_mac, sender_ip, op=2):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, op, sender_mac, ip(sender_ip), mac(gw_mac), ip(gw_ip))
me, evil = mac(own_mac), mac("02:66:66:66:66:66")
frames = {
    "own address": ether(me, 0x0800) + udp(own_ip),
    "another's IPv4": ether(me, 0x0800) + udp("10.99.1.2"),
    "an outside IPv4": ether(me, 0x0800) + udp("198.51.100.1"),
    "another MAC": ether(evil, 0x0800) + udp(own_ip),
    "a VLAN-0 tag": ether(me, 0x8100) + struct.pack("!HH", 0, 0x0800) + udp("10.99.1.2"),
    "own ARP": ether(me, 0x0806) + arp(me, own_ip),
    "ARP for another's address": ether(me, 0x0806) + arp(me, "10.99.1.2"),
    "ARP for the gateway": ether(me, 0x0806) + arp(me, gw_ip),
    "ARP with another MAC inside": ether(me, 0x0806) + arp(evil, own_ip),
    "ARP with another MAC outside": ether(evil, 0x0806) + arp(me, own_ip),
    "IPv6": ether(me, 0x86DD) + struct.pack("!IHBB", 6 << 28, 0, 59, 64) + bytes(32),
    "another frame type": ether(me, 0x88B5) + b"hello" * 10,
}
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for _ in range(3):
    s.send(frames[kind] + b"spam")  # padding, by which the watcher knows it
"""


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        ("own address", True),
        ("own ARP", True),
        ("another's IPv4", False),
        ("an outside IPv4", False),
        ("another MAC", False),
        ("a VLAN-0 tag", False),
        ("ARP for another's address", False),
        ("ARP for the gateway", False),
        ("ARP with another MAC inside", False),
        ("ARP with another MAC outside", False),
        ("IPv6", False),
        ("another frame type", False),
    ],
)
def test_service_with_raw_sockets_sends_nothing_but_its_own(
    shop: Lab, kind: str, passes: bool
) -> None:
    """Watched on the bridge, where the host receives what the port has let through."""
    watch = shop.popen("python3", "-ISc", WATCH, "niso-backend", str(SLOW), b"spam".hex())
    assert watch.stdout and watch.stdout.readline() == b"ready\n"
    inner = shop.ip_json("link", "show", "eth0", netns="niso-db")[0]["address"]
    gateway = shop.ip_json("link", "show", "niso-backend")[0]["address"]
    before = dropped(shop, "not its own address")
    arguments = (inner, address(shop, "db"), gateway, "10.99.1.1", kind)
    shop.niso("exec", "db", "--", "/usr/bin/python3", "-ISc", RAW, *arguments)
    after = dropped(shop, "not its own address")
    assert len(watch.communicate()[0].splitlines()) == (3 if passes else 0)
    assert after - before == (0 if passes else 3)


def test_broadcast_and_multicast_pass_between_no_services(shop: Lab) -> None:
    listen = (
        "import socket, struct\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\ns.bind(('', 6000))\n"
        "s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack('4s4s', socket.inet_aton('239.1.1.1'), bytes(4)))\n"
        "print('ready', flush=True)\ns.settimeout(1.5)\n"
        "while True:\n    print(s.recv(100).decode(), flush=True)\n"
    )
    send = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n"
        "for to in ('255.255.255.255', '10.99.1.255', '239.1.1.1', '{db}'):\n    s.sendto(to.encode(), (to, 6000))\n"
    )
    listener = shop.popen("python3", "-ISc", listen, netns="niso-db", stderr=-3)
    assert listener.stdout and listener.stdout.readline() == b"ready\n"
    shop.run("python3", "-ISc", send.format(db=address(shop, "db")), netns="niso-api")
    assert listener.communicate()[0].split() == [address(shop, "db")]


# --- with a host of its own -------------------------------------------------------------------------------------------


def test_established_connection_lives_on_when_its_port_goes(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    answer(lab, HOST, 8080, "client")
    talk = "import socket, sys; s = socket.create_connection(('192.0.2.1', 8080)); f = s.makefile('rw')\nfor line in sys.stdin:\n    f.write(line); f.flush(); print(f.readline(), end='', flush=True)\n"
    connection = lab.popen("python3", "-ISuc", talk, netns="client", stdin=-1)
    assert connection.stdin and connection.stdout
    connection.stdin.write(b"one\n")
    assert connection.stdout.readline() == f"api {CLIENT}\n".encode()
    lab.niso("activate", echo(lab, "api", network={"ports": ["8081:80"]}))
    assert ask(lab, HOST, 8080, "client") == ""
    connection.stdin.write(b"two\n")
    assert connection.stdout.readline() == b"one\n"
    connection.kill()


@pytest.mark.parametrize("forwarded_before", [False, True])
def test_foreign_traffic_is_routed_only_if_it_was_before(lab: Lab, forwarded_before: bool) -> None:
    """The client routes a second net over the host to the neighbour: no niso bridge is concerned."""
    if forwarded_before:
        lab.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.run("ip", "address", "add", "198.51.100.3/32", "dev", "lo", netns="neighbour")
    lab.run("ip", "route", "add", "198.51.100.3", "via", NEIGHBOUR)
    lab.run("ip", "route", "add", "198.51.100.3", "via", HOST, netns="client")
    lab.run("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0", netns="client")
    lab.run(
        "sysctl",
        "-qw",
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.uplink0.send_redirects=0",
    )

    def passes() -> bool:
        return lab.client("ping", "-c1", "-W1", "198.51.100.3", check=False).returncode == 0

    assert passes() is forwarded_before
    lab.niso("activate", idle(lab, "api"))
    assert lab.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    assert passes() is forwarded_before
    lab.niso("deactivate", "api")
    assert passes() is forwarded_before


@pytest.mark.parametrize("nf_call", ["0", "1"])
def test_frames_of_a_foreign_bridge_are_untouched(lab: Lab, nf_call: str) -> None:
    """Two machines on somebody's bridge, with addresses that niso also uses, while forwarding is on for niso alone."""
    lab.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={nf_call}")
    lab.run("ip", "link", "add", "br-other", "type", "bridge")
    lab.run("ip", "link", "set", "br-other", "up")
    for number in (1, 2):
        lab.run("ip", "netns", "add", f"m{number}")
        lab.run(
            "ip",
            "link",
            "add",
            f"m{number}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"m{number}",
        )
        lab.run("ip", "link", "set", f"m{number}", "master", "br-other", "up")
        lab.run("ip", "address", "add", f"172.20.0.{number}/24", "dev", "eth0", netns=f"m{number}")
        lab.run("ip", "link", "set", "eth0", "up", netns=f"m{number}")
    lab.niso("activate", idle(lab, "api"))
    assert seen_source(lab, "m1", "172.20.0.2", server="m2") == "172.20.0.1"
    assert lab.run(
        "ping", "-c1", "-W1", "-b", "172.20.0.255", netns="m1", check=False
    ).returncode in (0, 1)
    assert pings(lab, "172.20.0.2", "m1")
    # and so are the marks of another firewall, whose bits are also niso's
    lab.run("ip", "address", "add", "172.20.0.3/24", "dev", "br-other")
    mark, counted = "meta mark set 0x44000000", "iifname br-other meta mark 0x44000000 counter"
    lab.run(
        "nft",
        f"table bridge other {{ chain c {{ type filter hook prerouting priority -310; {mark}; }}; }}",
    )
    lab.run(
        "nft",
        f"table inet other {{ chain c {{ type filter hook input priority 0; {counted}; }}; }}",
    )
    assert pings(lab, "172.20.0.3", "m1")
    assert "packets 0 " not in lab.run("nft", "list", "table", "inet", "other").stdout


def test_global_bridge_sysctls_stay_as_found(lab: Lab) -> None:
    for value in (0, 1):
        filter_bridged(lab, value)
        lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}), echo(lab, "db"))
        assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
        assert answer(lab, address(lab, "db"), 80, "niso-api") == f"db {address(lab, 'api')}"
        kept = lab.run(
            "sysctl", "-n", *(f"net.bridge.bridge-nf-call-{name}" for name in BRIDGE_CALLS)
        )
        assert kept.stdout.split() == [str(value)] * 3
        lab.niso("deactivate", "--all")
