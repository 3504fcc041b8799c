"""Test that the dashboard and the alert rules use metrics and labels that exist."""

from __future__ import annotations

import json
import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
EVERYWHERE = {"instance"}
"""Labels that Prometheus adds."""
SELECTOR = re.compile(r"(niso_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def documented() -> dict[str, set[str]]:
    """The labels of each metric, from the guide's table, which tests/netns holds to be true."""
    labels = {}
    for line in (DOCS / "guide/metrics.md").read_text().splitlines():
        if not line.startswith("| `niso_"):
            continue
        names, _, last = (cell.strip() for cell in line.strip("|").split("|"))
        words = re.sub(r"\([^)]*\)", "", last).partition(";")[0]
        for name in re.findall(r"`(niso_\w+)`", names):
            labels[name] = set(re.findall(r"\w+", words))
    return labels


def queries() -> list[str]:
    """Every expression of both files."""
    dashboard = json.loads((DOCS / "metrics/grafana.json").read_text())
    every = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    every += [variable["definition"] for variable in dashboard["templating"]["list"][1:]]
    rules = (DOCS / "metrics/alerts.yml").read_text()
    blocks = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", rules)
    assert len(blocks) == rules.count("- alert:")
    every += [block or line for block, line in blocks]
    return every


def unknown(query: str, known: dict[str, set[str]]) -> set[str]:
    """Return metrics and labels of a query that the guide does not document."""
    used = SELECTOR.findall(query)
    found = {name for name, _ in used if name not in known}
    labels: set[str] = set(EVERYWHERE)
    for name, selector in used:
        own = known.get(name, set())
        labels |= own
        found |= set(re.findall(r"(\w+)=", selector)) - own - EVERYWHERE
    for words in GROUPED.findall(query):
        found |= set(words.split(", ")) - labels
    return found if used else {"no metric"}


def test_queries_name_metrics_and_labels_that_exist() -> None:
    known = documented()
    found = {query: unknown(query, known) for query in queries()}
    assert found and {query: names for query, names in found.items() if names} == {}


def test_the_dashboard_shows_each_state_and_the_table_is_read() -> None:
    known, used = documented(), {name for query in queries() for name, _ in SELECTOR.findall(query)}
    assert len(known) > 20
    assert known["niso_flow_connections"] >= {"source", "destination", "verdict"}
    assert known["niso_policy_audit"] == {"service"}
    # what nobody would look at or be woken by
    ids = {
        "niso_service_cpu_limit",
        "niso_service_enabled",
        "niso_service_health_probe_time_seconds",
        "niso_service_info",
        "niso_service_instances",
        "niso_service_start_time_seconds",
        "niso_network_receive_packets_total",
        "niso_network_transmit_packets_total",
        "niso_policy_rule_last_match_seconds",
        "niso_seen_full_total",
    }
    assert known.keys() - used == ids
    dashboard = json.loads((DOCS / "metrics/grafana.json").read_text())
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard["panels"])
