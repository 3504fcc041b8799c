"""Test outside names against a real DNS server (dnsmasq), and what services reach by them with packets."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest
from conftest import TESTS, Lab, assert_whole
from machine import Machine, needs_systemd
from services import ask, idle, inspect

BINARY = shutil.which("dnsmasq") or str(TESTS.parent / ".cache/dnsmasq/usr/sbin/dnsmasq")
API, WWW, GONE = "api.example.com", "www.example.com", "gone.example.com"
CLIENT4, CLIENT6 = "192.0.2.2", "2001:db8::2"
OTHER4, OTHER6 = "192.0.2.3", "2001:db8::3"

SERVE = """\
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.create_server(("", 443), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    if os.fork() == 0:
        connection.sendall(sys.argv[1].encode() + b"\\n")
        while data := connection.recv(99):
            connection.sendall(data)
        os._exit(0)
    connection.close()
"""
LOOK = """\
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted({x[4][0] for x in socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)})
    except socket.gaierror:
        found[name] = []
print(json.dumps(found))
"""
PROBE = """\
import json, select, socket, sys
sockets = {}
for to in sys.argv[1:]:
    s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
    s.setblocking(False)
    s.connect_ex((to, 443))
    sockets[s] = to
found = {}
while waiting := [s for s in sockets if sockets[s] not in found]:
    ready = select.select(waiting, [], [], 0.5)[0]
    if not ready:
        break
    for s in ready:
        try:
            found[sockets[s]] = s.recv(99).decode().strip()
        except OSError:
            found[sockets[s]] = ""
print(json.dumps(found))
"""
KEEP = """\
import socket, sys
s = socket.create_connection(("api.example.com", 443), 5); print(s.recv(99).decode(), end="", flush=True)
while line := sys.stdin.readline():
    s.sendall(line.encode()); print(s.recv(99).decode(), end="", flush=True)
"""
AGE = """\
import json, sqlite3, sys
db = sqlite3.connect("/var/lib/niso/state.db")
for name, text in db.execute("SELECT name, answer FROM outside_name").fetchall():
    asked, due, problem, settled, addresses = json.loads(text)
    s = float(sys.argv[1])
    answer = [asked - s, due - s, problem, settled, [[a, state, until - s] for a, state, until in addresses]]
    db.execute("UPDATE outside_name SET answer=? WHERE name=?", (json.dumps(answer), name))
db.commit()
"""
"""Let time pass, as the store sees it."""


class Dns:
    """dnsmasq on the lab's loopback, for example.com alone."""

    def __init__(self, lab: Lab) -> None:
        if not os.access(BINARY, os.X_OK):
            pytest.fail("dnsmasq is missing: ./dev test unpacks it", pytrace=False)
        self.lab = lab
        self.answers()
        lab.run("sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
        self.process = lab.popen(
            *(BINARY, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"),
            *("--listen-address=127.0.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts"),
            *("--addn-hosts=/tmp/answers", "--local-ttl=300", "--local=/example.com/"),
            *(f"--cname={WWW},{API},120", "--pid-file="),
            stdout=-3,
            stderr=-3,
        )

        def listens() -> bool:
            return ":53 " in str(lab.run("ss", "-Hlnu").stdout)

        lab.wait_for(listens, 10, "dnsmasq")

    def answers(self, *addresses: str) -> None:
        """Have the name stand for these addresses; for none it does not exist."""
        self.lab.write("/tmp/answers", "".join(f"{address} {API}\n" for address in addresses))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGHUP)


@pytest.fixture
def dns(lab: Lab) -> Iterator[Dns]:
    made = Dns(lab)
    yield made
    made.process.kill()


def serve(lab: Lab) -> None:
    """Let client and neighbour answer with their name, on port 443 of both families."""
    for name in ("client", "neighbour"):
        server = lab.popen("/usr/bin/python3", "-ISuc", SERVE, name, netns=name)
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"


def look(lab: Lab, service: str, *names: str) -> dict[str, list[str]]:
    """What a service resolves names to, as a program in it."""
    done = lab.niso("exec", service, "--", "/usr/bin/python3", "-ISc", LOOK, *names)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def reached(lab: Lab, service: str, *more: str) -> dict[str, str]:
    """Who answers a service by each of these addresses, and ``more``, if anybody does."""
    every = (CLIENT4, CLIENT6, OTHER4, OTHER6, *more)
    netns = f"niso-{service}"
    done = lab.run("/usr/bin/python3", "-ISc", PROBE, *every, netns=netns)
    found: dict[str, str] = json.loads(done.stdout)
    return {address: name for address, name in found.items() if name}


def age(lab: Lab, seconds: int) -> None:
    lab.run("/usr/bin/python3", "-ISc", AGE, str(seconds))


def web(lab: Lab, name: str = "web", *more: str) -> str:
    policy = {"egress": {"allow": [f"{API}:443", f"{WWW}:443", *more]}}
    return idle(lab, name, network={"network": "back", "policy": policy})


@pytest.mark.first
def test_service_reaches_what_its_name_stands_for_and_resolves_to_the_same(
    lab: Lab, dns: Dns
) -> None:
    """Both families, a CNAME, a change under an open connection, a dead name server, no such name, rebinding."""
    lab.niso("net", "create", "back", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    serve(lab)
    dns.answers(CLIENT4, CLIENT6)
    done = lab.niso("activate", web(lab))
    assert "example.com" not in done.stderr
    assert "nothing resolves the outside names of its policy again" in done.stderr
    done = lab.niso("net", "refresh", "--for", "200ms")
    assert f"{API}  {CLIENT4}, {CLIENT6}  " in done.stdout
    both = [CLIENT4, CLIENT6]
    assert look(lab, "web", API, WWW) == {API: both, WWW: both}
    assert reached(lab, "web") == dict.fromkeys(both, "client")
    assert ask(lab, CLIENT4, 80, "niso-web") == ""
    assert_whole(lab)
    # who asks is told the name
    explained = lab.niso("net", "explain", "web", f"{API}:443", "--prove").stdout
    assert f'allowed by network.policy.egress.allow[0] of web ("{API}:443")' in explained
    assert f"web (10.99.1.2) → {CLIENT4}:443/tcp: pass" in explained and "confirmed" in explained
    shown = json.loads(lab.niso("net", "policy", "show", "web", "--json").stdout)
    assert shown[0]["note"] == ", ".join(both) and shown[0]["packets"] > 0
    row = inspect(lab, "web")["outside"][0]
    assert (row["name"], row["addresses"], row["services"]) == (API, both, ["web"])
    flows = json.loads(lab.niso("net", "flows", "web", "--json").stdout)
    assert {flow["to"]["name"] for flow in flows if flow["verdict"] == "pass"} == {API}
    # another answer: the service resolves to it at once, and who has looked before gets there too
    kept = lab.popen(
        *("niso", "exec", "-i", "web", "--", "/usr/bin/python3", "-ISuc", KEEP), stdin=-1
    )
    assert kept.stdout is not None and kept.stdin is not None
    assert kept.stdout.readline() == b"client\n"
    dns.answers(OTHER4)
    age(lab, 200)
    rows = json.loads(lab.niso("net", "refresh", "--json").stdout)
    assert [row["addresses"] for row in rows] == [both, [OTHER4]]  # of a CNAME the shorter TTL
    age(lab, 100)
    lab.niso("net", "refresh")
    assert look(lab, "web", API, WWW) == {API: [OTHER4], WWW: [OTHER4]}
    assert set(reached(lab, "web")) == {*both, OTHER4}
    age(lab, 60)
    lab.niso("net", "refresh")
    assert set(reached(lab, "web")) == {OTHER4}
    # what went to the addresses before is neither cut by the same manifest, nor unused
    assert lab.niso("net", "policy", "test", web(lab)).stdout.count("pass ") == 1
    unused = lab.niso("net", "policy", "show", "web", "--unused", "1h").stdout
    assert f"{WWW}:443" in unused and f"{API}:443" not in unused
    kept.stdin.write(b"still\n")
    kept.stdin.flush()
    assert kept.stdout.readline() == b"still\n"
    assert_whole(lab)
    # and an activation that has nothing to do with it
    lab.niso("activate", web(lab, "web", "192.0.2.99:1"))
    kept.stdin.write(b"on\n")
    kept.stdin.flush()
    assert kept.stdout.readline() == b"on\n"
    kept.stdin.close()
    # answers that lead inwards
    dns.answers(OTHER4, "10.99.1.1", "192.0.2.1", "127.0.0.1", "fd00:99:1::1", "::1")
    done = lab.niso("net", "refresh", "--all")
    assert "192.0.2.1 is refused: it is the host's own address" in done.stdout
    assert look(lab, "web", API) == {API: [OTHER4]}
    assert_whole(lab)
    # no such name: it goes at its end
    dns.answers()
    done = lab.niso("net", "refresh", "--all", check=False)
    assert done.returncode == 3 and "DNS has no such name" in done.stdout
    assert look(lab, "web", API) == {API: []}
    age(lab, 300)
    lab.niso("net", "refresh", check=False)
    assert reached(lab, "web") == {}
    done = lab.niso("net", "check")
    assert f"{API}, which web may connect to, has no address" in done.stderr
    # a name server that does not answer takes nothing, and a service starts without it
    dns.answers(CLIENT4)
    lab.niso("net", "refresh", "--all")
    dns.process.send_signal(signal.SIGSTOP)
    age(lab, 3600)
    done = lab.niso("activate", web(lab), web(lab, "late", GONE))
    assert f"{GONE}: no name server answered" in done.stderr
    assert look(lab, "late", API) == {API: [CLIENT4]}
    assert reached(lab, "late") == {CLIENT4: "client"}
    dns.process.send_signal(signal.SIGCONT)
    assert_whole(lab)
    lab.niso("remove", "web", "late")
    assert not any(lab.path("/run/niso/hosts").iterdir())


def test_name_on_networks_of_one_family_beside_pods_and_never_inwards(lab: Lab, dns: Dns) -> None:
    """What the hosts file of each service has is what its packets reach, and nothing else."""
    serve(lab)
    lab.niso("net", "create", "four", "--subnet", "10.99.4.0/24")
    lab.niso("net", "create", "six", "--subnet", "fd00:99:6::/64")
    lab.niso("net", "attach", "pod", "--new", "--network", "four")
    pod = lab.popen("/usr/bin/python3", "-ISuc", SERVE, "pod", netns="niso-pod")
    assert pod.stdout is not None and pod.stdout.readline() == b"ready\n"
    dns.answers(CLIENT4, OTHER6, "10.99.4.2")
    policy = {"egress": {"allow": [f"{API}:443"]}}
    every = {
        name: idle(lab, name, network={"networks": networks, "policy": policy})
        for name, networks in {"w4": ["four"], "w6": ["six"], "w64": ["six", "four"]}.items()
    }
    done = lab.niso("activate", *every.values())
    assert f"{API}: 10.99.4.2 is refused: it is in a network of niso" in done.stderr
    for name, address, who in (
        ("w4", CLIENT4, "client"),
        ("w6", OTHER6, "neighbour"),
        ("w64", OTHER6, "neighbour"),
    ):
        assert look(lab, name, API) == {API: [address]}
        assert reached(lab, name, "10.99.4.2") == {address: who}
    assert_whole(lab)
    # only addresses of the other family
    dns.answers(CLIENT4)
    lab.niso("net", "refresh", "--all")
    assert look(lab, "w6", API) == look(lab, "w64", API) == {API: []}
    every["late"] = idle(lab, "late", network={"networks": ["six"], "policy": policy})
    said = f"{API}, which %s may connect to, has no IPv6 address, and network six no IPv4 subnet"
    assert said % "late" in lab.niso("activate", every["late"]).stderr
    assert said % "w6" in lab.niso("net", "check").stderr
    lab.niso("remove", *every)
    # an answer in a network that the same command makes: without the refusal web reaches db
    dns.answers("10.77.0.3")
    age(lab, 1000)
    table = 'binary = { entrypoint = "sleep", args = ["inf"] }\n'
    egress = f'network = {{ network = "own", policy.egress.allow = ["{API}:443"] }}'
    lab.write(
        "/tmp/own/stack.toml",
        '[stack]\nname = "own"\n[networks.own]\nsubnet = "10.77.0.0/24"\n'
        f'[services.db]\n{table}network = {{ network = "own", ip = "10.77.0.3" }}\n'
        f"[services.web]\n{table}{egress}\n",
    )
    done = lab.niso("stack", "up", "/tmp/own")
    assert f"{API}: 10.77.0.3 is refused: it is in a network of niso" in done.stderr
    db = lab.popen("/usr/bin/python3", "-ISuc", SERVE, "db", netns="niso-db")
    assert db.stdout is not None and db.stdout.readline() == b"ready\n"
    assert "10.77.0.3" not in reached(lab, "web", "10.77.0.3")
    assert look(lab, "web", API) == {API: []}
    assert_whole(lab)


def test_name_never_leads_to_containers_of_an_engine_or_to_a_broadcast(lab: Lab, dns: Dns) -> None:
    serve(lab)
    for words in (
        "netns add box",
        "link add engine0 type bridge",
        "link add box-host master engine0 up type veth peer name eth0 netns box",
        "address add 172.30.0.1/24 dev engine0",
        "link set engine0 up",
        "-n box address add 172.30.0.2/24 dev eth0",
        "-n box link set eth0 up",
        "-n box route add default via 172.30.0.1",
        # a bridge that leads out of the host, as that of virtual machines on the same LAN
        "link add lan0 type bridge",
        "address add 172.31.0.1/24 dev lan0",
        "link set lan0 up",
        "route add default via 172.31.0.254 metric 9999",
        "route add local 172.29.0.0/24 dev lo",
    ):
        lab.run("ip", *words.split())
    box = lab.popen("/usr/bin/python3", "-ISuc", SERVE, "box", netns="box")
    assert box.stdout is not None and box.stdout.readline() == b"ready\n"
    refused_ = {
        "172.30.0.2": "it is on engine0, the bridge of a container engine",
        "172.31.0.255": "it is a broadcast or anycast address of a link of the host",
        "172.29.0.7": "it is the host's own address",
        "64:ff9b::ac1e:2": "it stands for 172.30.0.2: it is on engine0",
        "2002:a9fe:a9fe::1": "it stands for 169.254.169.254: it is the metadata service of a cloud",
    }
    dns.answers(CLIENT4, "172.31.0.9", *refused_)
    policy = {"egress": {"allow": [f"{API}:443"]}}
    done = lab.niso("activate", idle(lab, "web", network={"network": "own", "policy": policy}))
    assert reached(lab, "web", "172.30.0.2") == {CLIENT4: "client"}
    for address, reason in refused_.items():
        assert f"{address} is refused: {reason}" in done.stderr
    assert "172.31.0.9 is refused" not in done.stderr
    assert look(lab, "web", API) == {API: ["172.31.0.9", CLIENT4]}


def test_metadata_service_of_a_cloud_is_reached_unless_it_is_denied(lab: Lab) -> None:
    serve(lab)
    every = {"169.254.169.254": CLIENT4, "fd00:ec2::254": CLIENT6}
    for address, by in every.items():
        lab.client("ip", "address", "add", address, "dev", "lo")
        lab.run("ip", "route", "add", address, "via", by)
    lab.niso("net", "create", "both", "--ipv6")
    egress = {"allow": ["0.0.0.0/0", "::/0"], "deny": []}
    network = {"network": "both", "policy": {"egress": egress}}
    lab.niso("activate", idle(lab, "web", network=network))
    both = {CLIENT4: "client", CLIENT6: "client", OTHER4: "neighbour", OTHER6: "neighbour"}
    assert reached(lab, "web", *every) == {**both, **dict.fromkeys(every, "client")}
    egress["deny"] = ["metadata"]
    done = lab.niso("activate", idle(lab, "web", network=network))
    assert reached(lab, "web", *every) == both
    assert "metadata" not in done.stderr, "no service needs to have this name"
    for address in ("169.254.169.254:443", "[fd00:ec2::254]:443"):
        said = lab.niso("net", "explain", "web", address, check=False)
        assert (said.returncode, "egress.deny[0]" in said.stdout) == (1, True)
    # a service of that name is denied too, as any that the list names
    named = idle(lab, "metadata", network={"network": "both"})
    lab.niso("activate", named)
    assert lab.niso("net", "explain", "web", "metadata:443", check=False).returncode == 1
    assert_whole(lab)


@pytest.mark.first
@needs_systemd
def test_systemd_keeps_names_up_to_date_while_an_enabled_service_has_any(
    lab: Lab, dns: Dns
) -> None:
    machine = Machine(lab)
    machine.run("sh", "-c", "echo nameserver 127.0.0.1 > /etc/resolv.conf")
    dns.answers(CLIENT4)
    machine.niso("net", "create", "back", "--subnet", "10.99.1.0/24")
    serve(lab)

    def inside() -> dict[str, str]:
        words = ("/usr/bin/python3", "-ISc", PROBE, CLIENT4, OTHER4)
        found: dict[str, str] = json.loads(
            machine.run("nsenter", "--net=/run/netns/niso-web", *words).stdout
        )
        return found

    machine.niso("activate", web(lab))
    machine.niso("enable", "web")
    assert machine.systemctl("is-active", "niso_refresh.timer").stdout == "active\n"
    assert inside() == {CLIENT4: "client"}
    machine.run("/usr/bin/python3", "-ISc", AGE, "300")
    dns.answers(OTHER4)
    machine.systemctl("start", "niso_refresh.service")
    assert inside() == {CLIENT4: "client", OTHER4: "neighbour"}
    machine.niso("disable", "web")
    shown = machine.systemctl("is-active", "niso_refresh.timer", check=False).stdout
    assert shown == "inactive\n"
    assert not machine.path("/etc/systemd/system/niso_refresh.service").exists()
