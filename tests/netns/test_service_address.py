"""A service address: who reaches the instances behind it, by which way, and who does not.

The server answers TCP and UDP, over IPv4 and IPv6, with its own address and that of its client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab
from services import HOST, on, package, pings

HOST6, CLIENT, CLIENT6 = "2001:db8::1", "192.0.2.2", "2001:db8::2"

SERVER = r"""
import os, select, socket, sys
def listen(kind):
    s = socket.socket(socket.AF_INET6, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if kind == socket.SOCK_DGRAM:
        s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    s.bind(("::", 80))
    return s
plain = lambda text: text.removeprefix("::ffff:")
tcp, udp = listen(socket.SOCK_STREAM), listen(socket.SOCK_DGRAM)
tcp.listen(64)
word = sys.argv[1]
while True:
    for s in select.select([tcp, udp], [], [])[0]:
        if s is tcp:
            c, peer = tcp.accept()
            c.sendall(f"{plain(c.getsockname()[0])} {plain(peer[0])} {word}".encode())
            c.close()
        else:
            data, more, _, peer = udp.recvmsg(100, 200)
            own = next((socket.inet_ntop(socket.AF_INET6, d[:16]) for l, t, d in more
                        if t == socket.IPV6_PKTINFO and l == socket.IPPROTO_IPV6), "")
            own = own or next(socket.inet_ntop(socket.AF_INET, d[8:12]) for l, t, d in more if t == 8)
            udp.sendto(f"{plain(own)} {plain(peer[0])} {word}".encode(), peer)
"""

ASK = r"""
import json, socket, sys, time
address, port, proto, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
answers, began = [], time.monotonic()
for _ in range(count):
    with socket.socket(family, kind) as s:
        s.settimeout(5 if count > 1 else 1)  # one alone is to show that none is answered
        try:
            s.connect((address, port))
            if proto == "udp":
                s.send(b"?")
            answers.append(s.recv(200).decode())
        except OSError as error:
            answers.append(type(error).__name__)
print(json.dumps([answers, time.monotonic() - began]))
"""


def replicas(lab: Lab, name: str, network: dict[str, object], number: int = 3) -> str:
    """Write a service with ``number`` instances of SERVER; return its folder."""
    return package(
        lab,
        name,
        "/usr/bin/python3",
        "-ISu",
        "/app/server.py",
        name,
        files={"server.py": SERVER},
        service={"replicas": number},
        healthcheck={"tcp": 80, "interval": "200ms"},
        deploy={"monitor": "0s"},
        network=network,
    )


def asked(
    lab: Lab, netns: str | None, address: str, port: int, proto: str = "tcp", count: int = 40
) -> list[str]:
    """Return the answers to ``count`` requests from different source ports."""
    done = lab.run(
        "/usr/bin/python3", "-ISc", ASK, address, str(port), proto, str(count), netns=netns
    )
    answers, _ = json.loads(done.stdout)
    return list(answers)


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """A host with the service web (three instances, both families) and clients on three networks."""
    with Lab(deadline_seconds=900) as lab:
        both = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
        lab.niso("net", "create", "backend", *both)
        lab.niso(
            "net", "create", "frontend", "--subnet", "10.99.2.0/24", "--subnet", "fd00:99:2::/64"
        )
        lab.niso("net", "create", "inside", "--subnet", "10.99.3.0/24", "--internal")
        sleep = ("/usr/bin/sleep", "100000")
        lab.niso(
            "activate",
            replicas(lab, "web", on("backend", ports=["8080:80", "8080:80/udp"])),
            replicas(lab, "inner", on("inside")),
            package(lab, "cli", *sleep, network=on("backend")),
            package(lab, "far", *sleep, network=on("frontend")),
            package(lab, "near", *sleep, network=on("inside")),
        )
        yield lab


def addresses(lab: Lab, name: str) -> list[str]:
    """Return the addresses of an active service or instance, IPv4 first."""
    shown = json.loads(lab.niso("inspect", name, "--json").stdout)
    return [address for end in shown["endpoints"] for address in end["address"]]


def instances(lab: Lab, name: str, family: int) -> set[str]:
    return {addresses(lab, f"{name}.{number}")[family == 6] for number in (1, 2, 3)}


WAYS = {
    "outside, published port": ("client", "host", 8080, "client"),
    "host, published port": (None, "host", 8080, None),
    "host, loopback": (None, "loopback", 8080, None),
    "host, service address": (None, "vip", 80, None),
    "service of the network, service address": ("niso-cli", "vip", 80, "cli"),
    "service of the network, published port": ("niso-cli", "host", 8080, "cli"),
    "service of another network, published port": ("niso-far", "host", 8080, "far"),
}


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_to_all_instances_which_see_the_client(
    shop: Lab, way: str, family: int, proto: str
) -> None:
    netns, to, port, client = WAYS[way]
    if to == "loopback" and family == 6:
        pytest.skip("[::1] is not published")
    six = family == 6
    target = {
        "host": HOST6 if six else HOST,
        "loopback": "127.0.0.1",
        "vip": addresses(shop, "web")[six],
    }[to]
    answers = [answer.split() for answer in asked(shop, netns, target, port, proto)]
    assert {words[0] for words in answers} == instances(shop, "web", family), answers
    if client == "client":
        assert {words[1] for words in answers} == {CLIENT6 if six else CLIENT}
    elif client is not None:
        assert {words[1] for words in answers} == {addresses(shop, client)[six]}


@pytest.mark.parametrize("family", [4, 6])
def test_an_instance_reaches_all_instances_and_itself(shop: Lab, family: int) -> None:
    target = addresses(shop, "web")[family == 6]
    answers = asked(shop, "niso-web.1", target, 80)
    assert {answer.split()[0] for answer in answers} == instances(shop, "web", family)


def test_the_address_on_an_internal_network_is_reached_from_there_alone(shop: Lab) -> None:
    target = addresses(shop, "inner")[0]
    answers = asked(shop, "niso-near", target, 80)
    assert {answer.split()[0] for answer in answers} == instances(shop, "inner", 4)
    assert {a.split()[-1] for a in asked(shop, "niso-cli", target, 80, count=1)} <= {
        "OSError",
        "ConnectionRefusedError",
        "TimeoutError",
    }


@pytest.mark.parametrize("family", [4, 6])
def test_other_networks_and_machines_do_not_reach_it(shop: Lab, family: int) -> None:
    target = addresses(shop, "web")[family == 6]
    for netns in ("niso-far", "client"):
        if netns == "client":
            via = HOST6 if family == 6 else HOST
            prefix = "fd00:99:1::/64" if family == 6 else "10.99.1.0/24"
            shop.run("ip", f"-{family}", "route", "replace", prefix, "via", via, netns="client")
        for proto in ("tcp", "udp"):
            for answer in asked(shop, netns, target, 80, proto, count=1):
                assert answer.endswith("Error"), (netns, answer)


@pytest.mark.parametrize("netns", [None, "niso-cli"])
@pytest.mark.parametrize("family", [4, 6])
def test_it_answers_ping_and_refuses_closed_ports_at_once(
    shop: Lab, family: int, netns: str | None
) -> None:
    target = addresses(shop, "web")[family == 6]
    assert pings(shop, target, netns, seconds=5)
    assert asked(shop, netns, target, 81, count=2) == ["ConnectionRefusedError"] * 2


def test_the_names_of_the_service_mean_its_address(shop: Lab) -> None:
    hosts = shop.run("cat", "/run/niso/hosts/backend/hosts", check=False).stdout
    hosts = hosts or shop.niso("exec", "cli", "--", "cat", "/etc/hosts").stdout
    lines = [line.split() for line in hosts.splitlines() if re.search(r"\bweb\b", line)]
    assert sorted(line[0] for line in lines) == sorted(addresses(shop, "web"))
    assert not re.search(r"web\.\d", hosts)


def test_nft_lists_and_loads_the_rules(shop: Lab) -> None:
    listed = shop.run("nft", "list", "ruleset").stdout
    assert "map slots4" in listed and "numgen random mod 64" in listed
    shop.run("nft", "-c", "-f", "-", input=listed)
    assert shop.niso("net", "check").returncode == 0


def test_one_line_for_the_service(shop: Lab) -> None:
    lines = {line["service"]: line for line in json.loads(shop.niso("ps", "--json").stdout)}
    assert lines["web"]["status"] == "3/3 running" and lines["web"]["health"] == "healthy"
    assert not any("." in name for name in lines)


FROM_PORTS = r"""
import json, socket, sys
address, port, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
answers = []
for own in range(first, first + 12):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("", own))
        s.settimeout(5)
        s.connect((address, port))
        answers.append(s.recv(200).decode().split()[0])
print(json.dumps(answers))
"""


def explained(lab: Lab, *words: str) -> dict[str, Any]:
    """Return the result of ``niso net explain``."""
    return dict(json.loads(lab.niso("net", "explain", *words, "--json", check=False).stdout))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("source", "netns", "to", "port", "element"),
    [
        ("cli", "niso-cli", "web", 80, "vips"),
        ("CLIENT", "client", "HOST", 8080, "front_any"),
        ("far", "niso-far", "HOST", 8080, "front_port"),
    ],
)
def test_explain_names_the_instance_that_answers_each_source_port(
    shop: Lab, family: int, source: str, netns: str, to: str, port: int, element: str
) -> None:
    six = family == 6
    host, client = (HOST6, CLIENT6) if six else (HOST, CLIENT)
    target = host if to == "HOST" else addresses(shop, to)[six]
    asked_by = ("/usr/bin/python3", "-ISc", FROM_PORTS, target, str(port), "20001")
    answers = json.loads(shop.run(*asked_by, netns=netns).stdout)
    own = {addresses(shop, f"web.{n}")[six]: f"web.{n}" for n in (1, 2, 3)}
    source = client if source == "CLIENT" else source
    asker = f"[{source}]" if ":" in source else source
    target = f"[{target}]" if six else target
    for number, answer in enumerate(answers):
        found = explained(shop, f"{asker}:{20001 + number}", f"{target}:{port}")
        assert found["to"]["instances"] == [own[answer]], (number, found["path"])
        assert found["to"]["service"] == "web" and found["verdict"] == "pass"
    slots = [nft for nft in found["path"]["nft"] if f"slots{family}" in nft]
    assert len(slots) == 1 and f": {answers[-1]} " in slots[0]
    assert any(f"{element}{family} " in nft for nft in found["path"]["nft"])


def test_explain_evaluates_a_service_once_and_proves_it(shop: Lab) -> None:
    vip = addresses(shop, "web")[0]
    told = shop.niso("net", "explain", "cli", "web:80").stdout
    assert f"cli ({addresses(shop, 'cli')[0]}) → web ({vip}):80/tcp: pass" in told
    assert f"{vip} stands for 3 instances" in told and "map @slots4" in told
    assert not re.search(r"web\.\d", told)
    for source, to, *more in (
        ("cli", "web:80"),
        ("cli", "web:80", "-6"),
        ("cli", "web:80/udp"),
        ("cli", "web"),
        ("cli", "web", "-6"),
        ("cli:40100", "web:80"),
        ("far", f"{HOST}:8080"),
        ("far", "web:80"),
        ("host", "web:80"),
        ("host", "127.0.0.1:8080"),
        ("web.1", "web:80"),
        ("web", "cli:80"),
        ("cli", "web.2:80"),
    ):
        found = explained(shop, source, to, "--prove", *more)
        assert found["proof"]["agrees"], (source, to, found)
        assert found["proof"]["arrived"] is (source != "far" or "8080" in to)
    assert "no instance" not in found["path"]["words"]
    own = explained(shop, "cli", "web.2:80")
    assert own["to"]["service"] == "web.2" and "instances" not in own["to"]
    assert own["ingress"]["words"] == "web has no ingress policy"
    assert explained(shop, vip, "cli:80")["from"]["service"] == "web.1"
    for wrong in ("cli:99999", "cli:1x", "cli:0"):
        assert shop.niso("net", "explain", wrong, "web:80", check=False).returncode == 2
    assert shop.niso("net", "explain", "cli:80", "web", check=False).returncode == 2
