"""Show niso top on a terminal, the only module that needs and loads Textual."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import ClassVar

from niso.api.host import connect
from niso.api.top_views import FlowLoad
from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.cli import top
from niso.cli.output import escaped

try:
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.message import Message
    from textual.widgets import Footer, Input, Static
except ImportError:
    hint = "niso top -n 1, apt install python3-textual, or install niso[top] with pip"
    raise Error("textual, which draws the screen, is not installed", hint) from None

from niso.cli.top_output import Output
from niso.cli.top_rows import STYLES, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.events import Resize

    from niso.api.top_views import Load, ServiceLoad, ServiceSocket
    from niso.cli.top_rows import Cells

HISTORY = 15
TALL = 24
"""With at least so many lines, flows are shown below the services."""
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = (*top.COLUMNS[:4], "LAST 30 s", *top.COLUMNS[4:])
_FLOW_COLUMNS = ("FROM", "TO", "VERDICT", "TRAFFIC", "LAST 30 s", "NEW/s", "BY")
_VERDICTS = {"drop": "bad", "audit": "waiting", "pass": "good"}
ORDERS = ("name", "traffic", "new", "denied")


def show(name: str | None) -> int:
    """Show the screen until q or Ctrl-C; return the exit status. Raises Error."""
    # reports mistakes before the screen is drawn
    with connect() as host, host.top(name) as measured:
        screen = TopScreen(measured.service)
    reader = threading.Thread(target=_read, args=(screen,), daemon=True)
    screen.begin = lambda: _begin(screen, reader)
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


def _begin(screen: TopScreen, reader: threading.Thread) -> None:
    """Start measuring; let signals end the screen cleanly, so that the terminal is restored."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, screen.action_interrupt)
    reader.start()


def _read(screen: TopScreen) -> None:
    """Measure every `top.EVERY_S`, in a thread, because health checks can take long."""
    try:
        with connect() as host, host.top() as measured:
            due = time.monotonic() + top.EVERY_S
            while True:
                screen.wake.wait(max(due - time.monotonic(), 0))
                screen.wake.clear()
                if screen.is_over:
                    return
                if time.monotonic() >= due:
                    due = time.monotonic() + top.EVERY_S
                    screen.post_message(Looked(measured.read()))  # safe to call in a thread
                if (chosen := screen.chosen) is not None:
                    screen.post_message(Listed(chosen, measured.sockets(chosen)))
    except Exception as error:  # raised again by `show`
        screen.failure = error
        screen.post_message(Looked(None))


class Looked(Message):
    """Sent with each new measurement; None at the end."""

    def __init__(self, load: Load | None) -> None:
        self.load = load
        super().__init__()


class Listed(Message):
    """Sent with the sockets of a service."""

    def __init__(self, service: str, sockets: tuple[ServiceSocket, ...]) -> None:
        self.service, self.sockets = service, sockets
        super().__init__()


class TopScreen(App[None]):
    """A table of services and one of flows; for one service, or after Enter, flows and sockets."""

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
        Binding("d", "denied", "only denied"),
        Binding("s", "sort", "sort"),
        Binding("slash", "find", "find"),
        Binding("e", "explain", "explain"),
        Binding("c", "capture", "capture"),
        Binding("l", "logs", "logs"),
        Binding("escape", "leave", "back"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "interrupt", "quit", show=False, priority=True),
    ]

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.chosen, self._fixed = name, name is not None
        self.only_denied, self.order, self.wanted = False, ORDERS[0], ""
        self.is_over = False
        self.wake = threading.Event()
        """Set to end the measuring thread, or to make it list the sockets of another service."""
        self.failure: Exception | None = None
        self.signalled = False
        self.begin: Callable[[], None] = lambda: None
        self._is_tall = False
        self._load: Load | None = None
        self._history: dict[str, list[float]] = {}
        self._flows: dict[str, FlowLoad] = {}
        self._flow_history: dict[str, list[float]] = {}
        self._sockets: dict[str, ServiceSocket] = {}

    def compose(self) -> ComposeResult:
        """Yield the parts of the screen, from top to bottom."""
        yield Static("niso top: measuring", id="summary", markup=False)
        yield Rows("services")
        yield Rows("flows")
        yield Rows("sockets")
        yield Input(placeholder="part of a name", id="find")
        yield Footer()

    def on_mount(self) -> None:
        """Start measuring."""
        self._arrange()
        self.begin()

    def on_resize(self, event: Resize) -> None:
        """Show flows below the services if there is room."""
        self._is_tall = event.size.height >= TALL
        self._arrange()
        self._draw()

    def on_looked(self, event: Looked) -> None:
        """Show a new measurement, or exit if there are no more."""
        if event.load is None:
            self.exit()
        else:
            self.update_load(event.load)

    def on_listed(self, event: Listed) -> None:
        """Show the sockets of the service, unless another service is shown now."""
        if event.service == self.chosen:
            self.update_sockets(event.sockets)

    def update_sockets(self, sockets: tuple[ServiceSocket, ...]) -> None:
        """Show the sockets of the chosen service."""
        self._sockets = {}
        for socket in sockets:
            key = _socket_key(socket)
            # a connection of a service to itself has both ends here
            self._sockets[key + "|" * (key in self._sockets)] = socket
        self._draw()

    def update_load(self, load: Load) -> None:
        """Show a new measurement.

        Flows stay until `HISTORY` measurements have had no traffic of them.
        """
        self._load = load
        bits = {row.service: (row.received or 0) + (row.sent or 0) for row in load.services}
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
        """Show the tables for the present view, and give the keyboard focus to one of them."""
        services, flows, sockets = self._tables()
        services.display = self.chosen is None
        flows.display = self.chosen is not None or self._is_tall
        sockets.display = self.chosen is not None
        shown = [part for part in (*self._tables(), *self.query(Input)) if part.display]
        if self.focused not in shown:
            shown[0].focus()

    def _tables(self) -> tuple[Rows, Rows, Rows]:
        """Return the tables of services, flows and sockets."""
        return (
            self.query_one("#services", Rows),
            self.query_one("#flows", Rows),
            self.query_one("#sockets", Rows),
        )

    def _draw(self) -> None:
        load = self._load
        if load is None:
            return
        parts = [("niso top", "name"), *top.summary(load)]
        if self.chosen is not None:
            parts.insert(1, (self.chosen, "name"))
        parts += [(f"sorted by {self.order}", "")] * (self.order != ORDERS[0])
        parts += [("only denied", "")] * self.only_denied
        parts += [(repr(self.wanted), "")] * bool(self.wanted)
        words = Text("  ").join(Text(text, STYLES[kind]) for text, kind in parts)
        self.query_one("#summary", Static).update(words)
        shown = [service for service in self._sorted(load.services) if self._is_shown(service)]
        loads = {service.service: service for service in shown}
        services, flows, sockets = self._tables()
        if services.display:
            services.fill(_COLUMNS, list(loads), lambda key: self._cells(loads[key]))
        if flows.display:
            flows.fill(_FLOW_COLUMNS, self._flow_keys(), self._flow_cells)
        if sockets.display:
            sockets.fill(top.SOCKET_COLUMNS, list(self._sockets), self._socket_cells)

    def _flow_keys(self) -> list[str]:
        """Return the flows to show: denied ones first, then those with most traffic in 30 s."""
        keys = []
        home = self._home(self.chosen)
        for key, flow in self._flows.items():
            names = (flow.from_.name, flow.to.name)
            if self.chosen is not None:
                wanted = home in (flow.from_.service, flow.to.service)
            else:
                wanted = any(self.wanted in name for name in names)
            if wanted and not (self.only_denied and flow.verdict == "pass"):
                keys.append(key)
        rank = list(_VERDICTS).index
        past = self._flow_history
        return sorted(keys, key=lambda key: (rank(self._flows[key].verdict), -sum(past[key]), key))

    def _flow_cells(self, key: str) -> Cells:
        flow = self._flows[key]
        from_, to, traffic, new, verdict, by = top.flow_cells(flow)
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
        *ends, state, rtt, resent, received, sent = top.socket_cells(socket)
        return (
            *((escaped(end), "") for end in ends),
            (state, "" if state == "established" else "waiting"),
            (rtt, ""),
            (resent, "bad" if socket.retransmitted else "soft"),
            (received, ""),
            (sent, ""),
        )

    def _cells(self, load: ServiceLoad) -> Cells:
        name, state, *rates, new, into, out, networks = top.cells(load)
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

    def _is_shown(self, load: ServiceLoad) -> bool:
        denied = (load.denied_in or 0) + (load.denied_out or 0)
        return self.wanted in load.service and (bool(denied) or not self.only_denied)

    def _sorted(self, services: tuple[ServiceLoad, ...]) -> list[ServiceLoad]:
        keys = {
            "name": lambda service: 0,
            "traffic": lambda service: -(service.received or 0) - (service.sent or 0),
            "new": lambda service: -(service.new or 0),
            "denied": lambda service: -(service.denied_in or 0) - (service.denied_out or 0),
        }
        return sorted(services, key=keys[self.order])

    def on_rows_chosen(self, event: Rows.Chosen) -> None:
        """Show the flows of the chosen service, or of the service that a chosen flow leads to."""
        if self.chosen is not None:
            return  # only flows and sockets of one service are shown
        name: str | None = event.key
        if event.key in self._flows:
            flow = self._flows[event.key]
            name = flow.to.service or flow.from_.service
        self._choose(name)

    def _choose(self, name: str | None) -> None:
        if name != self.chosen:
            self._sockets = {}
        self.chosen = name
        self.wake.set()
        self._arrange()
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while the name is typed."""
        self.wanted = event.value
        self._draw()

    def on_input_submitted(self) -> None:
        """Return to the table with the search applied."""
        self.query_one(Input).remove_class("shown")
        self._arrange()

    def action_interrupt(self) -> None:
        """Exit as after a signal."""
        self.signalled = True
        self.exit()

    def action_denied(self) -> None:
        """Toggle between denied flows and all flows."""
        self.only_denied = not self.only_denied
        self._draw()

    def action_sort(self) -> None:
        """Sort by the next of `ORDERS`."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._draw()
        self.query_one("#services", Rows).action_move(0)

    def action_find(self) -> None:
        """Let the user type a part of a name."""
        field = self.query_one(Input)
        field.add_class("shown")
        field.focus()

    def action_explain(self) -> None:
        """Explain the flow or socket at the cursor."""
        _, flow = self._subject()
        if flow is None:
            self.notify("e explains a flow; Tab or Enter shows the flows")
        else:
            self.push_screen(Output(top.explain_words(flow)))

    def action_capture(self) -> None:
        """Capture the service, flow or socket at the cursor."""
        service, flow = self._subject()
        if service is not None:
            self.push_screen(Output(top.capture_words(service, flow)))

    def action_logs(self) -> None:
        """Show the logs of the chosen service, or of the one at the cursor."""
        service = self.chosen or self._subject()[0]
        if service is not None:
            self.push_screen(Output(top.logs_words(service)))

    def _subject(self) -> tuple[str | None, FlowLoad | None]:
        """Return the service and the flow at the cursor, each None if there is none.

        For a flow, the service is the chosen one, else an end of the flow.
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
        """Return the service whose network a service uses."""
        loads = self._load.services if self._load else ()
        return next((load.shares or name for load in loads if load.service == name), name)

    def action_leave(self) -> None:
        """Return from one service to all, or end a search."""
        field = self.query_one(Input)
        field.value = ""
        self.on_input_submitted()
        self._choose(self.chosen if self._fixed else None)


def _flow_key(flow: FlowLoad) -> str:
    return f"{flow.from_.address}|{flow.to.address}|{flow.port}|{flow.proto}|{flow.verdict}"


def _socket_key(socket: ServiceSocket) -> str:
    return f"{socket.from_.address}|{socket.from_port}|{socket.to.address}|{socket.port}"


def _bars(values: list[float]) -> str:
    """Draw one bar for each value, relative to the highest."""
    most = max(values, default=0)
    if not most:
        return ""
    top_ = len(_BARS) - 1
    return "".join(_BARS[round(value / most * top_)] for value in values)


def _kind(load: ServiceLoad) -> str:
    """Return the style of a service's state."""
    if load.status == "running":
        return {"healthy": "good", "unhealthy": "bad", "starting": "waiting"}.get(
            load.health or "", ""
        )
    if load.status in ("starting", "restarting"):
        return "waiting"
    return {"inactive": "soft", "completed": "soft", "attached": ""}.get(load.status, "bad")
