"""Run firewalld from Debian's packages beside niso, in a machine with a booted systemd."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

import pytest
from conftest import TESTS, Lab
from machine import UNITS, Machine, needs_systemd
from samples import LONG
from services import BUSYBOX, CLIENT, HOST, fetch

PEERS = TESTS.parent / ".cache/bench"
PACKAGES = ("firewalld", "python3-firewall", "python3-nftables")
NEEDS = ("/usr/lib/python3/dist-packages/dbus", "/usr/lib/python3/dist-packages/gi")
SERVE = ("httpd", "-f", "-p", "80", "-h", "/etc/served")


@needs_systemd
@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
@pytest.mark.skipif(
    not all((PEERS / package).exists() for package in PACKAGES)
    or not all(map(os.path.exists, NEEDS)),
    reason="./dev test unpacks firewalld; python3-dbus and python3-gi are not niso's",
)
def test_rules_of_niso_hold_beside_firewalld_and_come_back(lab: Lab) -> None:
    lower = ":".join([*(f"{PEERS}/{package}/usr" for package in PACKAGES), "/usr"])
    lab.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower}", "/usr")
    machine = Machine(lab)
    etc = pathlib.Path(machine.disk, "etc")
    shutil.copytree(PEERS / "firewalld/etc/firewalld", etc / "firewalld")
    (etc / "served").mkdir()
    (etc / "served/index.html").write_text("web\n")
    pathlib.Path(machine.disk, UNITS, "dbus.service").unlink()  # masked in other tests
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "dbus.socket")
    machine.niso("firewall", "enable")
    machine.systemctl("start", "firewalld")
    assert machine.run("firewall-cmd", "--state").stdout == "running\n"
    assert "table inet firewalld" in machine.run("nft", "list", "tables").stdout
    attach = ("net", "attach", "--new", "--network", "backend")
    machine.niso("net", "create", "backend", "--subnet", "10.99.60.0/24")
    machine.niso(*attach, "web", "-p", "8080:80", "--allow-from", f"api {CLIENT}")
    for name in ("api", "bad"):
        machine.niso(*attach, name)
    space = "NetworkNamespacePath=/run/netns/niso-web"
    machine.run("systemd-run", "--unit=web", "-p", space, BUSYBOX, *SERVE)

    def get(url: str, *inside: str) -> str:
        return fetch(machine.run if inside else lab.client, url, *inside)

    def seen() -> tuple[str, str, str]:
        """What a client outside, a service that the policy allows, and its neighbour read."""
        own = [get("10.99.60.2", "nsenter", f"--net=/run/netns/niso-{n}") for n in ("api", "bad")]
        return get(f"{HOST}:8080"), own[0], own[1]

    lab.wait_for(lambda: seen()[0], 10, "the server of web")
    # firewalld rejects what stays within the bridge, which goes through the host's rules too, and
    # what niso advises mends it
    assert seen() == ("web", "", "")
    told = machine.niso("net", "check", check=False)
    hints = re.findall(r"firewall-cmd [^;)\n]*", told.stdout)
    assert len(hints) == 2, told.stdout
    for hint in hints:
        machine.run(*hint.split())
    assert seen() == ("web", "web", "")
    machine.niso("net", "check")

    # another program deletes all rules, and firewalld is reloaded, restarted or stopped
    for action in ("reload", "restart", "stop"):
        machine.run("nft", "flush", "ruleset")
        assert seen() != ("web", "web", "")
        machine.systemctl(action, "firewalld")
        lab.wait_for(lambda: seen() == ("web", "web", ""), 10, f"the rules after {action}")
        machine.niso("net", "check")
