"""Test that a command parses each manifest text and each stored service only once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Lab
from services import echo, idle, pid_of

COUNTER = str(Path(__file__).resolve().parents[1] / "parse_counter.py")
POLICY = {"allow_from": ["peer:80/tcp", "10.0.0.0/8"], "egress": {"deny": ["peer:22"]}}


def parsed(lab: Lab, *words: str) -> tuple[str, dict[tuple[str, str], int]]:
    """The output of a niso command, and how often it parsed which text by which parser."""
    output = lab.run("python", COUNTER, *words).stdout
    *lines, last = output.splitlines(keepends=True)
    counts = {(parser, text): times for parser, text, times in json.loads(last)}
    return "".join(lines), {key: n for key, n in counts.items() if key[0] != "spec.json.loads"}


def service(lab: Lab, **more: str) -> str:
    return echo(
        lab,
        "api",
        service={"user": "1000:1000", "restart_delay": "300ms", "stop_timeout": "3s"},
        environment=more,
        volumes={"scratch": {"mount": "/scratch", "tmpfs": True, "size": "3M"}},
        healthcheck={"tcp": 80, "interval": "7s"},
        network={"ports": ["8080:80", "127.0.0.1:9090:90/udp"], "policy": POLICY},
        **{"isolation.resources": {"memory_max": "64M", "cpu_max": "70%"}},
        isolation={"capabilities": ["NET_BIND_SERVICE"]},
    )


TEXTS = {
    "8080:80",
    "127.0.0.1:9090:90/udp",
    "peer:80/tcp",
    "10.0.0.0/8",
    "peer:22",
    "1000:1000",
    "300ms",
    "3s",
    "3M",
    "7s",
    "64M",
    "70%",
}


@pytest.mark.parametrize("how", ["new", "changed", "unchanged", "by name"])
def test_activate_parses_each_text_once(lab: Lab, how: str) -> None:
    lab.niso("activate", idle(lab, "peer"))
    folder = service(lab, LEVEL="info")
    if how != "new":
        lab.niso("activate", folder, check=False)
    if how == "changed":
        folder = service(lab, LEVEL="debug")
    _, counts = parsed(lab, "activate", "api" if how == "by name" else folder)
    shared = ("manifest.duration", "10s")  # the default of several keys
    assert {key: n for key, n in counts.items() if n > 1 and key != shared} == {}
    texts = {text for (parser, text) in counts if parser.startswith("manifest.")}
    # of an activation by name: the default of --timeout alone
    assert texts >= TEXTS if how != "by name" else texts == {"60s"}
    # the rows of the service and of no other: service and process, as recorded and as before
    assert sum(parser == "json.loads" for parser, _ in counts) <= {"changed": 4}.get(how, 2)


def test_status_and_restart_parse_no_text_of_a_manifest(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "peer"), idle(lab, "side"))
    pid = pid_of(lab, "peer")
    for words in (["ps"], ["inspect", "peer"], ["net", "check"], ["restart", "peer"]):
        _, counts = parsed(lab, *words)
        assert {key: n for key, n in counts.items() if n > 1 or key[0] != "json.loads"} == {}, words
    assert pid_of(lab, "peer") != pid
