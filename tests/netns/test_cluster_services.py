"""Test services of several hosts with real kernels and a real etcd: that they meet, move, and survive what can fail.

The rows are those of the table in docs/guide/cluster.md.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_hosts import Cluster, cluster
from reference.results import RESULTS
from result_forms import conforms
from services import BUSYBOX, ask, echo, on, pings
from test_deploy import Load, serving
from test_deploy import web as deployed

DROP_WIRE = """\
add table bridge wall
add chain bridge wall forward { type filter hook forward priority 0; }
add rule bridge wall forward ip protocol udp udp dport 4799 drop
"""


@pytest.fixture
def one() -> Iterator[Cluster]:
    """Three hosts; only a runs etcd."""
    with cluster("a", "b", "c") as made:
        yield made


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Three hosts, which all run etcd, with IPv6 addresses between them."""
    with cluster("a", "b", "c", members=3, family=6) as made:
        yield made


def answers(made: Cluster, name: str, by: str, address: str, text: str) -> None:
    """Wait until a service of a host is answered so by what has an address."""
    lab = made.hosts[name].lab
    made.wait(
        name, lambda: ask(lab, address, 80, f"niso-{by}") == text, f"{by} to {address}: {text!r}"
    )


def has(made: Cluster, name: str, element: str) -> None:
    """The kernel of a host has an element, as ``element inet niso in4_peer { KEY : VALUE }``."""
    _, family, table, container, rest = element.split(" ", 4)
    key = rest.strip("{} ").split(' comment "')[0].split(" : ")[0].strip()
    words = ("nft", "get", "element", family, table, container, "{", key, "}")
    assert made.hosts[name].lab.run(*words).stdout, element


@pytest.mark.first
def test_services_meet_by_name_policies_hold_and_a_lost_host_is_replaced(one: Cluster) -> None:
    c = one.hosts["c"].lab
    db = one.activate("b", "db", policy={"allow_from": ["api:80"]})
    api = one.activate("c", "api", ports=["8080:80"])
    evil = one.activate("c", "evil")
    assert [db, api, evil] == ["10.99.1.2", "10.99.1.3", "10.99.1.4"]
    assert one.sees("c", db, "db"), "the network is new on c, and has what others have there"
    one.wait("b", lambda: one.sees("b", evil, "evil"), "evil's name on b")
    answers(one, "c", "api", db, f"db {api}")
    assert ask(c, db, 80, "niso-evil") == ""
    assert one.rows("b") == {"api": ("c", "up"), "db": ("b", "running"), "evil": ("c", "up")}
    assert (
        "api      c     up       10.99.1.3, fd00:99:1::3  8080→80"
        in one.niso("b", "ps", "--all-hosts").stdout
    )
    assert "api is on c, which is alive" in one.refused("b", "activate", one.package("b", "api"))
    one.check("b", "c")
    shown = one.niso("b", "cluster", "status").stdout.splitlines()
    assert [line.split()[-1] for line in shown[1:5]] == ["BEHIND", "0s", "0s", "0s"]
    # with the commit of the checkout
    version = one.niso("b", "version").stdout.split()[1]
    assert [line.split()[-2] for line in shown[1:5]] == ["NISO", version, version, version]
    assert "backend  10.99.1.0/24, fd00:99:1::/64  1         2          4097" in (
        one.niso("b", "net", "list").stdout
    )
    assert (
        "api   10.99.1.3, fd00:99:1::3  on c" in one.niso("b", "net", "inspect", "backend").stdout
    )
    assert "api" in one.niso("b", "net", "flows").stdout
    # who shares a namespace is found at its address, and its ports are the host's
    log = echo(c, "log", 81, network={"mode": "share", "share": "api", "ports": ["8081:81"]})
    one.niso("c", "activate", log)
    one.wait("b", lambda: one.sees("b", api, "log"), "log's name on b")
    one.activate("b", "asks", policy={"egress": {"allow": ["log:80"]}})
    answers(one, "b", "asks", api, "api 10.99.1.5")
    assert ask(one.hosts["b"].lab, evil, 80, "niso-asks") == ""
    listed = json.loads(one.niso("b", "net", "ports", "--all-hosts", "--json").stdout)
    for each in listed:
        conforms(each, RESULTS["net ports --all-hosts"].fields, "net ports --all-hosts")
    assert [(each["service"], each["host"], each["port"]) for each in listed] == [
        ("api", "c", "8080"),
        ("log", "c", "8081"),
    ]
    assert one.rows("b")["log"] == ("c", "up")
    assert "--exposed is for the ports of this host" in one.refused(
        "b", "net", "ports", "--all-hosts", "--exposed"
    )
    one.niso("c", "remove", "log")
    one.wait("b", lambda: not one.sees("b", api, "log"), "log gone on b")
    one.wait("b", lambda: ask(one.hosts["b"].lab, api, 80, "niso-asks") == "", "log means nobody")
    one.niso("b", "remove", "asks")
    one.niso("c", "net", "attach", "box", "--new", "--network", "backend")
    one.wait("b", lambda: one.sees("b", "10.99.1.5", "box"), "box's name on b")
    assert "box (10.99.1.5 on c): ok" in one.niso("b", "net", "ping", "db", "box").stdout
    one.niso("c", "net", "detach", "box")
    one.wait("b", lambda: not one.sees("b", "10.99.1.5", "box"), "box gone on b")
    # what is between the hosts lets small packets pass, and then none of services
    one.between("ip", "link", "set", "to3", "mtu", "1400")
    said = one.niso("b", "net", "check", check=False).stdout
    assert said == (
        "dropped: packets of 1500 bytes between this host and c (198.51.100.3)"
        " (packets of services have up to 1450 bytes, and 50 more there; smaller ones pass)\n"
    ), said
    one.between("ip", "link", "set", "to3", "mtu", "1500")
    one.between("nft", DROP_WIRE)
    said = one.niso("b", "net", "check", check=False).stdout
    assert said == (
        "dropped: packets of services between this host and c (198.51.100.3) (c answers ping;"
        " api does not answer db; UDP port 4799 has to pass both ways between 198.51.100.2 and"
        " 198.51.100.3)\n"
    ), said
    one.between("nft", "delete table bridge wall")
    one.check("b")
    explained = {name: one.explain("c", name, "db:80") for name in ("api", "evil")}
    assert [explained[name]["verdict"] for name in explained] == ["pass", "drop"]
    assert explained["evil"]["ingress"]["key"] == "network.policy.allow_from"
    assert explained["api"]["path"]["words"] == (
        "api and db (on b) are both on network backend, by VXLAN"
    )
    ingress = explained["api"]["ingress"]
    assert ingress["words"].endswith("b decides, by the policy that it has published")
    assert [each["host"] for each in ingress["elsewhere"]] == ["b", "b"] and not ingress["nft"]
    for each in (*ingress["elsewhere"], *explained["api"]["path"]["elsewhere"]):
        has(one, "b", each["nft"])
    seen = one.explain("b", "api", "db:80")
    assert (
        "(on c)" in seen["path"]["words"] and "vx44 { 198.51.100.3 . 4097" in seen["path"]["nft"][1]
    )
    assert "this host alone" in one.explain("c", "host", "db:80")["path"]["words"]
    assert "db" in one.niso("b", "net", "ping", "db", "api").stdout
    assert "allows ports but no ICMP" in one.refused("c", "net", "ping", "api", "db")
    assert "db is on b" in one.refused("c", "net", "explain", "api", "db:80", "--prove")
    # neither the cluster nor an agent answers: what runs goes on, and what is held starts and stops
    one.signal_etcd("a", signal.SIGKILL)
    one.kill_agent("c")
    listed = one.niso("b", "ps", "--all-hosts")
    assert "evil     c     up       10.99.1.4" in listed.stdout and " s ago" in listed.stderr
    shown = one.niso("b", "cluster", "status", check=False).stdout.splitlines()
    assert [line.split()[:3:2] for line in shown[2:5]] == [
        ["a", "unknown"],
        ["b", "here"],
        ["c", "unknown"],
    ]
    assert "b decides: the policy of db is not known" in str(one.explain("c", "api", "db:80"))
    assert "not compared with the others" in one.niso("b", "net", "check").stderr
    said = one.refused("b", "activate", one.package("b", "web"))
    assert (
        "the cluster does not answer (198.51.100.1:2379)" in said
        and "running services continue" in said
    )
    assert one.status("b", "web") == ""
    one.niso("b", "restart", "db")
    assert "other hosts do not know it yet" in one.niso("c", "deactivate", "evil").stderr
    assert "evil starts by this host's own record" in one.niso("c", "activate", "evil").stderr
    one.niso("c", "remove", "evil")
    answers(one, "c", "api", db, f"db {api}")
    # they come back: the agent says what could not be said
    one.start_etcd("a")
    one.start_agent("c")
    one.wait("b", lambda: one.rows("b").keys() == {"api", "db"}, "evil given up")
    assert one.activate("b", "web") == evil, "its address is free"
    # b is lost with its agent: its names go, and c takes its service, with the address
    one.kill_agent("b", by="c")
    one.wait("c", lambda: not one.sees("c", db, "db"), "db's name gone on c")
    assert one.rows("c")["db"] == ("b", "host gone")
    said = one.refused("c", "activate", one.package("c", "db"))
    assert (
        "db is on b, which does not answer" in said
        and f"--from-lost-host moves it here with {db}" in said
    )
    assert one.activate("c", "db", "--from-lost-host") == db
    answers(one, "c", "api", db, f"db {api}")
    # b is back: nobody hears its db, and its agent ends it
    assert one.status("b", "db") == "running"
    one.start_agent("b")
    one.wait("b", lambda: one.status("b", "db") == "inactive", "db ended on b")
    answers(one, "b", "web", db, f"db {evil}")
    one.check("b", "c")
    # the cluster keeps the network for as long as anybody is on it
    assert "is used by api on c, db on c, web on b" in one.refused("a", "net", "remove", "backend")
    # b leaves once it has no service there, and the network goes from it
    assert "on networks of the cluster: db, web" in one.refused("b", "cluster", "leave")
    one.niso("b", "remove", "db", "web")
    one.niso("b", "cluster", "leave")
    assert one.agents["b"].wait(20) == 0
    assert "backend" not in one.niso("b", "net", "list").stdout
    # c is lost for good: a gives up what it had, and the network goes from all
    one.kill_agent("c", by="a")
    said = one.niso("a", "cluster", "forget", "c").stdout
    assert said == "c: forgotten, with api, db and its certificate, which is withdrawn\n"
    one.niso("a", "net", "remove", "backend")
    one.check("a", "b")
    # c is back: nothing answers it any more, and it leaves without
    assert "other hosts do not know it yet" in one.niso("c", "remove", "api", "db").stderr
    one.niso("c", "cluster", "leave", "--force")
    assert "backend" not in one.niso("c", "net", "list").stdout


@pytest.mark.first
def test_members_fail_and_a_host_is_cut_off_and_comes_back(three: Cluster) -> None:
    db, api = three.activate("b", "db"), three.activate("c", "api")
    answers(three, "c", "api", db, f"db {api}")
    full = str(1500 - 70 - 28)  # of the link, without IPv6 and VXLAN, without IPv4 and ICMP
    three.hosts["c"].lab.run("ping", "-c1", "-W2", "-Mdo", "-s", full, db, netns="niso-api")
    # one member is killed, another time one is stopped: commands go on by the others
    three.signal_etcd("a", signal.SIGKILL)
    assert three.activate("a", "one") == "10.99.1.4"
    three.start_etcd("a")
    three.signal_etcd("b", signal.SIGSTOP)
    assert three.activate("b", "two") == "10.99.1.5"
    three.signal_etcd("b", signal.SIGCONT)
    for name in "abc":
        three.wait(name, lambda name=name: three.sees(name, "10.99.1.5", "two"), f"two on {name}")
    # without most members nothing new is held, nobody is declared gone, and all that runs goes on
    for name in "ab":
        three.signal_etcd(name, signal.SIGKILL)
    assert "does not answer" in three.refused("c", "activate", three.package("c", "new"))
    assert three.status("c", "new") == ""
    three.niso("c", "deactivate", "api")
    three.niso("c", "activate", "api")
    answers(three, "c", "api", db, f"db {api}")
    assert three.sees("c", db, "db")
    for name in "ab":
        three.start_etcd(name)
    three.wait("b", lambda: three.rows("b").get("api") == ("c", "up"), "api up again")
    # b is cut off. It keeps its service, which c takes over; back on the wire, nobody hears it there
    three.wire("b", "down")
    three.end_lease("b", by="c")
    three.wait("c", lambda: three.rows("c")["db"][1] == "host gone", "b gone")
    assert three.activate("c", "db", "--from-lost-host") == db
    assert three.status("b", "db") == "running"
    assert ask(three.hosts["b"].lab, db, 80, "niso-two") == "db 10.99.1.5"
    three.kill_agent("b")
    three.wire("b", "up")
    answers(three, "c", "api", db, f"db {api}")
    heard = dropped(three, "c")
    assert ask(three.hosts["b"].lab, api, 80, "niso-db") == ""
    assert dropped(three, "c") > heard
    three.start_agent("b")
    three.wait("b", lambda: three.status("b", "db") == "inactive", "db ended on b")
    answers(three, "b", "two", db, "db 10.99.1.5")
    three.check("a", "b", "c")


def dropped(made: Cluster, name: str) -> int:
    """Packets between the hosts that one has dropped since nobody has claimed their source."""
    shown = made.hosts[name].lab.run("nft", "-j", "list", "table", "inet", "niso").stdout
    rules = [item["rule"] for item in json.loads(shown)["nftables"] if "rule" in item]
    return sum(
        expression["counter"]["packets"]
        for rule in rules
        if rule["chain"] in ("wire", "claimed")
        for expression in rule["expr"]
        if "counter" in expression
    )


def web(made: Cluster, name: str, version: str, **tables: Any) -> str:
    """Write a version of a service with two instances on a host; return its folder."""
    keys = tables.pop("network", {})
    return deployed(made.hosts[name].lab, version, network=on("backend", **keys), **tables)


def asked_from(made: Cluster, name: str, by: str, address: str, times: int = 40) -> dict[str, int]:
    """Return how many answers a service of a host gets from each version; "" for none."""
    lab, seen = made.hosts[name].lab, dict[str, int]()
    for _ in range(times):
        words = (BUSYBOX, "wget", "-q", "-T", "1", "-O", "-", f"http://{address}/0")
        said = str(lab.run(*words, netns=f"niso-{by}", check=False).stdout)
        seen[said] = seen.get(said, 0) + 1
    return seen


@pytest.mark.first
def test_a_service_address_is_reached_from_other_hosts(
    one: Cluster,
) -> None:
    b, c = one.hosts["b"].lab, one.hosts["c"].lab
    for name in ("cli", "evil"):
        one.activate("c", name)
    one.activate("c", "bound", policy={"egress": {"allow": ["web:80"]}})
    rules = {"ports": ["8080:80"], "policy": {"allow_from": ["cli", "bound"]}}
    drain = {"drain": "30s"}
    first = web(one, "b", "v1", network=rules, deploy=drain)
    [outcome] = json.loads(one.niso("b", "activate", first, "--json").stdout)
    vip = outcome["address"][0]
    one.wait("c", lambda: one.sees("c", vip, "web"), "web's name on c")
    # the policies of both hosts mean the instances, and the service address is only theirs
    one.wait("c", lambda: asked_from(one, "c", "cli", vip, 1) == {"v1": 1}, "v1")
    assert asked_from(one, "c", "cli", vip, 20) == {"v1": 20}
    assert asked_from(one, "c", "bound", vip, 5) == {"v1": 5}
    assert asked_from(one, "c", "evil", vip, 2) == {"": 2}
    assert pings(c, outcome["address"][1], "niso-cli"), "the service address of IPv6"
    assert not pings(c, outcome["address"][1], "niso-evil")
    assert len(led_to(one, "c", vip)) == 2
    assert ask(c, "10.99.1.3", 80, "niso-bound") == "", "no other service"
    one.check("b", "c")
    explained = one.explain("c", "cli", "web:80")
    assert explained["verdict"] == "pass"
    assert one.explain("c", "evil", "web:80")["verdict"] == "drop"
    assert "out4_port { 10.99.1.4 . 10.99.1.6 . tcp . 80" in str(
        one.explain("c", "bound", "web:80")
    )
    assert one.rows("c").keys() == {"cli", "evil", "bound", "web"}
    assert "web.1" not in one.niso("c", "net", "inspect", "backend").stdout
    # c's agent stands still: the former instances stay until it has seen that they leave
    one.pause_agent("c")
    second = web(one, "b", "v2", network=rules, deploy=drain, service={"restart": "no"})
    deploy = b.popen("niso", "activate", second)
    one.wait("b", lambda: led_to(one, "b", vip).isdisjoint(led_to(one, "c", vip)), "swap on b")
    time.sleep(2)
    assert deploy.poll() is None
    assert asked_from(one, "c", "cli", vip, 5) == {"v1": 5}
    one.agents["c"].send_signal(signal.SIGCONT)
    assert deploy.wait(60) == 0
    assert asked_from(one, "c", "cli", vip, 5) == {"v2": 5}
    one.check("b", "c")
    # without the cluster no version is replaced: c would go on with instances that have ended
    one.signal_etcd("a", signal.SIGKILL)
    assert "does not answer" in one.refused("b", "activate", web(one, "b", "v4", network=rules))
    assert asked_from(one, "c", "cli", vip, 5) == {"v2": 5}
    one.start_etcd("a")
    # an instance whose process has ended leaves the slots of all hosts
    before = led_to(one, "c", vip)
    one.niso("b", "kill", serving(b)[0])
    one.wait("c", lambda: len(led_to(one, "c", vip)) == 1, "one instance on c")
    assert led_to(one, "c", vip) < before
    assert asked_from(one, "c", "cli", vip, 20) == {"v2": 20}
    # b is lost: all its instances leave, and c takes the service over with its address
    one.kill_agent("b", by="c")
    one.wait("c", lambda: not led_to(one, "c", vip), "no instance on c")
    assert not one.sees("c", vip, "web")
    there = web(one, "c", "v4", network=rules, deploy=drain)
    assert "web is on b, which does not answer" in one.refused("c", "activate", there)
    [outcome] = json.loads(one.niso("c", "activate", there, "--from-lost-host", "--json").stdout)
    assert outcome["address"][0] == vip
    assert asked_from(one, "c", "cli", vip, 5) == {"v4": 5}
    one.start_agent("b")
    one.wait("b", lambda: one.status("b", "web") == "inactive", "web ended on b")
    one.check("b", "c")
    one.niso("c", "remove", "web")
    one.niso("b", "remove", "web")
    one.wait("c", lambda: one.rows("c").keys() == {"cli", "evil", "bound"}, "web gone")
    one.check("b", "c")


def led_to(made: Cluster, name: str, vip: str) -> set[str]:
    """Return the addresses of the instances to which a host leads a service address."""
    shown = made.hosts[name].lab.run("nft", "-j", "list", "map", "inet", "niso", "slots4").stdout
    [table] = [item["map"] for item in json.loads(shown)["nftables"] if "map" in item]
    pairs = [(key, value) for key, value in table.get("elem", ())]
    return {
        value
        for key, value in pairs
        if (key["elem"]["val"] if "elem" in key else key)["concat"][0] == vip
    }


@pytest.mark.first
def test_a_service_on_two_hosts_is_one_service_address_with_instances_of_both(
    one: Cluster,
) -> None:
    labs = {name: one.hosts[name].lab for name in "bc"}
    for name in "bc":
        one.activate(name, f"cli-{name}")
    one.activate("c", "evil")
    rules = {"ports": ["8080:80"], "policy": {"deny_from": ["evil"]}}
    keys = {"network": rules, "deploy": {"drain": "30s"}}

    def activate(name: str, version: str) -> str:
        words = ("activate", web(one, name, version, **keys), "--json")
        [outcome] = json.loads(one.niso(name, *words).stdout)
        return str(outcome["address"][0])

    def all_see(instances: int) -> None:
        for name in "bc":
            one.wait(name, lambda name=name: len(led_to(one, name, vip)) == instances, "slots")

    def loads() -> dict[str, Load]:
        return {name: Load(labs[name], f"niso-cli-{name}", vip, 80, "/0.15") for name in "bc"}

    vip = activate("b", "b1")
    all_see(2)
    # c joins, b deploys, c deploys: no request fails, and ports lead to the instances of their host
    asking = loads() | {"port": Load(labs["b"], "client", "192.0.2.1", 8080, "/0.15")}
    assert activate("c", "c1") == vip
    all_see(4)
    one.check("b", "c")
    assert activate("b", "b2") == vip
    assert activate("c", "c2") == vip
    seen = {}
    for name, load in asking.items():
        seen[name], errors = load.failed()
        assert errors == [], name
    assert {*seen["b"]} == {*seen["c"]} == {"b1", "c1", "b2", "c2"}
    assert {*seen["port"]} == {"b1", "b2"}
    assert page(labs["c"], "192.0.2.1:8080", "client") == "c2"
    assert page(labs["c"], vip) == "c2", "a program of the host"
    assert asked_from(one, "c", "evil", vip, 2) == {"": 2}
    assert "c2" in asked_from(one, "b", serving(labs["b"])[0], vip), "instances reach each other"
    listed = json.loads(one.niso("a", "ps", "--all-hosts", "--json").stdout)
    assert [(row["host"], row["status"]) for row in listed if row["service"] == "web"] == [
        ("b", "up"),
        ("c", "up"),
    ]
    told = one.explain("b", "cli-b", "web:80")
    assert told["verdict"] == "pass"
    assert f"{vip} stands for 4 instances on c, this host" in told["path"]["words"]
    assert f"{vip} stands for 2 instances" in one.explain("c", "host", "web:80")["path"]["words"]
    assert one.explain("c", "evil", "web:80")["verdict"] == "drop"
    # names and addresses are common, and a plain service of the name is refused
    said = one.refused("c", "activate", web(one, "c", "c3", network={"aliases": ["www"]}))
    assert "web is on b too, with the names web instead of web, www" in said
    said = one.refused("c", "activate", web(one, "c", "c3", network={"ip": "10.99.1.200"}))
    assert f"web is on b too, with {vip}, " in said and "instead of 10.99.1.200" in said
    assert "web is on b too, and only a service with a service address" in one.refused(
        "c", "activate", one.package("c", "web")
    )
    # a version that fails on c changes nothing for b
    before = led_to(one, "b", vip)
    one.refused("c", "activate", "--timeout", "1s", web(one, "c", "bad", **keys))
    assert led_to(one, "b", vip) == before == led_to(one, "c", vip)
    # b leaves and comes back: no request of a service fails, and its port is closed at once
    asking = loads()
    one.niso("b", "deactivate", "web")
    all_see(2)
    assert one.sees("b", vip, "web")
    assert page(labs["b"], "192.0.2.1:8080", "client") == ""
    one.check("b", "c")
    one.niso("b", "activate", "web")
    all_see(4)
    for name, load in asking.items():
        seen[name], errors = load.failed()
        assert errors == [], name
    # b is lost: its instances leave, and c has the name still, and deploys alone
    one.kill_agent("b", by="c")
    one.wait("c", lambda: len(led_to(one, "c", vip)) == 2, "c alone")
    assert one.sees("c", vip, "web")
    activate("c", "c4")
    assert asked_from(one, "c", "cli-c", vip, 20) == {"c4": 20}
    one.start_agent("b")
    all_see(4)
    one.check("b", "c")
    # the last host has it until it is removed there too
    one.niso("c", "remove", "web")
    assert {*asked_from(one, "c", "cli-c", vip, 8)} == {"b2"}
    assert page(labs["b"], vip) == "b2"
    one.check("b", "c")
    one.niso("b", "remove", "web")
    one.wait("c", lambda: not one.sees("c", vip, "web"), "web gone")
    assert "web" not in one.rows("c")
    one.check("b", "c")


def page(lab: Any, place: str, netns: str | None = None) -> str:
    words = ("curl", "-s", "-m", "5", f"http://{place}/0")
    return str(lab.run(*words, netns=netns, check=False).stdout)
