"""Write the chapter of deploys."""

from __future__ import annotations

from figures import Found, spread
from page_parts import prose

WHOS = (
    ("start-first", 'niso, `update = "start-first"`'),
    ("replicas", "niso, `replicas = 3`"),
    ("stop-first", "niso, without these keys"),
    ("podman", "podman: `rm --force`, `run`"),
    ("docker", "docker: `rm --force`, `run`"),
)


def deploys(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Deploys under load",
        "",
        "| | requests in all | failed in all | failed per deploy | a deploy, ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for who, name in WHOS:
        failed, requests = found.row("failed requests", who, 0), found.row("requests", who, 0)
        took = found.row("deploy", who, 0)
        if not (failed and requests and took):
            lines.append(f"| {name} | not measured | | | |")
            continue
        cells = [f"{sum(requests.values):,.0f}", f"{sum(failed.values):,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {spread(failed)} | {spread(took)} |")
    return [
        *lines,
        "",
        prose(
            "Four clients outside the host send one request after the other through the published port, each by"
            " a new connection, and never retry. During this time the service, `httpd` of busybox, is replaced by its next"
            " version. `monitor` is 0, so the time of a deploy ends when the former version has finished its"
            " connections and has stopped."
        ),
        "",
    ]
