"""How results are shown: tables, JSON, ports, times; nothing that a service or a name contains reaches a terminal raw."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from niso.records import Port


def escaped(text: str) -> str:
    """``text`` with control characters (C0, C1, DEL, line separators, bidi overrides) written as \\x1b or \\u202e."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)


def escaped_lines(text: str) -> str:
    """As `escaped`, of a text whose lines and tabs stay."""
    return "\n".join("\t".join(escaped(part) for part in line.split("\t")) for line in text.split("\n"))


def arrow() -> str:
    """``→``, or ``->`` where the output's encoding has none."""
    try:
        "→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "->"
    return "→"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns, each as wide as its widest value."""
    lines = [list(columns), *([escaped(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


def as_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def port_text(port: Port) -> str:
    """``8080→8080``, ``53→53/udp``, ``127.0.0.1:5432→5432``, ``[::]:8000-8010→8000-8010``."""
    host = "" if port.host_ip in ("", "0.0.0.0") else f"{bracketed(port.host_ip)}:"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    return f"{host}{span(port.host_port, port.count)}{arrow()}{span(port.container_port, port.count)}{proto}"


def span(first: int, count: int) -> str:
    """``8000`` or ``8000-8010``."""
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def host_addresses(port: Port, families: tuple[int, ...]) -> list[str]:
    """The host's side of a port in rows: all addresses of each family that the network has, or the one that it names."""
    if port.host_ip:
        return [port.host_ip]
    return [everywhere for family, everywhere in ((4, "0.0.0.0"), (6, "::")) if family in families]


def port_json(port: Port, host_ip: str) -> dict[str, object]:
    """A port, or a row of ``range`` ports from ``host_port`` on."""
    described: dict[str, object] = {
        "host_ip": host_ip,
        "host_port": port.host_port,
        "container_port": port.container_port,
        "proto": port.proto,
    }
    return described | ({"range": port.count} if port.count > 1 else {})


def ports_json(ports: Iterable[Port], families: tuple[int, ...]) -> list[dict[str, object]]:
    return [port_json(port, address) for port in ports for address in host_addresses(port, families)]


def duration(seconds: float) -> str:
    """``42s``, ``3m12s``, ``5h4m``, ``12d3h``."""
    whole = int(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small}{smaller}"
    return f"{whole}s"


def time_text(seconds: float | None) -> str | None:
    """A time (seconds since 1970) as RFC 3339 in UTC; None stays None."""
    if seconds is None:
        return None
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def note(line: str) -> None:
    """A line about what is being done, to stderr: for ``-v``."""
    print(escaped_lines(line), file=sys.stderr)


def step(line: str) -> None:
    """A step that would be taken, to stdout: for ``--dry-run``."""
    print(escaped_lines(line))


def warn(text: str, hints: Iterable[str] = ()) -> None:
    print(f"niso: warning: {escaped(text)}", file=sys.stderr)
    for hint in hints:
        print(f"  hint: {escaped(hint)}", file=sys.stderr)


def is_terminal() -> bool:
    return os.isatty(1)
