"""Test enabled services and reboots without systemd: a new lab with the same state is a rebooted host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conftest import Lab, assert_whole
from samples import LONG
from services import address, answer, ask, echo, idle, inspect, on, ps, refused
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


@pytest.mark.parametrize("taker", ["aaa", "worker"])
def test_port_that_a_forward_took_stays_where_it_is(boots, taker: str) -> None:
    """Whoever comes first in the alphabet: activated again, and after a reboot, all is as it was."""
    lab = boots()
    lab.niso(
        "activate",
        echo(lab, "api", network={"ports": ["8080:80", "8081:80"]}),
        echo(lab, taker, network={}),
    )
    lab.niso("enable", "api", taker)
    lab.niso("port-forward", taker, "8080:80", "--take-over")
    again = lab.niso("activate", "api")
    assert again.stdout.startswith("api: already active") and "ports: 8081→80\n" in again.stdout
    assert f"api: host port 8080/tcp is not published: it is forwarded to {taker!r}" in again.stderr
    lab = boots(lab)
    lab.niso("restore")
    assert lab.niso("restore").stdout.count("already active") == 2
    assert answer(lab, "192.0.2.1", 8080, "client") == f"{taker} 192.0.2.2"
    assert answer(lab, "192.0.2.1", 8081, "client") == "api 192.0.2.2"
    assert_whole(lab)
    # nor does it come back by being deactivated, but as soon as the forward has ended
    lab.niso("deactivate", "api")
    lab.niso("activate", "api")
    assert answer(lab, "192.0.2.1", 8080, "client") == f"{taker} 192.0.2.2"
    lab.niso("deactivate", taker)
    assert lab.niso("activate", "api").stderr == ""
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    assert_whole(lab)


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

    for _ in range(2):
        lab = boots(lab)
        assert set(statuses(lab).values()) == {"inactive"}
        restore = lab.popen("niso", "restore")
        answers = []
        while restore.poll() is None:
            some = slots(lab) > 0
            answers.append((some, asked_page(lab, "192.0.2.1", 8080, "client")))
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


def test_service_that_was_active_and_is_not_enabled_is_inactive(boots) -> None:
    lab = boots()
    lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])))
    lab.niso("port-forward", "api", "9000:80")
    was = address(lab, "api")
    lab = boots(lab)
    assert ps(lab, "api")["status"] == "inactive"
    lab.niso("net", "repair")
    assert_whole(lab)
    assert ps(lab, "api")["status"] == "inactive"
    assert lab.niso("restore").stdout == "no service is enabled\n"
    # and what it had is still its own
    lab.niso("activate", "api")
    assert address(lab, "api") == was
    assert answer(lab, "192.0.2.1", 9000, "client") == "api 192.0.2.2"
    assert_whole(lab)
    # a deactivation ends forwards that a reboot kept
    lab = boots(lab)
    assert inspect(lab, "api")["forwards"]
    lab.niso("deactivate", "api")
    lab.niso("activate", "api")
    assert inspect(lab, "api")["forwards"] == []


def test_forwarding_goes_back_to_what_this_boot_had(boots) -> None:
    forwarding = ("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
    lab = boots()
    lab.niso("net", "create", "both", "--ipv6")
    lab.niso("activate", idle(lab, "api", network=on("both")))
    lab = boots(lab)
    lab.run(
        "sh",
        "-c",
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    )
    lab.niso("activate", "api")
    assert '"closed"' not in json.dumps([item for item in lab.nft_json() if "element" in item])
    lab.niso("deactivate", "api")
    assert lab.run(*forwarding).stdout == "1\n1\n"


def test_restore_does_what_can_be_done_and_names_the_rest(boots) -> None:
    lab = boots()
    lab.niso(
        "activate",
        *(
            echo(lab, name, network=on("backend", ports=[f"{port}:80"]))
            for name, port in (("api", 8080), ("db", 5432), ("web", 8000))
        ),
    )
    lab.niso("enable", "api", "db", "web")
    lab = boots(lab)
    lab.popen("/usr/bin/busybox", "nc", "-l", "-p", "5432")
    lab.wait_for(lambda: ":5432" in lab.run("ss", "-ltn").stdout)
    shutil.rmtree(lab.path(f"{STATE}/packages/web"))
    said = refused(lab, "restore")
    assert "db: " in said and "5432/tcp is used by" in said
    assert "web: its package copy" in said and "niso: api" not in said
    assert statuses(lab) == {"api": "running", "db": "inactive", "web": "inactive"}
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"


def test_forward_that_somebody_took_meanwhile_is_no_ones_secret(boots) -> None:
    lab = boots()
    lab.niso("activate", echo(lab, "api"), echo(lab, "web"))
    lab.niso("enable", "api")
    lab.niso("port-forward", "api", "9000:80")
    lab.niso("port-forward", "api", "9001:80")
    lab = boots(lab)
    lab.niso("activate", "web")
    lab.niso("port-forward", "web", "9000:80")
    said = refused(lab, "restore")
    assert "port-forward 9000:80: host port 9000/tcp is published by 'web'" in said
    assert ps(lab, "api")["status"] == "inactive"
    lab.niso("port-forward", "api", "9000:80", "--remove")
    lab.niso("restore")
    assert answer(lab, "192.0.2.1", 9000, "client") == "web 192.0.2.2"
    assert answer(lab, "192.0.2.1", 9001, "client") == "api 192.0.2.2"
    assert_whole(lab)


@pytest.mark.parametrize("at", [4, 12, 20, 28, 36] if LONG else [4, 20, 36])
def test_activation_that_was_cut_off_is_undone_after_a_reboot(boots, at) -> None:
    lab = boots()
    lab.niso(
        "activate", echo(lab, "api", network=on("backend", ports=["8080:80"])), idle(lab, "loose")
    )
    lab.niso("enable", "api")
    was = address(lab, "api")
    echo(lab, "api", network=on("frontend", ports=["8081:80"]))
    idle(lab, "loose", environment={"NEW": "1"})
    echo(lab, "new", network=on("frontend", ports=["8082:80"]))
    died = lab.niso(
        "activate",
        *(f"/tmp/packages/{name}" for name in ("loose", "api", "new")),
        env={"NISO_FAILPOINT": f"{at}:kill"},
        check=False,
    )
    assert died.returncode == -9
    lab = boots(lab)
    assert set(statuses(lab).values()) <= {"inactive"}
    lab.niso("restore")
    assert statuses(lab) == {"api": "running", "loose": "inactive"}
    assert address(lab, "api") == was
    assert answer(lab, "192.0.2.1", 8080, "client") == "api 192.0.2.2"
    assert ask(lab, "192.0.2.1", 8081, "client") == ""
    assert_whole(lab)


@pytest.mark.parametrize(
    ("command", "at"),
    [(("deactivate", "api"), 2), (("remove", "api"), 3), (("port-forward", "api", "9000:80"), 2)],
)
def test_other_commands_that_were_cut_off_are_finished_after_a_reboot(boots, command, at) -> None:
    lab = boots()
    lab.niso(
        "activate", echo(lab, "api", network=on("backend")), idle(lab, "web", network=on("backend"))
    )
    lab.niso("enable", "api")
    died = lab.niso(*command, env={"NISO_FAILPOINT": f"{at}:kill"}, check=False)
    assert died.returncode == -9
    assert store(lab, "SELECT action FROM intent"), "it died before it had begun"
    lab = boots(lab)
    assert set(statuses(lab).values()) == {"inactive"}
    lab.niso("restore")
    assert store(lab, "SELECT * FROM intent") == []
    assert statuses(lab) == (
        {"web": "inactive"} if command[0] == "remove" else {"api": "running", "web": "inactive"}
    )
    if command[0] == "port-forward":
        assert answer(lab, "192.0.2.1", 9000, "client") == "api 192.0.2.2"
    assert_whole(lab)


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
