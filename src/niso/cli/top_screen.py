"""Show niso top on a terminal with Textual, as tables of services, flows and sockets.

The screen can also show the output of other niso commands. Only this module imports Textual.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import ClassVar

from niso.api.host import connect
from niso.base import files, paths
from niso.base.errors import missing_library
from niso.base.named_tuples import TYPE_CHECKING
from niso.cli import traffic_commands
from niso.cli.output import escaped
from niso.look.top import FlowLoad, Load, ServiceLoad, ServiceSocket, runs

if TYPE_CHECKING:
    from textual.events import Click, Resize


try:
    from rich.segment import Segment
    from rich.style import Style
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.geometry import Size
    from textual.screen import ModalScreen
    from textual.scroll_view import ScrollView
    from textual.strip import Strip
    from textual.widgets import Footer, Input, Log, Static
except ImportError:
    instead = "niso top -n 1"
    raise missing_library("textual", "draws the screen", "textual", instead=instead) from None


# --- the screen -----------------------------------------------------------------------------------


HISTORY = 15
TALL = 24
"""With at least this many lines on the terminal, flows are shown below the services."""
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = (*traffic_commands.TOP_COLUMNS[:4], "LAST 30 s", *traffic_commands.TOP_COLUMNS[4:])
_FLOW_COLUMNS = ("FROM", "TO", "VERDICT", "TRAFFIC", "LAST 30 s", "NEW/s", "BY")
_WAITING = {"starting": "waiting", "restarting": "waiting"}
_STATES = {"inactive": "soft", "completed": "soft", "attached": "", **_WAITING}
_VERDICTS = {"drop": "bad", "audit": "waiting", "pass": "good"}


def _denied(load: ServiceLoad) -> int:
    return (load.denied_in or 0) + (load.denied_out or 0)


ORDERS: dict[str, Callable[[ServiceLoad], float | str]] = {
    "busy": lambda load: 0,
    "name": lambda load: load.service,
    "memory": lambda load: -(load.memory or 0),
    "traffic": lambda load: -(load.received or 0) - (load.sent or 0),
    "new": lambda load: -(load.new or 0),
    "denied": lambda load: -_denied(load),
}
"""The key by which services are sorted, for each order. Equal keys keep the order of `top.busy`."""


_HELP = """\
up, down   move; Enter shows the service
Tab        next table: services, flows, sockets
s          sort: busy, name, memory, traffic, new, denied
d          only denied flows, or those in audit
/          show only names with this text
e c l      explain the flow, capture, logs
Escape q   return, quit"""


def _order_file() -> str:
    return f"{paths.state_dir()}/top-order"


def _saved_order() -> str:
    """Return the sort order that the user chose in an earlier niso top, or ``busy``."""
    try:
        with open(_order_file(), encoding="utf-8") as file:
            order = file.read(20)
    except (OSError, UnicodeDecodeError):
        order = ""
    return order if order in ORDERS else "busy"


def show(name: str | None) -> int:
    """Run the screen until the user quits or a signal arrives. Return the exit status. The screen
    shows the service ``name``, or all services if it is None. Raises Error.
    """
    # reports mistakes before the screen is drawn
    with connect() as host, host.top(name) as measured:
        screen = TopScreen(measured.service)
    reader = threading.Thread(target=_read, args=(screen,), daemon=True)
    screen.begin = reader.start
    try:
        screen.run()
    finally:
        screen.is_over = True
        screen.wake.set()
        if reader.ident is not None:
            # the thread closes its store itself, because a SQLite connection belongs to its thread
            reader.join()
    if screen.failure is not None:
        raise screen.failure
    return 130 if screen.signalled else screen.return_code or 0


def _read(screen: TopScreen) -> None:
    try:
        with connect() as host, host.top() as measured:
            due = time.monotonic() + traffic_commands.EVERY_S
            while True:
                screen.wake.wait(max(due - time.monotonic(), 0))
                screen.wake.clear()
                if screen.is_over:
                    return
                if time.monotonic() >= due:
                    due = time.monotonic() + traffic_commands.EVERY_S
                    screen.call_later(screen.update_load, measured.read())  # safe in a thread
                if (chosen := screen.chosen) is not None:
                    screen.call_later(screen.update_sockets, chosen, measured.sockets(chosen))
    except Exception as error:  # raised again by `show`
        screen.failure = error
        screen.call_later(screen.exit)


class TopScreen(App[None]):
    """The screen of niso top: all services and flows, or one service's flows and sockets."""

    CSS = """
    Input { display: none; }
    Input.shown { display: block; }
    #summary { padding: 0 1; }
    #services { height: 3fr; }
    #flows { height: 2fr; }
    #sockets { height: 2fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar = [
        Binding("d", "denied", "denied"),
        Binding("s", "sort", "sort"),
        Binding("slash", "find", "find"),
        Binding("e", "explain", "explain"),
        Binding("c", "capture", "capture"),
        Binding("l", "logs", "logs"),
        Binding("question_mark", "help", "help"),
        Binding("escape", "leave", "back", show=False),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "interrupt", "quit", show=False, priority=True),
    ]

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.chosen, self._fixed = name, name is not None
        self.only_denied, self.order, self.wanted = False, _saved_order(), ""
        self.is_over = False
        # wakes the measuring thread to end it, or to list another service's sockets
        self.wake = threading.Event()
        self.failure: Exception | None = None
        self.signalled = False
        self.begin: Callable[[], None] | None = None
        self._is_tall = False
        self._load: Load | None = None
        self._history: dict[str, list[float]] = {}
        self._flows: dict[str, FlowLoad] = {}
        self._flow_history: dict[str, list[float]] = {}
        self._sockets: dict[str, ServiceSocket] = {}

    def compose(self) -> ComposeResult:
        yield Static("niso top: measuring", id="summary", markup=False)
        for name in ("services", "flows", "sockets"):
            yield RowTable(name, self._choose_row)
        yield Input(placeholder="part of a name", id="find")
        yield Footer()

    def on_mount(self) -> None:
        """Start the thread that measures, and handle signals, so that the terminal is restored."""
        self._arrange()
        if self.begin is not None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.action_interrupt)
            self.begin()

    def on_resize(self, event: Resize) -> None:
        """Show the flows below the services only if the terminal has at least `TALL` lines."""
        self._is_tall = event.size.height >= TALL
        self._arrange()
        self._draw()

    def update_sockets(self, service: str, sockets: tuple[ServiceSocket, ...]) -> None:
        """Show a service's sockets, unless the user has selected another service since."""
        if service != self.chosen:
            return
        self._sockets = {}
        for one in sockets:
            key = f"{one.from_.address}|{one.from_port}|{one.to.address}|{one.port}"
            # a connection of a service to itself has both ends here
            self._sockets[key + "|" * (key in self._sockets)] = one
        self._draw()

    def update_load(self, load: Load) -> None:
        """Show a new measurement, and the flows with traffic in the last `HISTORY` measurements."""
        self._load = load
        bits = {row.service: (row.received or 0) + (row.sent or 0) for row in load.services}
        self._history = {
            name: [*self._history.get(name, ()), now][-HISTORY:] for name, now in bits.items()
        }
        kept = {
            key: flow._replace(new=0.0, bits=None if flow.bits is None else 0.0)
            for key, flow in self._flows.items()
        }
        for one in load.flows:
            kept[f"{one.from_.address}|{one.to.address}|{one.port}|{one.proto}|{one.verdict}"] = one
        history = {
            key: [*self._flow_history.get(key, ()), flow.bits or flow.new][-HISTORY:]
            for key, flow in kept.items()
        }
        self._flow_history = {key: past for key, past in history.items() if any(past)}
        self._flows = {key: kept[key] for key in self._flow_history}
        self._draw()

    def _arrange(self) -> None:
        services, flows, sockets = self._tables()
        services.display = self.chosen is None
        flows.display = self.chosen is not None or self._is_tall
        sockets.display = self.chosen is not None
        shown = [part for part in (*self._tables(), *self.query(Input)) if part.display]
        if self.focused not in shown:
            shown[0].focus()

    def _tables(self) -> tuple[RowTable, RowTable, RowTable]:
        services, flows, sockets = self.query(RowTable)
        return services, flows, sockets

    def _draw(self) -> None:
        load = self._load
        if load is None:
            return
        parts = [("niso top", "name"), *traffic_commands.summary(load)]
        if self.chosen is not None:
            parts.insert(1, (self.chosen, "name"))
        parts += [(f"sorted by {self.order}", "")]
        parts += [("only denied", "")] * self.only_denied
        parts += [(repr(self.wanted), "")] * bool(self.wanted)
        words = Text("  ").join(Text(text, STYLES[kind]) for text, kind in parts)
        self.query_one("#summary", Static).update(words)
        loads = {
            one.service: one
            for one in sorted(load.services, key=ORDERS[self.order])
            if self.wanted in one.service and (_denied(one) or not self.only_denied)
        }
        services, flows, sockets = self._tables()
        if services.display:
            services.fill(_COLUMNS, list(loads), lambda key: self._cells(loads[key]))
        if flows.display:
            flows.fill(_FLOW_COLUMNS, self._flow_keys(), self._flow_cells)
        if sockets.display:
            sockets.fill(traffic_commands.SOCKET_COLUMNS, list(self._sockets), self._socket_cells)

    def _flow_keys(self) -> list[str]:
        """Return the row keys of the flows to show, sorted by verdict and then by traffic. Denied
        flows are first.
        """
        home, rank, past = self._home(self.chosen), list(_VERDICTS).index, self._flow_history

        def is_shown(flow: FlowLoad) -> bool:
            if self.only_denied and flow.verdict == "pass":
                return False
            if self.chosen is not None:
                return home in (flow.from_.service, flow.to.service)
            return self.wanted in flow.from_.name or self.wanted in flow.to.name

        keys = [key for key, flow in self._flows.items() if is_shown(flow)]
        return sorted(keys, key=lambda key: (rank(self._flows[key].verdict), -sum(past[key]), key))

    def _flow_cells(self, key: str) -> Cells:
        flow = self._flows[key]
        from_, to, traffic, new, verdict, by = traffic_commands.flow_cells(flow)
        kind = "bad" if verdict == "drop" else ""
        return (
            (escaped(from_), kind),
            (escaped(to), kind),
            (verdict, _VERDICTS[verdict]),
            (traffic, "" if flow.bits else "soft"),
            (_bars(self._flow_history[key]), "bad" if kind else "bars"),
            (new, kind or ("" if flow.new else "soft")),
            (escaped(by), "soft"),
        )

    def _socket_cells(self, key: str) -> Cells:
        socket = self._sockets[key]
        *ends, state, rtt, resent, received, sent = traffic_commands.socket_cells(socket)
        return (
            *((escaped(end), "") for end in ends),
            (state, "" if state == "established" else "waiting"),
            (rtt, ""),
            (resent, "bad" if socket.retransmitted else "soft"),
            (received, ""),
            (sent, ""),
        )

    def _cells(self, load: ServiceLoad) -> Cells:
        name, state, *rates, new, into, out, networks = traffic_commands.cells(load)
        off = "soft" if load.status == "inactive" else ""
        return (
            (escaped(name), off or "name"),
            (escaped(state), _kind(load)),
            *((text, off) for text in rates),
            (_bars(self._history[load.service]), "bars"),
            (new, off),
            (into, "bad" if load.denied_in else "soft"),
            (out, "bad" if load.denied_out else "soft"),
            (escaped(networks), "soft"),
        )

    def _choose_row(self, key: str) -> None:
        if self.chosen is not None:
            return  # only flows and sockets of one service are shown
        flow = self._flows.get(key)
        self._choose(key if flow is None else flow.to.service or flow.from_.service)

    def _choose(self, name: str | None) -> None:
        if name != self.chosen:
            self._sockets = {}
        self.chosen = name
        self.wake.set()
        self._arrange()
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.wanted = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        """Hide the input field, and focus the table, which stays filtered by the entered text."""
        self.query_one(Input).remove_class("shown")
        self._arrange()

    def action_interrupt(self) -> None:
        self.signalled = True
        self.exit()

    def action_denied(self) -> None:
        self.only_denied = not self.only_denied
        self._draw()

    def action_sort(self) -> None:
        orders = list(ORDERS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        with contextlib.suppress(OSError):  # then the next niso top begins with busy services
            files.replace(_order_file(), self.order.encode(), 0o600)
        self._draw()
        self.query_one("#services", RowTable).action_move(0)

    def action_help(self) -> None:
        self.notify(_HELP, title="keys of niso top", timeout=30)

    def action_find(self) -> None:
        field = self.query_one(Input)
        field.add_class("shown")
        field.focus()

    def action_explain(self) -> None:
        _, flow = self._subject()
        if flow is None:
            self.notify("e explains a flow; Tab or Enter shows the flows")
        else:
            self.push_screen(Output(traffic_commands.explain_words(flow)))

    def action_capture(self) -> None:
        service, flow = self._subject()
        if service is not None:
            self.push_screen(Output(traffic_commands.capture_words(service, flow)))

    def action_logs(self) -> None:
        service = self.chosen or self._subject()[0]
        if service is not None:
            self.push_screen(Output(traffic_commands.logs_words(service)))

    def _subject(self) -> tuple[str | None, FlowLoad | None]:
        """Return (service, flow) on which a pressed key such as ``c`` (capture) acts. Each is None
        if nothing suitable is selected. If a flow is selected, the service is the service on the
        screen, or else the flow's destination or source.
        """
        services, _, sockets = self._tables()
        table = next((part for part in self._tables() if part.has_focus), services)
        if table is services or table.key is None:
            return self._home(self.chosen or services.key), None
        if table is sockets:
            end = self._sockets[table.key]
            ends, none = (end.from_, end.to, end.port, "tcp"), (None,) * 5
            flow = FlowLoad(*ends, "pass", 0.0, *none, end.published, True)
        else:
            flow = self._flows[table.key]
        return self._home(self.chosen) or flow.to.service or flow.from_.service, flow

    def _home(self, name: str | None) -> str | None:
        loads = self._load.services if self._load else ()
        return next((load.shares or name for load in loads if load.service == name), name)

    def action_leave(self) -> None:
        field = self.query_one(Input)
        field.value = ""
        self.on_input_submitted()
        self._choose(self.chosen if self._fixed else None)


def _bars(values: list[float]) -> str:
    most = max(values, default=0)
    if not most:
        return ""
    top_ = len(_BARS) - 1
    return "".join(_BARS[round(value / most * top_)] for value in values)


def _kind(load: ServiceLoad) -> str:
    if runs(load.status):
        health = {"healthy": "good", "unhealthy": "bad", "starting": "waiting"}
        return health.get(load.health or "", "")
    return _STATES.get(load.status, "bad")


# --- tables of many rows --------------------------------------------------------------------------


if TYPE_CHECKING:
    Cells = tuple[tuple[str, str], ...]
    """The texts of one row, each with the name of its style (`STYLES`)."""

_OPTIONAL = ("LAST 30 s", "NEW/s", "TRAFFIC")
"""Columns that are left out, in this order, if the terminal is too narrow for the row's texts."""
_LEFT = ("SERVICE", "HEALTH", "LAST 30 s", "NETWORKS", "FROM", "TO", "VERDICT", "BY", "STATE")
"""The titles of columns whose values are aligned at the left."""
_SPACE = "  "
STYLES = {
    "": Style(),
    "name": Style(bold=True),
    "good": Style(color="green"),
    "bad": Style(color="red", bold=True),
    "waiting": Style(color="yellow"),
    "soft": Style(dim=True),
    "bars": Style(color="cyan"),
}


class RowTable(ScrollView, can_focus=True):
    """A table of many rows that renders only the visible rows, below a line with the column titles.

    After `fill`, the cursor is on the row with the same key as before.
    """

    COMPONENT_CLASSES: ClassVar = {"rows--titles", "rows--cursor"}
    DEFAULT_CSS = """
    RowTable { height: 1fr; }
    RowTable > .rows--titles { background: $panel; text-style: bold; }
    RowTable > .rows--cursor { background: $primary; color: $text; text-style: bold; }
    """
    BINDINGS: ClassVar = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,ctrl+home", "move_to(0)", show=False),
        Binding("end,ctrl+end", "move_to(-1)", show=False),
        Binding("enter", "choose", show=False),
    ]

    def __init__(self, id_: str, choose: Callable[[str], None]) -> None:
        super().__init__(id=id_)
        self._choose = choose
        self.keys: list[str] = []
        self.cursor = 0
        self._titles: tuple[str, ...] = ()
        self._widths: list[int] = []
        self._left_out: set[int] = set()
        self._cells: Callable[[str], Cells] = lambda _: ()

    def fill(self, titles: tuple[str, ...], keys: list[str], cells: Callable[[str], Cells]) -> None:
        """Set the rows: one for each of ``keys``, with the cells that ``cells(key)`` returns."""
        at = self.key
        if titles != self._titles:
            self._titles, self._widths = titles, [len(title) for title in titles]
        self.keys, self._cells = keys, cells
        where = keys.index(at) if at in keys else self.cursor
        self.cursor = max(0, min(where, len(keys) - 1))
        self._measure()

    @property
    def key(self) -> str | None:
        """The key of the row at the cursor, or None if there are no rows."""
        return self.keys[self.cursor] if self.cursor < len(self.keys) else None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Adapt the widths of the columns to the rows that scrolling makes visible."""
        super().watch_scroll_y(old_value, new_value)
        self._measure()

    def on_resize(self) -> None:
        self._measure()

    def _measure(self) -> None:
        first = self.scroll_offset.y
        for key in self.keys[first : first + self.size.height]:
            needed = [len(text) for text, _ in self._cells(key)]
            self._widths = [max(pair) for pair in zip(needed, self._widths, strict=True)]
        self._left_out = set()
        for title in _OPTIONAL:
            if self._width() > self.size.width and title in self._titles:
                self._left_out.add(self._titles.index(title))
        self.virtual_size = Size(self._width(), len(self.keys) + 1)
        self.refresh()

    def _width(self) -> int:
        shown = [w for i, w in enumerate(self._widths) if i not in self._left_out]
        return sum(shown) + len(_SPACE) * len(shown) + 1

    def render_line(self, y: int) -> Strip:
        plain = self.rich_style
        at = y - 1 + self.scroll_offset.y
        cells: Cells = ()
        over: Style | None = None
        if y == 0:
            cells = tuple((title, "") for title in self._titles)
            over = self.get_component_rich_style("rows--titles")
        elif at < len(self.keys):
            cells = self._cells(self.keys[at])
            if at == self.cursor and self.has_focus:
                over = self.get_component_rich_style("rows--cursor")
        segments = [Segment(" ", over or plain)]
        columns = zip(cells, self._titles, self._widths, strict=False)
        for i, ((text, kind), title, width) in enumerate(columns):
            if i in self._left_out:
                continue
            words = text.ljust(width) if title in _LEFT else text.rjust(width)
            segments.append(Segment(words + _SPACE, over or plain + STYLES[kind]))
        x = self.scroll_offset.x
        return Strip(segments).crop_extend(x, x + self.size.width, over or plain)

    def action_move(self, by: int) -> None:
        self.action_move_to(max(0, min(self.cursor + by, len(self.keys) - 1)))

    def action_page(self, by: int) -> None:
        self.action_move(by * max(1, self.size.height - 2))

    def action_move_to(self, at: int) -> None:
        """Move the cursor to a row. Rows are counted from 0, and -1 is the last row."""
        self.cursor = at if at >= 0 else max(0, len(self.keys) - 1)
        most = max(1, self.size.height - 1)
        top_ = min(max(self.scroll_offset.y, self.cursor - most + 1), self.cursor)
        self.scroll_to(y=top_, animate=False, immediate=True)
        self.refresh()

    def action_choose(self) -> None:
        if self.key is not None:
            self._choose(self.key)

    def on_click(self, event: Click) -> None:
        """Move the cursor to the clicked row, or choose the row if the cursor is already there."""
        at = event.y - 1 + self.scroll_offset.y
        if event.y == 0 or at >= len(self.keys):
            return
        if at == self.cursor:
            self.action_choose()
        else:
            self.action_move_to(at)


# --- the output of another command ----------------------------------------------------------------


NISO = (sys.executable, "-I", "-m", "niso.cli")
_MOST_LINES = 5000
_MOST_BYTES = 8192
"""The maximum number of bytes to read at once, so that keys still work. Longer lines are broken."""
_END_S = 5.0
"""Seconds that the command has to exit by itself before it is killed."""


class Output(ModalScreen[None]):
    """A screen that runs ``niso WORDS`` and shows its output. Closing it stops the command."""

    CSS = """
    #command { padding: 0 1; background: $panel; text-style: bold; }
    #output { height: 1fr; background: $background; }
    """
    BINDINGS: ClassVar = [
        Binding("escape", "dismiss", "back"),
        Binding("q", "app.quit", "quit"),
        Binding("ctrl+c", "app.interrupt", "quit", show=False, priority=True),
    ]

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = words
        self._unfinished = b""
        self._process: subprocess.Popen[bytes] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="command", markup=False)
        yield Log(id="output", max_lines=_MOST_LINES)
        yield Footer()

    def on_mount(self) -> None:
        self._title("")
        self.query_one(Log).focus()
        self._process = subprocess.Popen(
            (*NISO, *self.words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        asyncio.get_running_loop().add_reader(self._descriptor(), self._read)

    def on_unmount(self) -> None:
        self._end()

    def _descriptor(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout.fileno()

    def _read(self) -> None:
        log = next(iter(self.query(Log)), None)
        if log is None:  # the screen is being left
            self._end()
            return
        data = os.read(self._descriptor(), _MOST_BYTES)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if self._unfinished and (not data or len(self._unfinished) > _MOST_BYTES):
            lines, self._unfinished = [*lines, self._unfinished], b""
        log.write_lines(
            [escaped(line.decode("utf-8", "replace").expandtabs()) for line in lines],
            scroll_end=log.is_vertical_scroll_end,
        )
        if not data:
            self._title(f"(exit status {self._end()})")

    def _end(self) -> int | None:
        process = self._process
        if process is None:
            return None
        asyncio.get_running_loop().remove_reader(self._descriptor())
        self._process = None
        with process:  # closes the pipe
            process.terminate()
            try:
                return process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def _title(self, state: str) -> None:
        words = " ".join(("niso", *self.words))
        self.query_one("#command", Static).update(f"{words}  {state}".rstrip())
