"""Write the chapter of published ports."""

from __future__ import annotations

from figures import Found, median, number, ratio, slope, spread, times
from page_parts import NAMES, picture, prose, table


def ports(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Publishing ports",
        "",
        *picture("ports", "Publishing ports, by number of ports", drawn),
    ]
    for what, words in (("publish", "published"), ("withdraw", "withdrawn")):
        for shape, as_what in (
            ("range", "a range with the same numbers on both sides (8000-8999)"),
            ("each", "each port mapped to a different number"),
        ):
            rows = (
                (f"{what} {shape}", "niso", "niso, in process: a service that publishes the ports"),
                (
                    f"{what} {shape}",
                    "niso command",
                    "niso, command: a service that publishes the ports, without its process",
                ),
                (
                    f"{what} {shape}",
                    "niso forward",
                    "niso port-forward on a running service, in process",
                ),
                (f"{what} {shape}", "netavark", "netavark: a network that publishes the ports"),
                (f"{what} {shape}", "cni", "CNI: a network that publishes the ports"),
                (f"{what} {shape}", "podman", "podman: a container that publishes the ports"),
                (f"{what} {shape}", "docker", "docker: a container that publishes the ports"),
            )
            lines += table(
                found,
                f"ms, {words}: {as_what}",
                rows,
                found.sizes(f"{what} {shape}"),
                (f"{what} {shape}", "niso"),
                "ms",
            )
    lines += [
        prose(
            "netavark, CNI, podman and docker cannot publish a port of a running container. The figures of podman and docker include"
            " the start or removal of the container. podman merges consecutive ports into one range."
        ),
        "",
        "### One more port",
        "",
    ]
    lines += _one_more(found)
    lines += [
        "## Traffic through a published port, from another machine",
        "",
        *picture("flows", "Traffic through a port", drawn),
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
            f"{median(last) / 1024:.1f} with {last.at:,} ports",
            f"**{each:.1f}**" if each is not None else "",
            number(median(processes[-1]) - median(processes[0])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        prose(
            "niso's service has no process in this measurement, so its figure shows that ports need no memory of processes. netavark and CNI"
            " have no process either."
        ),
        "",
    ]
    return lines


def _one_more(found: Found) -> list[str]:
    lines = [
        "| ms | published, with 1 other port | with many others | number of others | ratio | withdrawn, with 1 other port | with many others |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for who, name in (
        ("niso", "niso port-forward, in process"),
        ("niso command", "niso port-forward, whole command"),
        ("netavark", "netavark: a further network that publishes one port"),
        ("cni", "CNI: a further network that publishes one port"),
        ("docker", "docker: a further container that publishes one port"),
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
    heads = "new TCP connections/s | relative to tracked | new UDP flows/s | relative to tracked | throughput, Gbit/s | relative to tracked"
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
        prose(
            "Higher values are better. A client process, written in C, runs on the first processor, and a server process, also in C, on the"
            " last. The two processes and the kernel's work for them use both processors completely. For new flows, 64 flows"
            " are open at a time. A TCP flow is a connection with one byte and a reset. A UDP flow is a new socket, one datagram"
            " and its answer. Each flow has a different source address and port. Throughput is measured with one TCP"
            " connection from the client. docker runs without its userland proxy, except where stated. podman uses netavark's rules."
        ),
        "",
    ]
