"""Test that --json output of every command has the keys and types of the reference."""

from __future__ import annotations

import json
from typing import Any

from conftest import Lab
from reference.results import RESULTS
from result_forms import conforms
from services import echo, idle, on, package

seen: set[str] = set()


def ask(lab: Lab, *words: str, status: int = 0) -> Any:
    """What a command prints with --json, once it is what the reference says."""
    done = lab.niso(*words, "--json", check=False)
    assert done.returncode == status, (words, done.stderr)
    beginnings = (" ".join(words[:count]) for count in (3, 2, 1))
    name = next(name for name in beginnings if name in RESULTS)
    result, value = RESULTS[name], json.loads(done.stdout)
    assert isinstance(value, list) == (result.shape == "array")
    for each in value if isinstance(value, list) else [value]:
        conforms(each, result.fields, name)
    seen.add(name)
    return value


def test_every_command_prints_what_the_reference_says(lab: Lab) -> None:
    assert (
        ask(lab, "ps")
        == ask(lab, "net", "list")
        == ask(lab, "net", "ports")
        == ask(lab, "net", "stats")
        == []
    )
    ask(lab, "net", "create", "backend", "--ipv6")
    ask(lab, "net", "create", "spare", "--internal")
    policy = {"network.policy": {"deny_from": ["web"], "log": True}}
    health = {"healthcheck": {"tcp": 80, "interval": "1s"}}
    api = echo(
        lab,
        "api",
        network=on("backend", ports=["8080:80", "9000-9002:9000-9002"]),
        **policy,
        **health,
    )
    web = idle(lab, "web", network=on("backend"))
    first = ask(lab, "activate", api, web)
    assert [each["changed"] for each in first] == [True, True] and first[0]["ports"][1][
        "host_ip"
    ] == "::"
    assert ask(lab, "activate", web)[0]["changed"] is False
    lab.niso(
        "activate", package(lab, "job", "sh", "-c", "sleep 0.3; exit 3", service={"restart": "no"})
    )
    lab.niso("activate", idle(lab, "side", network={"mode": "share", "share": "web"}))
    lab.niso("activate", idle(lab, "alone", network={"mode": "none"}))

    ask(lab, "activate", idle(lab, "disk", volumes={"data": {"mount": "/data"}}))
    assert ask(lab, "volume", "list") == ask(lab, "volume", "inspect", "disk/data")
    assert ask(lab, "save", "disk", "-o", "/tmp/disk.niso")["services"] == ["disk"]
    assert ask(lab, "load", "/tmp/disk.niso", "--as", "new")[0]["saved_as"] == "disk"
    lab.niso("remove", "--volumes", "new-disk")
    ask(lab, "remove", "disk")
    assert ask(lab, "volume", "remove", "disk/data")[0]["mount"] is None
    for name in ("api", "web", "job", "side", "alone"):
        ask(lab, "inspect", name)
    assert {row["service"] for row in ask(lab, "ps")} == {"api", "web", "job", "side", "alone"}
    ask(lab, "restart", "side")
    ask(lab, "kill", "--signal", "CONT", "side")
    lab.write("/tmp/compose.yaml", "services: {a: {image: busybox, command: sh}}")
    ask(lab, "import", "/tmp/compose.yaml")
    ask(lab, "port-forward", "web", "7000:70")
    assert ask(lab, "port-forward", "api", "7000:80", "--take-over")["taken"][0]["service"] == "web"
    ask(lab, "port-forward", "api", "7000:80", "--remove")

    ask(lab, "net", "list")
    assert len(ask(lab, "net", "inspect", "backend")["services"]) == 3
    ask(lab, "net", "ports")
    assert all(row["from"] for row in ask(lab, "net", "ports", "--exposed"))
    ask(lab, "net", "rules")
    ask(lab, "net", "ping", "api", "web")
    ask(lab, "net", "explain", "api", "web:80", "--prove")
    ask(lab, "net", "explain", "side", "api:80", status=1)
    ask(lab, "net", "explain", "192.0.2.2", "192.0.2.1:8080")
    ask(lab, "net", "explain", "host", "api", "-6")
    ask(lab, "net", "stats")
    lab.client("/usr/bin/busybox", "nc", "-w", "1", "192.0.2.1", "8080", input="", check=False)
    assert ask(lab, "net", "flows")[0]["published"] == 8080
    assert "api" in {service["service"] for service in ask(lab, "top")["services"]}
    assert ask(lab, "events", "alone", "--since", "1h", "--for", "300ms")["what"] == "activated"
    ping = lab.popen("ping", "-i", "0.2", "192.0.2.1", netns="client")
    ask(lab, "net", "trace", "192.0.2.2", "192.0.2.1")
    ping.kill()
    assert ask(lab, "net", "policy", "test", "/tmp/packages/api")
    ask(lab, "net", "policy", "show", "api")
    assert ask(lab, "net", "refresh") == []
    assert ask(lab, "net", "names")["names"]
    learned = ask(lab, "net", "learn", "--egress")
    assert "other machines: published as 8080" in {
        e["note"] for p in learned for e in p["allow_from"]
    }
    assert ask(lab, "net", "attach", "box", "--new", "--network", "backend", "-p", "7100:80")[
        "ports"
    ]
    assert ask(lab, "inspect", "box")["attached"]["owner"] == "cli"
    assert ask(lab, "net", "detach", "box") == [{"service": "box", "changed": True}]
    assert ask(lab, "net", "gc") == []

    log = lab.popen("niso", "net", "drops", "--json")
    assert log.stdout
    lab.run(
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8; do niso exec web -- ping -c 1 -W 1 api & sleep 0.2; done; wait",
    )
    drop = json.loads(log.stdout.readline())
    conforms(drop, RESULTS["net drops"].fields, "net drops")
    direction = next(field for field in RESULTS["net drops"].fields if field.name == "direction")
    assert direction.description.startswith("in: ") and drop["direction"] == "in"
    seen.add("net drops")
    log.send_signal(2)
    assert log.wait(10) == 130

    assert ask(lab, "net", "check") == []
    lab.run("ip", "link", "set", "niso-spare", "down")
    lab.run(
        "nft", "delete", "element", "inet", "niso", "publish_any", "{ tcp . 8080 }", check=False
    )
    assert ask(lab, "net", "check", status=1)
    assert ask(lab, "net", "repair")["steps"] > 0

    keys = {"service": {"replicas": 1, "update": "start-first"}, "deploy": {"monitor": "0s"}}
    for version in ("1", "2"):
        keys["environment"] = {"V": version}
        front = echo(lab, "front", network=on("backend"), healthcheck={"tcp": 80}, **keys)
        assert ask(lab, "activate", front)[0]["changed"]
    assert "front.2" in {row["service"] for row in ask(lab, "ps", "--instances")}
    assert ask(lab, "scale", "front=2")
    assert ask(lab, "history", "front")
    ask(lab, "rollback", "front")
    ask(lab, "inspect", "front")
    ask(lab, "enable", "api", "web")
    ask(lab, "restore")
    ask(lab, "disable", "web")
    ask(lab, "kubernetes", "disable")
    lab.write(
        "/tmp/stack/stack.toml",
        f'[stack]\nname = "s"\n[[service]]\nname = "in"\npackage = "{web}"\n',
    )
    ask(lab, "stack", "up", "/tmp/stack")
    ask(lab, "stack", "ps", "/tmp/stack")
    ask(lab, "stack", "restart", "/tmp/stack")
    ask(lab, "validate", "/tmp/stack")
    ask(lab, "stack", "down", "/tmp/stack")
    ask(lab, "reset", "--yes")
    assert ask(lab, "deactivate", "alone", "web") == [
        {"service": "alone", "changed": False},
        {"service": "web", "changed": False},
    ]
    ask(lab, "remove", "side", "web", "in")
    ask(lab, "net", "remove", "spare")
    # test_cluster_commands, test_cluster_services
    others = {name for name in RESULTS if name.startswith("cluster ") or "--all-hosts" in name}
    others |= {"firewall enable", "firewall disable", "kubernetes enable"}  # test_systemd_units
    assert seen == set(RESULTS) - others
