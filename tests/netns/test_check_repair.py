"""net check names each thing that is not as it should be, net repair mends it and touches nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator

import pytest
import snapshots
from conftest import Lab, Process
from services import CLIENT, HOST, address, answer, ask, echo, idle, inspect, on, refused

TALK = (
    "import socket, sys\ns = socket.create_connection(('192.0.2.1', 9090)); f = s.makefile('rw')\n"
    "print(f.readline(), end='', flush=True)\n"
    "for line in sys.stdin:\n    f.write(line); f.flush(); print(f.readline(), end='', flush=True)\n"
)


class World:
    """Two services on one network; a client that holds a connection to the second while the first is damaged."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.niso(
            "activate",
            echo(lab, "api", network={"networks": ["backend", "extra"], "ports": ["8080:80"]}),
            echo(lab, "peer", network=on("backend", ports=["9090:80"])),
        )
        answer(lab, HOST, 8080, "client")
        answer(lab, HOST, 9090, "client")
        self.id = lab.ip_json("link", "show", "niso-backend")[0]["ifalias"]
        self.connection: Process = lab.popen("python3", "-ISuc", TALK, netns="client", stdin=-1)
        assert self.connection.stdout
        assert self.connection.stdout.readline() == f"peer {CLIENT}\n".encode()
        self.said = 0

    @property
    def port(self) -> str:
        """The host's end of api's eth0 by what niso says, and mac of the other."""
        return str(inspect(self.lab, "api")["endpoints"][0]["host_interface"])

    def connection_lives(self) -> bool:
        assert self.connection.stdin and self.connection.stdout
        self.said += 1
        self.connection.stdin.write(b"%d\n" % self.said)
        return self.connection.stdout.readline() == b"%d\n" % self.said

    def run(self, *argv: str) -> None:
        self.lab.run(*argv)

    def nft(self, text: str) -> None:
        self.lab.run("nft", "-f", "-", input=text)

    def rule(self, family: str, chain: str) -> int:
        """The handle of the last rule of a chain."""
        found = [
            each["rule"]["handle"]
            for each in self.lab.nft_json()
            if "rule" in each and each["rule"]["chain"] == chain and each["rule"]["family"] == family
        ]
        return int(found[-1])

    def check(self) -> list[dict[str, str]]:
        done = self.lab.niso("net", "check", "--json", check=False)
        found: list[dict[str, str]] = json.loads(done.stdout)
        assert done.returncode == (1 if found else 0), done.stderr
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with Lab(deadline_seconds=900) as lab:
        yield World(lab)


INSIDE = ("ip", "-n", "niso-api")
DEFAULT = "10.99.1.1"

Damage = Callable[[World], None]

# what is done, and the findings that it must give: (problem, pattern of what), no more and no fewer
GENTLE: dict[str, tuple[Damage, list[tuple[str, str]]]] = {
    "map element gone": (
        lambda w: w.nft("delete element inet niso publish_any4 { tcp . 8080 }"),
        [("missing", r"map element inet niso publish_any4 \{ tcp \. 8080 : 10\.99\.1\.2 \. 80 \} of 'api'")],
    ),
    "map element changed": (
        lambda w: w.nft(
            "delete element inet niso publish_any4 { tcp . 8080 }\n"
            'add element inet niso publish_any4 { tcp . 8080 comment "api" : 10.99.1.3 . 80 }'
        ),
        [("different", r"map element inet niso publish_any4 .*8080")],
    ),
    "map element too many": (
        lambda w: w.nft("add element inet niso publish_any4 { tcp . 9999 : 10.99.1.2 . 80 }"),
        [("foreign", r"map element inet niso publish_any4 .*9999")],
    ),
    "set element gone": (
        lambda w: w.nft(f'delete element bridge niso ports {{ "{w.port}" }}'),
        [("missing", r"set element bridge niso ports \{ \"ni\S+\" \} of 'api'")],
    ),
    "set element too many": (
        lambda w: w.nft('add element inet niso same_bridge { "niso-backend" . "niso-extra" }'),
        [("foreign", r"set element inet niso same_bridge")],
    ),
    "subnet gone": (
        lambda w: w.nft("delete element inet niso subnets4 { 10.99.1.0/24 }"),
        [("missing", r"set element inet niso subnets4 \{ 10\.99\.1\.0/24 \} of 'backend'")],
    ),
    "chain emptied": (lambda w: w.nft("flush chain inet niso publish"), [("different", r"chain .*publish")]),
    "chain gone": (
        lambda w: w.nft("delete chain inet niso postrouting"),
        [("missing", r"chain .*postrouting")],
    ),
    "chain too many": (
        lambda w: w.nft("add chain inet niso evil"),
        [("foreign", r"chain .*evil")],
    ),
    "rule gone": (
        lambda w: w.nft(f"delete rule inet niso forward handle {w.rule('inet', 'forward')}"),
        [("different", r"chain .*inet niso forward")],
    ),
    "rule too many": (
        lambda w: w.nft("insert rule inet niso raw accept"),
        [("different", r"chain .*inet niso raw")],
    ),
    "table gone": (lambda w: w.nft("delete table bridge niso"), [("missing", r"table.*bridge niso")]),
    "all rules flushed": (lambda w: w.nft("flush ruleset"), [("missing", r"tables inet niso and bridge niso")]),
    "address inside gone": (
        lambda w: w.run(*INSIDE, "address", "flush", "dev", "eth1"),
        [("missing", r"address 10\.99\.2\.2/24 on eth1 in niso-api")],
    ),
    "address inside too many": (
        lambda w: w.run(*INSIDE, "address", "add", "10.99.1.99/24", "dev", "eth0"),
        [("foreign", r"address 10\.99\.1\.99/24 on eth0 in niso-api")],
    ),
    "default route gone": (
        lambda w: w.run(*INSIDE, "route", "delete", "default"),
        [("missing", r"route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api")],
    ),
    "default route elsewhere": (
        lambda w: w.run(*INSIDE, "route", "replace", "default", "via", "10.99.1.3"),
        [("different", r"route 0\.0\.0\.0/0 via 10\.99\.1\.1 on eth0 in niso-api")],
    ),
    "bridge address gone": (
        lambda w: w.run("ip", "address", "delete", "10.99.1.1/24", "dev", "niso-backend"),
        [("missing", r"address 10\.99\.1\.1/24 on niso-backend")],
    ),
    "bridge address too many": (
        lambda w: w.run("ip", "address", "add", "10.5.5.5/24", "dev", "niso-backend"),
        [("foreign", r"address 10\.5\.5\.5/24 on niso-backend")],
    ),
    "port off its bridge": (
        lambda w: w.run("ip", "link", "set", w.port, "nomaster"),
        [("different", r"veth ni\S+ to niso-api eth0")],
    ),
    "port on another bridge": (
        lambda w: w.run("ip", "link", "set", w.port, "master", "niso-extra"),
        [("different", r"veth ni\S+ to niso-api eth0")],
    ),
    "hairpin off": (
        lambda w: w.run("bridge", "link", "set", "dev", w.port, "hairpin", "off"),
        [("different", r"veth ni\S+ to niso-api eth0")],
    ),
    "mtu of the port": (
        # a bridge that never had another MTU follows the least of its ports (linux/net/bridge/br_if.c)
        lambda w: w.run("ip", "link", "set", w.port, "mtu", "1280"),
        [("different", r"veth ni\S+ to niso-api eth0"), ("different", r"bridge niso-backend")],
    ),
    "mtu inside": (
        lambda w: w.run(*INSIDE, "link", "set", "eth0", "mtu", "1280"),
        [("different", r"veth ni\S+ to niso-api eth0")],
    ),
    "mtu of the bridge": (
        lambda w: w.run("ip", "link", "set", "niso-extra", "mtu", "1280"),
        [("different", r"bridge niso-extra")],
    ),
    "port down": (
        lambda w: w.run("ip", "link", "set", w.port, "down"),
        [("different", r"veth ni\S+ to niso-api eth0")],
    ),
    "bridge down": (lambda w: w.run("ip", "link", "set", "niso-extra", "down"), [("different", r"bridge niso-extra")]),
    "forwarding off": (
        lambda w: w.run("sysctl", "-qw", "net.ipv4.ip_forward=0"),
        [("different", r"sysctl net/ipv4/ip_forward='1'")],
    ),
    "route_localnet off": (
        lambda w: w.run("sysctl", "-qw", "net.ipv4.conf.niso-backend.route_localnet=0"),
        [("different", r"sysctl net/ipv4/conf/niso-backend/route_localnet='1'")],
    ),
    "IPv6 on": (
        lambda w: w.run("sysctl", "-qw", "net.ipv6.conf.niso-backend.disable_ipv6=0"),
        [("different", r"sysctl net/ipv6/conf/niso-backend/disable_ipv6='1'")],
    ),
    "sysctl inside": (
        lambda w: w.run("ip", "netns", "exec", "niso-api", "sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=1024"),
        [("different", r"sysctl net/ipv4/ip_unprivileged_port_start='0' in niso-api")],
    ),
    "hosts file gone": (
        lambda w: w.run("rm", "/run/niso/hosts/backend/hosts"),
        [("missing", r"hosts file /run/niso/hosts/backend/hosts")],
    ),
    "hosts file overwritten": (
        lambda w: w.run("cp", "/dev/null", "/run/niso/hosts/backend+extra/hosts"),
        [("missing", r"hosts file /run/niso/hosts/backend\+extra/hosts")],
    ),
    "hosts line gone": (
        lambda w: w.run("sed", "-i", "/api/d", "/run/niso/hosts/backend/hosts"),
        [("missing", r"line 10\.99\.1\.2 api\.niso\.local api in hosts file of backend")],
    ),
    "hosts line too many": (
        lambda w: w.run("sed", "-i", "$a10.6.6.6  evil.niso.local evil", "/run/niso/hosts/backend/hosts"),
        [("foreign", r"line 10\.6\.6\.6 evil")],
    ),
    "stray veth": (
        lambda w: (
            w.run("ip", "link", "add", "stray", "type", "veth", "peer", "name", "stray2"),
            w.run("ip", "link", "set", "stray", "alias", w.id),
        )[0],
        [("foreign", r"veth stray")],
    ),
    "stray bridge": (
        lambda w: (
            w.run("ip", "link", "add", "niso-stray", "type", "bridge"),
            w.run("ip", "link", "set", "niso-stray", "alias", w.id),
        )[0],
        [("foreign", r"bridge niso-stray")],
    ),
    "stray namespace": (
        lambda w: (
            w.run("ip", "netns", "add", "niso-stray"),
            w.run("ip", "-n", "niso-stray", "link", "set", "lo", "alias", w.id),
        )[0],
        [("foreign", r"network namespace niso-stray")],
    ),
}


def matches(found: list[dict[str, str]], wanted: list[tuple[str, str]]) -> bool:
    pairs = [(each["problem"], each["what"]) for each in found]
    return len(pairs) == len(wanted) and all(
        any(problem == p and re.search(pattern, what) for p, what in pairs) for problem, pattern in wanted
    )


@pytest.mark.parametrize("name", GENTLE)
def test_one_damage_is_named_alone_and_mended_alone(shared: World, name: str) -> None:
    damage, wanted = GENTLE[name]
    assert shared.check() == []
    before = snapshots.take(shared.lab)
    damage(shared)
    found = shared.check()
    assert matches(found, wanted), found
    said = shared.lab.niso("net", "repair", "-v")
    assert said.stdout.startswith("repaired: ") and said.stderr
    after = snapshots.take(shared.lab)
    assert "\n".join(snapshots.differences(before, after)) == ""
    assert shared.check() == []
    assert shared.lab.niso("net", "repair", "-v").stdout == "nothing to repair\n"
    assert ask(shared.lab, HOST, 8080, "client") == f"api {CLIENT}"
    assert shared.connection_lives()


def _kill(world: World, process: bool = True) -> None:
    """Kill api's conmon, and at the same time the service itself."""
    pid = inspect(world.lab, "api")["pid"]
    conmon = world.lab.run("pgrep", "-x", "-f", "/usr/bin/conmon .* -n api .*").stdout.split()
    world.run("kill", "-9", *conmon, *([str(pid)] if process else []))


HARSH: dict[str, tuple[Damage, list[tuple[str, str]]]] = {
    "veth gone": (lambda w: w.run("ip", "link", "delete", w.port), [("missing", r"veth ni\S+ to niso-api eth0")]),
    "bridge gone": (lambda w: w.run("ip", "link", "delete", "niso-extra"), [("missing", r"bridge niso-extra")]),
    "MAC inside": (
        lambda w: w.run(*INSIDE, "link", "set", "eth1", "address", "02:12:34:56:78:9a"),
        [("different", r"veth ni\S+ to niso-api eth1")],
    ),
    "namespace's name gone": (
        lambda w: w.run("ip", "netns", "delete", "niso-api"),
        [("missing", r"network namespace niso-api")],
    ),
    "conmon killed": (
        lambda w: _kill(w, process=False),
        [("different", r"process of service 'api'")],
    ),
    "conmon and process killed": (_kill, [("missing", r"process of service 'api'")]),
}


@pytest.mark.parametrize("name", HARSH)
def test_one_lost_thing_is_made_anew(shared: World, name: str) -> None:
    damage, wanted = HARSH[name]
    assert shared.check() == []
    damage(shared)
    shared.lab.wait_for(lambda: matches(shared.check(), wanted), 5, f"{wanted}, not {shared.check()}")
    assert shared.lab.niso("net", "repair").stdout.startswith("repaired: ")
    assert shared.check() == []
    assert shared.lab.niso("net", "repair", "-v").stdout == "nothing to repair\n"
    assert answer(shared.lab, HOST, 8080, "client") == f"api {CLIENT}"
    assert address(shared.lab, "api") == "10.99.1.2"
    pid = inspect(shared.lab, "api")["pid"]
    inner = os.stat(shared.lab.path(f"/proc/{pid}/ns/net")).st_ino
    assert inner == os.stat(shared.lab.path("/run/netns/niso-api")).st_ino
    assert shared.connection_lives()


def test_check_of_one_service_or_network_sees_only_that(shared: World) -> None:
    lab = shared.lab
    lab.niso("net", "check", "api")
    lab.run("nft", "delete", "element", "inet", "niso", "publish_any4", "{ tcp . 9090 }")
    assert lab.niso("net", "check", "api").stdout == "api: as it should be\n"
    assert lab.niso("net", "check", "extra").returncode == 0
    done = lab.niso("net", "check", "peer", check=False)
    assert done.returncode == 1 and done.stdout.startswith("missing: nftables map element") and not done.stderr
    assert "nothing" in refused(lab, "net", "check", "nothing", status=2)
    assert lab.niso("net", "repair").stdout == "repaired: 1 steps\n"


def test_repair_dry_run_prints_the_steps_and_changes_nothing(shared: World) -> None:
    lab = shared.lab
    lab.run("ip", "address", "delete", "10.99.2.1/24", "dev", "niso-extra")
    before = snapshots.take(lab)
    planned = lab.niso("net", "repair", "--dry-run").stdout
    assert planned == "ip address add 10.99.2.1/24 dev niso-extra\n"
    assert snapshots.differences(before, snapshots.take(lab)) == []
    assert lab.niso("net", "repair", "-v").stderr == planned


def test_everything_damaged_at_once_is_mended(lab: Lab) -> None:
    world = World(lab)
    pids = {name: inspect(lab, name)["pid"] for name in ("api", "peer")}
    lab.run("nft", "flush", "ruleset")
    lab.run("ip", "link", "delete", "niso-backend")
    lab.run("ip", "link", "delete", world.port)
    lab.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.run("rm", "-r", "/run/niso/hosts")
    assert len(world.check()) >= 4
    lab.niso("net", "repair")
    assert world.check() == []
    assert lab.niso("net", "repair").stdout == "nothing to repair\n"
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
    # a folder that is gone cannot be given back to the process that had it: these had to start again
    assert all(inspect(lab, name)["pid"] != pid for name, pid in pids.items())
    assert "peer.niso.local" in lab.niso("exec", "api", "--", "cat", "/etc/hosts").stdout


def test_next_command_builds_the_rules_anew_for_all_services(lab: Lab) -> None:
    """An activation after a flush must not leave the other services without their rules."""
    World(lab)
    lab.run("nft", "flush", "ruleset")
    lab.niso("activate", idle(lab, "new", network=on("backend")))
    assert lab.niso("net", "check").returncode == 0
    assert ask(lab, HOST, 8080, "client") == f"api {CLIENT}"


# --- sweep ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["kept", "lost", "damaged"])
def test_sweep_removes_all_that_is_nisos_and_nothing_else(lab: Lab, store: str) -> None:
    for words in (
        ("link", "add", "niso-vpn", "type", "bridge"),
        ("link", "add", "niso-veth", "type", "veth", "peer", "name", "niso-peer"),
        ("link", "set", "niso-veth", "alias", "somebody's"),
        ("netns", "add", "niso-mine"),
        ("address", "add", "10.8.0.1/24", "dev", "niso-vpn"),
    ):
        lab.run("ip", *words)
    lab.run("nft", "add table inet other; add chain inet other c; add table ip niso")
    before = snapshots.take(lab)
    lab.niso("activate", echo(lab, "api", network=on("backend", ports=["8080:80"])), idle(lab, "peer"))
    if store == "lost":
        lab.run("sh", "-c", "rm -rf /var/lib/niso/*")
    elif store == "damaged":
        lab.run("sh", "-c", "rm -f /var/lib/niso/state.db-*; echo rubbish > /var/lib/niso/state.db")
    planned = lab.niso("net", "repair", "--sweep", "--dry-run").stdout
    assert "ip link delete niso-backend" in planned and "niso-vpn" not in planned
    lab.niso("net", "repair", "--sweep")
    after = snapshots.take(lab)
    for each in (before, after):
        each.pop("store")
        each["files"] = {path: value for path, value in each["files"].items() if not path.startswith("/var/lib/niso")}
        if store != "kept":  # what forwarding was before was in the store
            del each["in the host"]["sysctls"]
    assert "\n".join(snapshots.differences(before, after)) == ""
    assert lab.niso("net", "repair", "--sweep").stdout == "nothing of niso's is in the kernel\n"


def test_services_can_be_activated_again_after_a_sweep(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    lab.niso("net", "repair", "--sweep")
    assert lab.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n"
    lab.niso("activate", "api")
    assert address(lab, "api") == "10.99.0.2"
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"


def test_lost_store_is_refused_until_a_sweep(lab: Lab) -> None:
    """What is in the kernel then belongs to a state folder that is gone."""
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    lab.run("sh", "-c", "rm -rf /var/lib/niso/*")
    said = refused(lab, "activate", "/tmp/packages/api")
    assert "belongs to the niso state folder" in said
    lab.niso("net", "repair", "--sweep")
    lab.niso("activate", "/tmp/packages/api")
    assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
