"""What shows or evaluates services speaks of the service, not of the instances behind its address.

Only ``--instances``, or the name of an instance, splits it.
"""

from __future__ import annotations

import json
import re
import subprocess
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
    one, other = (shop.niso("net", "learn", name).stdout for name in ("web", "web.1"))
    times = re.compile(r"after \d+s|\d+s ago")
    assert times.sub("", one) == times.sub("", other)


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


# --- check, repair, inspect -----------------------------------------------------------------------

DELETE = (
    "import sqlite3; d = sqlite3.connect('/var/lib/niso/state.db'); d.execute({!r}); d.commit()"
)

LOAD = """
import socket, sys, time
end, failed, done = time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], 80), 2) as s:
            done += bool(s.recv(99))
    except OSError:
        failed += 1
    time.sleep(0.01)
print(done, failed)
"""

KEPT_OPEN = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80), 5)
print(s.recv(9), flush=True)
sys.stdin.readline()
"""


def sql(lab: Lab, statement: str) -> None:
    lab.run(sys.executable, "-c", DELETE.format(statement))


def agents(lab: Lab) -> list[str]:
    return list(lab.run("pgrep", "-f", "niso.change.health_agent", check=False).stdout.split())


@pytest.fixture(scope="module")
def front() -> Iterator[Lab]:
    """A host with the service web, of three instances, and its client cli."""
    with Lab(deadline_seconds=600) as lab:
        lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
        lab.niso(
            "activate",
            replicas(lab, "web", on("backend", ports=["8080:80"])),
            package(lab, "cli", "/usr/bin/sleep", "100000", network=on("backend")),
        )
        yield lab


def all_answer(lab: Lab) -> set[str]:
    return {answer.split()[0] for answer in asked(lab, "niso-cli", addresses(lab, "web")[0], 80)}


def test_check_and_ps_say_that_no_process_watches_and_repair_starts_it(front: Lab) -> None:
    front.wait_for(lambda: agents(front), 10)
    time.sleep(5)  # a command that has just started the agent is not accused
    assert "niso health" not in front.niso("net", "check").stderr

    def without_agent(*words: str) -> subprocess.CompletedProcess[str]:
        """Run a command. A `ps` before it has started the agent if a result was old."""
        front.run("kill", "-9", *agents(front), check=False)
        front.wait_for(lambda: not agents(front), 10)
        return front.niso(*words)

    for words in (("ps",), ("net", "check"), ("net", "check", "web")):
        told = without_agent(*words)
        assert "no process watches web (niso health)" in told.stderr, words
        assert "niso net repair" in told.stderr
    assert "health" not in front.niso("net", "check", "cli").stderr
    assert "start niso health" in without_agent("net", "repair", "--dry-run").stdout
    front.niso("net", "repair")
    front.wait_for(lambda: agents(front), 10)
    front.wait_for(lambda: "health" not in front.niso("ps").stderr, 10)


def test_repair_of_a_flushed_ruleset_keeps_service_addresses_and_connections(front: Lab) -> None:
    vip = addresses(front, "web")[0]
    load = front.popen(sys.executable, "-c", LOAD, vip, "6", netns="niso-cli")
    time.sleep(1)
    front.run("nft", "flush", "ruleset")
    front.niso("net", "repair")
    done, failed = map(int, load.communicate(timeout=30)[0].split())
    assert done > 50 and failed < 10, (done, failed)
    assert len(all_answer(front)) == 3 and front.niso("net", "check").returncode == 0


def test_a_flushed_ruleset_in_a_deploy_is_repaired_or_made_again(front: Lab) -> None:
    before = all_answer(front)
    folder = "/tmp/packages/web"
    text = front.run("cat", f"{folder}/manifest.toml").stdout
    front.write(f"{folder}/manifest.toml", text.replace('"0s"', '"4s"').replace("-ISu", "-ISuu"))
    deploy = front.popen("niso", "activate", folder)
    front.wait_for(lambda: len(shown(front, "inspect", "web")["instances"]) == 6, 20)
    front.run("nft", "flush", "ruleset")
    front.niso("net", "repair")
    assert deploy.wait(60) == 0
    after = all_answer(front)
    assert len(after) == 3 and not after & before
    assert front.niso("net", "check").returncode == 0
