"""Write the chapter of traffic inside a bridge, and of policies."""

from __future__ import annotations

from figures import Found, ratio, spread, times
from page_parts import picture, prose

INSIDE = {
    "switched": "plain switching: no rule, no connection tracking",
    "tracked": "plain switching with connection tracking and one rule",
    "no-policy": "niso, no policy",
    "policed": "niso, a policy that allows 10 peers, one of which is the client",
    "unlimited": "niso, the same policy, without the rules for limits",
    "no-policy-forgets": "niso, no policy, without the rules that record flows",
    "policed-forgets": "niso, the same policy, without the rules that record flows",
}


def inside(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Traffic between two services on one bridge",
        "",
        *picture("inside", "Traffic inside a bridge", drawn),
    ]
    heads = "new TCP connections/s | relative to switching | new UDP flows/s | relative to switching | throughput, Gbit/s | relative to switching"
    lines += [f"| | {heads} |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for who, name in INSIDE.items():
        cells = [name]
        for what in ("tcp", "udp", "bulk"):
            row = next(iter(found.rows(what, who)), None)
            cells += [
                spread(row) if row else "not measured",
                times(ratio(row, found.row(what, "switched", 0))),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    cost = [
        times(ratio(found.row(what, "policed", 0), found.row(what, "unlimited", 0)))
        or "not measured"
        for what in ("tcp", "udp", "bulk")
    ]
    lines += [
        f"| cost of the limits for a service below them (with limits, relative to without) | | {cost[0]} | | {cost[1]} | | {cost[2]} |",
        "",
        "Higher values are better.",
        "",
        *_one_processor(found),
        "### One change of a policy, with other policies present",
        "",
    ]
    rows = {row.who: row.at for row in found.rows("peer put in")}
    if len(rows) == 2:
        (few, few_at), (many, many_at) = sorted(rows.items(), key=lambda each: each[1])
        lines += [
            f"| ms | {few_at} services | {many_at:,} services | ratio |",
            "| --- | --- | --- | --- |",
        ]
        for what, name in (
            ("peer taken out", "remove one peer from a policy"),
            ("peer put in", "add one peer to a policy"),
            ("service added", "add a service with a policy of 10 peers"),
            ("service taken away", "remove a service with a policy of 10 peers"),
        ):
            a, b = found.rows(what, few)[0], found.rows(what, many)[0]
            lines.append(f"| {name} | {spread(a)} | {spread(b)} | {times(ratio(b, a))} |")
        lines += [
            "",
            prose(
                "The policy of each service names 10 other services on its network, with a port. The changes are"
                " calls of the Python API, without starting a command. The services run no processes."
            ),
            "",
        ]
    return lines


def _one_processor(found: Found) -> list[str]:
    """Return the section about all of a flow's way on one processor."""
    if not found.rows("path tcp"):
        return []
    heads = ("a TCP connection, µs", "a UDP flow, µs", "256 KiB of a connection, µs")
    lines = ["### Traffic on one bridge, with client and server on one processor", ""]
    lines += [f"| | {' | ratio of switching to it | '.join(heads)} | ratio of switching to it |"]
    lines += [f"| --- |{' --- |' * 6}"]
    for who, name in INSIDE.items():
        cells = [name]
        for what in ("path tcp", "path udp", "path bulk"):
            row = next(iter(found.rows(what, who)), None)
            cells += [
                spread(row) if row else "not measured",
                times(ratio(found.row(what, "switched", 0), row)),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        prose(
            "Lower values are better. One thread is client and server, in both network namespaces, so the time covers"
            " the complete path of a packet. Each value is the fastest of 60 batches, so other load on the machine has"
            " little influence."
        ),
        "",
    ]
