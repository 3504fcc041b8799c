"""Test niso top on real traffic: rates as the kernel's counters say, and the screen on a terminal."""

from __future__ import annotations

import json
import re
import sys

import pytest
from conftest import Lab
from services import ask, echo, idle, on, pid_of

FLOOD = """
import socket, time
kept = socket.create_connection(("10.99.1.2", 80))
kept.sendall(bytes(5000))
kept.recv(5000, socket.MSG_WAITALL)
print(kept.getsockname()[1])
end = time.monotonic() + 60
while time.monotonic() < end:
    with socket.create_connection(("10.99.1.2", 80)) as s:
        s.sendall(bytes(20000))
        s.recv(65536)
    time.sleep(0.05)
"""


@pytest.mark.first
def test_rates_of_real_traffic_and_the_screen(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    policy = {"network.policy": {"allow_from": ["web:80"]}}
    db = echo(lab, "db", network=on("backend"), **policy)
    lab.niso("activate", db, idle(lab, "web", network=on("backend")))
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    assert ask(lab, "10.99.1.2", 80, "niso-bad") == ""
    flood = lab.popen("/usr/bin/python3", "-ISuc", FLOOD, netns="niso-web")
    port = int((flood.stdout or sys.stdin).readline())

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
    (moved,) = (f["bits"] for f in last["flows"] if f["from"]["name"] == "web")
    # they are read one after the other; a flow that is counted twice has the double
    assert 0 < moved <= 1.3 * (web["sent"] + web["received"]) and moved > 0.5 * web["sent"]
    table, flows, sockets = lab.niso("top", "db").stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["SERVICE", "db"]
    by = r'db allow_from\[0\] "web:80"'
    assert re.search(rf"^web +db:80/tcp +\d\S* \w?b/s +\d+\.\d +pass +{by}$", flows, re.MULTILINE)
    kept = rf"web:{port} +db:80/tcp +established +\d+\.\d\d ms +0 +5\.0 kB +5\.0 kB"
    assert re.search(kept, sockets), sockets

    pytest.importorskip("textual")
    # Enter shows the first service with its sockets, and the keys what other commands say
    keys = (
        (b"b/s", b""),
        (b"b/s", b"\x1b[B\r"),
        (f"web:{port}".encode(), b"e"),
        (b"exit status 0)", b"\x1b"),
        (b"RETRANS", b"l"),
        (b"niso logs db", b"\x1b"),
        (b"RETRANS", b"c"),
        (b"web.", b""),
    )
    for way, end, status in ((keys[:1], b"q", 0), (keys, b"\x03", 130)):
        terminal = lab.popen(
            *("script", "-qefc", "stty rows 30 cols 130; niso top db", "/dev/null"),
            stdin=-1,
            env={"TERM": "xterm-256color"},
        )
        assert terminal.stdin is not None and terminal.stdout is not None
        for text, key in (*way, (b"", end)):
            screen = b""
            while text not in screen:
                more = terminal.stdout.read1(65536)
                assert more, screen
                screen += more
            terminal.stdin.write(key)
            terminal.stdin.flush()
        # the alternate screen is left, and the cursor is shown again
        rest = terminal.stdout.read()
        assert terminal.wait(20) == status, rest
        assert b"\x1b[?1049l" in rest and b"\x1b[?25h" in rest and b"textual" not in rest
        assert lab.run("pgrep", "-f", "niso.cli|tcpdump", check=False).stdout == ""
        assert "niso_live" not in lab.run("nft", "list", "tables").stdout
    flood.kill()


LOOKS = """
import json, sys, niso
with niso.connect() as host:
    looks = host.top()
    print("ready", flush=True)
    for line in sys.stdin:
        services = looks.read().services
        print(json.dumps({s.service: [s.status, s.health] for s in services}), flush=True)
"""


def test_looks_see_what_no_command_did(lab: Lab) -> None:
    """What a look keeps of the one before is only what cannot have changed."""
    check = {"command": ["/usr/bin/busybox", "test", "!", "-e", "/tmp/ill"], "interval": "1s"}
    restarts = {"restart": "always"}
    lab.niso(
        "activate",
        idle(lab, "db", healthcheck=check | {"retries": 1}),
        idle(lab, "web", service={"restart": "no"}),
        idle(lab, "again", service=restarts),
    )
    looks = lab.popen(sys.executable, "-c", LOOKS, stdin=-1)
    assert looks.stdin is not None and looks.stdout is not None
    assert looks.stdout.readline() == b"ready\n"

    def look() -> dict[str, list[str | None]]:
        assert looks.stdin is not None and looks.stdout is not None
        looks.stdin.write(b"\n")
        looks.stdin.flush()
        seen: dict[str, list[str | None]] = json.loads(looks.stdout.readline())
        return seen

    running = {"again": ["running", None], "db": ["running", "healthy"], "web": ["running", None]}
    lab.wait_for(lambda: look() == running, 10, "all are up")
    lab.run("kill", "-9", str(pid_of(lab, "web")), str(pid_of(lab, "again")))
    lab.niso("exec", "db", "--", "/usr/bin/busybox", "touch", "/tmp/ill")
    lab.wait_for(lambda: look()["web"] == ["exited (137)", None], 10, "its end")
    lab.wait_for(lambda: look()["again"] == ["running", None], 10, "its restart")
    lab.wait_for(lambda: look()["db"] == ["running", "unhealthy"], 10, "its illness")
    lab.niso("deactivate", "db")
    lab.niso("activate", idle(lab, "new"))
    assert look() == running | {
        "db": ["inactive", None],
        "new": ["running", None],
        "web": ["exited (137)", None],
    }
    looks.stdin.close()
    assert looks.wait(10) == 0
