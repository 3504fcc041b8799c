"""Test host ports that services share by address, and those that processes of the host listen on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from port_rows import end, everything, unchanged
from services import CLIENT, HOST, answer, ask, echo, idle, listen, on, refused
from talkers import speaker, start

HELD = ("8080:80", "8000-8010:8000-8010", "127.0.0.1:5432:81", "192.0.2.1:8443:443")


@pytest.fixture(scope="module")
def taken() -> Iterator[Lab]:
    """``a`` has the ports `HELD`. The tests that share it leave it as they find it."""
    with Lab(600) as lab:
        start(lab, speaker(lab, "a", 80, 81, ports=list(HELD)))
        yield lab


# --- another service has it -------------------------------------------------------------------------------------------


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


# --- a process of the host has it -------------------------------------------------------------------------------------


def test_port_of_a_process_of_the_host_names_it_and_changes_nothing(taken: Lab) -> None:
    """All forms of listeners: test_kernel_sockdiag.py, unit/test_portmap_conflicts.py."""
    listeners = [listen(taken, "tcp", "0.0.0.0", 6100), listen(taken, "udp", "::", 6200)]
    before = everything(taken)
    for form, listener in zip(("6090-6199:6090-6199", "6200:80/udp"), listeners, strict=True):
        who = f"is used by python3 (pid {listener.pid}), which listens on "
        ports = {"ports": ["4000:4000", form]}
        said = refused(taken, "activate", idle(taken, "b", network=ports))
        assert "network.ports[1]: host port " in said and who in said, said
        assert who in refused(taken, "port-forward", "a", form)
    unchanged(taken, before)
    taken.niso("activate", idle(taken, "b", network={"ports": ["6100:80/udp", "6200:80"]}))
    for listener in listeners:
        end(listener)
    # what the processes had is free when they are gone
    taken.niso("activate", idle(taken, "b", network={"ports": ["6100:80", "6200:80/udp"]}))
    taken.niso("remove", "b")


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


# --- host addresses of one service ------------------------------------------------------------------------------------


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
