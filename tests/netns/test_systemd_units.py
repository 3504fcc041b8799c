"""Give units of systemd networks of niso, by the files that docs/guide/systemd.md has."""

from __future__ import annotations

import json
import pathlib
import re
import sys

from conftest import Lab
from machine import UNITS, Machine, needs_systemd
from pages import ROOT
from services import BUSYBOX, CLIENT, HOST, echo, on

GUIDE = ROOT / "docs/guide/systemd.md"
FILE = re.compile(r"```ini\n# (/etc/\S+)\n(.*?)```", re.DOTALL)
SERVE = """\
import socket
server = socket.create_server(("", 80), backlog=64)
while True:
    connection, peer = server.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""
UNIT = """\
[Service]
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
Restart=on-failure
RestartSec=0
ExecStart=/usr/bin/python3 -ISu /etc/serve.py
"""


def write(machine: Machine, path: str, text: str) -> None:
    file = pathlib.Path(f"{machine.disk}{path}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace("/usr/local/bin/niso", f"{sys.prefix}/bin/niso"))


@needs_systemd
def test_units_have_networks_of_niso(lab: Lab) -> None:
    files = dict(FILE.findall(GUIDE.read_text()))
    assert len(files) == 4
    machine = Machine(lab)
    for path, text in files.items():
        write(machine, path, text)
    write(machine, "/etc/serve.py", SERVE)
    for name in ("web", "private"):
        write(machine, f"/{UNITS}/{name}.service", UNIT)
    machine.systemctl("daemon-reload")
    machine.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    services = [echo(lab, name, network=on("backend")) for name in ("api", "bad")]
    machine.niso("activate", *services)
    machine.systemctl("start", "web", "private")

    def ask(source: str, address: str) -> str:
        words = (BUSYBOX, "nc", "-w1", address, "80")
        inside = ("nsenter", f"--net=/run/netns/niso-{source}")
        return str(machine.run(*inside, *words, input="", check=False).stdout)

    def address(name: str) -> str:
        rows = json.loads(machine.niso("ps", "--json").stdout)
        return str(next(row for row in rows if row["service"] == name)["address"][0])

    web, api, private = address("web"), address("api"), address("private")
    lab.wait_for(lambda: ask("api", web) == api, 5, "the unit's answer")
    assert ask("bad", web) == ""
    assert lab.client(BUSYBOX, "nc", "-w1", HOST, "8080", input="").stdout == CLIENT
    lab.wait_for(lambda: ask("api", private) == api, 5, "the other unit's answer")
    assert machine.niso("net", "check").stdout.startswith("OK")
    # the process ends, and comes back into the same namespace
    machine.systemctl("kill", "--signal=KILL", "web")
    lab.wait_for(lambda: ask("api", web) == api, 5, "its answer after the restart")
    assert address("web") == web and ask("bad", web) == ""
    # another namespace of the same unit has the same address
    machine.systemctl("restart", "private")
    assert address("private") == private
    lab.wait_for(lambda: ask("api", private) == api, 5, "its answer")
    machine.systemctl("stop", "private", "niso-net@web")
    rows = json.loads(machine.niso("ps", "--json").stdout)
    assert [row["service"] for row in rows] == ["api", "bad"]
    assert machine.systemctl("is-active", "web", check=False).stdout == "inactive\n"
    assert machine.niso("net", "check").stdout.startswith("OK")
