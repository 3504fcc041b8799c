"""Draw tables of many rows for the screen of niso top, with Textual."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.events import Click

    Cells = tuple[tuple[str, str], ...]
    """Texts of one row, each with its style (`STYLES`)."""

_AT_THE_RIGHT = frozenset(
    (
        "IN",
        "OUT",
        "TRAFFIC",
        "NEW/s",
        "DENIED IN",
        "DENIED OUT",
        "RTT",
        "RETRANS",
        "RECEIVED",
        "SENT",
    )
)
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


class Rows(ScrollView, can_focus=True):
    """A table of many rows, of which only the visible lines are drawn.

    The first line has the titles. The cursor stays on the row with the same key when the order
    changes.
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
        """Sent when a row is chosen, by Enter or a click on it."""

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
        """Show a row for each key, with the texts that ``cells`` returns for it."""
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
        """Adapt the columns to the rows that become visible."""
        super().watch_scroll_y(old_value, new_value)
        self._measure()

    def on_resize(self) -> None:
        """Adapt the columns to the rows that become visible."""
        self._measure()

    def _measure(self) -> None:
        """Redraw the table; widen a column if a visible row needs it, but never narrow it."""
        first = self.scroll_offset.y
        for key in self.keys[first : first + self.size.height]:
            needed = [len(text) for text, _ in self._cells(key)]
            self._widths = [max(pair) for pair in zip(needed, self._widths, strict=True)]
        width = sum(self._widths) + len(_SPACE) * len(self._widths) + 1
        self.virtual_size = Size(width, len(self.keys) + 1)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw the visible line ``y``."""
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
            segments.append(Segment(words + _SPACE, over or plain + STYLES[kind]))
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
        """Move the cursor to the clicked row, or choose the row if it has the cursor."""
        at = event.y - 1 + self.scroll_offset.y
        if event.y == 0 or at >= len(self.keys):
            return
        if at == self.cursor:
            self.action_choose()
        else:
            self.action_move_to(at)
