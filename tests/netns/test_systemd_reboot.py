"""Test enabled services under a real systemd at a reboot, and after a firewall's unit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from conftest import Lab, assert_whole
from machine import DEAD, FAILED, RUNNING, Machine, enabled, is_followed, needs_systemd, pids, row
from services import answer, ask, echo, idle, on
from test_deploy import asked_page, web

EXITED = "active/exited"
pytestmark = needs_systemd


@pytest.fixture
def machine(lab) -> Machine:
    return Machine(lab)


def test_rules_come_back_after_the_unit_of_a_firewall(lab, machine) -> None:
    """Also while a service's unit waits for that of the firewall."""
    policy = {"deny_from": ["192.0.2.3"]}
    enabled(machine, echo(lab, "api", network=on("niso-default", ports=["8080:80"], policy=policy)))
    machine.path("/etc/nftables.conf").write_text("flush ruleset\ntable inet theirs { }\n")

    def systemctl(word: str) -> bool:
        """Whether niso's rules are there after systemd did this."""
        machine.systemctl("reset-failed", "nftables")  # systemd allows five starts in ten seconds
        machine.systemctl(word, "nftables", timeout=60)
        tables = machine.run("nft", "list", "tables").stdout
        assert ("inet theirs" in tables) == (word != "stop")
        return "inet niso" in tables and "bridge niso" in tables

    assert systemctl("start"), "the first niso enable has seen to it"
    machine.niso("firewall", "disable")
    assert not systemctl("restart"), "they are flushed"
    assert ask(lab, "192.0.2.1", 8080, "client") == ""
    machine.systemctl("enable", "nftables")
    said = machine.niso("activate", idle(lab, "other", network=on("niso-default"))).stderr
    assert "a restart of nftables.service flushes" in said and "niso firewall enable" in said
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    lines = machine.niso("firewall", "enable").stdout.splitlines()
    paths = [line.split()[-1] for line in lines]
    assert [line.split()[:2] for line in lines] == [
        ["nftables.service:", "enabled"],
        ["firewalld.service:", "enabled"],
    ]
    assert machine.niso("firewall", "enable").stdout.count("unchanged") == 2
    assert (
        machine.run("systemd-analyze", "verify", "/usr/lib/systemd/system/nftables.service").stderr
        == ""
    )
    for word in ("restart", "reload", "stop", "start"):
        assert systemctl(word), word
        assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
        assert ask(lab, "192.0.2.1", 8080, "neighbour") == ""
        assert machine.niso("net", "check").stdout.startswith("OK")
    machine.run("kill", "-KILL", str(pids(machine)[0]))
    lab.wait_for(lambda: machine.state("api") == FAILED, 10, "systemd sees that it has ended")
    assert systemctl("restart") and machine.state("api") == FAILED
    machine.niso("net", "repair")
    assert machine.state("api") == RUNNING and is_followed(machine)
    assert machine.niso("firewall", "disable").stdout.count("disabled") == 2
    assert not any(machine.path(path).parent.exists() for path in paths)
    assert not systemctl("restart")


@pytest.fixture
def labs() -> Iterator[tuple[Lab, Lab]]:
    with Lab() as first, Lab() as second:
        yield first, second


def test_enabled_services_come_back_with_a_reboot(labs, tmp_path) -> None:
    """Another kernel, as far as niso can see, with the same disk: the same addresses, ports, forwards and policies."""
    first, second = labs
    machine = Machine(first)
    policy = {"deny_from": ["192.0.2.3"]}
    package_of = {
        "api": echo(first, "api", network=on("niso-default", ports=["8080:80"], policy=policy)),
        "side": echo(first, "side", 81, network={"mode": "share", "share": "api"}),
        "other": echo(first, "other", network=on("niso-default")),
        "loose": idle(first, "loose"),
    }
    machine.niso("activate", *package_of.values())
    machine.niso("enable", "api", "side", "other")
    machine.niso("port-forward", "api", "9000:80")
    before = {name: row(machine, name)["address"] for name in package_of}
    machine.halt()
    disk = tmp_path / "disk"
    shutil.copytree(machine.disk, disk, symlinks=True, ignore_dangling_symlinks=True)

    again = Machine(second, like=disk)
    for name in ("api", "side", "other"):
        second.wait_for(
            lambda n=name: again.state(n) == RUNNING, 30, f"{name} is back: {again.journal(name)}"
        )
        assert is_followed(again, name)
        assert row(again, name)["address"] == before[name]
    assert row(again, "loose")["status"] == "inactive"
    assert_whole(again)
    for port in (8080, 9000):
        assert answer(second, "192.0.2.1", port, "client") == "api 192.0.2.2"
        assert ask(second, "192.0.2.1", port, "neighbour") == ""


def test_unit_of_a_service_with_instances_starts_and_stops_them(labs, tmp_path) -> None:
    first, second = labs
    machine = Machine(first)

    def instances(on: Machine) -> list[str]:
        shown = json.loads(on.niso("ps", "--instances", "--json").stdout)
        return [line["service"] for line in shown if "." in line["service"]]

    machine.niso("activate", web(first, "v1"))
    before = instances(machine)
    machine.niso("enable", "web")
    unit = machine.run("cat", "/etc/systemd/system/niso-web.service").stdout
    assert "Type=oneshot" in unit
    assert machine.state("web") == EXITED and instances(machine) == before
    machine.systemctl("stop", "niso-web")
    assert instances(machine) == [] and asked_page(first, "192.0.2.1", 8080, "client") == ""
    machine.systemctl("start", "niso-web")
    assert machine.state("web") == EXITED and len(instances(machine)) == 2
    assert asked_page(first, "192.0.2.1", 8080, "client") == "v1"
    # a deploy needs no unit, and a restart of the unit is one of the service
    machine.niso("activate", web(first, "v2"))
    assert asked_page(first, "192.0.2.1", 8080, "client") == "v2"
    machine.niso("deactivate", "web")
    assert machine.state("web") == DEAD
    machine.niso("activate", "web")
    assert machine.state("web") == EXITED
    machine.systemctl("restart", "niso-web")
    assert machine.state("web") == EXITED and len(instances(machine)) == 2
    assert_whole(machine)
    # a machine that loses its power before the units are written has those of the former services
    machine.niso("activate", echo(first, "api"))
    machine.niso("enable", "api")
    machine.halt()
    disk = tmp_path / "disk"
    shutil.copytree(machine.disk, disk, symlinks=True, ignore_dangling_symlinks=True)
    units = [disk / f"etc/systemd/system/niso-{name}.service" for name in ("web", "api")]
    texts = [unit.read_text() for unit in units]
    units[0].write_text(texts[1].replace("api", "web"))
    units[1].write_text(texts[0].replace("web", "api"))
    again = Machine(second, like=disk)
    for name, state in (("web", EXITED), ("api", RUNNING)):
        try:
            second.wait_for(lambda n=name, s=state: again.state(n) == s, 30, name)
        finally:
            print(again.journal(name))
    assert is_followed(again)
    assert [again.path(f"/etc/systemd/system/{unit.name}").read_text() for unit in units] == texts
    assert len(instances(again)) == 2
    assert asked_page(second, "192.0.2.1", 8080, "client") == "v2"
    assert_whole(again)
    again.niso("disable", "web")
    assert again.state("web") == DEAD
    assert len(instances(again)) == 2 and asked_page(second, "192.0.2.1", 8080, "client") == "v2"
