"""Test recovery of flushed rules: one transaction restores them, and flows get their NAT again."""

from __future__ import annotations

import re

import pytest
from conftest import Lab, Process
from generations import Generations
from samples import LONG
from services import CLIENT, HOST, idle, on, package, pings, unfilter

SERVER = """\
import contextlib, socket, sys
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    data, peer = server.recvfrom(2048)
    with contextlib.suppress(OSError):  # no way there
        server.sendto(data + b" " + peer[0].encode(), peer)
"""
"""Tells each datagram back, with the address that it seems to come from."""

TALK = """\
import socket, sys
talker = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
talker.bind(("", int(sys.argv[3])))
talker.settimeout(float(sys.argv[4]))
for line in sys.stdin:
    word = line.strip()
    talker.sendto(word.encode(), (sys.argv[1], int(sys.argv[2])))
    answer = ""
    try:
        while not answer.startswith(f"{word} "):  # else a late answer to an earlier word
            answer = talker.recv(2048).decode()
        print(answer, flush=True)
    except OSError:
        print("-", flush=True)
"""

HOST6, CLIENT6 = "2001:db8::1", "2001:db8::2"

OTHERS = """\
table inet other {
	chain nat { type nat hook prerouting priority 0; }
	chain seen { type filter hook prerouting priority 0; ct state established accept; }
	chain out { type nat hook postrouting priority 0; }
}
"""
"""Somebody else's NAT: connection tracking goes on without niso's rules."""

DAMAGE = {
    "flush": "flush ruleset",
    "inet table": "delete table inet niso",
    "bridge table": "delete table bridge niso",
    "reload": f"flush ruleset\n{OTHERS}",
}


class Talker:
    """A UDP client that keeps its socket."""

    def __init__(
        self, lab: Lab, netns: str | None, to: tuple[str, int], port: int, seconds: float = 0.5
    ) -> None:
        arguments = (to[0], str(to[1]), str(port), str(seconds))
        self._process: Process = lab.popen(
            "python3", "-ISuc", TALK, *arguments, netns=netns, stdin=-1
        )

    def ask(self, word: str) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(word.encode() + b"\n")
        return str(self._process.stdout.readline().decode().strip())


@pytest.fixture
def host(lab: Lab) -> Lab:
    """api answers on UDP 7000, the client on UDP 6000; somebody else has NAT rules too."""
    lab.run("nft", "-f", "-", input=OTHERS)
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:1::/64")
    files = {"server.py": SERVER}
    command = ("/usr/bin/python3", "-ISu", "/app/server.py", "::", "7000")
    lab.niso(
        "activate",
        package(lab, "api", *command, files=files, network=on("backend", ports=["7000:7000/udp"])),
    )
    outside = lab.popen("python3", "-ISuc", SERVER, "0.0.0.0", "6000", netns="client")
    assert outside.stdout and outside.stdout.readline() == b"ready\n"
    first = Talker(lab, "client", (HOST, 7000), 4999)
    lab.wait_for(lambda: first.ask("hello") != "-", 10, "api")
    return lab


def entry(lab: Lab, port: int) -> str:
    """The number of the tracked flow that began at this port."""
    found = lab.run("conntrack", "-L", "-o", "id", "-p", "udp", f"--sport={port}").stdout
    return str(found.rpartition("id=")[2].split()[0])


def _without_nat(lab: Lab, port: int) -> bool:
    """Whether the flow from this port is tracked, and its answer is its reverse."""
    found = "".join(
        lab.run("conntrack", "-L", "-f", family, "-p", "udp", f"--sport={port}").stdout
        for family in ("ipv4", "ipv6")
    )
    ends = re.findall(r"(?:src|dst)=(\S+)", found)
    return len(ends) == 4 and ends[:2] == ends[:1:-1]


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        *((damage, "repair") for damage in DAMAGE),
        *((damage, "activate") for damage in DAMAGE if LONG or damage == "reload"),
    ],
)
def test_rules_come_back_in_one_transaction_and_flows_get_their_nat(
    host: Lab, damage: str, how: str
) -> None:
    right = Talker(host, "client", (HOST, 7000), 5000)
    seen = f"::ffff:{CLIENT}"
    assert right.ask("before") == f"before {seen}"
    number = entry(host, 5000)
    host.run("nft", "-f", "-", input=DAMAGE[damage])
    inwards = Talker(host, "client", (HOST, 7000), 5001)
    inwards6 = Talker(host, "client", (HOST6, 7000), 5003)
    outwards = Talker(host, "niso-api", (CLIENT, 6000), 5002)
    loopback = Talker(host, None, ("127.0.0.1", 7000), 5004)
    away = [each.ask("away") for each in (inwards, inwards6, outwards, loopback)]
    assert away == ["-"] * 4 or damage == "bridge table", away
    if damage in ("inet table", "reload"):  # else nobody tracks meanwhile
        assert [_without_nat(host, port) for port in (5001, 5002, 5003, 5004)] == [True] * 4
    generations = Generations(host)
    if how == "repair":
        assert host.niso("net", "repair").stdout.startswith("repaired: ")
    else:
        host.niso(
            "activate",
            idle(host, "other", network={"mode": "none"}),
            idle(host, "new", network=on("backend")),
        )
    touched = [lines for lines in generations.since() if any(" niso" in line for line in lines)]
    # a new service is made after the rules, and their version's mark after it
    marks = [line for lines in touched[1:] for line in lines]
    assert len(touched) == (1 if how == "repair" else 2), [lines[:4] for lines in touched]
    assert all(" owner { " in line for line in marks if " niso" in line), marks
    assert inwards.ask("now") == f"now {seen}"
    # the service may have to resolve its gateway again, once a second (see "Networking" in open.md)
    host.wait_for(lambda: inwards6.ask("now") == f"now {CLIENT6}", 5, "an answer by IPv6")
    assert outwards.ask("now") == f"now {HOST}"
    assert loopback.ask("now").startswith("now ::ffff:10.99.1.1")
    assert right.ask("now") == f"now {seen}"
    assert entry(host, 5000) == number
    assert host.niso("net", "check").returncode == 0


def test_many_elements_come_back_in_two_transactions_of_which_the_first_has_no_effect(
    host: Lab,
) -> None:
    wide = on("backend", ports=["20000-20599:10000-10599/udp"])
    host.niso("activate", idle(host, "wide", network=wide))
    host.run("nft", "flush", "ruleset")
    generations = Generations(host)
    steps = {"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": "/tmp/steps"}
    host.niso("net", "repair", env=steps)
    touched = [lines for lines in generations.since() if any(" niso" in line for line in lines)]
    assert len(touched) == 2, [lines[:4] for lines in touched]
    assert host.niso("net", "check").returncode == 0
    names = host.path("/tmp/steps").read_text()
    (at,) = re.findall(r"(?m)^(\d+) add \d+ elements to the new nftables tables", names)
    # killed between the two, the host is as without rules, and the next change completes them
    host.run("nft", "flush", "ruleset")
    host.niso("net", "repair", env={"NISO_FAILPOINT": f"{at}:kill"}, check=False)
    assert host.run("nft", "list", "ruleset").stdout.count("flags dormant") == 2
    assert Talker(host, "client", (HOST, 7000), 5001).ask("away") == "-"
    assert Talker(host, None, ("10.99.1.2", 7000), 5002).ask("near").startswith("near ")
    host.niso("activate", idle(host, "new", network=on("backend")))
    assert "flags dormant" not in host.run("nft", "list", "ruleset").stdout
    assert Talker(host, "client", (HOST, 7000), 5003).ask("now").startswith("now ")
    assert host.niso("net", "check").returncode == 0


def test_iptables_restore_leaves_nisos_rules_alone(host: Lab) -> None:
    generations = Generations(host)
    rules = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 1 -j REDIRECT\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    for _ in range(2):
        host.run("iptables-restore", input=rules)
    assert host.niso("net", "check").returncode == 0
    assert host.niso("net", "repair").stdout == "nothing to repair\n"
    assert not [line for lines in generations.since() for line in lines if " niso" in line]


def arrived(lab: Lab) -> int:
    """Return how many datagrams, TCP segments and echo requests of others the namespace of api has received."""
    text = lab.run("cat", "/proc/net/snmp", "/proc/net/snmp6", netns="niso-api").stdout
    found = dict(re.findall(r"^(Udp6?(?:In\w+|NoPorts)|Icmp6InEchos)\s+(\d+)$", text, re.M))
    for name, wanted in (
        ("Udp", ("InDatagrams", "NoPorts")),
        ("Tcp", ("InSegs",)),
        ("Icmp", ("InEchos",)),
    ):
        heads, values = re.findall(rf"^{name}: (.+)$", text, re.M)
        row = dict(zip(heads.split(), values.split(), strict=True))
        found |= {name + each: row[each] for each in wanted}
    return sum(map(int, found.values()))


@pytest.mark.parametrize(
    ("damage", "guard"),
    [(damage, "filter") for damage in ("flush", "inet table", "reload")] + [("flush", "rules")],
)
def test_nothing_from_outside_arrives_while_all_rules_are_flushed(
    host: Lab, damage: str, guard: str
) -> None:
    """A machine with routes to the subnets reaches no service: the bridge's filter drops its packets.

    Where the kernel has no filters, routing rules refuse them.
    """
    api, api6 = "10.99.1.2", "fd00:1::2"
    rules = "ip rule; ip -6 rule"
    if guard == "filter":
        assert "proto 78" not in host.run("sh", "-c", rules).stdout
    else:
        host.run("sh", "-c", WITHOUT_BPF)
        unfilter(host, "niso-backend")
        host.niso("net", "repair")
        assert host.run("sh", "-c", rules).stdout.count("proto 78") == 4
    host.run("ip", "route", "add", "10.99.1.0/24", "via", HOST, netns="client")
    host.run("ip", "route", "add", "fd00:1::/64", "via", HOST6, netns="client")
    host.run("nft", "-f", "-", input=DAMAGE[damage])
    before = arrived(host)
    inwards = [(HOST, 7000), (HOST6, 7000), (api, 7000), (api6, 7000)]
    talkers = [Talker(host, "client", to, 5100 + i) for i, to in enumerate(inwards)]
    assert [talker.ask("away") for talker in talkers] == ["-"] * 4
    assert not any(pings(host, address, "client") for address in (api, api6))
    for address in (api, api6):
        host.run("python3", "-ISc", CONNECT, address, netns="client")
    assert arrived(host) == before
    # the host reaches its services meanwhile
    near = [Talker(host, None, to, 5200 + i) for i, to in enumerate(inwards[2:])]
    assert all(talker.ask("near").startswith("near ") for talker in near)
    assert arrived(host) > before
    host.niso("net", "repair")
    host.wait_for(lambda: talkers[0].ask("now") != "-", 10, "the published port")
    host.wait_for(lambda: talkers[1].ask("now") != "-", 10, "the published port by IPv6")
    assert [talker.ask("away") for talker in talkers[2:]] == ["-"] * 2
    # rules that another program loads, and that translate to a service, do not open it either
    host.run("nft", "-f", "-", input="flush ruleset")
    host.run("nft", "-f", "-", input=OPENS)
    before = arrived(host)
    talkers = [Talker(host, "client", to, 5300 + i) for i, to in enumerate(inwards[:2])]
    assert [talker.ask("away") for talker in talkers] == ["-"] * 2
    assert arrived(host) == before
    if guard == "filter":  # without it they would
        unfilter(host, "niso-backend")
        others = [Talker(host, "client", to, 5400 + i) for i, to in enumerate(inwards)]
        assert all(each.ask("in").startswith("in ") for each in others)
        found = host.niso("net", "check", check=False).stdout
        assert "bridge niso-backend (its filters, " in found
    host.niso("net", "repair")
    assert host.niso("net", "check").returncode == 0


WITHOUT_BPF = """\
set -e
mkdir -p /tmp/kernel/random
cat /proc/sys/kernel/random/boot_id > /tmp/kernel/random/boot_id
mount --bind /tmp/kernel /proc/sys/kernel
"""
"""Makes the kernel look as if it had no bpf(2)."""

CONNECT = """\
import socket, sys
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
client.settimeout(0.5)
sys.exit(client.connect_ex((sys.argv[1], 7001)) == 0)
"""

OPENS = """\
table inet opens {
	chain nat {
		type nat hook prerouting priority dstnat;
		udp dport 7000 dnat ip to 10.99.1.2
		udp dport 7000 dnat ip6 to fd00:1::2
	}
}
"""
"""Another program's rules that lead to a service of niso."""
