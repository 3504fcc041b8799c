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
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.coordinate import Coordinate
    from textual.message import Message
    from textual.widgets import DataTable, Footer, Input, Static
except ImportError:
    hint = "niso top -n 1, apt install python3-textual, or install niso[top] with pip"
    raise Error("textual, which draws the screen, is not installed", hint) from None

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.api.top_views import Load, ServiceLoad

HISTORY = 15
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = (*top.COLUMNS[:4], "LAST 30 s", *top.COLUMNS[4:])
_COLOURS = {"healthy": "green", "running": "green", "pass": "green"}
_BAD = {"unhealthy": "red", "failed": "red", "drop": "red", "inactive": "dim", "gone": "red"}
ORDERS = ("name", "traffic", "new", "denied")


def show(name: str | None) -> int:
    """Show the screen until q or Ctrl-C; return the exit status. Raises Error."""
    with connect() as host:
        host.top(name)  # reports mistakes before the screen is changed
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
        with connect() as host:
            measured = host.top(name)
            while not screen.over.wait(top.EVERY_S):
                screen.post_message(Looked(measured.read()))  # safe in a thread
    except Exception as error:  # raised again by `show`
        screen.failure = error
        screen.post_message(Looked(None))


class _Rows(DataTable[Text]):
    """A table of many rows, of which only those in view are made, and written where they change.

    Its rows are places: what is in them changes with the order.
    """

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False)
        self._keys: list[str] = []
        self._titles: tuple[str, ...] = ()
        self._widths: list[int] = []
        self._cells: Callable[[str], tuple[str, ...]] = lambda _: ()

    def fill(
        self, titles: tuple[str, ...], keys: list[str], cells: Callable[[str], tuple[str, ...]]
    ) -> None:
        """Show a row for each key, of what ``cells`` returns; the cursor stays on the same one."""
        at = self.key_at(self.cursor_row)
        self._keys, self._cells = keys, cells
        if titles != self._titles:
            self._titles = titles
            self._make([len(title) for title in titles])
        blank = [Text("")] * len(titles)
        while self.row_count < len(keys):
            self.add_row(*blank)
        while self.row_count > len(keys):
            self.remove_row(self.coordinate_to_cell_key(Coordinate(self.row_count - 1, 0))[0])
        if at in keys and keys.index(at) != self.cursor_row:
            self.move_cursor(row=keys.index(at), scroll=False)
        self._show(self.scroll_y)

    def key_at(self, row: int) -> str | None:
        """Return the key of a row, None if there is none."""
        return self._keys[row] if 0 <= row < len(self._keys) else None

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Write what comes into view."""
        super().watch_scroll_y(old_value, new_value)
        self._show(new_value)

    def on_resize(self) -> None:
        """Write what comes into view."""
        self._show(self.scroll_y)

    def _make(self, widths: list[int]) -> None:
        """Make empty rows, with columns of these widths."""
        at, scrolled = self.cursor_row, self.scroll_y
        self._widths = widths
        self.clear(columns=True)
        for title, width in zip(self._titles, widths, strict=True):
            self.add_column(title, width=width)
        self.add_rows([[Text("")] * len(widths)] * len(self._keys))
        self.move_cursor(row=at, scroll=False)
        self.scroll_to(y=scrolled, animate=False)

    def _show(self, top_: float) -> None:
        """Write the rows in view. A column becomes wider if it must, and never narrower."""
        if self.row_count != len(self._keys) or len(self.columns) != len(self._widths):
            return  # it is being made
        first, last = max(0, int(top_) - 1), int(top_) + self.size.height + 1
        made = [
            [escaped(cell) for cell in self._cells(key)] for key in self._keys[first : max(last, 0)]
        ]
        needed = [max(map(len, column)) for column in zip(*made, strict=True)] or self._widths
        wider = [max(pair) for pair in zip(needed, self._widths, strict=True)]
        if wider != self._widths:
            self._make(wider)
        for row, cells in enumerate(made, first):
            for column, text in enumerate(cells):
                place = Coordinate(row, column)
                if self.get_cell_at(place).plain != text:
                    self.update_cell_at(place, Text(text, style=_style(text)))


class Looked(Message):
    """A new look; None if there are no more."""

    def __init__(self, load: Load | None) -> None:
        self.load = load
        super().__init__()


class TopScreen(App[None]):
    """A table of services; of one service, or after Enter, the flows of it."""

    CSS = "Input { display: none; } Input.shown { display: block; } DataTable { height: 1fr; }"
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
        self._load: Load | None = None
        self._history: dict[str, list[float]] = {}

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static("niso top: measuring", id="summary", markup=False)
        yield _Rows()
        yield Input(placeholder="part of a name", id="find")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(_Rows).focus()
        self.begin()

    def on_looked(self, event: Looked) -> None:
        """Show a new look, or end without one."""
        if event.load is None:
            self.exit()
        else:
            self.update_load(event.load)

    def update_load(self, load: Load) -> None:
        """Show a new look."""
        self._load = load
        for each in load.services:
            past = self._history.setdefault(each.service, [])
            past.append((each.received or 0) + (each.sent or 0))
            del past[:-HISTORY]
        for gone in self._history.keys() - {each.service for each in load.services}:
            del self._history[gone]
        self._draw()

    def _draw(self) -> None:
        load = self._load
        if load is None:
            return
        words = top.summary(load)
        words += f"  sorted by {self.order}" if self.order != ORDERS[0] else ""
        words += "  only denied" if self.only_denied else ""
        words += f"  {self.wanted!r}" if self.wanted else ""
        if self.chosen is not None:
            words = f"{self.chosen}: new flows  {words}"
        self.query_one("#summary", Static).update(Text(f"niso top  {words}"))
        if self.chosen is None:
            shown = [each for each in self._sorted(load.services) if self._is_shown(each)]
            loads = {each.service: each for each in shown}
            self.query_one(_Rows).fill(_COLUMNS, list(loads), lambda key: self._cells(loads[key]))
            return
        flows = [
            flow
            for flow in load.flows
            if self.chosen in (flow.from_.service, flow.to.service) or self._fixed
            if not (self.only_denied and flow.verdict == "pass")
        ]
        lines = [top.flow_cells(flow) for flow in flows]
        by_key = {"|".join(line): line for line in lines}
        self.query_one(_Rows).fill(top.FLOW_COLUMNS, list(by_key), by_key.__getitem__)

    def _cells(self, load: ServiceLoad) -> tuple[str, ...]:
        plain = top.cells(load)
        return (*plain[:4], _bars(self._history[load.service]), *plain[4:])

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

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show the flows of a service after Enter."""
        if self.chosen is None:
            self.chosen = self.query_one(_Rows).key_at(event.cursor_row)
            self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Find while the name is typed."""
        self.wanted = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        """Return to the table, with what was searched for."""
        self.query_one(Input).remove_class("shown")
        self.query_one(_Rows).focus()

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

    def action_find(self) -> None:
        """Ask for a part of a name."""
        field = self.query_one(Input)
        field.add_class("shown")
        field.focus()

    def action_leave(self) -> None:
        """Leave a service, or end a search."""
        if self.chosen is not None and not self._fixed:
            self.chosen = None
        field = self.query_one(Input)
        field.value = ""
        self.on_input_submitted()
        self._draw()


def _bars(values: list[float]) -> str:
    """Return one bar for each value, relative to the highest."""
    most = max(values, default=0)
    if not most:
        return ""
    top_ = len(_BARS) - 1
    return "".join(_BARS[round(value / most * top_)] for value in values)


def _style(cell: str) -> str:
    return _COLOURS.get(cell) or _BAD.get(cell) or ""
