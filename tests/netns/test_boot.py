"""Test enabled services and reboots without systemd: a new lab with the same state is a rebooted host."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import Lab, assert_whole
from services import address, answer, ask, echo, idle, inspect, on, ps
from test_deploy import asked_page, kill_after_swap, serving, web

STATE = "/var/lib/niso"


@pytest.fixture
def boots() -> Iterator[Callable[[Lab | None], Lab]]:
    """Gives a host: a new one, or the one given after a reboot, in which all of it has ended but its disk."""
    with ExitStack() as stack:

        def boot(before: Lab | None = None) -> Lab:
            lab = stack.enter_context(Lab())
            for folder in (STATE, "/tmp/packages"):
                if before is not None and before.path(folder).is_dir():
                    shutil.copytree(
                        before.path(folder), lab.path(folder), symlinks=True, dirs_exist_ok=True
                    )
            return lab

        yield boot


def statuses(lab: Lab) -> dict[str, str]:
    return {row["service"]: row["status"] for row in json.loads(lab.niso("ps", "--json").stdout)}


def store(lab: Lab, sql: str) -> list[Any]:
    code = "import json, sqlite3, sys; print(json.dumps(sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2]).fetchall()))"
    found: list[Any] = json.loads(lab.run("python", "-c", code, f"{STATE}/state.db", sql).stdout)
    return found


def test_restore_brings_enabled_services_back_as_they_were(boots) -> None:
    lab = boots()
    policy = {"deny_from": ["192.0.2.3"]}
    lab.niso("net", "create", "spare")
    lab.niso(
        "activate",
        echo(lab, "api", network=on("backend", ports=["8080:80", ":81"], policy=policy)),
        echo(lab, "side", 82, network={"mode": "share", "share": "api"}),
        echo(lab, "other", network=on("niso-default")),
        idle(lab, "loose", network=on("backend", ports=["7000:80"])),
    )
    lab.niso("enable", "other")
    assert (
        lab.niso("enable", "other", "api", "side").stdout
        == "other: already enabled, unchanged\napi: enabled\nside: enabled\n"
    )
    assert inspect(lab, "api")["enabled"] and not inspect(lab, "loose")["enabled"]
    lab.niso("port-forward", "api", "9000:80")
    before = {name: (address(lab, name), ps(lab, name)["ports"]) for name in ("api", "other")}

    lab = boots(lab)
    assert set(statuses(lab).values()) == {"inactive"}
    missing = lab.niso("net", "check", check=False)
    assert (
        missing.returncode == 1
        and "process" not in missing.stdout
        and "namespace" not in missing.stdout
    )
    done = lab.niso("restore")
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == ["api", "other", "side"]
    assert statuses(lab) == {
        "api": "running",
        "loose": "inactive",
        "other": "running",
        "side": "running",
    }
    assert {
        name: (address(lab, name), ps(lab, name)["ports"]) for name in ("api", "other")
    } == before
    for port in (8080, 9000):
        assert answer(lab, "192.0.2.1", port, "client") == "api 192.0.2.2"
        assert ask(lab, "192.0.2.1", port, "neighbour") == ""
    assert_whole(lab)
    assert {"niso-spare", "niso-backend"} <= {link["ifname"] for link in lab.ip_json("link")}
    assert lab.niso("restore").stdout.count("already active") == 3


def slots(lab: Lab) -> int:
    """Return the number of slots of all service addresses."""
    listed = lab.run("nft", "-j", "list", "map", "inet", "niso", "slots4", check=False).stdout
    found = [
        part["map"] for part in json.loads(listed or "{}").get("nftables", []) if "map" in part
    ]
    return sum(len(each.get("elem", [])) for each in found)


def test_instances_get_connections_after_a_reboot_when_they_are_healthy(boots) -> None:
    lab = boots()
    lab.niso("activate", web(lab, "slow", "0"))
    lab.niso("activate", web(lab, "slow", "1"))
    lab.niso("scale", "web=3")
    lab.niso("enable", "web")
    before = (ps(lab, "web")["address"], ps(lab, "web")["ports"])
    assert slots(lab) == 64

    lab = boots(lab)
    assert set(statuses(lab).values()) == {"inactive"}
    restore = lab.popen("niso", "restore")
    answers = []
    while restore.poll() is None:
        some = slots(lab) > 0
        answers.append((some, asked_page(lab, "192.0.2.1", 8080, "client")))
        time.sleep(0.1)
    assert restore.returncode == 0
    assert (False, "") in answers  # instances were starting
    # once there are slots, all answer
    assert {page for some, page in answers if some} <= {"slow"}
    assert slots(lab) == 64 and len(serving(lab)) == 3
    assert (ps(lab, "web")["address"], ps(lab, "web")["ports"]) == before
    assert asked_page(lab, "192.0.2.1", 8080, "client") == "slow"
    assert_whole(lab)
    # a boot is no version
    history = json.loads(lab.niso("history", "web", "--json").stdout)
    assert [line["version"] for line in history] == [1, 2]
    lab.niso("rollback", "web")
    # whatever ends all, or removes all
    lab.niso("deactivate", "--all")
    assert serving(lab) == [] and slots(lab) == 0
    assert_whole(lab)
    lab.niso("restore")
    assert asked_page(lab, "192.0.2.1", 8080, "client") == "slow"
    lab.niso("reset", "--yes")
    left = lab.run("ip", "netns").stdout.split() + lab.run("nft", "list", "tables").stdout.split()
    assert not [word for word in left if word.startswith("niso")]
    assert not [link for link in lab.ip_json("link") if link["ifname"].startswith("niso")]


def test_deploy_that_was_cut_off_after_its_swap_is_complete_after_a_reboot(boots) -> None:
    lab = boots()
    lab.niso("activate", web(lab, "v1"))
    lab.niso("enable", "web")
    kill_after_swap(lab, web(lab, "v2", deploy={"monitor": "60s"}))
    lab = boots(lab)
    lab.niso("restore")
    assert asked_page(lab, "192.0.2.1", 8080, "client") == "v2"
    assert len(serving(lab)) == 2
    assert_whole(lab)


def test_instance_that_is_not_healthy_after_a_reboot_gets_no_connections(boots) -> None:
    lab = boots()
    lab.path("/tmp/flag").mkdir()
    flag = {"flag": {"mount": "/flag", "host": "/tmp/flag", "mode": "ro"}}
    lab.niso("activate", web(lab, "v1", volumes=flag), echo(lab, "other", network=on("apps")))
    lab.niso("enable", "web", "other")
    lab = boots(lab)
    lab.write("/tmp/flag/broken", "")
    failed = lab.niso("restore", "--timeout", "3s", check=False)
    assert failed.returncode == 1 and "web" in failed.stderr
    assert statuses(lab)["other"] == "running"
    assert slots(lab) == 0 and asked_page(lab, "192.0.2.1", 8080, "client") == ""


def test_another_network_namespace_is_no_reboot(lab) -> None:
    """Nor a pid namespace: as long as anything of what is active is to be seen, it is active."""
    lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])))
    lab.niso("activate", idle(lab, "bare", network={"mode": "host"}))
    assert set(json.loads(lab.client("niso", "ps", "--json").stdout)[0]["status"].split()) == {
        "running"
    }
    lab.run("unshare", "--pid", "--fork", "--mount-proc", "niso", "ps")
    assert statuses(lab) == {"api": "running", "bare": "running"}
    assert_whole(lab)


def test_store_of_an_older_niso_is_taken_as_it_is(boots) -> None:
    lab = boots()
    lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])))
    store(lab, "DELETE FROM meta WHERE key='world'")
    assert ps(lab, "api")["status"] == "running"
    assert_whole(lab)
    store(lab, "DELETE FROM meta WHERE key='world'")
    lab = boots(lab)
    assert ps(lab, "api")["status"] == "inactive"
