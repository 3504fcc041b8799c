"""Test net create, list, inspect and remove, and the choice of subnets and addresses."""

from __future__ import annotations

import ipaddress
import itertools
import json
import time

import snapshots
from conftest import Lab
from services import CLIENT, address, idle, on, refused, subnets
from wire import ALL, HAZELCAST, MDNS, MDNS6, Ears, Wire


def bridge_addresses(lab: Lab, bridge: str) -> list[str]:
    found = lab.ip_json("-4", "address", "show", "dev", bridge)[0]["addr_info"]
    return [f"{each['local']}/{each['prefixlen']}" for each in found]


def test_create_makes_the_bridge_at_once_and_remove_takes_it_away(lab: Lab) -> None:
    lab.niso("net", "list")
    before = snapshots.take(lab)
    said = lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24").stdout
    assert said == "backend: created  10.99.1.0/24  niso-backend\n"
    link = lab.ip_json("-d", "link", "show", "niso-backend")[0]
    assert link["linkinfo"]["info_kind"] == "bridge" and "UP" in link["flags"]
    assert link["ifalias"].startswith("niso:")
    assert bridge_addresses(lab, "niso-backend") == ["10.99.1.1/24"]
    tables = {
        (item["table"]["family"], item["table"]["name"])
        for item in lab.nft_json()
        if "table" in item
    }
    assert tables == {("inet", "niso"), ("bridge", "niso")}
    assert lab.niso("net", "create", "backend").stdout.startswith(
        "backend: already exists, unchanged"
    )

    assert lab.niso("net", "remove", "backend").stdout == "backend: removed\n"
    after = snapshots.take(lab)
    before["store"] = after["store"]
    before["files"] = {
        path: v for path, v in after["files"].items() if path in before["files"] or "/niso" in path
    }
    assert snapshots.differences(before, after) == []
    assert "no network 'backend'" in refused(lab, "net", "remove", "backend")


def test_networks_avoid_what_the_host_routes(lab: Lab) -> None:
    lab.run("ip", "route", "add", "10.99.0.0/24", "via", "192.0.2.3")
    lab.run("ip", "route", "add", "10.99.2.128/25", "via", "192.0.2.3")
    lab.run("ip", "address", "add", "10.99.3.7/32", "dev", "uplink0")
    lab.run("ip", "route", "add", "2001:db8:77::/48", "via", "2001:db8::3")
    for subnet, taken in (
        ("192.0.2.0/28", "192.0.2.0/24"),
        ("10.99.2.192/26", "10.99.2.128/25"),
        ("10.99.3.0/24", "10.99.3.7/32"),
        ("2001:db8::/60", "2001:db8::/64"),
        ("2001:db8:77::/64", "2001:db8:77::/48"),
    ):
        said = refused(lab, "net", "create", "new", "--subnet", subnet)
        assert f"overlaps {taken}" in said and "uplink0" in said
    lab.niso("activate", idle(lab, "api"))
    assert address(lab, "api") == "10.99.1.2"
    lab.niso("net", "create", "one", "--ipv6")
    ipv4, ipv6 = map(ipaddress.ip_network, subnets(lab)["one"].split(", "))
    assert str(ipv4) == "10.99.4.0/24" and ipv6.subnet_of(ipaddress.ip_network("fd00::/8"))
    whole = list(ipv6.supernet(new_prefix=48).subnets(new_prefix=64))
    assert ipv6 == whole[0]
    lab.run("ip", "route", "add", str(whole[1]), "via", "2001:db8::3")
    lab.niso("net", "create", "two", "--subnet", "10.50.0.0/24", "--ipv6")
    assert subnets(lab)["two"] == f"10.50.0.0/24, {whole[2]}"
    # a host without IPv6 is told so, and has networks of IPv4
    lab.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    for asked in (["--ipv6"], ["--subnet", "fd00:5::/64"]):
        said = refused(lab, "net", "create", "backend", *asked)
        assert "net.ipv6.conf.all.disable_ipv6 is 1" in said
    lab.niso("net", "create", "backend")


def test_gateways_and_mtu_of_both_families(lab: Lab) -> None:
    lab.run("ip", "link", "set", "uplink0", "mtu", "1000")
    given = ("--subnet", "fd00:5::/64", "--subnet", "10.50.0.0/29")
    lab.niso(
        "net", "create", "backend", *given, "--gateway", "fd00:5::ff", "--gateway", "10.50.0.2"
    )
    link = lab.ip_json("address", "show", "dev", "niso-backend")[0]
    found = {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]}
    assert found == {"10.50.0.2/29", "fd00:5::ff/64", "fe80::1/64"}
    assert link["mtu"] == 1280  # the least that IPv6 works with
    lab.niso("activate", *(idle(lab, f"s{number}", network=on("backend")) for number in range(5)))
    own = [address(lab, f"s{number}") for number in range(5)]
    assert own == [f"10.50.0.{n}" for n in (1, 3, 4, 5, 6)]
    assert lab.ip_json("route", "show", "default", netns="niso-s0")[0]["gateway"] == "10.50.0.2"


def test_mtu_is_that_of_the_default_route_or_as_asked_for(lab: Lab) -> None:
    lab.run("ip", "link", "set", "uplink0", "mtu", "1400")
    lab.niso("net", "create", "small", "--mtu", "1300")
    lab.niso("activate", idle(lab, "api", network={"networks": ["niso-default", "small"]}))
    for link, mtu in (("eth0", 1400), ("eth1", 1300)):
        assert lab.ip_json("link", "show", link, netns="niso-api")[0]["mtu"] == mtu
    ends = {link["ifname"]: (link["mtu"], link.get("master")) for link in lab.ip_json("link")}
    assert ends["niso-default"][0] == 1400 and ends["niso-small"][0] == 1300
    assert {mtu for mtu, master in ends.values() if master == "niso-small"} == {1300}
    # an uplink with a smaller MTU than a network, such as a VPN that was started later
    assert "MTU" not in lab.niso("net", "check").stderr
    lab.run("ip", "link", "set", "uplink0", "mtu", "1350")
    for argv in (("net", "check"), ("activate", idle(lab, "api", package={"version": "2.0.0"}))):
        said = lab.niso(*argv).stderr
        assert "network niso-default has an MTU of 1400 bytes" in said
        assert "192.0.2.1, has 1350" in said and "hint: use a network made with --mtu 1350" in said
        assert "network small" not in said
    lab.run("ip", "route", "change", "default", "via", CLIENT, "dev", "uplink0", "mtu", "1200")
    assert "network small has an MTU of 1300" in lab.niso("net", "check", "small").stderr
    assert "network small" not in lab.niso("net", "check").stderr  # no service is on it now


# --- multicast and broadcast ----------------------------------------------------------------------


def counted(lab: Lab, service: str) -> dict[str, int]:
    rows = json.loads(lab.niso("net", "policy", "show", service, "--json").stdout)
    return {row["key"].removeprefix("network.policy."): row["packets"] for row in rows}


def test_multicast_and_broadcast_pass_between_services_of_one_network(lab: Lab) -> None:
    dual = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    lab.niso("net", "create", "hall", *dual, "--multicast")
    lab.niso("net", "create", "room", "--ipv6", "--multicast")
    lab.niso("net", "create", "plain", "--ipv6")
    services = {
        "api": on("hall", ports=["8080:80"]),
        "web": on("hall"),
        "shy": on("hall", policy={"allow_from": ["web:5353/udp"]}),
        "shut": on("hall", policy={"allow_from": []}),
        "mute": on("hall", policy={"egress": {"allow": ["web", "255.255.255.255:5353/udp"]}}),
        "near": on("room"),  # without ports and policies, so without connection tracking
        "far": on("room"),
        "one": on("plain"),
        "two": on("plain"),
    }
    lab.niso("activate", *(idle(lab, name, network=own) for name, own in services.items()))
    links: dict[str, tuple[str | None, str]] = {name: (f"niso-{name}", "eth0") for name in services}
    with Wire(lab) as wire:
        ears = Ears(lab, wire, links | {"host": (None, "niso-hall")})
        for to in (MDNS, HAZELCAST, ALL, "10.99.1.255", MDNS6):
            assert ears.hearers("api", to) == {"web", "mute"}, to
            assert ears.hearers("web", to) == {"api", "shy", "mute"}, to
            assert ears.hearers("mute", to) == ({"api", "web"} if to == ALL else set()), to
            own = ALL if to == "10.99.1.255" else to
            assert ears.hearers("near", own) == {"far"}, own
            assert ears.hearers("one", to) == set(), to
        # a policy for one port applies to a packet in fragments too
        for name, to in itertools.product(("web", "api"), (MDNS, MDNS6)):
            ears.say(name, to, text=f"{name}{to}".ljust(3000))
            time.sleep(0.3)
            heard = {ear for ear in ears.of if [t for t in ears.heard(ear) if t.startswith(name)]}
            others = {"api", "mute", "shy"} if name == "web" else {"web", "mute"}
            assert heard == others, (name, to)
        assert ears.hearers("host", MDNS) == {"api", "web", "shy", "shut", "mute"}
        # the sender's policy is evaluated once for all copies of a packet
        lab.niso("net", "flows", "--forget")
        before = counted(lab, "mute")
        for to in (MDNS, MDNS6, "10.99.1.255", ALL):
            ears.say("mute", to)
        time.sleep(0.2)
        rows = json.loads(lab.niso("net", "flows", "--json").stdout)
        assert {(row["to"]["address"], row["verdict"]): row["new"] for row in rows} == {
            (to, "drop"): 1 for to in (MDNS, MDNS6, "10.99.1.255")
        }
        after = counted(lab, "mute")
        assert {key: after[key] - before[key] for key in after} == {
            "egress.allow[0]": 0,
            "egress.allow[1]": 1,
            "egress.allow": 3,
        }
        said = lab.niso("net", "explain", "api", f"{MDNS}:5353/udp").stdout
        assert "ingress  pass  received by mute, web; refused by the policies of shut, shy" in said
        assert lab.niso("net", "explain", "one", f"{MDNS}:5353/udp", check=False).returncode == 1
        assert lab.niso("net", "explain", "mute", f"{MDNS}:5353/udp", check=False).returncode == 1
        # a policy is for sender and port, and follows changes
        ears.say("web", "10.99.1.255", 5354)
        lab.niso("activate", idle(lab, "shy", network=on("hall", policy={"allow_from": ["api"]})))
        assert ears.hearers("api", MDNS6) == {"web", "mute", "shy"}
        assert ears.hearers("web", MDNS) == {"api", "mute"}
        # 100 a second, and 500 at once
        for _ in range(2000):
            ears.say("api", HAZELCAST, text="flood")
        assert 500 <= ears.heard("web").count("flood") < 1500
        (limit,) = (
            item["rule"]["expr"]
            for item in lab.nft_json()
            if item.get("rule", {}).get("comment", "").startswith("too many multicasts and broad")
        )
        assert next(e["counter"]["packets"] for e in limit if "counter" in e) >= 500
    assert "Multicast: yes" in lab.niso("net", "inspect", "hall").stdout
    assert "already exists with multicast" in refused(lab, "net", "create", "hall", *dual)
    assert "already exists without" in refused(
        lab, "net", "create", "plain", "--ipv6", "--multicast"
    )
    assert lab.niso("net", "check").stdout.startswith("OK")
