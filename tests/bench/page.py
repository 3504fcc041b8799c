"""Write the page of results: Markdown from figures. Pure functions."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from figures import Found, Row, median, number, percentile, ratio, slope, spread, times

NAMES = {
    "niso": "niso",
    "niso command": "niso, whole command",
    "niso forward": "niso port-forward, in process",
    "batch": "`ip -batch` and `nft -f`",
    "netavark": "netavark",
    "cni": "CNI plugins",
    "podman": "podman",
    "podman-niso": "podman on a network of niso",
    "docker": "docker",
    # only in the list of what was not measured
    "niso-whole": "niso, whole services",
    "no-policy": "niso, no policy",
    "policed": "niso, with a policy",
    "unlimited": "niso, with a policy, without limits",
    "no-policy-forgets": "niso, no policy, no memory of flows",
    "policed-forgets": "niso, with a policy, no memory of flows",
    "docker-proxy": "docker with its proxy",
    "cluster": "the cluster",
    "swarm": "Docker Swarm",
}
BUSY = 10
"""From this load of the machine on a chapter is not to be relied on: its own labs make up to 7."""
Rows = Sequence[tuple[str, str, str]]
"""(what, who, the name of the line)"""


def text(figures: dict[str, Any], pictures: Iterable[str]) -> str:
    """Return the whole page. ``pictures`` has the names of the charts that could be drawn."""
    drawn = set(pictures)
    lines = [
        "# Benchmarks: niso and its peers",
        "",
        *_how(figures),
        "## Summary",
        "",
        short(figures),
        "",
    ]
    for name, write in (
        ("services", _services),
        ("ports", _ports),
        ("policies", _inside),
        ("cluster", _cluster),
    ):
        if name in figures:
            found = Found.load(figures[name])
            lines += write(found, drawn)
            lines += _went(name, figures[name], found)
        else:
            lines += [f"## {name.capitalize()}", "", "Not measured yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _prose(words: str, indent: str = "") -> str:
    """Wrap a paragraph to 100 columns, without a break inside ``code``."""
    joined = re.sub(r"`[^`]+`", lambda code: code.group().replace(" ", "\0"), words)
    lines = textwrap.wrap(
        joined, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def _how(figures: dict[str, Any]) -> list[str]:
    quick = any(each["quick"] for each in figures.values())
    lines = [
        _prose(
            "`./dev bench` writes this page. Each party runs in a lab of its own. All labs of a chapter are"
            " up at once, and the parties are measured in turn (A B C C B A …), after one round that is not"
            " counted. A ratio is the median of the ratios of the rounds. Smaller is better, except for"
            " traffic. All state folders are on tmpfs, so no figure contains a disk's fsync."
        ),
        "",
    ]
    if quick:
        lines += [
            "**This was a quick run: few rounds, small sizes. `./dev bench` measures reliable figures.**",
            "",
        ]
    for each in {
        repr((each["machine"], each["versions"])): each for each in figures.values()
    }.values():
        lines.append(_prose(f"- machine: {each['machine']}", "  "))
        lines.append(_prose(f"- versions: {', '.join(each['versions'])}", "  "))
    return [*lines, ""]


def _went(name: str, data: dict[str, Any], found: Found) -> list[str]:
    """Say when a chapter was measured, for how long and under which load, and what is missing."""
    lines = []
    if found.absent:
        lines += ["Not measured:", ""]
        for each in found.absent:
            at = f" at {each.at:,}" if each.at else ""
            what = f" ({each.what})" if each.what else ""
            lines.append(_prose(f"- {NAMES.get(each.who, each.who)}{at}{what}: {each.why}", "  "))
        lines.append("")
    if max(map(float, data["load"])) >= BUSY:
        words = "**Measured on a machine that was busy with other work**: times are too long, and ratios of traffic are rough."
        lines += [_prose(words), ""]
    rounds = "; ".join(found.notes)
    kind = "quick run, " if data["quick"] else ""
    lines += [
        _prose(
            f"<sub>{kind}{data['date']}, {data['seconds']} s, load of the machine {data['load'][0]} to"
            f" {data['load'][1]}. Rounds, with the load before and after: {rounds}.</sub>"
        ),
        "",
    ]
    return lines


# --- summary --------------------------------------------------------------------------------------------------------


def short(figures: dict[str, Any]) -> str:
    """Return the main figures, those of the peers, and niso's targets, as a table."""
    lines = ["| | niso | compared with | ratio | target |", "| --- | --- | --- | --- | --- |"]

    def line(
        words: str,
        own: Row | None,
        others: Iterable[tuple[str, Row | None]],
        unit: str,
        aim: str = "",
    ) -> None:
        if own is None:
            return
        rest = [(name, row) for name, row in others if row is not None]
        beside = ", ".join(f"{name} {number(median(row))}" for name, row in rest)
        ratios = ", ".join(times(ratio(own, row)) for _, row in rest)
        lines.append(
            f"| {words} | **{number(median(own))}** {unit} | {beside} | {ratios} | {aim} |"
        )

    if "services" in figures:
        found = Found.load(figures["services"])
        sizes = found.sizes("attach")
        few, many = (sizes[0], sizes[-1]) if sizes else (0, 0)
        tools, engines = ("netavark", "cni", "docker"), ("podman", "docker")
        own = found.row("attach", "niso", few)
        line(
            f"attach a network, in process, beside {few} services",
            own,
            _of(found, "attach", tools, few),
            "ms",
            "≤ 2 ms",
        )
        beside = [(f"niso beside {few}", own), *_of(found, "attach", tools, many)]
        line(
            f"the same beside {many:,}",
            found.row("attach", "niso", many),
            beside,
            "ms",
            f"≤ 1.5 of {few}",
        )
        line(
            f"detach, beside {few}",
            found.row("detach", "niso", few),
            _of(found, "detach", tools, few),
            "ms",
            "≤ 2 ms",
        )
        beside = _of(found, "attach", tools, few)
        line(
            f"attach, whole command, beside {few}",
            found.row("attach", "niso command", few),
            beside,
            "ms",
        )
        beside = _of(found, "start", engines, few)
        aim = "≤ 0.7 of podman, ≤ 0.35 of docker"
        line(
            f"start a service, whole command, beside {few}",
            found.row("start", "niso", few),
            beside,
            "ms",
            aim,
        )
        line(
            f"remove it, beside {few}",
            found.row("remove", "niso", few),
            _of(found, "remove", engines, few),
            "ms",
        )
        for row in found.rows("start of many, each"):
            beside = [("one service", found.row("start", "niso", few))]
            line(f"start {row.at} services in one command, each", row, beside, "ms", "≤ 25 ms")
        commands = (("docker version", "docker"), ("podman version", "podman"))
        beside = [(name, found.row(f"floor: {name}", who, 0)) for name, who in commands]
        line(
            "`niso net list`",
            found.row("floor: niso net list", "niso", 0),
            beside,
            "ms",
            "≤ 1.2 of docker version",
        )
    if "ports" in figures:
        found = Found.load(figures["ports"])
        last = next(iter(row for row in found.rows("tcp") if row.who == "niso many last"), None)
        only = next(iter(found.rows("tcp", "niso 1")), None)
        line("new TCP connections, 1 port", only, _limits(found, "tcp"), "a second")
        at = last.at if last else 0
        line(
            f"the same, the last of {at:,} ports",
            last,
            [("1 port", only)],
            "a second",
            "≥ 0.95",
        )
        only = next(iter(found.rows("bulk", "niso 1")), None)
        line("throughput through a port", only, _limits(found, "bulk"), "Gbit/s", "≥ 0.95")
    return "\n".join(lines) if len(lines) > 2 else "Not measured yet."


def _of(found: Found, what: str, whos: Iterable[str], wanted: int) -> list[tuple[str, Row | None]]:
    return [(who, found.row(what, who, wanted)) for who in whos]


def _limits(found: Found, what: str) -> list[tuple[str, Row | None]]:
    named = (("one DNAT rule", "translated"), ("routed, tracked", "tracked"), ("routed", "routed"))
    return [(name, found.row(what, who, 0)) for name, who in named]


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(
    found: Found, head: str, rows: Rows, sizes: Sequence[int], base: tuple[str, str], unit: str
) -> list[str]:
    """Return a line for each row, with two columns for each size: figure, and ratio to ``base``."""
    columns = [
        each
        for size in sizes
        for each in (
            f"at {size:,}" if size else unit,
            "to first line" if (base == rows[0][:2]) else f"to {NAMES.get(base[1], base[1])}",
        )
    ]
    lines = [f"| {head} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for what, who, name in rows:
        if not found.rows(what, who):
            if any(each.who == who for each in found.absent):
                lines.append(f"| {name} | not measured{' |' * len(columns)}")
            continue
        cells = []
        for size in sizes:
            row = found.row(what, who, size)
            below = found.row(base[0], base[1], size)
            at = f" at {row.at:,}" if row and size and row.at != size else ""
            cells += [f"{spread(row)}{at}" if row else "–", times(ratio(row, below))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _picture(name: str, words: str, drawn: set[str]) -> list[str]:
    return [f"[![{words}]({name}.png)]({name}.svg)", ""] if name in drawn else []


def _services(found: Found, drawn: set[str]) -> list[str]:
    sizes = found.sizes("attach")
    lines = ["## Attach and detach one service's network", ""]
    lines += _picture(
        "network", "Attach and detach of one service's network, by number of services", drawn
    )
    for what, whole, words in (
        ("attach", "activate", "attached"),
        ("detach", "deactivate", "detached"),
    ):
        rows = (
            (what, "niso", "niso, in process: the kernel's part"),
            (whole, "niso", f"niso, in process: all of `niso {whole}` except the process"),
            (what, "niso command", f"niso, whole command: `niso {whole}` without the process"),
            (what, "batch", NAMES["batch"] + ", no bookkeeping"),
            (what, "netavark", f"netavark {'setup' if what == 'attach' else 'teardown'}"),
            (
                what,
                "cni",
                f"CNI {'ADD' if what == 'attach' else 'DEL'}: bridge, host-local, portmap, firewall",
            ),
            (what, "docker", f"docker network {'connect' if what == 'attach' else 'disconnect'}"),
        )
        lines += _table(found, f"ms, {words}", rows, sizes, (what, "niso"), "ms")
    lines += [
        _prose(
            "Each service has one published port; all services of a party are on one bridge. niso's kernel part of"
            " a detach ends when nothing can pass any more. The kernel then needs some 10 to 20 ms to delete the"
            " pair; all other figures include that. *In process* means a program that is already running, as a"
            " daemon would be. All others start a program (CNI: four). niso and the bare commands create the"
            " namespace; netavark and CNI receive it."
        ),
        "",
        "## Start and remove one service",
        "",
        *_picture("whole", "Start and removal of one service, by number of services", drawn),
    ]
    for what, commands in (
        ("start", ("`niso activate`", "`podman run -d -p`", "the same on a network of niso")),
        ("remove", ("`niso remove`", "`podman rm -f`", "the same on a network of niso")),
    ):
        parties = ("niso", "podman", "podman-niso", "docker")
        docker = f"`docker {'run -d -p' if what == 'start' else 'rm -f'}`"
        rows = tuple(
            (what, who, name) for who, name in zip(parties, (*commands, docker), strict=True)
        )
        lines += _table(
            found,
            f"ms, {'started' if what == 'start' else 'removed'}",
            rows,
            sizes,
            (what, "niso"),
            "ms",
        )
    for row in found.rows("start of many, each"):
        gone = found.row("removal of many, each", "niso", row.wanted)
        lines += [
            _prose(
                f"{row.at} services in one `niso activate`: {spread(row)} ms each"
                + (f"; in one `niso remove`: {spread(gone)} ms each." if gone else ".")
            ),
            "",
        ]
    lines += [
        _prose(
            "Every service is busybox' `sleep` with one published port. niso and podman use crun and conmon, docker"
            " uses runc and containerd. podman and docker use overlayfs and kill the process at once"
            " (`podman rm --time 0`). niso sends TERM. podman is on netavark's bridge, and on a network of niso"
            " by its plugin: neither has a name server."
        ),
        "",
        "## Memory of the processes",
        "",
        *_picture("memory", "Resident memory of all processes, by number of services", drawn),
        *_memory_table(found),
        "## Minimum cost of a command",
        "",
        *_picture("floor", "Minimum cost of the commands", drawn),
    ]
    rows = [
        (f"floor: {name}", who, f"`{name}`")
        for name, who in (
            ("python -c pass", "niso"),
            ("niso --version", "niso"),
            ("niso net list", "niso"),
            ("niso ps", "niso"),
            ("docker version", "docker"),
            ("podman version", "podman"),
        )
    ]
    return [*lines, *_table(found, "", rows, [0], ("floor: niso net list", "niso"), "ms")]


def _memory_table(found: Found) -> list[str]:
    rows = [
        (who, found.rows("kib", who), found.rows("processes", who))
        for who in ("niso", "podman", "docker")
    ]
    own = slope(rows[0][1])
    lines = [
        "| MiB, resident (PSS) | total at the largest number | each further service | to niso | processes each | daemons |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for who, sizes, processes in rows:
        each = slope(sizes)
        if not sizes:
            lines.append(f"| {NAMES[who]} | not measured | | | | |")
            continue
        first, last = sizes[0], sizes[-1]
        cells = [NAMES[who], f"{median(last) / 1024:,.1f} at {last.at:,}"]
        if each is not None:
            rest = max(0.0, median(first) - each * first.at)
            cells += [
                f"**{each / 1024:.2f}**",
                times(each / own if own else None),
                number(slope(processes) or 0),
                f"{rest / 1024:.1f}",
            ]
        lines.append(f"| {' | '.join([*cells, *[''] * (6 - len(cells))])} |")
    return [
        *lines,
        "",
        _prose(
            "Pages shared by several processes count proportionally (`Pss` of /proc/PID/smaps_rollup). Kernel memory"
            " for links, namespaces and rules is not included."
        ),
        "",
    ]


def _ports(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Publishing ports",
        "",
        *_picture("ports", "Publishing ports, by number of ports", drawn),
    ]
    for what, words in (("publish", "published"), ("withdraw", "withdrawn")):
        for shape, as_what in (
            ("range", "a range that keeps its numbers (8000-8999)"),
            ("each", "each port mapped to another number"),
        ):
            rows = (
                (f"{what} {shape}", "niso", "niso: a service with them, in process"),
                (
                    f"{what} {shape}",
                    "niso command",
                    "niso: a service with them, whole command without the process",
                ),
                (
                    f"{what} {shape}",
                    "niso forward",
                    "niso port-forward on a running service, in process",
                ),
                (f"{what} {shape}", "netavark", "netavark: a network with them"),
                (f"{what} {shape}", "cni", "CNI: a network with them"),
                (f"{what} {shape}", "podman", "podman: a container with them"),
                (f"{what} {shape}", "docker", "docker: a container with them"),
            )
            lines += _table(
                found,
                f"ms, {words}: {as_what}",
                rows,
                found.sizes(f"{what} {shape}"),
                (f"{what} {shape}", "niso"),
                "ms",
            )
    lines += [
        _prose(
            "No peer can publish a port of a running container. The figures of podman and docker include the whole"
            " container. podman merges consecutive ports into one range."
        ),
        "",
        "### One more port beside others",
        "",
    ]
    lines += _one_more(found)
    lines += [
        "## Traffic through a port, from another machine",
        "",
        *_picture("flows", "Traffic through a port", drawn),
    ]
    lines += _flows(found)
    lines += ["## Memory of published ports", ""]
    lines += [
        "| resident (PSS) of all processes | with 1 port, MiB | with many, MiB | each further port, KiB | further processes |"
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    for who in ("niso", "docker", "docker with its proxy"):
        sizes, processes = found.rows("port kib", who), found.rows("port processes", who)
        if not sizes:
            lines.append(f"| {NAMES.get(who, who)} | not measured | | | |")
            continue
        first, last = sizes[0], sizes[-1]
        each = slope(sizes)
        cells = [
            NAMES.get(who, who),
            f"{median(first) / 1024:.1f}",
            f"{median(last) / 1024:.1f} at {last.at:,}",
            f"**{each:.1f}**" if each is not None else "",
            number(median(processes[-1]) - median(processes[0])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        _prose(
            "niso's service has no process here, so its figure is what ports alone need: none. netavark and CNI have"
            " no process either."
        ),
        "",
    ]
    return lines


def _one_more(found: Found) -> list[str]:
    lines = [
        "| ms | beside 1 port | beside many | how many | ratio | withdrawn, beside 1 | beside many |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for who, name in (
        ("niso", "niso port-forward, in process"),
        ("niso command", "niso port-forward, whole command"),
        ("netavark", "netavark: one more network with it"),
        ("cni", "CNI: one more network with it"),
        ("docker", "docker: one more container with it"),
    ):
        added, taken = found.rows("one more: publish", who), found.rows("one more: withdraw", who)
        if not added:
            lines.append(f"| {name} | not measured | | | | | |")
            continue
        few, many = added[0], added[-1] if len(added) > 1 else None
        cells = [
            name,
            spread(few),
            spread(many) if many else "–",
            f"{many.at:,}" if many else "",
            times(ratio(many, few)),
        ]
        cells += [spread(taken[0]), spread(taken[-1]) if len(taken) > 1 else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def flow_lines(found: Found) -> list[tuple[str, str]]:
    """Return (who, name) of all flows, in the order of the table."""
    named = [
        ("routed", "routed to the service: no NAT, no netfilter"),
        ("tracked", "routed, with connection tracking"),
        ("translated", "one DNAT rule, no other rule"),
    ]
    for who in ("niso", "netavark", "cni", "docker"):
        for row in sorted(found.rows("tcp"), key=lambda row: (row.at, row.who)):
            if row.who.startswith(f"{who} "):
                which = (
                    "its only port"
                    if row.at == 1
                    else f"the {row.who.split()[-1]} of {row.at:,} ports"
                )
                named.append((row.who, f"{NAMES[who]}, {which}"))
    return named


def _flows(found: Found) -> list[str]:
    heads = "new TCP connections/s | to tracked | new UDP flows/s | to tracked | throughput, Gbit/s | to tracked"
    lines = [f"| | {heads} |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for who, name in flow_lines(found):
        cells = [name]
        for what in ("tcp", "udp", "bulk"):
            row = next(iter(found.rows(what, who)), None)
            cells += [spread(row) if row else "–", times(ratio(row, found.row(what, "tracked", 0)))]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        _prose(
            "More is better. One client process runs on the first processor and one server process on the last,"
            " both in C. They and the kernel's work for them fill both processors. New flows: 64 are open at a time."
            " A TCP flow is a connection, one byte and a reset. A UDP flow is a new socket, one datagram and its"
            " answer. Each has a source address and port of its own. Throughput: one TCP connection from the"
            " client. docker runs without its userland proxy, except where named. podman uses netavark's rules."
        ),
        "",
    ]


INSIDE = {
    "switched": "plain switching: no rule, no connection tracking",
    "tracked": "the same, tracked, with one rule",
    "no-policy": "niso, no policy",
    "policed": "niso, a policy that allows the client among 10 peers",
    "unlimited": "the same without the rules of limits",
    "no-policy-forgets": "niso, no policy, without the rules that remember flows",
    "policed-forgets": "niso, that policy, without the rules that remember flows",
}


def _inside(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Traffic between two services on one bridge",
        "",
        *_picture("inside", "Traffic inside a bridge", drawn),
    ]
    heads = "new TCP connections/s | to switching | new UDP flows/s | to switching | throughput, Gbit/s | to switching"
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
        f"| limits: cost to an honest service (with to without) | | {cost[0]} | | {cost[1]} | | {cost[2]} |",
        "",
        "More is better.",
        "",
        *_one_processor(found),
        "### One change of a policy, beside other policies",
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
            ("peer put in", "add one peer to it"),
            ("service added", "add a service with such a policy"),
            ("service taken away", "remove it"),
        ):
            a, b = found.rows(what, few)[0], found.rows(what, many)[0]
            lines.append(f"| {name} | {spread(a)} | {spread(b)} | {times(ratio(b, a))} |")
        lines += [
            "",
            _prose(
                "Each service's policy names 10 others on its network with a port. Measured in process; the services"
                " have no process."
            ),
            "",
        ]
    return lines


def _one_processor(found: Found) -> list[str]:
    """Return the section about all of a flow's way on one processor."""
    if not found.rows("path tcp"):
        return []
    heads = ("a TCP connection, µs", "a UDP flow, µs", "256 KiB of a connection, µs")
    lines = ["### The same on one processor", ""]
    lines += [f"| | {' | switching to it | '.join(heads)} | switching to it |"]
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
        _prose(
            "Smaller is better. One thread is client and server, in both network namespaces, so the time is that"
            " of all of a packet's way. Each value is the fastest of 60 batches: the load of others changes it"
            " little."
        ),
        "",
    ]


WIRES = {
    "underlay": "plain underlay: two namespaces, no rule, no connection tracking",
    "underlay tracked": "the same, tracked at both ends, with one rule each",
    "tunnel": "bridge and VXLAN at both ends, no rule, no connection tracking",
    "tunnel tracked": "the same, what the bridges switch tracked, with one rule",
    "span": "niso, services of two hosts, by VXLAN, no policy",
    "span policed": "niso, the same, with a policy that allows the client",
    "one host": "niso, services of one host, no policy",
    "swarm": "Docker Swarm, containers of two hosts on an overlay",
}


def _cluster(found: Found, drawn: set[str]) -> list[str]:
    lines = ["## Networks over several hosts", ""]
    lines += ["| | measured | compared with | target |", "| --- | --- | --- | --- |"]

    def line(words: str, row: Row | None, unit: str, beside: str = "", aim: str = "") -> None:
        cell = f"{spread(row)}{unit}" if row else "not measured"
        lines.append(f"| {words} | {cell} | {beside} | {aim} |")

    def row(what: str, who: str = "span") -> Row | None:
        return next(iter(found.rows(what, who)), None)

    line("`niso activate`: asking the cluster and claiming", row("claim"), " ms", "", "≤ 40 ms")
    line("`niso activate`: saying that the service is up", row("publish"), " ms")
    for what, words in (("activate", "all but the process, in process"), ("command", "command")):
        whos = ("span", "local") if what == "activate" else ("span command", "local command")
        own, local = row(what, whos[0]), row(what, whos[1])
        beside = f"a local network: {spread(local)} ms" if local else ""
        line(f"`niso activate`: {words}", own, " ms", beside)
    seen = row("published until known", "b")
    late = f"99 %: {number(percentile(seen, 0.99))} ms, of {len(seen.values)}" if seen else ""
    line("published until an idle host has the name", seen, " ms", late, "≤ 100 ms, 99 %: ≤ 500 ms")
    swarm = row("command until known", "swarm")
    beside = f"`docker network connect` in a swarm: {spread(swarm)} ms" if swarm else ""
    text = "the whole command, from its start until an idle host has the name"
    line(text, row("command until known"), " ms", beside)
    for words in ("comes", "goes"):
        sizes = sorted(found.rows(f"apply: one {words}"), key=lambda each: each.at)
        for each, aim in zip(sizes, ("≤ 10 ms", "≤ 1.5 of that"), strict=False):
            spent = found.row(f"apply, processor time: one {words}", each.who, each.wanted)
            look = found.row(f"look: one {words}", each.who, each.wanted)
            beside = f"processor time {number(median(spent))} ms" if spent else ""
            beside += f"; with reading {number(median(look))} ms" if look else ""
            if each is not sizes[0]:
                beside += f"; ratio {times(ratio(each, sizes[0]))}"
            text = f"one service {words} beside {each.at:,} of other hosts, rows and kernel"
            line(text, each, " ms", beside, aim)
    alone, inside = row("attach", "alone"), row("attach", "in a cluster")
    beside = (
        f"without one: {spread(alone)} ms, ratio {times(ratio(inside, alone))}" if alone else ""
    )
    line("attach a local network on a host of a cluster", inside, " ms", beside, "unchanged")
    for what, unit, aim in (("PSS", " MiB", "≤ 40"), ("RSS", " MiB", "")):
        kib = row(f"agent, {what}", "agent")
        mib = Row("", "", 0, 0, [each / 1024 for each in kib.values]) if kib else None
        line(f"agent, resident ({what}), idle", mib, unit, "", aim)
    line("agent, processor, idle", row("agent, processor", "agent"), " %", "", "≤ 0.5 %")
    lines += _fates(found)
    heads = " | ".join(f"{name} | to the underlay | to the tunnel" for name in RATE_HEADS)
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
        _prose(
            "Three hosts are labs on one wire, each with a member of etcd (data on tmpfs) and an agent, with TLS. Targets of"
            " traffic: connections ≥ 0.85 of the underlay, throughput ≥ 0.9. Services have no process. Of other"
            " hosts' many services there are the claims alone, in a real etcd. A request is a connection with one"
            " byte of answer, to another host."
        ),
        "",
    ]


RATE_HEADS = ("new TCP connections/s", "new UDP flows/s", "throughput, Gbit/s")


def _fates(found: Found) -> list[str]:
    """Return lines of what happened while something failed."""

    def values(what: str) -> list[float]:
        return [value for row in found.rows(what) for value in row.values]

    lines = []
    if made := values("claims at once"):
        different, took = values("claims at once, different"), values("claims at once, seconds")
        text = f"{different[0]:.0f} different addresses of {made[0]:.0f} claims"
        lines.append(
            f"| claims of three hosts at one time | {text}, in {number(took[0])} s | | all different |"
        )
    if asked := values("requests"):
        text = f"{sum(values('requests failed')):.0f} of {sum(asked):,.0f} requests failed"
        more = f"{sum(values('claims failed')):.0f} of {sum(values('claims')):,.0f} claims failed"
        slow = f"slowest claim {number(max(values('slowest claim')))} ms"
        lines.append(f"| a member of etcd is killed | {text}; {more} | {slow} | 0 |")
    if lost := values("host lost until its names go"):
        shown = spread(Row("", "", 0, 0, lost))
        lines.append(f"| a host is lost, until its names go | {shown} s | lease 10 s | ≤ 13 s |")
    return lines
