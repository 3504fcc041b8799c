"""Test metrics, dashboard and alert rules with Prometheus and promtool of Debian."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from conftest import TESTS, Lab
from services import BUSYBOX, answer, echo, idle, on, package

DOCS = TESTS.parent / "docs"
ALERTS = DOCS / "metrics/alerts.yml"
VARIABLES = {"$__rate_interval": "10s", "$instance": ".*", "$service": ".*"}

RULE_TESTS = """
rule_files: [RULES]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'niso_service_active{instance="a", service="api"}', values: '1x20'}
      - {series: 'niso_service_up{instance="a", service="api"}', values: '0x20'}
      - {series: 'niso_service_up{instance="b", service="api"}', values: '1x20'}
      - {series: 'niso_service_active{instance="a", service="db"}', values: '1x20'}
      - {series: 'niso_service_up{instance="a", service="db"}', values: '1x20'}
      - {series: 'niso_service_active{instance="a", service="job"}', values: '1x20'}
      - {series: 'niso_service_up{instance="a", service="job"}', values: '0x20'}
      - {series: 'niso_service_completed{instance="a", service="job"}', values: '1x20'}
      - {series: 'niso_service_active{instance="a", service="off"}', values: '0x20'}
      - {series: 'niso_service_up{instance="a", service="off"}', values: '0x20'}
      - {series: 'niso_service_healthy{service="db"}', values: '1x5 0x15'}
      - {series: 'niso_service_restarts_total{service="db"}', values: '0x5 1+1x15'}
      - {series: 'niso_policy_dropped_packets_total{service="db", direction="ingress"}', values: '0+9x20'}
      - {series: 'niso_foreign_frames_total{service="db"}', values: '0x5 1x15'}
      - {series: 'niso_check_problems{instance="a", kind="bridge"}', values: '0x2 1x18'}
      - {series: 'niso_service_oom_kills_total{service="db"}', values: '0x5 1x15'}
      - {series: 'niso_service_memory_bytes{service="db"}', values: '91x20'}
      - {series: 'niso_service_memory_limit_bytes{service="db"}', values: '100x20'}
      - {series: 'niso_seen_set_full{set="refused"}', values: '0x5 1x15'}
      - {series: 'niso_seen_beyond_share_total{set="refused"}', values: '0x5 9x15'}
      - {series: 'niso_conntrack_entries', values: '81x20'}
      - {series: 'niso_conntrack_entries_limit', values: '100x20'}
    alert_rule_test:
EXPECTED
"""
AUDIT_TEST = """
rule_files: [RULES]
evaluation_interval: 1h
tests:
  - interval: 1h
    input_series:
      - {series: 'niso_policy_audit{service="db"}', values: '1x200'}
      - {series: 'niso_flow_series_left_out', values: '0x200'}
    alert_rule_test:
      - {eval_time: 167h, alertname: NisoPolicyInAudit}
      - eval_time: 169h
        alertname: NisoPolicyInAudit
        exp_alerts: [{exp_labels: {severity: info, service: db}}]
      - {eval_time: 169h, alertname: NisoMetricsMissing}
"""
DB_UP = 'niso_service_up{service="db"}'
FIRING = {
    "NisoServiceDown": "severity: critical, instance: a, service: api",
    "NisoServiceUnhealthy": "severity: warning, service: db",
    "NisoServiceRestarts": "severity: warning, service: db",
    "NisoServiceOutOfMemory": "severity: warning, service: db",
    "NisoServiceNearMemoryLimit": "severity: warning, service: db",
    "NisoPolicyDrops": "severity: info, service: db, direction: ingress",
    "NisoForeignFrames": "severity: warning, service: db",
    "NisoKernelDiffers": "severity: warning, instance: a",
    "NisoFlowsNotRecorded": "severity: warning, set: refused",
    "NisoFlowsBeyondShare": "severity: info, set: refused",
    "NisoConntrackFull": "severity: critical",
    "NisoMetricsMissing": "severity: warning",
}


def program(name: str) -> str:
    path = shutil.which(name) or str(TESTS.parent / f".cache/{name}/usr/bin/{name}")
    if not os.access(path, os.X_OK):
        pytest.fail(f"{name} is missing: ./dev test unpacks it", pytrace=False)
    return path


def promtool(*words: str, text: str = "") -> str:
    command = [program("promtool"), *words]
    done = subprocess.run(
        command, check=False, input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: pathlib.Path) -> None:
    rules = ALERTS.read_text()
    # texts of alerts are for people: an alert is expected by its labels
    bare = re.sub(r" {8}annotations:\n(?: {10}.*\n)+", "", rules)
    assert set(re.findall(r"alert: (\w+)", rules)) == {*FIRING, "NisoPolicyInAudit"}
    assert f"SUCCESS: {len(FIRING) + 1} rules found" in promtool("check", "rules", str(ALERTS))
    (tmp_path / "rules.yml").write_text(bare)
    expected = "\n".join(
        f"      - {{eval_time: 0m, alertname: {name}}}\n"
        f"      - {{eval_time: 15m, alertname: {name}, exp_alerts: [{{exp_labels: {{{labels}}}}}]}}"
        for name, labels in FIRING.items()
    )
    for name, given in (("minutes", RULE_TESTS), ("days", AUDIT_TEST)):
        text = given.replace("RULES", str(tmp_path / "rules.yml")).replace("EXPECTED", expected)
        (tmp_path / name).write_text(text)
    promtool("test", "rules", str(tmp_path / "minutes"), str(tmp_path / "days"))


CONFIG = """
global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 1s}
rule_files: [/tmp/alerts.yml]
scrape_configs:
  - job_name: niso
    static_configs: [{targets: ["127.0.0.1:9500", "127.0.0.1:9501"]}]
"""


def get(lab: Lab, path: str) -> Any:
    done = lab.run("curl", "-fsS", "-m", "5", f"http://127.0.0.1:9090/api/v1/{path}", check=False)
    return json.loads(done.stdout)["data"] if done.returncode == 0 and done.stdout else None


def ask(lab: Lab, query: str) -> list[dict[str, Any]]:
    """The result of a query; fails if Prometheus refuses it."""
    answered = get(lab, f"query?query={quote(query)}")
    assert answered is not None, query
    return list(answered["result"])


def test_prometheus_scrapes_niso_and_answers_the_dashboard(lab: Lab) -> None:
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    policy = {"network.policy": {"allow_from": ["web:80"]}}
    db = echo(lab, "db", network=on("backend", ports=["8080:80"]), **policy)
    job = package(lab, "job", BUSYBOX, "true", service={"kind": "job"})
    lab.niso("activate", db, idle(lab, "web", network=on("backend")), job)
    answer(lab, "10.99.1.2", 80, "niso-web")
    text = lab.niso("metrics").stdout
    promtool("check", "metrics", text=text)
    # the guide's table is what the commands print
    lines = (DOCS / "guide/metrics.md").read_text().splitlines()
    table = {name for x in lines if x.startswith("| `") for name in re.findall(r"`(niso_\w+)`", x)}
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == table

    served = lab.popen("niso", "metrics", "--listen", "9500", stdout=-3, stderr=-3, inside=False)
    manager = lab.popen(
        *("systemd-socket-activate", "--inetd", "-a", "-l", "127.0.0.1:9501"),
        *("niso", "metrics", "--inetd"),
        stdout=-3,
        stderr=-3,
    )
    lab.write("/tmp/alerts.yml", ALERTS.read_text())
    lab.write("/tmp/prometheus.yml", CONFIG)
    prometheus = lab.popen(
        program("prometheus"),
        *("--config.file=/tmp/prometheus.yml", "--storage.tsdb.path=/tmp/prometheus"),
        *("--web.listen-address=127.0.0.1:9090", "--log.level=error"),
        stdout=-3,
        stderr=-3,
    )

    def both() -> bool:
        found = get(lab, f"query?query={quote(DB_UP)}")
        return bool(found) and len(found["result"]) == 2

    lab.wait_for(both, 30, "both targets")
    dashboard = json.loads((DOCS / "metrics/grafana.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            ask(lab, query)
    down = ask(lab, ALERTS.read_text().partition("expr: |")[2].partition("for:")[0])
    assert down == []  # not even the completed job
    (done,) = ask(lab, 'niso_service_completed{instance=~".*9500"}')
    assert (done["metric"]["service"], done["value"][1]) == ("job", "1")
    (flow,) = ask(lab, 'niso_flow_connections{source="web",instance=~".*9500"}')
    assert flow["metric"]["destination"] == "db" and flow["value"][1] == "1"
    groups = get(lab, "rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    for process in (prometheus, manager, served):
        process.terminate()
        process.wait(20)


SCHEMA = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
register_default_plugins()
read = Dashboard.from_json(json.load(open(sys.argv[1])))
print(JSONEncoder(sort_keys=True).encode(read))
"""


def paths(value: object, at: str = "") -> set[str]:
    """Return the path and the value of each leaf, such as ``.panels.title=Traffic``."""
    if isinstance(value, dict):
        return {one for key, inner in value.items() for one in paths(inner, f"{at}.{key}")}
    if isinstance(value, list) and value:
        return {one for inner in value for one in paths(inner, at)}
    return {f"{at}={value!r}"}


@pytest.mark.skipif(os.environ.get("NISO_TEST_LONG") != "1", reason="part of ./dev test-long")
def test_dashboard_conforms_to_the_schema_of_grafana(tmp_path: pathlib.Path) -> None:
    """Grafana's own library reads and writes the dashboard. It drops what the schema lacks."""
    wanted = "grafana-foundation-sdk==1769699998!10.1.0"  # of Grafana 10.1
    into = ("--no-input", "--quiet", "--no-deps", "--target", str(tmp_path))
    subprocess.run([sys.executable, "-m", "pip", "install", *into, wanted], check=True)
    dashboard = DOCS / "metrics/grafana.json"
    done = subprocess.run(
        [sys.executable, "-c", SCHEMA, str(dashboard)],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lost = paths(json.loads(dashboard.read_text())) - paths(json.loads(done.stdout))
    # the query of a variable as Grafana shows it, which Grafana writes and the schema lacks
    assert {one.partition("=")[0] for one in lost} <= {".templating.list.definition"}, lost
