"""Test encrypted clusters: with the kernel's WireGuard, or with wireguard-go if the kernel has none.

Hosts a and b are the cluster, over IPv6. Host c is on the same underlay: it sends what it likes. Each attack first
succeeds without the defence.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from cluster_hosts import Cluster
from damages import OF_WIREGUARD
from etcd_world import provide, provide_wireguard
from many_hosts import Host, underlay
from services import ask
from wire import Ear, Link, Wire  # before scapy: it silences its warnings

from niso.base import names

from scapy.layers.inet import IP, UDP  # isort: skip
from scapy.layers.inet6 import IPv6  # isort: skip
from scapy.layers.l2 import Ether  # isort: skip
from scapy.layers.vxlan import VXLAN  # isort: skip
from scapy.packet import Raw  # isort: skip

NW = "nw-cluster"
WIREGUARD = f"WireGuard {NW}"
VXLAN_PORT, PORT = 4799, 4800
DB, API = "10.99.1.2", "10.99.1.3"


class World(NamedTuple):
    cluster: Cluster
    way: str  # kernel or userspace
    a: Host
    b: Host
    c: Host


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """db on b, which lets api in, on a."""
    with underlay("a", "b", "c") as hosts:
        a, b, c = hosts
        for host in (a, b):
            provide_wireguard(host.lab)
        made = Cluster([a, b], 1, 6, "userspace")
        assert made.activate("b", "db", policy={"allow_from": ["api"]}) == DB
        assert made.activate("a", "api") == API
        answers(made)
        probe = "ip link add probe type wireguard && ip link delete probe"
        lacks = c.lab.run("sh", "-c", probe, check=False).returncode
        yield World(made, "userspace" if lacks else "kernel", a, b, c)
        for agent in made.agents.values():
            agent.send_signal(signal.SIGCONT)
            agent.send_signal(signal.SIGKILL)


def answers(made: Cluster) -> None:
    """Wait until db answers api."""
    lab = made.hosts["a"].lab
    made.wait("a", lambda: ask(lab, DB, 80, "niso-api") == f"db {API}", "api to db")


@contextlib.contextmanager
def without_agent(world: World) -> Iterator[None]:
    """Stop a's agent, which would mend what the test breaks."""
    world.cluster.pause_agent("a")
    try:
        yield
    finally:
        world.cluster.agents["a"].send_signal(signal.SIGCONT)


def inside(host: Host) -> str:
    """The host's address in the tunnel."""
    [found] = host.lab.ip_json("address", "show", NW)[0]["addr_info"]
    return str(found["local"])


def inside_key(host: Host) -> str:
    """The host's public key."""
    return host.lab.run("wg", "show", NW, "public-key").stdout


def ports(link: Link) -> set[int]:
    """The UDP ports of frames that have come in."""
    packets = [Ether(frame) for frame in link.look()]
    return {packet[UDP].dport for packet in packets if UDP in packet}


def served(host: Host) -> int:
    """The process that serves the host's tunnel."""
    found = host.lab.run("pgrep", "-f", f"^wireguard-go {NW}", check=False).stdout.split()
    assert len(found) < 2
    return int(found[0]) if found else 0


def test_nothing_but_wireguard_is_between_the_hosts(world: World) -> None:
    a, b = world.a.lab, world.b.lab
    assert a.ip_json("link", "show", "niso-backend")[0]["mtu"] == 1500 - 80 - 70
    with Wire(b) as wire:
        under, tunnel = wire.link(None, "under0"), wire.link(None, NW)
        assert ask(a, DB, 80, "niso-api") == f"db {API}"
        full, mark = str(1500 - 80 - 70 - 28), "6e69736f"
        a.run("ping", "-c1", "-W2", "-Mdo", "-s", full, "-p", mark, DB, netns="niso-api")
        marked = bytes.fromhex(mark) * 4
        assert tunnel.saw(marked) and not under.saw(marked)
        assert ports(under) == {PORT}
    assert world.cluster.sees("a", DB, "db")
    world.cluster.activate("a", "evil")
    assert ask(a, DB, 80, "niso-evil") == "", "it is not allowed to"
    assert f"WireGuard ({world.way})" in world.cluster.niso("a", "cluster", "status").stdout
    world.cluster.check("a", "b")
    assert os.stat(a.path("/var/lib/niso/cluster/wireguard.key")).st_mode & 0o777 == 0o600


def test_dead_process_is_started_again_and_nothing_passes_in_between(world: World) -> None:
    """The routes are such that without the rule plain packets leave: by the underlay, to b."""
    if world.way == "kernel":
        pytest.skip("the kernel encrypts, without a process")
    a = world.a.lab
    with without_agent(world), Wire(world.b.lab) as wire:
        under = wire.link(None, "under0")
        a.run("sysctl", "-qw", f"net.ipv6.conf.{NW}.ignore_routes_with_linkdown=1")
        a.run("ip", "-6", "route", "replace", "default", "via", world.b.address[6], "dev", "under0")
        a.run("kill", "-KILL", str(served(world.a)))
        way = ("ip", "route", "get", inside(world.b))
        a.wait_for(lambda: "under0" in a.run(*way).stdout, 5, "the way by the underlay")
        ping = ("ping", "-c2", "-i0.2", "-W1", DB)
        a.run(*ping, netns="niso-api", check=False)
        assert VXLAN_PORT not in ports(under)
        without_rule(world.a, "wire_sealed", "unencrypted")
        a.run(*ping, netns="niso-api", check=False)
        a.wait_for(lambda: VXLAN_PORT in ports(under), 5, "plain packets without the rule")
        a.run("sysctl", "-qw", f"net.ipv6.conf.{NW}.ignore_routes_with_linkdown=0")
    a.wait_for(lambda: served(world.a), 20, "wireguard-go again")
    world.cluster.niso("a", "net", "repair")
    # b has a session with the dead one, which it would give up after 15 s only
    b = world.b.lab
    b.wait_for(lambda: ask(b, API, 80, "niso-db") == f"api {DB}", 6, "db to api")
    answers(world.cluster)
    world.cluster.check("a")


def without_rule(host: Host, chain: str, comment: str) -> None:
    """Take a rule of niso's away that has dropped something."""
    rules = host.lab.run("nft", "-a", "list", "chain", "inet", "niso", chain).stdout
    [rule] = [line for line in rules.splitlines() if comment in line]
    assert "packets 0 " not in rule
    host.lab.run("nft", "delete", "rule", "inet", "niso", chain, "handle", rule.split()[-1])


def test_who_has_no_key_is_not_heard(world: World) -> None:
    """c sends as a, whose address in the tunnel it knows, to that of b: in plain text by the underlay."""
    cluster = json.loads(world.cluster.niso("b", "cluster", "status", "--json").stdout)["cluster"]
    api, db = (names.mac(service, "backend", cluster) for service in ("api", "db"))

    def packet(mark: bytes, source: str, target: str) -> Ether:
        inner = Ether(src=api, dst=db) / IP(src=API, dst=DB) / UDP(sport=9, dport=9) / Raw(mark)
        outer = Ether(src=world.c.mac, dst=world.b.mac) / IPv6(src=source, dst=target)
        return outer / UDP(sport=40_000, dport=VXLAN_PORT) / VXLAN(vni=4097, flags=8) / inner

    far, near = inside(world.a), inside(world.b)
    b = world.b.lab
    with Wire(b) as wire, Wire(world.c.lab) as attacker:
        heard, out = wire.link("niso-db", "eth0"), attacker.link(None, "under0")
        for mark, source, target in (
            (b"forged-1", far, near),
            (b"forged-2", far, world.b.address[6]),
            (b"forged-3", world.a.address[6], world.b.address[6]),
        ):
            out.send(packet(mark, source, target))
        assert ask(world.a.lab, DB, 80, "niso-api") == f"db {API}"  # what came before is through
        assert not any(heard.saw(mark) for mark in (b"forged-1", b"forged-2", b"forged-3"))
        without_rule(world.b, "wire", "through the tunnel")
        out.send(packet(b"forged-4", far, near))
        b.wait_for(lambda: heard.saw(b"forged-4"), 5, "a forged packet without the rule")
    world.cluster.niso("b", "net", "repair")
    # a itself, with another key than the cluster knows
    a = world.a.lab
    with without_agent(world):
        a.run("sh", "-c", f"wg genkey > /tmp/key && wg set {NW} private-key /tmp/key")
        assert ask(a, DB, 80, "niso-api") == ""
        found = world.cluster.niso("a", "net", "check", check=False).stdout
        assert WIREGUARD in found and "public" in found
        world.cluster.niso("a", "net", "repair")
        answers(world.cluster)


def test_tunnel_carries_nothing_else(world: World) -> None:
    """Else what a firewall of the host keeps from its links would come by the tunnel."""
    a, b = world.a.lab, world.b.lab
    with Wire(a) as near, Wire(b) as far:
        ear, out = Ear(far, "::", 9), near.socket(None, socket.AF_INET6, socket.SOCK_DGRAM)
        out.sendto(b"with the rule", (inside(world.b), 9))
        assert ask(a, DB, 80, "niso-api") == f"db {API}"  # what came before is through
        assert not ear.saw(b"with the rule")
        b.run("nft", "delete", "element", "inet", "niso", "ports", f"{{ {NW} }}")
        out.sendto(b"without the rule", (inside(world.b), 9))
        b.wait_for(lambda: ear.saw(b"without the rule"), 5, "a datagram without the rule")
    world.cluster.niso("b", "net", "repair")


# --- check and repair ---------------------------------------------------------------------------------------------

DAMAGES: list[tuple[tuple[str, ...], str, list[tuple[str, str]]]] = [
    (("WireGuard missing",), f"ip link delete {NW}", [("missing", WIREGUARD)]),
    (
        tuple(f"WireGuard.{field}" for field in ("address", "port", "mtu", "others", "up")),
        f"wg set {NW} peer {{peer}} remove && wg set {NW} peer $(wg genkey | wg pubkey)"
        f" allowed-ips ::/0 && ip address flush dev {NW} && ip address add fd00:dead::1/64 dev {NW} &&"
        f" wg set {NW} listen-port 4801 && ip link set {NW} mtu 1300 down",
        [("different", WIREGUARD)],
    ),
    (("WireGuard.public",), "{spoil}", [("different", WIREGUARD)]),
]


def test_every_damage_is_found_and_repaired(world: World) -> None:
    lab, wrong = world.a.lab, {}
    with without_agent(world):
        spoil = f"wg genkey > /tmp/other && wg set {NW} private-key /tmp/other"
        for cases, command, findings in DAMAGES:
            peer = lab.run("wg", "show", NW, "peers").stdout.strip()
            if world.way == "userspace":
                spoil = f"kill -KILL {served(world.a)}"
            lab.run("sh", "-c", command.format(spoil=spoil, peer=peer))
            shown = json.loads(lab.niso("net", "check", "--json", check=False).stdout)
            found = sorted(
                (each["problem"], each["what"]) for each in shown if each["problem"] != "dropped"
            )
            lab.niso("net", "repair")
            left = lab.niso("net", "check", check=False).stdout
            if found != findings or not left.startswith("OK"):
                wrong[cases] = (shown, left)
    assert not wrong
    answers(world.cluster)
    assert {case for cases, _, _ in DAMAGES for case in cases} == OF_WIREGUARD


# --- who may be in such a cluster ----------------------------------------------------------------------------------


def test_all_hosts_encrypt_or_none(world: World) -> None:
    made, c = world.cluster, world.c.lab
    provide(c)
    address = world.c.address[6]
    own = ("cluster", "init", "--name", "c", "--address", address)
    assert "wg is missing: apt-get install wireguard-tools" in refused(world.c, *own, "--encrypt")
    provide_wireguard(c)
    if world.way == "userspace":
        said = refused(world.c, *own, "--encrypt")
        assert "the kernel has no WireGuard" in said and "--encrypt=userspace" in said
    assert not os.path.exists(c.path("/var/lib/niso/cluster"))
    invitation = str(made.niso("a", "cluster", "invite", "c", "--address", address).stdout)
    plain = re.sub('encryption = "[a-z]+"\n', "", invitation)
    assert plain != invitation
    assert "the cluster is encrypted" in refused(world.c, "cluster", "join", "-", text=plain)
    # a gets a new key, which b learns
    before = inside_key(world.a)
    renewed = str(made.niso("a", "cluster", "invite", "a", "--renew").stdout)
    world.a.lab.niso("cluster", "join", "-", input=renewed)
    assert inside_key(world.a) != before
    answers(made)
    # c joins, and a learns its key; it leaves, and a forgets it
    said = c.niso("cluster", "join", "-", "--no-member", input=invitation).stdout
    assert "joined as c" in said
    a = world.a.lab

    def known() -> int:
        return len(a.run("wg", "show", NW, "peers").stdout.split())

    a.wait_for(lambda: known() == 2, 20, "c known to a")
    c.niso("cluster", "leave")
    a.wait_for(lambda: known() == 1, 20, "c forgotten by a")
    c.niso(*own)
    said = str(c.niso("cluster", "invite", "d", "--address", "2001:db8:51::4").stdout)
    b = world.b
    assert "encryption" not in said
    c.niso("cluster", "leave")
    # b leaves: its tunnel goes with its last network of the cluster
    made.niso("b", "remove", "db")
    made.niso("b", "cluster", "leave")
    assert served(b) == 0 and b.lab.run("ip", "link", "show", NW, check=False).returncode


def refused(host: Host, *words: str, text: str | None = None) -> str:
    done = host.lab.niso(*words, input=text, check=False)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    return str(done.stderr)
