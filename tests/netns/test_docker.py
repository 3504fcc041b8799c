"""Run Docker's containers on networks of niso."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import signal
import sys
import time
from typing import Any

import pytest
from conftest import Lab
from deb_world import Packages
from docker_world import IMAGE, PATH, PEERS, SOCKET, WITH_DOCKER, Docker, needs_docker
from machine import Machine, needs_systemd
from pages import ROOT
from samples import LONG
from services import BUSYBOX, CLIENT, HOST, NEIGHBOUR, fetch, idle, package, pings, ps
from wire import ALL, MDNS, Ears, Wire

HOST6 = "2001:db8::1"
SERVE = ("httpd", "-f", "-p", "80", "-h", "/app/served")
WITH_NISO = (*WITH_DOCKER[:-1], f"PATH={sys.prefix}/bin:{PATH}")


def network(name: str, *options: str) -> str:
    """The value of ``--network`` with options of niso."""
    return ",".join([f"name={name}", *(f"driver-opt=niso.{option}" for option in options)])


def rows(lab: Lab) -> dict[str, Any]:
    return {row["service"]: row for row in json.loads(lab.niso("ps", "--json").stdout)}


@pytest.mark.first
@needs_docker
def test_containers_on_networks_of_niso(lab: Lab) -> None:
    docker = Docker(lab)

    def outside(port: str = "8080") -> str:
        return fetch(lab.client, f"{HOST}:{port}")

    def attached(*names: str) -> None:
        lab.wait_for(
            lambda: all(rows(lab).get(n, {}).get("status") == "attached" for n in names),
            10,
            f"{names} in their networks",
        )

    create = ("network", "create", "-d", "niso")
    for wrong in (("-o", "allow_from=we?b"), ("--ipam-driver", "null")):
        refused = docker(*create, *wrong, "bad", check=False)
        assert refused.returncode and "niso: " in refused.stderr, refused.stderr
    docker(*create, "--internal", "-o", "network=inner", "inner")
    assert json.loads(lab.niso("net", "inspect", "inner", "--json").stdout)["internal"]
    docker("network", "rm", "inner")
    docker(*create, "--subnet", "10.99.50.0/24", "-o", "network=backend", "backend")
    docker(*create, "--subnet", "10.99.51.0/24", "-o", "egress_deny=10.99.50.0/24", "a-front")

    # run, with a port, a policy and a neighbour
    docker.run("api", "--network", network("backend", "name=api"), "-p", "8080:80")
    policy = f"allow_from=api {CLIENT}"
    docker.run("web", "--network", network("backend", "name=web", policy), "-p", "8081:80")
    docker.run("bad", "--network", network("backend", "name=bad"), "--cap-add", "NET_ADMIN")
    attached("api", "web", "bad")
    api, web, bad = (ps(lab, name)["address"][0] for name in ("api", "web", "bad"))
    asks = docker(
        "exec", "api", "/bin/busybox", "cat", "/proc/sys/net/ipv4/neigh/eth0/mcast_solicit"
    )
    assert asks.stdout == "0\n"
    assert (outside(), outside("8081")) == ("api", "web")
    assert docker.get("api", "web") == "web"  # by Docker's own name server
    assert docker.get("bad", api) == "api" and docker.get("bad", web) == ""
    # also not with the address of one that it allows
    for words in (("add", f"{api}/24"), ("del", f"{bad}/24")):
        docker("exec", "bad", "/bin/busybox", "ip", "address", *words, "dev", "eth0")
    assert docker.get("bad", web) == ""
    assert docker.get("api", web) == "web"
    for name in ("api", "web"):
        lab.niso("net", "check", name)
    assert "address" in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "repair")
    lab.niso("net", "check")
    docker("exec", "bad", "/bin/busybox", "ip", "address", "del", f"{api}/24", "dev", "eth0")
    assert docker.get("bad", api) == "api"
    assert "docker-proxy" not in lab.run("ps", "ax").stdout
    # Docker does not know the ports of other drivers' networks (docs/guide/docker.md)
    form = "{{.NetworkSettings.Ports}} {{.HostConfig.PortBindings}}"
    shown = docker("inspect", "-f", form, "api").stdout
    assert docker("port", "api").stdout == "" and shown == "map[] map[80/tcp:[{ 8080}]]\n"
    assert ":8080" not in docker("ps").stdout
    docker.run("all", "--network", "backend", "--expose", "80", "-P")
    start = "{{range .NetworkSettings.Networks}}{{slice .EndpointID 0 12}}{{end}}"
    all_ = f"c-{docker('inspect', '-f', start, 'all').stdout.strip()}"
    attached(all_)
    found = json.loads(lab.niso("net", "ports", "--json").stdout)
    (free,) = (row["host"] for row in found if row["service"] == all_)
    assert outside(str(free).rpartition(":")[2]) == "all"
    docker("rm", "-f", "all")
    # what is taken is refused
    taken = docker(
        *("run", "-d", "--network", "backend", "-p", "8080:80", IMAGE, "/bin/busybox", "true"),
        check=False,
    )
    assert "port 8080" in taken.stderr or "8080" in taken.stderr

    # connect and disconnect, and the driver was ended meanwhile
    docker.driver.kill()
    docker.driver.wait(5)
    # as if that had been before it saw the interface of web: only the rules know the container
    forget = "UPDATE attached SET cookie=1 WHERE service='web'"
    code = f'import sqlite3; sqlite3.connect("/var/lib/niso/state.db", isolation_level=None).execute("{forget}")'
    lab.run("/usr/bin/python3", "-ISc", code)
    lab.run("sh", "-c", "touch -h /run/niso/docker/*.netns")
    assert rows(lab)["web"]["status"] == "gone"
    lab.niso("net", "check")
    lab.niso("net", "repair")  # forgets none whose interface may be on its way
    lab.niso("net", "gc")
    assert docker.get("api", web) == "web" and docker.get("bad", web) == ""
    docker.driver = docker.serve()
    docker("network", "connect", "--driver-opt", "niso.name=web-front", "a-front", "web")
    attached("web", "web-front")
    # its default route leads there now, and so do its ports
    assert [len(ps(lab, name)["ports"]) for name in ("web-front", "web")] == [1, 0]
    assert outside("8081") == "web" and docker.get("web", api) == "api"
    lab.niso("net", "check")
    docker("network", "disconnect", "a-front", "web")
    assert "web-front" not in rows(lab) and outside("8081") == "web"
    assert docker.get("api", web) == "web" and docker.get("bad", web) == ""
    lab.niso("net", "check")

    # restart, kill, rm
    docker("restart", "-t", "0", "web")
    docker.wait_until_served("web")
    attached("web")
    assert (outside("8081"), docker.get("bad", "web")) == ("web", "")
    docker("kill", "api")
    lab.wait_for(lambda: "api" not in rows(lab), 5, "the end of api")
    assert outside() == ""
    docker("start", "api")
    docker.wait_until_served("api")
    attached("api")
    assert outside() == "api"
    lab.niso("net", "check")
    docker("rm", "-f", "api", "web", "bad")
    assert rows(lab) == {}
    docker("network", "rm", "backend", "a-front")
    assert json.loads(lab.niso("net", "list", "--json").stdout) == []
    assert "nix" not in lab.run("ip", "-o", "link").stdout
    assert list(lab.path("/run/niso/docker").iterdir()) == []
    lab.niso("net", "check")


@pytest.mark.first
@needs_docker
def test_labels_of_containers_are_options(lab: Lab) -> None:
    docker = Docker(lab)
    back = ("--network", "back")
    create = ("network", "create", "-d", "niso", "-o", "network=back", "-o", "named=true")
    docker(*create, "-o", "multicast=true", "--subnet", "10.99.50.0/24", "back")
    evil = ("import", "-c", "LABEL niso.name=api niso.aliases=db", "/tmp/image.tar", "evil:1")
    docker(*evil)
    docker.run("one", *back, "--label", "niso.name=api", "--label", "niso.aliases=shop, store")
    docker.run("two", *back, "--label", "niso.name=web", "--label", "niso.allow_from=store")
    same = ("--network", network("back", "name=bad", "log=true"), "--label", "niso.name=bad")
    docker.run("three", *same, "--label", "com.example.niso=x")

    def is_held() -> bool:
        lab.wait_for(lambda: {"api", "web", "bad"} <= rows(lab).keys(), 10, "names")
        web = ps(lab, "web")["address"][0]
        return docker.get("one", web) == "web" and docker.get("three", web) == ""

    lab.path("/tmp/names").write_text("one two three")
    docker("exec", "two", "/bin/busybox", "sh", "-c", "echo web > /index.html")
    assert is_held()
    docker("restart", "-t", "0", "two")
    lab.wait_for(lambda: docker.get("two", "127.0.0.1") == "two", 10, "the server of two")
    docker("exec", "two", "/bin/busybox", "sh", "-c", "echo web > /index.html")
    assert is_held()
    # one name on two networks: the name of one interface, and the alias of the other
    docker("network", "create", "-d", "niso", "-o", "network=front", "front")
    docker.run("both", *back, "--network", "front", "--label", "niso.name=both")
    docker.run("four", "--network", network("front", "name=four", "allow_from=both"))
    lab.wait_for(lambda: rows(lab).get("four", {}).get("status") == "attached", 10, "four")
    assert len([name for name in rows(lab) if name.startswith("both")]) == 2
    assert docker.get("both", ps(lab, "four")["address"][0]) == "four"
    docker("rm", "-f", "both", "four")
    for why, *wrong in (
        ("takes only containers with a name", *back, IMAGE),
        ("label niso.aliases is one of the image", *back, "--label", "niso.name=x", "evil:1"),
    ):
        refused = docker("run", "--rm", *wrong, "/bin/busybox", "true", check=False)
        assert refused.returncode and why in refused.stderr, refused.stderr
    with Wire(lab) as wire:
        ears = Ears(lab, wire, {name: (f"niso-{name}", "eth0") for name in ("api", "web", "bad")})
        for to in (MDNS, ALL, "10.99.50.255"):
            assert ears.hearers("api", to) == {"web", "bad"}, to
            assert ears.hearers("bad", to) == {"api"}, to
    again = docker(
        *create[:3], "niso", "-o", "network=back", "--subnet", "10.99.50.0/24", "x", check=False
    )
    assert again.returncode
    # without Docker's record of its sandboxes, containers with labels are refused
    lab.run("sh", "-c", 'mount --bind /dev/null "$0"', "/tmp/docker/data/network/files/local-kv.db")
    late = docker("run", "--rm", *same, IMAGE, "/bin/busybox", "true", check=False)
    assert "does not find the container of sandbox" in late.stderr
    docker("rm", "-f", "one", "two", "three")
    lab.niso("net", "check")


@pytest.mark.first
@needs_docker
def test_containers_start_again_after_a_crash_of_dockerd_and_a_power_loss(lab: Lab) -> None:
    docker = Docker(lab)

    def end(number: int) -> None:
        docker.daemon.send_signal(number)
        docker.daemon.wait(30)

    docker("network", "create", "-d", "niso", "--subnet", "10.99.50.0/24", "backend")
    names = [f"c{number}" for number in range(20 if LONG else 4)]
    given = {"c0": ("-p", "8080:80"), "c1": ("--restart", "always"), "c2": ("--ip", "10.99.50.77")}
    for name in names:  # only some have a name for niso
        own = "backend" if name in ("c2", "c3") else network("backend", f"name={name}")
        docker.run(name, "--network", own, *given.get(name, ()))

    def seen() -> dict[str, str]:
        form = "{{.Name}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        lines = docker("inspect", "-f", form, *names).stdout.splitlines()
        return {line.split()[0].removeprefix("/"): line.split()[1] for line in lines}

    def all_are_back() -> None:
        docker("start", *names)
        for name in names:
            docker.wait_until_served(name)
        now = seen()
        assert sorted(now.values()) == sorted(before.values()) and now["c2"] == "10.99.50.77"

        def are_attached() -> bool:
            found = rows(lab).values()
            own = sorted(row["address"][0] for row in found if row["status"] == "attached")
            return len(found) == len(names) and own == sorted(now.values())

        lab.wait_for(are_attached, 10, "the containers' interfaces")
        assert fetch(lab.client, f"{HOST}:8080") == "c0"
        for name in names[1:]:
            assert docker.get("c0", now[name]) == name
        lab.niso("net", "check")

    before = seen()
    for options in ((), ("--live-restore",)):
        if options:
            end(signal.SIGTERM)
            docker.daemon = docker.start(*options)
            all_are_back()
        end(signal.SIGKILL)
        # the containers go on running, and so do their networks
        assert lab.niso("net", "gc").stdout == "" and len(rows(lab)) == len(names)
        assert fetch(lab.client, f"{HOST}:8080") == "c0"
        lab.niso("net", "check")
        docker.daemon = docker.start(*options)
        all_are_back()
        names.reverse()  # the containers get each other's addresses
    # with its containers, and with what is in /run
    pids = docker("inspect", "-f", "{{.State.Pid}}", *names).stdout.split()
    end(signal.SIGKILL)
    docker.driver.kill()
    docker.driver.wait(5)
    lab.run("kill", "-9", *pids)
    # Docker's files of the namespaces are left, and no program is there to tell niso
    lab.wait_for(
        lambda: lab.niso("net", "check", check=False).stdout.count("gone: ") == len(names), 10
    )
    assert lab.niso("net", "gc").stdout.count(": detached") == len(names) and rows(lab) == {}
    lab.run("sh", "-c", "rm -f /run/niso/docker/*")
    docker.driver = docker.serve()
    docker.daemon = docker.start()
    all_are_back()
    end(signal.SIGKILL)
    with Lab() as after:
        docker, lab = Docker(after, lab), after
        all_are_back()
        docker("rm", "-f", *names)
        assert rows(lab) == {} and docker("network", "rm", "backend").returncode == 0
        assert list(lab.path("/run/niso/docker").iterdir()) == []
        lab.niso("net", "check")


@pytest.mark.first
@needs_docker
@pytest.mark.parametrize("first", ["niso", "docker"])
def test_networks_of_docker_and_niso_work_whoever_is_first(lab: Lab, first: str) -> None:
    """Each has a published port and a way out, after restarts too, and the host is no router for others."""
    page = {"served/index.html": "web\n"}
    web = package(lab, "web", BUSYBOX, *SERVE, files=page, network={"ports": ["8080:80"]})

    def outside(lab: Lab) -> None:
        lab.write("/tmp/outside/index.html", "outside\n")
        lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
        lab.run("ip", "address", "add", "198.51.100.3/32", "dev", "lo", netns="neighbour")
        lab.run("ip", "route", "add", "198.51.100.3", "via", NEIGHBOUR)
        lab.run("ip", "route", "add", "198.51.100.3", "via", HOST, netns="client")
        lab.run("sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0")
        lab.run("sysctl", "-qw", "net.ipv4.conf.uplink0.send_redirects=0")

    def work(lab: Lab, docker: Docker) -> None:
        ports = {8080: "web", 8090: "own", 8070: "mixed"}
        lab.wait_for(
            lambda: {port: fetch(lab.client, f"{HOST}:{port}") for port in ports} == ports,
            20,
            "the published ports",
        )
        assert [docker.get(name, CLIENT) for name in ("own", "mixed")] == ["outside"] * 2
        assert fetch(lab.run, CLIENT, "nsenter", "--net=/run/netns/niso-web") == "outside"
        assert not pings(lab, "198.51.100.3", "client")
        assert lab.niso("net", "check").returncode == 0

    outside(lab)
    if first == "niso":
        lab.niso("activate", web)
    docker = Docker(lab)
    if first == "niso":
        lab.run("iptables", "-P", "FORWARD", "DROP")  # as where Docker has turned forwarding on
    lab.niso("activate", web)
    lab.niso("enable", "web")
    docker("network", "create", "-d", "niso", "backend")
    docker.run("own", "-p", "8090:80")
    docker.run("mixed", "--network", network("backend", "name=mixed"), "-p", "8070:80")
    work(lab, docker)
    docker.daemon.send_signal(signal.SIGTERM)
    docker.daemon.wait(30)
    docker.daemon = docker.start()
    docker("start", "own", "mixed")
    work(lab, docker)
    if first == "niso":  # without a service of niso, Docker's network goes on
        docker("stop", "-t0", "mixed")
        lab.niso("deactivate", "web")
        assert docker.get("own", CLIENT) == "outside" and fetch(lab.client, f"{HOST}:8090") == "own"
        assert not pings(lab, "198.51.100.3", "client")
        lab.niso("activate", "web")
        docker("start", "mixed")
        work(lab, docker)
    docker.daemon.kill()
    docker.daemon.wait(5)
    with Lab() as after:
        outside(after)
        shutil.copytree(lab.path("/var/lib/niso"), after.path("/var/lib/niso"), dirs_exist_ok=True)
        # before docker.service, the drop-in of nftables.service only repairs: it records nothing
        after.niso(*(["restore"] if first == "niso" else ["net", "repair", "--kernel"]))
        docker = Docker(after, lab)
        after.niso("restore")
        docker("start", "own", "mixed")
        work(after, docker)
        closed = [item for item in after.nft_json() if item.get("set", {}).get("name") == "closed"]
        assert [("elem" in item["set"]) for item in closed] == [first == "niso"]


@needs_docker
@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
@pytest.mark.skipif(not (PEERS / "ufw").exists(), reason="./dev test-long unpacks ufw")
def test_networks_of_docker_and_niso_work_with_ufw(lab: Lab) -> None:
    """What net check proposes lets niso's networks pass, also after ufw and dockerd have loaded their rules again."""
    lab.run("cp", "-r", f"{PEERS}/ufw/usr", f"{PEERS}/ufw/etc", "/")
    lab.run("sh", "-c", "cp /usr/share/ufw/*.rules /usr/share/ufw/ufw.conf /etc/ufw/")
    page = {"served/index.html": "web\n"}
    web = package(lab, "web", BUSYBOX, *SERVE, files=page, network={"ports": ["8080:80"]})
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    lab.niso("activate", web)
    lab.run("ufw", "--force", "enable")
    assert fetch(lab.client, f"{HOST}:8080") == ""
    hints = re.findall(r"ufw route allow [\w -]+", lab.niso("net", "check", check=False).stdout)
    assert len(hints) == 2
    for hint in hints:
        lab.run(*hint.split())
    docker = Docker(lab)
    docker.run("own", "-p", "8090:80")

    def work() -> None:
        lab.wait_for(lambda: fetch(lab.client, f"{HOST}:8080") == "web", 20, "niso's port")
        lab.wait_for(lambda: fetch(lab.client, f"{HOST}:8090") == "own", 20, "Docker's port")
        assert docker.get("own", CLIENT) == "outside"
        assert fetch(lab.run, CLIENT, "nsenter", "--net=/run/netns/niso-web") == "outside"
        assert lab.niso("net", "check").returncode == 0

    work()
    lab.run("ufw", "reload")
    work()
    docker.daemon.send_signal(signal.SIGTERM)
    docker.daemon.wait(30)
    docker.daemon = docker.start()
    docker("start", "own")
    work()
    lab.niso("deactivate", "web")
    lab.niso("activate", "web")
    work()


@pytest.mark.first
@needs_docker
def test_killed_driver_and_lost_state_leave_docker_its_commands(lab: Lab) -> None:
    docker = Docker(lab)
    create = ("network", "create", "-d", "niso")
    docker(*create, "back")
    # killed during a call, which Docker repeats without its content
    docker.driver.send_signal(signal.SIGSTOP)
    waits = lab.popen(*WITH_DOCKER, "docker", *create, "front", stdout=-1, stderr=-1)
    time.sleep(1)
    docker.driver.kill()
    docker.driver.wait(5)
    docker.driver = docker.serve()
    out, err = waits.communicate(timeout=60)
    assert "KeyError" not in err and "killed during this call" in err, (out, err)
    docker(*create, "front")
    # containers at once, after two that have ended without a call
    for name in ("one", "two"):
        docker.run(name, "--network", "back", "-p", "8080:80" if name == "one" else "8081:80")
    pids = docker("inspect", "-f", "{{.State.Pid}}", "one", "two").stdout.split()
    docker.daemon.send_signal(signal.SIGKILL)
    docker.daemon.wait(30)
    lab.run("kill", "-9", *pids)
    docker.daemon = docker.start()
    command = f"docker run -d --network back -p $((8080 + $i)):80 {IMAGE} /bin/busybox sleep 1000"
    line = f"for i in $(seq 0 3); do {command} & done; wait"
    made = lab.run(*WITH_DOCKER, "sh", "-c", line, timeout=120)
    ids = made.stdout.split()
    assert len(ids) == 4, made.stderr
    lab.wait_for(
        lambda: [row["status"] for row in rows(lab).values()] == ["attached"] * 4,
        20,
        "the containers' interfaces",
    )
    docker("rm", "-f", "one", "two", *ids, timeout=120)
    lab.niso("net", "check")
    # dockerd is killed while it starts a container: its port is free at once
    pid = lab.run("pgrep", "-xo", "containerd").stdout.strip()
    lab.run("kill", "-STOP", pid)
    run = ("run", "-d", "--network", "back", "-p", "8080:80", IMAGE, "/bin/busybox", "sleep")
    lab.popen(*WITH_DOCKER, "docker", *run, "1000", stdout=-1, stderr=-1)
    lab.wait_for(lambda: any(row["ports"] for row in rows(lab).values()), 20, "its port")
    lab.niso("net", "check")
    docker.daemon.send_signal(signal.SIGKILL)
    docker.daemon.wait(30)
    lab.run("kill", "-9", pid, check=False)  # or it has ended with dockerd
    assert "gone: " in lab.niso("net", "check", check=False).stdout
    lab.niso("net", "gc")
    docker.driver.kill()
    docker.driver.wait(5)
    docker.driver = docker.serve()
    docker.daemon = docker.start()
    docker.run("last", "--network", "back", "-p", "8080:80")
    assert len(list(lab.path("/run/niso/docker").iterdir())) == 2  # of this one
    # without niso's state, Docker's networks can still be removed
    lab.run("sh", "-c", "rm -rf /var/lib/niso/*")
    docker("rm", "-f", "last")
    docker("network", "rm", "back", "front")
    assert "niso" not in docker("network", "ls").stdout


@pytest.mark.first
@needs_docker
def test_uninstall_leaves_docker_its_own_networks(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "first"))  # before Docker, which finds forwarding switched on
    docker = Docker(lab)
    lab.write("/tmp/outside/index.html", "outside\n")
    lab.popen(BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/tmp/outside", netns="client")
    docker.run("own", "-p", "8090:80")
    packages = Packages(lab, "niso", "niso-docker", with_words=WITH_NISO)

    def use() -> None:
        docker("network", "create", "-d", "niso", "backend")
        docker.run("web", "--network", network("backend", "name=web"), "-p", "8080:80")
        lab.wait_for(lambda: "web" in rows(lab), 10, "its interface")

    def is_removed() -> None:
        assert "backend" not in docker("network", "ls").stdout
        assert list(rows(lab)) == ["first"]

    # by hand, as in the guide
    use()
    assert docker.get("web", CLIENT) == "outside"
    packages.follow("docker")
    is_removed()
    docker("rm", "-f", "web")
    # by the package
    use()
    packages.with_words = (*WITH_NISO, "DOCKER_HOST=unix:///run/none.sock")
    assert "dockerd does not answer" in packages.purge("niso-docker", answer=True).stderr
    packages.with_words = WITH_NISO
    refused = packages.purge("niso-docker", answer=False)
    assert "in use: network backend, container web\n" in refused.stderr, refused.stderr
    assert fetch(lab.client, f"{HOST}:8080") == "web"
    done = packages.purge("niso-docker", answer=True)
    assert done.returncode == 0, done.stderr
    is_removed()
    assert docker("inspect", "-f", "{{.State.Running}}", "web").stdout == "true\n"
    done = packages.purge("niso", answer=True)
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        is_removed()
        assert docker.get("own", CLIENT) == "outside"
        assert fetch(lab.client, f"{HOST}:8090") == "own"
        docker("restart", "-t0", "own")
        docker.wait_until_served("own")
    assert "nothing of niso" in lab.niso("reset", "--yes").stdout


COMPOSE = """\
x-server: &server
  image: IMAGE
  command: [/bin/busybox, sh, -c, "hostname > /index.html; exec /bin/busybox httpd -f -p 80 -h /"]
networks:
  closed:
    driver: niso
    enable_ipv6: true
    driver_opts: { network: shop, allow_from: "10.99.52.9 fd52::9 192.0.2.2 2001:db8::2" }
    ipam: { config: [{ subnet: 10.99.52.0/24 }, { subnet: "fd52::/64" }] }
  open:
    driver: niso
    enable_ipv6: true
    ipam: { config: [{ subnet: 10.99.53.0/24 }, { subnet: "fd53::/64" }] }
services:
  api:
    <<: *server
    networks: { closed: { ipv4_address: 10.99.52.9, ipv6_address: "fd52::9" } }
  web:
    <<: *server
    hostname: web
    ports: ["8080:80"]
    networks:
      closed: { ipv4_address: 10.99.52.8, ipv6_address: "fd52::8", aliases: [www] }
      open: { ipv4_address: 10.99.53.8, ipv6_address: "fd53::8" }
  bad:
    <<: *server
    networks: [closed, open]
"""


@needs_docker
@pytest.mark.skipif(not LONG, reason="part of ./dev test-long")
def test_compose_file_with_networks_of_two_families(lab: Lab) -> None:
    docker = Docker(lab)
    plugins = lab.path("/tmp/.docker/cli-plugins")
    plugins.mkdir(parents=True)
    program = PEERS / "docker-compose/usr/libexec/docker/cli-plugins/docker-compose"
    (plugins / "docker-compose").symlink_to(program)
    lab.write("/tmp/shop/compose.yaml", COMPOSE.replace("IMAGE", IMAGE))
    compose = ("compose", "-f", "/tmp/shop/compose.yaml")
    for _ in range(2):  # the second one changes nothing
        docker(*compose, "up", "-d", timeout=120)
    lab.wait_for(lambda: docker.get("shop-web-1", "127.0.0.1") == "web", 10, "the server")
    lab.wait_for(
        lambda: {row["status"] for row in rows(lab).values()} == {"attached"}, 10, "interfaces"
    )
    assert len(rows(lab)) == 5
    closed, open_ = ("10.99.52.8", "[fd52::8]"), ("10.99.53.8", "[fd53::8]")
    for address in ("www", *closed):
        assert docker.get("shop-api-1", address) == "web"
    for address in open_:
        assert docker.get("shop-bad-1", address) == "web"
        assert docker.get("shop-api-1", address) == ""  # not of its network
    for address in closed:
        assert docker.get("shop-bad-1", address) == ""
    for address in (HOST, f"[{HOST6}]"):
        assert fetch(lab.client, f"{address}:8080") == "web", address
    lab.niso("net", "check")
    docker(*compose, "down", timeout=120)
    # this version of Compose does not pass options of a container
    named = COMPOSE.replace("network: shop", 'network: shop, named: "true"')
    own = "aliases: [www], driver_opts: { niso.name: web, niso.allow_from: api }"
    named = named.replace("aliases: [www]", own).replace("IMAGE", IMAGE)
    lab.write("/tmp/shop/compose.yaml", named)
    refused = docker(*compose, "up", "-d", check=False, timeout=120)
    assert refused.returncode and "only containers with a name" in refused.stderr
    docker(*compose, "down", timeout=120)
    assert rows(lab) == {} and json.loads(lab.niso("net", "list", "--json").stdout) == []
    lab.niso("net", "check")


UNITS = re.compile(r"```ini\n# (/etc/\S+)\n(.*?)```", re.DOTALL)
ASK = """\
import http.client, socket, sys
connection = http.client.HTTPConnection("plugin.moby.localhost", timeout=20)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", "/Plugin.Activate")
sys.stdout.write(connection.getresponse().read().decode())
"""


@needs_systemd
def test_units_of_the_guide_start_the_driver_for_a_call(lab: Lab) -> None:
    machine = Machine(lab)
    units = dict(UNITS.findall((ROOT / "docs/guide/docker.md").read_text()))
    for path, text in units.items():
        packaged = ROOT / "debian" / path.rpartition("/")[2]
        assert packaged.read_text() == text.replace("/usr/local/bin", "/usr/bin")
        own = text.replace("/usr/local/bin", f"{sys.prefix}/bin")
        pathlib.Path(f"{machine.disk}{path}").write_text(own)
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", "niso-docker.socket")
    state = ("show", "-P", "ActiveState", "niso-docker.service")
    assert machine.systemctl(*state).stdout == "inactive\n"
    asked = machine.run("/usr/bin/python3", "-ISc", ASK, SOCKET)
    assert json.loads(asked.stdout) == {"Implements": ["NetworkDriver"]}
    assert machine.systemctl(*state).stdout == "active\n"
    assert machine.run("stat", "-c", "%a %u", SOCKET).stdout == "600 0\n"
