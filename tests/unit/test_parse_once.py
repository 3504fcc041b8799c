"""Test that a command parses each manifest text and each stored service only once."""

from __future__ import annotations

import sys
from typing import Any

import parse_counter
import pytest
from fake_world import World

POLICY = {"allow_from": ["peer:80/tcp", "10.0.0.0/8"], "egress": {"deny": ["peer:22"]}}


def parsed(world: World, *words: str) -> dict[tuple[str, str], int]:
    """Run a command of niso; return how often it parsed which text by which parser."""
    parse_counter.counts.clear()
    before = sys.getprofile()
    sys.setprofile(parse_counter.count)
    try:
        world.niso(*words)
    finally:
        sys.setprofile(before)
    return {key: n for key, n in parse_counter.counts.items() if key[0] != "spec.json.loads"}


def service(world: World, **more: str) -> str:
    tables: dict[str, dict[str, Any]] = {
        "service": {"user": "1000:1000", "restart_delay": "300ms", "stop_timeout": "3s"},
        "environment": more,
        "volumes": {"scratch": {"mount": "/scratch", "tmpfs": True, "size": "3M"}},
        "healthcheck": {"tcp": 80, "interval": "7s"},
        "network": {"ports": ["8080:80", "127.0.0.1:9090:90/udp"], "policy": POLICY},
        "isolation": {
            "capabilities": ["NET_BIND_SERVICE"],
            "resources": {"memory_max": "64M", "cpu_max": "70%"},
        },
    }
    return world.package("api", **tables)


TEXTS = {"8080:80", "127.0.0.1:9090:90/udp", "peer:80/tcp", "10.0.0.0/8", "peer:22", "1000:1000"}
TEXTS |= {"300ms", "3s", "3M", "7s", "64M", "70%"}


@pytest.mark.parametrize("how", ["new", "changed", "unchanged", "by name"])
def test_activate_parses_each_text_once(world: World, how: str) -> None:
    world.activate(world.package("peer"))
    folder = service(world, LEVEL="info")
    if how != "new":
        world.activate(folder)
    if how == "changed":
        folder = service(world, LEVEL="debug")
    counts = parsed(world, "activate", "api" if how == "by name" else folder)
    shared = ("manifest.duration", "10s")  # the default of several keys
    assert {key: n for key, n in counts.items() if n > 1 and key != shared} == {}
    texts = {text for (parser, text) in counts if parser.startswith("manifest.")}
    # of an activation by name: the default of --timeout alone
    assert texts >= TEXTS if how != "by name" else texts == {"60s"}
    # the rows of the service and of no other: service and process, as recorded and as before
    assert sum(parser == "json.loads" for parser, _ in counts) <= {"changed": 4}.get(how, 2)


def test_status_and_restart_parse_no_text_of_a_manifest(world: World) -> None:
    world.activate(world.package("peer"), world.package("side"))
    for words in (["ps"], ["inspect", "peer"], ["net", "check"], ["restart", "peer"]):
        counts = parsed(world, *words)
        assert {key: n for key, n in counts.items() if n > 1 or key[0] != "json.loads"} == {}, words
