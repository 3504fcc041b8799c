"""Test niso metrics against the kernel's own figures, with prometheus_client's parser and curl."""

from __future__ import annotations

import re

import pytest
from conftest import Lab
from services import answer, ask, echo, idle, on

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

Series = dict[tuple[str, frozenset[str]], float]


def read(text: str) -> Series:
    """All samples by name and label values."""
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(series: Series, name: str, *labels: str) -> float | None:
    return series.get((f"niso_{name}", frozenset(labels)))


def curl(lab: Lab, *words: str) -> str:
    done = lab.run("curl", "-sS", "-m", "20", *words)
    return str(done.stdout)


def test_figures_are_the_kernels_by_every_way(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    db = echo(
        lab,
        "db",
        network=on("backend", ports=["8080:80", "9000-9002:9000-9002"]),
        healthcheck={"tcp": 80, "interval": "1s"},
        **{"network.policy": {"allow_from": ["web:80", "192.0.2.0/24", "spare"]}},
    )
    lab.niso("activate", db, idle(lab, "web", network=on("backend")), idle(lab, "spare"))
    lab.niso("deactivate", "spare")
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    lab.niso("enable", "db")
    for _ in range(3):
        answer(lab, "10.99.1.2", 80, "niso-web")
    for client in ("client", "neighbour"):
        answer(lab, "192.0.2.1", 8080, client)
    assert ask(lab, "10.99.1.2", 80, "niso-bad") == ""

    series = read(lab.niso("metrics").stdout)
    assert of(series, "service_up", "db") == of(series, "service_enabled", "db") == 1
    assert of(series, "service_up", "spare") == of(series, "service_enabled", "web") == 0
    assert of(series, "service_healthy", "db") == 1
    assert of(series, "service_healthy", "web") is None
    assert of(series, "service_info", "db", "bridge", "backend") == 1
    assert of(series, "service_restarts_total", "db") == 0
    started = float(lab.run("stat", "-c", "%Y", "/run/niso/services/db").stdout)
    assert abs((of(series, "service_start_time_seconds", "db") or 0) - started) < 60
    assert of(series, "flow_connections", "web", "db", "80", "tcp", "pass") == 3
    assert of(series, "flow_connections", "outside", "db", "80", "tcp", "pass") == 2
    assert (of(series, "flow_connections", "bad", "db", "80", "tcp", "drop") or 0) >= 1
    assert of(series, "policy_rule_packets_total", "db", "allow_from[0]") == 3
    assert of(series, "policy_rule_last_match_seconds", "db", "allow_from[2]") is None
    dropped = of(series, "policy_dropped_packets_total", "db", "ingress")
    assert dropped == of(series, "policy_rule_packets_total", "db", "allow_from")
    assert dropped == of(series, "flow_connections", "bad", "db", "80", "tcp", "drop")
    assert of(series, "policy_dropped_packets_total", "db", "egress") == 0
    assert of(series, "foreign_frames_total", "db") == 0
    first, last = "9000-9002", "tcp"
    assert of(series, "published_port_info", "db", "0.0.0.0", first, last, "machines") == 1
    limit = lab.run("cat", "/proc/sys/net/netfilter/nf_conntrack_max").stdout
    assert of(series, "conntrack_entries_limit") == float(limit)
    # nothing else talks now but the probes of db: the figures of bad stand still
    (link,) = lab.ip_json("-s", "link", "show", "eth0", netns="niso-bad")
    for direction in ("receive", "transmit"):
        stats = link["stats64"]["rx" if direction == "receive" else "tx"]
        for unit in ("bytes", "packets"):
            name = f"network_{direction}_{unit}_total"
            assert of(series, name, "bad", "backend") == stats[unit], name

    # the kernel as it should be, and not
    problems = {p: of(series, "check_problems", p) for p in ("missing", "foreign", "different")}
    assert problems == {"missing": 0, "foreign": 0, "different": 0}
    lab.run("nft", "add", "element", "inet", "niso", "bridges", "{ br-other }")
    lab.run("ip", "address", "del", "10.99.1.1/24", "dev", "niso-backend")
    held = lab.popen("flock", "-o", "/run/niso/lock", "sleep", "9")  # it takes no lock
    worse = read(lab.niso("metrics").stdout)
    held.kill()
    found = lab.niso("net", "check", check=False).stdout
    for problem in ("missing", "foreign"):
        assert of(worse, "check_problems", problem) == found.count(f"{problem}:") >= 1, found
    lab.niso("net", "repair")

    bounded = read(lab.niso("metrics", "--flows", "1").stdout)
    assert len([name for name, _ in bounded if name == "niso_flow_connections"]) == 1
    assert (of(bounded, "flow_series_left_out") or 0) >= 2

    names = {name for name, _ in series}
    folder = "/tmp/collected"
    lab.run("mkdir", folder)
    for _ in range(2):
        assert lab.niso("metrics", "-o", f"{folder}/niso.prom").stdout == ""
    assert lab.run("stat", "-c", "%a %n", "-t", f"{folder}/niso.prom").stdout.startswith("644")
    assert lab.run("ls", folder).stdout.split() == ["niso.prom"]
    assert {name for name, _ in read(lab.path(f"{folder}/niso.prom").read_text())} == names

    server = lab.popen("niso", "metrics", "--listen", "0", inside=False)
    assert server.stderr is not None
    found = re.search(rb"http://127\.0\.0\.1:(\d+)/metrics", server.stderr.readline())
    assert found
    url = f"http://127.0.0.1:{int(found[1])}"
    for _ in range(2):
        assert {name for name, _ in read(curl(lab, f"{url}/metrics"))} == names
    status = ("-o", "/dev/null", "-w", "%{http_code} %{content_type}")
    assert curl(lab, *status, url) == "200 text/plain; version=0.0.4; charset=utf-8"
    assert curl(lab, *status, f"{url}/../etc/passwd", "--path-as-is").startswith("404")
    assert curl(lab, *status, "-d", "x", url).startswith("501")
    outside = lab.run("curl", "-m", "5", f"http://192.0.2.1:{int(found[1])}", check=False)
    assert outside.returncode == 7  # it listens on 127.0.0.1 alone
    server.terminate()
    assert server.wait(10) == 130

    manager = lab.popen(
        *("systemd-socket-activate", "--inetd", "-a", "-l", "127.0.0.1:9501"),
        *("niso", "metrics", "--inetd"),
    )
    # curl tries again until systemd-socket-activate listens
    words = ("--retry", "9", "--retry-connrefused", "--retry-delay", "1")
    assert {name for name, _ in read(curl(lab, *words, "http://127.0.0.1:9501"))} == names
    manager.terminate()

    # what is no file stays what it is
    lab.run("sh", "-c", "mkdir /tmp/empty; mknod /tmp/null c 1 3; ln -s /tmp/gone /tmp/link")
    odd = ("/tmp/empty", "/tmp/null", "/tmp/link")
    kinds = lab.run("stat", "-c", "%F %n", *odd).stdout
    for wrong in ("/gone/x", *odd):
        done = lab.niso("metrics", "-o", wrong, check=False)
        assert done.returncode in (1, 2) and not done.stdout and "hint" in done.stderr, wrong
    assert lab.run("stat", "-c", "%F %n", *odd).stdout == kinds
