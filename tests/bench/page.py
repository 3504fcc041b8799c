"""The page of results: markdown from figures. Touches nothing of the world."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from figures import Found, Row, median, number, ratio, slope, spread, times

NAMES = {
    "niso": "niso",
    "niso command": "niso, whole command",
    "niso forward": "niso port-forward, in process",
    "batch": "`ip -batch` and `nft -f`",
    "netavark": "netavark",
    "cni": "CNI plugins",
    "podman": "podman",
    "docker": "docker",
    # what only stands among the reasons
    "niso-whole": "niso, whole services",
    "no-policy": "niso, no policy",
    "policed": "niso, with a policy",
    "docker-proxy": "docker with its proxy",
}
Rows = Sequence[tuple[str, str, str]]
"""(what, who, how the line is called)"""


def text(figures: dict[str, Any], pictures: Iterable[str]) -> str:
    """All of it. ``pictures``: the names of those that could be drawn."""
    drawn = set(pictures)
    lines = ["# niso beside its peers", "", *_how(figures), "## In short", "", short(figures), ""]
    for name, write in (("services", _services), ("ports", _ports), ("policies", _inside)):
        if name in figures:
            found = Found.load(figures[name])
            lines += write(found, drawn)
            lines += _went(name, figures[name], found)
        else:
            lines += [f"## {name.capitalize()}", "", "Not measured yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _how(figures: dict[str, Any]) -> list[str]:
    quick = any(each["quick"] for each in figures.values())
    said = [
        "Written by `./dev bench`. Each party has a lab of its own, all of a chapter live at once, and what is compared is measured"
        " in turn (A B C C B A …), after one round that is not counted. A ratio is the median of the rounds' ratios. Smaller is"
        " better, except for what passes through a port. All state folders are on tmpfs: a disk's fsync is in no figure.",
        "",
    ]
    if quick:
        said += [
            "**This was a quick run: few rounds, small sizes. Figures to go by come from `./dev bench`.**",
            "",
        ]
    for each in {
        repr((each["machine"], each["versions"])): each for each in figures.values()
    }.values():
        said += [f"- machine: {each['machine']}", f"- versions: {', '.join(each['versions'])}"]
    return [*said, ""]


def _went(name: str, data: dict[str, Any], found: Found) -> list[str]:
    """When, how long, with which load; and all that was not measured, with the reason."""
    lines = []
    if found.absent:
        lines += ["Not measured:", ""]
        for each in found.absent:
            at = f" at {each.at:,}" if each.at else ""
            lines.append(
                f"- {NAMES.get(each.who, each.who)}{at}{f' ({each.what})' if each.what else ''}: {each.why}"
            )
        lines.append("")
    rounds = "; ".join(found.notes)
    kind = "quick run, " if data["quick"] else ""
    lines += [
        f"<sub>{kind}{data['date']}, {data['seconds']} s, load of the machine {data['load'][0]} to {data['load'][1]}."
        f" Rounds, and the load before and after: {rounds}.</sub>",
        "",
    ]
    return lines


# --- in short --------------------------------------------------------------------------------------------------------


def short(figures: dict[str, Any]) -> str:
    """The figures that matter most, what is beside them, and what niso aims at, as a table."""
    lines = ["| | niso | beside it | niso to it | aim |", "| --- | --- | --- | --- | --- |"]

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
            f"attach a network, in process, at {few} services",
            own,
            _of(found, "attach", tools, few),
            "ms",
            "2 ms at most",
        )
        beside = [(f"niso at {few}", own), *_of(found, "attach", tools, many)]
        line(
            f"the same at {many:,}",
            found.row("attach", "niso", many),
            beside,
            "ms",
            f"1.5 of {few} at most",
        )
        line(
            f"detach, at {few}",
            found.row("detach", "niso", few),
            _of(found, "detach", tools, few),
            "ms",
            "2 ms at most",
        )
        beside = _of(found, "attach", tools, few)
        line(
            f"attach, whole command, at {few}",
            found.row("attach", "niso command", few),
            beside,
            "ms",
        )
        beside = _of(found, "start", engines, few)
        aim = "0.7 of podman, 0.35 of docker at most"
        line(
            f"start a service, whole command, at {few}",
            found.row("start", "niso", few),
            beside,
            "ms",
            aim,
        )
        line(
            f"remove it, at {few}",
            found.row("remove", "niso", few),
            _of(found, "remove", engines, few),
            "ms",
        )
        for row in found.rows("start of many, each"):
            beside = [("one alone", found.row("start", "niso", few))]
            line(
                f"start {row.at} services in one command, each", row, beside, "ms", "25 ms at most"
            )
        commands = (("docker version", "docker"), ("podman version", "podman"))
        beside = [(name, found.row(f"floor: {name}", who, 0)) for name, who in commands]
        line(
            "`niso net list`",
            found.row("floor: niso net list", "niso", 0),
            beside,
            "ms",
            "1.2 of docker version at most",
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
            "0.95 at least",
        )
        only = next(iter(found.rows("bulk", "niso 1")), None)
        line("throughput through a port", only, _limits(found, "bulk"), "Gbit/s", "0.95 at least")
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
    """A line for each row, two columns for each size: the figure, and its ratio to ``base`` (what, who)."""
    columns = [
        each
        for size in sizes
        for each in (
            f"at {size:,}" if size else unit,
            "to the first line" if (base == rows[0][:2]) else f"to {NAMES.get(base[1], base[1])}",
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
    lines = ["## One service's network, beside so many others", ""]
    lines += _picture(
        "network", "Attach and detach of one service's network, by how many there are", drawn
    )
    for what, whole, words in (
        ("attach", "activate", "attached"),
        ("detach", "deactivate", "detached"),
    ):
        rows = (
            (what, "niso", "niso, in process: the kernel's part"),
            (whole, "niso", f"niso, in process: all that `niso {whole}` does but the process"),
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
        "One published port each, all services of a party on one bridge. niso's kernel part of a detach ends when nothing can pass any"
        " more; the kernel needs some 10 to 20 ms then to delete the pair, which all others are in. `in process`: by a program that runs already, as a"
        " daemon's would be; all others start a program (CNI: four). netavark and CNI find the namespace made; niso and the bare"
        " commands make it.",
        "",
        "## A whole service, beside so many others",
        "",
        *_picture("whole", "Start and removal of one service, by how many there are", drawn),
    ]
    for what, commands in (
        ("start", ("`niso activate`", "`podman run -d -p`", "`docker run -d -p`")),
        ("remove", ("`niso remove`", "`podman rm -f`", "`docker rm -f`")),
    ):
        rows = tuple(
            (what, who, name)
            for who, name in zip(("niso", "podman", "docker"), commands, strict=True)
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
            f"{row.at} services in one `niso activate`: {spread(row)} ms each"
            + (f"; in one `niso remove`: {spread(gone)} ms each." if gone else "."),
            "",
        ]
    lines += [
        "Every service is busybox' `sleep` with one published port. niso and podman have crun and conmon, docker runc and"
        " containerd; podman and docker have overlayfs, and are told to kill at once (`podman rm --time 0`), where niso ends the"
        " process by TERM.",
        "",
        "## Memory of the processes",
        "",
        *_picture(
            "memory", "Resident memory of all processes, by how many services there are", drawn
        ),
        *_memory_table(found),
        "## What a command costs at least",
        "",
        *_picture("floor", "The floor of the commands", drawn),
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
        "| MiB, resident (PSS) | of all at the most services | one service more | to niso | processes for each | the rest: daemons |",
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
        "Pages that several processes share count in parts (`Pss` of /proc/PID/smaps_rollup). What the kernel holds for links,"
        " namespaces and rules is not in it.",
        "",
    ]


def _ports(found: Found, drawn: set[str]) -> list[str]:
    lines = ["## Publishing ports", "", *_picture("ports", "Publishing ports, by how many", drawn)]
    for what, words in (("publish", "published"), ("withdraw", "taken away")):
        for shape, as_what in (
            ("range", "a range as it is (8000-8999)"),
            ("each", "each to another number"),
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
                    "niso port-forward: of a service that runs, in process",
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
        "No peer can publish a port of a container that runs. podman's and docker's figures are of the whole container; podman makes"
        " one range of ports in a row.",
        "",
        "### One more port where there are others",
        "",
    ]
    lines += _one_more(found)
    lines += [
        "## What passes through a port, from another machine",
        "",
        *_picture("flows", "What passes through a port", drawn),
    ]
    lines += _flows(found)
    lines += ["## Memory of published ports", ""]
    lines += [
        "| resident (PSS) of all processes | with 1 port, MiB | with many, MiB | one port more, KiB | processes more |"
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
        "niso's service has no process here, so that what is left is what ports need: none. netavark and CNI have no process either.",
        "",
    ]
    return lines


def _one_more(found: Found) -> list[str]:
    lines = [
        "| ms | at 1 port | at many | how many | ratio | taken away, at 1 | at many |",
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
    """(who, how it is called) of all flows, in the order of the table."""
    named = [
        ("routed", "routed to the service: no NAT, no netfilter"),
        ("tracked", "routed, with connection tracking"),
        ("translated", "by one DNAT rule, the only rule there is"),
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
        "More is better. One client process on the first processor and one server process on the last, in C. New flows: 64 open at a"
        " time; a TCP flow is a connection, one byte and a reset; a UDP flow a new socket, one datagram and its answer; each has a"
        " source address and port of its own. Throughput: one TCP connection from the client. The two processes and the kernel's"
        " work for them fill both processors. docker has its userland proxy off, except where it is named; podman's rules are"
        " netavark's.",
        "",
    ]


INSIDE = {
    "switched": "plain switching: no rule, no connection tracking",
    "tracked": "the same, tracked, with one rule",
    "no-policy": "niso, no policy",
    "policed": "niso, a policy that allows the client among 10 peers",
}


def _inside(found: Found, drawn: set[str]) -> list[str]:
    lines = [
        "## Between two services of one bridge",
        "",
        *_picture("inside", "What passes inside a bridge", drawn),
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
    lines += [
        "",
        "More is better.",
        "",
        "### One change of a policy, where others have policies too",
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
            ("peer taken out", "one peer taken out of a policy"),
            ("peer put in", "one peer put into it"),
            ("service added", "one more service with such a policy"),
            ("service taken away", "taken away"),
        ):
            a, b = found.rows(what, few)[0], found.rows(what, many)[0]
            lines.append(f"| {name} | {spread(a)} | {spread(b)} | {times(ratio(b, a))} |")
        lines += [
            "",
            "Each service's policy names 10 others of its network with a port. In process; services have no process.",
            "",
        ]
    return lines
