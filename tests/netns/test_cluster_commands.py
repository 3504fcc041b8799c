"""Test niso cluster on several hosts with a real etcd: it is made, grows, loses hosts, and is left.

Hosts are labs without systemd, but for one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_hosts import REVOKE
from conftest import Lab, Process
from etcd_world import BINARY, flags, provide, provide_wireguard
from machine import Machine, needs_systemd
from many_hosts import Host, underlay
from reference.results import RESULTS
from result_forms import conforms

from niso.cluster import invitation


def cluster(host: Host, *words: str, input: str | None = None, check: bool = True) -> Any:
    return host.lab.niso("cluster", *words, input=input, check=check)


def refused(host: Host, *words: str, input: str | None = None) -> str:
    done = cluster(host, *words, input=input, check=False)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def status(host: Host) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(cluster(host, "status", "--json", check=False).stdout)
    conforms(shown, RESULTS["cluster status"].fields, "cluster status")
    return shown


def states(host: Host) -> dict[str, str]:
    return {each["name"]: each["state"] for each in status(host)["hosts"]}


def invite(by: Host, host: Host, *more: str) -> str:
    return str(cluster(by, "invite", host.name, "--address", host.address[4], *more).stdout)


ASK = """\
import sys
from niso.cluster import config
from niso.cluster.etcd import Etcd
from niso.cluster.engine import NoAnswer
access = config.require().access()._replace(members=(f"{sys.argv[1]}:2379",))
try:
    Etcd(access, rounds=1).get("x")
except NoAnswer:
    print("refused")
else:
    print("answered")
"""


def asks(host: Host, member: Host | None = None) -> str:
    """What a member of etcd says to a host, by default a's."""
    address = member.address[4] if member else "198.51.100.1"
    return host.lab.run(sys.executable, "-c", ASK, address).stdout.strip()


def start_agent(host: Host) -> Process:
    agent = host.lab.popen("niso", "agent")
    assert agent.stdout and b"following cluster" in agent.stdout.readline()
    return agent


def end_etcd(host: Host) -> None:
    pid = int(host.lab.path("/run/niso/etcd.pid").read_text())
    host.lab.run("kill", "-KILL", str(pid))


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    with underlay("a", "b", "c", "d") as hosts:
        for host in hosts:
            provide(host.lab)
        yield hosts


@pytest.mark.first
def test_cluster_is_made_grows_loses_a_host_and_is_left(hosts: list[Host]) -> None:
    a, b, c, d = hosts
    assert "in no cluster" in refused(a, "status")
    assert "is not an address of this host" in refused(a, "init", "--address", "198.51.100.77")
    said = cluster(a, "init", "--address", a.address[4], "--name", "a")
    assert "created; this host is a (198.51.100.1), member 1 of etcd" in said.stdout
    assert "niso agent" in said.stderr
    assert "already" in refused(a, "init", "--name", "x", "--address", a.address[4])
    # an invitation is for a file of root alone
    a.lab.run("sh", "-c", "niso cluster invite b --address 198.51.100.2 > /tmp/b.join")
    assert os.stat(a.lab.path("/tmp/b.join")).st_mode & 0o777 == 0o600
    near, far = pty.openpty()
    with os.fdopen(near, "rb"), os.fdopen(far, "wb"):
        shown = a.lab.popen(
            "niso", "cluster", "invite", "x", "--address", "198.51.100.9", stdout=far
        )
        assert shown.wait(20) == 2
    text = a.lab.path("/tmp/b.join").read_text()
    assert "not an invitation" in refused(b, "join", "-", input=text.replace("[host]", "[hos]"))
    said = refused(b, "join", "-", input=text.replace("BEGIN CERT", "BEGIN CERX"))
    assert "the invitation has not a certificate" in said and "niso cluster invite HOST" in said
    a.lab.run("ip", "link", "set", "under0", "down")
    assert "etcd has to run there" in refused(b, "join", "-", "--no-member", input=text)
    a.lab.run("ip", "link", "set", "under0", "up")
    assert not os.path.exists(b.lab.path("/var/lib/niso/cluster"))
    assert "is not an address of this host" in refused(c, "join", "-", input=text)
    b.lab.run("rm", "-f", "/usr/local/bin/etcd")
    assert "etcd is not installed" in refused(b, "join", "-", input=text)
    assert not os.path.exists(b.lab.path("/var/lib/niso/cluster"))
    provide(b.lab)
    said = cluster(b, "join", "-", input=text)
    assert "joined as b, member 2 of etcd; one more makes it survive the loss of 1" in said.stdout
    said = cluster(c, "join", "-", input=invite(b, c))
    assert "member 3 of etcd, which survives the loss of 1" in said.stdout
    said = cluster(d, "join", "-", input=invite(c, d))
    assert "joined as d, not a member of etcd" in said.stdout
    assert "already" in refused(d, "join", "-", input=text.replace('cluster = "', 'cluster = "0'))
    assert "in the cluster already" in refused(a, "invite", "b", "--address", "198.51.100.9")
    assert "address of another host" in refused(a, "invite", "e", "--address", b.address[4])
    assert "no key to sign" in refused(d, "invite", "e", "--address", "198.51.100.9")
    folder = d.lab.path("/var/lib/niso/cluster")
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == dict.fromkeys(("authority.pem", "host.pem", "host.key", "cluster.toml"), 0o600)
    # agents say who is alive, and learn of all members
    agents = {host.name: start_agent(host) for host in hosts}
    assert "runs already" in a.lab.niso("agent", check=False).stderr
    a.lab.wait_for(
        lambda: list(states(a).values()) == ["here", "alive", "alive", "alive"], 20, "all alive"
    )
    seen = status(a)
    assert [bool(each["version"]) for each in seen["members"]] == [True] * 3 and seen["tls"]
    toml = a.lab.path("/var/lib/niso/cluster/cluster.toml")
    a.lab.wait_for(
        lambda: len(tomllib.loads(toml.read_text())["etcd"]["members"]) == 3,
        20,
        "three members on a",
    )
    table = cluster(d, "status").stdout.splitlines()
    assert "3 of 3 answer" in table[0] and table[1].split()[:4] == [
        "HOST",
        "ADDRESS",
        "STATE",
        "ETCD",
    ]
    # new certificates, while all runs
    before = b.lab.path("/var/lib/niso/cluster/host.pem").read_text()
    cluster(b, "join", "-", input=str(cluster(a, "invite", "b", "--renew").stdout))
    after = b.lab.path("/var/lib/niso/cluster/host.pem").read_text()
    assert before != after == b.lab.path("/var/lib/niso-etcd/tls/host.pem").read_text()
    assert len([each for each in status(b)["members"] if each["version"]]) == 3
    # a backup is a whole snapshot
    assert "/tmp is a folder" in refused(d, "backup", "/tmp")
    assert "/tmp/no does not exist" in refused(d, "backup", "/tmp/no/x")
    assert "not a regular file" in refused(d, "backup", "/dev/null")
    cluster(d, "backup", "/tmp/backup")
    content = d.lab.path("/tmp/backup").read_bytes()
    assert hashlib.sha256(content[:-32]).digest() == content[-32:] and len(content) > 8192
    assert os.stat(d.lab.path("/tmp/backup")).st_mode & 0o777 == 0o600
    # c is lost: others go on, and d takes its place
    assert "is alive" in refused(a, "forget", "c")
    agents["c"].send_signal(signal.SIGKILL)
    end_etcd(c)
    lease = c.lab.path("/run/niso/lease").read_text()
    d.lab.run(sys.executable, "-c", REVOKE, lease)  # else it takes 10 s
    d.lab.wait_for(lambda: states(d)["c"] == "gone", 40, "c gone")
    shown = cluster(a, "status").stdout
    assert "2 of 3 answer" in shown and "gone for " in shown
    assert asks(c) == "answered"
    said = cluster(a, "forget", "c").stdout
    assert said == "c: forgotten, with its certificate, which is withdrawn\n"
    for member in (a, b):  # b by its agent
        c.lab.wait_for(lambda member=member: asks(c, member) == "refused", 40, "c refused")
    assert asks(d) == asks(b) == "answered"
    assert "lacks the key" in refused(d, "member", "add")
    renewed = str(cluster(a, "invite", "d", "--renew").stdout)
    assert "authority_key" not in renewed
    said = refused(d, "join", "-", "--member", input=renewed)
    assert "the invitation is not that of a member" in said
    renewed = str(cluster(a, "invite", "d", "--renew", "--member").stdout)
    assert "member 3 of etcd" in cluster(d, "join", "-", "--member", input=renewed).stdout
    assert {each["name"] for each in status(a)["members"]} == {"a", "b", "d"}
    # c is back: its agent changes nothing, and says why; it leaves, and joins again
    again = c.lab.popen("niso", "agent")
    assert again.stdout
    lines = [again.stdout.readline() for _ in range(2)]
    assert b"does not answer" in lines[1]
    said = cluster(c, "status", check=False).stderr
    assert "others have forgotten gets no answer" in said and "a certificate was refused" in said
    cluster(c, "leave", "--force")
    # an invitation that nobody has used
    invite(a, c)
    assert cluster(a, "forget", "c").stdout.endswith("withdrawn\n")
    assert "no host 'c' in the cluster" in refused(a, "forget", "c")
    assert again.wait(30) == 0
    assert not os.path.exists(c.lab.path("/var/lib/niso-etcd"))
    assert "not a member" in cluster(c, "join", "-", input=invite(a, c)).stdout
    # most members are lost for good, and a goes on alone with what it has; b comes back
    assert "most members of etcd answer" in refused(a, "recover", "--force")
    end_etcd(b)
    end_etcd(d)
    assert cluster(a, "recover", "--force").stdout == "this host has the only member of etcd\n"
    assert list(states(a)) == ["a", "b", "c", "d"]
    assert "the only member of etcd" in refused(a, "leave")
    assert "etcd has 1" in cluster(b, "member", "remove").stdout
    assert "etcd has 2" in cluster(b, "member", "add").stdout
    assert "etcd has 2" in cluster(d, "member", "remove").stdout
    # members and hosts go one by one
    assert "b is alive: run it on b" in refused(a, "member", "remove", "b").replace("\n  hint", "")
    assert "etcd has 1" in cluster(b, "member", "remove").stdout
    for host in (b, c, d, a):
        cluster(host, "leave")
        assert not os.path.exists(host.lab.path("/var/lib/niso/cluster")), host.name
        assert not os.path.exists(host.lab.path("/var/lib/niso-etcd")), host.name
        left = {"etcd.pid", "gone", "agent.wake"} & {*os.listdir(host.lab.path("/run/niso"))}
        assert not left, host.name
        assert host is a or host.name not in states(a)
    for name in ("a", "b", "d"):
        assert agents[name].wait(40) == 0, agents[name].communicate()


@pytest.mark.first
def test_cluster_in_an_etcd_with_users_and_a_prefix(hosts: list[Host]) -> None:
    a, b, c, _ = hosts
    tls = a.lab.path("/tmp/tls")
    tls.mkdir()
    invitation.make_authority(str(tls), "test")
    invitation.issue(str(tls), str(tls), [a.address[4]])
    words = flags("a", "/tmp/etcd", "198.51.100.1:2379", "198.51.100.1:2380", "/tmp/tls")
    a.lab.popen(BINARY, *words, stdout=-3, stderr=-3)
    a.lab.run("sh", "-c", "echo niso:secret > /tmp/tls/user; echo niso:wrong > /tmp/tls/wrong")
    a.lab.run("python3", "-c", USERS)
    for host in (b, c):
        copy = host.lab.path("/tmp/tls")
        copy.mkdir()
        for path in tls.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
    files = [f"/tmp/tls/{name}" for name in ("authority.pem", "host.pem", "host.key")]
    words = ["--etcd", "https://198.51.100.1:2379", "--prefix", "/niso/prod/"]
    etcd = [*words, "--cacert", files[0], "--cert", files[1], "--key", files[2]]
    own = ("--name", "b", "--address", b.address[4])
    assert "needs --etcd" in refused(b, "init", "--cert", files[1])
    assert "https needs --cacert" in refused(b, "init", *own, *etcd[:2])
    said = refused(b, "init", *own, *etcd, "--user", "/tmp/tls/wrong")
    assert said.startswith("niso: etcd refuses user niso") and "has its password" in said
    said = refused(b, "init", *own, *etcd[:2], *etcd[4:], "--user", "/tmp/tls/user")
    assert said.startswith("niso: etcd refuses the request") and "below the prefix" in said
    assert not os.path.exists(b.lab.path("/var/lib/niso/cluster"))
    said = cluster(b, "init", *own, *etcd, "--user", "/tmp/tls/user")
    assert "an existing etcd" in said.stdout
    other = ("--name", "c", "--address", c.address[4])
    assert "has a cluster already" in refused(c, "init", *other, *etcd, "--user", "/tmp/tls/user")
    text = str(cluster(b, "invite", "c", "--address", c.address[4]).stdout)
    assert "not a member" in cluster(c, "join", "-", input=text).stdout
    assert "not niso's" in refused(c, "backup", "/tmp/x")
    said = refused(b, "invite", "x", "--address", "198.51.100.9", "--member")
    assert "--member is for a cluster whose etcd niso runs" in said
    agents = [start_agent(host) for host in (b, c)]
    b.lab.wait_for(lambda: states(b) == {"b": "here", "c": "alive"}, 40, "c alive")
    for host in (c, b):
        cluster(host, "leave")
    for agent in agents:
        assert agent.wait(40) == 0


USERS = """\
import json, ssl, time, urllib.request
context = ssl.create_default_context(cafile="/tmp/tls/authority.pem")
context.load_cert_chain("/tmp/tls/host.pem", "/tmp/tls/host.key")
def ask(path, **body):
    request = urllib.request.Request("https://198.51.100.1:2379/v3/" + path, json.dumps(body).encode())
    urllib.request.urlopen(request, context=context, timeout=60).read()
for _ in range(100):
    try:
        ask("kv/range", key="eA==")
        break
    except OSError:
        time.sleep(0.1)
ask("auth/user/add", name="root", password="root")
ask("auth/user/add", name="niso", password="secret")
ask("auth/role/add", name="niso")
permission = {"permType": "READWRITE", "key": "L25pc28vcHJvZC8=", "range_end": "L25pc28vcHJvZDA="}
ask("auth/role/grant", name="niso", perm=permission)
ask("auth/user/grant", user="niso", role="niso")
ask("auth/user/grant", user="root", role="root")
ask("auth/enable")
"""


@pytest.mark.first
@needs_systemd
def test_systemd_runs_etcd_as_its_user_and_the_agent(lab: Lab) -> None:
    machine = Machine(lab)
    (machine.disk / "etc/passwd").open("a").write("etcd:x:990:990::/:/usr/sbin/nologin\n")
    lab.run("cp", "--remove-destination", shutil.which("etcd") or BINARY, "/usr/local/bin/etcd")
    provide_wireguard(lab)
    machine.run("sh", "-c", "mkdir -p /dev/net && mknod /dev/net/tun c 10 200")
    place = ("--name", "a", "--address", "2001:db8::1")
    said = machine.niso("cluster", "init", *place, "--encrypt=userspace")
    assert "member 1 of etcd" in said.stdout and "niso agent" not in said.stderr
    pids = {}
    for unit in ("etcd", "agent"):
        assert machine.state(unit) == "active/running"
        assert machine.systemctl("is-enabled", f"niso-{unit}").stdout == "enabled\n"
        found = machine.run("systemd-analyze", "verify", f"/etc/systemd/system/niso-{unit}.service")
        assert found.stderr == "", "systemd-analyze only warns"
        pids[unit] = machine.show(unit, "MainPID")["MainPID"]
    owners = ("/var/lib/niso-etcd/data", "/var/lib/niso-etcd/tls/host.key", f"/proc/{pids['etcd']}")
    shown = machine.run("stat", "--format=%u:%g %a", *owners).stdout.split("\n")
    assert shown[:2] == ["990:990 700", "990:990 400"] and shown[2].startswith("990:990")
    assert "following cluster" in machine.journal("agent")
    machine.niso("net", "create", "backend", "--span")
    process = machine.show("wireguard", "MainPID")["MainPID"]
    if process != "0":  # else the kernel encrypts
        pids["wireguard"] = process
        assert "wireguard-go" in machine.run("cat", f"/proc/{process}/cmdline").stdout
    # who is killed comes back
    machine.run("kill", "-KILL", *pids.values())
    for unit, pid in pids.items():
        lab.wait_for(
            lambda unit=unit, pid=pid: (
                machine.show(unit, "MainPID", "ActiveState")
                not in ({"MainPID": pid, "ActiveState": "active"},)
                and machine.state(unit) == "active/running"
            ),
            30,
            unit,
        )
    status = json.loads(machine.niso("cluster", "status", "--json").stdout)
    assert [host["state"] for host in status["hosts"]] == ["here"]
    machine.niso("cluster", "leave")
    for unit in pids:
        assert machine.state(unit) == "inactive/dead"
    assert not list((machine.disk / "etc/systemd/system").glob("niso-*.service"))
    # one that somebody else has made is left alone, and nothing else changes
    (machine.disk / "etc/systemd/system/niso-agent.service").write_text(
        "[Service]\nExecStart=true\n"
    )
    refused = machine.niso(
        "cluster", "init", "--name", "a", "--address", "2001:db8::1", check=False
    )
    assert refused.returncode == 1 and "was not made for this state folder" in refused.stderr
    assert not (machine.disk / "var/lib/niso/cluster").exists()
