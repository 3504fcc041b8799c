"""Test net create, list, inspect and remove, and the choice of subnets and addresses."""

from __future__ import annotations

import ipaddress
import itertools
import json
import time

import snapshots
from conftest import Lab
from services import (
    CLIENT,
    address,
    idle,
    on,
    refused,
    subnets,
)
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


def test_list_and_inspect_show_what_the_seed_shows(lab: Lab) -> None:
    assert lab.niso("net", "list", "--json").stdout == "[]\n"
    assert lab.niso("net", "list").stdout == "NAME  SUBNET  SERVICES\n"
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    lab.niso("activate", idle(lab, "api", network=on("backend", ports=["8080:8080"])))
    lab.niso("activate", idle(lab, "worker", network=on("backend")), idle(lab, "other"))
    lab.niso("deactivate", "worker")
    assert [line.split() for line in lab.niso("net", "list").stdout.splitlines()] == [
        ["NAME", "SUBNET", "SERVICES"],
        ["niso-default", "10.99.0.0/24", "1"],
        ["backend", "10.99.1.0/24", "2"],
    ]
    assert json.loads(lab.niso("net", "list", "--json").stdout)[1] == {
        "name": "backend",
        "subnet": "10.99.1.0/24",
        "services": 2,
        "elsewhere": 0,
        "vni": None,
    }
    assert lab.niso("net", "inspect", "backend").stdout == (
        "Name: backend\nSubnet: 10.99.1.0/24\nBridge: niso-backend\nServices:\n"
        "  api     10.99.1.2  ports: 8080→8080\n"
        "  worker  10.99.1.3  ports: none (inactive)\n"
    )
    python = ("python", "-m", "niso.cli")  # the command ignores these variables
    ascii_only: dict[str, str | None] = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    assert "8080->8080" in lab.run(*python, "net", "inspect", "backend", env=ascii_only).stdout
    found = json.loads(lab.niso("net", "inspect", "backend", "--json").stdout)
    assert found["services"][0]["ports"] == [
        {"host_ip": "0.0.0.0", "host_port": 8080, "container_port": 8080, "proto": "tcp"}
    ]
    assert "no network 'nothing'" in refused(lab, "net", "inspect", "nothing")


def test_ports_and_rules_show_what_is_published(lab: Lab) -> None:
    assert lab.niso("net", "ports").stdout.split() == ["SERVICE", "HOST", "CONTAINER", "PROTO"]
    assert lab.niso("net", "ports", "--json").stdout == "[]\n"
    assert lab.niso("net", "rules").stdout == ""
    lab.niso(
        "activate",
        idle(lab, "api", network={"ports": ["8080:80", "8080:80/tcp", "0.0.0.0:443:443"]}),
    )
    rows = [line.split() for line in lab.niso("net", "ports").stdout.splitlines()[1:]]
    assert rows == [["api", "0.0.0.0:8080", "80", "tcp"], ["api", "0.0.0.0:443", "443", "tcp"]]
    row = json.loads(lab.niso("net", "ports", "--json").stdout)[0]
    assert row | {"service": "api", "container": 80, "proto": "tcp"} == row
    assert {
        "host_ip": "0.0.0.0",
        "host_port": 8080,
        "container_port": 80,
        "proto": "tcp",
    }.items() <= row.items()
    assert 'tcp . 8080 comment "api" : 10.99.0.2 . 80' in lab.niso("net", "rules").stdout
    rules = json.loads(lab.niso("net", "rules", "--json").stdout)["nftables"]
    assert {rule["map"]["name"] for rule in rules if "map" in rule} >= {"publish_any4"}
    lab.niso("deactivate", "api")
    assert lab.niso("net", "ports", "--json").stdout == "[]\n"


def test_networks_without_subnet_take_the_next_free_24_past_what_the_host_routes(lab: Lab) -> None:
    lab.run("ip", "route", "add", "10.99.2.128/25", "via", "192.0.2.3")
    lab.run("ip", "address", "add", "10.99.3.7/32", "dev", "uplink0")
    for name in ("one", "two", "three"):
        lab.niso("net", "create", name)
    lab.niso("activate", idle(lab, "api"))
    assert subnets(lab) == {
        "one": "10.99.1.0/24",
        "two": "10.99.4.0/24",
        "three": "10.99.5.0/24",
        "niso-default": "10.99.0.0/24",
    }
    lab.niso("net", "remove", "one")
    lab.niso("net", "create", "four")
    assert subnets(lab)["four"] == "10.99.1.0/24"


def test_list_has_the_default_network_first_and_the_others_by_name(lab: Lab) -> None:
    for name in ("zoo", "backend", "niso-a"):
        lab.niso("net", "create", name)
    lab.niso("activate", idle(lab, "api"))
    wanted = ["niso-default", "backend", "niso-a", "zoo"]
    assert [row["name"] for row in json.loads(lab.niso("net", "list", "--json").stdout)] == wanted
    assert [line.split()[0] for line in lab.niso("net", "list").stdout.splitlines()[1:]] == wanted


def test_default_network_takes_the_next_free_24_where_the_host_uses_its_own(lab: Lab) -> None:
    lab.run("ip", "route", "add", "10.99.0.0/24", "via", "192.0.2.3")
    lab.niso("activate", idle(lab, "api"))
    assert subnets(lab) == {"niso-default": "10.99.1.0/24"}
    assert address(lab, "api") == "10.99.1.2"


def test_network_that_meets_what_the_host_routes_is_refused_and_changes_nothing(lab: Lab) -> None:
    lab.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.3")
    lab.run("ip", "address", "add", "203.0.113.9/32", "dev", "uplink0")
    lab.run("ip", "route", "add", "2001:db8:77::/48", "via", "2001:db8::3")
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:0:5::/64")
    before = snapshots.take(lab)
    for subnet, taken in (
        ("192.0.2.0/28", "192.0.2.0/24"),
        ("198.51.100.64/26", "198.51.100.0/24"),
        ("203.0.113.0/24", "203.0.113.9/32"),
        ("2001:db8::/60", "2001:db8::/64"),
        ("2001:db8:77::/64", "2001:db8:77::/48"),
    ):
        said = refused(lab, "net", "create", "new", "--subnet", subnet)
        assert f"overlaps {taken}" in said and "uplink0" in said
    assert "--subnet" in refused(lab, "net", "create", "new", "--subnet", "x", status=2)
    assert snapshots.differences(before, snapshots.take(lab)) == []


def test_ipv6_takes_the_next_free_unique_local_64_of_one_prefix(lab: Lab) -> None:
    lab.niso("net", "create", "one", "--ipv6")
    first = ipaddress.IPv6Network(subnets(lab)["one"].split(", ")[1])
    assert first.prefixlen == 64 and first.subnet_of(ipaddress.IPv6Network("fd00::/8"))
    whole = first.supernet(new_prefix=48)
    assert first.network_address == whole.network_address
    lab.run("ip", "route", "add", str(list(whole.subnets(new_prefix=64))[1]), "via", "2001:db8::3")
    lab.niso("net", "create", "two", "--subnet", "10.50.0.0/24", "--ipv6")
    assert subnets(lab)["two"] == f"10.50.0.0/24, {list(whole.subnets(new_prefix=64))[2]}"
    lab.niso("net", "remove", "one")
    lab.niso("net", "create", "three", "--ipv6")
    assert subnets(lab)["three"] == f"10.99.1.0/24, {first}"


def test_gateways_and_mtu_of_both_families(lab: Lab) -> None:
    lab.run("ip", "link", "set", "uplink0", "mtu", "1000")
    gateways = ("--gateway", "fd00:5::ff", "--gateway", "10.50.0.9")
    lab.niso(
        "net", "create", "backend", "--subnet", "fd00:5::/64", "--subnet", "10.50.0.0/24", *gateways
    )
    link = lab.ip_json("address", "show", "dev", "niso-backend")[0]
    found = {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]}
    assert found == {"10.50.0.9/24", "fd00:5::ff/64", "fe80::1/64"}
    assert link["mtu"] == 1280  # the least that IPv6 works with


def test_host_without_ipv6_is_told_so_and_has_networks_of_ipv4(lab: Lab) -> None:
    lab.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
    for asked in (["--ipv6"], ["--subnet", "fd00:5::/64"]):
        assert "net.ipv6.conf.all.disable_ipv6 is 1" in refused(
            lab, "net", "create", "backend", *asked
        )
    lab.niso("net", "create", "backend")
    assert subnets(lab) == {"backend": "10.99.1.0/24"}


def test_network_name_that_cannot_be_is_refused(lab: Lab) -> None:
    for name in ("default", "Backend", "1st", "a_b", "x" * 64, "-a", "a/b", ""):
        assert "NAME" in refused(lab, "net", "create", "--", name, status=2)
        assert subnets(lab) == {}


def test_foreign_link_of_the_bridge_name_is_an_error_and_untouched(lab: Lab) -> None:
    lab.run("ip", "link", "add", "niso-backend", "type", "bridge")
    lab.niso("net", "list")
    before = snapshots.take(lab)
    said = refused(lab, "net", "create", "backend")
    assert "link 'niso-backend' exists and does not belong to this niso" in said
    after = snapshots.take(lab)
    before["store"] = {table: [] for table in after["store"]} | {"meta": after["store"]["meta"]}
    before["files"] = after["files"]
    assert snapshots.differences(before, after) == []


def test_gateway_is_the_bridge_address_and_given_to_no_service(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.50.0.0/29", "--gateway", "10.50.0.2")
    assert bridge_addresses(lab, "niso-backend") == ["10.50.0.2/29"]
    lab.niso("activate", *(idle(lab, f"s{number}", network=on("backend")) for number in range(5)))
    assert [address(lab, f"s{number}") for number in range(5)] == [
        f"10.50.0.{n}" for n in (1, 3, 4, 5, 6)
    ]
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


def test_networks_remove_refuses_while_a_known_service_is_on_it(lab: Lab) -> None:
    lab.niso("net", "create", "backend")
    lab.niso("net", "create", "free")
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.niso("deactivate", "api")
    before = snapshots.take(lab)
    said = refused(lab, "net", "remove", "free", "backend")
    assert "network 'backend' is used by api" in said and "can be removed once" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []
    lab.niso("remove", "api")
    lab.niso("net", "remove", "free", "backend")
    assert subnets(lab) == {}


def test_network_made_by_an_activation_goes_with_its_last_service_and_a_created_one_stays(
    lab: Lab,
) -> None:
    lab.niso("net", "create", "kept")
    lab.niso("activate", idle(lab, "api", network={"networks": ["kept", "made"]}))
    lab.niso("remove", "api")
    assert set(subnets(lab)) == {"kept"}
    assert [link["ifname"] for link in lab.ip_json("link", "show", "type", "bridge")] == [
        "niso-kept"
    ]


def test_dry_run_of_create_and_remove_prints_the_steps_that_then_run(lab: Lab) -> None:
    lab.niso("net", "create", "backend")
    before = snapshots.take(lab)
    planned = lab.niso("net", "create", "--dry-run", "new").stdout
    assert "ip link add niso-new mtu 1500 group 1852403456 type bridge" in planned
    assert (
        "ip address add fd"
        in lab.niso("net", "create", "--dry-run", "new", "--ipv6", "--internal").stdout
    )
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert lab.niso("net", "create", "-v", "new").stderr == planned
    before = snapshots.take(lab)
    planned = lab.niso("net", "remove", "--dry-run", "new").stdout
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert lab.niso("net", "remove", "-v", "new").stderr == planned


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
