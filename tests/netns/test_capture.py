"""Test niso net capture; tshark, where there is one, reads the file."""

from __future__ import annotations

import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Lab
from pcapng import blocks
from services import BUSYBOX, answer, ask, echo, idle, on

PATH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_packets_of_a_service_with_names(lab: Lab, tmp_path: Path) -> None:
    lab.niso(
        "activate", echo(lab, "db", network=on("backend")), idle(lab, "api", network=on("backend"))
    )
    lab.niso("activate", idle(lab, "more", network=on("backend")))
    db = lab.ip_json("address", "show", "dev", "eth0", netns="niso-db")[0]["addr_info"][0]["local"]
    before = lab.run("sh", "-c", "ls /run/netns /run/niso; cat /proc/self/mounts").stdout

    def during(*words: str) -> bytes:
        """What it prints while api asks db, and somebody else does too."""
        running = lab.popen("niso", "net", "capture", *words, env=PATH)
        while running.poll() is None:
            ask(lab, db, 80, "niso-more")
            answer(lab, db, 80, "niso-api")
            time.sleep(0.02)
        assert running.stdout is not None
        assert running.wait(10) == 0, running.communicate()
        return running.stdout.read()

    text = during("db", "api:80", "-c", "3").decode()
    assert len(text.splitlines()) == 3 and "api." in text and "db." in text
    assert "more" not in text
    both = lab.popen("niso", "net", "capture", "api", "db", "--", "tcp", "port 80", env=PATH)
    assert both.stdout is not None
    text = ""
    while not ("\napi " in text and "\ndb " in text):
        answer(lab, db, 80, "niso-api")
        if select.select([both.stdout], [], [], 0)[0]:
            text += os.read(both.stdout.fileno(), 1 << 20).decode()
    both.send_signal(signal.SIGINT)
    assert both.wait(10) == 130 and "\n\n" not in text
    data = during("db", "-c", "8", "-w", "-")
    kinds = [kind for kind, _ in blocks(data)]
    assert kinds[:3] == ["section", "names", "interface"] and kinds.count("packet") == 8
    (tmp_path / "x.pcapng").write_bytes(data)
    if shutil.which("tshark"):
        argv = ["tshark", "-N", "n", "-r", str(tmp_path / "x.pcapng")]
        shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert "api → db" in shown or "more → db" in shown, shown
    during("db", "-w", "/tmp/db.pcapng", "-c", "1")
    assert [kind for kind, _ in blocks(lab.path("/tmp/db.pcapng").read_bytes())][-1] == "packet"
    timed = lab.niso("net", "capture", "db", "--for", "300ms", "-w", "/tmp/no.pcapng", env=PATH)
    assert timed.returncode == 0
    assert "/tmp/no.pcapng: 0 packets of db, with the names of services" in timed.stderr
    # what exists is kept if nothing is captured
    lab.path("/tmp/db.pcapng").write_bytes(b"precious")
    for words in (["nobody"], ["db", "api", "--", "no such"]):
        assert lab.niso(
            "net", "capture", *words, "-w", "/tmp/db.pcapng", env=PATH, check=False
        ).returncode
    assert lab.path("/tmp/db.pcapng").read_bytes() == b"precious"
    full = lab.popen("niso", "net", "capture", "api", "-w", "/dev/full", env=PATH)
    assert full.stderr is not None and full.wait(20) == 2
    assert b"-w: cannot write /dev/full: no space left on device" in full.stderr.read()
    # its end, also by kill -9, leaves nothing, although no packet comes
    killed = lab.popen("niso", "net", "capture", "db", env=PATH)
    lab.wait_for(lambda: "tcpdump" in lab.run("ps", "-eo", "comm").stdout, 10, "tcpdump")
    killed.kill()
    killed.wait(10)
    lab.wait_for(lambda: "tcpdump" not in lab.run("ps", "-eo", "comm").stdout, 5, "no tcpdump")
    assert lab.run("sh", "-c", "ls /run/netns /run/niso; cat /proc/self/mounts").stdout == before
    lab.niso("activate", idle(lab, "own", network={"mode": "host"}))
    refused = "nobody|own|db db:x|db nobody:1|db -- no|db -c 0|db:80|db -w /gone/x"
    for wrong in map(str.split, refused.split("|")):
        done = lab.niso("net", "capture", *wrong, env=PATH, check=False)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("niso: ") and "hint: " in done.stderr, done.stderr


def test_without_tcpdump_the_error_says_what_to_install(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "db", network=on("backend")))
    done = lab.niso(
        "net", "capture", "db", env={"PATH": str(Path(sys.executable).parent)}, check=False
    )
    assert done.returncode == 1 and "apt install tcpdump" in done.stderr


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_dropped_packets_have_the_reason_also_of_other_programs(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24", "--subnet", "fd00:9::/64")
    policy = {"network.policy": {"allow_from": ["api:80", "192.0.2.3"]}}
    lab.niso("activate", echo(lab, "db", network=on("backend", ports=["8080:80"]), **policy))
    lab.niso("activate", idle(lab, "api", network=on("backend")))
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    lab.run(
        "nft",
        "table inet wall { chain f { type filter hook forward priority 5; tcp dport 443 drop; }; }",
    )
    lab.run("ip", "-n", "client", "route", "add", "10.99.1.0/24", "via", "192.0.2.1")
    before = lab.run("nft", "-s", "list", "tables").stdout

    def during(*words: str, asks: list[tuple[str, int, str]]) -> bytes:
        running = lab.popen("niso", "net", "capture", *words, "--drops", env=PATH)
        lab.wait_for(lambda: "_drops" in lab.run("nft", "list", "tables").stdout, 10, "tables")
        while running.poll() is None:
            for address, port, netns in asks:
                argv = ("timeout", "0.05", BUSYBOX, "nc", address, str(port))
                lab.run(*argv, input="", netns=netns, check=False)
        assert running.stdout is not None
        assert running.wait(10) == 0, running.communicate()
        assert lab.run("nft", "-s", "list", "tables").stdout == before
        return running.stdout.read()

    asks = [("10.99.1.2", 80, "niso-bad"), ("fd00:9::2", 80, "niso-bad")]
    asks += [("10.99.1.2", 80, "niso-api"), ("192.0.2.1", 8080, "client")]
    asks += [("192.0.2.3", 443, "niso-db"), ("10.99.1.2", 80, "client")]
    asks += [("10.99.1.77", 80, "niso-db")]
    lines = during("db", "-c", "14", asks=asks).decode().splitlines()
    denied = "not listed in network.policy.allow_from of db"
    direct = "db can be reached from outside the host only by its published ports"
    told = {(line.split(" ")[2].rpartition(".")[0], line.rpartition("  (")[2]) for line in lines}
    # a multicast report or router solicitation may come at any time
    told = {line for line in told if not line[1].startswith("routine announcements")}
    # what passes is not shown
    assert told == {
        ("bad", f"{denied})"),
        ("192.0.2.2", f"{denied})"),
        ("192.0.2.2", f"{direct})"),
        ("db", "inet wall f: tcp dport 443 drop)"),
        ("db", "to an address that no service has)"),
    }
    assert any(" IP6 bad." in line for line in lines)
    data = during("bad", "db:80", "-c", "2", "-w", "-", asks=asks[:1])
    found = blocks(data)
    assert [kind for kind, _ in found][-2:] == ["packet", "packet"]
    assert denied.encode() in found[-1][1]
    # IPv4 and TCP headers of 20 bytes each, of a packet with options
    assert struct.unpack_from("=II", found[-1][1], 12) == (40, 60)
    # nothing is left after kill -9
    killed = lab.popen("niso", "net", "capture", "db", "--drops", env=PATH)
    lab.wait_for(lambda: "tcpdump" in lab.run("ps", "-eo", "comm").stdout, 10, "tcpdump")
    killed.kill()
    killed.wait(10)
    lab.wait_for(lambda: "tcpdump" not in lab.run("ps", "-eo", "comm").stdout, 5, "no tcpdump")
    assert lab.run("nft", "-s", "list", "tables").stdout == before
