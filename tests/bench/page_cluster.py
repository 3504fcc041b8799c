"""Write the chapter of networks over several hosts."""

from __future__ import annotations

from figures import Found, Row, median, number, percentile, ratio, spread, times
from page_parts import prose

WIRES = {
    "underlay": "two hosts on a link without a tunnel (underlay): no rule, no connection tracking",
    "underlay tracked": "two hosts without a tunnel, with connection tracking and one rule on both",
    "tunnel": "bridge and VXLAN on both hosts, no rule, no connection tracking",
    "tunnel tracked": "bridge and VXLAN on both hosts, with connection tracking on the bridges and one rule",
    "span": "niso, services on two hosts over VXLAN, no policy",
    "span policed": "niso, services on two hosts over VXLAN, with a policy that allows the client",
    "one host": "niso, services on one host, no policy",
    "swarm": "Docker Swarm, containers on two hosts on an overlay network",
}


def cluster(found: Found, drawn: set[str]) -> list[str]:
    lines = ["## Networks over several hosts", ""]
    lines += ["| | measured | compared with | target |", "| --- | --- | --- | --- |"]

    def line(words: str, row: Row | None, unit: str, beside: str = "", aim: str = "") -> None:
        cell = f"{spread(row)}{unit}" if row else "not measured"
        lines.append(f"| {words} | {cell} | {beside} | {aim} |")

    def row(what: str, who: str = "span") -> Row | None:
        return next(iter(found.rows(what, who)), None)

    line(
        "`niso activate`: reading from the cluster and claiming", row("claim"), " ms", "", "≤ 40 ms"
    )
    line("`niso activate`: publishing that the service is up", row("publish"), " ms")
    for what, words in (
        ("activate", "everything except the service's process, in process"),
        ("command", "whole command"),
    ):
        whos = ("span", "local") if what == "activate" else ("span command", "local command")
        own, local = row(what, whos[0]), row(what, whos[1])
        beside = f"a local network: {spread(local)} ms" if local else ""
        line(f"`niso activate`: {words}", own, " ms", beside)
    seen = row("published until known", "b")
    late = (
        f"99th percentile of {len(seen.values)}: {number(percentile(seen, 0.99))} ms"
        if seen
        else ""
    )
    line(
        "time from publishing until an idle host has the name",
        seen,
        " ms",
        late,
        "≤ 100 ms, 99th percentile ≤ 500 ms",
    )
    swarm = row("command until known", "swarm")
    beside = f"`docker network connect` in a swarm: {spread(swarm)} ms" if swarm else ""
    text = "time from the start of the command until an idle host has the name"
    line(text, row("command until known"), " ms", beside)
    for words in ("comes", "goes"):
        sizes = sorted(found.rows(f"apply: one {words}"), key=lambda each: each.at)
        for each, aim in zip(sizes, ("≤ 10 ms", "≤ 1.5 times the time with 1,000"), strict=False):
            spent = found.row(f"apply, processor time: one {words}", each.who, each.wanted)
            look = found.row(f"look: one {words}", each.who, each.wanted)
            beside = f"processor time {number(median(spent))} ms" if spent else ""
            beside += f"; including reading from etcd {number(median(look))} ms" if look else ""
            if each is not sizes[0]:
                beside += f"; ratio {times(ratio(each, sizes[0]))}"
            text = f"one service {VERBS[words]}, with {each.at:,} services on other hosts: time for database rows and kernel objects"
            line(text, each, " ms", beside, aim)
    for each in sorted(found.rows("whole look, processor time"), key=lambda each: each.at):
        line(
            f"comparing all services with etcd, with {each.at:,} on other hosts, processor time",
            each,
            " ms",
        )
    alone, inside = row("attach", "alone"), row("attach", "in a cluster")
    beside = (
        f"outside a cluster: {spread(alone)} ms, ratio {times(ratio(inside, alone))}"
        if alone
        else ""
    )
    line("attach a local network on a host of a cluster", inside, " ms", beside, "unchanged")
    for what, unit, aim in (("PSS", " MiB", "≤ 40"), ("RSS", " MiB", "")):
        kib = row(f"agent, {what}", "agent")
        mib = Row("", "", 0, 0, [each / 1024 for each in kib.values]) if kib else None
        line(f"idle agent, resident memory ({what})", mib, unit, "", aim)
    line("idle agent, processor time", row("agent, processor", "agent"), " %", "", "≤ 0.5 %")
    lines += _fates(found)
    heads = " | ".join(
        f"{name} | relative to the underlay | relative to the tunnel" for name in RATE_HEADS
    )
    lines += ["", f"| | {heads} |", f"| --- |{' --- |' * 9}"]
    for who, name in WIRES.items():
        cells = [name]
        for what in ("tcp", "udp", "bulk"):
            own = row(what, who)
            cells += [
                spread(own) if own else "not measured",
                times(ratio(own, row(what, "underlay"))),
                times(ratio(own, row(what, "tunnel"))),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        prose(
            "Three labs on one virtual link act as hosts. Each lab runs a member of etcd, with its data on tmpfs, and an agent. They use TLS."
            " The targets for traffic are 0.85 of the bare tunnel's rate for connections, and 0.95 for throughput. Services have no"
            " process. The many services on other hosts exist only as claims, in a real etcd. A request is a connection"
            " to another host, which answers with one byte."
        ),
        "",
    ]


VERBS = {"comes": "is added", "goes": "is removed"}
RATE_HEADS = ("new TCP connections/s", "new UDP flows/s", "throughput, Gbit/s")


def _fates(found: Found) -> list[str]:
    """Return lines of what happened while something failed."""

    def values(what: str) -> list[float]:
        return [value for row in found.rows(what) for value in row.values]

    lines = []
    if made := values("claims at once"):
        different, took = values("claims at once, different"), values("claims at once, seconds")
        text = f"{made[0]:.0f} claims got {different[0]:.0f} different addresses"
        lines.append(
            f"| claims by three hosts at the same time | {text}, in {number(took[0])} s | | all different |"
        )
    if asked := values("requests"):
        text = f"{sum(values('requests failed')):.0f} of {sum(asked):,.0f} requests failed"
        more = f"{sum(values('claims failed')):.0f} of {sum(values('claims')):,.0f} claims failed"
        slow = f"slowest claim {number(max(values('slowest claim')))} ms"
        lines.append(f"| a member of etcd is killed | {text}; {more} | {slow} | 0 |")
    if lost := values("host lost until its names go"):
        shown = spread(Row("", "", 0, 0, lost))
        lines.append(
            f"| time from the loss of a host until its names are removed | {shown} s | its lease lasts 10 s | ≤ 13 s |"
        )
    return lines
