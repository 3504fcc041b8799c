"""Test niso net capture; tshark, where there is one, reads the file."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Lab
from services import answer, ask, echo, idle, on

from niso.see import capture, pcapng

PATH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
BLOCKS = {0x0A0D0D0A: "section", 4: "names", 1: "interface", 6: "packet"}


def blocks(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while data:
        kind, size = struct.unpack_from("=II", data)
        assert data[size - 4 : size] == struct.pack("=I", size) and size % 4 == 0
        found.append((BLOCKS[kind], data[8 : size - 4]))
        data = data[size:]
    return found


def test_pcap_that_comes_in_pieces_becomes_pcapng_with_names() -> None:
    packets = [b"first", b"second packet"]
    pcap = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 276)
    for at, packet in enumerate(packets):
        pcap += struct.pack("=IIII", 1_700_000_000 + at, 5, len(packet), 99) + packet
    converter = pcapng.Converter({"10.99.1.2": "db", "fd00::2": "db"})
    whole = b"".join(converter.feed(pcap[i : i + 1]) for i in range(len(pcap)))
    assert whole == pcapng.Converter({"10.99.1.2": "db", "fd00::2": "db"}).feed(pcap)
    found = blocks(whole)
    assert [kind for kind, _ in found] == ["section", "names", "interface", "packet", "packet"]
    assert found[1][1].count(b"db\0") == 2
    _, high, low, kept, length = struct.unpack_from("=IIIII", found[3][1])
    assert (high << 32 | low, kept, length) == (1_700_000_000_000_005, 5, 99)
    with pytest.raises(ValueError):
        pcapng.Converter({}).feed(b"x" * 24)


def test_expression_of_a_peer() -> None:
    assert capture.expression((), None, "") == ""
    one = capture.expression(("10.0.0.1", "fd00::1"), 80, "tcp or udp")
    assert one == "(host 10.0.0.1 or host fd00::1) and port 80 and (tcp or udp)"


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
        assert running.stdout is not None
        assert running.wait(10) == 0, running.communicate()
        return running.stdout.read()

    text = during("db", "api:80", "-c", "3").decode()
    assert len(text.splitlines()) == 3 and "api." in text and "db." in text
    assert "more" not in text
    assert b" > " in during("api", "-c", "2", "--filter", "tcp port 80")
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
    # what exists is kept if nothing is captured
    lab.path("/tmp/db.pcapng").write_bytes(b"precious")
    for words in (["nobody"], ["db", "--filter", "no such"]):
        assert lab.niso(
            "net", "capture", *words, "-w", "/tmp/db.pcapng", env=PATH, check=False
        ).returncode
    assert lab.path("/tmp/db.pcapng").read_bytes() == b"precious"
    # its end, also by kill -9, leaves nothing, although no packet comes
    killed = lab.popen("niso", "net", "capture", "db", env=PATH)
    lab.wait_for(lambda: "tcpdump" in lab.run("ps", "-eo", "comm").stdout, 10, "tcpdump")
    killed.kill()
    killed.wait(10)
    lab.wait_for(lambda: "tcpdump" not in lab.run("ps", "-eo", "comm").stdout, 5, "no tcpdump")
    assert lab.run("sh", "-c", "ls /run/netns /run/niso; cat /proc/self/mounts").stdout == before
    for wrong in (
        ["nobody"],
        ["db", "--filter", "no such"],
        ["db", "-c", "0"],
        ["db", "-w", "/gone/x"],
    ):
        done = lab.niso("net", "capture", *wrong, env=PATH, check=False)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.startswith("niso: "), done.stderr


def test_without_tcpdump_the_error_says_what_to_install(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "db", network=on("backend")))
    done = lab.niso(
        "net", "capture", "db", env={"PATH": str(Path(sys.executable).parent)}, check=False
    )
    assert done.returncode == 1 and "apt install tcpdump" in done.stderr
