"""Test changes of network.mode and of shared namespaces on the fakes: what is refused, undone and said."""

from __future__ import annotations

import itertools
import json

import pytest
from fake_world import World
from refusals import refuses

from niso.base import names
from niso.base.errors import Conflict, ProcessError

MODES: dict[str, dict[str, object]] = {
    "bridge": {"network": "front", "ports": ["7070:70"]},
    "host": {"mode": "host"},
    "none": {"mode": "none", "hostname": "hermit"},
    "share": {"mode": "share", "share": "api", "ports": ["7070:70"]},
}
API = {"network": "backend", "ports": ["8080:80"]}
SIDE = {"mode": "share", "share": "api", "ports": ["9090:90"]}


def fails(world: World, *packages: str) -> None:
    """Activate packages together with a service that dies; assert that all is then as it was."""
    before = world.picture()
    world.processes.dies["zz"] = 1
    with refuses(ProcessError, hint="see binary.entrypoint and binary.args in its manifest"):
        world.activate(*packages, world.package("zz"))
    assert world.picture() == before
    world.assert_whole()


def api_and_side(world: World) -> None:
    world.activate(world.package("api", network=API), world.package("side", network=SIDE))


@pytest.mark.parametrize(("old", "new"), [*itertools.permutations(MODES, 2)])
def test_change_of_mode_that_fails_is_undone_and_applied_later(
    world: World, old: str, new: str
) -> None:
    world.activate(world.package("api", network=API))
    world.activate(world.package("x", network=MODES[old]))
    fails(world, changed := world.package("x", network=MODES[new]))
    world.activate(changed)
    (row,) = [row for row in json.loads(world.niso("ps", "--json").stdout) if row["service"] == "x"]
    assert (row["status"], row["mode"]) == ("running", new)
    assert (names.netns("x") in world.kernel.netns) == (new in ("bridge", "none"))
    world.assert_whole()


def test_provider_and_sharer_change_places_in_one_command(world: World) -> None:
    api_and_side(world)
    side = {"network": "backend", "ports": ["9090:90"]}
    share = {"mode": "share", "share": "side", "ports": ["8080:80"]}
    swapped = [world.package("api", network=share), world.package("side", network=side)]
    with refuses(Conflict, "'api'", key="network.share"):
        world.activate(swapped[0])
    fails(world, *swapped)
    world.activate(*swapped)
    assert set(world.kernel.netns) == {names.netns("side")}
    world.assert_whole()


def test_changed_provider_that_fails_takes_its_sharers_back(world: World) -> None:
    api_and_side(world)
    home = world.kernel.identities[names.netns("api")]
    fails(world, world.package("api", network={"network": "front", "hostname": "web"}))
    assert world.kernel.identities[names.netns("api")] == home
    # to mode none the port of its sharer cannot follow
    with refuses(Conflict, "'api'", "mode none", key="network.ports[0]", file="side/manifest.toml"):
        world.activate(world.package("api", network={"mode": "none"}))
    alone = world.package("side", network={"mode": "share", "share": "api"})
    world.activate(world.package("api", network={"mode": "none"}), alone)
    assert world.ports("side") == []
    said = world.refused("port-forward", "side", "1:1")
    assert "PORT: 'api', whose network 'side' shares, has mode none" in said
    world.activate(world.package("open", network={"mode": "host"}))
    assert "'open' has mode host" in world.refused("port-forward", "open", "1:1")
    world.assert_whole()


def test_provider_ends_after_its_sharers(world: World) -> None:
    api_and_side(world)
    world.activate(world.package("second", network={"mode": "share", "share": "api"}))
    before = world.picture()
    for words in (
        ("deactivate", "api"),
        ("remove", "api"),
        ("deactivate", "--dry-run", "api"),
        ("remove", "api", "side"),
    ):
        said = world.refused(*words)
        assert "service 'api' is in use: " in said and "'second'" in said, said
        assert "hint: it can end after these, or in the same command: second" in said
    for mode in ({"mode": "host"}, {"mode": "share", "share": "second"}):
        assert "network." in world.refused("activate", world.package("api", network=mode))
    world.package("api", network=API)
    assert world.picture() == before
    done = len(world.processes.done)
    said = world.niso("deactivate", "-v", "--all").stderr.splitlines()
    ends = [line.removeprefix("stop ") for line in said if line.startswith("stop ")]
    assert ends[-1] == "api" and sorted(ends) == ["api", "second", "side"]
    assert world.processes.done[done:][-1].endswith(" api")
    world.niso("activate", "second", "side", world.package("api", network=API))
    world.niso("deactivate", "--all")
    # it can be removed while a sharer is only known
    world.niso("remove", "api")
    assert "no service 'api' is known" in world.refused("activate", "side")
    world.niso("remove", "side", "second")
    world.assert_whole()


def test_port_of_a_sharer_is_forwarded_and_clashes_like_any(world: World) -> None:
    api_and_side(world)
    world.activate(world.package("peer", network={"network": "backend", "ports": ["7070:70"]}))
    world.niso("port-forward", "side", "9191:90")
    world.niso("restart", "side", "api")
    assert world.ports("side") == ["9090:90", "9191:90"]
    for port, holder in ((8080, "api"), (7070, "peer")):
        said = world.refused("port-forward", "side", f"{port}:90")
        assert f"is published by '{holder}'" in said
    world.niso("port-forward", "side", "8080:90", "--take-over")
    assert world.ports("api") == []
    taken = world.package("peer", network={"network": "backend", "ports": ["9090:70"]})
    assert "host port 9090/tcp is published by 'side'" in world.refused("activate", taken)
    world.niso("port-forward", "side", "9191:90", "--remove")
    world.assert_whole()
    world.niso("deactivate", "side")
    assert world.niso("net", "ports", "--json").stdout.count('"side"') == 0
    world.assert_whole()


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({"allow_from": ["open"]}, "network.policy.allow_from[0]"),
        ({"egress": {"deny": ["open:80"]}}, "network.policy.egress.deny[0]"),
    ],
)
def test_policy_cannot_name_a_service_of_mode_host(
    world: World, policy: dict[str, object], key: str
) -> None:
    db = world.package("db", network={"policy": policy})
    opened = world.package("open", network={"mode": "host"})
    world.activate(db)
    said = world.refused("activate", opened)
    assert f"open/manifest.toml: network.mode: 'host' is not possible because {key} (" in said
    assert "of service 'db' names this service" in said and db in said
    world.niso("remove", "db")
    world.activate(opened)
    said = world.refused("activate", db)
    assert f"db/manifest.toml: {key}: " in said and "names a service of mode host" in said
    # in one command too, and when a service becomes one of mode host
    world.niso("remove", "open")
    world.refused("activate", db, opened)
    world.activate(db, world.package("open"))
    world.refused("activate", world.package("open", network={"mode": "host"}))
    assert world.store.active_services() == ["db", "open"]
    world.assert_whole()


def test_explain_and_ping_say_what_a_mode_means(world: World) -> None:
    api_and_side(world)
    for name, network in (("alone", MODES["none"]), ("open", MODES["host"])):
        world.activate(world.package(name, network=network))
    world.activate(world.package("peer", network={"network": "backend"}))
    said = world.niso("net", "explain", "peer", "side:90").stdout
    assert "side shares the network namespace, addresses and policy of api" in said
    assert "own address" in world.niso("net", "explain", "side", "api:80").stdout
    for mode, to, ping in (
        ("host", "open", ("peer", "open")),
        ("none", "alone", ("alone", "peer")),
    ):
        assert f"{to} has mode {mode}" in world.refused("net", "ping", *ping)
        assert f"{to} has mode {mode}" in world.refused("net", "explain", to, "peer:80", status=2)
    world.niso("deactivate", "side")
    assert "side is not active" in world.refused("net", "ping", "side", "peer")


def test_each_mode_is_listed_as_what_it_is(world: World) -> None:
    api_and_side(world)
    for name, network in (("alone", MODES["none"]), ("open", MODES["host"])):
        world.activate(world.package(name, network=network))
    rows = {row["service"]: row for row in json.loads(world.niso("ps", "--json").stdout)}
    shown = {name: (row["mode"], row["address"]) for name, row in rows.items()}
    at = shown["api"][1]
    assert len(at) == 1
    assert shown == {
        "api": ("bridge", at),
        "side": ("share", at),
        "alone": ("none", []),
        "open": ("host", []),
    }
    ports = {
        n: [(p["host_port"], p["container_port"]) for p in r["ports"]] for n, r in rows.items()
    }
    assert ports == {"api": [(8080, 80)], "side": [(9090, 90)], "alone": [], "open": []}
    inspected = {n: json.loads(world.niso("inspect", n, "--json").stdout) for n in rows}
    assert (inspected["side"]["shares"], inspected["api"]["shared_by"]) == ("api", ["side"])
    spaces = {name: one["netns"] for name, one in inspected.items()}
    assert spaces["side"] == spaces["api"] == "/run/netns/niso-api" and spaces["open"] is None
    assert inspected["alone"]["endpoints"] == []
    lines = world.niso("net", "inspect", "backend").stdout.splitlines()
    found = [line.split()[:2] for line in lines if line.startswith("  ")]
    assert found == [["api", *at], ["side", *at]]


def test_sharer_of_a_dual_stack_provider_is_published_by_both_families(world: World) -> None:
    world.make("six", "10.99.6.0/24", "fd00:99:6::/64")
    world.activate(world.package("api", network={"networks": ["six", "backend"]}))
    world.activate(world.package("side", network=SIDE))
    rows = json.loads(world.niso("net", "ports", "--json").stdout)
    assert [row["host"] for row in rows] == ["0.0.0.0:9090", "[::]:9090"]
    elements = {key[1]: one for key, one in world.kernel.elements.items() if 9090 in key[2]}
    assert elements["publish_any4"].value == ("10.99.6.2", 90)
    assert elements["publish_any6"].value == ("fd00:99:6::2", 90)
    world.assert_whole()


def test_hostname_of_a_provider_reaches_its_sharers(world: World) -> None:
    api_and_side(world)
    renamed = world.package("api", network=API | {"hostname": "web"})
    done = world.niso("activate", renamed).stdout
    assert [line.split(":")[0] for line in done.splitlines()] == ["api", "side"]
    for name in ("api", "side"):
        assert world.processes.current[name].spec.hostname == "web"
    world.assert_whole()
