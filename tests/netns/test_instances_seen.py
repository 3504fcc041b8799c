"""What shows or evaluates services speaks of the service, not of the instances behind its address.

Only ``--instances``, or the name of an instance, splits it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab
from services import HOST, on, package
from test_service_address import addresses, asked, replicas

MAP = """
import json, time, niso
from niso.api.host import plain
with niso.connect().map() as seen:
    seen.read()
    time.sleep(1)
    print(json.dumps(plain(seen.read())))
"""


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """A host with the service web (three instances) after 30 requests of cli, 20 from outside.

    The policy of web denies far, which has tried twice.
    """
    with Lab(deadline_seconds=600) as lab:
        lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
        sleep = ("/usr/bin/sleep", "100000")
        policy = {"allow_from": ["cli:80", "0.0.0.0/0:80"], "deny_from": ["far"]}
        lab.niso(
            "activate",
            replicas(lab, "web", on("backend", ports=["8080:80"], policy=policy)),
            package(lab, "cli", *sleep, network=on("backend")),
            package(lab, "far", *sleep, network=on("backend")),
        )
        vip = addresses(lab, "web")[0]
        asked(lab, "niso-cli", vip, 80, count=30)
        asked(lab, "client", HOST, 8080, count=20)
        lab.run("/usr/bin/python3", "-c", REFUSED, vip, netns="niso-far")
        yield lab


REFUSED = """
import socket, sys
for _ in range(2):
    with socket.socket() as s:
        s.settimeout(0.2)
        try:
            s.connect((sys.argv[1], 80))
        except OSError:
            pass
"""


def shown(lab: Lab, *words: str) -> Any:
    return json.loads(lab.niso(*words, "--json").stdout)


@pytest.mark.parametrize(
    "words",
    [
        ("ps",),
        ("net", "flows"),
        ("net", "flows", "web"),
        ("net", "graph"),
        ("net", "graph", "--declared"),
        ("net", "stats"),
        ("net", "inspect", "backend"),
        ("net", "policy", "show", "web"),
        ("net", "learn", "--egress"),
        ("net", "ports"),
        ("net", "check"),
        ("metrics",),
        ("events", "--since", "1h", "--for", "1s"),
        ("top", "-n", "1"),
        ("top", "web", "-n", "2"),
        ("net", "explain", "cli", "web:80"),
        ("net", "explain", "far", "web:80"),
    ],
    ids=" ".join,
)
def test_no_command_names_an_instance_unless_asked(shop: Lab, words: tuple[str, ...]) -> None:
    told = shop.niso(*words, check=False).stdout
    # elements of policies have the instance that they are for in their comments
    lines = [line for line in told.splitlines() if " nft element " not in line]
    assert lines and not any(re.search(r"web[._]\d", line) for line in lines), told


def test_flows_add_up_and_are_split_on_request(shop: Lab) -> None:
    def counts(*words: str) -> dict[tuple[str, str, str], int]:
        flows = shown(shop, "net", "flows", *words)
        return {(f["from"]["name"], f["to"]["name"], f["verdict"]): f["new"] for f in flows}

    whole, apart = counts(), counts("-i")
    assert whole["cli", "web", "pass"] == 30 and whole["192.0.2.2", "web", "pass"] == 20
    assert len(whole) == 3 and whole["far", "web", "drop"] >= 2
    assert {to for _, to, _ in apart} == {"web.1", "web.2", "web.3"}
    for from_, to, verdict in whole:
        parts = [n for (f, _, v), n in apart.items() if (f, v) == (from_, verdict)]
        assert sum(parts) == whole[from_, to, verdict]
    one = counts("web.2")
    assert one == {key: number for key, number in apart.items() if key[1] == "web.2"}
    assert counts("web", "-i") == apart
    for flow in shown(shop, "net", "flows", "-i"):
        published = 8080 if flow["from"]["name"] == "192.0.2.2" else None
        assert flow["published"] == published and flow["agrees"]
        assert flow["service"] == "web"


def test_counters_add_up(shop: Lab) -> None:
    whole = {line["service"]: line for line in shown(shop, "net", "stats")}
    apart = {line["service"]: line for line in shown(shop, "net", "stats", "-i")}
    own = [line for name, line in apart.items() if name.startswith("web.")]
    assert len(own) == 3 and set(whole) == {"web", "cli", "far"}
    assert 0 <= whole["web"]["in-packets"] - sum(line["in-packets"] for line in own) < 50
    assert whole["web"]["in-packets"] > 150
    assert whole["web"]["in-drops"] == sum(line["in-drops"] for line in own) >= 2
    entries = {line["key"]: line["packets"] for line in shown(shop, "net", "policy", "show", "web")}
    assert entries["network.policy.deny_from[0]"] == whole["web"]["in-drops"]
    assert entries["network.policy.allow_from[0]"] >= 30
    metrics = shop.niso("metrics").stdout
    assert 'niso_service_up{service="web"} 1' in metrics
    assert 'niso_service_instances{service="web",state="serving"} 3' in metrics
    found = re.search(r"niso_network_receive_packets_total{.*\"web\"} (\d+)", metrics)
    assert found and int(found[1]) >= whole["web"]["in-packets"]
    networks = {line["name"]: line["services"] for line in shown(shop, "net", "list")}
    assert networks["backend"] == 3


def test_learned_policies_write_the_service_alone(shop: Lab) -> None:
    told = shop.niso("net", "learn", "--egress").stdout
    assert '"web:80/tcp"' in told and '"cli:80/tcp"' in told
    assert shop.niso("net", "learn", "web").stdout == shop.niso("net", "learn", "web.1").stdout


def test_rates_of_the_map_and_of_top_add_up(shop: Lab) -> None:
    vip = addresses(shop, "web")[0]
    ask = (
        "import socket, time\n"
        "for _ in range(60):\n"
        f"    socket.create_connection(('{vip}', 80)).recv(99)\n"
        "    time.sleep(0.1)\n"
    )
    asking = shop.popen("/usr/bin/python3", "-c", ask, netns="niso-cli")
    load = json.loads(shop.niso("top", "web", "--json", "-n", "1").stdout)
    done = shop.run(sys.executable, "-c", MAP)
    asking.wait(30)
    (flow,) = load["flows"]
    (row,) = load["services"]
    assert flow["to"]["service"] == "web" and flow["new"] > 2
    assert abs(row["new"] - flow["new"]) < 0.1 and row["received"] > 0
    state = json.loads(done.stdout)
    assert [service["service"] for service in state["services"]] == ["cli", "far", "web"]
    assert state["services"][2]["received"] > 0
    passed = [f for f in state["flows"] if f["from"]["name"] == "cli" and f["verdict"] == "pass"]
    assert len(passed) == 1 and passed[0]["new"] >= 30
    assert passed[0]["rate"] > 2 and passed[0]["bits"] > 0


def test_an_end_of_an_instance_is_an_event_of_its_service(shop: Lab) -> None:
    watching = shop.popen("sh", "-c", "exec niso events --json > /tmp/events")

    def told_so(what: str) -> bool:
        return f'"what": "{what}"' in shop.run("cat", "/tmp/events").stdout

    time.sleep(1)
    shop.niso("kill", "web.2")
    shop.wait_for(lambda: told_so("restarted"), 20)
    shop.wait_for(lambda: shown(shop, "ps")[2]["status"] == "3/3 running", 20)
    shop.niso("scale", "web=2")
    shop.wait_for(lambda: told_so("scaled"), 20)
    watching.terminate()
    watching.wait(10)
    lines = shop.run("cat", "/tmp/events").stdout.splitlines()
    told = [(event["service"], event["what"]) for event in map(json.loads, lines)]
    assert ("web", "exited (137)") in told and ("web", "restarted") in told
    assert ("web", "scaled") in told
    assert {service for service, _ in told} == {"web"}
