"""Test niso top on real traffic: rates as the kernel's counters say, and the screen on a terminal."""

from __future__ import annotations

import json
import re

import pytest
from conftest import Lab
from services import ask, echo, idle, on

FLOOD = """
import socket, time
end = time.monotonic() + 60
while time.monotonic() < end:
    with socket.create_connection(("10.99.1.2", 80)) as s:
        s.sendall(bytes(20000))
        s.recv(65536)
    time.sleep(0.05)
"""


def test_rates_of_real_traffic_and_the_screen(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    policy = {"network.policy": {"allow_from": ["web:80"]}}
    db = echo(lab, "db", network=on("backend"), **policy)
    lab.niso("activate", db, idle(lab, "web", network=on("backend")))
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    assert ask(lab, "10.99.1.2", 80, "niso-bad") == ""
    flood = lab.popen("/usr/bin/python3", "-ISuc", FLOOD, netns="niso-web")

    def sent() -> int:
        (link,) = lab.ip_json("-s", "link", "show", "eth0", netns="niso-web")
        return int(link["stats64"]["tx"]["bytes"])

    before = sent()
    looks = lab.niso("top", "-n", "2", "--json").stdout.splitlines()
    most = (sent() - before) * 8
    first, last = (json.loads(line) for line in looks)
    web, db_, bad = (
        next(s for s in last["services"] if s["service"] == name) for name in ("web", "db", "bad")
    )
    total = sum(
        look["seconds"] * s["sent"]
        for look in (first, last)
        for s in look["services"]
        if s["service"] == "web"
    )
    assert 100_000 < total <= most
    assert web["sent"] > 0 and db_["received"] > 0 and bad["sent"] < 100_000
    assert web["new"] > 0 and db_["new"] >= web["new"] and db_["denied_in"] >= 1
    assert {(f["from"]["name"], f["to"]["name"], f["port"]) for f in last["flows"]} >= {
        ("web", "db", 80)
    }
    table, flows = lab.niso("top", "db").stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["SERVICE", "db"]
    assert re.search(r"^web +db:80/tcp +\d+\.\d +pass$", flows, re.MULTILINE)
    for wrong in (["nobody"], ["-n", "0"]):
        done = lab.niso("top", *wrong, check=False)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr and not done.stdout

    pytest.importorskip("textual")
    for end, status in ((b"q", 0), (b"\x03", 130)):
        terminal = lab.popen(
            *("script", "-qefc", "stty rows 20 cols 110; niso top", "/dev/null"),
            stdin=-1,
            env={"TERM": "xterm-256color"},
        )
        assert terminal.stdin is not None and terminal.stdout is not None
        screen = b""
        while b"Mb/s" not in screen and b"kb/s" not in screen:
            more = terminal.stdout.read1(65536)
            assert more, screen
            screen += more
        terminal.stdin.write(end)
        terminal.stdin.flush()
        # the alternate screen is left, and the cursor is shown again
        rest = terminal.stdout.read()
        assert terminal.wait(20) == status, rest
        assert b"\x1b[?1049l" in rest and b"\x1b[?25h" in rest and b"Traceback" not in rest
    flood.kill()
