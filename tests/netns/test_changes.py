"""Activating a changed manifest applies exactly the difference; a dry run shows it first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snapshots
from conftest import Lab, Process, assert_whole
from services import (
    HOST,
    address,
    answer,
    ask,
    echo,
    environment_of,
    idle,
    inside,
    on,
    package,
    pid_of,
    refused,
)

TALKER = """\
import socket, sys
talker = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print(talker.recv(1000).decode(), end="", flush=True)
talker.settimeout(4)
for line in sys.stdin:
    talker.sendall(line.encode())
    print(talker.recv(1000).decode(), end="", flush=True)
"""


class Connection:
    """A TCP connection from ``netns`` that gives back what it is told, as long as it lives."""

    def __init__(self, lab: Lab, to: str, port: int, netns: str) -> None:
        self._process: Process = lab.popen(
            "python3", "-ISuc", TALKER, to, str(port), stdin=-1, netns=netns
        )
        assert self._process.stdout
        assert self._process.stdout.readline() != b""

    def lives(self) -> bool:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"are you there\n")
        return self._process.stdout.readline() == b"are you there\n"


class Known:
    """What must not change of a service: its namespace, and addresses and MACs of the links named."""

    def __init__(self, lab: Lab, name: str, *links: str) -> None:
        self._lab, self._name, self._links = lab, name, links or ("eth0",)
        self.pid = pid_of(lab, name)
        self.was = self._now()

    def _now(self) -> list[Any]:
        inode = os.stat(self._lab.path(f"/run/netns/niso-{self._name}")).st_ino
        found: list[Any] = [inode]
        for link in self._links:
            netns = f"niso-{self._name}"
            shown = self._lab.ip_json("link", "show", "dev", link, netns=netns)[0]
            found += [
                shown["ifindex"],
                shown["address"],
                inside(self._lab, self._name, link)["addr_info"][0]["local"],
            ]
        return found

    def same_network(self) -> bool:
        return self._now() == self.was

    def same_process(self) -> bool:
        return pid_of(self._lab, self._name) == self.pid


@pytest.fixture
def shown(lab: Lab) -> Iterator[Callable[..., list[str]]]:
    """Activates a folder; gives the steps, which a dry run has shown before. The first dry run is seen to change nothing."""

    pictures: list[snapshots.Snapshot] = []

    def activate(folder: str) -> list[str]:
        if is_first := not pictures:
            pictures.append(snapshots.take(lab))
        # its steps, without what it says about the flows that exist
        planned = lab.niso("activate", "--dry-run", folder).stdout.partition("EFFECT ")[0]
        if is_first:
            assert snapshots.differences(pictures[0], snapshots.take(lab)) == []
        done = lab.niso("activate", "-v", folder)
        assert done.stderr == planned.removesuffix("nothing to do\n")
        return str(done.stderr).splitlines()

    yield activate


def test_new_port_needs_no_restart_and_open_connections_live_on(lab: Lab, shown: Any) -> None:
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    known, connection = Known(lab, "api"), Connection(lab, HOST, 8080, "client")
    steps = shown(echo(lab, "api", network={"ports": ["8080:80", "8081:80"]}))
    assert steps and all("8081" in step for step in steps)
    assert known.same_process() and known.same_network() and connection.lives()
    assert answer(lab, HOST, 8081, "client").startswith("api")
    steps = shown(echo(lab, "api", network={"ports": ["8081:80"]}))
    assert steps and all("8080" in step for step in steps)
    assert ask(lab, HOST, 8080, "client") == ""
    assert known.same_process() and connection.lives()


def test_new_policy_needs_no_restart_and_cuts_only_what_it_denies(lab: Lab, shown: Any) -> None:
    lab.niso("activate", echo(lab, "api"), idle(lab, "web"), idle(lab, "job"))
    known = Known(lab, "api")
    web, job = (Connection(lab, address(lab, "api"), 80, f"niso-{name}") for name in ("web", "job"))
    steps = shown(echo(lab, "api", **{"network.policy": {"allow_from": ["web"]}}))
    assert steps and all(step.startswith(("nft", "ip link set niso-default")) for step in steps)
    assert known.same_process() and known.same_network()
    assert web.lives() and not job.lives()


def test_new_name_needs_no_restart(lab: Lab, shown: Any) -> None:
    lab.niso("activate", idle(lab, "api"), idle(lab, "web"))
    known = Known(lab, "api")
    steps = shown(idle(lab, "api", network={"aliases": ["www"]}))
    assert len(steps) == 1 and steps[0].startswith("hosts file")
    assert known.same_process() and known.same_network()
    assert lab.niso("exec", "web", "--", "getent", "hosts", "www").stdout.split()[0] == address(
        lab, "api"
    )


WEB = {"ports": ["8080:80"]}


def changes(lab: Lab) -> Iterator[tuple[str, str]]:
    """Change what the process of api sees; yield what was changed, and the folder."""
    environment = {"LEVEL": "debug"}
    yield "environment", echo(lab, "api", environment=environment, network=WEB)
    words = ("/usr/bin/python3", "-ISu", "/app/echo.py", "again", "80")
    yield "arguments", package(lab, "api", *words, network=WEB)
    folder = echo(lab, "api", network=WEB)
    text = lab.path(f"{folder}/echo.py").read_text() + "# another one\n"
    lab.write(f"{folder}/echo.py", text, 0o755)
    yield "content", folder
    yield "volume", echo(lab, "api", volumes={"data": {"mount": "/data"}}, network=WEB)
    raw = {"capabilities": ["NET_RAW"]}
    yield "capability", echo(lab, "api", isolation=raw, network=WEB)


def test_what_the_process_itself_sees_restarts_it_in_the_same_namespace(
    lab: Lab, shown: Any
) -> None:
    lab.niso("activate", echo(lab, "api", network=WEB))
    for change, folder in changes(lab):
        known = Known(lab, "api")
        steps = shown(folder)
        if change == "capability":  # raw sockets: a limit of fragments, and checksums by software
            assert steps.pop(0).startswith("nft 'add element bridge niso fragments ")
            assert "ethtool -K eth0 tx off" in steps.pop(0)
        stop, start = [step for step in steps if not step.startswith("copy package")]
        assert stop == "stop api" and start == steps[-1] and start.startswith("start api:")
        assert not known.same_process() and known.same_network()
        assert answer(lab, HOST, 8080, "client").split()[1] == "192.0.2.2"
        if change == "content":
            assert "# another one" in lab.niso("exec", "api", "--", "cat", "/app/echo.py").stdout
            # the former copy is kept for niso rollback
            assert len(os.listdir(lab.path("/var/lib/niso/packages/api"))) == 2
        if change == "environment":
            assert "LEVEL=debug" in environment_of(lab, pid_of(lab, "api"))
        if change == "volume":
            lab.niso("exec", "api", "--", "touch", "/data/kept")
    assert lab.niso("restart", "api").stdout == "api: restarted\n"
    assert not known.same_process() and known.same_network()


def test_new_network_is_plugged_in_while_the_process_runs_and_connections_live_on(
    lab: Lab, shown: Any
) -> None:
    lab.niso(
        "activate",
        echo(lab, "api", network=on("backend", ports=["8080:80"])),
        idle(lab, "web", network=on("backend")),
    )
    lab.niso("activate", echo(lab, "front", network=on("frontend")))
    known = Known(lab, "api")
    own, published = (
        Connection(lab, address(lab, "api"), 80, "niso-web"),
        Connection(lab, HOST, 8080, "client"),
    )
    folder = echo(lab, "api", network={"networks": ["backend", "frontend"], "ports": ["8080:80"]})
    steps = shown(folder)
    assert steps[-1] == "mount the hosts file backend+frontend in api" and "stop api" not in steps
    assert known.same_process() and known.same_network() and own.lives() and published.lives()
    assert inside(lab, "api", "eth1")["addr_info"][0]["local"].startswith("10.99.2.")
    assert answer(
        lab, inside(lab, "api", "eth1")["addr_info"][0]["local"], 80, "niso-front"
    ).startswith("api ")
    # the process, and what it starts, sees the names of both networks at once; nobody else's file has changed
    hosts = lab.run("cat", f"/proc/{known.pid}/root/etc/hosts").stdout
    assert "front.niso.local" in hosts and "web.niso.local" in hosts
    assert lab.niso("exec", "api", "--", "getent", "hosts", "front").stdout.split()[0] == address(
        lab, "front"
    )
    assert "front" not in lab.niso("exec", "web", "--", "cat", "/etc/hosts").stdout
    mounts = [
        line
        for line in lab.run("cat", f"/proc/{known.pid}/mountinfo").stdout.splitlines()
        if "niso-hosts" in line
    ]
    assert len(mounts) == 1 and {"ro", "nosuid", "nodev", "noexec"} <= set(
        mounts[0].split()[5].split(",")
    )
    assert (
        lab.niso("exec", "api", "--", "sh", "-c", "echo x >>/etc/hosts", check=False).returncode
        != 0
    )

    # and out again; what comes later is seen in the file of this one network
    shown(echo(lab, "api", network={"networks": ["backend"], "ports": ["8080:80"]}))
    lab.niso("activate", idle(lab, "late", network=on("backend")))
    hosts = lab.run("cat", f"/proc/{known.pid}/root/etc/hosts").stdout
    assert "late" in hosts and "front" not in hosts
    assert known.same_process() and known.same_network() and own.lives() and published.lives()
    assert [link["ifname"] for link in lab.ip_json("link", netns="niso-api")] == ["lo", "eth0"]
    lab.niso("restart", "api")
    assert "late" in lab.niso("exec", "api", "--", "cat", "/etc/hosts").stdout
    assert_whole(lab)


def test_network_change_that_cannot_be_leaves_process_hosts_and_connections(lab: Lab) -> None:
    lab.niso(
        "activate", echo(lab, "api", network=on("backend")), idle(lab, "web", network=on("backend"))
    )
    known, connection = Known(lab, "api"), Connection(lab, address(lab, "api"), 80, "niso-web")
    bad = package(lab, "bad", "sh", "-c", "exit 3")
    said = refused(
        lab, "activate", echo(lab, "api", network={"networks": ["backend", "frontend"]}), bad
    )
    assert "bad: its process ended at once" in said
    assert known.same_process() and known.same_network() and connection.lives()
    lab.niso("activate", idle(lab, "late", network=on("backend")))
    assert "late" in lab.run("cat", f"/proc/{known.pid}/root/etc/hosts").stdout
    assert_whole(lab)
    assert [row["ifname"] for row in lab.ip_json("link", netns="niso-api")] == ["lo", "eth0"]


def test_service_with_a_root_of_its_own_is_shown_other_names_too(lab: Lab) -> None:
    from services import busybox_rootfs

    folder = package(
        lab, "box", "sleep", "1000", package={"rootfs": "rootfs"}, network=on("backend")
    )
    busybox_rootfs(lab, f"{folder}/rootfs")
    lab.niso("activate", folder, idle(lab, "front", network=on("frontend")))
    pid = pid_of(lab, "box")
    package(
        lab,
        "box",
        "sleep",
        "1000",
        package={"rootfs": "rootfs"},
        network={"networks": ["backend", "frontend"]},
    )
    lab.niso("activate", folder)
    assert pid_of(lab, "box") == pid
    assert "front.niso.local" in lab.niso("exec", "box", "--", "cat", "/etc/hosts").stdout


def test_who_shares_the_namespace_goes_on_too_when_a_network_comes(lab: Lab) -> None:
    lab.niso(
        "activate",
        idle(lab, "api", network=on("backend")),
        idle(lab, "front", network=on("frontend")),
    )
    lab.niso("activate", echo(lab, "side", network={"mode": "share", "share": "api"}))
    pids = [pid_of(lab, name) for name in ("api", "side")]
    connection = Connection(lab, address(lab, "api"), 80, "niso-api")
    lab.niso("activate", idle(lab, "api", network={"networks": ["backend", "frontend"]}))
    assert [pid_of(lab, name) for name in ("api", "side")] == pids and connection.lives()
    for name in ("api", "side"):
        assert "front.niso.local" in lab.niso("exec", name, "--", "cat", "/etc/hosts").stdout


def answers_as_db(lab: Lab) -> str:
    """Who answers a third service by the name db."""
    code = (
        "import socket; print(socket.create_connection(('db', 80), 5).recv(9).decode().split()[0])"
    )
    return str(lab.niso("exec", "peer", "--", "python3", "-c", code).stdout).strip()


def test_a_name_moves_between_two_services_of_one_command(lab: Lab) -> None:
    has, other = {"aliases": ["db"]}, {"aliases": ["cache"]}
    folders = {"a": echo(lab, "a", network=has), "b": echo(lab, "b", network=other)}
    lab.niso("activate", *folders.values(), echo(lab, "peer"))
    assert answers_as_db(lab) == "a"
    processes = pid_of(lab, "a"), pid_of(lab, "b")
    echo(lab, "a", network=other)
    echo(lab, "b", network=has)
    lab.niso("activate", *folders.values())
    assert answers_as_db(lab) == "b"
    assert (pid_of(lab, "a"), pid_of(lab, "b")) == processes
    assert_whole(lab)
