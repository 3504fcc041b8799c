"""Print results as tables or JSON, and show progress on stderr. Control characters are escaped.

A second thread reports steps that take more than a second.
"""

from __future__ import annotations

import os
import select
import sys
import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Iterable, Sequence

from niso.base import report
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import bracketed, span
from niso.base.report import Event, Report, silent
from niso.base.signals import signals_blocked

if TYPE_CHECKING:
    from collections.abc import Callable

    import niso
    from niso.cli.parse import Args


# --- text and tables ------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Escape control characters and bidirectional overrides in a string, as in \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
        for c in text
    )


def escaped_lines(text: str) -> str:
    """Escape a text as `escaped` does, but leave newlines and tabs unchanged."""
    return "\n".join(
        "\t".join(escaped(part) for part in line.split("\t")) for line in text.split("\n")
    )


def size_text(size: int) -> str:
    """Format a number of bytes for a table, in units of 1,024: ``512 B``, ``1.5 MB``."""
    power = 0
    while size >= 1000 * 1024**power and power < len(_UNITS) - 1:
        power += 1
    return f"{size / 1024**power:.{min(power, 1)}f} {_UNITS[power]}"


_UNITS = ("B", "KB", "MB", "GB", "TB")


def arrow() -> str:
    """Return ``→``, or ``->`` if stdout's encoding or the locale cannot show it."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    if locale in ("C", "POSIX"):
        return "->"
    try:
        "→".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "->"
    return "→"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = ()
) -> None:
    """Print a table with the titles ``columns``. No text is truncated.

    If the terminal is too narrow, lists in cells are wrapped, and the gap between columns shrinks
    to one space. If the table is still too wide, the columns ``optional`` are left out one by one,
    beginning with the first. Without a terminal, the environment variable COLUMNS limits the width,
    but only for tables with ``optional`` columns.
    """
    whole = lines = [list(columns), *map(_escaped_row, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = terminal_columns(1)
    most = room or (columns_variable() if optional else 0)
    gap = "  "
    if room and sum(widths) + 2 * (len(widths) - 1) > room:
        lines, widths = _narrowed(lines, widths, room)
        gap = " " if sum(widths) + 2 * (len(widths) - 1) > room else gap
    if optional and most and sum(widths) + len(gap) * (len(widths) - 1) > most:
        kept = [i for i, title in enumerate(columns) if title != optional[0]]
        fewer = [[line[i] for i in kept] for line in whole]
        return table(fewer[0], fewer[1:], optional[1:])
    if coloured(1):
        for line in lines[1:]:
            for place, name in enumerate(columns):
                if name in PAINTED:
                    line[place] = _painted(line[place].ljust(widths[place]))
    padded = gap.join(f"%-{width}s" for width in widths)
    print("\n".join([(padded % tuple(line)).rstrip() for line in lines]))


def _escaped_row(row: Sequence[str]) -> list[str]:
    return list(row) if "".join(row).isprintable() else [escaped(value) for value in row]


def _narrowed(
    lines: list[list[str]], widths: list[int], room: int
) -> tuple[list[list[str]], list[int]]:
    """Wrap lists in cells until a table fits ``room`` characters, or no list can be wrapped more.
    Returns (lines, widths of the columns).
    """
    least = [
        max(len(item) for line in lines for item in _items(line[i])) for i in range(len(widths))
    ]
    widths = list(widths)
    while sum(widths) + 2 * (len(widths) - 1) > room:
        spare, widest = max((width if width > least[i] else 0, i) for i, width in enumerate(widths))
        if not spare:
            break
        widths[widest] -= 1
    broken = []
    for line in lines:
        cells = [_folded(value, width) for value, width in zip(line, widths, strict=True)]
        for level in range(max(len(cell) for cell in cells)):
            broken.append([cell[level] if level < len(cell) else "" for cell in cells])
    return broken, [max(len(line[i]) for line in broken) for i in range(len(widths))]


def _items(value: str) -> list[str]:
    return value.replace(", ", ",\0").replace("; ", ";\0").split("\0")


def _folded(value: str, width: int) -> list[str]:
    shown = [""]
    for item in _items(value):
        joined = f"{shown[-1]} {item}" if shown[-1] else item
        if len(joined) <= width or not shown[-1]:
            shown[-1] = joined
        else:
            shown.append(item)
    return shown


# --- terminals, JSON and notes --------------------------------------------------------------------

PAINTED = ("STATUS", "HEALTH")
_GREEN, _YELLOW, _RED, _DIM = "32", "33", "31", "2"
_COLOURS = dict.fromkeys(("running", "healthy"), _GREEN)
_COLOURS |= dict.fromkeys(("starting", "restarting"), _YELLOW)
_COLOURS |= dict.fromkeys(("failed", "exited", "unhealthy"), _RED) | {"inactive": _DIM}


def columns_variable() -> int:
    """Return the environment variable COLUMNS as a number, or 0 if it is unset or invalid."""
    value = os.environ.get("COLUMNS", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0


def terminal_columns(descriptor: int) -> int:
    """Return the width of the terminal at a file descriptor, or 0 if it is no terminal."""
    try:
        if os.isatty(descriptor):
            return columns_variable() or os.get_terminal_size(descriptor).columns
    except OSError:
        pass
    return 0


def coloured(descriptor: int) -> bool:
    """Return whether to colour output to a file descriptor (https://no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")
    try:
        return wanted and os.isatty(descriptor)
    except OSError:
        return False


def _painted_word(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured(2) else text


def _painted(cell: str) -> str:
    word = cell.rstrip()
    colour = "" if word == "exited (0)" else _COLOURS.get(word.partition(" ")[0], "")
    return f"\x1b[{colour}m{word}\x1b[0m{cell[len(word) :]}" if colour else cell


def ends(flow: niso.Flow | niso.PolicyEffect | niso.FlowLoad) -> tuple[str, str]:
    """Return the source and destination of a flow as (``api``, ``[fd00::2]:53/udp``)."""
    return flow.from_.name, f"{bracketed(flow.to.name)}:{flow.port}/{flow.proto}"


def ago(seconds: float | None, never: str = "-") -> str:
    """Format an age as ``3m12s ago`` or ``now``. If the age is None, return ``never``."""
    if seconds is None:
        return never
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def flow_cells(flow: niso.Flow | niso.PolicyEffect) -> tuple[str, ...]:
    """Return a flow's cells for the table columns FROM, TO, NEW, OPEN and LAST."""
    return (*ends(flow), str(flow.new or "-"), str(flow.open or "-"), ago(flow.ago))


def merged[T: (niso.Flow, niso.PolicyEffect)](
    flows: Iterable[T], key: Callable[[T], object]
) -> list[T]:
    """Merge flows for which ``key`` is equal, such as over IPv4 and IPv6, and add their counts. A
    merged flow has the other values of the first flow, and the lower age.
    """
    rows: dict[object, T] = {}
    for flow in flows:
        known = rows.setdefault(key(flow), flow)
        if known is not flow:
            ages = [ago for ago in (known.ago, flow.ago) if ago is not None]
            new, open_ = known.new + flow.new, known.open + flow.open
            rows[key(flow)] = known._replace(new=new, open=open_, ago=min(ages, default=None))
    return list(rows.values())


def as_json(value: object) -> None:
    import json

    from niso.api.host import plain

    print(json.dumps(plain(value), indent=2))


def result[T](args: Args, value: T, show: Callable[[T], object]) -> int:
    """Print ``value`` as JSON with --json, or else by ``show(value)``. Return the exit status 0."""
    if args.json:
        as_json(value)
    else:
        show(value)
    return 0


def results[T](args: Args, done: Sequence[T], line: Callable[[T], str]) -> int:
    """Print ``done`` as JSON with --json, or else ``line(item)`` for each item. Return 0."""
    return result(args, done, lambda done: [print(line(one)) for one in done])


def changes(args: Args, done: Sequence[niso.Changed], words: tuple[str, str]) -> int:
    """Print for each service whether it was changed, or JSON with --json. Return 0. ``words`` are
    the texts for an unchanged and for a changed service.
    """
    return results(args, done, lambda one: f"{one.service}: {words[one.changed]}")


def ports_text(ports: Iterable[niso.Port]) -> str:
    """Format ports as ``8080→8080, [::]:53→53/udp``. Ports with the same text appear once."""
    return ", ".join(dict.fromkeys(map(_port_text, ports)))


def as_listed(port: str) -> str:
    """Convert a manifest's port such as ``127.0.0.1:53:53/udp`` to the form of `ports_text`."""
    host, colon, container = port.removeprefix("0.0.0.0:").rpartition(":")
    return f"{host}{arrow()}{container}" if colon else port


def _port_text(port: niso.Port) -> str:
    host = "" if port.anywhere or port.host_ip == "0.0.0.0" else f"{bracketed(port.host_ip)}:"
    proto = "" if port.proto == "tcp" else f"/{port.proto}"
    ends = span(port.host_port, port.range), span(port.container_port, port.range)
    return f"{host}{ends[0]}{arrow()}{ends[1]}{proto}"


def socket_text(address: str, port: int, proto: str) -> str:
    """Format a listening socket: ``80`` (on 0.0.0.0), ``127.0.0.1:80`` or ``[::]:53/udp``."""
    host = "" if address == "0.0.0.0" else f"{bracketed(address)}:"
    return f"{host}{port}{'' if proto == 'tcp' else f'/{proto}'}"


def duration(seconds: float) -> str:
    """Format a duration as ``42s``, ``3m12s``, ``5h4m`` or ``12d3h``."""
    whole = int(seconds)
    for unit, size, part, small in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small}{part}"
    return f"{whole}s"


def size(octets: int | None) -> str:
    """Format a number of bytes with binary units, as in manifests: ``64.0M``. None is ``-``."""
    if octets is None:
        return "-"
    number = float(octets)
    for unit in ("", "K", "M"):
        if number < 1024:
            return f"{number:.1f}{unit}" if unit else f"{octets}"
        number /= 1024
    return f"{number:.1f}G"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}%"


def health_text(health: str | None, age_s: float | None) -> str:
    """Format a health state and the age of its probe: ``healthy 4s ago``. None is ``-``."""
    if health is None:
        return "-"
    return health if age_s is None else f"{health} {duration(age_s)} ago"


def note(line: str) -> None:
    """Print a step of a command on stderr, for ``-v``."""
    print(escaped_lines(line), file=sys.stderr)


def step(line: str) -> None:
    print(escaped_lines(line))


def error(message: str, hint: str | None) -> None:
    """Print an error and its hint on stderr. The message may have several lines."""
    shown = "\n".join(escaped(line) for line in message.split("\n"))
    print(f"{_painted_word('niso:', _RED)} {shown}", file=sys.stderr)
    if hint:
        print(f"  hint: {escaped(hint)}", file=sys.stderr)


def warn(text: str, hints: Iterable[str] = ()) -> None:
    print(f"{_painted_word('niso: warning:', _YELLOW)} {escaped(text)}", file=sys.stderr)
    for hint in hints:
        print(f"  hint: {escaped(hint)}", file=sys.stderr)


def is_terminal() -> bool:
    return os.isatty(1)


# --- progress -------------------------------------------------------------------------------------


AT_ONCE_S = 1.0
AGAIN_S = 10.0
SOON_S = 0.5
SLOW = (
    report.Starting,
    report.Stopping,
    report.CopyingPackage,
    report.Undoing,
    report.RemovingVolumes,
    report.GivingVolume,
    report.Saving,
    report.Extracting,
    report.WaitingForLock,
    report.WaitingForHealth,
    report.WaitingForPacket,
    report.AskingCluster,
)
"""Events that can take long. Most other events are kernel steps, which are many and fast."""
PAST = (report.Healthy, report.Completed, report.Command)
CHANGING = "changing the network"


def _current(event: Event) -> str:
    """Return the text of the step that runs after ``event`` was reported. After a kernel step,
    returns `CHANGING`, because all kernel steps of a plan are reported before niso executes the
    first.
    """
    if isinstance(event, PAST) or type(event).__module__.startswith("niso.kernel."):
        return CHANGING
    return event.describe().split("\n", 1)[0]


class Progress:
    """The reporter of a command's progress: ``with Progress(args) as host.progress:``.

    With -v or --dry-run, all events are printed. Otherwise only warnings are printed, and steps
    that take more than a second. A thread prints these steps. All kernel steps of a change, and the
    checks after them, are printed as one step.
    """

    def __init__(self, args: Args) -> None:
        self._verbose = bool(getattr(args, "verbose", False))
        self._quiet = bool(getattr(args, "json", False))  # errors on stderr are JSON
        self._dry_run = bool(getattr(args, "dry_run", False))
        self._waits: frozenset[str] = frozenset()
        self._began = time.monotonic()
        self._planned = False
        self._running = False
        self._over, self._printing = allocate_lock(), allocate_lock()
        self._step, self._since, self._reported = "", 0.0, 0.0
        self._unhealthy: dict[str, None] = {}

    def __enter__(self) -> Report:
        self._notify = _note if self._verbose else silent if self._quiet else self._report
        self._show = self._plan if self._dry_run else self._notify
        return self._receive

    def _plan(self, event: Event) -> None:
        self._planned = True
        step(event.describe())

    def _receive(self, event: Event) -> None:
        if isinstance(event, report.ExpectingHealth):
            self._waits = frozenset(event.services)
        elif isinstance(event, report.Finished):
            self._stop()
        elif isinstance(event, report.WarningEvent):
            warn(event.text, event.hints)
        elif isinstance(event, report.Recovered | report.Unfinished | report.NotStarted):
            warn(event.describe())
        elif isinstance(event, report.WaitingForLock | report.AskingCluster):  # also with --dry-run
            self._notify(event)
        else:
            self._show(event)

    def _report(self, event: Event) -> None:
        """Record the step that ``event`` begins, for the thread that prints slow steps. Starts this
        thread at the first step that can be slow, or soon after the command's start.
        """
        now = time.monotonic()
        if not self._running and not isinstance(event, SLOW) and now < self._began + SOON_S:
            return
        self._follow(event)
        step = _current(event)
        if (self._step, step) != (CHANGING, CHANGING):
            self._step, self._since, self._reported = step, now, 0.0
        if not self._running:
            # block signals in the thread: the main thread handles them
            with signals_blocked():
                self._over.acquire()
                self._running = True
                try:
                    start_new_thread(self._print_slow_steps, ())
                except RuntimeError:
                    pass  # no thread is available: slow steps are not reported

    def __exit__(self, kind: object = None, *_: object) -> None:
        self._stop()
        if self._dry_run and not self._planned and kind is None:
            step("nothing to do")

    def _stop(self) -> None:
        """Stop the thread that prints slow steps, after it has completed its line."""
        if self._running:
            self._over.release()
            with self._printing:  # let a line in progress come before the command's output
                self._running = False

    def _due_s(self) -> float:
        after = self._reported + AGAIN_S if self._reported else AT_ONCE_S
        return self._since + after - time.monotonic()

    def _print_slow_steps(self) -> None:
        """Print each step after a second, and again every ten seconds, until `_stop` is called."""
        while True:
            if self._over.acquire(timeout=max(0.0, self._due_s())):
                return
            with self._printing:
                since = self._since
                if not self._running:
                    return
                if self._due_s() > 0:
                    continue  # another step has begun
                elapsed = round(time.monotonic() - since)
                step = self._step
                if self._unhealthy:
                    step = f"waiting for {', '.join(self._unhealthy)} to become healthy"
                line = f"niso: {escaped(step)} ({elapsed}s)\n".encode()[: select.PIPE_BUF]
                try:
                    if select.select([], [2], [], 0)[1]:  # never block on a full pipe
                        os.write(2, line)
                except OSError:
                    return
                if since == self._since:
                    self._reported = elapsed

    def _follow(self, event: Event) -> None:
        """Update the started services that messages about slow steps name as not healthy yet."""
        if isinstance(event, report.Starting) and event.service in self._waits:
            self._unhealthy[event.service] = None
        elif isinstance(event, report.Healthy):
            self._unhealthy.pop(event.service, None)
        elif isinstance(event, report.Undoing | report.Stopping):
            self._unhealthy.clear()


def _note(event: Event) -> None:
    note(event.describe())
