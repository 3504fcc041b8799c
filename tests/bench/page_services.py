"""Write the chapter of single services: network, whole command, memory, overhead."""

from __future__ import annotations

from figures import Found, median, number, slope, spread, times
from page_parts import NAMES, picture, prose, table


def services(found: Found, drawn: set[str]) -> list[str]:
    sizes = found.sizes("attach")
    lines = ["## Attach and detach one service's network", ""]
    lines += picture(
        "network", "Attach and detach of one service's network, by number of services", drawn
    )
    for what, whole, words in (
        ("attach", "activate", "attached"),
        ("detach", "deactivate", "detached"),
    ):
        rows = (
            (what, "niso", "niso, in process: the kernel's part"),
            (whole, "niso", f"niso, in process: `niso {whole}` without the service's process"),
            (what, "niso command", f"niso, command: `niso {whole}` without the service's process"),
            (what, "batch", NAMES["batch"] + ", no bookkeeping"),
            (what, "netavark", f"netavark {'setup' if what == 'attach' else 'teardown'}"),
            (
                what,
                "cni",
                f"CNI {'ADD' if what == 'attach' else 'DEL'}: bridge, host-local, portmap, firewall",
            ),
            (what, "docker", f"docker network {'connect' if what == 'attach' else 'disconnect'}"),
        )
        lines += table(found, f"ms, {words}", rows, sizes, (what, "niso"), "ms")
    lines += [
        prose(
            'Each service has one published port, and all services of a program are on one bridge. In the row "the kernel\'s part", a detach ends'
            " when no packet can pass any more. The kernel then needs about 10 to 20 ms to delete the veth pair, which all other"
            " rows include. *In process* means that the measured code runs in a program that is already running, as in a daemon. In all other"
            " rows a program is started (CNI: four programs). niso and the bare commands create the namespace; netavark and CNI"
            " receive an existing one."
        ),
        "",
        "## Start and remove one service",
        "",
        *picture("whole", "Start and removal of one service, by number of services", drawn),
    ]
    for what, commands in (
        (
            "start",
            ("`niso activate`", "`podman run -d -p`", "`podman run -d -p` on a niso network"),
        ),
        ("remove", ("`niso remove`", "`podman rm -f`", "`podman rm -f` on a niso network")),
    ):
        parties = ("niso", "podman", "podman-niso", "docker")
        docker = f"`docker {'run -d -p' if what == 'start' else 'rm -f'}`"
        rows = tuple(
            (what, who, name) for who, name in zip(parties, (*commands, docker), strict=True)
        )
        lines += table(
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
            prose(
                f"{row.at} services in one `niso activate`: {spread(row)} ms each"
                + (f"; in one `niso remove`: {spread(gone)} ms each." if gone else ".")
            ),
            "",
        ]
    lines += [
        prose(
            "Every service runs `sleep` of busybox and has one published port. niso and podman use crun and conmon, docker"
            " uses runc and containerd. podman and docker use overlayfs and kill the process at once"
            " (`podman rm --time 0`), while niso sends TERM. podman was measured on netavark's bridge, and with niso's plugin on a"
            " niso network, both without a name server."
        ),
        "",
        "## Memory of the processes",
        "",
        *picture("memory", "Resident memory of all processes, by number of services", drawn),
        *_memory_table(found),
        "## Minimum cost of a command",
        "",
        *picture("floor", "Minimum cost of the commands", drawn),
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
    return [*lines, *table(found, "", rows, [0], ("floor: niso net list", "niso"), "ms")]


def _memory_table(found: Found) -> list[str]:
    rows = [
        (who, found.rows("kib", who), found.rows("processes", who))
        for who in ("niso", "podman", "docker")
    ]
    own = slope(rows[0][1])
    lines = [
        "| resident memory (PSS), MiB | total, at the largest number of services | each further service | relative to niso | processes for each service | daemons |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for who, sizes, processes in rows:
        each = slope(sizes)
        if not sizes:
            lines.append(f"| {NAMES[who]} | not measured | | | | |")
            continue
        first, last = sizes[0], sizes[-1]
        cells = [NAMES[who], f"{median(last) / 1024:,.1f} with {last.at:,} services"]
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
        prose(
            "The memory of shared pages is divided by the number of processes that share them (`Pss` of /proc/PID/smaps_rollup). Kernel memory"
            " for links, namespaces and rules is not included."
        ),
        "",
    ]
