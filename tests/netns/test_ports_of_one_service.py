"""Test the ports of one service: its addresses, equal and contradicting entries, ports that niso chooses."""

from __future__ import annotations

import json

from conftest import Lab, assert_whole
from port_rows import end, everything, rows, unchanged
from services import (
    CLIENT,
    HOST,
    ask,
    idle,
    listen,
    on,
    package,
    refused,
)
from talkers import speaker, start


def test_specific_address_wins_over_all_addresses_within_one_service(lab: Lab) -> None:
    ports = ["8080:80", "127.0.0.1:8080:81", "8000-8010:8000-8010", "10.99.0.1:8005:82"]
    start(lab, speaker(lab, "a", 80, 81, 82, 8005, ports=ports))
    for at, port, inner in (
        (HOST, 8080, 80),
        ("127.0.0.1", 8080, 81),
        ("127.0.0.2", 8080, 80),
        (HOST, 8005, 8005),
        ("10.99.0.1", 8005, 82),
    ):
        assert ask(lab, at, port).startswith(f"a {inner} "), (at, port)
    assert ask(lab, HOST, 8080, "client") == f"a 80 {CLIENT}"
    assert_whole(lab)
    # each can go alone, and what is left takes its place
    lab.niso(
        "activate", speaker(lab, "a", 80, 81, 82, 8005, ports=["8080:80", "8000-8010:8000-8010"])
    )
    assert ask(lab, "127.0.0.1", 8080).startswith("a 80 ")
    assert ask(lab, "10.99.0.1", 8005).startswith("a 8005 ")
    assert_whole(lab)


def test_equal_entries_are_one(lab: Lab) -> None:
    twice = [
        "8080:80",
        "8080:80/tcp",
        "8080:80",
        "8000-8001:8000-8001",
        "8000-8001:8000-8001/tcp",
        "0.0.0.0:8080:80",
    ]
    lab.niso("activate", idle(lab, "a", network={"ports": twice}))
    assert rows(lab, "a") == [("0.0.0.0", 8080, 80, "tcp"), ("0.0.0.0", 8000, 8000, "tcp")]
    count = sum(
        len(thing["map"].get("elem", []))
        for thing in lab.nft_json()
        if "map" in thing and thing["map"]["name"] in ("publish_any4", "range_any4")
    )
    assert count == 2
    assert_whole(lab)


def test_entries_that_contradict_each_other_are_refused_with_both_places(lab: Lab) -> None:
    for ports in (
        ["8080:80", "9000:90", "8080:81"],
        ["8080:80", "9000:90", "0.0.0.0:8080:81"],
        ["8000-8010:8000-8010", "9000:90", "8005:80"],
    ):
        said = refused(lab, "activate", idle(lab, "a", network={"ports": ports}))
        assert "network.ports[2]" in said and "network.ports[0]" in said, said
    assert lab.niso("ps", "--json").stdout.strip() == "[]"


# --- host addresses ---------------------------------------------------------------------------------------------------


def test_host_address_that_appears_later_works_at_once(lab: Lab) -> None:
    ports = ["192.0.2.50:8088:80", "192.0.2.50:7000-7001:80-81", "192.0.2.50:8005-8006:8005-8006"]
    start(lab, speaker(lab, "a", 80, 81, 8005, ports=ports))
    assert (
        "nobody: this host has no address 192.0.2.50 now"
        in lab.niso("net", "ports", "--exposed").stdout
    )
    assert ask(lab, "192.0.2.50", 8088, "client") == ""
    before = lab.nft_json()
    lab.run("ip", "address", "add", "192.0.2.50/24", "dev", "uplink0")
    lab.run("ip", "neigh", "flush", "all", netns="client")  # it has just seen that nobody has it
    for port, inner in ((8088, 80), (7001, 81), (8005, 8005)):
        assert (
            lab.wait_for(lambda port=port: ask(lab, "192.0.2.50", port, "client"))
            == f"a {inner} {CLIENT}"
        )
        assert ask(lab, "192.0.2.50", port).startswith(f"a {inner} ")
        assert ask(lab, HOST, port, "client") == ""
    assert len(before) == len(lab.nft_json())
    assert "192.0.2.50 on uplink0" in lab.niso("net", "ports", "--exposed").stdout
    lab.run("ip", "address", "delete", "192.0.2.50/24", "dev", "uplink0")
    lab.run("ip", "address", "add", "192.0.2.50/32", "dev", "lo")
    assert ask(lab, "192.0.2.50", 8088).startswith("a 80 ")
    assert_whole(lab)


def test_loopback_of_ipv6_is_refused_with_the_reason(lab: Lab) -> None:
    for form in ("[::1]:80:80", "[0:0::1]:80:80/udp", "[::1]:80-81:80-81"):
        said = refused(lab, "activate", idle(lab, "a", network={"ports": ["8080:80", form]}))
        assert "network.ports[1]" in said and form in said
        assert "the kernel accepts no packets for ::1 from a bridge" in said and "127.0.0.1" in said
    assert lab.niso("ps", "--json").stdout.strip() == "[]"


def test_ipv6_port_on_a_network_without_ipv6_is_refused(lab: Lab) -> None:
    lab.niso("net", "create", "old", "--subnet", "10.99.7.0/24")
    before = everything(lab)
    for form in ("[::]:8080:8080", "[2001:db8::1]:8080:8080"):
        said = refused(
            lab, "activate", idle(lab, "a", network=on("old", ports=["8080:80/udp", form]))
        )
        assert (
            "network.ports[1]: " in said
            and "is an IPv6 port, and the default route's network of service 'a' has no IPv6 subnet"
            in said
        )
        assert "net create" in said
    unchanged(lab, before)


# --- ports that niso chooses ------------------------------------------------------------------------------------------


def chosen(lab: Lab, name: str) -> list[int]:
    """The host ports of an active service that lie where niso chooses."""
    return [row[1] for row in rows(lab, name) if 20_000 <= row[1] <= 29_999]


def test_free_port_is_kept_and_given_to_nobody_else(lab: Lab) -> None:
    listener = listen(lab, "tcp", "127.0.0.1", 20_000)
    start(lab, speaker(lab, "a", 80, 81, ports=[":80", "127.0.0.1:20001:80", ":80-81", ":80/udp"]))
    first, ranged, udp = chosen(lab, "a")[0], chosen(lab, "a")[2], chosen(lab, "a")[3]
    assert (first, ranged, udp) == (20_002, 20_003, 20_000)  # 20000 of TCP is the host's
    assert ask(lab, HOST, first, "client") == f"a 80 {CLIENT}"
    assert ask(lab, HOST, ranged + 1, "client") == f"a 81 {CLIENT}"
    kept = rows(lab, "a")
    end(listener)
    for commands in (
        [("restart", "a")],
        [("deactivate", "a"), ("activate", "a")],
        [("reset", "--yes"), ("activate", "a")],
    ):
        for command in commands:
            if command == ("activate", "a"):
                # while a is away its ports are not free either
                lab.niso("activate", idle(lab, "b", network={"ports": [":80", ":80-81"]}))
                assert not {*range(first, ranged + 2)} & {
                    *chosen(lab, "b"),
                    chosen(lab, "b")[1] + 1,
                }
                lab.niso("remove", "b")
            lab.niso(*command)
        assert rows(lab, "a") == kept, commands
    # a change of the rest of the manifest does not move them, nor does another order
    lab.niso("activate", speaker(lab, "a", 80, 81, ports=["9999:80", ":80-81", ":80"]))
    assert {row[1] for row in rows(lab, "a")} == {9999, first, ranged}
    lab.niso("deactivate", "a")
    # a process of the host that has it meanwhile leaves no choice
    other = listen(lab, "tcp", "0.0.0.0", first)
    lab.niso("activate", "a")
    assert first not in chosen(lab, "a") and ranged in chosen(lab, "a")
    end(other)
    assert_whole(lab)


def test_wrong_forms_are_all_named_at_once(lab: Lab) -> None:
    wrong = [
        "0:80",
        "80:0",
        "65536:80",
        "80:80/icmp",
        "80-90:80-91",
        "90-80:90-80",
        "256.0.0.1:80:80",
        "::80:80",
        "a:b",
        "",
    ]
    folder = package(lab, "a", "sleep", "1000", network={"ports": ["8080:80", *wrong]})
    done = lab.niso("activate", "--json", folder, check=False)
    assert done.returncode == 1
    errors = [json.loads(line)["error"] for line in done.stderr.splitlines()]
    assert [error["key"] for error in errors] == [
        f"network.ports[{number}]" for number in range(1, len(wrong) + 1)
    ]
