"""Test occupied and automatically chosen host ports, and how published ports are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from port_rows import end, everything, unchanged
from services import (
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    echo,
    idle,
    listen,
    on,
    ps,
    refused,
)
from talkers import speaker, start

HELD = (
    "8080:80",
    "8000-8010:8000-8010",
    "127.0.0.1:5432:81",
    "192.0.2.1:8443:443",
    "0.0.0.0:9000:90",
    "53:53/udp",
    "192.0.2.1:7000-7009:7000-7009",
)


@pytest.fixture(scope="module")
def taken() -> Iterator[Lab]:
    """``a`` has the ports `HELD`. The tests that share it leave it as they find it."""
    with Lab(600) as lab:
        start(lab, speaker(lab, "a", 80, 81, ports=list(HELD)))
        yield lab


# --- another service has it -------------------------------------------------------------------------------------------


def test_port_that_another_service_has_names_it_and_changes_nothing(taken: Lab) -> None:
    before = everything(taken)
    for wanted, host, held in (
        ("8080:81", "8080/tcp", ""),
        ("0.0.0.0:8080:80", "0.0.0.0:8080/tcp", "8080/tcp"),
        ("127.0.0.1:8080:80", "127.0.0.1:8080/tcp", "8080/tcp"),
        ("8005:80", "8005/tcp", "8000-8010/tcp"),
        ("192.0.2.9:8000:80", "192.0.2.9:8000/tcp", "8000-8010/tcp"),
        ("8000-8010:8000-8010", "8000-8010/tcp", ""),
        ("7995-8000:7995-8000", "7995-8000/tcp", "8000-8010/tcp"),
        ("8010-8012:80-82", "8010-8012/tcp", "8000-8010/tcp"),
        ("8003-8004:80-81", "8003-8004/tcp", "8000-8010/tcp"),
        ("5432:5432", "5432/tcp", "127.0.0.1:5432/tcp"),
        ("127.0.0.1:5430-5440:1-11", "127.0.0.1:5430-5440/tcp", "127.0.0.1:5432/tcp"),
        ("8443:443", "8443/tcp", "192.0.2.1:8443/tcp"),
        ("9000:90", "9000/tcp", "0.0.0.0:9000/tcp"),
        ("127.0.0.1:9000:90", "127.0.0.1:9000/tcp", "0.0.0.0:9000/tcp"),
        ("53:5353/udp", "53/udp", ""),
        ("7005:80", "7005/tcp", "192.0.2.1:7000-7009/tcp"),
        ("192.0.2.1:7009-7010:80-81", "192.0.2.1:7009-7010/tcp", "192.0.2.1:7000-7009/tcp"),
    ):
        folder = idle(taken, "b", network={"ports": ["4000:4000", wanted]})
        said = refused(taken, "activate", folder)
        words = f"network.ports[1]: host port {host} is published by 'a'{f' as {held}' if held else ''}\n"
        assert (
            words in said and f"{folder}/manifest.toml" in said and "or release it from a" in said
        ), said
    unchanged(taken, before)


def test_ports_that_do_not_meet_are_shared_by_number(taken: Lab) -> None:
    """By protocol, by address, and beside a range; a packet to each comes to whom it should."""
    ports = [
        "8080:80/udp",
        "127.0.0.2:5432:80",
        "10.99.0.1:8443:80",
        "8011:80",
        "7999:80",
        "53:80/tcp",
        "53:53/sctp",
    ]
    ports += ["127.0.0.1:7000-7009:7000-7009", "192.0.2.77:8443:80"]
    start(taken, speaker(taken, "b", ports=ports))
    for at, port, who in (
        ("127.0.0.1", 5432, "a 81"),
        ("127.0.0.2", 5432, "b 80"),
        (HOST, 8080, "a 80"),
        ("10.99.0.1", 8443, "b 80"),
        (HOST, 8011, "b 80"),
        (HOST, 7999, "b 80"),
        (HOST, 53, "b 80"),
    ):
        assert ask(taken, at, port).startswith(f"{who} "), (at, port)
    assert ask(taken, HOST, 5432, "client") == ""
    assert_whole(taken)
    taken.niso("remove", "b")


def test_two_services_of_one_activation_that_clash_are_refused_together(taken: Lab) -> None:
    before = everything(taken)
    one = idle(taken, "one", network={"ports": ["6000:80"]})
    two = idle(taken, "two", network={"ports": ["127.0.0.1:6000:80"]})
    said = refused(taken, "activate", one, two)
    assert (
        "network.ports[0]: host port 127.0.0.1:6000/tcp is published by 'one' as 6000/tcp" in said
    )
    assert "hint: one is part of this command: choose another port for one of the two\n" in said
    unchanged(taken, before)
    for keys, words in (
        ({"ip": "10.99.0.77"}, "choose another address for one of the two"),
        ({"aliases": ["both"]}, "choose another name for one of the two"),
    ):
        said = refused(
            taken, "activate", idle(taken, "one", network=keys), idle(taken, "two", network=keys)
        )
        assert f"two/manifest.toml: network.{next(iter(keys))}: " in said
        assert f"hint: one is part of this command: {words}\n" in said
    unchanged(taken, before)


def test_all_that_a_manifest_cannot_have_is_told_at_once(taken: Lab) -> None:
    """Names, an address, and ports of services and of a process of the host, each with its key."""
    listener = listen(taken, "tcp", "0.0.0.0", 6100)
    taken.niso(
        "activate", idle(taken, "one", network={"ip": "10.99.0.77", "aliases": ["www", "web"]})
    )
    before = everything(taken)
    network = {
        "ip": "10.99.0.77",
        "aliases": ["www", "web", "own"],
        "ports": ["8080:81", "4000:4000", "6100:80", "8005:80"],
    }
    said = refused(taken, "activate", idle(taken, "two", network=network))
    keys = [line.split(": ")[2] for line in said.splitlines() if line.startswith("niso: ")]
    ports = [f"network.ports[{place}]" for place in (0, 2, 3)]
    assert keys == ["network.aliases", "network.aliases", "network.ip", *ports], said
    unchanged(taken, before)
    listener.kill()


def test_service_swaps_a_port_with_another_in_one_activation(lab: Lab) -> None:
    """Each takes what the other gives up; and where a third one stands in the way, both keep what they had."""
    start(lab, speaker(lab, "one", ports=["6001:80"]), speaker(lab, "two", ports=["6002:80"]))
    start(lab, speaker(lab, "three", ports=["6003:80"]))
    before = everything(lab)
    for first, second in (("one", "two"), ("two", "one")):
        folders = [
            speaker(lab, first, ports=["6002:80", "6003:80"]),
            speaker(lab, second, ports=["6001:80"]),
        ]
        assert "6003/tcp is published by 'three'" in refused(lab, "activate", *folders)
        unchanged(lab, before)
    folders = [speaker(lab, "one", ports=["6002:80"]), speaker(lab, "two", ports=["6001:80"])]
    lab.niso("activate", *folders)
    assert ask(lab, HOST, 6002, "client") == f"one 80 {CLIENT}"
    assert ask(lab, HOST, 6001, "client") == f"two 80 {CLIENT}"
    assert_whole(lab)


# --- a process of the host has it -------------------------------------------------------------------------------------


LISTENERS: tuple[tuple[str, str, list[str], list[str]], ...] = (
    ("tcp", "0.0.0.0", ["{}:80", "127.0.0.1:{}:80", "6090-6199:6090-6199"], ["{}:80/udp"]),
    ("tcp", "::", ["{}:80", "192.0.2.1:{}:80"], ["{}:80/udp"]),
    ("tcp", HOST, ["{}:80", "192.0.2.1:{}:80"], ["127.0.0.1:{}:80"]),
    ("tcp", "127.0.0.1", ["0.0.0.0:{}:80", "127.0.0.1:{}:80"], ["192.0.2.1:{}:80"]),
    ("tcp", "::ffff:192.0.2.1", ["{}:80"], ["127.0.0.1:{}:80"]),
    ("udp", "0.0.0.0", ["{}:80/udp", "6590-6605:80-95/udp"], ["{}:80", "{}:80/sctp"]),
    ("udp", "::", ["{}:80/udp"], ["{}:80"]),
    ("udp", "127.0.0.1", ["{}:80/udp"], ["192.0.2.1:{}:80/udp"]),
)
"""How a process of the host listens, what is refused then, and what is not."""


def test_port_of_a_process_of_the_host_names_it_and_changes_nothing(taken: Lab) -> None:
    numbers = [6100 + 100 * place for place in range(len(LISTENERS))]
    listeners = [
        listen(taken, proto, at, number)
        for (proto, at, *_), number in zip(LISTENERS, numbers, strict=True)
    ]
    before = everything(taken)
    for number, listener, (*_, clash, _) in zip(numbers, listeners, LISTENERS, strict=True):
        who = f"is used by python3 (pid {listener.pid}), which listens on "
        for form in (each.format(number) for each in clash):
            said = refused(
                taken, "activate", idle(taken, "b", network={"ports": ["4000:4000", form]})
            )
            assert (
                "network.ports[1]: host port " in said and who in said and f":{number}\n" in said
            ), said
        said = refused(taken, "port-forward", "a", clash[0].format(number))
        assert who in said, said
    unchanged(taken, before)
    forms = [
        form.format(number)
        for number, (*_, free) in zip(numbers, LISTENERS, strict=True)
        for form in free
    ]
    taken.niso("activate", idle(taken, "b", network={"ports": forms}))
    taken.niso("remove", "b")
    for listener in listeners:
        end(listener)
    # what the processes had is free when they are gone
    forms = [
        clash[0].format(number) for number, (*_, clash, _) in zip(numbers, LISTENERS, strict=True)
    ]
    taken.niso("activate", idle(taken, "b", network={"ports": forms}))
    taken.niso("remove", "b")


def test_sockets_that_take_no_packets_of_their_own_are_no_conflict(taken: Lab) -> None:
    """A client's connected socket, and a listener of another machine."""
    other = listen(taken, "tcp", "0.0.0.0", 6000, netns="client")
    connected = taken.popen(
        "python3",
        "-ISc",
        "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 6000)); s.connect(('192.0.2.2', 53));"
        "print(1, flush=True); time.sleep(300)",
    )
    assert connected.stdout and connected.stdout.readline() == b"1\n"
    taken.niso("activate", idle(taken, "b", network={"ports": ["6000:80", "6000:80/udp"]}))
    taken.niso("remove", "b")
    end(other)
    end(connected)


def test_process_that_comes_later_does_not_keep_a_service_from_its_port(taken: Lab) -> None:
    """What a service has is not looked at again: an unchanged activate changes nothing, and its port is still its own."""
    listener = listen(taken, "tcp", "0.0.0.0", 8080)
    before = everything(taken)
    taken.niso("activate", "a")
    unchanged(taken, before)
    assert ask(taken, HOST, 8080, "client") == f"a 80 {CLIENT}"
    program = f"python3 (pid {listener.pid}) listens on 0.0.0.0:8080"
    shadowed = f"{program}, and gets no packets for 8080/tcp"
    checked = taken.niso("net", "check", check=False)
    assert checked.returncode == 1
    assert checked.stdout == f"foreign: {shadowed} (service 'a' publishes it)\n"
    assert taken.niso("net", "check", "a", check=False).stdout == checked.stdout
    rows = json.loads(taken.niso("net", "ports", "--exposed", "--json").stdout)
    assert [row["host"] for row in rows if shadowed in row["from"]] == ["0.0.0.0:8080"]
    end(listener)
    taken.niso("net", "check")


# --- how they read ----------------------------------------------------------------------------------------------------


def test_ports_read_as_the_contract_says(taken: Lab) -> None:
    text = [
        "8080→80",
        "8000-8010→8000-8010",
        "127.0.0.1:5432→81",
        "192.0.2.1:8443→443",
        "9000→90",
        "53→53/udp",
    ]
    text.append("192.0.2.1:7000-7009→7000-7009")
    shown = [
        line.split() for line in taken.niso("net", "inspect", "niso-default").stdout.splitlines()
    ]
    assert f"a {address(taken, 'a')} ports: {', '.join(text)}".split() in shown
    assert ", ".join(text) in taken.niso("ps").stdout
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ascii_only = taken.run("python", "-m", "niso.cli", "ps", env=variables).stdout
    assert "53->53/udp" in ascii_only and "→" not in ascii_only
    table = [line.split() for line in taken.niso("net", "ports").stdout.splitlines()]
    assert table[0] == ["SERVICE", "HOST", "CONTAINER", "PROTO"]
    assert table[1:] == [
        ["a", "0.0.0.0:8080", "80", "tcp"],
        ["a", "0.0.0.0:8000-8010", "8000-8010", "tcp"],
        ["a", "127.0.0.1:5432", "81", "tcp"],
        ["a", "192.0.2.1:8443", "443", "tcp"],
        ["a", "0.0.0.0:9000", "90", "tcp"],
        ["a", "0.0.0.0:53", "53", "udp"],
        ["a", "192.0.2.1:7000-7009", "7000-7009", "tcp"],
    ]
    as_json = ps(taken, "a")["ports"]
    assert as_json[5] == {
        "host_ip": "0.0.0.0",
        "host_port": 53,
        "container_port": 53,
        "proto": "udp",
    }
    assert as_json[2] == {
        "host_ip": "127.0.0.1",
        "host_port": 5432,
        "container_port": 81,
        "proto": "tcp",
    }
    listed = json.loads(taken.niso("net", "ports", "--json").stdout)
    assert [
        {key: row[key] for key in expected} for row, expected in zip(listed, as_json, strict=True)
    ] == as_json
    assert (listed[5]["service"], listed[5]["host"], listed[5]["container"]) == (
        "a",
        "0.0.0.0:53",
        53,
    )
    described = json.loads(taken.niso("net", "inspect", "niso-default", "--json").stdout)
    assert described["services"][0]["ports"] == as_json
    assert json.loads(taken.niso("inspect", "a").stdout)["ports"] == as_json


def test_exposed_says_who_can_reach_each(taken: Lab) -> None:
    lines = taken.niso("net", "ports", "--exposed").stdout.splitlines()
    by_port = {line.split()[1]: line for line in lines[1:]}
    outside = "other machines via 192.0.2.1 on uplink0"
    assert outside in by_port["0.0.0.0:8080"] and outside in by_port["192.0.2.1:8443"]
    assert by_port["127.0.0.1:5432"].endswith("this host")
    rows_json = json.loads(taken.niso("net", "ports", "--exposed", "--json").stdout)
    assert len(rows_json) == len(lines) - 1


def test_exposed_names_the_internal_networks_that_do_not_lead_to_a_port(lab: Lab) -> None:
    """Held against packets from inside services of each."""
    for name in ("quiet", "still"):
        lab.niso("net", "create", name, "--internal")
    for name, port, networks in (
        ("open", 8080, ["niso-default"]),
        ("both", 8081, ["niso-default", "quiet"]),
        ("inner", 8082, ["quiet"]),
    ):
        lab.niso(
            "activate", echo(lab, name, network={"ports": [f"{port}:80"], "networks": networks})
        )
        answer(lab, HOST, port, "client")
    lab.niso(
        "activate",
        *(idle(lab, f"at-{name}", network=on(name)) for name in ("quiet", "still", "niso-default")),
    )
    ways = {
        row["service"]: row["from"]
        for row in json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)
    }
    for service, port, words, reached in (
        ("open", 8080, "services except from internal network quiet or still", {"niso-default"}),
        ("both", 8081, "services except from internal network still", {"niso-default", "quiet"}),
        ("inner", 8082, "services except from internal network still", {"niso-default", "quiet"}),
    ):
        assert ways[service][1] == words
        found = {
            name
            for name in ("quiet", "still", "niso-default")
            if ask(lab, HOST, port, f"niso-at-{name}")
        }
        assert found == reached, service
