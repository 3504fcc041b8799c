"""Run firewalld from Debian's packages next to niso, Docker and Podman."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

import pytest
from conftest import TESTS, Lab, Process
from docker_world import Docker, needs_docker
from machine import UNITS, Machine, needs_systemd
from podman_world import Podman, needs_podman
from samples import LONG
from services import BUSYBOX, CLIENT, HOST, address, ask, echo, fetch, package

PEERS = TESTS.parent / ".cache/bench"
PACKAGES = ("firewalld", "python3-firewall", "python3-nftables")
NEEDS = ("/usr/lib/python3/dist-packages/dbus", "/usr/lib/python3/dist-packages/gi")
SERVE = ("httpd", "-f", "-p", "80", "-h", "/etc/served")
CONF = "/etc/firewalld/firewalld.conf"
HINT = re.compile(r"firewall-cmd [^;)\n]*")
needs_firewalld = pytest.mark.skipif(
    not LONG
    or not all((PEERS / name).exists() for name in PACKAGES)
    or not all(map(os.path.exists, NEEDS)),
    reason="part of ./dev test-long, with firewalld, python3-dbus and python3-gi",
)


@needs_systemd
@needs_firewalld
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
    hints = HINT.findall(told.stdout)
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


def start(lab: Lab) -> Process:
    """Start firewalld with a system bus of its own, and wait until it has loaded its rules."""
    daemon: Process = lab.popen("sh", "-c", "exec firewalld --nofork --nopid >> /tmp/fw.log 2>&1")
    state = ("firewall-cmd", "--state")
    lab.wait_for(lambda: lab.run(*state, check=False).returncode == 0, 20, "firewalld")
    return daemon


@needs_firewalld
@needs_docker
@needs_podman
@pytest.mark.parametrize("first", ["firewalld", "niso"])
def test_networks_of_niso_docker_and_podman_work_with_firewalld(lab: Lab, first: str) -> None:
    """Each has a published port and a way out, also after each kind of reload."""
    for name in PACKAGES:
        lab.run("sh", "-c", f"cp -r {PEERS}/{name}/[eu]* /")
    lab.run("mkdir", "-p", "/run/dbus")
    lab.popen("dbus-daemon", "--system", "--nofork", "--nopidfile", stdout=-3, stderr=-3)
    lab.wait_for(lambda: lab.path("/run/dbus/system_bus_socket").exists(), 10, "the bus")
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    page = {"served/index.html": "web\n"}
    serve = (BUSYBOX, "httpd", "-f", "-h", "/app/served", "-p")
    web = package(lab, "web", *serve, "80", files=page, network={"ports": ["8080:80"]})
    hosted = package(lab, "hosted", *serve, "9000", files=page, network={"mode": "host"})
    if first == "firewalld":
        start(lab)
    lab.niso("activate", web, hosted, echo(lab, "db"))
    docker, podman = Docker(lab), Podman(lab)
    docker("network", "create", "-d", "niso", "back")
    podman("network", "create", "-d", "niso", "front")
    docker.run("own", "-p", "8081:80")
    docker.run("dmixed", "--network", "name=back,driver-opt=niso.name=dmixed", "-p", "8082:80")
    podman.run("pown", "-p", "8083:80")
    podman.run("pmixed", "--network", "front", "-p", "8084:80")
    ports = {8080: "web", 8081: "own", 8082: "dmixed", 8083: "pown", 8084: "pmixed"}
    to_host = ("net", "explain", CLIENT, f"{HOST}:9000")

    def published() -> dict[int, str]:
        return {port: fetch(lab.client, f"{HOST}:{port}") for port in ports}

    def outward() -> dict[str, str]:
        """What each reads outside, without those that read nothing."""
        read = {"web": fetch(lab.run, CLIENT, "nsenter", "--net=/run/netns/niso-web")}
        read |= {name: docker.get(name, CLIENT) for name in ("own", "dmixed")}
        read |= {name: podman.get(name, CLIENT) for name in ("pown", "pmixed")}
        return {name: text for name, text in read.items() if text}

    def within() -> str:
        return ask(lab, address(lab, "db"), 80, "niso-web")

    def engines_are_told() -> None:
        """Do what the engines need after a start or reload of firewalld, with niso or without."""
        podman("network", "reload", "--all")
        lab.wait_for(lambda: set(outward()) == set(ports.values()), 20, "the ways out")

    if first == "niso":
        assert published() == ports and set(outward()) == set(ports.values()) and within()
        assert lab.niso(*to_host).returncode == 0 and fetch(lab.client, f"{HOST}:9000") == "web"
        daemon = start(lab)
    lab.wait_for(lambda: published() == ports, 20, "the published ports")
    # niso's networks have no way out, and niso says so; its words open them without a reload,
    # which would close the engines' own networks
    assert not {"web", "dmixed", "pmixed"} & set(outward()) and not within()
    told = lab.niso("net", "check", check=False).stdout
    assert told.count("foreign: ") == 1 and "(outward, within the network)" in told, told
    hints = HINT.findall(told)
    assert len(hints) == 2
    for hint in hints:
        lab.run(*hint.split())
    if first == "niso":  # dockerd, which was first, finds firewalld when it starts
        docker.daemon.terminate()
        docker.daemon.wait(30)
        docker.daemon = docker.start()
        docker("start", "own", "dmixed")
        docker.wait_until_served("dmixed")
        engines_are_told()
    for action in ("", "--reload", "--complete-reload"):
        if action:
            lab.run("firewall-cmd", action)
            engines_are_told()
        assert (published(), set(outward())) == (ports, set(ports.values())), action
        assert within() and lab.niso("net", "check").stdout.startswith("OK"), action
    # a port of the host itself that the zone does not open
    assert fetch(lab.client, f"{HOST}:9000") == ""
    why = lab.niso(*to_host, check=False)
    assert (
        why.returncode == 1 and "chain inet firewalld filter_INPUT (input) drops it" in why.stdout
    )
    lab.run("firewall-cmd", "--add-port=9000/tcp")
    assert lab.niso(*to_host).returncode == 0 and fetch(lab.client, f"{HOST}:9000") == "web"
    # published ports that it closes, one of which it opens again
    lab.run("sed", "-i", "s/StrictForwardPorts=no/StrictForwardPorts=yes/", CONF)
    lab.run("firewall-cmd", "--reload")
    assert published() == dict.fromkeys(ports, "")
    told = lab.niso("net", "check", check=False).stdout
    assert told.count("foreign: ") == 1 and f"StrictForwardPorts=no in {CONF}" in told, told
    assert "filter_FORWARD drops it" in lab.niso("net", "ports", "--exposed").stdout
    why = lab.niso("net", "explain", CLIENT, f"{HOST}:8080", check=False)
    assert why.returncode == 1 and "filter_FORWARD (forward) drops it" in why.stdout
    to = f"port=8080:proto=tcp:toport=80:toaddr={address(lab, 'web')}"
    lab.run("firewall-cmd", f"--add-forward-port={to}")
    assert published() == {**dict.fromkeys(ports, ""), 8080: "web"}
    assert lab.niso("net", "explain", CLIENT, f"{HOST}:8080").returncode == 0
    # firewalld ends, and with it what it closed
    if first == "niso":
        daemon.terminate()
        daemon.wait(20)
        lab.wait_for(lambda: published() == ports, 20, "the published ports")
    docker("rm", "-f", "own", "dmixed")
    podman("rm", "-f", "-t0", "pown", "pmixed")
