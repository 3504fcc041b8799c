"""Show niso top on a terminal with Textual, which this module alone needs and loads."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import ClassVar

from niso.api.host import connect
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import top
from niso.cli.output import escaped

try:
    from rich.segment import Segment
    from rich.style import Style
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.geometry import Size
    from textual.message import Message
    from textual.scroll_view import ScrollView
    from textual.strip import Strip
    from textual.widgets import Footer, Input, Static
except ImportError:
    hint = "niso top -n 1, apt install python3-textual, or install niso[top] with pip"
    raise Error("textual, which draws the screen, is not installed", hint) from None

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.events import Click, Resize

    from niso.api.top_views import FlowLoad, Load, ServiceLoad

    Cells = tuple[tuple[str, str], ...]
    """Texts of one row, each with its kind (`_STYLES`)."""

HISTORY = 15
TALL = 24
"""From so many lines on, flows are shown below the services."""
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = (*top.COLUMNS[:4], "LAST 30 s", *top.COLUMNS[4:])
_FLOW_COLUMNS = ("FROM", "TO", "VERDICT", "TRAFFIC", "LAST 30 s", "NEW/s")
_AT_THE_RIGHT = frozenset(("IN", "OUT", "TRAFFIC", "NEW/s", "DENIED IN", "DENIED OUT"))
_SPACE = "  "
_STYLES = {
    "": Style(),
    "name": Style(bold=True),
    "good": Style(color="green"),
    "bad": Style(color="red", bold=True),
    "waiting": Style(color="yellow"),
    "soft": Style(dim=True),
    "bars": Style(color="cyan"),
}
_VERDICTS = {"drop": "bad", "audit": "waiting", "pass": "good"}
ORDERS = ("name", "traffic", "new", "denied")


def show(name: str | None) -> int:
    """Show the screen until q or Ctrl-C; return the exit status. Raises Error."""
    with connect() as host:
        host.top(name).close()  # reports mistakes before the screen is changed
    screen = TopScreen(name)
    reader = threading.Thread(target=_read, args=(screen, name), daemon=True)
    screen.begin = lambda: _begin(screen, reader)
    try:
        screen.run()
    finally:
        screen.over.set()
        if reader.ident is not None:
            reader.join()  # it closes its store itself: a connection belongs to its thread
    if screen.failure is not None:
        raise screen.failure
    return 130 if screen.signalled else screen.return_code or 0


def _begin(screen: TopScreen, reader: threading.Thread) -> None:
    """Start to look. Signals end the screen in order, so that the terminal is as before."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, screen.action_interrupt)
    reader.start()


def _read(screen: TopScreen, name: str | None) -> None:
    """Look every `top.EVERY_S`, in a thread: a probe of a service's health can take long."""
    try:
        with connect() as host, host.top(name) as measured:
            while not screen.over.wait(top.EVERY_S):
                screen.post_message(Looked(measured.read()))  # safe in a thread
    except Exception as error:  # raised again by `show`
        screen.failure = error
        screen.post_message(Looked(None))


class Rows(ScrollView, can_focus=True):
    """A table of many rows, of which only the lines in view are made.

    The first line has the titles. The cursor stays on the row of its key when the order changes.
    """

    COMPONENT_CLASSES: ClassVar = {"rows--titles", "rows--cursor"}
    DEFAULT_CSS = """
    Rows { height: 1fr; }
    Rows > .rows--titles { background: $panel; text-style: bold; }
    Rows > .rows--cursor { background: $primary; color: $text; text-style: bold; }
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

    class Chosen(Message):
        """A row was chosen, by Enter or a click on it."""

        def __init__(self, key: str) -> None:
            self.key = key
            super().__init__()

    def __init__(self, id_: str) -> None:
        super().__init__(id=id_)
        self.keys: list[str] = []
        self.cursor = 0
        self._titles: tuple[str, ...] = ()
        self._widths: list[int] = []
        self._cells: Callable[[str], Cells] = lambda _: ()

    def fill(self, titles: tuple[str, ...], keys: list[str], cells: Callable[[str], Cells]) -> None:
        """Show a row for each key, of what ``cells`` returns."""
        at = self.key
        if titles != self._titles:
            self._titles, self._widths = titles, [len(title) for title in titles]
        self.keys, self._cells = keys, cells
        where = keys.index(at) if at in keys else self.cursor
        self.cursor = max(0, min(where, len(keys) - 1))
        self._measure()

    @property
    def key(self) -> str | None:
        """Return the key of the row with the cursor, None if there are no rows."""
        return self.keys[self.cursor] if self.cursor < len(self.keys) else None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Measure what comes into view."""
        super().watch_scroll_y(old_value, new_value)
        self._measure()

    def on_resize(self) -> None:
        """Measure what comes into view."""
        self._measure()

    def _measure(self) -> None:
        """Draw again. A column becomes wider if a row in view needs it, and never narrower."""
        first = self.scroll_offset.y
        for key in self.keys[first : first + self.size.height]:
            needed = [len(text) for text, _ in self._cells(key)]
            self._widths = [max(pair) for pair in zip(needed, self._widths, strict=True)]
        width = sum(self._widths) + len(_SPACE) * len(self._widths) + 1
        self.virtual_size = Size(width, len(self.keys) + 1)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return line ``y`` of those in view."""
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
        for (text, kind), title, width in zip(cells, self._titles, self._widths, strict=False):
            words = text.rjust(width) if title in _AT_THE_RIGHT else text.ljust(width)
            segments.append(Segment(words + _SPACE, over or plain + _STYLES[kind]))
        x = self.scroll_offset.x
        return Strip(segments).crop_extend(x, x + self.size.width, over or plain)

    def action_move(self, by: int) -> None:
        """Move the cursor by some rows."""
        self.action_move_to(max(0, min(self.cursor + by, len(self.keys) - 1)))

    def action_page(self, by: int) -> None:
        """Move the cursor by some pages."""
        self.action_move(by * max(1, self.size.height - 2))

    def action_move_to(self, at: int) -> None:
        """Move the cursor to a row; -1 is the last."""
        self.cursor = at if at >= 0 else max(0, len(self.keys) - 1)
        most = max(1, self.size.height - 1)
        top_ = min(max(self.scroll_offset.y, self.cursor - most + 1), self.cursor)
        self.scroll_to(y=top_, animate=False, immediate=True)
        self.refresh()

    def action_choose(self) -> None:
        """Choose the row with the cursor."""
        if self.key is not None:
            self.post_message(self.Chosen(self.key))

    def on_click(self, event: Click) -> None:
        """Move the cursor to a row, and choose the one that has it."""
        at = event.y - 1 + self.scroll_offset.y
        if event.y == 0 or at >= len(self.keys):
            return
        if at == self.cursor:
            self.action_choose()
        else:
            self.action_move_to(at)


class Looked(Message):
    """A new look; None if there are no more."""

    def __init__(self, load: Load | None) -> None:
        self.load = load
        super().__init__()


class TopScreen(App[None]):
    """A table of services and one of flows; of one service, or after Enter, its flows alone."""

    CSS = """
    Input { display: none; }
    Input.shown { display: block; }
    #summary { padding: 0 1; }
    #services { height: 3fr; }
    #flows { height: 2fr; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar = [
        Binding("d", "denied", "only denied"),
        Binding("s", "sort", "sort"),
        Binding("slash", "find", "find"),
        Binding("escape", "leave", "back"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "interrupt", "quit", show=False, priority=True),
    ]

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.chosen, self._fixed = name, name is not None
        self.only_denied, self.order, self.wanted = False, ORDERS[0], ""
        self.over = threading.Event()
        self.failure: Exception | None = None
        self.signalled = False
        self.begin: Callable[[], None] = lambda: None
        self._is_tall = False
        self._load: Load | None = None
        self._history: dict[str, list[float]] = {}
        self._flows: dict[str, FlowLoad] = {}
        self._flow_history: dict[str, list[float]] = {}

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static("niso top: measuring", id="summary", markup=False)
        yield Rows("services")
        yield Rows("flows")
        yield Input(placeholder="part of a name", id="find")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self._arrange()
        self.begin()

    def on_resize(self, event: Resize) -> None:
        """Show flows below the services if there is room."""
        self._is_tall = event.size.height >= TALL
        self._arrange()
        self._draw()

    def on_looked(self, event: Looked) -> None:
        """Show a new look, or end without one."""
        if event.load is None:
            self.exit()
        else:
            self.update_load(event.load)

    def update_load(self, load: Load) -> None:
        """Show a new look. Flows are shown until `HISTORY` looks have had nothing of them."""
        self._load = load
        bits = {each.service: (each.received or 0) + (each.sent or 0) for each in load.services}
        self._history = {
            name: [*self._history.get(name, ()), now][-HISTORY:] for name, now in bits.items()
        }
        fresh = {_flow_key(flow): flow for flow in load.flows}
        kept = {
            key: flow._replace(new=0.0, bits=None if flow.bits is None else 0.0)
            for key, flow in self._flows.items()
        } | fresh
        history = {
            key: [*self._flow_history.get(key, ()), flow.bits or flow.new][-HISTORY:]
            for key, flow in kept.items()
        }
        self._flow_history = {key: past for key, past in history.items() if any(past)}
        self._flows = {key: kept[key] for key in self._flow_history}
        self._draw()

    def _arrange(self) -> None:
        """Show the tables that are wanted, and give the keyboard to one of them."""
        services, flows = self.query_one("#services", Rows), self.query_one("#flows", Rows)
        services.display = self.chosen is None
        flows.display = self.chosen is not None or self._is_tall
        if self.focused not in [
            each for each in (services, flows, *self.query(Input)) if each.display
        ]:
            (services if services.display else flows).focus()

    def _draw(self) -> None:
        load = self._load
        if load is None:
            return
        parts = [("niso top", "name"), *top.summary(load)]
        if self.chosen is not None:
            parts.insert(1, (f"{self.chosen}: flows", "name"))
        parts += [(f"sorted by {self.order}", "")] * (self.order != ORDERS[0])
        parts += [("only denied", "")] * self.only_denied
        parts += [(repr(self.wanted), "")] * bool(self.wanted)
        words = Text("  ").join(Text(text, _STYLES[kind]) for text, kind in parts)
        self.query_one("#summary", Static).update(words)
        shown = [each for each in self._sorted(load.services) if self._is_shown(each)]
        loads = {each.service: each for each in shown}
        services, flows = self.query_one("#services", Rows), self.query_one("#flows", Rows)
        if services.display:
            services.fill(_COLUMNS, list(loads), lambda key: self._cells(loads[key]))
        if flows.display:
            flows.fill(_FLOW_COLUMNS, self._flow_keys(), self._flow_cells)

    def _flow_keys(self) -> list[str]:
        """Return the flows to show: denied ones first, then those with most in 30 s."""
        keys = []
        for key, flow in self._flows.items():
            names = (flow.from_.name, flow.to.name)
            if self.chosen is not None:
                wanted = self._fixed or self.chosen in (flow.from_.service, flow.to.service)
            else:
                wanted = any(self.wanted in name for name in names)
            if wanted and not (self.only_denied and flow.verdict == "pass"):
                keys.append(key)
        rank = list(_VERDICTS).index
        past = self._flow_history
        return sorted(keys, key=lambda key: (rank(self._flows[key].verdict), -sum(past[key]), key))

    def _flow_cells(self, key: str) -> Cells:
        flow = self._flows[key]
        from_, to, traffic, new, verdict = top.flow_cells(flow)
        kind = "bad" if verdict == "drop" else ""
        return (
            (escaped(from_), kind),
            (escaped(to), kind),
            (verdict, _VERDICTS[verdict]),
            (traffic, "" if flow.bits else "soft"),
            (_bars(self._flow_history[key]), "bad" if kind else "bars"),
            (new, kind or ("" if flow.new else "soft")),
        )

    def _cells(self, load: ServiceLoad) -> Cells:
        name, state, *rates, new, into, out, networks = top.cells(load)
        off = "soft" if load.status == "inactive" else ""
        return (
            (escaped(name), off or "name"),
            (escaped(state), _kind(load)),
            *((each, off) for each in rates),
            (_bars(self._history[load.service]), "bars"),
            (new, off),
            (into, "bad" if load.denied_in else "soft"),
            (out, "bad" if load.denied_out else "soft"),
            (escaped(networks), "soft"),
        )

    def _is_shown(self, load: ServiceLoad) -> bool:
        denied = (load.denied_in or 0) + (load.denied_out or 0)
        return self.wanted in load.service and (bool(denied) or not self.only_denied)

    def _sorted(self, services: tuple[ServiceLoad, ...]) -> list[ServiceLoad]:
        keys = {
            "name": lambda each: 0,
            "traffic": lambda each: -(each.received or 0) - (each.sent or 0),
            "new": lambda each: -(each.new or 0),
            "denied": lambda each: -(each.denied_in or 0) - (each.denied_out or 0),
        }
        return sorted(services, key=keys[self.order])

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """Show the flows of a service, or of the service that a flow leads to."""
        if self.chosen is not None:
            return
        name: str | None = event.key
        if event.key in self._flows:
            flow = self._flows[event.key]
            name = flow.to.service or flow.from_.service
        self._choose(name)

    def _choose(self, name: str | None) -> None:
        self.chosen = name
        self._arrange()
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Find while the name is typed."""
        self.wanted = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        """Return to the table, with what was searched for."""
        self.query_one(Input).remove_class("shown")
        self._arrange()

    def action_interrupt(self) -> None:
        """End as by a signal."""
        self.signalled = True
        self.exit()

    def action_denied(self) -> None:
        """Show only what was denied, or everything again."""
        self.only_denied = not self.only_denied
        self._draw()

    def action_sort(self) -> None:
        """Sort by the next of `ORDERS`."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._draw()
        self.query_one("#services", Rows).action_move(0)

    def action_find(self) -> None:
        """Ask for a part of a name."""
        field = self.query_one(Input)
        field.add_class("shown")
        field.focus()

    def action_leave(self) -> None:
        """Leave a service, or end a search."""
        field = self.query_one(Input)
        field.value = ""
        self.on_input_submitted()
        self._choose(self.chosen if self._fixed else None)


def _flow_key(flow: FlowLoad) -> str:
    return f"{flow.from_.address}|{flow.to.address}|{flow.port}|{flow.proto}|{flow.verdict}"


def _bars(values: list[float]) -> str:
    """Return one bar for each value, relative to the highest."""
    most = max(values, default=0)
    if not most:
        return ""
    top_ = len(_BARS) - 1
    return "".join(_BARS[round(value / most * top_)] for value in values)


def _kind(load: ServiceLoad) -> str:
    """Return the kind of the state of a service."""
    if load.status == "running":
        return {"healthy": "good", "unhealthy": "bad", "starting": "waiting"}.get(
            load.health or "", ""
        )
    if load.status in ("starting", "restarting"):
        return "waiting"
    return {"inactive": "soft", "completed": "soft", "attached": ""}.get(load.status, "bad")
