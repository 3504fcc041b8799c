"""Test niso net trace: the way of a real packet, through the tables of others too."""

from __future__ import annotations

import json
import re
import time

import pytest
from conftest import Lab
from services import ask, echo, filter_bridged, idle, on

FOREIGN = "table ip docker { chain FORWARD { type filter hook forward priority 5; ip protocol tcp counter accept; }; }"


def traced(
    lab: Lab,
    netns: str | None,
    source: str,
    to: str,
    *words: str,
    by: str = "10.99.1.2",
    port: int = 0,
) -> tuple[int, str]:
    """What it prints of a connection from a namespace to ``to``, and its exit status."""
    running = lab.popen("niso", "net", "trace", source, to, "--for", "20s", *words)
    lab.wait_for(lambda: "niso_live_" in lab.run("nft", "list", "tables").stdout, 10, "its tables")
    address, _, named = to.rpartition(":")
    address = {"db": by}.get(address, address.strip("[]"))
    while running.poll() is None:
        ask(lab, address, port or int(named), netns)
        time.sleep(0.05)
    out, _ = running.communicate()
    assert "niso_live_" not in lab.run("nft", "list", "tables").stdout
    return running.wait(5), out


def test_way_of_a_packet_with_the_reason_of_each_chain(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    policy = {"network.policy": {"allow_from": ["api:80", "192.0.2.0/24"]}}
    lab.niso("activate", echo(lab, "db", network=on("backend", ports=["8080:80"]), **policy))
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    lab.run("nft", FOREIGN)
    status, text = traced(lab, "niso-bad", "bad", "db:80")
    lines = [line.split(maxsplit=3) for line in text.splitlines()[1:]]
    assert status == 1 and re.match(
        r"bad \(10\.99\.1\.4\):\d+ → db \(10\.99\.1\.2\):80/tcp\n", text
    )
    assert [
        "inet",
        "niso",
        "check_in4",
        "→ refuse          not listed in network.policy.allow_from of db",
    ] in lines
    denied = "drop: not listed in network.policy.allow_from of db"
    assert text.splitlines()[-2:] == ["  (no other table saw it)", denied]
    assert "answers" not in text and "see_refused" in text.splitlines()[-3]
    status, text = traced(lab, "niso-api", "api", "db:80", "--json")
    found = json.loads(text)
    assert status == 0 and found["passes"] and found["others"]
    foreign = [stage for stage in found["stages"] if stage["table"] == "ip docker"]
    assert foreign[0]["verdict"] == "pass" and "ip protocol tcp" in foreign[0]["words"]
    assert (found["verdict"], found["source_name"], found["destination_name"]) == (
        "pass",
        "api",
        "db",
    )
    assert found["reason"] == 'allowed by network.policy.allow_from[0] of db ("api:80")'
    status, text = traced(lab, "client", "192.0.2.2", "192.0.2.1:8080", "-v")
    assert status == 0 and "inet niso enter" in text and "pass              published\n" in text
    assert "inet niso answers" in text
    # by the name of the service, with the port of the host or of the service
    for port in (8080, 80):
        status, text = traced(lab, "client", "192.0.2.2", f"db:{port}", by="192.0.2.1", port=8080)
        assert status == 0 and re.match(r"192\.0\.2\.2:\d+ → 192\.0\.2\.1:8080/tcp\n", text), text
        assert re.search(
            r"dnat +host \(192\.0\.2\.1\):8080 becomes db \(10\.99\.1\.2\):80\n", text
        ), text
        assert text.endswith(
            "pass: 192.0.2.1:8080 is published;"
            ' allowed by network.policy.allow_from[1] of db ("192.0.2.0/24")\n'
        )
    status, text = traced(lab, None, "host", "db:8080", by="127.0.0.1", port=8080)
    assert status == 0 and "host (127.0.0.1):8080 becomes db" in text and "pass: " in text, text
    # nothing came, and nothing stays, also after kill -9
    none = lab.niso("net", "trace", "api", "db:81", "--for", "200ms", check=False)
    assert none.returncode == 1 and "no new connection" in none.stderr
    none = lab.niso("net", "trace", "api", "db:81", "--for", "200ms", "--json", check=False)
    found = json.loads(none.stdout)
    assert found["verdict"] == "none" and "within 200ms" in found["reason"]
    assert "error" in json.loads(none.stderr) and none.returncode == 1
    none = lab.niso("net", "trace", "api", "db", "--for", "200ms", check=False)
    assert none.returncode == 1 and "or ping from api to db within" in none.stderr
    killed = lab.popen("niso", "net", "trace", "api", "db:80")
    lab.wait_for(lambda: "niso_live_" in lab.run("nft", "list", "tables").stdout, 10, "its tables")
    assert lab.niso("net", "check", check=False).stdout.count("niso_live") == 0
    killed.kill()
    killed.wait(10)
    lab.wait_for(
        lambda: "niso_live_" not in lab.run("nft", "list", "tables").stdout, 5, "no tables"
    )


def test_a_name_with_two_families_is_followed_in_both(lab: Lab) -> None:
    """A program prefers IPv6 where a name has both."""
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:9::/64")
    policy = {"network.policy": {"allow_from": ["10.99.1.0/24"]}}
    lab.niso("activate", echo(lab, "db", network=on("backend"), **policy))
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    for address, passes in (("fd00:9::2", False), ("10.99.1.2", True)):
        status, text = traced(lab, "niso-api", "api", "db:80", "--json", by=address)
        found = json.loads(text)
        assert (found["destination"], found["passes"], status) == (address, passes, not passes)
        words = "not listed in" if address == "fd00:9::2" else "allowed by"
        assert any(words in stage["words"] for stage in found["stages"]), found


@pytest.mark.parametrize("calls", [0, 1])
def test_way_beyond_the_bridge_is_followed_to_its_end(lab: Lab, calls: int) -> None:
    """The kernel numbers a packet anew where the bridge passes it on to the host."""
    filter_bridged(lab, calls)
    for name, number in (("backend", 1), ("frontend", 2)):
        cidrs = (f"10.99.{number}.0/24", f"fd00:99:{number}::/64")
        lab.niso("net", "create", name, "--subnet", cidrs[0], "--subnet", cidrs[1])
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.niso("activate", idle(lab, "web", network=on("frontend")))
    ways = {
        "10.99.2.2:80": (1, "see_refused", "drop"),  # not published
        "[fd00:99:2::2]:80": (1, "see_refused", "drop"),
        "10.99.1.77:80": (1, "from_bridge", "drop"),
        "[fd00:99:1::77]:80": (1, "from_bridge", "drop"),
        "10.99.1.1:80": (0, "see_own", "pass"),
        "192.0.2.2:80": (0, "kept", "pass"),
        "[2001:db8::2]:80": (0, "kept", "pass"),
    }
    for to, end in ways.items():
        status, text = traced(lab, "niso-api", "api", to, "--json")
        found = json.loads(text)
        last = found["stages"][-1]
        assert (status, last["chain"], last["verdict"]) == end, (to, found)
        assert found["passes"] is (status == 0) and found["verdict"] == end[2]
        if to in ("192.0.2.2:80", "[2001:db8::2]:80"):  # the host's address and a port of its own
            own = "192.0.2.1" if to[0] == "1" else "[2001:db8::1]"
            masked = [stage["words"] for stage in found["stages"] if stage["verdict"] == "snat"]
            assert masked and masked[0].partition(" becomes ")[2].startswith(
                f"host ({own.strip('[]')})"
            )
