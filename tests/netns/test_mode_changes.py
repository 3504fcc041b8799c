"""Test changes of mode and of the shared namespace, with policies that name such services."""

from __future__ import annotations

import json

import pytest
import snapshots
from conftest import Lab, assert_whole
from modes import (
    PORT,
    SHARED,
    alone,
    api,
    changed,
    home_of,
    lives_in,
    names_in,
    open_,
    running,
    seen_in,
    side,
)
from services import (
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    echo,
    idle,
    inspect,
    namespace,
    on,
    pid_of,
    ps,
)

MODES = {
    "bridge": on("front", ports=["7070:70"]),
    "host": {"mode": "host"},
    "none": {"mode": "none", "hostname": "hermit"},
    "share": {"mode": "share", "share": "api", "ports": ["7070:70"]},
}


def changing(lab: Lab, mode: str, name: str = "x", **sections: object) -> str:
    return echo(lab, name, 70, network=MODES[mode], **sections)  # type: ignore[arg-type]


def assert_is(lab: Lab, mode: str) -> None:
    """``x`` is of this mode, as seen from inside and outside, and nothing of another mode is left."""
    shown = ps(lab, "x")
    assert (shown["status"], shown["mode"]) == ("running", mode)
    homes = {"host": home_of(lab, "self"), "share": namespace(lab, "api")}
    at_home = homes.get(mode) or namespace(lab, "x")
    assert lives_in(lab, "x") == at_home
    assert lab.path("/run/netns/niso-x").exists() == (mode in ("bridge", "none"))
    reached = {"bridge": 7070, "share": 7070, "host": 70}
    for port in (7070, 70):
        if port == reached.get(mode):
            assert answer(lab, HOST, port, "client") == f"x {CLIENT}"
        else:
            assert ask(lab, HOST, port, "client") == ""
    links = set(seen_in(lab, "x", "ls", "/sys/class/net").split())
    assert {
        "bridge": links == {"lo", "eth0"},
        "none": links == {"lo"},
        "share": links == {"lo", "eth0"},
    }.get(mode, "uplink0" in links)
    names = {
        "bridge": "x",
        "none": "hermit",
        "share": "api",
        "host": lab.run("hostname").stdout.strip(),
    }
    assert seen_in(lab, "x", "hostname").strip() == names[mode]
    assert_whole(lab)


WALK = ("bridge", "host", "bridge", "none", "host", "none", "bridge", "share", "host", "share")
WALK += ("none", "share", "bridge")
"""Each change of mode once."""


@pytest.mark.first
def test_every_change_of_mode_applies_the_difference(lab: Lab) -> None:
    root = {"isolation": {"capabilities": ["NET_BIND_SERVICE"]}}
    lab.niso("activate", api(lab))
    before = snapshots.take(lab)
    for mode in WALK:
        lab.niso("activate", changing(lab, mode, **root))
        assert_is(lab, mode)
        assert lab.niso("activate", "x").stdout.startswith("x: already active")
        assert running(lab, "api")
    lab.niso("remove", "x")
    after = snapshots.take(lab)
    assert (
        changed(before, after, "namespaces", "in the host", "in niso-api", "mounts", "cgroups")
        == []
    )


# --- a provider that changes -----------------------------------------------------------------------------------------


def test_changed_provider_keeps_the_namespace_and_what_runs_in_it(lab: Lab) -> None:
    lab.niso("activate", api(lab), side(lab), idle(lab, "peer", network=on("front")))
    there, before = namespace(lab, "api"), running(lab, "api", "side")
    # its process alone
    lab.niso("activate", api(lab, environment={"LEVEL": "debug"}))
    now = running(lab, "api", "side")
    assert now["side"] == before["side"] and now["api"] != before["api"]
    # its address, in place
    lab.niso("activate", api(lab, network={"ip": "10.99.1.77"}, environment={"LEVEL": "debug"}))
    assert running(lab, "api", "side") == now
    assert (address(lab, "api"), ps(lab, "side")["address"]) == ("10.99.1.77", ["10.99.1.77"])
    assert answer(lab, HOST, SHARED, "client") == f"side {CLIENT}"
    # its names and ports
    lab.niso(
        "activate",
        api(
            lab, network={"ports": ["8181:80"], "aliases": ["web"]}, environment={"LEVEL": "debug"}
        ),
    )
    assert running(lab, "api", "side") == now
    assert "web" in names_in(lab, "side")[address(lab, "api")]
    # its network: hosts file and links are others, the namespace and who is in it are not
    moved = echo(
        lab, "api", 80, network=on("front", ports=[f"{PORT}:80"]), environment={"LEVEL": "debug"}
    )
    lab.niso("activate", moved)
    assert running(lab, "api", "side") == now
    assert namespace(lab, "api") == lives_in(lab, "api") == lives_in(lab, "side") == there
    assert (
        set(names_in(lab, "side"))
        == set(names_in(lab, "api"))
        == {address(lab, "api"), address(lab, "peer")}
    )
    for port, service in ((PORT, "api"), (SHARED, "side")):
        assert answer(lab, HOST, port, "client") == f"{service} {CLIENT}"
        assert answer(lab, HOST, port, "niso-peer") == f"{service} {address(lab, 'peer')}"
    assert [row["name"] for row in json.loads(lab.niso("net", "list", "--json").stdout)] == [
        "front"
    ]
    # to mode none
    lab.niso(
        "activate", echo(lab, "api", 80, network={"mode": "none"}), side(lab, network={"ports": []})
    )
    assert namespace(lab, "api") == lives_in(lab, "api") == lives_in(lab, "side") == there
    assert ask(lab, HOST, SHARED, "client") == ""
    assert answer(lab, "127.0.0.1", 90, "niso-api").startswith("side ")
    assert lab.niso("net", "check").returncode == 0


# --- policies --------------------------------------------------------------------------------------------------------


def test_policy_that_names_a_sharer_means_its_provider_while_it_is_active(lab: Lab) -> None:
    lab.niso("activate", api(lab), idle(lab, "other", network=on("backend")))
    db = echo(lab, "db", 50, network=on("backend"), **{"network.policy": {"allow_from": ["side"]}})
    lab.niso("activate", db)
    at = address(lab, "db")
    assert ask(lab, at, 50, "niso-api") == ""
    lab.niso("activate", side(lab))
    assert answer(lab, at, 50, "niso-api").startswith("db ")
    assert ask(lab, at, 50, "niso-other") == ""
    said = lab.niso("net", "explain", "side", "db:50", "--prove").stdout
    assert 'allowed by network.policy.allow_from[0] of db ("side")' in said
    talk = lab.popen("/usr/bin/busybox", "nc", at, "50", stdin=-1, netns="niso-api")
    assert talk.stdin and talk.stdout and talk.stdout.readline().startswith(b"db ")
    # its provider's address moves: the name follows
    lab.niso("activate", api(lab, network={"ip": "10.99.1.88"}))
    assert answer(lab, at, 50, "niso-api").startswith("db 10.99.1.88")
    talk = lab.popen("/usr/bin/busybox", "nc", at, "50", stdin=-1, netns="niso-api")
    assert talk.stdin and talk.stdout and talk.stdout.readline().startswith(b"db ")
    lab.niso("deactivate", "side")
    assert ask(lab, at, 50, "niso-api") == ""
    talk.stdin.write(b"still there?\n")
    assert (
        lab.run("timeout", "1", "cat", input=b"", text=False).returncode == 0
    )  # a second of silence
    assert talk.poll() is None
    talk.kill()
    assert b"still" not in talk.stdout.read()
    lab.niso("activate", "side")
    assert answer(lab, at, 50, "niso-api").startswith("db ")
    assert lab.niso("net", "check").returncode == 0


def test_policy_of_a_provider_holds_for_its_sharers_ports(lab: Lab) -> None:
    rules = {"network.policy": {"deny_from": [f"{CLIENT}:90"]}}
    lab.niso("activate", api(lab, **rules), side(lab))
    assert answer(lab, HOST, PORT, "client") == f"api {CLIENT}"
    assert ask(lab, HOST, SHARED, "client") == ""
    assert answer(lab, HOST, SHARED, "neighbour").startswith("side ")
    rows = json.loads(lab.niso("net", "ports", "--exposed", "--json").stdout)
    assert any(
        f"but not deny_from: {CLIENT}:90" in row["from"] for row in rows if row["service"] == "side"
    )
    assert lab.niso("net", "explain", CLIENT, f"{HOST}:{SHARED}", check=False).returncode == 1


# --- what is lost ----------------------------------------------------------------------------------------------------


def test_sharer_whose_providers_namespace_was_lost_is_told_and_put_right(lab: Lab) -> None:
    lab.niso("activate", api(lab), side(lab))
    lab.run("ip", "netns", "delete", "niso-api")
    found = {
        (row["problem"], row["what"])
        for row in json.loads(lab.niso("net", "check", "--json", check=False).stdout)
    }
    assert ("missing", "network namespace niso-api") in found
    lab.niso("net", "repair")
    assert lives_in(lab, "api") == lives_in(lab, "side") == namespace(lab, "api")
    for port, service in ((PORT, "api"), (SHARED, "side")):
        assert answer(lab, HOST, port, "client") == f"{service} {CLIENT}"
    assert lab.niso("net", "check").returncode == 0
    # another namespace of that name
    lab.run("ip", "netns", "delete", "niso-api")
    lab.run("ip", "netns", "add", "niso-api")
    said = lab.niso("net", "check", check=False).stdout
    assert "'niso-api' exists and does not belong to this niso" in said
    for service in ("api", "side"):
        assert f"process of service '{service}' (it runs in another network namespace)" in said


def test_flush_and_sweep_with_every_mode(lab: Lab) -> None:
    clean = snapshots.take(lab)
    lab.niso("activate", api(lab), side(lab), alone(lab), open_(lab))
    before = snapshots.take(lab)
    lab.run("nft", "flush", "ruleset")
    lab.niso("net", "repair")
    after = snapshots.take(lab)
    assert changed(before, after, "namespaces", "in the host", "in niso-api", "in niso-alone") == []
    assert answer(lab, HOST, SHARED, "client") == f"side {CLIENT}"
    lab.niso("reset", "--yes")
    left = snapshots.take(lab)
    assert changed(clean, left, "namespaces", "in the host", "cgroups", "processes") == []
    lab.niso("activate", "side", "api", "alone", "open")
    assert answer(lab, HOST, SHARED, "client") == f"side {CLIENT}"
    assert pid_of(lab, "open") and inspect(lab, "alone")["status"] == "running"
