"""Test what the rules remember of flows. Random traffic is compared with the engine in test_policy_packets.py."""

from __future__ import annotations

import json
import re

import pytest
from conftest import Lab
from services import HOST, answer, ask, echo, elements_of, filter_bridged, idle, on, send

from niso.kernel import flow_memory, policy_rules

SETS = tuple(flow_memory.PLACES)
SHARE, _ = policy_rules.SHARES[policy_rules.REFUSED]
SHARE_SEEN, _ = policy_rules.SHARES[policy_rules.SEEN]


def elements(lab: Lab, *names: str) -> set[tuple[str, str, str, int]]:
    """The keys in these sets, as nft lists them."""
    found = set()
    for name in names:
        for element in elements_of(lab, name, flow_memory.PLACES[name]):
            source, to, proto, port = element["val"]["concat"]
            found.add((source, to, str(proto), port))
    return found


def missed(lab: Lab, beyond: bool = False) -> dict[str, int]:
    code = "import json; from niso.kernel import flow_memory as sensor; print(json.dumps(sensor.missed()))"
    found: dict[str, list[int]] = json.loads(lab.run("python", "-c", code).stdout)
    return {name: counts[beyond] for name, counts in found.items()}


def beyond(lab: Lab) -> list[str]:
    """What `net flows` says of flows that are not recorded, before the reason."""
    said = lab.niso("net", "flows").stderr
    return [found[1] for found in re.finditer(r"(\d+ .* of .*) are not recorded", said)]


MAP = """
import json, niso
from niso.api.host import plain
with niso.connect() as host, host.map() as map:
    print(json.dumps(plain(map.read())))
"""


def scan(lab: Lab, netns: str, address: str, first: int, last: int) -> None:
    """Send a datagram to each of these ports, slower than the limit on new flows."""
    code = (
        "import socket, time\ns = socket.socket(2, 2)\n"
        f"for port in range({first}, {last}):\n s.sendto(b'x', ('{address}', port))\n"
        " port % 50 or time.sleep(0.06)"
    )
    lab.run("/usr/bin/python3", "-ISc", code, netns=netns)


@pytest.fixture
def world(lab: Lab) -> Lab:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    lab.niso(
        "activate",
        echo(
            lab,
            "db",
            network=on("backend", ports=["8080:80"]),
            **{"network.policy": {"deny_from": ["api"]}},
        ),
    )
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.niso("activate", idle(lab, "web", network=on("backend")))
    return lab


def test_flows_of_a_former_holder_are_not_those_of_the_next(world: Lab) -> None:
    answer(world, "10.99.1.2", 80, "niso-web")
    assert ask(world, "10.99.1.2", 80, "niso-api") == ""
    db, web, api = "10.99.1.2", "10.99.1.4", "10.99.1.3"
    assert (web, db, "tcp", 80) in elements(world, "seen4")
    assert elements(world, "refused4") == {(api, db, "tcp", 80)}
    # state of the rules is no drift, and stays over a repair and a deactivation
    assert "OK" in world.niso("net", "check").stdout
    world.niso("net", "repair")
    world.niso("deactivate", "api")
    world.niso("activate", "api")
    assert elements(world, "refused4") == {(api, db, "tcp", 80)}
    world.niso("remove", "api", "web")
    assert elements(world, "refused4"), "nobody has the address yet"
    planned = world.niso("activate", "--dry-run", idle(world, "new", network=on("backend")))
    assert planned.returncode == 0 and elements(world, "refused4")
    world.niso("activate", idle(world, "new", network=on("backend")))
    found = elements(world, *(name for name in SETS if name.endswith("4")))
    assert not [key for key in found if api in key[:2]] and [key for key in found if web in key[:2]]
    # a network takes its flows with it, and leaves those of others
    world.niso("activate", idle(world, "other", network=on("niso-default")))
    assert ask(world, "10.99.1.2", 80, "niso-other") == ""
    away = ("10.99.0.2", "192.0.2.3", "tcp", 9)
    ask(world, *away[1:2], 9, "niso-other")
    assert {away, ("10.99.0.2", db, "tcp", 80)} <= elements(world, *SETS)
    world.niso("remove", "db", "new")
    world.niso("net", "remove", "backend")
    left = elements(world, *SETS)
    assert away in left and not [key for key in left if "10.99.1." in f"{key[0]} {key[1]}"]


def test_full_set_drops_nothing_and_says_what_it_missed(world: Lab) -> None:
    answer(world, "192.0.2.1", 8080, "client")
    for name in (policy_rules.ENTERED, policy_rules.REFUSED, policy_rules.AUDITED):
        keys = [
            f"10.{i >> 8}.{i & 255}.1 . 10.0.0.1 . tcp . 1" for i in range(policy_rules.SIZES[name])
        ]
        world.run("nft", "flush", "set", "inet", "niso", f"{name}4")
        text = f"add element inet niso {name}4 {{ {', '.join(keys)} }}"
        world.run("nft", "-f", "-", input=text)
    before = missed(world)
    assert set(before.values()) == {0}
    assert ask(world, "192.0.2.1", 8080, "client").startswith("db")
    assert ask(world, "10.99.1.2", 80, "niso-api") == "", "a full set does not let it pass"
    shown = world.niso("net", "flows")
    assert "full: entered, refused, audited" in shown.stderr and "--forget" in shown.stderr
    metrics = world.niso("metrics").stdout
    assert 'niso_seen_set_full{set="refused"} 1.0' in metrics
    assert 'niso_seen_set_full{set="seen"} 0.0' in metrics
    assert json.loads(world.run("python", "-c", MAP).stdout)["full"] == [
        "entered",
        "refused",
        "audited",
    ]
    after = missed(world)
    assert after[policy_rules.ENTERED] == 1 and after[policy_rules.REFUSED] >= 1
    assert (
        after[policy_rules.SEEN] == after[policy_rules.SWITCHED] == after[policy_rules.AUDITED] == 0
    )
    # nor does that of audits
    network = on("backend", ports=["8080:80"])
    rules = {"network.policy": {"deny_from": ["api"], "mode": "audit"}}
    world.niso("activate", echo(world, "db", network=network, **rules))
    answer(world, "10.99.1.2", 80, "niso-api")
    assert missed(world)[policy_rules.AUDITED] >= 1


def test_a_scan_hides_no_other_denial(world: Lab) -> None:
    world.niso(
        "activate",
        idle(world, "vault", network=on("backend"), **{"network.policy": {"allow_from": []}}),
    )
    db, api, web, vault, client = "10.99.1.2", "10.99.1.3", "10.99.1.4", "10.99.1.5", "192.0.2.2"
    ports = SHARE + 100
    scan(world, "niso-api", db, 1000, 1000 + ports)
    # so many others as fill the rest of the set, if each had no share
    send(world, "niso-web", vault, 81)
    kept = elements(world, "refused4")
    assert (web, vault, "udp", 81) in kept
    of_api = {key for key in kept if key[0] == api}
    assert SHARE <= len(of_api) <= SHARE + 1
    lost = missed(world, beyond=True)[policy_rules.REFUSED]
    assert ports - len(of_api) == lost > 0 and missed(world)[policy_rules.REFUSED] == 0
    # further attempts at a recorded port are counted, and those of niso's own bookkeeping are not
    send(world, "niso-api", db, 1000)
    denied = world.niso("net", "flows", "--denied", "--json")
    found = {
        (f["from"]["name"], f["to"]["name"], f["port"]): f["new"] for f in json.loads(denied.stdout)
    }
    assert found["api", "db", 1000] == 2 and found["web", "vault", 81] == 1
    assert f"{lost} refused attempts of api are not recorded" in denied.stderr
    assert "net flows --forget" in denied.stderr
    state = json.loads(world.run("python", "-c", MAP).stdout)
    pairs = {(f["from"]["name"], f["to"]["name"], f["verdict"]) for f in state["flows"]}
    assert {("api", "db", "drop"), ("web", "vault", "drop")} <= pairs
    cut = sum(f["not_shown"] for f in state["flows"])
    drawn = sum(f["from"]["name"] == "api" for f in state["flows"])
    assert cut == state["not_shown"] and drawn + cut == len(of_api) and state["beyond"] == lost
    assert state["beyond_from"] == ["api"]
    # a machine outside has no room in the set of services, and its address is recorded
    world.run("ip", "route", "replace", "10.99.1.0/24", "via", HOST, netns="client")
    scan(world, "client", db, 1000, 1000 + ports)
    send(world, "client", vault, 83)
    assert not [key for key in elements(world, "refused4") if key[0] == client]
    kept = elements(world, "direct4")
    assert {key[:2] for key in kept} == {(client, db)} and len(kept) >= SHARE
    shown = world.niso("net", "flows", "--denied").stdout
    assert "db can be reached from outside the host only by its published ports" in shown
    # a warning names only sources that have lost attempts, also after one source was forgotten
    assert [said.partition(" of ")[2] for said in beyond(world)] == [f"{client}, api"]
    world.niso("net", "flows", "--forget", "--denied", "api")
    assert [said.partition(" of ")[2] for said in beyond(world)] == [client]
    assert not [key for key in elements(world, "refused4", "direct4") if api in key[:2]]
    assert (web, vault, "udp", 81) in elements(world, "refused4")
    # the holder of the share has gone, and the next one begins with an empty share
    world.niso("net", "flows", "--forget", "--denied")
    assert elements(world, *SETS) <= elements(world, "seen4", "switched4", "seen6")
    assert not any(missed(world, beyond=True).values())
    send(world, "niso-api", db, 7000)
    send(world, "client", vault, 83)
    assert elements(world, "refused4") == {(api, db, "udp", 7000)}
    assert elements(world, "direct4") == {(client, vault, "udp", 83)}
    world.niso("net", "flows", "--forget")
    assert elements(world, *SETS) == set()


def test_flows_of_one_source_hide_no_flow_of_another(world: Lab) -> None:
    db, api, web = "10.99.1.2", "10.99.1.3", "10.99.1.4"
    rules = {"network.policy": {"allow_from": ["db", "web", "api:7-9"]}}
    world.niso("activate", idle(world, "vault", network=on("backend"), **rules))
    vault = "10.99.1.5"
    # so many others as fill the set together with the flows of web, if web has no share
    room = policy_rules.SIZES[policy_rules.SEEN] - SHARE_SEEN - 50
    keys = [f"10.{i >> 8}.{i & 255}.1 . 10.0.0.1 . tcp . 1" for i in range(room)]
    fill = f"element inet niso seen4 {{ {', '.join(keys)} }}"
    world.run("nft", "-f", "-", input=f"add {fill}")
    ports = SHARE_SEEN + 200
    scan(world, "niso-web", db, 1000, 1000 + ports)
    send(world, "niso-api", vault, 8)
    world.run("nft", "-f", "-", input=f"delete {fill}")
    kept = elements(world, "seen4")
    assert (api, vault, "udp", 8) in kept
    lost = ports - sum(key[0] == web for key in kept)
    assert 198 <= lost <= 200
    assert beyond(world) == [f"{lost} new flows of web"]
    # learn keeps what web may have used, and only that
    learned = world.niso("net", "learn", "vault", "--egress", "--json")
    assert "new flows of web are missing" in learned.stderr
    (policy,) = json.loads(learned.stdout)
    allowed = {entry["text"]: entry["allowed"] for entry in policy["allow_from"]}
    assert allowed == {"db": False, "web": True, "api:8/udp": True}
    world.niso("net", "flows", "--forget", "web")
    assert beyond(world) == []
    # a machine outside that has many addresses is one source
    world.niso("net", "create", "six", "--subnet", "fd00:99:6::/64")
    world.niso("activate", idle(world, "inner", network=on("six")))
    world.run("ip", "route", "add", "fd00:99:6::/64", "via", "2001:db8::1", netns="client")
    many = (
        "import socket\nfor i in range(1, %d):\n s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        " s.setsockopt(41, 78, 1)  # IPV6_FREEBIND\n s.bind(('2001:db8:5::%%x' %% i, 0)); s.sendto(b'x', ('fd00:99:6::2', 9))"
    )
    world.run("python3", "-ISc", many % (SHARE + 51), netns="client")
    send(world, "client", "fd00:99:6::2", 10)
    found = {key[0] for key in elements(world, "direct6")}
    assert "2001:db8::2" in found and len(found) <= SHARE + 2
    assert beyond(world) == [f"{SHARE + 51 - len(found)} refused attempts of 2001:db8:5::/64"]


def test_packets_of_niso_itself_are_left_out(world: Lab) -> None:
    for to in ("db:80", "db:81/udp", "web:80", "host:80"):
        for source in ("api", "web", "host"):
            world.niso("net", "explain", source, to, "--prove", check=False)
    world.niso("net", "ping", "web", "api")
    assert elements(world, *SETS) == set()
    answer(world, "10.99.1.2", 80, "niso-web")
    assert elements(world, "seen4") == {("10.99.1.4", "10.99.1.2", "tcp", 80)}


def test_network_that_is_not_observed(lab: Lab) -> None:
    lab.niso("net", "create", "quiet", "--subnet", "10.99.1.0/24", "--no-observe")
    ports = ["8080:80"]
    lab.niso("activate", echo(lab, "db", network=on("quiet", ports=ports)))
    lab.niso(
        "activate",
        echo(lab, "hidden", network=on("unseen", ports=["8081:80"])),
        env={"NISO_OBSERVE": "0"},
    )
    for name in ("quiet", "unseen"):
        assert json.loads(lab.niso("net", "inspect", name, "--json").stdout)["observe"] is False
    for port in (8080, 8081):
        answer(lab, "192.0.2.1", port, "client")
    ask(lab, "192.0.2.1", 8080, "niso-hidden")
    assert elements(lab, *SETS) == set()
    wrong = lab.niso("net", "create", "more", env={"NISO_OBSERVE": "no"}, check=False)
    assert wrong.returncode and "NISO_OBSERVE" in wrong.stderr
    # with a service of a network that is observed
    lab.niso("activate", idle(lab, "web"))
    answer(lab, "192.0.2.1", 8080, "niso-web")
    assert {key[1:] for key in elements(lab, "seen4")} == {("10.99.1.2", "tcp", 80)}


def test_bridge_that_nobody_tracks(lab: Lab) -> None:
    filter_bridged(lab, 0)
    lab.niso("net", "create", "plain", "--subnet", "10.99.1.0/24")
    lab.niso("activate", echo(lab, "a", network=on("plain")), idle(lab, "b", network=on("plain")))
    answer(lab, "10.99.1.2", 80, "niso-b")
    server = lab.popen(
        *("/usr/bin/python3", "-ISuc"),
        "import socket; s = socket.socket(2, 2); s.bind(('', 53)); print('up')\n"
        "while True: data, peer = s.recvfrom(65536); s.sendto(data, peer)",
        netns="niso-a",
    )
    assert server.stdout is not None and server.stdout.readline() == b"up\n"
    asks = (
        "import socket\nfor n in (10, 3000):\n s = socket.socket(2, 2); s.settimeout(5)\n"
        " s.sendto(b'x' * n, ('10.99.1.2', 53)); assert len(s.recv(65536)) == n"
    )
    lab.run("/usr/bin/python3", "-ISc", asks, netns="niso-b")
    server.kill()
    assert elements(lab, "switched4") == {
        ("10.99.1.3", "10.99.1.2", "tcp", 80),
        ("10.99.1.3", "10.99.1.2", "udp", 53),  # in fragments too, and no answer
    }
    assert elements(lab, "seen4") == set() and set(missed(lab).values()) == {0}
    scan(lab, "niso-b", "10.99.1.2", 1000, 1000 + SHARE_SEEN + 100)
    kept = len(elements(lab, "switched4"))
    assert SHARE_SEEN <= kept <= SHARE_SEEN + 1
    assert beyond(lab) == [f"{SHARE_SEEN + 102 - kept} new flows of b"]
